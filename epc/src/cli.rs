//! The command line.

use crate::cost;
use crate::pager::LEAST_CAPACITY;
use crate::replay::replay;
use crate::server::Server;
use crate::tenant::{Beside, EpcMemory};
use crate::userfault::Userfault;
use lexopt::{Arg, Parser, ValueExt};
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "\
usage: vessels-epc serve --socket PATH --epc-pages N [--padding-ns N]
       vessels-epc enclave --socket PATH -- ARGUMENTS OF vessels-enclave
       vessels-epc replay --socket PATH --pages N
       vessels-epc cost --epc-pages N";
/// The command line is wrong.
const MISUSED: u8 = 64;

#[derive(Debug, PartialEq, Eq)]
enum Task {
    Serve {
        socket: PathBuf,
        capacity: usize,
        padding: Duration,
    },
    Enclave {
        socket: PathBuf,
        arguments: Vec<OsString>,
    },
    Replay {
        socket: PathBuf,
        page_count: usize,
    },
    Cost {
        capacity: usize,
    },
}

fn task(given: impl IntoIterator<Item = OsString>) -> Result<Task, lexopt::Error> {
    let mut parser = Parser::from_args(given);
    let Some(Arg::Value(name)) = parser.next()? else {
        return Err("a command is missing".into());
    };
    let name = name.string()?;
    let (mut socket, mut capacity, mut page_count) = (None, None, None);
    let mut padding = Duration::ZERO;
    let mut arguments = Vec::new();
    while let Some(argument) = parser.next()? {
        match (argument, name.as_str()) {
            (Arg::Long("socket"), "serve" | "enclave" | "replay") => {
                socket = Some(PathBuf::from(parser.value()?));
            }
            (Arg::Long("epc-pages"), "serve" | "cost") => {
                let pages: usize = parser.value()?.parse()?;
                if pages < LEAST_CAPACITY {
                    return Err(format!("an EPC has at least {LEAST_CAPACITY} pages").into());
                }
                capacity = Some(pages);
            }
            (Arg::Long("padding-ns"), "serve") => {
                padding = Duration::from_nanos(parser.value()?.parse()?);
            }
            (Arg::Long("pages"), "replay") => {
                let pages = parser.value()?.parse::<u32>()?;
                page_count = Some(pages.max(1) as usize);
            }
            // What follows `--` are values, options and all.
            (Arg::Value(value), "enclave") => arguments.push(value),
            (argument, _) => return Err(argument.unexpected()),
        }
    }
    let socket = || socket.clone().ok_or("--socket is missing");
    Ok(match name.as_str() {
        "serve" => Task::Serve {
            socket: socket()?,
            capacity: capacity.ok_or("--epc-pages is missing")?,
            padding,
        },
        "enclave" => Task::Enclave {
            socket: socket()?,
            arguments,
        },
        "replay" => Task::Replay {
            socket: socket()?,
            page_count: page_count.ok_or("--pages is missing")?,
        },
        "cost" => Task::Cost {
            capacity: capacity.ok_or("--epc-pages is missing")?,
        },
        _ => return Err(format!("there is no command {name:?}").into()),
    })
}

fn perform(task: Task) -> io::Result<ExitCode> {
    match task {
        Task::Serve {
            socket,
            capacity,
            padding,
        } => {
            let (_, mode) = Userfault::open().map_err(|error| {
                let why =
                    format!("this kernel does not give a userfaultfd to this process: {error}");
                io::Error::new(error.kind(), why)
            })?;
            let served = Server::listen(&socket, capacity, padding)?.serve(mode);
            let _ = std::fs::remove_file(&socket);
            served?;
        }
        Task::Enclave { socket, arguments } => {
            let map = |size| {
                let memory = EpcMemory::map(&socket, size)?;
                Ok(Box::new(memory) as Box<dyn vessels_enclave::Memory>)
            };
            let (mut source, mut sink) = vessels_enclave::streams()?;
            return Ok(vessels_enclave::run(
                arguments.into_iter(),
                &map,
                &mut Beside::new(&mut source),
                &mut Beside::new(&mut sink),
            ));
        }
        Task::Replay { socket, page_count } => {
            print_json(&replay(&socket, page_count, io::stdin().lock())?)?;
        }
        Task::Cost { capacity } => match cost::unavailable() {
            Some(unavailable) => print_json(&unavailable)?,
            None => print_json(&cost::measure(capacity)?)?,
        },
    }
    Ok(ExitCode::SUCCESS)
}

fn print_json(value: &impl serde::Serialize) -> io::Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}

/// The program with the arguments `given`.
pub fn run(given: impl IntoIterator<Item = OsString>) -> ExitCode {
    let task = match task(given) {
        Ok(task) => task,
        Err(error) => {
            eprintln!("vessels-epc: {error}\n{USAGE}");
            return ExitCode::from(MISUSED);
        }
    };
    perform(task).unwrap_or_else(|error| {
        eprintln!("vessels-epc: {error}");
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Result<Task, lexopt::Error> {
        task(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn an_enclave_gets_what_follows_the_dashes() {
        let found = of("enclave --socket s -- --model m --threads 2").expect("is right");
        let expected = Task::Enclave {
            socket: "s".into(),
            arguments: ["--model", "m", "--threads", "2"]
                .map(OsString::from)
                .into(),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn serving_takes_a_capacity_and_a_padding() {
        let found = of("serve --padding-ns 1500 --socket=s --epc-pages 64").expect("is right");
        let expected = Task::Serve {
            socket: "s".into(),
            capacity: 64,
            padding: Duration::from_nanos(1500),
        };
        assert_eq!(found, expected);
        assert!(of("serve --socket s --epc-pages 64 more").is_err());
        assert!(of("serve --socket s --epc-pages 64 --padding-ns -1").is_err());
    }
}
