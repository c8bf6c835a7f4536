//! Data-parallel training over a loopback group: the curve of one rank, and words for what goes wrong.

#![allow(clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a rank is a thread here")]

use std::net::TcpListener;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use aolab::Tensor;
use aolab::data::texts;
use aolab::kernels::Cpu;
use aolab::model::Model;
use aolab::rng::Rng;
use aolab::table::Cell;
use aolab::training::distributed::{Group, Launch};
use aolab::training::float8::{Axis, Cast, Format, Shard, cast_to_float8, float8_all_gather};
use aolab::training::{Corpus, Plain, RunOptions, TrainConfig, Trainer};

const SOON: Duration = Duration::from_secs(60);

/// A port that is free now.
fn port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").port()
}

fn launch(rank: usize, world_size: usize, master_port: u16) -> Launch {
    let master_addr = "127.0.0.1".to_owned();
    Launch { rank, world_size, local_rank: rank, master_addr, master_port }
}

fn trainer(model: &Model, config: TrainConfig) -> Trainer {
    let text = texts::SOTU_TRAIN[..40_000].to_owned();
    let tokenizer = model.tokenizer().expect("a tokenizer");
    let corpus = Corpus::of_texts(tokenizer, model.config.bos_token_id, &[text]).expect("tokens");
    Trainer::new(model, corpus, config, Arc::new(Plain)).expect("a run")
}

fn config() -> TrainConfig {
    TrainConfig { steps: 5, batch: 4, sequence: 32, warmup: 1, lr: 1e-3, ..TrainConfig::default() }
}

fn losses(trainer: &Trainer) -> Vec<f64> {
    let table = trainer.table().expect("a table");
    let loss = |row: &Vec<Cell>| match row[1] {
        Cell::Float(loss) => loss,
        ref other => panic!("a loss, got {other:?}"),
    };
    table.rows().iter().map(loss).collect()
}

fn bytes(trainer: &Trainer) -> Vec<Vec<u8>> {
    trainer.parameters().iter().map(|(_, tensor): (_, &Tensor)| tensor.bytes().to_vec()).collect()
}

#[test]
fn two_ranks_train_as_one_does_and_end_with_the_same_bytes() {
    let model = aolab::load("tiny").expect("the built-in model");
    let cpu = Cpu::new(Some(1));
    let config = TrainConfig { accumulate: 2, ..config() };
    let mut alone = trainer(&model, config.clone());
    alone.run(&cpu, &RunOptions::default(), &mut |_, _| true).expect("runs");

    let port = port();
    let ranks = [0, 1].map(|rank| {
        let (model, config) = (model.clone(), config.clone());
        thread::spawn(move || {
            let mut one = trainer(&model, config);
            one.join(&launch(rank, 2, port), SOON, SOON).expect("both are there");
            one.run(&Cpu::new(Some(1)), &RunOptions::default(), &mut |_, _| true).expect("runs");
            (losses(&one), bytes(&one))
        })
    });
    let [first, second] = ranks.map(|rank| rank.join().expect("a rank"));
    assert!(first == second, "both ranks have the same curve and bytes");
    for (step, (one, two)) in losses(&alone).iter().zip(&first.0).enumerate() {
        // Sums in another order: f32's rounding, grown by a few steps of training.
        assert!((one - two).abs() < 1e-4 * one, "step {step}: {one} alone, {two} together");
    }
}

#[test]
fn a_rank_that_stops_stops_all_and_one_that_is_lost_is_named() {
    let model = aolab::load("tiny").expect("the built-in model");
    for lost in [false, true] {
        let (port, model) = (port(), model.clone());
        let other = {
            let model = model.clone();
            thread::spawn(move || {
                let mut one = trainer(&model, config());
                one.join(&launch(1, 2, port), SOON, SOON).expect("both are there");
                if lost {
                    one.step(&Cpu::new(Some(1))).expect("a step");
                    return;
                }
                let mut stop = |curve: &aolab::training::Curve, _| curve.points.len() < 2;
                one.run(&Cpu::new(Some(1)), &RunOptions::default(), &mut stop).expect("runs");
            })
        };
        let mut zero = trainer(&model, config());
        zero.join(&launch(0, 2, port), SOON, SOON).expect("both are there");
        let ended = zero.run(&Cpu::new(Some(1)), &RunOptions::default(), &mut |_, _| true);
        other.join().expect("a rank");
        if lost {
            let error = ended.expect_err("nobody is there").to_string();
            assert!(error.contains("rank 1 was lost: it closed the connection"), "{error}");
        } else {
            assert_eq!(ended.expect("stopped"), aolab::training::Ended::Stopped);
            assert_eq!(zero.steps_done(), 2);
        }
    }
}

