use super::*;
use crate::kernels::activation::Activation;
use crate::kernels::cross_entropy::IGNORE;
use crate::rng::Rng;

type Net = dyn Fn(&Tape, &[Var]) -> Result<Var>;

fn random(rng: &mut Rng, shape: &[usize]) -> Tensor {
    let values = (0..shape.iter().product()).map(|_| f64::from(rng.normal())).collect::<Vec<f64>>();
    Tensor::new(values, shape).expect("its shape")
}

/// `Σ f(inputs) · weights`: a scalar through which every output matters differently.
fn objective(tape: &Tape, f: &Net, inputs: &[Var]) -> Result<Var> {
    let y = f(tape, inputs)?;
    let weights = random(&mut Rng::new(99), y.shape()).to_dtype(y.value().dtype())?;
    let weighted = tape.mul(&y, &tape.constant(weights))?;
    tape.sum(&weighted)
}

fn number(f: &Net, inputs: &[Tensor]) -> f64 {
    let tape = Tape::no_grad(&Cpu::new(Some(1)));
    let vars: Vec<Var> = inputs.iter().map(|x| tape.constant(x.clone())).collect();
    objective(&tape, f, &vars).expect("a value").value().as_slice::<f64>().expect("f64")[0]
}

fn gradients(f: &Net, inputs: &[Tensor], threads: usize) -> Vec<Tensor> {
    let tape = Tape::new(&Cpu::new(Some(threads)));
    let vars: Vec<Var> = inputs.iter().map(|x| tape.leaf(x.clone())).collect();
    let y = objective(&tape, f, &vars).expect("a value");
    let mut gradients = tape.backward(&y).expect("gradients");
    vars.iter().map(|var| gradients.take(var).expect("every input matters")).collect()
}

/// f64 against central differences, f32 against f64, and one thread against three.
fn check(name: &str, f: &Net, inputs: &[Tensor], f32_bound: f64) {
    let wide = gradients(f, inputs, 1);
    for (which, gradient) in wide.iter().enumerate() {
        for (i, got) in gradient.as_slice::<f64>().expect("f64").iter().enumerate() {
            let shifted = |h: f64| {
                let mut inputs = inputs.to_vec();
                let mut values = inputs[which].clone().into_vec::<f64>().expect("f64");
                values[i] += h;
                inputs[which] = Tensor::new(values, gradient.shape()).expect("its shape");
                number(f, &inputs)
            };
            let slope = (shifted(1e-5) - shifted(-1e-5)) / 2e-5;
            let error = (got - slope).abs() / (1.0 + slope.abs());
            assert!(error < 3e-6, "{name}: input {which} [{i}]: {got}, difference {slope}");
        }
    }
    let narrow: Vec<Tensor> =
        inputs.iter().map(|x| x.to_dtype(DType::F32).expect("a float")).collect();
    let (one, three) = (gradients(f, &narrow, 1), gradients(f, &narrow, 3));
    for ((got, again), exact) in one.iter().zip(&three).zip(&wide) {
        assert_eq!(got.bytes(), again.bytes(), "{name}: threads change nothing");
        let exact = exact.as_slice::<f64>().expect("f64");
        for (got, exact) in got.to_f32_vec().iter().zip(exact) {
            let error = (f64::from(*got) - exact).abs();
            assert!(error < f32_bound * (1.0 + exact.abs()), "{name}: {got}, f64 {exact}");
        }
    }
}

fn sequences() -> Sequences {
    Sequences { batch: 2, m: 3, heads: 4, kv_heads: 2, head_dim: 4, window: None, scale: 0.5 }
}

#[test]
fn distillation_has_the_gradient_of_its_central_differences() {
    let values = |scale: f64| (0..12).map(|i| f64::from(i * 7 % 5) * scale - 1.0).collect();
    let (x, teacher): (Vec<f64>, Vec<f64>) = (values(0.3), values(0.7));
    let x = Tensor::new(x, &[3, 4]).expect("its shape");
    let teacher = Tensor::new(teacher, &[3, 4]).expect("its shape");
    let taught = move |tape: &Tape, v: &[Var]| {
        tape.distillation(&v[0], &teacher.to_dtype(v[0].value().dtype())?)
    };
    check("distillation", &taught, &[x], 2e-6);
}

