//! The emulator as its owner and its tenants see it. Where the kernel gives no userfaultfd these
//! tests say so and pass.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use vessels_epc::EpcMemory;
use vessels_epc::pager::{Page, Pager};

const BINARY: &str = env!("CARGO_BIN_EXE_vessels-epc");
/// SIGKILL.
const KILL: i32 = 9;
/// SIGIO.
const CONNECTION_ENDED: i32 = 29;
const PATIENCE: Duration = Duration::from_secs(20);

/// A running emulator.
struct Emulator {
    process: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    socket: PathBuf,
}

impl Emulator {
    /// `None`, with a message, where the kernel refuses.
    fn start(capacity: usize) -> Option<Self> {
        Self::start_padded(capacity, 0)
    }

    fn start_padded(capacity: usize, padding_ns: u64) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vessels-epc-test-{}-{count}", std::process::id());
        let socket = std::env::temp_dir().join(name);
        let mut process = Command::new(BINARY)
            .args(["serve", "--epc-pages", &capacity.to_string()])
            .args(["--padding-ns", &padding_ns.to_string(), "--socket"])
            .arg(&socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut answers = BufReader::new(process.stdout.take().expect("is piped"));
        let mut line = String::new();
        answers.read_line(&mut line).expect("is text");
        if line.is_empty() {
            let output = process.wait_with_output().expect("ends");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(said.contains("userfaultfd"), "{said}");
            eprintln!("skipped: {said}");
            return None;
        }
        let ready: Value = serde_json::from_str(&line).expect("is JSON");
        assert_eq!(ready["ready"], true);
        Some(Emulator {
            commands: process.stdin.take(),
            process,
            answers,
            socket,
        })
    }

    fn ask(&mut self, command: Value) -> Value {
        let commands = self.commands.as_mut().expect("runs");
        writeln!(commands, "{command}").expect("listens");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("answers");
        serde_json::from_str(&line).expect("is JSON")
    }

    fn counters(&mut self) -> Value {
        self.ask(json!({"do": "counters"}))
    }

