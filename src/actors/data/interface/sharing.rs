//! Passes the capture on to a process that replaces this one.

use std::io;
use std::pin::Pin;
use std::task::{Context as Task, Poll, ready};
use std::time::Duration;

use actix::fut::ActorFuture;
use actix::prelude::*;
use tokio::time::{Sleep, sleep};

use super::Interface;
use crate::actors::messages::{PauseCapture, ResumeCapture, ShareCapture};
use crate::pipeline::{CaptureHandle, CapturePosition};

/// Interval at which this actor looks whether its capture can be passed to another process.
const PASS_ON_INTERVAL: Duration = Duration::from_millis(1);

impl Handler<ShareCapture> for Interface {
    type Result = ResponseActFuture<Self, io::Result<Option<CaptureHandle>>>;

    fn handle(&mut self, _: ShareCapture, _: &mut Self::Context) -> Self::Result {
        Box::pin(Repeat::new(share_capture))
    }
}

impl Handler<PauseCapture> for Interface {
    type Result = ResponseActFuture<Self, Option<CapturePosition>>;

    fn handle(&mut self, _: PauseCapture, _: &mut Self::Context) -> Self::Result {
        self.reading.set_paused(true);
        // Another process cannot know what is held here.
        self.poll_merges(None);
        if let Some(capture) = &self.capture
            && let Some(hand_over) = capture.borrow_mut().hand_over()
        {
            hand_over.set_paused(true);
        }
        Box::pin(Repeat::new(pause_position))
    }
}

impl Handler<ResumeCapture> for Interface {
    type Result = ();

    fn handle(&mut self, message: ResumeCapture, ctx: &mut Self::Context) {
        if message.reopen && !self.watch_only {
            // The death guard stays armed, so that the supervisor opens the capture again.
            return ctx.terminate();
        }
        if let Some(capture) = &self.capture {
            capture.borrow_mut().end_sharing();
        }
        self.reading.set_paused(false);
    }
}

/// Returns whether another process can continue the capture. Tunnels begin anew there.
fn passes_capture_on(actor: &Interface) -> bool {
    !actor.watch_only && actor.index.ifindex().is_some()
}

/// Returns the sockets of the capture, if there is one to pass on. `None` while its mode changes.
fn share_capture(actor: &mut Interface) -> Option<io::Result<Option<CaptureHandle>>> {
    match actor.capture.as_ref().filter(|_| passes_capture_on(actor)) {
        Some(capture) => capture
            .borrow_mut()
            .share()
            .transpose()
            .map(|s| s.map(Some)),
        None => Some(Ok(None)),
    }
}

/// Returns where another process continues the capture, if there is one to pass on. `None` while
/// packets that were read are not sent.
fn pause_position(actor: &mut Interface) -> Option<Option<CapturePosition>> {
    let Some(capture) = actor.capture.as_ref().filter(|_| passes_capture_on(actor)) else {
        return Some(None);
    };
    let position = capture.borrow_mut().position();
    let position = position.filter(|_| actor.forwarders.is_all_sent())?;
    actor.read_kernel_drops();
    Some(Some(position))
}

/// Calls a function of the actor again and again, until it returns something.
struct Repeat<F> {
    next: Pin<Box<Sleep>>,
    function: F,
}

impl<T, F: FnMut(&mut Interface) -> Option<T> + Unpin> Repeat<F> {
    fn new(function: F) -> Self {
        Self {
            next: Box::pin(sleep(Duration::ZERO)),
            function,
        }
    }
}

impl<T, F: FnMut(&mut Interface) -> Option<T> + Unpin> ActorFuture<Interface> for Repeat<F> {
    type Output = T;

    fn poll(
        mut self: Pin<&mut Self>,
        actor: &mut Interface,
        _: &mut Context<Interface>,
        task: &mut Task<'_>,
    ) -> Poll<T> {
        loop {
            if let Some(returned) = (self.function)(actor) {
                return Poll::Ready(returned);
            }
            ready!(self.next.as_mut().poll(task));
            self.next.set(sleep(PASS_ON_INTERVAL));
        }
    }
}
