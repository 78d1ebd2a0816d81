//! 3x3 stride-1 convolution by Winograd's F(4x4, 3x3).
//!
//! Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016). A 4x4 tile of
//! the output costs 36 multiplications per pair of channels instead of 144: tiles of 6x6 input
//! pixels are transformed to 36 values, so are the 3x3 parameters, 36 matrix products sum over
//! the channels, and a last transform gives the tile. Parameters arrive raw and are transformed
//! after decryption: transformed ones would be a stream four times as long.
//!
//! [`WinogradMode`] says which side is transformed once and kept in the workspace; the other side
//! passes through each worker's private part of it.

use super::conv::{Image, ZEROS, multiply, panel_width};
use super::epilogue::Epilogue;
use super::simd::Simd;
use super::{Isa, share_evenly, split};
use crate::machine::Context;
use crate::program::{PANEL_WIDTH, WINOGRAD_GAP, Winograd, WinogradMode};
use crate::refusal::Refusal;

/// Values of a transformed tile: 6 x 6.
const POINTS: usize = 36;

/// Elements between the ends and beginnings of what belongs to one point and to the next: without
/// them the 36 streams of a transform would meet in one set of the L1 cache.
const GAP: usize = WINOGRAD_GAP;

/// Float32 in a cache line.
const LINE: usize = 16;
/// How far ahead of their transform parameters are fetched.
const PREFETCHED_CHANNELS: usize = 6;

/// One of the 36 products for a block of tiles: `sums[rows][..] (+)= values * parameters`.
struct Product {
    /// `[rows][value_step]`, of which `depth` count.
    values: *const f32,
    value_step: usize,
    /// `[depth][width]`
    parameters: *const f32,
    width: usize,
    depth: usize,
    /// `[rows][PANEL_WIDTH]`
    sums: *mut f32,
    accumulate: bool,
}

/// # Safety
/// As [`Simd`]; the pointers of `product` are valid for `P` rows and `V` vectors.
#[inline(always)]
unsafe fn product<S: Simd, const P: usize, const V: usize>(product: &Product) {
    // SAFETY: the caller upholds the contract above.
    unsafe {
        let mut sum = [[S::splat(0.0); V]; P];
        let mut rows = [core::ptr::null::<f32>(); P];
        for p in 0..P {
            rows[p] = product.values.add(p * product.value_step);
            if product.accumulate {
                for v in 0..V {
                    sum[p][v] = S::load(product.sums.add(p * PANEL_WIDTH + v * S::LANES));
                }
            }
        }
        multiply::<S, P, V>(
            &mut sum,
            &rows,
            product.parameters,
            product.width,
            product.depth,
        );
        for p in 0..P {
            for v in 0..V {
                S::store(product.sums.add(p * PANEL_WIDTH + v * S::LANES), sum[p][v]);
            }
        }
    }
}

/// `B^T d` for one column or row.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn transform_input_line<S: Simd>(d: [S::V; 6]) -> [S::V; 6] {
    // SAFETY: the caller upholds the contract above.
    unsafe {
        let (minus_4, minus_5, two) = (S::splat(-4.0), S::splat(-5.0), S::splat(2.0));
        let four = S::splat(4.0);
        let even = S::fma(minus_4, d[2], d[4]);
        let odd = S::fma(minus_4, d[1], d[3]);
        let outer = S::sub(d[4], d[2]);
        let inner = S::mul(two, S::sub(d[3], d[1]));
        [
            S::fma(four, d[0], S::fma(minus_5, d[2], d[4])),
            S::add(even, odd),
            S::sub(even, odd),
            S::add(outer, inner),
            S::sub(outer, inner),
            S::fma(four, d[1], S::fma(minus_5, d[3], d[5])),
        ]
    }
}

/// `G g` for one column or row.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn transform_parameter_line<S: Simd>(g: [S::V; 3]) -> [S::V; 6] {
    // SAFETY: the caller upholds the contract above.
    unsafe {
        let even = S::mul(S::splat(-1.0 / 6.0), S::add(g[0], g[2]));
        let odd = S::mul(S::splat(1.0 / 6.0), g[1]);
        let outer = S::fma(
            S::splat(1.0 / 6.0),
            g[2],
            S::mul(S::splat(1.0 / 24.0), g[0]),
        );
        let inner = S::mul(S::splat(1.0 / 12.0), g[1]);
        [
            S::mul(S::splat(0.25), g[0]),
            S::sub(even, odd),
            S::add(even, odd),
            S::add(outer, inner),
            S::sub(outer, inner),
            g[2],
        ]
    }
}

