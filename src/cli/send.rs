//! `mcastor send`: sends a paced test stream on one interface.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::model::{Group, IfName, Source};
use crate::probe::payload::{self, HEADER_LEN, MAX_LEN_V4, MAX_LEN_V6};
use crate::probe::{PaceAction, Pacer, Payload, StreamError, consecutive_groups};
use crate::sys::ifaddr::{InterfaceAddresses, interfaces};
use crate::sys::multicast::{self, BATCH, OutgoingDatagram};

/// Longest sleep before the stop flag is checked.
const MAX_SLEEP: Duration = Duration::from_millis(100);

/// Send a test stream: numbered multicast packets with timestamps, at a constant rate
///
/// `mcastor recv` at the other end reports loss, duplicates, reordering and latency.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "\
Examples:
  100 packets per second to one group, until Ctrl-C:
    mcastor send --interface eth0 --group 225.1.2.3

  10,000 packets of 1,400 bytes, 5,000 per second:
    mcastor send --interface eth0 --group 225.1.2.3 --rate 5000 --count 10000 --size 1400

  IPv6, four groups (ff3e::8000:1 to ff3e::8000:4), for ten seconds:
    mcastor send --interface eth0 --group ff3e::8000:1 --flows 4 --seconds 10

  With TTL 1, the default of many programs; a router drops these packets:
    mcastor send --interface eth0 --group 225.1.2.3 --ttl 1

Exit code: 0 all packets were sent, 2 invalid arguments or a socket error.")]
pub struct SendArgs {
    /// Interface to send on
    #[arg(short, long, value_name = "NAME")]
    pub interface: IfName,
    /// Multicast group, IPv4 or IPv6; with --flows, the first of them
    #[arg(short, long, value_name = "ADDR")]
    pub group: Group,
    /// Source address, which must be an address of the interface. Default: chosen by the kernel
    #[arg(short, long, value_name = "ADDR")]
    pub source: Option<Source>,
    /// UDP destination port
    #[arg(short, long, default_value_t = 5000, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Packets per second in each flow; 0 means as fast as possible
    #[arg(short, long, value_name = "PPS", default_value_t = 100.0, value_parser = rate)]
    pub rate: f64,
    /// Packets per flow. They carry this number, so the receiver also detects loss at the end.
    /// Default: unlimited
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Stop after so many seconds
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub seconds: Option<f64>,
    /// UDP payload in bytes: 40 to 65507, over IPv6 40 to 65487. Packets above the MTU are
    /// fragmented
    #[arg(long, value_name = "BYTES", default_value_t = 200)]
    pub size: u16,
    /// TTL or hop limit. Each router decrements it, so packets with TTL 1, the default of many
    /// programs, do not pass a router
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub ttl: u8,
    /// DSCP, 0 to 63
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(..64))]
    pub dscp: u8,
    /// Send to N consecutive groups
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub flows: u16,
    /// Pass this many packets to the kernel in one GSO packet (UDP_SEGMENT), as fast senders do
    #[arg(long, value_name = "SEGMENTS", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub gso: Option<u16>,
    /// Send without UDP checksums (IPv4 only)
    #[arg(long, conflicts_with = "gso")]
    pub no_checksum: bool,
    /// Print the summary as one JSON object
    #[arg(long)]
    pub json: bool,
}

impl SendArgs {
    /// Returns the defaults of the command line for `group` on `interface`.
    pub fn new(interface: IfName, group: Group) -> Self {
        Self {
            interface,
            group,
            source: None,
            port: 5000,
            rate: 100.0,
            count: None,
            seconds: None,
            size: 200,
            ttl: 16,
            dscp: 0,
            flows: 1,
            gso: None,
            no_checksum: false,
            json: false,
        }
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate == 0.0 || (0.001..=1e8).contains(&rate) => Ok(rate),
        _ => {
            Err("the rate must be 0.001 to 100000000 packets per second, or 0 for no limit".into())
        }
    }
}

/// Parses a number of seconds: positive, and at most ten years.
pub(super) fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(s) if s > 0.0 && s <= 3.2e8 => Ok(s),
        _ => Err("the number of seconds must be positive, such as 10 or 0.5".into()),
    }
}

