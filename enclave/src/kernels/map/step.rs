//! Computes one step of an expression over a tile.

use super::super::simd::{Portable, Simd};
use super::super::{Isa, for_each_isa, math};
use super::plan::{Kind, Step};
use crate::program::MAX_MAP_REGISTERS;

/// Elements of the general operations that are read before their results are written: results
/// may replace arguments, which compilers must be shown to be harmless to make vector code.
const CHUNK: usize = 32;

/// Where a register's elements of a tile are: in a buffer of its own or in the pool, each row
/// contiguous and, from one to the next, `row_size` bytes apart.
#[derive(Clone, Copy)]
pub struct Place {
    pub start: *mut u8,
    pub row_size: isize,
}

impl Place {
    fn row<T>(self, row: usize) -> *mut T {
        self.start
            .wrapping_offset(row as isize * self.row_size)
            .cast()
    }
}

#[derive(Clone, Copy)]
pub struct Tile {
    pub rows: usize,
    pub columns: usize,
}

pub type Places = [Place; MAX_MAP_REGISTERS];

/// # Safety
/// The places that the step names hold elements of the operation's classes for all of `tile`:
/// arguments readable, the result's writable and no other thread's. The result's place may be
/// an argument's place, but does not overlap it otherwise.
pub unsafe fn compute(isa: Isa, step: &Step, tile: Tile, places: &Places) {
    let place = |register: usize| places.get(register).copied();
    let (Some(to), Some(x), Some(y), Some(z)) =
        (place(step.to), place(step.x), place(step.y), place(step.z))
    else {
        return;
    };
    if let Kind::Code(code) = step.kind {
        general(isa, code, tile, to, [x, y, z]);
        return;
    }
    // SAFETY: the caller's promises; an Isa is only chosen where the CPU has it.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => arithmetic_avx512(step, tile, to, [x, y, z]),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => arithmetic_avx2(step, tile, to, [x, y, z]),
            _ => arithmetic::<Portable>(step, tile, to, [x, y, z]),
        }
    }
}

/// # Safety
/// As [`compute`]; the CPU has AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn arithmetic_avx512(step: &Step, tile: Tile, to: Place, arguments: [Place; 3]) {
    // SAFETY: as the caller promises.
    unsafe { arithmetic::<super::super::simd::Avx512>(step, tile, to, arguments) }
}

/// # Safety
/// As [`compute`]; the CPU has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn arithmetic_avx2(step: &Step, tile: Tile, to: Place, arguments: [Place; 3]) {
    // SAFETY: as the caller promises.
    unsafe { arithmetic::<super::super::simd::Avx2>(step, tile, to, arguments) }
}

/// # Safety
/// As [`compute`] and [`Simd`].
#[inline(always)]
unsafe fn arithmetic<S: Simd>(step: &Step, tile: Tile, to: Place, arguments: [Place; 3]) {
    // SAFETY: as the caller promises.
    unsafe {
        match step.kind {
            Kind::Move => rows::<S, 0>(step, tile, to, arguments),
            Kind::Add => rows::<S, 1>(step, tile, to, arguments),
            Kind::Subtract => rows::<S, 2>(step, tile, to, arguments),
            Kind::Multiply => rows::<S, 3>(step, tile, to, arguments),
            Kind::MultiplyAdd => rows::<S, 4>(step, tile, to, arguments),
            Kind::Merged | Kind::Code(_) => {}
        }
    }
}

/// # Safety
/// As [`compute`] and [`Simd`].
#[inline(always)]
unsafe fn rows<S: Simd, const KIND: u8>(step: &Step, tile: Tile, to: Place, arguments: [Place; 3]) {
    // SAFETY: columns below the tile's, of places as the caller promises.
    unsafe {
        let (low, high) = (S::splat(step.low), S::splat(step.high));
        for row in 0..tile.rows {
            let [x, y, z] = arguments.map(|place| place.row::<f32>(row).cast_const());
            let to = to.row::<f32>(row);
            let mut column = 0;
            while column + S::LANES <= tile.columns {
                let read = |from: *const f32| S::load(from.add(column));
                let value = match KIND {
                    0 => read(x),
                    1 => S::add(read(x), read(y)),
                    2 => S::sub(read(x), read(y)),
                    3 => S::mul(read(x), read(y)),
                    _ => S::fma(read(x), read(y), read(z)),
                };
                S::store(to.add(column), S::min(high, S::max(low, value)));
                column += S::LANES;
            }
            let count = tile.columns - column;
            if count > 0 {
                let read = |from: *const f32| S::load_part(from.add(column), count);
                let value = match KIND {
                    0 => read(x),
                    1 => S::add(read(x), read(y)),
                    2 => S::sub(read(x), read(y)),
                    3 => S::mul(read(x), read(y)),
                    _ => S::fma(read(x), read(y), read(z)),
                };
                S::store_part(to.add(column), S::min(high, S::max(low, value)), count);
            }
        }
    }
}

