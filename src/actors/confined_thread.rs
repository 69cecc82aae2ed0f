//! Threads for actors that process what strangers send.

use std::sync::Once;

use actix::prelude::*;
use tracing::{debug, warn};

use crate::sys::confinement::{FileAccess, confine_thread};
use crate::sys::transmit;

/// Starts a thread for actors. It can start no program, and open no files but these, as far as the
/// kernel supports this.
pub(super) fn start(files: FileAccess) -> Arbiter {
    let thread = Arbiter::new();
    thread.spawn_fn(move || {
        transmit::prepare_thread();
        confine(files);
    });
    thread
}

/// Confines the calling thread, which needs no file, as far as the kernel supports this.
pub(crate) fn confine_without_files() {
    confine(FileAccess::None);
}

/// Confines the calling thread as far as the kernel supports this. Logs the result once.
fn confine(files: FileAccess) {
    let confined = confine_thread(files);
    static LOGGED: Once = Once::new();
    LOGGED.call_once(|| match confined {
        Ok(true) => debug!("threads that process packets are confined by Landlock and seccomp"),
        Ok(false) => debug!("threads that process packets are confined by seccomp alone"),
        Err(e) => warn!(
            "threads that process packets are not confined: {e}; forwarding works, without this \
             second line of defence. A container needs no option for it; Linux 5.13 has it"
        ),
    });
}
