//! After loading, runs allocate nothing.

use super::Machine;
use crate::layout::Shape;
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

/// All of a slot, and the memory for its message.
pub fn kept(machine: &mut Machine, slot: usize) -> Vec<u8> {
    let mut all = machine.message(slot).to_vec();
    all.extend_from_slice(slot_of(machine, slot));
    all
}

/// All of a slot.
#[allow(unsafe_code)]
fn slot_of(machine: &mut Machine, slot: usize) -> &mut [u8] {
    let layout = &machine.engine.program.layout;
    let size = layout.io_size + layout.arena_size;
    let offset = machine.engine.slots.offset(slot);
    // SAFETY: no run is in progress while the machine is borrowed exclusively.
    unsafe { machine.engine.pool.bytes_mut(offset, size) }
}

/// A program with an instruction of every kind over an 8 by 8 image of 16 channels.
pub fn every_kind() -> Model {
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
    model.program.regions.arena_size = 64 * size;
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
        let mut machine = every_kind().load_slots(isa, 2, 4).expect("loads").machine;
        let input = bytes(&noise(1024, 2));
        machine.engine.watched.store(true, Ordering::SeqCst);
        for used in [0b1, 0b1011] {
            let slots = (0..4).filter(|slot| used >> slot & 1 == 1);
            for slot in slots.clone() {
                machine.message(slot)[..4096].copy_from_slice(&input);
            }
            ALLOCATED.store(0, Ordering::SeqCst);
            watch();
            for slot in slots.clone() {
                machine.read_inputs(slot, 0);
            }
            let ran = machine.run(used, true);
            for slot in slots.clone() {
                machine.write_outputs(slot, 0);
                machine.wipe(slot);
            }
            WATCHED.set(false);
            assert_eq!(ran, Ok(()));
            assert_eq!(ALLOCATED.load(Ordering::SeqCst), 0, "{isa:?}");
            for slot in slots {
                let output = from_bytes(&machine.message(slot)[..4096]);
                assert!(output.iter().all(|v| v.is_finite()));
            }
        }
    }
}

/// The library of the cryptography keeps a public key and a shared secret on the heap for the
/// time of an exchange. Of a request's size, or its content, nothing depends.
#[test]
fn what_a_request_allocates_does_not_depend_on_it() {
    let identity = tests::identity();
    let mut model = every_kind().load_slots(isas()[0], 2, 3).expect("loads");
    let right = tests::request(&model.format, &bytes(&noise(1024, 2)));
    let mut wrong = right.clone();
    wrong[1] = 9;
    model.machine.engine.watched.store(true, Ordering::SeqCst);
    let mut allocated = |plains: &[&[u8]], kind: u32| {
        let mut frames = vec![];
        if plains.len() > 1 {
            frames = tests::frame(5, &(plains.len() as u32).to_le_bytes());
        }
        let mut senders = vec![];
        for plain in plains {
            let (sender, sealed) = tests::seal(&identity, plain);
            frames.extend(tests::frame(kind, &sealed));
            senders.push(sender);
        }
        let mut sink = Sink(Vec::with_capacity(1 << 20));
        ALLOCATED.store(0, Ordering::SeqCst);
        let end = protocol::serve(&identity, &mut model, &mut Source(&frames), &mut sink);
        WATCHED.set(false);
        assert!(matches!(end, protocol::End::Closed));
        let answers = tests::frames(&sink.0);
        let answers = answers.iter().filter(|(kind, _)| *kind == 17);
        assert_eq!(answers.clone().count(), plains.len());
        for (sender, (_, answer)) in senders.iter().zip(answers) {
            tests::open(sender, answer);
        }
        ALLOCATED.load(Ordering::SeqCst)
    };
    let bytes = allocated(&[&right], 2);
    assert!(bytes <= 256, "{bytes} bytes");
    assert_eq!(allocated(&[&right], 3), bytes);
    assert_eq!(allocated(&[&wrong], 2), bytes);
    assert_eq!(allocated(&[&[]], 2), bytes);
    assert_eq!(allocated(&[&right, &right], 2), 2 * bytes);
    assert_eq!(allocated(&[&right, &wrong, &right], 2), 3 * bytes);
}

/// Any slots, in one run, on dirty memory: the same bytes as each alone; and then zeros.
#[test]
fn a_batch_gives_what_lone_runs_give_and_leaves_nothing() {
    let model = every_kind();
    let inputs: Vec<Vec<u8>> = (0..8).map(|seed| bytes(&noise(1024, seed))).collect();
    for isa in isas() {
        for threads in [1, 2] {
            let alone: Vec<Vec<u8>> = inputs
                .iter()
                .map(|input| model.run(input, isa, threads).expect("runs"))
                .collect();
            let mut machine = model.load_slots(isa, threads, 8).expect("loads").machine;
            for used in [0b1u32, 0b10, 0b1010_0110, 0b1111_1111, 0b1000_0001] {
                for slot in 0..8 {
                    slot_of(&mut machine, slot).fill(0xff);
                }
                let batch: Vec<(usize, &[u8])> = (0..8)
                    .filter(|slot| used >> slot & 1 == 1)
                    .map(|slot| (slot, &inputs[(slot + 3) % 8][..]))
                    .collect();
                for (slot, outputs) in batch.iter().zip(run_batch_wiped(&mut machine, &batch)) {
                    assert!(
                        outputs == alone[(slot.0 + 3) % 8],
                        "{isa:?} {threads} {used:b}"
                    );
                }
                for slot in 0..8 {
                    let due = if used >> slot & 1 == 1 { 0 } else { 0xff };
                    assert!(slot_of(&mut machine, slot).iter().all(|&b| b == due));
                }
            }
        }
    }

    fn run_batch_wiped(machine: &mut Machine, batch: &[(usize, &[u8])]) -> Vec<Vec<u8>> {
        let program = (*machine.engine.program).clone();
        let outputs = run_batch(machine, &program, batch).expect("runs");
        for &(slot, _) in batch {
            machine.message(slot).fill(0);
            machine.wipe(slot);
        }
        outputs
    }
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
    let mut random = random(1);
    let (mut refused, mut ran) = (0, 0);
    for _ in 0..3000 {
        let mut altered = plain.clone();
        for _ in 0..=random(2) {
            let index = random(altered.len());
            // Small steps change numbers; any byte may change the structure.
            altered[index] = match random(3) {
                0 => altered[index].wrapping_add(1),
                1 => altered[index].wrapping_sub(1),
                _ => random(256) as u8,
            };
        }
        let Ok(program) = minicbor::decode(&altered) else {
            continue;
        };
        let hostile = Model {
            program,
            chunks: model.chunks.clone(),
            rungs: model.rungs.clone(),
        };
        if hostile.program.chunks.len() != model.chunks.len() {
            continue;
        }
        if hostile
            .place(Shape::default())
            .map_or(true, |p| p.layout.size() > 1 << 24)
        {
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
