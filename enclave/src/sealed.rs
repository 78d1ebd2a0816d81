//! Opening the sealed file: `docs/format.md`, checked to the byte.
//!
//! Everything is copied out of the host's mapping before it is looked at.

use crate::pool::Mapping;
use crate::program::{DType, Program, Rung, TAG_SIZE};
use crate::refusal::{HeaderFault, ProgramFault, Refusal};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::{constant_time, digest, hkdf};
use minicbor::{Decode, Decoder, Encode};
use std::fs::File;
use std::path::Path;
use zeroize::Zeroizing;

const MAGIC: [u8; 7] = *b"VESSEL\0";
const VERSION: u8 = 2;
const PREFIX_SIZE: u64 = 16;
const CHUNK_ALIGNMENT: u64 = 64;
/// Bytes of a model's digest.
pub const DIGEST_SIZE: usize = 32;
const MAX_HEADER_SIZE: u64 = 1 << 20;
const MAX_PROGRAM_SIZE: u64 = 1 << 28;

/// A named input or output as the public header tells it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Port {
    #[n(0)]
    pub name: String,
    #[n(1)]
    pub dtype: DType,
    #[n(2)]
    pub shape: Vec<u32>,
}

/// The public header.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Header {
    #[cbor(n(0), with = "minicbor::bytes")]
    pub build_id: [u8; 32],
    #[cbor(n(1), with = "minicbor::bytes")]
    pub key_check: [u8; 16],
    /// I/O and arena: what one request takes.
    #[n(2)]
    pub slot_size: u64,
    #[n(3)]
    pub rungs: Vec<Rung>,
    /// The rung of who names none.
    #[n(4)]
    pub rung: u32,
    #[n(5)]
    pub thread_count: u32,
    #[n(6)]
    pub inputs: Vec<Port>,
    #[n(7)]
    pub outputs: Vec<Port>,
}

/// A sealed file with its header read; nothing in it is authenticated yet.
pub struct Sealed {
    mapping: Mapping,
    header: Header,
    /// All bytes before the program.
    associated: Vec<u8>,
    /// The encrypted program and its tag.
    program: Zeroizing<Vec<u8>>,
}

/// A sealed file that its key has opened. Chunks are authenticated as they are read.
pub struct Opened {
    pub header: Header,
    pub program: Program,
    pub parameters: Parameters,
}

/// The encrypted chunks and the key to them.
pub struct Parameters {
    mapping: Mapping,
    key: LessSafeKey,
    chunks: Vec<SealedChunk>,
}

struct SealedChunk {
    offset: u64,
    size: u64,
    tag: [u8; TAG_SIZE],
}

/// Decodes one CBOR item at the start of `bytes`; also how many bytes it takes. What does not
/// encode to the same bytes again is refused with `not_canonical`.
fn decode<'b, T: Decode<'b, ()> + Encode<()>>(
    bytes: &'b [u8],
    encoding: Refusal,
    not_canonical: Refusal,
) -> Result<(T, usize), Refusal> {
    let mut decoder = Decoder::new(bytes);
    let value: T = decoder.decode().map_err(|_| encoding)?;
    let consumed = decoder.position();
    let again = Zeroizing::new(minicbor::to_vec(&value).map_err(|_| encoding)?);
    if bytes.get(..consumed) != Some(again.as_slice()) {
        return Err(not_canonical);
    }
    Ok((value, consumed))
}

/// Whether each of these has a name of its own.
fn are_distinct(ports: &[Port]) -> bool {
    let mut names: Vec<_> = ports.iter().map(|port| &port.name).collect();
    names.sort_unstable();
    names.is_sorted_by(|a, b| a < b)
}

impl Sealed {
    /// Maps the file and reads its header.
    pub fn open(path: &Path) -> Result<Self, Refusal> {
        let file = File::open(path).map_err(|e| Refusal::System {
            what: "opening the model",
            errno: e.raw_os_error().unwrap_or(0),
        })?;
        let mapping = Mapping::of(&file)?;
        let mut prefix = [0u8; PREFIX_SIZE as usize];
        if !mapping.copy(0, &mut prefix) {
            return Err(Refusal::Header(HeaderFault::TooShort));
        }
        let [
            m0,
            m1,
            m2,
            m3,
            m4,
            m5,
            m6,
            version,
            h0,
            h1,
            h2,
            h3,
            p0,
            p1,
            p2,
            p3,
        ] = prefix;
        if [m0, m1, m2, m3, m4, m5, m6] != MAGIC {
            return Err(Refusal::Header(HeaderFault::Magic));
        }
        if version != VERSION {
            return Err(Refusal::Header(HeaderFault::Version { found: version }));
        }
        let header_size = u64::from(u32::from_le_bytes([h0, h1, h2, h3]));
        let program_size = u64::from(u32::from_le_bytes([p0, p1, p2, p3]));
        if header_size > MAX_HEADER_SIZE || program_size > MAX_PROGRAM_SIZE {
            return Err(Refusal::Header(HeaderFault::TooLarge));
        }
        let expected = PREFIX_SIZE + header_size + program_size + TAG_SIZE as u64;
        if mapping.size() < expected {
            let actual = mapping.size();
            return Err(Refusal::Header(HeaderFault::Sizes { expected, actual }));
        }
        // Copied once: what is hashed, and told to verifiers, is what is opened later. The host
        // may have changed the sizes since they were read; then the program, of which the bytes
        // before it are associated data, does not authenticate.
        let mut associated = vec![0; (PREFIX_SIZE + header_size) as usize];
        let mut program = Zeroizing::new(vec![0; program_size as usize + TAG_SIZE]);
        if !mapping.copy(0, &mut associated)
            || !mapping.copy(PREFIX_SIZE + header_size, &mut program)
        {
            return Err(Refusal::Header(HeaderFault::TooShort));
        }
        let bytes = associated.get(PREFIX_SIZE as usize..).unwrap_or_default();
        let (header, consumed): (Header, usize) = decode(
            bytes,
            Refusal::Header(HeaderFault::Encoding),
            Refusal::Header(HeaderFault::NotCanonical),
        )?;
        if consumed != bytes.len() {
            return Err(Refusal::Header(HeaderFault::Encoding));
        }
        if !are_distinct(&header.inputs) || !are_distinct(&header.outputs) {
            return Err(Refusal::Header(HeaderFault::SameNames));
        }
        Ok(Sealed {
            mapping,
            header,
            associated,
            program,
        })
    }

