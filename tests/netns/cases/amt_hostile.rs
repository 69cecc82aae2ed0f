//! AMT with a relay that lies, and a relay that is flooded.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mcastor::wire::amt::{AmtMessage, FlagLayout, ResponseMac};
use mcastor::wire::membership::build;
use mcastor::wire::membership_message::{Generation, MembershipMessage, Query, RecordType};

use super::amt::{AmtTopology, RELAY, gateway_settings, joined_groups, tunnels};
use super::cases;
use crate::lab::flood::{Flood, group, record, source};
use crate::lab::proxy::{join_source, joined};
use crate::lab::{
    Capture, IpPacket, Lab, Ns, NumberedStream, Random, Router, Udp, eventually, wait_until,
};

cases!("amt_hostile":
    gateway_refuses_lies_of_a_relay,
    flood_of_forged_messages_is_answered_within_limits,
    gateway_that_updates_all_the_time_does_not_stop_others,
);

const GROUP: &str = "232.1.1.1";
const RELAY_ADDRESS: &str = "10.1.0.1:2268";

/// Packets of the stream that the lying relay sends.
const PACKETS: usize = 50;

/// Queries for a nonce that the gateway did not send, before the right one. Fewer than the messages
/// that may wait for the AMT actor.
const WRONG_QUERIES: usize = 200;

/// A relay that lies before each true answer. Dropping it ends it.
struct LyingRelay {
    stop: Arc<AtomicBool>,
    /// Updates with the MAC that the relay sent.
    updates: Arc<AtomicUsize>,
    /// The first update whose MAC is not that of the true query.
    wrong_update: Arc<Mutex<Option<Vec<u8>>>>,
    thread: Option<JoinHandle<()>>,
}

/// The MAC of the true query.
const MAC: ResponseMac = ResponseMac([1, 2, 3, 4, 5, 6]);
/// The MAC of the lies.
const WRONG_MAC: ResponseMac = ResponseMac([9; 6]);

impl LyingRelay {
    fn start(ns: &Ns) -> Self {
        let bind = |address: &str| {
            let socket = ns.enter(|| UdpSocket::bind(address)).expect("a socket");
            let timeout = Some(Duration::from_millis(20));
            socket.set_read_timeout(timeout).expect("a timeout");
            socket
        };
        let (socket, other) = (bind(RELAY_ADDRESS), bind("10.1.0.1:2269"));
        let stop = Arc::new(AtomicBool::new(false));
        let updates = Arc::new(AtomicUsize::new(0));
        let wrong_update = Arc::new(Mutex::new(None));
        let (stopped, count, wrong) = (stop.clone(), updates.clone(), wrong_update.clone());
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 2000];
            while !stopped.load(Ordering::Acquire) {
                let Ok((len, gateway)) = socket.recv_from(&mut buffer) else {
                    continue;
                };
                let send = |bytes: Vec<u8>| {
                    let _ = socket.send_to(&bytes, gateway);
                };
                match AmtMessage::parse(&buffer[..len]) {
                    Ok(AmtMessage::RelayDiscovery { nonce }) => {
                        false_advertisements(nonce).into_iter().for_each(send);
                        send(advertisement(nonce, "10.1.0.1"));
                    }
                    Ok(AmtMessage::Request { nonce, .. }) => {
                        false_queries(nonce).into_iter().for_each(send);
                        let truth = query(nonce, MAC, gateway);
                        // The truth, from a port at which no relay is known.
                        let _ = other.send_to(&truth, gateway);
                        send(truth);
                    }
                    Ok(AmtMessage::MembershipUpdate { mac, .. }) if mac == MAC => {
                        if count.fetch_add(1, Ordering::AcqRel) == 0 {
                            for n in 0..PACKETS {
                                let _ = other.send_to(&data(n as u32), gateway);
                                false_data().into_iter().for_each(send);
                                send(data(n as u32));
                            }
                        }
                    }
                    _ => *wrong.lock().expect("no panic") = Some(buffer[..len].to_vec()),
                }
            }
        });
        Self {
            stop,
            updates,
            wrong_update,
            thread: Some(thread),
        }
    }
}

impl Drop for LyingRelay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn advertisement(nonce: u32, relay: &str) -> Vec<u8> {
    let relay = relay.parse().expect("an address");
    AmtMessage::RelayAdvertisement { nonce, relay }.to_bytes()
}

