//! Receives RTP streams and reports what arrives of them.

use std::net::IpAddr;
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use super::receive::{ReceiveEvent, ReceiveOptions, receive_into};
use super::rtp_stats::{RtpReceiverStats, RtpStreamReport};
use crate::model::IfName;
use crate::probe::StreamError;

/// The result of one run. Its JSON form is the output of `--rtp --json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RtpReceiveReport {
    /// Whether every group has packets and none is lost or duplicated.
    pub ok: bool,
    /// The interface.
    pub interface: IfName,
    /// The received groups.
    pub groups: Vec<IpAddr>,
    /// The groups in which no RTP packet arrived.
    pub silent: Vec<IpAddr>,
    /// The UDP port.
    pub port: u16,
    /// Duration of the run in seconds.
    pub seconds: f64,
    /// Distinct packets, summed over all streams.
    pub received: u64,
    /// Lost packets, summed over all streams; so are the next two fields.
    pub lost: u64,
    /// Packets that arrived again.
    pub duplicates: u64,
    /// Packets that arrived after a packet with a later number.
    pub reordered: u64,
    /// Datagrams that are not RTP.
    pub foreign: u64,
    /// RTP packets of streams beyond the limit of
    /// [`MAX_STREAMS`](crate::probe::stats::MAX_STREAMS).
    pub untracked: u64,
    /// Packets that the kernel dropped at the sockets: full buffer or wrong UDP checksum.
    pub socket_dropped: u64,
    /// The report of each stream.
    pub streams: Vec<RtpStreamReport>,
}

/// Receives RTP according to `options`, until one of its limits is reached or `stop` is set.
/// Blocks.
pub fn receive_rtp(
    options: &ReceiveOptions,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(ReceiveEvent<'_, RtpReceiverStats>),
) -> Result<RtpReceiveReport, StreamError> {
    let mut stats = RtpReceiverStats::default();
    let run = receive_into(options, stop, &mut stats, on_event)?;
    let streams = stats.report();
    let sum = |field: fn(&RtpStreamReport) -> u64| streams.iter().map(field).sum::<u64>();
    let lost = sum(|s| s.rtp.sequence.lost);
    let duplicates = sum(|s| s.rtp.sequence.duplicates);
    Ok(RtpReceiveReport {
        ok: run.silent.is_empty() && lost + duplicates == 0,
        interface: options.stream.interface.clone(),
        groups: run.groups,
        silent: run.silent,
        port: options.stream.port,
        seconds: run.seconds,
        received: sum(|s| s.received),
        lost,
        duplicates,
        reordered: sum(|s| s.rtp.sequence.reordered),
        foreign: stats.foreign(),
        untracked: stats.untracked(),
        socket_dropped: run.socket_dropped,
        streams,
    })
}