/// The first `count` of [`CHUNK`] elements; the others are zero.
///
/// # Safety
/// They are readable.
#[inline(always)]
unsafe fn take<T: Copy + Default>(from: *const T, count: usize) -> [T; CHUNK] {
    // SAFETY: as the caller promises.
    unsafe {
        if count == CHUNK {
            return from.cast::<[T; CHUNK]>().read();
        }
        let mut values = [T::default(); CHUNK];
        core::ptr::copy_nonoverlapping(from, values.as_mut_ptr(), count);
        values
    }
}

/// # Safety
/// The first `count` elements are writable.
#[inline(always)]
unsafe fn put<R: Copy>(to: *mut R, values: &[R; CHUNK], count: usize) {
    // SAFETY: as the caller promises.
    unsafe {
        if count == CHUNK {
            to.cast::<[R; CHUNK]>().write(*values);
        } else {
            core::ptr::copy_nonoverlapping(values.as_ptr(), to, count);
        }
    }
}

/// The chunks of a tile, as row, first column and length.
#[inline(always)]
fn each_chunk(tile: Tile, mut body: impl FnMut(usize, usize, usize)) {
    for row in 0..tile.rows {
        for column in (0..tile.columns).step_by(CHUNK) {
            body(row, column, CHUNK.min(tile.columns - column));
        }
    }
}

#[inline(always)]
fn unary<T, R>(tile: Tile, to: Place, x: Place, f: impl Fn(T) -> R)
where
    T: Copy + Default,
    R: Copy + Default,
{
    each_chunk(tile, |row, column, count| {
        // SAFETY: elements of the tile; `compute` and so its caller promise the places.
        unsafe {
            let x = take(x.row::<T>(row).add(column), count);
            let mut results = [R::default(); CHUNK];
            for (result, &x) in results.iter_mut().zip(&x) {
                *result = f(x);
            }
            put(to.row::<R>(row).add(column), &results, count);
        }
    });
}

#[inline(always)]
fn binary<T, R>(tile: Tile, to: Place, [x, y]: [Place; 2], f: impl Fn(T, T) -> R)
where
    T: Copy + Default,
    R: Copy + Default,
{
    each_chunk(tile, |row, column, count| {
        // SAFETY: as in `unary`.
        unsafe {
            let x = take(x.row::<T>(row).add(column), count);
            let y = take(y.row::<T>(row).add(column), count);
            let mut results = [R::default(); CHUNK];
            for ((result, &x), &y) in results.iter_mut().zip(&x).zip(&y) {
                *result = f(x, y);
            }
            put(to.row::<R>(row).add(column), &results, count);
        }
    });
}

#[inline(always)]
fn select<T: Copy + Default>(tile: Tile, to: Place, [condition, y, z]: [Place; 3]) {
    each_chunk(tile, |row, column, count| {
        // SAFETY: as in `unary`.
        unsafe {
            let condition = take(condition.row::<i64>(row).add(column), count);
            let mut results = take(z.row::<T>(row).add(column), count);
            let y = take(y.row::<T>(row).add(column), count);
            for ((result, &c), &y) in results.iter_mut().zip(&condition).zip(&y) {
                *result = if c != 0 { y } else { *result };
            }
            put(to.row::<T>(row).add(column), &results, count);
        }
    });
}

for_each_isa! {
    fn general = general_body(code: u32, tile: Tile, to: Place, arguments: [Place; 3])
}

/// The codes are `MapCode` of `vessels.program`, checked by the validator.
#[inline(always)]
fn general_body(code: u32, tile: Tile, to: Place, arguments: [Place; 3]) {
    let [x, y, _] = arguments;
    match code {
        2 => unary(tile, to, x, |x: i64| x as f32),
        3 => unary(tile, to, x, |x: f32| x as i64),
        10..=34 => floats(code, tile, to, x),
        43..=48 => pairs_of_floats(code, tile, to, [x, y]),
        60 => binary(tile, to, [x, y], |x: f32, y| i64::from(x < y)),
        61 => binary(tile, to, [x, y], |x: f32, y| i64::from(x <= y)),
        62 => binary(tile, to, [x, y], |x: f32, y| i64::from(x == y)),
        63 => unary(tile, to, x, |x: f32| i64::from(x.is_nan())),
        64 => unary(tile, to, x, |x: f32| i64::from(x == f32::INFINITY)),
        65 => unary(tile, to, x, |x: f32| i64::from(x == f32::NEG_INFINITY)),
        70 => unary(tile, to, x, i64::wrapping_neg),
        71 => unary(tile, to, x, i64::wrapping_abs),
        72 => unary(tile, to, x, i64::signum),
        73 => unary(tile, to, x, |x: i64| !x),
        80..=96 => pairs_of_integers(code, tile, to, [x, y]),
        100 => select::<f32>(tile, to, arguments),
        101 => select::<i64>(tile, to, arguments),
        _ => {}
    }
}

