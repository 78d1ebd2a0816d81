//! Which page leaves the EPC for which: the policy alone. Touches go in, actions come out; it
//! does no I/O, so a simulator that follows the same rules finds the same counts.
//!
//! An EPC of `capacity` pages is shared by all tenants. A page is untouched; mapped; unmapped:
//! still in the EPC, but a touch is seen and costs a soft fault; or evicted: sealed outside.
//! Mapped and unmapped pages together are never more than the capacity. Unmapped pages are at most
//! `max(BATCH, capacity / 8)`. Two queues: mapped pages in order of their last mapping, and
//! unmapped pages in order of their unmapping.
//!
//! - A touch of a mapped page is free and unseen.
//! - A touch of an unmapped page, a soft fault: it goes to the tail of the mapped queue; then the
//!   unmapped queue is refilled.
//! - A touch of an untouched or evicted page, a hard fault: if the EPC is full, a batch is
//!   reclaimed, which evicts up to [`BATCH`] pages from the head of the unmapped queue (which is
//!   refilled first if it is empty). The page goes to the tail of the mapped queue. After a
//!   reclaim the unmapped queue is refilled.
//! - Refilling unmaps pages from the head of the mapped queue until the unmapped queue is at its
//!   limit, as long as fewer than [`BATCH`] pages of the EPC are free.
//!
//! This is Linux's SGX reclaimer (`arch/x86/kernel/cpu/sgx/main.c`): a list in order of loading,
//! batches of 16 (`SGX_NR_TO_SCAN`), a second chance for pages touched since. Its hardware keeps
//! an accessed bit; here unmapping ahead of eviction takes the bit's place, which is the
//! segmented FIFO of VMS (Turner and Levy, SIGMETRICS 1981).

use serde::Serialize;
use std::collections::BTreeMap;

/// Pages evicted at a time.
pub const BATCH: usize = 16;

/// The least capacity, in pages. With it 33 pages at least are mapped whenever pages are being
/// unmapped, so that an instruction that touches several pages finds them all mapped at last.
pub const LEAST_CAPACITY: usize = 64;

/// A page of a tenant; tenants are numbered in order of admission, pages from the start of the
/// tenant's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Page {
    pub tenant: u32,
    pub number: u32,
}

/// What is to be done with a page; in the order given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Take it out of the tenant's reach; keep its content.
    Unmap(Page),
    /// Seal an unmapped page and put it outside.
    Evict(Page),
    /// Map an untouched page: zeros.
    MapZeros(Page),
    /// Map an unmapped page again.
    MapAgain(Page),
    /// Fetch, authenticate and map an evicted page.
    Fetch(Page),
}

/// What a touch found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    Mapped,
    Soft,
    Hard,
}

/// What happened to a tenant's pages since it was admitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Pages mapped now.
    pub mapped: u64,
    /// Pages unmapped now.
    pub unmapped: u64,
    /// Hard faults on untouched pages.
    pub first: u64,
    /// Hard faults on evicted pages.
    pub fetched: u64,
    /// Soft faults.
    pub soft: u64,
    /// Evictions.
    pub evicted: u64,
}

/// A place in a queue; later entries are greater, and none is used twice.
type Turn = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Untouched,
    Mapped(Turn),
    Unmapped(Turn),
    Evicted,
}

struct Tenant {
    pages: Vec<State>,
    counts: Counts,
}

/// The policy and its state.
pub struct Pager {
    capacity: usize,
    peak: usize,
    next_turn: Turn,
    mapped: BTreeMap<Turn, Page>,
    unmapped: BTreeMap<Turn, Page>,
    tenants: Vec<Tenant>,
}

