//! The fuzz targets for inputs other than packets: commands, settings, files and server responses.

use std::io;

use mcastor::frontend::control::Request;
use mcastor::mnat::protocol::{self, Op, ServerResponse};
use mcastor::mnat::{Machine, MnatRole, RoutePlan, joinfile};
use mcastor::model::translation_conflicts;
use mcastor::probe::{DatagramStats, ProbeDatagram, ReceiverStats};
use mcastor::settings::Settings;
use mcastor::smcroute::conf;
use mcastor::smcroute::convert::convert;
use mcastor::smcroute::wire::{SmcrouteCommand, length};

use super::Input;

/// Parses a line of the control socket. An accepted request must be the same after it is written
/// and parsed again.
pub fn control(data: &[u8]) -> bool {
    let Ok(line) = std::str::from_utf8(data) else {
        return false;
    };
    match Request::parse(line) {
        Ok(request) => {
            let again = serde_json::to_string(&request).expect("a request can be written");
            assert_eq!(Request::parse(&again), Ok(request));
            true
        }
        Err(e) => {
            assert!(
                e.len() < 4096 + 2 * line.len(),
                "the error message is much longer than the request"
            );
            false
        }
    }
}

/// Reads a settings file. A report of problems must be printable.
pub fn settings(data: &[u8]) -> bool {
    thread_local! {
        static FILE: tempfile::NamedTempFile = tempfile::NamedTempFile::new().unwrap();
    }
    FILE.with(|file| {
        std::fs::write(file.path(), data).unwrap();
        match Settings::load(Some(file.path()), std::iter::empty()) {
            Ok(settings) => {
                for (i, one) in settings.routes.iter().enumerate() {
                    assert!(
                        !settings.routes[..i]
                            .iter()
                            .any(|r| r.is_ambiguous_with(one))
                    );
                    assert_eq!(
                        translation_conflicts::translation_loop(&settings.routes, i),
                        None
                    );
                }
                assert_eq!(
                    translation_conflicts::all_merged_streams(&settings.routes),
                    []
                );
                true
            }
            Err(report) => {
                assert!(!format!("{report} {report:?}").is_empty());
                false
            }
        }
    })
}

/// Splits the input into UDP payloads for the receiver of test streams. Each must be counted once.
pub fn recv(data: &[u8]) -> bool {
    let mut input = Input(data);
    let mut stats = ReceiverStats::default();
    let mut arrived = 0;
    let group = std::net::IpAddr::from([225, 1, 2, 3]);
    while !input.0.is_empty() {
        let (len, ttl) = (usize::from(input.u8()), input.u8());
        let received_ns = u64::from(input.u16()) << 48 | u64::from(input.u16());
        stats.add(&ProbeDatagram {
            group,
            source: std::net::IpAddr::from([10, 0, 0, ttl % 4]),
            ttl: (ttl & 1 == 0).then_some(ttl),
            received_ns,
            data: input.take(len),
        });
        arrived += 1;
    }
    let report = stats.report();
    let counted: u64 = report
        .iter()
        .map(|s| s.received + s.duplicates + s.late)
        .sum();
    assert_eq!(counted + stats.foreign() + stats.untracked(), arrived);
    for stream in &report {
        assert!(stream.first_seq <= stream.last_seq);
        assert!(stream.reordered <= stream.received && stream.damaged <= arrived);
        serde_json::to_string(stream).expect("a report can be written");
    }
    let _ = (stats.received(group), stats.is_complete(group));
    counted > 0
}

/// Parses a joinfile. The joins must be the same after they are written and parsed again.
pub fn joins(data: &[u8]) -> bool {
    let file = joinfile::parse(data);
    assert!(file.faults.len() <= file.fault_count);
    assert!(
        file.joins.len() + file.fault_count <= data.iter().filter(|b| **b == b'\n').count() + 1
    );
    let again = joinfile::parse(joinfile::render(file.joins.clone()).as_bytes());
    assert_eq!((again.joins, again.fault_count), (file.joins.clone(), 0));
    !file.joins.is_empty()
}

