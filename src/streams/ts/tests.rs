//! Packets made by hand, one fault at a time. The test with a stream of ffmpeg is in
//! `tests/stream_health.rs`.

use super::*;

const MS: u64 = 1_000_000;

/// Returns a packet with payload.
fn packet(pid: u16, counter: u8) -> [u8; PACKET_LEN] {
    let mut packet = [0xff; PACKET_LEN];
    let [high, low] = pid.to_be_bytes();
    packet[..4].copy_from_slice(&[SYNC_BYTE, high, low, 0x10 | counter & 0xf]);
    packet
}

/// Returns a packet with a section, to which the checksum is added.
fn table(pid: u16, counter: u8, section: &[u8]) -> [u8; PACKET_LEN] {
    let mut packet = packet(pid, counter);
    packet[1] |= 0x40;
    packet[4] = 0;
    let len = section.len();
    packet[5..5 + len].copy_from_slice(section);
    let crc = crc32(section).to_be_bytes();
    packet[5 + len..9 + len].copy_from_slice(&crc);
    packet
}

/// A PAT with program 1, whose PMT has PID 0x1000.
fn pat(counter: u8) -> [u8; PACKET_LEN] {
    table(0, counter, &[0, 0xb0, 13, 0, 1, 0xc1, 0, 0, 0, 1, 0xf0, 0])
}

/// Its PMT, with a stream that has PID 0x100 and the PCR.
fn pmt(counter: u8) -> [u8; PACKET_LEN] {
    let section = [
        2, 0xb0, 18, 0, 1, 0xc1, 0, 0, 0xe1, 0, 0xf0, 0, 0x1b, 0xe1, 0, 0xf0, 0,
    ];
    table(0x1000, counter, &section)
}

/// A stream with tables, and packets of PID 0x100 each 10 ms.
#[derive(Default)]
struct Stream {
    ts: Ts,
    tables: u8,
    counter: u8,
    now_ns: u64,
}

impl Stream {
    fn tables(&mut self) {
        let (pat, pmt) = (pat(self.tables), pmt(self.tables));
        self.ts.add(&[pat, pmt].concat(), self.now_ns);
        self.tables = self.tables.wrapping_add(1);
    }

    fn packets(&mut self, count: u64) {
        for _ in 0..count {
            self.ts.add(&packet(0x100, self.counter), self.now_ns);
            self.counter = self.counter.wrapping_add(1);
            self.now_ns += 10 * MS;
        }
    }

    fn view(&self) -> TsView {
        self.ts.view(self.now_ns)
    }
}

#[test]
fn tables_name_programs_and_pids() {
    let mut stream = Stream::default();
    stream.tables();
    stream.packets(20);
    let expected = TsView {
        packets: 22,
        pat_present: true,
        pmt_present: true,
        programs: 1,
        pids: 1,
        ..TsView::default()
    };
    assert_eq!(stream.view(), expected);
}

#[test]
fn late_tables_are_counted_once_for_each_time() {
    let mut stream = Stream::default();
    stream.tables();
    stream.packets(100);
    let view = stream.view();
    assert_eq!((view.pat_errors, view.pmt_errors), (1, 1));
    assert!(!view.pat_present && !view.pmt_present);
    stream.tables();
    stream.packets(80);
    let view = stream.view();
    assert_eq!((view.pat_errors, view.pmt_errors), (2, 2));
}

#[test]
fn missing_pid_is_counted_after_five_seconds() {
    let mut stream = Stream::default();
    stream.tables();
    stream.packets(1);
    for _ in 0..60 {
        stream.now_ns += 100 * MS;
        stream.tables();
    }
    let view = stream.view();
    assert_eq!(
        (view.pid_errors, view.pat_errors, view.continuity_errors),
        (1, 0, 0)
    );
}

