//! Batches of requests: answered together, each for itself.

use super::*;
use crate::machine;

fn batch(count: u32, frames: &[Vec<u8>]) -> Vec<u8> {
    [frame(BATCH, &count.to_le_bytes()), frames.concat()].concat()
}

fn loaded(slots: usize) -> Model {
    gather()
        .load_slots(isas()[0], 2, slots)
        .expect("a model of two instructions loads")
}

/// A sealed RUN with these picks, and who can open its answer.
fn run(identity: &Identity, model: &Model, values: [i32; 4]) -> (Sender, Vec<u8>) {
    let (sender, sealed) = seal(identity, &request(&model.format, &picks(values)));
    (sender, frame(RUN, &sealed))
}

#[test]
fn answers_come_in_order_and_one_bad_request_touches_no_other() {
    let identity = identity();
    let mut model = loaded(4);
    let (first, a) = run(&identity, &model, [0, 1, 2, 3]);
    let (second, b) = run(&identity, &model, [0, 1, 2, 4]);
    let (third, c) = run(&identity, &model, [3, 2, 1, 0]);
    let (fourth, sealed) = seal(&identity, b"nonsense");
    let input = batch(4, &[a, b, c, frame(RUN, &sealed)]);
    let (end, frames) = served(&identity, &mut model, &input);
    assert!(matches!(end, End::Closed));
    assert_eq!(kinds(&frames), [READY, RESULT, RESULT, RESULT, RESULT]);
    for (sender, (_, answer)) in [(&first, &frames[1]), (&third, &frames[3])] {
        assert_eq!(from_bytes(&open(sender, answer)[64..]), [2.5; 16]);
    }
    assert_eq!(wrong(&open(&second, &frames[2].1)).0, "index");
    assert_eq!(wrong(&open(&fourth, &frames[4].1)).0, "request");
}

#[test]
fn what_is_no_request_is_refused_in_its_place() {
    let identity = identity();
    let mut model = loaded(8);
    let most = PUBLIC_SIZE + TAG_SIZE + model.format.max_request_size();
    let (first, a) = run(&identity, &model, [0; 4]);
    let (last, b) = run(&identity, &model, [1; 4]);
    let (timed, sealed) = seal(&identity, &request(&model.format, &picks([0; 4])));
    let mut altered = a.clone();
    altered[HEAD_SIZE + 40] ^= 1;
    let others = [
        altered,
        frame(RUN, &vec![0; most + 1]),
        frame(RUN, b""),
        frame(RUN_TIMED, &sealed),
        frame(BATCH, &2u32.to_le_bytes()),
        frame(EVIDENCE, &[0; 32]),
    ];
    drop(timed);
    let input = [
        batch(8, &[&[a][..], &others, &[b]].concat()),
        frame(EVIDENCE, &[0; 32]),
    ]
    .concat();
    let (end, frames) = served(&identity, &mut model, &input);
    assert!(matches!(end, End::Closed));
    let due = [
        READY, RESULT, ERROR, ERROR, ERROR, ERROR, ERROR, ERROR, RESULT, CLAIMS,
    ];
    assert_eq!(kinds(&frames), due);
    for (_, payload) in &frames[2..8] {
        assert_eq!(code(payload), "request");
    }
    for (sender, (_, answer)) in [(&first, &frames[1]), (&last, &frames[8])] {
        assert_eq!(from_bytes(&open(sender, answer)[64..]), [2.5; 16]);
    }
}

#[test]
fn a_batch_of_the_wrong_size_is_refused_and_what_follows_is_served_alone() {
    let identity = identity();
    for slots in [1, 3] {
        let mut model = loaded(slots);
        let (sender, request) = run(&identity, &model, [0; 4]);
        let input = [
            batch(0, &[]),
            batch(1, &[]),
            batch(slots as u32 + 1, &[]),
            batch(u32::MAX, &[]),
            frame(BATCH, b""),
            frame(BATCH, &[2, 0, 0, 0, 0]),
            request,
        ]
        .concat();
        let (end, frames) = served(&identity, &mut model, &input);
        assert!(matches!(end, End::Closed));
        let mut due = vec![READY];
        due.extend([ERROR; 6]);
        due.push(RESULT);
        assert_eq!(kinds(&frames), due);
        for (_, payload) in &frames[1..7] {
            assert_eq!(code(payload), "request");
        }
        open(&sender, &frames[7].1);
    }
}

#[test]
fn a_batch_that_ends_early_is_answered_by_nothing() {
    let identity = identity();
    let mut model = loaded(3);
    let (_, request) = run(&identity, &model, [0; 4]);
    let whole = batch(3, &[request.clone(), request]);
    let ends = [HEAD_SIZE + 2, HEAD_SIZE + 4, whole.len() - 1, whole.len()];
    for end in ends {
        let (how, frames) = served(&identity, &mut model, &whole[..end]);
        assert!(matches!(how, End::Closed));
        assert_eq!(kinds(&frames), [READY], "{end}");
    }
}

