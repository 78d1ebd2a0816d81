//! Evicted pages: encrypted and authenticated in ordinary memory, as SGX keeps them.
//!
//! What lies outside is ciphertext and tag. Inside stays, for each evicted page, its [`Ticket`]:
//! where it lies and the version it was sealed as (SGX keeps these in version arrays). The key is
//! fresh for each store; a version is a count of all evictions, so as a nonce it is never used
//! twice. Tenant, page number and version are associated data: another page's ciphertext, or an
//! older one of the same page, does not authenticate.

use crate::pager::Page;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use std::collections::HashMap;
use zeroize::Zeroizing;

/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;
const TAG_SIZE: usize = 16;
/// Of each tenant, so many pages' first sealed versions are recorded outside.
const RECORD_COUNT: usize = 64;

/// The content of a page in the emulator's hands.
#[derive(Clone)]
#[repr(C, align(4096))]
pub struct Frame(pub [u8; PAGE_SIZE]);

impl Frame {
    pub fn zeroed() -> Box<Self> {
        Box::new(Frame([0; PAGE_SIZE]))
    }

    /// Overwrites it with zeros. As `zeroize` does it, but many bytes at a time.
    pub fn wipe(&mut self) {
        self.0.fill(0);
        std::hint::black_box(&mut self.0);
    }
}

/// What the emulator keeps of an evicted page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    slot: u32,
    version: u64,
}

/// A sealed page did not authenticate.
#[derive(Debug, PartialEq, Eq)]
pub struct NotAuthentic;

/// A sealed page: anyone may read or change it.
#[derive(Clone)]
struct Sealed {
    ciphertext: Box<Frame>,
    tag: [u8; TAG_SIZE],
}

/// All evicted pages.
pub struct Store {
    key: LessSafeKey,
    version: u64,
    slots: Vec<Option<Sealed>>,
    free: Vec<u32>,
    /// Sealed pages that someone outside has kept to put back later.
    records: HashMap<Page, (u64, Sealed)>,
    record_counts: HashMap<u32, usize>,
}