#[test]
fn every_operation_has_the_gradient_of_its_central_differences() {
    let mut rng = Rng::new(7);
    let mut random = |shape: &[usize]| random(&mut rng, shape);
    let x = random(&[3, 4]);
    let positive = Tensor::new(vec![0.5_f64, 1.5, 2.5, 0.7, 1.1, 3.0], &[2, 3]).expect("six");
    let cases: Vec<(&str, Box<Net>, Vec<Tensor>)> = vec![
        (
            "linear",
            Box::new(|t, v| t.linear(&v[0], &v[1])),
            vec![random(&[2, 3, 4]), random(&[5, 4])],
        ),
        ("matmul", Box::new(|t, v| t.matmul(&v[0], &v[1])), vec![random(&[3, 4]), random(&[4, 2])]),
        ("add", Box::new(|t, v| t.add(&v[0], &v[1])), vec![x.clone(), random(&[3, 4])]),
        ("add a row", Box::new(|t, v| t.add(&v[0], &v[1])), vec![x.clone(), random(&[4])]),
        ("sub", Box::new(|t, v| t.sub(&v[0], &v[1])), vec![x.clone(), random(&[4])]),
        ("mul", Box::new(|t, v| t.mul(&v[0], &v[1])), vec![x.clone(), random(&[3, 4])]),
        ("mul twice", Box::new(|t, v| t.mul(&v[0], &v[0])), vec![x.clone()]),
        ("div", Box::new(|t, v| t.div(&v[0], &v[1])), vec![random(&[2, 3]), positive.clone()]),
        ("sum", Box::new(|t, v| t.sum(&v[0])), vec![x.clone()]),
        ("mean", Box::new(|t, v| t.mean(&v[0])), vec![x.clone()]),
        ("sum_last", Box::new(|t, v| t.sum_last(&v[0])), vec![x.clone()]),
        ("reshape", Box::new(|t, v| t.reshape(&v[0], &[2, 6])), vec![x.clone()]),
        ("transpose", Box::new(|t, v| t.transpose(&v[0])), vec![x.clone()]),
        ("permute", Box::new(|t, v| t.permute(&v[0], &[2, 0, 1])), vec![random(&[2, 3, 4])]),
        ("embedding", Box::new(|t, v| t.embedding(&v[0], &[2, 0, 2, 1])), vec![x.clone()]),
        ("dropout", Box::new(|t, v| t.dropout(&v[0], 0.4, 5)), vec![x.clone()]),
        ("softmax", Box::new(|t, v| t.softmax(&v[0])), vec![x.clone()]),
        (
            "cross_entropy",
            Box::new(|t, v| t.cross_entropy(&v[0], &[1, IGNORE, 3])),
            vec![x.clone()],
        ),
        (
            "rms_norm",
            Box::new(|t, v| t.rms_norm(&v[0], &v[1], 1e-5)),
            vec![x.clone(), random(&[4])],
        ),
        (
            "layer_norm",
            Box::new(|t, v| t.layer_norm(&v[0], &v[1], &v[2], 1e-5)),
            vec![x.clone(), random(&[4]), random(&[4])],
        ),
        (
            "rope",
            Box::new(|t, v| t.rope(&v[0], &Positions::new(&[1.0, 0.1], 2, 3), 2)),
            vec![random(&[6, 8])],
        ),
        (
            "attention",
            Box::new(|t, v| t.attention(&v[0], &v[1], &v[2], &sequences())),
            vec![random(&[6, 16]), random(&[6, 8]), random(&[6, 8])],
        ),
        (
            "checkpoint",
            Box::new(|t, v| {
                t.checkpoint(&[&v[0], &v[1]], |t, v| {
                    let y = t.linear(&v[0], &v[1])?;
                    t.dropout(&t.activate(Activation::Silu, &y)?, 0.3, 8)
                })
            }),
            vec![x.clone(), random(&[5, 4])],
        ),
    ];
    for (name, f, inputs) in &cases {
        check(name, f, inputs, 1e-5);
    }
    for function in Activation::ALL {
        check("activate", &move |t, v| t.activate(function, &v[0]), std::slice::from_ref(&x), 1e-4);
        let gated: &Net = &move |t, v| t.activate_mul(function, &v[0], &v[1]);
        check("activate_mul", gated, &[x.clone(), random(&[3, 4])], 1e-4);
    }
    for function in [Function::Exp, Function::Ln, Function::Sqrt, Function::Square, Function::Abs] {
        check("map", &move |t, v| t.map(function, &v[0]), std::slice::from_ref(&positive), 1e-5);
    }
    for function in [Function::Scale(-2.5), Function::Shift(3.0), Function::Tanh] {
        check("map", &move |t, v| t.map(function, &v[0]), std::slice::from_ref(&x), 1e-5);
    }
}

