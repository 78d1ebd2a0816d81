//! A tenant's side: memory in the emulator's EPC.
//!
//! The tenant makes the memory, sends the emulator its two descriptors over the socket with where
//! it lies, and waits for one byte, the go. Then each touch of a missing page is the emulator's
//! to answer, so a tenant does not outlive it: when the connection ends, SIGIO ends the process.

use crate::store::PAGE_SIZE;
use crate::userfault::{Region, Userfault};
use rustix::fd::{AsFd, AsRawFd};
use rustix::fs::OFlags;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// What a tenant sends with its descriptors, userfaultfd first: the address of its memory and
/// the number of pages, little-endian.
pub const GREETING_SIZE: usize = 16;
/// The emulator's answer.
pub const GO: u8 = 1;

/// Memory in the emulator's EPC.
pub struct EpcMemory {
    region: Region,
    socket: UnixStream,
    /// Stays open here: without it, at the emulator's end, missing pages would quietly be zeros.
    _userfault: Userfault,
}

impl EpcMemory {
    /// Puts at least `size` bytes of zeros into the EPC of the emulator that listens at `path`.
    pub fn map(path: &Path, size: u64) -> io::Result<Self> {
        let page_count = usize::try_from(size.div_ceil(PAGE_SIZE as u64))
            .map_err(|_| io::ErrorKind::OutOfMemory)?;
        let (userfault, _) = Userfault::open()?;
        let region = Region::map(page_count, &userfault)?;
        let mut socket = UnixStream::connect(path)?;
        greet(&socket, &userfault, &region)?;
        let mut answer = [0];
        socket.read_exact(&mut answer)?;
        if answer != [GO] {
            return Err(io::ErrorKind::InvalidData.into());
        }
        tie(&socket)?;
        Ok(EpcMemory {
            region,
            socket,
            _userfault: userfault,
        })
    }

    /// All of it.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the region is mapped as long as this value lives and borrowed exclusively; a
        // missing page has the content that was taken from it.
        unsafe { std::slice::from_raw_parts_mut(self.region.base(), self.region.size()) }
    }
}

fn greet(socket: &UnixStream, userfault: &Userfault, region: &Region) -> io::Result<()> {
    let mut greeting = [0; GREETING_SIZE];
    let page_count = (region.size() / PAGE_SIZE) as u64;
    greeting[..8].copy_from_slice(&(region.base() as u64).to_le_bytes());
    greeting[8..].copy_from_slice(&page_count.to_le_bytes());
    let descriptors = [userfault.as_fd(), region.file().as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    let slices = [IoSlice::new(&greeting)];
    rustix::net::sendmsg(socket, &slices, &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// From now on the end of the connection ends the process. Threads that wait for a page would
/// wait for ever, so nothing gentler is sure to end it; and a thread that watches the connection
/// would be one more for who places threads on processors.
fn tie(socket: &UnixStream) -> io::Result<()> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    // SAFETY: F_SETOWN takes a process by value.
    if unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_SETOWN, own) } != 0 {
        return Err(io::Error::last_os_error());
    }
    rustix::fs::fcntl_setfl(socket, OFlags::ASYNC)?;
    // It may have ended before.
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    match rustix::net::recv(socket, &mut [0], flags) {
        Err(rustix::io::Errno::AGAIN) => Ok(()),
        _ => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

impl Drop for EpcMemory {
    fn drop(&mut self) {
        let _ = rustix::fs::fcntl_setfl(&self.socket, OFlags::empty());
    }
}

// SAFETY: the region is mapped readable and writable until this value is dropped, is its own,
// and holds zeros at first.
unsafe impl vessels_enclave::Memory for EpcMemory {
    fn base(&self) -> *mut u8 {
        self.region.base()
    }

    fn size(&self) -> usize {
        self.region.size()
    }
}

/// A stream that passes all bytes through a small buffer beside the EPC: a system call that
/// touches a page of it fails where only touches in user mode can be answered.
pub struct Beside<T> {
    stream: T,
    buffer: Box<[u8; 64 << 10]>,
}

impl<T> Beside<T> {
    pub fn new(stream: T) -> Self {
        Beside {
            stream,
            buffer: Box::new([0; 64 << 10]),
        }
    }
}

impl<T: Read> Read for Beside<T> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let size = target.len().min(self.buffer.len());
        let count = self.stream.read(&mut self.buffer[..size])?;
        target[..count].copy_from_slice(&self.buffer[..count]);
        Ok(count)
    }
}

impl<T: Write> Write for Beside<T> {
    fn write(&mut self, source: &[u8]) -> io::Result<usize> {
        let size = source.len().min(self.buffer.len());
        self.buffer[..size].copy_from_slice(&source[..size]);
        self.stream.write(&self.buffer[..size])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
