//! The actors on the simulated plane: packets cross, links come and go, actors die, and every
//! packet is in a counter. No kernel, no privileges.

use std::future::poll_fn;
use std::io;
use std::panic::panic_any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use actix::prelude::*;
use mcastor::actors::World;
use mcastor::actors::joins::AskGroups;
use mcastor::actors::keeper::{Charge, Keeper, LinkSource, Shutdown};
use mcastor::actors::links::LinksChanged;
use mcastor::actors::questions;
use mcastor::actors::routing::Replace;
use mcastor::actors::world::PanicNow;
use mcastor::api::{Show, Shown};
use mcastor::forward::DropReason;
use mcastor::metrics::Catalog;
use mcastor::model::{
    HeaderChecks, IfIndex, Link, Links, ProxyRule, RouteName, RouteRule, TtlPolicy, TtlThreshold,
};
use mcastor::planes::sim::SimPlane;
use mcastor::planes::{Batch, Capture, Plane, Transmit};
use mcastor::table::{InterfaceOptions, Rib};
use mcastor::wire::group_message::{Message, Record, RecordType};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(10);

fn index(n: u32) -> IfIndex {
    IfIndex::new(n).unwrap()
}

fn link(n: u32, name: &str) -> Link {
    Link {
        index: index(n),
        name: name.parse().unwrap(),
        mtu: 1500,
        up: true,
        carrier: true,
        vlan: None,
        known_as: Default::default(),
    }
}

fn rule(from: &str, to: &[&str], ttl: TtlPolicy) -> RouteRule {
    let group = "225.0.0.0/8".parse().unwrap();
    let to = to.iter().map(|t| t.parse().unwrap()).collect();
    RouteRule {
        name: RouteName::new("all"),
        ttl,
        ..RouteRule::new(from.parse().unwrap(), group, to)
    }
}

fn packet(n: u32, ttl: u8) -> Vec<u8> {
    let mut p = vec![0u8; 32];
    p[0] = 0x45;
    p[3] = 32;
    p[8] = ttl;
    p[9] = 17;
    p[12..20].copy_from_slice(&[10, 0, 0, 1, 225, 1, 2, 3]);
    p[28..].copy_from_slice(&n.to_be_bytes());
    mcastor::wire::ip::refresh_ipv4_checksum(&mut p);
    p
}

fn numbers(packets: &[Vec<u8>]) -> Vec<u32> {
    let number = |p: &Vec<u8>| u32::from_be_bytes(p[28..32].try_into().unwrap());
    packets.iter().map(number).collect()
}

/// What is to go wrong on an interface; each once.
#[derive(Default)]
struct Faults {
    capture_error: AtomicU32,
    capture_panic: AtomicU32,
    send_panic: AtomicU32,
    captures_refused: AtomicU32,
    captures: AtomicU32,
}

impl Faults {
    fn due(fault: &AtomicU32) -> bool {
        let less = |n: u32| n.checked_sub(1);
        fault
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, less)
            .is_ok()
    }
}

/// The simulated plane, with faults.
#[derive(Clone, Default)]
struct Faulty {
    sim: SimPlane,
    faults: Arc<Faults>,
}

struct FaultyCapture(Box<dyn Capture>, Arc<Faults>);
struct FaultyTransmit(Box<dyn Transmit>, Arc<Faults>);

impl Plane for Faulty {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn capture(&self, interface: IfIndex) -> io::Result<Box<dyn Capture>> {
        if Faults::due(&self.faults.captures_refused) {
            return Err(io::ErrorKind::Other.into());
        }
        self.faults.captures.fetch_add(1, Ordering::AcqRel);
        let capture = self.sim.capture(interface)?;
        Ok(Box::new(FaultyCapture(capture, self.faults.clone())))
    }

    fn transmit(&self, interface: IfIndex) -> io::Result<Box<dyn Transmit>> {
        let transmit = self.sim.transmit(interface)?;
        Ok(Box::new(FaultyTransmit(transmit, self.faults.clone())))
    }
}

