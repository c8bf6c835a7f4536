//! The team behind `Threads`: workers that spin a little and then sleep.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long a worker looks for the next region before it sleeps. Between the layers of a model a
/// few microseconds pass, between tokens some tens; waking a sleeper costs the caller about as
/// much.
const AWAKE: Duration = Duration::from_micros(100);

/// How many looks before the core is offered to others between looks: about five microseconds.
const EAGER_LOOKS: u32 = 256;

/// The gate: in the low bits how many workers are inside, then whether the region is open, then its
/// epoch.
const INSIDE: u64 = (1 << OPEN_BIT) - 1;
const OPEN_BIT: u32 = 16;
const OPEN: u64 = 1 << OPEN_BIT;
const EPOCH: u64 = !(INSIDE | OPEN);
const NEXT_EPOCH: u64 = OPEN << 1;

/// One loop: lives on its caller's stack from open to close.
struct Region<'a> {
    f: &'a (dyn Fn(usize) + Sync),
    parts: usize,
    next: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Region<'_> {
    /// Takes parts until none is left.
    fn work(&self) {
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let i = self.next.fetch_add(1, Ordering::Relaxed);
                if i >= self.parts {
                    break;
                }
                (self.f)(i);
            }
        }));
        if let Err(payload) = result {
            // The rest is skipped: its result would be thrown away with the panic.
            self.next.store(self.parts, Ordering::Relaxed);
            let mut panic = lock(&self.panic);
            match *panic {
                None => *panic = Some(payload),
                // Dropping a payload may panic again, and nothing may unwind out of here.
                Some(_) => std::mem::forget(payload),
            }
        }
    }
}

/// What the caller and the workers share. Aligned so that the spinning workers' cache line is its
/// own.
#[repr(align(128))]
pub(super) struct Team {
    gate: AtomicU64,
    region: AtomicPtr<Region<'static>>,
    busy: AtomicBool,
    ending: AtomicBool,
    sleepers: AtomicUsize,
    bed: Mutex<()>,
    morning: Condvar,
}

impl Team {
    /// Runs one loop; see [`super::Threads::run`].
    pub(super) fn run(&self, parts: usize, f: &(dyn Fn(usize) + Sync)) {
        if self.busy.swap(true, Ordering::Acquire) {
            return (0..parts).for_each(f);
        }
        let region = Region { f, parts, next: AtomicUsize::new(0), panic: Mutex::new(None) };
        self.open(&region);
        region.work();
        self.close();
        self.busy.store(false, Ordering::Release);
        let panic = lock(&region.panic).take();
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// Lets workers into `region`. The caller must `close` before `region` goes, which `run` does:
    /// nothing between the two can unwind.
    fn open(&self, region: &Region<'_>) {
        // The lifetime is forgotten here and restored by the protocol: see the SAFETY note in
        // `visit`.
        let address = std::ptr::from_ref(region).cast::<Region<'static>>().cast_mut();
        self.region.store(address, Ordering::Relaxed);
        // One step adds an epoch and the open bit (it is clear now). SeqCst with `sleep`: either a
        // worker going to bed sees this epoch, or we see it among the sleepers.
        self.gate.fetch_add(NEXT_EPOCH + OPEN, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            self.wake();
        }
    }

    /// Lets nobody in any more and waits until nobody is inside.
    fn close(&self) {
        let mut looks = 0;
        let mut gate = self.gate.fetch_and(!OPEN, Ordering::AcqRel);
        while gate & INSIDE != 0 {
            pause(&mut looks);
            gate = self.gate.load(Ordering::Acquire);
        }
    }

    fn wake(&self) {
        let _bed = lock(&self.bed);
        self.morning.notify_all();
    }

    /// A worker's life.
    fn serve(&self) {
        let mut seen = 0;
        while !self.ending.load(Ordering::Acquire) {
            match self.await_epoch(seen) {
                Some(gate) => {
                    seen = gate & EPOCH;
                    self.visit(gate);
                }
                None => self.sleep(seen),
            }
        }
    }

    /// The gate once it shows an open region of another epoch than `seen`; none within [`AWAKE`] is
    /// `None`.
    fn await_epoch(&self, seen: u64) -> Option<u64> {
        let mut looks = 0;
        let mut since = None;
        loop {
            let gate = self.gate.load(Ordering::Relaxed);
            if is_new(gate, seen) {
                return Some(gate);
            }
            pause(&mut looks);
            if looks % 64 == 0 {
                let late = since.get_or_insert_with(Instant::now).elapsed() > AWAKE;
                if late || self.ending.load(Ordering::Relaxed) {
                    return None;
                }
            }
        }
    }

    /// Enters the region that `gate` shows, if it is still open, works, and leaves.
    fn visit(&self, mut gate: u64) {
        let epoch = gate & EPOCH;
        loop {
            if gate & OPEN == 0 || gate & EPOCH != epoch {
                return;
            }
            let entered = self.gate.compare_exchange_weak(
                gate,
                gate + 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            );
            match entered {
                Ok(_) => break,
                Err(now) => gate = now,
            }
        }
        let region = self.region.load(Ordering::Relaxed);
        // SAFETY: the exchange proved that the region was open while we went in, and read with
        // Acquire what `open` wrote before it opened the gate; its caller does not leave `run`,
        // and so keeps the region and `f` alive and unmoved, before `close` has seen us leave.
        let region = unsafe { &*region };
        region.work();
        // Release: what the parts wrote is seen by the caller, whose `close` reads with Acquire.
        self.gate.fetch_sub(1, Ordering::Release);
    }

    fn sleep(&self, seen: u64) {
        let bed = lock(&self.bed);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let stay = |_: &mut ()| {
            !is_new(self.gate.load(Ordering::SeqCst), seen) && !self.ending.load(Ordering::SeqCst)
        };
        let bed = self.morning.wait_while(bed, stay);
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        drop(bed);
    }
}

fn is_new(gate: u64, seen: u64) -> bool {
    gate & OPEN != 0 && gate & EPOCH != seen
}

/// One look's rest: the core's own pause at first; later the core is offered to whoever waits for
/// it.
fn pause(looks: &mut u32) {
    *looks = looks.wrapping_add(1);
    if *looks < EAGER_LOOKS {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

/// Nothing under our locks is left half-changed by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|broken| broken.into_inner())
}

/// A team with its threads, which end soon after this is dropped.
pub(super) struct Crew {
    team: Arc<Team>,
    // rayon owns the threads; each runs one job, `serve`, for as long as the crew lives. Its own
    // scheduler would wake sleepers for every region, which costs tens of microseconds.
    _pool: rayon::ThreadPool,
    workers: usize,
}

impl Crew {
    /// Starts `workers` threads beside the caller's.
    pub(super) fn start(workers: usize) -> Result<Crew, rayon::ThreadPoolBuildError> {
        let team = Arc::new(Team {
            gate: AtomicU64::new(0),
            region: AtomicPtr::new(std::ptr::null_mut()),
            busy: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            bed: Mutex::new(()),
            morning: Condvar::new(),
        });
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(workers)
            .thread_name(|i| format!("aolab-{}", i + 1))
            .build()?;
        let served = Arc::clone(&team);
        pool.spawn_broadcast(move |_| served.serve());
        Ok(Crew { team, _pool: pool, workers })
    }

    pub(super) fn team(&self) -> &Team {
        &self.team
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        // Every worker leaves `serve`, and the pool, dropped after this, lets its idle threads end.
        self.team.ending.store(true, Ordering::SeqCst);
        self.team.wake();
    }
}

impl std::fmt::Debug for Crew {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Crew").field("workers", &self.workers).finish()
    }
}
