//! `vessels-enclave`: the trusted half of Vessels. [`main`] is the whole program.
//!
//! It opens a sealed model, proves what it is, gets the model's key, validates its program, maps
//! one pool of memory and answers sealed requests in it. Files in the order a model passes through
//! them: [`sealed`], [`hpke`], [`evidence`], [`validate`], [`layout`], [`pool`], [`machine`],
//! [`team`], [`slots`], [`stream`], [`kernels`], [`confine`], [`message`], [`protocol`].

#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod confine;
mod evidence;
mod hpke;
#[allow(unsafe_code)]
mod kernels;
mod layout;
mod machine;
mod message;
#[allow(unsafe_code)]
mod pool;
mod program;
mod protocol;
mod refusal;
mod sealed;
mod slots;
mod stream;
mod team;
#[cfg(test)]
mod testing;
mod validate;

use evidence::{Identity, Platform};
use layout::{Placed, Shape};
pub use pool::{MapMemory, Memory, anonymous};
use protocol::{End, Model};
use refusal::Refusal;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: vessels-enclave --model FILE [--threads N] [--slots N] [--rung N] \
                     [--backend simulation|gramine|native]";
/// The model was refused.
const REFUSED: u8 = 2;
/// The command line is wrong.
const MISUSED: u8 = 64;

struct Arguments {
    model: PathBuf,
    shape: Shape,
    slots: usize,
    platform: Platform,
}

fn arguments(mut given: impl Iterator<Item = OsString>) -> Option<Arguments> {
    let (mut model, mut shape, mut slots, mut platform) = (None, Shape::default(), None, None);
    while let Some(name) = given.next() {
        let value = given.next()?;
        match name.to_str()? {
            "--model" if model.is_none() => model = Some(PathBuf::from(value)),
            "--threads" if shape.threads.is_none() => {
                shape.threads = Some(value.to_str()?.parse().ok().filter(|&n| n > 0)?);
            }
            "--rung" if shape.rung.is_none() => {
                shape.rung = Some(value.to_str()?.parse().ok()?);
            }
            "--slots" if slots.is_none() => {
                let valid = 1..=slots::MAX_SLOTS;
                slots = Some(value.to_str()?.parse().ok().filter(|n| valid.contains(n))?);
            }
            "--backend" if platform.is_none() => platform = Some(Platform::of(value.to_str())?),
            _ => return None,
        }
    }
    Some(Arguments {
        model: model?,
        shape,
        slots: slots.unwrap_or(1),
        platform: platform.or_else(|| Platform::of(None))?,
    })
}

/// Tells people on standard error; that nobody can be told stops nothing, as `eprintln!` would.
fn say(text: core::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Unbuffered standard input and output: requests and results go straight to and from the pool.
pub fn streams() -> std::io::Result<(File, File)> {
    let input = std::io::stdin().as_fd().try_clone_to_owned()?;
    let output = std::io::stdout().as_fd().try_clone_to_owned()?;
    Ok((File::from(input), File::from(output)))
}

/// Validates a model opened with its key, and loads it.
fn load(
    sealed: sealed::Sealed,
    key: &[u8; 32],
    shape: Shape,
    slots: usize,
    map: MapMemory,
) -> Result<Model, Refusal> {
    let isa = kernels::Isa::detect()?;
    let opened = sealed.unlock(key)?;
    let program = validate::validate(opened.program, &opened.header)?;
    let placed = Placed::new(program, &opened.header, shape)?;
    let format = message::Format::new(&opened.header).ok_or(Refusal::Messages)?;
    let machine = machine::Machine::load(
        placed,
        opened.parameters,
        isa,
        slots,
        Model::message_size(&format),
        map,
    )?;
    Ok(Model { machine, format })
}

/// Tells the host that nothing will come of it.
fn refused(refusal: Refusal, sink: &mut impl Write) -> End {
    match protocol::write_error(sink, &refusal) {
        Ok(()) => End::Refused(refusal),
        Err(_) => End::Closed,
    }
}

fn serve(
    arguments: &Arguments,
    map: MapMemory,
    source: &mut impl Read,
    sink: &mut impl Write,
) -> End {
    let sealed = match sealed::Sealed::open(&arguments.model) {
        Ok(sealed) => sealed,
        Err(refusal) => return refused(refusal, sink),
    };
    // Until the host speaks there is no secret, and the host may still look at the process: it
    // opens what tells the process's memory, which it can read from then on.
    let mut first = [0];
    if source.read_exact(&mut first).is_err() {
        return End::Closed;
    }
    let mut source = first.as_slice().chain(source);
    let platform = &arguments.platform;
    let identity = confine::close_to_others(platform).and_then(|()| {
        Ok(Identity {
            keys: hpke::KeyPair::generate()?,
            model_digest: sealed.digest(),
            platform: platform.clone(),
        })
    });
    let identity = match identity {
        Ok(identity) => identity,
        Err(refusal) => return refused(refusal, sink),
    };
    let load = |key: &[u8; 32]| {
        let model = load(sealed, key, arguments.shape, arguments.slots, map)?;
        confine::drop_system_calls(platform)?;
        Ok(model)
    };
    match protocol::start(&identity, load, &mut source, sink) {
        Ok(mut model) => protocol::serve(&identity, &mut model, &mut source, sink),
        Err(end) => end,
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
            say(format_args!(
                "vessels-enclave: standard input or output: {error}"
            ));
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
        say(format_args!("{USAGE}"));
        return ExitCode::from(MISUSED);
    };
    if arguments.platform == Platform::Simulation {
        say(format_args!(
            "vessels-enclave: simulation backend: this process is NOT protected from the host it \
             runs on"
        ));
    }
    match serve(&arguments, map, source, sink) {
        End::Closed => ExitCode::SUCCESS,
        End::Refused(refusal) => {
            say(format_args!("vessels-enclave: refused: {refusal}"));
            ExitCode::from(REFUSED)
        }
    }
}
