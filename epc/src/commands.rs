//! The owner's commands and the emulator's answers: JSON, one to a line, on its standard input
//! and output.

use crate::pager::Counts;
use crate::userfault::Mode;
use serde::{Deserialize, Serialize};
use std::io::{self, Write};

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
pub enum Command {
    Counters,
    /// The EPC has so many pages from now on.
    Capacity {
        pages: usize,
    },
    /// Alters an evicted page of a tenant, outside.
    Tamper {
        tenant: u32,
        how: Tampering,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tampering {
    /// Flips a bit.
    Flip,
    /// Puts back an older sealed version of the same page.
    Replay,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Answer {
    Ready { ready: bool, mode: Mode },
    Counters(Counters),
    Capacity { capacity: usize },
    Tampered { page: u32 },
    Error { error: String },
}

/// All since the start; pages but for the time.
#[derive(Debug, Serialize)]
pub struct Counters {
    pub capacity: usize,
    pub used: usize,
    pub peak_used: usize,
    /// Time spent in answering faults.
    pub handler_ns: u64,
    pub tenants: Vec<TenantCounters>,
}

#[derive(Debug, Serialize)]
pub struct TenantCounters {
    pub id: u32,
    pub pid: i32,
    pub pages: usize,
    #[serde(flatten)]
    pub counts: Counts,
    pub alive: bool,
    /// Why the emulator ended it, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// Lines of the standard input, as they come in.
#[derive(Default)]
pub struct Lines(Vec<u8>);

impl Lines {
    /// What a ready input holds: the commands that are complete, or why a line is none. `None` at
    /// the end of the input.
    pub fn read(&mut self) -> io::Result<Option<Vec<Result<Command, String>>>> {
        let mut bytes = [0; 4096];
        let size = rustix::io::read(std::io::stdin(), &mut bytes)?;
        if size == 0 {
            return Ok(None);
        }
        Ok(Some(self.complete(&bytes[..size])))
    }

    fn complete(&mut self, bytes: &[u8]) -> Vec<Result<Command, String>> {
        self.0.extend_from_slice(bytes);
        let Some(end) = self.0.iter().rposition(|&b| b == b'\n') else {
            return Vec::new();
        };
        let lines: Vec<u8> = self.0.drain(..=end).collect();
        lines
            .split(|&b| b == b'\n')
            .filter(|line| !line.trim_ascii().is_empty())
            .map(|line| serde_json::from_slice(line).map_err(|error| error.to_string()))
            .collect()
    }
}

/// Writes an answer to the standard output.
pub fn answer(answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    let mut output = io::stdout().lock();
    output.write_all(&line)?;
    output.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_come_in_pieces_and_several_at_once() {
        let mut lines = Lines::default();
        assert!(lines.complete(b"{\"do\":\"coun").is_empty());
        let commands = lines.complete(b"ters\"}\n\n{\"do\":\"capacity\",\"pages\":70}\n{\"do\":");
        assert_eq!(
            commands,
            [Ok(Command::Counters), Ok(Command::Capacity { pages: 70 })]
        );
        let commands = lines.complete(b"\"tamper\",\"tenant\":2,\"how\":\"replay\"}\n");
        let how = Tampering::Replay;
        assert_eq!(commands, [Ok(Command::Tamper { tenant: 2, how })]);
    }

    #[test]
    fn what_is_no_command_is_an_error_and_the_next_line_goes_on() {
        let mut lines = Lines::default();
        let commands = lines.complete(b"nonsense\n{\"do\":\"capacity\"}\n{\"do\":\"counters\"}\n");
        assert!(commands[0].is_err() && commands[1].is_err());
        assert_eq!(commands[2], Ok(Command::Counters));
    }
}
