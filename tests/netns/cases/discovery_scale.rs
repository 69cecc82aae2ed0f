//! Multicast DNS with many services and askers: what it costs through `[[discovery]]`, through the
//! reflector of avahi, and through a plain route in each direction.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::cases;
use crate::lab::discovery_site::start_on;
use crate::lab::{Capture, Lab, LinkEnd, Ns, Program, Router, avahi, connect, measures};

cases!("discovery_scale":
    #[Program("avahi-daemon", "avahi-daemon")] many_services_and_askers_cost_little,
);

const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const PORT: u16 = 5353;
/// The records of one service take about 80 bytes, so that a message of 15 fits into an MTU.
const SERVICES_PER_MESSAGE: usize = 15;

/// A device, a router, and a host with many askers, each with an address of its own.
///
/// ```text
///     device 10.0.0.10 eth0 ---- e0 rtr e1 ---- eth0 askers 10.1.1.0, 10.1.1.1...
/// ```
struct Network {
    device: Ns,
    rtr: Ns,
    askers: Ns,
}

impl Network {
    fn new(lab: &Lab, askers: usize) -> Self {
        let [device, rtr, host] = ["device", "rtr", "askers"].map(|role| lab.ns(role));
        connect(
            LinkEnd::new(&rtr, "e0", &["10.0.0.1/16"]),
            LinkEnd::new(&device, "eth0", &["10.0.0.10/16"]),
        );
        connect(
            LinkEnd::new(&rtr, "e1", &["10.1.0.1/16"]),
            LinkEnd::new(&host, "eth0", &[]),
        );
        let address = |n| format!("address add 10.1.1.{n}/16 dev eth0\n");
        host.ip_batch(&(0..askers).map(address).collect::<String>());
        Self {
            device,
            rtr,
            askers: host,
        }
    }
}

/// Opens a socket for multicast DNS at an address of a namespace.
fn socket(ns: &Ns, address: Ipv4Addr, is_bound: bool) -> UdpSocket {
    ns.enter(|| {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).expect("a socket");
        socket.set_reuse_address(true).expect("SO_REUSEADDR");
        let local = if is_bound {
            address
        } else {
            Ipv4Addr::UNSPECIFIED
        };
        let local = SockAddr::from(std::net::SocketAddrV4::new(local, PORT));
        socket.bind(&local).expect("bind");
        socket
            .set_multicast_if_v4(&address)
            .expect("IP_MULTICAST_IF");
        socket.set_multicast_ttl_v4(255).expect("IP_MULTICAST_TTL");
        socket.join_multicast_v4(&GROUP, &address).expect("join");
        UdpSocket::from(socket)
    })
}

