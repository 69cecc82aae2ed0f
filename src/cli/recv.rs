//! `mcastor recv`: joins groups on one interface and reports statistics of the test streams in
//! them.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};

use super::send::{duration, find_interface, groups_of, print, refuse, seconds, stop_on_signals};
use crate::model::{Group, IfIndex, IfName, Source};
use crate::probe::stats::StreamReport;
use crate::probe::{ProbeDatagram, ReceiverStats, StreamError};
use crate::sys::multicast::{self, BATCH, Poller, RecvBatch};

/// Longest wait before the stop flag is checked.
const TICK: Duration = Duration::from_millis(100);
/// Shortest interval between two [`RecvEvent::Progress`].
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

/// Receive test streams of `mcastor send`; report loss, duplicates, reordering and latency
///
/// Joins the groups and prints "joined GROUP on INTERFACE" to standard error when packets can
/// arrive. Stops when --count, --seconds or --idle is reached, or on Ctrl-C. Without --count, it
/// also stops when every flow is complete, if the sender ran with --count. Prints the report in all
/// cases.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "\
Examples:
  Join a group; report on Ctrl-C, or when a sender with --count has finished:
    mcastor recv --interface eth1 --group 225.1.2.3

  Source-specific multicast, for at most ten seconds:
    mcastor recv --interface eth1 --group 232.1.2.3 --source 10.0.0.1 --seconds 10

  Four groups, until no packet arrives for two seconds, as JSON:
    mcastor recv --interface eth1 --group ff3e::8000:1 --flows 4 --idle 2 --json

Latency is measured with the clocks of both hosts: it is exact on one host, and otherwise as exact
as the clocks are synchronized.

Exit code: 0 every flow arrived completely, 1 packets were lost, duplicated, late or damaged, or a
flow had no packets, 2 invalid arguments or a socket error.")]
pub struct RecvArgs {
    /// Interface to join on; packets from other interfaces are ignored
    #[arg(short, long, value_name = "NAME")]
    pub interface: IfName,
    /// Multicast group, IPv4 or IPv6; with --flows, the first of them
    #[arg(short, long, value_name = "ADDR")]
    pub group: Group,
    /// Join only this source (source-specific multicast)
    #[arg(short, long, value_name = "ADDR")]
    pub source: Option<Source>,
    /// UDP port
    #[arg(short, long, default_value_t = 5000, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Stop when every flow has received N packets, not counting duplicates
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Stop after so many seconds
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub seconds: Option<f64>,
    /// Stop after S seconds without a packet, also before the first packet
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub idle: Option<f64>,
    /// Receive N consecutive groups
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub flows: u16,
    /// Do not join, because another program on this host has joined the group
    #[arg(long, conflicts_with = "source")]
    pub no_join: bool,
    /// Print the report as one JSON object
    #[arg(long)]
    pub json: bool,
}

impl RecvArgs {
    /// Returns the defaults of the command line for `group` on `interface`.
    pub fn new(interface: IfName, group: Group) -> Self {
        Self {
            interface,
            group,
            source: None,
            port: 5000,
            count: None,
            seconds: None,
            idle: None,
            flows: 1,
            no_join: false,
            json: false,
        }
    }
}

/// A progress event of [`recv_with`].
#[derive(Debug)]
pub enum RecvEvent<'a> {
    /// The group is joined; with `no_join`, its socket is open.
    Joined(Group),
    /// The statistics so far; at most fifty times a second.
    Progress(&'a ReceiverStats),
}

/// The result of one run. Its JSON form is the output of `--json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RecvReport {
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

impl RecvReport {
    fn new(
        args: &RecvArgs,
        groups: &[Group],
        stats: &ReceiverStats,
        dropped: u64,
        ran: Duration,
    ) -> Self {
        let streams = stats.report();
        let sum = |field: fn(&StreamReport) -> u64| streams.iter().map(field).sum::<u64>();
        let groups: Vec<_> = groups.iter().map(|g| g.addr()).collect();
        let silent: Vec<_> = groups
            .iter()
            .copied()
            .filter(|&g| stats.received(g) == 0)
            .collect();
        let mut report = Self {
            ok: false,
            interface: args.interface.clone(),
            groups,
            silent,
            port: args.port,
            seconds: ran.as_secs_f64(),
            received: sum(|s| s.received),
            lost: sum(|s| s.lost),
            duplicates: sum(|s| s.duplicates),
            reordered: sum(|s| s.reordered),
            late: sum(|s| s.late),
            damaged: sum(|s| s.damaged),
            bytes: sum(|s| s.bytes),
            foreign: stats.foreign(),
            untracked: stats.untracked(),
            socket_dropped: dropped,
            streams,
        };
        report.ok = report.silent.is_empty()
            && report.lost + report.duplicates + report.late + report.damaged == 0;
        report
    }

