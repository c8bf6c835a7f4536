//! PyTorch's files: those that PyTorch wrote (tests/pytorch_fixtures.py made them) and those that we write.
#![allow(clippy::float_cmp, reason = "files keep every bit")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers of tests")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use aolab::io::pytorch::{TorchFile, write_state_dict};
use aolab::{DType, Result, Session, Tensor};
use half::{bf16, f16};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pytorch").join(name)
}

fn open(name: &str) -> TorchFile {
    TorchFile::open(fixture(name)).expect("a file that PyTorch wrote")
}

fn values<T: aolab::tensor::Element>(file: &TorchFile, name: &str) -> (Vec<usize>, Vec<T>) {
    let tensor = file.tensor(name).expect("a tensor of the file");
    let elements = tensor.as_slice::<T>().expect("its type").to_vec();
    (tensor.shape().to_vec(), elements)
}

fn refusal(path: &Path) -> String {
    TorchFile::open(path).expect_err("it is refused").to_string()
}

#[test]
fn every_dtype_that_torch_writes_is_read_exactly() {
    let file = open("dtypes.pt");
    assert_eq!(file.names().count(), 22);
    let inf = f64::INFINITY;
    assert_eq!(values::<f64>(&file, "float64").1, [1.5, -2.25, inf]);
    assert_eq!(values::<f32>(&file, "float32").1, [1.5, -2.25, f32::INFINITY]);
    let halves = [1.5, -2.25, inf];
    assert_eq!(values::<f16>(&file, "float16").1, halves.map(f16::from_f64));
    assert_eq!(values::<bf16>(&file, "bfloat16").1, halves.map(bf16::from_f64));
    assert_eq!(values::<i64>(&file, "int64").1, [i64::MIN, -1, i64::MAX]);
    assert_eq!(values::<i32>(&file, "int32").1, [i32::MIN, -1, i32::MAX]);
    assert_eq!(values::<i16>(&file, "int16").1, [i16::MIN, -1, i16::MAX]);
    assert_eq!(values::<i8>(&file, "int8").1, [i8::MIN, -1, i8::MAX]);
    assert_eq!(values::<u8>(&file, "uint8").1, [0, 1, 255]);
    assert_eq!(values::<i32>(&file, "uint16").1, [0, 1, 65535]);
    assert_eq!(values::<i64>(&file, "uint32").1, [0, 1, 4_294_967_295]);
    assert_eq!(values::<i64>(&file, "uint64").1, [0, 1, 1 << 40]);
    assert_eq!(values::<u8>(&file, "bool").1, [1, 0, 1]);
    let complex = [1.0, 2.0, -0.0, -3.5, 0.25, 0.0];
    assert_eq!(values::<f64>(&file, "complex128"), (vec![3, 2], complex.to_vec()));
    assert_eq!(values::<f32>(&file, "complex64").1, complex.map(|v| v as f32));
    assert_eq!(values::<f16>(&file, "complex32").1, complex.map(f16::from_f64));
    assert_eq!(values::<u8>(&file, "float4_e2m1fn_x2").1, [0x10, 0xF7]);
    // The codes 0 to 255 of each 8-bit float: zero, the least, one, the largest, what is no number.
    for (name, codes) in [
        ("float8_e4m3fn", [(0, 0.0), (1, 2.0_f32.powi(-9)), (0x38, 1.0), (0x7e, 448.0)]),
        ("float8_e5m2", [(0, 0.0), (1, 2.0_f32.powi(-16)), (0x3c, 1.0), (0x7b, 57344.0)]),
        ("float8_e4m3fnuz", [(0, 0.0), (1, 2.0_f32.powi(-10)), (0x40, 1.0), (0x7f, 240.0)]),
        ("float8_e5m2fnuz", [(0, 0.0), (1, 2.0_f32.powi(-17)), (0x40, 1.0), (0x7f, 57344.0)]),
        (
            "float8_e8m0fnu",
            [(0, 2.0_f32.powi(-127)), (1, 2.0_f32.powi(-126)), (127, 1.0), (128, 2.0)],
        ),
    ] {
        let (shape, all) = values::<f32>(&file, name);
        assert_eq!(shape, [256], "{name}");
        for (code, value) in codes {
            assert_eq!(all[code], value, "{name} {code}");
        }
        let unsigned = name.ends_with("e8m0fnu");
        assert_eq!(all[0xbb] < 0.0, !unsigned, "{name}");
        let nan = if name.ends_with("nuz") { 0x80 } else { 0xff };
        assert!(all[nan].is_nan(), "{name}");
        assert_eq!(file.dtype(name).map(|ty| ty.name()), Some(name));
    }
}

