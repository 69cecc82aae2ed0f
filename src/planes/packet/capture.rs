//! Capture with packet sockets, in two modes chosen by packet rate: a plain socket that delivers
//! each packet at once, and a ring of blocks.
//!
//! Both sockets are in one fanout group, whose program delivers each packet to exactly one of them.
//! A mode change has three steps:
//!
//! 1. Open the ring if there is none, and replace the program. A blocking task does this, because
//!    the kernel waits some milliseconds until no packet is on its way to the old socket. Meanwhile
//!    the capture reads the old socket, and packets for the new socket wait there.
//! 2. Read the old socket until it is empty.
//! 3. Read the new socket.
//!
//! So a mode change loses, duplicates and reorders nothing. An interface that never had a high rate
//! has no ring, and a ring that was not needed for a minute is released.
//!
//! Another process can continue a capture: it gets the sockets, in which the packets wait, and reads
//! on where this process has stopped. The fanout group needs no change for that.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::debug;

use super::options::{Modes, PacketPlane};
use super::rate::{BusyPoll, Mode, ModeAdvice, RateMonitor};
use super::ring_drops::RingDrops;
use crate::model::IfIndex;
use crate::pipeline::hand_over::Rest;
use crate::pipeline::{Batch, CaptureHandle, CapturePosition, Packet, PacketSource, RingHandle};
use crate::sys::fanout::{FanoutGroupId, FanoutMember};
use crate::sys::filter::CaptureFilter;
use crate::sys::off_thread::DroppedOffThread;
use crate::sys::packet::{CaptureScope, Frame};
use crate::sys::poll::watch;
use crate::sys::receive::PacketReceiver;
use crate::sys::ring::CaptureRing;

/// Largest number of errors in one turn. Each read of the socket clears one error.
const MAX_ERRORS: usize = 16;

/// How long to wait before the next mode change after the kernel refused one.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// The capture of one interface.
pub struct SocketCapture {
    plane: PacketPlane,
    index: IfIndex,
    socket: AsyncFd<PacketReceiver>,
    /// The plain socket as a member of the fanout group.
    member: FanoutMember,
    /// The fanout group; `None` if the kernel supports none.
    group: Option<FanoutGroupId>,
    ring: Option<AsyncFd<CaptureRing>>,
    /// The mode whose socket is being read.
    mode: Mode,
    change: ModeChange,
    rate_monitor: Option<RateMonitor>,
    busy_poll: BusyPoll,
    /// Ticks while there is a ring.
    clock: Option<Interval>,
    shut: bool,
    /// When the kernel last refused a mode change.
    refused: Option<Instant>,
    /// Packets dropped by rings.
    ring_drops: RingDrops,
    /// Packets that the kernel could not describe.
    unknown_offload: u64,
    frames: Vec<Frame>,
    filter: CaptureFilter,
    holds_latency: bool,
    /// Whether another process has the sockets, so that the mode must not change.
    is_shared: bool,
}

/// The state of a mode change.
enum ModeChange {
    None,
    /// A task switches the fanout program. It returns the ring if it opened one.
    Requested(JoinHandle<io::Result<Option<CaptureRing>>>),
    /// New packets go to the other socket; the rest of the old socket is being read.
    Draining,
}

/// The result of one read of the plain socket.
enum SocketRead {
    Packets(Batch),
    /// No packets wait.
    Empty,
    /// There were only errors, and more may wait.
    Interrupted,
}

/// The part of the system that an error of a read concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ErrorScope {
    /// One packet, which the kernel dropped because it cannot describe its offload
    /// (`virtio_net_hdr_from_skb` of Linux).
    Packet,
    /// The state of the link, such as `ENETDOWN`, or of the machine, such as a shortage of memory.
    /// The socket reports it once. Netlink reports links that are removed.
    State,
    /// The socket, which is useless.
    Socket,
}

fn scope_of(error: &io::Error) -> ErrorScope {
    match error.raw_os_error() {
        Some(libc::EINVAL) => ErrorScope::Packet,
        Some(libc::EBADF | libc::ENOTSOCK | libc::EFAULT | libc::EOPNOTSUPP | libc::ENOSYS)
        | None => ErrorScope::Socket,
        Some(_) => ErrorScope::State,
    }
}

