//! Damaged and malicious files: every one is read or refused in words; none panics, hangs or makes us
//! allocate what it claims.

mod support;

use std::fs;
use std::path::Path;

use aolab::data::Tokenizer;
use aolab::io::pytorch::TorchFile;
use aolab::io::safetensors::SafetensorsFile;
use aolab::io::{self, LoadOptions};
use aolab::kernels::ggml::BlockType;
use aolab::model::Model;
use aolab::{Error, Tensor};
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value as Json, json};
use support::model::{self, VOCAB};

/// What is done to the bytes of a valid file.
#[derive(Clone, Debug)]
enum Damage {
    Flip(Index, u8),
    Cut(Index),
    /// A number of eight bytes, where a length or an offset may be.
    Number(Index, u64),
    Remove(Index, usize),
    Repeat(Index, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let numbers = prop_oneof![
        Just(0),
        Just(1),
        Just(u64::MAX),
        Just(u64::MAX - 31),
        Just(1 << 63),
        Just(1 << 40),
        Just(1 << 32),
        Just(100_000_000),
        any::<u64>(),
        (0..4096_u64),
    ];
    prop_oneof![
        4 => (any::<Index>(), 1..=255_u8).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        1 => any::<Index>().prop_map(Damage::Cut),
        3 => (any::<Index>(), numbers).prop_map(|(at, number)| Damage::Number(at, number)),
        1 => (any::<Index>(), 1..64_usize).prop_map(|(at, len)| Damage::Remove(at, len)),
        1 => (any::<Index>(), 1..64_usize).prop_map(|(at, len)| Damage::Repeat(at, len)),
    ]
}

/// Most damage is done to the first `head` bytes, where a file says what it holds.
fn apply(bytes: &mut Vec<u8>, head: usize, damage: &Damage) {
    let at = |index: &Index, bytes: &[u8]| index.index(head.min(bytes.len()).max(1));
    match damage {
        _ if bytes.is_empty() => {}
        Damage::Flip(index, bits) => {
            let at = at(index, bytes);
            bytes[at] ^= bits;
        }
        Damage::Cut(index) => bytes.truncate(index.index(bytes.len())),
        Damage::Number(index, number) => {
            let at = at(index, bytes);
            let end = (at + 8).min(bytes.len());
            bytes[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
        }
        Damage::Remove(index, len) => {
            let at = at(index, bytes);
            bytes.drain(at..(at + len).min(bytes.len()));
        }
        Damage::Repeat(index, len) => {
            let at = at(index, bytes);
            let again = bytes[at..(at + len).min(bytes.len())].to_vec();
            bytes.splice(at..at, again);
        }
    }
}

/// The most address space that this process ever had, in bytes; 0 where the system does not say.
fn peak_address_space() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Each thread of the tests maps 64 MiB for its own allocations; a file that is believed costs terabytes.
const MOST_GROWTH: u64 = 2 << 30;

/// Runs `cases` files, damaged in up to four places, through `read`.
fn try_damaged(cases: u32, valid: &[u8], head: usize, read: impl Fn(&[u8])) {
    let before = peak_address_space();
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let result = runner.run(&prop::collection::vec(damage(), 1..4), |all| {
        let mut bytes = valid.to_vec();
        all.iter().for_each(|damage| apply(&mut bytes, head, damage));
        read(&bytes);
        Ok(())
    });
    result.expect("no damaged file makes the reader panic");
    let grown = peak_address_space() - before;
    assert!(grown < MOST_GROWTH, "reading damaged files took {grown} bytes of address space");
}

fn options() -> LoadOptions {
    LoadOptions::new(aolab::quantization::read_weight)
}

/// Opens a model and reads every parameter of it.
fn load(path: &Path) -> aolab::Result<Model> {
    aolab::load_with(path.to_str().expect("UTF-8"), &options())
}

fn small_safetensors() -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("small.safetensors");
    let tensors = [
        ("a".to_owned(), Tensor::new(vec![1.0_f32; 12], &[3, 4]).expect("twelve")),
        ("b.bias".to_owned(), Tensor::new(vec![2_i8; 5], &[5]).expect("five")),
        ("c".to_owned(), Tensor::new(Vec::<i64>::new(), &[0, 7]).expect("none")),
    ];
    io::safetensors::write(&path, &tensors).expect("a small file");
    fs::read(path).expect("it was written")
}

fn read_safetensors(path: &Path) -> aolab::Result<usize> {
    let file = SafetensorsFile::open(path)?;
    file.names().map(|name| Ok(file.tensor(name)?.nbytes())).sum()
}

#[test]
fn damaged_safetensors_are_read_or_refused_as_the_formats_own_library_does() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("damaged.safetensors");
    try_damaged(3000, &small_safetensors(), 400, |bytes| {
        fs::write(&path, bytes).expect("a small file");
        let ours = SafetensorsFile::open(&path);
        // We refuse more (names that come twice, nine dimensions), but accept nothing that it refuses.
        if ours.is_ok() {
            safetensors::SafeTensors::deserialize(bytes).expect("what we accept is valid");
        }
        let _ = read_safetensors(&path);
    });
}

