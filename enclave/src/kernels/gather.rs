//! `gather`: picks slices of its data by index.

use super::copy::copy_row;
use super::strided::{Loops, length, stride};
use crate::machine::Context;
use crate::program::{DType, Gather};
use crate::refusal::Refusal;
use core::hint;

/// Elements that one item of shared work moves, about.
const GRAIN: usize = 4096;

/// The three groups of dimensions: before the axis, of the indices, after the axis.
struct Parts {
    /// Strides in data and output.
    before: Loops<2>,
    /// Strides in indices and output.
    picks: Loops<2>,
    /// Strides in data and output.
    after: Loops<2>,
    axis_stride: isize,
    axis_length: i64,
}

pub fn run(gather: &Gather, cx: &mut Context) -> Result<(), Refusal> {
    let axis = gather.axis as usize;
    let (data, indices, output) = (&gather.data, &gather.indices, &gather.output);
    let index_rank = indices.shape.len();
    let parts = Parts {
        before: Loops::new(
            (0..axis).map(|i| (length(data, i), [stride(data, i), stride(output, i)])),
        ),
        picks: Loops::new((0..index_rank).map(|i| {
            (
                length(indices, i),
                [stride(indices, i), stride(output, axis + i)],
            )
        })),
        after: Loops::new((axis + 1..data.shape.len()).map(|i| {
            (
                length(data, i),
                [stride(data, i), stride(output, i - 1 + index_rank)],
            )
        })),
        axis_stride: stride(data, axis),
        axis_length: length(data, axis) as i64,
    };
    match data.dtype.size() {
        1 => elements::<u8>(gather, &parts, cx),
        4 => elements::<u32>(gather, &parts, cx),
        _ => elements::<u64>(gather, &parts, cx),
    }
    Ok(())
}

/// Element offsets of element `index` of all the loops.
fn locate(loops: &Loops<2>, index: usize) -> [isize; 2] {
    let (length, [a, b]) = loops.inner();
    let [from, to] = loops.offsets(index / length);
    let i = (index % length) as isize;
    [from + i * a, to + i * b]
}

/// An index outside of the axis picks slice 0, and marks its slot: what is done, and for how
/// long, is the same, and nobody else's result depends on it.
fn elements<T: Copy>(gather: &Gather, parts: &Parts, cx: &Context) {
    let picks = parts.picks.count();
    let slices = parts.before.count() * picks;
    let group = (GRAIN / parts.after.count()).max(1);
    let (row, row_strides) = parts.after.inner();
    let item_count = slices.div_ceil(group);
    for item in cx.worker.share(cx.batch.count() * item_count) {
        let (slot, item) = (item / item_count, item % item_count);
        let data: *const T = cx.batch.at(gather.data.offset, slot).cast_const().cast();
        let output: *mut T = cx.batch.at(gather.output.offset, slot).cast();
        let indices = cx.batch.at(gather.indices.offset, slot);
        let mut wrong = 0;
        for slice in item * group..((item + 1) * group).min(slices) {
            let [data_start, output_start] = locate(&parts.before, slice / picks);
            let [index_at, output_pick] = locate(&parts.picks, slice % picks);
            // SAFETY: an element of the validated view of indices, aligned to its size.
            let value = unsafe {
                if gather.indices.dtype == DType::I32 {
                    i64::from(*indices.cast::<i32>().offset(index_at))
                } else {
                    *indices.cast::<i64>().offset(index_at)
                }
            };
            let index = if value < 0 {
                value.wrapping_add(parts.axis_length)
            } else {
                value
            };
            let inside = (index as u64) < parts.axis_length as u64;
            let index = hint::select_unpredictable(inside, index, 0);
            wrong = hint::select_unpredictable(inside, wrong, parts.axis_length as u64);
            let from = data_start + index as isize * parts.axis_stride;
            let to = output_start + output_pick;
            for i in 0..parts.after.outer_count() {
                let [a, b] = parts.after.offsets(i);
                // SAFETY: the index is inside the axis, so these are elements of the validated
                // views, which do not overlap; this slice is this worker's alone.
                unsafe {
                    copy_row(
                        data.offset(from + a),
                        output.offset(to + b),
                        row,
                        row_strides,
                    );
                }
            }
        }
        cx.batch.mark_index(slot, wrong);
    }
}