#[test]
fn views_of_storages_are_read_as_torch_shows_them() {
    let file = open("views.pt");
    let base: Vec<f32> = (0..24_u8).map(f32::from).collect();
    assert_eq!(values::<f32>(&file, "base"), (vec![4, 6], base.clone()));
    assert_eq!(values::<f32>(&file, "same"), (vec![4, 6], base));
    let (shape, transposed) = values::<f32>(&file, "transposed");
    assert_eq!((shape, &transposed[..5]), (vec![6, 4], &[0.0, 6.0, 12.0, 18.0, 1.0][..]));
    let part = vec![8.0, 9.0, 10.0, 14.0, 15.0, 16.0];
    assert_eq!(values::<f32>(&file, "part"), (vec![2, 3], part));
    assert_eq!(values::<f32>(&file, "repeated").1, [1.0, 2.0, 1.0, 2.0, 1.0, 2.0]);
    assert_eq!(values::<f32>(&file, "empty"), (vec![0, 5], vec![]));
    assert_eq!(values::<f32>(&file, "one"), (vec![], vec![7.5]));
    let near = file.tensor("bace").expect_err("no such tensor").to_string();
    assert!(near.contains("did you mean base?"), "{near}");
}

#[test]
fn state_dicts_checkpoints_and_old_files_are_read_by_name() {
    for name in ["state_dict.pt", "parameters.pt"] {
        let file = open(name);
        let names: Vec<&str> = file.names().collect();
        assert_eq!(names, ["0.bias", "0.weight", "1.bias", "1.weight"], "{name}");
        let weight = (0..12_u8).map(f32::from).collect();
        assert_eq!(values::<f32>(&file, "0.weight"), (vec![3, 4], weight), "{name}");
    }
    let file = open("checkpoint.pt");
    assert_eq!(values::<f32>(&file, "state_dict.w").1, [1.0, 1.0]);
    assert_eq!(values::<i64>(&file, "list.1.0").1, [2]);
    assert_eq!(values::<f32>(&file, "optimizer.state.0.step").1, [1.0]);
    assert_eq!(values::<f32>(&file, "optimizer.state.3.exp_avg").0, [3]);
    let table = file.table().expect("a table").to_csv();
    for part in ["epoch,int,3", "loss,float,0.25", "name,str,run", "big,int,1099511627776"] {
        assert!(table.contains(part), "{part} in {table}");
    }
    let file = open("legacy.pt");
    assert_eq!(values::<i16>(&file, "w"), (vec![2, 3], vec![0, 1, 2, 3, 4, 5]));
    assert_eq!(values::<f32>(&file, "t").1[..3], [0.0, 6.0, 12.0]);
}

