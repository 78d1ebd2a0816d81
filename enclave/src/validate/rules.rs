//! What each kind of instruction asks of its operands; `vessels.program` states it.

use super::{Finding, count, expect_type, expression, nest};
use crate::program::{
    Activation, Conv, Copy, DType, Depthwise, Gather, Instruction, Load, MAX_PADDED_CHANNELS,
    MAX_RANK, MatMul, PANEL_WIDTH, Pool, Reduce, ReduceKind, Regions, View, WINOGRAD_GAP, Winograd,
    WinogradMode,
};
use crate::refusal::Fault;

/// Largest stride, dilation, and span of a dilated kernel.
const MAX_WINDOW: u64 = 1 << 20;
const MAX_TILE_BLOCK: u32 = 32;

/// The views an instruction touches.
pub struct Operands<'a> {
    pub reads: Vec<(&'static str, &'a View)>,
    pub output: &'a View,
    pub scratch: Option<&'a View>,
}

pub fn mnemonic(instruction: &Instruction) -> &'static str {
    match instruction {
        Instruction::Load(_) => "load",
        Instruction::Conv(_) => "conv",
        Instruction::Winograd(_) => "winograd",
        Instruction::Depthwise(_) => "depthwise",
        Instruction::MatMul(_) => "matmul",
        Instruction::Pool(_) => "pool",
        Instruction::Map(_) => "map",
        Instruction::Reduce(_) => "reduce",
        Instruction::Copy(_) => "copy",
        Instruction::Gather(_) => "gather",
    }
}

pub fn operands(instruction: &Instruction) -> Operands<'_> {
    let (reads, output, scratch) = match instruction {
        Instruction::Load(i) => (vec![], &i.output, None),
        Instruction::Conv(i) => (image_reads(&i.input, i.residual.as_ref()), &i.output, None),
        Instruction::Winograd(i) => (
            image_reads(&i.input, i.residual.as_ref()),
            &i.output,
            Some(&i.workspace),
        ),
        Instruction::Depthwise(i) => (image_reads(&i.input, i.residual.as_ref()), &i.output, None),
        Instruction::MatMul(i) => (vec![("a", &i.a), ("b", &i.b)], &i.output, None),
        Instruction::Pool(i) => (vec![("input", &i.input)], &i.output, None),
        Instruction::Map(i) => (
            i.inputs.iter().map(|view| ("inputs", view)).collect(),
            &i.output,
            None,
        ),
        Instruction::Reduce(i) => (vec![("input", &i.input)], &i.output, None),
        Instruction::Copy(i) => (vec![("input", &i.input)], &i.output, None),
        Instruction::Gather(i) => (
            vec![("data", &i.data), ("indices", &i.indices)],
            &i.output,
            None,
        ),
    };
    Operands {
        reads,
        output,
        scratch,
    }
}

fn image_reads<'a>(input: &'a View, residual: Option<&'a View>) -> Vec<(&'static str, &'a View)> {
    [("input", input)]
        .into_iter()
        .chain(residual.map(|view| ("residual", view)))
        .collect()
}

/// Whether the instruction may write exactly the view it reads as `operand`.
pub fn may_write_in_place(instruction: &Instruction, operand: &str) -> bool {
    match instruction {
        Instruction::Map(_) => true,
        Instruction::Conv(_) | Instruction::Winograd(_) | Instruction::Depthwise(_) => {
            operand == "residual"
        }
        _ => false,
    }
}

/// Checks shapes, types and numbers; gives the arithmetic operations of the instruction.
pub fn check(instruction: &Instruction, regions: &Regions) -> Result<u128, Finding> {
    match instruction {
        Instruction::Load(i) => load(i),
        Instruction::Conv(i) => conv(i),
        Instruction::Winograd(i) => winograd(i, regions),
        Instruction::Depthwise(i) => depthwise(i),
        Instruction::MatMul(i) => matmul(i),
        Instruction::Pool(i) => pool(i),
        Instruction::Map(i) => {
            expression::check(i)?;
            Ok(count(&i.output).saturating_mul(1 + i.ops.len() as u128))
        }
        Instruction::Reduce(i) => reduce(i),
        Instruction::Copy(i) => copy(i),
        Instruction::Gather(i) => gather(i),
    }
}

