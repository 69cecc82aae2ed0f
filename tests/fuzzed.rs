//! Runs the fuzz targets of `tests/fuzz` on inputs from a seeded generator: random bytes, and valid
//! inputs with a few mutated bytes. `MCASTOR_FUZZ_CASES` sets the number of cases per target.
//!
//! A failure prints its case number, which reproduces the input.

#[path = "fuzz/harness/mod.rs"]
mod harness;

use std::panic::{AssertUnwindSafe, catch_unwind};

use mcastor::probe::Payload;
use mcastor::wire::ip::refresh_ipv4_checksum;
use mcastor::wire::link_control::{
    IPV4_HEADERS_LEN, IPV6_HEADERS_LEN, encapsulate_v4, encapsulate_v6,
};
use mcastor::wire::membership_message::{
    Generation, GroupRecord, MembershipMessage, Query, RecordType,
};
use mcastor::wire::{membership, mrdisc};

fn cases() -> u64 {
    let set = std::env::var("MCASTOR_FUZZ_CASES").ok();
    set.and_then(|n| n.parse().ok()).unwrap_or(100_000)
}

/// A SplitMix64 generator, so that inputs are the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let len = self.below(most + 1);
        (0..len).map(|_| self.next() as u8).collect()
    }

    fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    /// Changes, removes, duplicates or truncates a few bytes.
    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.below(5) {
            let at = self.below(bytes.len());
            match self.below(8) {
                0 => bytes.truncate(at),
                1 if !bytes.is_empty() => drop(bytes.remove(at)),
                2 => bytes.insert(at, self.next() as u8),
                3 => bytes.extend_from_within(at..),
                4 if !bytes.is_empty() => {
                    bytes[at] = *self.one_of(&[0, 1, 0x7f, 0x80, 0xff]);
                }
                _ if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                _ => {}
            }
        }
    }
}

