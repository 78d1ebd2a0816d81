//! What happens to a result between its accumulator and memory: residual and activation.

use super::simd::Simd;
use crate::program::{Activation, ActivationKind};

/// The fused end of a convolution.
#[derive(Clone, Copy)]
pub struct Epilogue {
    kind: ActivationKind,
    a: f32,
    b: f32,
    residual_after: bool,
}

impl Epilogue {
    pub fn new(activation: &Activation, residual_after: bool) -> Self {
        Epilogue {
            kind: activation.kind,
            a: f32::from_bits(activation.a),
            b: f32::from_bits(activation.b),
            residual_after,
        }
    }

    /// Adds the residual, applies the activation and stores the first `count` lanes of `values`.
    ///
    /// # Safety
    /// As [`Simd`]; `output` is valid for `count` writes and `residual`, unless null, for
    /// `count` reads.
    #[inline(always)]
    pub unsafe fn store<S: Simd, const V: usize>(
        &self,
        output: *mut f32,
        residual: *const f32,
        mut values: [S::V; V],
        count: usize,
    ) {
        // SAFETY: the caller upholds the contract above.
        unsafe {
            if residual.is_null() {
                self.activate::<S, V>(&mut values);
            } else if self.residual_after {
                self.activate::<S, V>(&mut values);
                add::<S, V>(&mut values, residual, count);
            } else {
                add::<S, V>(&mut values, residual, count);
                self.activate::<S, V>(&mut values);
            }
            if count >= V * S::LANES {
                for v in 0..V {
                    S::store(output.add(v * S::LANES), values[v]);
                }
            } else {
                for v in 0..V {
                    let count = count.saturating_sub(v * S::LANES).min(S::LANES);
                    S::store_part(output.wrapping_add(v * S::LANES), values[v], count);
                }
            }
        }
    }

    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    unsafe fn activate<S: Simd, const V: usize>(&self, values: &mut [S::V; V]) {
        // SAFETY: the caller upholds the contract above. The operand order of min and max
        // keeps NaN.
        unsafe {
            let (a, b) = (S::splat(self.a), S::splat(self.b));
            let zero = S::splat(0.0);
            match self.kind {
                ActivationKind::None => {}
                ActivationKind::Clamp => {
                    for x in values {
                        *x = S::min(b, S::max(a, *x));
                    }
                }
                ActivationKind::Leaky => {
                    for x in values {
                        *x = S::fma(a, S::min(zero, *x), S::max(zero, *x));
                    }
                }
                ActivationKind::HardSwish => {
                    for x in values {
                        let gate = S::min(S::splat(1.0), S::max(zero, S::fma(a, *x, b)));
                        *x = S::mul(*x, gate);
                    }
                }
            }
        }
    }
}

/// # Safety
/// As [`Simd`]; `residual` is valid for `count` reads.
#[inline(always)]
unsafe fn add<S: Simd, const V: usize>(values: &mut [S::V; V], residual: *const f32, count: usize) {
    // SAFETY: the caller upholds the contract above.
    unsafe {
        for v in 0..V {
            let residual = residual.wrapping_add(v * S::LANES);
            let loaded = if count >= V * S::LANES {
                S::load(residual)
            } else {
                S::load_part(residual, count.saturating_sub(v * S::LANES).min(S::LANES))
            };
            values[v] = S::add(values[v], loaded);
        }
    }
}
