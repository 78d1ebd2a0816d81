//! After loading, runs allocate nothing.

use crate::program::{
    Activation, ActivationKind, Conv, Copy, Cut, DType, Depthwise, Gather, Instruction, Load, Map,
    MatMul, Pool, PoolKind, Reduce, ReduceKind, Winograd, WinogradMode,
};
use crate::protocol::{self, tests};
use crate::testing::*;
use core::cell::Cell;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::alloc::{GlobalAlloc, Layout, System};

thread_local! {
    /// Whether this thread's allocations count.
    static WATCHED: Cell<bool> = const { Cell::new(false) };
}
/// Bytes.
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

struct Counting;

fn count(size: usize) {
    if WATCHED.try_with(Cell::get).unwrap_or(false) {
        ALLOCATED.fetch_add(size, Ordering::SeqCst);
    }
}

#[allow(unsafe_code)]
// SAFETY: forwards to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Marks the calling thread, for the test below: workers call it before each of their runs.
pub fn watch() {
    WATCHED.set(true);
}

/// A program with an instruction of every kind over an 8 by 8 image of 16 channels.
fn every_kind() -> Model {
    let image = |offset: u64| floats(offset, &[1, 8, 8, 16]);
    let size = 4096u64;
    let indices = dense(12 * size, DType::I32, &[4]);
    let mut model = Model::new(16 * size, vec![image(0)], vec![image(size)]);
    let weights = |count: usize| bytes(&noise(count, 11));
    let conv = model.chunk(weights(16 + 16 * 16), None);
    let winograd = model.chunk(weights(16 + 9 * 16 * 16), None);
    let depthwise = model.chunk(weights(16 + 9 * 16), None);
    let load = model.chunk(vec![0; 16], None);
    let none = Activation {
        kind: ActivationKind::None,
        a: 0,
        b: 0,
    };
    let cut = |first_chunk, depth_per_chunk| Cut {
        first_chunk,
        chunk_count: 1,
        panels_per_chunk: 1,
        depth_per_chunk,
    };
    let at = |i: u64| image((2 + i) * size);
    model
        .push(Instruction::Conv(Conv {
            input: image(0),
            output: at(0),
            residual: None,
            kernel: [1, 1],
            stride: [1, 1],
            dilation: [1, 1],
            padding: [0, 0],
            activation: none,
            residual_after: false,
            cut: cut(conv, 16),
        }))
        .push(Instruction::Winograd(Winograd {
            input: at(0),
            output: at(1),
            residual: None,
            padding: [1, 1],
            activation: none,
            residual_after: false,
            mode: WinogradMode::Input,
            tile_block: 4,
            workspace: floats(16 * size, &[54_144]),
            cut: cut(winograd, 16),
        }))
        .push(Instruction::Depthwise(Depthwise {
            input: at(1),
            output: at(2),
            residual: None,
            kernel: [3, 3],
            stride: [1, 1],
            dilation: [1, 1],
            padding: [1, 1],
            activation: none,
            residual_after: false,
            cut: cut(depthwise, 9),
        }))
        .push(Instruction::Pool(Pool {
            input: at(2),
            output: at(3),
            reduction: PoolKind::Max,
            kernel: [3, 3],
            stride: [1, 1],
            dilation: [1, 1],
            padding: [1, 1, 1, 1],
            count_padding: false,
        }))
        .push(Instruction::Copy(Copy {
            input: view(5 * size, DType::F32, &[16, 64], &[1, 16]),
            output: floats(6 * size, &[16, 64]),
        }))
        .push(Instruction::MatMul(MatMul {
            a: floats(6 * size, &[16, 64]),
            b: floats(5 * size, &[64, 16]),
            output: floats(7 * size, &[16, 16]),
        }))
        .push(Instruction::Reduce(Reduce {
            input: floats(7 * size, &[16, 16]),
            output: floats(8 * size, &[16]),
            reduction: ReduceKind::Sum,
            scale: 1f32.to_bits(),
        }))
        .push(Instruction::Load(Load {
            output: indices.clone(),
            first_chunk: load,
            chunk_count: 1,
        }))
        .push(Instruction::Gather(Gather {
            data: floats(7 * size, &[16, 16]),
            indices,
            output: floats(9 * size, &[4, 16]),
            axis: 0,
        }))
        .push(Instruction::Map(Map {
            inputs: vec![
                at(3),
                view(8 * size, DType::F32, &[1, 8, 8, 16], &[0, 0, 0, 1]),
            ],
            output: image(size),
            ops: vec![op(40, 0, 1, 0), op(20, 2, 0, 0)],
        }));
    model.program.layout.arena_size = 64 * size;
    model
}

/// A sink of fixed memory that does not allocate.
struct Sink(Vec<u8>);

