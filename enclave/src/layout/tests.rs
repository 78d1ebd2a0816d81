//! Layouts, and that every rung, and every number of threads, gives the same answer.

use super::*;
use crate::kernels::Isa;
use crate::program::{Instruction, Load};
use crate::slots::{MAX_SLOTS, Slots};
use crate::testing::{KEY, Model, bytes, floats, load_shaped, noise, random, run};
use crate::validate::validate;

/// Loads 48 floats from three chunks: one fixed, two optional, the last of them first.
pub fn model() -> Model {
    let output = floats(0, &[48]);
    let mut model = Model::new(192, vec![], vec![output.clone()]);
    model.program.regions.fixed_size = 64;
    let values = bytes(&noise(48, 1));
    model.chunk(values[..64].to_vec(), None);
    model.chunk(values[64..128].to_vec(), Some(384));
    model.chunk(values[128..].to_vec(), None);
    model.program.order = vec![2, 0];
    model.rungs = vec![0, 1, 2];
    model.push(Instruction::Load(Load {
        output,
        first_chunk: 0,
        chunk_count: 3,
    }));
    model
}

pub fn shape(rung: usize, threads: u32) -> Shape {
    Shape {
        rung: Some(rung),
        threads: Some(threads),
    }
}

#[test]
fn regions_follow_each_other() {
    let placed = model().place(shape(1, 2)).expect("is valid");
    let layout = placed.layout;
    assert_eq!(layout.resident_offset(), 192 + 192);
    assert_eq!(layout.staging_offset(), 384 + 128);
    assert_eq!(layout.size(), 384 + 128 + 2 * 64);
}

#[test]
fn chunks_stay_where_they_are_on_every_higher_rung() {
    let places = |rung| {
        let placed = model().place(shape(rung, 1)).expect("is valid");
        [0, 1, 2].map(|index| placed.resident_offset(index))
    };
    assert_eq!(places(0), [None, Some(384), None]);
    assert_eq!(places(1), [None, Some(384), Some(448)]);
    assert_eq!(places(2), [Some(512), Some(384), Some(448)]);
    let last = model().place(shape(2, 1)).expect("is valid");
    assert_eq!(last.layout.staging_size, 0);
    assert_eq!(last.resident_offset(3), None);
}

#[test]
fn every_rung_gives_the_same_answer() {
    let model = model();
    for rung in 0..3 {
        for threads in 1..3 {
            let shape = shape(rung, threads);
            let placed = model.place(shape).expect("is valid");
            let mut loaded =
                load_shaped(&model.seal(), &KEY, Isa::Portable, shape, 1).expect("loads");
            assert_eq!(loaded.machine.pool_size(), placed.layout.size());
            assert_eq!(loaded.machine.thread_count(), threads as usize);
            let found = run(&mut loaded.machine, &model.program, &[]);
            assert_eq!(found, Ok(bytes(&noise(48, 1))), "rung {rung}");
        }
    }
}

#[test]
fn resident_chunks_are_authenticated_when_they_are_loaded() {
    let model = model();
    let mut file = model.seal();
    let last = file.len() - 1;
    file[last] ^= 1;
    for rung in 0..3 {
        let loaded = load_shaped(&file, &KEY, Isa::Portable, shape(rung, 1), 1);
        let refused = Some(Refusal::Parameters { chunk: 2 });
        assert_eq!(loaded.err(), refused.filter(|_| rung > 0), "rung {rung}");
    }
}

#[test]
fn what_is_not_there_is_refused() {
    let refused = |shape| model().place(shape).err();
    assert_eq!(refused(shape(3, 1)), Some(Refusal::Rung { count: 3 }));
    assert_eq!(
        refused(shape(usize::MAX, 1)),
        Some(Refusal::Rung { count: 3 })
    );
    // More threads than the plan has scratch for are as many as it has.
    let most = model().place(shape(0, 1000)).expect("is valid");
    assert_eq!(most.layout.thread_count, 2);
    let own = model().place(Shape::default()).expect("is valid").layout;
    assert_eq!((own.thread_count, own.resident_size), (2, 64));
}

