//! The one pool of trusted memory, the read-only mapping of the sealed file, and nothing else
//! that is mapped.

use crate::refusal::Refusal;
use core::ptr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

const HUGE_PAGE_SIZE: usize = 2 << 20;

fn refusal(what: &'static str, error: &io::Error) -> Refusal {
    Refusal::System {
        what,
        errno: error.raw_os_error().unwrap_or(0),
    }
}

fn too_large() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOMEM)
}

/// Anonymous zeroed memory, unmapped when dropped.
struct Anonymous {
    base: *mut u8,
    size: usize,
}

impl Anonymous {
    /// Maps `size` bytes (rounded up to pages), aligned to a huge page if as large as one.
    fn map(size: u64) -> io::Result<Self> {
        let size = usize::try_from(size)
            .ok()
            .and_then(|size| size.max(1).checked_next_multiple_of(4096))
            .ok_or_else(too_large)?;
        let slack = if size >= HUGE_PAGE_SIZE {
            HUGE_PAGE_SIZE
        } else {
            0
        };
        let mapped_size = size.checked_add(slack).ok_or_else(too_large)?;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches no
        // memory in use.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                mapped_size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start: *mut u8 = start.cast();
        let lead = if slack == 0 {
            0
        } else {
            start.align_offset(HUGE_PAGE_SIZE).min(slack)
        };
        let base = start.wrapping_add(lead);
        if slack > 0 {
            let tail = slack - lead;
            // SAFETY: both ranges are page-aligned parts of the mapping made above that nothing
            // uses: before `base`, and from `base + size` to its end.
            unsafe {
                if lead > 0 {
                    libc::munmap(start.cast(), lead);
                }
                if tail > 0 {
                    libc::munmap(base.wrapping_add(size).cast(), tail);
                }
            }
        }
        Ok(Anonymous { base, size })
    }

    /// Makes every page resident now; huge pages where they fit wholly.
    fn populate(&self) {
        // SAFETY: advice on a mapping this value owns. Populating for writing keeps contents.
        let populated = unsafe {
            if self.size >= HUGE_PAGE_SIZE {
                libc::madvise(self.base.cast(), self.size, libc::MADV_HUGEPAGE);
            }
            libc::madvise(self.base.cast(), self.size, libc::MADV_POPULATE_WRITE)
        };
        if populated != 0 {
            // Older kernels and library operating systems: touch each page.
            for offset in (0..self.size).step_by(4096) {
                // SAFETY: inside the mapping; it is fresh, so zero is what it holds.
                unsafe { self.base.add(offset).write_volatile(0) };
            }
        }
    }

    /// Keeps every page from being written out, as far as the process may; whether it is done.
    fn lock(&self) -> bool {
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: the first two calls read and write `limit` alone; the mapping is this value's
        // own, and locking it does not change what it holds.
        unsafe {
            if libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) == 0 {
                limit.rlim_cur = limit.rlim_max;
                libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit);
            }
            libc::mlock(self.base.cast(), self.size) == 0
        }
    }
}

impl Drop for Anonymous {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own and nothing outlives it.
        unsafe { libc::munmap(self.base.cast(), self.size) };
    }
}

/// Where the memory of a pool comes from: [`anonymous`] but for who studies paging.
///
/// # Safety
/// `size()` bytes at `base()`, aligned to a page, are mapped readable and writable, hold zeros at
/// first, and belong to this value alone until it is dropped.
pub unsafe trait Memory: Send + Sync {
    fn base(&self) -> *mut u8;
    /// Bytes.
    fn size(&self) -> usize;
}

// SAFETY: `map` makes such a mapping, and it stays until `drop`.
unsafe impl Memory for Anonymous {
    fn base(&self) -> *mut u8 {
        self.base
    }

    fn size(&self) -> usize {
        self.size
    }
}

// SAFETY: a mapping is plain memory at a fixed address; who gets at it by `base` answers for
// the absence of races.
unsafe impl Send for Anonymous {}
// SAFETY: as above.
unsafe impl Sync for Anonymous {}

/// Maps at least the given bytes for a pool.
pub type MapMemory<'a> = &'a dyn Fn(u64) -> io::Result<Box<dyn Memory>>;

/// Ordinary memory of the process, resident from now on; locked if the process's limit allows it.
pub fn anonymous(size: u64) -> io::Result<Box<dyn Memory>> {
    let memory = Anonymous::map(size)?;
    memory.populate();
    if !memory.lock() {
        crate::say(format_args!(
            "vessels-enclave: the pool is not locked in memory, and may be swapped out: the limit \
             is too low (ulimit -l)"
        ));
    }
    Ok(Box::new(memory))
}

/// All memory of a prediction.
///
/// Instructions share it without locks: the validator, and the ends of the loops they share,
/// keep two threads from writing one place, or reading what another writes.
pub struct Pool {
    base: *mut u8,
    size: u64,
    _memory: Box<dyn Memory>,
}

