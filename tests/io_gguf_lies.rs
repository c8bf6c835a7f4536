//! GGUF files that lie: each is refused, with words that say where.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use aolab::Error;
use aolab::io::{self, Checkpoint, LoadOptions};
use aolab::kernels::ggml::BlockType;
use support::model::{self, VOCAB};
use support::{Gguf, Random};

fn write(dir: &Path, file: &Gguf) -> PathBuf {
    let path = dir.join("little.gguf");
    fs::write(&path, file.bytes()).expect("a small file");
    path
}

fn open(path: &Path) -> aolab::Result<Checkpoint> {
    let options = LoadOptions::new(|_, _, _| Err(Error::invalid("no quantized weights here")));
    io::open(path.to_str().expect("UTF-8"), &options)
}

/// Files that lie, and a word of the error that each gets.
#[test]
fn files_that_lie_are_refused_in_words() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let check = |what: &str, words: &str, edit: &dyn Fn(&mut Gguf)| {
        let mut file = model::gguf("llama", &model::values(VOCAB, 11), BlockType::Q8_0);
        edit(&mut file);
        let error = open(&write(dir.path(), &file)).expect_err(what).to_string();
        assert!(error.contains(words), "{what}: {words:?} is not in: {error}");
    };
    check("version 1", "version 1 is not supported", &|f| f.version = 1);
    check("byte order", "big-endian", &|f| f.version = 3_u32.swap_bytes());
    check("keys", "metadata keys are claimed", &|f| f.key_count = Some(u64::MAX));
    check("tensors", "tensors are claimed", &|f| f.tensor_count = Some(1 << 40));
    check("one key more", "little.gguf", &|f| f.key_count = Some(f.keys.len() as u64 + 1));
    check("alignment 0", "power of two", &|f| f.u32("general.alignment", 0));
    check("alignment 24", "power of two", &|f| f.u32("general.alignment", 24));
    check("alignment 2^31", "power of two", &|f| f.u32("general.alignment", 1 << 31));
    check("key twice", "is there twice", &|f| f.u32("llama.block_count", 2));
    check("tensor twice", "is there twice", &|f| {
        let copy = f.tensors[0].clone();
        f.tensors.push(copy);
    });
    check("kind 13", "metadata type 13", &|f| f.key("x", 13, vec![0; 16]));
    check("bool 2", "neither true nor false", &|f| f.key("x", 7, vec![2]));
    check("nested", "array of arrays", &|f| {
        f.key("x", 9, [9_u32.to_le_bytes(), [1, 0, 0, 0], [0; 4]].concat())
    });
    check("array length", "elements of an array", &|f| {
        f.key("x", 9, [&4_u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat());
    });
    check("text length", "bytes of text", &|f| f.key("x", 8, u64::MAX.to_le_bytes().to_vec()));
    check("no dims", "0 dimensions", &|f| f.tensors[0].dims = vec![]);
    check("five dims", "5 dimensions", &|f| f.tensors[0].dims = vec![1; 5]);
    check("dim 0", "length 0", &|f| f.tensors[0].dims = vec![0, 4]);
    check("overflow", "overflows", &|f| f.tensors[0].dims = vec![1 << 62, 1 << 62]);
    check("past the end", "past the end", &|f| f.tensors[0].dims = vec![1 << 40]);
    check("part of a block", "multiple of 32", &|f| f.named("token_embd.weight").dims[0] = 63);
    check("element type", "IQ2_XS", &|f| f.tensors[0].ty = 17);
    check("element type 999", "999 is not supported", &|f| f.tensors[0].ty = 999);
    check("offset", "not a multiple of the alignment", &|f| f.tensors[1].offset = Some(8));
    check("far offset", "past the end", &|f| f.tensors[1].offset = Some(u64::MAX - 31));
    check("overlap", "overlap", &|f| f.tensors[1].offset = Some(0));
    check("architecture", "\"bert\" is not supported", &|f| {
        f.keys[0].2 = support::text_bytes("bert")
    });
    check("missing key", "llama.block_count is missing", &|f| {
        f.keys.retain(|k| k.0 != "llama.block_count")
    });
    check("experts", "experts", &|f| f.u32("llama.expert_count", 8));
    check("yarn", "\"yarn\" is not supported", &|f| f.text("llama.rope.scaling.type", "yarn"));
    check("no heads", "head_count", &|f| {
        f.keys.retain(|k| k.0 != "llama.attention.head_count");
        f.u32("llama.attention.head_count", 0);
    });
    check("NaN", "finite", &|f| {
        f.text("llama.rope.scaling.type", "linear");
        f.f32("llama.rope.scaling.factor", f32::NAN);
    });
    check("tokens", "259 token types", &|f| {
        f.keys.retain(|k| k.0 != "tokenizer.ggml.token_type");
        f.i32s("tokenizer.ggml.token_type", &[1; 259]);
    });
    check("bos", "there are 260 tokens", &|f| {
        f.keys.retain(|k| k.0 != "tokenizer.ggml.bos_token_id");
        f.u32("tokenizer.ggml.bos_token_id", 260);
    });
    check("merge", "no pair", &|f| {
        f.keys.retain(|k| k.0 != "tokenizer.ggml.merges");
        f.texts("tokenizer.ggml.merges", &["he".to_owned()]);
    });
    check("merge of nothing", "not in the vocabulary", &|f| {
        f.keys.retain(|k| k.0 != "tokenizer.ggml.merges");
        f.texts("tokenizer.ggml.merges", &["h x".to_owned()]);
    });
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = model::gguf("llama", &model::values(VOCAB, 13), BlockType::Q8_0);
    let bytes = file.bytes();
    let path = dir.path().join("cut.gguf");
    let mut random = Random::new(5);
    let some = (0..300).map(|_| usize::try_from(random.next()).expect("64 bits") % bytes.len());
    for len in (0..200).chain(some) {
        fs::write(&path, &bytes[..len]).expect("a small file");
        assert!(open(&path).is_err(), "cut to {len} of {} bytes", bytes.len());
    }
}