/// The result of one run. Its JSON form is the output of `--json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SendReport {
    /// The interface.
    pub interface: IfName,
    /// The groups, in the order of their flow numbers.
    pub groups: Vec<IpAddr>,
    /// The UDP destination port.
    pub port: u16,
    /// Stream id of this run in hexadecimal, which every packet carries.
    pub stream: String,
    /// Packets, summed over all flows.
    pub packets: u64,
    /// Bytes of UDP payload.
    pub bytes: u64,
    /// Duration of the run in seconds.
    pub seconds: f64,
    /// Packets per second in each flow, from the first packet to the last.
    pub rate: f64,
    /// Number of retries after the kernel's queue was full (`ENOBUFS`).
    pub retries: u64,
}

/// Finds the interface `name` and checks that it is up.
pub(super) fn find_interface(name: &IfName) -> Result<InterfaceAddresses, StreamError> {
    let all = interfaces().map_err(|error| StreamError::System {
        what: "list the interfaces",
        error,
    })?;
    let Some(found) = all.iter().find(|i| i.name == *name) else {
        let have: Vec<_> = all.iter().map(|i| i.name.as_str()).collect();
        return Err(StreamError::NoInterface {
            name: name.clone(),
            have: have.join(", "),
        });
    };
    if !found.up {
        return Err(StreamError::Down(name.clone()));
    }
    Ok(found.clone())
}

/// Returns `IPv4` or `IPv6`, for messages.
pub(super) fn family(group: Group) -> &'static str {
    match group.addr() {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    }
}

/// Returns the groups of the flows, after a check that group and source have the same IP version.
pub(super) fn groups_of(
    group: Group,
    flows: u16,
    source: Option<Source>,
) -> Result<Vec<Group>, StreamError> {
    if let Some(source) = source.filter(|s| s.addr().is_ipv4() != group.addr().is_ipv4()) {
        return Err(StreamError::Usage(format!(
            "--source {source} and --group {group} have different IP versions"
        )));
    }
    consecutive_groups(group, flows).ok_or_else(|| {
        StreamError::Usage(format!(
            "--flows {flows}: too many groups from {group} to the end of the multicast range"
        ))
    })
}

/// Converts to a duration. Values out of range, which the parser rejects, become the longest
/// duration.
pub(super) fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| d.as_nanos() as u64)
}

fn open(args: &SendArgs) -> Result<(Socket, InterfaceAddresses), StreamError> {
    let size = usize::from(args.size);
    let max = match args.group.addr() {
        IpAddr::V4(_) => MAX_LEN_V4,
        IpAddr::V6(_) => MAX_LEN_V6,
    };
    if !(HEADER_LEN..=max).contains(&size) {
        return Err(StreamError::Usage(format!(
            "--size {size}: must be {HEADER_LEN} to {max} bytes over {}",
            family(args.group)
        )));
    }
    if args.no_checksum && args.group.addr().is_ipv6() {
        return Err(StreamError::Usage(
            "--no-checksum: IPv6 requires UDP checksums (RFC 8200 section 8.1)".into(),
        ));
    }
    if let Some(segments) = args.gso.map(usize::from).filter(|s| s * size > max) {
        let fit = max / size;
        return Err(StreamError::Usage(format!(
            "--gso {segments}: at most {fit} packets of {size} bytes fit into one GSO packet"
        )));
    }
    let interface = find_interface(&args.interface)?;
    let v4 = args.group.addr().is_ipv4();
    let mut own = interface
        .addrs
        .iter()
        .filter(|a| a.is_ipv4() == v4)
        .peekable();
    if own.peek().is_none() {
        return Err(StreamError::NoAddress {
            interface: interface.name,
            family: family(args.group),
        });
    }
    if let Some(source) = args.source
        && !interface.addrs.contains(&source.addr())
    {
        let have: Vec<_> = own.map(IpAddr::to_string).collect();
        return Err(StreamError::NotItsAddress {
            source_addr: source.addr(),
            have: have.join(", "),
            interface: interface.name,
        });
    }

    let socket_error = |what| {
        let (interface, group) = (args.interface.clone(), args.group);
        move |error| StreamError::Socket {
            what,
            interface,
            group,
            error,
        }
    };
    let domain = if v4 { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))
        .map_err(socket_error("open a socket"))?;
    multicast::set_egress(&socket, args.group, interface.index)
        .map_err(socket_error("choose the interface"))?;
    multicast::set_multicast_ttl(&socket, args.group, args.ttl)
        .map_err(socket_error("set the TTL"))?;
    multicast::set_dscp(&socket, args.group, args.dscp).map_err(socket_error("set the DSCP"))?;
    if args.gso.is_some() {
        multicast::set_udp_segment(&socket, args.size).map_err(socket_error("set UDP_SEGMENT"))?;
    }
    if args.no_checksum {
        multicast::set_no_checksum(&socket).map_err(socket_error("disable checksums"))?;
    }
    if let Some(source) = args.source {
        let mut addr = SocketAddr::new(source.addr(), 0);
        if let SocketAddr::V6(v6) = &mut addr {
            v6.set_scope_id(interface.index.get());
        }
        socket
            .bind(&addr.into())
            .map_err(socket_error("bind the source address"))?;
    }
    Ok((socket, interface))
}

