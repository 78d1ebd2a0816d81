//! Depthwise convolution: every channel with its own kernel, vectorised over channels.

use super::conv::Image;
use super::epilogue::Epilogue;
use super::simd::Simd;
use super::{Isa, split};
use crate::machine::Context;
use crate::program::{Depthwise, PANEL_WIDTH};
use crate::refusal::Refusal;

/// Output pixels of a row that go together.
const STRIP: usize = 6;

/// Most parts the rows are shared in.
const MOST_PARTS: usize = 256;

/// A strip of output pixels of one row, for the channels of one chunk.
struct Strip<'a> {
    input: Image,
    /// Input position of the first pixel's first tap.
    n: usize,
    y: isize,
    x: isize,
    stride_x: isize,
    dilation: [isize; 2],
    kernel: [usize; 2],
    /// First channel and number of channels.
    channel: usize,
    channels: usize,
    /// `[bias, taps..][width]`
    parameters: *const f32,
    width: usize,
    output: *mut f32,
    output_step: isize,
    /// Null without a residual.
    residual: *const f32,
    residual_step: isize,
    epilogue: &'a Epilogue,
}

/// `X` pixels of `strip`, all channels.
///
/// # Safety
/// As [`Simd`]; the strip lies in a validated instruction's operands.
#[inline(always)]
unsafe fn strip<S: Simd, const X: usize>(strip: &Strip) {
    // SAFETY: the caller upholds the contract above.
    unsafe {
        let reach =
            (X as isize - 1) * strip.stride_x + (strip.kernel[1] as isize - 1) * strip.dilation[1];
        let inside = strip.x >= 0 && strip.x + reach < strip.input.width as isize;
        let mut channel = 0;
        while channel < strip.channels {
            let rest = strip.channels - channel;
            if rest >= 2 * S::LANES && inside {
                columns::<S, X, 2>(strip, channel, 2 * S::LANES);
                channel += 2 * S::LANES;
            } else if inside {
                columns::<S, X, 1>(strip, channel, rest.min(S::LANES));
                channel += S::LANES;
            } else {
                edge::<S, X>(strip, channel, rest.min(S::LANES));
                channel += S::LANES;
            }
        }
    }
}

/// `X` pixels whose columns all lie inside the input, `V` vectors of channels.
///
/// # Safety
/// As [`strip`].
#[inline(always)]
unsafe fn columns<S: Simd, const X: usize, const V: usize>(
    strip: &Strip,
    channel: usize,
    count: usize,
) {
    // SAFETY: the caller upholds the contract above; rows are checked here.
    unsafe {
        let mut sum = [[S::splat(0.0); V]; X];
        for x in 0..X {
            for v in 0..V {
                sum[x][v] = S::load(strip.parameters.add(channel + v * S::LANES));
            }
        }
        for ky in 0..strip.kernel[0] {
            let y = strip.y + ky as isize * strip.dilation[0];
            if y < 0 || y >= strip.input.height as isize {
                continue;
            }
            for kx in 0..strip.kernel[1] {
                let tap = 1 + ky * strip.kernel[1] + kx;
                let weights = strip.parameters.add(tap * strip.width + channel);
                let from = strip.x + kx as isize * strip.dilation[1];
                let pixel = strip
                    .input
                    .pixel(strip.n, y, from)
                    .add(strip.channel + channel);
                let mut weight = [S::splat(0.0); V];
                for v in 0..V {
                    weight[v] = S::load(weights.add(v * S::LANES));
                }
                for x in 0..X {
                    let step = x as isize * strip.stride_x * strip.input.column_stride;
                    for v in 0..V {
                        let place = pixel.offset(step).add(v * S::LANES);
                        let value = if V > 1 || count == S::LANES {
                            S::load(place)
                        } else {
                            S::load_part(place, count)
                        };
                        sum[x][v] = S::fma(value, weight[v], sum[x][v]);
                    }
                }
            }
        }
        for x in 0..X {
            for v in 0..V {
                let count = if V > 1 { S::LANES } else { count };
                finish::<S>(strip, x, channel + v * S::LANES, sum[x][v], count);
            }
        }
    }
}

/// `X` pixels of which some columns fall outside the input, one vector of channels.
///
/// # Safety
/// As [`strip`].
#[inline(always)]
unsafe fn edge<S: Simd, const X: usize>(strip: &Strip, channel: usize, count: usize) {
    // SAFETY: the caller upholds the contract above; rows and columns are checked here.
    unsafe {
        for x in 0..X {
            let mut sum = S::load(strip.parameters.add(channel));
            for ky in 0..strip.kernel[0] {
                let y = strip.y + ky as isize * strip.dilation[0];
                if y < 0 || y >= strip.input.height as isize {
                    continue;
                }
                for kx in 0..strip.kernel[1] {
                    let from =
                        strip.x + x as isize * strip.stride_x + kx as isize * strip.dilation[1];
                    if from < 0 || from >= strip.input.width as isize {
                        continue;
                    }
                    let tap = 1 + ky * strip.kernel[1] + kx;
                    let weight = S::load(strip.parameters.add(tap * strip.width + channel));
                    let pixel = strip
                        .input
                        .pixel(strip.n, y, from)
                        .add(strip.channel + channel);
                    sum = S::fma(S::load_part(pixel, count), weight, sum);
                }
            }
            finish::<S>(strip, x, channel, sum, count);
        }
    }
}

