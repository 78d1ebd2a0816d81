//! The parameter chunks of each instruction: that they exist and have exactly the sizes its layer
//! needs, so that a kernel reads none past its end.

use super::{Finding, count};
use crate::program::{ALIGNMENT, Cut, Instruction, Load, PANEL_WIDTH, Program};
use crate::refusal::Fault;

/// Summed width of the panels over `channels` output channels: 16 for a last panel of at most
/// 16 channels, 32 for every other.
pub fn panels_width(channels: u64) -> u64 {
    let width = PANEL_WIDTH as u64;
    let rest = match channels % width {
        0 => 0,
        rest if rest <= 16 => 16,
        _ => width,
    };
    channels / width * width + rest
}

/// A layer as its parameters see it.
struct Layer {
    out_channels: u64,
    /// The reduction: what `depth_per_chunk` counts.
    depth: u64,
    /// Parameters for each output channel and unit of depth.
    taps: u64,
    depth_may_be_cut: bool,
    most_panels_per_chunk: u32,
}

/// Checks the chunks of an instruction and notes that they are used.
pub fn check(
    instruction: &Instruction,
    program: &Program,
    used: &mut [bool],
) -> Result<(), Finding> {
    let shape = |v: &crate::program::View, i: usize| v.shape.get(i).copied().map_or(1, u64::from);
    let (cut, layer, in_place) = match instruction {
        Instruction::Conv(i) => {
            let [kernel_h, kernel_w] = i.kernel.map(u64::from);
            let layer = Layer {
                out_channels: shape(&i.output, 3),
                // Kernels span at most 2^20 each way and channels are below 2^31.
                depth: (kernel_h * kernel_w)
                    .checked_mul(shape(&i.input, 3))
                    .ok_or(("kernel", Fault::Overflow))?,
                taps: 1,
                depth_may_be_cut: true,
                most_panels_per_chunk: u32::MAX,
            };
            (
                &i.cut,
                layer,
                i.residual
                    .as_ref()
                    .is_some_and(|r| super::nest::same(r, &i.output)),
            )
        }
        Instruction::Winograd(i) => {
            let layer = Layer {
                out_channels: shape(&i.output, 3),
                depth: shape(&i.input, 3),
                taps: 9,
                depth_may_be_cut: true,
                most_panels_per_chunk: 1,
            };
            (&i.cut, layer, false)
        }
        Instruction::Depthwise(i) => {
            let [kernel_h, kernel_w] = i.kernel.map(u64::from);
            let layer = Layer {
                out_channels: shape(&i.output, 3),
                depth: kernel_h * kernel_w,
                taps: 1,
                depth_may_be_cut: false,
                most_panels_per_chunk: u32::MAX,
            };
            (&i.cut, layer, false)
        }
        Instruction::Load(i) => return load(i, program, used),
        _ => return Ok(()),
    };
    let pieces = layer_chunks(cut, &layer, program, used).map_err(|f| ("cut", f))?;
    // Partial sums of a cut depth rest in the output, which so cannot hold the residual.
    if pieces > 1 && in_place {
        return Err(("residual", Fault::ResidualInCutDepth));
    }
    Ok(())
}

/// Gives the number of pieces the depth is cut into.
fn layer_chunks(
    cut: &Cut,
    layer: &Layer,
    program: &Program,
    used: &mut [bool],
) -> Result<u64, Fault> {
    let per_chunk = u64::from(cut.depth_per_chunk);
    if per_chunk == 0 || per_chunk > layer.depth {
        return Err(Fault::CutDepth);
    }
    let pieces = layer.depth.div_ceil(per_chunk);
    if pieces > 1 && !layer.depth_may_be_cut {
        return Err(Fault::CutDepth);
    }
    let panels_per_chunk = u64::from(cut.panels_per_chunk);
    if cut.panels_per_chunk > layer.most_panels_per_chunk {
        return Err(Fault::CutPanels);
    }
    if panels_per_chunk == 0 || (pieces > 1 && panels_per_chunk != 1) {
        return Err(Fault::CutPanels);
    }
    let group_channels = panels_per_chunk * PANEL_WIDTH as u64;
    let groups = layer.out_channels.div_ceil(group_channels);
    if groups.checked_mul(pieces) != Some(u64::from(cut.chunk_count)) {
        return Err(Fault::CutCount);
    }
    let first = cut.first_chunk as usize;
    let end = first
        .checked_add(cut.chunk_count as usize)
        .ok_or(Fault::ChunkRange)?;
    let chunks = program.chunks.get(first..end).ok_or(Fault::ChunkRange)?;
    used.get_mut(first..end)
        .ok_or(Fault::ChunkRange)?
        .fill(true);
    for (index, chunk) in (0u64..).zip(chunks) {
        let (group, piece) = (index / pieces, index % pieces);
        let channels = group_channels.min(layer.out_channels - group * group_channels);
        let depth = per_chunk.min(layer.depth - piece * per_chunk);
        let rows = depth.checked_mul(layer.taps).and_then(|r| r.checked_add(1));
        let size = rows
            .and_then(|rows| rows.checked_mul(panels_width(channels)))
            .and_then(|floats| floats.checked_mul(4));
        if size != Some(chunk.size) {
            return Err(Fault::CutChunkSize);
        }
    }
    Ok(pieces)
}

fn load(load: &Load, program: &Program, used: &mut [bool]) -> Result<(), Finding> {
    let refuse = |fault| ("chunks", fault);
    let first = load.first_chunk as usize;
    let end = first
        .checked_add(load.chunk_count as usize)
        .filter(|&end| end > first)
        .ok_or(refuse(Fault::ChunkRange))?;
    let chunks = program
        .chunks
        .get(first..end)
        .ok_or(refuse(Fault::ChunkRange))?;
    used.get_mut(first..end)
        .ok_or(refuse(Fault::ChunkRange))?
        .fill(true);
    let (Some(head), Some((last, body))) = (chunks.first(), chunks.split_last()) else {
        return Err(refuse(Fault::ChunkRange));
    };
    if body.iter().any(|chunk| chunk.size != head.size) || last.size > head.size {
        return Err(refuse(Fault::LoadSize));
    }
    let total: u128 = chunks.iter().map(|chunk| u128::from(chunk.size)).sum();
    let size = count(&load.output).saturating_mul(u128::from(load.output.dtype.size()));
    if size > total || total - size >= u128::from(ALIGNMENT) {
        return Err(refuse(Fault::LoadSize));
    }
    Ok(())
}
