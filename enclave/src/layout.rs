//! Where everything lies in a pool of one slot: a valid program at a rung of its ladder, for a
//! number of threads.
//!
//! In this order: the slot (I/O and arena), the resident region (fixed chunks, then as many of
//! the optional ones as the rung keeps), a staging buffer for each thread.

use crate::program::{Program, Regions, Rung};
use crate::refusal::Refusal;
use crate::sealed::Header;
use crate::validate::Valid;
use core::ops::Deref;

/// What a host asks for when it starts an environment; `None` is the model's own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shape {
    pub rung: Option<usize>,
    pub threads: Option<u32>,
}

/// Sizes of the pool's regions; `staging_size` is one thread's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub io_size: u64,
    pub arena_size: u64,
    pub resident_size: u64,
    pub staging_size: u64,
    pub thread_count: u32,
}

impl Layout {
    fn new(regions: &Regions, rung: &Rung, thread_count: u32) -> Self {
        Layout {
            io_size: regions.io_size,
            arena_size: regions.arena_size,
            resident_size: rung.resident_size,
            staging_size: rung.staging_size,
            thread_count,
        }
    }

    // No sum overflows: validated, each size is at most 2^40, and counts are small.

    pub fn resident_offset(&self) -> u64 {
        self.io_size + self.arena_size
    }

    pub fn staging_offset(&self) -> u64 {
        self.resident_offset() + self.resident_size
    }

    /// The whole pool.
    pub fn size(&self) -> u64 {
        self.staging_offset() + self.staging_size * u64::from(self.thread_count)
    }
}

/// A valid program with its layout.
pub struct Placed {
    program: Valid<Program>,
    pub layout: Layout,
    /// By chunk: where it is resident.
    resident: Vec<Option<u64>>,
}

impl Placed {
    /// Lays out a program that was validated with this header.
    pub fn new(program: Valid<Program>, header: &Header, shape: Shape) -> Result<Self, Refusal> {
        let number = shape.rung.unwrap_or(header.rung as usize);
        let rung = header.rungs.get(number).ok_or(Refusal::Rung {
            count: header.rungs.len(),
        })?;
        let most = program.regions.thread_count;
        let thread_count = shape.threads.unwrap_or(most).clamp(1, most);
        let layout = Layout::new(&program.regions, rung, thread_count);
        let mut resident: Vec<_> = program.chunks.iter().map(|c| c.fixed_offset).collect();
        let mut at = layout.resident_offset() + program.regions.fixed_size;
        for &index in program.order.iter().take(rung.resident_count as usize) {
            let index = index as usize;
            if let (Some(place), Some(chunk)) = (resident.get_mut(index), program.chunks.get(index))
            {
                *place = Some(at);
                at += chunk.size;
            }
        }
        Ok(Placed {
            program,
            layout,
            resident,
        })
    }

    /// Where chunk `index` is resident; `None` for one that streams.
    pub fn resident_offset(&self, index: u32) -> Option<u64> {
        self.resident.get(index as usize).copied().flatten()
    }
}

impl Deref for Placed {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.program
    }
}

#[cfg(test)]
pub mod tests;
