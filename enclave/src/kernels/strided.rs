//! Loops over several views of one shape, in as few dimensions as their strides allow.

use crate::program::{MAX_RANK, View};

/// A loop nest over `N` views; strides in elements. There is always an innermost dimension.
#[derive(Clone, Copy)]
pub struct Loops<const N: usize> {
    rank: usize,
    shape: [usize; MAX_RANK],
    strides: [[isize; N]; MAX_RANK],
}

/// Stride of a view's dimension.
pub fn stride(view: &View, dim: usize) -> isize {
    view.strides.get(dim).map_or(0, |&s| s as isize)
}

/// Length of a view's dimension.
pub fn length(view: &View, dim: usize) -> usize {
    view.shape.get(dim).map_or(1, |&d| d as usize)
}

impl<const N: usize> Loops<N> {
    /// Loops over `dims` (length and each view's stride), outermost first, merging those that
    /// are contiguous in all views.
    pub fn new(dims: impl Iterator<Item = (usize, [isize; N])>) -> Self {
        let mut loops = Loops {
            rank: 0,
            shape: [1; MAX_RANK],
            strides: [[0; N]; MAX_RANK],
        };
        for (length, strides) in dims {
            loops.push(length, strides);
        }
        loops.rank = loops.rank.max(1);
        loops
    }

    /// As [`Loops::new`], reordered so that view `by` is walked through in its memory's order.
    pub fn sorted(dims: impl Iterator<Item = (usize, [isize; N])>, by: usize) -> Self {
        let mut list = [(1usize, [0isize; N]); MAX_RANK];
        let mut count = 0;
        for (place, dim) in list.iter_mut().zip(dims) {
            *place = dim;
            count += 1;
        }
        let list = list.get_mut(..count).unwrap_or_default();
        // An insertion sort: stable and without allocation.
        for end in 1..count {
            let mut i = end;
            while i > 0 {
                let key = |j: usize| {
                    list.get(j)
                        .map_or(0, |dim| dim.1.get(by).map_or(0, |s| s.unsigned_abs()))
                };
                if key(i - 1) >= key(i) {
                    break;
                }
                list.swap(i - 1, i);
                i -= 1;
            }
        }
        Loops::new(list.iter().copied())
    }

    fn push(&mut self, length: usize, strides: [isize; N]) {
        if length == 1 {
            return;
        }
        let last = self.rank.wrapping_sub(1);
        if let (Some(shape), Some(outer)) = (self.shape.get_mut(last), self.strides.get_mut(last))
            && outer
                .iter()
                .zip(&strides)
                .all(|(&o, &s)| s.checked_mul(length as isize) == Some(o))
        {
            *shape *= length;
            *outer = strides;
            return;
        }
        if let (Some(shape), Some(place)) = (
            self.shape.get_mut(self.rank),
            self.strides.get_mut(self.rank),
        ) {
            *shape = length;
            *place = strides;
            self.rank += 1;
        }
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    pub fn dim(&self, index: usize) -> (usize, [isize; N]) {
        (
            self.shape.get(index).copied().unwrap_or(1),
            self.strides.get(index).copied().unwrap_or([0; N]),
        )
    }

    /// Length and strides of the innermost dimension.
    #[inline]
    pub fn inner(&self) -> (usize, [isize; N]) {
        self.dim(self.rank - 1)
    }

    /// Steps of all dimensions but the innermost.
    #[inline]
    pub fn outer_count(&self) -> usize {
        self.shape.iter().take(self.rank - 1).product()
    }

    pub fn count(&self) -> usize {
        self.outer_count() * self.inner().0
    }

    /// Element offsets of the start of inner loop number `index`.
    #[inline]
    pub fn offsets(&self, mut index: usize) -> [isize; N] {
        let mut offsets = [0isize; N];
        let dims = self.shape.iter().zip(&self.strides).take(self.rank - 1);
        for (&length, strides) in dims.rev() {
            let i = (index % length) as isize;
            index /= length;
            for (offset, stride) in offsets.iter_mut().zip(strides) {
                *offset += i * stride;
            }
        }
        offsets
    }

    /// Calls `body` with the offsets of the starts of inner loops `rows`, in order. Faster than
    /// [`Loops::offsets`] for each where there are many short rows.
    #[inline(always)]
    pub fn each_row(&self, rows: core::ops::Range<usize>, mut body: impl FnMut([isize; N])) {
        let mut offsets = self.offsets(rows.start);
        let mut places = [0usize; MAX_RANK];
        let outer = self.rank - 1;
        let mut rest = rows.start;
        for (place, length) in places.iter_mut().zip(&self.shape).take(outer).rev() {
            (*place, rest) = (rest % length, rest / length);
        }
        for _ in rows {
            body(offsets);
            let dims = self.shape.iter().zip(&self.strides).zip(&mut places);
            for ((&length, strides), place) in dims.take(outer).rev() {
                *place += 1;
                let back = if *place == length {
                    *place = 0;
                    length as isize - 1
                } else {
                    -1
                };
                for (offset, stride) in offsets.iter_mut().zip(strides) {
                    *offset -= back * stride;
                }
                if *place > 0 {
                    break;
                }
            }
        }
    }

    /// The loops without two dimensions, over an inner one of length 1.
    pub fn without(&self, skip: [usize; 2]) -> Loops<N> {
        let mut loops = Loops {
            rank: 1,
            shape: [1; MAX_RANK],
            strides: [[0; N]; MAX_RANK],
        };
        let kept = (0..self.rank).filter(|i| !skip.contains(i));
        for ((i, shape), strides) in kept.zip(&mut loops.shape).zip(&mut loops.strides) {
            (*shape, *strides) = self.dim(i);
            loops.rank += 1;
        }
        loops
    }
}

/// Dimensions of two views of one shape.
pub fn pairs<'a>(a: &'a View, b: &'a View) -> impl Iterator<Item = (usize, [isize; 2])> + use<'a> {
    (0..a.shape.len()).map(|i| (length(a, i), [stride(a, i), stride(b, i)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_in_order_are_where_offsets_says() {
        let shape = [3usize, 2, 4, 5];
        let strides = [[100isize, 7], [-31, 0], [9, 50], [1, 3]];
        let loops = Loops::new(shape.into_iter().zip(strides));
        assert_eq!((loops.rank(), loops.outer_count()), (4, 24));
        for start in 0..24 {
            let mut rows = start..;
            loops.each_row(start..24, |offsets| {
                assert_eq!(Some(offsets), rows.next().map(|row| loops.offsets(row)));
            });
            assert_eq!(rows.start, 24);
        }
    }
}
