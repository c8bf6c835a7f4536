//! Operations of the tape, forward and backward: linear layers, attention, norms, activations, losses.

use tch::Tensor as Torch;

use super::super::network::int;
use super::super::{from_torch, to_torch, wrong};
use super::{Check, FUNCTIONS, KINDS, SUMS, numbers, size_of};
use crate::autograd::{Positions, Sequences, Tape, Var};
use crate::error::Result;
use crate::kernels::Cpu;
use crate::kernels::activation::Activation;
use crate::rng::Rng;
use crate::tensor::Tensor;

/// Both sides of an operation, from the same inputs to one output.
pub(super) struct Sides<'a> {
    pub(super) ours: &'a dyn Fn(&Tape, &[Var]) -> Result<Var>,
    pub(super) theirs: &'a dyn Fn(&[Torch]) -> Result<Torch>,
}

/// Compares the output and the gradient of every input for a random upstream gradient.
pub(super) fn both_ways(
    cpu: &Cpu,
    rng: &mut Rng,
    (check, case): (&mut Check, &str),
    inputs: &[Tensor],
    sides: &Sides<'_>,
) -> Result<()> {
    let tape = Tape::new(cpu);
    let leaves: Vec<Var> = inputs.iter().map(|input| tape.leaf(input.clone())).collect();
    let y = (sides.ours)(&tape, &leaves)?;
    let upstream = Tensor::new(numbers(rng, "normal", y.value().numel()), y.shape())?;
    let gradients = tape.backward_from(&y, upstream.clone())?;
    let torch: Vec<Torch> =
        inputs.iter().map(|x| Ok(to_torch(x)?.set_requires_grad(true))).collect::<Result<_>>()?;
    let theirs = (sides.theirs)(&torch)?;
    let sum = theirs.f_mul(&to_torch(&upstream)?).map_err(wrong)?.sum(tch::Kind::Float);
    let found = Torch::f_run_backward(&[sum], &torch, false, false).map_err(wrong)?;
    let theirs = from_torch(theirs)?;
    check.compare(case, y.value().as_slice()?, theirs.as_slice()?);
    let found: Vec<Tensor> = found.into_iter().map(from_torch).collect::<Result<_>>()?;
    let mut least = 0.0_f64;
    if check.together {
        for all in found.iter().chain([&theirs]) {
            least = least.max(size_of(all.as_slice()?));
        }
    }
    for (i, (leaf, theirs)) in leaves.iter().zip(found).enumerate() {
        let ours = gradients.of(leaf).map_or_else(Vec::new, Tensor::to_f32_vec);
        let case = format!("{case}, gradient {i}");
        check.compare_over(&case, &ours, theirs.as_slice()?, least);
    }
    Ok(())
}

pub(super) fn verify(cpu: &Cpu, rng: &mut Rng) -> Result<Vec<Check>> {
    Ok(vec![
        linear(cpu, rng)?,
        attention(cpu, rng)?,
        rms_norm(cpu, rng)?,
        layer_norm(cpu, rng)?,
        activation(cpu, rng, Activation::Silu)?,
        activation(cpu, rng, Activation::Gelu)?,
        activation(cpu, rng, Activation::GeluTanh)?,
        softmax(cpu, rng)?,
        cross_entropy(cpu, rng)?,
        embedding(cpu, rng)?,
        rope(cpu, rng)?,
    ])
}

fn tensor(rng: &mut Rng, kind: &str, shape: &[usize]) -> Result<Tensor> {
    Tensor::new(numbers(rng, kind, shape.iter().product()), shape)
}

fn linear(cpu: &Cpu, rng: &mut Rng) -> Result<Check> {
    let mut check = Check::new("linear", "linear", SUMS);
    for kind in ["normal", "zeros", "large", "ties", "mixed"] {
        for (m, n, k) in [(1, 1, 1), (1, 96, 257), (5, 33, 64), (17, 65, 130), (64, 48, 512)] {
            let inputs = [tensor(rng, kind, &[m, k])?, tensor(rng, "normal", &[n, k])?];
            let case = format!("{kind}, {m}x{n}x{k}");
            let sides = Sides {
                ours: &|tape, x| tape.linear(&x[0], &x[1]),
                theirs: &|x| x[0].f_linear::<&Torch>(&x[1], None).map_err(wrong),
            };
            both_ways(cpu, rng, (&mut check, &case), &inputs, &sides)?;
        }
    }
    Ok(check)
}

