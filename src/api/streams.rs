//! The records of `show streams`: the health of monitored streams.
//!
//! All numbers are integers with their unit in the name, so that scripts need no floating point.
//! Totals count since the stream is monitored; `minute` counts the last 50 to 60 seconds.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// A monitored stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StreamView {
    /// Name of the ingress interface.
    pub iif: String,
    /// Source address.
    pub source: String,
    /// Group address.
    pub group: String,
    /// The route or proxy that forwards it; null if routes have changed since its last packet.
    #[schema(required)]
    pub route: Option<String>,
    /// How the settings ask for it to be monitored: `rtp`, `ts`, `sequence`, `rate` or `auto`.
    pub monitor: String,
    /// What its packets are examined as: `rtp`, `rtp_ts` (MPEG-TS in RTP), `ts`, `sequence` or
    /// `rate`; `unknown` while `auto` has not recognised them.
    pub kind: String,
    /// What is wrong with it.
    pub verdict: StreamVerdict,
    /// The verdict in words, with numbers and reasons.
    pub explanation: String,
    /// Milliseconds since it is monitored.
    pub age_ms: u64,
    /// Milliseconds since its last packet, half a second ago at most; with more than 300 streams on
    /// an interface, longer ago.
    pub idle_ms: u64,
    /// The stream as it arrives.
    pub ingress: StreamHealth,
    /// Packets lost before this router: missing numbers of the stream. Null if it has none.
    #[schema(required)]
    pub lost_before: Option<StreamLoss>,
    /// Packets that arrived and did not leave on all egress interfaces, by reason. The reason
    /// `socket` counts packets of any stream that the kernel dropped on the ingress interface.
    pub lost_here: BTreeMap<String, StreamLoss>,
    /// The stream as it leaves.
    pub egresses: Vec<StreamEgressView>,
}

/// What is wrong with a stream, judged by the last minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StreamVerdict {
    /// Nothing: it arrives, and all of it leaves.
    Fine,
    /// No packet arrives any more.
    Silent,
    /// Packets are missing when it arrives.
    LostBefore,
    /// Packets that arrived did not leave.
    LostHere,
    /// Both.
    LostBeforeAndHere,
    /// No packet is missing, but its contents are faulty as they arrive: continuity, tables,
    /// transport errors.
    Faulty,
}

impl StreamVerdict {
    /// All verdicts.
    pub const ALL: [Self; 6] = [
        Self::Fine,
        Self::Silent,
        Self::LostBefore,
        Self::LostHere,
        Self::LostBeforeAndHere,
        Self::Faulty,
    ];

    /// Returns the verdict as in JSON and in the labels of metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::Silent => "silent",
            Self::LostBefore => "lost_before",
            Self::LostHere => "lost_here",
            Self::LostBeforeAndHere => "lost_before_and_here",
            Self::Faulty => "faulty",
        }
    }

    /// Returns the verdict in words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::Silent => "silent",
            Self::LostBefore => "lost before us",
            Self::LostHere => "lost here",
            Self::LostBeforeAndHere => "lost before us and here",
            Self::Faulty => "faulty as it arrives",
        }
    }
}

/// A number of packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StreamLoss {
    /// Since the stream is monitored.
    pub total: u64,
    /// In the last 50 to 60 seconds.
    pub minute: u64,
}

/// A monitored stream on one egress interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StreamEgressView {
    /// Name of the egress interface.
    pub interface: String,
    /// Packets lost here, by reason, as in the `reason` label of metrics.
    pub lost_here: BTreeMap<String, StreamLoss>,
    /// The stream as it was sent. Without MDI and MPEG-TS, which the ingress has.
    pub health: StreamHealth,
}

/// The health of a stream at one point.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StreamHealth {
    /// Packets.
    pub packets: u64,
    /// IP bytes.
    pub bytes: u64,
    /// Packets in the last 50 to 60 seconds.
    pub packets_minute: u64,
    /// Rates.
    pub rate: StreamRate,
    /// Times between packets in the last 30 to 60 seconds; null before the second packet.
    #[schema(required)]
    pub inter_arrival: Option<InterArrivalView>,
    /// RTP (RFC 3550); null for other streams.
    #[schema(required)]
    pub rtp: Option<RtpView>,
    /// Sequence numbers of another protocol; null for other streams.
    #[schema(required)]
    pub sequence: Option<SequenceView>,
    /// Media delivery index (RFC 4445); null for streams without MPEG-TS.
    #[schema(required)]
    pub mdi: Option<MdiView>,
    /// MPEG-TS, first priority of TR 101 290; null for other streams.
    #[schema(required)]
    pub ts: Option<TsView>,
}

/// The rates of a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StreamRate {
    /// Packets in the last full second.
    pub packets_per_second: u64,
    /// Bits of IP packets in the last full second.
    pub bits_per_second: u64,
    /// Most packets in 10 ms of the last full second.
    pub peak_10ms_packets: u64,
    /// Most bits of IP packets in 10 ms of the last full second.
    pub peak_10ms_bits: u64,
}

