//! `mcastor recv`: joins groups on one interface and gives an account of the test streams in them.

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
use crate::probe::{ReceivedDatagram, ReceiverStats, StreamError};
use crate::sys::multicast::{self, BATCH, Poller, RecvBatch};

/// Longest wait before a look at the stop flag.
const TICK: Duration = Duration::from_millis(100);
/// How often [`RecvEvent::Progress`] is told.
const TELL: Duration = Duration::from_millis(20);
/// How long a complete stream is watched on for duplicates.
const GRACE: Duration = Duration::from_millis(250);
/// Pause after a busy wake-up, so that the next one finds a batch. Arrival times come from the
/// kernel and do not suffer.
const PAUSE: Duration = Duration::from_micros(300);
/// Packets in one wake-up that make it a busy one.
const BUSY: usize = 8;
const RECEIVE_BUFFER: u32 = 8 << 20;

/// Receive test streams of `mcastor send` and report loss, duplicates, order and latency.
///
/// Prints "joined GROUP on INTERFACE" to standard error once packets can arrive. Ends at the
/// first of: --count reached, --seconds over, --idle over, every flow complete (where the sender
/// was given --count and --count is not given here), Ctrl-C. The report comes in each case.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "\
Examples:
  Join a group and report on Ctrl-C, or when a sender with --count is done:
    mcastor recv --interface eth1 --group 225.1.2.3

  Source-specific, for at most ten seconds:
    mcastor recv --interface eth1 --group 232.1.2.3 --source 10.0.0.1 --seconds 10

  Four groups, until two seconds pass without a packet, as JSON:
    mcastor recv --interface eth1 --group ff3e::8000:1 --flows 4 --idle 2 --json

Latency compares the sender's clock with this host's: exact on one host, elsewhere as good as
the synchronization of the clocks.

Exit code: 0 every flow arrived whole, 1 packets lost, doubled or damaged or a flow silent,
2 wrong arguments or a socket error.")]
pub struct RecvArgs {
    /// Interface to join on; packets from others are ignored
    #[arg(short, long, value_name = "NAME")]
    pub interface: IfName,
    /// Multicast group, IPv4 or IPv6; the first one with --flows
    #[arg(short, long, value_name = "ADDR")]
    pub group: Group,
    /// Join for this source alone (SSM)
    #[arg(short, long, value_name = "ADDR")]
    pub source: Option<Source>,
    /// UDP port
    #[arg(short, long, default_value_t = 5000, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Stop when every flow has so many packets, duplicates not counted
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Stop after so many seconds
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub seconds: Option<f64>,
    /// Stop after so many seconds without a packet, from the start on
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub idle: Option<f64>,
    /// Receive so many consecutive groups
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub flows: u16,
    /// Do not join; another program on this host holds the membership
    #[arg(long, conflicts_with = "source")]
    pub no_join: bool,
    /// Print the report as one JSON object
    #[arg(long)]
    pub json: bool,
}

impl RecvArgs {
    /// The defaults of the command line, for `group` on `interface`.
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

/// What [`recv_with`] tells while it runs.
#[derive(Debug)]
pub enum RecvEvent<'a> {
    /// This group is joined, or its socket open where no join was asked for.
    Joined(Group),
    /// The state of affairs, up to fifty times a second.
    Progress(&'a ReceiverStats),
}

/// The account of one run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RecvReport {
    /// True where every group was heard and nothing is lost, doubled, late or damaged.
    pub ok: bool,
    /// The interface.
    pub interface: IfName,
    /// The groups listened to.
    pub groups: Vec<IpAddr>,
    /// Those of them in which no test packet arrived.
    pub silent: Vec<IpAddr>,
    /// The UDP port.
    pub port: u16,
    /// How long it took.
    pub seconds: f64,
    /// Distinct packets of all streams.
    pub received: u64,
    /// Sum over the streams, as all that follow.
    pub lost: u64,
    /// Packets that arrived once more.
    pub duplicates: u64,
    /// Packets that arrived after one with a higher number.
    pub reordered: u64,
    /// Packets too far behind to be told from duplicates.
    pub late: u64,
    /// Packets whose filler is not what was sent.
    pub damaged: u64,
    /// Bytes of UDP payload.
    pub bytes: u64,
    /// Packets that are not of a test stream.
    pub foreign: u64,
    /// Packets of streams past the limit of how many are followed.
    pub untracked: u64,
    /// Packets the kernel dropped at the sockets: a full buffer or a wrong UDP checksum.
    pub socket_dropped: u64,
    /// Each stream by itself.
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

