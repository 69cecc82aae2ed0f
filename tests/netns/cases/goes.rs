//! Interfaces that come and go, under counted traffic.

use std::time::Duration;

use super::{cases, route};
use crate::lab::metrics::Metrics;
use crate::lab::ns::ip_batch;
use crate::lab::{
    Capture, Injector, Lab, Numbered, PATIENCE, Random, Router, Star, Udp, eventually, in_order,
    macvlan, missing, wait_until,
};

cases!("goes":
    what_waits_is_listed_until_it_comes,
    an_egress_returns_with_another_index,
    an_ingress_returns_with_another_index,
    renamed_in_and_out_of_a_name_and_a_pattern,
    a_new_name_loses_and_doubles_nothing,
    down_and_up_again,
    the_mtu_changes,
    addresses_change,
    patterns_take_in_what_comes,
    a_hundred_egresses_at_once,
    a_hundred_ingresses_at_once,
    #[LinkKind("macvlan")] come_and_go_a_hundred_times,
);

const GROUP: &str = "225.1.2.3";
const DST: &str = "225.1.2.3:5000";
const SRC: &str = "10.0.0.10:9";

fn r(from: &str, to: &[&str]) -> String {
    route("r", from, "", GROUP, to, "")
}

/// Packets so far, by the counters of interface `iface`.
fn transmitted(router: &Router, iface: &str) -> u64 {
    let name = "mcastor_interface_transmitted_packets_total";
    router.metric(name, &[("iface", iface)]) as u64
}

/// Packets of the route that were taken in; others are the IGMP of the hosts.
fn received(router: &Router) -> u64 {
    taken(&router.metrics())
}

fn taken(metrics: &Metrics) -> u64 {
    let all = metrics.sum("mcastor_interface_received_packets_total", &[]) as u64;
    all - named(metrics, &["no_route", "bad_source"])
}

fn named(metrics: &Metrics, reasons: &[&str]) -> u64 {
    let of = |r: &&str| metrics.sum("mcastor_dropped_packets_total", &[("reason", *r)]) as u64;
    reasons.iter().map(of).sum()
}

/// The interfaces that the snapshot in force sends to, or takes packets from.
fn in_force(router: &Router, side: &str) -> Vec<String> {
    let shown = router.control().show("interfaces");
    let used = shown.iter().filter(|i| i[side] == true);
    used.filter_map(|i| i["name"].as_str().map(String::from))
        .collect()
}

fn oifs(router: &Router) -> Vec<String> {
    in_force(router, "egress")
}

fn waiting(router: &Router) -> Vec<(String, String, String)> {
    let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
    let of = |p: &serde_json::Value| {
        (
            text(&p["kind"]),
            text(&p["origin"]),
            p["waiting_for"].to_string(),
        )
    };
    router.control().show("pending").iter().map(of).collect()
}

fn inject(star: &Star, n: usize) {
    let inject = Injector::new(&star.src, "eth0");
    (0..n).for_each(|i| inject.send(&Udp::new(SRC, DST, (i as u32).to_be_bytes()).frame()));
}

fn what_waits_is_listed_until_it_comes(lab: &Lab) {
    let star = Star::v4(lab, 0);
    let toml = r("in", &["out1"]) + "[[join]]\ninterface = \"later0\"\ngroup = \"225.9.9.9\"\n";
    let router = Router::start(lab, &star.rtr, &toml);
    router.tell("add later9 225.7.7.7 in");
    router.tell("join later* 225.8.8.8");
    let entry = |kind: &str, origin: &str, what: &str| {
        (kind.to_owned(), origin.to_owned(), format!("[\"{what}\"]"))
    };
    let all = [
        entry("route", "settings", "out1"),
        entry("route", "command", "later9"),
        entry("join", "settings", "later0"),
        entry("join", "command", "later*"),
    ];
    assert_eq!(waiting(&router), all);
    let table = router.tell("show pending");
    assert!(
        ["out1", "later9", "later0", "later*", "settings", "command"]
            .iter()
            .all(|w| table.contains(w)),
        "{table}"
    );
    inject(&star, 7);
    router.expect_dropped("no_egress", "in", 7);
    star.plug(1);
    eventually("out1 came", all[1..].to_vec(), || waiting(&router));
    let capture = Capture::new(&star.rcv, "eth1");
    inject(&star, 9);
    capture.expect(GROUP, 9);
    router.expect_routed("r", "out1", 9);
    star.rtr.ip("link add later9 type veth peer name later0");
    eventually("all came", vec![], || waiting(&router));
    star.rtr.ip("link del later9");
    eventually("they wait again", all[1..].to_vec(), || waiting(&router));
}