/// # Safety
/// As [`strip`].
#[inline(always)]
unsafe fn finish<S: Simd>(strip: &Strip, x: usize, channel: usize, sum: S::V, count: usize) {
    // SAFETY: the caller upholds the contract above.
    unsafe {
        let place = strip.channel + channel;
        let output = strip
            .output
            .offset(x as isize * strip.output_step)
            .add(place);
        let residual = if strip.residual.is_null() {
            strip.residual
        } else {
            strip
                .residual
                .offset(x as isize * strip.residual_step)
                .add(place)
        };
        strip.epilogue.store::<S, 1>(output, residual, [sum], count);
    }
}

/// # Safety
/// As [`strip`]; the CPU has AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn strip_avx512<const X: usize>(s: &Strip) {
    // SAFETY: the caller upholds the contract above.
    unsafe { strip::<super::simd::Avx512, X>(s) }
}

/// # Safety
/// As [`strip`]; the CPU has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn strip_avx2<const X: usize>(s: &Strip) {
    // SAFETY: the caller upholds the contract above.
    unsafe { strip::<super::simd::Avx2, X>(s) }
}

/// # Safety
/// As [`strip`].
unsafe fn strip_portable<const X: usize>(s: &Strip) {
    // SAFETY: the caller upholds the contract above.
    unsafe { strip::<super::simd::Portable, X>(s) }
}

/// The functions for one pixel and for a whole strip.
type StripFn = unsafe fn(&Strip);

fn functions(isa: Isa) -> (StripFn, StripFn) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => (strip_avx512::<1>, strip_avx512::<STRIP>),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => (strip_avx2::<1>, strip_avx2::<STRIP>),
        _ => (strip_portable::<1>, strip_portable::<STRIP>),
    }
}

/// Runs the convolution; every worker of the team calls it.
pub fn run(depthwise: &Depthwise, cx: &mut Context) -> Result<(), Refusal> {
    let (one, whole) = functions(cx.isa);
    let input = Image::new(&depthwise.input, cx);
    let output = Image::new(&depthwise.output, cx);
    let residual = depthwise.residual.as_ref().map(|view| Image::new(view, cx));
    let epilogue = Epilogue::new(&depthwise.activation, depthwise.residual_after);
    let stride = depthwise.stride.map(|s| s as isize);
    let padding = depthwise.padding.map(|p| p as isize);
    let per_chunk = depthwise.cut.panels_per_chunk as usize * PANEL_WIDTH;
    let chunk_count = depthwise.cut.chunk_count as usize;
    let rows = output.count * output.height;
    // Rows are dear enough to be shared singly; a worker keeps its chunk from one to the next.
    let parts = rows.min(MOST_PARTS);

    for item in cx.worker.share(chunk_count * parts) {
        let (group, part) = (item / parts, item % parts);
        let chunk = cx.stream.chunk(depthwise.cut.first_chunk + group as u32)?;
        let channel = group * per_chunk;
        let channels = per_chunk.min(output.channels - channel);
        let of_slots = cx.batch.shifts().iter().map(|&shift| {
            let residual = residual.as_ref().map(|image| image.in_slot(shift));
            (input.in_slot(shift), output.in_slot(shift), residual)
        });
        for (input, output, residual) in of_slots {
            for row in split(&(0..rows), parts, part) {
                let (n, y) = (row / output.height, row % output.height);
                let mut x = 0;
                while x < output.width {
                    let from_x = x as isize * stride[1] - padding[1];
                    let reach = (depthwise.kernel[1] as isize - 1) * depthwise.dilation[1] as isize;
                    let last_x = from_x + (STRIP as isize - 1) * stride[1] + reach;
                    let fits =
                        x + STRIP <= output.width && from_x >= 0 && last_x < input.width as isize;
                    let place = |image: &Image| image.pixel(n, y as isize, x as isize);
                    let job = Strip {
                        input,
                        n,
                        y: y as isize * stride[0] - padding[0],
                        x: from_x,
                        stride_x: stride[1],
                        dilation: depthwise.dilation.map(|d| d as isize),
                        kernel: depthwise.kernel.map(|k| k as usize),
                        channel,
                        channels,
                        parameters: chunk.as_ptr(),
                        width: channels.next_multiple_of(PANEL_WIDTH / 2),
                        output: place(&output),
                        output_step: output.column_stride,
                        residual: residual
                            .as_ref()
                            .map_or(core::ptr::null(), |r| place(r).cast_const()),
                        residual_step: residual.as_ref().map_or(0, |r| r.column_stride),
                        epilogue: &epilogue,
                    };
                    // SAFETY: the instruction is validated: pixels and channels lie inside its
                    // operands, the chunk holds bias and taps for `width` channels, and the CPU has
                    // the instruction set the functions were chosen by.
                    unsafe { if fits { whole(&job) } else { one(&job) } };
                    x += if fits { STRIP } else { 1 };
                }
            }
        }
    }
    Ok(())
}
