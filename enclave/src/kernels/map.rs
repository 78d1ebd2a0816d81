//! `map`: interprets a fused element-wise expression, a block of elements at a time.
//!
//! Each operation is one loop over a block that compilers vectorise; the registers of a block
//! stay in the L1 cache.

use super::for_each_isa;
use super::math;
use super::strided::{Loops, length, stride};
use crate::machine::Context;
use crate::program::{DType, MAX_MAP_REGISTERS, Map, MapOp, View};
use crate::refusal::Refusal;

/// Elements computed together.
const BLOCK: usize = 128;
/// Elements of one item of shared work.
const GRAIN: usize = 4096;
const MAX_VIEWS: usize = MAX_MAP_REGISTERS + 1;

/// The registers of a block, each used as one of the two classes.
struct Registers {
    f: [[f32; BLOCK]; MAX_MAP_REGISTERS],
    i: [[i64; BLOCK]; MAX_MAP_REGISTERS],
}

pub fn run(map: &Map, cx: &mut Context) -> Result<(), Refusal> {
    let output = &map.output;
    let dims = (0..output.shape.len()).map(|dim| {
        let mut strides = [0isize; MAX_VIEWS];
        for (place, view) in strides.iter_mut().zip(map.inputs.iter().chain([output])) {
            *place = stride(view, dim);
        }
        (length(output, dim), strides)
    });
    let loops = Loops::sorted(dims, map.inputs.len());
    let total = loops.count();
    let mut registers = Registers {
        f: [[0.0; BLOCK]; MAX_MAP_REGISTERS],
        i: [[0; BLOCK]; MAX_MAP_REGISTERS],
    };
    for item in cx.worker.share(total.div_ceil(GRAIN)) {
        let end = ((item + 1) * GRAIN).min(total);
        for start in (item * GRAIN..end).step_by(BLOCK) {
            let count = BLOCK.min(end - start);
            move_block(map, &loops, start, count, &mut registers, cx, Direction::In);
            for (index, op) in (map.inputs.len()..).zip(&map.ops) {
                apply(cx.isa, op, index, count, &mut registers);
            }
            move_block(
                map,
                &loops,
                start,
                count,
                &mut registers,
                cx,
                Direction::Out,
            );
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    In,
    Out,
}

/// Loads all inputs of elements `start .. start + count` into registers, or stores the last one.
fn move_block(
    map: &Map,
    loops: &Loops<MAX_VIEWS>,
    start: usize,
    count: usize,
    registers: &mut Registers,
    cx: &Context,
    direction: Direction,
) {
    let (row, strides) = loops.inner();
    let (mut index, mut column) = (start / row, start % row);
    let mut filled = 0;
    while filled < count {
        let part = (row - column).min(count - filled);
        let offsets = loops.offsets(index);
        let place = |v: usize| {
            let step = strides.get(v).copied().unwrap_or(0);
            let offset = offsets.get(v).copied().unwrap_or(0);
            (offset + column as isize * step, step)
        };
        if direction == Direction::In {
            for (v, view) in map.inputs.iter().enumerate() {
                let (offset, step) = place(v);
                load(view, v, offset, step, filled..filled + part, registers, cx);
            }
        } else {
            let last = (map.inputs.len() + map.ops.len()).saturating_sub(1);
            let (offset, step) = place(map.inputs.len());
            store(
                &map.output,
                last,
                offset,
                step,
                filled..filled + part,
                registers,
                cx,
            );
        }
        filled += part;
        column = 0;
        index += 1;
    }
}

fn load(
    view: &View,
    register: usize,
    offset: isize,
    step: isize,
    range: core::ops::Range<usize>,
    registers: &mut Registers,
    cx: &Context,
) {
    let base = cx.pool.at(view.offset);
    if view.dtype == DType::F32 {
        if let Some(to) = registers.f.get_mut(register).and_then(|r| r.get_mut(range)) {
            // SAFETY: the validator has checked every element of the view, which these are.
            unsafe { gather(base.cast::<f32>().offset(offset), step, to, |x| x) };
        }
        return;
    }
    let Some(to) = registers.i.get_mut(register).and_then(|r| r.get_mut(range)) else {
        return;
    };
    // SAFETY: as above; a boolean is read as a byte, which may hold anything.
    unsafe {
        match view.dtype {
            DType::I64 => gather(base.cast::<i64>().offset(offset), step, to, |x| x),
            DType::I32 => gather(base.cast::<i32>().offset(offset), step, to, i64::from),
            DType::I8 => gather(base.cast::<i8>().offset(offset), step, to, i64::from),
            DType::U8 => gather(base.offset(offset), step, to, i64::from),
            DType::Bool | DType::F32 => {
                gather(base.offset(offset), step, to, |x| i64::from(x != 0));
            }
        }
    }
}

/// # Safety
/// `from`, at steps of `step`, has as many elements as `to`.
#[inline(always)]
unsafe fn gather<T: Copy, R>(from: *const T, step: isize, to: &mut [R], widen: impl Fn(T) -> R) {
    // SAFETY: as the caller promises.
    unsafe {
        if step == 1 {
            for (i, place) in to.iter_mut().enumerate() {
                *place = widen(*from.add(i));
            }
        } else {
            for (i, place) in to.iter_mut().enumerate() {
                *place = widen(*from.offset(i as isize * step));
            }
        }
    }
}

fn store(
    view: &View,
    register: usize,
    offset: isize,
    step: isize,
    range: core::ops::Range<usize>,
    registers: &Registers,
    cx: &Context,
) {
    let base = cx.pool.at(view.offset);
    if view.dtype == DType::F32 {
        if let Some(from) = registers.f.get(register).and_then(|r| r.get(range)) {
            // SAFETY: the validator has checked every element of the view, which these are, and
            // this block of it is this worker's alone.
            unsafe { scatter(from, base.cast::<f32>().offset(offset), step, |x| x) };
        }
        return;
    }
    let Some(from) = registers.i.get(register).and_then(|r| r.get(range)) else {
        return;
    };
    // SAFETY: as above.
    unsafe {
        match view.dtype {
            DType::I64 => scatter(from, base.cast::<i64>().offset(offset), step, |x| x),
            DType::I32 => scatter(from, base.cast::<i32>().offset(offset), step, |x| x as i32),
            DType::I8 => scatter(from, base.cast::<i8>().offset(offset), step, |x| x as i8),
            DType::U8 => scatter(from, base.offset(offset), step, |x| x as u8),
            DType::Bool | DType::F32 => {
                scatter(from, base.offset(offset), step, |x| u8::from(x != 0));
            }
        }
    }
}

/// # Safety
/// `to`, at steps of `step`, has room for all of `from`.
#[inline(always)]
unsafe fn scatter<T, R: Copy>(from: &[R], to: *mut T, step: isize, narrow: impl Fn(R) -> T) {
    // SAFETY: as the caller promises.
    unsafe {
        if step == 1 {
            for (i, &value) in from.iter().enumerate() {
                *to.add(i) = narrow(value);
            }
        } else {
            for (i, &value) in from.iter().enumerate() {
                *to.offset(i as isize * step) = narrow(value);
            }
        }
    }
}

for_each_isa! {
    fn apply = apply_body(op: &MapOp, index: usize, count: usize, registers: &mut Registers)
}

/// Computes register `index`; the codes are `MapCode` of `program.py`, checked by the validator.
#[inline(always)]
fn apply_body(op: &MapOp, index: usize, count: usize, registers: &mut Registers) {
    match op.code {
        0 => fill(&mut registers.f, index, f32::from_bits(op.x as u32)),
        1 => fill(&mut registers.i, index, op.x),
        2 | 3 | 60..=65 | 100 => apply_mixed(op, index, count, registers),
        10..=48 => apply_floats(op, index, count, &mut registers.f),
        _ => apply_integers(op, index, count, &mut registers.i),
    }
}

fn fill<T: Copy>(file: &mut [[T; BLOCK]; MAX_MAP_REGISTERS], index: usize, value: T) {
    if let Some(register) = file.get_mut(index) {
        register.fill(value);
    }
}

type Arguments<'r, T> = (&'r mut [T], &'r [T], &'r [T], &'r [T]);

/// The result's register and the arguments', which all come before it.
#[inline(always)]
fn arguments<'r, T>(
    file: &'r mut [[T; BLOCK]; MAX_MAP_REGISTERS],
    op: &MapOp,
    index: usize,
    count: usize,
) -> Option<Arguments<'r, T>> {
    let (before, after) = file.split_at_mut_checked(index)?;
    let argument = |register: usize| before.get(register).and_then(|r| r.get(..count));
    Some((
        after.first_mut().and_then(|r| r.get_mut(..count))?,
        argument(op.x as usize)?,
        argument(op.y as usize)?,
        argument(op.z as usize)?,
    ))
}

