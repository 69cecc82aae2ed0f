//! Recognises what a stream carries, for `monitor = "auto"`.

use super::rtp::RtpPacket;
use super::ts::{PACKET_LEN, SYNC_BYTE};
use crate::probe::payload::Payload;

/// Packets in a row that must look the same.
const NEEDED: u32 = 3;

/// Packets after which a stream is taken for one without a known format.
const MOST: u32 = 64;

/// What a stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// RTP.
    Rtp,
    /// MPEG-TS in UDP.
    Ts,
    /// Packets of `mcastor send`, with sequence numbers.
    Numbered,
    /// Something else.
    Other,
}

/// Looks at the first packets of a stream.
#[derive(Debug, Clone, Default)]
pub struct Detector {
    packets: u32,
    ts_in_a_row: u32,
    numbered_in_a_row: u32,
    rtp_in_a_row: u32,
    /// Synchronisation source and next number, if the last packet could be RTP.
    rtp: Option<(u32, u16)>,
}

/// Returns whether a payload consists of MPEG-TS packets.
pub fn is_ts(payload: &[u8]) -> bool {
    let mut packets = payload.chunks(PACKET_LEN);
    !payload.is_empty()
        && packets.all(|packet| packet.len() == PACKET_LEN && packet.first() == Some(&SYNC_BYTE))
}

impl Detector {
    /// Looks at the next UDP payload. Returns what the stream carries, when it is known.
    pub fn add(&mut self, payload: &[u8]) -> Option<Content> {
        self.packets += 1;
        let in_a_row = |count: &mut u32, is_so: bool| {
            *count = if is_so { *count + 1 } else { 0 };
            *count >= NEEDED
        };
        if in_a_row(&mut self.ts_in_a_row, is_ts(payload)) {
            return Some(Content::Ts);
        }
        if in_a_row(&mut self.numbered_in_a_row, Payload::parse(payload).is_ok()) {
            return Some(Content::Numbered);
        }
        let rtp = RtpPacket::parse(payload);
        let follows = |packet: RtpPacket<'_>| match self.rtp {
            // A few may be lost in between.
            Some((ssrc, next)) => packet.ssrc == ssrc && packet.sequence.wrapping_sub(next) < 16,
            None => true,
        };
        let is_next = rtp.is_some_and(follows);
        self.rtp = rtp.map(|packet| (packet.ssrc, packet.sequence.wrapping_add(1)));
        if in_a_row(&mut self.rtp_in_a_row, is_next) {
            return Some(Content::Rtp);
        }
        (self.packets >= MOST).then_some(Content::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rtp(sequence: u16) -> Vec<u8> {
        let mut bytes = vec![0x80, 33];
        bytes.extend(sequence.to_be_bytes());
        bytes.extend([1; 40]);
        bytes
    }

    fn content(packets: impl IntoIterator<Item = Vec<u8>>) -> Option<Content> {
        let mut detector = Detector::default();
        packets.into_iter().find_map(|p| detector.add(&p))
    }

    #[test]
    fn formats_are_recognised_by_three_packets() {
        let ts = |_| {
            let mut packet = [0; 7 * 188];
            (0..7).for_each(|n| packet[n * 188] = 0x47);
            packet.to_vec()
        };
        assert_eq!(content((0..3).map(ts)), Some(Content::Ts));
        assert_eq!(content((0..2).map(ts)), None);
        assert_eq!(content([10, 12, 13].map(rtp)), Some(Content::Rtp));
        let numbered = |seq| {
            let payload = Payload {
                stream: 1,
                flow: 0,
                seq,
                sent_ns: 0,
                total: None,
            };
            payload.to_bytes().to_vec()
        };
        assert_eq!(content((0..3).map(numbered)), Some(Content::Numbered));
    }

    #[test]
    fn random_numbers_are_no_rtp() {
        // The bits of RTP are there, but the numbers do not follow each other.
        assert_eq!(content((0..63).map(|n| rtp(n * 1000))), None);
        assert_eq!(
            content((0..64).map(|n| rtp(n * 1000))),
            Some(Content::Other)
        );
        assert_eq!(content((0..64).map(|_| Vec::new())), Some(Content::Other));
    }
}