/// Sends according to `args`, until all packets are sent or `stop` is set. Blocks.
pub fn send(args: &SendArgs, stop: &AtomicBool) -> Result<SendReport, StreamError> {
    send_with(args, stop, &mut |_| {})
}

/// Does the same as [`send`]. After each batch, calls `progress` with the number of packets sent so
/// far, summed over all flows.
pub fn send_with(
    args: &SendArgs,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(u64),
) -> Result<SendReport, StreamError> {
    let groups = groups_of(args.group, args.flows, args.source)?;
    let (socket, interface) = open(args)?;
    let socket_error = |what| {
        let interface = args.interface.clone();
        move |error| StreamError::Socket {
            what,
            interface,
            group: args.group,
            error,
        }
    };
    let mut to: Vec<SockAddr> = groups
        .iter()
        .map(|&g| multicast::destination(g, args.port, interface.index))
        .collect();
    if let [only] = to.as_slice() {
        // A connected socket saves a route lookup per packet.
        socket.connect(only).map_err(socket_error("find a route"))?;
        to.clear();
    }
    let stream = RandomState::new().build_hasher().finish();
    let flows = groups.len() as u64;
    let size = usize::from(args.size);
    let segments = args.gso.map_or(1, usize::from);
    let mut batch = SendBatch::new(size, segments);
    let mut pacer = Pacer::new((args.rate > 0.0).then_some(args.rate * flows as f64));
    let mut next = vec![0u64; groups.len()];
    let (mut flow, mut sent, mut retries) = (0, 0u64, 0u64);
    let started = Instant::now();
    let limit = args.seconds.map_or(Duration::MAX, duration);

    while !stop.load(Ordering::Relaxed) && args.count.is_none_or(|n| sent < n.saturating_mul(flows))
    {
        let elapsed = started.elapsed();
        if elapsed >= limit {
            break;
        }
        let due = match pacer.poll(elapsed) {
            PaceAction::Sleep(pause) => {
                std::thread::sleep(pause.min(MAX_SLEEP).min(limit - elapsed));
                continue;
            }
            PaceAction::Send(due) => due,
        };
        batch.clear();
        let mut queued = 0;
        while queued < due && !batch.is_full() {
            let left = args.count.map_or(u64::MAX, |n| n - next[flow]);
            let take = left.min(segments as u64);
            if take == 0 {
                break;
            }
            batch.push(flow, take as usize, |seq| Payload {
                stream,
                flow: flow as u16,
                seq: next[flow] + seq,
                sent_ns: now_ns(),
                total: args.count,
            });
            next[flow] += take;
            queued += take;
            flow = (flow + 1) % groups.len();
        }
        let sent_now = batch
            .send(&socket, &to, &mut retries, stop)
            .map_err(socket_error("send"))?;
        sent += sent_now;
        pacer.sent(sent_now);
        progress(sent);
    }
    let seconds = started.elapsed().as_secs_f64();
    Ok(SendReport {
        interface: interface.name,
        groups: groups.iter().map(|g| g.addr()).collect(),
        port: args.port,
        stream: format!("{stream:016x}"),
        packets: sent,
        bytes: sent.saturating_mul(size as u64),
        seconds,
        rate: sent.saturating_sub(flows) as f64 / flows as f64 / seconds.max(1e-9),
        retries,
    })
}