impl SocketCapture {
    /// Starts to capture: in [`Mode::Latency`], unless the options fix the other mode. A capture
    /// of incoming frames only stays in this mode, because the kernel ignores the scope of sockets
    /// in a fanout group.
    pub fn open(
        plane: PacketPlane,
        index: IfIndex,
        scope: CaptureScope,
        filter: CaptureFilter,
    ) -> io::Result<Self> {
        let socket = PacketReceiver::open(index, &filter, plane.receive_buffer, scope)?;
        let mut capture = Self::new(plane, index, socket, filter.clone())?;
        let modes = match scope {
            CaptureScope::All => plane.modes,
            CaptureScope::Incoming => Modes::Fixed(Mode::Latency),
        };
        match modes {
            Modes::Fixed(Mode::Latency) => {}
            Modes::Fixed(Mode::Throughput) => {
                let group = capture.member.create_group()?;
                let ring = CaptureRing::open(index, &filter, plane.ring, group)?;
                capture.member.choose(fanout_position(Mode::Throughput))?;
                capture.ring = Some(watch(ring, Interest::READABLE)?);
                capture.mode = Mode::Throughput;
            }
            Modes::Adaptive(thresholds) => match capture.member.create_group() {
                Ok(group) => {
                    capture.group = Some(group);
                    capture.rate_monitor = Some(RateMonitor::new(thresholds));
                }
                Err(e) => debug!(
                    "index {index}: cannot create a fanout group ({e}); the ring is not used"
                ),
            },
        }
        Ok(capture)
    }

    /// Continues the capture of another process, in the same mode. The filter of this process
    /// applies from [`PacketSource::continue_at`] on.
    ///
    /// # Errors
    /// The ring cannot be mapped, or the runtime cannot register the sockets.
    pub fn adopt(
        plane: PacketPlane,
        index: IfIndex,
        handle: CaptureHandle,
        filter: CaptureFilter,
    ) -> io::Result<Self> {
        let socket = PacketReceiver::from_socket(handle.socket);
        let mut capture = Self::new(plane, index, socket, filter)?;
        capture.group = handle.group;
        if let (Modes::Adaptive(thresholds), Some(_)) = (plane.modes, handle.group) {
            capture.rate_monitor = Some(RateMonitor::new(thresholds));
        }
        if let Some(ring) = handle.ring {
            capture.set_ring(CaptureRing::from_socket(ring.socket, ring.size)?)?;
        }
        if handle.is_ring_in_use {
            capture.mode = Mode::Throughput;
        }
        Ok(capture)
    }

    /// Returns a capture of an open socket in the latency mode, without a fanout group.
    fn new(
        plane: PacketPlane,
        index: IfIndex,
        socket: PacketReceiver,
        filter: CaptureFilter,
    ) -> io::Result<Self> {
        let member = socket.member();
        Ok(Self {
            plane,
            index,
            socket: watch(socket, Interest::READABLE)?,
            member,
            group: None,
            ring: None,
            mode: Mode::Latency,
            change: ModeChange::None,
            rate_monitor: None,
            busy_poll: BusyPoll::new(plane.busy_poll),
            clock: None,
            shut: false,
            refused: None,
            ring_drops: RingDrops::default(),
            unknown_offload: 0,
            frames: Vec::new(),
            filter,
            holds_latency: false,
            is_shared: false,
        })
    }

    /// Adds the ring of a capture whose mode can change.
    fn set_ring(&mut self, ring: CaptureRing) -> io::Result<()> {
        self.ring = Some(watch(ring, Interest::READABLE)?);
        let period = self.rate_monitor.as_ref().map(RateMonitor::interval);
        self.clock = period.map(|period| {
            let mut clock = interval(period);
            clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
            clock
        });
        Ok(())
    }