#[inline(always)]
fn unary<T: Copy, R>(to: &mut [R], x: &[T], f: impl Fn(T) -> R) {
    for (to, &x) in to.iter_mut().zip(x) {
        *to = f(x);
    }
}

#[inline(always)]
fn binary<T: Copy, R>(to: &mut [R], x: &[T], y: &[T], f: impl Fn(T, T) -> R) {
    for ((to, &x), &y) in to.iter_mut().zip(x).zip(y) {
        *to = f(x, y);
    }
}

#[inline(always)]
fn apply_floats(
    op: &MapOp,
    index: usize,
    count: usize,
    file: &mut [[f32; BLOCK]; MAX_MAP_REGISTERS],
) {
    let Some((to, x, y, _)) = arguments(file, op, index, count) else {
        return;
    };
    match op.code {
        10 => unary(to, x, |x| -x),
        11 => unary(to, x, f32::abs),
        12 => unary(to, x, math::exp),
        13 => unary(to, x, f32::ln),
        14 => unary(to, x, f32::sqrt),
        15 => unary(to, x, |x| 1.0 / x),
        16 => unary(to, x, f32::floor),
        17 => unary(to, x, f32::ceil),
        18 => unary(to, x, f32::round_ties_even),
        19 => unary(to, x, math::sigmoid),
        20 => unary(to, x, math::tanh),
        21 => unary(to, x, math::erf),
        22 => unary(to, x, f32::sin),
        23 => unary(to, x, f32::cos),
        24 => unary(to, x, f32::tan),
        25 => unary(to, x, f32::asin),
        26 => unary(to, x, f32::acos),
        27 => unary(to, x, f32::atan),
        28 => unary(to, x, f32::sinh),
        29 => unary(to, x, f32::cosh),
        30 => unary(to, x, f32::asinh),
        31 => unary(to, x, f32::acosh),
        32 => unary(to, x, f32::atanh),
        33 => unary(to, x, |x| f32::from(x > 0.0) - f32::from(x < 0.0)),
        34 => unary(to, x, |x| x.max(0.0) + (-x.abs()).exp().ln_1p()),
        40 => binary(to, x, y, |x, y| x + y),
        41 => binary(to, x, y, |x, y| x - y),
        42 => binary(to, x, y, |x, y| x * y),
        43 => binary(to, x, y, |x, y| x / y),
        44 => binary(to, x, y, |x, y| if x < y || x.is_nan() { x } else { y }),
        45 => binary(to, x, y, |x, y| if x > y || x.is_nan() { x } else { y }),
        46 => binary(to, x, y, f32::powf),
        47 => binary(to, x, y, |x, y| x % y),
        48 => binary(to, x, y, |x, y| {
            let r = x % y;
            if r != 0.0 && (r < 0.0) != (y < 0.0) {
                r + y
            } else {
                r
            }
        }),
        _ => {}
    }
}

