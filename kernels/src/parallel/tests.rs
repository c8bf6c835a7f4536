use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::Threads;

#[test]
fn every_part_runs_once() {
    for count in [1, 2, 3, 7] {
        let threads = Threads::new(count);
        assert_eq!(threads.count(), count);
        for parts in [0, 1, 2, 3, 31, 1000] {
            let hits: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
            threads.run(parts, |i| {
                hits[i].fetch_add(1, Ordering::Relaxed);
            });
            let once = hits.iter().all(|hit| hit.load(Ordering::Relaxed) == 1);
            assert!(once, "{count} threads, {parts} parts");
        }
    }
}

#[test]
fn many_short_loops_see_each_others_writes() {
    let threads = Threads::new(4);
    let mut data = vec![0_u32; 64];
    for round in 1..=20_000 {
        threads.chunks_mut(&mut data, 5, |_, chunk| chunk.iter_mut().for_each(|v| *v += 1));
        assert!(data.iter().all(|&v| v == round), "round {round}: {data:?}");
        if round % 4000 == 0 {
            // Long enough for the workers to fall asleep.
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

#[test]
fn a_panic_reaches_the_caller_and_the_team_lives_on() {
    let threads = Threads::new(3);
    for round in 0..300 {
        let result = catch_unwind(AssertUnwindSafe(|| {
            threads.run(16, |i| assert!(i % 5 != round % 5, "part {i} fails"));
        }));
        let payload = result.expect_err("a part panicked");
        let text = payload.downcast_ref::<String>().expect("a formatted message");
        assert!(text.starts_with("part "), "{text}");
        let sum = AtomicUsize::new(0);
        threads.run(16, |i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 120, "round {round}");
    }
}

#[test]
fn loops_inside_loops_and_callers_beside_callers() {
    let threads = Threads::new(3);
    let sum = AtomicUsize::new(0);
    let nested = || {
        threads.run(4, |i| {
            threads.clone().run(3, |j| {
                sum.fetch_add(10 * i + j, Ordering::Relaxed);
            });
        });
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..500).for_each(|_| nested()));
        }
    });
    assert_eq!(sum.into_inner(), 4 * 500 * (3 * 60 + 4 * 3));
}

#[test]
fn a_team_ends_with_its_last_clone_even_while_asleep() {
    for sleep in [0, 3] {
        for _ in 0..20 {
            let threads = Threads::new(4);
            threads.clone().run(8, |_| {});
            std::thread::sleep(Duration::from_millis(sleep));
        }
    }
}

#[test]
fn tiles_cover_a_matrix_once() {
    let threads = Threads::new(2);
    for (rows, cols, size) in [
        (0, 3, (2, 2)),
        (3, 0, (1, 1)),
        (1, 1, (9, 9)),
        (7, 5, (2, 3)),
        (4, 6, (4, 1)),
        (5, 8, (1, 8)),
    ] {
        let mut data = vec![0_usize; rows * cols];
        threads.tiles_mut(&mut data, cols, size, |_, mut tile| {
            let (first_row, first_col) = (tile.rows().start, tile.cols().start);
            for i in 0..tile.rows().len() {
                for (j, v) in tile.row(i).iter_mut().enumerate() {
                    *v += 1 + (first_row + i) * cols + first_col + j;
                }
            }
        });
        let wanted: Vec<usize> = (1..=rows * cols).collect();
        assert_eq!(data, wanted, "{rows}×{cols} in {size:?}");
    }
}

#[test]
fn chunks_are_numbered_and_the_last_may_be_short() {
    let threads = Threads::new(2);
    let mut data = vec![0; 11];
    threads.chunks_mut(&mut data, 4, |i, chunk| chunk.fill(10 * i + chunk.len()));
    assert_eq!(data, [4, 4, 4, 4, 14, 14, 14, 14, 23, 23, 23]);
    threads.chunks_mut(&mut Vec::<u8>::new(), 4, |_, _| unreachable!("nothing to cut"));
}
