//! One bit for each place of the pool, in memory that is given back after validation.

use crate::pool::Words;
use crate::refusal::Refusal;

pub struct Bitmap {
    words: Words,
    granule: u64,
}

impl Bitmap {
    /// Covers `size` bytes with a bit for every `granule` of them, all clear.
    pub fn new(size: u64, granule: u64) -> Result<Self, Refusal> {
        Ok(Bitmap {
            words: Words::map(size.div_ceil(granule * 64))?,
            granule,
        })
    }

    /// The words a byte range touches, with the bits of each. Ranges are multiples of the
    /// granule.
    fn masks(&self, start: u64, size: u64) -> impl Iterator<Item = (usize, u64)> + use<> {
        let first = start / self.granule;
        let last = first + size / self.granule;
        (first / 64..last.div_ceil(64)).map(move |word| {
            let low = first.max(word * 64) - word * 64;
            let high = last.min(word * 64 + 64) - word * 64;
            let mask = if high - low == 64 {
                u64::MAX
            } else {
                ((1 << (high - low)) - 1) << low
            };
            (word as usize, mask)
        })
    }

    pub fn set(&mut self, start: u64, size: u64) {
        for (word, mask) in self.masks(start, size) {
            if let Some(bits) = self.words.get_mut().get_mut(word) {
                *bits |= mask;
            }
        }
    }

    pub fn clear(&mut self, start: u64, size: u64) {
        for (word, mask) in self.masks(start, size) {
            if let Some(bits) = self.words.get_mut().get_mut(word) {
                *bits &= !mask;
            }
        }
    }

    /// Whether every bit is set; false for a range outside.
    pub fn all(&self, start: u64, size: u64) -> bool {
        self.masks(start, size).all(|(word, mask)| {
            self.words
                .get()
                .get(word)
                .is_some_and(|bits| bits & mask == mask)
        })
    }

    /// Whether any bit is set; true for a range outside.
    pub fn any(&self, start: u64, size: u64) -> bool {
        self.masks(start, size).any(|(word, mask)| {
            self.words
                .get()
                .get(word)
                .is_none_or(|bits| bits & mask != 0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_across_words() {
        for granule in [1, 4] {
            for (start, count) in [(0, 1), (0, 64), (3, 64), (63, 2), (60, 200), (64, 128)] {
                let mut map = Bitmap::new(512 * granule, granule).expect("maps");
                map.set(start * granule, count * granule);
                for i in 0..512 {
                    let inside = i >= start && i < start + count;
                    assert_eq!(map.any(i * granule, granule), inside);
                    assert_eq!(map.all(i * granule, granule), inside);
                }
                assert!(map.all(start * granule, count * granule));
                assert!(!map.all(start * granule, (count + 1) * granule));
                map.clear(start * granule, count * granule);
                assert!(!map.any(0, 512 * granule));
            }
        }
    }
}