#[test]
fn what_is_no_tensor_is_refused_by_the_name_of_its_class() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (name, class) in
        [("evil.pt", "posix.system"), ("module.pt", "torch.nn.modules.linear.Linear")]
    {
        let words = refusal(&fixture(name));
        assert!(words.contains(class) && words.contains("nothing of it was run"), "{words}");
    }
    let words = refusal(&fixture("traced.pt"));
    assert!(words.contains("TorchScript"), "{words}");
    let path = dir.path().join("cut.pt");
    let whole = fs::read(fixture("dtypes.pt")).expect("a fixture");
    for len in [0, 1, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..len]).expect("a small file");
        let words = refusal(&path);
        assert!(words.contains("cut short") || words.contains("neither a zip"), "{len}: {words}");
    }
    let old = fs::read(fixture("legacy.pt")).expect("a fixture");
    for len in [15, 40, 200, old.len() - 1] {
        fs::write(&path, &old[..len]).expect("a small file");
        assert!(refusal(&path).contains("cut short"), "{len}");
    }
}

/// An archive with one pickle and one storage of eight bytes.
fn archive(pickle: &[u8], deflated: bool) -> Vec<u8> {
    let (mut out, mut directory, mut count) = (Vec::new(), Vec::new(), 0_u16);
    for (name, bytes) in [("x/data.pkl", pickle), ("x/data/0", &[1, 2, 3, 4, 5, 6, 7, 8][..])] {
        let packed = match deflated {
            true => miniz_oxide::deflate::compress_to_vec(bytes, 6),
            false => bytes.to_vec(),
        };
        let mut fields = vec![20, 0, 0, 0, u8::from(deflated) * 8, 0, 0, 0, 0, 0];
        for number in [crc32fast::hash(bytes) as usize, packed.len(), bytes.len()] {
            fields.extend_from_slice(&(number as u32).to_le_bytes());
        }
        fields.extend_from_slice(&(name.len() as u16).to_le_bytes());
        fields.extend_from_slice(&[0, 0]);
        let at = out.len() as u32;
        out.extend_from_slice(b"PK\x03\x04");
        out.extend_from_slice(&fields);
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(&packed);
        directory.extend_from_slice(b"PK\x01\x02\x14\x00");
        directory.extend_from_slice(&fields);
        directory.extend_from_slice(&[0; 10]);
        directory.extend_from_slice(&at.to_le_bytes());
        directory.extend_from_slice(name.as_bytes());
        count += 1;
    }
    let start = out.len() as u32;
    out.extend_from_slice(&directory);
    out.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(&(directory.len() as u32).to_le_bytes());
    out.extend_from_slice(&start.to_le_bytes());
    out.extend_from_slice(&[0, 0]);
    out
}

