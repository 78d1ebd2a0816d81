//! The policy against a naive model of it, and what follows from it.

use super::*;
use std::collections::BTreeSet;

/// The rules as they are told, on plain lists.
struct Naive {
    capacity: usize,
    /// Oldest first, both.
    mapped: Vec<Page>,
    unmapped: Vec<Page>,
    evicted: BTreeSet<Page>,
}

impl Naive {
    fn new(capacity: usize) -> Self {
        Naive {
            capacity,
            mapped: Vec::new(),
            unmapped: Vec::new(),
            evicted: BTreeSet::new(),
        }
    }

    fn used(&self) -> usize {
        self.mapped.len() + self.unmapped.len()
    }

    fn limit(&self) -> usize {
        usize::max(16, self.capacity / 8)
    }

    fn touch(&mut self, page: Page) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.mapped.contains(&page) {
            return actions;
        }
        if self.unmapped.contains(&page) {
            self.unmapped.retain(|&p| p != page);
            self.mapped.push(page);
            self.refill(&mut actions);
            actions.push(Action::MapAgain(page));
            return actions;
        }
        let full = self.used() == self.capacity;
        if full {
            if self.unmapped.is_empty() {
                self.refill(&mut actions);
            }
            self.evict(16, &mut actions);
        }
        let outside = self.evicted.remove(&page);
        self.mapped.push(page);
        if full {
            self.refill(&mut actions);
        }
        actions.push(if outside {
            Action::Fetch(page)
        } else {
            Action::MapZeros(page)
        });
        actions
    }

    fn resize(&mut self, capacity: usize) -> Vec<Action> {
        let mut actions = Vec::new();
        self.capacity = capacity;
        while self.used() > self.capacity {
            if self.unmapped.is_empty() {
                self.refill(&mut actions);
            }
            self.evict(self.used() - self.capacity, &mut actions);
        }
        let surplus = self.unmapped.len().saturating_sub(self.limit());
        self.evict(surplus, &mut actions);
        self.refill(&mut actions);
        actions
    }

    fn leave(&mut self, tenant: u32) {
        self.mapped.retain(|p| p.tenant != tenant);
        self.unmapped.retain(|p| p.tenant != tenant);
        self.evicted.retain(|p| p.tenant != tenant);
    }

    fn refill(&mut self, actions: &mut Vec<Action>) {
        while self.used() > self.capacity - 16
            && self.unmapped.len() < self.limit()
            && !self.mapped.is_empty()
        {
            let page = self.mapped.remove(0);
            self.unmapped.push(page);
            actions.push(Action::Unmap(page));
        }
    }

    fn evict(&mut self, count: usize, actions: &mut Vec<Action>) {
        for _ in 0..count.min(self.unmapped.len()) {
            let page = self.unmapped.remove(0);
            self.evicted.insert(page);
            actions.push(Action::Evict(page));
        }
    }
}

/// Numbers that look random, the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound
    }
}

fn touch(pager: &mut Pager, tenant: u32, number: u32) -> Touch {
    pager.touch(Page { tenant, number }, &mut Vec::new())
}

#[test]
fn it_does_what_a_naive_model_does() {
    for seed in 1..=40 {
        let mut random = Random(seed);
        let mut capacity = LEAST_CAPACITY + random.below(300);
        let mut pager = Pager::new(capacity);
        let mut naive = Naive::new(capacity);
        let sizes: Vec<usize> = (0..3).map(|_| 1 + random.below(2 * capacity)).collect();
        for &size in &sizes {
            pager.admit(size);
        }
        let mut left = None;
        let (mut at, mut span) = (0, 1);
        for step in 0..4000 {
            if step % 150 == 0 {
                (at, span) = (random.below(capacity), 1 + random.below(2 * capacity));
            }
            let tenant = random.below(sizes.len());
            let mut actions = Vec::new();
            let expected = if random.below(500) == 0 {
                capacity = LEAST_CAPACITY + random.below(300);
                pager.resize(capacity, &mut actions);
                naive.resize(capacity)
            } else if left.is_none() && random.below(3000) == 0 {
                left = Some(tenant);
                pager.leave(tenant as u32);
                naive.leave(tenant as u32);
                Vec::new()
            } else if left == Some(tenant) {
                Vec::new()
            } else {
                // Now a sweep, now jumps within a part of the memory.
                let offset = if seed % 2 == 0 {
                    step
                } else {
                    random.below(span)
                };
                let page = Page {
                    tenant: tenant as u32,
                    number: ((at + offset) % sizes[tenant]) as u32,
                };
                let touch = pager.touch(page, &mut actions);
                assert_eq!(touch == Touch::Mapped, actions.is_empty());
                naive.touch(page)
            };
            assert_eq!(actions, expected, "seed {seed}, step {step}");
            assert_eq!(pager.used(), naive.used());
            assert!(pager.used() <= capacity);
            assert!(pager.unmapped.len() <= pager.limit());
        }
        let counts: Vec<_> = (0..3).map(|tenant| pager.counts(tenant)).collect();
        let mapped: u64 = counts.iter().map(|c| c.mapped).sum();
        let unmapped: u64 = counts.iter().map(|c| c.unmapped).sum();
        assert_eq!(mapped, naive.mapped.len() as u64);
        assert_eq!(unmapped, naive.unmapped.len() as u64);
        let peak = pager.peak_used();
        assert!(peak >= pager.used() && peak <= LEAST_CAPACITY + 300);
    }
}