    /// Starts a change to the other mode.
    fn request_other_mode(&mut self) {
        let Some(group) = self.group.filter(|_| !self.is_shared) else {
            return;
        };
        if self.refused.is_some_and(|at| at.elapsed() < RETRY_AFTER) {
            return;
        }
        let to = opposite(self.mode);
        let (plane, index, member) = (self.plane, self.index, self.member.clone());
        let filter = self.filter.clone();
        let open = to == Mode::Throughput && self.ring.is_none();
        self.change = ModeChange::Requested(spawn_blocking(move || {
            let ring = match open {
                true => Some(CaptureRing::open(index, &filter, plane.ring, group)?),
                false => None,
            };
            member.choose(fanout_position(to))?;
            Ok(ring)
        }));
    }

    /// Continues a mode change when its task has ended.
    fn poll_change(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let ModeChange::Requested(task) = &mut self.change else {
            return Ok(());
        };
        let Poll::Ready(done) = Pin::new(task).poll(cx) else {
            return Ok(());
        };
        self.change = ModeChange::None;
        if let Some(rate_monitor) = &mut self.rate_monitor {
            rate_monitor.changed();
        }
        match done.map_err(io::Error::other).flatten() {
            Ok(ring) => {
                self.change = ModeChange::Draining;
                if let Some(ring) = ring {
                    if self.shut {
                        ring.stop_capture()?;
                    }
                    self.set_ring(ring)?;
                }
            }
            // Most likely there is no memory for a ring. The capture continues in the old mode and
            // retries when the rate still calls for a change.
            Err(e) => {
                debug!("index {}: cannot change the mode: {e}", self.index);
                self.refused = Some(Instant::now());
            }
        }
        Ok(())
    }

    /// Checks for a change to the latency mode and for the release of the ring, at each tick.
    fn poll_clock(&mut self, cx: &mut Context<'_>) {
        let (Some(clock), Some(rate_monitor)) = (&mut self.clock, &mut self.rate_monitor) else {
            return;
        };
        while clock.poll_tick(cx).is_ready() {
            if self.shut || self.is_shared || !matches!(self.change, ModeChange::None) {
                continue;
            }
            match rate_monitor.check(self.mode, Instant::now()) {
                ModeAdvice::Stay => {}
                ModeAdvice::Down => return self.request_other_mode(),
                ModeAdvice::Release => return self.release(),
            }
        }
    }

    /// Releases the ring, which is empty and gets no packets.
    fn release(&mut self) {
        self.clock = None;
        if let Some(ring) = self.ring.take() {
            let ring = ring.into_inner();
            self.ring_drops.recent += ring.take_dropped().unwrap_or_default();
            drop(DroppedOffThread::new(ring));
        }
    }

    fn poll_from(&mut self, mode: Mode, cx: &mut Context<'_>) -> Poll<io::Result<Batch>> {
        match mode {
            Mode::Latency => self.poll_socket(cx),
            Mode::Throughput => self.poll_ring(cx),
        }
    }

