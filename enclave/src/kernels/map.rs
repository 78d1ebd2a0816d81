//! `map`: computes a fused element-wise expression, a tile of elements at a time.
//!
//! Operands whose rows are contiguous are read and written in place; what is not goes through
//! registers, which stay in the L1 cache. Each step is one vectorised loop over a tile.

mod plan;
mod step;

use super::strided::{Loops, length, stride};
use crate::machine::Context;
use crate::program::{DType, MAX_MAP_REGISTERS, Map, View};
use crate::refusal::Refusal;
use core::mem::MaybeUninit;
use plan::{Constant, Plan};
use step::{Place, Places, Tile, compute};

/// Elements of a register, and so the most of a tile.
const BLOCK: usize = 512;
/// Columns from which a row on its own is long enough.
const LONG_ROW: usize = 8;
/// Least and most elements of one item of shared work: a few microseconds.
const GRAIN: [usize; 2] = [4096, 16384];

/// The buffers of a tile's registers, either class in its first bytes.
type Registers = [[u64; BLOCK]; MAX_MAP_REGISTERS];

pub fn run(map: &Map, cx: &mut Context) -> Result<(), Refusal> {
    // With few views, what is done for each of them is done in vector registers.
    match map.inputs.len() {
        0 | 1 => run_views::<2>(map, cx),
        2 => run_views::<3>(map, cx),
        3 => run_views::<4>(map, cx),
        4..=7 => run_views::<8>(map, cx),
        _ => run_views::<{ MAX_MAP_REGISTERS + 1 }>(map, cx),
    }
    Ok(())
}

/// How the loops over `N` views, the inputs and then the output, are cut into tiles.
struct Cutting<const N: usize> {
    loops: Loops<N>,
    /// Length of the second innermost dimension, and each view's stride of it.
    height: usize,
    steps: [isize; N],
    /// Length of the innermost dimension, and each view's stride of it.
    width: usize,
    strides: [isize; N],
    /// Most rows and columns of a tile.
    rows: usize,
    columns: usize,
}

impl<const N: usize> Cutting<N> {
    fn new(map: &Map) -> Self {
        let output = &map.output;
        let dims = (0..output.shape.len()).map(|dim| {
            let mut strides = [0isize; N];
            for (place, view) in strides.iter_mut().zip(map.inputs.iter().chain([output])) {
                *place = stride(view, dim);
            }
            (length(output, dim), strides)
        });
        let loops = Loops::sorted(dims, map.inputs.len());
        let (width, strides) = loops.inner();
        let (height, steps) = if loops.rank() > 1 {
            loops.dim(loops.rank() - 2)
        } else {
            (1, [0; N])
        };
        let columns = width.div_ceil(width.div_ceil(BLOCK));
        Cutting {
            loops,
            height,
            steps,
            width,
            strides,
            rows: (BLOCK / width).clamp(1, height),
            columns: columns.next_multiple_of(16).min(width),
        }
    }

    /// Tiles of the two innermost dimensions, down and across.
    fn grid(&self) -> [usize; 2] {
        [
            self.height.div_ceil(self.rows),
            self.width.div_ceil(self.columns),
        ]
    }

    fn tile_count(&self) -> usize {
        let [down, across] = self.grid();
        self.loops.outer_count() / self.height * down * across
    }

    /// Tile number `index` and the views' offsets of its first element.
    #[inline]
    fn tile(&self, index: usize) -> (Tile, [isize; N]) {
        let [down, across] = self.grid();
        let (band, column) = if across == 1 {
            (index, 0)
        } else {
            (index / across, index % across * self.columns)
        };
        let (outer, row) = if down == self.height {
            (band, 0)
        } else {
            (band / down * self.height, band % down * self.rows)
        };
        let mut offsets = self.loops.offsets(outer + row);
        for (offset, stride) in offsets.iter_mut().zip(&self.strides) {
            *offset += column as isize * stride;
        }
        let tile = Tile {
            rows: self.rows.min(self.height - row),
            columns: self.columns.min(self.width - column),
        };
        (tile, offsets)
    }

    /// Whether the rows of view `index` can be worked on where they are.
    fn direct(&self, index: usize, view: &View) -> bool {
        let (stride, step) = (self.strides.get(index), self.steps.get(index));
        view.dtype == DType::F32
            && stride == Some(&1)
            && (self.rows == 1 || self.width >= LONG_ROW || step == Some(&(self.width as isize)))
    }
}

