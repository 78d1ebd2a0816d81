//! Evidence from folders that look like a platform's.

use super::*;
use crate::testing::hex_field;
use core::sync::atomic::{AtomicUsize, Ordering};

/// A folder that is gone with the value.
struct Folder(PathBuf);

impl Folder {
    fn new(files: &[(&str, &[u8])]) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::SeqCst);
        let path =
            std::env::temp_dir().join(format!("vessels-tee-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("makes a folder");
        for (name, content) in files {
            fs::write(path.join(name), content).expect("writes");
        }
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn what(refusal: Refusal) -> (&'static str, i32) {
    match refusal {
        Refusal::Quote { what, errno } => (what, errno),
        other => panic!("{other:?}"),
    }
}

const DATA: ReportData = [3; REPORT_DATA_SIZE];
const GRAMINE: [(&str, &[u8]); 3] = [
    ("attestation_type", b"dcap"),
    ("user_report_data", &[0; 64]),
    ("quote", b"a quote"),
];
const GUEST: [(&str, &[u8]); 4] = [
    ("provider", b"tdx_guest\n"),
    ("generation", b"1\n"),
    ("inblob", b""),
    ("outblob", b"a quote"),
];

/// Of `tests/vectors/evidence.json`, which the Python side has, too.
#[test]
fn report_data_are_those_of_the_vector() {
    let all = include_str!("../../../tests/vectors/evidence.json");
    let vector = &all[all.find("\"x25519\"").expect("is there")..];
    assert_eq!(hex_field(vector, "suite"), SUITE);
    let data = report_data(
        &hex_field(vector, "public_key"),
        &hex_field(vector, "model_digest"),
        &hex_field(vector, "nonce"),
    );
    assert_eq!(data[..], hex_field(vector, "report_data"));
}

#[test]
fn gramine_quotes_what_is_written_to_it() {
    let folder = Folder::new(&GRAMINE);
    let platform = Platform::Gramine(folder.0.clone());
    let quote = platform.quote(&DATA).expect("is there");
    assert_eq!(quote, ("sgx", Some(b"a quote".to_vec())));
    let written = fs::read(folder.0.join("user_report_data")).expect("reads");
    assert_eq!(written, DATA);
}

#[test]
fn a_gramine_that_attests_otherwise_is_refused() {
    for name in ["attestation_type", "user_report_data", "quote"] {
        let folder = Folder::new(&GRAMINE);
        fs::remove_file(folder.0.join(name)).expect("removes");
        let found = gramine_quote(&folder.0, &DATA).expect_err("is refused");
        assert_eq!(what(found).1, libc::ENOENT, "{name}");
    }
    let large = vec![0; MAX_QUOTE_SIZE as usize + 1];
    for (name, content, said) in [
        ("attestation_type", &b"none"[..], "manifest"),
        ("quote", b"", "empty"),
        ("quote", &large, "absurdly large"),
    ] {
        let folder = Folder::new(&GRAMINE);
        fs::write(folder.0.join(name), content).expect("writes");
        let found = gramine_quote(&folder.0, &DATA).expect_err("is refused");
        assert!(what(found).0.contains(said), "{name}");
    }
}

#[test]
fn a_guest_quotes_what_is_written_to_its_report() {
    for (provider, name) in [("tdx_guest\n", "tdx"), ("sev_guest\n", "snp")] {
        let folder = Folder::new(&GUEST);
        fs::write(folder.0.join("provider"), provider).expect("writes");
        let quote = guest_quote(&folder.0, &DATA).expect("is there");
        assert_eq!(quote, (name, b"a quote".to_vec()));
        assert_eq!(fs::read(folder.0.join("inblob")).expect("reads"), DATA);
    }
}

#[test]
fn a_report_that_is_not_whole_is_refused() {
    for missing in ["provider", "inblob", "generation", "outblob"] {
        let folder = Folder::new(&GUEST);
        fs::remove_file(folder.0.join(missing)).expect("removes");
        let found = guest_quote(&folder.0, &DATA).expect_err("is refused");
        assert_eq!(what(found).1, libc::ENOENT, "{missing}");
    }
    for (name, content) in [("provider", &b"arm_cca_guest"[..]), ("outblob", b"")] {
        let folder = Folder::new(&GUEST);
        fs::write(folder.0.join(name), content).expect("writes");
        let found = guest_quote(&folder.0, &DATA).expect_err("is refused");
        assert_eq!(what(found).1, 0, "{name}");
    }
}

/// A pipe in place of the quote: as it is read, another process writes to the report.
#[test]
fn a_report_that_another_changes_is_refused() {
    let folder = Folder::new(&GUEST);
    let outblob = folder.0.join("outblob");
    fs::remove_file(&outblob).expect("removes");
    let made = std::process::Command::new("mkfifo").arg(&outblob).status();
    assert!(made.expect("starts").success());
    let path = folder.0.clone();
    let other = std::thread::spawn(move || {
        let mut pipe = OpenOptions::new().write(true).open(outblob).expect("opens");
        fs::write(path.join("generation"), "2\n").expect("writes");
        pipe.write_all(b"a quote").expect("writes");
    });
    let found = guest_quote(&folder.0, &DATA).expect_err("is refused");
    other.join().expect("ends");
    assert_eq!(
        what(found),
        ("another process wrote to this report of configfs-tsm", 0)
    );
}

#[test]
fn a_report_is_made_and_removed() {
    let parent = Folder::new(&[]);
    let seen = in_new_folder(&parent.0, |folder| {
        assert!(folder.is_dir() && folder.starts_with(&parent.0));
        Ok(folder.to_owned())
    });
    assert!(!seen.expect("is made").exists());
    let failed: Result<(), Refusal> = in_new_folder(&parent.0, |_| Err(Refusal::Abandoned));
    assert_eq!(failed, Err(Refusal::Abandoned));
    assert_eq!(fs::read_dir(&parent.0).expect("lists").count(), 0);
    let nowhere = parent.0.join("nowhere");
    let refusal = in_new_folder(&nowhere, |_| Ok(())).expect_err("is refused");
    assert_eq!(what(refusal).1, libc::ENOENT);
}

#[test]
fn platforms_have_names() {
    assert_eq!(Platform::of(Some("simulation")), Some(Platform::Simulation));
    assert!(matches!(
        Platform::of(Some("native")),
        Some(Platform::Native(_))
    ));
    assert!(matches!(
        Platform::of(Some("gramine")),
        Some(Platform::Gramine(_))
    ));
    assert_eq!(Platform::of(Some("sgx")), None);
}
