//! Each rule of the validator, broken one at a time.

use super::*;
use crate::program::{
    Activation, ActivationKind, Conv, Copy, Cut, Gather, Load, Map, MatMul, Pool, PoolKind, Reduce,
    ReduceKind, Winograd, WinogradMode,
};
use crate::testing::*;

/// Input `[1, 8, 8, 16]` at 0, convolved 3x3 into the output at 4096.
fn model() -> Model {
    let mut model = Model::new(
        8192,
        vec![floats(0, &[1, 8, 8, 16])],
        vec![floats(4096, &[1, 8, 8, 16])],
    );
    model.chunk(vec![0; (16 + 9 * 16 * 16) * 4], None);
    model.push(Instruction::Conv(conv()));
    model
}

fn conv() -> Conv {
    Conv {
        input: floats(0, &[1, 8, 8, 16]),
        output: floats(4096, &[1, 8, 8, 16]),
        residual: None,
        kernel: [3, 3],
        stride: [1, 1],
        dilation: [1, 1],
        padding: [1, 1],
        activation: Activation {
            kind: ActivationKind::None,
            a: 0,
            b: 0,
        },
        residual_after: false,
        cut: Cut {
            first_chunk: 0,
            chunk_count: 1,
            panels_per_chunk: 1,
            depth_per_chunk: 144,
        },
    }
}

#[track_caller]
fn refused(model: &Model, fault: Fault) {
    match model.fault() {
        Some(Refusal::Invalid { fault: found, .. }) => assert_eq!(found, fault),
        other => panic!("{other:?} instead of {fault:?}"),
    }
}

/// Refused when the convolution is changed so.
#[track_caller]
fn conv_refused(change: impl FnOnce(&mut Conv), fault: Fault) {
    let mut model = model();
    let mut conv = conv();
    change(&mut conv);
    model.program.instructions = vec![Instruction::Conv(conv)];
    refused(&model, fault);
}

/// Refused when this instruction follows the convolution.
#[track_caller]
fn next_refused(instruction: Instruction, fault: Fault) {
    refused(model().push(instruction), fault);
}

#[test]
fn the_model_itself_is_valid() {
    assert_eq!(model().fault(), None);
}

#[test]
fn layouts() {
    let broken = |change: fn(&mut Regions), fault| {
        let mut model = model();
        change(&mut model.program.regions);
        refused(&model, fault);
    };
    broken(|l| l.io_size += 4, Fault::SizeNotAligned);
    broken(|l| l.thread_count = 0, Fault::ThreadCount);
    broken(|l| l.thread_count = 1000, Fault::ThreadCount);
    broken(|l| l.arena_size = 1 << 41, Fault::PoolTooLarge);
    broken(|l| l.io_size = 4096, Fault::OutsideRegion);
    let model = model();
    let mut header = model.header();
    header.slot_size += 64;
    assert!(validate(model.program.clone(), &header).is_err());
    let mut header = model.header();
    header.outputs.pop();
    assert!(validate(model.program.clone(), &header).is_err());
    let mut header = model.header();
    header.inputs[0].shape[1] = 4;
    assert!(validate(model.program.clone(), &header).is_err());
}

#[test]
fn views() {
    conv_refused(|c| c.input.offset = 1 << 60, Fault::OutsideRegion);
    conv_refused(|c| c.input.offset = u64::MAX - 3, Fault::OutsideRegion);
    conv_refused(|c| c.input.offset = 2, Fault::Misaligned);
    conv_refused(|c| c.input.shape[1] = 0, Fault::EmptyDimension);
    conv_refused(|c| c.input.shape.push(1), Fault::Rank);
    conv_refused(|c| c.input.strides[0] = i64::MIN, Fault::StrideTooLarge);
    conv_refused(|c| c.input.strides[1] = -128, Fault::OutsideRegion);
    conv_refused(|c| c.input.shape[1] = u32::MAX, Fault::OutsideRegion);
    conv_refused(
        |c| c.input = view(0, DType::F32, &[u32::MAX; 8], &[0; 8]),
        Fault::Overflow,
    );
    conv_refused(|c| c.output.strides[1] = 0, Fault::NegativeOutputStride);
    conv_refused(|c| c.output.strides[1] = 64, Fault::OverlapsItself);
    conv_refused(|c| c.output.offset = 16384, Fault::OutsideRegion);
    conv_refused(|c| c.output.offset = 64, Fault::OutputOverlapsInput);
    conv_refused(|c| c.input.offset = 8192, Fault::ReadBeforeWritten);
    conv_refused(|c| c.output.offset = 8192, Fault::OutputNotWritten);
}

