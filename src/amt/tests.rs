//! A gateway against a relay, over a network with delay, loss, reordering and a NAT, under a
//! virtual clock.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::*;
use crate::model::{Group, ProxyRule, SourceFilter};

const RELAY: &str = "192.0.2.1:2268";

struct Network {
    start: Instant,
    now: Instant,
    gateway: Gateway,
    relay: Relay,
    random: AmtRandom,
    /// Lost datagrams in percent.
    loss: u32,
    delay: Duration,
    /// The address of the gateway behind the NAT.
    outside: SocketAddr,
    /// Datagrams on their way: the time of arrival, whether they go to the relay, the sender.
    on_the_way: BTreeMap<(Instant, u32), (bool, SocketAddr, Vec<u8>)>,
    sent: u32,
    receivers: BTreeMap<Group, usize>,
    refused: Vec<AmtRefusal>,
}

impl Network {
    fn new(loss: u32, delay: Duration) -> Self {
        let now = Instant::now();
        let config = GatewayConfig {
            ways: vec![RelayWay::Address(RELAY.parse().unwrap())],
            families: [true; 2],
            outer: [true; 2],
        };
        let lists = ProxyRule::new(Vec::new(), Vec::new());
        let relay = RelayConfig {
            query_interval: Duration::from_secs(10),
            ..RelayConfig::default()
        };
        Self {
            start: now,
            now,
            gateway: Gateway::new(config, AmtRandom::new([1; 32])),
            relay: Relay::new(now, relay, &lists, AmtRandom::new([2; 32])),
            random: AmtRandom::new([3; 32]),
            loss,
            delay,
            outside: "198.51.100.7:40000".parse().unwrap(),
            on_the_way: BTreeMap::new(),
            sent: 0,
            receivers: BTreeMap::new(),
            refused: Vec::new(),
        }
    }

    fn send(&mut self, to_relay: bool, address: SocketAddr, message: Vec<u8>) {
        self.sent += 1;
        if self.random.nonce() % 100 < self.loss {
            return;
        }
        // Different delays reorder datagrams.
        let delay = self.random.between(self.delay, self.delay * 2);
        let key = (self.now + delay, self.sent);
        self.on_the_way.insert(key, (to_relay, address, message));
    }

    fn run_until(&mut self, until: Duration) {
        let until = self.start + until;
        while self.now < until {
            self.gateway.handle_timeout(self.now);
            while let Some(output) = self.gateway.poll_output() {
                if let GatewayOutput::Send { message, .. } = output {
                    self.send(true, self.outside, message);
                }
            }
            self.relay.handle_timeout(self.now);
            while let Some(message) = self.relay.poll_message() {
                self.send(false, message.to.remote, message.message);
            }
            for change in self.relay.take_changes() {
                let source = "203.0.113.1".parse().unwrap();
                let source = match change.group.addr() {
                    IpAddr::V4(_) => source,
                    IpAddr::V6(_) => "2001:db8::1".parse().unwrap(),
                };
                let count = change.receivers.of(source).count();
                self.receivers.insert(change.group, count);
            }
            let next_arrival = self.on_the_way.keys().next().map(|(at, _)| *at);
            let timeouts = [self.gateway.poll_timeout(), next_arrival];
            let timeouts = timeouts.into_iter().flatten();
            let next = timeouts.chain([self.relay.poll_timeout(), until]).min();
            self.now = next.unwrap_or(until).max(self.now);
            while let Some((key, _)) = self.on_the_way.first_key_value()
                && key.0 <= self.now
            {
                let Some((_, (to_relay, address, message))) = self.on_the_way.pop_first() else {
                    break;
                };
                let relay: SocketAddr = RELAY.parse().unwrap();
                let handled = match to_relay {
                    true => self
                        .relay
                        .handle_message(self.now, address, relay.ip(), &message),
                    // The NAT drops what goes to an address that it has forgotten.
                    false if address != self.outside => continue,
                    false => self.gateway.handle_message(self.now, relay, &message),
                };
                self.refused.extend(handled.err());
            }
        }
    }

