//! The senders. Each uses one thread, pinned to the first core.

use std::io;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mcastor::model::Group;
use mcastor::pipeline::OutPacket;
use mcastor::probe::{PaceAction, Pacer};
use mcastor::sys::transmit::Transmitter;
use mcastor::traffic::{SendOptions, StreamOptions, send};
use mcastor::wire::ip::refresh_ipv4_checksum;
use serde::Serialize;

use crate::Outcome;
use crate::lab::{END, Lab, SOURCE};
use crate::meter;

/// The core of senders and of the receiver that measures latency.
pub const SENDER_CORE: usize = 0;
/// The core of routers.
pub const ROUTER_CORE: usize = 1;

/// Upper limit of packets per run.
const MAX_PACKETS: u64 = 20_000_000;
const BATCH: usize = 64;
/// Datagrams per GSO packet of [`SenderKind::UdpSegments`].
pub const SEGMENTS: u16 = 16;
const IP_UDP: usize = 28;

/// The method of sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SenderKind {
    /// A packet socket that bypasses the device queue. The packets have no UDP checksum, so no
    /// router has to complete one.
    Raw,
    /// UDP sockets that leave the checksum to the device. A veth does not compute it either.
    UdpOffload,
    /// UDP sockets for which the kernel computes checksums.
    Udp,
    /// UDP sockets that pass 16 datagrams to the kernel as one GSO packet.
    UdpSegments,
}

impl SenderKind {
    /// Returns source and group of flow `i`. Ten group prefixes of /16 contain all flows.
    pub fn flow(self, i: usize) -> (Ipv4Addr, Ipv4Addr) {
        match self {
            Self::Raw => {
                let source = Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 1, 0).to_bits() + i as u32);
                let [high, low] = ((i / 10) as u16).to_be_bytes();
                (source, Ipv4Addr::new(225, (i % 10) as u8, high, low))
            }
            _ => (SOURCE, Ipv4Addr::new(225, 0, 0, (i + 1) as u8)),
        }
    }
}

/// The packets to send.
#[derive(Debug, Clone, Copy)]
pub struct Stream {
    pub kind: SenderKind,
    /// Bytes of UDP payload.
    pub size: usize,
    /// Number of (S,G) flows, which take turns.
    pub flows: usize,
    /// Packets per second; `None` for the maximum rate.
    pub rate: Option<f64>,
    pub seconds: f64,
}

/// The result of sending.
#[derive(Debug, Clone, Copy)]
pub struct SendResult {
    pub packets: u64,
    pub seconds: f64,
    /// Run time of the sending thread in nanoseconds, including its soft interrupts.
    pub thread_ns: u64,
}

/// The niceness of senders and routers. It reduces the influence of other processes.
pub const NICE: &str = "-20";

/// Pins the calling thread to a core and sets its niceness to [`NICE`].
pub fn pin(core: usize) -> io::Result<()> {
    let thread = std::fs::read_link("/proc/thread-self")?;
    let id = thread.file_name().unwrap_or_default();
    let core = core.to_string();
    for (program, args) in [
        ("taskset", ["-p", "-c", core.as_str()].as_slice()),
        ("renice", &["-n", NICE, "-p"]),
    ] {
        let mut command = Command::new(program);
        let output = command.args(args).arg(id).stdin(Stdio::null()).output()?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(io::Error::other(format!("{program}: {stderr}")));
        }
    }
    Ok(())
}

/// Sends from the source of `lab` and waits until all packets are sent.
pub fn run(lab: &Lab, stream: Stream, stop: &AtomicBool) -> Outcome<SendResult> {
    let work = || -> Result<SendResult, String> {
        pin(SENDER_CORE).map_err(|e| e.to_string())?;
        let before = meter::own_ns();
        let (packets, seconds) = match stream.kind {
            SenderKind::Raw => send_raw(lab, stream, stop).map_err(|e| e.to_string())?,
            _ => send_udp(stream, stop)?,
        };
        Ok(SendResult {
            packets,
            seconds,
            thread_ns: meter::own_ns().saturating_sub(before),
        })
    };
    Ok(lab.source.run(work)??)
}

