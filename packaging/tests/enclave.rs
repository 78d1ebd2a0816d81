//! The binary as the host sees it: frames, exit codes, and what it says.

use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};

/// Runs the binary with `arguments`, gives it `input`, and waits for its end.
fn enclave(arguments: &[&str], isa: Option<&str>, input: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vessels-enclave"));
    command.args(arguments).env_remove("VESSELS_ISA");
    if let Some(isa) = isa {
        command.env("VESSELS_ISA", isa);
    }
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

fn key_frame(size: u64) -> Vec<u8> {
    let mut frame = 1u32.to_le_bytes().to_vec();
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
        &["--what", "x"],
    ] {
        let output = enclave(arguments, None, &[]);
        assert_eq!(output.status.code(), Some(64));
        assert!(String::from_utf8_lossy(&output.stderr).contains("usage"));
    }
}

#[test]
fn a_closed_input_ends_it_well() {
    let output = enclave(&["--model", "/nonexistent"], None, &[]);
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("NOT protected"));
}

#[test]
fn refusals_have_codes() {
    let cases = [
        ("/nonexistent", None, key_frame(32), "system"),
        ("/dev/null", None, key_frame(32), "header"),
        (env!("CARGO_MANIFEST_PATH"), None, key_frame(32), "header"),
        ("/nonexistent", None, key_frame(31), "key"),
        ("/nonexistent", Some("sse9"), key_frame(32), "system"),
    ];
    for (model, isa, input, code) in cases {
        let output = enclave(&["--model", model], isa, &input);
        assert_eq!(output.status.code(), Some(2), "{model}");
        assert_eq!(error_code(&output), code);
    }
}