#[inline(always)]
fn apply_mixed(op: &MapOp, index: usize, count: usize, registers: &mut Registers) {
    let Registers { f, i } = registers;
    if op.code == 100 {
        let condition = i.get(op.x as usize).and_then(|r| r.get(..count));
        // The first argument is no float register; any one stands in for it.
        let floats = MapOp {
            x: i64::from(op.y),
            ..*op
        };
        let (Some(condition), Some((to, _, y, z))) =
            (condition, arguments(f, &floats, index, count))
        else {
            return;
        };
        for (((to, &c), &y), &z) in to.iter_mut().zip(condition).zip(y).zip(z) {
            *to = if c != 0 { y } else { z };
        }
        return;
    }
    if op.code == 2 {
        let from = i.get(op.x as usize).and_then(|r| r.get(..count));
        if let (Some(to), Some(x)) = (f.get_mut(index).and_then(|r| r.get_mut(..count)), from) {
            unary(to, x, |x| x as f32);
        }
        return;
    }
    let argument = |register: usize| f.get(register).and_then(|r| r.get(..count));
    let (Some(to), Some(x), Some(y)) = (
        i.get_mut(index).and_then(|r| r.get_mut(..count)),
        argument(op.x as usize),
        argument(op.y as usize),
    ) else {
        return;
    };
    match op.code {
        3 => unary(to, x, |x| x as i64),
        60 => binary(to, x, y, |x, y| i64::from(x < y)),
        61 => binary(to, x, y, |x, y| i64::from(x <= y)),
        62 => binary(to, x, y, |x, y| i64::from(x == y)),
        63 => unary(to, x, |x| i64::from(x.is_nan())),
        64 => unary(to, x, |x| i64::from(x == f32::INFINITY)),
        65 => unary(to, x, |x| i64::from(x == f32::NEG_INFINITY)),
        _ => {}
    }
}

