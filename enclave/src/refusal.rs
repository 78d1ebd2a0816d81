//! Everything the enclave refuses, one variant each.

use core::fmt;

/// Why an opening or a run was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A KEY frame of another size than a sealed key's.
    KeyFrame,
    /// The sealed key does not open.
    SealedKey,
    /// The key does not derive the file's key check.
    WrongKey,
    Header(HeaderFault),
    Program(ProgramFault),
    /// The validator's refusal: where in the program, which operand (may be empty), what.
    Invalid {
        place: Place,
        operand: &'static str,
        fault: Fault,
    },
    /// A parameter chunk failed authentication.
    Parameters {
        chunk: u32,
    },
    /// A RUN frame larger or smaller than any sealed request, in bytes.
    RequestSize {
        most: u64,
        actual: u64,
    },
    /// A sealed request does not open.
    SealedRequest,
    /// An EVIDENCE frame whose nonce is no verifier's.
    NonceSize {
        actual: u64,
    },
    UnknownFrame {
        kind: u32,
    },
    /// A BATCH of fewer requests than two, or of more than there are slots.
    BatchCount {
        slots: usize,
    },
    /// A frame within a batch that is no RUN.
    InBatch {
        kind: u32,
    },
    /// A RUN or BATCH before the KEY.
    Locked,
    /// A KEY after the KEY.
    Unlocked,
    /// The hardware, or who stands before it, gave no quote.
    Quote {
        what: &'static str,
        errno: i32,
    },
    /// The messages of the model would be absurdly large.
    Messages,
    /// A rung that the model does not have; it has `count`.
    Rung {
        count: usize,
    },
    System {
        what: &'static str,
        errno: i32,
    },
    UnknownIsa,
    UnavailableIsa {
        name: &'static str,
    },
    /// A kernel left a shared loop early without saying why.
    Abandoned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderFault {
    TooShort,
    Magic,
    Version { found: u8 },
    Sizes { expected: u64, actual: u64 },
    TooLarge,
    Encoding,
    NotCanonical,
    SameNames,
    KeyDerivation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgramFault {
    Authentication,
    Encoding,
    NotCanonical,
    Padding,
    FileSize { expected: u64, actual: u64 },
}

/// Where in a program a fault lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Layout,
    Rung(usize),
    Input(usize),
    Output(usize),
    Chunk(usize),
    Instruction(usize, &'static str),
}

/// What the validator found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    TooManyInstructions,
    TooManyChunks,
    PoolTooLarge,
    SizeNotAligned,
    ThreadCount,
    HeaderDisagrees,
    ChunkSize,
    ResidentPlace,
    ResidentOverlap,
    Order,
    RungCount,
    RungOrder,
    RungSize,
    ChunkUnused,
    Rank,
    EmptyDimension,
    StrideTooLarge,
    Overflow,
    Misaligned,
    OutsideRegion,
    NegativeOutputStride,
    OverlapsItself,
    NotDense,
    InputsOverlap,
    OutputOverlapsInput,
    ScratchOverlap,
    ReadBeforeWritten,
    OutputNotWritten,
    TooMuchWork,
    Type,
    ShapeMismatch,
    ChannelStride,
    KernelSize,
    WindowOutside,
    PaddedChannels,
    ChunkRange,
    CutCount,
    CutPanels,
    CutDepth,
    CutChunkSize,
    ResidualInCutDepth,
    TileBlock,
    WorkspaceTooSmall,
    MapRegisters,
    MapCode,
    MapArgument,
    MapClass,
    ReduceScale,
    Axis,
    LoadSize,
}

