//! The fuzz target for AMT: a gateway and a relay in the middle of their exchanges.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mcastor::amt::{
    AmtRandom, Gateway, GatewayConfig, GatewayOutput, Relay, RelayConfig, RelayWay,
};
use mcastor::model::{ProxyRule, SourceFilter};
use mcastor::wire::amt::{AmtMessage, ResponseMac};

use super::Input;

const GATEWAYS: usize = 2;
const GROUPS: usize = 4;

/// Hands a message to a gateway and to a relay. The first byte says to which, and whether it gets the
/// nonce and the MAC that are valid there, as from a peer that lies about the rest. Returns whether
/// the message was accepted.
pub fn amt(data: &[u8]) -> bool {
    let mut input = Input(data);
    let kind = input.u8();
    let message = input.0;
    let start = Instant::now();
    if kind & 1 == 0 {
        to_relay(start, kind, message)
    } else {
        to_gateway(start, kind, message)
    }
}

fn to_relay(start: Instant, kind: u8, message: &[u8]) -> bool {
    let config = RelayConfig {
        gateways: GATEWAYS,
        groups_per_gateway: GROUPS,
        ..RelayConfig::default()
    };
    let lists = ProxyRule::new(Vec::new(), Vec::new());
    let mut relay = Relay::new(start, config, &lists, AmtRandom::new([1; 32]));
    let own: IpAddr = [192, 0, 2, 1].into();
    let from: SocketAddr = "198.51.100.7:40000".parse().expect("an address");
    let request = [3, 0, 0, 0, 0, 0, 0, 7];
    relay
        .handle_message(start, from, own, &request)
        .expect("a valid request");
    let query = relay.poll_message().expect("a query");
    let mut message = message.to_vec();
    if kind & 2 == 0
        && let Ok(AmtMessage::MembershipQuery { mac, .. }) = AmtMessage::parse(&query.message)
    {
        patch(&mut message, mac, 7);
    }
    let mut is_accepted = false;
    for now in [
        start,
        start + Duration::from_millis(10),
        start + Duration::from_secs(500),
    ] {
        is_accepted |= relay.handle_message(now, from, own, &message).is_ok();
        relay.handle_timeout(now);
        assert!(relay.gateway_count() <= GATEWAYS);
        let answers = std::iter::from_fn(|| relay.poll_message()).count();
        assert!(answers <= 1, "{answers} answers to one message");
        for change in relay.take_changes() {
            assert_eq!(change.filter.is_none(), change.receivers.is_empty());
        }
        let groups = relay.gateways(now).map(|gateway| gateway.groups);
        assert!(groups.sum::<usize>() <= 2 * GROUPS * GATEWAYS);
        assert!(relay.groups().all(|(_, filter)| !filter.is_none()));
        assert!(relay.poll_timeout() > now);
    }
    is_accepted
}

fn to_gateway(start: Instant, kind: u8, message: &[u8]) -> bool {
    let relay: SocketAddr = "192.0.2.1:2268".parse().expect("an address");
    let config = GatewayConfig {
        ways: vec![RelayWay::Address(relay)],
        families: [true; 2],
        outer: [true; 2],
    };
    let mut gateway = Gateway::new(config, AmtRandom::new([2; 32]));
    for group in ["232.1.1.1", "ff3e::8000:1"] {
        let source = if group.contains(':') {
            "2001:db8::1"
        } else {
            "203.0.113.1"
        };
        let filter = SourceFilter::Include([source.parse().expect("a source")].into());
        gateway.set_filter(group.parse().expect("a group"), filter);
    }
    let nonce = discovery_nonce(&mut gateway, start);
    if kind & 4 != 0 {
        let IpAddr::V4(relay_ip) = relay.ip() else {
            return false;
        };
        let mut advertisement = vec![2, 0, 0, 0];
        advertisement.extend(nonce.to_be_bytes());
        advertisement.extend(relay_ip.octets());
        gateway
            .handle_message(start, relay, &advertisement)
            .expect("a valid advertisement");
    }
    gateway.handle_timeout(start);
    let mut nonces = vec![nonce];
    while let Some(output) = gateway.poll_output() {
        if let GatewayOutput::Send { message, .. } = output
            && let Ok(AmtMessage::Request { nonce, .. }) = AmtMessage::parse(&message)
        {
            nonces.push(nonce);
        }
    }
    let mut message = message.to_vec();
    if kind & 2 == 0 {
        let nonce = nonces[usize::from(kind >> 3) % nonces.len()];
        patch(&mut message, ResponseMac([9; 6]), nonce);
    }
    let mut is_accepted = false;
    for seconds in [0, 1, 10, 200] {
        let now = start + Duration::from_secs(seconds);
        is_accepted |= gateway.handle_message(now, relay, &message).is_ok();
        gateway.handle_timeout(now);
        let sent = std::iter::from_fn(|| gateway.poll_output()).count();
        assert!(sent <= 16, "{sent} messages at once");
        while gateway.poll_event().is_some() {}
        assert!(gateway.tunnels(now).count() <= 1);
    }
    is_accepted
}

fn discovery_nonce(gateway: &mut Gateway, now: Instant) -> u32 {
    gateway.handle_timeout(now);
    match gateway.poll_output() {
        Some(GatewayOutput::Send { message, .. }) => match AmtMessage::parse(&message) {
            Ok(AmtMessage::RelayDiscovery { nonce }) => nonce,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

/// Writes nonce and MAC where the type of the message has them.
fn patch(message: &mut [u8], mac: ResponseMac, nonce: u32) {
    match message {
        [1..=3, _, _, _, field @ ..] if field.len() >= 4 => {
            field[..4].copy_from_slice(&nonce.to_be_bytes());
        }
        [4 | 5 | 7, _, fields @ ..] if fields.len() >= 10 => {
            fields[..6].copy_from_slice(&mac.0);
            fields[6..10].copy_from_slice(&nonce.to_be_bytes());
        }
        _ => {}
    }
}