/// `A^T m` for one column or row.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn transform_output_line<S: Simd>(m: [S::V; 6]) -> [S::V; 4] {
    // SAFETY: the caller upholds the contract above.
    unsafe {
        let (sum_1, difference_1) = (S::add(m[1], m[2]), S::sub(m[1], m[2]));
        let (sum_2, difference_2) = (S::add(m[3], m[4]), S::sub(m[3], m[4]));
        [
            S::add(S::add(m[0], sum_1), sum_2),
            S::fma(S::splat(2.0), difference_2, difference_1),
            S::fma(S::splat(4.0), sum_2, sum_1),
            S::add(S::fma(S::splat(8.0), difference_2, difference_1), m[5]),
        ]
    }
}

/// Transforms the 6x6 input pixels at `pixels` (row-major) for all `channels`; value `i` of the
/// tile goes to `output[i * point_step..][..channels]`.
///
/// # Safety
/// As [`Simd`]; the pixels are valid for `channels` reads, `output` for the writes.
#[inline(always)]
unsafe fn transform_input<S: Simd>(
    pixels: &[*const f32; POINTS],
    channels: usize,
    output: *mut f32,
    point_step: usize,
) {
    // SAFETY: the caller upholds the contract above.
    unsafe {
        let mut channel = 0;
        while channel < channels {
            let count = (channels - channel).min(S::LANES);
            let mut columns = [[S::splat(0.0); 6]; 6];
            for x in 0..6 {
                let mut line = [S::splat(0.0); 6];
                for y in 0..6 {
                    let pixel = pixels[y * 6 + x].add(channel);
                    line[y] = if count == S::LANES {
                        S::load(pixel)
                    } else {
                        S::load_part(pixel, count)
                    };
                }
                columns[x] = transform_input_line::<S>(line);
            }
            for y in 0..6 {
                let mut line = [S::splat(0.0); 6];
                for x in 0..6 {
                    line[x] = columns[x][y];
                }
                let values = transform_input_line::<S>(line);
                for x in 0..6 {
                    let place = output.add((y * 6 + x) * point_step + channel);
                    if count == S::LANES {
                        S::store(place, values[x]);
                    } else {
                        S::store_part(place, values[x], count);
                    }
                }
            }
            channel += S::LANES;
        }
    }
}

/// Transforms `depth` channels of raw parameters `[depth][9][width]`; value `i` goes to
/// `output[i * point_step..][..depth][..width]`.
///
/// # Safety
/// As [`Simd`]; `parameters` is valid for the reads, `output` for the writes; `width` is a
/// multiple of the lanes.
#[inline(always)]
unsafe fn transform_parameters<S: Simd>(
    parameters: *const f32,
    depth: usize,
    width: usize,
    output: *mut f32,
    point_step: usize,
) {
    // SAFETY: the caller upholds the contract above.
    unsafe {
        for channel in 0..depth {
            // Resident parameters come from memory, at a pace the stores below would set.
            let ahead = parameters.wrapping_add((channel + PREFETCHED_CHANNELS) * 9 * width);
            for line in 0..9 * width / LINE {
                S::prefetch(ahead.wrapping_add(line * LINE));
            }
            let mut column = 0;
            while column < width {
                let raw = parameters.add(channel * 9 * width + column);
                let mut columns = [[S::splat(0.0); 6]; 3];
                for x in 0..3 {
                    columns[x] = transform_parameter_line::<S>([
                        S::load(raw.add(x * width)),
                        S::load(raw.add((3 + x) * width)),
                        S::load(raw.add((6 + x) * width)),
                    ]);
                }
                let place = output.add(channel * width + column);
                for y in 0..6 {
                    let values = transform_parameter_line::<S>([
                        columns[0][y],
                        columns[1][y],
                        columns[2][y],
                    ]);
                    for x in 0..6 {
                        S::store(place.add((y * 6 + x) * point_step), values[x]);
                    }
                }
                column += S::LANES;
            }
        }
    }
}

/// Where one tile's results go.
struct Target<'a> {
    /// `[36][point_step]`, of which the first `channels` count.
    sums: *const f32,
    point_step: usize,
    bias: *const f32,
    channels: usize,
    output: *mut f32,
    /// Null without a residual.
    residual: *const f32,
    output_steps: [isize; 2],
    residual_steps: [isize; 2],
    /// Rows and columns of the tile that lie inside the output.
    inside: [usize; 2],
    epilogue: &'a Epilogue,
}

