//! Every change to a sealed file is refused.

use super::*;
use crate::kernels::Isa;
use crate::layout::tests::{model, shape};
use crate::testing::{KEY, bytes, floats, load_shaped, noise};

/// Opens, validates, loads and runs, at a rung.
fn run_at(rung: usize, file: &[u8], key: &[u8; 32]) -> Result<Vec<u8>, Refusal> {
    let mut loaded = load_shaped(file, key, Isa::Portable, shape(rung, 1), 1)?;
    crate::testing::run(&mut loaded.machine, &model().program, &[])
}

fn run(file: &[u8], key: &[u8; 32]) -> Result<Vec<u8>, Refusal> {
    run_at(0, file, key)
}

#[test]
fn the_file_itself_runs() {
    assert_eq!(run(&model().seal(), &KEY), Ok(bytes(&noise(48, 1))));
}

#[test]
fn every_flipped_bit_is_refused() {
    let file = model().seal();
    let first_chunk = file.len() - 192;
    for rung in 0..3 {
        for index in 0..file.len() {
            let mut altered = file.clone();
            altered[index] ^= 1 << ((index + rung) % 8);
            let refusal = run_at(rung, &altered, &KEY).expect_err("is refused");
            if index >= first_chunk {
                let chunk = ((index - first_chunk) / 64) as u32;
                assert_eq!(refusal, Refusal::Parameters { chunk });
            }
        }
    }
}

/// As its owner seals it: what is opened is decoded, validated and laid out by it.
#[test]
fn any_byte_of_a_header_changed_by_its_owner_is_refused_or_changes_no_output() {
    let model = model();
    let header = minicbor::to_vec(model.header()).expect("encodes");
    let (mut ran, mut refused) = (0, 0);
    for index in 0..header.len() {
        let bits = (0..8).map(|bit| header[index] ^ 1 << bit);
        for byte in bits.chain([header[index].wrapping_add(1), 0, 0xff]) {
            let mut altered = header.clone();
            altered[index] = byte;
            let file = model.seal_with(&altered);
            for rung in 0..3 {
                match run_at(rung, &file, &KEY) {
                    Ok(output) => {
                        assert_eq!(output, bytes(&noise(48, 1)));
                        ran += 1;
                    }
                    Err(_) => refused += 1,
                }
            }
        }
    }
    // The output's name and the number of the default rung are free.
    assert!(
        ran > 20 && refused > 2000,
        "{ran} ran, {refused} were refused"
    );
}

#[test]
fn ports_of_one_name_are_refused() {
    let mut model = model();
    model.program.outputs.push(floats(0, &[48]));
    let file = model.seal();
    assert!(run(&file, &KEY).is_ok());
    // Text of one byte, then the number of its dtype.
    let at = file.windows(3).position(|w| w == [0x61, b'y', 0]);
    let mut altered = file.clone();
    altered[at.expect("is in the header") + 1] = b'x';
    assert_eq!(
        run(&altered, &KEY),
        Err(Refusal::Header(HeaderFault::SameNames))
    );
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
