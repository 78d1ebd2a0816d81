//! The worker threads: made once at load, parked between runs, and while one runs meeting at
//! barriers and sharing out the work of each loop.

use crate::refusal::Refusal;
use core::hint::spin_loop;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

const STACK_SIZE: usize = 512 << 10;

/// A value on cache lines of its own.
#[repr(align(128))]
struct Line<T>(T);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A barrier that spins, then yields, then sleeps.
struct Meeting {
    count: usize,
    spins: u32,
    yields: u32,
    arrived: Line<AtomicUsize>,
    generation: Line<AtomicU32>,
    sleepers: AtomicUsize,
    gate: Mutex<()>,
    opened: Condvar,
}

impl Meeting {
    fn new(count: usize, spins: u32, yields: u32) -> Self {
        Meeting {
            count,
            spins,
            yields,
            arrived: Line(AtomicUsize::new(0)),
            generation: Line(AtomicU32::new(0)),
            sleepers: AtomicUsize::new(0),
            gate: Mutex::new(()),
            opened: Condvar::new(),
        }
    }

    /// Returns when all have come, or `failed` is set.
    fn meet(&self, failed: &AtomicBool) {
        if self.count == 1 {
            return;
        }
        let generation = self.generation.0.load(Ordering::Acquire);
        if self.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == self.count {
            self.arrived.0.store(0, Ordering::Relaxed);
            self.generation
                .0
                .store(generation.wrapping_add(1), Ordering::SeqCst);
            self.wake();
            return;
        }
        let over = || {
            self.generation.0.load(Ordering::SeqCst) != generation || failed.load(Ordering::SeqCst)
        };
        for _ in 0..self.spins {
            if over() {
                return;
            }
            spin_loop();
        }
        for _ in 0..self.yields {
            if over() {
                return;
            }
            std::thread::yield_now();
        }
        // Counted before the last look: whoever opens the gate after it sees a sleeper, and
        // takes the lock to wake it.
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let mut gate = lock(&self.gate);
        while !over() {
            gate = self
                .opened
                .wait(gate)
                .unwrap_or_else(PoisonError::into_inner);
        }
        drop(gate);
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    fn wake(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.gate));
            self.opened.notify_all();
        }
    }
}

struct Turn {
    number: u64,
    closed: bool,
}

struct Shared {
    count: usize,
    /// Set by the worker that fails; ends every loop and barrier of the run.
    failed: AtomicBool,
    never: AtomicBool,
    barrier: Meeting,
    end: Meeting,
    /// What each worker has left of the current share: start in the high half, end in the low.
    ranges: Box<[Line<AtomicU64>]>,
    turn: Mutex<Turn>,
    begun: Condvar,
}

