//! The binary as the host sees it: frames, exit codes, and what it says.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};

/// Runs the binary with `arguments`, gives it `input`, and waits for its end.
fn enclave(arguments: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vessels-enclave"));
    command.args(arguments).env_remove("VESSELS_ISA");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    // A process that has refused already may not read it all.
    let _ = child.stdin.take().expect("is piped").write_all(input);
    child.wait_with_output().expect("ends")
}

/// A sealed model.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/good.vessel");
const KEY: u32 = 1;
const EVIDENCE: u32 = 4;

fn frame(kind: u32, size: u64) -> Vec<u8> {
    let mut frame = kind.to_le_bytes().to_vec();
    frame.extend(size.to_le_bytes());
    frame.extend(vec![7; size as usize]);
    frame
}

/// The code in the only frame of the output, an ERROR.
fn error_code(output: &Output) -> String {
    let mut frame = &output.stdout[..];
    let mut head = [0; 12];
    frame.read_exact(&mut head).expect("has a head");
    assert_eq!(head[..4], 19u32.to_le_bytes());
    assert_eq!(head[4..], (frame.len() as u64).to_le_bytes());
    // An array of two texts, the first a short one.
    assert_eq!(frame[0], 0x82);
    let size = (frame[1] - 0x60) as usize;
    String::from_utf8(frame[2..2 + size].to_vec()).expect("is text")
}

#[test]
fn misuse_is_told_from_refusal() {
    for arguments in [
        &[][..],
        &["--model"],
        &["--model", "x", "--threads", "0"],
        &["--model", "x", "--slots", "0"],
        &["--model", "x", "--slots", "65"],
        &["--model", "x", "--slots", "2", "--slots", "2"],
        &["--model", "x", "--rung", "-1"],
        &["--what", "x"],
        &["--model", "x", "--backend", "sgx"],
    ] {
        let output = enclave(arguments, &[]);
        assert_eq!(output.status.code(), Some(64));
        assert!(String::from_utf8_lossy(&output.stderr).contains("usage"));
    }
}

#[test]
fn a_closed_input_ends_it_well() {
    let output = enclave(&["--model", MODEL], &[]);
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("NOT protected"));
}

/// A log that is full, or that nobody reads any more, ends nothing.
#[test]
fn what_people_are_told_may_be_lost() {
    for (model, code) in [(MODEL, 0), ("/nonexistent", 2)] {
        let full = File::options().write(true).open("/dev/full");
        let status = Command::new(env!("CARGO_BIN_EXE_vessels-enclave"))
            .args(["--model", model])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(full.expect("is writable"))
            .status()
            .expect("starts");
        assert_eq!(status.code(), Some(code), "{model}");
    }
}

#[test]
fn refusals_have_codes() {
    let cases = [
        ("/nonexistent", vec![], "system"),
        ("/dev/null", vec![], "header"),
        (env!("CARGO_MANIFEST_PATH"), vec![], "header"),
        (MODEL, frame(KEY, 32), "key"),
        (MODEL, frame(KEY, 80), "key"),
    ];
    for (model, input, code) in cases {
        let output = enclave(&["--model", model], &input);
        assert_eq!(output.status.code(), Some(2), "{model}");
        assert_eq!(error_code(&output), code);
    }
}

#[test]
fn evidence_needs_no_key_but_a_platform() {
    let arguments = ["--model", MODEL, "--backend", "simulation"];
    let output = enclave(&arguments, &frame(EVIDENCE, 32));
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout[..4], 20u32.to_le_bytes());
    // Any machine that runs tests lacks one of these two.
    let refused = ["gramine", "native"].map(|backend| {
        let arguments = ["--model", MODEL, "--backend", backend];
        let output = enclave(&arguments, &frame(EVIDENCE, 32));
        assert_eq!(output.status.code(), Some(0), "{backend}");
        assert!(!String::from_utf8_lossy(&output.stderr).contains("NOT protected"));
        output.stdout[..4] == 19u32.to_le_bytes() && error_code(&output) == "quote"
    });
    assert!(refused.contains(&true));
}