/// The same archive with zip64 records: sizes and places in the extra fields, the end in 64 bits, 32-bit fields full.
fn wide_archive(pickle: &[u8]) -> Vec<u8> {
    let full = [0xff_u8; 4];
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in [("x/data.pkl", pickle), ("x/data/0", &[1, 2, 3, 4, 5, 6, 7, 8][..])] {
        let size = (bytes.len() as u64).to_le_bytes();
        let at = (out.len() as u64).to_le_bytes();
        let crc = crc32fast::hash(bytes).to_le_bytes();
        let name_len = (name.len() as u16).to_le_bytes();
        let head = [&[45, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &crc, &full, &full, &name_len].concat();
        // Another field stands before the one of zip64.
        let other = [0x55, 0x54, 1, 0, 7];
        let local = [&other[..], &[1, 0, 16, 0], &size, &size].concat();
        out.extend_from_slice(b"PK\x03\x04");
        out.extend_from_slice(
            &[&head[..], &[local.len() as u8, 0], name.as_bytes(), &local].concat(),
        );
        out.extend_from_slice(bytes);
        let central = [&other[..], &[1, 0, 24, 0], &size, &size, &at].concat();
        directory.extend_from_slice(b"PK\x01\x02\x2d\x00");
        directory
            .extend_from_slice(&[&head[..], &[central.len() as u8, 0], &[0; 10], &full].concat());
        directory.extend_from_slice(&[name.as_bytes(), &central].concat());
    }
    let start = (out.len() as u64).to_le_bytes();
    let count = 2_u64.to_le_bytes();
    out.extend_from_slice(&directory);
    let end = (out.len() as u64).to_le_bytes();
    out.extend_from_slice(b"PK\x06\x06");
    out.extend_from_slice(&44_u64.to_le_bytes());
    out.extend_from_slice(&[45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let size = (directory.len() as u64).to_le_bytes();
    out.extend_from_slice(&[count, count, size, start].concat());
    out.extend_from_slice(b"PK\x06\x07\0\0\0\0");
    out.extend_from_slice(&[&end[..], &[1, 0, 0, 0]].concat());
    out.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    out.extend_from_slice(&[&[0xff; 12][..], &[0, 0]].concat());
    out
}

#[test]
fn archives_beyond_four_gigabytes_are_read_by_their_wide_fields() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("x.pt");
    let whole = wide_archive(&tensor_pickle(8, 1, &[2, 3], &[3, 1]));
    let open = |bytes: &[u8]| -> Result<Tensor> {
        fs::write(&path, bytes).expect("a small file");
        TorchFile::open(&path)?.tensor("w")
    };
    let tensor = open(&whole).expect("it is whole");
    assert_eq!(tensor.as_slice::<u8>().expect("bytes"), [2, 3, 4, 5, 6, 7]);
    for len in 0..whole.len() {
        let words = open(&whole[..len]).expect_err("it is cut short").to_string();
        assert!(words.contains("cut short") || words.contains("neither a zip"), "{len}: {words}");
    }
    // Each byte of what says where things lie, changed: another sentence or the same numbers, and no panic.
    let directory = whole.windows(4).position(|at| at == b"PK\x01\x02").expect("a directory");
    for at in directory..whole.len() {
        for change in [1, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= change;
            if let Ok(tensor) = open(&bytes) {
                assert_eq!(tensor.as_slice::<u8>().expect("bytes"), [2, 3, 4, 5, 6, 7], "{at}");
            }
        }
    }
    // Without the wide end the full fields point nowhere.
    let mut narrow = whole.clone();
    let locator = whole.len() - 42;
    narrow[locator] = 0;
    let words = open(&narrow).expect_err("no locator").to_string();
    assert!(words.contains("zip64"), "{words}");
}

/// A pickle of one tensor of bytes: its shape, strides and offset as protocol 0 to 2 writes them.
fn tensor_pickle(numel: u8, offset: u8, shape: &[u32], strides: &[u32]) -> Vec<u8> {
    let mut out = b"\x80\x02}U\x01wctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nByteStorage\nU\x010U\x03cpuK"
        .to_vec();
    out.extend_from_slice(&[numel, b't', b'Q', b'K', offset]);
    for dims in [shape, strides] {
        out.push(b'(');
        for dim in dims {
            out.push(b'J');
            out.extend_from_slice(&dim.to_le_bytes());
        }
        out.push(b't');
    }
    out.extend_from_slice(b"\x89NtRs.");
    out
}

#[test]
fn tensors_that_reach_outside_of_their_storage_are_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("x.pt");
    let read = |pickle: &[u8], deflated: bool| -> Result<Tensor> {
        fs::write(&path, archive(pickle, deflated)).expect("a small file");
        TorchFile::open(&path)?.tensor("w")
    };
    for deflated in [false, true] {
        let tensor = read(&tensor_pickle(8, 1, &[2, 3], &[3, 1]), deflated).expect("it fits");
        assert_eq!(tensor.as_slice::<u8>().expect("bytes"), [2, 3, 4, 5, 6, 7]);
        assert_eq!(tensor.dtype(), DType::U8);
    }
    for (numel, offset, shape, strides, wanted) in [
        (9, 0, &[8][..], &[1][..], "claims 9"),
        (8, 1, &[8], &[1], "outside"),
        (8, 0, &[2], &[8], "outside"),
        (8, 0, &[1 << 30], &[1], "more elements"),
        (8, 0, &[1 << 30, 1 << 30, 1 << 30], &[0, 0, 0], "more elements"),
        (8, 0, &[8, 1], &[1], "strides"),
        (8, 0, &[u32::MAX >> 1], &[u32::MAX >> 1], "more elements"),
        (8, 0, &[u32::MAX], &[1], "no tuple"),
    ] {
        let words = read(&tensor_pickle(numel, offset, shape, strides), false);
        let words = words.expect_err("it does not fit").to_string();
        assert!(words.contains(wanted), "{shape:?}: {words}");
    }
}

#[test]
fn small_files_that_mean_very_much_are_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("x.pt");
    let read = |pickle: &[u8]| -> String {
        fs::write(&path, archive(pickle, false)).expect("a small file");
        refusal(&path)
    };
    // A list that holds itself; lists of the list before, twice each, forty times; lists in lists.
    assert!(read(b"\x80\x02]q\x00h\x00a.").contains("nested deeper"));
    let mut doubling = b"\x80\x02]K\x01aq\x00".to_vec();
    for _ in 0..40 {
        doubling.extend_from_slice(b"h\x00h\x00\x86q\x00");
    }
    doubling.push(b'.');
    assert!(read(&doubling).contains("names more than"));
    let deep = [&b"\x80\x02"[..], &b"]"[..].repeat(10_000), &b"a"[..].repeat(9_999), b"."].concat();
    assert!(read(&deep).contains("nested deeper"));
    for (pickle, wanted) in [
        (&b"\x80\x02."[..], "stack"),
        (b"\x80\x02(0.", "stack"),
        (b"\x80\x02h\x07.", "recalls"),
        (b"\x80\x02X\xff\xff\xff\xffa.", "cut short"),
        (b"\x80\x02\x8e\xff\xff\xff\xff\xff\xff\xff\xffa.", "cut short"),
        (b"\x80\x02cbuiltins\neval\n.", "builtins.eval"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n.", "numpy.core.multiarray._reconstruct"),
        (b"\x80\x02(iposix\nsystem\n.", "instruction 0x69"),
        (b"\x80\x02\x82\x01.", "instruction 0x82"),
        (b"\x80\x02K\x01K\x02R.", "no class"),
        (b"\x80\x02ctorch\nTensor\n)R.", "called like a function"),
        (b"\x80\x02K\x01Q.", "no storage"),
        (b"\x80\x02}(K\x01u.", "without a value"),
        (b"\x80\x02}]K\x01s.", "neither a text nor a number"),
    ] {
        let words = read(pickle);
        assert!(words.contains(wanted), "{pickle:?}: {words}");
    }
}

#[test]
fn what_we_write_comes_back_bit_for_bit_and_twice_the_same() -> Result<()> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("ours.pt");
    let shared = Tensor::new(vec![1.0_f32, -0.0, f32::NAN], &[3, 1])?;
    let tensors = vec![
        ("a".to_owned(), shared.clone()),
        ("b".to_owned(), shared),
        ("layer.0.c".to_owned(), Tensor::new(vec![bf16::ONE; 6], &[1, 2, 3])?),
        ("i".to_owned(), Tensor::new(vec![i64::MIN], &[])?),
        ("empty".to_owned(), Tensor::new(Vec::<u8>::new(), &[0, 4])?),
        ("ü".to_owned(), Tensor::new(vec![f16::MAX, f16::MIN], &[2])?),
    ];
    write_state_dict(&path, &tensors)?;
    let bytes = fs::read(&path).expect("it was written");
    write_state_dict(&path, &tensors)?;
    assert_eq!(fs::read(&path).expect("it was written again"), bytes);
    let file = TorchFile::open(&path)?;
    assert_eq!(file.names().count(), tensors.len());
    for (name, tensor) in &tensors {
        let back = file.tensor(name)?;
        assert_eq!((back.dtype(), back.shape()), (tensor.dtype(), tensor.shape()), "{name}");
        assert_eq!(back.bytes(), tensor.bytes(), "{name}");
    }
    let twice = vec![tensors[0].clone(), tensors[0].clone()];
    assert!(write_state_dict(&path, &twice).expect_err("a name twice").to_string().contains("two"));
    Ok(())
}

