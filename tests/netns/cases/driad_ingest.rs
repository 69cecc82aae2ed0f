//! `mcastor driad-ingest`: a joinfile, relays in DNS, and native multicast.

use std::fs;

use super::amt::AmtTopology;
use super::cases;
use crate::lab::dns::{DnsRecord, DnsServer};
use crate::lab::proxy::joined;
use crate::lab::{BINARY, Capture, Lab, NumberedStream, Program, eventually};

cases!("driad_ingest":
    streams_of_the_joinfile_are_received_through_their_relays,
    faulty_arguments_end_with_code_2,
);

/// The joinfile changes by a rename and in place. A stream that stays in it loses nothing.
fn streams_of_the_joinfile_are_received_through_their_relays(lab: &Lab) {
    let topology = AmtTopology::new(lab);
    let relay = topology.relay(lab);
    let record = DnsRecord::new(260, vec![10, 1, 10, 1, 0, 1]);
    let records = vec![("10.0.0.10.in-addr.arpa", record)];
    let _dns = DnsServer::start(&topology.core, "10.2.0.2:53", records);
    let resolv_conf = lab.file("resolv.conf");
    fs::write(&resolv_conf, "nameserver 10.2.0.2\n").unwrap();
    let joinfile = lab.file("joined.sgs");
    let stream = |n: u8| format!("10.0.0.10,232.1.1.{n}\n");
    let first = format!("# streams\n{}not a stream\n*,232.1.1.9\n", stream(1));
    let mut command = topology.gw.command(BINARY);
    command
        .args(["driad-ingest", "--amt", "amt-bridge", "--interface", "out"])
        .arg("--joinfile")
        .arg(&joinfile)
        .env("MCASTOR__CONTROL__SOCKET", lab.file("ingest.sock"))
        .env("MCASTOR_TEST_RESOLV_CONF", &resolv_conf);
    let mut ingest = Program::start(lab, command);
    let expect_groups = |groups: &[&str]| {
        let expected: Vec<String> = groups.iter().map(|group| group.to_string()).collect();
        eventually("joined groups", expected, || {
            let joined = joined(&relay, "in").into_iter();
            let mut joined: Vec<String> = joined
                .filter_map(|j| Some(j.split_once(' ')?.0.to_owned()))
                .collect();
            joined.sort();
            joined
        });
    };
    let waits = || ingest.stderr().contains("does not exist; waiting for it");
    eventually("it waits for the joinfile", true, waits);
    fs::write(&joinfile, first).unwrap();
    expect_groups(&["232.1.1.1"]);
    let log = ingest.stderr();
    assert!(!log.contains("nothing is configured"), "{log}");
    assert!(log.contains("1 invalid lines are skipped: line 3"), "{log}");
    assert!(log.contains("1 lines without a source"), "{log}");

    let wire = Capture::new(&topology.rcv, "eth1");
    let sender = NumberedStream::start(&topology.src, "eth0", "10.0.0.10:9", "232.1.1.1:5000", 200);
    let new = lab.file("new.sgs");
    fs::write(&new, stream(1) + &stream(2)).unwrap();
    fs::rename(&new, &joinfile).unwrap();
    expect_groups(&["232.1.1.1", "232.1.1.2"]);
    let sent = sender.finish();
    wire.expect("232.1.1.1", sent as usize);

    fs::write(&joinfile, stream(2)).unwrap();
    expect_groups(&["232.1.1.2"]);
    let status = ingest.stop(libc::SIGTERM, crate::lab::TIMEOUT);
    assert_eq!(status.code(), Some(0), "{}", ingest.stderr());
}

fn faulty_arguments_end_with_code_2(lab: &Lab) {
    let ns = lab.ns("gw");
    for (arguments, named) in [
        (&["--interface", "out"][..], "--joinfile"),
        (&["--joinfile", "f"], "--interface"),
        (&["--joinfile", "f", "--interface", "a/b"], "--interface"),
        (&["--joinfile", "f", "--native", ""], "--native"),
    ] {
        let all = [&["driad-ingest"], arguments].concat();
        let out = ns.output(BINARY, &all);
        let printed = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{printed}");
        assert!(printed.contains(named), "{printed}");
    }
}
