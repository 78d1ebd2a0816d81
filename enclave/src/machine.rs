//! The machine: a validated program with its pool and its threads, ready to run.

use crate::kernels::{self, Isa};
use crate::pool::{MapMemory, Pool, anonymous};
use crate::program::{ALIGNMENT, Instruction, Layout, Program, View};
use crate::refusal::Refusal;
use crate::sealed::Parameters;
use crate::stream::Stream;
use crate::team::{Team, Worker};
use crate::validate::Valid;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::hint;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// More of a worker's stack than any kernel takes, and half of it all: `map` keeps 128 KiB there.
const SCRUBBED_SIZE: usize = 256 << 10;

/// What a kernel works with; each worker has its own.
pub struct Context<'a> {
    pub pool: &'a Pool,
    pub worker: &'a Worker<'a>,
    pub stream: &'a mut Stream<'a>,
    pub isa: Isa,
}

/// What all workers share.
struct Engine {
    pool: Pool,
    program: Valid<Program>,
    parameters: Parameters,
    isa: Isa,
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
    watched: AtomicBool,
}

impl Engine {
    fn refuse(&self, refusal: Refusal) {
        self.refusal
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(refusal);
    }

    /// One worker's part of a run: every instruction in order; each ends when all its work is done.
    fn work(&self, worker: &Worker<'_>) {
        #[cfg(test)]
        if self.watched.load(Ordering::Relaxed) {
            tests::watch();
        }
        let mut stream = Stream::new(&self.pool, &self.program, &self.parameters, worker.index());
        let mut cx = Context {
            pool: &self.pool,
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

/// A loaded model.
pub struct Machine {
    engine: Arc<Engine>,
    team: Team,
    message: Message,
}

/// Memory for one message at a time: in the arena, which is nobody's between runs, or if the arena
/// is too small for it, of its own.
struct Message {
    own: Option<Pool>,
    offset: u64,
    size: u64,
}

impl Message {
    fn new(layout: &Layout, size: u64) -> Result<Self, Refusal> {
        if size <= layout.arena_size {
            return Ok(Message {
                own: None,
                offset: layout.io_size,
                size,
            });
        }
        Ok(Message {
            own: Some(Pool::new(size, &anonymous)?),
            offset: 0,
            size,
        })
    }

    /// # Safety
    /// No run is in progress, and until the slice is dropped there is no other.
    #[allow(unsafe_code, clippy::mut_from_ref)]
    unsafe fn bytes_mut<'a>(&'a self, pool: &'a Pool) -> &'a mut [u8] {
        let pool = self.own.as_ref().unwrap_or(pool);
        // SAFETY: nothing but a run uses the arena; memory of its own, nobody else.
        unsafe { pool.bytes_mut(self.offset, self.size) }
    }
}

impl Machine {
    /// Maps the pool, decrypts the resident chunks and starts the threads; after it nothing is
    /// allocated. `thread_count` is at most the plan's.
    ///
    /// There is room for messages of `message_size` bytes.
    pub fn load(
        program: Valid<Program>,
        parameters: Parameters,
        isa: Isa,
        thread_count: usize,
        message_size: u64,
        map: MapMemory,
    ) -> Result<Self, Refusal> {
        let message = Message::new(&program.layout, message_size)?;
        let pool = Pool::new(program.layout.size(), map)?;
        load_resident(&pool, &program, &parameters)?;
        let ends = program
            .instructions
            .iter()
            .map(|_| AtomicU64::new(0))
            .collect();
        let thread_count = thread_count.clamp(1, program.layout.thread_count as usize);
        let engine = Arc::new(Engine {
            pool,
            program,
            parameters,
            isa,
            timed: AtomicBool::new(false),
            loaded: Instant::now(),
            began: AtomicU64::new(0),
            ends,
            refusal: Mutex::new(None),
            #[cfg(test)]
            watched: AtomicBool::new(false),
        });
        let worker_engine = Arc::clone(&engine);
        let team = Team::start(
            thread_count,
            Arc::new(move |w: &Worker| {
                worker_engine.work(w);
                scrub_stack();
            }),
        )?;
        Ok(Machine {
            engine,
            team,
            message,
        })
    }

    pub fn thread_count(&self) -> usize {
        self.team.count()
    }

    pub fn isa(&self) -> Isa {
        self.engine.isa
    }

    pub fn pool_size(&self) -> u64 {
        self.engine.pool.size()
    }

    pub fn instruction_count(&self) -> usize {
        self.engine.program.instructions.len()
    }

    /// Memory for one message. A run destroys what it holds.
    #[allow(unsafe_code)]
    pub fn message(&mut self) -> &mut [u8] {
        // SAFETY: no run is in progress while the machine is borrowed exclusively.
        unsafe { self.message.bytes_mut(&self.engine.pool) }
    }

    /// Copies all inputs into their places from the message, where the first begins at `at`; each
    /// is padded to a multiple of 64.
    pub fn read_inputs(&mut self, at: usize) {
        self.copy(Way::In, at);
    }

    /// Copies all outputs to the message, the first to `at`, each to a multiple of 64 after it.
    pub fn write_outputs(&mut self, at: usize) {
        self.copy(Way::Out, at);
    }

    /// Zeros the places of all inputs and outputs. What the run computed between them stays until
    /// another run overwrites it, or the process ends.
    pub fn wipe(&mut self) {
        self.copy(Way::Wipe, 0);
    }

    #[allow(unsafe_code)]
    fn copy(&mut self, way: Way, mut at: usize) {
        let program = &self.engine.program;
        let (inputs, outputs) = (&program.inputs, &program.outputs);
        let views = match way {
            Way::In => inputs.iter().chain(&[]),
            Way::Out => outputs.iter().chain(&[]),
            Way::Wipe => inputs.iter().chain(outputs),
        };
        for view in views {
            let size = size_of_view(view);
            let pool = &self.engine.pool;
            // SAFETY: no run is in progress while the machine is borrowed exclusively. Validated:
            // inputs and outputs lie inside the I/O region, the message outside of it.
            let (place, message) = unsafe {
                (
                    pool.bytes_mut(view.offset, size),
                    self.message.bytes_mut(pool),
                )
            };
            let end = at.saturating_add(place.len());
            match way {
                Way::In => place.copy_from_slice(message.get(at..end).unwrap_or_default()),
                Way::Out => message
                    .get_mut(at..end)
                    .unwrap_or_default()
                    .copy_from_slice(place),
                Way::Wipe => wipe(place),
            }
            at = end.next_multiple_of(ALIGNMENT as usize);
        }
    }

    /// Runs the program on the inputs read.
    pub fn run(&mut self, timed: bool) -> Result<(), Refusal> {
        self.engine.timed.store(timed, Ordering::Relaxed);
        if timed {
            self.engine
                .began
                .store(self.engine.now(), Ordering::Relaxed);
            for end in &self.engine.ends {
                end.store(u64::MAX, Ordering::Relaxed);
            }
        }
        if self.team.run() {
            return Ok(());
        }
        let refusal = self
            .engine
            .refusal
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        Err(refusal.unwrap_or(Refusal::Abandoned))
    }

    /// Nanoseconds each instruction of the last timed run took.
    pub fn times(&self) -> impl Iterator<Item = u64> {
        let mut last = self.engine.began.load(Ordering::Relaxed);
        self.engine.ends.iter().map(move |end| {
            let end = end.load(Ordering::Relaxed);
            let time = end.saturating_sub(last);
            last = end;
            time
        })
    }
}

/// What [`Machine::copy`] does with each place.
#[derive(Clone, Copy)]
enum Way {
    In,
    Out,
    Wipe,
}

/// Zeros memory, whether or not it is read again.
pub fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    hint::black_box(bytes);
}

/// Zeros the stack beyond the caller's, where kernels have left pieces of what they computed.
#[inline(never)]
fn scrub_stack() {
    hint::black_box(&mut [0u8; SCRUBBED_SIZE]);
}

/// Bytes of a dense, validated view.
fn size_of_view(view: &View) -> u64 {
    view.shape.iter().map(|&d| u64::from(d)).product::<u64>() * view.dtype.size()
}

/// Decrypts the resident chunks into their places.
#[allow(unsafe_code)]
fn load_resident(
    pool: &Pool,
    program: &Valid<Program>,
    parameters: &Parameters,
) -> Result<(), Refusal> {
    for (index, chunk) in (0u32..).zip(&program.chunks) {
        if let Some(offset) = chunk.resident_offset {
            // SAFETY: nothing else uses the pool before the threads are started.
            let place = unsafe { pool.bytes_mut(offset, chunk.size) };
            parameters.open(index, place)?;
        }
    }
    Ok(())
}

#[cfg(test)]
pub mod tests;