/// Returns a UDP packet without a UDP checksum.
pub fn packet(size: usize, (source, group): (Ipv4Addr, Ipv4Addr)) -> Vec<u8> {
    let mut p = vec![0u8; IP_UDP + size];
    let total = p.len() as u16;
    p[0] = 0x45;
    p[2..4].copy_from_slice(&total.to_be_bytes());
    p[8] = 16;
    p[9] = 17;
    p[12..16].copy_from_slice(&source.octets());
    p[16..20].copy_from_slice(&group.octets());
    p[20..24].copy_from_slice(&[0x13, 0x88, 0x13, 0x88]);
    p[24..26].copy_from_slice(&(total - 20).to_be_bytes());
    refresh_ipv4_checksum(&mut p);
    p
}

fn send_raw(lab: &Lab, stream: Stream, stop: &AtomicBool) -> Outcome<(u64, f64)> {
    let mut socket = Transmitter::open(lab.source_index()?, 1, true)?;
    let mut packets: Vec<_> = (0..BATCH)
        .map(|i| packet(stream.size, stream.kind.flow(i % stream.flows)))
        .collect();
    // If the flows divide the batch evenly, the packets of all batches are equal.
    let is_fixed = BATCH.is_multiple_of(stream.flows);
    let max = match stream.rate {
        Some(rate) => ((rate * stream.seconds) as u64).min(MAX_PACKETS),
        None => MAX_PACKETS,
    };
    let mut pacer = Pacer::new(stream.rate);
    let (mut sent, mut at) = (0u64, 0usize);
    let limit = Duration::from_secs_f64(stream.seconds * 2.0);
    let started = Instant::now();
    while sent < max && !stop.load(Ordering::Relaxed) {
        let elapsed = started.elapsed();
        let unpaced_over = stream.rate.is_none() && elapsed.as_secs_f64() >= stream.seconds;
        if unpaced_over || elapsed > limit {
            break;
        }
        let due = match pacer.poll(elapsed) {
            PaceAction::Sleep(pause) => {
                std::thread::sleep(pause);
                continue;
            }
            PaceAction::Send(due) => due.min(max - sent).min(BATCH as u64) as usize,
        };
        if !is_fixed {
            for packet in &mut packets[..due] {
                let (source, group) = stream.kind.flow(at);
                packet[12..16].copy_from_slice(&source.octets());
                packet[16..20].copy_from_slice(&group.octets());
                refresh_ipv4_checksum(packet);
                at = (at + 1) % stream.flows;
            }
        }
        let mut done = 0;
        while done < due {
            match socket.send(packets[done..due].iter().map(|p| OutPacket::plain(p))) {
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => std::thread::yield_now(),
                Err(e) => return Err(e.into()),
            }
        }
        sent += due as u64;
        pacer.sent(due as u64);
    }
    Ok((sent, started.elapsed().as_secs_f64()))
}

/// Returns the options of the sender for a stream.
pub fn send_options(stream: Stream) -> Result<SendOptions, String> {
    let (_, group) = stream.kind.flow(0);
    let group = Group::new(group.into()).map_err(|e| e.to_string())?;
    let interface = END.parse().map_err(|e| format!("{e}"))?;
    let per_flow = stream.rate.map(|rate| rate / stream.flows as f64);
    Ok(SendOptions {
        rate: per_flow.unwrap_or(0.0),
        size: stream.size as u16,
        gso: (stream.kind == SenderKind::UdpSegments).then_some(SEGMENTS),
        ..SendOptions::new(StreamOptions {
            count: per_flow.map(|rate| (rate * stream.seconds) as u64),
            seconds: Some(stream.seconds * if per_flow.is_some() { 2.0 } else { 1.0 }),
            flows: stream.flows as u16,
            ..StreamOptions::new(interface, group)
        })
    })
}

fn send_udp(stream: Stream, stop: &AtomicBool) -> Result<(u64, f64), String> {
    let sent = send(&send_options(stream)?, stop).map_err(|e| e.to_string())?;
    Ok((sent.packets, sent.seconds))
}