    /// Reads the plain socket without waiting for a readiness event.
    fn read_socket(&mut self) -> io::Result<SocketRead> {
        self.frames.clear();
        for _ in 0..MAX_ERRORS {
            match self.socket.get_mut().receive(&mut self.frames) {
                Ok(buffer) => {
                    let packets = self.frames.clone();
                    return Ok(SocketRead::Packets(Batch::from_buffer(buffer, packets)));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(SocketRead::Empty),
                Err(e) => match scope_of(&e) {
                    ErrorScope::Packet => self.unknown_offload += 1,
                    ErrorScope::State => {}
                    ErrorScope::Socket => return Err(e),
                },
            }
        }
        Ok(SocketRead::Interrupted)
    }

    fn poll_socket(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Batch>> {
        loop {
            drop(ready!(self.socket.poll_read_ready_mut(cx))?);
            match self.read_socket()? {
                SocketRead::Packets(batch) => return Poll::Ready(Ok(batch)),
                SocketRead::Empty => {}
                SocketRead::Interrupted => return poll_again(cx),
            }
            if self.mode == Mode::Latency && !self.shut && self.busy_poll.poll_again(Instant::now())
            {
                return poll_again(cx);
            }
            let mut guard = ready!(self.socket.poll_read_ready_mut(cx))?;
            guard.clear_ready_matching(Ready::READABLE | Ready::ERROR | Ready::READ_CLOSED);
        }
    }

    fn poll_ring(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Batch>> {
        let Some(ring) = &mut self.ring else {
            return Poll::Pending;
        };
        loop {
            if let Some(block) = ring.get_mut().next_block() {
                self.frames.clear();
                self.ring_drops.empty += block.frames(&mut self.frames);
                let packets = self.frames.clone();
                return Poll::Ready(Ok(Batch::from_block(block, packets)));
            }
            let mut guard = ready!(ring.poll_read_ready_mut(cx))?;
            // A link that goes down leaves an error on the socket and makes it readable. Capture
            // continues when the link comes up again, so reading the error is enough.
            guard.get_inner().take_error()?;
            guard.clear_ready_matching(Ready::READABLE | Ready::ERROR | Ready::READ_CLOSED);
            // The kernel signals a block once. Check again for one that arrived before the flag was
            // cleared.
        }
    }

    /// Returns the rest of the packets of the old socket; `None` when it is empty. Reads the socket
    /// itself, because a readiness event may still be on its way.
    fn poll_remaining(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Batch>>> {
        if self.mode == Mode::Latency {
            return match self.read_socket()? {
                SocketRead::Packets(batch) => Poll::Ready(Ok(Some(batch))),
                SocketRead::Empty => Poll::Ready(Ok(None)),
                SocketRead::Interrupted => poll_again(cx),
            };
        }
        match self.poll_ring(cx) {
            Poll::Ready(batch) => Poll::Ready(batch.map(Some)),
            Poll::Pending if self.ring.as_ref().is_none_or(|r| r.get_ref().is_drained()) => {
                Poll::Ready(Ok(None))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// Reads what waits, without waiting for more. Cannot tell whether the capture is empty except
    /// in the latency mode.
    pub fn read_rest(&mut self) -> io::Result<Rest> {
        if self.mode != Mode::Latency || !matches!(self.change, ModeChange::None) {
            return Ok(Rest::Unknown);
        }
        Ok(match self.read_socket()? {
            SocketRead::Packets(batch) => {
                self.measure(&batch);
                Rest::Packets(batch)
            }
            SocketRead::Empty => Rest::Empty,
            SocketRead::Interrupted => Rest::Unknown,
        })
    }

    /// Keeps the latency mode, or returns to it, as long as `hold` is set.
    pub fn hold_latency_mode(&mut self, hold: bool) {
        self.holds_latency = hold;
        let free = matches!(self.change, ModeChange::None) && !self.shut;
        if hold && free && self.mode == Mode::Throughput {
            self.request_other_mode();
        }
    }

    /// Measures the packet rate, and starts a change to the throughput mode if the rate is high.
    fn measure(&mut self, batch: &Batch) {
        let Some(last) = batch.packets.last() else {
            return;
        };
        let count = batch.packets.len() as u64;
        if self.mode == Mode::Latency {
            self.busy_poll
                .record(count, last.received_ns, Instant::now());
        }
        let Some(rate_monitor) = &mut self.rate_monitor else {
            return;
        };
        // Count a GSO packet as its segments: such senders prefer throughput to latency, and the
        // latency mode is expensive at rates at which blocks cost little.
        let count = batch.packets.iter().map(Packet::packets).sum();
        let fast = rate_monitor.record(count, last.received_ns);
        let free = matches!(self.change, ModeChange::None) && !self.shut;
        if fast && free && self.mode == Mode::Latency && !self.holds_latency {
            self.request_other_mode();
        }
    }
}

impl PacketSource for SocketCapture {
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Batch>> {
        self.poll_clock(cx);
        self.poll_change(cx)?;
        match self.change {
            // The other socket gets packets only while a link goes down and up, when the kernel
            // rebuilds the fanout group.
            ModeChange::None => {
                if let Poll::Ready(stray) = self.poll_from(opposite(self.mode), cx) {
                    return Poll::Ready(stray);
                }
            }
            ModeChange::Requested(_) => {}
            ModeChange::Draining => match ready!(self.poll_remaining(cx))? {
                Some(batch) => return Poll::Ready(Ok(batch)),
                None => {
                    self.mode = opposite(self.mode);
                    self.change = ModeChange::None;
                    debug!("index {}: {} mode", self.index, self.mode.label());
                }
            },
        }
        let batch = ready!(self.poll_from(self.mode, cx))?;
        self.measure(&batch);
        Poll::Ready(Ok(batch))
    }

    fn take_dropped(&mut self) -> u64 {
        let ring = self.ring.as_ref().map(|r| r.get_ref().take_dropped());
        let socket = self.socket.get_ref().take_dropped();
        self.ring_drops.recent += ring.and_then(Result::ok).unwrap_or_default();
        let is_last = self.shut || self.is_shared;
        let (lost, unknown_offload) = self.ring_drops.take(is_last);
        self.unknown_offload += unknown_offload;
        lost + socket.unwrap_or_default()
    }

    fn take_unknown_offload(&mut self) -> u64 {
        std::mem::take(&mut self.unknown_offload)
    }

    fn stop_capture(&mut self) {
        self.shut = true;
        let socket = self.socket.get_ref().stop_capture();
        let ring = self
            .ring
            .as_ref()
            .map_or(Ok(()), |r| r.get_ref().stop_capture());
        if let Err(e) = socket.and(ring) {
            debug!("index {}: cannot shut the capture: {e}", self.index);
        }
    }

    fn mode(&self) -> &'static str {
        self.mode.label()
    }

    fn is_changing_mode(&self) -> bool {
        !matches!(self.change, ModeChange::None)
    }

    fn share(&mut self) -> io::Result<Option<CaptureHandle>> {
        self.is_shared = true;
        if self.is_changing_mode() {
            return Ok(None);
        }
        let ring = self.ring.as_ref().map(|ring| {
            let ring = ring.get_ref();
            let socket = ring.descriptor()?;
            let size = ring.size();
            Ok::<_, io::Error>(RingHandle { socket, size })
        });
        Ok(Some(CaptureHandle {
            socket: self.member.descriptor()?,
            group: self.group,
            ring: ring.transpose()?,
            is_ring_in_use: self.mode == Mode::Throughput,
        }))
    }

    fn end_sharing(&mut self) {
        self.is_shared = false;
    }

    fn position(&mut self) -> Option<CapturePosition> {
        match &self.ring {
            Some(ring) => ring.get_ref().position().map(CapturePosition),
            None => Some(CapturePosition::default()),
        }
    }

    fn continue_at(&mut self, CapturePosition(block): CapturePosition) -> io::Result<()> {
        self.socket.get_ref().set_filter(&self.filter)?;
        if let Some(ring) = &mut self.ring {
            ring.get_ref().set_filter(&self.filter)?;
            ring.get_mut().continue_at(block);
        }
        Ok(())
    }
}

/// Lets the other tasks of this thread run before the next poll.
fn poll_again<T>(cx: &Context<'_>) -> Poll<T> {
    cx.waker().wake_by_ref();
    Poll::Pending
}

fn opposite(mode: Mode) -> Mode {
    match mode {
        Mode::Latency => Mode::Throughput,
        Mode::Throughput => Mode::Latency,
    }
}

/// Returns the position in the fanout group of the socket of a mode: the plain socket joins first.
fn fanout_position(mode: Mode) -> u32 {
    match mode {
        Mode::Latency => 0,
        Mode::Throughput => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_packets_and_links_do_not_end_the_capture() {
        let scope = |errno| scope_of(&io::Error::from_raw_os_error(errno));
        assert_eq!(scope(libc::EINVAL), ErrorScope::Packet);
        for errno in [libc::ENETDOWN, libc::ENODEV, libc::ENOBUFS, libc::ENOMEM] {
            assert_eq!(scope(errno), ErrorScope::State);
        }
        assert_eq!(scope(libc::EBADF), ErrorScope::Socket);
    }
}
