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

    use aolab::autograd::Tape;
    use aolab::kernels::Cpu;
    use aolab::libtorch::{
        Script, TorchQat, TorchTrainer, TorchWeights, from_torch, into_torch, to_torch,
    };
    use aolab::model::Model;
    use aolab::quantization::primitives::IntType;
    use aolab::rng::Rng;
    use aolab::training::optim::{AdamConfig, OptimizerConfig};
    use aolab::training::qat::{
        FakeQuantizeConfig, Int4Activation, Int4WeightFakeQuantizeConfig, IntxFakeQuantizeConfig,
        IntxGranularity, QatConfig, QatRule,
    };
    use aolab::training::{
        Corpus, ForwardOptions, LinearRule, Network, Parameters, Plain, TrainConfig, Trainer,
    };
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
            let table = session.run(&format!("verify torch --strict --seed {seed}"));
            table.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
    }

    /// The same training, twice.
    struct Both {
        cpu: Cpu,
        model: Model,
        ours: Trainer,
        theirs: TorchTrainer,
    }

    const STEPS: usize = 8;

    fn both(qat: Option<TorchQat>) -> Both {
        let cpu = Cpu::new(Some(2));
        let model = off_the_grid(&aolab::load("tiny").expect("the built-in model"));
        // Text that no one reads, but the same for both: a walk over the vocabulary.
        let ids: Vec<u32> = (0..4000_u32).map(|i| (i * i / 7 + 13 * i) % 4096).collect();
        let corpus = || Corpus::of_ids(ids.clone(), Some(0));
        let adam = AdamConfig::default();
        let config = TrainConfig {
            steps: STEPS,
            batch: 2,
            sequence: 48,
            lr: 3e-5,
            warmup: 2,
            optimizer: OptimizerConfig::Adam(adam.clone()),
            ..TrainConfig::default()
        };
        let rule = qat.map_or_else(|| Arc::new(Plain) as Arc<dyn LinearRule>, rule);
        let ours = Trainer::new(&model, corpus(), config.clone(), rule).expect("a run");
        let theirs = TorchTrainer::new(&cpu, &model, corpus(), &config, (&adam, qat));
        Both { cpu, model, ours, theirs: theirs.expect("torch's run") }
    }

    /// The model with weights that are no bf16 numbers: of those some percent lie exactly between two codes, and stay there when a
    /// whole group moves by the same step.
    fn off_the_grid(model: &Model) -> Model {
        let mut parameters = Parameters::of(model, DType::F32).expect("its parameters");
        let mut rng = Rng::new(8);
        let names: Vec<String> = parameters.iter().map(|(name, _)| name.clone()).collect();
        for name in names {
            let tensor = parameters.get(&name).expect("a parameter");
            let moved: Vec<f32> =
                tensor.to_f32_vec().into_iter().map(|w| w * (1.0 + 0.003 * rng.normal())).collect();
            let moved = Tensor::new(moved, tensor.shape()).expect("the same shape");
            parameters.set(&name, moved);
        }
        parameters.to_model(model, "tiny").expect("a model")
    }

    fn rule(qat: TorchQat) -> Arc<dyn LinearRule> {
        let group_size = qat.group_size;
        let weight = match qat.weights {
            TorchWeights::Symmetric(bits) => {
                let granularity = IntxGranularity::PerGroup(group_size);
                let config = IntxFakeQuantizeConfig::new(IntType::Int(bits), granularity);
                FakeQuantizeConfig::Intx(config)
            }
            TorchWeights::Ranged => {
                let activation = Int4Activation::Bf16;
                let config = Int4WeightFakeQuantizeConfig { group_size, activation };
                FakeQuantizeConfig::Int4Weight(config)
            }
        };
        let activation = FakeQuantizeConfig::Intx(IntxFakeQuantizeConfig::int8_activation());
        let config = QatConfig::new(qat.activations.then_some(activation), Some(weight));
        Arc::new(QatRule::new(config).expect("a rule"))
    }

    /// Whether all pairs are as near as `allowed` says, over the second.
    fn near(curves: &[[f64; 2]], allowed: f64) -> bool {
        curves.iter().all(|[ours, theirs]| (ours - theirs).abs() <= allowed * theirs)
    }

    #[test]
    fn training_on_our_tape_and_on_torchs_autograd_gives_the_same_losses() {
        let int4 = TorchQat { weights: TorchWeights::Ranged, group_size: 32, activations: false };
        for qat in [None, Some(int4)] {
            let Both { cpu, mut ours, mut theirs, .. } = both(qat);
            let curves: Vec<[f64; 2]> = (0..STEPS)
                .map(|_| {
                    let ours = ours.step(&cpu).expect("a step").loss;
                    [ours, theirs.step().expect("torch's step")]
                })
                .collect();
            assert!(near(&curves, 1e-4), "{qat:?}: {curves:?}");
            assert!(curves[0] != curves[STEPS - 1], "{qat:?}: nothing was learned");
        }
    }

    fn worse(worst: (f64, String), off: f64, place: impl Fn() -> String) -> (f64, String) {
        if off > worst.0 { (off, place()) } else { worst }
    }

    /// `‖a − b‖ / ‖b‖`
    fn distance(a: &[f32], b: &[f32]) -> f64 {
        assert_eq!(a.len(), b.len());
        let apart: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let size: f64 = b.iter().map(|b| f64::from(*b).powi(2)).sum();
        (apart / size).sqrt()
    }

    /// Symmetric scales put the largest number of each group between two codes (`amax / scale` is 3.5), so that the last bit of an
    /// update decides between them, and two runs part however alike they are. So torch is asked at every step of our run.
    #[test]
    fn symmetric_training_gives_torchs_losses_and_gradients_at_every_step() {
        // Activations in int8 are rounded from sums that differ in last bits, and the differences grow from layer to layer to what
        // int8 itself loses.
        let cases = [(3, false, (1e-5, 1e-4)), (4, true, (5e-4, 5e-2))];
        for (bits, activations, (loss_allowed, allowed)) in cases {
            let qat =
                TorchQat { weights: TorchWeights::Symmetric(bits), group_size: 32, activations };
            let Both { cpu, model, mut ours, mut theirs } = both(Some(qat));
            let network = Network::new(Arc::clone(&model.config));
            let options = ForwardOptions::new(rule(qat));
            let (mut losses, mut off) = (Vec::new(), (0.0_f64, String::new()));
            for step in 0..STEPS {
                let torch = theirs.at(&model, ours.parameters()).expect("torch's step");
                let tape = Tape::new(&cpu);
                let vars = ours.parameters().on(&tape, &|_| false).expect("leaves");
                let loss = network.loss(&tape, &vars, &torch.batch, &options).expect("a loss");
                let found = tape.backward(&loss).expect("gradients");
                for (name, theirs) in &torch.gradients {
                    let ours = found.of(vars.get(name).expect("a leaf")).expect("its gradient");
                    let distance = distance(&ours.to_f32_vec(), &theirs.to_f32_vec());
                    off = worse(off, distance, || format!("step {step}, {name}"));
                }
                let point = ours.step(&cpu).expect("a step");
                let norms = (point.gradient_norm - torch.norm).abs() / torch.norm;
                off = worse(off, norms, || format!("step {step}, the norm"));
                losses.push([point.loss, torch.loss]);
            }
            let same = near(&losses, loss_allowed) && off.0 <= allowed;
            assert!(same, "int{bits}: {off:?}, {losses:?}");
            assert!(losses[0] != losses[STEPS - 1], "nothing was learned: {losses:?}");
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
    fn a_libtorch_without_its_cuda_half_says_so() {
        let cpu = Cpu::new(Some(1));
        match aolab::libtorch::TorchGpu::open(&cpu, 0) {
            Ok(gpu) => {
                let (name, us) = gpu.linear_us("bf16", (4, 256, 256), 32).expect("a layer");
                assert!(us > 0.0 && name.contains("linear"), "{name}: {us}");
            }
            Err(error) => {
                let words = error.to_string();
                assert!(words.contains("CUDA half") && !words.contains('\n'), "{words}");
                assert!(!aolab::libtorch::cuda_is_available());
            }
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