fn attention(cpu: &Cpu, rng: &mut Rng) -> Result<Check> {
    let mut check = Check::new("attention", "scaled_dot_product_attention", SUMS).together();
    for kind in ["normal", "zeros", "ties"] {
        for (batch, m, heads, kv_heads, head_dim) in [
            (1, 1, 1, 1, 8),
            (1, 2, 1, 1, 8),
            (2, 7, 4, 2, 16),
            (1, 33, 6, 3, 32),
            (1, 70, 4, 1, 64),
        ] {
            let scale = 1.0 / f64::from(u32::try_from(head_dim).unwrap_or(1)).sqrt();
            let shape = Sequences { batch, m, heads, kv_heads, head_dim, window: None, scale };
            let columns = [heads, kv_heads, kv_heads].map(|heads| heads * head_dim);
            let inputs = columns.map(|columns| tensor(rng, kind, &[batch * m, columns]));
            let [q, k, v] = inputs;
            let split = |x: &Torch, heads: usize| {
                x.view([int(batch), int(m), int(heads), int(head_dim)]).transpose(1, 2)
            };
            let sides = Sides {
                ours: &|tape, x| tape.attention(&x[0], &x[1], &x[2], &shape),
                theirs: &|x| {
                    let (q, k) = (split(&x[0], heads), split(&x[1], kv_heads));
                    let v = split(&x[2], kv_heads);
                    let y = Torch::f_scaled_dot_product_attention::<&Torch>(
                        &q, &k, &v, None, 0.0, true, scale, true,
                    );
                    Ok(y.map_err(wrong)?.transpose(1, 2).reshape([int(batch * m), -1]))
                },
            };
            let case = format!("{kind}, {batch}x{m}, {heads}/{kv_heads} heads of {head_dim}");
            both_ways(cpu, rng, (&mut check, &case), &[q?, k?, v?], &sides)?;
        }
    }
    Ok(check)
}

/// Rows of all kinds that norms are asked about.
const NORM_KINDS: [&str; 5] = ["normal", "zeros", "large", "ties", "mixed"];
const NORM_SHAPES: [[usize; 2]; 5] = [[1, 1], [2, 3], [3, 7], [5, 64], [4, 1031]];

fn rms_norm(cpu: &Cpu, rng: &mut Rng) -> Result<Check> {
    let mut check = Check::new("rms_norm", "rms_norm", SUMS).together();
    for kind in NORM_KINDS {
        for shape in NORM_SHAPES {
            let inputs = [tensor(rng, kind, &shape)?, tensor(rng, "normal", &shape[1..])?];
            let eps = 1e-5_f32;
            let sides = Sides {
                ours: &|tape, x| tape.rms_norm(&x[0], &x[1], eps),
                theirs: &|x| {
                    let y = x[0].f_rms_norm(x[1].size(), Some(&x[1]), f64::from(eps));
                    y.map_err(wrong)
                },
            };
            let case = format!("{kind}, {shape:?}");
            both_ways(cpu, rng, (&mut check, &case), &inputs, &sides)?;
        }
    }
    Ok(check)
}

fn layer_norm(cpu: &Cpu, rng: &mut Rng) -> Result<Check> {
    let mut check = Check::new("layer_norm", "layer_norm", 2.0 * SUMS);
    for kind in NORM_KINDS {
        for shape in &NORM_SHAPES[2..] {
            let vector = |rng: &mut Rng| tensor(rng, "normal", &shape[1..]);
            let inputs = [tensor(rng, kind, shape)?, vector(rng)?, vector(rng)?];
            let sides = Sides {
                ours: &|tape, x| tape.layer_norm(&x[0], &x[1], &x[2], 1e-5),
                theirs: &|x| {
                    let y = x[0].f_layer_norm(x[1].size(), Some(&x[1]), Some(&x[2]), 1e-5, false);
                    y.map_err(wrong)
                },
            };
            let case = format!("{kind}, {shape:?}");
            both_ways(cpu, rng, (&mut check, &case), &inputs, &sides)?;
        }
    }
    Ok(check)
}

fn activation(cpu: &Cpu, rng: &mut Rng, function: Activation) -> Result<Check> {
    let (ours, aten) = match function {
        Activation::Gelu => ("gelu", "gelu"),
        Activation::GeluTanh => ("gelu_tanh", "gelu(tanh)"),
        _ => ("silu", "silu"),
    };
    let mut check = Check::new(ours, aten, FUNCTIONS);
    for kind in KINDS {
        let inputs = [tensor(rng, kind, &[3, 341])?];
        let sides = Sides {
            ours: &|tape, x| tape.activate(function, &x[0]),
            theirs: &|x| {
                let y = match function {
                    Activation::Gelu => x[0].f_gelu("none"),
                    Activation::GeluTanh => x[0].f_gelu("tanh"),
                    _ => x[0].f_silu(),
                };
                y.map_err(wrong)
            },
        };
        both_ways(cpu, rng, (&mut check, kind), &inputs, &sides)?;
    }
    Ok(check)
}

