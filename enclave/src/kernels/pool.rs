//! `pool`: maximum or average over windows of a channels-last image.

use super::conv::Image;
use super::for_each_isa;
use crate::machine::Context;
use crate::program::{Pool, PoolKind};
use crate::refusal::Refusal;

/// Channels held in registers at a time.
const CHANNELS: usize = 64;

/// The taps of one window along one axis that lie inside the input.
#[derive(Clone, Copy)]
struct Taps {
    /// Input position of the first tap inside.
    start: isize,
    count: usize,
    dilation: isize,
}

/// One output pixel.
struct Window {
    /// Address of the first tap inside, first channel.
    input: *const f32,
    output: *mut f32,
    channels: usize,
    rows: usize,
    columns: usize,
    row_step: isize,
    column_step: isize,
    kind: PoolKind,
    /// What an average divides by.
    divisor: f32,
}

/// The taps inside the input, and how many lie inside the padded input.
fn taps(
    position: usize,
    stride: u32,
    padding: [u32; 2],
    kernel: u32,
    dilation: u32,
    length: usize,
) -> (Taps, usize) {
    let origin = (position * stride as usize) as isize - padding[0] as isize;
    let dilation = dilation as isize;
    let (kernel, length) = (kernel as isize, length as isize);
    let first = if origin < 0 {
        (-origin).unsigned_abs().div_ceil(dilation.unsigned_abs())
    } else {
        0
    };
    let first = (first as isize).min(kernel);
    // The number of taps k in 0..kernel with origin + k * dilation < bound.
    let below = |bound: isize| {
        if bound <= origin {
            0
        } else {
            ((bound - origin - 1) / dilation + 1).min(kernel)
        }
    };
    let taps = Taps {
        start: origin + first * dilation,
        count: (below(length) - first).max(0) as usize,
        dilation,
    };
    (taps, below(length + padding[1] as isize) as usize)
}

pub fn run(pool: &Pool, cx: &mut Context) -> Result<(), Refusal> {
    let input = Image::new(&pool.input, cx);
    let output = Image::new(&pool.output, cx);
    let [top, left, bottom, right] = pool.padding;
    let [kernel_h, kernel_w] = pool.kernel;
    let [stride_h, stride_w] = pool.stride;
    let [dilation_h, dilation_w] = pool.dilation;
    for item in cx.worker.share(output.count * output.height) {
        let (n, y) = (item / output.height, item % output.height);
        let (rows, padded_rows) = taps(
            y,
            stride_h,
            [top, bottom],
            kernel_h,
            dilation_h,
            input.height,
        );
        for x in 0..output.width {
            let (columns, padded_columns) = taps(
                x,
                stride_w,
                [left, right],
                kernel_w,
                dilation_w,
                input.width,
            );
            let divisor = if pool.count_padding {
                padded_rows * padded_columns
            } else {
                rows.count * columns.count
            };
            let window = Window {
                input: input.pixel(n, rows.start, columns.start),
                output: output.pixel(n, y as isize, x as isize),
                channels: output.channels,
                rows: if columns.count == 0 { 0 } else { rows.count },
                columns: columns.count,
                row_step: rows.dilation * input.row_stride,
                column_step: columns.dilation * input.column_stride,
                kind: pool.reduction,
                divisor: divisor as f32,
            };
            reduce(cx.isa, &window);
        }
    }
    Ok(())
}

for_each_isa! {
    fn reduce = reduce_body(window: &Window)
}

#[inline(always)]
fn reduce_body(window: &Window) {
    let mut channel = 0;
    while channel + CHANNELS <= window.channels {
        block(window, channel, CHANNELS);
        channel += CHANNELS;
    }
    while channel < window.channels {
        let count = (window.channels - channel).min(16);
        block(window, channel, count);
        channel += count;
    }
}

/// Channels `first .. first + count` of one output pixel; `count` is at most [`CHANNELS`].
#[inline(always)]
fn block(window: &Window, first: usize, count: usize) {
    let maximum = window.kind == PoolKind::Max;
    let mut held = [if maximum { f32::NEG_INFINITY } else { 0.0 }; CHANNELS];
    // SAFETY: `taps` leaves only pixels inside the validated input, each with `channels`
    // contiguous elements, of which the block is a part; the output pixel is this worker's alone.
    unsafe {
        for row in 0..window.rows as isize {
            for column in 0..window.columns as isize {
                let step = row * window.row_step + column * window.column_step;
                let pixel = window.input.wrapping_offset(step).wrapping_add(first);
                let values = core::slice::from_raw_parts(pixel, count);
                if maximum {
                    for (h, &v) in held.iter_mut().zip(values) {
                        *h = if v > *h { v } else { *h };
                    }
                } else {
                    for (h, &v) in held.iter_mut().zip(values) {
                        *h += v;
                    }
                }
            }
        }
        let output = core::slice::from_raw_parts_mut(window.output.add(first), count);
        for (o, &h) in output.iter_mut().zip(&held) {
            *o = if maximum { h } else { h / window.divisor };
        }
    }
}