impl Refusal {
    /// The protocol's error code.
    pub fn code(&self) -> &'static str {
        match self {
            Refusal::KeyFrame | Refusal::SealedKey | Refusal::WrongKey => "key",
            Refusal::Header(_) => "header",
            Refusal::Program(_) => "program",
            Refusal::Invalid { .. } | Refusal::Messages | Refusal::Rung { .. } => "invalid",
            Refusal::Parameters { .. } => "parameters",
            Refusal::RequestSize { .. }
            | Refusal::SealedRequest
            | Refusal::NonceSize { .. }
            | Refusal::UnknownFrame { .. }
            | Refusal::BatchCount { .. }
            | Refusal::InBatch { .. }
            | Refusal::Locked
            | Refusal::Unlocked => "request",
            Refusal::Quote { .. } => "quote",
            Refusal::System { .. }
            | Refusal::UnknownIsa
            | Refusal::UnavailableIsa { .. }
            | Refusal::Abandoned => "system",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::KeyFrame => write!(f, "a KEY frame must have the 80 bytes of a sealed key"),
            Refusal::SealedKey => write!(
                f,
                "the sealed key does not open: it was sealed for another enclave or model, or \
                 altered"
            ),
            Refusal::WrongKey => {
                write!(
                    f,
                    "the key is not this model's, or the header's key check was altered"
                )
            }
            Refusal::Header(fault) => write!(f, "header: {fault}"),
            Refusal::Program(fault) => write!(f, "program: {fault}"),
            Refusal::Invalid {
                place,
                operand: "",
                fault,
            } => write!(f, "{place}: {fault}"),
            Refusal::Invalid {
                place,
                operand,
                fault,
            } => {
                write!(f, "{place}: {operand}: {fault}")
            }
            Refusal::Parameters { chunk } => write!(
                f,
                "parameter chunk {chunk} failed authentication: it was altered, or is another build's"
            ),
            Refusal::RequestSize { most, actual } => write!(
                f,
                "a sealed request of {actual} bytes; the largest this model takes has {most}"
            ),
            Refusal::SealedRequest => write!(
                f,
                "the request does not open: it was sealed for another enclave or model, or altered"
            ),
            Refusal::NonceSize { actual } => {
                write!(f, "a nonce of {actual} bytes; it must have 16 to 64")
            }
            Refusal::UnknownFrame { kind } => write!(f, "a frame of unknown kind {kind}"),
            Refusal::BatchCount { slots } => write!(
                f,
                "a batch has 2 requests or more, and at most one for each slot, of which there \
                 are {slots}"
            ),
            Refusal::InBatch { kind } => {
                write!(f, "a frame of kind {kind} where a batch's RUN was due")
            }
            Refusal::Locked => write!(f, "a request before the model's key"),
            Refusal::Unlocked => write!(f, "the model has its key already"),
            Refusal::Quote { what, errno } => {
                write!(f, "{what}: {}", std::io::Error::from_raw_os_error(*errno))
            }
            Refusal::Messages => write!(f, "the inputs or outputs are absurdly large"),
            Refusal::Rung { count } => write!(
                f,
                "the model has no such rung: it has {count}, the first is number 0"
            ),
            Refusal::System { what, errno } => {
                write!(f, "{what}: {}", std::io::Error::from_raw_os_error(*errno))
            }
            Refusal::UnknownIsa => {
                write!(f, "VESSELS_ISA must be one of avx512, avx2 and portable")
            }
            Refusal::UnavailableIsa { name } => {
                write!(
                    f,
                    "VESSELS_ISA asks for {name}, which this CPU does not have"
                )
            }
            Refusal::Abandoned => write!(f, "a kernel ended early without a reason"),
        }
    }
}

impl fmt::Display for HeaderFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HeaderFault::TooShort => write!(f, "the file ends before the header does"),
            HeaderFault::Magic => write!(f, "this is no sealed model (wrong magic)"),
            HeaderFault::Version { found } => {
                write!(f, "format version {found}; this enclave reads version 2")
            }
            HeaderFault::Sizes { expected, actual } => {
                write!(
                    f,
                    "the file has {actual} bytes, its sizes need at least {expected}"
                )
            }
            HeaderFault::TooLarge => write!(f, "absurd header or program size"),
            HeaderFault::Encoding => write!(f, "not the CBOR that the format asks for"),
            HeaderFault::NotCanonical => write!(f, "CBOR not in deterministic encoding"),
            HeaderFault::SameNames => write!(f, "two inputs or two outputs of one name"),
            HeaderFault::KeyDerivation => write!(f, "key derivation failed"),
        }
    }
}

