//! Interfaces that appear, disappear and change under counted traffic.

use std::time::Duration;

use super::{cases, route};
use crate::lab::metrics::Metrics;
use crate::lab::{
    Capture, Injector, Lab, LinkEnd, Ns, NumberedStream, Random, Router, Star, TIMEOUT, Udp,
    connect_all, eventually, macvlan, missing, received_in_order, wait_until,
};

cases!("interface_changes":
    pending_interfaces_are_listed_until_they_appear,
    recreated_egress_forwards_again,
    recreated_ingress_is_captured_again,
    egress_follows_renames_matching_name_or_pattern,
    rename_while_up_loses_no_packet,
    interface_down_and_up_resumes_forwarding,
    mtu_change_is_applied,
    address_changes_do_not_disturb_forwarding,
    patterns_match_interfaces_added_later,
    hundred_egresses_appear_at_once,
    hundred_ingresses_appear_at_once,
    #[LinkKind("macvlan")] hundred_interface_changes_account_for_every_loss,
);

const GROUP: &str = "225.1.2.3";
const DST: &str = "225.1.2.3:5000";
const SRC: &str = "10.0.0.10:9";

fn r(from: &str, to: &[&str]) -> String {
    route("r", from, "", GROUP, to, "")
}

/// Returns the packets transmitted on `iface`, by the counters of the interface.
fn transmitted(router: &Router, iface: &str) -> u64 {
    let name = "mcastor_interface_transmitted_packets_total";
    router.metric(name, &[("iface", iface)]) as u64
}

/// Returns the received packets of the route, without the IGMP messages of the hosts.
fn received(router: &Router) -> u64 {
    received_in(&router.metrics())
}

fn received_in(metrics: &Metrics) -> u64 {
    let all = metrics.sum("mcastor_interface_received_packets_total", &[]) as u64;
    all - dropped(metrics, &["no_route", "bad_source"])
}

fn dropped(metrics: &Metrics, reasons: &[&str]) -> u64 {
    let count = |r: &&str| metrics.sum("mcastor_dropped_packets_total", &[("reason", *r)]) as u64;
    reasons.iter().map(count).sum()
}

/// Returns the interfaces that the current forwarding snapshot uses on one `side`: `ingress` or
/// `egress`.
fn interfaces_in_use(router: &Router, side: &str) -> Vec<String> {
    let shown = router.control().show("interfaces");
    let used = shown.iter().filter(|i| i[side] == true);
    used.filter_map(|i| i["name"].as_str().map(String::from))
        .collect()
}

fn oifs(router: &Router) -> Vec<String> {
    interfaces_in_use(router, "egress")
}

/// Returns kind, origin and awaited interfaces of each row of `show pending`.
fn pending(router: &Router) -> Vec<(String, String, String)> {
    let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
    let row = |p: &serde_json::Value| {
        (
            text(&p["kind"]),
            text(&p["origin"]),
            p["waiting_for"].to_string(),
        )
    };
    router.control().show("pending").iter().map(row).collect()
}

fn inject(star: &Star, n: usize) {
    let inject = Injector::new(&star.src, "eth0");
    (0..n).for_each(|i| inject.send(&Udp::new(SRC, DST, (i as u32).to_be_bytes()).frame()));
}

fn pending_interfaces_are_listed_until_they_appear(lab: &Lab) {
    let star = Star::v4(lab, 0);
    let toml = r("in", &["out1"]) + "[[join]]\ninterface = \"later0\"\ngroup = \"225.9.9.9\"\n";
    let router = Router::start(lab, &star.rtr, &toml);
    router.run("add later9 225.7.7.7 in");
    router.run("join later* 225.8.8.8");
    let entry = |kind: &str, origin: &str, interface: &str| {
        (
            kind.to_owned(),
            origin.to_owned(),
            format!("[\"{interface}\"]"),
        )
    };
    let all = [
        entry("route", "settings", "out1"),
        entry("route", "command", "later9"),
        entry("join", "settings", "later0"),
        entry("join", "command", "later*"),
    ];
    assert_eq!(pending(&router), all);
    let table = router.run("show pending");
    assert!(
        ["out1", "later9", "later0", "later*", "settings", "command"]
            .iter()
            .all(|w| table.contains(w)),
        "{table}"
    );
    inject(&star, 7);
    router.expect_dropped("no_egress", "in", 7);
    star.add_egress(1);
    eventually("out1 is found", all[1..].to_vec(), || pending(&router));
    let capture = Capture::new(&star.rcv, "eth1");
    inject(&star, 9);
    capture.expect(GROUP, 9);
    router.expect_routed("r", "out1", 9);
    star.rtr.ip("link add later9 type veth peer name later0");
    eventually("nothing is pending", vec![], || pending(&router));
    star.rtr.ip("link del later9");
    eventually("pending again", all[1..].to_vec(), || pending(&router));
}

