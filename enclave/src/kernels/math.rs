//! Elementary functions without branches, which compilers turn into vector code.
//!
//! Errors are at most a few units in the last place; the tests hold them against float64.

/// `e^x`: argument reduction by powers of two and a polynomial (Cephes `expf`).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let n = x * core::f32::consts::LOG2_E + ROUND - ROUND;
    let r = x - n * 0.693_359_4;
    let r = r - n * -2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_6e-1;
    let p = p * r + 5.000_000_3e-1;
    let p = p * r * r + r + 1.0;
    // 2^n in two factors, for results below the normal range. NaN is NaN already in `p`.
    let n = (n + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    let power = |e: i32| f32::from_bits(((e + 127) as u32) << 23);
    p * power(half.clamp(-126, 127)) * power((n.wrapping_sub(half)).clamp(-126, 127))
}

#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Hyperbolic tangent: a polynomial near zero (Cephes `tanhf`), by `exp` beyond.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let s = x * x;
    let p = -5.704_988_7e-3;
    let p = p * s + 2.063_908_8e-2;
    let p = p * s - 5.373_971_6e-2;
    let p = p * s + 1.333_144_2e-1;
    let p = p * s - 3.333_328e-1;
    let near = p * s * x + x;
    let far = 1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0);
    if x.abs() < 0.625 {
        near
    } else {
        far.copysign(x)
    }
}

/// Error function (N. Juffa's minimax polynomials).
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let t = x.abs();
    let s = x * x;
    let r = -1.728_534_7e-5 * t + 3.831_97e-4;
    let u = -3.883_964_4e-3 * t + 2.425_462_2e-2;
    let r = r * s + u;
    let r = r * t - 1.067_778_8e-1;
    let r = r * t - 6.348_468_7e-1;
    let r = r * t - 1.287_175_1e-1;
    let far = 1.0 - exp(r * t - t);
    let p = -5.967_617e-4;
    let p = p * s + 4.991_194e-3;
    let p = p * s - 2.676_813_5e-2;
    let p = p * s + 1.128_199_2e-1;
    let p = p * s - 3.761_253_4e-1;
    let p = p * s + 1.283_791_7e-1;
    let near = p * x + x;
    if t > 0.927_734_4 {
        far.copysign(x)
    } else {
        near
    }
}
