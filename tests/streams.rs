//! Test streams over a veth pair between two network namespaces. Needs root.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;

use mcastor::cli::recv::{RecvArgs, RecvEvent, RecvReport, recv_with};
use mcastor::cli::send::{SendArgs, SendReport, send};
use mcastor::demo::network::{DemoNetwork, END, IN, sender_address};
use mcastor::model::Source;
use mcastor::probe::{Payload, StreamError};

fn recv_args(group: &str) -> RecvArgs {
    RecvArgs {
        idle: Some(5.0),
        ..RecvArgs::new(IN.parse().unwrap(), group.parse().unwrap())
    }
}

fn send_args(group: &str) -> SendArgs {
    SendArgs {
        rate: 5000.0,
        count: Some(500),
        ..SendArgs::new(END.parse().unwrap(), group.parse().unwrap())
    }
}

/// Receives in the namespace of the router while `send` runs in the namespace of the sender.
fn receive_during<T: Send>(
    network: &DemoNetwork,
    args: &RecvArgs,
    send: impl FnOnce() -> T + Send,
) -> (RecvReport, T) {
    let stop = AtomicBool::new(false);
    let (joined, wait) = mpsc::channel();
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let joined = joined;
            network.router.run(|| {
                recv_with(args, &stop, &mut |event| {
                    if let RecvEvent::Joined(_) = event {
                        joined.send(()).unwrap();
                    }
                })
            })
        });
        for _ in 0..args.flows {
            wait.recv().unwrap();
        }
        let sent = network.sender.run(send).unwrap();
        (receiver.join().unwrap().unwrap().unwrap(), sent)
    })
}

fn send_and_receive(
    network: &DemoNetwork,
    recv: &RecvArgs,
    args: &SendArgs,
) -> (RecvReport, SendReport) {
    let stop = AtomicBool::new(false);
    let (report, sent) = receive_during(network, recv, || send(args, &stop));
    (report, sent.unwrap())
}

#[test]
fn every_kind_of_stream_arrives_completely() {
    let network = DemoNetwork::new().unwrap();
    let source = |v6| Source::new(sender_address(v6)).ok();
    for (group, v6) in [("225.1.2.3", false), ("ff3e::225:1", true)] {
        let plain = send_args(group);
        for (kind, recv, args) in [
            ("plain", recv_args(group), plain.clone()),
            (
                "source-specific",
                RecvArgs {
                    source: source(v6),
                    ..recv_args(group)
                },
                plain.clone(),
            ),
            (
                "segmented",
                recv_args(group),
                SendArgs {
                    gso: Some(7),
                    size: 1000,
                    ..plain.clone()
                },
            ),
            (
                "fragmented",
                recv_args(group),
                SendArgs {
                    size: 60_000,
                    rate: 1000.0,
                    ttl: 1,
                    ..plain.clone()
                },
            ),
            (
                "many",
                RecvArgs {
                    flows: 30,
                    ..recv_args(group)
                },
                SendArgs {
                    flows: 30,
                    rate: 500.0,
                    count: Some(100),
                    ..plain.clone()
                },
            ),
        ] {
            let (report, sent) = send_and_receive(&network, &recv, &args);
            assert!(report.ok, "{kind} {group}: {report:?}");
            let expected = args.count.unwrap() * u64::from(args.flows);
            assert_eq!(
                (sent.packets, report.received),
                (expected, expected),
                "{kind}"
            );
            assert_eq!(report.streams.len(), usize::from(args.flows), "{kind}");
            for stream in &report.streams {
                assert_eq!(stream.source, sender_address(v6), "{kind}");
                assert_eq!(stream.ttl_min, Some(args.ttl), "{kind}");
                assert_eq!(stream.ttl_max, Some(args.ttl), "{kind}");
            }
        }
    }
}

#[test]
fn packets_of_other_sources_are_not_received() {
    let network = DemoNetwork::new().unwrap();
    for (group, other) in [("232.1.2.3", "198.18.1.9"), ("ff3e::8000:1", "2001:2::9")] {
        let recv = RecvArgs {
            source: Some(other.parse().unwrap()),
            idle: Some(0.5),
            ..recv_args(group)
        };
        let (report, _) = send_and_receive(&network, &recv, &send_args(group));
        assert_eq!((report.ok, report.received), (false, 0));
        assert_eq!(report.silent.len(), 1);
    }
}

#[test]
fn gaps_duplicates_and_foreign_packets_are_counted() {
    let network = DemoNetwork::new().unwrap();
    let recv = RecvArgs {
        idle: Some(0.5),
        ..recv_args("225.1.2.3")
    };
    let (report, ()) = receive_during(&network, &recv, || {
        let socket = std::net::UdpSocket::bind((sender_address(false), 0)).unwrap();
        let IpAddr::V4(own) = sender_address(false) else {
            panic!("not IPv4");
        };
        socket2::SockRef::from(&socket)
            .set_multicast_if_v4(&own)
            .unwrap();
        let to: SocketAddr = "225.1.2.3:5000".parse().unwrap();
        for seq in [0, 1, 2, 5, 6, 4, 6, 9] {
            let payload = Payload {
                stream: 1,
                flow: 0,
                seq,
                sent_ns: 0,
                total: Some(12),
            };
            socket.send_to(&payload.to_bytes(), to).unwrap();
        }
        for foreign in [b"".as_slice(), b"hello", &[0xff; 1400]] {
            socket.send_to(foreign, to).unwrap();
        }
    });
    assert_eq!((report.received, report.lost), (7, 5));
    assert_eq!((report.duplicates, report.reordered), (1, 1));
    assert_eq!((report.foreign, report.ok), (3, false));
}

#[test]
fn errors_name_their_cause() {
    let network = DemoNetwork::new().unwrap();
    let stop = AtomicBool::new(false);
    network
        .sender
        .run(|| {
            let mut args = send_args("225.1.2.3");
            args.interface = "nope".parse().unwrap();
            let error = send(&args, &stop).unwrap_err();
            assert!(matches!(error, StreamError::NoInterface { .. }));
            assert!(error.to_string().contains("eth0"), "{error}");

            let mut args = send_args("225.1.2.3");
            args.source = Some("198.18.1.99".parse().unwrap());
            let error = send(&args, &stop).unwrap_err();
            assert!(error.to_string().contains("198.18.1.2"), "{error}");

            let mut args = send_args("225.1.2.3");
            args.interface = "lo".parse().unwrap();
            args.group = "ff3e::1".parse().unwrap();
            args.size = 39;
            let error = send(&args, &stop).unwrap_err();
            assert!(matches!(error, StreamError::Usage(_)), "{error}");
        })
        .unwrap();
}
