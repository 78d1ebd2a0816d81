//! What tests share: sealing a program, and running one from inputs to outputs.

use crate::kernels::Isa;
use crate::layout::{Placed, Shape};
use crate::machine::Machine;
use crate::message::Format;
use crate::program::{
    Chunk, DType, Instruction, Map, MapOp, Program, Regions, Rung, TAG_SIZE, View,
};
use crate::protocol;
use crate::refusal::Refusal;
use crate::sealed::{Header, Opened, Port, Sealed, cipher, derive};
use crate::validate::validate;
use aws_lc_rs::aead::{Aad, Nonce};
use core::sync::atomic::{AtomicUsize, Ordering};

pub const KEY: [u8; 32] = [7; 32];
const BUILD: [u8; 32] = [9; 32];

pub fn view(offset: u64, dtype: DType, shape: &[u32], strides: &[i64]) -> View {
    View {
        offset,
        dtype,
        shape: shape.to_vec(),
        strides: strides.to_vec(),
    }
}

pub fn dense(offset: u64, dtype: DType, shape: &[u32]) -> View {
    let mut strides = vec![1i64; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * i64::from(shape[i]);
    }
    view(offset, dtype, shape, &strides)
}

pub fn floats(offset: u64, shape: &[u32]) -> View {
    dense(offset, DType::F32, shape)
}

pub fn op(code: u32, x: i64, y: u32, z: u32) -> MapOp {
    MapOp { code, x, y, z }
}

/// Pseudo-random floats in `-1..1`.
pub fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Pseudo-random numbers, each below the bound it is asked for.
pub fn random(seed: u32) -> impl FnMut(usize) -> usize {
    let mut state = seed;
    move |below| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % below
    }
}

pub fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub fn from_bytes(bytes: &[u8]) -> Vec<f32> {
    bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|&b| f32::from_le_bytes(b))
        .collect()
}

/// A program with its plain chunks.
#[derive(Clone)]
pub struct Model {
    pub program: Program,
    pub chunks: Vec<Vec<u8>>,
    /// Optional chunks that are resident, by rung; the first rung is the default.
    pub rungs: Vec<u32>,
}

impl Model {
    /// `io_size` bytes of I/O and as many of arena; no chunks; 2 threads.
    pub fn new(io_size: u64, inputs: Vec<View>, outputs: Vec<View>) -> Self {
        let regions = Regions {
            io_size,
            arena_size: io_size,
            fixed_size: 0,
            thread_count: 2,
        };
        let program = Program {
            regions,
            inputs,
            outputs,
            chunks: vec![],
            instructions: vec![],
            order: vec![],
        };
        Model {
            program,
            chunks: vec![],
            rungs: vec![0],
        }
    }

    pub fn push(&mut self, instruction: Instruction) -> &mut Self {
        self.program.instructions.push(instruction);
        self
    }

    /// Adds an optional chunk, or one fixed at `fixed_offset`; its bytes are padded to 64.
    pub fn chunk(&mut self, mut plain: Vec<u8>, fixed_offset: Option<u64>) -> u32 {
        plain.resize(plain.len().next_multiple_of(64), 0);
        let index = self.chunks.len() as u32;
        if fixed_offset.is_none() {
            self.program.order.push(index);
        }
        self.program.chunks.push(Chunk {
            size: plain.len() as u64,
            fixed_offset,
            tag: [0; TAG_SIZE],
        });
        self.chunks.push(plain);
        index
    }

    fn rung(&self, resident_count: u32) -> Rung {
        let chunks = &self.program.chunks;
        let sizes = self.program.order.iter();
        let mut sizes = sizes.filter_map(|&i| chunks.get(i as usize).map(|chunk| chunk.size));
        let kept = sizes.by_ref().take(resident_count as usize);
        let fixed_size = self.program.regions.fixed_size;
        Rung {
            resident_count,
            resident_size: kept.fold(fixed_size, u64::saturating_add),
            staging_size: sizes.max().unwrap_or(0),
        }
    }

    pub fn header(&self) -> Header {
        let ports = |views: &[View]| {
            let named = ('x'..).zip(views).map(|(name, view)| Port {
                name: name.into(),
                dtype: view.dtype,
                shape: view.shape.clone(),
            });
            named.collect()
        };
        let regions = &self.program.regions;
        let mut key_check = [0; 16];
        derive(&KEY, &BUILD, b"vessels v1 key check", &mut key_check).expect("derives");
        Header {
            build_id: BUILD,
            key_check,
            slot_size: regions.io_size.saturating_add(regions.arena_size),
            rungs: self.rungs.iter().map(|&count| self.rung(count)).collect(),
            rung: 0,
            thread_count: regions.thread_count,
            inputs: ports(&self.program.inputs),
            outputs: ports(&self.program.outputs),
        }
    }

