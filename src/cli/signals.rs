//! SIGINT and SIGTERM of the subcommands that run until they are stopped.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::probe::StreamError;

/// Returns a flag that SIGINT and SIGTERM set.
pub fn stop_on_signals() -> Result<Arc<AtomicBool>, StreamError> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).map_err(|error| {
            StreamError::System {
                what: "catch signals",
                error,
            }
        })?;
    }
    Ok(stop)
}