fn an_egress_returns_with_another_index(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let router = Router::start(lab, &star.rtr, &r("in", &["out1", "out2"]));
    let steady = Capture::new(&star.rcv, "eth2");
    let mut before = star.rtr.index("out1");
    for round in 1..=5 {
        let capture = Capture::new(&star.rcv, "eth1");
        inject(&star, 50);
        capture.expect(GROUP, 50);
        star.rtr.ip("link del out1");
        eventually("out1 is gone", vec!["out2".into()], || oifs(&router));
        inject(&star, 50);
        steady.expect(GROUP, 100 * round);
        // An index is not used again at once.
        star.plug(1);
        let after = star.rtr.index("out1");
        assert_ne!(after, before);
        before = after;
        eventually("out1 is back", 2, || oifs(&router).len());
    }
    router.expect_routed("r", "out1", 250);
    router.expect_routed("r", "out2", 500);
    assert_eq!(received(&router), 500, "taken in once each");
}

fn an_ingress_returns_with_another_index(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &r("in", &["out1"]));
    let capture = Capture::new(&star.rcv, "eth1");
    let up = || router.metric("mcastor_interface_up", &[("iface", "in")]);
    for round in 1..=5 {
        inject(&star, 50);
        capture.expect(GROUP, 50 * round);
        star.rtr.ip("link del in");
        eventually("in is gone", 0.0, up);
        star.plug_in();
        eventually("in is captured again", round + 1, || {
            router.program.stderr().matches("in: capturing").count()
        });
    }
    router.expect_routed("r", "out1", 250);
    assert_eq!(received(&router), 250, "taken in once each");
    // A link that vanishes is no failure.
    router.expect_metric("mcastor_actor_restarts_total", &[("actor", "routing")], 0);
}

fn renamed_in_and_out_of_a_name_and_a_pattern(lab: &Lab) {
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
        let fits = new == "out1" || new.starts_with("tap");
        let want: Vec<String> = fits.then(|| new.to_owned()).into_iter().collect();
        eventually("the new name counts", want, || oifs(&router));
        eventually("it is up", true, || {
            let shown = router.control().show("interfaces");
            shown
                .iter()
                .any(|i| i["name"] == new && i["carrier"] == true)
        });
        inject(&star, 20);
        if fits {
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

/// An interface that is renamed while it is up stays the same interface.
fn a_new_name_loses_and_doubles_nothing(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &r("in*", &["out*"]));
    let capture = Capture::new(&star.rcv, "eth1");
    let traffic = Numbered::start(&star.src, "eth0", SRC, DST, 2000);
    for n in 0..30 {
        let (i, o) = (format!("in{n}"), format!("outer{n}"));
        let (from, to) = match n {
            0 => ("in".to_owned(), "out1".to_owned()),
            n => (format!("in{}", n - 1), format!("outer{}", n - 1)),
        };
        star.rtr.ip(&format!("link set {from} name {i}"));
        star.rtr.ip(&format!("link set {to} name {o}"));
        eventually("both names count", vec![o], || oifs(&router));
        traffic.more(40);
    }
    let sent = traffic.finish();
    capture.expect(GROUP, sent as usize);
    assert_eq!(in_order(&capture, GROUP).len(), sent as usize);
    assert_eq!(received(&router), u64::from(sent), "taken in once each");
    router.expect_metric("mcastor_route_packets_total", &[], sent.into());
    let metrics = router.metrics();
    let of = |name: &str, labels: &[(&str, &str)]| metrics.sum(name, labels);
    for n in 0..30 {
        let o = format!("outer{n}");
        assert_eq!(
            of("mcastor_route_packets_total", &[("oif", o.as_str())]),
            of(
                "mcastor_interface_transmitted_packets_total",
                &[("iface", o.as_str())]
            ),
            "the account of {o}"
        );
    }
}

fn down_and_up_again(lab: &Lab) {
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
        eventually("the sender has its carrier back", true, || {
            let shown = star.src.try_ip("-o link show dev eth0").unwrap_or_default();
            shown.contains("state UP") && !shown.contains("qdisc noop ")
        });
        // A wire that is cut at this end is cut: the sender's packets went nowhere. What
        // comes from now on is taken in, with no time to rebuild anything.
        inject(&star, 20);
        got += 20;
        two.expect(GROUP, got);
    }
    assert_eq!(received(&router), got as u64, "taken in once each");
    router.expect_metric("mcastor_actor_restarts_total", &[], 0);
}