fn recreated_egress_forwards_again(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let router = Router::start(lab, &star.rtr, &r("in", &["out1", "out2"]));
    let steady = Capture::new(&star.rcv, "eth2");
    let mut before = star.rtr.index("out1");
    for round in 1..=5 {
        let capture = Capture::new(&star.rcv, "eth1");
        inject(&star, 50);
        capture.expect(GROUP, 50);
        star.rtr.ip("link del out1");
        eventually("out1 is removed", vec!["out2".into()], || oifs(&router));
        inject(&star, 50);
        steady.expect(GROUP, 100 * round);
        // The kernel does not reuse an interface index at once.
        star.add_egress(1);
        let after = star.rtr.index("out1");
        assert_ne!(after, before);
        before = after;
        eventually("out1 is back", 2, || oifs(&router).len());
    }
    router.expect_routed("r", "out1", 250);
    router.expect_routed("r", "out2", 500);
    assert_eq!(received(&router), 500, "each packet is received once");
}

fn recreated_ingress_is_captured_again(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &r("in", &["out1"]));
    let capture = Capture::new(&star.rcv, "eth1");
    let up = || router.metric("mcastor_interface_up", &[("iface", "in")]);
    for round in 1..=5 {
        inject(&star, 50);
        capture.expect(GROUP, 50 * round);
        star.rtr.ip("link del in");
        eventually("in is removed", 0.0, up);
        star.recreate_ingress();
        eventually("in is captured again", round + 1, || {
            router.program.stderr().matches("in: capturing").count()
        });
    }
    router.expect_routed("r", "out1", 250);
    assert_eq!(received(&router), 250, "each packet is received once");
    // The removal of a link is not a failure of an actor.
    router.expect_metric("mcastor_actor_restarts_total", &[("actor", "routing")], 0);
}

fn egress_follows_renames_matching_name_or_pattern(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &r("in", &["out1", "tap*"]));
    let capture = Capture::new(&star.rcv, "eth1");
    let mut got = 0;
    let mut lost = 0;
    let mut name = "out1";
    for new in ["tap1", "other", "out1", "tap2", "x", "tap3", "out1"] {
        star.rtr.ip_batch(&format!(
            "link set {name} down\nlink set {name} name {new}\nlink set {new} up\n"
        ));
        let matches = new == "out1" || new.starts_with("tap");
        let expected: Vec<String> = matches.then(|| new.to_owned()).into_iter().collect();
        eventually("the new name is in use", expected, || oifs(&router));
        eventually("the interface is up", true, || {
            let shown = router.control().show("interfaces");
            shown
                .iter()
                .any(|i| i["name"] == new && i["carrier"] == true)
        });
        inject(&star, 20);
        if matches {
            got += 20;
        } else {
            lost += 20;
        }
        capture.expect(GROUP, got);
        router.expect_dropped("no_egress", "in", lost);
        name = new;
    }
    router.expect_routed("r", "out1", 40);
    router.expect_routed("r", "tap1", 20);
}

/// An interface that is renamed while it is up keeps its index and its counters.
fn rename_while_up_loses_no_packet(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &r("in*", &["out*"]));
    let capture = Capture::new(&star.rcv, "eth1");
    let traffic = NumberedStream::start(&star.src, "eth0", SRC, DST, 2000);
    for n in 0..30 {
        let (i, o) = (format!("in{n}"), format!("outer{n}"));
        let (from, to) = match n {
            0 => ("in".to_owned(), "out1".to_owned()),
            n => (format!("in{}", n - 1), format!("outer{}", n - 1)),
        };
        star.rtr.ip(&format!("link set {from} name {i}"));
        star.rtr.ip(&format!("link set {to} name {o}"));
        eventually("both new names are in use", vec![o], || oifs(&router));
        traffic.wait_for_more(40);
    }
    let sent = traffic.finish();
    capture.expect(GROUP, sent as usize);
    assert_eq!(received_in_order(&capture, GROUP).len(), sent as usize);
    assert_eq!(
        received(&router),
        u64::from(sent),
        "each packet is received once"
    );
    router.expect_metric("mcastor_route_packets_total", &[], sent.into());
    let metrics = router.metrics();
    let sum = |name: &str, labels: &[(&str, &str)]| metrics.sum(name, labels);
    for n in 0..30 {
        let o = format!("outer{n}");
        assert_eq!(
            sum("mcastor_route_packets_total", &[("oif", o.as_str())]),
            sum(
                "mcastor_interface_transmitted_packets_total",
                &[("iface", o.as_str())]
            ),
            "route and interface counters of {o}"
        );
    }
}

