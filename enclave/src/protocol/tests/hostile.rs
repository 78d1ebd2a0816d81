//! Whatever a host sends, in whatever pieces: it is answered in frames, and nobody's answer changes.

use super::*;
use crate::machine;
use crate::testing::{noise, random};
use std::collections::HashSet;
use std::io::ErrorKind;

const SLOTS: usize = 5;
const DESCRIBE: [u8; 9] = [1, 2, 0, 0, 1, 0, 0, 0, 0x80];

/// What comes in pieces of any size, between interruptions.
struct Trickle<'a, R>(&'a [u8], R);

impl<R: FnMut(usize) -> usize> Read for Trickle<'_, R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if (self.1)(4) == 0 {
            return Err(ErrorKind::Interrupted.into());
        }
        let most = 1 + (self.1)(200);
        let size = to.len().min(most);
        self.0.read(to.get_mut(..size).expect("is shorter"))
    }
}

/// Takes so many bytes, in pieces, and then no more.
struct Stopping<R>(Vec<u8>, usize, R);

impl<R: FnMut(usize) -> usize> Write for Stopping<R> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.2)(4) == 0 {
            return Err(ErrorKind::Interrupted.into());
        }
        let left = self.1 - self.0.len();
        let size = bytes.len().min(left).min(1 + (self.2)(500));
        if size == 0 && !bytes.is_empty() {
            return Err(ErrorKind::BrokenPipe.into());
        }
        self.0.extend_from_slice(&bytes[..size]);
        Ok(size)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is due to one frame of a batch.
enum Due {
    /// These outputs.
    Outputs(Sender, usize),
    /// A response of this kind, which is no prediction.
    Sealed(Sender, u8),
    Refused,
}

#[test]
fn garbage_in_a_batch_changes_no_answer_and_nothing_stays() {
    let identity = identity();
    let program = machine::tests::every_kind();
    let mut model = program.load_slots(isas()[0], 2, SLOTS).expect("loads");
    let inputs: Vec<Vec<u8>> = (0..7).map(|seed| bytes(&noise(1024, seed))).collect();
    let alone: Vec<Vec<u8>> = inputs
        .iter()
        .map(|input| program.run(input, isas()[0], 2).expect("runs"))
        .collect();
    // Tensors begin at multiples of 64, in slots and in messages.
    let plain: HashSet<&[u8]> = inputs
        .iter()
        .chain(&alone)
        .flat_map(|tensor| tensor.chunks_exact(16))
        .collect();
    let mut random = random(5);
    for _ in 0..60 {
        let count = 2 + random(SLOTS - 1);
        let mut stream = frame(BATCH, &(count as u32).to_le_bytes());
        let mut due = vec![];
        for _ in 0..count {
            let index = random(inputs.len());
            let right = request(&model.format, &inputs[index]);
            let (sender, mut sealed) = seal(&identity, &right);
            match random(9) {
                0..=3 => due.push(Due::Outputs(sender, index)),
                4 => {
                    let at = random(sealed.len());
                    sealed[at] ^= 1 << random(8);
                    due.push(Due::Refused);
                }
                5 => {
                    sealed.truncate(random(sealed.len()));
                    due.push(Due::Refused);
                }
                6 => {
                    // Of another enclave.
                    sealed = seal(&super::identity(), &right).1;
                    due.push(Due::Refused);
                }
                7 => {
                    let (sender, wrong) = seal(&identity, &right[..random(right.len())]);
                    sealed = wrong;
                    due.push(Due::Sealed(sender, 3));
                }
                _ => {
                    let mut describe = DESCRIBE.to_vec();
                    describe.resize(64, 0);
                    let (sender, asked) = seal(&identity, &describe);
                    sealed = asked;
                    due.push(Due::Sealed(sender, 2));
                }
            }
            stream.extend(frame(RUN, &sealed));
        }
        let (end, frames) = served(&identity, &mut model, &stream);
        assert!(matches!(end, End::Closed));
        assert_eq!(frames.len(), 1 + count);
        for (slot, (due, (kind, payload))) in due.iter().zip(&frames[1..]).enumerate() {
            match due {
                Due::Outputs(sender, index) => {
                    assert!(
                        open(sender, payload).ends_with(&alone[*index]),
                        "slot {slot}"
                    );
                }
                Due::Sealed(sender, kind) => assert_eq!(open(sender, payload)[1], *kind),
                Due::Refused => assert_eq!((*kind, &*code(payload)), (ERROR, "request")),
            }
        }
        for slot in 0..count {
            let kept = machine::tests::kept(&mut model.machine, slot);
            assert!(!kept.chunks_exact(16).any(|bytes| plain.contains(bytes)));
        }
    }
}