/// The dimensions of a channels-last float32 image.
fn image(view: &View, name: &'static str) -> Result<[u64; 4], Finding> {
    expect_type(view, DType::F32, name)?;
    let (&[n, h, w, c], &[_, _, _, channel_stride]) =
        (view.shape.as_slice(), view.strides.as_slice())
    else {
        return Err((name, Fault::Rank));
    };
    if c > 1 && channel_stride != 1 {
        return Err((name, Fault::ChannelStride));
    }
    if [n, h, w, c].iter().any(|&d| d > i32::MAX as u32) {
        return Err((name, Fault::Overflow));
    }
    Ok([n, h, w, c].map(u64::from))
}

/// One axis of a sliding window.
struct Window {
    input: u64,
    output: u64,
    kernel: u32,
    stride: u32,
    dilation: u32,
    padding: u32,
}

impl Window {
    /// Checks that every window starts inside the padded input and that no position in it
    /// overflows 31 bits; whether some tap falls outside the input.
    fn check(&self) -> Result<bool, Fault> {
        let [kernel, stride, dilation, padding] =
            [self.kernel, self.stride, self.dilation, self.padding].map(u64::from);
        if kernel == 0 || stride == 0 || dilation == 0 || stride.max(dilation) > MAX_WINDOW {
            return Err(Fault::KernelSize);
        }
        // All factors below 2^32.
        let span = (kernel - 1) * dilation + 1;
        if span > MAX_WINDOW || padding >= span {
            return Err(Fault::KernelSize);
        }
        let last = (self.output - 1) * stride;
        if last + span > i32::MAX as u64 {
            return Err(Fault::Overflow);
        }
        if last >= self.input + padding {
            return Err(Fault::WindowOutside);
        }
        Ok(padding > 0 || last + span > self.input + padding)
    }
}

struct Geometry {
    input: [u64; 4],
    output: [u64; 4],
    kernel: [u32; 2],
    stride: [u32; 2],
    dilation: [u32; 2],
    padding: [u32; 2],
}

impl Geometry {
    fn of(i: &Conv) -> Result<Self, Finding> {
        Ok(Geometry {
            input: image(&i.input, "input")?,
            output: image(&i.output, "output")?,
            kernel: i.kernel,
            stride: i.stride,
            dilation: i.dilation,
            padding: i.padding,
        })
    }

    /// Whether some tap falls outside the input.
    fn check(&self) -> Result<bool, Finding> {
        let [n, h, w, _] = self.input;
        let [on, oh, ow, _] = self.output;
        if n != on {
            return Err(("output", Fault::ShapeMismatch));
        }
        let [kernel_h, kernel_w] = self.kernel;
        let [stride_h, stride_w] = self.stride;
        let [dilation_h, dilation_w] = self.dilation;
        let [top, left] = self.padding;
        let vertical = Window {
            input: h,
            output: oh,
            kernel: kernel_h,
            stride: stride_h,
            dilation: dilation_h,
            padding: top,
        };
        let horizontal = Window {
            input: w,
            output: ow,
            kernel: kernel_w,
            stride: stride_w,
            dilation: dilation_w,
            padding: left,
        };
        let rows = vertical.check().map_err(|f| ("kernel", f))?;
        let columns = horizontal.check().map_err(|f| ("kernel", f))?;
        Ok(rows || columns)
    }
}

fn residual(view: Option<&View>, output: &View) -> Result<(), Finding> {
    let Some(view) = view else { return Ok(()) };
    image(view, "residual")?;
    if view.shape != output.shape {
        return Err(("residual", Fault::ShapeMismatch));
    }
    Ok(())
}

