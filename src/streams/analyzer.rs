//! Examines the packets of one stream at one point: where it arrives, or where it leaves.

use super::arrival_clock::ArrivalClock;
use super::datagram::udp_payload;
use super::detect::{Content, Detector, is_ts};
use super::inter_arrival::InterArrival;
use super::mdi::Mdi;
use super::rate::RateMeter;
use super::rtp::{Rtp, RtpPacket};
use super::sequence::Sequence;
use super::ts::{PACKET_LEN, SYNC_BYTE, Ts};
use crate::api::streams::{StreamHealth, StreamLoss};
use crate::forward::drop_history::LastMinute;
use crate::model::{MonitorKind, SequenceField};
use crate::probe::payload::Payload;
use crate::wire::offload::GsoLayout;

/// How long the port that is examined may be silent while packets to another port arrive.
const PORT_NS: u64 = 1_000_000_000;

/// Payloads in RTP that must be MPEG-TS before they are examined as such.
const TS_NEEDED: u32 = 3;

/// Where the packets are examined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Where the stream arrives. Everything is examined.
    Ingress,
    /// Where the stream leaves. MPEG-TS is not examined: its faults are those at the ingress.
    Egress,
}

/// Examines the packets of a stream.
#[derive(Debug, Clone)]
pub struct Analyzer {
    kind: MonitorKind,
    field: Option<SequenceField>,
    point: Point,
    clock: ArrivalClock,
    packets: u64,
    bytes: u64,
    packets_minute: LastMinute,
    rate: RateMeter,
    inter_arrival: InterArrival,
    /// The port whose packets are examined, and when its last packet arrived: a group may have
    /// several, such as that of RTCP.
    port: Option<(u16, u64)>,
    content: Contents,
    /// Faults of the contents.
    faults_minute: LastMinute,
    /// MPEG-TS packets that were lost.
    ts_lost_minute: LastMinute,
}

/// What is known of the contents.
#[derive(Debug, Clone, Default)]
struct Contents {
    detector: Option<Detector>,
    detected: Option<Content>,
    rtp: Option<Box<Rtp>>,
    ts: Option<Box<Ts>>,
    ts_in_a_row: u32,
    mdi: Mdi,
    numbers: Option<Box<Sequence>>,
    /// The run of `mcastor send`.
    run: Option<u64>,
    faults: u64,
}

impl Contents {
    /// Returns the number of faults.
    fn all_faults(&self) -> u64 {
        let rtp = self.rtp.as_deref().map(Rtp::sequence);
        let numbers = [rtp, self.numbers.as_deref()].into_iter().flatten();
        let restarts: u64 = numbers.map(Sequence::restarts).sum();
        self.ts.as_deref().map_or(0, Ts::faults) + restarts
    }
}

/// What an [`Analyzer`] knows.
#[derive(Debug, Clone)]
pub struct Examined {
    /// The health of the stream.
    pub health: StreamHealth,
    /// What the packets are examined as, as in [`StreamView`](crate::api::StreamView).
    pub kind: &'static str,
    /// Missing packets; `None` if the stream has no numbers.
    pub lost: Option<StreamLoss>,
    /// Faults of the contents in the last minute.
    pub faults_minute: u64,
}

impl Analyzer {
    /// Returns an analyzer for a stream. `field` is the number of [`MonitorKind::Sequence`].
    pub fn new(kind: MonitorKind, field: Option<SequenceField>, point: Point) -> Self {
        Self {
            kind,
            field,
            point,
            clock: ArrivalClock::default(),
            packets: 0,
            bytes: 0,
            packets_minute: LastMinute::default(),
            rate: RateMeter::default(),
            inter_arrival: InterArrival::default(),
            port: None,
            content: Contents::default(),
            faults_minute: LastMinute::default(),
            ts_lost_minute: LastMinute::default(),
        }
    }

    /// Adds an IP packet. `segments` says how a GSO packet divides into datagrams. `now_ns` is a time
    /// of `CLOCK_REALTIME`.
    pub fn add(&mut self, packet: &[u8], segments: Option<GsoLayout>, now_ns: u64) {
        let now_ns = self.clock.note(now_ns);
        let udp = udp_payload(packet);
        let Some((segments, (port, payload))) = segments.zip(udp) else {
            self.count(packet.len(), now_ns);
            if let Some((port, payload)) = udp {
                self.add_payload(port, payload, now_ns);
            }
            return;
        };
        let headers = packet.len() - payload.len();
        for datagram in payload.chunks(usize::from(segments.payload()).max(1)) {
            self.count(headers + datagram.len(), now_ns);
            self.add_payload(port, datagram, now_ns);
        }
    }

