//! The instruction set as it arrives: plain data, decoded and not yet believed.
//!
//! Mirrors `python/vessels/program/`, which explains every field; the
//! encoding is CBOR (RFC 8949 core deterministic), structures as arrays in field
//! order, floats as their bits. Only [`crate::validate`] turns a [`Program`] into
//! something that runs.

use minicbor::{Decode, Encode};

pub const MAX_RANK: usize = 8;
pub const PANEL_WIDTH: usize = 32;
pub const ALIGNMENT: u64 = 64;
pub const MAX_PADDED_CHANNELS: usize = 16384;
/// Float32 elements between what belongs to one point of a transformed tile and to the next.
pub const WINOGRAD_GAP: usize = 32;
pub const MAX_MAP_REGISTERS: usize = 32;
pub const TAG_SIZE: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum DType {
    #[n(0)]
    F32,
    #[n(1)]
    I32,
    #[n(2)]
    I64,
    #[n(3)]
    U8,
    #[n(4)]
    Bool,
    #[n(5)]
    I8,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> u64 {
        match self {
            DType::I64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::U8 | DType::Bool | DType::I8 => 1,
        }
    }
}

/// A strided n-d window on the pool: `offset` in bytes, `strides` in elements.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct View {
    #[n(0)]
    pub offset: u64,
    #[n(1)]
    pub dtype: DType,
    #[n(2)]
    pub shape: Vec<u32>,
    #[n(3)]
    pub strides: Vec<i64>,
}

/// How an instruction's parameters are cut into chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Cut {
    #[n(0)]
    pub first_chunk: u32,
    #[n(1)]
    pub chunk_count: u32,
    #[n(2)]
    pub panels_per_chunk: u32,
    #[n(3)]
    pub depth_per_chunk: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum ActivationKind {
    #[n(0)]
    None,
    #[n(1)]
    Clamp,
    #[n(2)]
    Leaky,
    #[n(3)]
    HardSwish,
}