/// A question for `_http._tcp.local`.
fn question() -> Vec<u8> {
    let mut message = vec![0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    message.extend(b"\x05_http\x04_tcp\x05local\x00\x00\x0c\x00\x01");
    message
}

/// The responses that offer these services: a PTR and an SRV record for each.
fn responses(services: usize) -> Vec<Vec<u8>> {
    let names: Vec<String> = (0..services).map(|n| format!("service-{n:05}")).collect();
    let message = |names: &[String]| {
        let records = 2 * names.len() as u16;
        let mut bytes = vec![0, 0, 0x84, 0, 0, 0];
        bytes.extend(records.to_be_bytes());
        bytes.extend([0; 4]);
        // The name of the service type follows the header, where all other names point to.
        let mut kind = b"\x05_http\x04_tcp\x05local\x00".to_vec();
        for name in names {
            bytes.append(&mut kind);
            bytes.extend(b"\x00\x0c\x00\x01\x00\x00\x11\x94");
            let label = [&[name.len() as u8][..], name.as_bytes()].concat();
            bytes.extend((label.len() as u16 + 2).to_be_bytes());
            let at = 0xc000 | bytes.len() as u16;
            bytes.extend(&label);
            bytes.extend([0xc0, 12]);
            bytes.extend(at.to_be_bytes());
            bytes.extend(b"\x00\x21\x80\x01\x00\x00\x00\x78\x00\x0e\x00\x00\x00\x00\x1f\x90");
            bytes.extend(b"\x05shelf\xc0\x17");
            kind = vec![0xc0, 12];
        }
        bytes
    };
    names.chunks(SERVICES_PER_MESSAGE).map(message).collect()
}

/// Answers questions with all services, at most once a second (RFC 6762 section 6), until told to end.
fn respond(ns: &Ns, services: usize, is_over: &Arc<AtomicBool>) {
    let socket = socket(ns, Ipv4Addr::new(10, 0, 0, 10), false);
    let wait = Duration::from_millis(50);
    socket.set_read_timeout(Some(wait)).expect("a timeout");
    let (responses, is_over) = (responses(services), is_over.clone());
    std::thread::spawn(move || {
        let mut buffer = [0; 9000];
        let mut last = Instant::now() - Duration::from_secs(1);
        while !is_over.load(Ordering::Relaxed) {
            let Ok((len, _)) = socket.recv_from(&mut buffer) else {
                continue;
            };
            let is_question = len > 12 && buffer[2] & 0x80 == 0;
            if is_question && last.elapsed() >= Duration::from_secs(1) {
                last = Instant::now();
                for response in &responses {
                    let _ = socket.send_to(response, (GROUP, PORT));
                }
            }
        }
    });
}

/// What a way between the links costs.
#[derive(Debug)]
struct Cost {
    /// The services that arrived at the askers.
    found: usize,
    /// Packets a second that the router sent to the device and to the askers.
    sent: [f64; 2],
    /// CPU time in percent of a core.
    cpu: f64,
    /// Resident memory in MiB.
    memory: f64,
}

/// Lets each asker ask once a second, and measures the router in `rtr`, whose process is `program`.
fn measure(network: &Network, program: &Program, askers: usize, seconds: u32) -> Cost {
    let sockets: Vec<UdpSocket> = (0..askers)
        .map(|n| socket(&network.askers, Ipv4Addr::new(10, 1, 1, n as u8), true))
        .collect();
    let arrived = Capture::new(&network.askers, "eth0");
    let sent = || ["e0", "e1"].map(|iface| network.rtr.sent_packets(iface));
    let (before, cpu, begin) = (sent(), program.cpu_seconds(), Instant::now());
    let question = question();
    let step = Duration::from_secs(1) / askers as u32;
    for n in 0..askers * seconds as usize {
        let _ = sockets[n % askers].send_to(&question, (GROUP, PORT));
        let next = begin + step * n as u32;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    // The last responses arrive.
    std::thread::sleep(Duration::from_millis(300));
    let (after, passed) = (sent(), begin.elapsed().as_secs_f64());
    let mut found = BTreeSet::new();
    for frame in arrived.frames().iter().filter(|frame| !frame.outgoing) {
        let names = frame.bytes.windows(13);
        found.extend(
            names
                .filter(|name| name.starts_with(b"service-"))
                .map(<[u8]>::to_vec),
        );
    }
    Cost {
        found: found.len(),
        sent: [0, 1].map(|n| (after[n] - before[n]) as f64 / passed),
        cpu: 100.0 * (program.cpu_seconds() - cpu) / passed,
        memory: program.rss() as f64 / f64::from(1 << 20),
    }
}

const DISCOVERY: &str = "[[discovery]]\nbetween = [\"e0\", \"e1\"]\nprotocols = [\"mdns\"]\n";
const ROUTES: &str = "[[route]]\nname = \"in\"\nfrom = \"e1\"\ngroup = \"224.0.0.251\"\nto = [\"e0\"]\n\
    ttl = \"keep\"\nlink_local = true\n\
    [[route]]\nname = \"out\"\nfrom = \"e0\"\ngroup = \"224.0.0.251\"\nto = [\"e1\"]\n\
    ttl = \"keep\"\nlink_local = true\n";

/// Every service arrives. A question that all askers repeat crosses rarely, so the device's link sees
/// fewer packets than with routes, and memory is bounded.
fn many_services_and_askers_cost_little(lab: &Lab) {
    let (services, askers, seconds) = match measures() {
        true => (1000, 200, 10),
        false => (150, 40, 2),
    };
    let ways: [&str; 3] = ["[[discovery]]", "avahi", "routes"];
    let costs = ways.map(|way| {
        let network = Network::new(lab, askers);
        let is_over = Arc::new(AtomicBool::new(false));
        respond(&network.device, services, &is_over);
        let links = ["e0", "e1"];
        let cost = match way {
            "avahi" => {
                let reflector = avahi::start(lab, &network.rtr, "middle", &links, &[], true);
                // avahi announces its host name for about two seconds.
                std::thread::sleep(Duration::from_secs(2));
                measure(&network, &reflector, askers, seconds)
            }
            "routes" => {
                let router = Router::start(lab, &network.rtr, ROUTES);
                measure(&network, &router.program, askers, seconds)
            }
            _ => {
                let router = start_on(lab, &network.rtr, DISCOVERY, &links);
                measure(&network, &router.program, askers, seconds)
            }
        };
        is_over.store(true, Ordering::Relaxed);
        println!(
            "{way}: {} of {services} services, {askers} askers; {:.1} packets/s to the device, {:.1} \
             to the askers; {:.1} % of a core, {:.1} MiB",
            cost.found, cost.sent[0], cost.sent[1], cost.cpu, cost.memory
        );
        cost
    });
    let [discovery, _, routes] = &costs;
    assert_eq!(discovery.found, services, "{costs:?}");
    assert!(discovery.sent[0] < 10.0, "{costs:?}");
    assert!(discovery.sent[0] < routes.sent[0], "{costs:?}");
    assert!(discovery.memory < 200.0, "{costs:?}");
    if measures() {
        assert!(discovery.cpu < 50.0 && discovery.memory < 64.0, "{costs:?}");
    }
}
