//! The local protocol with the host: frames over a pair of byte streams (`docs/protocol.md`).

use crate::machine::Machine;
use crate::refusal::Refusal;
use std::io::{self, Read, Write};
use zeroize::Zeroizing;

const KEY: u32 = 1;
const RUN: u32 = 2;
const RUN_TIMED: u32 = 3;
const READY: u32 = 16;
const RESULT: u32 = 17;
const TIMES: u32 = 18;
const ERROR: u32 = 19;

/// Why serving ended.
#[derive(Debug)]
pub enum End {
    /// The host closed its side, or no longer listens.
    Closed,
    /// The model was refused; the host has been told.
    Refused(Refusal),
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        End::Closed
    }
}

/// Reads a frame's kind and length; `None` at the end of the stream.
fn read_head(source: &mut impl Read) -> io::Result<Option<(u32, u64)>> {
    let mut head = [0u8; 12];
    if let Err(error) = source.read_exact(&mut head) {
        return if error.kind() == io::ErrorKind::UnexpectedEof {
            Ok(None)
        } else {
            Err(error)
        };
    }
    let [k0, k1, k2, k3, l0, l1, l2, l3, l4, l5, l6, l7] = head;
    Ok(Some((
        u32::from_le_bytes([k0, k1, k2, k3]),
        u64::from_le_bytes([l0, l1, l2, l3, l4, l5, l6, l7]),
    )))
}

fn write_head(sink: &mut impl Write, kind: u32, size: u64) -> io::Result<()> {
    let mut head = [0u8; 12];
    let bytes = kind.to_le_bytes().into_iter().chain(size.to_le_bytes());
    for (place, byte) in head.iter_mut().zip(bytes) {
        *place = byte;
    }
    sink.write_all(&head)
}

/// Throws away a payload.
fn skip(source: &mut impl Read, mut size: u64) -> io::Result<()> {
    let mut buffer = [0u8; 4096];
    while size > 0 {
        let part = size.min(buffer.len() as u64);
        source.read_exact(buffer.get_mut(..part as usize).unwrap_or_default())?;
        size -= part;
    }
    Ok(())
}

/// The model key from the first frame; `Ok(None)` when the host closed instead.
pub fn read_key(source: &mut impl Read) -> io::Result<Result<Zeroizing<[u8; 32]>, Refusal>> {
    match read_head(source)? {
        None => Err(io::ErrorKind::UnexpectedEof.into()),
        Some((KEY, 32)) => {
            let mut key = Zeroizing::new([0; 32]);
            source.read_exact(key.as_mut())?;
            Ok(Ok(key))
        }
        Some(_) => Ok(Err(Refusal::KeyFrame)),
    }
}

/// Tells the host of a refusal.
pub fn write_error(sink: &mut impl Write, refusal: &Refusal) -> io::Result<()> {
    let message = refusal.to_string();
    let payload = minicbor::to_vec((refusal.code(), message.as_str())).unwrap_or_default();
    write_head(sink, ERROR, payload.len() as u64)?;
    sink.write_all(&payload)?;
    sink.flush()
}

/// Says READY and answers requests until the host closes or a run shows the model to be altered.
pub fn serve(machine: &mut Machine, source: &mut impl Read, sink: &mut impl Write) -> End {
    match answer_all(machine, source, sink) {
        Ok(()) => End::Closed,
        Err(end) => end,
    }
}

fn answer_all(
    machine: &mut Machine,
    source: &mut impl Read,
    sink: &mut impl Write,
) -> Result<(), End> {
    let ready = (
        machine.thread_count() as u32,
        machine.isa().name(),
        machine.pool_size(),
        machine.instruction_count() as u32,
    );
    let payload = minicbor::to_vec(ready).unwrap_or_default();
    write_head(sink, READY, payload.len() as u64)?;
    sink.write_all(&payload)?;
    sink.flush()?;
    drop(payload);
    while let Some((kind, size)) = read_head(source)? {
        if kind != RUN && kind != RUN_TIMED {
            skip(source, size)?;
            write_error(sink, &Refusal::UnknownFrame { kind })?;
            continue;
        }
        let expected = machine.input_size();
        if size != expected {
            skip(source, size)?;
            write_error(
                sink,
                &Refusal::RequestSize {
                    expected,
                    actual: size,
                },
            )?;
            continue;
        }
        machine.read_inputs(source)?;
        if let Err(refusal) = machine.run(kind == RUN_TIMED) {
            write_error(sink, &refusal)?;
            if let Refusal::Index { .. } = refusal {
                // The request's fault, not the model's: every run writes what it reads, so
                // nothing of this one reaches the next.
                continue;
            }
            return Err(End::Refused(refusal));
        }
        if kind == RUN_TIMED {
            write_head(sink, TIMES, machine.instruction_count() as u64 * 8)?;
            for time in machine.times() {
                sink.write_all(&time.to_le_bytes())?;
            }
        }
        write_head(sink, RESULT, machine.output_size())?;
        machine.write_outputs(sink)?;
        sink.flush()?;
    }
    Ok(())
}
