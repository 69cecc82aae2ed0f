//! Sends the UDP payloads of a capture file at the pace at which they were captured.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use socket2::{SockAddr, Socket};

use super::capture_file::{CaptureFile, CaptureFileError};
use super::send::{open_socket, send_messages};
use super::stream::{duration, find_interface};
use crate::model::{Group, IfName, Source};
use crate::probe::StreamError;
use crate::probe::captured::{CapturedDatagram, SkippedPackets, udp_datagram};
use crate::probe::payload::{MAX_LEN_V4, MAX_LEN_V6};
use crate::sys::ifaddr::InterfaceAddresses;
use crate::sys::multicast::{self, BATCH, OutgoingDatagram};

/// Longest sleep before the stop flag is checked.
const MAX_SLEEP: Duration = Duration::from_millis(100);
/// Most groups that the report lists.
const MAX_LISTED_GROUPS: usize = 64;

/// What is played, and where.
#[derive(Debug, Clone)]
pub struct PlayOptions {
    /// The capture file.
    pub file: PathBuf,
    /// The interface.
    pub interface: IfName,
    /// The group of all packets; without it, each is sent to its own group.
    pub group: Option<Group>,
    /// The port of all packets; without it, each is sent to its own port.
    pub port: Option<u16>,
    /// Plays only packets to this destination of the capture.
    pub only: Option<(IpAddr, Option<u16>)>,
    /// The source address; without it, the kernel chooses.
    pub source: Option<Source>,
    /// TTL or hop limit.
    pub ttl: u8,
    /// DSCP.
    pub dscp: u8,
    /// How many times faster than captured; 0 means as fast as possible.
    pub speed: f64,
    /// Ends after this number of packets.
    pub count: Option<u64>,
    /// Ends after so many seconds.
    pub seconds: Option<f64>,
}

/// The result of one run. Its JSON form is the output of `--json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlayReport {
    /// The file.
    pub file: String,
    /// The interface.
    pub interface: IfName,
    /// The groups, at most 64 of them.
    pub groups: Vec<IpAddr>,
    /// Packets that were sent.
    pub packets: u64,
    /// Bytes of UDP payload.
    pub bytes: u64,
    /// Duration of the run in seconds.
    pub seconds: f64,
    /// Seconds of the capture from the first to the last of these packets.
    pub capture_seconds: f64,
    /// The longest time by which a packet was sent later than the capture says, in milliseconds.
    pub max_late_ms: f64,
    /// Packets that were not sent, by reason.
    pub skipped: SkippedPackets,
    /// Whether the file ends within a packet.
    pub cut_short: bool,
    /// Number of retries after the kernel's queue was full (`ENOBUFS`).
    pub retries: u64,
}

/// Plays according to `options`, until the end of the file or until `stop` is set. Blocks.
pub fn play(options: &PlayOptions, stop: &AtomicBool) -> Result<PlayReport, StreamError> {
    let capture_error = |cause: CaptureFileError| StreamError::Capture {
        path: options.file.display().to_string(),
        cause: cause.to_string(),
    };
    let interface = find_interface(&options.interface)?;
    let mut file = CaptureFile::open(&options.file).map_err(capture_error)?;
    let mut player = Player::new(options, interface, stop);
    let mut first_ns = None;
    let limit = options.seconds.map_or(Duration::MAX, duration);
    let count = options.count.unwrap_or(u64::MAX);
    while player.taken < count {
        let Some(packet) = file.next_packet().map_err(capture_error)? else {
            break;
        };
        let datagram = match udp_datagram(packet.link_type, packet.bytes, packet.len) {
            Ok(datagram) => datagram,
            Err(why) => {
                player.skipped.count(why);
                continue;
            }
        };
        let Some((group, port)) = player.destination(&datagram) else {
            continue;
        };
        let at_ns = packet.at_ns.unwrap_or(player.last_ns);
        let first_ns = *first_ns.get_or_insert(at_ns);
        // A packet without an order in time is due at once.
        let captured = Duration::from_nanos(at_ns.saturating_sub(first_ns));
        let due = match options.speed > 0.0 {
            true => duration(captured.as_secs_f64() / options.speed),
            false => Duration::ZERO,
        };
        if due > limit || !player.wait_until(due, limit)? {
            break;
        }
        player.last_ns = player.last_ns.max(at_ns);
        player.capture = player.capture.max(captured);
        player.push(group, port, &datagram)?;
    }
    player.flush()?;
    Ok(player.report(file.is_cut_short()))
}

/// The datagrams that are due, and what was sent so far.
struct Player<'a> {
    options: &'a PlayOptions,
    interface: InterfaceAddresses,
    stop: &'a AtomicBool,
    started: Instant,
    v4: Option<Socket>,
    v6: Option<Socket>,
    data: Vec<u8>,
    /// Group, destination, and end of the payload in `data` of each datagram that waits.
    queue: Vec<(Group, SockAddr, usize)>,
    groups: BTreeSet<IpAddr>,
    /// Datagrams that were queued or sent.
    taken: u64,
    packets: u64,
    bytes: u64,
    last_ns: u64,
    capture: Duration,
    max_late: Duration,
    skipped: SkippedPackets,
    retries: u64,
}

