//! The kernels: one file for each kind of instruction, each with one `run` that all workers call.
//!
//! They trust what the validator has checked, and say at each `unsafe` what of it they need.

pub mod conv;
pub mod copy;
pub mod depthwise;
mod epilogue;
pub mod gather;
pub mod load;
pub mod map;
mod math;
pub mod matmul;
pub mod pool;
pub mod reduce;
mod simd;
mod strided;
pub mod winograd;

use crate::refusal::Refusal;
use core::ops::Range;

/// The instruction set the kernels use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    Avx512,
    Avx2,
    Portable,
}

impl Isa {
    /// The best the CPU has, or the one that the environment variable `VESSELS_ISA` names.
    pub fn detect() -> Result<Isa, Refusal> {
        let best = [Isa::Avx512, Isa::Avx2]
            .into_iter()
            .find(|isa| isa.available());
        let Some(wanted) = std::env::var_os("VESSELS_ISA") else {
            return Ok(best.unwrap_or(Isa::Portable));
        };
        let isa = [Isa::Avx512, Isa::Avx2, Isa::Portable]
            .into_iter()
            .find(|isa| wanted == isa.name())
            .ok_or(Refusal::UnknownIsa)?;
        if isa.available() {
            Ok(isa)
        } else {
            Err(Refusal::UnavailableIsa { name: isa.name() })
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Portable => "portable",
        }
    }

    /// Whether this CPU has it.
    #[cfg(target_arch = "x86_64")]
    pub fn available(self) -> bool {
        let avx2 = || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        match self {
            Isa::Avx512 => {
                avx2()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            Isa::Avx2 => avx2(),
            Isa::Portable => true,
        }
    }

    /// Whether this CPU has it.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn available(self) -> bool {
        self == Isa::Portable
    }
}

/// Part `index` of `parts` nearly even ones of `range`.
#[inline]
pub fn split(range: &Range<usize>, parts: usize, index: usize) -> Range<usize> {
    let parts = parts.max(1);
    let (length, extra) = (range.len() / parts, range.len() % parts);
    let start = range.start + index * length + index.min(extra);
    start..start + length + usize::from(index < extra)
}

/// Into how many parts each of `group_count` groups is cut, so that the parts divide evenly among
/// the workers; groups that are many divide evenly enough whole.
pub fn share_evenly(group_count: usize, worker_count: usize) -> usize {
    if group_count >= 8 * worker_count {
        1
    } else {
        worker_count / gcd(group_count, worker_count)
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a.max(1) } else { gcd(b, a % b) }
}

/// Compiles a body, an `#[inline(always)]` function, once for each instruction set, and makes a
/// function that chooses among them.
macro_rules! for_each_isa {
    ($(#[$meta:meta])* fn $name:ident = $body:ident($($arg:ident: $type:ty),* $(,)?)) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        fn $name(isa: $crate::kernels::Isa, $($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            #[allow(clippy::too_many_arguments)]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512($($arg: $type),*) {
                $body($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[allow(clippy::too_many_arguments)]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $type),*) {
                $body($($arg),*)
            }
            match isa {
                // SAFETY: an Isa is only chosen where the CPU has it.
                #[cfg(target_arch = "x86_64")]
                $crate::kernels::Isa::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::kernels::Isa::Avx2 => unsafe { avx2($($arg),*) },
                _ => $body($($arg),*),
            }
        }
    };
}
use for_each_isa;

#[cfg(test)]
mod tests;
