//! Counting and logging of what the HTTP server refuses.

use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tracing::warn;

use crate::actors::log_limit::LogLimit;
use crate::metrics::http::{HttpFamilies, HttpRefusal};

/// Log lines for each reason within a minute.
const MAX_LINES: u32 = 1;

/// Counts refusals and logs them, with a limit for each reason. Clones share the limits.
#[derive(Clone)]
pub struct Refusals {
    metrics: HttpFamilies,
    /// In the order of [`HttpRefusal::ALL`].
    log_limits: Arc<Mutex<Vec<LogLimit>>>,
}

impl Refusals {
    /// Returns a log without lines.
    pub fn new(metrics: HttpFamilies) -> Self {
        let limits = HttpRefusal::ALL.map(|_| LogLimit::new(MAX_LINES));
        Self {
            metrics,
            log_limits: Arc::new(Mutex::new(limits.into())),
        }
    }

    /// Counts a refusal and logs `message`, which says what happened and what to do.
    pub fn report(&self, reason: HttpRefusal, message: impl Display) {
        self.metrics.count_refusal(reason);
        let mut limits = self
            .log_limits
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let limit = limits.get_mut(reason as usize);
        if let Some(suppressed) = limit.and_then(|limit| limit.permit(Instant::now())) {
            warn!("http: {message}{suppressed}");
        }
    }
}
