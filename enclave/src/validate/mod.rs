//! The validator: the only way from a [`Program`] to a [`Valid`] one.
//!
//! It shares nothing with the planner. It walks the program once, with one bit for each place of
//! the pool that says whether it was written in this run, and refuses the first thing that does
//! not hold:
//!
//! 1. every view lies in the regions it may use, and every output keeps clear of itself, of the
//!    inputs and of scratch (`nest`);
//! 2. every shape, type, kernel and chunk fits the others of its instruction (`rules`, `cut`,
//!    `expression`);
//! 3. everything read was written before; every program output is written at the end (here);
//! 4. every rung of the header is what its chunks come to (`ladder`).
//!
//! Only chunks with a fixed place have views, so that the walk holds for every rung.

mod bitmap;
mod cut;
mod expression;
mod ladder;
mod nest;
mod rules;

use crate::program::{Chunk, DType, Instruction, Program, Regions, View};
use crate::refusal::{Fault, Place, Refusal};
use crate::sealed::{Header, Port};
use bitmap::Bitmap;
use core::ops::Deref;
use nest::Nest;

const MAX_INSTRUCTIONS: usize = 1 << 16;
const MAX_CHUNKS: usize = 1 << 20;
const MAX_POOL_SIZE: u64 = 1 << 40;
const MAX_THREADS: u32 = 256;
const ALIGNMENT: u64 = crate::program::ALIGNMENT;
/// Words of bitmap looked at, in all; a large network needs some 10^7.
const MAX_BITMAP_WORK: u128 = 1 << 31;
/// Arithmetic of one run; a large network needs some 2^38.
const MAX_ARITHMETIC: u128 = 1 << 46;

/// What the validator has accepted; nothing else makes one.
pub struct Valid<T>(T);

impl<T> Deref for Valid<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// A fault with the operand it lies in.
type Finding = (&'static str, Fault);

impl Regions {
    /// Where a slot ends, and what all slots share begins.
    fn slot_size(&self) -> u64 {
        self.io_size + self.arena_size
    }

    /// Where the last fixed chunk ends: no view reaches further.
    fn fixed_end(&self) -> u64 {
        self.slot_size() + self.fixed_size
    }
}

/// Checks everything about a program, against its public header as well.
pub fn validate(program: Program, header: &Header) -> Result<Valid<Program>, Refusal> {
    let at = |place| {
        move |(operand, fault)| Refusal::Invalid {
            place,
            operand,
            fault,
        }
    };
    check_regions(&program.regions).map_err(|f| at(Place::Layout)(("", f)))?;
    if program.instructions.len() > MAX_INSTRUCTIONS {
        return Err(at(Place::Layout)(("", Fault::TooManyInstructions)));
    }
    if program.chunks.len() > MAX_CHUNKS {
        return Err(at(Place::Layout)(("", Fault::TooManyChunks)));
    }
    ladder::check(&program, header)?;
    let mut walk = Walk::new(&program)?;
    walk.chunks()?;
    walk.inputs(&header.inputs)?;
    for (index, instruction) in program.instructions.iter().enumerate() {
        let place = Place::Instruction(index, rules::mnemonic(instruction));
        walk.instruction(instruction).map_err(at(place))?;
    }
    walk.outputs(&header.outputs)?;
    let used = walk.used.iter().zip(&program.chunks);
    for (index, (used, chunk)) in used.enumerate() {
        if !used && chunk.fixed_offset.is_none() {
            return Err(at(Place::Chunk(index))(("", Fault::ChunkUnused)));
        }
    }
    Ok(Valid(program))
}

fn check_regions(regions: &Regions) -> Result<(), Fault> {
    let sizes = [regions.io_size, regions.arena_size, regions.fixed_size];
    if sizes.iter().any(|size| !size.is_multiple_of(ALIGNMENT)) {
        return Err(Fault::SizeNotAligned);
    }
    if regions.thread_count == 0 || regions.thread_count > MAX_THREADS {
        return Err(Fault::ThreadCount);
    }
    // Each at most 2^40, so no sum of them overflows.
    if sizes.iter().any(|&size| size > MAX_POOL_SIZE) || regions.fixed_end() > MAX_POOL_SIZE {
        return Err(Fault::PoolTooLarge);
    }
    Ok(())
}

/// The walk over a program, with what it has found written so far.
struct Walk<'p> {
    program: &'p Program,
    regions: Regions,
    written: Bitmap,
    /// All clear between uses.
    marked: Bitmap,
    work_left: u128,
    arithmetic_left: u128,
    /// By chunk: whether an instruction reads it.
    used: Vec<bool>,
}

