//! The worker threads: made once at load, parked between runs, and while one runs sharing out
//! the work of each loop.
//!
//! A loop is over when its items are done, not when every worker has come by: a worker that the
//! system keeps off its core holds nobody up unless it has an item in hand, and catches up by
//! finding the loops it missed already over.

use crate::refusal::Refusal;
use core::cell::Cell;
use core::hint::spin_loop;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

const STACK_SIZE: usize = 512 << 10;
/// How often a waiting worker lets others run before it sleeps.
const YIELDS: u32 = 25;

/// A value on cache lines of its own.
#[repr(align(128))]
struct Line<T>(T);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What one worker has left of a loop, in one word: the loop's number, then start and end.
#[derive(Clone, Copy)]
struct Left {
    phase: u64,
    start: u64,
    end: u64,
}

impl Left {
    const BITS: u32 = 22;
    /// Most claims of one loop; larger loops are claimed in larger pieces.
    const MOST: usize = (1 << Self::BITS) - 1;
    /// Most loops of one run.
    const PHASES: u64 = 1 << (64 - 2 * Self::BITS);

    fn unpack(word: u64) -> Self {
        let mask = (1 << Self::BITS) - 1;
        Left {
            phase: word >> (2 * Self::BITS),
            start: (word >> Self::BITS) & mask,
            end: word & mask,
        }
    }

    fn pack(self) -> u64 {
        (self.phase << (2 * Self::BITS)) | (self.start << Self::BITS) | self.end
    }
}

/// Whether a run goes on, and who is in it.
struct Turn {
    number: u64,
    open: bool,
    closed: bool,
    active: usize,
}

struct Shared {
    count: usize,
    spins: u32,
    /// Set by the worker that fails; ends every loop of the run.
    failed: AtomicBool,
    /// Claims done since the run began, over all its loops.
    done: Line<AtomicU64>,
    /// What each worker has left, [`Left`] packed.
    left: Box<[Line<AtomicU64>]>,
    sleepers: AtomicUsize,
    gate: Mutex<()>,
    opened: Condvar,
    turn: Mutex<Turn>,
    begun: Condvar,
    ended: Condvar,
}

impl Shared {
    /// Returns when `over` holds: spins and yields in turn, then sleeps until [`Shared::wake`].
    fn wait_until(&self, over: impl Fn() -> bool) {
        for _ in 0..YIELDS {
            for _ in 0..self.spins {
                if over() {
                    return;
                }
                spin_loop();
            }
            // The awaited worker may be queued on this very core.
            std::thread::yield_now();
        }
        // Counted before the last look: whoever makes `over` hold after it sees a sleeper, and
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
        // Some forty microseconds. Where threads outnumber cores, spinning keeps the awaited one
        // from running.
        let spins = if count <= cores { 2_000 } else { 50 };
        let shared = Arc::new(Shared {
            count,
            spins,
            failed: AtomicBool::new(false),
            done: Line(AtomicU64::new(0)),
            left: (0..count).map(|_| Line(AtomicU64::new(0))).collect(),
            sleepers: AtomicUsize::new(0),
            gate: Mutex::new(()),
            opened: Condvar::new(),
            turn: Mutex::new(Turn {
                number: 0,
                open: false,
                closed: false,
                active: 0,
            }),
            begun: Condvar::new(),
            ended: Condvar::new(),
        });
        let mut team = Team {
            shared,
            body,
            threads: Vec::with_capacity(count - 1),
        };
        // A thread that has come so far is set up: it needs no more of the system than to wait.
        let (up, coming) = std::sync::mpsc::sync_channel(count);
        for index in 1..count {
            let shared = Arc::clone(&team.shared);
            let body = Arc::clone(&team.body);
            let up = up.clone();
            let thread = std::thread::Builder::new()
                .stack_size(STACK_SIZE)
                .spawn(move || {
                    let _ = up.send(());
                    drop(up);
                    follow(&shared, &*body, index);
                })
                .map_err(|e| Refusal::System {
                    what: "starting a thread",
                    errno: e.raw_os_error().unwrap_or(0),
                })?;
            team.threads.push(thread);
        }
        drop(up);
        coming.iter().for_each(drop);
        Ok(team)
    }

    /// Threads, the caller's own included.
    pub fn count(&self) -> usize {
        self.shared.count
    }

    /// Runs the body and returns when all work is done; whether none failed.
    ///
    /// A thread that has not woken by then takes no part in the run.
    pub fn run(&mut self) -> bool {
        let shared = &*self.shared;
        shared.failed.store(false, Ordering::SeqCst);
        shared.done.0.store(0, Ordering::SeqCst);
        for left in &shared.left {
            left.0.store(0, Ordering::SeqCst);
        }
        if shared.count > 1 {
            let mut turn = lock(&shared.turn);
            turn.number += 1;
            turn.open = true;
            drop(turn);
            shared.begun.notify_all();
        }
        (self.body)(&Worker::new(shared, 0));
        let mut turn = lock(&shared.turn);
        turn.open = false;
        while turn.active > 0 {
            turn = shared
                .ended
                .wait(turn)
                .unwrap_or_else(PoisonError::into_inner);
        }
        drop(turn);
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
            while (turn.number == seen || !turn.open) && !turn.closed {
                turn = shared
                    .begun
                    .wait(turn)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            if turn.closed {
                return;
            }
            seen = turn.number;
            turn.active += 1;
        }
        body(&Worker::new(shared, index));
        let mut turn = lock(&shared.turn);
        turn.active -= 1;
        if turn.active == 0 {
            shared.ended.notify_all();
        }
    }
}

