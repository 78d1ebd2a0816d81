//! Frames in, frames out.

use super::session::RESPONSE_LABEL;
use super::*;
use crate::evidence::Platform;
use crate::hpke::KeyPair;
use crate::hpke::tests::Sender;
use crate::layout::Shape;
use crate::program::{DType, Gather, Instruction};
use crate::testing::{KEY as MODEL_KEY, Model as Program, bytes, dense, floats, from_bytes, isas};

pub fn identity() -> Identity {
    Identity {
        keys: KeyPair::generate().expect("generates"),
        model_digest: [5; 32],
        platform: Platform::Simulation,
    }
}

pub fn frame(kind: u32, payload: &[u8]) -> Vec<u8> {
    [&head(kind, payload.len() as u64)[..], payload].concat()
}

/// The frames of an output.
pub fn frames(mut rest: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut all = vec![];
    while let Some((kind, size)) = read_head(&mut rest).expect("reads") {
        let (payload, more) = rest.split_at(size as usize);
        all.push((kind, payload.to_vec()));
        rest = more;
    }
    all
}

/// A request sealed for `identity`, and who can open its answer.
pub fn seal(identity: &Identity, plain: &[u8]) -> (Sender, Vec<u8>) {
    let info = request_info(&identity.model_digest);
    let sender = Sender::new(identity.keys.public(), &info);
    let sealed = sender.seal(b"", plain);
    (sender, sealed)
}

pub fn open(sender: &Sender, answer: &[u8]) -> Vec<u8> {
    sender.open(RESPONSE_LABEL, answer).expect("opens")
}

/// The content of a right request, with these bytes for its only input.
pub fn request(format: &Format, input: &[u8]) -> Vec<u8> {
    let mut plain = format.front_of_request().to_vec();
    plain.extend(input);
    plain.resize(plain.len().next_multiple_of(64), 0);
    plain
}

/// Picks rows 0 and `pick` of a 4 by 4 matrix: inputs are the matrix alone or the picks alone.
fn gather() -> Program {
    let (data, picks, output) = (
        floats(64, &[4, 4]),
        dense(0, DType::I32, &[4]),
        floats(128, &[4, 4]),
    );
    let mut model = Program::new(192, vec![picks.clone()], vec![output.clone()]);
    model.push(crate::testing::fill(data.clone(), 2.5));
    model.push(Instruction::Gather(Gather {
        data,
        indices: picks,
        output,
        axis: 0,
    }));
    model
}

