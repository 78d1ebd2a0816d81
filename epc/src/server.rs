//! The emulator: one loop that admits tenants, answers their faults, and obeys its owner.

use crate::awake::Awake;
use crate::commands::{Answer, Command, Counters, Lines, Tampering, TenantCounters, answer};
use crate::epc::{End, Epc};
use crate::pager::LEAST_CAPACITY;
use crate::tenant::{GO, GREETING_SIZE};
use crate::userfault::{Backing, Mode, Userfault};
use rustix::event::epoll;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::{PidfdFlags, Signal};
use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

const COMMANDS: u64 = 0;
const LISTENER: u64 = 1;
/// From here on twice a tenant's number: the end of its connection; one more: its faults.
const FIRST_TENANT: u64 = 2;

/// How long a process that connects may take to say what it has.
const GREETING_TIME: Duration = Duration::from_secs(1);

/// What is told of a tenant, also when it has ended.
struct Entry {
    pid: i32,
    page_count: usize,
    refused: Option<String>,
    /// The process and the connection to it, until either ends.
    process: Option<(OwnedFd, UnixStream)>,
}

pub struct Server {
    epc: Epc,
    /// By number.
    entries: Vec<Entry>,
    listener: UnixListener,
    epoll: OwnedFd,
    awake: Awake,
}

impl Server {
    /// Listens at `path`, which must not exist, with an EPC of `capacity` pages; `padding` is
    /// waited in each hard fault.
    pub fn listen(path: &Path, capacity: usize, padding: Duration) -> io::Result<Self> {
        let server = Server {
            epc: Epc::new(capacity, padding)?,
            entries: Vec::new(),
            listener: UnixListener::bind(path)?,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            awake: Awake::start()?,
        };
        server.expect(io::stdin(), COMMANDS)?;
        server.expect(&server.listener, LISTENER)?;
        Ok(server)
    }