    fn join(&mut self, group: &str, source: &str) {
        let filter = SourceFilter::Include([source.parse().unwrap()].into());
        self.gateway.set_filter(group.parse().unwrap(), filter);
    }

    fn receivers(&self, group: &str) -> usize {
        let group = group.parse().unwrap();
        self.receivers.get(&group).copied().unwrap_or_default()
    }
}

const V4: (&str, &str) = ("232.1.2.3", "203.0.113.1");
const V6: (&str, &str) = ("ff3e::8000:1", "2001:db8::1");

#[test]
fn join_takes_three_round_trips_and_lasts() {
    let mut network = Network::new(0, Duration::from_millis(25));
    network.join(V4.0, V4.1);
    network.join(V6.0, V6.1);
    network.run_until(Duration::from_millis(250));
    assert_eq!((network.receivers(V4.0), network.receivers(V6.0)), (1, 1));
    network.run_until(Duration::from_secs(120));
    assert_eq!((network.receivers(V4.0), network.receivers(V6.0)), (1, 1));
    assert_eq!(network.refused, []);
    network.gateway.leave_all(network.now);
    network.run_until(Duration::from_secs(121));
    assert_eq!((network.receivers(V4.0), network.receivers(V6.0)), (0, 0));
    assert_eq!(network.relay.gateway_count(), 0);
}

/// Returns the seconds of 15 minutes without the stream, and the longest time without it.
fn seconds_without_stream(loss: u32) -> (u32, u32) {
    let mut network = Network::new(loss, Duration::from_millis(50));
    network.join(V4.0, V4.1);
    network.run_until(Duration::from_secs(15));
    let (mut missing, mut in_a_row, mut longest) = (0, 0, 0);
    for second in 16..916 {
        network.run_until(Duration::from_secs(second));
        if network.receivers(V4.0) == 1 {
            let relay = RELAY.parse().unwrap();
            network.gateway.handle_traffic(network.now, relay);
            in_a_row = 0;
        } else {
            missing += 1;
            in_a_row += 1;
            longest = longest.max(in_a_row);
        }
    }
    // Late answers are the only ones that are refused.
    let is_late = |refusal: &AmtRefusal| *refusal == AmtRefusal::WrongNonce;
    assert!(network.refused.iter().all(is_late), "{:?}", network.refused);
    (missing, longest)
}

#[test]
fn membership_survives_loss_and_reordering() {
    for (loss, total, limit) in [(5, 5, 5), (20, 40, 10)] {
        let (missing, longest) = seconds_without_stream(loss);
        assert!(
            missing <= total && longest <= limit,
            "{loss} %: {missing} s, {longest} s"
        );
    }
}

#[test]
fn port_change_of_a_nat_moves_the_tunnel() {
    let mut network = Network::new(0, Duration::from_millis(20));
    network.join(V4.0, V4.1);
    network.run_until(Duration::from_secs(5));
    network.outside.set_port(50_000);
    network.run_until(Duration::from_secs(15));
    let gateways: Vec<_> = network
        .relay
        .gateways(network.now)
        .map(|g| g.gateway)
        .collect();
    assert_eq!(gateways, [network.outside]);
    assert_eq!(network.receivers(V4.0), 1);
}

#[test]
fn relay_that_lost_its_state_learns_it_from_the_next_update() {
    let mut network = Network::new(0, Duration::from_millis(20));
    network.join(V4.0, V4.1);
    network.run_until(Duration::from_secs(5));
    let lists = ProxyRule::new(Vec::new(), Vec::new());
    let random = AmtRandom::new([9; 32]);
    let config = RelayConfig::default();
    network.relay = Relay::new(network.now, config, &lists, random);
    network.receivers.clear();
    network.run_until(Duration::from_secs(15));
    assert_eq!(network.receivers(V4.0), 1);
}