fn activation(activation: &Activation) -> Result<(), Finding> {
    // Any bits are an activation; written out so that a new field is not forgotten.
    let Activation {
        kind: _,
        a: _,
        b: _,
    } = activation;
    Ok(())
}

fn conv(i: &Conv) -> Result<u128, Finding> {
    let geometry = Geometry::of(i)?;
    let padded = geometry.check()?;
    let [_, _, _, channels] = geometry.input;
    if padded && channels > MAX_PADDED_CHANNELS as u64 {
        return Err(("input", Fault::PaddedChannels));
    }
    residual(i.residual.as_ref(), &i.output)?;
    activation(&i.activation)?;
    let [kernel_h, kernel_w] = i.kernel.map(u128::from);
    Ok(count(&i.output).saturating_mul(kernel_h * kernel_w * u128::from(channels)))
}

fn depthwise(i: &Depthwise) -> Result<u128, Finding> {
    let geometry = Geometry::of(i)?;
    let padded = geometry.check()?;
    let ([_, _, _, channels], [_, _, _, out_channels]) = (geometry.input, geometry.output);
    if channels != out_channels {
        return Err(("output", Fault::ShapeMismatch));
    }
    if padded && channels > MAX_PADDED_CHANNELS as u64 {
        return Err(("input", Fault::PaddedChannels));
    }
    residual(i.residual.as_ref(), &i.output)?;
    activation(&i.activation)?;
    let [kernel_h, kernel_w] = i.kernel.map(u128::from);
    Ok(count(&i.output).saturating_mul(kernel_h * kernel_w))
}

fn winograd(i: &Winograd, regions: &Regions) -> Result<u128, Finding> {
    let geometry = Geometry {
        input: image(&i.input, "input")?,
        output: image(&i.output, "output")?,
        kernel: [3, 3],
        stride: [1, 1],
        dilation: [1, 1],
        padding: i.padding,
    };
    geometry.check()?;
    let [_, _, _, channels] = geometry.input;
    if channels > MAX_PADDED_CHANNELS as u64 {
        return Err(("input", Fault::PaddedChannels));
    }
    residual(i.residual.as_ref(), &i.output)?;
    activation(&i.activation)?;
    if i.tile_block == 0 || i.tile_block > MAX_TILE_BLOCK {
        return Err(("tile_block", Fault::TileBlock));
    }
    expect_type(&i.workspace, DType::F32, "workspace")?;
    if !nest::is_dense(&i.workspace) {
        return Err(("workspace", Fault::NotDense));
    }
    if !i.workspace.offset.is_multiple_of(crate::program::ALIGNMENT) {
        return Err(("workspace", Fault::Misaligned));
    }
    if count(&i.workspace) < workspace_count(i, geometry.output, channels, regions) {
        return Err(("workspace", Fault::WorkspaceTooSmall));
    }
    Ok(count(&i.output).saturating_mul(9 * u128::from(channels)))
}

/// `winograd_scratch_count` of `vessels.program`.
fn workspace_count(i: &Winograd, output: [u64; 4], channels: u64, regions: &Regions) -> u128 {
    let [n, h, w, out_channels] = output.map(u128::from);
    let channels = u128::from(channels);
    let block = u128::from(i.tile_block);
    let panel = PANEL_WIDTH as u128;
    let gap = WINOGRAD_GAP as u128;
    // Dimensions are below 2^31 and validated views small: no product here reaches 2^128.
    let blocks = (n * h.div_ceil(4) * w.div_ceil(4)).div_ceil(block);
    let values = 36 * (channels * block + gap);
    let sums = 36 * (panel * block + gap);
    let (shared, private) = match i.mode {
        WinogradMode::Input => (
            blocks.saturating_mul(values),
            36 * (panel * u128::from(i.cut.depth_per_chunk) + gap) + blocks.saturating_mul(sums),
        ),
        WinogradMode::Parameters => {
            let widths = u128::from(super::cut::panels_width(out_channels as u64));
            let panels = out_channels.div_ceil(panel);
            (
                36 * (channels * widths + panels * gap) + widths,
                values + sums,
            )
        }
    };
    shared.saturating_add(private.saturating_mul(u128::from(regions.thread_count)))
}