    /// Waits until a tenant's count is what it should become.
    fn wait_for(&mut self, tenant: usize, what: &str, expected: impl Into<Value>) -> Value {
        let expected = expected.into();
        let start = Instant::now();
        loop {
            let counters = self.counters();
            if counters["tenants"][tenant][what] == expected {
                return counters;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "{what} of {tenant} is not {expected}: {counters}"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn tenant(&mut self, page_count: usize) -> Tenant {
        let known = self.counters()["tenants"].as_array().map_or(0, Vec::len);
        let mut process = Command::new(BINARY)
            .args(["replay", "--pages", &page_count.to_string(), "--socket"])
            .arg(&self.socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        self.wait_for(known, "pages", page_count);
        Tenant {
            orders: process.stdin.take(),
            process: Some(process),
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.commands = None;
        let _ = self.process.wait();
    }
}

/// A process that touches pages as it is told and checks what they hold.
struct Tenant {
    orders: Option<ChildStdin>,
    process: Option<Child>,
}

impl Tenant {
    fn order(&mut self, orders: &str) {
        // One that has been killed does not listen.
        let _ = self
            .orders
            .as_mut()
            .expect("runs")
            .write_all(orders.as_bytes());
    }

    fn end(&mut self) -> Output {
        self.orders = None;
        let process = self.process.take().expect("runs");
        process.wait_with_output().expect("ends")
    }

    /// Ends it; every touch must have found what was written last.
    fn end_well(&mut self, touch_count: usize) {
        let output = self.end();
        assert!(output.status.success(), "{output:?}");
        let found: Value = serde_json::from_slice(&output.stdout).expect("is JSON");
        assert_eq!(found, json!({"touches": touch_count, "wrong": 0}));
    }

    /// Pages of its memory that the kernel holds.
    fn resident_count(&self) -> u64 {
        let pid = self.process.as_ref().expect("runs").id();
        std::fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("is alive")
            .flatten()
            .filter(|entry| {
                std::fs::read_link(entry.path())
                    .is_ok_and(|target| target.to_string_lossy().contains("memfd:vessels-epc"))
            })
            .map(|entry| std::fs::metadata(entry.path()).expect("is a file").blocks() * 512 / 4096)
            .sum()
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn sweep(how: &str, page_count: usize) -> String {
    (0..page_count).map(|n| format!("{how} {n}\n")).collect()
}

/// Touches that look random, the same in each run: sweeps, and jumps about.
fn touches(seed: u64, page_count: usize, count: usize) -> Vec<(bool, usize)> {
    let mut state = seed;
    let mut below = |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % bound
    };
    let mut at = 0;
    (0..count)
        .map(|_| {
            at = match below(8) {
                0 => below(page_count),
                1 => at.saturating_sub(below(40)),
                _ => (at + 1) % page_count,
            };
            (below(2) == 0, at)
        })
        .collect()
}

fn orders(touches: &[(bool, usize)]) -> String {
    touches
        .iter()
        .map(|&(write, page)| format!("{} {page}\n", if write { "w" } else { "r" }))
        .collect()
}

#[test]
fn tenants_that_page_heavily_keep_their_content_and_give_their_pages_back() {
    let Some(mut emulator) = Emulator::start(128) else {
        return;
    };
    let sizes = [300, 150, 200];
    let mut tenants = sizes.map(|size| emulator.tenant(size));
    std::thread::scope(|scope| {
        for ((tenant, size), seed) in tenants.iter_mut().zip(sizes).zip(1..) {
            scope.spawn(move || {
                tenant.order(&orders(&touches(seed, size, 4000)));
                tenant.end_well(4000);
            });
        }
        for _ in 0..200 {
            let used = emulator.counters()["used"].as_u64();
            assert!(used.is_some_and(|used| used <= 128), "{used:?}");
        }
    });
    for (tenant, size) in sizes.iter().enumerate() {
        let counters = emulator.wait_for(tenant, "alive", false);
        let counts = &counters["tenants"][tenant];
        assert!(counts["first"].as_u64() <= Some(*size as u64));
        assert!(counts["fetched"].as_u64() > Some(500), "{counts}");
        assert!(counts["soft"].as_u64() > Some(0), "{counts}");
    }
    let counters = emulator.counters();
    assert_eq!(counters["used"], 0);
    assert!(counters["peak_used"].as_u64() <= Some(128));
}

#[test]
fn one_tenants_counts_are_the_policys() {
    let Some(mut emulator) = Emulator::start(96) else {
        return;
    };
    let mut tenant = emulator.tenant(250);
    let touches = touches(7, 250, 6000);
    tenant.order(&orders(&touches));
    tenant.end_well(touches.len());
    let counters = emulator.wait_for(0, "alive", false);

    let mut pager = Pager::new(96);
    let number = pager.admit(250);
    for (_, page) in touches {
        let page = Page {
            tenant: number,
            number: page as u32,
        };
        pager.touch(page, &mut Vec::new());
    }
    let expected = pager.counts(number);
    let counts = &counters["tenants"][0];
    assert_eq!(counts["first"], expected.first);
    assert_eq!(counts["fetched"], expected.fetched);
    assert_eq!(counts["soft"], expected.soft);
    assert_eq!(counts["evicted"], expected.evicted);
    assert_eq!(counters["peak_used"], pager.peak_used());
}

#[test]
fn padding_is_waited_in_each_hard_fault() {
    let Some(mut emulator) = Emulator::start_padded(64, 300_000) else {
        return;
    };
    let mut tenant = emulator.tenant(150);
    tenant.order(&sweep("w", 150).repeat(2));
    let counters = emulator.wait_for(0, "fetched", 150);
    let least = 2 * 150 * 300_000;
    assert!(counters["handler_ns"].as_u64() >= Some(least), "{counters}");
    tenant.end_well(300);
}

#[test]
fn never_more_pages_are_resident_than_mapped() {
    let Some(mut emulator) = Emulator::start(100) else {
        return;
    };
    let mut tenant = emulator.tenant(400);
    for round in 1..=20 {
        tenant.order(&sweep("w", 400));
        while emulator.counters()["tenants"][0]["fetched"].as_u64() < Some(400 * (round - 1)) {
            assert!(tenant.resident_count() <= 100);
        }
    }
    let counters = emulator.wait_for(0, "fetched", 400 * 19);
    assert_eq!(counters["tenants"][0]["mapped"], tenant.resident_count());
    tenant.end_well(400 * 20);
}

#[test]
fn the_capacity_changes_while_tenants_are_at_work() {
    let Some(mut emulator) = Emulator::start(512) else {
        return;
    };
    let mut tenant = emulator.tenant(400);
    tenant.order(&sweep("w", 400));
    emulator.wait_for(0, "first", 400);
    assert_eq!(emulator.counters()["used"], 400);

    let answer = emulator.ask(json!({"do": "capacity", "pages": 100}));
    assert_eq!(answer, json!({"capacity": 100}));
    let counters = emulator.counters();
    assert_eq!(counters["used"], 100);
    assert_eq!(counters["tenants"][0]["evicted"], 300);
    assert_eq!(counters["tenants"][0]["mapped"], tenant.resident_count());
    tenant.order(&sweep("w", 400));
    emulator.wait_for(0, "fetched", 400);

    emulator.ask(json!({"do": "capacity", "pages": 500}));
    tenant.order(&sweep("w", 400).repeat(3));
    tenant.end_well(5 * 400);
    let counters = emulator.wait_for(0, "alive", false);
    let fetched = counters["tenants"][0]["fetched"].as_u64();
    assert!(fetched > Some(400) && fetched <= Some(800), "{fetched:?}");
    assert!(emulator.ask(json!({"do": "capacity", "pages": 5}))["error"].is_string());
}

#[test]
fn a_tampered_page_ends_its_tenant_and_no_other() {
    for how in ["flip", "replay"] {
        let Some(mut emulator) = Emulator::start(64) else {
            return;
        };
        let (mut victim, mut other) = (emulator.tenant(200), emulator.tenant(200));
        // Three sweeps: the first pages have been sealed more than once.
        victim.order(&sweep("w", 200).repeat(3));
        emulator.wait_for(0, "fetched", 400);
        other.order(&sweep("w", 200));
        emulator.wait_for(1, "first", 200);

        let tampered = emulator.ask(json!({"do": "tamper", "tenant": 0, "how": how}));
        let page = tampered["page"].as_u64().expect("has pages outside");
        victim.order(&sweep("r", 200));
        assert_eq!(victim.end().status.signal(), Some(KILL), "{how}");
        let counters = emulator.wait_for(0, "alive", false);
        let refused = counters["tenants"][0]["refused"].as_str();
        assert!(
            refused.is_some_and(|r| r.starts_with(&format!("page {page}: "))),
            "{refused:?}"
        );

        other.order(&sweep("r", 200).repeat(2));
        other.end_well(600);
        let counters = emulator.wait_for(1, "alive", false);
        assert!(counters["tenants"][1].get("refused").is_none());
    }
}

#[test]
fn there_must_be_a_page_to_tamper_with() {
    let Some(mut emulator) = Emulator::start(64) else {
        return;
    };
    let mut tenant = emulator.tenant(100);
    let tamper = |how: &str| json!({"do": "tamper", "tenant": 0, "how": how});
    assert!(emulator.ask(tamper("flip"))["error"].is_string());
    tenant.order(&sweep("r", 100));
    emulator.wait_for(0, "first", 100);
    let error = emulator.ask(tamper("replay"));
    assert!(error["error"].is_string(), "nothing was sealed twice");
    assert!(emulator.ask(json!({"do": "tamper", "tenant": 7, "how": "flip"}))["error"].is_string());
    assert!(emulator.ask(json!({"do": "what"}))["error"].is_string());
    tenant.end_well(100);
}

#[test]
fn threads_that_meet_at_a_page_fault_once() {
    let Some(mut emulator) = Emulator::start(256) else {
        return;
    };
    let mut memory = EpcMemory::map(&emulator.socket, 200 * 4096).expect("maps");
    let bytes: &[u8] = memory.bytes_mut();
    let barrier = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for page in bytes.chunks_exact(4096) {
                    barrier.wait();
                    assert!(page.iter().all(|&b| b == 0));
                }
            });
        }
    });
    let counters = emulator.wait_for(0, "first", 200);
    assert_eq!(counters["tenants"][0]["soft"], 0);
    assert_eq!(counters["tenants"][0]["fetched"], 0);
    assert_eq!(counters["used"], 200);
    drop(memory);
    emulator.wait_for(0, "alive", false);
    assert_eq!(emulator.counters()["used"], 0);
}

#[test]
fn a_tenant_does_not_outlive_the_emulator() {
    let Some(mut emulator) = Emulator::start(64) else {
        return;
    };
    let mut tenant = emulator.tenant(100);
    tenant.order(&sweep("w", 100));
    emulator.wait_for(0, "first", 100);
    drop(emulator);
    // Its orders are not at their end.
    let process = tenant.process.as_mut().expect("runs");
    let status = process.wait().expect("ends");
    assert_eq!(status.signal(), Some(CONNECTION_ENDED));
}

#[test]
fn the_cost_of_a_fault_is_measured_or_refused_with_a_reason() {
    let output = Command::new(BINARY)
        .args(["cost", "--epc-pages", "256"])
        .output()
        .expect("runs");
    assert!(output.status.success(), "{output:?}");
    let cost: Value = serde_json::from_slice(&output.stdout).expect("is JSON");
    if cost["available"] == true {
        for name in ["fault_ns", "soft_fault_ns", "handler_ns"] {
            assert!(cost[name].as_f64() > Some(500.0), "{cost}");
        }
    } else {
        assert!(cost["why"].is_string(), "{cost}");
    }
}

#[test]
fn misuse_and_failure_have_their_codes() {
    for arguments in [
        &[][..],
        &["what"],
        &["serve"],
        &["serve", "--socket", "x"],
        &["serve", "--socket", "x", "--epc-pages", "63"],
        &["serve", "--socket", "x", "--epc-pages", "many"],
        &["replay", "--pages", "5"],
        &["cost"],
        &["cost", "--epc-pages", "64", "--pages", "3"],
        &["enclave", "--", "--model", "x"],
    ] {
        let output = Command::new(BINARY)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("runs");
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("usage"));
    }
    let output = Command::new(BINARY)
        .args(["replay", "--pages", "5", "--socket", "/nonexistent/socket"])
        .stdin(Stdio::null())
        .output()
        .expect("runs");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr).lines().count(),
        1,
        "{output:?}"
    );
}
