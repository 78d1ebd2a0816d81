//! `pool`: maximum or average over windows of a channels-last image.

use super::conv::Image;
use super::simd::Simd;
use super::{Isa, split};
use crate::machine::Context;
use crate::program::{Pool, PoolKind};
use crate::refusal::Refusal;

/// Vectors of channels held in registers at a time.
const VECTORS: usize = 4;
/// Channels of one item of shared work where there are few rows.
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
    /// What an average multiplies its sum by.
    factor: f32,
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
    // Without dilation, the usual case, nothing is divided: it would take longer than a window.
    let steps = |distance: isize| {
        if dilation == 1 {
            distance
        } else {
            (distance + dilation - 1) / dilation
        }
    };
    let first = steps((-origin).max(0)).min(kernel);
    // The number of taps k in 0..kernel with origin + k * dilation < bound.
    let below = |bound: isize| steps((bound - origin).max(0)).min(kernel);
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
    let lines = output.count * output.height;
    let parts = if lines < 8 * cx.worker.count() {
        output.channels.div_ceil(CHANNELS)
    } else {
        1
    };
    for item in cx.worker.share(cx.batch.count() * lines * parts) {
        let shift = cx.batch.shift(item / (lines * parts));
        let (input, output) = (input.in_slot(shift), output.in_slot(shift));
        let item = item % (lines * parts);
        let channels = split(&(0..output.channels), parts, item % parts);
        let (n, y) = (item / parts / output.height, item / parts % output.height);
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
                input: input
                    .pixel(n, rows.start, columns.start)
                    .wrapping_add(channels.start),
                output: output
                    .pixel(n, y as isize, x as isize)
                    .wrapping_add(channels.start),
                channels: channels.len(),
                rows: if columns.count == 0 { 0 } else { rows.count },
                columns: columns.count,
                row_step: rows.dilation * input.row_stride,
                column_step: columns.dilation * input.column_stride,
                kind: pool.reduction,
                factor: 1.0 / divisor as f32,
            };
            // SAFETY: `taps` leaves only pixels inside the validated input, each with `channels`
            // contiguous elements; the output pixel's channels are this worker's alone. An Isa
            // is only chosen where the CPU has it.
            unsafe {
                match cx.isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 => reduce_avx512(&window),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => reduce_avx2(&window),
                    _ => reduce::<super::simd::Portable>(&window),
                }
            }
        }
    }
    Ok(())
}

/// # Safety
/// As [`reduce`]; the CPU has AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn reduce_avx512(window: &Window) {
    // SAFETY: as the caller promises.
    unsafe { reduce::<super::simd::Avx512>(window) }
}

/// # Safety
/// As [`reduce`]; the CPU has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn reduce_avx2(window: &Window) {
    // SAFETY: as the caller promises.
    unsafe { reduce::<super::simd::Avx2>(window) }
}

/// # Safety
/// As [`Simd`]; all pixels of the window have `channels` readable elements, and the output's.
#[inline(always)]
unsafe fn reduce<S: Simd>(window: &Window) {
    let mut channel = 0;
    // SAFETY: channels below the window's, as the caller promises.
    unsafe {
        while channel + VECTORS * S::LANES <= window.channels {
            block::<S, VECTORS>(window, channel, S::LANES);
            channel += VECTORS * S::LANES;
        }
        while channel < window.channels {
            let count = (window.channels - channel).min(S::LANES);
            block::<S, 1>(window, channel, count);
            channel += count;
        }
    }
}

/// `V` vectors of channels from `first` on; of the last vector, `count`.
///
/// # Safety
/// As [`reduce`].
#[inline(always)]
unsafe fn block<S: Simd, const V: usize>(window: &Window, first: usize, count: usize) {
    let maximum = window.kind == PoolKind::Max;
    let whole = count == S::LANES;
    // SAFETY: as the caller promises.
    unsafe {
        let start = if maximum { f32::NEG_INFINITY } else { 0.0 };
        let mut held = [S::splat(start); V];
        for row in 0..window.rows as isize {
            for column in 0..window.columns as isize {
                let step = row * window.row_step + column * window.column_step;
                let pixel = window.input.wrapping_offset(step).wrapping_add(first);
                for (v, h) in held.iter_mut().enumerate() {
                    let from = pixel.add(v * S::LANES);
                    let value = if whole {
                        S::load(from)
                    } else {
                        S::load_part(from, count)
                    };
                    *h = if maximum {
                        S::max(value, *h)
                    } else {
                        S::add(*h, value)
                    };
                }
            }
        }
        for (v, &h) in held.iter().enumerate() {
            let value = if maximum {
                h
            } else {
                S::mul(h, S::splat(window.factor))
            };
            let to = window.output.add(first + v * S::LANES);
            if whole {
                S::store(to, value);
            } else {
                S::store_part(to, value, count);
            }
        }
    }
}
