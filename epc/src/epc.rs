//! The EPC and what lies outside of it: carries out what the policy ([`crate::pager`]) decides.
//!
//! It owns what leaves a tenant's memory: the content of unmapped pages, which counts as being in
//! the EPC, and the sealed store outside.

use crate::pager::{Action, Page, Pager, Touch};
use crate::store::{Frame, PAGE_SIZE, Store, Ticket};
use crate::userfault::{Backing, Given, Taker, Userfault};
use std::io;
use std::mem;
use std::time::{Duration, Instant};

/// Faults of one tenant that are answered before another's.
const TURN: usize = 8;

/// Where a page's content is.
enum Place {
    /// In the tenant's memory; nowhere, if it was never touched.
    There,
    /// Unmapped: here, in the EPC.
    Here(Box<Frame>),
    Outside(Ticket),
}

/// A tenant's memory.
struct Memory {
    userfault: Userfault,
    file: Backing,
    base: u64,
    places: Vec<Place>,
}

impl Memory {
    fn address(&self, page: Page) -> u64 {
        self.base + u64::from(page.number) * PAGE_SIZE as u64
    }
}

/// Why a tenant cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is gone.
    Gone(u32),
    /// A page of it did not authenticate.
    Refused(Page),
}

pub struct Epc {
    pager: Pager,
    store: Store,
    taker: Taker,
    /// By number; `None` of those that have left.
    memories: Vec<Option<Memory>>,
    /// Frames that hold no plain content.
    spare: Vec<Box<Frame>>,
    padding: Duration,
    handler_time: Duration,
}

impl Epc {
    /// An empty EPC of `capacity` pages; `padding` is waited in each hard fault.
    pub fn new(capacity: usize, padding: Duration) -> io::Result<Self> {
        let taker = Taker::new()?;
        if !taker.check()? {
            return Err(io::Error::other("this kernel copies pages that it splices"));
        }
        Ok(Epc {
            pager: Pager::new(capacity),
            store: Store::new().map_err(|_| io::Error::other("no random numbers"))?,
            taker,
            memories: Vec::new(),
            spare: Vec::new(),
            padding,
            handler_time: Duration::ZERO,
        })
    }

    pub fn pager(&self) -> &Pager {
        &self.pager
    }

    /// Time spent in answering faults.
    pub fn handler_time(&self) -> Duration {
        self.handler_time
    }

    /// Admits a tenant with `page_count` untouched pages from the address `base` on; gives its
    /// number.
    pub fn admit(
        &mut self,
        userfault: Userfault,
        file: Backing,
        base: u64,
        page_count: usize,
    ) -> u32 {
        let mut places = Vec::new();
        places.resize_with(page_count, || Place::There);
        self.memories.push(Some(Memory {
            userfault,
            file,
            base,
            places,
        }));
        self.pager.admit(page_count)
    }

    /// Where a tenant's faults are told; `None` of one that has left.
    pub fn userfault(&self, tenant: u32) -> Option<&Userfault> {
        Some(&self.memory(tenant)?.userfault)
    }

    /// A tenant leaves; its pages are given back. It must be where it cannot touch them.
    pub fn release(&mut self, tenant: u32) {
        let Some(memory) = self
            .memories
            .get_mut(tenant as usize)
            .and_then(Option::take)
        else {
            return;
        };
        self.pager.leave(tenant);
        for place in memory.places {
            match place {
                Place::There => {}
                Place::Here(frame) => self.keep(frame),
                Place::Outside(ticket) => self.spare.extend(self.store.discard(ticket)),
            }
        }
        self.store.forget(tenant);
    }

    /// Answers the faults of a tenant, but only so many that others have their turn; gives the
    /// tenants that end by it.
    pub fn answer_faults(&mut self, tenant: u32) -> io::Result<Vec<End>> {
        // One who touches page after page has the next fault ready when this thread goes on.
        for _ in 0..TURN {
            let Some(memory) = self.memory(tenant) else {
                break;
            };
            let Some(address) = memory.userfault.next()? else {
                break;
            };
            let ends = self.answer_fault(tenant, address)?;
            if !ends.is_empty() {
                return Ok(ends);
            }
        }
        Ok(Vec::new())
    }

    fn answer_fault(&mut self, tenant: u32, address: u64) -> io::Result<Vec<End>> {
        let Some(memory) = self.memory(tenant) else {
            return Ok(Vec::new());
        };
        let start = Instant::now();
        let number = (address.wrapping_sub(memory.base) / PAGE_SIZE as u64) as u32;
        let mut actions = Vec::new();
        let touch = self.pager.touch(Page { tenant, number }, &mut actions);
        if touch == Touch::Mapped {
            // The fault of another thread on this page has been answered meanwhile.
            let _ = self.memory(tenant).map(|m| m.userfault.wake(address));
        }
        let ends = self.carry_out(&actions)?;
        self.handler_time += start.elapsed();
        Ok(ends)
    }

    /// Changes the capacity; what is too much is evicted at once.
    pub fn resize(&mut self, capacity: usize) -> io::Result<Vec<End>> {
        let mut actions = Vec::new();
        self.pager.resize(capacity, &mut actions);
        self.carry_out(&actions)
    }