#[test]
fn a_model_comes_in_from_pytorchs_files_and_goes_back() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| dir.path().join(name).display().to_string();
    let mut session = Session::new();
    let mut run = |line: &str| session.run(line).map(|value| value.to_text(None, false));
    run(&format!("load tiny | save {}", at("hf"))).expect("a folder");
    run(&format!("load tiny | save {}", at("hf/model.pt"))).expect("a state dict");
    let by_file = aolab::load(&at("hf/model.pt")).expect("a state dict with its config.json");
    fs::remove_file(dir.path().join("hf/model.safetensors")).expect("it was there");
    let by_folder = aolab::load(&at("hf")).expect("a folder with model.pt");
    let tiny = aolab::load("tiny").expect("the built-in model");
    for model in [by_file, by_folder] {
        for ((name, ours), (_, theirs)) in model.linears().iter().zip(tiny.linears()) {
            let (ours, theirs) = (ours.weight.dequantize(), theirs.weight.dequantize());
            assert_eq!(ours.expect("values").bytes(), theirs.expect("values").bytes(), "{name}");
        }
    }
    fs::copy(dir.path().join("hf/model.pt"), dir.path().join("alone.pt")).expect("a copy");
    let words = aolab::load(&at("alone.pt")).expect_err("no configuration").to_string();
    assert!(words.contains("put the model's config.json beside it"), "{words}");
}

