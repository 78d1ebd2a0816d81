//! `matmul`: a batched product of two activations.
//!
//! A tile of 4 rows by 64 columns is summed in registers along the whole depth.

use super::for_each_isa;
use super::strided::{Loops, length, stride};
use crate::machine::Context;
use crate::program::MatMul;
use crate::refusal::Refusal;

const ROWS: usize = 4;
const COLUMNS: usize = 64;

/// One tile of the product; strides in elements.
struct Tile {
    a: [*const f32; ROWS],
    a_step: isize,
    b: *const f32,
    b_row: isize,
    b_column: isize,
    output: [*mut f32; ROWS],
    output_column: isize,
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
    let (bands, strips) = (height.div_ceil(ROWS), width.div_ceil(COLUMNS));
    let (batch_length, batch_strides) = batches.inner();
    for item in cx.worker.share(batches.count() * bands * strips) {
        let (batch, tile) = (item / (bands * strips), item % (bands * strips));
        let outer = batches.offsets(batch / batch_length);
        let inner = (batch % batch_length) as isize;
        let [a_at, b_at, output_at] = [0, 1, 2].map(|i| outer[i] + inner * batch_strides[i]);
        // Neighbouring items share a strip of columns, the larger operand in most products.
        let (first_row, first_column) = (tile % bands * ROWS, tile / bands * COLUMNS);
        let rows = ROWS.min(height - first_row);
        // Rows beyond the matrix repeat the last one and are not stored.
        let row_at = |r: usize| (first_row + r.min(rows - 1)) as isize;
        let a_base: *const f32 = cx.pool.at(a.offset).cast();
        let b_base: *const f32 = cx.pool.at(b.offset).cast();
        let output_base: *mut f32 = cx.pool.at(output.offset).cast();
        let tile = Tile {
            a: [0, 1, 2, 3].map(|r| a_base.wrapping_offset(a_at + row_at(r) * stride(a, row))),
            a_step: stride(a, column),
            b: b_base.wrapping_offset(b_at + first_column as isize * stride(b, column)),
            b_row: stride(b, row),
            b_column: stride(b, column),
            output: [0, 1, 2, 3].map(|r| {
                let start = output_at + row_at(r) * stride(output, row);
                output_base.wrapping_offset(start + first_column as isize * stride(output, column))
            }),
            output_column: stride(output, column),
            rows,
            columns: COLUMNS.min(width - first_column),
            depth,
        };
        product(cx.isa, &tile);
    }
    Ok(())
}

for_each_isa! {
    fn product = product_body(tile: &Tile)
}

#[inline(always)]
fn product_body(tile: &Tile) {
    let mut sums = [[0f32; COLUMNS]; ROWS];
    let mut packed = [0f32; COLUMNS];
    let direct = tile.b_column == 1 && tile.columns == COLUMNS;
    for k in 0..tile.depth as isize {
        // SAFETY: rows `k < depth` and `columns` columns of b, and `depth` elements of each row
        // of a, are elements of the validated views.
        unsafe {
            let row = tile.b.offset(k * tile.b_row);
            let row: &[f32; COLUMNS] = if direct {
                &*row.cast()
            } else {
                for (i, place) in packed.iter_mut().take(tile.columns).enumerate() {
                    *place = *row.offset(i as isize * tile.b_column);
                }
                &packed
            };
            for (sum, a) in sums.iter_mut().zip(tile.a) {
                let factor = *a.offset(k * tile.a_step);
                for (s, b) in sum.iter_mut().zip(row) {
                    *s += factor * b;
                }
            }
        }
    }
    for (sum, output) in sums.iter().zip(tile.output).take(tile.rows) {
        for (i, value) in sum.iter().take(tile.columns).enumerate() {
            // SAFETY: an element of the validated output, in a tile of this worker's alone.
            unsafe { *output.offset(i as isize * tile.output_column) = *value };
        }
    }
}