    /// Formats the report as a table and summary lines.
    fn to_text(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header([
            "group", "source", "received", "lost", "dup", "reord", "ttl", "min us", "p50", "p99",
            "max",
        ]);
        for s in &self.streams {
            let ttl = match (s.ttl_min, s.ttl_max) {
                (Some(a), Some(b)) if a == b => a.to_string(),
                (Some(a), Some(b)) => format!("{a}-{b}"),
                _ => "-".into(),
            };
            let us = |field: fn(&crate::probe::Latency) -> f64| {
                s.latency_us
                    .as_ref()
                    .map_or("-".into(), |l| format!("{:.1}", field(l)))
            };
            table.add_row([
                s.group.to_string(),
                s.source.to_string(),
                s.received.to_string(),
                s.lost.to_string(),
                s.duplicates.to_string(),
                s.reordered.to_string(),
                ttl,
                us(|l| l.min),
                us(|l| l.p50),
                us(|l| l.p99),
                us(|l| l.max),
            ]);
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut text = String::new();
        if !self.streams.is_empty() {
            text = format!("{}\n\n", table.trim_fmt());
        }
        text += &format!(
            "{} received, {} lost, {} duplicates, {} reordered in {:.1} s",
            self.received, self.lost, self.duplicates, self.reordered, self.seconds
        );
        for (count, what) in [
            (self.late, "too late to distinguish from duplicates"),
            (self.damaged, "damaged"),
            (self.foreign, "not test packets"),
            (
                self.untracked,
                "in streams beyond the limit, without statistics",
            ),
            (self.socket_dropped, "dropped at the socket"),
        ] {
            if count > 0 {
                text += &format!("\n{count} {what}");
            }
        }
        if !self.silent.is_empty() {
            let shown: Vec<_> = self.silent.iter().take(10).map(IpAddr::to_string).collect();
            text += &format!("\nno packets in {}", shown.join(", "));
            if self.silent.len() > shown.len() {
                text += &format!(" and {} more", self.silent.len() - shown.len());
            }
        }
        text
    }
}

fn open(args: &RecvArgs, group: Group, index: IfIndex) -> Result<Socket, StreamError> {
    let socket_error = |what| {
        let interface = args.interface.clone();
        move |error| StreamError::Socket {
            what,
            interface,
            group,
            error,
        }
    };
    // A socket that is bound to the group receives only packets to the group.
    let (domain, addr): (_, SocketAddr) = match group.addr() {
        IpAddr::V4(a) => (Domain::IPV4, (a, args.port).into()),
        IpAddr::V6(a) => (
            Domain::IPV6,
            SocketAddrV6::new(a, args.port, 0, index.get()).into(),
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
    if !args.no_join {
        multicast::set_multicast_all(&socket, group, false)
            .map_err(socket_error("limit the socket to its group"))?;
    }
    socket
        .bind(&addr.into())
        .map_err(socket_error("bind the port"))?;
    if !args.no_join {
        multicast::join(&socket, index, group, args.source).map_err(socket_error("join"))?;
    }
    Ok(socket)
}

/// Receives according to `args`, until one of its limits is reached or `stop` is set. Blocks.
pub fn recv(args: &RecvArgs, stop: &AtomicBool) -> Result<RecvReport, StreamError> {
    recv_with(args, stop, &mut |_| {})
}

/// Does the same as [`recv`], and reports progress to `on_event`.
pub fn recv_with(
    args: &RecvArgs,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(RecvEvent<'_>),
) -> Result<RecvReport, StreamError> {
    let groups = groups_of(args.group, args.flows, args.source)?;
    let interface = find_interface(&args.interface)?;
    let mut sockets = Vec::with_capacity(groups.len());
    for &group in &groups {
        sockets.push(open(args, group, interface.index)?);
        on_event(RecvEvent::Joined(group));
    }
    let system_error = |what| move |error| StreamError::System { what, error };
    let mut poller = Poller::new(&sockets);
    let mut batch = RecvBatch::new(usize::from(u16::MAX));
    let mut stats = ReceiverStats::default();
    let started = Instant::now();
    let (mut last_packet, mut last_progress) = (started, started);
    let mut complete_since = None;
    let limit = args.seconds.map_or(Duration::MAX, duration);
    let idle = args.idle.map_or(Duration::MAX, duration);

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
                &mut stats,
            )
            .map_err(system_error("receive"))?;
        }
        let now = Instant::now();
        if got > 0 {
            last_packet = now;
        }
        if now - last_progress >= PROGRESS_INTERVAL {
            last_progress = now;
            on_event(RecvEvent::Progress(&stats));
        }
        match args.count {
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
    on_event(RecvEvent::Progress(&stats));
    let mut dropped = 0;
    for (socket, &group) in sockets.iter().zip(&groups) {
        dropped += u64::from(
            multicast::dropped_datagrams(socket).map_err(system_error("read the drop counter"))?,
        );
        if !args.no_join {
            // Closing the socket leaves too. An error only means that the interface no longer
            // exists.
            let _ = multicast::leave(socket, interface.index, group, args.source);
        }
    }
    Ok(RecvReport::new(
        args,
        &groups,
        &stats,
        dropped,
        started.elapsed(),
    ))
}

/// Counts the packets that are queued at `socket` and returns their number. Takes at most eight
/// batches, so that no socket starves the others.
fn drain(
    batch: &mut RecvBatch,
    socket: &Socket,
    group: Group,
    index: IfIndex,
    stats: &mut ReceiverStats,
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
            stats.add(&ProbeDatagram {
                group: group.addr(),
                source: from.ip(),
                ttl: datagram.ttl,
                received_ns: datagram.received_ns.unwrap_or_else(now_ns),
                data: datagram.data,
            });
        }
        if n < BATCH {
            break;
        }
    }
    Ok(got)
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| d.as_nanos() as u64)
}

/// Runs `mcastor recv`.
pub fn run(args: RecvArgs) -> ExitCode {
    let mut on_event = |event: RecvEvent<'_>| {
        if let RecvEvent::Joined(group) = event {
            let verb = if args.no_join {
                "listening to"
            } else {
                "joined"
            };
            eprintln!("{verb} {group} on {}", args.interface);
        }
    };
    let report = stop_on_signals().and_then(|stop| recv_with(&args, &stop, &mut on_event));
    let report = match report {
        Ok(report) => report,
        Err(error) => return refuse("recv", &error),
    };
    if args.json {
        print(&serde_json::json!(report).to_string());
    } else {
        print(&report.to_text());
    }
    ExitCode::from(u8::from(!report.ok))
}