#[test]
fn continuity_errors_and_lost_packets_are_counted() {
    let mut stream = Stream::default();
    stream.packets(5);
    // Three are lost.
    stream.counter += 3;
    stream.packets(5);
    assert_eq!(
        (stream.view().continuity_errors, stream.view().lost),
        (1, 3)
    );
    // One is sent twice, which is permitted.
    stream.counter -= 1;
    stream.packets(5);
    assert_eq!(
        (stream.view().continuity_errors, stream.view().lost),
        (1, 3)
    );
    // One is sent three times.
    stream.counter -= 1;
    stream.packets(1);
    stream.counter -= 1;
    stream.packets(1);
    assert_eq!(stream.view().continuity_errors, 2);
}

#[test]
fn announced_discontinuity_and_packets_without_payload_are_no_errors() {
    let mut ts = Ts::default();
    let mut discontinuity = packet(0x100, 9);
    discontinuity[3] |= 0x20;
    discontinuity[4..6].copy_from_slice(&[1, 0x80]);
    let mut without_payload = packet(0x100, 9);
    without_payload[3] = 0x20 | 9;
    without_payload[4..6].copy_from_slice(&[183, 0]);
    let packets = [
        packet(0x100, 1),
        discontinuity,
        without_payload,
        packet(0x100, 10),
    ];
    ts.add(&packets.concat(), MS);
    // Null packets have no counter.
    ts.add(&[packet(NULL_PID, 1), packet(NULL_PID, 7)].concat(), MS);
    let view = ts.view(MS);
    assert_eq!((view.continuity_errors, view.packets), (0, 6));
}

#[test]
fn wrong_packets_are_counted_by_fault() {
    let mut ts = Ts::default();
    let mut wrong_sync = packet(0x100, 1);
    wrong_sync[0] = 0x48;
    let mut wrong_transport = packet(0x100, 7);
    wrong_transport[1] |= 0x80;
    let mut scrambled = packet(0x100, 1);
    scrambled[3] |= 0x80;
    let mut wrong_table = pat(1);
    wrong_table[5] = 2;
    let crc = crc32(&wrong_table[5..17]).to_be_bytes();
    wrong_table[17..21].copy_from_slice(&crc);
    let packets = [wrong_sync, wrong_transport, scrambled, wrong_table];
    ts.add(&packets.concat(), MS);
    ts.add(&[0x47; 100], MS);
    let view = ts.view(MS);
    assert_eq!((view.sync_errors, view.transport_errors), (2, 1));
    assert_eq!((view.scrambled, view.pat_errors), (1, 1));
}

#[test]
fn table_with_a_wrong_checksum_is_ignored() {
    let mut ts = Ts::default();
    let mut broken = pat(0);
    broken[16] ^= 1;
    ts.add(&broken, MS);
    assert_eq!(ts.view(MS).programs, 0);
    ts.add(&pat(1), MS);
    assert_eq!(ts.view(MS).programs, 1);
}

#[test]
fn pids_beyond_the_limit_are_counted() {
    let mut ts = Ts::default();
    (0..100).for_each(|n| _ = ts.add(&packet(0x100 + n, 0), MS));
    assert_eq!(ts.view(MS).pids_left_out, 36);
}

proptest::proptest! {
    /// Any bytes: no panic, and each packet is counted or has no sync byte.
    #[test]
    fn any_bytes_are_counted(bytes in proptest::collection::vec(0u8.., 0..2000), tables in 0u8..3) {
        let mut ts = Ts::default();
        for n in 0..tables {
            ts.add(&[pat(n), pmt(n)].concat(), MS);
        }
        let mut bytes = bytes;
        for at in (0..bytes.len()).step_by(PACKET_LEN) {
            bytes[at] = SYNC_BYTE;
        }
        ts.add(&bytes, 2 * MS);
        let view = ts.view(3 * MS);
        let packets = bytes.len() / PACKET_LEN;
        proptest::prop_assert_eq!(view.packets, packets as u64 + 2 * u64::from(tables));
    }
}
