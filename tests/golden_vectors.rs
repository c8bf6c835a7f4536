//! Every family of golden vectors, on every instruction set and on one and three threads, as `aolab verify golden` computes them:
//! what is exact is equal to the bit, the rest within its tolerance. And folders that are not what they say.
//!
//! Workflows whose numbers the families hold: int8_weight_only, int8_dynamic, int8_static (activations on int8_dynamic_act's grid),
//! int4_weight_only, intx_weight_only, int8_dynamic_intx, uintx_weight_only, nf4, codebook, codebook_coreml, groupwise_lut, gguf,
//! float8, floatx, mx, nvfp4, awq, gptq and auto_round (its columns), smoothquant, spinquant (hadamard), sinq (hqq), module_swap and uintx_bit_packed
//! (recipes).

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use aolab::kernels::{Cpu, Isa};
use aolab::verify::{FamilyReport, golden};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn verify(cpu: &Cpu, folder: &Path, families: &[&str]) -> aolab::Result<Vec<FamilyReport>> {
    let families: Vec<String> = families.iter().map(|name| (*name).to_owned()).collect();
    golden(cpu, folder, &families, &mut |_, _| true)
}

#[test]
fn every_family_holds_on_every_instruction_set() {
    let mut runs: Vec<(Isa, usize)> = Isa::available().into_iter().map(|isa| (isa, 1)).collect();
    runs.push((runs[0].0, 3));
    for (isa, threads) in runs {
        let reports = verify(&Cpu::with_isa(isa, Some(threads)), &folder(), &[]).expect("a folder");
        assert!(reports.len() >= 36, "{} families", reports.len());
        for report in reports {
            let name = format!("{}, {threads} threads: {}", isa.name(), report.family);
            assert!(report.fault.is_none(), "{name}: {:?}", report.fault);
            assert!(report.off().is_empty(), "{name}: {}", report.verdict());
            let missing = &report.not_computed;
            assert!(missing.is_empty(), "{name}: nobody computes {missing:?}");
        }
    }
}

/// A copy of one family, its file changed.
fn changed(family: &str, change: impl FnOnce(&mut Vec<u8>)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let name = format!("{family}.safetensors");
    let mut bytes = fs::read(folder().join(&name)).expect("a golden file");
    change(&mut bytes);
    fs::write(dir.path().join(name), bytes).expect("a small file");
    fs::copy(folder().join("MANIFEST.md"), dir.path().join("MANIFEST.md")).expect("a small file");
    dir
}

#[test]
fn one_changed_bit_is_seen() {
    let cpu = Cpu::new(Some(1));
    for family in ["affine_8bit", "nf4", "mx_fp8", "hqq", "ggml_quantize", "bitpacking"] {
        // The last tensor's last byte: no input, for inputs are wider or earlier in the alphabet.
        let dir = changed(family, |bytes| *bytes.last_mut().expect("bytes") ^= 1);
        let report = &verify(&cpu, dir.path(), &[family]).expect("a folder")[0];
        assert_eq!(report.off().len(), 1, "{family}: {}", report.verdict());
        assert!(report.verdict().starts_with("DIFFERS"), "{}", report.verdict());
    }
}

#[test]
fn files_that_lie_are_reported_in_words_and_the_others_go_on() {
    let cpu = Cpu::new(Some(1));
    let fault = |dir: &tempfile::TempDir, family: &str| {
        let reports = verify(&cpu, dir.path(), &[family]).expect("a folder");
        assert!(!reports[0].holds());
        reports[0].verdict()
    };
    let cut = changed("nf4", |bytes| bytes.truncate(bytes.len() / 2));
    assert!(fault(&cut, "nf4").contains("nf4.safetensors"), "{}", fault(&cut, "nf4"));
    let none = changed("nf4", |_| {});
    assert!(fault(&none, "nvfp4").contains("nvfp4"), "a family of the manifest without a file");
    // Another shape than the manifest's; without a manifest, one that fits nothing else in the file.
    let header = |bytes: &mut Vec<u8>, from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = bytes.windows(from.len()).position(|part| part == from.as_bytes());
        let at = at.unwrap_or_else(|| panic!("no {from}"));
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    };
    let turned = changed("hadamard", |bytes| header(bytes, "\"shape\":[3,32]", "\"shape\":[32,3]"));
    assert!(fault(&turned, "hadamard").contains("the manifest says"));
    fs::remove_file(turned.path().join("MANIFEST.md")).expect("it is there");
    assert!(
        fault(&turned, "hadamard").contains("wanted rows of 32"),
        "{}",
        fault(&turned, "hadamard")
    );
    let renamed =
        changed("affine_8bit", |bytes| header(bytes, "int8.sym.g32.scale", "int8.sym.g99.scale"));
    fs::remove_file(renamed.path().join("MANIFEST.md")).expect("it is there");
    assert!(fault(&renamed, "affine_8bit").contains("99"), "{}", fault(&renamed, "affine_8bit"));
    let empty = tempfile::tempdir().expect("a folder");
    assert!(verify(&cpu, empty.path(), &[]).expect_err("nothing").to_string().contains("MANIFEST"));
    let words = verify(&cpu, &folder(), &["nf5"]).expect_err("unknown").to_string();
    assert!(words.contains("did you mean nf4"), "{words}");
}