    /// The file `docs/format.md` describes.
    pub fn seal(&self) -> Vec<u8> {
        self.seal_with(&minicbor::to_vec(self.header()).expect("encodes"))
    }

    /// As [`Model::seal`], with these bytes for a header.
    pub fn seal_with(&self, header: &[u8]) -> Vec<u8> {
        let mut program = self.program.clone();
        let key = cipher(&KEY, &BUILD, b"vessels v1 parameters").expect("derives");
        let mut sealed_chunks = vec![];
        for (index, plain) in (0u32..).zip(&self.chunks) {
            let mut chunk = plain.clone();
            let mut nonce = [0; 12];
            nonce[8..].copy_from_slice(&index.to_be_bytes());
            let nonce = Nonce::assume_unique_for_key(nonce);
            let tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut chunk);
            program.chunks[index as usize]
                .tag
                .copy_from_slice(tag.expect("seals").as_ref());
            sealed_chunks.extend(chunk);
        }
        let mut plain = minicbor::to_vec(&program).expect("encodes");
        while !(16 + header.len() + plain.len() + TAG_SIZE).is_multiple_of(64) {
            plain.push(0);
        }
        let mut file = b"VESSEL\0\x02".to_vec();
        file.extend((header.len() as u32).to_le_bytes());
        file.extend((plain.len() as u32).to_le_bytes());
        file.extend(header);
        let key = cipher(&KEY, &BUILD, b"vessels v1 program").expect("derives");
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        key.seal_in_place_append_tag(nonce, Aad::from(file.clone()), &mut plain)
            .expect("seals");
        file.extend(plain);
        file.extend(sealed_chunks);
        file
    }

    /// Seals, opens, validates and loads, with the form of its messages.
    pub fn load(&self, isa: Isa, threads: usize) -> Result<protocol::Model, Refusal> {
        self.load_slots(isa, threads, 1)
    }

    /// As [`Model::load`], with this many slots.
    pub fn load_slots(
        &self,
        isa: Isa,
        threads: usize,
        slots: usize,
    ) -> Result<protocol::Model, Refusal> {
        load_slots(&self.seal(), &KEY, isa, threads, slots)
    }

    /// Validates, and lays out as asked for.
    pub fn place(&self, shape: Shape) -> Result<Placed, Refusal> {
        let header = self.header();
        Placed::new(validate(self.program.clone(), &header)?, &header, shape)
    }

    /// Outputs of one run for the bytes of all inputs.
    pub fn run(&self, inputs: &[u8], isa: Isa, threads: usize) -> Result<Vec<u8>, Refusal> {
        run(&mut self.load(isa, threads)?.machine, &self.program, inputs)
    }

    /// What the validator refuses, or `None`.
    pub fn fault(&self) -> Option<Refusal> {
        validate(self.program.clone(), &self.header()).err()
    }
}

/// Opens bytes as a sealed file, validates and loads.
pub fn load(
    file: &[u8],
    key: &[u8; 32],
    isa: Isa,
    threads: usize,
) -> Result<protocol::Model, Refusal> {
    load_slots(file, key, isa, threads, 1)
}

/// As [`load`], with this many slots.
pub fn load_slots(
    file: &[u8],
    key: &[u8; 32],
    isa: Isa,
    threads: usize,
    slots: usize,
) -> Result<protocol::Model, Refusal> {
    let shape = Shape {
        threads: Some(threads as u32),
        ..Shape::default()
    };
    load_shaped(file, key, isa, shape, slots)
}

/// As [`load_slots`], at a rung.
pub fn load_shaped(
    file: &[u8],
    key: &[u8; 32],
    isa: Isa,
    shape: Shape,
    slots: usize,
) -> Result<protocol::Model, Refusal> {
    let opened = open(file, key)?;
    let program = validate(opened.program, &opened.header)?;
    let placed = Placed::new(program, &opened.header, shape)?;
    let format = Format::new(&opened.header).expect("is not absurd");
    let size = protocol::Model::message_size(&format);
    let machine = Machine::load(
        placed,
        opened.parameters,
        isa,
        slots,
        size,
        &crate::pool::anonymous,
    )?;
    Ok(protocol::Model { machine, format })
}

/// Bytes of a dense view.
fn size_of(view: &View) -> usize {
    view.shape.iter().product::<u32>() as usize * view.dtype.size() as usize
}

/// Outputs of one run for the bytes of all inputs, one after the other; more are ignored.
pub fn run(machine: &mut Machine, program: &Program, inputs: &[u8]) -> Result<Vec<u8>, Refusal> {
    let mut outputs = run_batch(machine, program, &[(0, inputs)])?;
    Ok(outputs.remove(0))
}