/// Loads chunks of random sizes, each fixed or optional, in a random order; with random rungs.
fn random_model(random: &mut impl FnMut(usize) -> usize) -> Model {
    let mut model = Model::new(64 * 8, vec![], vec![]);
    for _ in 0..1 + random(6) {
        let size = 64 * (1 + random(8));
        let regions = &mut model.program.regions;
        let fixed = (random(3) == 0).then_some(1024 + regions.fixed_size);
        if fixed.is_some() {
            // At times with a hole behind it.
            regions.fixed_size += (size + 64 * random(2)) as u64;
        }
        let first_chunk = model.chunk(vec![0; size], fixed);
        model.push(Instruction::Load(Load {
            output: floats(0, &[size as u32 / 4]),
            first_chunk,
            chunk_count: 1,
        }));
    }
    let order = &mut model.program.order;
    for index in (1..order.len()).rev() {
        order.swap(index, random(index + 1));
    }
    let most = order.len() as u32;
    model.rungs = (0..=most).filter(|_| random(2) == 0).collect();
    if model.rungs.is_empty() {
        model.rungs.push(random(most as usize + 1) as u32);
    }
    model
}

/// One figure of the header changed, to one nearby or an absurd one.
fn alter(header: &mut Header, random: &mut impl FnMut(usize) -> usize) {
    let number = random(header.rungs.len());
    let choice = random(8);
    let change = random(6);
    let large = |value: u64| match change {
        0 => value.wrapping_add(64),
        1 => value.wrapping_sub(64),
        2 => value.wrapping_add(1),
        3 => 0,
        4 => 1 << 40,
        _ => u64::MAX - 63,
    };
    let small = |value: u32| match change {
        0 | 1 => value.wrapping_add(1),
        2 => value.wrapping_sub(1),
        3 => 0,
        4 => 1 << 20,
        _ => u32::MAX,
    };
    match choice {
        0 => header.slot_size = large(header.slot_size),
        1 => header.rung = small(header.rung),
        2 => header.thread_count = small(header.thread_count),
        3 => header.rungs.insert(number, header.rungs[number]),
        4 => {
            header.rungs.remove(number);
        }
        5 => header.rungs[number].resident_count = small(header.rungs[number].resident_count),
        6 => header.rungs[number].resident_size = large(header.rungs[number].resident_size),
        _ => header.rungs[number].staging_size = large(header.rungs[number].staging_size),
    }
}

/// All chunks have a place that no other has, or a staging buffer to be decrypted in.
fn check_places(placed: &Placed, resident_count: usize) {
    let layout = &placed.layout;
    let (mut kept, mut streamed) = (vec![], 0);
    for (index, chunk) in (0u32..).zip(&placed.chunks) {
        match placed.resident_offset(index) {
            Some(offset) => kept.push(offset..offset + chunk.size),
            None => {
                assert!(chunk.size <= layout.staging_size);
                streamed += 1;
            }
        }
    }
    assert_eq!(streamed, placed.order.len() - resident_count);
    kept.sort_unstable_by_key(|place| place.start);
    let mut free = layout.resident_offset();
    for place in kept {
        assert!(place.start >= free && place.start.is_multiple_of(64));
        free = place.end;
    }
    assert!(free <= layout.staging_offset());
    let slots = Slots::new(layout, MAX_SLOTS);
    assert_eq!(slots.offset(1), layout.size());
    let size = layout.io_size + layout.arena_size;
    let end = slots.offset(MAX_SLOTS - 1) + size;
    assert_eq!(slots.pool_size(), Ok(end));
}

#[test]
fn any_ladder_is_refused_or_lies_in_its_pool() {
    let mut random = random(1);
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..2000 {
        let model = random_model(&mut random);
        let mut header = model.header();
        for _ in 0..random(3) {
            if !header.rungs.is_empty() {
                alter(&mut header, &mut random);
            }
        }
        if validate(model.program.clone(), &header).is_err() {
            assert_ne!(header, model.header());
            refused += 1;
            continue;
        }
        accepted += 1;
        let counts = header.rungs.iter().map(|rung| rung.resident_count);
        assert!(counts.is_sorted_by(|a, b| a < b));
        assert!((header.rung as usize) < header.rungs.len());
        for rung in 0..header.rungs.len() {
            for threads in [1, 2, u32::MAX] {
                let program = validate(model.program.clone(), &header).expect("is valid");
                let placed = Placed::new(program, &header, shape(rung, threads)).expect("is there");
                check_places(&placed, header.rungs[rung].resident_count as usize);
            }
        }
    }
    assert!(
        accepted > 500 && refused > 500,
        "{accepted} accepted, {refused} refused"
    );
}