fn the_mtu_changes(lab: &Lab) {
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

/// Forwarding needs no address, so that changing one disturbs nothing.
fn addresses_change(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &r("in", &["out1"]));
    let capture = Capture::new(&star.rcv, "eth1");
    let traffic = Numbered::start(&star.src, "eth0", SRC, DST, 2000);
    for n in 0..20 {
        star.rtr.ip_batch(&format!(
            "address flush dev in\naddress flush dev out1\naddress add 10.9.{n}.1/24 dev in\n\
             address add 10.8.{n}.1/24 dev out1\n"
        ));
        traffic.more(20);
    }
    star.rtr
        .ip_batch("address flush dev in\naddress flush dev out1\n");
    traffic.more(50);
    let sent = traffic.finish();
    capture.expect(GROUP, sent as usize);
    in_order(&capture, GROUP);
    router.expect_routed("r", "out1", sent.into());
    // Memberships outlive addresses too.
    let groups = router.control().show("groups");
    assert!(
        groups.len() == 1 && groups[0]["error"].is_null(),
        "{groups:?}"
    );
}

fn patterns_take_in_what_comes(lab: &Lab) {
    let star = Star::v4(lab, 0);
    let router = Router::start(lab, &star.rtr, &r("in*", &["out*", "in*"]));
    let inject = Injector::new(&star.src, "eth0");
    let frame = Udp::new(SRC, DST, "x").frame();
    for n in 1..=6 {
        star.plug(n);
        eventually("the pattern takes it in", n, || oifs(&router).len());
        let captures: Vec<_> = (1..=n)
            .map(|n| Capture::new(&star.rcv, &format!("eth{n}")))
            .collect();
        inject.send(&frame);
        captures.iter().for_each(|c| drop(c.expect(GROUP, 1)));
    }
    // A new ingress of the pattern sends to all others, and not back to itself.
    star.plug_as("in7", 7);
    eventually("in7 is captured", true, || {
        router.program.stderr().contains("in7: capturing")
    });
    let back = Capture::new(&star.src, "eth0");
    let own = Capture::new(&star.rcv, "eth7");
    Injector::new(&star.rcv, "eth7").send(&frame);
    back.expect(GROUP, 1);
    router.expect_metric("mcastor_route_packets_total", &[("iif", "in7")], 7);
    assert!(own.to(GROUP).is_empty());
}

/// A hundred links between `a` and the router, called `<name>0`... there and `h0`... here.
fn hundred(ns: &crate::lab::Ns, rtr: &crate::lab::Ns, name: &str) {
    let mut links = String::new();
    let (mut here, mut there) = (String::new(), String::new());
    for n in 0..100 {
        links += &format!(
            "link add h{n} netns {} type veth peer name {name}{n} netns {}\n",
            ns.name(),
            rtr.name()
        );
        here += &format!("link set h{n} up\n");
        there += &format!("link set {name}{n} up\n");
    }
    ip_batch(&[], &links).unwrap_or_else(|e| panic!("{e}"));
    ns.ip_batch(&here);
    rtr.ip_batch(&there);
    (0..100).for_each(|n| ns.carries(&format!("h{n}")));
}

fn a_hundred_egresses_at_once(lab: &Lab) {
    let star = Star::v4(lab, 0);
    let router = Router::start(lab, &star.rtr, &r("in", &["many*"]));
    let small = router.program.rss();
    hundred(&star.rcv, &star.rtr, "many");
    eventually("a hundred egresses", 100, || oifs(&router).len());
    // The kernel starts a queue a little after it says that the link is up.
    eventually("all of them send", 100, || {
        let shown = star.rtr.try_ip("-o link show").unwrap_or_default();
        let sends = |l: &&str| l.contains("many") && l.contains("state UP") && !l.contains("noop");
        let up = router.metrics().sum("mcastor_interface_up", &[]) as usize;
        shown
            .lines()
            .filter(sends)
            .count()
            .min(up.saturating_sub(1))
    });
    let captures: Vec<_> = (0..100)
        .map(|n| Capture::new(&star.rcv, &format!("h{n}")))
        .collect();
    // Slowly: a stall makes a burst on a hundred links, and the kernel queues a thousand packets
    // between all veths of a core.
    let traffic = Numbered::start(&star.src, "eth0", SRC, DST, 50);
    traffic.more(50);
    let sent = traffic.finish();
    for capture in &captures {
        capture.expect(GROUP, sent as usize);
        in_order(capture, GROUP);
    }
    router.expect_metric("mcastor_route_packets_total", &[], 100 * u64::from(sent));
    let large = router.program.rss();
    println!(
        "100 egresses: {} kB more",
        (large.saturating_sub(small)) / 1024
    );
    assert!(large < small + (100 << 20), "{small} to {large} bytes");
    let gone: String = (0..100).map(|n| format!("link del many{n}\n")).collect();
    star.rtr.ip_batch(&gone);
    eventually("all are gone", 0, || oifs(&router).len());
}

