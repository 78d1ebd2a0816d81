//! `matmul`: a batched product of two activations.
//!
//! A strip of columns is summed in register tiles of 4 rows along a block of the depth. A strip
//! that is not contiguous along its columns is packed once for many tiles.

use super::Isa;
use super::simd::Simd;
use super::strided::{Loops, length, stride};
use crate::machine::Context;
use crate::program::MatMul;
use crate::refusal::Refusal;
use core::mem::MaybeUninit;

/// Rows of a register tile.
const ROWS: usize = 4;
/// Columns of a strip.
const COLUMNS: usize = 64;
/// Rows of one item of shared work.
const BAND: usize = 32;
/// Most of the depth that is summed in registers at a time.
const DEPTH: usize = 192;

/// A matrix: where it starts and its strides in elements.
#[derive(Clone, Copy)]
struct Matrix {
    data: *mut f32,
    row: isize,
    column: isize,
}

impl Matrix {
    fn at(self, row: usize, column: usize) -> Matrix {
        let offset = row as isize * self.row + column as isize * self.column;
        Matrix {
            data: self.data.wrapping_offset(offset),
            ..self
        }
    }
}

/// One strip of one band of the product.
struct Strip {
    a: Matrix,
    b: Matrix,
    output: Matrix,
    rows: usize,
    columns: usize,
    depth: usize,
}

pub fn run(matmul: &MatMul, cx: &mut Context) -> Result<(), Refusal> {
    let (a, b, output) = (&matmul.a, &matmul.b, &matmul.output);
    let batch_rank = output.shape.len().saturating_sub(2);
    let (row, column) = (batch_rank, batch_rank + 1);
    let batches = Loops::new((0..batch_rank).map(|i| {
        (
            length(output, i),
            [stride(a, i), stride(b, i), stride(output, i)],
        )
    }));
    let (height, width, depth) = (
        length(output, row),
        length(output, column),
        length(a, column),
    );
    let (bands, strips) = (height.div_ceil(BAND), width.div_ceil(COLUMNS));
    let (batch_length, batch_strides) = batches.inner();
    let item_count = batches.count() * bands * strips;
    for item in cx.worker.share(cx.batch.count() * item_count) {
        let (slot, item) = (item / item_count, item % item_count);
        let (batch, tile) = (item / (bands * strips), item % (bands * strips));
        let outer = batches.offsets(batch / batch_length);
        let inner = (batch % batch_length) as isize;
        let [a, b, output] = [(0, a), (1, b), (2, output)].map(|(i, view)| {
            let base: *mut f32 = cx.batch.at(view.offset, slot).cast();
            Matrix {
                data: base.wrapping_offset(outer[i] + inner * batch_strides[i]),
                row: stride(view, row),
                column: stride(view, column),
            }
        });
        // Neighbouring items share a strip of columns, the larger operand in most products.
        let (first_row, first_column) = (tile % bands * BAND, tile / bands * COLUMNS);
        let strip = Strip {
            a: a.at(first_row, 0),
            b: b.at(0, first_column),
            output: output.at(first_row, first_column),
            rows: BAND.min(height - first_row),
            columns: COLUMNS.min(width - first_column),
            depth,
        };
        // SAFETY: the strip's elements are of the validated views, the output's this worker's
        // alone. An Isa is only chosen where the CPU has it.
        unsafe {
            match cx.isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => product_avx512(&strip),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => product_avx2(&strip),
                _ => product::<super::simd::Portable, 2>(&strip),
            }
        }
    }
    Ok(())
}

/// # Safety
/// As [`product`]; the CPU has AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn product_avx512(strip: &Strip) {
    // SAFETY: as the caller promises.
    unsafe { product::<super::simd::Avx512, 4>(strip) }
}

/// # Safety
/// As [`product`]; the CPU has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn product_avx2(strip: &Strip) {
    // SAFETY: as the caller promises.
    unsafe { product::<super::simd::Avx2, 2>(strip) }
}

