//! The machine: a validated program with its pool and its threads, ready to run.

mod engine;

use crate::kernels::Isa;
use crate::layout::Placed;
use crate::pool::{MapMemory, Pool, anonymous};
use crate::program::{ALIGNMENT, View};
use crate::refusal::Refusal;
use crate::sealed::Parameters;
use crate::slots::Slots;
use crate::team::{Team, Worker};
pub use engine::Context;
use engine::Engine;
use std::hint;
use std::sync::Arc;

/// A loaded model.
pub struct Machine {
    engine: Arc<Engine>,
    team: Team,
    messages: Messages,
}

/// Memory for one message of each slot at a time: in its arena, which is nobody's between runs,
/// or if the arena is too small for it, beside the pool.
struct Messages {
    beside: Option<Pool>,
    size: u64,
}

impl Messages {
    fn new(program: &Placed, slot_count: usize, size: u64) -> Result<Self, Refusal> {
        let beside = if size <= program.layout.arena_size {
            None
        } else {
            let size = size.saturating_mul(slot_count as u64);
            Some(Pool::new(size, &anonymous)?)
        };
        Ok(Messages { beside, size })
    }

    /// The memory of a slot; empty if there is no such slot.
    ///
    /// # Safety
    /// No run is in progress, and until the slice is dropped there is no other.
    #[allow(unsafe_code, clippy::mut_from_ref)]
    unsafe fn bytes_mut<'a>(&'a self, engine: &'a Engine, slot: usize) -> &'a mut [u8] {
        if slot >= engine.slots.count() {
            return &mut [];
        }
        // SAFETY: nothing but a run uses an arena; what lies beside the pool, nobody else.
        unsafe {
            match &self.beside {
                Some(beside) => beside.bytes_mut(self.size * slot as u64, self.size),
                None => {
                    let arena = engine.slots.offset(slot) + engine.program.layout.io_size;
                    engine.pool.bytes_mut(arena, self.size)
                }
            }
        }
    }
}

impl Machine {
    /// Maps the pool, decrypts the resident chunks and starts the threads; after it nothing is
    /// allocated.
    ///
    /// Each slot has room for a message of `message_size` bytes.
    pub fn load(
        program: Placed,
        parameters: Parameters,
        isa: Isa,
        slot_count: usize,
        message_size: u64,
        map: MapMemory,
    ) -> Result<Self, Refusal> {
        let slots = Slots::new(&program.layout, slot_count);
        let messages = Messages::new(&program, slots.count(), message_size)?;
        let pool = Pool::new(slots.pool_size()?, map)?;
        load_resident(&pool, &program, &parameters)?;
        let thread_count = program.layout.thread_count as usize;
        let engine = Arc::new(Engine::new(pool, slots, program, parameters, isa));
        let worker_engine = Arc::clone(&engine);
        let team = Team::start(
            thread_count,
            Arc::new(move |w: &Worker| worker_engine.work(w)),
        )?;
        Ok(Machine {
            engine,
            team,
            messages,
        })
    }

    pub fn thread_count(&self) -> usize {
        self.team.count()
    }

    pub fn slot_count(&self) -> usize {
        self.engine.slots.count()
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

    /// Memory for a message of one slot. A run of the slot destroys what it holds.
    #[allow(unsafe_code)]
    pub fn message(&mut self, slot: usize) -> &mut [u8] {
        // SAFETY: no run is in progress while the machine is borrowed exclusively.
        unsafe { self.messages.bytes_mut(&self.engine, slot) }
    }

    /// Copies all inputs into their places in a slot from its message, where the first begins at
    /// `at`; each is padded to a multiple of 64.
    pub fn read_inputs(&mut self, slot: usize, at: usize) {
        self.copy(Way::In, slot, at);
    }

    /// Copies all outputs of a slot to its message, the first to `at`, each to a multiple of 64
    /// after it.
    pub fn write_outputs(&mut self, slot: usize, at: usize) {
        self.copy(Way::Out, slot, at);
    }

    #[allow(unsafe_code)]
    fn copy(&mut self, way: Way, slot: usize, mut at: usize) {
        let Engine {
            pool,
            slots,
            program,
            ..
        } = &*self.engine;
        if slot >= slots.count() {
            return;
        }
        let views = match way {
            Way::In => &program.inputs,
            Way::Out => &program.outputs,
        };
        for view in views {
            let offset = slots.offset(slot) + view.offset;
            // SAFETY: no run is in progress while the machine is borrowed exclusively. Validated:
            // inputs and outputs lie inside the I/O region, the message outside of it.
            let (place, message) = unsafe {
                (
                    pool.bytes_mut(offset, size_of_view(view)),
                    self.messages.bytes_mut(&self.engine, slot),
                )
            };
            let end = at.saturating_add(place.len());
            match way {
                Way::In => place.copy_from_slice(message.get(at..end).unwrap_or_default()),
                Way::Out => message
                    .get_mut(at..end)
                    .unwrap_or_default()
                    .copy_from_slice(place),
            }
            at = end.next_multiple_of(ALIGNMENT as usize);
        }
    }

    /// Zeros the I/O region of a slot: with its arena, which is zero after a run, all that held
    /// anything of a request.
    #[allow(unsafe_code)]
    pub fn wipe(&mut self, slot: usize) {
        let Engine {
            pool,
            slots,
            program,
            ..
        } = &*self.engine;
        if slot < slots.count() {
            // SAFETY: no run is in progress while the machine is borrowed exclusively.
            wipe(unsafe { pool.bytes_mut(slots.offset(slot), program.layout.io_size) });
        }
    }

    /// Runs the program on the inputs read into the slots whose bits are set in `used`. If it
    /// fails, it does so for all of them, and leaves in them what it had computed.
    pub fn run(&mut self, used: u64, timed: bool) -> Result<(), Refusal> {
        self.engine.begin(used, timed);
        if self.team.run() {
            return Ok(());
        }
        Err(self.engine.take_refusal())
    }

    /// The length of the dimension outside of which an index of this slot lay in the last run,
    /// whose outputs then mean nothing.
    pub fn wrong_index(&self, slot: usize) -> Option<u64> {
        self.engine.slots.wrong_index(slot)
    }

    /// Nanoseconds each instruction of the last timed run took.
    pub fn times(&self) -> impl Iterator<Item = u64> {
        self.engine.times()
    }
}

/// What [`Machine::copy`] does with each place.
#[derive(Clone, Copy)]
enum Way {
    In,
    Out,
}

/// Zeros memory, whether or not it is read again.
pub fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    hint::black_box(bytes);
}

/// Bytes of a dense, validated view.
fn size_of_view(view: &View) -> u64 {
    view.shape.iter().map(|&d| u64::from(d)).product::<u64>() * view.dtype.size()
}

/// Decrypts the resident chunks into their places.
#[allow(unsafe_code)]
fn load_resident(pool: &Pool, program: &Placed, parameters: &Parameters) -> Result<(), Refusal> {
    for (index, chunk) in (0u32..).zip(&program.chunks) {
        if let Some(offset) = program.resident_offset(index) {
            // SAFETY: nothing else uses the pool before the threads are started.
            let place = unsafe { pool.bytes_mut(offset, chunk.size) };
            parameters.open(index, place)?;
        }
    }
    Ok(())
}

#[cfg(test)]
pub mod tests;
