//! Layouts, and that every rung, and every number of threads, gives the same answer.

use super::*;
use crate::kernels::Isa;
use crate::program::{Instruction, Load};
use crate::testing::{KEY, Model, bytes, floats, load_shaped, noise, run};

/// Loads 48 floats from three chunks: one fixed, two optional, the last of them first.
fn model() -> Model {
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

fn shape(rung: usize, threads: u32) -> Shape {
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
