//! The set of bytes a view touches, as runs of bytes repeated along a few dimensions.

use super::bitmap::Bitmap;
use crate::program::{MAX_RANK, View};
use crate::refusal::Fault;

const MAX_STRIDE: u64 = 1 << 40;

/// Runs of `run` bytes from `base`, repeated along `dims` of `(length, stride in bytes)`.
///
/// Dimensions of one element or of stride 0 add nothing and are left out; those of negative
/// stride are turned around; what is contiguous, or overlaps into one piece, is one run.
#[derive(Clone, Copy, Debug)]
pub struct Nest {
    base: u64,
    run: u64,
    dims: [(u64, u64); MAX_RANK],
    rank: usize,
    end: u64,
}

impl Nest {
    /// The bytes of one contiguous range.
    pub fn run(base: u64, size: u64) -> Self {
        Nest {
            base,
            run: size,
            dims: [(1, 0); MAX_RANK],
            rank: 0,
            end: base + size,
        }
    }

    /// The bytes of `view`, all of them checked to lie in `0..limit` and aligned.
    pub fn of(view: &View, limit: u64) -> Result<Self, Fault> {
        let size = view.dtype.size();
        if view.shape.len() > MAX_RANK || view.shape.len() != view.strides.len() {
            return Err(Fault::Rank);
        }
        if view.shape.contains(&0) {
            return Err(Fault::EmptyDimension);
        }
        if view.strides.iter().any(|s| s.unsigned_abs() > MAX_STRIDE) {
            return Err(Fault::StrideTooLarge);
        }
        let count = view
            .shape
            .iter()
            .try_fold(1u64, |n, &d| n.checked_mul(u64::from(d)));
        if count.is_none_or(|n| n > 1 << 56) {
            return Err(Fault::Overflow);
        }
        if !view.offset.is_multiple_of(size) {
            return Err(Fault::Misaligned);
        }
        // At most 8 terms below 2^(32 + 40 + 3): no overflow in 128 bits.
        let mut low = i128::from(view.offset);
        let mut high = low + i128::from(size);
        for (&d, &s) in view.shape.iter().zip(&view.strides) {
            let reach = (i128::from(d) - 1) * i128::from(s) * i128::from(size);
            low += reach.min(0);
            high += reach.max(0);
        }
        if low < 0 || high > i128::from(limit) {
            return Err(Fault::OutsideRegion);
        }
        // Inside 0..limit, so both fit.
        let base = u64::try_from(low).map_err(|_| Fault::Overflow)?;
        let end = u64::try_from(high).map_err(|_| Fault::Overflow)?;
        let mut nest = Nest {
            base,
            run: size,
            dims: [(1, 0); MAX_RANK],
            rank: 0,
            end,
        };
        for (length, stride) in ascending(view) {
            nest.repeat(length, stride);
        }
        Ok(nest)
    }

    /// Repeats the set along a further dimension, of no smaller stride than those before.
    fn repeat(&mut self, length: u64, stride: u64) {
        if self.rank == 0 && stride <= self.run {
            self.run += (length - 1) * stride;
            return;
        }
        if let Some(last) = self.dims.get_mut(self.rank.wrapping_sub(1))
            && last.0.checked_mul(last.1) == Some(stride)
        {
            last.0 *= length;
            return;
        }
        if let Some(next) = self.dims.get_mut(self.rank) {
            *next = (length, stride);
            self.rank += 1;
        }
    }

    pub fn start(&self) -> u64 {
        self.base
    }

    pub fn end(&self) -> u64 {
        self.end
    }

    /// Whether it lies on both sides of `edge`.
    pub fn straddles(&self, edge: u64) -> bool {
        self.base < edge && edge < self.end
    }

    fn dims(&self) -> &[(u64, u64)] {
        self.dims.get(..self.rank).unwrap_or_default()
    }

    /// Words of a bitmap that going through the nest looks at, at most.
    pub fn work(&self) -> u128 {
        let runs = self
            .dims()
            .iter()
            .map(|d| u128::from(d.0))
            .fold(1, u128::saturating_mul);
        runs.saturating_mul(u128::from(self.run / 64) + 2)
    }

    /// Calls `each` with the start of every run until it returns false; whether it never did.
    fn runs(&self, mut each: impl FnMut(u64, u64) -> bool) -> bool {
        let mut index = [0u64; MAX_RANK];
        let mut start = self.base;
        loop {
            if !each(start, self.run) {
                return false;
            }
            let mut carried = true;
            for (i, &(length, stride)) in index.iter_mut().zip(self.dims()) {
                *i += 1;
                start += stride;
                if *i < length {
                    carried = false;
                    break;
                }
                start -= length * stride;
                *i = 0;
            }
            if carried {
                return true;
            }
        }
    }

    pub fn set(&self, bits: &mut Bitmap) {
        self.runs(|start, size| {
            bits.set(start, size);
            true
        });
    }

    pub fn clear(&self, bits: &mut Bitmap) {
        self.runs(|start, size| {
            bits.clear(start, size);
            true
        });
    }

    pub fn all(&self, bits: &Bitmap) -> bool {
        self.runs(|start, size| bits.all(start, size))
    }

    pub fn any(&self, bits: &Bitmap) -> bool {
        !self.runs(|start, size| !bits.any(start, size))
    }
}

/// The dimensions that move, as length and positive stride in bytes, smallest stride first.
fn ascending(view: &View) -> impl Iterator<Item = (u64, u64)> {
    let mut dims = [(1u64, 0u64); MAX_RANK];
    for (dim, (&d, &s)) in dims.iter_mut().zip(view.shape.iter().zip(&view.strides)) {
        *dim = (u64::from(d), s.unsigned_abs() * view.dtype.size());
    }
    dims.sort_unstable_by_key(|dim| dim.1);
    dims.into_iter()
        .filter(|&(length, stride)| length > 1 && stride > 0)
}

/// Checks that no two elements of a view that is written share a byte: its strides are positive,
/// and each is at least what all smaller ones span.
pub fn check_written(view: &View) -> Result<(), Fault> {
    if view
        .shape
        .iter()
        .zip(&view.strides)
        .any(|(&d, &s)| d > 1 && s <= 0)
    {
        return Err(Fault::NegativeOutputStride);
    }
    let mut span = view.dtype.size();
    for (length, stride) in ascending(view) {
        if stride < span {
            return Err(Fault::OverlapsItself);
        }
        let reach = (length - 1).checked_mul(stride).ok_or(Fault::Overflow)?;
        span = span.checked_add(reach).ok_or(Fault::Overflow)?;
    }
    Ok(())
}

/// C-contiguous, but for the strides of dimensions of one element.
pub fn is_dense(view: &View) -> bool {
    let mut step = 1i64;
    for (&d, &s) in view.shape.iter().zip(&view.strides).rev() {
        if d > 1 && s != step {
            return false;
        }
        step = step.saturating_mul(i64::from(d));
    }
    true
}

/// Exactly the same elements in the same order.
pub fn same(a: &View, b: &View) -> bool {
    a.offset == b.offset
        && a.dtype == b.dtype
        && a.shape == b.shape
        && a.shape
            .iter()
            .zip(a.strides.iter().zip(&b.strides))
            .all(|(&d, (s, t))| d == 1 || s == t)
}
