//! `mcastor send`: a paced test stream out of one interface.

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

/// Longest pause before a look at the stop flag.
const NAP: Duration = Duration::from_millis(100);

/// Send a test stream: numbered, time-stamped multicast packets at a steady rate.
///
/// `mcastor recv` at the other end tells loss, duplicates, order and latency.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "\
Examples:
  100 packets a second to one group, until Ctrl-C:
    mcastor send --interface eth0 --group 225.1.2.3

  10,000 packets of 1,400 bytes at 5,000 a second:
    mcastor send --interface eth0 --group 225.1.2.3 --rate 5000 --count 10000 --size 1400

  IPv6, four groups (ff3e::8000:1 to ff3e::8000:4), for ten seconds:
    mcastor send --interface eth0 --group ff3e::8000:1 --flows 4 --seconds 10

  What a player with TTL 1 does, which routers drop:
    mcastor send --interface eth0 --group 225.1.2.3 --ttl 1

Exit code: 0 all sent, 2 wrong arguments or a socket error.")]
pub struct SendArgs {
    /// InterfaceAddresses the packets leave by
    #[arg(short, long, value_name = "NAME")]
    pub interface: IfName,
    /// Multicast group, IPv4 or IPv6; the first one with --flows
    #[arg(short, long, value_name = "ADDR")]
    pub group: Group,
    /// Source address; one of the interface's. Default: the kernel's choice
    #[arg(short, long, value_name = "ADDR")]
    pub source: Option<Source>,
    /// UDP destination port
    #[arg(short, long, default_value_t = 5000, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Packets per second and flow; 0: as fast as possible
    #[arg(short, long, value_name = "PPS", default_value_t = 100.0, value_parser = rate)]
    pub rate: f64,
    /// Packets per flow; the receiver is told and finds lost ones at the end too. Default: no end
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Stop after so many seconds
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub seconds: Option<f64>,
    /// UDP payload in bytes: 40 to 65507, over IPv6 to 65487. More than the MTU is fragmented
    #[arg(long, value_name = "BYTES", default_value_t = 200)]
    pub size: u16,
    /// TTL or hop limit. Each router takes one off; the usual default of programs, 1, gets
    /// through none
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub ttl: u8,
    /// DSCP, 0 to 63
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(..64))]
    pub dscp: u8,
    /// Send to so many consecutive_groups groups
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub flows: u16,
    /// Hand so many packets to the kernel as one (UDP_SEGMENT), as fast senders do
    #[arg(long, value_name = "SEGMENTS", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub gso: Option<u16>,
    /// Send without UDP checksum; IPv4 only
    #[arg(long, conflicts_with = "gso")]
    pub no_checksum: bool,
    /// Print the summary as one JSON object
    #[arg(long)]
    pub json: bool,
}

impl SendArgs {
    /// The defaults of the command line, for `group` out of `interface`.
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
        _ => Err("a rate is packets per second, from 0.001 to 100000000, or 0 for no limit".into()),
    }
}

/// Seconds of a command line: positive and at most ten years.
pub(super) fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(s) if s > 0.0 && s <= 3.2e8 => Ok(s),
        _ => Err("seconds are a positive number, such as 10 or 0.5".into()),
    }
}

/// What was sent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SendReport {
    /// The interface.
    pub interface: IfName,
    /// The groups, in the order of their flow numbers.
    pub groups: Vec<IpAddr>,
    /// The UDP destination port.
    pub port: u16,
    /// The id in every packet of this run, in hexadecimal.
    pub stream: String,
    /// Packets, all flows together.
    pub packets: u64,
    /// Bytes of UDP payload.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// Packets per second and flow, counted from the first packet to the last.
    pub rate: f64,
    /// Times the kernel had no room and the packet was offered again.
    pub retries: u64,
}

/// Finds `name` and checks that it is up.
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

pub(super) fn family(group: Group) -> &'static str {
    match group.addr() {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    }
}

/// The groups of `flows`, once the group and the source are of one family.
pub(super) fn groups_of(
    group: Group,
    flows: u16,
    source: Option<Source>,
) -> Result<Vec<Group>, StreamError> {
    if let Some(source) = source.filter(|s| s.addr().is_ipv4() != group.addr().is_ipv4()) {
        return Err(StreamError::Usage(format!(
            "--source {source} and --group {group} are of different IP versions"
        )));
    }
    consecutive_groups(group, flows).ok_or_else(|| {
        StreamError::Usage(format!(
            "--flows {flows}: {group} is too near the end of the multicast range"
        ))
    })
}