/// Right frames of every kind, some of them altered, cut, doubled or left out.
fn any_stream(frames: &[Vec<u8>], random: &mut impl FnMut(usize) -> usize) -> Vec<u8> {
    let mut stream = vec![];
    for _ in 0..1 + random(8) {
        let mut frame = frames[random(frames.len())].clone();
        for _ in 0..random(3) {
            // The head more often than the rest.
            let size = [frame.len(), frame.len().min(16)][random(2)];
            match (random(4), size) {
                (_, 0) => {}
                (0, _) => frame.truncate(random(frame.len())),
                (1, _) => frame.insert(random(size), random(256) as u8),
                _ => frame[random(size)] = random(256) as u8,
            }
        }
        stream.extend(frame);
    }
    stream
}

#[test]
fn any_bytes_are_answered_by_frames_or_end_it() {
    let identity = identity();
    let mut model = gather().load_slots(isas()[0], 2, 3).expect("loads");
    let (_, sealed) = seal(&identity, &request(&model.format, &picks([0, 1, 2, 3])));
    let right = [
        frame(RUN, &sealed),
        frame(RUN, &sealed),
        frame(RUN_TIMED, &sealed),
        frame(BATCH, &2u32.to_le_bytes()),
        frame(BATCH, &3u32.to_le_bytes()),
        frame(EVIDENCE, &[7; 32]),
        frame(KEY, &[7; 80]),
    ];
    let mut random = random(3);
    let mut answered = [0; 32];
    for seed in 0..2000 {
        let stream = any_stream(&right, &mut random);
        let most = if random(3) == 0 {
            random(2000)
        } else {
            1 << 20
        };
        let mut source = Trickle(&stream, crate::testing::random(seed));
        let mut sink = Stopping(vec![], most, crate::testing::random(seed));
        let end = serve(&identity, &mut model, &mut source, &mut sink);
        assert!(matches!(end, End::Closed));
        if sink.0.len() == most {
            continue;
        }
        let frames = frames(&sink.0);
        assert_eq!(frames[0].0, READY);
        for (kind, payload) in &frames[1..] {
            answered[*kind as usize] += 1;
            match *kind {
                ERROR => assert_eq!(code(payload), "request"),
                RESULT | TIMES | CLAIMS => {}
                kind => panic!("a frame of kind {kind}"),
            }
        }
    }
    for kind in [RESULT, TIMES, ERROR, CLAIMS] {
        assert!(answered[kind as usize] > 100, "{answered:?}");
    }
}

#[test]
fn any_bytes_before_the_key_give_nothing_but_evidence() {
    let identity = identity();
    let sender = Sender::new(identity.keys.public(), KEY_INFO);
    let right = [
        frame(EVIDENCE, &[7; 32]),
        frame(EVIDENCE, &[7; 64]),
        frame(RUN, &[7; 100]),
        frame(BATCH, &2u32.to_le_bytes()),
        frame(KEY, &sender.seal(&[5; 32], &MODEL_KEY)),
    ];
    let mut random = random(4);
    let (mut opened, mut refused) = (0, 0);
    for seed in 0..2000 {
        let stream = any_stream(&right, &mut random);
        let mut source = Trickle(&stream, crate::testing::random(seed));
        let mut sink = vec![];
        // What opens is the key that was sealed.
        let load = |key: &[u8; KEY_SIZE]| {
            assert_eq!(*key, MODEL_KEY);
            opened += 1;
            Err(Refusal::WrongKey)
        };
        match start(&identity, load, &mut source, &mut sink).map(|_| ()) {
            Err(End::Closed) => {}
            Err(End::Refused(why)) => {
                assert_eq!(why.code(), "key");
                refused += 1;
            }
            Ok(()) => panic!("there is no model"),
        }
        for (kind, payload) in frames(&sink) {
            assert!(kind == CLAIMS || ["request", "key"].contains(&&*code(&payload)));
        }
    }
    assert!(opened > 100 && refused > opened, "{opened} {refused}");
}