// SAFETY: the pool is plain memory at a fixed address; every access goes through raw pointers
// or the unsafe functions below, whose callers answer for the absence of races.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Pool {
    /// A pool of `size` bytes of zeros in memory that `map` gives.
    pub fn new(size: u64, map: MapMemory) -> Result<Self, Refusal> {
        let memory = map(size)
            .and_then(|memory| {
                if memory.size() as u64 >= size {
                    Ok(memory)
                } else {
                    Err(too_large())
                }
            })
            .map_err(|error| refusal("mapping memory", &error))?;
        Ok(Pool {
            base: memory.base(),
            size,
            _memory: memory,
        })
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Address of a byte; offsets beyond the pool give its end.
    #[inline]
    pub fn at(&self, offset: u64) -> *mut u8 {
        debug_assert!(offset <= self.size);
        self.base.wrapping_add(offset.min(self.size) as usize)
    }

    /// # Safety
    /// Until the slice is dropped nothing else reads or writes these bytes.
    ///
    /// A range that is not inside the pool gives an empty slice.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn bytes_mut(&self, offset: u64, size: u64) -> &mut [u8] {
        if offset.checked_add(size).is_none_or(|end| end > self.size) {
            return &mut [];
        }
        // SAFETY: inside the mapping, as just checked; exclusive by the caller's promise.
        unsafe { core::slice::from_raw_parts_mut(self.at(offset), size as usize) }
    }

    /// # Safety
    /// Until the slice is dropped nothing writes these bytes. `offset` is a multiple of 4.
    ///
    /// A range that is not inside the pool gives an empty slice.
    pub unsafe fn floats(&self, offset: u64, size: u64) -> &[f32] {
        if offset.checked_add(size).is_none_or(|end| end > self.size) {
            return &[];
        }
        // SAFETY: inside the mapping, as just checked, and aligned; any bits are an f32.
        unsafe { core::slice::from_raw_parts(self.at(offset).cast(), (size / 4) as usize) }
    }
}

/// Zeroed words for the time of a computation, given back to the system afterwards.
pub struct Words(Anonymous);

impl Words {
    pub fn map(count: u64) -> Result<Self, Refusal> {
        Anonymous::map(count.saturating_mul(8))
            .map(Words)
            .map_err(|error| refusal("mapping memory", &error))
    }

    pub fn get(&self) -> &[u64] {
        // SAFETY: the mapping is page-aligned, zeroed, and this value's own.
        unsafe { core::slice::from_raw_parts(self.0.base.cast(), self.0.size / 8) }
    }

    pub fn get_mut(&mut self) -> &mut [u64] {
        // SAFETY: as in `get`, and borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.0.base.cast(), self.0.size / 8) }
    }
}

/// The sealed file as the host maps it: untrusted memory that may change at any time, so it is
/// never referred to, only copied from.
pub struct Mapping {
    base: *const u8,
    size: u64,
}

// SAFETY: the mapping is only copied from, through raw pointers.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the whole of `file`, read-only.
    pub fn of(file: &File) -> Result<Self, Refusal> {
        let size = file
            .metadata()
            .map_err(|error| refusal("reading the model's size", &error))?
            .len();
        if size == 0 {
            return Ok(Mapping {
                base: ptr::null(),
                size: 0,
            });
        }
        let mapped_size = usize::try_from(size).map_err(|_| Refusal::System {
            what: "mapping the model",
            errno: libc::ENOMEM,
        })?;
        // SAFETY: a fresh read-only mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                mapped_size,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(refusal("mapping the model", &io::Error::last_os_error()));
        }
        Ok(Mapping {
            base: base.cast(),
            size,
        })
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Copies `target.len()` bytes from `offset`; false if they are not inside the file.
    #[must_use]
    pub fn copy(&self, offset: u64, target: &mut [u8]) -> bool {
        if offset
            .checked_add(target.len() as u64)
            .is_none_or(|end| end > self.size)
        {
            return false;
        }
        // SAFETY: the source is inside the mapping, as just checked; `target` is trusted memory
        // and cannot overlap it. The host may change the source meanwhile: then the bytes are
        // arbitrary, and authentication refuses them.
        unsafe {
            ptr::copy_nonoverlapping(
                self.base.wrapping_add(offset as usize),
                target.as_mut_ptr(),
                target.len(),
            );
        }
        true
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if !self.base.is_null() {
            // SAFETY: the mapping is this value's own and nothing outlives it.
            unsafe { libc::munmap(self.base.cast_mut().cast(), self.size as usize) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_aligned_zeroed_and_bounded() {
        let pool = Pool::new((3 << 20) + 64, &anonymous).expect("maps");
        assert_eq!(pool.at(0) as usize % HUGE_PAGE_SIZE, 0);
        // SAFETY: nothing else uses this pool.
        unsafe {
            assert!(pool.bytes_mut(0, pool.size()).iter().all(|&b| b == 0));
            assert!(pool.bytes_mut(64, pool.size()).is_empty());
            assert!(pool.floats(u64::MAX, 4).is_empty());
        }
    }
}
