//! `vessels-enclave`: the trusted half of Vessels. [`main`] is the whole program.
//!
//! It opens a sealed model, validates its program, maps one pool of memory and answers requests
//! in it. Files in the order a model passes through them: [`sealed`], [`validate`], [`pool`],
//! [`machine`], [`team`], [`stream`], [`kernels`], [`protocol`].

#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod kernels;
mod machine;
#[allow(unsafe_code)]
mod pool;
mod program;
mod protocol;
mod refusal;
mod sealed;
mod stream;
mod team;
#[cfg(test)]
mod testing;
mod validate;

pub use pool::{MapMemory, Memory, anonymous};
use protocol::End;
use refusal::Refusal;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: vessels-enclave --model FILE [--threads N]";
/// The model was refused.
const REFUSED: u8 = 2;
/// The command line is wrong.
const MISUSED: u8 = 64;

struct Arguments {
    model: PathBuf,
    threads: Option<usize>,
}

fn arguments(mut given: impl Iterator<Item = OsString>) -> Option<Arguments> {
    let (mut model, mut threads) = (None, None);
    while let Some(name) = given.next() {
        let value = given.next()?;
        match name.to_str()? {
            "--model" if model.is_none() => model = Some(PathBuf::from(value)),
            "--threads" if threads.is_none() => {
                threads = Some(value.to_str()?.parse().ok().filter(|&n| n > 0)?);
            }
            _ => return None,
        }
    }
    Some(Arguments {
        model: model?,
        threads,
    })
}

/// Unbuffered standard input and output: requests and results go straight to and from the pool.
pub fn streams() -> std::io::Result<(File, File)> {
    let input = std::io::stdin().as_fd().try_clone_to_owned()?;
    let output = std::io::stdout().as_fd().try_clone_to_owned()?;
    Ok((File::from(input), File::from(output)))
}

fn load(
    arguments: &Arguments,
    map: MapMemory,
    source: &mut impl Read,
) -> std::io::Result<Result<machine::Machine, Refusal>> {
    // The key is taken first, so that a refusal of the file does not leave it in the pipe.
    let key = match protocol::read_key(source)? {
        Ok(key) => key,
        Err(refusal) => return Ok(Err(refusal)),
    };
    Ok((|| {
        let isa = kernels::Isa::detect()?;
        let opened = sealed::Sealed::open(&arguments.model)?.unlock(&key)?;
        let program = validate::validate(opened.program, &opened.header)?;
        let most = program.layout.thread_count as usize;
        let threads = arguments.threads.unwrap_or(most).min(most);
        machine::Machine::load(program, opened.parameters, isa, threads, map)
    })())
}

fn serve(
    arguments: &Arguments,
    map: MapMemory,
    source: &mut impl Read,
    sink: &mut impl Write,
) -> End {
    match load(arguments, map, source) {
        Err(_) => End::Closed,
        Ok(Ok(mut machine)) => protocol::serve(&mut machine, source, sink),
        Ok(Err(refusal)) => match protocol::write_error(sink, &refusal) {
            Ok(()) => End::Refused(refusal),
            Err(_) => End::Closed,
        },
    }
}

/// The program: a pool of ordinary memory, the arguments and standard streams of the process.
pub fn main() -> ExitCode {
    match streams() {
        Ok((mut source, mut sink)) => run(
            std::env::args_os().skip(1),
            &anonymous,
            &mut source,
            &mut sink,
        ),
        Err(error) => {
            eprintln!("vessels-enclave: standard input or output: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The program with the arguments `given`, its pool in memory that `map` gives, and the host at
/// the other end of `source` and `sink`.
pub fn run(
    given: impl Iterator<Item = OsString>,
    map: MapMemory,
    source: &mut impl Read,
    sink: &mut impl Write,
) -> ExitCode {
    let Some(arguments) = arguments(given) else {
        eprintln!("{USAGE}");
        return ExitCode::from(MISUSED);
    };
    eprintln!(
        "vessels-enclave: simulation backend: this process is NOT protected from the host it \
         runs on"
    );
    match serve(&arguments, map, source, sink) {
        End::Closed => ExitCode::SUCCESS,
        End::Refused(refusal) => {
            eprintln!("vessels-enclave: refused: {refusal}");
            ExitCode::from(REFUSED)
        }
    }
}