#[test]
fn ranks_that_do_not_belong_together_are_told_so() {
    let brief = Duration::from_millis(1500);
    let meet = |zero: (usize, &str), one: (usize, usize, &str)| {
        let port = port();
        let (rank, size, run) = (one.0, one.1, one.2.to_owned());
        let other = thread::spawn(move || {
            Group::connect(&launch(rank, size, port), &run, SOON, SOON).map(|_| ())
        });
        let here = Group::connect(&launch(0, zero.0, port), zero.1, brief * 10, SOON).map(|_| ());
        [here, other.join().expect("no panic")]
            .map(|result| result.expect_err("refused").to_string())
    };
    for (errors, words) in [
        (meet((2, "a"), (1, 3, "a")), "a rank has WORLD_SIZE 3, rank 0 has 2"),
        (meet((2, "a"), (2, 2, "a")), "a rank calls itself 2"),
        (meet((2, "a"), (1, 2, "b")), "rank 1 trains \"b\", rank 0 a"),
    ] {
        for error in errors {
            assert!(error.contains(words), "wanted {words}: {error}");
        }
    }
    let error = Group::connect(&launch(0, 3, port()), "a", brief, SOON).expect_err("alone");
    assert!(error.to_string().contains("waited in vain for rank 1, 2"), "{error}");
    let error = Group::connect(&launch(1, 2, port()), "a", brief, SOON).expect_err("alone");
    assert!(error.to_string().contains("rank 1 found no rank 0 at 127.0.0.1"), "{error}");

    let model = aolab::load("tiny").expect("the built-in model");
    let error = trainer(&model, config()).join(&launch(0, 3, port()), brief, SOON);
    let error = error.expect_err("4 sequences").to_string();
    assert!(error.contains("a batch of 4 cannot be shared by 3 ranks"), "{error}");

    // A stranger on the port is no rank, and its sizes are not believed.
    let port = port();
    let stranger = thread::spawn(move || {
        use std::io::Write as _;
        let connect = || std::net::TcpStream::connect(("127.0.0.1", port)).ok();
        let mut stream = loop {
            match connect() {
                Some(stream) => break stream,
                None => thread::sleep(Duration::from_millis(10)),
            }
        };
        stream.write_all(&[0, 255, 255, 255, 255, 255, 255, 255, 255]).expect("sent");
    });
    let error = Group::connect(&launch(0, 2, port), "a", SOON, SOON).expect_err("a stranger");
    stranger.join().expect("no panic");
    assert!(error.to_string().contains("no rank of aolab"), "{error}");
}

#[test]
fn weights_gathered_in_float8_are_casts_of_the_whole() {
    let mut rng = Rng::new(4);
    // Rows that ranks do not share evenly, one weight with nothing on a rank, one of zeros.
    let shapes = [(vec![3, 1, 2], 5), (vec![0, 4, 1], 16), (vec![1, 1, 1], 2)];
    let whole: Vec<Vec<f32>> = shapes
        .iter()
        .enumerate()
        .map(|(i, (rows, k))| {
            let spread = [0.02, 300.0, 0.0][i];
            (0..rows.iter().sum::<usize>() * k).map(|_| rng.normal() * spread).collect()
        })
        .collect();
    for power_of_two in [false, true] {
        let port = port();
        let ranks = [0, 1, 2].map(|rank| {
            let own = |((rows, k), values): (&(Vec<usize>, usize), &Vec<f32>)| {
                let first = rows[..rank].iter().sum::<usize>() * k;
                let values = values[first..first + rows[rank] * k].to_vec();
                Shard { values, rows: rows.clone(), k: *k }
            };
            let shards: Vec<Shard> = shapes.iter().zip(&whole).map(own).collect();
            thread::spawn(move || {
                let mut group = Group::connect(&launch(rank, 3, port), "float8", SOON, SOON)
                    .expect("all there");
                float8_all_gather(&mut group, &shards, power_of_two).expect("gathered")
            })
        });
        let ranks = ranks.map(|rank| rank.join().expect("a rank"));
        assert!(ranks.windows(2).all(|pair| pair[0] == pair[1]), "the same on each");
        for ((gathered, whole), (_, k)) in ranks[0].iter().zip(&whole).zip(&shapes) {
            let cast = Cast { format: Format::E4m3, axis: Axis::All, power_of_two };
            let wanted = cast_to_float8(&Cpu::new(Some(1)), whole, *k, cast);
            assert!(gathered.dequantize() == wanted, "{k} numbers a row");
            assert_eq!(gathered.codes.len(), whole.len(), "a byte a number");
        }
    }
    // One rank alone needs no network, and shards that are none are refused.
    let mut alone = Group::connect(&launch(0, 1, 1), "float8", SOON, SOON).expect("alone");
    let shard = Shard { values: vec![1.0, -2.0], rows: vec![1], k: 2 };
    let gathered = float8_all_gather(&mut alone, std::slice::from_ref(&shard), false).expect("one");
    assert!(gathered[0].dequantize() == [1.0, -2.0]);
    let wrong = Shard { rows: vec![2], ..shard };
    assert!(float8_all_gather(&mut alone, &[wrong], false).is_err());
}
