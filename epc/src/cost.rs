//! What a fault costs, as the one who touches sees it.
//!
//! An emulator of its own is started, as a process of its own, and one tenant sweeps over its
//! memory, page by page. Over twice as many pages as the EPC has every touch is a hard fault, with
//! the eviction that makes room for it. Over just as many as the EPC has every touch is a soft
//! fault, with the unmapping that keeps the queue at its length.

use crate::pager::BATCH;
use crate::store::PAGE_SIZE;
use crate::tenant::EpcMemory;
use crate::userfault::Userfault;
use serde::Serialize;
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

/// Sweeps of which the median is told; an odd number.
const ROUND_COUNT: usize = 9;
/// Sweeps before these: they find untouched pages, or the queues as other sweeps left them.
const SETTLING_COUNT: usize = 3;

#[derive(Debug, Serialize)]
pub struct Unavailable {
    available: bool,
    why: String,
}

#[derive(Debug, Serialize)]
pub struct Cost {
    available: bool,
    /// A touch of an evicted page.
    fault_ns: f64,
    /// A touch of an unmapped page.
    soft_fault_ns: f64,
    /// The emulator's own time for a hard fault.
    handler_ns: f64,
}

/// Why this machine cannot run the emulator; `None` if it can.
pub fn unavailable() -> Option<Unavailable> {
    let error = Userfault::open().err()?;
    Some(Unavailable {
        available: false,
        why: format!("this kernel does not give a userfaultfd to this process: {error}"),
    })
}

/// Measures in an EPC of `capacity` pages.
pub fn measure(capacity: usize) -> io::Result<Cost> {
    let mut emulator = Emulator::start(capacity)?;
    let size = 2 * capacity * PAGE_SIZE;
    let mut memory = EpcMemory::map(&emulator.socket, size as u64)?;
    let all = memory.bytes_mut();
    let (fault_ns, handler_ns) = emulator.sweeps(all, "fetched")?;
    let resident = &mut all[..size / 2 - BATCH * PAGE_SIZE];
    let (soft_fault_ns, _) = emulator.sweeps(resident, "soft")?;
    Ok(Cost {
        available: true,
        fault_ns,
        soft_fault_ns,
        handler_ns,
    })
}

/// A running emulator; it ends when this is dropped.
struct Emulator {
    process: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    socket: PathBuf,
}

impl Emulator {
    fn start(capacity: usize) -> io::Result<Self> {
        let name = format!("vessels-epc-cost-{}", std::process::id());
        let socket = std::env::temp_dir().join(name);
        let mut process = Command::new(std::env::current_exe()?)
            .arg("serve")
            .arg("--socket")
            .arg(&socket)
            .args(["--epc-pages", &capacity.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let missing = || io::Error::from(io::ErrorKind::BrokenPipe);
        let commands = process.stdin.take().ok_or_else(missing)?;
        let answers = BufReader::new(process.stdout.take().ok_or_else(missing)?);
        let mut emulator = Emulator {
            process,
            commands: Some(commands),
            answers,
            socket,
        };
        emulator.answer()?;
        Ok(emulator)
    }

    /// The median time of a touch in sweeps over `memory`, in which all faults but a few are of
    /// the kind `kind`, and the emulator's own median time for one.
    fn sweeps(&mut self, memory: &mut [u8], kind: &str) -> io::Result<(f64, f64)> {
        let page_count = memory.len() / PAGE_SIZE;
        let mut touches = Vec::new();
        let mut handlings = Vec::new();
        for round in 0..SETTLING_COUNT + ROUND_COUNT {
            let before = self.counts(kind)?;
            let start = Instant::now();
            for page in memory.chunks_exact_mut(PAGE_SIZE) {
                page[0] = page[0].wrapping_add(1);
            }
            let time = start.elapsed().as_nanos() as f64;
            let after = self.counts(kind)?;
            if round < SETTLING_COUNT {
                continue;
            }
            let count = after.0 - before.0;
            if count < 0.9 * page_count as f64 {
                return Err(io::Error::other(format!(
                    "{count} of {page_count} touches were {kind}"
                )));
            }
            touches.push(time / count);
            handlings.push((after.1 - before.1) / count);
        }
        Ok((median(touches), median(handlings)))
    }

    /// The only tenant's count of `kind`, and the nanoseconds that the emulator spent in faults.
    fn counts(&mut self, kind: &str) -> io::Result<(f64, f64)> {
        if let Some(commands) = &mut self.commands {
            commands.write_all(b"{\"do\":\"counters\"}\n")?;
        }
        let counters = self.answer()?;
        let number = |value: &serde_json::Value| value.as_f64().ok_or(io::ErrorKind::InvalidData);
        Ok((
            number(&counters["tenants"][0][kind])?,
            number(&counters["handler_ns"])?,
        ))
    }

    fn answer(&mut self) -> io::Result<serde_json::Value> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err(io::Error::other("the emulator ended"));
        }
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.commands = None;
        let _ = self.process.wait();
        // Its own to remove, unless it died.
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