fn load(i: &Load) -> Result<u128, Finding> {
    if !nest::is_dense(&i.output) {
        return Err(("output", Fault::NotDense));
    }
    Ok(count(&i.output))
}

fn matmul(i: &MatMul) -> Result<u128, Finding> {
    for (view, name) in [(&i.a, "a"), (&i.b, "b"), (&i.output, "output")] {
        expect_type(view, DType::F32, name)?;
    }
    let ([a_batch @ .., m, k], [b_batch @ .., b_k, n], [batch @ .., out_m, out_n]) = (
        i.a.shape.as_slice(),
        i.b.shape.as_slice(),
        i.output.shape.as_slice(),
    ) else {
        return Err(("output", Fault::Rank));
    };
    if a_batch != batch || b_batch != batch || k != b_k || m != out_m || n != out_n {
        return Err(("output", Fault::ShapeMismatch));
    }
    Ok(count(&i.output).saturating_mul(u128::from(*k)))
}

fn pool(i: &Pool) -> Result<u128, Finding> {
    let [top, left, bottom, right] = i.padding;
    let geometry = Geometry {
        input: image(&i.input, "input")?,
        output: image(&i.output, "output")?,
        kernel: i.kernel,
        stride: i.stride,
        dilation: i.dilation,
        padding: [top, left],
    };
    geometry.check()?;
    let ([_, _, _, channels], [_, _, _, out_channels]) = (geometry.input, geometry.output);
    if channels != out_channels {
        return Err(("output", Fault::ShapeMismatch));
    }
    if u64::from(bottom.max(right)) > MAX_WINDOW {
        return Err(("padding", Fault::KernelSize));
    }
    let [kernel_h, kernel_w] = i.kernel.map(u128::from);
    Ok(count(&i.output).saturating_mul(kernel_h * kernel_w))
}

fn reduce(i: &Reduce) -> Result<u128, Finding> {
    if !matches!(i.input.dtype, DType::F32 | DType::I32 | DType::I64) {
        return Err(("input", Fault::Type));
    }
    let is_position = matches!(
        i.reduction,
        ReduceKind::ArgMaxFirst
            | ReduceKind::ArgMaxLast
            | ReduceKind::ArgMinFirst
            | ReduceKind::ArgMinLast
    );
    let wanted = if is_position {
        DType::I64
    } else {
        i.input.dtype
    };
    expect_type(&i.output, wanted, "output")?;
    if (is_position || i.input.dtype != DType::F32) && i.scale != 1f32.to_bits() {
        return Err(("scale", Fault::ReduceScale));
    }
    if !i.input.shape.starts_with(&i.output.shape) {
        return Err(("output", Fault::ShapeMismatch));
    }
    Ok(count(&i.input))
}

fn copy(i: &Copy) -> Result<u128, Finding> {
    expect_type(&i.output, i.input.dtype, "output")?;
    if i.input.shape != i.output.shape {
        return Err(("output", Fault::ShapeMismatch));
    }
    Ok(count(&i.output))
}

fn gather(i: &Gather) -> Result<u128, Finding> {
    if !matches!(i.indices.dtype, DType::I32 | DType::I64) {
        return Err(("indices", Fault::Type));
    }
    expect_type(&i.output, i.data.dtype, "output")?;
    let axis = i.axis as usize;
    let (Some(before), Some(after)) = (i.data.shape.get(..axis), i.data.shape.get(axis + 1..))
    else {
        return Err(("axis", Fault::Axis));
    };
    let expected = before.iter().chain(&i.indices.shape).chain(after);
    if i.output.shape.len() > MAX_RANK || !expected.eq(&i.output.shape) {
        return Err(("output", Fault::ShapeMismatch));
    }
    Ok(count(&i.output))
}