impl fmt::Display for ProgramFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProgramFault::Authentication => {
                write!(
                    f,
                    "failed authentication: the header or the program was altered"
                )
            }
            ProgramFault::Encoding => write!(f, "not the CBOR that the format asks for"),
            ProgramFault::NotCanonical => write!(f, "CBOR not in deterministic encoding"),
            ProgramFault::Padding => write!(f, "wrong padding after the program"),
            ProgramFault::FileSize { expected, actual } => {
                write!(
                    f,
                    "the file has {actual} bytes, its chunks end at {expected}"
                )
            }
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Layout => write!(f, "layout"),
            Place::Rung(i) => write!(f, "rung {i}"),
            Place::Input(i) => write!(f, "program input {i}"),
            Place::Output(i) => write!(f, "program output {i}"),
            Place::Chunk(i) => write!(f, "chunk {i}"),
            Place::Instruction(i, mnemonic) => write!(f, "instruction {i} ({mnemonic})"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Fault::TooManyInstructions => "more than 65536 instructions",
            Fault::TooManyChunks => "more than 2^20 chunks",
            Fault::PoolTooLarge => "the pool is larger than 2^40 bytes",
            Fault::SizeNotAligned => "a region's size is no multiple of 64",
            Fault::ThreadCount => "the thread count is not in 1..=256",
            Fault::HeaderDisagrees => "the public header says otherwise",
            Fault::ChunkSize => "the size is no positive multiple of 64",
            Fault::ResidentPlace => {
                "lies outside the fixed part of the resident region or is misaligned"
            }
            Fault::ResidentOverlap => "overlaps another resident chunk",
            Fault::Order => "the order is not of all chunks without a fixed place, each once",
            Fault::RungCount => "no rung, more than 64, or a default rung that is none of them",
            Fault::RungOrder => {
                "keeps no more chunks than the rung before it, or more than there are"
            }
            Fault::RungSize => "resident or staging size are not those of its chunks",
            Fault::ChunkUnused => "optional, yet no instruction reads it",
            Fault::Rank => "wrong number of dimensions",
            Fault::EmptyDimension => "a dimension of zero",
            Fault::StrideTooLarge => "a stride of more than 2^40",
            Fault::Overflow => "arithmetic overflow",
            Fault::Misaligned => "misaligned",
            Fault::OutsideRegion => "outside the region it may use",
            Fault::NegativeOutputStride => "written with a zero or negative stride",
            Fault::OverlapsItself => "overlaps itself",
            Fault::NotDense => "must be dense",
            Fault::InputsOverlap => "overlaps another input",
            Fault::OutputOverlapsInput => "overlaps an input",
            Fault::ScratchOverlap => "scratch overlaps an operand",
            Fault::ReadBeforeWritten => "reads what was never written",
            Fault::OutputNotWritten => "not wholly written when the program ends",
            Fault::TooMuchWork => "more work than any real program has",
            Fault::Type => "wrong element type",
            Fault::ShapeMismatch => "shapes do not fit each other",
            Fault::ChannelStride => "the channel stride must be 1",
            Fault::KernelSize => "absurd kernel, stride, dilation or padding",
            Fault::WindowOutside => "a window lies wholly outside the input",
            Fault::PaddedChannels => "reads padding with more than 16384 channels",
            Fault::ChunkRange => "chunks that do not exist",
            Fault::CutCount => "the number of chunks does not fit the layer",
            Fault::CutPanels => "panels per chunk do not fit the layer",
            Fault::CutDepth => "depth per chunk does not fit the layer",
            Fault::CutChunkSize => "a chunk's size does not fit the layer",
            Fault::ResidualInCutDepth => "may not be the output when the depth is cut",
            Fault::TileBlock => "the tile block is not in 1..=32",
            Fault::WorkspaceTooSmall => "the workspace is too small",
            Fault::MapRegisters => "no register or more than 32",
            Fault::MapCode => "unknown operation",
            Fault::MapArgument => "an argument that is no register",
            Fault::MapClass => "a register of the wrong class",
            Fault::ReduceScale => "a scale other than 1 for an integer",
            Fault::Axis => "the axis is outside the data",
            Fault::LoadSize => "chunks and output differ in size",
        };
        f.write_str(text)
    }
}