fn softmax(cpu: &Cpu, rng: &mut Rng) -> Result<Check> {
    let mut check = Check::new("softmax", "softmax", SUMS).together();
    for kind in KINDS {
        for shape in [[1, 1], [2, 3], [4, 9], [3, 777]] {
            let inputs = [tensor(rng, kind, &shape)?];
            let sides = Sides {
                ours: &|tape, x| tape.softmax(&x[0]),
                theirs: &|x| x[0].f_softmax(-1, None).map_err(wrong),
            };
            let case = format!("{kind}, {shape:?}");
            both_ways(cpu, rng, (&mut check, &case), &inputs, &sides)?;
        }
    }
    Ok(check)
}

fn cross_entropy(cpu: &Cpu, rng: &mut Rng) -> Result<Check> {
    let mut check = Check::new("cross_entropy", "cross_entropy_loss", SUMS);
    for kind in ["normal", "zeros", "ties", "mixed"] {
        for (m, n) in [(1, 2), (5, 33), (9, 2000)] {
            let targets: Vec<u32> = (0..m).map(|i| (i * 7919) % n).collect();
            let ids: Vec<i64> = targets.iter().map(|id| i64::from(*id)).collect();
            let size = |n: u32| usize::try_from(n).unwrap_or(0);
            let inputs = [tensor(rng, kind, &[size(m), size(n)])?];
            let sides = Sides {
                ours: &|tape, x| tape.cross_entropy(&x[0], &targets),
                theirs: &|x| {
                    let mean = tch::Reduction::Mean;
                    let ids = Torch::from_slice(&ids);
                    let y = x[0].f_cross_entropy_loss::<&Torch>(&ids, None, mean, -100, 0.0);
                    Ok(y.map_err(wrong)?.view([1]))
                },
            };
            let case = format!("{kind}, {m}x{n}");
            both_ways(cpu, rng, (&mut check, &case), &inputs, &sides)?;
        }
    }
    Ok(check)
}

fn embedding(cpu: &Cpu, rng: &mut Rng) -> Result<Check> {
    let mut check = Check::new("embedding", "embedding", SUMS);
    let ids = [3_u32, 0, 3, 9, 3, 1];
    let inputs = [tensor(rng, "mixed", &[10, 13])?];
    let sides = Sides {
        ours: &|tape, x| tape.embedding(&x[0], &ids),
        theirs: &|x| {
            let ids = Torch::from_slice(&ids.map(i64::from));
            Torch::f_embedding(&x[0], &ids, -1, false, false).map_err(wrong)
        },
    };
    both_ways(cpu, rng, (&mut check, "a token many times"), &inputs, &sides)?;
    Ok(check)
}

fn rope(cpu: &Cpu, rng: &mut Rng) -> Result<Check> {
    let mut check = Check::new("rope", "mul, sub, add, cat", FUNCTIONS);
    for (batch, tokens, heads, half) in [(1, 1, 1, 1), (2, 5, 3, 4), (1, 40, 2, 32)] {
        let freq: Vec<f64> =
            (0..half).map(|i| 1e4_f64.powf(-f64::from(i) / f64::from(half))).collect();
        let positions = Positions::new(&freq, batch, tokens);
        let half = freq.len();
        let inputs = [tensor(rng, "normal", &[batch * tokens, heads * 2 * half])?];
        let angles = Torch::arange(int(tokens), (tch::Kind::Double, tch::Device::Cpu))
            .outer(&Torch::from_slice(&freq))
            .view([1, int(tokens), 1, int(half)]);
        let (cos, sin) =
            (angles.cos().to_kind(tch::Kind::Float), angles.sin().to_kind(tch::Kind::Float));
        let sides = Sides {
            ours: &|tape, x| tape.rope(&x[0], &positions, heads),
            theirs: &|x| {
                let x = x[0].view([int(batch), int(tokens), int(heads), 2 * int(half)]);
                let (a, b) = (x.narrow(-1, 0, int(half)), x.narrow(-1, int(half), int(half)));
                let y = Torch::cat(&[&a * &cos - &b * &sin, &b * &cos + &a * &sin], -1);
                Ok(y.reshape([int(batch * tokens), -1]))
            },
        };
        let case = format!("{batch}x{tokens}, {heads} heads of {}", 2 * half);
        both_ways(cpu, rng, (&mut check, &case), &inputs, &sides)?;
    }
    Ok(check)
}