impl Pager {
    /// `capacity` is in pages, and raised to [`LEAST_CAPACITY`].
    pub fn new(capacity: usize) -> Self {
        Pager {
            capacity: capacity.max(LEAST_CAPACITY),
            peak: 0,
            next_turn: 0,
            mapped: BTreeMap::new(),
            unmapped: BTreeMap::new(),
            tenants: Vec::new(),
        }
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Pages in the EPC.
    pub fn used(&self) -> usize {
        self.mapped.len() + self.unmapped.len()
    }

    /// The most pages that were ever in the EPC.
    pub fn peak_used(&self) -> usize {
        self.peak
    }

    /// Admits a tenant of `page_count` pages, all untouched; gives its number.
    pub fn admit(&mut self, page_count: usize) -> u32 {
        self.tenants.push(Tenant {
            pages: vec![State::Untouched; page_count],
            counts: Counts::default(),
        });
        (self.tenants.len() - 1) as u32
    }

    /// A tenant's counts; they stay when it has left.
    pub fn counts(&self, tenant: u32) -> Counts {
        self.tenants
            .get(tenant as usize)
            .map(|t| t.counts)
            .unwrap_or_default()
    }

    /// A tenant leaves: none of its pages is in the EPC or outside any more.
    pub fn leave(&mut self, tenant: u32) {
        self.mapped.retain(|_, page| page.tenant != tenant);
        self.unmapped.retain(|_, page| page.tenant != tenant);
        if let Some(tenant) = self.tenants.get_mut(tenant as usize) {
            tenant.pages = Vec::new();
            tenant.counts.mapped = 0;
            tenant.counts.unmapped = 0;
        }
    }

    /// A page is touched. What is to be done is added to `actions`, the mapping of the page last:
    /// when the toucher goes on, all else has been done, and its next touch finds the queues as
    /// they are here. A page outside its tenant's memory, or of a tenant that has left, counts as
    /// mapped.
    pub fn touch(&mut self, page: Page, actions: &mut Vec<Action>) -> Touch {
        match self.state(page) {
            None | Some(State::Mapped(_)) => Touch::Mapped,
            Some(State::Unmapped(turn)) => {
                self.unmapped.remove(&turn);
                let counts = self.counts_of(page);
                counts.unmapped -= 1;
                counts.soft += 1;
                self.map(page);
                self.refill(actions);
                actions.push(Action::MapAgain(page));
                Touch::Soft
            }
            Some(state) => {
                let full = self.used() >= self.capacity;
                if full {
                    self.evict(BATCH, actions);
                }
                self.map(page);
                self.peak = self.peak.max(self.used());
                if full {
                    self.refill(actions);
                }
                if state == State::Evicted {
                    self.counts_of(page).fetched += 1;
                    actions.push(Action::Fetch(page));
                } else {
                    self.counts_of(page).first += 1;
                    actions.push(Action::MapZeros(page));
                }
                Touch::Hard
            }
        }
    }

    /// Changes the capacity, raised to [`LEAST_CAPACITY`]; evicts at once what is too much.
    pub fn resize(&mut self, capacity: usize, actions: &mut Vec<Action>) {
        self.capacity = capacity.max(LEAST_CAPACITY);
        while self.used() > self.capacity {
            self.evict(self.used() - self.capacity, actions);
        }
        self.evict(self.unmapped.len().saturating_sub(self.limit()), actions);
        self.refill(actions);
    }

    /// The most pages that may be unmapped.
    fn limit(&self) -> usize {
        BATCH.max(self.capacity / 8)
    }

    fn refill(&mut self, actions: &mut Vec<Action>) {
        if self.used() + BATCH <= self.capacity {
            return;
        }
        while self.unmapped.len() < self.limit() {
            let Some((_, page)) = self.mapped.pop_first() else {
                break;
            };
            let turn = self.turn();
            self.unmapped.insert(turn, page);
            self.set(page, State::Unmapped(turn));
            let counts = self.counts_of(page);
            counts.mapped -= 1;
            counts.unmapped += 1;
            actions.push(Action::Unmap(page));
        }
    }

    /// Evicts up to `count` of the pages unmapped first.
    fn evict(&mut self, count: usize, actions: &mut Vec<Action>) {
        if self.unmapped.is_empty() && count > 0 {
            self.refill(actions);
        }
        for _ in 0..count {
            let Some((_, page)) = self.unmapped.pop_first() else {
                break;
            };
            self.set(page, State::Evicted);
            let counts = self.counts_of(page);
            counts.unmapped -= 1;
            counts.evicted += 1;
            actions.push(Action::Evict(page));
        }
    }

    fn map(&mut self, page: Page) {
        let turn = self.turn();
        self.mapped.insert(turn, page);
        self.set(page, State::Mapped(turn));
        self.counts_of(page).mapped += 1;
    }

    fn turn(&mut self) -> Turn {
        self.next_turn += 1;
        self.next_turn
    }

    fn state(&self, page: Page) -> Option<State> {
        let tenant = self.tenants.get(page.tenant as usize)?;
        tenant.pages.get(page.number as usize).copied()
    }

    /// Only for pages that [`Self::state`] knows.
    fn set(&mut self, page: Page, state: State) {
        self.tenants[page.tenant as usize].pages[page.number as usize] = state;
    }

    /// Only for pages that [`Self::state`] knows.
    fn counts_of(&mut self, page: Page) -> &mut Counts {
        &mut self.tenants[page.tenant as usize].counts
    }
}

#[cfg(test)]
mod tests;