/// Outputs of one run for the bytes of all inputs of each slot it takes.
pub fn run_batch(
    machine: &mut Machine,
    program: &Program,
    inputs: &[(usize, &[u8])],
) -> Result<Vec<Vec<u8>>, Refusal> {
    for (slot, bytes) in inputs {
        let (mut from, mut to) = (0, 0);
        for size in program.inputs.iter().map(size_of) {
            let message = machine.message(*slot);
            message[to..to + size].copy_from_slice(&bytes[from..from + size]);
            from += size;
            to += size.next_multiple_of(64);
        }
        machine.read_inputs(*slot, 0);
    }
    let used = inputs.iter().fold(0, |used, (slot, _)| used | 1 << slot);
    machine.run(used, false)?;
    let mut all = vec![];
    for &(slot, _) in inputs {
        machine.write_outputs(slot, 0);
        let (mut outputs, mut at) = (vec![], 0);
        for size in program.outputs.iter().map(size_of) {
            outputs.extend(&machine.message(slot)[at..at + size]);
            at += size.next_multiple_of(64);
        }
        all.push(outputs);
    }
    Ok(all)
}

/// The bytes whose hexadecimal digits are the first value of this name in a JSON text.
pub fn hex_field(json: &str, name: &str) -> Vec<u8> {
    let key = format!("\"{name}\": \"");
    let start = json.find(&key).expect("has it") + key.len();
    unhex(json[start..].split('"').next().expect("has an end"))
}

pub fn unhex(digits: &str) -> Vec<u8> {
    (0..digits.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&digits[i..i + 2], 16).expect("is hexadecimal"))
        .collect()
}

/// Opens bytes as a sealed file.
pub fn open(file: &[u8], key: &[u8; 32]) -> Result<Opened, Refusal> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::SeqCst);
    let path = std::env::temp_dir().join(format!("vessels-{}-{number}", std::process::id()));
    std::fs::write(&path, file).expect("writes");
    let opened = Sealed::open(&path).and_then(|sealed| sealed.unlock(key));
    std::fs::remove_file(&path).expect("removes");
    opened
}

/// Every instruction set this CPU has.
pub fn isas() -> Vec<Isa> {
    [Isa::Avx512, Isa::Avx2, Isa::Portable]
        .into_iter()
        .filter(|isa| isa.available())
        .collect()
}

/// Fills a view with a constant.
pub fn fill(output: View, value: f32) -> Instruction {
    let ops = vec![op(0, i64::from(value.to_bits()), 0, 0)];
    Instruction::Map(Map {
        inputs: vec![],
        output,
        ops,
    })
}

/// All indices of a shape, in C order.
pub fn indices(shape: &[u32]) -> Vec<Vec<i64>> {
    let mut all = vec![vec![]];
    for &d in shape {
        all = all
            .into_iter()
            .flat_map(|index| (0..i64::from(d)).map(move |i| [index.clone(), vec![i]].concat()))
            .collect();
    }
    all
}

/// Element offset of an index in a view, from the start of the pool.
pub fn element(view: &View, index: &[i64]) -> usize {
    let offset: i64 = index.iter().zip(&view.strides).map(|(i, s)| i * s).sum();
    (view.offset as i64 / view.dtype.size() as i64 + offset) as usize
}

/// Runs `instruction` on a pool of floats (input part `0..input_count`, then an output part of
/// `output_count`, set to zero) on every instruction set and thread count; gives the output part.
pub fn run_floats(instruction: &Instruction, inputs: &[f32], output_count: usize) -> Vec<f32> {
    let input_size = (inputs.len() as u64 * 4).next_multiple_of(64);
    let io_size = (input_size + output_count as u64 * 4).next_multiple_of(64);
    let output = floats(input_size, &[output_count as u32]);
    let mut model = Model::new(
        io_size,
        vec![floats(0, &[inputs.len() as u32])],
        vec![output.clone()],
    );
    model.push(fill(output, 0.0)).push(instruction.clone());
    let mut results = vec![];
    for isa in isas() {
        for threads in [1, 2] {
            let result = model.run(&bytes(inputs), isa, threads).expect("runs");
            results.push(from_bytes(&result));
        }
    }
    let first = results.remove(0);
    for result in results {
        close(&result, &first);
    }
    first
}

/// Where the output part of [`run_floats`] starts, in bytes.
pub fn output_at(input_count: usize) -> u64 {
    (input_count as u64 * 4).next_multiple_of(64)
}

#[track_caller]
pub fn close(actual: &[f32], expected: &[f32]) {
    assert_eq!(actual.len(), expected.len());
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        let same = a == e || (a.is_nan() && e.is_nan());
        assert!(
            same || (a - e).abs() <= 1e-5 + 1e-5 * e.abs(),
            "element {i}: {a} for {e}"
        );
    }
}
