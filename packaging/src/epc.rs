//! The EPC emulator; all of it is the crate `vessels-epc`.

use std::process::ExitCode;

fn main() -> ExitCode {
    vessels_epc::main()
}