fn run_views<const N: usize>(map: &Map, cx: &Context) {
    let cutting = Cutting::<N>::new(map);
    let plan = Plan::new(map.inputs.len(), &map.ops);
    let mut storage = MaybeUninit::<Registers>::uninit();
    let registers: *mut [u64; BLOCK] = storage.as_mut_ptr().cast();
    let buffer = |register: usize| -> *mut u8 { registers.wrapping_add(register).cast() };
    for (register, constant) in plan.constants.iter().enumerate() {
        // SAFETY: `constants` has as many elements as there are registers, whose BLOCK elements
        // of up to 8 bytes nothing else refers to.
        unsafe {
            match constant {
                Some(Constant::Float(x)) => fill(buffer(register).cast(), *x),
                Some(Constant::Integer(x)) => fill(buffer(register).cast(), *x),
                None => {}
            }
        }
    }
    let last = (map.inputs.len() + map.ops.len()).saturating_sub(1);
    let integers = integer_registers(map);
    let views = || map.inputs.iter().chain([&map.output]).enumerate();
    let output_direct =
        plan.steps().any(|step| step.to == last) && cutting.direct(map.inputs.len(), &map.output);
    let is_direct = |index: usize, view: &View| {
        cutting.direct(index, view) && (index < map.inputs.len() || output_direct)
    };
    // If rows follow each other in all that is worked on in place, a tile is one row.
    let flat = views()
        .filter(|&(index, view)| is_direct(index, view))
        .all(|(index, _)| cutting.steps.get(index) == Some(&(cutting.width as isize)));
    // What the registers of inputs hold: the slot and offset it came from, and the tile.
    let mut held = [None; MAX_MAP_REGISTERS];
    let total = cutting.loops.count();
    let [least, most] = GRAIN;
    let grain = (total / (8 * cx.worker.count())).clamp(least, most);
    let group = (grain / (cutting.rows * cutting.columns)).max(1);
    let tile_count = cutting.tile_count();
    let item_count = tile_count.div_ceil(group);
    for item in cx.worker.share(cx.batch.count() * item_count) {
        let (slot, item) = (item / item_count, item % item_count);
        for index in item * group..((item + 1) * group).min(tile_count) {
            let (tile, offsets) = cutting.tile(index);
            let mut places: Places = core::array::from_fn(|register| {
                let size = if integers & (1 << register) != 0 {
                    8
                } else {
                    4
                };
                Place {
                    start: buffer(register),
                    row_size: (tile.columns * size) as isize,
                }
            });
            for ((v, view), &offset) in views().zip(&offsets) {
                let register = if v == map.inputs.len() { last } else { v };
                let base = cx.batch.at(view.offset, slot);
                if is_direct(v, view) {
                    if let Some(place) = places.get_mut(register) {
                        let step = cutting.steps.get(v).copied().unwrap_or(0);
                        *place = Place {
                            start: base.wrapping_offset(4 * offset),
                            row_size: 4 * step,
                        };
                    }
                } else if v < map.inputs.len() {
                    let now = Some((slot, offset, tile.rows, tile.columns));
                    if let Some(before) = held.get_mut(v).filter(|before| **before != now) {
                        *before = now;
                        load(view, &cutting, v, offset, tile, buffer(v), base);
                    }
                }
            }
            let worked = if flat {
                Tile {
                    rows: 1,
                    columns: tile.rows * tile.columns,
                }
            } else {
                tile
            };
            for step in plan.steps() {
                // SAFETY: places are registers of BLOCK elements, no fewer than the tile has,
                // or elements of validated views, of which this tile of the output is this
                // worker's alone; the validator has checked that arguments are of the classes
                // of the operation and computed before, and that inputs either are the output
                // or lie apart from it.
                unsafe { compute(cx.isa, step, worked, &places) };
            }
            if !output_direct && let Some(from) = places.get(last) {
                let offset = offsets.get(map.inputs.len()).copied().unwrap_or(0);
                let base = cx.batch.at(map.output.offset, slot);
                store(map, &cutting, offset, tile, *from, base);
            }
        }
    }
}

/// # Safety
/// BLOCK elements are writable.
unsafe fn fill<T: Copy>(to: *mut T, value: T) {
    for i in 0..BLOCK {
        // SAFETY: as the caller promises.
        unsafe { to.add(i).write(value) };
    }
}

/// One bit for each register: whether it holds integers.
fn integer_registers(map: &Map) -> u64 {
    let mut bits = 0;
    for (register, view) in map.inputs.iter().enumerate() {
        bits |= u64::from(view.dtype != DType::F32) << (register % 64);
    }
    for (register, op) in (map.inputs.len()..).zip(&map.ops) {
        let integer = matches!(op.code, 1 | 3 | 60..=99 | 101..);
        bits |= u64::from(integer) << (register % 64);
    }
    bits
}