/// Messages that are sent with one system call. A message holds one or more packets of one flow.
struct SendBatch {
    size: usize,
    stride: usize,
    data: Vec<u8>,
    /// Flow and number of packets of each message.
    queue: Vec<(usize, usize)>,
}

impl SendBatch {
    fn new(size: usize, segments: usize) -> Self {
        let stride = size * segments;
        let mut data = vec![0; stride * BATCH];
        data.chunks_exact_mut(size).for_each(payload::write_filler);
        Self {
            size,
            stride,
            data,
            queue: Vec::with_capacity(BATCH),
        }
    }

    fn clear(&mut self) {
        self.queue.clear();
    }

    fn is_full(&self) -> bool {
        self.queue.len() >= BATCH
    }

    fn push(&mut self, flow: usize, packets: usize, header: impl Fn(u64) -> Payload) {
        let at = self.queue.len() * self.stride;
        let message = &mut self.data[at..at + packets * self.size];
        for (seq, packet) in message.chunks_exact_mut(self.size).enumerate() {
            header(seq as u64).write_to(packet);
        }
        self.queue.push((flow, packets));
    }

    /// Sends the queued messages and returns the number of packets sent. It is less than queued
    /// only if `stop` is set.
    fn send(
        &self,
        socket: &Socket,
        to: &[SockAddr],
        retries: &mut u64,
        stop: &AtomicBool,
    ) -> io::Result<u64> {
        let messages: Vec<OutgoingDatagram<'_>> = self
            .queue
            .iter()
            .zip(self.data.chunks_exact(self.stride))
            .map(|(&(flow, packets), data)| OutgoingDatagram {
                data: &data[..packets * self.size],
                to: to.get(flow),
            })
            .collect();
        let mut done = 0;
        while done < messages.len() {
            match multicast::send_batch(socket, &messages[done..]) {
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                    *retries += 1;
                    std::thread::sleep(crate::probe::pace::QUANTUM);
                }
                Err(e) => return Err(e),
            }
            if stop.load(Ordering::Relaxed) {
                break;
            }
        }
        Ok(self.queue[..done].iter().map(|&(_, n)| n as u64).sum())
    }
}

/// Returns a flag that SIGINT and SIGTERM set.
pub(super) fn stop_on_signals() -> Result<Arc<AtomicBool>, StreamError> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).map_err(|error| {
            StreamError::System {
                what: "catch signals",
                error,
            }
        })?;
    }
    Ok(stop)
}

/// Prints `error`; returns exit code 2.
pub(super) fn refuse(command: &str, error: &StreamError) -> ExitCode {
    eprintln!("mcastor {command}: {error}");
    ExitCode::from(2)
}

/// Prints `text` and a newline. Ignores errors: a closed output must not change the exit code.
pub(super) fn print(text: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Runs `mcastor send`.
pub fn run(args: SendArgs) -> ExitCode {
    let sent = stop_on_signals().and_then(|stop| send(&args, &stop));
    let sent = match sent {
        Ok(sent) => sent,
        Err(error) => return refuse("send", &error),
    };
    if args.json {
        print(&serde_json::json!(sent).to_string());
    } else {
        print(&format!(
            "{} packets, {} bytes to {}{} on {} in {:.3} s: {:.1} packets/s per flow",
            sent.packets,
            sent.bytes,
            args.group,
            match args.flows {
                1 => String::new(),
                n => format!(" and {} more", n - 1),
            },
            sent.interface,
            sent.seconds,
            sent.rate,
        ));
    }
    ExitCode::SUCCESS
}
