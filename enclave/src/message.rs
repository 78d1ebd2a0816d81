//! What requests and responses hold once they are opened: `docs/messages.md`, checked to the byte.
//!
//! All that a model's messages have in common (heads, sizes) is made when the model is loaded;
//! reading and writing a message allocates nothing.

use crate::program::DType;
use crate::sealed::{Header, Port};
use core::fmt::{self, Write};
use minicbor::Encoder;
use minicbor::encode::write::Cursor;

const VERSION: u8 = 1;
const ALIGNMENT: usize = 64;
const HEAD_SIZE: usize = 8;
const PREDICT: u8 = 1;
const DESCRIBE: u8 = 2;
const OUTPUTS: u8 = 1;
const DESCRIPTION: u8 = 2;
const ERROR: u8 = 3;
/// A wrong request may be larger than a right one by so many bytes and is still answered under
/// seal.
const SLACK: usize = 4096;
/// An error's text is cut to so many bytes.
const MAX_TEXT_SIZE: usize = 512;
/// The largest response that tells an error.
const MAX_ERROR_SIZE: usize = 640;

/// A model's messages.
pub struct Format {
    inputs: Vec<Port>,
    /// All of a right request before its tensors.
    request: Vec<u8>,
    request_size: usize,
    describe: Vec<u8>,
    /// All of a response before its tensors.
    response: Vec<u8>,
    response_size: usize,
    description: Vec<u8>,
}

/// What a right request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// A prediction; the first tensor begins at this offset of the message.
    Predict {
        tensors: usize,
    },
    Describe,
}

/// Why a request was refused; told to nobody but its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong<'a> {
    Size,
    Version(u8),
    Kind(u8),
    Reserved,
    Header,
    Padding,
    Input {
        index: usize,
        port: &'a Port,
    },
    InputCount {
        due: usize,
    },
    /// An index in an input lies outside of what it indexes.
    Index {
        size: u64,
    },
}

/// Bytes of a port's tensor.
fn size_of(port: &Port) -> Option<usize> {
    let bytes = port
        .shape
        .iter()
        .try_fold(port.dtype.size(), |size, &d| size.checked_mul(u64::from(d)))?;
    usize::try_from(bytes).ok()
}

/// Bytes of a port's tensor with its padding.
fn padded_size_of(port: &Port) -> Option<usize> {
    size_of(port)?.checked_next_multiple_of(ALIGNMENT)
}

/// Head, header and padding of a message.
fn front(kind: u8, header: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = vec![VERSION, kind, 0, 0];
    bytes.extend(u32::try_from(header.len()).ok()?.to_le_bytes());
    bytes.extend(header);
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    Some(bytes)
}

impl Format {
    /// The messages of a model with this header; `None` if they would be absurdly large.
    pub fn new(header: &Header) -> Option<Self> {
        let total = |front: &[u8], ports: &[Port]| {
            ports.iter().try_fold(front.len(), |size, port| {
                size.checked_add(padded_size_of(port)?)
            })
        };
        let encoded = |ports: &Vec<Port>| minicbor::to_vec(ports).ok();
        let (inputs, outputs) = (encoded(&header.inputs)?, encoded(&header.outputs)?);
        let request = front(PREDICT, &inputs)?;
        let response = front(OUTPUTS, &outputs)?;
        let mut both = vec![0x82];
        both.extend(&inputs);
        both.extend(&outputs);
        Some(Format {
            request_size: total(&request, &header.inputs)?,
            response_size: total(&response, &header.outputs)?,
            inputs: header.inputs.clone(),
            request,
            describe: front(DESCRIBE, &[0x80])?,
            response,
            description: front(DESCRIPTION, &both)?,
        })
    }

    /// All of a right request before its tensors.
    #[cfg(test)]
    pub fn front_of_request(&self) -> &[u8] {
        &self.request
    }

