use etherparse::PacketBuilder;

use super::*;

const MS: u64 = 1_000_000;

/// Returns an IP packet to this port.
fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv4([10, 0, 0, 1], [225, 1, 2, 3], 7);
    let builder = builder.udp(4000, port);
    builder.write(&mut packet, payload).unwrap();
    packet
}

fn rtp(number: u16) -> Vec<u8> {
    let mut payload = vec![0x80, 0];
    payload.extend(number.to_be_bytes());
    payload.extend([7; 100]);
    payload
}

/// RTCP: a sender report.
fn rtcp() -> Vec<u8> {
    let mut payload = vec![0x80, 200, 0, 6];
    payload.extend([7; 24]);
    payload
}

fn lost(analyzer: &mut Analyzer) -> Option<u64> {
    analyzer.examined(0).lost.map(|lost| lost.total)
}

#[test]
fn contents_are_those_of_one_port() {
    for kind in [MonitorKind::Rtp, MonitorKind::Auto] {
        let mut analyzer = Analyzer::new(kind, None, Point::Ingress);
        for n in 0..10 {
            analyzer.add(&udp(5004, &rtp(n)), None, u64::from(n) * 20 * MS);
            // Another stream, and RTCP.
            analyzer.add(&udp(5006, &rtp(n * 7)), None, u64::from(n) * 20 * MS);
            analyzer.add(&udp(5005, &rtcp()), None, u64::from(n) * 20 * MS);
        }
        let examined = analyzer.examined(200 * MS);
        assert_eq!((examined.kind, examined.health.packets), ("rtp", 30));
        assert_eq!(examined.lost.map(|lost| lost.total), Some(0));
        // The port moves after a second.
        for n in 0..3 {
            analyzer.add(&udp(5006, &rtp(100 + n)), None, 3000 * MS);
        }
        let sequence = analyzer.examined(3000 * MS).health.rtp.unwrap().sequence;
        assert_eq!((sequence.expected, sequence.lost), (3, 0));
    }
}

#[test]
fn rtcp_before_rtp_is_not_examined() {
    let mut analyzer = Analyzer::new(MonitorKind::Rtp, None, Point::Ingress);
    analyzer.add(&udp(5005, &rtcp()), None, 0);
    (0..5).for_each(|n| analyzer.add(&udp(5004, &rtp(n)), None, MS));
    assert_eq!(lost(&mut analyzer), Some(0));
}

#[test]
fn number_is_read_where_the_settings_say() {
    let field = SequenceField {
        offset: 3,
        bytes: 4,
    };
    let mut analyzer = Analyzer::new(MonitorKind::Sequence, Some(field), Point::Egress);
    for number in [u32::MAX - 1, u32::MAX, 0, 4, 5] {
        let mut payload = vec![9; 3];
        payload.extend(number.to_be_bytes());
        analyzer.add(&udp(5000, &payload), None, MS);
    }
    // Too short for a number.
    analyzer.add(&udp(5000, &[9; 6]), None, MS);
    assert_eq!(
        (lost(&mut analyzer), analyzer.examined(0).kind),
        (Some(3), "sequence")
    );
}

#[test]
fn new_run_of_a_sender_is_a_restart_and_no_loss() {
    let mut analyzer = Analyzer::new(MonitorKind::Auto, None, Point::Ingress);
    let mut send = |stream, numbers: &[u64]| {
        for seq in numbers {
            let payload = Payload {
                stream,
                flow: 0,
                seq: *seq,
                sent_ns: 0,
                total: None,
            };
            analyzer.add(&udp(5000, &payload.to_bytes()), None, MS);
        }
        let examined = analyzer.examined(MS);
        (examined.lost.map(|lost| lost.total), examined.faults_minute)
    };
    assert_eq!(send(1, &[0, 1, 2, 5]), (Some(2), 0));
    assert_eq!(send(2, &[0, 1, 2]), (Some(2), 1));
}

#[test]
fn gso_packet_counts_as_its_datagrams() {
    let mut analyzer = Analyzer::new(MonitorKind::Rtp, None, Point::Ingress);
    let datagrams: Vec<u8> = [1, 2, 4].into_iter().flat_map(rtp).collect();
    let layout = GsoLayout::new(104, 28).unwrap();
    analyzer.add(&udp(5004, &datagrams), Some(layout), MS);
    let examined = analyzer.examined(MS);
    assert_eq!(
        (examined.health.packets, examined.health.bytes),
        (3, 3 * 132)
    );
    assert_eq!(examined.lost.map(|lost| lost.total), Some(1));
}

#[test]
fn other_packets_are_only_counted() {
    for kind in MonitorKind::ALL {
        let mut analyzer = Analyzer::new(kind, None, Point::Ingress);
        for _ in 0..70 {
            analyzer.add(&udp(5000, b"something else"), None, MS);
            analyzer.add(&[0x45; 20], None, MS);
            analyzer.add(&[], None, MS);
        }
        let examined = analyzer.examined(MS);
        assert_eq!(examined.health.packets, 210);
        assert!(examined.health.rtp.is_none() && examined.health.sequence.is_none());
        if matches!(kind, MonitorKind::Auto | MonitorKind::Rate) {
            assert_eq!((examined.kind, examined.faults_minute), ("rate", 0));
        }
    }
}

/// All figures continue: none is frozen until the clock has caught up, and none contains the step.
#[test]
fn clock_that_is_set_back_is_no_fault() {
    let hour = 3_600_000 * MS;
    let mut analyzer = Analyzer::new(MonitorKind::Rtp, None, Point::Ingress);
    let clock = |ms: u64| 2 * hour + ms * MS - if ms >= 3000 { hour } else { 0 };
    for n in 0..300u64 {
        let mut payload = vec![0x80, 0];
        payload.extend((n as u16).to_be_bytes());
        payload.extend((n as u32 * 160).to_be_bytes());
        payload.extend([7; 100]);
        analyzer.add(&udp(5004, &payload), None, clock(n * 20));
    }
    let health = analyzer.examined(clock(6001)).health;
    assert_eq!(health.rate.packets_per_second, 50);
    let jitter_us = health.rtp.unwrap().jitter_us.unwrap();
    assert!(jitter_us < 1000, "{jitter_us}");
    let gaps = analyzer.examined(clock(120_000)).health.inter_arrival;
    assert_eq!(gaps, None, "forgotten after a minute");
}
