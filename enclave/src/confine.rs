//! What the process gives up: debuggers and core dumps before it has a secret, and every system
//! call it can do without once the model is loaded.
//!
//! Under Gramine nothing of it is done: the process's kernel is Gramine's, inside the enclave.

use crate::evidence::Platform;
use crate::refusal::Refusal;
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use std::io;

/// What serving takes: the two streams, memory for what the cryptography's library and a
/// platform's quote need for a moment, threads that wait for each other and end, random numbers,
/// the clock.
const SERVING: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_close,
    // Who studies paging has its pool's memory tied to a socket, and unties it at the end.
    libc::SYS_fcntl,
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_rt_sigprocmask,
    // A thread that overflows its stack says so before it dies.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Memory may be had as long as nothing in it is to be executed.
const MAPPING: &[i64] = &[libc::SYS_mmap, libc::SYS_mprotect];
const PROTECTION_ARGUMENT: u8 = 2;

/// What the files of configfs-tsm take, besides.
const REPORTING: &[i64] = &[
    libc::SYS_openat,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    libc::SYS_getpid,
    libc::SYS_statx,
    libc::SYS_fstat,
    libc::SYS_lseek,
];

/// Refuses debuggers and core dumps from now on.
pub fn close_to_others(platform: &Platform) -> Result<(), Refusal> {
    if matches!(platform, Platform::Gramine(_)) {
        return Ok(());
    }
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both take their arguments by value, or read them before they return.
    let done = unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) == 0
            && libc::setrlimit(libc::RLIMIT_CORE, &none) == 0
    };
    if done {
        return Ok(());
    }
    Err(refusal(
        "refusing debuggers and core dumps",
        &io::Error::last_os_error(),
    ))
}

/// Gives up all system calls but those that serving takes, in every thread, for good. A forbidden
/// one kills the process.
pub fn drop_system_calls(platform: &Platform) -> Result<(), Refusal> {
    const WHAT: &str = "giving up system calls (seccomp)";
    if matches!(platform, Platform::Gramine(_)) {
        return Ok(());
    }
    let program = filter(platform).ok_or_else(|| refusal(WHAT, &io::Error::other("")))?;
    match seccompiler::apply_filter_all_threads(&program) {
        Ok(()) => Ok(()),
        Err(seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error)) => {
            Err(refusal(WHAT, &error))
        }
        Err(_) => Err(refusal(WHAT, &io::Error::other(""))),
    }
}

fn filter(platform: &Platform) -> Option<seccompiler::BpfProgram> {
    let reporting = match platform {
        Platform::Native(_) => REPORTING,
        _ => &[],
    };
    let plain = SERVING.iter().chain(reporting);
    let mut rules: std::collections::BTreeMap<i64, Vec<SeccompRule>> =
        plain.map(|&call| (call, vec![])).collect();
    let executable = libc::PROT_EXEC as u64;
    for &call in MAPPING {
        let never_executable = SeccompCondition::new(
            PROTECTION_ARGUMENT,
            SeccompCmpArgLen::Qword,
            SeccompCmpOp::MaskedEq(executable),
            0,
        )
        .ok()?;
        rules.insert(call, vec![SeccompRule::new(vec![never_executable]).ok()?]);
    }
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        std::env::consts::ARCH.try_into().ok()?,
    );
    filter.ok()?.try_into().ok()
}

fn refusal(what: &'static str, error: &io::Error) -> Refusal {
    Refusal::System {
        what,
        errno: error.raw_os_error().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests;