    /// Serves until the end of the standard input.
    pub fn serve(&mut self, mode: Mode) -> io::Result<()> {
        let mut lines = Lines::default();
        answer(&Answer::Ready { ready: true, mode })?;
        let number = |event: u64| ((event - FIRST_TENANT) / 2) as u32;
        let mut events = [const { MaybeUninit::uninit() }; 64];
        loop {
            let ready = match epoll::wait(&self.epoll, &mut events, None) {
                Ok((ready, _)) => ready,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for event in ready.iter() {
                match event.data.u64() {
                    COMMANDS => {
                        let Some(commands) = lines.read()? else {
                            return Ok(());
                        };
                        for command in commands {
                            answer(&match command {
                                Ok(command) => self.obey(command)?,
                                Err(error) => Answer::Error { error },
                            })?;
                        }
                    }
                    LISTENER => self.accept()?,
                    end if end % 2 == FIRST_TENANT % 2 => self.release(number(end)),
                    fault => {
                        self.awake.stay();
                        let ends = self.epc.answer_faults(number(fault))?;
                        self.end(ends);
                    }
                }
            }
        }
    }

    fn expect(&self, source: impl AsFd, what: u64) -> rustix::io::Result<()> {
        let data = epoll::EventData::new_u64(what);
        epoll::add(&self.epoll, source, data, epoll::EventFlags::IN)
    }

    /// Admits a tenant that connects; one that does not say what it should is sent away.
    fn accept(&mut self) -> io::Result<()> {
        let (socket, _) = self.listener.accept()?;
        let caller = match meet(&socket) {
            Ok(caller) => caller,
            Err(error) => {
                eprintln!("vessels-epc: a tenant was not admitted: {error}");
                return Ok(());
            }
        };
        let tenant = self.entries.len() as u32;
        let what = FIRST_TENANT + 2 * u64::from(tenant);
        self.expect(&socket, what)?;
        self.expect(&caller.userfault, what + 1)?;
        self.epc.admit(
            caller.userfault,
            caller.file,
            caller.base,
            caller.page_count,
        );
        // If it is gone already, the end of the connection will tell.
        let _ = (&socket).write_all(&[GO]);
        self.entries.push(Entry {
            pid: caller.pid,
            page_count: caller.page_count,
            refused: None,
            process: Some((caller.process, socket)),
        });
        Ok(())
    }

    fn end(&mut self, ends: Vec<End>) {
        for end in ends {
            match end {
                End::Gone(tenant) => self.release(tenant),
                End::Refused(page) => {
                    let entry = &mut self.entries[page.tenant as usize];
                    entry.refused = Some(format!(
                        "page {}: what lay outside is not what was sealed last",
                        page.number
                    ));
                    if let Some((process, _)) = &entry.process {
                        let _ = rustix::process::pidfd_send_signal(process, Signal::KILL);
                    }
                    self.release(page.tenant);
                }
            }
        }
    }

    /// A tenant has ended, or is about to by a signal.
    fn release(&mut self, tenant: u32) {
        // The tenant holds its userfaultfd too, so closing it here does not take it from the set.
        if let Some(userfault) = self.epc.userfault(tenant) {
            let _ = epoll::delete(&self.epoll, userfault);
        }
        self.epc.release(tenant);
        self.entries[tenant as usize].process = None;
    }

    fn obey(&mut self, command: Command) -> io::Result<Answer> {
        Ok(match command {
            Command::Counters => Answer::Counters(self.counters()),
            Command::Capacity { pages } if pages < LEAST_CAPACITY => Answer::Error {
                error: format!("an EPC has at least {LEAST_CAPACITY} pages"),
            },
            Command::Capacity { pages } => {
                let ends = self.epc.resize(pages)?;
                self.end(ends);
                Answer::Capacity { capacity: pages }
            }
            Command::Tamper { tenant, how } => {
                let altered = self.epc.tamper(tenant, |store, page, ticket| match how {
                    Tampering::Flip => {
                        store.flip(ticket, page.number as usize);
                        true
                    }
                    Tampering::Replay => store.replay(page, ticket),
                });
                match altered {
                    Some(page) => Answer::Tampered { page },
                    None => Answer::Error {
                        error: format!("tenant {tenant} has no such page outside"),
                    },
                }
            }
        })
    }

    fn counters(&self) -> Counters {
        let pager = self.epc.pager();
        let tenants = (0u32..)
            .zip(&self.entries)
            .map(|(id, entry)| TenantCounters {
                id,
                pid: entry.pid,
                pages: entry.page_count,
                counts: pager.counts(id),
                alive: entry.process.is_some(),
                refused: entry.refused.clone(),
            });
        Counters {
            capacity: pager.capacity(),
            used: pager.used(),
            peak_used: pager.peak_used(),
            handler_ns: self.epc.handler_time().as_nanos() as u64,
            tenants: tenants.collect(),
        }
    }
}

/// What a process says that wants to be a tenant.
struct Caller {
    pid: i32,
    process: OwnedFd,
    userfault: Userfault,
    file: Backing,
    base: u64,
    page_count: usize,
}

fn meet(socket: &UnixStream) -> io::Result<Caller> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    socket.set_read_timeout(Some(GREETING_TIME))?;
    let peer = rustix::net::sockopt::socket_peercred(socket)?;
    let process = rustix::process::pidfd_open(peer.pid, PidfdFlags::empty())?;
    let mut greeting = [0; GREETING_SIZE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut greeting)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut descriptors = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
        _ => Vec::new(),
    });
    let (Some(userfault), Some(file)) = (descriptors.next(), descriptors.next()) else {
        return Err(invalid());
    };
    if received.bytes != GREETING_SIZE {
        return Err(invalid());
    }
    let number = |bytes: &[u8]| {
        let bytes = bytes.try_into().map_err(|_| invalid())?;
        io::Result::Ok(u64::from_le_bytes(bytes))
    };
    let page_count = number(&greeting[8..])?;
    Ok(Caller {
        pid: peer.pid.as_raw_nonzero().get(),
        process,
        userfault: Userfault::received(userfault),
        file: Backing::received(file),
        base: number(&greeting[..8])?,
        page_count: u32::try_from(page_count).map_err(|_| invalid())? as usize,
    })
}