/// Runs a target on random and on mutated valid inputs (from `valid`), half of the cases each. The
/// target must accept at least 2 % of them, or only its first checks are tested.
fn try_all(target: fn(&[u8]) -> bool, cases: u64, valid: impl Fn(&mut Random) -> Vec<u8>) {
    let mut accepted = 0;
    for case in 0..cases {
        let mut random = Random(case);
        let input = if case % 2 == 0 {
            random.bytes(400)
        } else {
            valid(&mut random)
        };
        match catch_unwind(AssertUnwindSafe(|| target(&input))) {
            Ok(good) => accepted += u64::from(good),
            Err(panic) => {
                eprintln!("case {case}, {} bytes: {input:02x?}", input.len());
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{accepted} of {cases} accepted");
    assert!(accepted >= cases / 50, "{accepted} of {cases}");
}

/// Returns a valid data packet.
fn packet(random: &mut Random) -> Vec<u8> {
    let body = *random.one_of(&[0, 1, 18, 100, 1472, 3000]);
    let mut p;
    if random.below(3) == 0 {
        p = vec![0u8; 48];
        p[0] = 0x60;
        p[4..6].copy_from_slice(&(8 + body as u16).to_be_bytes());
        p[6..8].copy_from_slice(&[17, random.below(12) as u8]);
        p[8] = 0x20;
        p[23] = 1;
        p[24] = 0xff;
        p[25] = *random.one_of(&[0x02, 0x3e, 0x05]);
        p[39] = 1;
    } else {
        p = vec![0u8; 28];
        p[0] = 0x45;
        p[2..4].copy_from_slice(&(28 + body as u16).to_be_bytes());
        p[6] = *random.one_of(&[0, 0, 0x40, 0x20]);
        p[8..10].copy_from_slice(&[random.below(12) as u8, 17]);
        p[12..16].copy_from_slice(
            &random.one_of::<[u8; 4]>(&[[10, 0, 0, 1], [10, 200, 0, 1], [192, 168, 1, 1]])[..],
        );
        p[16..20].copy_from_slice(
            &random.one_of::<[u8; 4]>(&[
                [225, 1, 2, 3],
                [225, 1, 2, 9],
                [232, 1, 1, 1],
                [224, 0, 0, 5],
            ])[..],
        );
    }
    p.resize(p.len() + body, 0x5a);
    p
}

/// Returns a mutated packet, mostly with a valid header checksum so that later checks are reached.
fn bad_packet(random: &mut Random) -> Vec<u8> {
    let mut p = packet(random);
    random.mutate(&mut p);
    if p.len() >= 20 && p[0] >> 4 == 4 && random.below(4) > 0 {
        refresh_ipv4_checksum(&mut p);
    }
    p
}

#[test]
fn switch() {
    try_all(harness::switch, cases(), |random| {
        let count = random.below(8);
        let mut input = vec![count as u8];
        input.extend((0..8).map(|_| *random.one_of(&[0, 0, 1, 3, 251, 252, 253])));
        for _ in 0..=count {
            let flags = random.next() as u8 | 5;
            input.push(if random.below(2) == 0 {
                0x4d & !8
            } else {
                flags
            });
            input.extend((random.next() as u16).to_be_bytes());
            input.extend((random.below(2000) as u16).to_be_bytes());
        }
        // The target splits the input into packets of equal length.
        let packets: Vec<_> = (0..=count).map(|_| bad_packet(random)).collect();
        let longest = packets.iter().map(Vec::len).max().unwrap_or(0);
        for mut packet in packets {
            packet.resize(longest, 0);
            input.extend(packet);
        }
        input
    });
}

#[test]
fn decide() {
    try_all(harness::decision, cases(), bad_packet);
}

/// Returns a valid IGMP, MLD or router discovery message.
fn message(random: &mut Random) -> Vec<u8> {
    let v6 = random.below(2) == 0;
    let from = if v6 { "fe80::7" } else { "10.0.0.7" };
    let from = from.parse().unwrap();
    let groups = if v6 {
        ["ff3e::1", "ff02::fb", "ff05::2"]
    } else {
        ["225.1.2.3", "232.1.1.1", "224.0.0.251"]
    };
    let sources = if v6 {
        ["2001:db8::1", "2001:db8::2", "fe80::1"]
    } else {
        ["10.0.0.1", "192.0.2.1", "192.0.2.2"]
    };
    let group = random.one_of(&groups).parse().unwrap();
    let listed = |random: &mut Random| {
        let some = 0..random.below(6);
        some.map(|_| random.one_of(&sources).parse().unwrap())
            .collect::<Vec<_>>()
    };
    let message = match random.below(6) {
        0 => {
            let message = match random.below(3) {
                0 => mrdisc::RouterDiscoveryMessage::Solicitation,
                1 => mrdisc::RouterDiscoveryMessage::Termination,
                _ => mrdisc::RouterDiscoveryMessage::Advertisement {
                    interval: random.next() as u8,
                    query_interval: random.next() as u16,
                    robustness: random.next() as u16,
                },
            };
            return mrdisc::build(&message, from);
        }
        1 => MembershipMessage::Leave { group },
        2 => MembershipMessage::Report {
            generation: *random.one_of(&[Generation::One, Generation::Two][usize::from(v6)..]),
            group,
        },
        3 => {
            let generation = *random.one_of(&[Generation::Two, Generation::Three]);
            let is_v3 = generation == Generation::Three;
            let has_group = random.below(2) == 0;
            let sources = listed(random);
            MembershipMessage::Query(Query {
                generation,
                group: has_group.then_some(group),
                max_response_time: std::time::Duration::from_millis(random.below(100_000) as u64),
                suppress: is_v3 && random.below(2) == 0,
                robustness: random.below(9) as u8,
                interval: is_v3
                    .then(|| std::time::Duration::from_secs(random.below(40_000) as u64)),
                sources: if has_group && is_v3 { sources } else { vec![] },
            })
        }
        _ => {
            let count = random.below(5);
            let kinds = [
                RecordType::ModeIsInclude,
                RecordType::ModeIsExclude,
                RecordType::ChangeToInclude,
                RecordType::ChangeToExclude,
                RecordType::AllowNewSources,
                RecordType::BlockOldSources,
            ];
            let record = |random: &mut Random| GroupRecord {
                kind: *random.one_of(&kinds),
                group: random.one_of(&groups).parse().unwrap(),
                sources: listed(random),
            };
            MembershipMessage::Records((0..count).map(|_| record(random)).collect())
        }
    };
    membership::build(&message, from, 1500)
        .unwrap()
        .swap_remove(0)
}

/// Returns a mutated message, mostly with valid checksums so that later checks are reached.
fn bad_message(random: &mut Random) -> Vec<u8> {
    let mut packet = message(random);
    if random.below(4) > 0 {
        let v4 = packet[0] >> 4 == 4;
        let mut body = packet.split_off(if v4 {
            IPV4_HEADERS_LEN
        } else {
            IPV6_HEADERS_LEN
        });
        random.mutate(&mut body);
        packet = if v4 {
            let to: [u8; 4] = packet[16..20].try_into().unwrap();
            encapsulate_v4([10, 0, 0, 7].into(), to.into(), &body)
        } else {
            let to: [u8; 16] = packet[24..40].try_into().unwrap();
            encapsulate_v6("fe80::7".parse().unwrap(), to.into(), &body)
        };
    }
    if random.below(4) == 0 {
        random.mutate(&mut packet);
    }
    packet
}

#[test]
fn membership() {
    try_all(harness::membership, cases(), bad_message);
}

/// Returns the header of an AMT message, and a packet where the type has one.
fn amt_message(random: &mut Random) -> Vec<u8> {
    let kind = 1 + random.below(7) as u8;
    let mut input = vec![random.next() as u8, kind, *random.one_of(&[0, 1, 2, 0x80])];
    match kind {
        4 | 5 => {
            input.extend([0; 10]);
            input.extend(message(random));
            if random.below(4) == 0 {
                input.extend([0; 18]);
            }
        }
        6 => input.extend(packet(random)),
        7 => input.extend([0; 28]),
        _ => input.extend([0; 6]),
    }
    match (kind, random.below(2)) {
        (2, 0) => input.extend([192, 0, 2, 1]),
        (2, _) => input.extend([0x20; 16]),
        _ => {}
    }
    if random.below(3) == 0 {
        random.mutate(&mut input);
    }
    input
}

#[test]
fn amt() {
    // Each case builds a relay or a gateway.
    try_all(harness::amt, cases() / 10, amt_message);
}

/// Returns a byte that chooses the protocol, and a message of discovery, often with an error.
fn discovery_message(random: &mut Random) -> Vec<u8> {
    const MESSAGES: [&[u8]; 6] = [
        b"M-SEARCH * HTTP/1.1\r\nST: upnp:rootdevice\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nST: x\r\nLOCATION: http://10.0.2.9:80/a\r\n\r\n",
        b"<e:Envelope><e:Body><d:Probe><d:Types>a:b</d:Types></d:Probe></e:Body></e:Envelope>",
        b"\0\0\0\0\0\x01\0\0\0\0\0\0\x05_http\x04_tcp\x05local\0\0\x0c\0\x01",
        b"\0\0\x84\0\0\0\0\x01\0\0\0\0\x05_http\x04_tcp\x05local\0\0\x0c\0\x01\0\0\0\x09\0\x04\x01x\xc0\x0c",
        b"\x06\x10\x02\x01\0\x0e\x08\x01\x0a\0\x01\x09\x0e\x57",
    ];
    let mut input = vec![random.next() as u8];
    input.extend(*random.one_of(&MESSAGES));
    if random.below(2) == 0 {
        random.mutate(&mut input);
    }
    input
}

#[test]
fn discovery() {
    // Each case builds a machine with open questions.
    try_all(harness::discovery, cases() / 10, discovery_message);
}

#[test]
fn translate() {
    try_all(harness::translate, cases(), |random| {
        let mut input = vec![random.next() as u8];
        input.extend(bad_packet(random));
        input
    });
}

#[test]
fn control() {
    let real: [&str; 5] = [
        r#"{"version":1,"command":{"show":"routes"}}"#,
        r#"{"version":1,"command":{"show":"interfaces"}}"#,
        r#"{"command":{"show":"routes"},"version":1,"more":[1,2,{"a":null}]}"#,
        r#"{"version":4294967296,"command":{"show":"\u0000\ud800"}}"#,
        "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    ];
    try_all(harness::control, cases(), |random| {
        let mut line = random.one_of(&real).as_bytes().to_vec();
        random.mutate(&mut line);
        line
    });
    harness::control(
        "[".repeat(mcastor::frontend::control::MAX_REQUEST)
            .as_bytes(),
    );
}

#[test]
fn settings() {
    let real: [&str; 5] = [
        "[[route]]\nfrom = \"a\"\nsource = \"10.0.0.1\"\ngroup = \"225.1.2.3\"\nto = [\"b\"]\nrewrite = { source = \"fd00::1\", group = \"ff3e::1\", port = 5001 }\n[[route]]\nfrom = \"b\"\ngroup = \"225.0.0.0/8\"\nto = [\"a\"]\nrewrite = { group = \"239.0.0.0/8\" }\n",
        "[http]\nlisten = \"127.0.0.1:9464\"\n[control]\nsocket = \"/run/mcastor/mcastor.sock\"\n[plane]\nkind = \"auto\"\n",
        "[[interface]]\nname = \"eth1\"\nttl_threshold = 3\n[[route]]\nfrom = \"eth0\"\ngroup = \"225.1.2.0/24\"\nto = [\"eth1\", \"veth*\"]\nttl = { set = 8 }\n",
        "[[route]]\nname = \"a\"\nfrom = \"br-*\"\nsource = \"192.168.1.0/24\"\nexcept_sources = [\"192.168.1.7\"]\ngroup = \"225.1.2.3\"\nto = [\"eth1\"]\nttl = \"keep\"\n",
        "[[route]]\nfrom = \"a\"\ngroup = \"ff3e::1\"\nto = [\"b\"]\n[[route]]\nfrom = \"b\"\ngroup = \"ff3e::1\"\nto = [\"a\"]\nlink_local = true\n",
    ];
    // Each case writes a file, so run fewer cases.
    try_all(harness::settings, cases() / 20, |random| {
        let mut text = random.one_of(&real).as_bytes().to_vec();
        random.mutate(&mut text);
        text
    });
}

#[test]
fn recv() {
    try_all(harness::recv, cases() / 4, |random| {
        let mut input = Vec::new();
        for _ in 0..random.below(12) {
            let payload = Payload {
                stream: random.below(2) as u64,
                flow: random.below(2) as u16,
                seq: *random.one_of(&[0, 1, 2, 65_535, 65_536, 200_000, u64::MAX - 1, u64::MAX]),
                sent_ns: random.next(),
                total: (random.below(2) == 0).then(|| random.next()),
            };
            let mut data = payload.to_bytes().to_vec();
            random.mutate(&mut data);
            data.truncate(255);
            input.extend([data.len() as u8, random.next() as u8, 0, 1, 2, 3]);
            input.extend(data);
        }
        input
    });
}

#[test]
fn joins() {
    let lines = [
        "10.0.0.1,232.1.1.1\n",
        "# cameras\n\n",
        "2001:db8::1 , ff3e::8000:1 # hall\r\n",
        "*,239.5.5.5\n",
        "232.1.1.1,10.0.0.1\n",
    ];
    try_all(harness::joins, cases() / 4, |random| {
        let mut text = Vec::new();
        for _ in 0..random.below(6) {
            text.extend(random.one_of(&lines).as_bytes());
        }
        random.mutate(&mut text);
        text
    });
}

#[test]
fn smcroute_conf() {
    let words = [
        "mroute",
        "mgroup",
        "phyint",
        "include",
        "from",
        "source",
        "group",
        "to",
        "ttl",
        "set",
        "keep",
        "except",
        "enable",
        "disable",
        "mrdisc",
        "ttl-threshold",
        "eth0",
        "eth1",
        "eth+",
        "br+",
        "225.1.2.3",
        "225.1.2.0/24",
        "224.0.0.5",
        "ff0e::42",
        "ff0e::/120",
        "10.0.0.1",
        "10.0.0.0/30",
        "10.0.0.1,10.0.0.2",
        "0.0.0.0",
        "fd00::1",
        "8",
        "0",
        "b",
        "#",
        "+",
        "*",
        "\"",
    ];
    let good = [
        "phyint eth1 enable mrdisc ttl-threshold 3\n",
        "mgroup from eth0 source 10.0.0.0/30 group 232.1.2.3\n",
        "mgroup from eth+ group 225.1.2.0/30\n",
        "mroute from eth0 group 225.1.2.3 to eth1 eth2\n",
        "mroute from br+ source 10.0.0.0/8 group ff0e::42 to eth+\n",
        "mroute from eth0 group 225.1.0.0/16 to eth1 ttl set 8 except 10.0.0.1\n",
        "include b\n",
    ];
    try_all(harness::smcroute_conf, cases() / 20, |random| {
        let mut text = String::new();
        for _ in 0..random.below(6) {
            if random.below(2) == 0 {
                text += random.one_of::<&str>(&good);
            } else {
                for _ in 0..random.below(9) {
                    text += random.one_of::<&str>(&words);
                    text.push(' ');
                }
                text.push('\n');
            }
        }
        let mut bytes = text.into_bytes();
        random.mutate(&mut bytes);
        bytes
    });
}

#[test]
fn mnat_answers() {
    let real = [
        r#"{"ietf-mnat:watcher": [{"id": "A", "mapped-sg": []}]}"#,
        r#"{"ietf-mnat:watcher": [{}]}"#,
        r#"{"ietf-mnat:watcher": [{"id": "A", "mapped-sg": [{"id": 1, "state": "ietf-mnat:assigned-local-multicast", "global-subscription": {"source": "10.0.0.1", "group": "232.1.1.1"}, "local-mapping": {"asm-group": "239.1.1.7"}}, {"id": 2, "state": "unassigned", "global-subscription": {"source": "2001:db8::1", "group": "ff3e::1"}}]}]}"#,
        r#"{"ietf-mnat:output": {"watcher-id": "B", "refresh-period": "20"}}"#,
        r#"{"ietf-restconf:errors": {"error": [{"error-message": "no"}]}}"#,
    ];
    try_all(harness::mnat_answer, cases() / 20, |random| {
        let status: u16 = *random.one_of(&[200, 200, 200, 204, 404, 500]);
        let mut input = status.to_be_bytes().to_vec();
        let mut body = random.one_of(&real).as_bytes().to_vec();
        random.mutate(&mut body);
        input.extend(body);
        input
    });
}

#[test]
fn smcroute_wire() {
    use mcastor::smcroute::wire::{SmcrouteCommand, Verb};
    let verbs = [
        Verb::Add,
        Verb::Remove,
        Verb::Join,
        Verb::Show,
        Verb::Flush,
        Verb::Kill,
    ];
    let words = [
        "eth0",
        "225.1.2.3",
        "10.0.0.1",
        "ff0e::42/120",
        "",
        "routes",
    ];
    try_all(harness::smcroute_wire, cases(), |random| {
        let arguments = (0..random.below(5)).map(|_| random.one_of(&words).to_string());
        let arguments = arguments.collect();
        let command = SmcrouteCommand {
            verb: *random.one_of(&verbs),
            arguments,
        };
        let mut bytes = command.encode().expect("short");
        random.mutate(&mut bytes);
        bytes
    });
}