fn query_of(nonce: u32, mac: ResponseMac, packet: &[u8], gateway: Option<SocketAddr>) -> Vec<u8> {
    let message = AmtMessage::MembershipQuery {
        is_limit_reached: false,
        mac,
        nonce,
        packet,
        gateway,
        flags: FlagLayout::Standard,
    };
    message.to_bytes()
}

fn general_query(source: &str) -> Vec<u8> {
    let query = Query {
        generation: Generation::Three,
        group: None,
        max_response_time: Duration::from_secs(1),
        suppress: false,
        robustness: 2,
        interval: Some(Duration::from_secs(125)),
        sources: Vec::new(),
    };
    let source = source.parse().expect("an address");
    build(&MembershipMessage::Query(query), source, 1400).expect("a query")[0].clone()
}

fn query(nonce: u32, mac: ResponseMac, gateway: SocketAddr) -> Vec<u8> {
    query_of(nonce, mac, &general_query("192.0.2.1"), Some(gateway))
}

/// A multicast data message with a packet of the stream.
fn data(number: u32) -> Vec<u8> {
    let frame = Udp::new("10.0.0.10:9", "232.1.1.1:5000", number.to_be_bytes()).frame();
    let packet = &frame[14..];
    AmtMessage::MulticastData { packet }.to_bytes()
}

fn false_advertisements(nonce: u32) -> Vec<Vec<u8>> {
    let truth = advertisement(nonce, "10.1.0.1");
    let mut long = truth.clone();
    long.extend([0; 5]);
    vec![
        truth[..9].to_vec(),
        long,
        advertisement(nonce, "2001:db8::1"),
        advertisement(nonce ^ 1, "10.1.0.99"),
        advertisement(nonce, "224.0.0.1"),
        vec![0x12; 12],
        vec![9; 12],
    ]
}

fn false_queries(nonce: u32) -> Vec<Vec<u8>> {
    let gateway = "192.0.2.7:1".parse().expect("an address");
    let truth = query(nonce, WRONG_MAC, gateway);
    let mut corrupt = general_query("192.0.2.1");
    corrupt[20] ^= 0xff;
    let mut lies = vec![
        truth[..11].to_vec(),
        truth[..30].to_vec(),
        query_of(nonce, WRONG_MAC, &general_query("fe80::1"), None),
        query_of(nonce, WRONG_MAC, &corrupt, None),
        query_of(nonce, WRONG_MAC, &[], None),
        AmtMessage::RelayDiscovery { nonce }.to_bytes(),
    ];
    lies.extend((1..=WRONG_QUERIES as u32).map(|n| query(nonce ^ n, WRONG_MAC, gateway)));
    lies
}

/// Data messages that carry no packet of a stream.
fn false_data() -> Vec<Vec<u8>> {
    let truth = data(0);
    let unicast = Udp::new("10.0.0.10:9", "232.1.1.1:5000", "x").frame()[14..].to_vec();
    let mut unicast = unicast;
    unicast[16..20].copy_from_slice(&[10, 3, 0, 10]);
    vec![
        truth[..2].to_vec(),
        truth[..15].to_vec(),
        AmtMessage::MulticastData { packet: &unicast }.to_bytes(),
        AmtMessage::MulticastData {
            packet: &[0xff; 60],
        }
        .to_bytes(),
    ]
}

fn gateway_refuses_lies_of_a_relay(lab: &Lab) {
    let topology = AmtTopology::new(lab);
    let relay = LyingRelay::start(&topology.rel);
    let settings = gateway_settings("\"10.1.0.1\"");
    let settings = settings.replace("[[proxy]]", "families = [\"ipv4\"]\n[[proxy]]");
    let gateway = Router::start(lab, &topology.gw, &settings);
    let wire = Capture::new(&topology.rcv, "eth1");
    let _member = join_source(&topology.rcv, "eth1", "10.0.0.10", GROUP);
    eventually("an update", true, || {
        relay.updates.load(Ordering::Acquire) > 0
    });
    let packets = || {
        let packets = wire.to(GROUP).into_iter();
        let data = packets.filter(|packet| packet.protocol == 17);
        data.map(|packet| packet.payload().to_vec())
            .collect::<Vec<_>>()
    };
    eventually("the packets of the stream", PACKETS, || packets().len());
    let expected: Vec<Vec<u8>> = (0..PACKETS as u32)
        .map(|n| n.to_be_bytes().to_vec())
        .collect();
    assert_eq!(packets(), expected);
    assert_eq!(*relay.wrong_update.lock().unwrap(), None);
    for reason in [
        "length",
        "other_family",
        "wrong_nonce",
        "bad_address",
        "bad_query",
        "unknown_relay",
        "unknown_type",
        "version",
        "unexpected_type",
    ] {
        let labels = [("reason", reason)];
        eventually(reason, true, || {
            gateway.metric("mcastor_amt_refused_total", &labels) >= 1.0
        });
    }
    gateway.expect_routed("p", "out", PACKETS as u64);
}