type Body = dyn Fn(&Worker<'_>) + Send + Sync;

/// The threads of a machine. Its owner's thread is worker 0 of every run.
pub struct Team {
    shared: Arc<Shared>,
    body: Arc<Body>,
    threads: Vec<JoinHandle<()>>,
}

impl Team {
    /// Starts `count - 1` threads that wait to run `body`.
    pub fn start(count: usize, body: Arc<Body>) -> Result<Self, Refusal> {
        let count = count.max(1);
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        // Where threads outnumber cores, spinning keeps the awaited one from running.
        let (spins, yields) = if count <= cores {
            (10_000, 200)
        } else {
            (50, 500)
        };
        let shared = Arc::new(Shared {
            count,
            failed: AtomicBool::new(false),
            never: AtomicBool::new(false),
            barrier: Meeting::new(count, spins, yields),
            end: Meeting::new(count, spins, yields),
            ranges: (0..count).map(|_| Line(AtomicU64::new(0))).collect(),
            turn: Mutex::new(Turn {
                number: 0,
                closed: false,
            }),
            begun: Condvar::new(),
        });
        let mut team = Team {
            shared,
            body,
            threads: Vec::with_capacity(count - 1),
        };
        for index in 1..count {
            let shared = Arc::clone(&team.shared);
            let body = Arc::clone(&team.body);
            let thread = std::thread::Builder::new()
                .stack_size(STACK_SIZE)
                .spawn(move || follow(&shared, &*body, index))
                .map_err(|e| Refusal::System {
                    what: "starting a thread",
                    errno: e.raw_os_error().unwrap_or(0),
                })?;
            team.threads.push(thread);
        }
        Ok(team)
    }

    /// Threads, the caller's own included.
    pub fn count(&self) -> usize {
        self.shared.count
    }

    /// Runs the body on every worker and returns when all are done; whether none failed.
    pub fn run(&mut self) -> bool {
        let shared = &*self.shared;
        shared.failed.store(false, Ordering::SeqCst);
        shared.barrier.arrived.0.store(0, Ordering::SeqCst);
        for range in &shared.ranges {
            range.0.store(0, Ordering::SeqCst);
        }
        if shared.count > 1 {
            lock(&shared.turn).number += 1;
            shared.begun.notify_all();
        }
        (self.body)(&Worker::new(shared, 0));
        shared.end.meet(&shared.never);
        !shared.failed.load(Ordering::SeqCst)
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        lock(&self.shared.turn).closed = true;
        self.shared.begun.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A thread's life: wait for a turn, take it.
fn follow(shared: &Shared, body: &Body, index: usize) {
    let mut seen = 0;
    loop {
        {
            let mut turn = lock(&shared.turn);
            while turn.number == seen && !turn.closed {
                turn = shared
                    .begun
                    .wait(turn)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            if turn.closed {
                return;
            }
            seen = turn.number;
        }
        body(&Worker::new(shared, index));
        shared.end.meet(&shared.never);
    }
}

/// One worker of a run; not to be handed to another thread.
pub struct Worker<'a> {
    shared: &'a Shared,
    index: usize,
    own_thread: PhantomData<*const ()>,
}

impl<'a> Worker<'a> {
    fn new(shared: &'a Shared, index: usize) -> Self {
        Worker {
            shared,
            index,
            own_thread: PhantomData,
        }
    }

    pub fn index(&self) -> usize {
        self.index
    }

    /// Workers of this run.
    pub fn count(&self) -> usize {
        self.shared.count
    }

    /// Waits until every worker has come here, or one has failed.
    pub fn barrier(&self) {
        self.shared.barrier.meet(&self.shared.failed);
    }

    /// Ends the run: every worker's shares and barriers end at once.
    pub fn fail(&self) {
        self.shared.failed.store(true, Ordering::SeqCst);
        self.shared.barrier.wake();
    }

    pub fn failed(&self) -> bool {
        self.shared.failed.load(Ordering::Relaxed)
    }

    /// Shares the items `0..item_count` among all workers.
    ///
    /// Every worker calls it with the same count, in the same order. Each owns one contiguous
    /// range and takes from its front; a worker that has none left steals from the back of the
    /// fullest other range. The end of the iteration is a barrier, so everything done under one
    /// share is over when any worker goes on from it. An iteration that is dropped before its
    /// end (a worker returns an error) fails the run, so that nobody waits for it.
    pub fn share(&self, item_count: usize) -> Share<'_> {
        let shared = self.shared;
        // 32 bits hold any count of items that a pool has room for work on; beyond, the items
        // are left undone and the run fails rather than being done wrongly.
        let Ok(item_count) = u32::try_from(item_count) else {
            self.fail();
            return Share {
                worker: self,
                ended: false,
            };
        };
        let bound = |i: usize| (u64::from(item_count) * i as u64) / shared.count as u64;
        if let Some(range) = shared.ranges.get(self.index) {
            let packed = (bound(self.index) << 32) | bound(self.index + 1);
            range.0.store(packed, Ordering::Release);
        }
        Share {
            worker: self,
            ended: false,
        }
    }
}

/// The items one worker gets; see [`Worker::share`].
pub struct Share<'a> {
    worker: &'a Worker<'a>,
    ended: bool,
}

impl Share<'_> {
    fn take_own(&self) -> Option<usize> {
        let range = &self.worker.shared.ranges.get(self.worker.index)?.0;
        let mut packed = range.load(Ordering::Acquire);
        loop {
            let (start, end) = (packed >> 32, packed & 0xffff_ffff);
            if start >= end {
                return None;
            }
            let rest = packed + (1 << 32);
            match range.compare_exchange_weak(packed, rest, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(start as usize),
                Err(now) => packed = now,
            }
        }
    }

    fn steal(&self) -> Option<usize> {
        loop {
            let mut fullest = None;
            let mut most = 0;
            for range in &self.worker.shared.ranges {
                let packed = range.0.load(Ordering::Acquire);
                let left = (packed & 0xffff_ffff).saturating_sub(packed >> 32);
                if left > most {
                    most = left;
                    fullest = Some((&range.0, packed));
                }
            }
            let (range, packed) = fullest?;
            if range
                .compare_exchange(packed, packed - 1, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
            {
                return Some((packed & 0xffff_ffff) as usize - 1);
            }
        }
    }
}

impl Iterator for Share<'_> {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        if self.ended {
            return None;
        }
        if !self.worker.failed()
            && let Some(item) = self.take_own().or_else(|| self.steal())
        {
            return Some(item);
        }
        self.ended = true;
        self.worker.barrier();
        None
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.worker.fail();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_given_once_and_shares_do_not_mix() {
        for count in [1, 2, 3, 7] {
            let done: Arc<Vec<AtomicUsize>> =
                Arc::new((0..1000).map(|_| AtomicUsize::new(0)).collect());
            let wrong = Arc::new(AtomicUsize::new(0));
            let (seen, bad) = (Arc::clone(&done), Arc::clone(&wrong));
            let mut team = Team::start(
                count,
                Arc::new(move |worker: &Worker| {
                    for phase in 0..20 {
                        for item in worker.share(seen.len()) {
                            if seen[item].fetch_add(1, Ordering::SeqCst) != phase {
                                bad.fetch_add(1, Ordering::SeqCst);
                            }
                        }
                    }
                    for _ in worker.share(0) {}
                }),
            )
            .expect("starts");
            for run in 1..4 {
                assert!(team.run());
                assert!(done.iter().all(|d| d.load(Ordering::SeqCst) == 20));
                assert_eq!(wrong.load(Ordering::SeqCst), 0, "run {run}");
                done.iter().for_each(|d| d.store(0, Ordering::SeqCst));
            }
        }
    }

    #[test]
    fn a_failure_ends_the_run_and_the_next_one_works() {
        let run = Arc::new(AtomicUsize::new(0));
        let current = Arc::clone(&run);
        let mut team = Team::start(
            4,
            Arc::new(move |worker: &Worker| {
                let run = current.load(Ordering::SeqCst);
                for phase in 0..50 {
                    for item in worker.share(64) {
                        if run.is_multiple_of(2) && phase == run && item == 13 {
                            return;
                        }
                    }
                    worker.barrier();
                    if worker.failed() {
                        return;
                    }
                }
            }),
        )
        .expect("starts");
        for number in 0..40 {
            run.store(number, Ordering::SeqCst);
            assert_eq!(team.run(), number % 2 == 1, "run {number}");
        }
    }
}
