//! The analyzers of monitored streams, compared with tshark on captures of ffmpeg. See
//! `tests/vectors/streams/README.md`.

use std::collections::BTreeSet;

use mcastor::api::streams::{BurstView, StreamHealth};
use mcastor::model::MonitorKind;
use mcastor::streams::analyzer::{Analyzer, Examined, Point};

/// Returns the IP packets of a capture with their times in nanoseconds (libpcap format, Ethernet).
fn packets(name: &str) -> Vec<(u64, Vec<u8>)> {
    let root = env!("CARGO_MANIFEST_DIR");
    let bytes = std::fs::read(format!("{root}/tests/vectors/streams/{name}")).unwrap();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!((word(0), word(20)), (0xa1b2_c3d4, 1));
    let mut packets = Vec::new();
    let mut at = 24;
    while at < bytes.len() {
        let time_ns = u64::from(word(at)) * 1_000_000_000 + u64::from(word(at + 4)) * 1000;
        let len = word(at + 8) as usize;
        packets.push((time_ns, bytes[at + 16 + 14..at + 16 + len].to_vec()));
        at += 16 + len;
    }
    packets
}

/// Examines a capture without the packets with these numbers. Returns what is known at the end, and
/// the jitter after each packet in milliseconds.
fn examine(name: &str, kind: MonitorKind, dropped: &[usize]) -> (Examined, Vec<f64>) {
    let dropped: BTreeSet<usize> = dropped.iter().copied().collect();
    let mut analyzer = Analyzer::new(kind, None, Point::Ingress);
    let mut jitters = Vec::new();
    let mut last_ns = 0;
    for (number, (time_ns, packet)) in packets(name).iter().enumerate() {
        if dropped.contains(&(number + 1)) {
            continue;
        }
        analyzer.add(packet, None, *time_ns);
        last_ns = *time_ns;
        let rtp = analyzer.examined(last_ns).health.rtp;
        jitters.extend(rtp.and_then(|rtp| rtp.jitter_us).map(|us| us as f64 / 1e3));
    }
    (analyzer.examined(last_ns), jitters)
}

fn assert_near(found: f64, expected: f64, what: &str) {
    assert!(
        (found - expected).abs() < 0.002,
        "{what}: {found} instead of {expected}"
    );
}

/// A capture, the numbers of the dropped packets, packets and lost packets, and jitters.
type Case = (&'static str, &'static [usize], (u64, u64), [f64; 3]);

/// Packets and loss, and the smallest, the mean and the largest jitter, are those of `tshark -z
/// rtp,streams`.
#[test]
fn loss_and_jitter_are_those_of_tshark() {
    let cases: [Case; 4] = [
        ("pcmu.pcap", &[], (164, 0), [1.249, 30.602, 37.551]),
        (
            "pcmu.pcap",
            &[20, 22, 24, 25, 26, 27, 80],
            (157, 7),
            [1.249, 31.718, 39.000],
        ),
        ("rtp_ts.pcap", &[], (48, 0), [0.002, 65.460, 141.218]),
        (
            "rtp_ts.pcap",
            &[10, 12, 15, 16, 17, 18],
            (42, 6),
            [0.002, 74.252, 151.719],
        ),
    ];
    for (name, dropped, counts, expected) in cases {
        for kind in [MonitorKind::Rtp, MonitorKind::Auto] {
            let (examined, jitters) = examine(name, kind, dropped);
            let rtp = examined.health.rtp.unwrap();
            assert_eq!(
                (examined.health.packets, rtp.sequence.lost),
                counts,
                "{name}"
            );
            assert_eq!(rtp.sequence.expected, counts.0 + counts.1);
            let lost = examined.lost.unwrap();
            assert_eq!((lost.total, lost.minute), (counts.1, counts.1));
            if kind == MonitorKind::Auto {
                // The first jitters are not shown while the contents are unknown.
                continue;
            }
            let least = jitters.iter().copied().fold(f64::MAX, f64::min);
            let most = jitters.iter().copied().fold(0.0, f64::max);
            let mean = jitters.iter().sum::<f64>() / jitters.len() as f64;
            assert_near(least, expected[0], name);
            assert_near(mean, expected[1], name);
            assert_near(most, expected[2], name);
        }
    }
}

/// By the definition of RFC 3611: losses 20 to 43, with at most 15 packets between them, are one burst
/// of 24 packets. Loss 60 comes 16 packets later and is in a gap, and so is 80.
#[test]
fn bursts_of_a_capture_are_those_of_the_dropped_packets() {
    let dropped = [20, 22, 24, 25, 26, 27, 43, 60, 80];
    let (examined, _) = examine("pcmu.pcap", MonitorKind::Rtp, &dropped);
    let expected = BurstView {
        bursts: 1,
        burst_density_ppm: 7_000_000 / 24,
        gap_density_ppm: 2_000_000 / 140,
        burst_packets: 24,
        gap_packets: 140 / 2,
        longest_loss: 4,
    };
    assert_eq!(examined.health.rtp.unwrap().bursts, expected);
}

/// Packets, discontinuities and skips are those of tshark.
#[test]
fn continuity_is_that_of_tshark() {
    let cases: [(&[usize], [u64; 3]); 2] = [(&[], [401, 0, 0]), (&[11, 20, 21, 22], [374, 6, 11])];
    for (dropped, expected) in cases {
        for kind in [MonitorKind::Ts, MonitorKind::Auto] {
            let (examined, _) = examine("ts.pcap", kind, dropped);
            let ts = examined.health.ts.unwrap();
            assert_eq!([ts.packets, ts.continuity_errors, ts.lost], expected);
            assert_eq!((ts.programs, ts.pids, ts.sync_errors), (1, 1, 0));
            assert_eq!(
                (examined.kind, examined.lost.map(|lost| lost.total)),
                ("ts", Some(expected[2]))
            );
        }
    }
}

#[test]
fn transport_stream_in_rtp_is_examined_too() {
    for kind in [MonitorKind::Rtp, MonitorKind::Ts, MonitorKind::Auto] {
        let (examined, _) = examine("rtp_ts.pcap", kind, &[]);
        assert_eq!(examined.kind, "rtp_ts");
        let StreamHealth { ts, mdi, .. } = examined.health;
        let ts = ts.unwrap();
        assert_eq!((ts.continuity_errors, ts.programs, ts.scrambled), (0, 1, 0));
        // ffmpeg was told to send 200 kbit/s.
        let rate = mdi.unwrap().media_bits_per_second as f64;
        assert!((rate / 200_000.0 - 1.0).abs() < 0.05, "{rate}");
    }
}

/// The egress has the same loss and jitter, but does not examine MPEG-TS.
#[test]
fn egress_examines_rtp_only() {
    let mut analyzer = Analyzer::new(MonitorKind::Auto, None, Point::Egress);
    let packets = packets("rtp_ts.pcap");
    for (time_ns, packet) in &packets {
        analyzer.add(packet, None, *time_ns);
    }
    let now_ns = packets[packets.len() - 1].0;
    let (ingress, _) = examine("rtp_ts.pcap", MonitorKind::Auto, &[]);
    let egress = analyzer.examined(now_ns);
    assert_eq!(egress.health.rtp, ingress.health.rtp);
    assert!(egress.health.ts.is_none() && ingress.health.ts.is_some());
    assert_eq!(egress.kind, "rtp");
}
