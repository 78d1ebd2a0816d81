//! Keeps processors from sleeping while there is paging.
//!
//! A fault sleeps twice: the tenant until the page is there, the emulator until the next fault. On
//! a virtual machine a processor with nothing to do halts, and waking it takes tens of
//! microseconds, several times what the fault takes. So while there are faults a thread of the
//! lowest class (SCHED_IDLE) turns on each processor, and gives way to anything else at once.
//! Measured on a machine of two virtual processors: 17 us for a hard fault instead of 45 to 65.

use rustix::thread::CpuSet;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long processors stay awake after the last fault.
const LINGER: Duration = Duration::from_millis(2);

#[derive(Default)]
struct State {
    /// Counts the calls of [`Awake::stay`].
    stays: AtomicU32,
    /// Whether any thread sleeps.
    resting: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
}

/// Its threads end with the process.
pub struct Awake(Arc<State>);

impl Awake {
    /// Starts a thread for each processor that this process may use.
    pub fn start() -> io::Result<Self> {
        let state = Arc::new(State::default());
        let allowed = rustix::thread::sched_getaffinity(None)?;
        for processor in (0..CpuSet::MAX_CPU).filter(|&n| allowed.is_set(n)) {
            let state = Arc::clone(&state);
            std::thread::Builder::new()
                .name("epc-awake".into())
                .stack_size(64 << 10)
                .spawn(move || {
                    let mut own = CpuSet::new();
                    own.set(processor);
                    // At any other class or place it would take time from the tenants.
                    if rustix::thread::sched_setaffinity(None, &own).is_ok() && lowest_class() {
                        turn(&state);
                    }
                })?;
        }
        Ok(Awake(state))
    }

    /// There is a fault: the processors stay awake for a while.
    pub fn stay(&self) {
        self.0.stays.fetch_add(1, Ordering::SeqCst);
        if self.0.resting.swap(false, Ordering::SeqCst) {
            drop(self.0.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.0.wake.notify_all();
        }
    }
}

/// Puts this thread into the class SCHED_IDLE.
fn lowest_class() -> bool {
    let parameter = libc::sched_param { sched_priority: 0 };
    // SAFETY: 0 is the calling thread; the parameter is read only.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &parameter) == 0 }
}

fn turn(state: &State) -> ! {
    loop {
        let mut seen = state.stays.load(Ordering::Relaxed);
        let mut since = Instant::now();
        while since.elapsed() < LINGER {
            for _ in 0..64 {
                std::hint::spin_loop();
            }
            let stays = state.stays.load(Ordering::Relaxed);
            if stays != seen {
                seen = stays;
                since = Instant::now();
            }
        }
        let guard = state.lock.lock().unwrap_or_else(PoisonError::into_inner);
        state.resting.store(true, Ordering::SeqCst);
        // A fault between the last look and here has found nobody resting.
        if state.stays.load(Ordering::SeqCst) == seen {
            drop(state.wake.wait(guard));
        }
    }
}