    /// What the model is known by: SHA-256 of all of the file before its first chunk.
    pub fn digest(&self) -> [u8; DIGEST_SIZE] {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(&self.associated);
        context.update(&self.program);
        let mut bytes = [0; DIGEST_SIZE];
        for (place, byte) in bytes.iter_mut().zip(context.finish().as_ref()) {
            *place = *byte;
        }
        bytes
    }

    /// Derives the keys, opens the program and checks the file's length.
    pub fn unlock(mut self, model_key: &[u8; 32]) -> Result<Opened, Refusal> {
        let build_id = self.header.build_id;
        let mut key_check = [0u8; 16];
        derive(
            model_key,
            &build_id,
            b"vessels v1 key check",
            &mut key_check,
        )?;
        constant_time::verify_slices_are_equal(&key_check, &self.header.key_check)
            .map_err(|_| Refusal::WrongKey)?;

        let chunks_start = self.associated.len() as u64 + self.program.len() as u64;
        let plain = cipher(model_key, &build_id, b"vessels v1 program")?
            .open_in_place(
                Nonce::assume_unique_for_key([0; 12]),
                Aad::from(&self.associated),
                &mut self.program,
            )
            .map_err(|_| Refusal::Program(ProgramFault::Authentication))?;
        let (program, consumed): (Program, usize) = decode(
            plain,
            Refusal::Program(ProgramFault::Encoding),
            Refusal::Program(ProgramFault::NotCanonical),
        )?;
        let padding = plain.get(consumed..).unwrap_or_default();
        if padding.len() as u64 >= CHUNK_ALIGNMENT
            || padding.iter().any(|&b| b != 0)
            || !chunks_start.is_multiple_of(CHUNK_ALIGNMENT)
        {
            return Err(Refusal::Program(ProgramFault::Padding));
        }

        let mut offset = chunks_start;
        let mut chunks = Vec::with_capacity(program.chunks.len());
        for chunk in &program.chunks {
            chunks.push(SealedChunk {
                offset,
                size: chunk.size,
                tag: chunk.tag,
            });
            offset = offset.saturating_add(chunk.size);
        }
        if offset != self.mapping.size() {
            let actual = self.mapping.size();
            return Err(Refusal::Program(ProgramFault::FileSize {
                expected: offset,
                actual,
            }));
        }
        let key = cipher(model_key, &build_id, b"vessels v1 parameters")?;
        let parameters = Parameters {
            mapping: self.mapping,
            key,
            chunks,
        };
        Ok(Opened {
            header: self.header,
            program,
            parameters,
        })
    }
}

impl Parameters {
    /// Decrypts chunk `index` into `target`, which must have its size. Only trusted memory is
    /// decrypted: the host cannot change what is authenticated while it is read.
    pub fn open(&self, index: u32, target: &mut [u8]) -> Result<(), Refusal> {
        let refusal = Refusal::Parameters { chunk: index };
        let chunk = self.chunks.get(index as usize).ok_or(refusal)?;
        if target.len() as u64 != chunk.size || !self.mapping.copy(chunk.offset, target) {
            return Err(refusal);
        }
        let mut nonce = [0; 12];
        if let Some(low) = nonce.last_chunk_mut() {
            *low = index.to_be_bytes();
        }
        self.key
            .open_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::empty(),
                &chunk.tag,
                target,
            )
            .map(|_| ())
            .map_err(|_| refusal)
    }
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF-SHA256 with the build id as salt.
pub fn derive(
    model_key: &[u8; 32],
    build_id: &[u8; 32],
    info: &[u8],
    output: &mut [u8],
) -> Result<(), Refusal> {
    hkdf::Salt::new(hkdf::HKDF_SHA256, build_id)
        .extract(model_key)
        .expand(&[info], Length(output.len()))
        .and_then(|okm| okm.fill(output))
        .map_err(|_| Refusal::Header(HeaderFault::KeyDerivation))
}

/// The AES-256-GCM key for one purpose.
pub fn cipher(
    model_key: &[u8; 32],
    build_id: &[u8; 32],
    info: &[u8],
) -> Result<LessSafeKey, Refusal> {
    let mut key = Zeroizing::new([0u8; 32]);
    derive(model_key, build_id, info, key.as_mut())?;
    UnboundKey::new(&AES_256_GCM, key.as_ref())
        .map(LessSafeKey::new)
        .map_err(|_| Refusal::Header(HeaderFault::KeyDerivation))
}

#[cfg(test)]
mod tests;