#[test]
fn damaged_files_of_pytorch_are_read_or_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("damaged.pt");
    for name in ["checkpoint.pt", "views.pt", "legacy.pt", "dtypes.pt", "evil.pt"] {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pytorch").join(name);
        let valid = fs::read(fixture).expect("a fixture");
        try_damaged(1000, &valid, valid.len(), |bytes| {
            fs::write(&path, bytes).expect("a small file");
            let Ok(file) = TorchFile::open(&path) else { return };
            for tensor in file.names().filter_map(|name| file.tensor(name).ok()) {
                assert_eq!(tensor.nbytes(), tensor.bytes().len());
            }
            file.table().expect("a table of what was read");
        });
    }
}

#[test]
fn damaged_gguf_files_are_read_or_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("damaged.gguf");
    let valid = model::gguf("llama", &model::values(VOCAB, 21), BlockType::Q4_0).bytes();
    fs::write(&path, &valid).expect("a small file");
    load(&path).expect("the file is valid before it is damaged");
    try_damaged(1500, &valid, 9000, |bytes| {
        fs::write(&path, bytes).expect("a small file");
        let _ = load(&path);
    });
}

/// A folder of the little model in f32, with the tokenizer of its GGUF file.
fn small_folder(dir: &Path) {
    let path = dir.join("little.gguf");
    let file = model::gguf("llama", &model::values(VOCAB, 22), BlockType::Q8_0);
    fs::write(&path, file.bytes()).expect("a small file");
    let model = load(&path).expect("a valid file");
    let mut weights = vec![("model.embed_tokens".to_owned(), model.embed_tokens.clone())];
    weights.extend(model.linears().into_iter().map(|(name, linear)| (name, linear.weight)));
    let (config, vectors, tokenizer) = (&*model.config, model.vectors(), model.tokenizer.as_ref());
    let parts = io::Parts { name: "hostile", config, weights, vectors, tokenizer, stop: None };
    io::save(&parts, &dir.join("saved"), false).expect("an empty place");
}

#[test]
fn damaged_folders_are_read_or_refused() {
    for (file, cases) in [
        ("config.json", 800),
        ("tokenizer.json", 500),
        ("tokenizer_config.json", 200),
        ("generation_config.json", 200),
    ] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        small_folder(dir.path());
        let target = dir.path().join("saved");
        let valid = fs::read(target.join(file)).expect(file);
        try_damaged(cases, &valid, valid.len(), |bytes| {
            fs::write(target.join(file), bytes).expect("a small file");
            if let Ok(model) = load(&target)
                && let Some(tokenizer) = &model.tokenizer
                && let Ok(ids) = tokenizer.encode("hello </s> 12 naïve \u{1F680}", true)
            {
                let _ = tokenizer.decode(&ids);
            }
        });
    }
}