fn nonce(version: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[..8].copy_from_slice(&version.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn associated(page: Page, version: u64) -> Aad<[u8; 16]> {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&page.tenant.to_le_bytes());
    bytes[4..8].copy_from_slice(&page.number.to_le_bytes());
    bytes[8..].copy_from_slice(&version.to_le_bytes());
    Aad::from(bytes)
}

impl Store {
    /// An empty store with a random key.
    pub fn new() -> Result<Self, Unspecified> {
        let mut key = Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(key.as_mut())?;
        Ok(Store {
            key: LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_ref())?),
            version: 0,
            slots: Vec::new(),
            free: Vec::new(),
            records: HashMap::new(),
            record_counts: HashMap::new(),
        })
    }

    /// Seals a page and puts it outside: the frame is encrypted in place, so no plain byte of it
    /// is left.
    pub fn seal(&mut self, page: Page, mut frame: Box<Frame>) -> Result<Ticket, Unspecified> {
        self.version += 1;
        let version = self.version;
        let tag = self.key.seal_in_place_separate_tag(
            nonce(version),
            associated(page, version),
            &mut frame.0,
        )?;
        let mut sealed = Sealed {
            ciphertext: frame,
            tag: [0; TAG_SIZE],
        };
        sealed.tag.copy_from_slice(tag.as_ref());
        self.record(page, version, &sealed);
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                (self.slots.len() - 1) as u32
            }
        };
        self.slots[slot as usize] = Some(sealed);
        Ok(Ticket { slot, version })
    }

    /// Fetches a page: takes it from outside, authenticates and decrypts it.
    pub fn open(&mut self, page: Page, ticket: Ticket) -> Result<Box<Frame>, NotAuthentic> {
        let mut sealed = self.take(ticket).ok_or(NotAuthentic)?;
        self.key
            .open_in_place_separate_tag(
                nonce(ticket.version),
                associated(page, ticket.version),
                &sealed.tag,
                &mut sealed.ciphertext.0,
            )
            .map_err(|_| NotAuthentic)?;
        Ok(sealed.ciphertext)
    }

    /// Takes a page that is not needed any more from outside; gives its frame.
    pub fn discard(&mut self, ticket: Ticket) -> Option<Box<Frame>> {
        Some(self.take(ticket)?.ciphertext)
    }

    fn take(&mut self, ticket: Ticket) -> Option<Sealed> {
        let sealed = self.slots[ticket.slot as usize].take()?;
        self.free.push(ticket.slot);
        Some(sealed)
    }

    /// Forgets what was recorded of a tenant.
    pub fn forget(&mut self, tenant: u32) {
        self.records.retain(|page, _| page.tenant != tenant);
        self.record_counts.remove(&tenant);
    }

    /// What an attacker outside can do: flips a bit of a sealed page or its tag.
    pub fn flip(&mut self, ticket: Ticket, bit: usize) {
        if let Some(sealed) = &mut self.slots[ticket.slot as usize] {
            let mut bytes = sealed.ciphertext.0.iter_mut().chain(&mut sealed.tag);
            if let Some(byte) = bytes.nth(bit / 8) {
                *byte ^= 1 << (bit % 8);
            }
        }
    }

    /// What an attacker outside can do: puts back the recorded version of a page, if it is an
    /// older one; says whether it did.
    pub fn replay(&mut self, page: Page, ticket: Ticket) -> bool {
        match self.records.get(&page) {
            Some((version, old)) if *version != ticket.version => {
                self.slots[ticket.slot as usize] = Some(old.clone());
                true
            }
            _ => false,
        }
    }

    fn record(&mut self, page: Page, version: u64, sealed: &Sealed) {
        let count = self.record_counts.entry(page.tenant).or_default();
        if *count < RECORD_COUNT && !self.records.contains_key(&page) {
            *count += 1;
            self.records.insert(page, (version, sealed.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(tenant: u32, number: u32) -> Page {
        Page { tenant, number }
    }

    fn frame(fill: u8) -> Box<Frame> {
        let mut frame = Frame::zeroed();
        frame.0.fill(fill);
        frame
    }

    fn store() -> Store {
        Store::new().expect("has random numbers")
    }

    /// Whether a page opens.
    fn opens(store: &mut Store, page: Page, ticket: Ticket) -> bool {
        store.open(page, ticket).is_ok()
    }

    #[test]
    fn what_is_sealed_opens_and_lies_outside_encrypted() {
        let mut store = store();
        let ticket = store.seal(page(0, 3), frame(7)).expect("seals");
        let outside = store.slots[ticket.slot as usize]
            .as_ref()
            .expect("is there");
        let plain_count = outside.ciphertext.0.iter().filter(|&&b| b == 7).count();
        assert!(plain_count < 100, "{plain_count} of {PAGE_SIZE}");
        let opened = store.open(page(0, 3), ticket).expect("opens");
        assert!(opened.0.iter().all(|&b| b == 7));
    }

    #[test]
    fn slots_are_used_again_and_versions_are_not() {
        let mut store = store();
        let first = store.seal(page(0, 0), frame(1)).expect("seals");
        store.open(page(0, 0), first).expect("opens");
        let second = store.seal(page(1, 5), frame(1)).expect("seals");
        assert!(store.discard(second).is_some());
        let third = store.seal(page(1, 6), frame(1)).expect("seals");
        assert_eq!(store.slots.len(), 1);
        assert!(first.version < second.version && second.version < third.version);
    }

    #[test]
    fn any_flipped_bit_is_refused() {
        let mut store = store();
        let last = 8 * (PAGE_SIZE + TAG_SIZE) - 1;
        for bit in (0..=last)
            .step_by(61)
            .chain([8 * PAGE_SIZE - 1, 8 * PAGE_SIZE, last])
        {
            let ticket = store.seal(page(0, 0), frame(2)).expect("seals");
            store.flip(ticket, bit);
            assert!(!opens(&mut store, page(0, 0), ticket), "bit {bit}");
        }
    }

    #[test]
    fn an_older_version_is_refused() {
        let mut store = store();
        let first = store.seal(page(0, 9), frame(3)).expect("seals");
        assert!(!store.replay(page(0, 9), first), "none is older");
        let mut f = store.open(page(0, 9), first).expect("opens");
        f.0.fill(4);
        let second = store.seal(page(0, 9), f).expect("seals");
        assert!(store.replay(page(0, 9), second));
        assert!(!opens(&mut store, page(0, 9), second));
    }

    #[test]
    fn another_page_or_another_tenants_is_refused() {
        let mut store = store();
        for (sealed, opened) in [
            (page(0, 1), page(0, 2)),
            (page(0, 1), page(1, 1)),
            (page(0, 1), page(1, 0)),
        ] {
            let ticket = store.seal(sealed, frame(5)).expect("seals");
            assert!(!opens(&mut store, opened, ticket));
        }
    }

    #[test]
    fn swapped_pages_are_refused() {
        let mut store = store();
        let first = store.seal(page(0, 1), frame(5)).expect("seals");
        let second = store.seal(page(0, 2), frame(6)).expect("seals");
        store.slots.swap(first.slot as usize, second.slot as usize);
        assert!(!opens(&mut store, page(0, 1), first));
        assert!(!opens(&mut store, page(0, 2), second));
    }

    #[test]
    fn records_end_with_their_tenant() {
        let mut store = store();
        for tenant in [0, 1] {
            let ticket = store.seal(page(tenant, 0), frame(8)).expect("seals");
            store.open(page(tenant, 0), ticket).expect("opens");
        }
        store.forget(0);
        for (tenant, known) in [(0, false), (1, true)] {
            let ticket = store.seal(page(tenant, 0), frame(8)).expect("seals");
            assert_eq!(store.replay(page(tenant, 0), ticket), known);
        }
    }
}