impl<'a> Player<'a> {
    fn new(options: &'a PlayOptions, interface: InterfaceAddresses, stop: &'a AtomicBool) -> Self {
        Self {
            options,
            interface,
            stop,
            started: Instant::now(),
            v4: None,
            v6: None,
            data: Vec::new(),
            queue: Vec::with_capacity(BATCH),
            groups: BTreeSet::new(),
            taken: 0,
            packets: 0,
            bytes: 0,
            last_ns: 0,
            capture: Duration::ZERO,
            max_late: Duration::ZERO,
            skipped: SkippedPackets::default(),
            retries: 0,
        }
    }

    /// Returns where a datagram of the capture is sent. Counts it as skipped if it is not sent.
    fn destination(&mut self, datagram: &CapturedDatagram<'_>) -> Option<(Group, u16)> {
        let is_selected = |(address, port): (IpAddr, Option<u16>)| {
            address == datagram.destination && port.is_none_or(|port| port == datagram.port)
        };
        if !self.options.only.is_none_or(is_selected) {
            self.skipped.not_selected += 1;
            return None;
        }
        let own = Group::new(datagram.destination).ok();
        let Some(group) = self.options.group.or(own) else {
            self.skipped.unicast += 1;
            return None;
        };
        let max = match group.addr() {
            IpAddr::V4(_) => MAX_LEN_V4,
            IpAddr::V6(_) => MAX_LEN_V6,
        };
        if datagram.payload.len() > max {
            self.skipped.too_large += 1;
            return None;
        }
        // Port 0 cannot be sent to.
        let port = self.options.port.unwrap_or(datagram.port.max(1));
        Some((group, port))
    }

    /// Waits until `due` after the start, with the queue sent before. Returns false if the run is
    /// to end before.
    fn wait_until(&mut self, due: Duration, limit: Duration) -> Result<bool, StreamError> {
        loop {
            let elapsed = self.started.elapsed();
            if self.stop.load(Ordering::Relaxed) || elapsed >= limit {
                return Ok(false);
            }
            if elapsed >= due {
                if self.options.speed > 0.0 {
                    self.max_late = self.max_late.max(elapsed - due);
                }
                return Ok(true);
            }
            if !self.queue.is_empty() {
                self.flush()?;
                continue;
            }
            std::thread::sleep((due - elapsed).min(MAX_SLEEP));
        }
    }

    fn push(
        &mut self,
        group: Group,
        port: u16,
        datagram: &CapturedDatagram<'_>,
    ) -> Result<(), StreamError> {
        let is_other_family =
            |(queued, ..): &(Group, _, _)| queued.addr().is_ipv4() != group.addr().is_ipv4();
        if self.queue.len() >= BATCH || self.queue.last().is_some_and(is_other_family) {
            self.flush()?;
        }
        let to = multicast::destination(group, port, self.interface.index);
        self.data.extend_from_slice(datagram.payload);
        self.queue.push((group, to, self.data.len()));
        self.taken += 1;
        if self.groups.len() < MAX_LISTED_GROUPS {
            self.groups.insert(group.addr());
        }
        Ok(())
    }

    /// Sends the queue.
    fn flush(&mut self) -> Result<(), StreamError> {
        let Some((group, ..)) = self.queue.first() else {
            return Ok(());
        };
        let group = *group;
        let socket = match group.addr().is_ipv4() {
            true => &mut self.v4,
            false => &mut self.v6,
        };
        let socket = match socket {
            Some(socket) => &*socket,
            None => {
                let options = self.options;
                let hops = (options.ttl, options.dscp);
                &*socket.insert(open_socket(&self.interface, group, options.source, hops)?)
            }
        };
        let mut start = 0;
        let mut messages = Vec::with_capacity(self.queue.len());
        for (_, to, end) in &self.queue {
            messages.push(OutgoingDatagram {
                data: &self.data[start..*end],
                to: Some(to),
            });
            start = *end;
        }
        let sent = send_messages(socket, &messages, &mut self.retries, self.stop);
        let sent = sent.map_err(|error| StreamError::Socket {
            what: "send",
            interface: self.interface.name.clone(),
            group,
            error,
        })?;
        self.packets += sent as u64;
        self.bytes += messages[..sent]
            .iter()
            .map(|m| m.data.len() as u64)
            .sum::<u64>();
        self.queue.clear();
        self.data.clear();
        Ok(())
    }

    fn report(self, cut_short: bool) -> PlayReport {
        PlayReport {
            file: self.options.file.display().to_string(),
            interface: self.interface.name,
            groups: self.groups.into_iter().collect(),
            packets: self.packets,
            bytes: self.bytes,
            seconds: self.started.elapsed().as_secs_f64(),
            capture_seconds: self.capture.as_secs_f64(),
            max_late_ms: self.max_late.as_secs_f64() * 1000.0,
            skipped: self.skipped,
            cut_short,
            retries: self.retries,
        }
    }
}
