//! Sends a paced test stream on one interface.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Arg;
use serde::Serialize;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::send_rtp::{RtpOptions, RtpSender, RtpSent};
use super::stream::{StreamOptions, duration, family, now_ns};
use crate::model::{Group, IfName, Source};
use crate::probe::payload::{self, HEADER_LEN, MAX_LEN_V4, MAX_LEN_V6};
use crate::probe::{PaceAction, Pacer, Payload, StreamError};
use crate::streams;
use crate::sys::ifaddr::InterfaceAddresses;
use crate::sys::multicast::{self, BATCH, OutgoingDatagram};

/// Longest sleep before the stop flag is checked.
const MAX_SLEEP: Duration = Duration::from_millis(100);

/// The stream to send, and options of the sender. The derived command-line arguments are those of
/// `mcastor send`.
#[derive(Debug, Clone, clap::Args)]
#[command(mut_args(sender_help))]
pub struct SendOptions {
    /// The stream.
    #[command(flatten)]
    pub stream: StreamOptions,
    /// Packets per second in each flow; 0 means as fast as possible
    #[arg(short, long, value_name = "PPS", default_value_t = 100.0, value_parser = rate,
        display_order = 45)]
    pub rate: f64,
    /// UDP payload in bytes: 40 to 65507, over IPv6 40 to 65487, with --rtp at least 52. Packets
    /// above the MTU are fragmented
    #[arg(long, value_name = "BYTES", default_value_t = 200, display_order = 61)]
    pub size: u16,
    /// TTL or hop limit. Each router decrements it, so packets with TTL 1, the default of many
    /// programs, do not pass a router
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u8).range(1..),
        display_order = 62)]
    pub ttl: u8,
    /// DSCP, 0 to 63
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(..64),
        display_order = 63)]
    pub dscp: u8,
    /// Pass this many packets to the kernel in one GSO packet (UDP_SEGMENT), as fast senders do
    #[arg(long, value_name = "SEGMENTS", value_parser = clap::value_parser!(u16).range(1..=64),
        display_order = 71)]
    pub gso: Option<u16>,
    /// Send without UDP checksums (IPv4 only)
    #[arg(long, conflicts_with = "gso", display_order = 72)]
    pub no_checksum: bool,
    /// How RTP is sent, if it is.
    #[command(flatten)]
    pub rtp: RtpOptions,
}

impl SendOptions {
    /// Returns the length of the RTP header, which is 0 without RTP.
    fn rtp_header_len(&self) -> usize {
        match self.rtp.enabled {
            true => streams::rtp::HEADER_LEN,
            false => 0,
        }
    }

    /// Returns the defaults of the command line for `stream`.
    pub fn new(stream: StreamOptions) -> Self {
        Self {
            stream,
            rate: 100.0,
            size: 200,
            ttl: 16,
            dscp: 0,
            gso: None,
            no_checksum: false,
            rtp: RtpOptions::default(),
        }
    }
}