    fn count(&mut self, bytes: usize, now_ns: u64) {
        self.packets += 1;
        self.bytes += bytes as u64;
        self.packets_minute.add(1, now_ns / 1_000_000);
        self.rate.add(1, bytes as u64, now_ns);
        self.inter_arrival.add(now_ns);
    }

    fn add_payload(&mut self, port: u16, payload: &[u8], now_ns: u64) {
        if self.kind == MonitorKind::Rate {
            return;
        }
        match &mut self.port {
            Some((known, seen_ns)) if *known == port => *seen_ns = now_ns,
            Some((_, seen_ns)) if now_ns.saturating_sub(*seen_ns) < PORT_NS => return,
            // RTCP may be the first to arrive.
            _ if self.kind == MonitorKind::Rtp && RtpPacket::parse(payload).is_none() => return,
            _ => {
                self.port = Some((port, now_ns));
                self.content = Contents::default();
            }
        }
        match self.kind {
            MonitorKind::Auto => self.add_detected(payload, now_ns),
            MonitorKind::Rtp => self.add_rtp(payload, now_ns),
            MonitorKind::Ts if payload.first() == Some(&SYNC_BYTE) => {
                self.add_ts(payload, 0, now_ns);
            }
            MonitorKind::Ts if RtpPacket::parse(payload).is_some() => {
                self.add_rtp(payload, now_ns);
            }
            MonitorKind::Ts => self.add_ts(payload, 0, now_ns),
            MonitorKind::Sequence => self.add_number(payload, now_ns),
            MonitorKind::Rate => {}
        }
        self.note_faults(now_ns);
    }

    /// Examines a packet as what the stream was recognised as. Until then, as what it looks like, so
    /// that the first packets count.
    fn add_detected(&mut self, payload: &[u8], now_ns: u64) {
        match self.content.detected {
            Some(Content::Rtp) => return self.add_rtp(payload, now_ns),
            Some(Content::Ts) => return self.add_ts(payload, 0, now_ns),
            Some(Content::Numbered) => return self.add_number(payload, now_ns),
            Some(Content::Other) => return,
            None => {}
        }
        match payload {
            _ if is_ts(payload) => self.add_ts(payload, 0, now_ns),
            _ if Payload::parse(payload).is_ok() => self.add_number(payload, now_ns),
            _ => self.add_rtp(payload, now_ns),
        }
        let content = &mut self.content;
        let detector = content.detector.get_or_insert_default();
        let Some(detected) = detector.add(payload) else {
            return;
        };
        content.detected = Some(detected);
        content.detector = None;
        if detected != Content::Rtp {
            content.rtp = None;
        }
        if detected != Content::Ts && content.ts_in_a_row < TS_NEEDED {
            content.ts = None;
        }
        if detected != Content::Numbered {
            content.numbers = None;
        }
        content.faults = content.all_faults();
    }

    fn add_rtp(&mut self, payload: &[u8], now_ns: u64) {
        let Some(packet) = RtpPacket::parse(payload) else {
            return;
        };
        let rtp = self.content.rtp.get_or_insert_default();
        let Some(lost) = rtp.add(&packet, now_ns) else {
            return;
        };
        if self.point == Point::Egress {
            return;
        }
        if self.content.ts.is_none() {
            self.content.ts_in_a_row = match is_ts(packet.payload) {
                true => self.content.ts_in_a_row + 1,
                false => 0,
            };
            if self.content.ts_in_a_row < TS_NEEDED {
                return;
            }
        }
        self.add_ts(packet.payload, lost, now_ns);
    }