impl Drop for FaultyCapture {
    fn drop(&mut self) {
        self.1.captures.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Capture for FaultyCapture {
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Batch>> {
        if Faults::due(&self.1.capture_error) {
            return Poll::Ready(Err(io::ErrorKind::Other.into()));
        }
        if Faults::due(&self.1.capture_panic) {
            panic_any("a capture that panics");
        }
        self.0.poll_batch(cx)
    }

    fn take_dropped(&mut self) -> u64 {
        self.0.take_dropped()
    }

    fn shut(&mut self) {
        self.0.shut();
    }

    fn mode(&self) -> &'static str {
        self.0.mode()
    }
}

impl Transmit for FaultyTransmit {
    fn send(&mut self, packets: &mut dyn Iterator<Item = &[u8]>) -> io::Result<usize> {
        if Faults::due(&self.1.send_panic) {
            panic_any("a transmit that panics");
        }
        self.0.send(packets)
    }

    fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_writable(cx)
    }
}

/// A router over the simulated plane.
struct Router {
    sim: SimPlane,
    faults: Arc<Faults>,
    world: Arc<World>,
    keeper: Addr<Keeper>,
    failed: CancellationToken,
}

impl Router {
    async fn start(rules: Vec<RouteRule>, options: Vec<InterfaceOptions>, links: &[Link]) -> Self {
        let plane = Faulty::default();
        let (sim, faults) = (plane.sim.clone(), plane.faults.clone());
        let rib = Rib {
            rules,
            interfaces: options,
            ..Rib::default()
        };
        let (world, _requests) = World::new(
            Catalog::new().unwrap(),
            Box::new(plane),
            rib,
            1000,
            "/nowhere/docker.sock".into(),
        );
        let failed = CancellationToken::new();
        let keeper = Keeper::new(Charge {
            mnat: None,
            world: world.clone(),
            http: None,
            failed: failed.clone(),
            workers: 2,
            links: LinkSource::Given(links.iter().cloned().collect()),
        })
        .start();
        let router = Self {
            sim,
            faults,
            world,
            keeper,
            failed,
        };
        router
            .until("it is ready", |r| r.world.health.is_ready())
            .await;
        router
    }