    /// Bytes of the largest request that is read.
    pub fn max_request_size(&self) -> usize {
        self.request_size.saturating_add(SLACK)
    }

    /// Bytes of the largest message, request or response.
    pub fn max_size(&self) -> usize {
        self.max_request_size()
            .max(self.response_size)
            .max(self.description.len())
            .max(MAX_ERROR_SIZE)
    }

    /// What an opened request asks for.
    pub fn read(&self, plain: &[u8]) -> Result<Request, Wrong<'_>> {
        if plain == self.describe {
            return Ok(Request::Describe);
        }
        if plain.len() != self.request_size || !plain.starts_with(&self.request) {
            return Err(self.explain(plain));
        }
        let mut at = self.request.len();
        for port in &self.inputs {
            let (Some(size), Some(padded)) = (size_of(port), padded_size_of(port)) else {
                return Err(Wrong::Size);
            };
            let padding = plain.get(at.saturating_add(size)..at.saturating_add(padded));
            if padding.is_none_or(|padding| padding.iter().any(|&b| b != 0)) {
                return Err(Wrong::Padding);
            }
            at = at.saturating_add(padded);
        }
        let tensors = self.request.len();
        Ok(Request::Predict { tensors })
    }

    /// The first thing that is wrong with a request that is not a right one.
    fn explain(&self, plain: &[u8]) -> Wrong<'_> {
        let Some((&[version, kind, r0, r1, s0, s1, s2, s3], rest)) =
            plain.split_first_chunk::<HEAD_SIZE>()
        else {
            return Wrong::Size;
        };
        if version != VERSION {
            return Wrong::Version(version);
        }
        if kind != PREDICT && kind != DESCRIBE {
            return Wrong::Kind(kind);
        }
        if [r0, r1] != [0, 0] {
            return Wrong::Reserved;
        }
        let size = u32::from_le_bytes([s0, s1, s2, s3]) as usize;
        let Some(header) = rest.get(..size) else {
            return Wrong::Size;
        };
        if kind == DESCRIBE {
            return if header != [0x80] {
                Wrong::Header
            } else if plain.len() != self.describe.len() {
                Wrong::Size
            } else {
                Wrong::Padding
            };
        }
        self.explain_header(header).unwrap_or_else(|| {
            let padded = (HEAD_SIZE + size).next_multiple_of(ALIGNMENT);
            let padding = rest.get(size..padded - HEAD_SIZE).unwrap_or_default();
            if self.request.get(HEAD_SIZE..HEAD_SIZE + size) != Some(header) {
                Wrong::Header
            } else if padding.iter().any(|&b| b != 0) {
                Wrong::Padding
            } else {
                Wrong::Size
            }
        })
    }

    /// The first input that the header names otherwise than the model; `None` if none, or if the
    /// header is no list of tensors.
    fn explain_header(&self, header: &[u8]) -> Option<Wrong<'_>> {
        let mut decoder = minicbor::Decoder::new(header);
        let count = decoder.array().ok()??;
        for (index, port) in self.inputs.iter().enumerate() {
            if index as u64 >= count {
                break;
            }
            if decoder.array().ok()? != Some(3) {
                return None;
            }
            let mut same = decoder.str().ok()? == port.name;
            same &= decoder.decode::<DType>().ok() == Some(port.dtype);
            if !same {
                return Some(Wrong::Input { index, port });
            }
            let rank = decoder.array().ok()??;
            same &= rank == port.shape.len() as u64;
            for dimension in 0..rank {
                let found = decoder.u64().ok()?;
                let due = usize::try_from(dimension)
                    .ok()
                    .and_then(|d| port.shape.get(d));
                same &= due.is_some_and(|&due| u64::from(due) == found);
            }
            if !same {
                return Some(Wrong::Input { index, port });
            }
        }
        let due = self.inputs.len();
        (count != due as u64).then_some(Wrong::InputCount { due })
    }

    /// Writes all of a response before its tensors; the response's size and where they begin.
    pub fn write_outputs(&self, place: &mut [u8]) -> Option<(usize, usize)> {
        let front = self.response.len();
        place.get_mut(..front)?.copy_from_slice(&self.response);
        // Padding between tensors; the tensors overwrite the rest.
        place.get_mut(front..self.response_size)?.fill(0);
        Some((self.response_size, front))
    }

    /// Writes the answer to [`Request::Describe`]; its size.
    pub fn write_description(&self, place: &mut [u8]) -> Option<usize> {
        let size = self.description.len();
        place.get_mut(..size)?.copy_from_slice(&self.description);
        Some(size)
    }
}