#[inline(always)]
fn floats(code: u32, tile: Tile, to: Place, x: Place) {
    match code {
        10 => unary(tile, to, x, |x: f32| -x),
        11 => unary(tile, to, x, f32::abs),
        12 => unary(tile, to, x, math::exp),
        13 => unary(tile, to, x, f32::ln),
        14 => unary(tile, to, x, f32::sqrt),
        15 => unary(tile, to, x, |x: f32| 1.0 / x),
        16 => unary(tile, to, x, f32::floor),
        17 => unary(tile, to, x, f32::ceil),
        18 => unary(tile, to, x, f32::round_ties_even),
        19 => unary(tile, to, x, math::sigmoid),
        20 => unary(tile, to, x, math::tanh),
        21 => unary(tile, to, x, math::erf),
        22 => unary(tile, to, x, f32::sin),
        23 => unary(tile, to, x, f32::cos),
        24 => unary(tile, to, x, f32::tan),
        25 => unary(tile, to, x, f32::asin),
        26 => unary(tile, to, x, f32::acos),
        27 => unary(tile, to, x, f32::atan),
        28 => unary(tile, to, x, f32::sinh),
        29 => unary(tile, to, x, f32::cosh),
        30 => unary(tile, to, x, f32::asinh),
        31 => unary(tile, to, x, f32::acosh),
        32 => unary(tile, to, x, f32::atanh),
        // Zero and NaN are their own signs.
        33 => unary(tile, to, x, |x: f32| {
            if x > 0.0 {
                1.0
            } else if x < 0.0 {
                -1.0
            } else {
                x
            }
        }),
        34 => unary(tile, to, x, |x: f32| x.max(0.0) + (-x.abs()).exp().ln_1p()),
        _ => {}
    }
}

#[inline(always)]
fn pairs_of_floats(code: u32, tile: Tile, to: Place, xy: [Place; 2]) {
    match code {
        43 => binary(tile, to, xy, |x: f32, y| x / y),
        44 => binary(
            tile,
            to,
            xy,
            |x: f32, y| if x < y || x.is_nan() { x } else { y },
        ),
        45 => binary(
            tile,
            to,
            xy,
            |x: f32, y| if x > y || x.is_nan() { x } else { y },
        ),
        46 => binary(tile, to, xy, f32::powf),
        47 => binary(tile, to, xy, |x: f32, y| x % y),
        48 => binary(tile, to, xy, |x: f32, y| {
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
fn pairs_of_integers(code: u32, tile: Tile, to: Place, xy: [Place; 2]) {
    match code {
        80 => binary(tile, to, xy, i64::wrapping_add),
        81 => binary(tile, to, xy, i64::wrapping_sub),
        82 => binary(tile, to, xy, i64::wrapping_mul),
        83 => binary(
            tile,
            to,
            xy,
            |x: i64, y| if y == 0 { 0 } else { x.wrapping_div(y) },
        ),
        84 => binary(tile, to, xy, |x: i64, y| x.min(y)),
        85 => binary(tile, to, xy, |x: i64, y| x.max(y)),
        86 => binary(tile, to, xy, remainder),
        87 => binary(tile, to, xy, |x: i64, y| {
            let r = remainder(x, y);
            if r != 0 && (r < 0) != (y < 0) {
                r.wrapping_add(y)
            } else {
                r
            }
        }),
        88 => binary(tile, to, xy, |x: i64, y| x & y),
        89 => binary(tile, to, xy, |x: i64, y| x | y),
        90 => binary(tile, to, xy, |x: i64, y| x ^ y),
        91 => binary(tile, to, xy, |x: i64, y| shift(y, |y| x.checked_shl(y))),
        92 => binary(tile, to, xy, |x: i64, y| {
            shift(y, |y| (x as u64).checked_shr(y).map(|v| v as i64))
        }),
        93 => binary(tile, to, xy, |x: i64, y| i64::from(x < y)),
        94 => binary(tile, to, xy, |x: i64, y| i64::from(x <= y)),
        95 => binary(tile, to, xy, |x: i64, y| i64::from(x == y)),
        96 => binary(tile, to, xy, power),
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
