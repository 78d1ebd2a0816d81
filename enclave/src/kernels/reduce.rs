//! `reduce`: sums, products, extremes and their positions over the last dimensions of a view.

use super::for_each_isa;
use super::strided::{Loops, length, stride};
use crate::machine::Context;
use crate::program::{DType, Reduce, ReduceKind};
use crate::refusal::Refusal;

/// Results computed together where neighbours in memory belong to neighbouring results.
const BLOCK: usize = 64;
/// Partial results along a contiguous reduction.
const LANES: usize = 32;
/// Elements summed up before they join the total, to bound the rounding error of long sums.
const PARTIAL: usize = 512;

/// Where the results of one item of work come from and go to; strides in elements.
struct Job<'a> {
    input: *const f32,
    input_step: isize,
    output: *mut f32,
    output_step: isize,
    count: usize,
    reduced: &'a Loops<1>,
    kind: ReduceKind,
    scale: f32,
}

pub fn run(reduce: &Reduce, cx: &mut Context) -> Result<(), Refusal> {
    let rank = reduce.output.shape.len();
    let kept = Loops::sorted(
        (0..rank).map(|i| {
            (
                length(&reduce.output, i),
                [stride(&reduce.input, i), stride(&reduce.output, i)],
            )
        }),
        1,
    );
    // In the order of the dimensions: positions count in it.
    let reduced = Loops::new(
        (rank..reduce.input.shape.len())
            .map(|i| (length(&reduce.input, i), [stride(&reduce.input, i)])),
    );
    let (row, steps) = kept.inner();
    let blocks = row.div_ceil(BLOCK);
    let item_count = kept.outer_count() * blocks;
    for item in cx.worker.share(cx.batch.count() * item_count) {
        let (slot, item) = (item / item_count, item % item_count);
        let input = cx.batch.at(reduce.input.offset, slot);
        let output = cx.batch.at(reduce.output.offset, slot);
        let [from, to] = kept.offsets(item / blocks);
        let first = item % blocks * BLOCK;
        let count = BLOCK.min(row - first);
        let from = from + first as isize * steps[0];
        let to = to + first as isize * steps[1];
        if reduce.input.dtype == DType::F32 && reduce.output.dtype == DType::F32 {
            let job = Job {
                input: input.cast::<f32>().wrapping_offset(from),
                input_step: steps[0],
                output: output.cast::<f32>().wrapping_offset(to),
                output_step: steps[1],
                count,
                reduced: &reduced,
                kind: reduce.reduction,
                scale: f32::from_bits(reduce.scale),
            };
            floats(cx.isa, &job);
            continue;
        }
        for i in 0..count as isize {
            let (from, to) = (from + i * steps[0], to + i * steps[1]);
            // SAFETY: the validated views have the elements at these offsets, the input's with
            // all of `reduced` from there, and this block of results is this worker's alone.
            unsafe {
                match (reduce.input.dtype, reduce.output.dtype) {
                    (DType::F32, _) => {
                        let value = position(input.cast::<f32>().offset(from), &reduced, reduce);
                        *output.cast::<i64>().offset(to) = value;
                    }
                    (DType::I32, DType::I32) => {
                        let value = integers(input.cast::<i32>().offset(from), &reduced, reduce);
                        *output.cast::<i32>().offset(to) = value as i32;
                    }
                    (DType::I32, _) => {
                        let value = position(input.cast::<i32>().offset(from), &reduced, reduce);
                        *output.cast::<i64>().offset(to) = value;
                    }
                    (_, _) => {
                        let from = input.cast::<i64>().offset(from);
                        *output.cast::<i64>().offset(to) = if is_position(reduce.reduction) {
                            position(from, &reduced, reduce)
                        } else {
                            integers(from, &reduced, reduce)
                        };
                    }
                }
            }
        }
    }
    Ok(())
}

fn is_position(kind: ReduceKind) -> bool {
    matches!(
        kind,
        ReduceKind::ArgMaxFirst
            | ReduceKind::ArgMaxLast
            | ReduceKind::ArgMinFirst
            | ReduceKind::ArgMinLast
    )
}

for_each_isa! {
    fn floats = floats_body(job: &Job)
}

#[inline(always)]
fn floats_body(job: &Job) {
    match job.kind {
        ReduceKind::Sum => fold(job, 0.0, |s, x| s + x, |a, b| a + b),
        ReduceKind::Prod => fold(job, 1.0, |s, x| s * x, |a, b| a * b),
        ReduceKind::Max => fold(job, f32::NEG_INFINITY, greater, greater),
        ReduceKind::Min => fold(job, f32::INFINITY, less, less),
        ReduceKind::SumSquare => fold(job, 0.0, |s, x| s + x * x, |a, b| a + b),
        ReduceKind::SumAbs => fold(job, 0.0, |s, x| s + x.abs(), |a, b| a + b),
        _ => {}
    }
}