/// Writes the response that tells what was wrong; its size.
pub fn write_wrong(wrong: &Wrong<'_>, place: &mut [u8]) -> Option<usize> {
    let mut text = Text::new();
    // Longer text is cut.
    let _ = write!(text, "{wrong}");
    let place = place.get_mut(..MAX_ERROR_SIZE)?;
    place.fill(0);
    let (head, rest) = place.split_at_mut_checked(HEAD_SIZE)?;
    let mut encoder = Encoder::new(Cursor::new(rest));
    encoder
        .array(2)
        .and_then(|e| e.str(wrong.code()))
        .and_then(|e| e.str(text.as_str()))
        .ok()?;
    let size = encoder.writer().position();
    let header_size = u32::try_from(size).ok()?.to_le_bytes();
    let bytes = [VERSION, ERROR, 0, 0].into_iter().chain(header_size);
    for (place, byte) in head.iter_mut().zip(bytes) {
        *place = byte;
    }
    Some((HEAD_SIZE + size).next_multiple_of(ALIGNMENT))
}

impl Wrong<'_> {
    pub fn code(&self) -> &'static str {
        match self {
            Wrong::Index { .. } => "index",
            _ => "request",
        }
    }
}

/// Begins with the number of the rule in `docs/messages.md`. Never of a tensor's content, nor of anything else the request holds but single bytes of its head.
impl fmt::Display for Wrong<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wrong::Size => write!(f, "M3 the size is not what the header asks for"),
            Wrong::Version(found) => {
                write!(
                    f,
                    "M4 content of version {found}; this enclave reads {VERSION}"
                )
            }
            Wrong::Kind(found) => write!(f, "M5 a request of unknown kind {found}"),
            Wrong::Reserved => write!(f, "M6 the reserved bytes are not zero"),
            Wrong::Header => write!(f, "M7 the header is not the canonical CBOR it must be"),
            Wrong::Padding => write!(f, "M8 the padding is not zero"),
            Wrong::Input { index, port } => {
                write!(
                    f,
                    "M9 input {index} must be {:?}, {:?} ",
                    port.name, port.dtype
                )?;
                if port.shape.is_empty() {
                    return write!(f, "scalar");
                }
                for (i, d) in port.shape.iter().enumerate() {
                    write!(f, "{}{d}", if i > 0 { "x" } else { "" })?;
                }
                Ok(())
            }
            Wrong::InputCount { due } => write!(f, "M9 the model has {due} inputs"),
            Wrong::Index { size } => {
                write!(f, "M10 gather: an index lies outside a dimension of {size}")
            }
        }
    }
}

/// A short text without an allocation.
struct Text {
    bytes: [u8; MAX_TEXT_SIZE],
    size: usize,
}

impl Text {
    fn new() -> Self {
        Text {
            bytes: [0; MAX_TEXT_SIZE],
            size: 0,
        }
    }

    fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..self.size).unwrap_or_default();
        str::from_utf8(bytes).unwrap_or_default()
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            let mut encoded = [0; 4];
            let encoded = c.encode_utf8(&mut encoded).as_bytes();
            let end = self.size + encoded.len();
            let place = self.bytes.get_mut(self.size..end).ok_or(fmt::Error)?;
            place.copy_from_slice(encoded);
            self.size = end;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
