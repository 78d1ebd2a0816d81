//! Direct convolution: an indirect GEMM over channels-last images.
//!
//! A register tile holds `P` output pixels by one or two vectors of output
//! channels. For each tap of the kernel the tile has a pointer to each pixel's
//! input row (a shared row of zeros where the tap falls outside), and multiplies
//! along the channels with the parameters of the panel, which lie in the order
//! they are read. A matrix product is the case of one tap.

use super::epilogue::Epilogue;
use super::simd::Simd;
use super::{Isa, share_evenly, split};
use crate::machine::Context;
use crate::program::{Conv, MAX_PADDED_CHANNELS, PANEL_WIDTH, View};
use crate::refusal::Refusal;
use core::ops::Range;

/// Most pixels of any register tile.
const MAX_TILE: usize = 14;

/// The input row of a tap that falls outside the image.
pub static ZEROS: [f32; MAX_PADDED_CHANNELS] = [0.0; MAX_PADDED_CHANNELS];

/// The channels-last image a view describes; strides in elements.
#[derive(Clone, Copy)]
pub struct Image {
    pub data: *mut f32,
    pub count: usize,
    pub height: usize,
    pub width: usize,
    pub channels: usize,
    pub image_stride: isize,
    pub row_stride: isize,
    pub column_stride: isize,
    /// One for all slots.
    shared: bool,
}

impl Image {
    /// The image behind a validated rank-4 view, in slot 0.
    pub fn new(view: &View, cx: &Context) -> Image {
        let dim = |i: usize| view.shape.get(i).map_or(1, |&d| d as usize);
        let stride = |i: usize| view.strides.get(i).map_or(0, |&s| s as isize);
        Image {
            data: cx.pool.at(view.offset).cast(),
            count: dim(0),
            height: dim(1),
            width: dim(2),
            channels: dim(3),
            image_stride: stride(0),
            row_stride: stride(1),
            column_stride: stride(2),
            shared: cx.batch.shares(view.offset),
        }
    }

    /// The same image in the slot that lies `shift` bytes from slot 0.
    pub fn in_slot(&self, shift: usize) -> Image {
        let shift = if self.shared { 0 } else { shift };
        Image {
            data: self.data.wrapping_byte_add(shift),
            ..*self
        }
    }

    /// Whether its pixels, taken at these strides, lie evenly spaced in the order of `output`'s.
    fn is_linear(&self, stride_y: usize, stride_x: usize, output: &Image) -> bool {
        let row = stride_x as isize * self.column_stride * output.width as isize;
        (output.height == 1 || stride_y as isize * self.row_stride == row)
            && (output.count == 1 || self.image_stride == row * output.height as isize)
    }

    /// Address of a pixel's first channel; may lie outside the image and is then only compared
    /// or moved, never read.
    #[inline(always)]
    pub fn pixel(&self, n: usize, y: isize, x: isize) -> *mut f32 {
        self.data.wrapping_offset(
            n as isize * self.image_stride + y * self.row_stride + x * self.column_stride,
        )
    }
}

/// Everything a register tile needs; only validated instructions make one.
struct Tile<'a> {
    /// For each pixel: the input address of the kernel's first tap and, where a tap may fall
    /// outside, its row and column; the output; the residual, null without one.
    inputs: [*const f32; MAX_TILE],
    ys: [i32; MAX_TILE],
    xs: [i32; MAX_TILE],
    outputs: [*mut f32; MAX_TILE],
    residuals: [*const f32; MAX_TILE],
    /// No tap of any pixel falls outside the input.
    inside: bool,
    channels: usize,
    kernel_width: usize,
    height: i32,
    width: i32,
    dilation: [i32; 2],
    row_step: isize,
    column_step: isize,
    /// Where the depth begins, as tap row, tap column and channel, and how much of it there is.
    start: [usize; 3],
    depth: usize,
    /// Parameters of the panel, and its bias.
    panel: *const f32,
    panel_width: usize,
    bias: *const f32,
    /// First output channel of the panel, and how many channels it stores.
    channel: usize,
    valid: usize,
    first: bool,
    last: bool,
    epilogue: &'a Epilogue,
}

type TileFn = unsafe fn(&Tile);