fn interface_down_and_up_resumes_forwarding(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let router = Router::start(lab, &star.rtr, &r("in", &["out1", "out2"]));
    let (one, two) = (
        Capture::new(&star.rcv, "eth1"),
        Capture::new(&star.rcv, "eth2"),
    );
    for round in 1..=5 {
        inject(&star, 20);
        one.expect(GROUP, 20 * round);
        star.rtr.ip("link set out1 down");
        inject(&star, 10);
        two.expect(GROUP, 30 * round);
        router.expect_dropped("egress_down", "out1", 10 * round as u64);
        star.rtr.ip("link set out1 up");
        eventually("out1 sends again", true, || {
            let shown = star.rtr.try_ip("-o link show dev out1").unwrap_or_default();
            let known = router.metric("mcastor_interface_up", &[("iface", "out1")]);
            shown.contains("state UP") && !shown.contains("qdisc noop ") && known == 1.0
        });
    }
    let mut got = 150;
    for _ in 0..5 {
        star.rtr.ip("link set in down");
        inject(&star, 10);
        star.rtr.ip("link set in up");
        eventually("the sender has a carrier", true, || {
            let shown = star.src.try_ip("-o link show dev eth0").unwrap_or_default();
            shown.contains("state UP") && !shown.contains("qdisc noop ")
        });
        // Packets that the sender sent while `in` was down were dropped on its own side. Packets
        // sent from now on are received at once, because the capture was kept.
        inject(&star, 20);
        got += 20;
        two.expect(GROUP, got);
    }
    assert_eq!(
        received(&router),
        got as u64,
        "each packet is received once"
    );
    router.expect_metric("mcastor_actor_restarts_total", &[], 0);
}

fn mtu_change_is_applied(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &r("in", &["out1"]));
    let capture = Capture::new(&star.rcv, "eth1");
    let inject = Injector::new(&star.src, "eth0");
    let frame = Udp::new(SRC, DST, [7; 1400]).frame();
    let mut packets = 0;
    for mtu in [1500, 1000, 600, 1500] {
        star.rtr.ip(&format!("link set out1 mtu {mtu}"));
        let labels = [("iface", "out1")];
        router.expect_metric("mcastor_interface_mtu_bytes", &labels, mtu);
        inject.send(&frame);
        packets += match mtu {
            1500 => 1,
            1000 => 2,
            _ => 3,
        };
        let seen = capture.expect(GROUP, packets);
        assert!(seen[packets - 1].ip.len() as u64 <= mtu);
        assert_eq!(mtu == 1500, seen[packets - 1].offset == 0);
    }
    router.expect_routed("r", "out1", 7);
}

/// Forwarding needs no address, so address changes do not disturb it.
fn address_changes_do_not_disturb_forwarding(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &r("in", &["out1"]));
    let capture = Capture::new(&star.rcv, "eth1");
    let traffic = NumberedStream::start(&star.src, "eth0", SRC, DST, 2000);
    for n in 0..20 {
        star.rtr.ip_batch(&format!(
            "address flush dev in\naddress flush dev out1\naddress add 10.9.{n}.1/24 dev in\n\
             address add 10.8.{n}.1/24 dev out1\n"
        ));
        traffic.wait_for_more(20);
    }
    star.rtr
        .ip_batch("address flush dev in\naddress flush dev out1\n");
    traffic.wait_for_more(50);
    let sent = traffic.finish();
    capture.expect(GROUP, sent as usize);
    received_in_order(&capture, GROUP);
    router.expect_routed("r", "out1", sent.into());
    // Memberships survive address changes too.
    let groups = router.control().show("groups");
    assert!(
        groups.len() == 1 && groups[0]["error"].is_null(),
        "{groups:?}"
    );
}