#[test]
fn a_batch_without_a_right_request_runs_nothing() {
    let identity = identity();
    let mut model = loaded(2);
    let describe = [&[1u8, 2, 0, 0, 1, 0, 0, 0, 0x80][..], &[0; 55]].concat();
    let (first, a) = seal(&identity, &describe);
    let (second, b) = seal(&identity, b"");
    let input = batch(2, &[frame(RUN, &a), frame(RUN, &b)]);
    let (_, frames) = served(&identity, &mut model, &input);
    assert_eq!(kinds(&frames), [READY, RESULT, RESULT]);
    assert_eq!(open(&first, &frames[1].1)[..2], [1, 2]);
    assert_eq!(wrong(&open(&second, &frames[2].1)).0, "request");
}

#[test]
fn altered_parameters_end_a_batch_and_the_process() {
    let identity = identity();
    let mut program = gather();
    let data = floats(64, &[4, 4]);
    let chunk = program.chunk(vec![0; 64], None);
    program.program.instructions[0] = Instruction::Load(crate::program::Load {
        output: data,
        first_chunk: chunk,
        chunk_count: 1,
    });
    let mut file = program.seal();
    *file.last_mut().expect("has chunks") ^= 1;
    let mut model = crate::testing::load_slots(&file, &MODEL_KEY, isas()[0], 2, 2).expect("loads");
    let (_, request) = run(&identity, &model, [0; 4]);
    let input = batch(2, &[request.clone(), request]);
    let (end, frames) = served(&identity, &mut model, &input);
    assert!(matches!(
        end,
        End::Refused(Refusal::Parameters { chunk: 0 })
    ));
    assert_eq!(kinds(&frames), [READY, ERROR]);
    assert_eq!(code(&frames[1].1), "parameters");
}

/// Whatever became of a request, no plain byte of it or of its outputs is left.
#[test]
fn nothing_of_a_request_stays() {
    let identity = identity();
    let output = bytes(&[2.5; 4]);
    for arena_size in [192, 1 << 16] {
        let mut program = gather();
        program.program.regions.arena_size = arena_size;
        let mut model = program.load_slots(isas()[0], 2, 3).expect("loads");
        for last in [3, 4] {
            let (_, a) = run(&identity, &model, [1, 2, 3, last]);
            let (_, sealed) = seal(&identity, &picks([1, 2, 3, last]));
            let others = [run(&identity, &model, [3; 4]).1, frame(RUN, &sealed)];
            let input = [a.clone(), batch(3, &[&[a][..], &others].concat())].concat();
            let (_, frames) = served(&identity, &mut model, &input);
            assert_eq!(kinds(&frames), [READY, RESULT, RESULT, RESULT, RESULT]);
            for slot in 0..3 {
                let kept = machine::tests::kept(&mut model.machine, slot);
                for plain in [&picks([1, 2, 3, last]), &picks([3; 4]), &output] {
                    assert!(!kept.windows(16).any(|bytes| bytes == plain), "{slot}");
                }
            }
        }
    }
}

/// Any frames in any order: as many answers as are due, of the kinds that are due.
#[test]
fn any_frames_are_answered_in_order() {
    let identity = identity();
    let mut model = loaded(4);
    let (_, right) = run(&identity, &model, [1, 2, 3, 0]);
    let (_, outside) = run(&identity, &model, [1, 2, 3, 9]);
    let mut altered = right.clone();
    altered[HEAD_SIZE + 50] ^= 1;
    let timed = [&head(RUN_TIMED, right.len() as u64 - 12)[..], &right[12..]].concat();
    let counts: Vec<Vec<u8>> = (0..7).map(|count| batch(count, &[])).collect();
    let mut random = crate::testing::random(1);
    for _ in 0..300 {
        let (mut input, mut due, mut left) = (vec![], vec![READY], 0);
        // Answers of a batch wait for its end.
        let mut waiting = vec![];
        for _ in 0..random(12) {
            let choice = random(6);
            let count = random(counts.len());
            input.extend_from_slice(match choice {
                0 => &right,
                1 => &outside,
                2 => &altered,
                3 => &timed,
                _ => &counts[count],
            });
            let within = left > 0;
            match (choice, within) {
                (0 | 1, _) => waiting.push(RESULT),
                (3, false) => waiting.extend([TIMES, RESULT]),
                (2, _) | (_, true) => waiting.push(ERROR),
                (_, false) if (2..=4).contains(&count) => left = count + 1,
                (_, false) => waiting.push(ERROR),
            }
            left = usize::saturating_sub(left, 1);
            if left == 0 {
                due.append(&mut waiting);
            }
        }
        let (end, frames) = served(&identity, &mut model, &input);
        assert!(matches!(end, End::Closed));
        assert_eq!(kinds(&frames), due);
    }
}