impl<'p> Walk<'p> {
    fn new(program: &'p Program) -> Result<Self, Refusal> {
        let regions = program.regions;
        let bytewise = all_views(program).any(|v| v.dtype.size() < 4);
        let granule = if bytewise { 1 } else { 4 };
        Ok(Walk {
            program,
            regions,
            written: Bitmap::new(regions.fixed_end(), granule)?,
            marked: Bitmap::new(regions.fixed_end(), granule)?,
            work_left: MAX_BITMAP_WORK,
            arithmetic_left: MAX_ARITHMETIC,
            used: vec![false; program.chunks.len()],
        })
    }

    /// Sizes and places of chunks; fixed ones count as written.
    fn chunks(&mut self) -> Result<(), Refusal> {
        for (index, chunk) in self.program.chunks.iter().enumerate() {
            self.chunk(chunk).map_err(|fault| Refusal::Invalid {
                place: Place::Chunk(index),
                operand: "",
                fault,
            })?;
        }
        Ok(())
    }

    fn chunk(&mut self, chunk: &Chunk) -> Result<(), Fault> {
        if chunk.size == 0 || !chunk.size.is_multiple_of(ALIGNMENT) || chunk.size > MAX_POOL_SIZE {
            return Err(Fault::ChunkSize);
        }
        let Some(offset) = chunk.fixed_offset else {
            return Ok(());
        };
        let end = offset.checked_add(chunk.size).ok_or(Fault::Overflow)?;
        if !offset.is_multiple_of(ALIGNMENT)
            || offset < self.regions.slot_size()
            || end > self.regions.fixed_end()
        {
            return Err(Fault::ResidentPlace);
        }
        let place = Nest::run(offset, chunk.size);
        self.charge(&place)?;
        if place.any(&self.written) {
            return Err(Fault::ResidentOverlap);
        }
        place.set(&mut self.written);
        Ok(())
    }

    fn inputs(&mut self, ports: &[Port]) -> Result<(), Refusal> {
        self.check_port_count(ports.len(), self.program.inputs.len())?;
        for (index, (view, port)) in self.program.inputs.iter().zip(ports).enumerate() {
            let refuse = |fault| Refusal::Invalid {
                place: Place::Input(index),
                operand: "",
                fault,
            };
            let nest = self.port(view, port).map_err(refuse)?;
            if nest.any(&self.written) {
                return Err(refuse(Fault::InputsOverlap));
            }
            nest.set(&mut self.written);
        }
        Ok(())
    }

    fn outputs(&mut self, ports: &[Port]) -> Result<(), Refusal> {
        self.check_port_count(ports.len(), self.program.outputs.len())?;
        for (index, (view, port)) in self.program.outputs.iter().zip(ports).enumerate() {
            let refuse = |fault| Refusal::Invalid {
                place: Place::Output(index),
                operand: "",
                fault,
            };
            let nest = self.port(view, port).map_err(refuse)?;
            if !nest.all(&self.written) {
                return Err(refuse(Fault::OutputNotWritten));
            }
        }
        Ok(())
    }

    fn check_port_count(&self, header: usize, program: usize) -> Result<(), Refusal> {
        if header == program {
            return Ok(());
        }
        Err(Refusal::Invalid {
            place: Place::Layout,
            operand: "",
            fault: Fault::HeaderDisagrees,
        })
    }

    /// A program input or output: dense, in the I/O region, as the header says.
    fn port(&mut self, view: &View, port: &Port) -> Result<Nest, Fault> {
        let nest = Nest::of(view, self.regions.io_size)?;
        if !nest::is_dense(view) {
            return Err(Fault::NotDense);
        }
        if view.dtype != port.dtype || view.shape != port.shape {
            return Err(Fault::HeaderDisagrees);
        }
        self.charge(&nest)?;
        Ok(nest)
    }