fn patterns_match_interfaces_added_later(lab: &Lab) {
    let star = Star::v4(lab, 0);
    let router = Router::start(lab, &star.rtr, &r("in*", &["out*", "in*"]));
    let inject = Injector::new(&star.src, "eth0");
    let frame = Udp::new(SRC, DST, "x").frame();
    for n in 1..=6 {
        star.add_egress(n);
        eventually("the pattern matches the new egress", n, || {
            oifs(&router).len()
        });
        let captures: Vec<_> = (1..=n)
            .map(|n| Capture::new(&star.rcv, &format!("eth{n}")))
            .collect();
        inject.send(&frame);
        captures.iter().for_each(|c| drop(c.expect(GROUP, 1)));
    }
    // A new ingress that matches the pattern forwards to all other interfaces, not to itself.
    star.add_egress_named("in7", 7);
    eventually("in7 is captured", true, || {
        router.program.stderr().contains("in7: capturing")
    });
    let back = Capture::new(&star.src, "eth0");
    let own = Capture::new(&star.rcv, "eth7");
    let other = Udp::new("10.0.7.10:9", DST, "x").frame();
    Injector::new(&star.rcv, "eth7").send(&other);
    back.expect(GROUP, 1);
    router.expect_metric("mcastor_route_packets_total", &[("iif", "in7")], 7);
    assert!(own.to(GROUP).is_empty());
}

/// Creates a hundred links from `<name>0`... at the router to `h0`... in `ns`.
fn connect_hundred(ns: &Ns, rtr: &Ns, name: &str) {
    let link = |n: usize| {
        let near = LinkEnd::new(rtr, format!("{name}{n}"), &[]);
        (near, LinkEnd::new(ns, format!("h{n}"), &[]))
    };
    connect_all(&(0..100).map(link).collect::<Vec<_>>());
}

fn hundred_egresses_appear_at_once(lab: &Lab) {
    let star = Star::v4(lab, 0);
    let router = Router::start(lab, &star.rtr, &r("in", &["many*"]));
    let rss_before = router.program.rss();
    connect_hundred(&star.rcv, &star.rtr, "many");
    eventually("a hundred egresses", 100, || oifs(&router).len());
    // The kernel starts a queueing discipline slightly after it reports that the link is up.
    eventually("all egresses transmit", 100, || {
        let shown = star.rtr.try_ip("-o link show").unwrap_or_default();
        let transmits =
            |l: &&str| l.contains("many") && l.contains("state UP") && !l.contains("noop");
        let up = router.metrics().sum("mcastor_interface_up", &[]) as usize;
        shown
            .lines()
            .filter(transmits)
            .count()
            .min(up.saturating_sub(1))
    });
    let captures: Vec<_> = (0..100)
        .map(|n| Capture::new(&star.rcv, &format!("h{n}")))
        .collect();
    // At a low rate: a stall causes a burst on a hundred links, and the kernel queues only a
    // thousand packets between all veth devices of a core.
    let traffic = NumberedStream::start(&star.src, "eth0", SRC, DST, 50);
    traffic.wait_for_more(50);
    let sent = traffic.finish();
    for capture in &captures {
        capture.expect(GROUP, sent as usize);
        received_in_order(capture, GROUP);
    }
    router.expect_metric("mcastor_route_packets_total", &[], 100 * u64::from(sent));
    let rss_after = router.program.rss();
    println!(
        "100 egresses: {} kB more",
        (rss_after.saturating_sub(rss_before)) / 1024
    );
    assert!(
        rss_after < rss_before + (100 << 20),
        "{rss_before} to {rss_after} bytes"
    );
    let gone: String = (0..100).map(|n| format!("link del many{n}\n")).collect();
    star.rtr.ip_batch(&gone);
    eventually("all egresses are removed", 0, || oifs(&router).len());
}

fn hundred_ingresses_appear_at_once(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &r("many*", &["out1"]));
    let rss_before = router.program.rss();
    let threads = || {
        let dir = format!("/proc/{}/task", router.program.pid());
        std::fs::read_dir(dir).map_or(0, Iterator::count)
    };
    connect_hundred(&star.src, &star.rtr, "many");
    eventually("a hundred ingresses", 100, || {
        router.program.stderr().matches(": capturing").count()
    });
    let capture = Capture::new(&star.rcv, "eth1");
    for n in 0..100 {
        let inject = Injector::new(&star.src, &format!("h{n}"));
        let src = format!("10.0.{n}.10:9");
        (0..20).for_each(|_| inject.send(&Udp::new(&src, DST, "x").frame()));
    }
    capture.expect(GROUP, 2000);
    router.expect_routed("r", "out1", 2000);
    let rss_after = router.program.rss();
    println!(
        "100 ingresses: {} kB more, {} threads, {} groups joined",
        (rss_after.saturating_sub(rss_before)) / 1024,
        threads(),
        router.metric("mcastor_joined_groups", &[])
    );
    // The capture rings make up most of this memory.
    assert!(
        rss_after < rss_before + (1 << 30),
        "{rss_before} to {rss_after} bytes"
    );
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // The workers, and the threads of the control actors, of HTTP, of sockets, of the stored state, of
    // its counters, of monitored streams, and of upgrades.
    assert!(threads() <= cores + 18, "{} threads", threads());
    let gone: String = (0..100).map(|n| format!("link del many{n}\n")).collect();
    star.rtr.ip_batch(&gone);
    eventually("all ingresses are removed", 0, || {
        interfaces_in_use(&router, "ingress").len()
    });
}

