use super::*;

const LIMIT: u64 = 10_000_000;

/// An interface, its streams with their counters, and a clock.
struct Lab {
    admission: BandwidthAdmission,
    /// Bytes and bits per second, by number of the stream.
    streams: BTreeMap<u8, (u64, u64)>,
    now_ms: u64,
}

fn key(n: u8) -> FlowKey {
    ([10, 0, 0, n].into(), [232, 1, 1, 1].into())
}

impl Lab {
    fn new() -> Self {
        Self {
            admission: BandwidthAdmission::new(Bandwidth::from_bits(LIMIT)),
            streams: BTreeMap::new(),
            now_ms: 0,
        }
    }

    /// Sets the rate of a stream in Mbit/s.
    fn set(&mut self, n: u8, mbits: u64) {
        self.streams.entry(n).or_default().1 = mbits * 1_000_000;
    }

    fn run(&mut self, ms: u64) {
        let ingress = InterfaceId::new(1).unwrap();
        let end = self.now_ms + ms;
        while self.now_ms < end {
            self.now_ms += 500;
            let counts: Vec<StreamCount> = (self.streams.iter_mut())
                .map(|(n, (bytes, rate))| {
                    *bytes += *rate / 16;
                    let (key, bytes) = (key(*n), *bytes);
                    StreamCount {
                        key,
                        bytes,
                        copies: 1,
                    }
                })
                .collect();
            self.admission.report(self.now_ms, ingress, &counts);
        }
    }

    fn of(&self, n: u8) -> Option<StreamAdmission> {
        self.admission.admitted_streams().of(&key(n))
    }
}

const ADMITTED: Option<StreamAdmission> = Some(StreamAdmission::Admitted);
const REFUSED: Option<StreamAdmission> = Some(StreamAdmission::Refused);

#[test]
fn stream_over_the_limit_is_refused_until_another_ends() {
    let mut lab = Lab::new();
    lab.set(1, 6);
    lab.run(2_000);
    assert_eq!(lab.of(1), ADMITTED);
    lab.set(2, 6);
    lab.run(10_000);
    assert_eq!((lab.of(1), lab.of(2)), (ADMITTED, REFUSED));
    let usage = lab.admission.admitted_streams().usage();
    assert_eq!((usage.admitted.bits(), usage.refused), (6_000_000, 1));
    assert_eq!(usage.measured.bits(), 6_000_000);
    lab.set(1, 0);
    lab.run(2_000);
    assert_eq!(lab.of(2), REFUSED, "the first may only have paused");
    let usage = lab.admission.admitted_streams().usage();
    assert_eq!(
        (usage.admitted.bits(), usage.measured.bits()),
        (6_000_000, 0)
    );
    lab.run(2_000);
    assert_eq!(lab.of(2), ADMITTED);
}

#[test]
fn smaller_newcomer_fits_beside_a_refused_one() {
    let mut lab = Lab::new();
    lab.set(1, 6);
    lab.run(1_000);
    lab.set(2, 5);
    lab.set(3, 3);
    lab.run(1_000);
    assert_eq!(
        [lab.of(1), lab.of(2), lab.of(3)],
        [ADMITTED, REFUSED, ADMITTED]
    );
}

#[test]
fn admitted_stream_stays_when_its_rate_grows() {
    let mut lab = Lab::new();
    lab.set(1, 2);
    lab.set(2, 2);
    lab.run(1_000);
    lab.set(1, 50);
    lab.set(3, 1);
    lab.run(5_000);
    assert_eq!(
        [lab.of(1), lab.of(2), lab.of(3)],
        [ADMITTED, ADMITTED, REFUSED]
    );
    // So does a lower limit.
    lab.admission.set_limit(Bandwidth::from_bits(1));
    lab.run(5_000);
    assert_eq!(lab.of(2), ADMITTED);
}

#[test]
fn short_pause_makes_no_room() {
    let mut lab = Lab::new();
    lab.set(1, 6);
    lab.run(1_000);
    lab.set(2, 5);
    lab.set(1, 4);
    lab.run(1_000);
    assert_eq!(lab.of(2), REFUSED);
    lab.run(3_000);
    assert_eq!(lab.of(2), ADMITTED);
}

#[test]
fn unmeasured_stream_has_a_tenth_of_a_second_of_what_is_free() {
    let mut lab = Lab::new();
    lab.run(500);
    let forwards = |lab: &Lab, bytes| lab.admission.admitted_streams().forwards(&key(9), || bytes);
    assert!(forwards(&lab, LIMIT / 80) && !forwards(&lab, LIMIT / 80 + 1));
    lab.set(1, 10);
    lab.run(1_000);
    assert!(forwards(&lab, 0) && !forwards(&lab, 1));
}

#[test]
fn each_copy_of_a_stream_counts() {
    let ingress = InterfaceId::new(1).unwrap();
    let mut admission = BandwidthAdmission::new(Bandwidth::from_bits(LIMIT));
    for (now_ms, bytes) in [(0, 0), (1_000, 500_000)] {
        let count = StreamCount {
            key: key(1),
            bytes,
            copies: 3,
        };
        admission.report(now_ms, ingress, &[count]);
    }
    assert_eq!(admission.admitted_streams().of(&key(1)), REFUSED);
}

#[test]
fn silent_refused_stream_is_tried_again_after_a_minute_or_when_it_fits() {
    let mut lab = Lab::new();
    lab.set(1, 6);
    lab.run(1_000);
    lab.set(2, 6);
    lab.run(1_000);
    // A gateway has left it.
    lab.set(2, 0);
    lab.run(58_000);
    assert_eq!(lab.of(2), REFUSED);
    lab.run(3_000);
    assert_eq!(lab.of(2), None);
    lab.set(2, 6);
    lab.run(1_000);
    lab.set(2, 0);
    lab.set(1, 0);
    lab.run(4_000);
    assert_eq!(lab.of(2), ADMITTED);
}

#[test]
fn standby_copy_of_a_stream_does_not_count() {
    let id = |n| InterfaceId::new(n).unwrap();
    let mut admission = BandwidthAdmission::new(Bandwidth::from_bits(LIMIT));
    let mut bytes = 0;
    for now_ms in (0..5_000).step_by(500) {
        bytes += 375_000;
        for ingress in [1, 2] {
            let count = StreamCount {
                key: key(1),
                bytes,
                copies: 1,
            };
            admission.report(now_ms, id(ingress), &[count]);
        }
    }
    let usage = admission.admitted_streams().usage();
    assert_eq!(usage.admitted.bits(), 6_000_000);
    // The first ingress is silent: the other one counts.
    for now_ms in (5_000..8_000).step_by(500) {
        bytes += 375_000;
        for (ingress, bytes) in [(1, 0), (2, bytes)] {
            let count = StreamCount {
                key: key(1),
                bytes,
                copies: 1,
            };
            admission.report(now_ms, id(ingress), &[count]);
        }
    }
    assert_eq!(
        admission.admitted_streams().usage().admitted.bits(),
        6_000_000
    );
}