    /// Waits for a condition.
    async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !condition(self) {
            assert!(
                begun.elapsed() < PATIENCE,
                "waited in vain until {what}\n{}",
                self.text()
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn text(&self) -> String {
        let text = String::from_utf8(self.world.catalog.text().unwrap()).unwrap();
        let shown = |l: &&str| !l.starts_with('#') && !l.ends_with(" 0");
        text.lines().filter(shown).collect::<Vec<_>>().join("\n")
    }

    fn links(&self, links: &[Link]) {
        let routing = self.world.routing.load_full().unwrap();
        let links: Links = links.iter().cloned().collect();
        routing.do_send(LinksChanged(links));
    }

    async fn links_in_force(&self, links: &[Link], egresses: usize) {
        let before = self.world.snapshot.load().fib.generation;
        self.links(links);
        self.until("the snapshot is in force", |r| {
            let fib = &r.world.snapshot.load().fib;
            fib.generation > before && fib.egresses.len() == egresses
        })
        .await;
        self.until("it is ready", |r| r.world.health.is_ready())
            .await;
    }

    fn arrive(&self, n: u32, numbers: std::ops::Range<u32>, ttl: u8) {
        for i in numbers {
            self.sim.arrive(index(n), &[&packet(i, ttl)]);
        }
    }

    fn received(&self, name: &str) -> u64 {
        self.world.catalog.interface(name).received_packets.get()
    }

    fn transmitted(&self, name: &str) -> u64 {
        let counters = self.world.catalog.interface(name);
        counters.transmitted_packets.get()
    }

    fn dropped(&self, name: &str, reason: DropReason) -> u64 {
        self.world.catalog.interface(name).dropped(reason).get()
    }

    fn all_dropped(&self, name: &str) -> u64 {
        let counters = self.world.catalog.interface(name);
        let all = DropReason::ALL.iter();
        all.map(|r| counters.dropped(*r).get()).sum()
    }

    fn path(&self, iif: &str, oif: &str) -> (u64, u64) {
        let counters = self
            .world
            .catalog
            .path(&RouteName::new("all"), iif, oif, "sim");
        (counters.packets.get(), counters.bytes.get())
    }

    fn restarts(&self, actor: &str) -> u64 {
        let line = format!("mcastor_actor_restarts_total{{actor=\"{actor}\"}} ");
        let text = self.text();
        let found = text.lines().find_map(|l| l.strip_prefix(&line));
        found.map_or(0, |n| n.parse().unwrap())
    }

    async fn stop(&self) {
        let stopped = tokio::time::timeout(PATIENCE, self.keeper.send(Shutdown)).await;
        stopped.expect("it stops in time").unwrap();
    }
}

#[actix::test]
async fn packets_cross_to_every_egress_and_each_is_counted() {
    let threshold = InterfaceOptions {
        name: "far".parse().unwrap(),
        ttl_threshold: TtlThreshold::new(8),
        mrdisc: None,
        disabled: false,
    };
    let rules = vec![rule("in", &["out", "far"], TtlPolicy::Decrement)];
    let links = [link(1, "in"), link(2, "out"), link(3, "far")];
    let r = Router::start(rules, vec![threshold], &links).await;
    r.arrive(1, 0..100, 8);
    r.arrive(1, 100..150, 9);
    r.arrive(1, 150..170, 1);
    let mut stray = packet(999, 9);
    stray[16] = 226;
    mcastor::wire::ip::refresh_ipv4_checksum(&mut stray);
    r.sim.arrive(index(1), &[&stray]);
    r.until("all is sent", |r| {
        r.transmitted("out") == 150 && r.transmitted("far") == 50
    })
    .await;
    r.until("all is received", |r| r.received("in") == 171)
        .await;
    r.stop().await;
    let out = r.sim.take_sent(index(2));
    assert_eq!(numbers(&out), (0..150).collect::<Vec<_>>());
    assert!(out[..100].iter().all(|p| p[8] == 7) && out[100..].iter().all(|p| p[8] == 8));
    let far = r.sim.take_sent(index(3));
    assert_eq!(numbers(&far), (100..150).collect::<Vec<_>>());
    assert_eq!(r.path("in", "out"), (150, 150 * 32));
    assert_eq!(r.path("in", "far"), (50, 50 * 32));
    assert_eq!(r.dropped("in", DropReason::TtlExpired), 20);
    assert_eq!(r.dropped("in", DropReason::NoRoute), 1);
    assert_eq!(r.all_dropped("in"), 21);
    assert_eq!(r.dropped("far", DropReason::TtlThreshold), 100);
    assert_eq!(r.all_dropped("far"), 100);
    assert_eq!(r.all_dropped("out"), 0);
}

#[actix::test]
async fn a_link_that_vanishes_and_returns_with_another_index_goes_on() {
    let rules = vec![rule("in", &["out", "other"], TtlPolicy::Keep)];
    let (iif, other) = (link(1, "in"), link(3, "other"));
    let r = Router::start(rules, vec![], &[iif.clone(), link(2, "out"), other.clone()]).await;
    r.arrive(1, 0..10, 9);
    r.until("all is sent", |r| {
        r.transmitted("out") == 10 && r.transmitted("other") == 10
    })
    .await;
    r.links_in_force(&[iif.clone(), other.clone()], 1).await;
    r.arrive(1, 10..20, 9);
    r.until("the other goes on", |r| r.transmitted("other") == 20)
        .await;
    r.links_in_force(&[iif.clone(), link(7, "out"), other.clone()], 2)
        .await;
    r.arrive(1, 20..30, 9);
    r.until("all is sent", |r| {
        r.transmitted("out") == 20 && r.transmitted("other") == 30
    })
    .await;
    // The ingress vanishes and returns.
    let egresses = [link(7, "out"), other.clone()];
    r.links_in_force(&egresses, 0).await;
    let back = [&egresses[..], &[link(9, "in")]].concat();
    r.links_in_force(&back, 2).await;
    r.until("one captures", |r| {
        r.faults.captures.load(Ordering::Acquire) == 1
    })
    .await;
    r.arrive(9, 30..40, 9);
    r.until("all is sent", |r| {
        r.transmitted("out") == 30 && r.transmitted("other") == 40
    })
    .await;
    r.stop().await;
    assert_eq!(
        numbers(&r.sim.take_sent(index(2))),
        (0..10).collect::<Vec<_>>()
    );
    assert_eq!(
        numbers(&r.sim.take_sent(index(7))),
        (20..40).collect::<Vec<_>>()
    );
    assert_eq!(
        numbers(&r.sim.take_sent(index(3))),
        (0..40).collect::<Vec<_>>()
    );
    assert_eq!((r.all_dropped("in"), r.all_dropped("out")), (0, 0));
    assert_eq!(r.received("in"), 40);
}

#[actix::test]
async fn an_egress_without_carrier_drops_by_name_and_goes_on_with_one() {
    let rules = vec![rule("in", &["out"], TtlPolicy::Keep)];
    let mut out = link(2, "out");
    out.carrier = false;
    let r = Router::start(rules, vec![], &[link(1, "in"), out.clone()]).await;
    r.arrive(1, 0..10, 9);
    r.until("all is dropped", |r| {
        r.dropped("out", DropReason::EgressDown) == 10
    })
    .await;
    out.carrier = true;
    r.links_in_force(&[link(1, "in"), out], 1).await;
    r.arrive(1, 10..20, 9);
    r.until("all is sent", |r| r.transmitted("out") == 10).await;
    r.stop().await;
    let sent = numbers(&r.sim.take_sent(index(2)));
    assert_eq!(sent, (10..20).collect::<Vec<_>>());
    assert_eq!(r.all_dropped("out"), 10);
}

#[actix::test]
async fn a_renamed_egress_is_counted_under_its_new_name() {
    let rules = vec![rule("in", &["out*"], TtlPolicy::Keep)];
    let r = Router::start(rules, vec![], &[link(1, "in"), link(2, "out0")]).await;
    r.arrive(1, 0..10, 9);
    r.until("all is sent", |r| r.transmitted("out0") == 10)
        .await;
    r.links_in_force(&[link(1, "in"), link(2, "out1")], 1).await;
    r.arrive(1, 10..20, 9);
    r.until("all is sent", |r| r.transmitted("out1") == 10)
        .await;
    assert_eq!(r.transmitted("out0"), 10);
    assert_eq!(r.path("in", "out1"), (10, 320));
    r.stop().await;
    assert_eq!(
        numbers(&r.sim.take_sent(index(2))),
        (0..20).collect::<Vec<_>>()
    );
}

#[actix::test]
async fn the_end_waits_for_what_a_busy_egress_has_not_taken_yet() {
    let rules = vec![rule("in", &["out"], TtlPolicy::Keep)];
    let r = Router::start(rules, vec![], &[link(1, "in"), link(2, "out")]).await;
    r.sim.set_blocked(index(2), true);
    r.arrive(1, 0..5, 9);
    r.until("all is taken in", |r| r.received("in") == 5).await;
    assert_eq!(r.transmitted("out"), 0);
    let mut stopping = Box::pin(r.stop());
    let pending = poll_fn(|cx| Poll::Ready(stopping.as_mut().poll(cx).is_pending())).await;
    assert!(pending, "it stopped with packets in hand");
    r.sim.set_blocked(index(2), false);
    stopping.await;
    assert_eq!(numbers(&r.sim.take_sent(index(2))), [0, 1, 2, 3, 4]);
    assert_eq!(r.transmitted("out"), 5);
    assert_eq!(r.all_dropped("out"), 0);
}

#[actix::test]
async fn a_busy_egress_costs_its_own_packets_only_and_each_is_counted() {
    let rules = vec![rule("in", &["busy", "idle"], TtlPolicy::Keep)];
    let r = Router::start(
        rules,
        vec![],
        &[link(1, "in"), link(2, "busy"), link(3, "idle")],
    )
    .await;
    r.sim.set_blocked(index(2), true);
    for n in 0..200 {
        r.arrive(1, n..n + 1, 9);
        // One batch each, so that the mailbox of the busy one overflows.
        r.until("it is taken in", |r| {
            r.transmitted("idle") == u64::from(n) + 1
        })
        .await;
    }
    let full = r.dropped("busy", DropReason::QueueFull);
    assert!(full > 100, "{full}");
    r.sim.set_blocked(index(2), false);
    r.until("the rest is sent", |r| r.transmitted("busy") + full == 200)
        .await;
    r.stop().await;
    assert_eq!(r.all_dropped("busy"), full);
    assert_eq!(r.all_dropped("idle") + r.all_dropped("in"), 0);
    let sent = numbers(&r.sim.take_sent(index(2)));
    assert!(sent.is_sorted(), "{sent:?}");
}

#[actix::test]
async fn a_burst_on_many_interfaces_at_once_loses_nothing() {
    let rules = vec![rule("in*", &["out"], TtlPolicy::Keep)];
    let mut links: Vec<_> = (10..60).map(|n| link(n, &format!("in{n}"))).collect();
    links.push(link(1, "out"));
    let r = Router::start(rules, vec![], &links).await;
    for n in 10..60 {
        r.arrive(n, 0..100, 9);
    }
    r.until("all is decided", |r| {
        (10..60).all(|n| r.received(&format!("in{n}")) == 100)
    })
    .await;
    r.stop().await;
    assert_eq!(r.all_dropped("out"), 0);
    assert_eq!(r.transmitted("out"), 5000);
}

#[actix::test]
async fn errors_of_an_egress_cost_one_packet_each() {
    let rules = vec![rule("in", &["out"], TtlPolicy::Keep)];
    let r = Router::start(rules, vec![], &[link(1, "in"), link(2, "out")]).await;
    let kinds = [
        io::ErrorKind::Other,
        io::ErrorKind::WouldBlock,
        io::ErrorKind::Other,
    ];
    r.sim.refuse(index(2), &kinds);
    let packets: Vec<_> = (0..10).map(|n| packet(n, 9)).collect();
    let slices: Vec<_> = packets.iter().map(Vec::as_slice).collect();
    r.sim.arrive(index(1), &slices);
    r.until("the rest is sent", |r| r.transmitted("out") == 8)
        .await;
    r.stop().await;
    assert_eq!(
        numbers(&r.sim.take_sent(index(2))),
        (2..10).collect::<Vec<_>>()
    );
    assert_eq!(r.dropped("out", DropReason::SendFailed), 2);
    assert_eq!(r.all_dropped("out"), 2);
}

#[actix::test]
async fn a_capture_that_fails_is_opened_anew() {
    let rules = vec![rule("in", &["out"], TtlPolicy::Keep)];
    let r = Router::start(rules, vec![], &[link(1, "in"), link(2, "out")]).await;
    r.faults.capture_error.store(1, Ordering::Release);
    r.arrive(1, 0..1, 9);
    r.until("it is rebuilt", |r| r.restarts("interface") == 1)
        .await;
    // What waited is still there: the error took nothing.
    r.arrive(1, 1..10, 9);
    r.until("all is sent", |r| r.transmitted("out") == 10).await;
    assert_eq!(r.faults.captures.load(Ordering::Acquire), 1);
    r.stop().await;
    assert_eq!(
        numbers(&r.sim.take_sent(index(2))),
        (0..10).collect::<Vec<_>>()
    );
}

#[actix::test]
async fn an_interface_that_panics_is_rebuilt() {
    let rules = vec![rule("in*", &["out"], TtlPolicy::Keep)];
    let links = [link(1, "in1"), link(2, "out"), link(3, "in2")];
    let r = Router::start(rules, vec![], &links).await;
    r.faults.capture_panic.store(1, Ordering::Release);
    r.arrive(1, 0..1, 9);
    r.until("it is rebuilt", |r| r.restarts("interface") == 1)
        .await;
    r.until("it is ready", |r| r.world.health.is_ready()).await;
    r.arrive(1, 1..10, 9);
    r.until("all is sent", |r| r.path("in1", "out").0 == 10)
        .await;
    assert_eq!(r.faults.captures.load(Ordering::Acquire), 2);
    r.arrive(3, 10..20, 9);
    r.until("the other goes on", |r| r.path("in2", "out").0 == 10)
        .await;
    r.stop().await;
    assert!(!r.failed.is_cancelled());
}

#[actix::test]
async fn a_forwarder_that_panics_is_rebuilt() {
    let rules = vec![rule("in", &["out"], TtlPolicy::Keep)];
    let r = Router::start(rules, vec![], &[link(1, "in"), link(2, "out")]).await;
    r.faults.send_panic.store(1, Ordering::Release);
    r.arrive(1, 0..1, 9);
    r.until("it is rebuilt", |r| r.restarts("forwarder") == 1)
        .await;
    r.arrive(1, 1..10, 9);
    r.until("all is sent", |r| r.transmitted("out") == 9).await;
    r.stop().await;
    assert_eq!(
        numbers(&r.sim.take_sent(index(2))),
        (1..10).collect::<Vec<_>>()
    );
}

#[actix::test]
async fn a_capture_that_opens_late_is_opened_once() {
    let rules = vec![rule("in*", &["out"], TtlPolicy::Keep)];
    let r = Router::start(rules, vec![], &[link(2, "out")]).await;
    r.faults.captures_refused.store(1, Ordering::Release);
    r.links(&[link(1, "in1"), link(2, "out")]);
    r.until("it was refused", |r| {
        r.faults.captures_refused.load(Ordering::Acquire) == 0
    })
    .await;
    // Renamed away and back before the second try is due: it is captured already then.
    r.links_in_force(&[link(1, "in2"), link(2, "out")], 1).await;
    r.links_in_force(&[link(1, "in1"), link(2, "out")], 1).await;
    // The second try comes five seconds after the first.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(5500) {
        let captures = r.faults.captures.load(Ordering::Acquire);
        assert!(captures <= 1, "{captures} captures of one interface");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    r.arrive(1, 0..10, 9);
    r.until("all is sent", |r| r.transmitted("out") == 10).await;
    r.stop().await;
}

/// Numbers that no interface of the machine has: upstream groups are joined by the kernel.
const FAR: u32 = 900_000;

fn proxy(name: &str, upstream: &str, downstream: &[&str]) -> ProxyRule {
    let patterns = |names: &[&str]| names.iter().map(|n| n.parse().unwrap()).collect();
    ProxyRule {
        name: RouteName::new(name),
        // There are no addresses here that hosts could be on link with.
        header_checks: HeaderChecks::Lenient,
        ..ProxyRule::new(patterns(&[upstream]), patterns(downstream))
    }
}

/// A host asks for a group, or leaves where it asks for no source.
fn report(group: &str, kind: RecordType) -> Vec<u8> {
    let record = Record {
        kind,
        group: group.parse().unwrap(),
        sources: vec![],
    };
    let message = Message::Records(vec![record]);
    let from = "10.0.0.9".parse().unwrap();
    mcastor::wire::membership::build(&message, from, 1500)
        .unwrap()
        .remove(0)
}

impl Router {
    async fn with_proxies(proxies: Vec<ProxyRule>, links: &[Link]) -> Self {
        let r = Self::start(vec![], vec![], links).await;
        r.replace(proxies);
        r.until("it captures", |r| {
            r.world.health.is_ready() && !r.world.snapshot.load().fib.downstreams.is_empty()
        })
        .await;
        r
    }

    fn replace(&self, proxies: Vec<ProxyRule>) {
        let rib = Rib {
            proxies,
            ..Rib::default()
        };
        let routing = self.world.routing.load_full().unwrap();
        routing.do_send(Replace(rib));
    }

    /// Behind which interfaces the group is wanted.
    fn wanted(&self, group: &str) -> Vec<u32> {
        let fib = self.world.snapshot.load().fib.clone();
        let group: std::net::IpAddr = group.parse().unwrap();
        let found = fib.wishes.find("10.0.0.1".parse().unwrap(), group);
        let set = found.map(|f| fib.wishes.set(f.set).to_vec());
        let ids = set.unwrap_or_default().into_iter();
        ids.map(|id| fib.downstreams[id as usize].index.get() - FAR)
            .collect()
    }

    /// The groups wanted upstream, as `interface group`.
    async fn joined(&self) -> Vec<String> {
        let Some(joins) = self.world.joins.load_full() else {
            return Vec::new();
        };
        let groups = joins.send(AskGroups).await.unwrap_or_default();
        let row = |g: &mcastor::api::view::GroupView| format!("{} {}", g.interface, g.group);
        groups.iter().map(row).collect()
    }

    async fn until_joined(&self, want: &[&str]) {
        let begun = Instant::now();
        loop {
            let now = self.joined().await;
            if now == want {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "joined: {now:?}, not {want:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn far_links() -> Vec<Link> {
    let names = ["in1", "in2", "out1", "out2", "out3"];
    let link = |(n, name): (u32, &&str)| link(FAR + n, name);
    (1..).zip(&names).map(link).collect()
}

#[actix::test]
async fn members_follow_when_proxies_change() {
    use RecordType::ChangeToExclude;
    let group = "225.1.2.3";
    let one = |down: &[&str]| proxy("one", "in1", down);
    let two = |down: &[&str]| proxy("two", "in2", down);
    let proxies = vec![one(&["out1", "out2"]), two(&["out3"])];
    let r = Router::with_proxies(proxies, &far_links()).await;
    for n in [3, 4] {
        let report = report(group, ChangeToExclude);
        r.sim.arrive(index(FAR + n), &[&report]);
    }
    r.until("both want it", |r| r.wanted(group) == [3, 4]).await;
    r.until_joined(&["in1 225.1.2.3"]).await;
    // A downstream interface moves from one proxy to the other, with its members.
    r.replace(vec![one(&["out2"]), two(&["out1", "out3"])]);
    r.until_joined(&["in1 225.1.2.3", "in2 225.1.2.3"]).await;
    r.sim.take_sent(index(FAR + 3));
    r.sim.take_sent(index(FAR + 4));
    let data = |packets: &[Vec<u8>]| packets.iter().filter(|p| p[9] == 17).count();
    for n in 0..10 {
        r.sim.arrive(index(FAR + 2), &[&packet(n, 9)]);
    }
    let mut came = 0;
    let begun = Instant::now();
    while came < 10 && begun.elapsed() < PATIENCE {
        came += data(&r.sim.take_sent(index(FAR + 3)));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(came, 10, "the new upstream feeds it");
    assert_eq!(data(&r.sim.take_sent(index(FAR + 4))), 0);
    // A name changes: nothing else does.
    let renamed = proxy("other", "in1", &["out2"]);
    r.replace(vec![renamed.clone(), two(&["out1", "out3"])]);
    r.until("it is in force", |r| {
        let fib = &r.world.snapshot.load().fib;
        fib.downstreams.iter().any(|d| d.proxy.name == renamed.name)
    })
    .await;
    r.until_joined(&["in1 225.1.2.3", "in2 225.1.2.3"]).await;
    assert_eq!(r.wanted(group), [4, 3], "in the order of the proxies");
    // A proxy goes: what it had joined is left.
    r.replace(vec![renamed]);
    r.until_joined(&["in1 225.1.2.3"]).await;
    r.until("one is left", |r| r.wanted(group) == [4]).await;
    // Its list no longer takes the group.
    let mut strict = proxy("other", "in1", &["out2"]);
    strict.groups = vec!["239.0.0.0/8".parse().unwrap()];
    r.replace(vec![strict]);
    r.until_joined(&[]).await;
    r.until("none is left", |r| r.wanted(group).is_empty())
        .await;
    r.stop().await;
}

#[actix::test]
async fn a_member_that_is_shown_is_served() {
    let r = Router::with_proxies(vec![proxy("one", "in1", &["out1"])], &far_links()).await;
    // Many groups, so that snapshots take their time and wait for their turn.
    let many: Vec<String> = (0..3000u32)
        .map(|n| format!("226.0.{}.{}", n / 250, n % 250))
        .collect();
    let hear = |group: &str| {
        let report = report(group, RecordType::ChangeToExclude);
        r.sim.arrive(index(FAR + 3), &[&report]);
    };
    for groups in many.chunks(100) {
        groups.iter().for_each(|group| hear(group));
        let last = groups.last().unwrap();
        let begun = Instant::now();
        loop {
            let Ok(Shown::Groups(shown)) = questions::show(&r.world, Show::Groups).await else {
                panic!("no groups are shown");
            };
            if shown
                .iter()
                .any(|g| g.group == *last && g.interface == "out1")
            {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "{last} is not shown");
        }
        assert_eq!(r.wanted(last), [3], "{last} is shown");
    }
    r.stop().await;
}

#[actix::test]
async fn members_come_and_go_while_actors_die() {
    use RecordType::{ChangeToExclude, ChangeToInclude};
    let proxies = || vec![proxy("one", "in1", &["out1"])];
    let r = Router::with_proxies(proxies(), &far_links()).await;
    let hear = |group: &str, kind| r.sim.arrive(index(FAR + 3), &[&report(group, kind)]);
    hear("225.1.2.3", ChangeToExclude);
    r.until("one", |r| r.wanted("225.1.2.3") == [3]).await;
    for round in 0..3u8 {
        let group = format!("225.1.3.{round}");
        // What changes while routing is dead is known to the next.
        let routing = r.world.routing.load_full().unwrap();
        let restarts = r.restarts("routing");
        routing.do_send(PanicNow);
        hear(&group, ChangeToExclude);
        r.until("it is rebuilt", |r| r.restarts("routing") == restarts + 1)
            .await;
        let links = r.world.routing.load_full();
        assert!(links.is_some());
        r.until("the new member counts", |r| r.wanted(&group) == [3])
            .await;
        assert_eq!(r.wanted("225.1.2.3"), [3]);
        hear(&group, ChangeToInclude);
        if round == 1 {
            break;
        }
    }
    // A membership actor that dies forgets its hosts; what they wanted is still forwarded.
    let membership = r.world.membership.load_full().unwrap();
    membership.do_send(PanicNow);
    r.until("it is rebuilt", |r| r.restarts("membership") == 1)
        .await;
    assert_eq!(r.wanted("225.1.2.3"), [3]);
    hear("225.1.4.4", ChangeToExclude);
    r.until("it hears again", |r| r.wanted("225.1.4.4") == [3])
        .await;
    assert_eq!(r.wanted("225.1.2.3"), [3]);
    r.stop().await;
}
