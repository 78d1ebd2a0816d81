//! `copy`: moves elements between views of one shape and type.

use super::strided::{Loops, pairs};
use crate::machine::Context;
use crate::program::Copy as CopyInstruction;
use crate::refusal::Refusal;

/// Elements that one item of shared work moves, about.
const GRAIN: usize = 8192;
/// Elements of a transposed tile's side.
const TILE: usize = 16;
/// Elements of a dimension below which it is not worth walking along.
const SHORT: usize = 8;

pub fn run(copy: &CopyInstruction, cx: &mut Context) -> Result<(), Refusal> {
    let loops = Loops::sorted(pairs(&copy.input, &copy.output), 1);
    match copy.input.dtype.size() {
        1 => elements::<u8>(copy, &loops, cx),
        4 => elements::<u32>(copy, &loops, cx),
        _ => elements::<u64>(copy, &loops, cx),
    }
    Ok(())
}

fn elements<T: Copy>(copy: &CopyInstruction, loops: &Loops<2>, cx: &Context) {
    let (length, strides) = loops.inner();
    // The dimension along which the input is contiguous, if the innermost is not that. One that
    // is shorter than a few elements is not worth a tile.
    let turned = (0..loops.rank() - 1).find(|&i| {
        let (across, steps) = loops.dim(i);
        steps[0] == 1 && across >= SHORT
    });
    match turned {
        Some(dim) if strides[0] != 1 => transposed::<T>(copy, loops, dim, cx),
        _ => rows::<T>(copy, loops, length, strides, cx),
    }
}

/// Where both sides begin in slot `slot` of the run.
fn sides<T>(copy: &CopyInstruction, slot: usize, cx: &Context) -> (*const T, *mut T) {
    (
        cx.batch.at(copy.input.offset, slot).cast_const().cast(),
        cx.batch.at(copy.output.offset, slot).cast(),
    )
}

fn rows<T: Copy>(
    copy: &CopyInstruction,
    loops: &Loops<2>,
    length: usize,
    strides: [isize; 2],
    cx: &Context,
) {
    let outer = loops.outer_count();
    // A long row is several items, or several short rows are one.
    let parts = length.div_ceil(GRAIN);
    let group = (GRAIN / length).max(1);
    let item_count = outer.div_ceil(group) * parts;
    for item in cx.worker.share(cx.batch.count() * item_count) {
        let (input, output) = sides::<T>(copy, item / item_count, cx);
        let item = item % item_count;
        let part = super::split(&(0..length), parts, item % parts);
        let first = item / parts * group;
        loops.each_row(first..(first + group).min(outer), |[from, to]| {
            let start = part.start as isize;
            // SAFETY: the validator has checked every element of both views to lie in the pool
            // and the views not to overlap; this part of a row is this worker's alone.
            unsafe {
                copy_row(
                    input.offset(from + start * strides[0]),
                    output.offset(to + start * strides[1]),
                    part.len(),
                    strides,
                );
            }
        });
    }
}

/// # Safety
/// `count` elements of `input` are readable and of `output` writable at the strides, apart.
#[inline]
pub unsafe fn copy_row<T: Copy>(
    input: *const T,
    output: *mut T,
    count: usize,
    strides: [isize; 2],
) {
    // SAFETY: as the caller promises.
    unsafe {
        match strides {
            [1, 1] => core::ptr::copy_nonoverlapping(input, output, count),
            [0, 1] => {
                let value = *input;
                for i in 0..count {
                    *output.add(i) = value;
                }
            }
            [from, to] => {
                for i in 0..count as isize {
                    *output.offset(i * to) = *input.offset(i * from);
                }
            }
        }
    }
}

/// Moves tiles of the innermost dimension by `dim`, so that both sides use whole cache lines.
fn transposed<T: Copy>(copy: &CopyInstruction, loops: &Loops<2>, dim: usize, cx: &Context) {
    let (across, [_, across_step]) = loops.dim(dim);
    let (length, [from_step, to_step]) = loops.inner();
    let others = loops.without([dim, loops.rank() - 1]);
    let outer = others.outer_count();
    // A band is the whole innermost dimension by some of `dim`; an item is about a grain of it.
    let band = (GRAIN / length).clamp(TILE, across.max(TILE));
    let bands = across.div_ceil(band);
    for item in cx.worker.share(cx.batch.count() * outer * bands) {
        let (input, output) = sides::<T>(copy, item / (outer * bands), cx);
        let item = item % (outer * bands);
        let [from, to] = others.offsets(item / bands);
        let first = item % bands * band;
        let last = (first + band).min(across);
        // SAFETY: as in `rows`: every pair of places along the two dimensions is an element of
        // both views, and this band is this worker's alone.
        unsafe {
            let tile = Turned {
                input: input.offset(from + first as isize),
                output: output.offset(to + first as isize * across_step),
                from_step,
                to_step,
                across_step,
            };
            match length {
                2 => tile.interleave::<2>(last - first),
                3 => tile.interleave::<3>(last - first),
                4 => tile.interleave::<4>(last - first),
                _ => tile.turn(last - first, length),
            }
        }
    }
}

/// A band of a transposition: the input is contiguous along it; steps in elements.
struct Turned<T> {
    input: *const T,
    output: *mut T,
    from_step: isize,
    to_step: isize,
    across_step: isize,
}

impl<T: Copy> Turned<T> {
    /// Moves `across` by `length` elements, in tiles.
    ///
    /// # Safety
    /// They are readable and writable, apart.
    unsafe fn turn(&self, across: usize, length: usize) {
        for first in (0..across).step_by(TILE) {
            for start in (0..length).step_by(TILE) {
                for j in first..(first + TILE).min(across) {
                    for i in start..(start + TILE).min(length) {
                        let (i, j) = (i as isize, j as isize);
                        // SAFETY: as the caller promises.
                        unsafe {
                            *self.output.offset(i * self.to_step + j * self.across_step) =
                                *self.input.offset(i * self.from_step + j);
                        }
                    }
                }
            }
        }
    }

    /// As [`Turned::turn`] for so short a length that a row of tiles is a few pointers.
    ///
    /// # Safety
    /// As [`Turned::turn`].
    unsafe fn interleave<const LENGTH: usize>(&self, across: usize) {
        for j in 0..across as isize {
            for i in 0..LENGTH as isize {
                // SAFETY: as the caller promises.
                unsafe {
                    *self.output.offset(i * self.to_step + j * self.across_step) =
                        *self.input.offset(i * self.from_step + j);
                }
            }
        }
    }
}