#[test]
fn a_checkpoint_gives_the_same_bytes_as_the_plain_operations() {
    let mut rng = Rng::new(3);
    let inputs = [random(&mut rng, &[6, 8]), random(&mut rng, &[8, 8])]
        .map(|x| x.to_dtype(DType::F32).expect("a float"));
    let body = |t: &Tape, v: &[Var]| {
        let y = t.linear(&v[0], &v[1])?;
        t.activate(Activation::GeluTanh, &y)
    };
    let kept = gradients(&body, &inputs, 2);
    let again = gradients(&move |t, v| t.checkpoint(&[&v[0], &v[1]], body), &inputs, 2);
    for (kept, again) in kept.iter().zip(&again) {
        assert_eq!(kept.bytes(), again.bytes());
    }
}

#[test]
fn custom_operations_bring_their_own_backward_pass() {
    // A straight-through estimator: rounds, and passes the gradient on as it is.
    let round: &Net = &|tape, v| {
        let values = v[0].value().as_slice::<f64>()?.iter().map(|x| x.round_ties_even()).collect();
        let value = Tensor::new(values, v[0].shape())?;
        tape.custom("round", &[&v[0]], value, |_, dy| Ok(vec![Some(dy)]))
    };
    let x = Tensor::new(vec![0.4_f64, 1.6], &[2]).expect("two");
    let weights = random(&mut Rng::new(99), &[2]);
    assert_eq!(gradients(round, &[x], 1)[0].bytes(), weights.bytes());
}

#[test]
fn what_cannot_be_is_said() {
    let cpu = Cpu::new(Some(1));
    let tape = Tape::new(&cpu);
    let x = tape.leaf(Tensor::new(vec![1.0_f32, 2.0], &[1, 2]).expect("two"));
    let words = |result: Result<Var>| result.expect_err("an error").to_string();
    let wide = tape.leaf(Tensor::new(vec![1.0_f64, 2.0], &[1, 2]).expect("two"));
    assert!(words(tape.linear(&x, &wide)).contains("f32 and f64"));
    assert!(words(tape.matmul(&x, &x)).contains("matmul: [1, 2] · [1, 2]"));
    assert!(words(tape.cross_entropy(&x, &[2])).contains("target 2 of 2 classes"));
    assert!(words(tape.embedding(&x, &[1])).contains("id 1 of 1"));
    assert!(words(tape.dropout(&x, 1.0, 0)).contains("0 ≤ rate < 1"));
    assert!(words(tape.permute(&x, &[0, 0])).contains("is no order"));
    let other = Tape::new(&cpu).leaf(x.value().clone());
    assert!(words(tape.add(&x, &other)).contains("another tape"));
    assert!(tape.backward(&x).expect_err("two numbers").to_string().contains("one number"));

    let loss = tape.sum(&x).expect("a sum");
    assert!(tape.backward(&loss).expect("once").of(&x).is_some());
    assert!(tape.backward(&loss).expect_err("twice").to_string().contains("walked already"));

    let quiet = Tape::no_grad(&cpu);
    let x = quiet.leaf(Tensor::new(vec![-1.0_f32], &[1]).expect("one"));
    assert!(!quiet.sum(&x).expect("a sum").needs_gradient());
    quiet.watch();
    assert!(words(quiet.map(Function::Ln, &x)).contains("not finite"));
}