/// Frames of the flood. Half of them come from one /24, the others from anywhere in 11.0.0.0/8.
fn forged(relay: [u8; 6]) -> Vec<Vec<u8>> {
    let mut random = Random::default();
    let mac = WRONG_MAC;
    let frame = |_| {
        let r = random.next();
        let from = match r % 2 {
            0 => format!("11.0.0.{}:{}", r >> 8 & 0xff, 1024 + (r >> 16 & 0x7fff)),
            _ => {
                let [_, a, b, c, ..] = r.to_be_bytes();
                format!("11.{a}.{b}.{c}:{}", 1024 + (r & 0x7fff))
            }
        };
        let nonce = (r >> 32) as u32;
        let message = match r >> 20 & 3 {
            0 | 1 => AmtMessage::RelayDiscovery { nonce },
            2 => AmtMessage::Request {
                nonce,
                is_mld: r & 1 != 0,
                flags: FlagLayout::Standard,
            },
            _ => AmtMessage::MembershipUpdate {
                mac,
                nonce,
                packet: &[0x46; 40],
            },
        };
        let mut frame = Udp::new(&from, RELAY_ADDRESS, message.to_bytes()).frame();
        frame[..6].copy_from_slice(&relay);
        frame
    };
    (0..20_000).map(frame).collect()
}

/// 100,000 messages a second from forged addresses: the answers stay within the limits, and the
/// stream of a gateway goes on.
fn flood_of_forged_messages_is_answered_within_limits(lab: &Lab) {
    const FLOOD: u64 = 100_000;
    const TOTAL: f64 = 2000.0;
    const OF_PREFIX: f64 = 50.0;
    let topology = AmtTopology::new(lab);
    let AmtTopology { core, rel, .. } = &topology;
    // The answers end at the core.
    core.ip("route add blackhole 11.0.0.0/8");
    let relay = Router::start(
        lab,
        rel,
        "[[amt.relay]]\nname = \"tunnels\"\nlimits = { answers = 2000, answers_per_prefix = 50 }\n\
         [[proxy]]\nname = \"r\"\nupstream = [\"in\"]\ndownstream = [\"tunnels\"]\n",
    );
    let _gateway = topology.gateway(lab, "\"10.1.0.1\"");
    let _member = join_source(&topology.rcv, "eth1", "10.0.0.10", GROUP);
    eventually("joined upstream", 1, || joined(&relay, "in").len());
    let stream = Capture::new(&topology.rcv, "eth1");
    let sender = NumberedStream::start(&topology.src, "eth0", "10.0.0.10:9", "232.1.1.1:5000", 200);
    eventually("the stream", true, || stream.to(GROUP).len() > 20);
    let wire = Capture::new(core, "c0");
    let memory = relay.program.rss();
    let started = Instant::now();
    let flood = Flood::start(core, "c0", forged(rel.mac("wan0")), 100_000);
    let mut answers = Vec::new();
    let mut collect = || {
        let frames = wire.take_new().into_iter().filter(|frame| !frame.outgoing);
        let packets = frames.filter_map(|frame| IpPacket::parse(&frame.bytes));
        let to_forged = |packet: &IpPacket| packet.dst.to_string().starts_with("11.");
        answers.extend(
            packets
                .filter(to_forged)
                .map(|packet| packet.dst.to_string()),
        );
    };
    let is_sent = wait_until(crate::lab::TIMEOUT, || {
        collect();
        flood.sent() >= FLOOD
    });
    assert!(is_sent, "{} sent", flood.sent());
    drop(flood);
    let labels = [("reason", "rate_limit")];
    eventually("messages beyond the limit", true, || {
        relay.metric("mcastor_amt_refused_total", &labels) > 1000.0
    });
    collect();
    let seconds = started.elapsed().as_secs_f64();
    let of_prefix = answers.iter().filter(|to| to.starts_with("11.0.0."));
    let (of_prefix, all) = (of_prefix.count() as f64, answers.len() as f64);
    // Two seconds' worth of answers may be sent at once.
    assert!(
        all > 0.0 && all <= TOTAL * (seconds + 2.0),
        "{all} answers in {seconds} s"
    );
    assert!(
        of_prefix <= OF_PREFIX * (seconds + 2.0),
        "{of_prefix} in {seconds} s"
    );
    assert!(relay.metric("mcastor_amt_refused_total", &[("reason", "wrong_mac")]) > 0.0);
    // Nothing is stored for a forged sender.
    assert_eq!(joined_groups(&relay), 1);
    let grown = relay.program.rss().saturating_sub(memory);
    assert!(grown < 32 << 20, "{grown} bytes more");
    let before = stream.to(GROUP).len();
    eventually("the stream after the flood", true, || {
        stream.to(GROUP).len() > before + 20
    });
    let sent = sender.finish();
    let arrived = || stream.to(GROUP).len();
    let is_enough = wait_until(crate::lab::TIMEOUT, || {
        arrived() * 100 >= sent as usize * 90
    });
    assert!(is_enough, "{} of {sent} packets of the stream", arrived());
}

