//! Capture by packet sockets, in two ways chosen by rate: a plain socket that hands out each
//! packet as it comes, and a ring of blocks.
//!
//! Both sockets are in one group, and a program of the group gives every packet to one of
//! them. A change of mode:
//!
//! 1. the ring is opened if there is none, and the program replaced; off our thread, for the
//!    kernel takes some milliseconds until no packet is on its way to the old socket. The old
//!    one is read meanwhile, and what is for the new one waits in it;
//! 2. the old one is read until nothing is left;
//! 3. the new one is read.
//!
//! So nothing is lost, doubled or put out of order. An interface that never had a high rate
//! has no ring, and after a minute without need it is given back.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::debug;

use super::packet::{Modes, PacketPlane};
use super::rate::{Advice, Governor, Mode, Spin};
use super::{Batch, Capture, Packet};
use crate::model::IfIndex;
use crate::sys::fanout::{FanoutGroupId, FanoutMember};
use crate::sys::packet::Frame;
use crate::sys::poll::watch;
use crate::sys::receive::PacketReceiver;
use crate::sys::ring::CaptureRing;

/// Errors of a socket in a row that are read past; each read takes one away.
const MOST_ERRORS: usize = 16;

/// How long not to ask for another mode when the kernel refused.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// The capture of one interface.
pub struct SocketCapture {
    plane: PacketPlane,
    index: IfIndex,
    socket: AsyncFd<PacketReceiver>,
    /// The socket, for the group; and the group, where the kernel knows groups.
    member: FanoutMember,
    group: Option<FanoutGroupId>,
    ring: Option<AsyncFd<CaptureRing>>,
    /// Whose packets are handed out.
    mode: Mode,
    change: Change,
    governor: Option<Governor>,
    spin: Spin,
    /// Runs while there is a ring.
    clock: Option<Interval>,
    shut: bool,
    /// When the kernel last refused to change.
    refused: Option<Instant>,
    /// Dropped by rings that are gone.
    dropped: u64,
    frames: Vec<Frame>,
}

/// How far a change of mode has come.
enum Change {
    None,
    /// The kernel is at it; it gives back the ring where it opened one.
    Asked(JoinHandle<io::Result<Option<CaptureRing>>>),
    /// All that comes goes to the other; the rest of ours is handed out.
    Draining,
}

impl SocketCapture {
    /// Starts to capture, at first in [`Mode::Latency`] unless that is never wanted.
    pub fn open(plane: PacketPlane, index: IfIndex) -> io::Result<Self> {
        let socket = PacketReceiver::open(index, plane.mark, plane.room)?;
        let member = socket.member();
        let mut capture = Self {
            plane,
            index,
            socket: watch(socket, Interest::READABLE)?,
            member,
            group: None,
            ring: None,
            mode: Mode::Latency,
            change: Change::None,
            governor: None,
            spin: Spin::new(plane.busy_poll),
            clock: None,
            shut: false,
            refused: None,
            dropped: 0,
            frames: Vec::new(),
        };
        match plane.modes {
            Modes::Fixed(Mode::Latency) => {}
            Modes::Fixed(Mode::Throughput) => {
                let group = capture.member.found()?;
                let ring = CaptureRing::open(index, plane.mark, plane.ring, group)?;
                capture.member.choose(place(Mode::Throughput))?;
                capture.ring = Some(watch(ring, Interest::READABLE)?);
                capture.mode = Mode::Throughput;
            }
            Modes::Adaptive(thresholds) => match capture.member.found() {
                Ok(group) => {
                    capture.group = Some(group);
                    capture.governor = Some(Governor::new(thresholds));
                }
                Err(e) => debug!("index {index}: no group of sockets ({e}): no ring either"),
            },
        }
        Ok(capture)
    }

    /// Asks the kernel for the other mode.
    fn ask(&mut self) {
        let Some(group) = self.group else {
            return;
        };
        if self.refused.is_some_and(|at| at.elapsed() < ASK_AGAIN) {
            return;
        }
        let to = other(self.mode);
        let (plane, index, member) = (self.plane, self.index, self.member.clone());
        let open = to == Mode::Throughput && self.ring.is_none();
        self.change = Change::Asked(spawn_blocking(move || {
            let ring = match open {
                true => Some(CaptureRing::open(index, plane.mark, plane.ring, group)?),
                false => None,
            };
            member.choose(place(to))?;
            Ok(ring)
        }));
    }

    /// Goes on with a change that the kernel is at.
    fn poll_change(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Change::Asked(task) = &mut self.change else {
            return Ok(());
        };
        let Poll::Ready(done) = Pin::new(task).poll(cx) else {
            return Ok(());
        };
        self.change = Change::None;
        if let Some(governor) = &mut self.governor {
            governor.changed();
        }
        match done.map_err(io::Error::other).flatten() {
            Ok(ring) => {
                self.change = Change::Draining;
                if let Some(ring) = ring {
                    if self.shut {
                        ring.shut()?;
                    }
                    self.ring = Some(watch(ring, Interest::READABLE)?);
                    let period = self.governor.as_ref().map(Governor::interval);
                    self.clock = period.map(|period| {
                        let mut clock = interval(period);
                        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
                        clock
                    });
                }
            }
            // No memory for a ring, most likely. It goes on as before, and asks again when
            // the rate still calls for it.
            Err(e) => {
                debug!("index {}: cannot change the mode: {e}", self.index);
                self.refused = Some(Instant::now());
            }
        }
        Ok(())
    }