    /// Does to an evicted page of a tenant what an attacker could; gives its number, if there is
    /// one to which it can be done.
    pub fn tamper(&mut self, tenant: u32, alter: impl Alteration) -> Option<u32> {
        let memory = self.memories.get(tenant as usize)?.as_ref()?;
        (0u32..).zip(&memory.places).find_map(|(number, place)| {
            let Place::Outside(ticket) = *place else {
                return None;
            };
            alter(&mut self.store, Page { tenant, number }, ticket).then_some(number)
        })
    }

    fn memory(&self, tenant: u32) -> Option<&Memory> {
        self.memories.get(tenant as usize)?.as_ref()
    }

    fn carry_out(&mut self, actions: &[Action]) -> io::Result<Vec<End>> {
        let mut ends = Vec::new();
        let mut rest = actions;
        while let Some((&first, others)) = rest.split_first() {
            rest = others;
            match first {
                Action::Unmap(_) => {
                    let (pages, after) = unmapped_together(first, others);
                    rest = after;
                    self.unmap(&pages)?;
                }
                Action::Evict(page) => self.evict(page)?,
                Action::MapZeros(page) => ends.extend(self.map_zeros(page)?),
                Action::MapAgain(page) => ends.extend(self.map_again(page)?),
                Action::Fetch(page) => ends.extend(self.fetch(page)?),
            }
        }
        Ok(ends)
    }

    /// `pages` are sorted, and at most [`Taker::MOST`].
    fn unmap(&mut self, pages: &[Page]) -> io::Result<()> {
        let mut frames: Vec<_> = pages.iter().map(|_| self.frame()).collect();
        let runs = pages
            .chunk_by(|a, b| a.tenant == b.tenant && a.number + 1 == b.number)
            .filter_map(|run| {
                let first = run.first()?;
                Some((&self.memory(first.tenant)?.file, first.number, run.len()))
            });
        self.taker.take(runs, &mut frames)?;
        for (&page, frame) in pages.iter().zip(frames) {
            self.put(page, Place::Here(frame));
        }
        Ok(())
    }

    fn evict(&mut self, page: Page) -> io::Result<()> {
        if let Place::Here(frame) = self.put(page, Place::There) {
            let ticket = self
                .store
                .seal(page, frame)
                .map_err(|_| io::Error::other("sealing a page failed"))?;
            self.put(page, Place::Outside(ticket));
        }
        Ok(())
    }

    fn map_zeros(&mut self, page: Page) -> io::Result<Option<End>> {
        self.pad();
        let Some(memory) = self.memory(page.tenant) else {
            return Ok(None);
        };
        let given = memory.userfault.give_zeros(memory.address(page))?;
        Ok((given == Given::Gone).then_some(End::Gone(page.tenant)))
    }

    fn map_again(&mut self, page: Page) -> io::Result<Option<End>> {
        match self.put(page, Place::There) {
            Place::Here(frame) => self.give(page, frame),
            Place::There | Place::Outside(_) => Ok(None),
        }
    }

    fn fetch(&mut self, page: Page) -> io::Result<Option<End>> {
        let Place::Outside(ticket) = self.put(page, Place::There) else {
            return Ok(None);
        };
        let Ok(frame) = self.store.open(page, ticket) else {
            return Ok(Some(End::Refused(page)));
        };
        self.pad();
        self.give(page, frame)
    }

    fn give(&mut self, page: Page, frame: Box<Frame>) -> io::Result<Option<End>> {
        let Some(memory) = self.memory(page.tenant) else {
            return Ok(None);
        };
        let given = memory.userfault.give(memory.address(page), &frame)?;
        self.keep(frame);
        Ok((given == Given::Gone).then_some(End::Gone(page.tenant)))
    }

    fn pad(&self) {
        let start = Instant::now();
        while start.elapsed() < self.padding {
            std::hint::spin_loop();
        }
    }

    /// Changes where a page's content is; gives where it was.
    fn put(&mut self, page: Page, place: Place) -> Place {
        self.memories
            .get_mut(page.tenant as usize)
            .and_then(Option::as_mut)
            .and_then(|memory| memory.places.get_mut(page.number as usize))
            .map_or(Place::There, |old| mem::replace(old, place))
    }

    fn frame(&mut self) -> Box<Frame> {
        self.spare.pop().unwrap_or_else(Frame::zeroed)
    }

    fn keep(&mut self, mut frame: Box<Frame>) {
        frame.wipe();
        self.spare.push(frame);
    }
}

/// What an attacker does to one sealed page; says whether it did.
pub trait Alteration: Fn(&mut Store, Page, Ticket) -> bool {}
impl<F: Fn(&mut Store, Page, Ticket) -> bool> Alteration for F {}

/// The pages that `first` and the actions after it unmap in one go, sorted; and what follows.
fn unmapped_together(first: Action, others: &[Action]) -> (Vec<Page>, &[Action]) {
    let mut pages = Vec::with_capacity(Taker::MOST);
    if let Action::Unmap(page) = first {
        pages.push(page);
    }
    let mut rest = others;
    while let (Some((Action::Unmap(page), after)), true) =
        (rest.split_first(), pages.len() < Taker::MOST)
    {
        pages.push(*page);
        rest = after;
    }
    pages.sort_unstable();
    (pages, rest)
}