/// Milliseconds to years; the parser keeps `seconds` in that range, other callers may not.
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
            "--size {size}: from {HEADER_LEN} to {max} bytes over {}",
            family(args.group)
        )));
    }
    if args.no_checksum && args.group.addr().is_ipv6() {
        return Err(StreamError::Usage(
            "--no-checksum: IPv6 has no packets without UDP checksum (RFC 8200 section 8.1)".into(),
        ));
    }
    if let Some(segments) = args.gso.map(usize::from).filter(|s| s * size > max) {
        let fit = max / size;
        return Err(StreamError::Usage(format!(
            "--gso {segments}: {fit} packets of {size} bytes fit into one call"
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

    let tried = |what| {
        let (interface, group) = (args.interface.clone(), args.group);
        move |error| StreamError::Socket {
            what,
            interface,
            group,
            error,
        }
    };
    let domain = if v4 { Domain::IPV4 } else { Domain::IPV6 };
    let socket =
        Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)).map_err(tried("open a socket"))?;
    multicast::set_egress(&socket, args.group, interface.index)
        .map_err(tried("choose the interface"))?;
    multicast::set_multicast_ttl(&socket, args.group, args.ttl).map_err(tried("set the TTL"))?;
    multicast::set_dscp(&socket, args.group, args.dscp).map_err(tried("set the DSCP"))?;
    if args.gso.is_some() {
        multicast::set_udp_segment(&socket, args.size).map_err(tried("set UDP_SEGMENT"))?;
    }
    if args.no_checksum {
        multicast::set_no_checksum(&socket).map_err(tried("turn checksums off"))?;
    }
    if let Some(source) = args.source {
        let mut addr = SocketAddr::new(source.addr(), 0);
        if let SocketAddr::V6(v6) = &mut addr {
            v6.set_scope_id(interface.index.get());
        }
        socket
            .bind(&addr.into())
            .map_err(tried("bind the source address"))?;
    }
    Ok((socket, interface))
}

/// Sends what `args` ask for until it is done or `stop` is set. Blocks.
pub fn send(args: &SendArgs, stop: &AtomicBool) -> Result<SendReport, StreamError> {
    send_with(args, stop, &mut |_| {})
}

/// As [`send`], and tells the number of packets so far, all flows together, after every batch.
pub fn send_with(
    args: &SendArgs,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(u64),
) -> Result<SendReport, StreamError> {
    let groups = groups_of(args.group, args.flows, args.source)?;
    let (socket, interface) = open(args)?;
    let refused = |what| {
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
        // Saves the kernel a route lookup per packet.
        socket.connect(only).map_err(refused("find a route"))?;
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
        let owed = match pacer.poll(elapsed) {
            PaceAction::Sleep(pause) => {
                std::thread::sleep(pause.min(NAP).min(limit - elapsed));
                continue;
            }
            PaceAction::Send(owed) => owed,
        };
        batch.clear();
        let mut queued = 0;
        while queued < owed && batch.has_room() {
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
            .map_err(refused("send"))?;
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

/// Messages that leave with one call, each of one or more packets of one flow.
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

    fn has_room(&self) -> bool {
        self.queue.len() < BATCH
    }

    fn push(&mut self, flow: usize, packets: usize, header: impl Fn(u64) -> Payload) {
        let at = self.queue.len() * self.stride;
        let message = &mut self.data[at..at + packets * self.size];
        for (seq, packet) in message.chunks_exact_mut(self.size).enumerate() {
            header(seq as u64).write_to(packet);
        }
        self.queue.push((flow, packets));
    }

    /// Sends the queue and returns how many packets that was; fewer than queued only when `stop`
    /// is set.
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

/// A flag that SIGINT and SIGTERM set.
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

/// Prints what went wrong; the exit code of a wrong call.
pub(super) fn refuse(command: &str, error: &StreamError) -> ExitCode {
    eprintln!("mcastor {command}: {error}");
    ExitCode::from(2)
}

/// Prints a result. A reader that went away changes neither it nor the exit code.
pub(super) fn print(text: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// The subcommand.
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
            "{} packets, {} bytes to {}{} on {} in {:.3} s: {:.1} packets/s and flow",
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