/// A safetensors file of a header and as much data.
fn safetensors_of(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; data]].concat()
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn safetensors_that_lie_are_refused_in_words() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("lie.safetensors");
    let nine = r#"{"a": {"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}}"#;
    for (bytes, words) in [
        (vec![], "0 bytes are too few"),
        (vec![255; 7], "7 bytes are too few"),
        (vec![255; 8], "the most allowed is 100000000"),
        (100_000_000_u64.to_le_bytes().to_vec(), "only 0 follow"),
        (0_u64.to_le_bytes().to_vec(), "does not begin with '{'"),
        (safetensors_of("[]", 0), "does not begin with '{'"),
        (safetensors_of("{", 0), "is not valid"),
        (safetensors_of(&"{\"a\":".repeat(10_000), 0), "is not valid"),
        (
            safetensors_of(
                r#"{"a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}, "a": {"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
                8,
            ),
            "a is there twice",
        ),
        (
            safetensors_of(r#"{"__metadata__": {}, "__metadata__": {}}"#, 0),
            "__metadata__ is there twice",
        ),
        (safetensors_of(r#"{"__metadata__": {"format": 7}}"#, 0), "is not valid"),
        (
            safetensors_of(
                r#"{"a": {"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
                4,
            ),
            "is not valid",
        ),
        (
            safetensors_of(r#"{"a": {"dtype":"F33","shape":[1],"data_offsets":[0,4]}}"#, 4),
            "dtype \"F33\" is unknown",
        ),
        (
            safetensors_of(
                r#"{"a": {"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}"#,
                0,
            ),
            "overflows",
        ),
        (
            safetensors_of(
                r#"{"a": {"dtype":"F64","shape":[9223372036854775807],"data_offsets":[0,4]}}"#,
                4,
            ),
            "overflows",
        ),
        (
            safetensors_of(r#"{"a": {"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4),
            "is not valid",
        ),
        (
            safetensors_of(r#"{"a": {"dtype":"F32","shape":[1e3],"data_offsets":[0,4]}}"#, 4),
            "is not valid",
        ),
        (safetensors_of(nine, 1), "at most 8 dimensions"),
        (
            safetensors_of(r#"{"a": {"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 4),
            "takes 8 bytes, its data_offsets span 4",
        ),
        (
            safetensors_of(r#"{"a": {"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, 4),
            "lie outside",
        ),
        (
            safetensors_of(
                r#"{"a": {"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]}}"#,
                4,
            ),
            "lie outside",
        ),
        (
            safetensors_of(r#"{"a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 3),
            "lie outside",
        ),
        (
            safetensors_of(r#"{"a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 5),
            "cover 4 bytes of data, but the file holds 5",
        ),
        (
            safetensors_of(
                r#"{"a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}, "b": {"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#,
                6,
            ),
            "b begins at byte 2 of the data and overlaps",
        ),
        (
            safetensors_of(
                r#"{"a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}, "b": {"dtype":"U8","shape":[2],"data_offsets":[6,8]}}"#,
                8,
            ),
            "leaves a hole",
        ),
        (
            safetensors_of(r#"{"a": {"dtype":"F4","shape":[3],"data_offsets":[0,2]}}"#, 2),
            "takes 2 bytes",
        ),
        (
            safetensors_of(r#"{"a": {"dtype":"BOOL","shape":[4],"data_offsets":[0,4]}}"#, 4),
            "tensor a is BOOL, which is not supported",
        ),
        (
            safetensors_of(r#"{"a": {"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}"#, 4),
            "F8_E4M3, which is not supported",
        ),
    ] {
        fs::write(&path, &bytes).expect("a small file");
        let error = read_safetensors(&path).expect_err(words).to_string();
        assert!(
            error.contains("lie.safetensors") && error.contains(words),
            "{words:?} is not in: {error}"
        );
    }
    // A tensor that nobody asks for may be of a type that we do not know how to hold.
    let header = r#"{"a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}, "mask": {"dtype":"BOOL","shape":[2],"data_offsets":[4,6]}}"#;
    fs::write(&path, safetensors_of(header, 6)).expect("a small file");
    let file = SafetensorsFile::open(&path).expect("a valid file");
    assert_eq!(file.tensor("a").expect("f32").shape(), [1]);
}

/// A tokenizer of three letters and one merge, with `edit` done to it.
fn tokenizer_with(edit: impl Fn(&mut Json)) -> aolab::Result<Tokenizer> {
    let mut json = json!({
        "version": "1.0",
        "added_tokens": [{"id": 4, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3}, "merges": [["a", "b"]]},
    });
    edit(&mut json);
    Tokenizer::from_json(json.to_string().as_bytes(), None)
}

#[test]
fn tokenizers_that_lie_are_refused_in_words() {
    let good = tokenizer_with(|_| {}).expect("it is valid as it is");
    assert_eq!(good.encode("cab<s>", true).expect("a text"), [2, 3, 4]);
    let check = |words: &str, edit: &dyn Fn(&mut Json)| {
        let error = tokenizer_with(edit).expect_err(words).to_string();
        assert!(error.contains(words), "{words:?} is not in: {error}");
    };
    check("wanted an object", &|j| *j = json!([]));
    check("no model in it", &|j| j["model"] = Json::Null);
    check("\"Unigram\" is not supported", &|j| j["model"]["type"] = "Unigram".into());
    check("model.vocab is missing", &|j| j["model"]["vocab"] = json!([]));
    check("is no token id", &|j| j["model"]["vocab"]["c"] = json!(4_294_967_295_u32));
    check("is no token id", &|j| j["model"]["vocab"]["c"] = json!(-1));
    check("share the id 1", &|j| j["model"]["vocab"]["c"] = json!(1));
    check("model.merges is missing", &|j| j["model"]["merges"] = json!({}));
    check("wanted a pair", &|j| j["model"]["merges"] = json!([["a"]]));
    check("\"ac\" is not in the vocabulary", &|j| j["model"]["merges"] = json!(["a c"]));
    check("continuing_subword_prefix", &|j| j["model"]["continuing_subword_prefix"] = "##".into());
    check("other tokens each time", &|j| j["model"]["dropout"] = json!(0.5));
    check("says id Some(7)", &|j| j["added_tokens"][0]["id"] = json!(7));
    check("has no content", &|j| j["added_tokens"][0]["content"] = "".into());
    check("Precompiled is not supported", &|j| {
        j["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"})
    });
    check("FixedLength is not supported", &|j| {
        j["pre_tokenizer"] =
            json!({"type": "Sequence", "pretokenizers": [{"type": "FixedLength", "length": 0}]})
    });
    check("times as long", &|j| {
        j["normalizer"] =
            json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(5000)})
    });
    let split = |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    check("repeats up to 1000000000 times", &|j| {
        j["pre_tokenizer"] = split("(?:(?:(?=a){1000}){1000}){1000}")
    });
    check("the most allowed is 4096", &|j| j["pre_tokenizer"] = split(&"a".repeat(5000)));
    check("tokenizer", &|j| j["pre_tokenizer"] = split("(unclosed"));
    check("tokenizer", &|j| j["version"] = "9.9".into());
    // Padding to a trillion tokens, or cutting to none, is for batches and not heeded.
    let padded = tokenizer_with(|j| {
        j["padding"] = json!({"strategy": {"Fixed": 1_000_000_000_000_u64}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"});
        j["truncation"] =
            json!({"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0});
    });
    assert_eq!(padded.expect("valid").encode("cab", true).expect("a text"), [2, 3]);
}

#[test]
fn a_regular_expression_that_explodes_is_an_error_and_not_a_wait() {
    let slow = tokenizer_with(|j| {
        j["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "(?=(a+)+b)(a|aa)+$"}, "behavior": "Isolated", "invert": false});
    });
    let begun = std::time::Instant::now();
    let _: Result<Vec<u32>, Error> = slow.expect("it compiles").encode(&"a".repeat(64), false);
    assert!(begun.elapsed().as_secs() < 20, "it took {:?}", begun.elapsed());
}
