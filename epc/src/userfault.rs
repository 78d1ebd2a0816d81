//! Memory whose missing pages another process provides: the system calls of userfaultfd.
//!
//! A tenant makes a [`Region`]: a file in memory, mapped shared, registered with a userfaultfd of
//! its own. Whoever holds both descriptors, the [`Userfault`] and the [`Backing`], sees its
//! faults, and gives and takes its pages. Kinds of userfaultfd: [`Mode`].

use crate::store::{Frame, PAGE_SIZE};
use core::ffi::c_void;
use core::{mem, ptr};
use linux_raw_sys::{general as raw, ioctl};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FallocateFlags, MemfdFlags, Mode as Permissions, OFlags};
use rustix::io::{Errno, IoSliceMut};
use rustix::ioctl::{IntegerSetter, Setter, Updater};
use rustix::mm::{Advice, MapFlags, MlockFlags, ProtFlags, UserfaultfdFlags};
use rustix::pipe::{PipeFlags, SpliceFlags};
use serde::Serialize;

/// `_IO(USERFAULTFD_IOC, 0)` of `linux/userfaultfd.h`: makes one from `/dev/userfaultfd`.
const USERFAULTFD_IOC_NEW: rustix::ioctl::Opcode = rustix::ioctl::opcode::none(0xAA, 0x00);

/// Which faults are handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// All; for root, where `vm.unprivileged_userfaultfd` is 1, or by `/dev/userfaultfd`.
    Root,
    /// Those of user code alone. A system call that touches a missing page fails with EFAULT.
    User,
}

/// What became of a page that was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// It is mapped, and who waited for it goes on.
    Mapped,
    /// The tenant or this part of its memory is gone.
    Gone,
}

/// The faults of a region.
pub struct Userfault(OwnedFd);

impl Userfault {
    /// Opens the most capable one that the kernel allows to this process.
    pub fn open() -> rustix::io::Result<(Self, Mode)> {
        let (fd, mode) = Self::open_any()?;
        let mut api = raw::uffdio_api {
            api: u64::from(raw::UFFD_API),
            features: u64::from(raw::UFFD_FEATURE_MISSING_SHMEM),
            ioctls: 0,
        };
        // SAFETY: UFFDIO_API reads and writes a `uffdio_api`.
        unsafe {
            rustix::ioctl::ioctl(&fd, Updater::<{ ioctl::UFFDIO_API }, _>::new(&mut api))?;
        }
        Ok((Userfault(fd), mode))
    }

    fn open_any() -> rustix::io::Result<(OwnedFd, Mode)> {
        let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
        // SAFETY: nothing is registered with the descriptor yet; `Region` and the functions
        // below answer for what happens through it.
        let refused = match unsafe { rustix::mm::userfaultfd(flags) } {
            Ok(fd) => return Ok((fd, Mode::Root)),
            Err(error) => error,
        };
        let by_device = || {
            let device = rustix::fs::open(
                "/dev/userfaultfd",
                OFlags::RDWR | OFlags::CLOEXEC,
                Permissions::empty(),
            )?;
            // SAFETY: USERFAULTFD_IOC_NEW takes flags by value and returns a new descriptor.
            unsafe {
                rustix::ioctl::ioctl(
                    device,
                    NewDescriptor(IntegerSetter::<USERFAULTFD_IOC_NEW>::new_usize(
                        flags.bits() as usize,
                    )),
                )
            }
        };
        if let Ok(fd) = by_device() {
            return Ok((fd, Mode::Root));
        }
        let flags = flags | UserfaultfdFlags::from_bits_retain(raw::UFFD_USER_MODE_ONLY);
        // SAFETY: as above.
        match unsafe { rustix::mm::userfaultfd(flags) } {
            Ok(fd) => Ok((fd, Mode::User)),
            Err(_) => Err(refused),
        }
    }

    /// One that another process made and sent.
    pub fn received(fd: OwnedFd) -> Self {
        Userfault(fd)
    }

