//! Ends the capture and the actor.

use std::pin::Pin;
use std::task::{Context as Task, Poll, ready};
use std::time::{Duration, Instant};

use actix::fut::ActorFuture;
use actix::prelude::*;
use tokio::time::{Sleep, sleep};

use super::{CloseCapture, Interface};
use crate::actors::supervision::Stop;

/// A closed capture is empty when it returns no packet for this time.
const QUIET: Duration = Duration::from_millis(5);

/// Longest time in which a closed capture is emptied.
const MAX_DRAIN: Duration = Duration::from_millis(200);

impl Handler<CloseCapture> for Interface {
    type Result = ();

    fn handle(&mut self, _: CloseCapture, _: &mut Self::Context) {
        if let Some(capture) = &self.capture {
            capture.borrow_mut().stop_capture();
        }
    }
}

impl Handler<Stop> for Interface {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Stop, _: &mut Self::Context) -> Self::Result {
        self.death_guard.disarm();
        if let Some(capture) = &self.capture {
            capture.borrow_mut().stop_capture();
        }
        Box::pin(Drain {
            batches: self.batches,
            until: Instant::now() + MAX_DRAIN,
            quiet: Box::pin(sleep(QUIET)),
        })
    }
}

/// Forwards what a closed capture still holds, then ends the actor.
struct Drain {
    batches: u64,
    until: Instant,
    quiet: Pin<Box<Sleep>>,
}

impl ActorFuture<Interface> for Drain {
    type Output = ();

    fn poll(
        mut self: Pin<&mut Self>,
        actor: &mut Interface,
        ctx: &mut Context<Interface>,
        task: &mut Task<'_>,
    ) -> Poll<()> {
        loop {
            ready!(self.quiet.as_mut().poll(task));
            // This thread may have been busy for the whole quiet time.
            let remaining = actor
                .capture
                .as_ref()
                .map(|c| c.borrow_mut().poll_batch(task));
            if let Some(Poll::Ready(Ok(batch))) = remaining {
                actor.forward(batch);
            }
            if actor.batches == self.batches || Instant::now() >= self.until {
                ctx.stop();
                return Poll::Ready(());
            }
            self.batches = actor.batches;
            self.quiet.set(sleep(QUIET));
        }
    }
}