    /// A table for people.
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
            let us = |of: fn(&crate::probe::Latency) -> f64| {
                s.latency_us
                    .as_ref()
                    .map_or("-".into(), |l| format!("{:.1}", of(l)))
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
            (self.late, "too late to tell from duplicates"),
            (self.damaged, "damaged"),
            (self.foreign, "foreign"),
            (self.untracked, "of further streams, not followed"),
            (self.socket_dropped, "dropped at the socket"),
        ] {
            if count > 0 {
                text += &format!("\n{count} {what}");
            }
        }
        if !self.silent.is_empty() {
            let shown: Vec<_> = self.silent.iter().take(10).map(IpAddr::to_string).collect();
            text += &format!("\nnothing in {}", shown.join(", "));
            if self.silent.len() > shown.len() {
                text += &format!(" and {} more", self.silent.len() - shown.len());
            }
        }
        text
    }
}

fn open(args: &RecvArgs, group: Group, index: IfIndex) -> Result<Socket, StreamError> {
    let tried = |what| {
        let interface = args.interface.clone();
        move |error| StreamError::Socket {
            what,
            interface,
            group,
            error,
        }
    };
    // Bound to the group, the socket gets nothing that was sent to another address.
    let (domain, addr): (_, SocketAddr) = match group.addr() {
        IpAddr::V4(a) => (Domain::IPV4, (a, args.port).into()),
        IpAddr::V6(a) => (
            Domain::IPV6,
            SocketAddrV6::new(a, args.port, 0, index.get()).into(),
        ),
    };
    let socket =
        Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)).map_err(tried("open a socket"))?;
    socket
        .set_reuse_address(true)
        .map_err(tried("share the port"))?;
    multicast::set_receive_buffer(&socket, RECEIVE_BUFFER).map_err(tried("size the buffer"))?;
    multicast::set_receive_info(&socket, group).map_err(tried("ask for TTL and time"))?;
    // Before the bind, or packets that another program of the host has joined would slip in.
    if !args.no_join {
        multicast::set_multicast_all(&socket, group, false)
            .map_err(tried("limit the socket to its group"))?;
    }
    socket.bind(&addr.into()).map_err(tried("bind the port"))?;
    if !args.no_join {
        multicast::join(&socket, index, group, args.source).map_err(tried("join"))?;
    }
    Ok(socket)
}

/// Receives what `args` ask for, until one of their limits or `stop`. Blocks.
pub fn recv(args: &RecvArgs, stop: &AtomicBool) -> Result<RecvReport, StreamError> {
    recv_with(args, stop, &mut |_| {})
}

/// As [`recv`], and tells [`RecvEvent`]s on the way.
pub fn recv_with(
    args: &RecvArgs,
    stop: &AtomicBool,
    tell: &mut dyn FnMut(RecvEvent<'_>),
) -> Result<RecvReport, StreamError> {
    let groups = groups_of(args.group, args.flows, args.source)?;
    let interface = find_interface(&args.interface)?;
    let mut sockets = Vec::with_capacity(groups.len());
    for &group in &groups {
        sockets.push(open(args, group, interface.index)?);
        tell(RecvEvent::Joined(group));
    }
    let failed = |what| move |error| StreamError::System { what, error };
    let mut poller = Poller::new(&sockets);
    let mut batch = RecvBatch::new(usize::from(u16::MAX));
    let mut stats = ReceiverStats::default();
    let started = Instant::now();
    let (mut last_packet, mut last_tell) = (started, started);
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
            .map_err(failed("wait for packets"))?;
        let mut got = 0;
        for at in poller.ready() {
            got += drain(
                &mut batch,
                &sockets[at],
                groups[at],
                interface.index,
                &mut stats,
            )
            .map_err(failed("receive"))?;
        }
        let now = Instant::now();
        if got > 0 {
            last_packet = now;
        }
        if now - last_tell >= TELL {
            last_tell = now;
            tell(RecvEvent::Progress(&stats));
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
    tell(RecvEvent::Progress(&stats));
    let mut dropped = 0;
    for (socket, &group) in sockets.iter().zip(&groups) {
        dropped += u64::from(
            multicast::dropped_datagrams(socket).map_err(failed("read the drop counter"))?,
        );
        if !args.no_join {
            // Closing would leave too; an error here only means that the interface is gone.
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

/// Counts what waits at `socket`, up to a few batches so that no socket starves the others, and
/// returns how many packets that was.
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
            // IPv6 memberships do not filter by interface.
            if datagram.ifindex.is_some_and(|i| i != index) {
                continue;
            }
            got += 1;
            stats.add(&ReceivedDatagram {
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

/// The subcommand.
pub fn run(args: RecvArgs) -> ExitCode {
    let mut tell = |event: RecvEvent<'_>| {
        if let RecvEvent::Joined(group) = event {
            let verb = if args.no_join {
                "listening to"
            } else {
                "joined"
            };
            eprintln!("{verb} {group} on {}", args.interface);
        }
    };
    let report = stop_on_signals().and_then(|stop| recv_with(&args, &stop, &mut tell));
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
