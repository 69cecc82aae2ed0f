//! What the handlers share.

use std::sync::Arc;

use super::answers::AnswerLimits;
use super::refusals::Refusals;
use crate::actors::RouterContext;
use crate::frontend::live::Feed;

/// What the handlers share.
pub struct Site {
    /// The router.
    pub context: Arc<RouterContext>,
    /// The limits of large answers.
    pub answers: AnswerLimits,
    /// The log of refused requests.
    pub refusals: Refusals,
    /// The source of event streams.
    pub feed: Arc<Feed>,
    /// Whether `/api/v1` and the page are served.
    pub api: bool,
}
