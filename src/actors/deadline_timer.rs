//! The timer of an actor for its next deadline.

use std::time::Instant;

use actix::prelude::*;

/// A timer that can be moved. The actor calls [`DeadlineTimer::clear`] when it expires.
#[derive(Default)]
pub struct DeadlineTimer(Option<(Instant, SpawnHandle)>);

impl DeadlineTimer {
    /// Returns the time at which the timer expires; `None` if it is not set.
    pub fn at(&self) -> Option<Instant> {
        self.0.as_ref().map(|(at, _)| *at)
    }

    /// Notes that the timer has expired.
    pub fn clear(&mut self) {
        self.0 = None;
    }

    /// Sets the timer, or ends it if `at` is `None`. `expire` may be called up to a millisecond before
    /// the time, because tokio rounds; the actor then sets the timer again.
    pub fn set<A: Actor<Context = Context<A>>>(
        &mut self,
        at: Option<Instant>,
        ctx: &mut Context<A>,
        expire: impl FnOnce(&mut A, &mut Context<A>) + 'static,
    ) {
        if self.at() == at {
            return;
        }
        if let Some((_, handle)) = self.0.take() {
            ctx.cancel_future(handle);
        }
        self.0 = at.map(|at| {
            let wait = at.saturating_duration_since(Instant::now());
            (at, ctx.run_later(wait, expire))
        });
    }
}