/// An activation fused into a store; `a` and `b` are float32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Activation {
    #[n(0)]
    pub kind: ActivationKind,
    #[n(1)]
    pub a: u32,
    #[n(2)]
    pub b: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Load {
    #[n(0)]
    pub output: View,
    #[n(1)]
    pub first_chunk: u32,
    #[n(2)]
    pub chunk_count: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Conv {
    #[n(0)]
    pub input: View,
    #[n(1)]
    pub output: View,
    #[n(2)]
    pub residual: Option<View>,
    #[n(3)]
    pub kernel: [u32; 2],
    #[n(4)]
    pub stride: [u32; 2],
    #[n(5)]
    pub dilation: [u32; 2],
    #[n(6)]
    pub padding: [u32; 2],
    #[n(7)]
    pub activation: Activation,
    #[n(8)]
    pub residual_after: bool,
    #[n(9)]
    pub cut: Cut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum WinogradMode {
    #[n(0)]
    Input,
    #[n(1)]
    Parameters,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Winograd {
    #[n(0)]
    pub input: View,
    #[n(1)]
    pub output: View,
    #[n(2)]
    pub residual: Option<View>,
    #[n(3)]
    pub padding: [u32; 2],
    #[n(4)]
    pub activation: Activation,
    #[n(5)]
    pub residual_after: bool,
    #[n(6)]
    pub mode: WinogradMode,
    #[n(7)]
    pub tile_block: u32,
    #[n(8)]
    pub workspace: View,
    #[n(9)]
    pub cut: Cut,
}

/// Depthwise convolution has the fields of [`Conv`].
pub type Depthwise = Conv;

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct MatMul {
    #[n(0)]
    pub a: View,
    #[n(1)]
    pub b: View,
    #[n(2)]
    pub output: View,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum PoolKind {
    #[n(0)]
    Max,
    #[n(1)]
    Average,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Pool {
    #[n(0)]
    pub input: View,
    #[n(1)]
    pub output: View,
    #[n(2)]
    pub reduction: PoolKind,
    #[n(3)]
    pub kernel: [u32; 2],
    #[n(4)]
    pub stride: [u32; 2],
    #[n(5)]
    pub dilation: [u32; 2],
    #[n(6)]
    pub padding: [u32; 4],
    #[n(7)]
    pub count_padding: bool,
}

/// One operation of a map expression; `code` numbers are those of `MapCode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct MapOp {
    #[n(0)]
    pub code: u32,
    #[n(1)]
    pub x: i64,
    #[n(2)]
    pub y: u32,
    #[n(3)]
    pub z: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Map {
    #[n(0)]
    pub inputs: Vec<View>,
    #[n(1)]
    pub output: View,
    #[n(2)]
    pub ops: Vec<MapOp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum ReduceKind {
    #[n(0)]
    Sum,
    #[n(1)]
    Prod,
    #[n(2)]
    Max,
    #[n(3)]
    Min,
    #[n(4)]
    SumSquare,
    #[n(5)]
    SumAbs,
    #[n(6)]
    ArgMaxFirst,
    #[n(7)]
    ArgMaxLast,
    #[n(8)]
    ArgMinFirst,
    #[n(9)]
    ArgMinLast,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Reduce {
    #[n(0)]
    pub input: View,
    #[n(1)]
    pub output: View,
    #[n(2)]
    pub reduction: ReduceKind,
    /// float32 bits.
    #[n(3)]
    pub scale: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Copy {
    #[n(0)]
    pub input: View,
    #[n(1)]
    pub output: View,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Gather {
    #[n(0)]
    pub data: View,
    #[n(1)]
    pub indices: View,
    #[n(2)]
    pub output: View,
    #[n(3)]
    pub axis: u32,
}

/// `[kind, [fields..]]`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum Instruction {
    #[n(0)]
    Load(#[n(0)] Load),
    #[n(1)]
    Conv(#[n(0)] Conv),
    #[n(2)]
    Winograd(#[n(0)] Winograd),
    #[n(3)]
    Depthwise(#[n(0)] Depthwise),
    #[n(4)]
    MatMul(#[n(0)] MatMul),
    #[n(5)]
    Pool(#[n(0)] Pool),
    #[n(6)]
    Map(#[n(0)] Map),
    #[n(7)]
    Reduce(#[n(0)] Reduce),
    #[n(8)]
    Copy(#[n(0)] Copy),
    #[n(9)]
    Gather(#[n(0)] Gather),
}

/// A parameter chunk: plaintext size in bytes, its place if resident in every rung, its tag.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Chunk {
    #[n(0)]
    pub size: u64,
    #[n(1)]
    pub fixed_offset: Option<u64>,
    #[cbor(n(2), with = "minicbor::bytes")]
    pub tag: [u8; TAG_SIZE],
}

/// Sizes of the regions that are the same in every rung, in the order they lie in the pool, and
/// the threads there is scratch for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Regions {
    #[n(0)]
    pub io_size: u64,
    #[n(1)]
    pub arena_size: u64,
    #[n(2)]
    pub fixed_size: u64,
    #[n(3)]
    pub thread_count: u32,
}

/// A rung of the plan ladder, of the public header: how many of the optional chunks are resident,
/// all that is resident, and one thread's staging.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Rung {
    #[n(0)]
    pub resident_count: u32,
    #[n(1)]
    pub resident_size: u64,
    #[n(2)]
    pub staging_size: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Program {
    #[n(0)]
    pub regions: Regions,
    #[n(1)]
    pub inputs: Vec<View>,
    #[n(2)]
    pub outputs: Vec<View>,
    #[n(3)]
    pub chunks: Vec<Chunk>,
    #[n(4)]
    pub instructions: Vec<Instruction>,
    /// The chunks without a fixed place, each once: first what is resident first.
    #[n(5)]
    pub order: Vec<u32>,
}