    fn instruction(&mut self, instruction: &Instruction) -> Result<(), Finding> {
        let operands = rules::operands(instruction);
        for &(name, view) in &operands.reads {
            self.readable(view).map_err(|f| (name, f))?;
        }
        let output = self.writable(operands.output).map_err(|f| ("output", f))?;
        let scratch = match operands.scratch {
            Some(view) => Some(self.writable(view).map_err(|f| ("workspace", f))?),
            None => None,
        };
        let arithmetic = rules::check(instruction, &self.regions)?;
        self.arithmetic_left = self
            .arithmetic_left
            .checked_sub(arithmetic)
            .ok_or(("", Fault::TooMuchWork))?;
        cut::check(instruction, self.program, &mut self.used)?;

        let mut reads = Vec::with_capacity(operands.reads.len());
        for &(name, view) in &operands.reads {
            let nest = self.readable(view).map_err(|f| (name, f))?;
            self.charge(&nest).map_err(|f| (name, f))?;
            if !nest.all(&self.written) {
                return Err((name, Fault::ReadBeforeWritten));
            }
            // In place, where the instruction allows it, is the one overlap there may be.
            let in_place =
                rules::may_write_in_place(instruction, name) && nest::same(view, operands.output);
            reads.push((name, nest, in_place));
        }
        self.charge(&output).map_err(|f| ("output", f))?;
        for (name, nest, in_place) in &reads {
            if !in_place && self.overlap(&output, nest).map_err(|f| (*name, f))? {
                return Err((name, Fault::OutputOverlapsInput));
            }
        }
        if let Some(scratch) = &scratch {
            self.charge(scratch).map_err(|f| ("workspace", f))?;
            for (_, nest, _) in &reads {
                if self.overlap(scratch, nest).map_err(|f| ("workspace", f))? {
                    return Err(("workspace", Fault::ScratchOverlap));
                }
            }
            if self
                .overlap(scratch, &output)
                .map_err(|f| ("workspace", f))?
            {
                return Err(("workspace", Fault::ScratchOverlap));
            }
            scratch.clear(&mut self.written);
        }
        output.set(&mut self.written);
        Ok(())
    }

    /// A view that an instruction reads: in the I/O region, the arena or the fixed chunks, not
    /// partly in a slot and partly in what all slots share.
    fn readable(&self, view: &View) -> Result<Nest, Fault> {
        let nest = Nest::of(view, self.regions.fixed_end())?;
        if nest.straddles(self.regions.slot_size()) {
            return Err(Fault::OutsideRegion);
        }
        Ok(nest)
    }

    /// A view that an instruction writes: in the I/O region or the arena, clear of itself.
    fn writable(&self, view: &View) -> Result<Nest, Fault> {
        let nest = Nest::of(view, self.regions.slot_size())?;
        nest::check_written(view)?;
        Ok(nest)
    }

    /// Whether two nests share a place.
    fn overlap(&mut self, a: &Nest, b: &Nest) -> Result<bool, Fault> {
        if a.end() <= b.start() || b.end() <= a.start() {
            return Ok(false);
        }
        self.charge(a)?;
        self.charge(a)?;
        self.charge(b)?;
        a.set(&mut self.marked);
        let any = b.any(&self.marked);
        a.clear(&mut self.marked);
        Ok(any)
    }

    fn charge(&mut self, nest: &Nest) -> Result<(), Fault> {
        self.work_left = self
            .work_left
            .checked_sub(nest.work())
            .ok_or(Fault::TooMuchWork)?;
        Ok(())
    }
}

fn all_views(program: &Program) -> impl Iterator<Item = &View> {
    let of_instructions = program.instructions.iter().flat_map(|instruction| {
        let operands = rules::operands(instruction);
        let reads: Vec<&View> = operands.reads.iter().map(|&(_, view)| view).collect();
        reads
            .into_iter()
            .chain([operands.output])
            .chain(operands.scratch)
    });
    program
        .inputs
        .iter()
        .chain(&program.outputs)
        .chain(of_instructions)
}

/// Elements of a view whose shape was checked.
fn count(view: &View) -> u128 {
    view.shape
        .iter()
        .map(|&d| u128::from(d))
        .fold(1, u128::saturating_mul)
}

fn expect_type(view: &View, dtype: DType, name: &'static str) -> Result<(), Finding> {
    if view.dtype == dtype {
        Ok(())
    } else {
        Err((name, Fault::Type))
    }
}

#[cfg(test)]
mod tests;