#[test]
fn convolutions() {
    conv_refused(|c| c.input.dtype = DType::I32, Fault::Type);
    conv_refused(|c| c.kernel = [0, 3], Fault::KernelSize);
    conv_refused(|c| c.stride = [1, 0], Fault::KernelSize);
    conv_refused(|c| c.dilation = [u32::MAX, 1], Fault::KernelSize);
    conv_refused(|c| c.kernel = [u32::MAX, u32::MAX], Fault::KernelSize);
    conv_refused(|c| c.padding = [3, 0], Fault::KernelSize);
    conv_refused(|c| c.stride = [2, 1], Fault::WindowOutside);
    conv_refused(
        |c| c.residual = Some(floats(0, &[1, 8, 4, 32])),
        Fault::ShapeMismatch,
    );
    conv_refused(|c| c.input.strides[3] = 2, Fault::ChannelStride);
    conv_refused(
        |c| c.input = view(0, DType::F32, &[1, 8, 8, 16], &[0, 0, 0, 0]),
        Fault::ChannelStride,
    );
    conv_refused(|c| c.cut.chunk_count = 2, Fault::CutCount);
    conv_refused(|c| c.cut.first_chunk = u32::MAX, Fault::ChunkRange);
    conv_refused(|c| c.cut.depth_per_chunk = 0, Fault::CutDepth);
    conv_refused(|c| c.cut.depth_per_chunk = 145, Fault::CutDepth);
    conv_refused(|c| c.cut.panels_per_chunk = 0, Fault::CutPanels);
    conv_refused(
        |c| {
            c.kernel = [3, 1];
            c.padding = [1, 0];
            c.cut.depth_per_chunk = 48;
        },
        Fault::CutChunkSize,
    );
}

#[test]
fn a_cut_depth_keeps_clear_of_its_residual() {
    let mut model = Model::new(
        8192,
        vec![floats(0, &[1, 8, 8, 16]), floats(4096, &[1, 8, 8, 16])],
        vec![floats(4096, &[1, 8, 8, 16])],
    );
    model.chunk(vec![0; (16 + 72 * 16) * 4], None);
    model.chunk(vec![0; (16 + 72 * 16) * 4], None);
    let mut conv = conv();
    conv.cut = Cut {
        first_chunk: 0,
        chunk_count: 2,
        panels_per_chunk: 1,
        depth_per_chunk: 72,
    };
    conv.residual = Some(conv.output.clone());
    model.push(Instruction::Conv(conv));
    refused(&model, Fault::ResidualInCutDepth);
}

#[test]
fn winograd() {
    let base = Winograd {
        input: floats(0, &[1, 8, 8, 16]),
        output: floats(4096, &[1, 8, 8, 16]),
        residual: None,
        padding: [1, 1],
        activation: conv().activation,
        residual_after: false,
        mode: WinogradMode::Input,
        tile_block: 4,
        // 36 (16*4 + 32) + 2 * (36 (32*16 + 32) + 36 (32*4 + 32))
        workspace: floats(8192, &[54_144]),
        cut: Cut {
            first_chunk: 0,
            chunk_count: 1,
            panels_per_chunk: 1,
            depth_per_chunk: 16,
        },
    };
    let with = |change: fn(&mut Winograd)| {
        let mut model = model();
        model.program.regions.arena_size = 54_144 * 4;
        let mut winograd = base.clone();
        change(&mut winograd);
        model.program.instructions = vec![Instruction::Winograd(winograd)];
        model
    };
    assert_eq!(with(|_| {}).fault(), None);
    refused(
        &with(|w| w.workspace.shape[0] -= 1),
        Fault::WorkspaceTooSmall,
    );
    refused(&with(|w| w.cut.panels_per_chunk = 2), Fault::CutPanels);
    refused(&with(|w| w.tile_block = 0), Fault::TileBlock);
    refused(&with(|w| w.tile_block = 33), Fault::TileBlock);
    refused(&with(|w| w.workspace.offset -= 64), Fault::ScratchOverlap);
    refused(&with(|w| w.padding = [3, 1]), Fault::KernelSize);
    refused(&with(|w| w.input.offset = 8192), Fault::ReadBeforeWritten);
}

