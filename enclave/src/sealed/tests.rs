//! Every change to a sealed file is refused.

use super::*;
use crate::kernels::Isa;
use crate::program::{Instruction, Load};
use crate::testing::{KEY, Model, bytes, floats, load, noise};

fn model() -> Model {
    let output = floats(0, &[48]);
    let mut model = Model::new(192, vec![], vec![output.clone()]);
    model.program.regions.fixed_size = 64;
    let values = bytes(&noise(48, 1));
    model.chunk(values[..64].to_vec(), None);
    model.chunk(values[64..128].to_vec(), Some(384));
    model.chunk(values[128..].to_vec(), None);
    model.push(Instruction::Load(Load {
        output,
        first_chunk: 0,
        chunk_count: 3,
    }));
    model
}

/// Opens, validates, loads and runs.
fn run(file: &[u8], key: &[u8; 32]) -> Result<Vec<u8>, Refusal> {
    let mut loaded = load(file, key, Isa::Portable, 1)?;
    crate::testing::run(&mut loaded.machine, &model().program, &[])
}

#[test]
fn the_file_itself_runs() {
    assert_eq!(run(&model().seal(), &KEY), Ok(bytes(&noise(48, 1))));
}

#[test]
fn every_flipped_bit_is_refused() {
    let file = model().seal();
    let first_chunk = file.len() - 192;
    for index in 0..file.len() {
        let mut altered = file.clone();
        altered[index] ^= 1 << (index % 8);
        let refusal = run(&altered, &KEY).expect_err("is refused");
        if index >= first_chunk {
            let chunk = ((index - first_chunk) / 64) as u32;
            assert_eq!(refusal, Refusal::Parameters { chunk });
        }
    }
}

#[test]
fn every_other_length_is_refused() {
    let file = model().seal();
    for size in 0..file.len() {
        assert!(run(&file[..size], &KEY).is_err(), "{size} bytes");
    }
    let mut longer = file;
    longer.push(0);
    let refusal = run(&longer, &KEY).expect_err("is refused");
    assert!(matches!(
        refusal,
        Refusal::Program(ProgramFault::FileSize { .. })
    ));
}

#[test]
fn swapped_chunks_and_a_wrong_key_are_refused() {
    let file = model().seal();
    let mut swapped = file.clone();
    let start = file.len() - 192;
    swapped[start..start + 64].copy_from_slice(&file[start + 128..]);
    swapped[start + 128..].copy_from_slice(&file[start..start + 64]);
    assert_eq!(run(&swapped, &KEY), Err(Refusal::Parameters { chunk: 0 }));
    assert_eq!(run(&file, &[8; 32]), Err(Refusal::WrongKey));
}

#[test]
fn the_prefix_says_what_is_wrong() {
    let file = model().seal();
    let altered = |index: usize, value: u8| {
        let mut altered = file.clone();
        altered[index] = value;
        run(&altered, &KEY)
    };
    assert_eq!(altered(0, b'v'), Err(Refusal::Header(HeaderFault::Magic)));
    assert_eq!(
        altered(7, 1),
        Err(Refusal::Header(HeaderFault::Version { found: 1 }))
    );
    assert_eq!(
        altered(11, 255),
        Err(Refusal::Header(HeaderFault::TooLarge))
    );
    assert!(matches!(
        altered(13, 99),
        Err(Refusal::Header(HeaderFault::Sizes { .. }))
    ));
    assert_eq!(
        run(b"VESSEL", &KEY),
        Err(Refusal::Header(HeaderFault::TooShort))
    );
}

#[test]
fn a_header_in_another_encoding_is_refused() {
    // The slot size as a longer integer than it needs.
    let file = model().seal();
    let header_size = u32::from_le_bytes([file[8], file[9], file[10], file[11]]) as usize;
    let at = 16 + 1 + 34 + 17;
    assert_eq!(file[at], 0x19);
    let mut altered = file[..at].to_vec();
    altered.extend([0x1a, 0, 0]);
    altered.extend(&file[at + 1..]);
    altered[8..12].copy_from_slice(&(header_size as u32 + 2).to_le_bytes());
    assert_eq!(
        run(&altered, &KEY),
        Err(Refusal::Header(HeaderFault::NotCanonical))
    );
}
