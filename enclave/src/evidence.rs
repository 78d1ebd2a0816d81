//! The evidence an enclave can give of itself: its claims, and the quote that binds them
//! (`docs/attestation.md`).
//!
//! Hardware signs 64 bytes of report data. Under Gramine they are written to a file of its own,
//! and the quote is read from another; in a guest the kernel's configfs-tsm does the same for
//! whatever hardware there is. Who stands between (a hypervisor, Gramine's host) can only spoil
//! the quote, which its verifier notices.

use crate::hpke::{KeyPair, SUITE};
use crate::refusal::Refusal;
use crate::sealed::DIGEST_SIZE;
use aws_lc_rs::digest;
use minicbor::Encoder;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

const DOMAIN: &[u8] = b"vessels evidence v1";
const REPORT_DATA_SIZE: usize = 64;
/// Larger than any quote with its certificates.
const MAX_QUOTE_SIZE: u64 = 1 << 16;
/// What the small files of a platform hold.
const MAX_WORD_SIZE: u64 = 64;

/// What hardware signs.
pub type ReportData = [u8; REPORT_DATA_SIZE];

/// Where the enclave runs, and where the files that prove it are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Platform {
    /// An ordinary process. There is nothing to prove.
    Simulation,
    /// SGX under Gramine: the folder of its attestation.
    Gramine(PathBuf),
    /// A confidential guest: the folder in which configfs-tsm makes reports.
    Native(PathBuf),
}

impl Platform {
    /// The platform of this name, or the one that is found: Gramine where its files are.
    pub fn of(name: Option<&str>) -> Option<Self> {
        let gramine = PathBuf::from("/dev/attestation");
        match name {
            Some("simulation") => Some(Platform::Simulation),
            Some("gramine") => Some(Platform::Gramine(gramine)),
            Some("native") => Some(Platform::Native("/sys/kernel/config/tsm/report".into())),
            Some(_) => None,
            None if gramine.join("user_report_data").exists() => Some(Platform::Gramine(gramine)),
            None => Some(Platform::Simulation),
        }
    }

    /// The hardware's name, and its quote of `report_data`.
    pub fn quote(
        &self,
        report_data: &ReportData,
    ) -> Result<(&'static str, Option<Vec<u8>>), Refusal> {
        match self {
            Platform::Simulation => Ok(("simulation", None)),
            Platform::Gramine(folder) => Ok(("sgx", Some(gramine_quote(folder, report_data)?))),
            Platform::Native(folder) => {
                let (name, quote) =
                    in_new_folder(folder, |report| guest_quote(report, report_data))?;
                Ok((name, Some(quote)))
            }
        }
    }
}

/// Who this enclave is: its key pair, made at this start, and the model it opened.
pub struct Identity {
    pub keys: KeyPair,
    pub model_digest: [u8; DIGEST_SIZE],
    pub platform: Platform,
}

impl Identity {
    /// The payload of a CLAIMS frame.
    pub fn claims(&self, nonce: &[u8]) -> Result<Vec<u8>, Refusal> {
        let data = report_data(self.keys.public(), &self.model_digest, nonce);
        let (tee, quote) = self.platform.quote(&data)?;
        let mut encoder = Encoder::new(Vec::new());
        encoder
            .array(6)
            .and_then(|e| e.str(tee))
            .and_then(|e| e.bytes(&SUITE))
            .and_then(|e| e.bytes(self.keys.public()))
            .and_then(|e| e.bytes(&self.model_digest))
            .and_then(|e| e.bytes(nonce))
            .and_then(|e| match quote {
                Some(quote) => e.bytes(&quote),
                None => e.null(),
            })
            .map_err(|_| Refusal::Abandoned)?;
        Ok(encoder.into_writer())
    }
}

/// What a quote of these claims carries.
fn report_data(public_key: &[u8], model_digest: &[u8], nonce: &[u8]) -> ReportData {
    let mut context = digest::Context::new(&digest::SHA512);
    for field in [DOMAIN, &SUITE, public_key, model_digest, nonce] {
        context.update(&(field.len() as u32).to_le_bytes());
        context.update(field);
    }
    let mut bytes = [0; REPORT_DATA_SIZE];
    for (place, byte) in bytes.iter_mut().zip(context.finish().as_ref()) {
        *place = *byte;
    }
    bytes
}

fn refused(what: &'static str) -> impl Fn(io::Error) -> Refusal {
    move |error| Refusal::Quote {
        what,
        errno: error.raw_os_error().unwrap_or(0),
    }
}

fn spoiled(what: &'static str) -> Refusal {
    Refusal::Quote { what, errno: 0 }
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(bytes)
}

/// All of a file of at most `most` bytes; of a longer one, a byte more than that.
fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn checked(quote: Vec<u8>) -> Result<Vec<u8>, Refusal> {
    if quote.is_empty() || quote.len() as u64 > MAX_QUOTE_SIZE {
        return Err(spoiled("the quote is empty or absurdly large"));
    }
    Ok(quote)
}

/// Gramine's `/dev/attestation`.
fn gramine_quote(folder: &Path, report_data: &ReportData) -> Result<Vec<u8>, Refusal> {
    let kind = read(&folder.join("attestation_type"), MAX_WORD_SIZE)
        .map_err(refused("reading Gramine's kind of attestation"))?;
    if kind.trim_ascii() != b"dcap" {
        return Err(spoiled(
            "Gramine's manifest does not ask for DCAP attestation",
        ));
    }
    write(&folder.join("user_report_data"), report_data).map_err(refused("writing report data"))?;
    let quote =
        read(&folder.join("quote"), MAX_QUOTE_SIZE).map_err(refused("reading the quote"))?;
    checked(quote)
}

/// Runs `work` in a new folder of `parent`, which is gone afterwards. Nobody else uses it, so
/// nobody's report data can come in between.
fn in_new_folder<T>(
    parent: &Path,
    work: impl FnOnce(&Path) -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    let folder = parent.join(format!("vessels-{}", std::process::id()));
    // What a process of the same number left behind.
    let _ = fs::remove_dir(&folder);
    fs::create_dir(&folder).map_err(refused("making a report in configfs-tsm"))?;
    let result = work(&folder);
    let _ = fs::remove_dir(&folder);
    result
}

/// One report of configfs-tsm, which a guest's kernel fills in.
fn guest_quote(
    report: &Path,
    report_data: &ReportData,
) -> Result<(&'static str, Vec<u8>), Refusal> {
    let word = |name: &str| {
        read(&report.join(name), MAX_WORD_SIZE).map_err(refused("reading configfs-tsm"))
    };
    let name = match word("provider")?.trim_ascii() {
        b"tdx_guest" => "tdx",
        b"sev_guest" => "snp",
        _ => return Err(spoiled("configfs-tsm has a provider that is not known")),
    };
    write(&report.join("inblob"), report_data).map_err(refused("writing report data"))?;
    let before = word("generation")?;
    let quote =
        read(&report.join("outblob"), MAX_QUOTE_SIZE).map_err(refused("reading the quote"))?;
    if word("generation")? != before {
        return Err(spoiled(
            "another process wrote to this report of configfs-tsm",
        ));
    }
    Ok((name, checked(quote)?))
}

#[cfg(test)]
mod tests;