/// # Safety
/// As [`Simd`]; `tile` describes `P` pixels and lies in the pool as validated.
#[inline(always)]
unsafe fn tile<S: Simd, const P: usize, const V: usize>(tile: &Tile) {
    // SAFETY: the validator has checked that every tap of every pixel is inside the input or,
    // where it is not, that a row has at most MAX_PADDED_CHANNELS; that panels hold
    // depth * panel_width elements; and that outputs and residuals hold `valid` channels.
    unsafe {
        let mut sum = [[S::splat(0.0); V]; P];
        for p in 0..P {
            for v in 0..V {
                sum[p][v] = if tile.first {
                    S::load(tile.bias.add(v * S::LANES))
                } else {
                    let partial = tile.outputs[p].add(tile.channel + v * S::LANES);
                    let count = tile.valid.saturating_sub(v * S::LANES).min(S::LANES);
                    S::load_part(partial, count)
                };
            }
        }
        let [mut ky, mut kx, mut c] = tile.start;
        let mut rest = tile.depth;
        let mut panel = tile.panel;
        loop {
            let count = (tile.channels - c).min(rest);
            let step = ky as isize * tile.row_step + kx as isize * tile.column_step;
            let mut rows = [core::ptr::null::<f32>(); P];
            for p in 0..P {
                rows[p] = tile.inputs[p].wrapping_offset(step).wrapping_add(c);
            }
            if !tile.inside {
                let (dy, dx) = (ky as i32 * tile.dilation[0], kx as i32 * tile.dilation[1]);
                for p in 0..P {
                    let (y, x) = (tile.ys[p] + dy, tile.xs[p] + dx);
                    if y as u32 >= tile.height as u32 || x as u32 >= tile.width as u32 {
                        rows[p] = ZEROS.as_ptr();
                    }
                }
            }
            if P <= 2 {
                multiply_few::<S, P, V>(&mut sum, &rows, panel, tile.panel_width, count);
            } else {
                multiply::<S, P, V>(&mut sum, &rows, panel, tile.panel_width, count);
            }
            rest -= count;
            if rest == 0 {
                break;
            }
            panel = panel.add(count * tile.panel_width);
            c = 0;
            kx += 1;
            if kx == tile.kernel_width {
                kx = 0;
                ky += 1;
            }
        }
        let epilogue = *tile.epilogue;
        for p in 0..P {
            let output = tile.outputs[p].add(tile.channel);
            if tile.last {
                let residual = tile.residuals[p];
                let residual = if residual.is_null() {
                    residual
                } else {
                    residual.add(tile.channel)
                };
                epilogue.store::<S, V>(output, residual, sum[p], tile.valid);
            } else {
                for v in 0..V {
                    let count = tile.valid.saturating_sub(v * S::LANES).min(S::LANES);
                    S::store_part(output.add(v * S::LANES), sum[p][v], count);
                }
            }
        }
    }
}

/// `sum[p] += rows[p][..count] * panel[..count]`; small tiles take four steps at a time.
///
/// # Safety
/// As [`Simd`]; `rows` hold `count` elements, `panel` `count * width` and `V` vectors beyond.
#[inline(always)]
pub unsafe fn multiply<S: Simd, const P: usize, const V: usize>(
    sum: &mut [[S::V; V]; P],
    rows: &[*const f32; P],
    panel: *const f32,
    width: usize,
    count: usize,
) {
    // SAFETY: the caller upholds the contract above.
    unsafe {
        let mut k = 0;
        // Large tiles fill the registers and the pipeline; unrolled, they would spill.
        if P * V <= 16 {
            while k + 4 <= count {
                for step in 0..4 {
                    multiply_step::<S, P, V>(sum, rows, panel.add((k + step) * width), k + step);
                }
                k += 4;
            }
        }
        while k < count {
            multiply_step::<S, P, V>(sum, rows, panel.add(k * width), k);
            k += 1;
        }
    }
}

/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn multiply_step<S: Simd, const P: usize, const V: usize>(
    sum: &mut [[S::V; V]; P],
    rows: &[*const f32; P],
    panel: *const f32,
    k: usize,
) {
    // SAFETY: the caller upholds the contract above.
    unsafe {
        let mut b = [S::splat(0.0); V];
        for v in 0..V {
            b[v] = S::load(panel.add(v * S::LANES));
        }
        for p in 0..P {
            let a = S::splat(*rows[p].add(k));
            for v in 0..V {
                sum[p][v] = S::fma(a, b[v], sum[p][v]);
            }
        }
    }
}