fn a_hundred_ingresses_at_once(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &r("many*", &["out1"]));
    let small = router.program.rss();
    let threads = || {
        let dir = format!("/proc/{}/task", router.program.pid());
        std::fs::read_dir(dir).map_or(0, Iterator::count)
    };
    hundred(&star.src, &star.rtr, "many");
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
    let large = router.program.rss();
    println!(
        "100 ingresses: {} kB more, {} threads, {} groups joined",
        (large.saturating_sub(small)) / 1024,
        threads(),
        router.metric("mcastor_joined_groups", &[])
    );
    // The capture rings are most of it.
    assert!(large < small + (1 << 30), "{small} to {large} bytes");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    assert!(threads() <= cores + 8, "{} threads", threads());
    let gone: String = (0..100).map(|n| format!("link del many{n}\n")).collect();
    star.rtr.ip_batch(&gone);
    eventually("all are gone", 0, || in_force(&router, "ingress").len());
}

/// Packets between the sender's counter and the wire behind the router at one instant, at most:
/// a tenth of a second of them, for both share two busy cores with all other tests.
const ON_ITS_WAY: u32 = 200;

/// What is lost was sent while there was nowhere to send or nothing to receive on; the
/// router has a name for all of it that it saw, and nothing comes twice or out of order.
fn come_and_go_a_hundred_times(lab: &Lab) {
    let star = Star::v4(lab, 1);
    macvlan(&star.rtr, "iif", "in");
    macvlan(&star.rtr, "oif", "out1");
    let router = Router::start(lab, &star.rtr, &r("iif", &["oif"]));
    let capture = Capture::new(&star.rcv, "eth1");
    let traffic = Numbered::start(&star.src, "eth0", SRC, DST, 2000);
    let mut random = Random::default();
    let mut outages = Vec::new();
    traffic.more(50);
    for event in 0..100 {
        let (name, under) = [("iif", "in"), ("oif", "out1")][random.below(2)];
        // What is on its way already may be cut off too.
        let begun = traffic.sent().saturating_sub(ON_ITS_WAY);
        let kind = random.below(3);
        star.rtr.ip(&match kind {
            0 => format!("link del {name}"),
            1 => format!("link set {name} down"),
            _ => format!("link set {name} name elsewhere"),
        });
        traffic.more(random.below(60) as u32);
        match kind {
            0 => macvlan(&star.rtr, name, under),
            1 => star.rtr.ip(&format!("link set {name} up")),
            _ => star.rtr.ip(&format!("link set elsewhere name {name}")),
        }
        // The router hears of changes in turn: when it knows of this one, and it is in force, it
        // knows of those before.
        let mtu = 1400 + event;
        star.rtr.ip(&format!("link set oif mtu {mtu}"));
        eventually("it knows", f64::from(mtu), || {
            router.metric("mcastor_interface_mtu_bytes", &[("iface", "oif")])
        });
        router.control().show("groups");
        eventually("it is ready", true, || router.is_ready());
        // Over when packets cross again: those that were on their way when it was over
        // have been counted too.
        let before = transmitted(&router, "oif");
        let again = wait_until(PATIENCE, || transmitted(&router, "oif") > before + 20);
        assert!(again, "event {event}: {kind} on {name}: nothing crosses");
        outages.push((begun, traffic.sent()));
        traffic.more(20);
    }
    let sent = traffic.finish();
    let mut last = 0;
    let settled = wait_until(PATIENCE, || {
        std::thread::sleep(Duration::from_millis(50));
        let now = received(&router) + transmitted(&router, "oif");
        std::mem::replace(&mut last, now) == now
    });
    assert!(settled);
    let metrics = router.metrics();
    let sent_out = "mcastor_interface_transmitted_packets_total";
    let (rx, tx) = (taken(&metrics), metrics.sum(sent_out, &[]) as u64);
    // The last three where the machine is busy with others.
    let reasons = [
        "no_egress",
        "egress_down",
        "queue_full",
        "egress_busy",
        "send_failed",
    ];
    let refused = named(&metrics, &reasons);
    let got = in_order(&capture, GROUP);
    // While the kernel takes an interface down it takes packets and sends none, for some
    // milliseconds in which nobody can know.
    let swallowed = tx - got.len() as u64;
    assert_eq!(
        rx,
        tx + refused,
        "what was taken in was sent, or has a name"
    );
    let lost = missing(sent, &got);
    let outside: Vec<_> = lost
        .iter()
        .filter(|n| !outages.iter().any(|(a, b)| (a..=b).contains(n)))
        .collect();
    assert!(outside.is_empty(), "lost while all was well: {outside:?}");
    println!(
        "100 events: {sent} sent, {tx} crossed, {refused} with nowhere to go, {} with nothing \
         to receive on, {swallowed} taken by an interface on its way down",
        u64::from(sent) - rx
    );
    assert_eq!(
        lost.len() as u64,
        refused + swallowed + u64::from(sent) - rx
    );
    assert!(refused > 500, "the test has outages: {refused}");
}