fn picks(values: [i32; 4]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Serves `input`; how it ended, and the frames that were answered.
fn served(identity: &Identity, model: &mut Model, input: &[u8]) -> (End, Vec<(u32, Vec<u8>)>) {
    let mut sink = vec![];
    let end = serve(identity, model, &mut &input[..], &mut sink);
    (end, frames(&sink))
}

fn kinds(frames: &[(u32, Vec<u8>)]) -> Vec<u32> {
    frames.iter().map(|(kind, _)| *kind).collect()
}

fn code(payload: &[u8]) -> String {
    let (code, _): (String, String) = minicbor::decode(payload).expect("is an error");
    code
}

#[test]
fn a_request_is_answered_under_seal() {
    let identity = identity();
    let mut model = gather().load(isas()[0], 1).expect("loads");
    let content = request(&model.format, &picks([0, 1, -1, 3]));
    let (sender, sealed) = seal(&identity, &content);
    let (end, frames) = served(&identity, &mut model, &frame(RUN, &sealed));
    assert!(matches!(end, End::Closed));
    assert_eq!(kinds(&frames), [READY, RESULT]);
    let plain = open(&sender, &frames[1].1);
    assert_eq!(plain[..8], [1, 1, 0, 0, 8, 0, 0, 0]);
    assert_eq!(plain[8..16], [0x81, 0x83, 0x61, b'x', 0, 0x82, 4, 4]);
    assert_eq!(from_bytes(&plain[64..]), [2.5; 16]);
}

#[test]
fn what_is_not_a_request_is_answered_and_the_next_one_served() {
    let identity = identity();
    let mut model = gather().load(isas()[0], 1).expect("loads");
    let content = request(&model.format, &picks([0; 4]));
    let (_, sealed) = seal(&identity, &content);
    let most = PUBLIC_SIZE + TAG_SIZE + model.format.max_request_size();
    let mut altered = sealed.clone();
    altered[40] ^= 1;
    let input = [
        frame(RUN, b"short"),
        frame(RUN, &vec![0; most + 1]),
        frame(RUN, &vec![0; most]),
        frame(RUN, &altered),
        frame(RUN, &sealed[..sealed.len() - 1]),
        frame(KEY, &[0; 80]),
        frame(99, b""),
        frame(EVIDENCE, &[0; 15]),
        frame(EVIDENCE, &[0; 65]),
        frame(EVIDENCE, &[0; 32]),
        frame(RUN, &sealed),
    ]
    .concat();
    let (end, frames) = served(&identity, &mut model, &input);
    assert!(matches!(end, End::Closed));
    let mut due = vec![READY];
    due.extend([ERROR; 9]);
    due.extend([CLAIMS, RESULT]);
    assert_eq!(kinds(&frames), due);
    for (_, payload) in &frames[1..10] {
        assert_eq!(code(payload), "request");
    }
}

/// The code and text of an answer that tells an error.
fn wrong(plain: &[u8]) -> (String, String) {
    assert_eq!(plain[..2], [1, 3]);
    let size = u32::from_le_bytes(plain[4..8].try_into().expect("has 4 bytes")) as usize;
    minicbor::decode(&plain[8..8 + size]).expect("is an error")
}

#[test]
fn what_is_wrong_inside_is_told_to_the_sender_alone() {
    let identity = identity();
    let mut model = gather().load(isas()[0], 1).expect("loads");
    let right = request(&model.format, &picks([0; 4]));
    let mut renamed = right.clone();
    renamed[11] = b'y';
    let mut padded = right.clone();
    *padded.last_mut().expect("is not empty") = 1;
    let cases = [
        (request(&model.format, &picks([0, 1, 2, 4])), "index"),
        (request(&model.format, &picks([i32::MIN, 1, 2, 3])), "index"),
        (renamed, "request"),
        (padded, "request"),
        (vec![], "request"),
    ];
    let mut input = vec![];
    let mut senders = vec![];
    for (plain, _) in &cases {
        let (sender, sealed) = seal(&identity, plain);
        input.extend(frame(RUN_TIMED, &sealed));
        senders.push(sender);
    }
    let (end, frames) = served(&identity, &mut model, &input);
    assert!(matches!(end, End::Closed));
    // A wrong index is known to nobody but the sender: the run is like any other.
    let due = [READY, TIMES, RESULT, TIMES, RESULT, RESULT, RESULT, RESULT];
    assert_eq!(kinds(&frames), due);
    let answers = frames.iter().filter(|(kind, _)| *kind == RESULT);
    for (((_, code), sender), (_, answer)) in cases.iter().zip(&senders).zip(answers) {
        assert_eq!(wrong(&open(sender, answer)).0, *code);
    }
}

#[test]
fn evidence_and_the_key_come_first() {
    let identity = identity();
    let file = gather().seal();
    let seal_key = |digest: &[u8]| {
        let sender = Sender::new(identity.keys.public(), KEY_INFO);
        frame(KEY, &sender.seal(digest, &MODEL_KEY))
    };
    let began = |input: &[u8]| {
        let mut sink = vec![];
        let load = |key: &[u8; 32]| crate::testing::load(&file, key, isas()[0], 1);
        let end = start(&identity, load, &mut &input[..], &mut sink).map(|_| ());
        (end, frames(&sink))
    };
    let good = seal_key(&[5; 32]);
    let input = [
        frame(EVIDENCE, &[1; 32]),
        frame(RUN, b"x"),
        frame(7, b"x"),
        good,
    ]
    .concat();
    let (end, frames) = began(&input);
    assert!(end.is_ok());
    assert_eq!(kinds(&frames), [CLAIMS, ERROR, ERROR]);
    let mut decoder = minicbor::Decoder::new(&frames[0].1);
    assert_eq!(decoder.array().expect("is an array"), Some(6));
    assert_eq!(decoder.str().expect("is text"), "simulation");
    assert_eq!(decoder.bytes().expect("is bytes"), crate::hpke::SUITE);
    assert_eq!(decoder.bytes().expect("is bytes"), identity.keys.public());
    assert_eq!(decoder.bytes().expect("is bytes"), [5; 32]);
    assert_eq!(decoder.bytes().expect("is bytes"), [1; 32]);

    for (input, refusal) in [
        (frame(KEY, &[7; 32]), Refusal::KeyFrame),
        (frame(KEY, &[7; 80]), Refusal::SealedKey),
        (seal_key(&[6; 32]), Refusal::SealedKey),
    ] {
        let (end, frames) = began(&input);
        assert!(matches!(end, Err(End::Refused(found)) if found == refusal));
        assert_eq!(code(&frames[0].1), "key");
    }
    assert!(matches!(began(&[]).0, Err(End::Closed)));
    assert!(matches!(
        began(&seal_key(&[5; 32])[..50]).0,
        Err(End::Closed)
    ));
}

/// In the arena, or beside the pool where the arena is too small: the pool is as planned.
#[test]
fn messages_need_no_room_in_the_plan() {
    let mut program = gather();
    for arena_size in [program.program.regions.arena_size, 1 << 16] {
        program.program.regions.arena_size = arena_size;
        let shape = Shape {
            threads: Some(1),
            ..Shape::default()
        };
        let layout = program.place(shape).expect("is valid").layout;
        let slot_size = layout.io_size + arena_size;
        for slots in [1, 3] {
            let mut model = program.load_slots(isas()[0], 1, slots).expect("loads");
            let pool_size = layout.size() + (slots as u64 - 1) * slot_size;
            assert_eq!(model.machine.pool_size(), pool_size);
            let room = Model::message_size(&model.format);
            assert_eq!(room <= arena_size, arena_size == 1 << 16);
            for slot in 0..slots {
                assert_eq!(model.machine.message(slot).len() as u64, room);
            }
            assert!(model.machine.message(slots).is_empty());
        }
        let output = program.run(&bytes(&[0.0; 4]), isas()[0], 1).expect("runs");
        assert_eq!(from_bytes(&output), [2.5; 16]);
    }
}

mod batches;
mod hostile;
