//! The local protocol with the host: frames over a pair of byte streams (`docs/protocol.md`).

mod session;

use crate::evidence::Identity;
use crate::hpke::{PUBLIC_SIZE, TAG_SIZE};
use crate::machine::Machine;
use crate::message::Format;
use crate::refusal::Refusal;
use crate::sealed::DIGEST_SIZE;
use session::{CONTENT, Session, Turn};
use std::io::{self, Read, Write};
use zeroize::Zeroizing;

const KEY: u32 = 1;
const RUN: u32 = 2;
const RUN_TIMED: u32 = 3;
const EVIDENCE: u32 = 4;
const BATCH: u32 = 5;
const READY: u32 = 16;
const RESULT: u32 = 17;
const TIMES: u32 = 18;
const ERROR: u32 = 19;
const CLAIMS: u32 = 20;

const HEAD_SIZE: usize = 12;
const KEY_SIZE: usize = 32;
const SEALED_KEY_SIZE: usize = PUBLIC_SIZE + KEY_SIZE + TAG_SIZE;
const MIN_NONCE_SIZE: usize = 16;
const MAX_NONCE_SIZE: usize = 64;

const KEY_INFO: &[u8] = b"vessels key v1";
const REQUEST_INFO: &[u8] = b"vessels request v1";

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

/// A loaded model and the form of its messages.
pub struct Model {
    pub machine: Machine,
    pub format: Format,
}

impl Model {
    /// Bytes of memory that messages of this form take.
    pub fn message_size(format: &Format) -> u64 {
        let size = (CONTENT + TAG_SIZE).saturating_add(format.max_size());
        (size as u64).next_multiple_of(64)
    }
}