/// [`multiply`] for tiles of so few pixels that the latency of one chain of sums would bind:
/// four chains.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn multiply_few<S: Simd, const P: usize, const V: usize>(
    sum: &mut [[S::V; V]; P],
    rows: &[*const f32; P],
    panel: *const f32,
    width: usize,
    count: usize,
) {
    // SAFETY: the caller upholds the contract above.
    unsafe {
        let mut sums = [[[S::splat(0.0); V]; P]; 4];
        let mut k = 0;
        while k + 4 <= count {
            for step in 0..4 {
                let panel = panel.add((k + step) * width);
                multiply_step::<S, P, V>(&mut sums[step], rows, panel, k + step);
            }
            k += 4;
        }
        while k < count {
            multiply_step::<S, P, V>(&mut sums[0], rows, panel.add(k * width), k);
            k += 1;
        }
        for p in 0..P {
            for v in 0..V {
                let pairs = S::add(
                    S::add(sums[0][p][v], sums[1][p][v]),
                    S::add(sums[2][p][v], sums[3][p][v]),
                );
                sum[p][v] = S::add(sum[p][v], pairs);
            }
        }
    }
}

/// # Safety
/// As [`tile`]; the CPU has AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn tile_avx512<const P: usize, const V: usize>(t: &Tile) {
    // SAFETY: the caller upholds the contract above.
    unsafe { tile::<super::simd::Avx512, P, V>(t) }
}

/// # Safety
/// As [`tile`]; the CPU has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn tile_avx2<const P: usize, const V: usize>(t: &Tile) {
    // SAFETY: the caller upholds the contract above.
    unsafe { tile::<super::simd::Avx2, P, V>(t) }
}

/// # Safety
/// As [`tile`].
unsafe fn tile_portable<const P: usize, const V: usize>(t: &Tile) {
    // SAFETY: the caller upholds the contract above.
    unsafe { tile::<super::simd::Portable, P, V>(t) }
}

/// The register tiles of an instruction set, by number of pixels less one, for panels of
/// 16 and of 32; and the channels one of them covers.
struct Tiles {
    narrow: &'static [TileFn],
    wide: &'static [TileFn],
    narrow_width: usize,
    wide_width: usize,
}

macro_rules! tiles {
    ($name:ident, [$($p:literal)*], $v:literal) => {
        &[$($name::<$p, $v>),*]
    };
}

#[cfg(target_arch = "x86_64")]
static AVX512: Tiles = Tiles {
    narrow: tiles!(tile_avx512, [1 2 3 4 5 6 7 8 9 10 11 12 13 14], 1),
    wide: tiles!(tile_avx512, [1 2 3 4 5 6 7 8 9 10 11 12 13 14], 2),
    narrow_width: 16,
    wide_width: 32,
};
#[cfg(target_arch = "x86_64")]
static AVX2: Tiles = Tiles {
    narrow: tiles!(tile_avx2, [1 2 3 4 5 6], 2),
    wide: tiles!(tile_avx2, [1 2 3 4 5 6], 2),
    narrow_width: 16,
    wide_width: 16,
};
static PORTABLE: Tiles = Tiles {
    narrow: tiles!(tile_portable, [1 2 3 4 5 6], 2),
    wide: tiles!(tile_portable, [1 2 3 4 5 6], 2),
    narrow_width: 8,
    wide_width: 8,
};

impl Tiles {
    fn of(isa: Isa) -> &'static Tiles {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &AVX512,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &AVX2,
            _ => &PORTABLE,
        }
    }
}

/// Width of the panel that starts at `channel` of `channels`.
pub fn panel_width(channel: usize, channels: usize) -> usize {
    if channels - channel <= 16 {
        16
    } else {
        PANEL_WIDTH
    }
}