    /// The address of the next fault, if there is one.
    pub fn next(&self) -> rustix::io::Result<Option<u64>> {
        loop {
            let mut bytes = [0u8; size_of::<raw::uffd_msg>()];
            match rustix::io::read(&self.0, &mut bytes) {
                Ok(size) if size == bytes.len() => {}
                Ok(_) => return Ok(None),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error),
            }
            // SAFETY: the message is plain data, of which every bit pattern is valid.
            let message: raw::uffd_msg = unsafe { mem::transmute(bytes) };
            if u32::from(message.event) == raw::UFFD_EVENT_PAGEFAULT {
                // SAFETY: this event carries `pagefault`.
                return Ok(Some(unsafe { message.arg.pagefault.address }));
            }
        }
    }

    /// Maps a page with the content of `frame`, where one is missing.
    pub fn give(&self, address: u64, frame: &Frame) -> rustix::io::Result<Given> {
        self.fill(address, || {
            let mut copy = raw::uffdio_copy {
                dst: address,
                src: ptr::from_ref(frame) as u64,
                len: PAGE_SIZE as u64,
                mode: 0,
                copy: 0,
            };
            // SAFETY: UFFDIO_COPY reads a page from `src`, which `frame` is, and fills nothing
            // but pages missing from what was registered with the descriptor.
            unsafe {
                rustix::ioctl::ioctl(
                    &self.0,
                    Updater::<{ ioctl::UFFDIO_COPY }, _>::new(&mut copy),
                )
            }
        })
    }

    /// Maps a page of zeros, where one is missing.
    pub fn give_zeros(&self, address: u64) -> rustix::io::Result<Given> {
        self.fill(address, || {
            let mut zeros = raw::uffdio_zeropage {
                range: page_at(address),
                mode: 0,
                zeropage: 0,
            };
            // SAFETY: UFFDIO_ZEROPAGE reads and writes a `uffdio_zeropage`, and fills nothing
            // but pages missing from what was registered with the descriptor.
            unsafe {
                rustix::ioctl::ioctl(
                    &self.0,
                    Updater::<{ ioctl::UFFDIO_ZEROPAGE }, _>::new(&mut zeros),
                )
            }
        })
    }

    /// Lets who waits for a page try again.
    pub fn wake(&self, address: u64) -> rustix::io::Result<()> {
        // SAFETY: UFFDIO_WAKE reads a `uffdio_range`.
        unsafe {
            rustix::ioctl::ioctl(
                &self.0,
                Setter::<{ ioctl::UFFDIO_WAKE }, _>::new(page_at(address)),
            )
        }
    }

    fn fill(
        &self,
        address: u64,
        mut fill: impl FnMut() -> rustix::io::Result<()>,
    ) -> rustix::io::Result<Given> {
        loop {
            match fill() {
                Ok(()) => return Ok(Given::Mapped),
                // The tenant's memory map is just changing.
                Err(Errno::AGAIN) => continue,
                Err(Errno::EXIST) => {
                    self.wake(address)?;
                    return Ok(Given::Mapped);
                }
                Err(Errno::SRCH | Errno::NOENT) => return Ok(Given::Gone),
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An ioctl that gives a descriptor.
struct NewDescriptor(IntegerSetter<USERFAULTFD_IOC_NEW>);

// SAFETY: opcode and argument are those of the inner ioctl; the kernel returns a new descriptor,
// which nothing else owns.
unsafe impl rustix::ioctl::Ioctl for NewDescriptor {
    type Output = OwnedFd;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> rustix::ioctl::Opcode {
        self.0.opcode()
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.0.as_ptr()
    }

    unsafe fn output_from_ptr(
        out: rustix::ioctl::IoctlOutput,
        _: *mut c_void,
    ) -> rustix::io::Result<OwnedFd> {
        use rustix::fd::FromRawFd;
        // SAFETY: a descriptor that the kernel just made.
        Ok(unsafe { OwnedFd::from_raw_fd(out) })
    }
}

fn page_at(address: u64) -> raw::uffdio_range {
    raw::uffdio_range {
        start: address,
        len: PAGE_SIZE as u64,
    }
}

/// The file behind a region.
pub struct Backing(OwnedFd);

impl Backing {
    /// One that another process made and sent.
    pub fn received(fd: OwnedFd) -> Self {
        Backing(fd)
    }
}

impl AsFd for Backing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Takes pages out of regions with their last content.
///
/// The pages are spliced from the file into a pipe, which refers to them and copies nothing; then
/// a hole is punched in the file, which takes them out of every memory map; then the pipe is read.
/// Nothing can write them any more when it is, so no write is lost, and the tenant's memory map
/// changes but once (write-protecting pages before reading them would change it twice).
pub struct Taker {
    read_end: OwnedFd,
    write_end: OwnedFd,
}

impl Taker {
    /// The most pages taken at once.
    pub const MOST: usize = 16;

    pub fn new() -> rustix::io::Result<Self> {
        let (read_end, write_end) =
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        if rustix::pipe::fcntl_getpipe_size(&write_end)? < Self::MOST * PAGE_SIZE {
            rustix::pipe::fcntl_setpipe_size(&write_end, Self::MOST * PAGE_SIZE)?;
        }
        Ok(Taker {
            read_end,
            write_end,
        })
    }

    /// Takes `frames.len()` pages, at most [`Self::MOST`]: the pages of `runs`, each a file, its
    /// first page and a count of pages.
    pub fn take<'a>(
        &self,
        runs: impl Iterator<Item = (&'a Backing, u32, usize)>,
        frames: &mut [Box<Frame>],
    ) -> rustix::io::Result<()> {
        for (file, page, count) in runs {
            let start = u64::from(page) * PAGE_SIZE as u64;
            let size = count * PAGE_SIZE;
            let end = start + size as u64;
            let mut offset = start;
            while offset < end {
                let rest = (end - offset) as usize;
                let spliced = rustix::pipe::splice(
                    file,
                    Some(&mut offset),
                    &self.write_end,
                    None,
                    rest,
                    SpliceFlags::empty(),
                )?;
                if spliced == 0 {
                    return Err(Errno::NODATA);
                }
            }
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(file, hole, start, size as u64)?;
        }
        let mut slices: Vec<_> = frames
            .iter_mut()
            .map(|frame| IoSliceMut::new(&mut frame.0))
            .collect();
        let mut left = &mut slices[..];
        while !left.is_empty() {
            let size = rustix::io::readv(&self.read_end, left)?;
            IoSliceMut::advance_slices(&mut left, size);
        }
        Ok(())
    }

    /// Checks that the kernel splices a page itself, not a copy of it, and punches it out of the
    /// memory map: takes a page of this process and writes it while the pipe holds it.
    pub fn check(&self) -> rustix::io::Result<bool> {
        let region = Region::unregistered(1)?;
        // SAFETY: the region has this page, and nothing else uses it.
        let write = |value: u8| unsafe { region.base.write_volatile(value) };
        write(1);
        let mut offset = 0;
        rustix::pipe::splice(
            &region.file,
            Some(&mut offset),
            &self.write_end,
            None,
            PAGE_SIZE,
            SpliceFlags::empty(),
        )?;
        write(2);
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&region.file, hole, 0, PAGE_SIZE as u64)?;
        write(3);
        let mut frame = Frame::zeroed();
        let size = rustix::io::read(&self.read_end, &mut frame.0)?;
        Ok(size == PAGE_SIZE && frame.0[0] == 2)
    }
}

/// Memory of this process whose missing pages are provided through a [`Userfault`].
pub struct Region {
    base: *mut u8,
    size: usize,
    file: Backing,
}

// SAFETY: a mapping is plain memory at a fixed address; who gets at it by `base` answers for the
// absence of races.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `page_count` missing pages, whose faults go to `userfault`.
    pub fn map(page_count: usize, userfault: &Userfault) -> rustix::io::Result<Self> {
        let region = Self::unregistered(page_count)?;
        let mut register = raw::uffdio_register {
            range: raw::uffdio_range {
                start: region.base as u64,
                len: region.size as u64,
            },
            mode: u64::from(raw::UFFDIO_REGISTER_MODE_MISSING),
            ioctls: 0,
        };
        // SAFETY: UFFDIO_REGISTER reads and writes a `uffdio_register`; the range is this
        // region's own, none of whose pages has been touched.
        unsafe {
            rustix::ioctl::ioctl(
                &userfault.0,
                Updater::<{ ioctl::UFFDIO_REGISTER }, _>::new(&mut register),
            )?;
        }
        Ok(region)
    }

    fn unregistered(page_count: usize) -> rustix::io::Result<Self> {
        let size = page_count
            .max(1)
            .checked_mul(PAGE_SIZE)
            .ok_or(Errno::NOMEM)?;
        let file = rustix::fs::memfd_create("vessels-epc", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, size as u64)?;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory in use.
        let base = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                size,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                0,
            )?
        };
        let region = Region {
            base: base.cast(),
            size,
            file: Backing(file),
        };
        // SAFETY: both are advice on the mapping just made, and touch none of its pages. Where
        // the kernel refuses, pages of an idle tenant may be swapped out: slower, not wrong.
        unsafe {
            let _ = rustix::mm::madvise(base, size, Advice::LinuxNoHugepage);
            let _ = rustix::mm::mlock_with(base, size, MlockFlags::ONFAULT);
        }
        Ok(region)
    }

    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// Bytes; a multiple of [`PAGE_SIZE`].
    pub fn size(&self) -> usize {
        self.size
    }

    pub fn file(&self) -> &Backing {
        &self.file
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own and nothing outlives it.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.size) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_taken_with_their_last_content() {
        assert_eq!(Taker::new().expect("has a pipe").check(), Ok(true));
    }
}
