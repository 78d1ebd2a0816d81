//! A confined process may work, and nothing else. Each case is a process of its own: this test
//! program, started anew.

use super::*;
use crate::hpke::KeyPair;
use aws_lc_rs::rand;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

const CASE: &str = "VESSELS_TEST_CASE";

/// What a case does once it is confined; whether it got what it wanted.
fn attempt(case: &str) -> bool {
    match case {
        "work" => {
            let large = vec![1u8; 1 << 24];
            rand::fill(&mut [0; 64]).expect("fills");
            large.iter().all(|&b| b == 1)
        }
        "report" => {
            // All that a report takes, up to what is missing from a folder that no kernel fills.
            let folder = std::env::temp_dir().join(format!("vessels-{}", std::process::id()));
            let made = std::fs::create_dir(&folder);
            let quote = Platform::Native(folder.clone()).quote(&[0; 64]);
            let missing =
                matches!(quote, Err(Refusal::Quote { errno, .. }) if errno == libc::ENOENT);
            let read = std::fs::read("/proc/self/status");
            made.is_ok() && missing && read.is_ok() && std::fs::remove_dir(&folder).is_ok()
        }
        "open" => std::fs::File::open("/dev/null").is_ok(),
        "connect" => std::net::TcpListener::bind("127.0.0.1:0").is_ok(),
        "start" => Command::new("/bin/true").status().is_ok(),
        "thread" => std::thread::spawn(|| true).join().is_ok(),
        "execute" => {
            let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: a fresh anonymous mapping touches no memory in use.
            let mapped =
                unsafe { libc::mmap(core::ptr::null_mut(), 4096, protection, flags, -1, 0) };
            mapped != libc::MAP_FAILED
        }
        "dump" => {
            // SAFETY: takes its arguments by value.
            unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) == 0 }
        }
        _ => panic!("{case}"),
    }
}

/// How a process ends that does `case` once it is confined on this platform.
fn end_of(case: &str, platform: &str) -> ExitStatus {
    Command::new(std::env::current_exe().expect("is known"))
        .args(["--exact", "confine::tests::confined", "--nocapture"])
        .args(["--ignored", "--test-threads=1"])
        .env(CASE, format!("{case} {platform}"))
        .output()
        .expect("starts")
        .status
}

#[test]
#[ignore = "one process's part of the tests below, which start it"]
fn confined() {
    let Ok(case) = std::env::var(CASE) else {
        return;
    };
    let (case, platform) = case.split_once(' ').expect("has two words");
    let platform = Platform::of(Some(platform)).expect("is known");
    close_to_others(&platform).expect("closes");
    // As in an enclave: then the random numbers have all they need of the system.
    KeyPair::generate().expect("generates");
    drop_system_calls(&platform).expect("drops");
    std::process::exit(if attempt(case) { 7 } else { 8 });
}

#[test]
fn work_goes_on() {
    for platform in ["simulation", "native", "gramine"] {
        assert_eq!(end_of("work", platform).code(), Some(7), "{platform}");
    }
}

#[test]
fn anything_else_ends_it() {
    for case in ["open", "connect", "start", "thread", "execute", "dump"] {
        let end = end_of(case, "simulation");
        assert_eq!(end.signal(), Some(libc::SIGSYS), "{case}");
        // Gramine's process keeps everything; so the cases can work.
        assert_eq!(end_of(case, "gramine").code(), Some(7), "{case}");
    }
    assert_eq!(end_of("report", "native").code(), Some(7));
    assert_eq!(end_of("report", "simulation").signal(), Some(libc::SIGSYS));
    assert_eq!(end_of("connect", "native").signal(), Some(libc::SIGSYS));
}