/// Runs the convolution; every worker of the team calls it.
///
/// Work is shared out as groups of panels by parts of the pixels: a worker keeps a decrypted
/// chunk for all slots and for all the parts it takes. Tiles are cut as for one slot alone, so
/// that no result depends on how many slots there are.
pub fn run(conv: &Conv, cx: &mut Context) -> Result<(), Refusal> {
    let tiles = Tiles::of(cx.isa);
    let input = Image::new(&conv.input, cx);
    let output = Image::new(&conv.output, cx);
    let residual = conv.residual.as_ref().map(|view| Image::new(view, cx));
    let epilogue = Epilogue::new(&conv.activation, conv.residual_after);
    let [kernel_height, kernel_width] = conv.kernel.map(|k| k as usize);
    let dilation = conv.dilation.map(|d| d as i32);
    let (stride_y, stride_x) = (conv.stride[0] as usize, conv.stride[1] as usize);
    let (top, left) = (conv.padding[0] as isize, conv.padding[1] as isize);

    let depth = kernel_height * kernel_width * input.channels;
    let depth_per_chunk = (conv.cut.depth_per_chunk as usize).min(depth);
    let pieces = depth.div_ceil(depth_per_chunk);
    let panels_per_chunk = conv.cut.panels_per_chunk as usize;
    let groups = conv.cut.chunk_count as usize / pieces;
    let pixels = output.count * output.height * output.width;
    let parts = pixel_parts(groups, pieces, pixels.div_ceil(MAX_TILE), cx.worker.count());

    // The kernel reaches past the input for some pixel.
    let reach_y = (output.height - 1) * stride_y + (kernel_height - 1) * dilation[0] as usize;
    let reach_x = (output.width - 1) * stride_x + (kernel_width - 1) * dilation[1] as usize;
    let padded = top > 0
        || left > 0
        || reach_y >= input.height + top as usize
        || reach_x >= input.width + left as usize;

    // Rows a multiple of 4 KiB apart share one set of the L1 cache: no more of them than its ways.
    let aliased = (input.column_stride * stride_x as isize) % 1024 == 0;
    let largest = if aliased {
        tiles.wide.len().min(7)
    } else {
        tiles.wide.len()
    };

    let mut job = Tile {
        inputs: [core::ptr::null(); MAX_TILE],
        ys: [0; MAX_TILE],
        xs: [0; MAX_TILE],
        outputs: [core::ptr::null_mut(); MAX_TILE],
        residuals: [core::ptr::null(); MAX_TILE],
        inside: !padded,
        channels: input.channels,
        kernel_width,
        height: input.height as i32,
        width: input.width as i32,
        dilation,
        row_step: dilation[0] as isize * input.row_stride,
        column_step: dilation[1] as isize * input.column_stride,
        start: [0; 3],
        depth: 0,
        panel: core::ptr::null(),
        panel_width: 0,
        bias: core::ptr::null(),
        channel: 0,
        valid: 0,
        first: false,
        last: false,
        epilogue: &epilogue,
    };
    let pixels_of = Pixels {
        stride: [stride_y, stride_x],
        padding: [top, left],
        linear: !padded
            && input.is_linear(stride_y, stride_x, &output)
            && output.is_linear(1, 1, &output)
            && residual.as_ref().is_none_or(|r| r.is_linear(1, 1, &output)),
        input,
        output,
        residual,
    };

    for item in cx.worker.share(groups * parts) {
        let (group, part) = (item / parts, item % parts);
        let part = split(&(0..pixels), parts, part);
        let first_channel = group * panels_per_chunk * PANEL_WIDTH;
        let last_channel = (first_channel + panels_per_chunk * PANEL_WIDTH).min(output.channels);
        for piece in 0..pieces {
            let index = conv.cut.first_chunk + (group * pieces + piece) as u32;
            let chunk = cx.stream.chunk(index)?;
            let first = piece * depth_per_chunk;
            let tap = first / input.channels;
            job.start = [
                tap / kernel_width,
                tap % kernel_width,
                first % input.channels,
            ];
            job.depth = depth_per_chunk.min(depth - first);
            job.first = piece == 0;
            job.last = piece + 1 == pieces;
            let tile_count = part.len().div_ceil(largest);
            for &shift in cx.batch.shifts() {
                let pixels = pixels_of.in_slot(shift);
                for tile in (0..tile_count).map(|index| split(&part, tile_count, index)) {
                    pixels.place(&mut job, &tile);
                    let (mut channel, mut panel) = (first_channel, chunk.as_ptr());
                    while channel < last_channel {
                        let width = panel_width(channel, output.channels);
                        let (functions, step) = if width == PANEL_WIDTH {
                            (tiles.wide, tiles.wide_width)
                        } else {
                            (tiles.narrow, tiles.narrow_width)
                        };
                        job.panel_width = width;
                        let mut column = 0;
                        while column < width && channel + column < last_channel {
                            job.channel = channel + column;
                            job.valid = (last_channel - job.channel).min(step);
                            job.bias = panel.wrapping_add(column);
                            job.panel = panel.wrapping_add(width + column);
                            if let Some(function) = functions.get(tile.len() - 1) {
                                // SAFETY: the instruction is validated, so the tile lies in its
                                // slot and the chunk holds `(1 + depth) * width` floats for each
                                // panel; the CPU has the instruction set `Tiles::of` chose by.
                                unsafe { function(&job) };
                            }
                            column += step;
                        }
                        panel = panel.wrapping_add((1 + job.depth) * width);
                        channel += width;
                    }
                }
            }
        }
    }
    Ok(())
}