#[inline(always)]
fn apply_integers(
    op: &MapOp,
    index: usize,
    count: usize,
    file: &mut [[i64; BLOCK]; MAX_MAP_REGISTERS],
) {
    let Some((to, x, y, z)) = arguments(file, op, index, count) else {
        return;
    };
    match op.code {
        70 => unary(to, x, i64::wrapping_neg),
        71 => unary(to, x, i64::wrapping_abs),
        72 => unary(to, x, i64::signum),
        73 => unary(to, x, |x| !x),
        80 => binary(to, x, y, i64::wrapping_add),
        81 => binary(to, x, y, i64::wrapping_sub),
        82 => binary(to, x, y, i64::wrapping_mul),
        83 => binary(to, x, y, |x, y| if y == 0 { 0 } else { x.wrapping_div(y) }),
        84 => binary(to, x, y, i64::min),
        85 => binary(to, x, y, i64::max),
        86 => binary(to, x, y, remainder),
        87 => binary(to, x, y, |x, y| {
            let r = remainder(x, y);
            if r != 0 && (r < 0) != (y < 0) {
                r.wrapping_add(y)
            } else {
                r
            }
        }),
        88 => binary(to, x, y, |x, y| x & y),
        89 => binary(to, x, y, |x, y| x | y),
        90 => binary(to, x, y, |x, y| x ^ y),
        91 => binary(to, x, y, |x, y| shift(y, |y| x.checked_shl(y))),
        92 => binary(to, x, y, |x, y| {
            shift(y, |y| (x as u64).checked_shr(y).map(|v| v as i64))
        }),
        93 => binary(to, x, y, |x, y| i64::from(x < y)),
        94 => binary(to, x, y, |x, y| i64::from(x <= y)),
        95 => binary(to, x, y, |x, y| i64::from(x == y)),
        96 => binary(to, x, y, power),
        101 => {
            for (((to, &x), &y), &z) in to.iter_mut().zip(x).zip(y).zip(z) {
                *to = if x != 0 { y } else { z };
            }
        }
        _ => {}
    }
}

/// Sign of the dividend; by zero gives 0.
fn remainder(x: i64, y: i64) -> i64 {
    if y == 0 { 0 } else { x.wrapping_rem(y) }
}

fn shift(by: i64, f: impl Fn(u32) -> Option<i64>) -> i64 {
    u32::try_from(by).ok().and_then(f).unwrap_or(0)
}

fn power(base: i64, exponent: i64) -> i64 {
    if exponent < 0 {
        return 0;
    }
    let (mut result, mut square, mut rest) = (1i64, base, exponent);
    while rest > 0 {
        if rest & 1 == 1 {
            result = result.wrapping_mul(square);
        }
        square = square.wrapping_mul(square);
        rest >>= 1;
    }
    result
}
