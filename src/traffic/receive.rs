//! Joins groups on one interface and reports statistics of the test streams in
//! them.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Arg;
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};

use super::stream::{StreamOptions, duration, now_ns, seconds};
use crate::model::{Group, IfIndex, IfName};
use crate::probe::stats::StreamReport;
use crate::probe::{DatagramStats, ProbeDatagram, ReceiverStats, StreamError};
use crate::sys::multicast::{self, BATCH, Poller, RecvBatch};

/// Longest wait before the stop flag is checked.
const TICK: Duration = Duration::from_millis(100);
/// Shortest interval between two [`ReceiveEvent::Progress`].
const PROGRESS_INTERVAL: Duration = Duration::from_millis(20);
/// How long a complete stream is still received, to detect duplicates.
const GRACE: Duration = Duration::from_millis(250);
/// Pause after a busy wake-up, so that the next wake-up receives a batch. Arrival times come from
/// the kernel and stay exact.
const PAUSE: Duration = Duration::from_micros(300);
/// Packets in one wake-up from which it counts as busy.
const BUSY: usize = 8;
/// Size of the receive buffer of each socket in bytes.
const RECEIVE_BUFFER: u32 = 8 << 20;

/// The stream to receive, and options of the receiver. The derived command-line arguments are those
/// of `mcastor recv`.
#[derive(Debug, Clone, clap::Args)]
#[command(mut_args(receiver_help))]
pub struct ReceiveOptions {
    /// The stream.
    #[command(flatten)]
    pub stream: StreamOptions,
    /// Stop after S seconds without a packet, also before the first packet
    #[arg(long, value_name = "S", value_parser = seconds, display_order = 61)]
    pub idle: Option<f64>,
    /// Do not join, because another program on this host has joined the group
    #[arg(long, conflicts_with = "source", display_order = 71)]
    pub no_join: bool,
}

impl ReceiveOptions {
    /// Returns the defaults of the command line for `stream`.
    pub fn new(stream: StreamOptions) -> Self {
        Self {
            stream,
            idle: None,
            no_join: false,
        }
    }
}

/// Replaces the help of the shared arguments that have a special meaning for a receiver.
fn receiver_help(arg: Arg) -> Arg {
    match arg.get_id().as_str() {
        "interface" => arg.help("Interface to join on; packets from other interfaces are ignored"),
        "source" => arg.help("Join only this source (source-specific multicast)"),
        "count" => arg.help("Stop when every flow has received N packets, not counting duplicates"),
        "flows" => arg.help("Receive N consecutive groups"),
        _ => arg,
    }
}

/// A progress event of [`receive_with`], whose statistics are `S`.
#[derive(Debug)]
pub enum ReceiveEvent<'a, S = ReceiverStats> {
    /// The group is joined; with `no_join`, its socket is open.
    Joined(Group),
    /// The first packet of all.
    First(&'a ProbeDatagram<'a>),
    /// The statistics so far; at most fifty times a second.
    Progress(&'a S),
}

/// The result of one run. Its JSON form is the output of `--json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReceiveReport {
    /// Whether every group has packets and none is lost, duplicated, late or damaged.
    pub ok: bool,
    /// The interface.
    pub interface: IfName,
    /// The received groups.
    pub groups: Vec<IpAddr>,
    /// The groups in which no test packet arrived.
    pub silent: Vec<IpAddr>,
    /// The UDP port.
    pub port: u16,
    /// Duration of the run in seconds.
    pub seconds: f64,
    /// Distinct packets, summed over all streams.
    pub received: u64,
    /// Lost packets, summed over all streams; so are the next five fields.
    pub lost: u64,
    /// Duplicate packets.
    pub duplicates: u64,
    /// Packets that arrived after a packet with a higher number.
    pub reordered: u64,
    /// Packets too far behind to be distinguished from duplicates.
    pub late: u64,
    /// Packets with damaged filler.
    pub damaged: u64,
    /// Bytes of UDP payload.
    pub bytes: u64,
    /// Datagrams that are not test packets.
    pub foreign: u64,
    /// Test packets of streams beyond the limit of
    /// [`MAX_STREAMS`](crate::probe::stats::MAX_STREAMS).
    pub untracked: u64,
    /// Packets that the kernel dropped at the sockets: full buffer or wrong UDP checksum.
    pub socket_dropped: u64,
    /// The report of each stream.
    pub streams: Vec<StreamReport>,
}