/// Where the pixels of an instruction lie in a slot.
struct Pixels {
    input: Image,
    output: Image,
    residual: Option<Image>,
    stride: [usize; 2],
    padding: [isize; 2],
    /// Every image is one run of evenly spaced pixels, as output pixels count.
    linear: bool,
}

impl Pixels {
    /// The same pixels in the slot that lies `shift` bytes from slot 0.
    fn in_slot(&self, shift: usize) -> Pixels {
        Pixels {
            input: self.input.in_slot(shift),
            output: self.output.in_slot(shift),
            residual: self.residual.as_ref().map(|image| image.in_slot(shift)),
            ..*self
        }
    }

    /// Sets the tile's pixels to the flat output pixels `range`.
    fn place(&self, job: &mut Tile, range: &Range<usize>) {
        if self.linear {
            let step = self.stride[1] as isize * self.input.column_stride;
            fill(&mut job.inputs, self.input.data, range, step);
            for (index, output) in range.clone().zip(&mut job.outputs) {
                let step = index as isize * self.output.column_stride;
                *output = self.output.data.wrapping_offset(step);
            }
            if let Some(residual) = &self.residual {
                fill(
                    &mut job.residuals,
                    residual.data,
                    range,
                    residual.column_stride,
                );
            }
            return;
        }
        let (height, width) = (self.output.height, self.output.width);
        let (mut n, mut y) = (range.start / (height * width), range.start / width % height);
        let mut x = range.start % width;
        for index in 0..range.len().min(MAX_TILE) {
            let from_y = (y * self.stride[0]) as isize - self.padding[0];
            let from_x = (x * self.stride[1]) as isize - self.padding[1];
            job.inputs[index] = self.input.pixel(n, from_y, from_x);
            job.ys[index] = from_y as i32;
            job.xs[index] = from_x as i32;
            job.outputs[index] = self.output.pixel(n, y as isize, x as isize);
            if let Some(residual) = &self.residual {
                job.residuals[index] = residual.pixel(n, y as isize, x as isize);
            }
            x += 1;
            if x == width {
                x = 0;
                y += 1;
                if y == height {
                    y = 0;
                    n += 1;
                }
            }
        }
    }
}

/// Sets `places` to the addresses of the pixels `range` of a linear image.
fn fill(places: &mut [*const f32; MAX_TILE], data: *const f32, range: &Range<usize>, step: isize) {
    for (index, place) in range.clone().zip(places) {
        *place = data.wrapping_offset(index as isize * step);
    }
}

/// Into how many parts the pixels are split, so that `groups * parts` items divide evenly among
/// workers. Where a panel has one chunk, further parts are free (the chunk stays open).
fn pixel_parts(groups: usize, pieces: usize, tile_count: usize, workers: usize) -> usize {
    let mut parts = share_evenly(groups, workers);
    if pieces == 1 && workers > 1 {
        while groups * parts < 8 * workers {
            parts *= 2;
        }
    }
    parts.min(tile_count).max(1)
}
