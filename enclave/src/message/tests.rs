//! What requests may say, to the byte.

use super::*;

fn port(name: &str, dtype: DType, shape: &[u32]) -> Port {
    Port {
        name: name.to_owned(),
        dtype,
        shape: shape.to_vec(),
    }
}

fn header() -> Header {
    Header {
        build_id: [0; 32],
        key_check: [0; 16],
        slot_size: 0,
        rungs: vec![],
        rung: 0,
        thread_count: 1,
        inputs: vec![
            port("image", DType::F32, &[1, 3]),
            port("flag", DType::Bool, &[]),
        ],
        outputs: vec![port("scores", DType::I64, &[5])],
    }
}

fn format() -> Format {
    Format::new(&header()).expect("is small")
}

/// A request with this version, kind, reserved field and header, and tensors of 128 bytes.
fn message(start: [u8; 4], header: &[u8], size: usize) -> Vec<u8> {
    let mut bytes = start.to_vec();
    bytes.extend((header.len() as u32).to_le_bytes());
    bytes.extend(header);
    bytes.resize(bytes.len().next_multiple_of(64) + size, 0);
    bytes
}

fn encoded(ports: &[Port]) -> Vec<u8> {
    minicbor::to_vec(ports.to_vec()).expect("encodes")
}

#[test]
fn a_right_request_is_read() {
    let mut plain = message([1, 1, 0, 0], &encoded(&header().inputs), 128);
    assert_eq!(format().read(&plain), Ok(Request::Predict { tensors: 64 }));
    plain[64..76].fill(7);
    plain[128] = 1;
    assert_eq!(format().read(&plain), Ok(Request::Predict { tensors: 64 }));
    let describe = message([1, 2, 0, 0], &[0x80], 0);
    assert_eq!(format().read(&describe), Ok(Request::Describe));
}

#[test]
fn every_other_byte_before_the_tensors_and_between_them_is_refused() {
    let plain = message([1, 1, 0, 0], &encoded(&header().inputs), 128);
    for index in (0..64).chain(76..128).chain(129..192) {
        for bit in 0..8 {
            let mut altered = plain.clone();
            altered[index] ^= 1 << bit;
            assert!(format().read(&altered).is_err(), "byte {index}, bit {bit}");
        }
    }
    for size in 0..plain.len() {
        assert!(format().read(&plain[..size]).is_err(), "{size} bytes");
    }
    let describe = message([1, 2, 0, 0], &[0x80], 0);
    for index in 0..64 {
        let mut altered = describe.clone();
        altered[index] ^= 1;
        assert!(format().read(&altered).is_err(), "byte {index}");
    }
}

#[test]
fn the_reason_is_the_first_thing_wrong() {
    let inputs = header().inputs;
    let with = |index: usize, port: Port| {
        let mut ports = inputs.clone();
        ports[index] = port;
        message([1, 1, 0, 0], &encoded(&ports), 128)
    };
    let wrong_input = |index: usize| Wrong::Input {
        index,
        port: &inputs[index],
    };
    let right = encoded(&inputs);
    let long = [&[0x9f][..], &right[1..], &[0xff]].concat();
    let cases = [
        (vec![1; 7], Wrong::Size),
        (message([2, 1, 0, 0], &right, 128), Wrong::Version(2)),
        (message([1, 9, 0, 0], &right, 128), Wrong::Kind(9)),
        (message([1, 1, 0, 1], &right, 128), Wrong::Reserved),
        (message([1, 1, 0, 0], &right, 64), Wrong::Size),
        (message([1, 1, 0, 0], &long, 128), Wrong::Header),
        (message([1, 1, 0, 0], b"\xff", 128), Wrong::Header),
        (message([1, 2, 0, 0], &[0x81], 0), Wrong::Header),
        (message([1, 2, 0, 0], &[0x80], 64), Wrong::Size),
        (
            with(0, port("picture", DType::F32, &[1, 3])),
            wrong_input(0),
        ),
        (with(0, port("image", DType::I32, &[1, 3])), wrong_input(0)),
        (with(0, port("image", DType::F32, &[1, 4])), wrong_input(0)),
        (with(0, port("image", DType::F32, &[3])), wrong_input(0)),
        (with(1, port("flag", DType::Bool, &[1])), wrong_input(1)),
        (
            message([1, 1, 0, 0], &encoded(&inputs[..1]), 128),
            Wrong::InputCount { due: 2 },
        ),
        (
            message(
                [1, 1, 0, 0],
                &encoded(&[&inputs[..], &inputs[..]].concat()),
                128,
            ),
            Wrong::InputCount { due: 2 },
        ),
    ];
    for (plain, wrong) in cases {
        assert_eq!(format().read(&plain), Err(wrong));
    }
}

#[test]
fn texts_are_cut() {
    let mut place = vec![9; MAX_ERROR_SIZE];
    let port = port(&"ä".repeat(1000), DType::F32, &[1]);
    let wrong = Wrong::Input {
        index: 0,
        port: &port,
    };
    let size = write_wrong(&wrong, &mut place).expect("fits");
    let header = u32::from_le_bytes(place[4..8].try_into().expect("has 4 bytes")) as usize;
    assert_eq!(size, (8 + header).next_multiple_of(64));
    let (code, text): (&str, &str) = minicbor::decode(&place[8..8 + header]).expect("is an error");
    assert_eq!(code, "request");
    assert!(text.len() <= MAX_TEXT_SIZE && text.starts_with("M9 input 0 must be \"ää"));
    assert!(place[8 + header..size].iter().all(|&b| b == 0));
    assert!(write_wrong(&wrong, &mut place[1..]).is_none());
}

#[test]
fn responses_are_as_large_as_told() {
    let format = format();
    let mut place = vec![9; format.max_size()];
    assert_eq!(format.write_outputs(&mut place), Some((128, 64)));
    assert_eq!(
        place[..128],
        message([1, 1, 0, 0], &encoded(&header().outputs), 64)
    );
    let size = format.write_description(&mut place).expect("fits");
    let both = (header().inputs, header().outputs);
    let both = minicbor::to_vec(both).expect("encodes");
    assert_eq!(place[..size], message([1, 2, 0, 0], &both, 0));
    assert_eq!(format.max_request_size(), 192 + SLACK);
}

#[test]
fn absurd_sizes_are_refused() {
    let mut header = header();
    header.inputs[0].shape = vec![u32::MAX; 8];
    assert!(Format::new(&header).is_none());
}
