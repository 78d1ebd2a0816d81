//! The trusted program; all of it is the crate `vessels-enclave`.

use std::process::ExitCode;

fn main() -> ExitCode {
    vessels_enclave::main()
}