/// Reads a frame's kind and length; `None` at the end of the stream.
fn read_head(source: &mut impl Read) -> io::Result<Option<(u32, u64)>> {
    let mut head = [0u8; HEAD_SIZE];
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

/// A frame's kind and length as they are sent.
fn head(kind: u32, size: u64) -> [u8; HEAD_SIZE] {
    let mut head = [0u8; HEAD_SIZE];
    let bytes = kind.to_le_bytes().into_iter().chain(size.to_le_bytes());
    for (place, byte) in head.iter_mut().zip(bytes) {
        *place = byte;
    }
    head
}

fn write_frame(sink: &mut impl Write, kind: u32, payload: &[u8]) -> io::Result<()> {
    sink.write_all(&head(kind, payload.len() as u64))?;
    sink.write_all(payload)?;
    sink.flush()
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

/// Tells the host of a refusal.
pub fn write_error(sink: &mut impl Write, refusal: &Refusal) -> io::Result<()> {
    let message = refusal.to_string();
    let payload = minicbor::to_vec((refusal.code(), message.as_str())).unwrap_or_default();
    write_frame(sink, ERROR, &payload)
}

/// Answers an EVIDENCE frame of `size` bytes.
fn answer_evidence(
    identity: &Identity,
    size: u64,
    source: &mut impl Read,
    sink: &mut impl Write,
) -> io::Result<()> {
    if !(MIN_NONCE_SIZE as u64..=MAX_NONCE_SIZE as u64).contains(&size) {
        skip(source, size)?;
        return write_error(sink, &Refusal::NonceSize { actual: size });
    }
    let mut bytes = [0; MAX_NONCE_SIZE];
    let nonce = bytes.get_mut(..size as usize).unwrap_or_default();
    source.read_exact(nonce)?;
    match identity.claims(nonce) {
        Ok(payload) => write_frame(sink, CLAIMS, &payload),
        Err(refusal) => write_error(sink, &refusal),
    }
}

/// Gives evidence until the host gives the model's key, which `load` then gets.
pub fn start(
    identity: &Identity,
    load: impl FnOnce(&[u8; KEY_SIZE]) -> Result<Model, Refusal>,
    source: &mut impl Read,
    sink: &mut impl Write,
) -> Result<Model, End> {
    loop {
        let Some((kind, size)) = read_head(source)? else {
            return Err(End::Closed);
        };
        match kind {
            EVIDENCE => answer_evidence(identity, size, source, sink)?,
            KEY => {
                return match unlock(identity, size, load, source)? {
                    Ok(model) => Ok(model),
                    Err(refusal) => {
                        write_error(sink, &refusal)?;
                        Err(End::Refused(refusal))
                    }
                };
            }
            _ => {
                skip(source, size)?;
                let refusal = match kind {
                    RUN | RUN_TIMED | BATCH => Refusal::Locked,
                    _ => Refusal::UnknownFrame { kind },
                };
                write_error(sink, &refusal)?;
            }
        }
    }
}

/// Opens the sealed key where it was read to, and nowhere else: it is wiped there.
fn unlock(
    identity: &Identity,
    size: u64,
    load: impl FnOnce(&[u8; KEY_SIZE]) -> Result<Model, Refusal>,
    source: &mut impl Read,
) -> io::Result<Result<Model, Refusal>> {
    if size != SEALED_KEY_SIZE as u64 {
        return Ok(Err(Refusal::KeyFrame));
    }
    let mut enc = [0; PUBLIC_SIZE];
    source.read_exact(&mut enc)?;
    let mut sealed = Zeroizing::new([0; KEY_SIZE + TAG_SIZE]);
    source.read_exact(sealed.as_mut())?;
    let opened = identity
        .keys
        .open(&enc, KEY_INFO, &identity.model_digest, sealed.as_mut());
    let key = opened.and_then(|(plain, _)| plain.first_chunk());
    Ok(match key {
        Some(key) => load(key),
        None => Err(Refusal::SealedKey),
    })
}

/// Says READY and answers requests until the host closes or a run shows the model to be altered.
pub fn serve(
    identity: &Identity,
    model: &mut Model,
    source: &mut impl Read,
    sink: &mut impl Write,
) -> End {
    match answer_all(identity, model, source, sink) {
        Ok(()) => End::Closed,
        Err(end) => end,
    }
}

fn answer_all(
    identity: &Identity,
    model: &mut Model,
    source: &mut impl Read,
    sink: &mut impl Write,
) -> Result<(), End> {
    let machine = &model.machine;
    let ready = (
        machine.thread_count() as u32,
        machine.isa().name(),
        machine.pool_size(),
        machine.instruction_count() as u32,
        machine.slot_count() as u32,
    );
    // Before READY: nothing is allocated after it.
    let mut turns = Vec::with_capacity(machine.slot_count());
    write_frame(sink, READY, &minicbor::to_vec(ready).unwrap_or_default())?;
    let mut session = Session {
        identity,
        info: request_info(&identity.model_digest),
        model,
    };
    while let Some((kind, size)) = read_head(source)? {
        match kind {
            RUN | RUN_TIMED => {
                turns.push(session.receive(0, size, source)?);
                session.answer(&mut turns, kind == RUN_TIMED, sink)?;
            }
            BATCH => match read_count(size, session.model.machine.slot_count(), source)? {
                Ok(count) => {
                    for slot in 0..count {
                        let Some((kind, size)) = read_head(source)? else {
                            return Ok(());
                        };
                        turns.push(if kind == RUN {
                            session.receive(slot, size, source)?
                        } else {
                            skip(source, size)?;
                            Turn::Refused(Refusal::InBatch { kind })
                        });
                    }
                    session.answer(&mut turns, false, sink)?;
                }
                Err(refusal) => write_error(sink, &refusal)?,
            },
            EVIDENCE => answer_evidence(identity, size, source, sink)?,
            _ => {
                skip(source, size)?;
                let refusal = match kind {
                    KEY => Refusal::Unlocked,
                    _ => Refusal::UnknownFrame { kind },
                };
                write_error(sink, &refusal)?;
            }
        }
    }
    Ok(())
}

fn request_info(digest: &[u8; DIGEST_SIZE]) -> [u8; REQUEST_INFO.len() + DIGEST_SIZE] {
    let mut info = [0; REQUEST_INFO.len() + DIGEST_SIZE];
    for (place, byte) in info.iter_mut().zip(REQUEST_INFO.iter().chain(digest)) {
        *place = *byte;
    }
    info
}

/// Reads a BATCH frame of `size` bytes: how many requests there are.
fn read_count(
    size: u64,
    slots: usize,
    source: &mut impl Read,
) -> io::Result<Result<usize, Refusal>> {
    let mut bytes = [0; 4];
    if size != bytes.len() as u64 {
        skip(source, size)?;
        return Ok(Err(Refusal::BatchCount { slots }));
    }
    source.read_exact(&mut bytes)?;
    let count = u32::from_le_bytes(bytes) as usize;
    Ok(if (2..=slots).contains(&count) {
        Ok(count)
    } else {
        Err(Refusal::BatchCount { slots })
    })
}

#[cfg(test)]
pub mod tests;