    /// Looks at the clock, while there is a ring.
    fn poll_clock(&mut self, cx: &mut Context<'_>) {
        let (Some(clock), Some(governor)) = (&mut self.clock, &mut self.governor) else {
            return;
        };
        while clock.poll_tick(cx).is_ready() {
            if self.shut || !matches!(self.change, Change::None) {
                continue;
            }
            match governor.look(self.mode, Instant::now()) {
                Advice::Stay => {}
                Advice::Down => return self.ask(),
                Advice::Release => return self.release(),
            }
        }
    }

    /// Gives the ring back. Nothing comes to it, and nothing is left in it.
    fn release(&mut self) {
        self.clock = None;
        if let Some(ring) = self.ring.take() {
            let ring = ring.into_inner();
            self.dropped += ring.take_dropped().unwrap_or_default();
            // The kernel waits before it lets go of a socket.
            drop(spawn_blocking(move || drop(ring)));
        }
    }

    fn poll_from(&mut self, mode: Mode, cx: &mut Context<'_>) -> Poll<io::Result<Batch>> {
        match mode {
            Mode::Latency => self.poll_socket(cx),
            Mode::Throughput => self.poll_ring(cx),
        }
    }

    /// What waits in the plain socket, whether or not we have been told of it.
    fn read_socket(&mut self) -> io::Result<Option<Batch>> {
        self.frames.clear();
        let mut errors = 0;
        loop {
            match self.socket.get_mut().receive(&mut self.frames) {
                Ok(buffer) => {
                    let packets = self.frames.clone();
                    return Ok(Some(Batch::from_buffer(buffer, packets)));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                // Of a link that went down, or of one packet the kernel cannot describe:
                // reported once, and what comes behind can be read. A link that is gone is
                // reported by netlink, not here.
                Err(_) if errors < MOST_ERRORS => errors += 1,
                Err(e) => return Err(e),
            }
        }
    }

    fn poll_socket(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Batch>> {
        loop {
            drop(ready!(self.socket.poll_read_ready_mut(cx))?);
            if let Some(batch) = self.read_socket()? {
                return Poll::Ready(Ok(batch));
            }
            // Everybody else on this thread has a turn before we look again.
            if self.mode == Mode::Latency && !self.shut && self.spin.goes_on(Instant::now()) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
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
                block.frames(&mut self.frames);
                let packets = self.frames.clone();
                return Poll::Ready(Ok(Batch::from_block(block, packets)));
            }
            let mut guard = ready!(ring.poll_read_ready_mut(cx))?;
            // A link that goes down leaves an error on the socket and the socket readable;
            // it goes on when the link comes up again, so reading the error is enough.
            guard.get_inner().take_error()?;
            guard.clear_ready_matching(Ready::READABLE | Ready::ERROR | Ready::READ_CLOSED);
            // A block handed over before this was cleared rings no second time: look again.
        }
    }

    /// The rest of the old mode; `None` when there is none. The news of a packet may still be
    /// on its way to us, so this looks for itself.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Batch>>> {
        if self.mode == Mode::Latency {
            return Poll::Ready(self.read_socket());
        }
        match self.poll_ring(cx) {
            Poll::Ready(batch) => Poll::Ready(batch.map(Some)),
            Poll::Pending if self.ring.as_ref().is_none_or(|r| r.get_ref().is_drained()) => {
                Poll::Ready(Ok(None))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// Measures what came, and asks for more room where it calls for it.
    fn measure(&mut self, batch: &Batch) {
        let Some(last) = batch.packets.last() else {
            return;
        };
        let count = batch.packets.len() as u64;
        if self.mode == Mode::Latency {
            self.spin.came(count, last.received_ns, Instant::now());
        }
        let Some(governor) = &mut self.governor else {
            return;
        };
        // Several in one are that many: nobody is in a hurry who sends them so, and one by one is
        // dear at rates where blocks cost next to nothing.
        let count = batch.packets.iter().map(Packet::packets).sum();
        let fast = governor.came(count, last.received_ns);
        let free = matches!(self.change, Change::None) && !self.shut;
        if fast && free && self.mode == Mode::Latency {
            self.ask();
        }
    }
}

impl Capture for SocketCapture {
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Batch>> {
        self.poll_clock(cx);
        self.poll_change(cx)?;
        match self.change {
            // The other one gets packets only around a link that goes down and up, when
            // the kernel puts the group together again.
            Change::None => {
                if let Poll::Ready(stray) = self.poll_from(other(self.mode), cx) {
                    return Poll::Ready(stray);
                }
            }
            Change::Asked(_) => {}
            Change::Draining => match ready!(self.poll_rest(cx))? {
                Some(batch) => return Poll::Ready(Ok(batch)),
                None => {
                    self.mode = other(self.mode);
                    self.change = Change::None;
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
        let gone = std::mem::take(&mut self.dropped);
        gone + socket.unwrap_or_default() + ring.and_then(Result::ok).unwrap_or_default()
    }

    fn shut(&mut self) {
        self.shut = true;
        let socket = self.socket.get_ref().shut();
        let ring = self.ring.as_ref().map_or(Ok(()), |r| r.get_ref().shut());
        if let Err(e) = socket.and(ring) {
            debug!("index {}: cannot shut the capture: {e}", self.index);
        }
    }

    fn mode(&self) -> &'static str {
        self.mode.label()
    }
}

fn other(mode: Mode) -> Mode {
    match mode {
        Mode::Latency => Mode::Throughput,
        Mode::Throughput => Mode::Latency,
    }
}

/// Where in the group the socket of a mode stands: the plain one joins first.
fn place(mode: Mode) -> u32 {
    match mode {
        Mode::Latency => 0,
        Mode::Throughput => 1,
    }
}
