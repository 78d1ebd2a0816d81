//! The slots of an environment: an I/O region and an arena each, over one set of parameters.
//!
//! A program's offsets are those of slot 0, which begins the pool. What all slots share follows
//! it, and after that the other slots. One run takes any of them in lockstep: each instruction
//! is done for all slots of the run before the next, so a streamed chunk is opened once for all.

use crate::layout::Layout;
use crate::pool::Pool;
use crate::refusal::Refusal;
use core::sync::atomic::{AtomicU64, Ordering};

/// Most slots of an environment: one bit each in [`Slots::begin`].
pub const MAX_SLOTS: usize = 64;

/// Where the slots lie, and how they fare in the current run.
pub struct Slots {
    /// Bytes of one slot.
    size: u64,
    /// Offset of slot 1.
    second: u64,
    /// One bit for each slot of the run.
    used: AtomicU64,
    /// For each slot the length of the dimension outside of which an index lay; 0 for none.
    wrong: Box<[AtomicU64]>,
}

impl Slots {
    /// `count` slots over a validated layout.
    pub fn new(layout: &Layout, count: usize) -> Self {
        Slots {
            size: layout.io_size + layout.arena_size,
            second: layout.size(),
            used: AtomicU64::new(0),
            wrong: (0..count.clamp(1, MAX_SLOTS))
                .map(|_| AtomicU64::new(0))
                .collect(),
        }
    }

    pub fn count(&self) -> usize {
        self.wrong.len()
    }

    /// Bytes of a pool for all slots and what they share.
    pub fn pool_size(&self) -> Result<u64, Refusal> {
        self.size
            .checked_mul(self.count() as u64 - 1)
            .and_then(|size| size.checked_add(self.second))
            .ok_or(Refusal::System {
                what: "mapping memory",
                errno: libc::ENOMEM,
            })
    }

    /// Where a slot begins.
    pub fn offset(&self, slot: usize) -> u64 {
        match slot as u64 {
            0 => 0,
            slot => self.second + (slot - 1) * self.size,
        }
    }

    /// Begins a run of the slots whose bits are set in `used`.
    pub fn begin(&self, used: u64) {
        for wrong in &self.wrong {
            wrong.store(0, Ordering::Relaxed);
        }
        self.used.store(used, Ordering::Relaxed);
    }

    /// The length of the first dimension outside of which an index of this slot lay.
    pub fn wrong_index(&self, slot: usize) -> Option<u64> {
        let length = self.wrong.get(slot)?.load(Ordering::Relaxed);
        (length > 0).then_some(length)
    }

    /// The slots of the run, for one worker.
    pub fn batch<'a>(&'a self, pool: &'a Pool) -> Batch<'a> {
        let mut batch = Batch {
            slots: self,
            pool,
            count: 0,
            numbers: [0; MAX_SLOTS],
            shifts: [0; MAX_SLOTS],
        };
        let used = self.used.load(Ordering::Relaxed);
        for slot in (0..self.count()).filter(|slot| used >> slot & 1 == 1) {
            if let (Some(number), Some(shift)) = (
                batch.numbers.get_mut(batch.count),
                batch.shifts.get_mut(batch.count),
            ) {
                *number = slot;
                *shift = self.offset(slot) as usize;
                batch.count += 1;
            }
        }
        batch
    }
}

/// The slots of one run, numbered as the run takes them.
pub struct Batch<'a> {
    slots: &'a Slots,
    pool: &'a Pool,
    count: usize,
    /// Which slots of the environment they are.
    numbers: [usize; MAX_SLOTS],
    shifts: [usize; MAX_SLOTS],
}

impl Batch<'_> {
    /// Slots of the run.
    pub fn count(&self) -> usize {
        self.count
    }

    /// How far each slot lies from slot 0, in bytes.
    pub fn shifts(&self) -> &[usize] {
        self.shifts.get(..self.count).unwrap_or_default()
    }

    /// How far slot `index` of the run lies from slot 0, in bytes.
    #[inline]
    pub fn shift(&self, index: usize) -> usize {
        self.shifts.get(index).copied().unwrap_or(0)
    }

    /// Whether what lies at this offset is one for all slots.
    #[inline]
    pub fn shares(&self, offset: u64) -> bool {
        offset >= self.slots.size
    }

    /// Address of a byte of a view as slot `index` of the run has it.
    #[inline]
    pub fn at(&self, offset: u64, index: usize) -> *mut u8 {
        let shift = if self.shares(offset) {
            0
        } else {
            self.shift(index)
        };
        self.pool.at(offset).wrapping_add(shift)
    }

    /// Marks slot `index` of the run: an index of its request lies outside of a dimension of
    /// `length`. Of several the first counts; with 0 nothing is marked, and the same is done.
    pub fn mark_index(&self, index: usize, length: u64) {
        let number = self.numbers.get(index).copied().unwrap_or(0);
        if let Some(wrong) = self.slots.wrong.get(number) {
            let _ = wrong.compare_exchange(0, length, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::anonymous;

    const LAYOUT: Layout = Layout {
        io_size: 128,
        arena_size: 192,
        resident_size: 64,
        staging_size: 64,
        thread_count: 2,
    };

    #[test]
    fn slots_fill_the_pool_around_what_they_share() {
        let slots = Slots::new(&LAYOUT, 4);
        let begins: Vec<u64> = (0..4).map(|slot| slots.offset(slot)).collect();
        assert_eq!(begins, [0, 512, 832, 1152]);
        assert_eq!(slots.pool_size(), Ok(1152 + 320));
        assert_eq!(Slots::new(&LAYOUT, 1).pool_size(), Ok(512));
        assert_eq!(Slots::new(&LAYOUT, 1000).count(), MAX_SLOTS);
    }

    #[test]
    fn a_batch_has_the_slots_it_began_with_and_marks_theirs() {
        let slots = Slots::new(&LAYOUT, MAX_SLOTS);
        let pool = Pool::new(slots.pool_size().expect("is small"), &anonymous).expect("maps");
        for used in [1 << 63 | 0b101, u64::MAX, 0] {
            slots.begin(used);
            let batch = slots.batch(&pool);
            let due = (0..MAX_SLOTS).filter(|slot| used >> slot & 1 == 1);
            assert_eq!(batch.count(), used.count_ones() as usize);
            for (index, slot) in due.clone().enumerate() {
                let begin = slots.offset(slot);
                assert_eq!(batch.at(319, index), pool.at(begin + 319));
                assert_eq!(batch.at(320, index), pool.at(320));
                batch.mark_index(index, 0);
                assert_eq!(slots.wrong_index(slot), None);
                batch.mark_index(index, 5);
                batch.mark_index(index, 7);
            }
            for slot in 0..MAX_SLOTS {
                let due = (used >> slot & 1 == 1).then_some(5);
                assert_eq!(slots.wrong_index(slot), due);
            }
        }
        assert_eq!(slots.wrong_index(MAX_SLOTS), None);
    }
}