/// # Safety
/// As [`Simd`]; the pointers of `target` are valid for what it says.
#[inline(always)]
unsafe fn transform_output<S: Simd>(target: &Target) {
    // SAFETY: the caller upholds the contract above.
    unsafe {
        let mut channel = 0;
        while channel < target.channels {
            let count = (target.channels - channel).min(S::LANES);
            let mut columns = [[S::splat(0.0); 4]; 6];
            for x in 0..6 {
                let mut line = [S::splat(0.0); 6];
                for y in 0..6 {
                    line[y] = S::load(target.sums.add((y * 6 + x) * target.point_step + channel));
                }
                columns[x] = transform_output_line::<S>(line);
            }
            let bias = S::load(target.bias.add(channel));
            for y in 0..4 {
                if y >= target.inside[0] {
                    break;
                }
                let mut line = [S::splat(0.0); 6];
                for x in 0..6 {
                    line[x] = columns[x][y];
                }
                let values = transform_output_line::<S>(line);
                for x in 0..4 {
                    if x >= target.inside[1] {
                        break;
                    }
                    let step =
                        |s: [isize; 2]| y as isize * s[0] + x as isize * s[1] + channel as isize;
                    let residual = if target.residual.is_null() {
                        target.residual
                    } else {
                        target.residual.offset(step(target.residual_steps))
                    };
                    let output = target.output.offset(step(target.output_steps));
                    let value = S::add(values[x], bias);
                    target
                        .epilogue
                        .store::<S, 1>(output, residual, [value], count);
                }
            }
            channel += S::LANES;
        }
    }
}

/// The four steps compiled for one instruction set. Their contracts are those of the functions
/// they are made of.
struct Steps {
    /// By number of rows less one, for panels of 16 and of 32.
    narrow: &'static [unsafe fn(&Product)],
    wide: &'static [unsafe fn(&Product)],
    narrow_width: usize,
    wide_width: usize,
    input: unsafe fn(&[*const f32; POINTS], usize, *mut f32, usize),
    parameters: unsafe fn(*const f32, usize, usize, *mut f32, usize),
    output: unsafe fn(&Target),
}