#[test]
fn chunks() {
    let mut unused = model();
    unused.chunk(vec![0; 64], None);
    refused(&unused, Fault::ChunkUnused);
    let mut empty = model();
    empty.program.chunks[0].size = 0;
    refused(&empty, Fault::ChunkSize);
    let mut misplaced = model();
    misplaced.program.chunks[0].fixed_offset = Some(0);
    misplaced.program.order.clear();
    refused(&misplaced, Fault::ResidentPlace);
    let mut resident = model();
    resident.program.regions.fixed_size = 128;
    resident.chunk(vec![0; 64], Some(16384));
    resident.chunk(vec![0; 64], Some(16384 + 64));
    assert_eq!(resident.fault(), None);
    resident.program.chunks[2].fixed_offset = Some(16384);
    refused(&resident, Fault::ResidentOverlap);
    resident.program.chunks[2].fixed_offset = Some(16384 + 64);
    // Constants may be read, not written.
    let map = |input: u64, output: u64| {
        Instruction::Map(Map {
            inputs: vec![floats(input, &[16])],
            output: floats(output, &[16]),
            ops: vec![],
        })
    };
    let mut reader = resident.clone();
    assert_eq!(reader.push(map(16384, 8192)).fault(), None);
    // In the slot, or in what all slots share, but not across the border.
    refused(reader.push(map(16384 - 32, 8192)), Fault::OutsideRegion);
    refused(resident.push(map(0, 16384)), Fault::OutsideRegion);
}

#[test]
fn maps() {
    let map = |inputs: Vec<View>, ops| {
        Instruction::Map(Map {
            inputs,
            output: floats(8192, &[16]),
            ops,
        })
    };
    let x = || vec![floats(0, &[16])];
    assert_eq!(model().push(map(x(), vec![op(12, 0, 0, 0)])).fault(), None);
    next_refused(map(vec![], vec![]), Fault::MapRegisters);
    next_refused(map(x(), vec![op(12, 0, 0, 0); 32]), Fault::MapRegisters);
    next_refused(map(x(), vec![op(999, 0, 0, 0)]), Fault::MapCode);
    next_refused(map(x(), vec![op(12, 1, 0, 0)]), Fault::MapArgument);
    next_refused(map(x(), vec![op(12, -1, 0, 0)]), Fault::MapArgument);
    next_refused(map(x(), vec![op(12, 0, 1, 0)]), Fault::MapArgument);
    next_refused(map(x(), vec![op(0, 1 << 32, 0, 0)]), Fault::MapArgument);
    next_refused(map(x(), vec![op(70, 0, 0, 0)]), Fault::MapClass);
    next_refused(map(x(), vec![op(3, 0, 0, 0)]), Fault::MapClass);
    next_refused(map(vec![floats(0, &[4, 4])], vec![]), Fault::ShapeMismatch);
    // In place: exactly the same view, and nothing else.
    let in_place = |offset: u64| {
        Instruction::Map(Map {
            inputs: vec![floats(offset, &[16])],
            output: floats(64, &[16]),
            ops: vec![],
        })
    };
    assert_eq!(model().push(in_place(64)).fault(), None);
    next_refused(in_place(68), Fault::OutputOverlapsInput);
}

#[test]
fn the_other_instructions() {
    let output = || floats(8192, &[4, 4]);
    next_refused(
        Instruction::Copy(Copy {
            input: floats(0, &[16]),
            output: output(),
        }),
        Fault::ShapeMismatch,
    );
    next_refused(
        Instruction::Copy(Copy {
            input: dense(0, DType::I32, &[4, 4]),
            output: output(),
        }),
        Fault::Type,
    );
    next_refused(
        Instruction::MatMul(MatMul {
            a: floats(0, &[4, 5]),
            b: floats(0, &[6, 4]),
            output: output(),
        }),
        Fault::ShapeMismatch,
    );
    next_refused(
        Instruction::MatMul(MatMul {
            a: view(0, DType::F32, &[4, u32::MAX], &[0, 0]),
            b: view(0, DType::F32, &[u32::MAX, 1 << 20], &[0, 0]),
            output: view(8192, DType::F32, &[4, 1 << 20], &[1 << 20, 1]),
        }),
        Fault::OutsideRegion,
    );
    let reduce = |input: View, reduction, scale: f32| {
        Instruction::Reduce(Reduce {
            input,
            output: output(),
            reduction,
            scale: scale.to_bits(),
        })
    };
    next_refused(
        reduce(floats(0, &[4, 2, 4]), ReduceKind::Sum, 1.0),
        Fault::ShapeMismatch,
    );
    next_refused(
        reduce(floats(0, &[4, 4, 2]), ReduceKind::ArgMaxFirst, 1.0),
        Fault::Type,
    );
    next_refused(
        reduce(
            view(0, DType::F32, &[4, 4, 1 << 26, 1 << 26], &[0; 4]),
            ReduceKind::Sum,
            1.0,
        ),
        Fault::TooMuchWork,
    );
    let gather = |axis, indices| {
        Instruction::Gather(Gather {
            data: floats(0, &[4, 4]),
            indices,
            output: output(),
            axis,
        })
    };
    assert_eq!(
        model().push(gather(0, dense(0, DType::I32, &[4]))).fault(),
        None
    );
    next_refused(gather(2, dense(0, DType::I32, &[4])), Fault::Axis);
    next_refused(gather(u32::MAX, dense(0, DType::I32, &[4])), Fault::Axis);
    next_refused(gather(0, floats(0, &[4])), Fault::Type);
    next_refused(gather(0, dense(0, DType::I64, &[3])), Fault::ShapeMismatch);
    let mut pool = Pool {
        input: floats(0, &[1, 8, 8, 16]),
        output: floats(8192, &[1, 4, 4, 16]),
        reduction: PoolKind::Max,
        kernel: [2, 2],
        stride: [2, 2],
        dilation: [1, 1],
        padding: [0, 0, 0, 0],
        count_padding: false,
    };
    assert_eq!(model().push(Instruction::Pool(pool.clone())).fault(), None);
    pool.padding = [0, 0, u32::MAX, 0];
    next_refused(Instruction::Pool(pool.clone()), Fault::KernelSize);
    pool.padding = [0, 0, 0, 0];
    pool.stride = [3, 3];
    next_refused(Instruction::Pool(pool), Fault::WindowOutside);
    let load = |size: u32, first_chunk, chunk_count| {
        Instruction::Load(Load {
            output: dense(8192, DType::U8, &[size]),
            first_chunk,
            chunk_count,
        })
    };
    let chunk_size = (16 + 9 * 16 * 16) * 4;
    let mut loader = model();
    loader.program.regions.arena_size = 16384;
    assert_eq!(
        loader.clone().push(load(chunk_size - 63, 0, 1)).fault(),
        None
    );
    refused(
        loader.clone().push(load(chunk_size - 64, 0, 1)),
        Fault::LoadSize,
    );
    refused(
        loader.clone().push(load(chunk_size, 0, 0)),
        Fault::ChunkRange,
    );
    refused(
        loader.push(load(chunk_size, 1, u32::MAX)),
        Fault::ChunkRange,
    );
}