/// Reads a tile of input `index` into a register.
fn load<const N: usize>(
    view: &View,
    cutting: &Cutting<N>,
    index: usize,
    offset: isize,
    tile: Tile,
    register: *mut u8,
    base: *const u8,
) {
    let step = cutting.steps.get(index).copied().unwrap_or(0);
    let stride = cutting.strides.get(index).copied().unwrap_or(0);
    for row in 0..tile.rows {
        let (from, at, count) = (
            offset + row as isize * step,
            row * tile.columns,
            tile.columns,
        );
        // SAFETY: the validator has checked every element of the view, which these are; the
        // register has room for the tile, in elements of 8 bytes. A boolean is read as a byte,
        // which may hold anything.
        unsafe {
            let floats = register.cast::<f32>().add(at);
            let integers = register.cast::<i64>().add(at);
            match view.dtype {
                DType::F32 => gather(
                    base.cast::<f32>().offset(from),
                    stride,
                    floats,
                    count,
                    |x| x,
                ),
                DType::I64 => {
                    gather(
                        base.cast::<i64>().offset(from),
                        stride,
                        integers,
                        count,
                        |x| x,
                    );
                }
                DType::I32 => {
                    let base = base.cast::<i32>();
                    gather(base.offset(from), stride, integers, count, i64::from);
                }
                DType::I8 => {
                    let base = base.cast::<i8>();
                    gather(base.offset(from), stride, integers, count, i64::from);
                }
                DType::U8 => gather(base.offset(from), stride, integers, count, i64::from),
                DType::Bool => {
                    gather(base.offset(from), stride, integers, count, |x| {
                        i64::from(x != 0)
                    });
                }
            }
        }
    }
}

/// # Safety
/// `from`, at steps of `stride`, has `count` elements, and `to` room for as many, apart.
#[inline(always)]
unsafe fn gather<T: Copy, R: Copy>(
    from: *const T,
    stride: isize,
    to: *mut R,
    count: usize,
    widen: impl Fn(T) -> R,
) {
    // SAFETY: as the caller promises.
    unsafe {
        match stride {
            0 => {
                let value = widen(*from);
                for i in 0..count {
                    to.add(i).write(value);
                }
            }
            1 => {
                for i in 0..count {
                    to.add(i).write(widen(*from.add(i)));
                }
            }
            _ => {
                for i in 0..count {
                    to.add(i).write(widen(*from.offset(i as isize * stride)));
                }
            }
        }
    }
}

/// Writes a tile of the output from the last register.
fn store<const N: usize>(
    map: &Map,
    cutting: &Cutting<N>,
    offset: isize,
    tile: Tile,
    from: Place,
    base: *mut u8,
) {
    let step = cutting.steps.get(map.inputs.len()).copied().unwrap_or(0);
    let stride = cutting.strides.get(map.inputs.len()).copied().unwrap_or(0);
    for row in 0..tile.rows {
        let (to, count) = (offset + row as isize * step, tile.columns);
        let from = from.start.wrapping_offset(row as isize * from.row_size);
        // SAFETY: the validator has checked every element of the view, which these are, and this
        // tile of it is this worker's alone; the last register is of the output's class.
        unsafe {
            let floats = from.cast::<f32>();
            let integers = from.cast::<i64>();
            match map.output.dtype {
                DType::F32 => scatter(floats, base.cast::<f32>().offset(to), stride, count, |x| x),
                DType::I64 => {
                    scatter(
                        integers,
                        base.cast::<i64>().offset(to),
                        stride,
                        count,
                        |x| x,
                    );
                }
                DType::I32 => {
                    let base = base.cast::<i32>();
                    scatter(integers, base.offset(to), stride, count, |x| x as i32);
                }
                DType::I8 => {
                    let base = base.cast::<i8>();
                    scatter(integers, base.offset(to), stride, count, |x| x as i8);
                }
                DType::U8 => scatter(integers, base.offset(to), stride, count, |x| x as u8),
                DType::Bool => {
                    scatter(integers, base.offset(to), stride, count, |x| {
                        u8::from(x != 0)
                    });
                }
            }
        }
    }
}

/// # Safety
/// `from` has `count` elements, and `to`, at steps of `stride`, room for as many.
#[inline(always)]
unsafe fn scatter<T, R: Copy>(
    from: *const R,
    to: *mut T,
    stride: isize,
    count: usize,
    narrow: impl Fn(R) -> T,
) {
    // SAFETY: as the caller promises.
    unsafe {
        if stride == 1 {
            for i in 0..count {
                to.add(i).write(narrow(*from.add(i)));
            }
        } else {
            for i in 0..count {
                to.offset(i as isize * stride).write(narrow(*from.add(i)));
            }
        }
    }
}