impl ReceiveReport {
    fn new(options: &ReceiveOptions, stats: &ReceiverStats, run: &ReceiveRun) -> Self {
        let streams = stats.report();
        let sum = |field: fn(&StreamReport) -> u64| streams.iter().map(field).sum::<u64>();
        let mut report = Self {
            ok: false,
            interface: options.stream.interface.clone(),
            groups: run.groups.clone(),
            silent: run.silent.clone(),
            port: options.stream.port,
            seconds: run.seconds,
            received: sum(|s| s.received),
            lost: sum(|s| s.lost),
            duplicates: sum(|s| s.duplicates),
            reordered: sum(|s| s.reordered),
            late: sum(|s| s.late),
            damaged: sum(|s| s.damaged),
            bytes: sum(|s| s.bytes),
            foreign: stats.foreign(),
            untracked: stats.untracked(),
            socket_dropped: run.socket_dropped,
            streams,
        };
        report.ok = report.silent.is_empty()
            && report.lost + report.duplicates + report.late + report.damaged == 0;
        report
    }
}

fn open(options: &ReceiveOptions, group: Group, index: IfIndex) -> Result<Socket, StreamError> {
    let socket_error = |what| {
        let interface = options.stream.interface.clone();
        move |error| StreamError::Socket {
            what,
            interface,
            group,
            error,
        }
    };
    // A socket that is bound to the group receives only packets to the group.
    let (domain, addr): (_, SocketAddr) = match group.addr() {
        IpAddr::V4(a) => (Domain::IPV4, (a, options.stream.port).into()),
        IpAddr::V6(a) => (
            Domain::IPV6,
            SocketAddrV6::new(a, options.stream.port, 0, index.get()).into(),
        ),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))
        .map_err(socket_error("open a socket"))?;
    socket
        .set_reuse_address(true)
        .map_err(socket_error("share the port"))?;
    multicast::set_receive_buffer(&socket, RECEIVE_BUFFER)
        .map_err(socket_error("set the receive buffer size"))?;
    multicast::set_receive_info(&socket, group)
        .map_err(socket_error("enable TTL and receive timestamps"))?;
    // Set before the bind, so that no packets of memberships of other programs are queued.
    if !options.no_join {
        multicast::set_multicast_all(&socket, group, false)
            .map_err(socket_error("limit the socket to its group"))?;
    }
    socket
        .bind(&addr.into())
        .map_err(socket_error("bind the port"))?;
    if !options.no_join {
        multicast::join(&socket, index, group, options.stream.source)
            .map_err(socket_error("join"))?;
    }
    Ok(socket)
}

/// Receives according to `options`, until one of its limits is reached or `stop` is set. Blocks.
pub fn receive(options: &ReceiveOptions, stop: &AtomicBool) -> Result<ReceiveReport, StreamError> {
    receive_with(options, stop, &mut |_| {})
}