/// Computes a strip in tiles of `V` vectors of columns.
///
/// # Safety
/// As [`Simd`]; all elements of the strip's matrices are readable, and the output's writable,
/// apart from the others. `V` vectors of columns divide [`COLUMNS`].
#[inline(always)]
unsafe fn product<S: Simd, const V: usize>(strip: &Strip) {
    // The zeros beyond the columns are multiplied and not stored.
    let mut packed = MaybeUninit::<[[f32; COLUMNS]; DEPTH]>::uninit();
    let packed: *mut f32 = packed.as_mut_ptr().cast();
    let direct = strip.b.column == 1 && strip.columns == COLUMNS;
    for first in (0..strip.depth).step_by(DEPTH) {
        let depth = DEPTH.min(strip.depth - first);
        let mut b = strip.b.at(first, 0);
        // SAFETY: rows `first .. first + depth` of b and columns of a; `packed` has room for
        // them, as `depth` is at most DEPTH and `columns` at most COLUMNS.
        unsafe {
            if !direct {
                pack(b, depth, strip.columns, packed);
                b = Matrix {
                    data: packed,
                    row: COLUMNS as isize,
                    column: 1,
                };
            }
            for row in (0..strip.rows).step_by(ROWS) {
                for column in (0..strip.columns).step_by(V * S::LANES) {
                    let part = Strip {
                        a: strip.a.at(row, first),
                        b: b.at(0, column),
                        output: strip.output.at(row, column),
                        rows: ROWS.min(strip.rows - row),
                        columns: (V * S::LANES).min(strip.columns - column),
                        depth,
                    };
                    tile::<S, V>(&part, first > 0);
                }
            }
        }
    }
}

/// Copies `depth` rows of `columns` elements into rows of [`COLUMNS`], filled up with zeros.
///
/// # Safety
/// They are readable, and `to` has room for as many whole rows.
#[inline(always)]
unsafe fn pack(b: Matrix, depth: usize, columns: usize, to: *mut f32) {
    // SAFETY: as the caller promises.
    unsafe {
        if b.row == 1 {
            // Along the contiguous direction.
            for column in 0..columns {
                let from = b.at(0, column).data;
                for k in 0..depth {
                    to.add(k * COLUMNS + column).write(*from.add(k));
                }
            }
        } else {
            for k in 0..depth {
                for column in 0..columns {
                    to.add(k * COLUMNS + column).write(*b.at(k, column).data);
                }
            }
        }
        for k in 0..depth {
            for column in columns..COLUMNS {
                to.add(k * COLUMNS + column).write(0.0);
            }
        }
    }
}

/// A register tile; `b` has rows of `V` whole vectors. Adds to the output if `more`.
///
/// # Safety
/// As [`product`].
#[inline(always)]
unsafe fn tile<S: Simd, const V: usize>(tile: &Strip, more: bool) {
    // Rows beyond the matrix repeat the last one and are not stored.
    let a: [*const f32; ROWS] =
        core::array::from_fn(|r| tile.a.at(r.min(tile.rows - 1), 0).data.cast_const());
    // SAFETY: elements of the tile, as the caller promises.
    unsafe {
        let mut sums = [[S::splat(0.0); V]; ROWS];
        for k in 0..tile.depth as isize {
            let from = tile.b.data.offset(k * tile.b.row);
            let row: [S::V; V] = core::array::from_fn(|v| S::load(from.add(v * S::LANES)));
            for (sum, a) in sums.iter_mut().zip(a) {
                let factor = S::splat(*a.offset(k * tile.a.column));
                for (s, &b) in sum.iter_mut().zip(&row) {
                    *s = S::fma(factor, b, *s);
                }
            }
        }
        for (r, sum) in sums.iter().enumerate().take(tile.rows) {
            let to = tile.output.at(r, 0);
            let mut values = [0f32; COLUMNS];
            for (v, &s) in sum.iter().enumerate() {
                S::store(values.as_mut_ptr().add(v * S::LANES), s);
            }
            for (i, value) in values.iter().take(tile.columns).enumerate() {
                let place = to.data.offset(i as isize * to.column);
                *place = if more { *place + value } else { *value };
            }
        }
    }
}