/// Times between packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InterArrivalView {
    /// Median in microseconds, at most 7 % too high.
    pub p50_us: u64,
    /// 99th percentile in microseconds, at most 7 % too high.
    pub p99_us: u64,
    /// Longest time in microseconds.
    pub max_us: u64,
}

/// What RTP says about a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RtpView {
    /// Synchronisation source, of the latest packet.
    pub ssrc: u32,
    /// Payload type of the latest packet.
    pub payload_type: u8,
    /// Changes of the synchronisation source, and restarts of its numbers.
    pub restarts: u64,
    /// Clock rate of the timestamps in Hz: of the payload type (RFC 3551), or measured; null while
    /// unknown.
    #[schema(required)]
    pub clock_rate: Option<u32>,
    /// Interarrival jitter (RFC 3550 section 6.4.1) in microseconds; null while the clock rate is
    /// unknown.
    #[schema(required)]
    pub jitter_us: Option<u64>,
    /// What the sequence numbers say.
    pub sequence: SequenceView,
    /// Bursts and gaps of losses (RFC 3611 section 4.7.2).
    pub bursts: BurstView,
}

/// What sequence numbers say about a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SequenceView {
    /// Packets that were sent, by their numbers (RFC 3550 appendix A.3).
    pub expected: u64,
    /// Numbers that did not arrive.
    pub lost: u64,
    /// `lost` in the last 50 to 60 seconds.
    pub lost_minute: u64,
    /// Lost packets of a million expected, in the last 50 to 60 seconds.
    pub loss_ppm: u64,
    /// Packets that arrived after one with a later number.
    pub reordered: u64,
    /// Packets that arrived more than once.
    pub duplicates: u64,
}

/// Bursts and gaps of losses, with a Gmin of 16 packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BurstView {
    /// Number of bursts.
    pub bursts: u64,
    /// Lost packets of a million, within bursts.
    pub burst_density_ppm: u64,
    /// Lost packets of a million, within gaps.
    pub gap_density_ppm: u64,
    /// Mean length of a burst in packets.
    pub burst_packets: u64,
    /// Mean length of a gap in packets.
    pub gap_packets: u64,
    /// Most packets that were lost in a row.
    pub longest_loss: u64,
}

/// The media delivery index of the last full second (RFC 4445).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MdiView {
    /// Delay factor in microseconds.
    pub delay_factor_us: u64,
    /// Media loss rate in MPEG-TS packets per second.
    pub media_loss_rate: u64,
    /// The media rate that the delay factor is computed with, in bits per second; from the PCR.
    pub media_bits_per_second: u64,
}

/// MPEG-TS: errors of the first priority of TR 101 290 and what else tells a broken stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TsView {
    /// MPEG-TS packets.
    pub packets: u64,
    /// 1.1 and 1.2: packets without the sync byte.
    pub sync_errors: u64,
    /// 1.3: times without a PAT for more than 500 ms, and faulty ones.
    pub pat_errors: u64,
    /// 1.4: packets missing, doubled more than once or out of order, by the continuity counter.
    pub continuity_errors: u64,
    /// Lost packets, by the continuity counter: at least this number.
    pub lost: u64,
    /// 1.5: times without a PMT for more than 500 ms, and faulty ones.
    pub pmt_errors: u64,
    /// 1.6: times without a packet of a PID that a PMT names, for more than 5 seconds.
    pub pid_errors: u64,
    /// 2.1: packets with the transport error indicator.
    pub transport_errors: u64,
    /// Whether a PAT arrived in the last 500 ms.
    pub pat_present: bool,
    /// Whether the PMT of every program arrived in the last 500 ms; false without programs.
    pub pmt_present: bool,
    /// Number of programs in the PAT.
    pub programs: u64,
    /// Number of PIDs that PMTs name.
    pub pids: u64,
    /// PIDs that were left out, because too many are in use.
    pub pids_left_out: u64,
    /// Scrambled packets.
    pub scrambled: u64,
    /// Largest difference between a step of the PCR and that of its time of arrival, in the last full
    /// second, in microseconds; null without two PCRs.
    #[schema(required)]
    pub pcr_jitter_us: Option<u64>,
    /// Longest time between two PCRs in the last full second, in milliseconds; null without two.
    #[schema(required)]
    pub pcr_interval_ms: Option<u64>,
}

/// The arguments of [`ShowQuery::Streams`](super::ShowQuery::Streams). By default, all monitored
/// streams are shown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StreamQuery {
    /// Largest number of streams. No limit by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Only streams that arrive on this interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iif: Option<String>,
    /// Only streams from this source.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub source: Option<IpAddr>,
    /// Only streams to this group.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub group: Option<IpAddr>,
}