#[test]
fn ladders() {
    let three = || {
        let mut model = model();
        model.rungs = vec![0, 1];
        model
    };
    assert_eq!(three().fault(), None);
    let order = |order: &[u32]| {
        let mut model = three();
        model.program.order = order.to_vec();
        refused(&model, Fault::Order);
    };
    order(&[]);
    order(&[0, 0]);
    order(&[1]);
    order(&[0, u32::MAX]);
    let mut fixed = three();
    fixed.program.regions.fixed_size = 64;
    fixed.chunk(vec![0; 64], Some(16384));
    assert_eq!(fixed.fault(), None);
    fixed.program.order.push(1);
    refused(&fixed, Fault::Order);

    let header = |change: fn(&mut Header), fault| {
        let model = three();
        let mut header = model.header();
        change(&mut header);
        match validate(model.program, &header).err() {
            Some(Refusal::Invalid { fault: found, .. }) => assert_eq!(found, fault),
            other => panic!("{other:?} instead of {fault:?}"),
        }
    };
    header(|h| h.slot_size -= 64, Fault::HeaderDisagrees);
    header(|h| h.thread_count = 1, Fault::HeaderDisagrees);
    header(|h| h.rungs.clear(), Fault::RungCount);
    header(|h| h.rungs = vec![h.rungs[0]; 65], Fault::RungCount);
    header(|h| h.rung = 2, Fault::RungCount);
    header(|h| h.rung = u32::MAX, Fault::RungCount);
    header(|h| h.rungs.reverse(), Fault::RungOrder);
    header(|h| h.rungs[1] = h.rungs[0], Fault::RungOrder);
    header(|h| h.rungs[1].resident_count = 2, Fault::RungOrder);
    header(|h| h.rungs[1].resident_count = u32::MAX, Fault::RungOrder);
    header(|h| h.rungs[0].staging_size -= 64, Fault::RungSize);
    header(|h| h.rungs[0].staging_size = u64::MAX, Fault::RungSize);
    header(|h| h.rungs[1].staging_size = 64, Fault::RungSize);
    header(|h| h.rungs[0].resident_size = 64, Fault::RungSize);
    header(|h| h.rungs[1].resident_size += 64, Fault::RungSize);
    header(|h| h.rungs[1].resident_size = u64::MAX, Fault::RungSize);
    let mut large = three();
    large.program.chunks[0].size = 1 << 40;
    refused(&large, Fault::PoolTooLarge);
    large.program.chunks[0].size = u64::MAX;
    refused(&large, Fault::ChunkSize);
}

#[test]
fn views_stay_in_their_slot() {
    let mut model = model();
    model.program.regions.fixed_size = 64;
    model.chunk(vec![0; 64], Some(16384));
    model.push(fill(floats(16384 - 64, &[16]), 0.0));
    assert_eq!(model.fault(), None);
    model.push(Instruction::Copy(Copy {
        input: floats(16384 - 64, &[32]),
        output: floats(8192, &[32]),
    }));
    refused(&model, Fault::OutsideRegion);
}