#[test]
fn what_fits_faults_once() {
    let mut pager = Pager::new(100);
    let tenant = pager.admit(100);
    for _ in 0..5 {
        for number in 0..100 {
            touch(&mut pager, tenant, number);
        }
    }
    let expected = Counts {
        mapped: 100,
        first: 100,
        ..Counts::default()
    };
    assert_eq!(pager.counts(tenant), expected);
}

#[test]
fn a_sweep_over_twice_the_capacity_always_faults() {
    let mut pager = Pager::new(128);
    let tenant = pager.admit(256);
    for _ in 0..4 {
        for number in 0..256 {
            assert_eq!(touch(&mut pager, tenant, number), Touch::Hard);
        }
    }
    let counts = pager.counts(tenant);
    assert_eq!((counts.first, counts.fetched, counts.soft), (256, 768, 0));
    assert_eq!(counts.evicted as usize, 4 * 256 - pager.used());
}

#[test]
fn a_page_touched_again_and_again_stays() {
    let mut pager = Pager::new(128);
    let tenant = pager.admit(1001);
    let mut hard_count = 0;
    for number in 1..=1000 {
        touch(&mut pager, tenant, number);
        hard_count += u32::from(touch(&mut pager, tenant, 0) == Touch::Hard);
    }
    // Once for its first touch; once because the first reclaim finds nothing unmapped before.
    assert_eq!(hard_count, 2);
    assert!(pager.counts(tenant).soft > 5);
}

#[test]
fn pages_remain_mapped_while_pages_are_unmapped() {
    let mut random = Random(1);
    let mut pager = Pager::new(LEAST_CAPACITY);
    let tenant = pager.admit(300);
    for _ in 0..10_000 {
        let number = random.below(300) as u32;
        touch(&mut pager, tenant, number);
        let counts = pager.counts(tenant);
        assert!(counts.unmapped == 0 || counts.mapped >= 33);
    }
}

#[test]
fn tenants_share_the_capacity_and_give_it_back() {
    let mut pager = Pager::new(100);
    let (first, second) = (pager.admit(80), pager.admit(80));
    for number in 0..80 {
        touch(&mut pager, first, number);
        touch(&mut pager, second, number);
    }
    assert!(pager.used() <= 100 && pager.counts(first).evicted > 0);
    pager.leave(first);
    assert_eq!(pager.used() as u64, {
        let counts = pager.counts(second);
        counts.mapped + counts.unmapped
    });
    assert_eq!(touch(&mut pager, first, 0), Touch::Mapped);
    for number in 0..80 {
        touch(&mut pager, second, number);
    }
    let evicted = pager.counts(second).evicted;
    for number in 0..80 {
        touch(&mut pager, second, number);
    }
    assert_eq!(pager.counts(second).evicted, evicted);
}

#[test]
fn what_does_not_exist_is_not_touched() {
    let mut pager = Pager::new(100);
    let tenant = pager.admit(5);
    assert_eq!(touch(&mut pager, tenant, 5), Touch::Mapped);
    assert_eq!(touch(&mut pager, tenant + 1, 0), Touch::Mapped);
    assert_eq!(pager.used(), 0);
}