#[test]
fn shards_and_wrapped_checkpoints_are_models() -> Result<()> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| dir.path().join(name);
    let mut session = Session::new();
    session.run(&format!("load tiny | save {}", path("hf").display()))?;
    session.run(&format!("load tiny | save {}", path("hf/tiny.pt").display()))?;
    let file = TorchFile::open(path("hf/tiny.pt"))?;
    let all: Vec<(String, Tensor)> = file
        .names()
        .map(|name| Ok((name.to_owned(), file.tensor(name)?)))
        .collect::<Result<_>>()?;
    let wrapped: Vec<_> =
        all.iter().map(|(name, t)| (format!("state_dict.module.{name}"), t.clone())).collect();
    write_state_dict(path("hf/wrapped.pt"), &wrapped)?;
    let bare: Vec<_> = all
        .iter()
        .filter_map(|(name, t)| Some((name.strip_prefix("model.")?.to_owned(), t.clone())))
        .collect();
    write_state_dict(path("hf/bare.pth"), &bare)?;
    let (first, second) = all.split_at(all.len() / 2);
    fs::remove_file(path("hf/model.safetensors")).expect("it was there");
    let mut index = serde_json::Map::new();
    for (name, part) in [("part-1.bin", first), ("part-2.bin", second)] {
        write_state_dict(path("hf").join(name), part)?;
        index.extend(part.iter().map(|(tensor, _)| (tensor.clone(), name.into())));
    }
    let index = serde_json::json!({ "weight_map": index }).to_string();
    let mut out = fs::File::create(path("hf/pytorch_model.bin.index.json")).expect("a new file");
    out.write_all(index.as_bytes()).expect("a small file");
    // A model without its head is found, too; this one's configuration asks for the head.
    let words = aolab::load(&path("hf/bare.pth").display().to_string());
    let words = words.expect_err("no head").to_string();
    assert!(words.contains("no tensor lm_head.weight"), "{words}");
    for name in ["hf/wrapped.pt", "hf"] {
        let model = aolab::load(&path(name).display().to_string())?;
        assert_eq!(model.parameters(), 6_819_072, "{name}");
    }
    Ok(())
}
