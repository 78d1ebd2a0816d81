//! What the workers of a machine share, and one worker's part of a run.

use super::wipe;
use crate::kernels::{self, Isa};
use crate::layout::Placed;
use crate::pool::Pool;
use crate::program::Instruction;
use crate::refusal::Refusal;
use crate::sealed::Parameters;
use crate::slots::{Batch, Slots};
use crate::stream::Stream;
use crate::team::Worker;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::hint;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// More of a worker's stack than any kernel takes, and half of it all: `map` keeps 128 KiB there.
const SCRUBBED_SIZE: usize = 256 << 10;
/// Bytes that a worker zeros at a time after a run.
const WIPED_SIZE: u64 = 256 << 10;

/// What a kernel works with; each worker has its own.
pub struct Context<'a> {
    pub pool: &'a Pool,
    pub batch: &'a Batch<'a>,
    pub worker: &'a Worker<'a>,
    pub stream: &'a mut Stream<'a>,
    pub isa: Isa,
}

/// What all workers share.
pub struct Engine {
    pub pool: Pool,
    pub slots: Slots,
    pub program: Placed,
    pub isa: Isa,
    parameters: Parameters,
    timed: AtomicBool,
    loaded: Instant,
    /// When the last timed run began, and when each of its instructions was over, as the first
    /// worker to go on from it saw; nanoseconds since `loaded`.
    began: AtomicU64,
    ends: Vec<AtomicU64>,
    /// Why the run failed: the first reason given.
    refusal: Mutex<Option<Refusal>>,
    /// Whether the test that counts allocations watches this engine's workers.
    #[cfg(test)]
    pub watched: AtomicBool,
}

impl Engine {
    pub fn new(
        pool: Pool,
        slots: Slots,
        program: Placed,
        parameters: Parameters,
        isa: Isa,
    ) -> Self {
        let ends = program.instructions.iter().map(|_| AtomicU64::new(0));
        let ends = ends.collect();
        Engine {
            pool,
            slots,
            program,
            isa,
            parameters,
            timed: AtomicBool::new(false),
            loaded: Instant::now(),
            began: AtomicU64::new(0),
            ends,
            refusal: Mutex::new(None),
            #[cfg(test)]
            watched: AtomicBool::new(false),
        }
    }

    /// Before a run of the slots whose bits are set in `used`; no other is in progress.
    pub fn begin(&self, used: u64, timed: bool) {
        self.slots.begin(used);
        self.timed.store(timed, Ordering::Relaxed);
        if timed {
            self.began.store(self.now(), Ordering::Relaxed);
            for end in &self.ends {
                end.store(u64::MAX, Ordering::Relaxed);
            }
        }
    }

    /// One worker's part of a run; nothing of what it computed is left on its stack.
    pub fn work(&self, worker: &Worker<'_>) {
        self.run(worker);
        scrub_stack();
    }

    /// After a run that failed: why.
    pub fn take_refusal(&self) -> Refusal {
        self.refusal
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
            .unwrap_or(Refusal::Abandoned)
    }

    /// Nanoseconds each instruction of the last timed run took.
    pub fn times(&self) -> impl Iterator<Item = u64> {
        let mut last = self.began.load(Ordering::Relaxed);
        self.ends.iter().map(move |end| {
            let end = end.load(Ordering::Relaxed);
            let time = end.saturating_sub(last);
            last = end;
            time
        })
    }

    fn refuse(&self, refusal: Refusal) {
        self.refusal
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(refusal);
    }

    /// Every instruction in order; each ends when all its work is done.
    fn run(&self, worker: &Worker<'_>) {
        #[cfg(test)]
        if self.watched.load(Ordering::Relaxed) {
            super::tests::watch();
        }
        let mut stream = Stream::new(&self.pool, &self.program, &self.parameters, worker.index());
        let batch = self.slots.batch(&self.pool);
        let mut cx = Context {
            pool: &self.pool,
            batch: &batch,
            worker,
            stream: &mut stream,
            isa: self.isa,
        };
        let timed = self.timed.load(Ordering::Relaxed);
        for (instruction, end) in self.program.instructions.iter().zip(&self.ends) {
            if let Err(refusal) = dispatch(instruction, &mut cx) {
                self.refuse(refusal);
                worker.fail();
                return;
            }
            if worker.failed() {
                return;
            }
            if timed {
                end.fetch_min(self.now(), Ordering::Relaxed);
            }
        }
        self.wipe_arenas(worker, &batch);
    }

    /// Zeros what the run computed between its inputs and its outputs: from its end to its start,
    /// where the next run begins, so that a paged arena is not swapped once more for it.
    #[allow(unsafe_code)]
    fn wipe_arenas(&self, worker: &Worker<'_>, batch: &Batch<'_>) {
        let layout = &self.program.layout;
        let pieces = layout.arena_size.div_ceil(WIPED_SIZE);
        for item in worker.share(batch.count() * pieces as usize) {
            let (slot, piece) = (item as u64 / pieces, item as u64 % pieces);
            let start = (pieces - 1 - piece) * WIPED_SIZE;
            let size = WIPED_SIZE.min(layout.arena_size - start);
            let offset = layout.io_size + start + batch.shift(slot as usize) as u64;
            // SAFETY: the piece lies in the arena of a slot of the run, whose instructions are
            // all done, and is this worker's alone.
            wipe(unsafe { self.pool.bytes_mut(offset, size) });
        }
    }

    /// Nanoseconds since the machine was loaded.
    fn now(&self) -> u64 {
        self.loaded.elapsed().as_nanos() as u64
    }
}

fn dispatch(instruction: &Instruction, cx: &mut Context) -> Result<(), Refusal> {
    match instruction {
        Instruction::Load(i) => kernels::load::run(i, cx),
        Instruction::Conv(i) => kernels::conv::run(i, cx),
        Instruction::Winograd(i) => kernels::winograd::run(i, cx),
        Instruction::Depthwise(i) => kernels::depthwise::run(i, cx),
        Instruction::MatMul(i) => kernels::matmul::run(i, cx),
        Instruction::Pool(i) => kernels::pool::run(i, cx),
        Instruction::Map(i) => kernels::map::run(i, cx),
        Instruction::Reduce(i) => kernels::reduce::run(i, cx),
        Instruction::Copy(i) => kernels::copy::run(i, cx),
        Instruction::Gather(i) => kernels::gather::run(i, cx),
    }
}

/// Zeros the stack beyond the caller's, where kernels have left pieces of what they computed.
#[inline(never)]
fn scrub_stack() {
    hint::black_box(&mut [0u8; SCRUBBED_SIZE]);
}
