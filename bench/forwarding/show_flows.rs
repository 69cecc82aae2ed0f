//! Whether `show flows` disturbs forwarding: loss and latency at a high rate with many flows, with
//! and without a client that requests all flows once per second.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::lab::Lab;
use crate::peer::{self, Peer, Rules};
use crate::run::measure_latency;
use crate::sender::{self, SENDER_CORE, SenderKind, Stream};

/// Number of flows.
pub const FLOWS: usize = 100_000;
/// Packets per second of all flows together.
pub const RATE: f64 = 300_000.0;
/// Packets per second of the stream whose latency is measured.
const PROBE_RATE: f64 = 1_000.0;
const SECONDS: f64 = 4.0;

/// Names of the two cases.
pub const CASES: [(&str, bool); 2] = [("not shown", false), ("shown once per second", true)];

/// Measures one case. Returns named figures.
pub fn measure(shown: bool, stop: &AtomicBool) -> Outcome<Vec<(&'static str, f64)>> {
    let lab = Lab::new(1)?;
    lab.offload(true)?;
    let stream = Stream {
        kind: SenderKind::Raw,
        size: 200,
        flows: FLOWS,
        rate: Some(RATE),
        seconds: SECONDS,
    };
    let probe = Stream {
        kind: SenderKind::UdpOffload,
        flows: 1,
        rate: Some(PROBE_RATE),
        seconds: SECONDS * 0.8,
        ..stream
    };
    let mut running = peer::start(&lab, Peer::Mcastor, Rules::Prefixes, stream.kind, FLOWS)?;
    peer::wait_ready(&lab, &mut running, stream)?;
    let before = lab.wait_until_quiet()?;
    let requests = AtomicU64::new(0);
    let ended = AtomicBool::new(false);
    let socket = running.control_socket();
    let (sent, latency) = std::thread::scope(|scope| -> Outcome<_> {
        let sending = scope.spawn(|| sender::run(&lab, stream, stop).map_err(|e| e.to_string()));
        let showing = scope.spawn(|| match shown {
            true => request_flows(&socket, &requests, &ended).map_err(|e| e.to_string()),
            false => Ok(()),
        });
        let latency = measure_latency(&lab, probe, Rules::Prefixes, stop);
        let sent = sending.join().map_err(|_| "the sender panicked")?;
        ended.store(true, Ordering::Relaxed);
        showing.join().map_err(|_| "the client panicked")??;
        Ok((sent?, latency?))
    })?;
    let after = lab.wait_until_quiet()?;
    let arrived = after[0].saturating_sub(before[0]);
    // The probe packets arrive besides.
    let sent = sent.packets + (PROBE_RATE * probe.seconds) as u64;
    let mut figures = vec![
        ("lost", sent.saturating_sub(arrived) as f64),
        ("sent", sent as f64),
        ("requests", requests.load(Ordering::Relaxed) as f64),
    ];
    let quantiles = latency.into_iter().filter(|(name, _)| *name != "lost");
    figures.extend(quantiles);
    Ok(figures)
}

/// Requests all flows once per second and checks that each reply has all of them.
fn request_flows(socket: &Path, requests: &AtomicU64, ended: &AtomicBool) -> Outcome<()> {
    sender::pin(SENDER_CORE)?;
    let mut stream = UnixStream::connect(socket)?;
    let mut reply = Vec::new();
    while !ended.load(Ordering::Relaxed) {
        let started = Instant::now();
        request(&mut stream, &mut reply)?;
        let flows = reply.windows(6).filter(|w| w == b"\"iif\":").count();
        if flows < FLOWS {
            return Err(format!("a reply has only {flows} flows").into());
        }
        requests.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_secs(1).saturating_sub(started.elapsed()));
    }
    Ok(())
}

/// Requests all flows once. Replaces the content of `reply`.
pub fn request(stream: &mut UnixStream, reply: &mut Vec<u8>) -> std::io::Result<()> {
    stream.write_all(b"{\"version\":1,\"command\":{\"show\":\"flows\"}}\n")?;
    reply.clear();
    BufReader::new(stream).read_until(b'\n', reply)?;
    Ok(())
}