/// Parses a response of an MNAT server to every operation, and passes it to a machine that has a
/// mapping. The machine must continue, and must restore the mapping after a valid response.
pub fn mnat_answer(data: &[u8]) -> bool {
    let mut input = Input(data);
    let (status, body) = (input.u16() % 600, input.0);
    for op in Op::ALL {
        if let Ok(ServerResponse::Watcher { id, .. }) = protocol::parse_response(op, status, body) {
            assert!(!id.is_empty() && id.len() <= 128);
        }
    }
    let (watcher, known) = (
        br#"{"watcher-id": "A", "refresh-period": 20}"#,
        br#"{"ietf-mnat:watcher": [{"id": "A", "mapped-sg": [{"id": 1, "state": "assigned-local-multicast",
            "global-subscription": {"source": "10.0.0.1", "group": "232.1.1.1"},
            "local-mapping": {"source": "10.9.1.2", "group": "239.1.1.7"}}]}]}"#,
    );
    let started = std::time::Instant::now();
    let grace = std::time::Duration::from_secs(300);
    let mut machine = Machine::new(MnatRole::Ingress, grace, started, 1);
    let (mut plan, mut now) = (RoutePlan::new(MnatRole::Ingress), started);
    let mut polls = 0;
    for _ in 0..40 {
        now = now.max(
            machine
                .poll_timeout()
                .expect("the machine always has a timeout"),
        );
        machine.handle_timeout(now);
        let Some(request) = machine.poll_request(now) else {
            continue;
        };
        let answer: (u16, &[u8]) = match (request.op, polls) {
            (Op::Poll, 1) => (status, body),
            (Op::Poll, _) => (200, known),
            _ => (200, watcher),
        };
        polls += u32::from(request.op == Op::Poll);
        machine.handle_outcome(now, Ok(answer));
        while let Some(event) = machine.poll_event() {
            if let mcastor::mnat::MnatEvent::Change(change) = event {
                plan.apply(now, &change);
            }
        }
        while plan.poll_step().is_some() {}
    }
    assert!(polls > 3, "{polls} polls");
    assert_eq!(machine.counts()[0], 1, "the mapping is restored");
    assert_eq!(plan.routes().count(), 1);
    protocol::parse_response(Op::Poll, status, body).is_ok()
}

/// Reads an `smcroute.conf` that may include itself under other names. Every fault must have a line
/// number, no two routes may match a packet equally well, and the settings must be the same after a
/// conversion to TOML.
pub fn smcroute_conf(data: &[u8]) -> bool {
    thread_local! {
        static FILE: tempfile::NamedTempFile = tempfile::Builder::new()
            .suffix(".toml")
            .tempfile()
            .unwrap();
    }
    let mut remaining = 20;
    let conf = conf::read("a", data.first().is_some_and(|b| b % 2 == 0), &mut |path| {
        remaining -= 1;
        match (path, remaining) {
            ("a", _) => Ok(vec![("a".into(), Ok(data.to_vec()))]),
            (_, ..0) => Err(io::ErrorKind::NotFound.into()),
            (path, _) => Ok(vec![(path.into(), Ok(data.to_vec()))]),
        }
    });
    for fault in &conf.faults {
        assert!(fault.location.line > 0 && !fault.cause.is_empty());
    }
    for (i, (_, one)) in conf.routes.iter().enumerate() {
        assert_eq!(
            one.source.net().addr().is_ipv4(),
            one.group.net().addr().is_ipv4()
        );
        assert!(
            !conf.routes[..i]
                .iter()
                .any(|(_, r)| r.is_ambiguous_with(one))
        );
    }
    let toml = convert(&conf);
    FILE.with(|file| {
        std::fs::write(file.path(), &toml).unwrap();
        let settings = Settings::load(Some(file.path()), std::iter::empty());
        let settings = settings.unwrap_or_else(|report| panic!("{report}\n{toml}"));
        let routes: Vec<_> = conf.routes.iter().map(|(_, r)| r.clone()).collect();
        let joins: Vec<_> = conf.joins.iter().map(|(_, j)| j.clone()).collect();
        assert_eq!((settings.routes, settings.joins), (routes, joins), "{toml}");
        let options = settings.interfaces.into_iter();
        let options = options.map(|i| (i.name, !i.enabled, i.mrdisc, i.ttl_threshold));
        let interfaces = conf.interfaces.iter();
        let interfaces =
            interfaces.map(|i| (i.name.clone(), i.disabled, i.mrdisc, i.ttl_threshold));
        assert!(options.eq(interfaces), "{toml}");
    });
    !conf.routes.is_empty() || !conf.joins.is_empty() || !conf.interfaces.is_empty()
}

/// Parses a command of the smcroute socket. An accepted command must be written as the same bytes.
pub fn smcroute_wire(data: &[u8]) -> bool {
    let expected_len = length(data);
    match SmcrouteCommand::decode(data) {
        Ok(command) => {
            assert_eq!(expected_len, Ok(Some(data.len())));
            let written = command
                .encode()
                .expect("an accepted command is short enough");
            assert_eq!(SmcrouteCommand::decode(&written), Ok(command));
            true
        }
        Err(e) => {
            assert!(!e.to_string().is_empty() && e.to_string().len() < 200);
            false
        }
    }
}