impl std::io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        assert!(self.0.len() + bytes.len() <= self.0.capacity());
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Reads frames, and starts counting once the first of them (READY is out by then) is read.
struct Source<'a>(&'a [u8]);

impl std::io::Read for Source<'_> {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        watch();
        self.0.read(to)
    }
}

#[test]
fn runs_allocate_nothing() {
    for isa in isas() {
        let mut machine = every_kind().load(isa, 2).expect("loads").machine;
        let input = bytes(&noise(1024, 2));
        machine.message()[..4096].copy_from_slice(&input);
        machine.engine.watched.store(true, Ordering::SeqCst);
        ALLOCATED.store(0, Ordering::SeqCst);
        watch();
        machine.read_inputs(0);
        let ran = machine.run(true);
        machine.write_outputs(0);
        machine.wipe();
        WATCHED.set(false);
        assert_eq!(ran, Ok(()));
        assert_eq!(ALLOCATED.load(Ordering::SeqCst), 0, "{isa:?}");
        let output = from_bytes(&machine.message()[..4096]);
        assert!(output.iter().all(|v| v.is_finite()));
    }
}

/// The library of the cryptography keeps a public key and a shared secret on the heap for the
/// time of an exchange. Of a request's size, or its content, nothing depends.
#[test]
fn what_a_request_allocates_does_not_depend_on_it() {
    let identity = tests::identity();
    let mut model = every_kind().load(isas()[0], 2).expect("loads");
    let right = tests::request(&model.format, &bytes(&noise(1024, 2)));
    let mut wrong = right.clone();
    wrong[1] = 9;
    model.machine.engine.watched.store(true, Ordering::SeqCst);
    let mut allocated = |plain: &[u8], kind: u32| {
        let (sender, sealed) = tests::seal(&identity, plain);
        let frames = tests::frame(kind, &sealed);
        let mut sink = Sink(Vec::with_capacity(1 << 20));
        ALLOCATED.store(0, Ordering::SeqCst);
        let end = protocol::serve(&identity, &mut model, &mut Source(&frames), &mut sink);
        WATCHED.set(false);
        assert!(matches!(end, protocol::End::Closed));
        let answers = tests::frames(&sink.0);
        let (_, answer) = answers.last().expect("is answered");
        tests::open(&sender, answer);
        ALLOCATED.load(Ordering::SeqCst)
    };
    let bytes = allocated(&right, 2);
    assert!(bytes <= 256, "{bytes} bytes");
    assert_eq!(allocated(&right, 3), bytes);
    assert_eq!(allocated(&wrong, 2), bytes);
    assert_eq!(allocated(&[], 2), bytes);
}

#[test]
fn instruction_sets_and_thread_counts_agree() {
    let input = bytes(&noise(1024, 2));
    let mut results = vec![];
    for isa in isas() {
        for threads in [1, 2] {
            let output = every_kind().run(&input, isa, threads).expect("runs");
            results.push(from_bytes(&output));
        }
    }
    for result in &results {
        for (a, b) in result.iter().zip(&results[0]) {
            assert!((a - b).abs() <= 2e-3, "{a} {b}");
        }
    }
}

/// Any byte of a properly sealed program changed: it is refused, or it runs to an end.
#[test]
fn hostile_programs_are_refused_or_run() {
    let model = every_kind();
    let plain = minicbor::to_vec(&model.program).expect("encodes");
    let input = bytes(&noise(1024, 2));
    let mut state = 1u32;
    let mut random = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    let (mut refused, mut ran) = (0, 0);
    for _ in 0..3000 {
        let mut altered = plain.clone();
        for _ in 0..=random() % 2 {
            let index = random() as usize % altered.len();
            // Small steps change numbers; any byte may change the structure.
            altered[index] = match random() % 3 {
                0 => altered[index].wrapping_add(1),
                1 => altered[index].wrapping_sub(1),
                _ => random() as u8,
            };
        }
        let Ok(program) = minicbor::decode(&altered) else {
            continue;
        };
        let hostile = Model {
            program,
            chunks: model.chunks.clone(),
        };
        if hostile.program.chunks.len() != model.chunks.len() {
            continue;
        }
        if hostile.fault().is_some() || hostile.program.layout.size() > 1 << 24 {
            refused += 1;
            continue;
        }
        let size = hostile
            .program
            .inputs
            .iter()
            .map(|v| v.shape.iter().product::<u32>())
            .sum::<u32>();
        let mut padded = input.clone();
        padded.resize(size as usize * 8, 0);
        let _ = hostile.run(&padded, isas()[0], 2);
        ran += 1;
    }
    assert!(refused > 500 && ran > 20, "{refused} refused, {ran} ran");
}