/// The largest number of packets in flight between the sender's counter and the link behind the
/// router: a tenth of a second, because both share two busy cores with all other tests.
const IN_FLIGHT: u32 = 200;

/// Every lost packet was sent while an interface was missing or down. Every packet that the router
/// received was transmitted or counted as dropped, and no packet arrives twice or out of order.
fn hundred_interface_changes_account_for_every_loss(lab: &Lab) {
    let star = Star::v4(lab, 1);
    macvlan(&star.rtr, "iif", "in");
    macvlan(&star.rtr, "oif", "out1");
    let router = Router::start(lab, &star.rtr, &r("iif", &["oif"]));
    let capture = Capture::new(&star.rcv, "eth1");
    let traffic = NumberedStream::start(&star.src, "eth0", SRC, DST, 2000);
    let mut random = Random::default();
    let mut outages = Vec::new();
    traffic.wait_for_more(50);
    for event in 0..100 {
        let (name, under) = [("iif", "in"), ("oif", "out1")][random.below(2)];
        // Packets already in flight may be lost too.
        let started = traffic.sent().saturating_sub(IN_FLIGHT);
        let kind = random.below(3);
        star.rtr.ip(&match kind {
            0 => format!("link del {name}"),
            1 => format!("link set {name} down"),
            _ => format!("link set {name} name elsewhere"),
        });
        traffic.wait_for_more(random.below(60) as u32);
        match kind {
            0 => macvlan(&star.rtr, name, under),
            1 => star.rtr.ip(&format!("link set {name} up")),
            _ => star.rtr.ip(&format!("link set elsewhere name {name}")),
        }
        // The router processes changes in order: when it reports this MTU, it has processed all
        // earlier changes.
        let mtu = 1400 + event;
        star.rtr.ip(&format!("link set oif mtu {mtu}"));
        eventually("the MTU is known", f64::from(mtu), || {
            router.metric("mcastor_interface_mtu_bytes", &[("iface", "oif")])
        });
        router.control().show("groups");
        eventually("the router is ready", true, || router.is_ready());
        // The outage is over when packets are forwarded again. By then, packets in flight at its
        // end have been counted too.
        let before = transmitted(&router, "oif");
        let again = wait_until(TIMEOUT, || transmitted(&router, "oif") > before + 20);
        assert!(
            again,
            "event {event}: {kind} on {name}: no packet is forwarded"
        );
        outages.push((started, traffic.sent()));
        traffic.wait_for_more(20);
    }
    let sent = traffic.finish();
    let mut last = 0;
    let settled = wait_until(TIMEOUT, || {
        std::thread::sleep(Duration::from_millis(50));
        let now = received(&router) + transmitted(&router, "oif");
        std::mem::replace(&mut last, now) == now
    });
    assert!(settled);
    let metrics = router.metrics();
    let transmitted_total = "mcastor_interface_transmitted_packets_total";
    let (rx, tx) = (
        received_in(&metrics),
        metrics.sum(transmitted_total, &[]) as u64,
    );
    // The last three reasons occur when the machine is busy with other tests.
    let reasons = [
        "no_egress",
        "egress_down",
        "queue_full",
        "egress_busy",
        "send_failed",
    ];
    let refused = dropped(&metrics, &reasons);
    let got = received_in_order(&capture, GROUP);
    // While the kernel takes an interface down, it accepts packets and discards them for some
    // milliseconds. The router cannot detect this.
    let swallowed = tx - got.len() as u64;
    assert_eq!(
        rx,
        tx + refused,
        "every received packet was transmitted or dropped with a reason"
    );
    let lost = missing(sent, &got);
    let outside: Vec<_> = lost
        .iter()
        .filter(|n| !outages.iter().any(|(a, b)| (a..=b).contains(n)))
        .collect();
    assert!(outside.is_empty(), "lost outside of an outage: {outside:?}");
    println!(
        "100 events: {sent} sent, {tx} transmitted, {refused} dropped without egress, {} sent \
         without ingress, {swallowed} discarded by an interface on its way down",
        u64::from(sent) - rx
    );
    assert_eq!(
        lost.len() as u64,
        refused + swallowed + u64::from(sent) - rx
    );
    assert!(
        refused > 500,
        "too few packets fell into outages: {refused}"
    );
}