macro_rules! steps {
    ($module:ident, $simd:ty, $(#[$feature:meta])* [$($p:literal)*],
     $narrow:literal, $wide:literal) => {
        /// # Safety
        /// The CPU has the instruction set; otherwise as the functions of the parent module.
        mod $module {
            use super::{POINTS, Product, Steps, Target};

            $(#[$feature])*
            unsafe fn product<const P: usize, const V: usize>(p: &Product) {
                // SAFETY: the caller upholds the module's contract.
                unsafe { super::product::<$simd, P, V>(p) }
            }
            $(#[$feature])*
            unsafe fn input(p: &[*const f32; POINTS], channels: usize, o: *mut f32, step: usize) {
                // SAFETY: the caller upholds the module's contract.
                unsafe { super::transform_input::<$simd>(p, channels, o, step) }
            }
            $(#[$feature])*
            unsafe fn parameters(p: *const f32, depth: usize, width: usize, o: *mut f32, step: usize) {
                // SAFETY: the caller upholds the module's contract.
                unsafe { super::transform_parameters::<$simd>(p, depth, width, o, step) }
            }
            $(#[$feature])*
            unsafe fn output(target: &Target) {
                // SAFETY: the caller upholds the module's contract.
                unsafe { super::transform_output::<$simd>(target) }
            }

            pub static STEPS: Steps = Steps {
                narrow: &[$(product::<$p, $narrow>),*],
                wide: &[$(product::<$p, $wide>),*],
                narrow_width: $narrow * <$simd as crate::kernels::simd::Simd>::LANES,
                wide_width: $wide * <$simd as crate::kernels::simd::Simd>::LANES,
                input,
                parameters,
                output,
            };
        }
    };
}

#[cfg(target_arch = "x86_64")]
steps!(avx512, crate::kernels::simd::Avx512,
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    [1 2 3 4 5 6 7 8 9 10 11 12 13 14], 1, 2);
#[cfg(target_arch = "x86_64")]
steps!(avx2, crate::kernels::simd::Avx2, #[target_feature(enable = "avx2,fma")] [1 2 3 4 5 6], 2, 2);
steps!(portable, crate::kernels::simd::Portable, [1 2 3 4 5 6], 2, 2);

impl Steps {
    fn of(isa: Isa) -> &'static Steps {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &avx512::STEPS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &avx2::STEPS,
            _ => &portable::STEPS,
        }
    }

    /// A product of any number of rows and any panel width.
    ///
    /// # Safety
    /// The pointers of `whole` are valid for `rows` rows.
    unsafe fn multiply(&self, whole: &Product, rows: usize) {
        let (functions, columns) = if whole.width == PANEL_WIDTH {
            (self.wide, self.wide_width)
        } else {
            (self.narrow, self.narrow_width)
        };
        let tile_count = rows.div_ceil(functions.len());
        for column in (0..whole.width).step_by(columns) {
            for tile in (0..tile_count).map(|index| split(&(0..rows), tile_count, index)) {
                let part = Product {
                    values: whole.values.wrapping_add(tile.start * whole.value_step),
                    parameters: whole.parameters.wrapping_add(column),
                    sums: whole.sums.wrapping_add(tile.start * PANEL_WIDTH + column),
                    ..*whole
                };
                if let Some(function) = functions.get(tile.len() - 1) {
                    // SAFETY: the part lies inside the whole, which the caller vouches for.
                    unsafe { function(&part) };
                }
            }
        }
    }
}

/// The 4x4 output tiles of an instruction, and the ways in and out of them.
struct Tiles<'a> {
    input: Image,
    output: Image,
    residual: Option<Image>,
    padding: [isize; 2],
    epilogue: Epilogue,
    rows: usize,
    columns: usize,
    steps: &'a Steps,
}

impl Tiles<'_> {
    /// The same tiles in the slot that lies `shift` bytes from slot 0.
    fn in_slot(&self, shift: usize) -> Self {
        Tiles {
            input: self.input.in_slot(shift),
            output: self.output.in_slot(shift),
            residual: self.residual.as_ref().map(|image| image.in_slot(shift)),
            ..*self
        }
    }

    fn count(&self) -> usize {
        self.output.count * self.rows * self.columns
    }

    /// Image, first output row and first output column of a tile.
    fn origin(&self, tile: usize) -> (usize, usize, usize) {
        let (n, rest) = (
            tile / (self.rows * self.columns),
            tile % (self.rows * self.columns),
        );
        (n, rest / self.columns * 4, rest % self.columns * 4)
    }

    /// Transforms a tile's input to `[36][point_step]`.
    fn transform_input(&self, tile: usize, values: *mut f32, point_step: usize) {
        let (n, y, x) = self.origin(tile);
        let mut pixels = [ZEROS.as_ptr(); POINTS];
        for (point, pixel) in pixels.iter_mut().enumerate() {
            let y = (y + point / 6) as isize - self.padding[0];
            let x = (x + point % 6) as isize - self.padding[1];
            if (y as usize) < self.input.height && (x as usize) < self.input.width {
                *pixel = self.input.pixel(n, y, x);
            }
        }
        // SAFETY: pixels inside the validated image, or the row of zeros, which the validator
        // has made sure is as long as the channels; the workspace is as large as validated.
        unsafe { (self.steps.input)(&pixels, self.input.channels, values, point_step) };
    }

    /// Transforms a tile's sums `[36][point_step]` of the panel at `channel` into the output.
    fn transform_output(
        &self,
        tile: usize,
        sums: *const f32,
        point_step: usize,
        bias: *const f32,
        channel: usize,
    ) {
        let (n, y, x) = self.origin(tile);
        let place = |image: &Image| {
            image
                .pixel(n, y as isize, x as isize)
                .wrapping_add(channel)
                .cast_const()
        };
        let steps = |image: &Image| [image.row_stride, image.column_stride];
        let width = panel_width(channel, self.output.channels);
        let target = Target {
            sums,
            point_step,
            bias,
            channels: width.min(self.output.channels - channel),
            output: place(&self.output).cast_mut(),
            residual: self.residual.as_ref().map_or(core::ptr::null(), place),
            output_steps: steps(&self.output),
            residual_steps: self.residual.as_ref().map_or([0; 2], steps),
            inside: [self.output.height - y, self.output.width - x],
            epilogue: &self.epilogue,
        };
        // SAFETY: tile and channels lie inside the validated output and residual; the sums lie
        // in the workspace and the bias in an open chunk or the workspace.
        unsafe { (self.steps.output)(&target) };
    }
}

/// Runs the convolution; every worker of the team calls it.
pub fn run(winograd: &Winograd, cx: &mut Context) -> Result<(), Refusal> {
    let output = Image::new(&winograd.output, cx);
    let tiles = Tiles {
        input: Image::new(&winograd.input, cx),
        residual: winograd.residual.as_ref().map(|view| Image::new(view, cx)),
        padding: winograd.padding.map(|p| p as isize),
        epilogue: Epilogue::new(&winograd.activation, winograd.residual_after),
        rows: output.height.div_ceil(4),
        columns: output.width.div_ceil(4),
        steps: Steps::of(cx.isa),
        output,
    };
    match winograd.mode {
        WinogradMode::Input => keep_input(winograd, &tiles, cx),
        WinogradMode::Parameters => keep_parameters(winograd, &tiles, cx),
    }
}

/// All input tiles are transformed first, each slot's into its own workspace; then each worker
/// streams panels of parameters through its private workspace and multiplies them with every tile
/// of every slot. A transformed panel lies in the first slot's workspace.
fn keep_input(winograd: &Winograd, tiles: &Tiles, cx: &mut Context) -> Result<(), Refusal> {
    let channels = tiles.input.channels;
    let tile_block = winograd.tile_block as usize;
    let block_count = tiles.count().div_ceil(tile_block);
    let depth_per_chunk = (winograd.cut.depth_per_chunk as usize).min(channels);
    let pieces = channels.div_ceil(depth_per_chunk);
    let panels = winograd.cut.chunk_count as usize / pieces;

    let values_of = |slot| -> *mut f32 { cx.batch.at(winograd.workspace.offset, slot).cast() };
    let value_step = tile_block * channels + GAP;
    let sum_step = tile_block * PANEL_WIDTH + GAP;
    let shared = POINTS * value_step * block_count;
    let transformed_count = POINTS * (PANEL_WIDTH * winograd.cut.depth_per_chunk as usize + GAP);
    let sum_count = POINTS * sum_step * block_count;
    let private = shared + cx.worker.index() * (transformed_count + sum_count);
    let transformed = values_of(0).wrapping_add(private);
    let sums_of = |slot| values_of(slot).wrapping_add(private + transformed_count);

    for item in cx.worker.share(cx.batch.count() * tiles.count()) {
        let (slot, tile) = (item / tiles.count(), item % tiles.count());
        let (block, row) = (tile / tile_block, tile % tile_block);
        let place = block * POINTS * value_step + row * channels;
        let values = values_of(slot).wrapping_add(place);
        tiles
            .in_slot(cx.batch.shift(slot))
            .transform_input(tile, values, value_step);
    }

    let parts = share_evenly(panels, cx.worker.count()).min(block_count);
    for item in cx.worker.share(panels * parts) {
        let (panel, part) = (item / parts, item % parts);
        let channel = panel * PANEL_WIDTH;
        let width = panel_width(channel, tiles.output.channels);
        let mut bias = [0.0; PANEL_WIDTH];
        for piece in 0..pieces {
            let index = winograd.cut.first_chunk + (panel * pieces + piece) as u32;
            let chunk = cx.stream.chunk(index)?;
            if piece == 0 {
                for (to, from) in bias.iter_mut().zip(chunk.iter().take(width)) {
                    *to = *from;
                }
            }
            let first = piece * depth_per_chunk;
            let depth = depth_per_chunk.min(channels - first);
            // SAFETY: a validated chunk holds the bias and `depth * 9 * width` parameters; the
            // workspace holds their transform.
            unsafe {
                let raw = chunk.as_ptr().wrapping_add(width);
                (tiles.steps.parameters)(raw, depth, width, transformed, depth * width + GAP);
            }
            for point in 0..POINTS {
                for slot in 0..cx.batch.count() {
                    for block in split(&(0..block_count), parts, part) {
                        let index = block * POINTS + point;
                        let product = Product {
                            values: values_of(slot).wrapping_add(index * value_step + first),
                            value_step: channels,
                            parameters: transformed.wrapping_add(point * (depth * width + GAP)),
                            width,
                            depth,
                            sums: sums_of(slot).wrapping_add(index * sum_step),
                            accumulate: piece > 0,
                        };
                        let rows = tile_block.min(tiles.count() - block * tile_block);
                        // SAFETY: the workspace is as large as validated.
                        unsafe { tiles.steps.multiply(&product, rows) };
                    }
                }
            }
        }
        for slot in 0..cx.batch.count() {
            let tiles = tiles.in_slot(cx.batch.shift(slot));
            for block in split(&(0..block_count), parts, part) {
                let first = block * tile_block;
                for tile in first..(first + tile_block).min(tiles.count()) {
                    let place = block * POINTS * sum_step + (tile - first) * PANEL_WIDTH;
                    let sums = sums_of(slot).wrapping_add(place);
                    tiles.transform_output(tile, sums, sum_step, bias.as_ptr(), channel);
                }
            }
        }
    }
    Ok(())
}

/// All parameters are transformed first; then each worker passes blocks of input tiles through
/// its private workspace and multiplies them with every panel. All slots use the workspace of the
/// first.
fn keep_parameters(winograd: &Winograd, tiles: &Tiles, cx: &mut Context) -> Result<(), Refusal> {
    let channels = tiles.input.channels;
    let out_channels = tiles.output.channels;
    let tile_block = winograd.tile_block as usize;
    let depth_per_chunk = (winograd.cut.depth_per_chunk as usize).min(channels);
    let pieces = channels.div_ceil(depth_per_chunk);
    let panels = winograd.cut.chunk_count as usize / pieces;
    let last_channel = (panels - 1) * PANEL_WIDTH;
    let width_sum = last_channel + panel_width(last_channel, out_channels);

    let transformed: *mut f32 = cx.batch.at(winograd.workspace.offset, 0).cast();
    let panel_step = POINTS * (channels * PANEL_WIDTH + GAP);
    let bias_place = POINTS * (channels * width_sum + GAP * panels);
    let bias = transformed.wrapping_add(bias_place);
    let shared = bias_place + width_sum;
    let value_step = tile_block * channels + GAP;
    let sum_step = tile_block * PANEL_WIDTH + GAP;
    let value_count = POINTS * value_step;
    let sum_count = POINTS * sum_step;
    let values = transformed.wrapping_add(shared + cx.worker.index() * (value_count + sum_count));
    let sums = values.wrapping_add(value_count);

    for item in cx.worker.share(panels * pieces) {
        let (panel, piece) = (item / pieces, item % pieces);
        let channel = panel * PANEL_WIDTH;
        let width = panel_width(channel, out_channels);
        let chunk = cx.stream.chunk(winograd.cut.first_chunk + item as u32)?;
        let first = piece * depth_per_chunk;
        let depth = depth_per_chunk.min(channels - first);
        let place = transformed.wrapping_add(panel * panel_step + first * width);
        // SAFETY: a validated chunk holds the bias and `depth * 9 * width` parameters; the
        // workspace holds the transform of all parameters and all biases.
        unsafe {
            let raw = chunk.as_ptr().wrapping_add(width);
            (tiles.steps.parameters)(raw, depth, width, place, channels * width + GAP);
            if piece == 0 {
                core::ptr::copy_nonoverlapping(chunk.as_ptr(), bias.wrapping_add(channel), width);
            }
        }
    }

    let block_count = tiles.count().div_ceil(tile_block);
    for item in cx.worker.share(cx.batch.count() * block_count) {
        let (slot, block) = (item / block_count, item % block_count);
        let tiles = tiles.in_slot(cx.batch.shift(slot));
        let first = block * tile_block;
        let rows = tile_block.min(tiles.count() - first);
        for row in 0..rows {
            let place = values.wrapping_add(row * channels);
            tiles.transform_input(first + row, place, value_step);
        }
        for panel in 0..panels {
            let channel = panel * PANEL_WIDTH;
            let width = panel_width(channel, out_channels);
            for point in 0..POINTS {
                let product = Product {
                    values: values.wrapping_add(point * value_step),
                    value_step: channels,
                    parameters: transformed
                        .wrapping_add(panel * panel_step + point * (channels * width + GAP)),
                    width,
                    depth: channels,
                    sums: sums.wrapping_add(point * sum_step),
                    accumulate: false,
                };
                // SAFETY: the workspace is as large as validated.
                unsafe { tiles.steps.multiply(&product, rows) };
            }
            for row in 0..rows {
                let place = sums.wrapping_add(row * PANEL_WIDTH);
                let bias = bias.wrapping_add(channel);
                tiles.transform_output(first + row, place, sum_step, bias, channel);
            }
        }
    }
    Ok(())
}