/// Does the same as [`receive`], and reports progress to `on_event`.
pub fn receive_with(
    options: &ReceiveOptions,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(ReceiveEvent<'_>),
) -> Result<ReceiveReport, StreamError> {
    let mut stats = ReceiverStats::default();
    let run = receive_into(options, stop, &mut stats, on_event)?;
    Ok(ReceiveReport::new(options, &stats, &run))
}

/// What is known of a run besides the statistics.
#[derive(Debug, Clone, PartialEq)]
pub struct ReceiveRun {
    /// The received groups.
    pub groups: Vec<IpAddr>,
    /// The groups without packets of a stream.
    pub silent: Vec<IpAddr>,
    /// Duration of the run in seconds.
    pub seconds: f64,
    /// Packets that the kernel dropped at the sockets: full buffer or wrong UDP checksum.
    pub socket_dropped: u64,
}

/// Receives as [`receive_with`], and counts what arrives in `stats`.
pub fn receive_into<S: DatagramStats>(
    options: &ReceiveOptions,
    stop: &AtomicBool,
    stats: &mut S,
    on_event: &mut dyn FnMut(ReceiveEvent<'_, S>),
) -> Result<ReceiveRun, StreamError> {
    let groups = options.stream.groups()?;
    let interface = options.stream.find_interface()?;
    let mut sockets = Vec::with_capacity(groups.len());
    for &group in &groups {
        sockets.push(open(options, group, interface.index)?);
        on_event(ReceiveEvent::Joined(group));
    }
    let system_error = |what| move |error| StreamError::System { what, error };
    let mut poller = Poller::new(&sockets);
    let mut batch = RecvBatch::new(usize::from(u16::MAX));
    let started = Instant::now();
    let (mut last_packet, mut last_progress) = (started, started);
    let mut complete_since = None;
    let limit = options.stream.seconds.map_or(Duration::MAX, duration);
    let idle = options.idle.map_or(Duration::MAX, duration);

    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        let left = limit
            .saturating_sub(now - started)
            .min(idle.saturating_sub(now - last_packet));
        if left.is_zero() {
            break;
        }
        poller
            .wait(left.min(TICK))
            .map_err(system_error("wait for packets"))?;
        let mut got = 0;
        for at in poller.ready() {
            got += drain(
                &mut batch,
                &sockets[at],
                groups[at],
                interface.index,
                stats,
                on_event,
            )
            .map_err(system_error("receive"))?;
        }
        let now = Instant::now();
        if got > 0 {
            last_packet = now;
        }
        if now - last_progress >= PROGRESS_INTERVAL {
            last_progress = now;
            on_event(ReceiveEvent::Progress(stats));
        }
        match options.stream.count {
            Some(n) => {
                if groups.iter().all(|g| stats.received(g.addr()) >= n) {
                    break;
                }
            }
            None if groups.iter().all(|g| stats.is_complete(g.addr())) => {
                if now - *complete_since.get_or_insert(now) >= GRACE {
                    break;
                }
            }
            None => complete_since = None,
        }
        if got >= BUSY {
            std::thread::sleep(PAUSE);
        }
    }
    on_event(ReceiveEvent::Progress(stats));
    let mut dropped = 0;
    for (socket, &group) in sockets.iter().zip(&groups) {
        dropped += u64::from(
            multicast::dropped_datagrams(socket).map_err(system_error("read the drop counter"))?,
        );
        if !options.no_join {
            // Closing the socket leaves too. An error only means that the interface no longer
            // exists.
            let _ = multicast::leave(socket, interface.index, group, options.stream.source);
        }
    }
    let groups: Vec<IpAddr> = groups.iter().map(|g| g.addr()).collect();
    let is_silent = |group: &IpAddr| stats.received(*group) == 0;
    Ok(ReceiveRun {
        silent: groups.iter().copied().filter(is_silent).collect(),
        groups,
        seconds: started.elapsed().as_secs_f64(),
        socket_dropped: dropped,
    })
}

/// Counts the packets that are queued at `socket` and returns their number. Takes at most eight
/// batches, so that no socket starves the others.
fn drain<S: DatagramStats>(
    batch: &mut RecvBatch,
    socket: &Socket,
    group: Group,
    index: IfIndex,
    stats: &mut S,
    on_event: &mut dyn FnMut(ReceiveEvent<'_, S>),
) -> io::Result<usize> {
    let mut got = 0;
    for _ in 0..8 {
        let n = match batch.recv(socket) {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        for i in 0..n {
            let datagram = batch.get(i);
            let Some(from) = datagram.from else { continue };
            // IPv6 sockets also receive packets of memberships on other interfaces.
            if datagram.ifindex.is_some_and(|i| i != index) {
                continue;
            }
            got += 1;
            let datagram = ProbeDatagram {
                group: group.addr(),
                source: from.ip(),
                ttl: datagram.ttl,
                received_ns: datagram.received_ns.unwrap_or_else(now_ns),
                data: datagram.data,
            };
            if stats.datagrams() == 0 {
                on_event(ReceiveEvent::First(&datagram));
            }
            stats.add(&datagram);
        }
        if n < BATCH {
            break;
        }
    }
    Ok(got)
}