/// One worker of a run; not to be handed to another thread.
pub struct Worker<'a> {
    shared: &'a Shared,
    index: usize,
    /// Loops begun by this worker, and the claims of all of them together.
    phase: Cell<u64>,
    claims: Cell<u64>,
}

impl<'a> Worker<'a> {
    fn new(shared: &'a Shared, index: usize) -> Self {
        Worker {
            shared,
            index,
            phase: Cell::new(0),
            claims: Cell::new(0),
        }
    }

    pub fn index(&self) -> usize {
        self.index
    }

    /// Workers of this run.
    pub fn count(&self) -> usize {
        self.shared.count
    }

    /// Ends the run: every worker's loops end at once.
    pub fn fail(&self) {
        self.shared.failed.store(true, Ordering::SeqCst);
        self.shared.wake();
    }

    pub fn failed(&self) -> bool {
        self.shared.failed.load(Ordering::Relaxed)
    }

    /// Shares the items `0..item_count` among all workers.
    ///
    /// Every worker calls it with the same count, in the same order. Each owns one contiguous
    /// range and takes from its front; a worker that has none left steals from the back of the
    /// fullest other range. When the iteration ends all items are done, by whomever, and what
    /// was written by them can be read. An iteration that is dropped before its end (a worker
    /// returns an error) fails the run, so that nobody waits for it.
    pub fn share(&self, item_count: usize) -> Share<'_> {
        let phase = self.phase.get() + 1;
        self.phase.set(phase);
        if phase >= Left::PHASES {
            // Far beyond what a validated program has; left undone rather than done wrongly.
            self.fail();
        }
        let piece = item_count.div_ceil(Left::MOST).max(1);
        let claim_count = item_count.div_ceil(piece);
        self.claims.set(self.claims.get() + claim_count as u64);
        Share {
            worker: self,
            phase,
            item_count,
            piece,
            claim_count,
            items: 0..0,
            state: State::Idle,
        }
    }
}

enum State {
    /// Nothing claimed.
    Idle,
    /// The items of a claim are being handed out.
    Working,
    Over,
}

/// The items one worker gets; see [`Worker::share`].
pub struct Share<'a> {
    worker: &'a Worker<'a>,
    phase: u64,
    item_count: usize,
    /// Items in a claim.
    piece: usize,
    claim_count: usize,
    items: Range<usize>,
    state: State,
}

impl Share<'_> {
    /// What worker `index` has left of this loop; nothing if the loop is over already.
    fn left(&self, index: usize, word: u64) -> Option<Left> {
        let left = Left::unpack(word);
        if left.phase > self.phase {
            return None;
        }
        if left.phase == self.phase {
            return Some(left);
        }
        // Nobody has touched this range in this loop yet.
        let count = self.worker.shared.count as u64;
        let bound = |i: u64| self.claim_count as u64 * i / count;
        let index = index as u64;
        Some(Left {
            phase: self.phase,
            start: bound(index),
            end: bound(index + 1),
        })
    }

    fn take_own(&self) -> Option<usize> {
        let index = self.worker.index;
        let range = &self.worker.shared.left.get(index)?.0;
        let mut word = range.load(Ordering::Acquire);
        loop {
            let left = self
                .left(index, word)
                .filter(|left| left.start < left.end)?;
            let rest = Left {
                start: left.start + 1,
                ..left
            }
            .pack();
            match range.compare_exchange_weak(word, rest, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(left.start as usize),
                Err(now) => word = now,
            }
        }
    }

    fn steal(&self) -> Option<usize> {
        loop {
            let mut fullest = None;
            let mut most = 0;
            for (index, range) in self.worker.shared.left.iter().enumerate() {
                let word = range.0.load(Ordering::Acquire);
                let left = self.left(index, word)?;
                if left.end.saturating_sub(left.start) > most {
                    most = left.end - left.start;
                    fullest = Some((&range.0, word, left));
                }
            }
            let (range, word, left) = fullest?;
            let rest = Left {
                end: left.end - 1,
                ..left
            }
            .pack();
            if range
                .compare_exchange(word, rest, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
            {
                return Some(left.end as usize - 1);
            }
        }
    }

    /// Counts the claim in hand as done.
    fn finish_claim(&mut self) {
        if matches!(self.state, State::Working) {
            self.state = State::Idle;
            let shared = self.worker.shared;
            let done = shared.done.0.fetch_add(1, Ordering::SeqCst) + 1;
            if done == self.worker.claims.get() {
                shared.wake();
            }
        }
    }
}

impl Iterator for Share<'_> {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        if let Some(item) = self.items.next() {
            return Some(item);
        }
        if matches!(self.state, State::Over) {
            return None;
        }
        self.finish_claim();
        let worker = self.worker;
        if !worker.failed()
            && let Some(claim) = self.take_own().or_else(|| self.steal())
        {
            let start = claim * self.piece;
            self.items = start..(start + self.piece).min(self.item_count);
            self.state = State::Working;
            return self.items.next();
        }
        self.state = State::Over;
        let (shared, claims) = (worker.shared, worker.claims.get());
        shared.wait_until(|| {
            shared.done.0.load(Ordering::SeqCst) >= claims || shared.failed.load(Ordering::SeqCst)
        });
        None
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        if !matches!(self.state, State::Over) {
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
