//! `vessels-epc`: an emulator of SGX's EPC, the processor's small protected memory. [`main`] is
//! the whole program. It is not trusted code and protects nothing: it is there to measure what
//! paging does.
//!
//! The memory of its tenants is limited to a set number of 4 KiB pages. A touch of an absent page
//! is a fault, which the emulator answers: a victim is chosen, encrypted and authenticated, and
//! put into ordinary memory; the wanted page is fetched, checked and decrypted. As a machine's
//! EPC, it is one for several tenants, each a process of its own.
//!
//! In the order of reading: the policy ([`pager`]); sealed pages ([`store`]); the kernel's side
//! ([`userfault`]); these put together ([`epc`]) and served ([`server`], [`commands`],
//! [`awake`]); a tenant's side ([`tenant`]); a tenant that checks its memory ([`replay`]); what a
//! fault costs ([`cost`]); the command line ([`cli`]).

#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod awake;
mod cli;
mod commands;
mod cost;
mod epc;
pub mod pager;
mod replay;
mod server;
mod store;
#[allow(unsafe_code)]
mod tenant;
#[allow(unsafe_code)]
mod userfault;

use std::process::ExitCode;
pub use tenant::EpcMemory;

/// The program.
pub fn main() -> ExitCode {
    cli::run(std::env::args_os().skip(1))
}
