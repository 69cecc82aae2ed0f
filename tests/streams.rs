//! Test streams over a veth pair between two network namespaces. Needs root.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;

use mcastor::demo::network::{DemoNetwork, END, IN, sender_address};
use mcastor::model::Source;
use mcastor::probe::{Payload, StreamError};
use mcastor::traffic::{
    ReceiveEvent, ReceiveOptions, ReceiveReport, SendOptions, SendReport, StreamOptions,
    receive_with, send,
};

fn receive_options(group: &str) -> ReceiveOptions {
    let stream = StreamOptions::new(IN.parse().unwrap(), group.parse().unwrap());
    ReceiveOptions {
        idle: Some(5.0),
        ..ReceiveOptions::new(stream)
    }
}

fn send_options(group: &str) -> SendOptions {
    let mut stream = StreamOptions::new(END.parse().unwrap(), group.parse().unwrap());
    stream.count = Some(500);
    SendOptions {
        rate: 5000.0,
        ..SendOptions::new(stream)
    }
}

/// Receives in the namespace of the router while `send` runs in the namespace of the sender.
fn receive_during<T: Send>(
    network: &DemoNetwork,
    options: &ReceiveOptions,
    send: impl FnOnce() -> T + Send,
) -> (ReceiveReport, T) {
    let stop = AtomicBool::new(false);
    let (joined, wait) = mpsc::channel();
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let joined = joined;
            network.router.run(|| {
                receive_with(options, &stop, &mut |event| {
                    if let ReceiveEvent::Joined(_) = event {
                        joined.send(()).unwrap();
                    }
                })
            })
        });
        for _ in 0..options.stream.flows {
            wait.recv().unwrap();
        }
        let sent = network.sender.run(send).unwrap();
        (receiver.join().unwrap().unwrap().unwrap(), sent)
    })
}

fn send_and_receive(
    network: &DemoNetwork,
    recv: &ReceiveOptions,
    options: &SendOptions,
) -> (ReceiveReport, SendReport) {
    let stop = AtomicBool::new(false);
    let (report, sent) = receive_during(network, recv, || send(options, &stop));
    (report, sent.unwrap())
}

#[test]
fn every_kind_of_stream_arrives_completely() {
    let network = DemoNetwork::new().unwrap();
    let source = |v6| Source::new(sender_address(v6)).ok();
    for (group, v6) in [("225.1.2.3", false), ("ff3e::225:1", true)] {
        let plain = send_options(group);
        let mut source_specific = receive_options(group);
        source_specific.stream.source = source(v6);
        let mut receive_many = receive_options(group);
        receive_many.stream.flows = 30;
        let mut send_many = plain.clone();
        send_many.rate = 500.0;
        send_many.stream.flows = 30;
        send_many.stream.count = Some(100);
        for (kind, recv, options) in [
            ("plain", receive_options(group), plain.clone()),
            ("source-specific", source_specific, plain.clone()),
            (
                "segmented",
                receive_options(group),
                SendOptions {
                    gso: Some(7),
                    size: 1000,
                    ..plain.clone()
                },
            ),
            (
                "fragmented",
                receive_options(group),
                SendOptions {
                    size: 60_000,
                    rate: 1000.0,
                    ttl: 1,
                    ..plain.clone()
                },
            ),
            ("many", receive_many, send_many),
        ] {
            let (report, sent) = send_and_receive(&network, &recv, &options);
            assert!(report.ok, "{kind} {group}: {report:?}");
            let expected = options.stream.count.unwrap() * u64::from(options.stream.flows);
            assert_eq!(
                (sent.packets, report.received),
                (expected, expected),
                "{kind}"
            );
            assert_eq!(
                report.streams.len(),
                usize::from(options.stream.flows),
                "{kind}"
            );
            for stream in &report.streams {
                assert_eq!(stream.source, sender_address(v6), "{kind}");
                assert_eq!(stream.ttl_min, Some(options.ttl), "{kind}");
                assert_eq!(stream.ttl_max, Some(options.ttl), "{kind}");
            }
        }
    }
}

#[test]
fn packets_of_other_sources_are_not_received() {
    let network = DemoNetwork::new().unwrap();
    for (group, other) in [("232.1.2.3", "198.18.1.9"), ("ff3e::8000:1", "2001:2::9")] {
        let mut recv = receive_options(group);
        recv.stream.source = Some(other.parse().unwrap());
        recv.idle = Some(0.5);
        let (report, _) = send_and_receive(&network, &recv, &send_options(group));
        assert_eq!((report.ok, report.received), (false, 0));
        assert_eq!(report.silent.len(), 1);
    }
}

#[test]
fn gaps_duplicates_and_foreign_packets_are_counted() {
    let network = DemoNetwork::new().unwrap();
    let recv = ReceiveOptions {
        idle: Some(0.5),
        ..receive_options("225.1.2.3")
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
            let mut options = send_options("225.1.2.3");
            options.stream.interface = "nope".parse().unwrap();
            let error = send(&options, &stop).unwrap_err();
            assert!(matches!(error, StreamError::NoInterface { .. }));
            assert!(error.to_string().contains("eth0"), "{error}");

            let mut options = send_options("225.1.2.3");
            options.stream.source = Some("198.18.1.99".parse().unwrap());
            let error = send(&options, &stop).unwrap_err();
            assert!(error.to_string().contains("198.18.1.2"), "{error}");

            let mut options = send_options("225.1.2.3");
            options.stream.interface = "lo".parse().unwrap();
            options.stream.group = "ff3e::1".parse().unwrap();
            options.size = 39;
            let error = send(&options, &stop).unwrap_err();
            assert!(matches!(error, StreamError::Usage(_)), "{error}");
        })
        .unwrap();
}
