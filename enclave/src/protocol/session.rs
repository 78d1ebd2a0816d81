//! Requests and their answers: each in its slot, those of a batch run together.

use super::{End, HEAD_SIZE, Model, REQUEST_INFO, RESULT, TIMES, head, skip, write_error};
use crate::evidence::Identity;
use crate::hpke::{Exchange, NONCE_SIZE, PUBLIC_SIZE, TAG_SIZE};
use crate::machine::wipe;
use crate::message::{self, Request, Wrong};
use crate::refusal::Refusal;
use crate::sealed::DIGEST_SIZE;
use std::io::{self, Read, Write};

pub const RESPONSE_LABEL: &[u8] = b"vessels response v1";

/// Where the content of a message begins in the memory for it: before it lie a frame's head and
/// the encapsulated key of a request, or the nonce of a response.
pub const CONTENT: usize = 64;
const FRONT: usize = CONTENT - PUBLIC_SIZE;
const HEAD: usize = FRONT - HEAD_SIZE;
const _: () = assert!(PUBLIC_SIZE == NONCE_SIZE);

/// How far the answer to one request has come.
pub enum Turn {
    /// The host is told why there is none.
    Refused(Refusal),
    /// Its inputs lie in its slot.
    Due(Exchange),
    /// Its content, of so many bytes if there is room for it, lies in its slot's message.
    Written(Exchange, Option<usize>),
    /// Its frame, of so many bytes, lies there.
    Sealed(usize),
}

/// What every request is answered with.
pub struct Session<'a> {
    pub identity: &'a Identity,
    pub info: [u8; REQUEST_INFO.len() + DIGEST_SIZE],
    pub model: &'a mut Model,
}

impl Session<'_> {
    /// Reads and opens a sealed request of `size` bytes in its slot. Its inputs are put into their
    /// places; otherwise nothing is left of it.
    pub fn receive(&mut self, slot: usize, size: u64, source: &mut impl Read) -> io::Result<Turn> {
        let Model { machine, format } = &mut *self.model;
        let most = PUBLIC_SIZE + TAG_SIZE + format.max_request_size();
        let least = PUBLIC_SIZE + TAG_SIZE;
        if size < least as u64 || size > most as u64 {
            skip(source, size)?;
            return Ok(Turn::Refused(Refusal::RequestSize {
                most: most as u64,
                actual: size,
            }));
        }
        let request = machine
            .message(slot)
            .get_mut(FRONT..FRONT + size as usize)
            .unwrap_or_default();
        source.read_exact(request)?;
        let opened = request
            .split_first_chunk_mut::<PUBLIC_SIZE>()
            .and_then(|(enc, sealed)| self.identity.keys.open(enc, &self.info, &[], sealed))
            .map(|(plain, exchange)| (plain.len(), exchange));
        let Some((size, exchange)) = opened else {
            return Ok(Turn::Refused(Refusal::SealedRequest));
        };
        let content = machine.message(slot).get_mut(CONTENT..).unwrap_or_default();
        let plain = content.get_mut(..size).unwrap_or_default();
        Ok(match format.read(plain) {
            Ok(Request::Predict { tensors }) => {
                machine.read_inputs(slot, CONTENT + tensors);
                let message = machine.message(slot);
                wipe(message.get_mut(CONTENT..CONTENT + size).unwrap_or_default());
                Turn::Due(exchange)
            }
            Ok(Request::Describe) => {
                wipe(plain);
                Turn::Written(exchange, format.write_description(content))
            }
            Err(wrong) => {
                wipe(plain);
                Turn::Written(exchange, message::write_wrong(&wrong, content))
            }
        })
    }

    /// Runs what is due, then sends all answers; request number `i` is in slot `i`.
    pub fn answer(
        &mut self,
        turns: &mut Vec<Turn>,
        timed: bool,
        sink: &mut impl Write,
    ) -> Result<(), End> {
        let used = (0..)
            .zip(&*turns)
            .filter(|(_, turn)| matches!(turn, Turn::Due(_)))
            .fold(0, |used, (slot, _)| used | 1 << slot);
        if used != 0
            && let Err(refusal) = self.model.machine.run(used, timed)
        {
            // The model's fault: nobody is answered any more.
            write_error(sink, &refusal)?;
            return Err(End::Refused(refusal));
        }
        // No plain outputs wait for the host to take an answer.
        for (slot, turn) in turns.iter_mut().enumerate() {
            let due = core::mem::replace(turn, Turn::Refused(Refusal::Abandoned));
            *turn = self.seal(slot, due);
        }
        if timed && used != 0 {
            let machine = &self.model.machine;
            sink.write_all(&head(TIMES, machine.instruction_count() as u64 * 8))?;
            for time in machine.times() {
                sink.write_all(&time.to_le_bytes())?;
            }
        }
        for (slot, turn) in turns.drain(..).enumerate() {
            match turn {
                Turn::Sealed(size) => {
                    let message = self.model.machine.message(slot);
                    sink.write_all(message.get(HEAD..HEAD + size).unwrap_or_default())?;
                }
                Turn::Refused(refusal) if refusal.code() == "request" => {
                    write_error(sink, &refusal)?;
                }
                Turn::Refused(refusal) => {
                    write_error(sink, &refusal)?;
                    return Err(End::Refused(refusal));
                }
                Turn::Due(_) | Turn::Written(..) => return Err(End::Refused(Refusal::Abandoned)),
            }
        }
        sink.flush()?;
        Ok(())
    }

    /// Seals the answer in its slot's message.
    fn seal(&mut self, slot: usize, turn: Turn) -> Turn {
        let (exchange, size) = match turn {
            Turn::Due(exchange) => (exchange, self.write_response(slot)),
            Turn::Written(exchange, size) => (exchange, size),
            Turn::Refused(_) | Turn::Sealed(_) => return turn,
        };
        let message = self.model.machine.message(slot);
        match size.and_then(|size| seal(&exchange, message, size)) {
            Some(size) => Turn::Sealed(size),
            None => Turn::Refused(Refusal::Abandoned),
        }
    }

    /// Writes the content of a response after a run; of the run, nothing else is left in the slot.
    fn write_response(&mut self, slot: usize) -> Option<usize> {
        let Model { machine, format } = &mut *self.model;
        let wrong = machine.wrong_index(slot).map(|size| Wrong::Index { size });
        let content = machine.message(slot).get_mut(CONTENT..).unwrap_or_default();
        let size = match wrong {
            Some(wrong) => message::write_wrong(&wrong, content),
            None => format.write_outputs(content).map(|(size, tensors)| {
                machine.write_outputs(slot, CONTENT + tensors);
                size
            }),
        };
        machine.wipe(slot);
        size
    }
}

/// Seals the first `size` bytes of content in place; the size of the frame, which begins at
/// [`HEAD`].
fn seal(exchange: &Exchange, memory: &mut [u8], size: usize) -> Option<usize> {
    let end = CONTENT.checked_add(size)?.checked_add(TAG_SIZE)?;
    let frame = memory.get_mut(HEAD..end)?;
    let (start, rest) = frame.split_first_chunk_mut::<HEAD_SIZE>()?;
    *start = head(RESULT, rest.len() as u64);
    let (nonce, sealed) = rest.split_first_chunk_mut::<NONCE_SIZE>()?;
    let (plain, tag) = sealed.split_last_chunk_mut::<TAG_SIZE>()?;
    exchange.answer(RESPONSE_LABEL, nonce, plain, tag)?;
    Some(end - HEAD)
}