/// The greater; NaN if either is.
#[inline(always)]
fn greater(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

/// The less; NaN if either is.
#[inline(always)]
fn less(a: f32, b: f32) -> f32 {
    if a < b || a.is_nan() { a } else { b }
}

#[inline(always)]
fn fold(job: &Job, start: f32, step: impl Fn(f32, f32) -> f32, join: impl Fn(f32, f32) -> f32) {
    let (row, [row_step]) = job.reduced.inner();
    if job.count > 1 && job.input_step == 1 && row_step != 1 {
        side_by_side(job, start, &step, &join);
        return;
    }
    for i in 0..job.count as isize {
        let mut total = start;
        for outer in 0..job.reduced.outer_count() {
            let [offset] = job.reduced.offsets(outer);
            let from = job.input.wrapping_offset(i * job.input_step + offset);
            // SAFETY: `row` validated elements of the input.
            let part = unsafe { along(from, row, row_step, start, &step, &join) };
            total = join(total, part);
        }
        // SAFETY: an element of the validated output, this worker's alone.
        unsafe { *job.output.offset(i * job.output_step) = total * job.scale };
    }
}

/// Reduces `count` elements at steps of `stride`.
///
/// # Safety
/// They are readable.
#[inline(always)]
unsafe fn along(
    from: *const f32,
    count: usize,
    stride: isize,
    start: f32,
    step: &impl Fn(f32, f32) -> f32,
    join: &impl Fn(f32, f32) -> f32,
) -> f32 {
    let mut total = start;
    for first in (0..count).step_by(PARTIAL * LANES) {
        let length = (PARTIAL * LANES).min(count - first);
        let mut lanes = [start; LANES];
        // SAFETY: the caller's elements, part by part.
        unsafe {
            if stride == 1 {
                let values = core::slice::from_raw_parts(from.add(first), length);
                let mut chunks = values.chunks_exact(LANES);
                for chunk in &mut chunks {
                    for (lane, &x) in lanes.iter_mut().zip(chunk) {
                        *lane = step(*lane, x);
                    }
                }
                for (lane, &x) in lanes.iter_mut().zip(chunks.remainder()) {
                    *lane = step(*lane, x);
                }
            } else {
                for i in 0..length {
                    let x = *from.offset((first + i) as isize * stride);
                    if let Some(lane) = lanes.get_mut(i % LANES) {
                        *lane = step(*lane, x);
                    }
                }
            }
        }
        let mut width = LANES / 2;
        while width > 0 {
            let (low, high) = lanes.split_at_mut(width);
            for (l, h) in low.iter_mut().zip(high) {
                *l = join(*l, *h);
            }
            width /= 2;
        }
        total = join(total, lanes.first().copied().unwrap_or(start));
    }
    total
}

/// Reduces `job.count` neighbouring results at once, element by element of the reduced part.
#[inline(always)]
fn side_by_side(
    job: &Job,
    start: f32,
    step: &impl Fn(f32, f32) -> f32,
    join: &impl Fn(f32, f32) -> f32,
) {
    let (row, [row_step]) = job.reduced.inner();
    let mut totals = [start; BLOCK];
    for outer in 0..job.reduced.outer_count() {
        let [offset] = job.reduced.offsets(outer);
        for first in (0..row).step_by(PARTIAL) {
            let mut partial = [start; BLOCK];
            for i in first..(first + PARTIAL).min(row) {
                let from = job.input.wrapping_offset(offset + i as isize * row_step);
                // SAFETY: `count` contiguous elements of the validated input.
                let values = unsafe { core::slice::from_raw_parts(from, job.count) };
                for (p, &x) in partial.iter_mut().zip(values) {
                    *p = step(*p, x);
                }
            }
            for (t, p) in totals.iter_mut().zip(partial) {
                *t = join(*t, p);
            }
        }
    }
    for (i, total) in totals.iter().take(job.count).enumerate() {
        // SAFETY: an element of the validated output, this worker's alone.
        unsafe { *job.output.offset(i as isize * job.output_step) = total * job.scale };
    }
}

/// Reduces integers; sums and products wrap, as they then do in any narrower type.
///
/// # Safety
/// All elements of `reduced` from `from` are readable.
unsafe fn integers<T: Copy + Into<i64>>(
    from: *const T,
    reduced: &Loops<1>,
    reduce: &Reduce,
) -> i64 {
    let step: fn(i64, i64) -> i64 = match reduce.reduction {
        ReduceKind::Prod => i64::wrapping_mul,
        ReduceKind::Max => i64::max,
        ReduceKind::Min => i64::min,
        ReduceKind::SumSquare => |s, x| s.wrapping_add(x.wrapping_mul(x)),
        ReduceKind::SumAbs => |s, x| s.wrapping_add(x.wrapping_abs()),
        _ => i64::wrapping_add,
    };
    let mut total = match reduce.reduction {
        ReduceKind::Prod => 1,
        ReduceKind::Max => i64::MIN,
        ReduceKind::Min => i64::MAX,
        _ => 0,
    };
    let (row, [row_step]) = reduced.inner();
    for outer in 0..reduced.outer_count() {
        let [offset] = reduced.offsets(outer);
        for i in 0..row as isize {
            // SAFETY: as the caller promises.
            total = step(total, unsafe {
                (*from.offset(offset + i * row_step)).into()
            });
        }
    }
    total
}

/// Position of the extreme in the flattened reduced part.
///
/// # Safety
/// All elements of `reduced` from `from` are readable.
unsafe fn position<T: Copy + PartialOrd>(
    from: *const T,
    reduced: &Loops<1>,
    reduce: &Reduce,
) -> i64 {
    let better: fn(T, T) -> bool = match reduce.reduction {
        ReduceKind::ArgMaxLast => |x, best| x >= best,
        ReduceKind::ArgMinFirst => |x, best| x < best,
        ReduceKind::ArgMinLast => |x, best| x <= best,
        _ => |x, best| x > best,
    };
    let (row, [row_step]) = reduced.inner();
    // SAFETY: as the caller promises; dimensions are not empty.
    let mut best = unsafe { *from };
    let mut found = 0;
    for outer in 0..reduced.outer_count() {
        let [offset] = reduced.offsets(outer);
        for i in 0..row {
            // SAFETY: as the caller promises.
            let value = unsafe { *from.offset(offset + i as isize * row_step) };
            if better(value, best) {
                best = value;
                found = outer * row + i;
            }
        }
    }
    found as i64
}