    /// Adds MPEG-TS packets, before which `lost` datagrams of RTP were lost.
    fn add_ts(&mut self, payload: &[u8], lost: u64, now_ns: u64) {
        if self.point == Point::Egress {
            return;
        }
        let content = &mut self.content;
        let ts = content.ts.get_or_insert_default();
        let lost_ts = ts.add(payload, now_ns);
        self.ts_lost_minute.add(lost_ts, now_ns / 1_000_000);
        content.mdi.add_lost(match &content.rtp {
            Some(_) => lost * (payload.len() / PACKET_LEN) as u64,
            None => lost_ts,
        });
        let bytes = payload.len() as u64;
        content.mdi.add(bytes, ts.media_rate(), now_ns);
    }

    fn add_number(&mut self, payload: &[u8], now_ns: u64) {
        let content = &mut self.content;
        let now_ms = now_ns / 1_000_000;
        let field = self.field.filter(|_| self.kind == MonitorKind::Sequence);
        let Some(field) = field else {
            let Ok(packet) = Payload::parse(payload) else {
                return;
            };
            let new = || Box::new(Sequence::new(64));
            let numbers = content.numbers.get_or_insert_with(new);
            match content.run.replace(packet.stream) {
                Some(run) if run != packet.stream => numbers.restart(packet.seq, now_ms),
                _ => _ = numbers.add(packet.seq, now_ms),
            }
            return;
        };
        let bytes = payload
            .get(usize::from(field.offset)..)
            .and_then(|rest| rest.get(..usize::from(field.bytes)));
        if let Some(bytes) = bytes {
            let number = bytes
                .iter()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
            let new = || Box::new(Sequence::new(u32::from(field.bytes) * 8));
            content.numbers.get_or_insert_with(new).add(number, now_ms);
        }
    }

    /// Notes the faults of the contents that are new.
    fn note_faults(&mut self, now_ns: u64) {
        let faults = self.content.all_faults();
        let new = faults.saturating_sub(self.content.faults);
        if new > 0 && self.is_known() {
            self.content.faults = faults;
            self.faults_minute.add(new, now_ns / 1_000_000);
        }
    }

    /// Returns whether it is known what the packets are.
    fn is_known(&self) -> bool {
        self.kind != MonitorKind::Auto || self.content.detected.is_some()
    }

    fn kind(&self) -> &'static str {
        let content = &self.content;
        if !self.is_known() {
            return "unknown";
        }
        match (&content.rtp, &content.ts, &content.numbers) {
            (Some(_), Some(_), _) => "rtp_ts",
            (Some(_), None, _) => "rtp",
            (None, Some(_), _) => "ts",
            (None, None, Some(_)) => "sequence",
            (None, None, None) if self.kind == MonitorKind::Rate => "rate",
            (None, None, None) => match content.detected {
                Some(Content::Other) => "rate",
                _ => "unknown",
            },
        }
    }

    /// Returns what is known now.
    pub fn examined(&mut self, now_ns: u64) -> Examined {
        let now_ns = self.clock.time_ns(now_ns);
        let now_ms = now_ns / 1_000_000;
        let kind = self.kind();
        // What it is not known to be yet is not shown.
        let nothing = Contents::default();
        let content = match self.is_known() {
            true => &self.content,
            false => &nothing,
        };
        let rtp = content.rtp.as_deref().and_then(|rtp| rtp.view(now_ms));
        let numbers = content.numbers.as_deref();
        let sequence = numbers.map(|numbers| numbers.view(now_ms));
        let ts = content.ts.as_deref().map(|ts| ts.view(now_ns));
        let numbered = rtp.as_ref().map(|rtp| rtp.sequence).or(sequence);
        let of_numbers = numbered.map(|sequence| StreamLoss {
            total: sequence.lost,
            minute: sequence.lost_minute,
        });
        let of_ts = ts.as_ref().map(|ts| StreamLoss {
            total: ts.lost,
            minute: self.ts_lost_minute.packets(now_ms),
        });
        Examined {
            kind,
            lost: of_numbers.or(of_ts),
            faults_minute: self.faults_minute.packets(now_ms),
            health: StreamHealth {
                packets: self.packets,
                bytes: self.bytes,
                packets_minute: self.packets_minute.packets(now_ms),
                rate: self.rate.rates(now_ns),
                inter_arrival: self.inter_arrival.view(now_ns),
                rtp,
                sequence,
                mdi: ts.as_ref().and_then(|_| content.mdi.view()),
                ts,
            },
        }
    }
}

#[cfg(test)]
mod tests;