/// Replaces the help of the shared arguments that have a special meaning for a sender.
fn sender_help(arg: Arg) -> Arg {
    match arg.get_id().as_str() {
        "interface" => arg.help("Interface to send on"),
        "source" => arg.help(
            "Source address, which must be an address of the interface. Default: chosen by the \
             kernel",
        ),
        "port" => arg.help("UDP destination port"),
        "count" => arg.help(
            "Packets per flow. They carry this number, so the receiver also detects loss at the \
             end. Default: unlimited",
        ),
        "flows" => arg.help("Send to N consecutive groups"),
        _ => arg,
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
    /// The RTP headers; absent without `--rtp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtp: Option<RtpSent>,
}

fn open(options: &SendOptions) -> Result<(Socket, InterfaceAddresses), StreamError> {
    let size = usize::from(options.size);
    let max = match options.stream.group.addr() {
        IpAddr::V4(_) => MAX_LEN_V4,
        IpAddr::V6(_) => MAX_LEN_V6,
    };
    let min = HEADER_LEN + options.rtp_header_len();
    if !(min..=max).contains(&size) {
        return Err(StreamError::Usage(format!(
            "--size {size}: must be {min} to {max} bytes over {}",
            family(options.stream.group)
        )));
    }
    if options.no_checksum && options.stream.group.addr().is_ipv6() {
        return Err(StreamError::Usage(
            "--no-checksum: IPv6 requires UDP checksums (RFC 8200 section 8.1)".into(),
        ));
    }
    if let Some(segments) = options.gso.map(usize::from).filter(|s| s * size > max) {
        let fit = max / size;
        return Err(StreamError::Usage(format!(
            "--gso {segments}: at most {fit} packets of {size} bytes fit into one GSO packet"
        )));
    }
    let interface = options.stream.find_interface()?;
    let socket = open_socket(
        &interface,
        options.stream.group,
        options.stream.source,
        (options.ttl, options.dscp),
    )?;
    let socket_error = |what| {
        let (interface, group) = (options.stream.interface.clone(), options.stream.group);
        move |error| StreamError::Socket {
            what,
            interface,
            group,
            error,
        }
    };
    if options.gso.is_some() {
        multicast::set_udp_segment(&socket, options.size)
            .map_err(socket_error("set UDP_SEGMENT"))?;
    }
    if options.no_checksum {
        multicast::set_no_checksum(&socket).map_err(socket_error("disable checksums"))?;
    }
    Ok((socket, interface))
}

/// Opens a socket that sends to groups of the IP version of `group` on `interface`, from `source` if
/// there is one, with this TTL and DSCP.
pub(super) fn open_socket(
    interface: &InterfaceAddresses,
    group: Group,
    source: Option<Source>,
    (ttl, dscp): (u8, u8),
) -> Result<Socket, StreamError> {
    let v4 = group.addr().is_ipv4();
    let mut own = interface
        .addrs
        .iter()
        .filter(|a| a.is_ipv4() == v4)
        .peekable();
    if own.peek().is_none() {
        return Err(StreamError::NoAddress {
            interface: interface.name.clone(),
            family: family(group),
        });
    }
    if let Some(source) = source
        && !interface.addrs.contains(&source.addr())
    {
        let have: Vec<_> = own.map(IpAddr::to_string).collect();
        return Err(StreamError::NotItsAddress {
            source_addr: source.addr(),
            have: have.join(", "),
            interface: interface.name.clone(),
        });
    }
    let socket_error = |what| {
        let interface = interface.name.clone();
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
    multicast::set_egress(&socket, group, interface.index)
        .map_err(socket_error("choose the interface"))?;
    multicast::set_multicast_ttl(&socket, group, ttl).map_err(socket_error("set the TTL"))?;
    multicast::set_dscp(&socket, group, dscp).map_err(socket_error("set the DSCP"))?;
    if let Some(source) = source {
        let mut addr = SocketAddr::new(source.addr(), 0);
        if let SocketAddr::V6(v6) = &mut addr {
            v6.set_scope_id(interface.index.get());
        }
        socket
            .bind(&addr.into())
            .map_err(socket_error("bind the source address"))?;
    }
    Ok(socket)
}

/// Sends according to `options`, until all packets are sent or `stop` is set. Blocks.
pub fn send(options: &SendOptions, stop: &AtomicBool) -> Result<SendReport, StreamError> {
    send_with(options, stop, &mut |_| {})
}

/// Does the same as [`send`]. After each batch, calls `progress` with the number of packets sent so
/// far, summed over all flows.
pub fn send_with(
    options: &SendOptions,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(u64),
) -> Result<SendReport, StreamError> {
    let groups = options.stream.groups()?;
    let (socket, interface) = open(options)?;
    let socket_error = |what| {
        let interface = options.stream.interface.clone();
        move |error| StreamError::Socket {
            what,
            interface,
            group: options.stream.group,
            error,
        }
    };
    let mut to: Vec<SockAddr> = groups
        .iter()
        .map(|&g| multicast::destination(g, options.stream.port, interface.index))
        .collect();
    if let [only] = to.as_slice() {
        // A connected socket saves a route lookup per packet.
        socket.connect(only).map_err(socket_error("find a route"))?;
        to.clear();
    }
    let stream = RandomState::new().build_hasher().finish();
    let flows = groups.len() as u64;
    let size = usize::from(options.size);
    let segments = options.gso.map_or(1, usize::from);
    let header_len = options.rtp_header_len();
    let rtp = options
        .rtp
        .enabled
        .then(|| RtpSender::new(&options.rtp, options.rate));
    let mut batch = SendBatch::new(size, segments, header_len);
    let mut pacer = Pacer::new((options.rate > 0.0).then_some(options.rate * flows as f64));
    let mut next = vec![0u64; groups.len()];
    let (mut flow, mut sent, mut retries) = (0, 0u64, 0u64);
    let started = Instant::now();
    let limit = options.stream.seconds.map_or(Duration::MAX, duration);

    while !stop.load(Ordering::Relaxed)
        && options
            .stream
            .count
            .is_none_or(|n| sent < n.saturating_mul(flows))
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
            let left = options.stream.count.map_or(u64::MAX, |n| n - next[flow]);
            let take = left.min(segments as u64);
            if take == 0 {
                break;
            }
            batch.push(flow, take as usize, |seq, packet| {
                let seq = next[flow] + seq;
                let (header, payload) = packet.split_at_mut(header_len);
                if let Some(rtp) = &rtp {
                    header.copy_from_slice(&rtp.header(flow as u16, seq, elapsed));
                }
                let test = Payload {
                    stream,
                    flow: flow as u16,
                    seq,
                    sent_ns: now_ns(),
                    total: options.stream.count,
                };
                test.write_to(payload);
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
        port: options.stream.port,
        stream: format!("{stream:016x}"),
        packets: sent,
        bytes: sent.saturating_mul(size as u64),
        seconds,
        rate: sent.saturating_sub(flows) as f64 / flows as f64 / seconds.max(1e-9),
        retries,
        rtp: rtp.map(|rtp| rtp.sent(options.stream.flows)),
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
    /// Creates buffers for packets of `size` bytes, whose test payload begins after `header_len`.
    fn new(size: usize, segments: usize, header_len: usize) -> Self {
        let stride = size * segments;
        let mut data = vec![0; stride * BATCH];
        data.chunks_exact_mut(size)
            .filter_map(|packet| packet.get_mut(header_len..))
            .for_each(payload::write_filler);
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

    /// Adds a message of `packets` packets; `write` writes the header of each.
    fn push(&mut self, flow: usize, packets: usize, write: impl Fn(u64, &mut [u8])) {
        let at = self.queue.len() * self.stride;
        let message = &mut self.data[at..at + packets * self.size];
        for (seq, packet) in message.chunks_exact_mut(self.size).enumerate() {
            write(seq as u64, packet);
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
        let done = send_messages(socket, &messages, retries, stop)?;
        Ok(self.queue[..done].iter().map(|&(_, n)| n as u64).sum())
    }
}

/// Sends the messages and returns how many were sent: less than all only if `stop` is set. Counts
/// in `retries` how often the kernel's queue was full.
pub(super) fn send_messages(
    socket: &Socket,
    messages: &[OutgoingDatagram<'_>],
    retries: &mut u64,
    stop: &AtomicBool,
) -> io::Result<usize> {
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
    Ok(done)
}