/// Groups that the gateway with a valid MAC joins and leaves in turn.
const FLOOD_GROUPS: u8 = 60;

/// Requests a query from `from`. Returns its nonce and MAC, with which updates are valid.
fn valid_response(ns: &Ns, from: &str) -> (u32, ResponseMac) {
    let socket = ns.enter(|| UdpSocket::bind(from)).expect("a socket");
    let timeout = Some(Duration::from_millis(200));
    socket.set_read_timeout(timeout).expect("a timeout");
    let request = AmtMessage::Request {
        nonce: 7,
        is_mld: false,
        flags: FlagLayout::Standard,
    };
    let mut response = None;
    let mut buffer = [0; 512];
    eventually("a query", true, || {
        let _ = socket.send_to(&request.to_bytes(), RELAY_ADDRESS);
        let len = socket.recv(&mut buffer).unwrap_or_default();
        if let Ok(AmtMessage::MembershipQuery { mac, nonce, .. }) =
            AmtMessage::parse(&buffer[..len])
        {
            response = Some((nonce, mac));
        }
        response.is_some()
    });
    response.expect("a query")
}

/// Each of its updates costs the work of four, 500 times a second. The limit is low, so that a test
/// beside others needs no more.
fn gateway_that_updates_all_the_time_does_not_stop_others(lab: &Lab) {
    const FROM: &str = "10.1.0.2:4000";
    let topology = AmtTopology::new(lab);
    let AmtTopology { core, rel, rcv, .. } = &topology;
    let settings = format!("{RELAY}limits = {{ reports_per_second = 200 }}\n");
    let relay = Router::start(lab, rel, &settings);
    let _gateway = topology.gateway(lab, "\"10.1.0.1\"");
    let (nonce, mac) = valid_response(core, FROM);
    let frame = |kind| {
        let joined = |n| record(kind, group([232, 9, 9, n]), vec![source([10, 0, 0, 10])]);
        let report = MembershipMessage::Records((0..FLOOD_GROUPS).map(joined).collect());
        let packets = build(&report, [0, 0, 0, 0].into(), 1400).expect("a report");
        let packet = &packets[0];
        let update = AmtMessage::MembershipUpdate { mac, nonce, packet };
        let mut frame = Udp::new(FROM, RELAY_ADDRESS, update.to_bytes()).frame();
        frame[..6].copy_from_slice(&rel.mac("wan0"));
        frame
    };
    let kinds = [RecordType::AllowNewSources, RecordType::BlockOldSources];
    let flood = Flood::start(core, "c0", kinds.map(frame).into(), 500);
    let refused = || relay.metric("mcastor_amt_refused_total", &[("reason", "update_rate")]);
    eventually("updates beyond the limit", true, || refused() > 100.0);
    // Another gateway joins and receives a stream meanwhile.
    let _member = join_source(rcv, "eth1", "10.0.0.10", GROUP);
    eventually("the tunnel of the other gateway", true, || {
        let mut tunnels = tunnels(&relay, "tunnels").into_iter();
        tunnels.any(|t| {
            t["remote"]
                .as_str()
                .is_some_and(|r| r.starts_with("10.2.0.1:"))
        })
    });
    let stream = Capture::new(rcv, "eth1");
    let sender = NumberedStream::start(&topology.src, "eth0", "10.0.0.10:9", "232.1.1.1:5000", 200);
    eventually("the stream", true, || stream.to(GROUP).len() > 20);
    let before = refused();
    eventually("the flood goes on", true, || refused() > before);
    sender.finish();
    drop(flood);
}
