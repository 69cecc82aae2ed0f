//! The fuzz target for discovery: the machine with open questions of each protocol.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mcastor::discovery::askers::{AnswerPort, Ports};
use mcastor::discovery::config::{AddressMode, AnswerMode, DiscoveryLimits, DiscoveryRule};
use mcastor::discovery::link_table::{DiscoveryLink, LinkTable};
use mcastor::discovery::offer::OfferPolicy;
use mcastor::discovery::protocol::DiscoveryProtocol;
use mcastor::discovery::relay::DiscoveryRelay;
use mcastor::discovery::relayed_message::DiscoveryMessage;
use mcastor::model::{LinkAddress, PublishedPorts};
use mcastor::wire::udp::UdpDatagram;

use super::{Input, link};

/// All ports are free.
#[derive(Default)]
struct AllPorts(BTreeSet<AnswerPort>);

impl Ports for AllPorts {
    fn reserve(&mut self, port: AnswerPort) -> bool {
        self.0.insert(port)
    }
    fn release(&mut self, port: AnswerPort) {
        assert!(self.0.remove(&port), "{port:?} is not reserved");
    }
}

const QUESTIONS: [(&str, &[u8]); 3] = [
    (
        "239.255.255.250:1900",
        b"M-SEARCH * HTTP/1.1\r\nST: ssdp:all\r\n\r\n",
    ),
    ("239.1.2.3:5000", b"x"),
    (
        "224.0.0.251:5353",
        b"\0\0\0\0\0\x01\0\0\0\0\0\0\x05_http\x04_tcp\x05local\0\0\x0c\0\x01",
    ),
];

fn machine(ports: &mut AllPorts) -> DiscoveryRelay {
    let protocols = DiscoveryProtocol::NAMED.map(|(_, protocol)| protocol);
    let own = DiscoveryProtocol::Group("239.1.2.3:5000".parse().expect("an address"));
    let rule = DiscoveryRule {
        name: "all".into(),
        between: vec!["e*".parse().expect("a pattern")],
        from: Vec::new(),
        to: Vec::new(),
        protocols: protocols.into_iter().chain([own]).collect(),
        policy: OfferPolicy::default(),
        answers: AnswerMode::Auto,
        addresses: AddressMode::Rewrite,
        limits: DiscoveryLimits::default(),
    };
    let mut relay = DiscoveryRelay::new(vec![rule]);
    let links: LinkTable = (1..=2)
        .map(|n| {
            let link = link(n, &format!("e{n}"), 1500, None);
            let on_link = format!("10.0.{n}.0/24").parse().expect("a prefix");
            let address = [10, 0, n as u8, 1].into();
            let addresses = vec![LinkAddress { address, on_link }];
            (link.index, DiscoveryLink { link, addresses })
        })
        .collect();
    relay.set_links(links, PublishedPorts::new(), ports);
    relay
}

/// Hands a message to the machine: as a question or announcement to the group of a protocol, or as the
/// answer to an open question. The first byte says which. Returns whether anything is sent.
pub fn discovery(data: &[u8]) -> bool {
    let mut input = Input(data);
    let kind = usize::from(input.u8());
    let payload = input.0;
    let (start, mut ports) = (Instant::now(), AllPorts::default());
    let mut relay = machine(&mut ports);
    let link = |n| super::link(n, "e", 1500, None).index;
    let message = |n: u32, source: &str, destination: SocketAddr, payload| DiscoveryMessage {
        link: link(n),
        station: None,
        is_of_this_host: false,
        datagram: UdpDatagram {
            source: source.parse().expect("an address"),
            destination,
            ttl: 1,
            payload,
        },
    };
    for (to, question) in QUESTIONS {
        let to = to.parse().expect("an address");
        relay.handle(
            start,
            &message(1, "10.0.1.9:4000", to, question),
            &mut ports,
        );
    }
    let now = start + Duration::from_secs(1);
    let open: Vec<AnswerPort> = ports.0.iter().copied().collect();
    let received = match open.get(kind % 16) {
        Some(port) => {
            let to = SocketAddr::new(port.address, port.port);
            message(2, "10.0.2.9:1900", to, payload)
        }
        None => {
            let all = DiscoveryProtocol::NAMED;
            let (_, protocol) = all[kind % all.len()];
            let group = protocol.groups()[0];
            let to = SocketAddr::new(group, protocol.port());
            message(1, "10.0.1.9:5353", to, payload)
        }
    };
    let sent = relay.handle(now, &received, &mut ports);
    assert!(sent.len() <= 1, "{sent:?}");
    for message in &sent {
        let datagram = UdpDatagram::parse(&message.packet, true);
        assert!(datagram.is_some(), "{message:?}");
    }
    relay.close(&mut ports);
    assert!(ports.0.is_empty());
    !sent.is_empty()
}
