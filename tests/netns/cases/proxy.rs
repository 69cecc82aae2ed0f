//! Proxies: hosts join and receive the streams. The hosts are sockets of the Linux kernel.

use std::time::{Duration, Instant};

use super::{cases, route};
use crate::lab::proxy::{join_source, joined, member, members, proxy};
use crate::lab::{
    Capture, Injector, Lab, Ns, NumberedStream, Router, Star, TIMEOUT, Udp, UdpRx, UdpTx,
    connect_to_bridge, eventually, sequence_number, wait_until,
};

cases!("proxy":
    igmp_hosts_of_every_version_join_and_leave,
    mld_hosts_of_every_version_join_and_leave,
    leave_on_one_downstream_keeps_the_other,
    only_the_joined_source_is_forwarded,
    join_during_a_flow_is_served_quickly,
    downstream_streams_go_upstream_and_across,
    static_route_and_members_form_a_union,
    standby_upstream_takes_over,
    members_survive_actor_panics,
    members_without_querier_survive_membership_panic,
    #[LinkKind("bridge")] snooping_bridge_delivers_only_to_members,
);

fn assert_joins_and_leaves(lab: &Lab, version: &str, sysctl: (&str, &str), group: &str) {
    let star = Star::dual(lab, 1);
    star.rcv.sysctl(sysctl.0, sysctl.1);
    // An IGMPv1 host takes up to 10 s to answer, regardless of the query (RFC 1112).
    let robustness = if version == "1" && !group.contains(':') {
        6
    } else {
        2
    };
    let toml = proxy(&["in"], &["out1"], "") + &format!("robustness = {robustness}\n");
    let router = Router::start(lab, &star.rtr, &toml);
    let source = if group.contains(':') {
        "[fd00::10]:9"
    } else {
        "10.0.0.10:9"
    };
    let dst = if group.contains(':') {
        format!("[{group}]:5000")
    } else {
        format!("{group}:5000")
    };
    let inject = Injector::new(&star.src, "eth0");
    let send = |n: u32| inject.send(&Udp::new(source, &dst, n.to_be_bytes()).frame());
    // Without members.
    let wire = Capture::new(&star.rcv, "eth1");
    (0..10).for_each(send);
    router.expect_dropped("no_route", "in", 10);
    assert_eq!(wire.to(group).len(), 0);
    // After a join, packets are forwarded.
    let rx = UdpRx::join(&star.rcv, "eth1", &dst);
    eventually("a member", Some(version.to_string()), || {
        member(&router, "out1", group)?["version"]
            .as_str()
            .map(String::from)
    });
    eventually(
        "joined upstream",
        vec![format!("{group} exclude []")],
        || joined(&router, "in"),
    );
    (10..110).for_each(send);
    rx.expect(100);
    router.expect_routed("p", "out1", 100);
    // The host stays a member as long as it answers queries.
    let queries = || {
        let labels = [
            ("iface", "out1"),
            ("direction", "transmitted"),
            ("type", "general_query"),
        ];
        let (igmp, mld) = ("mcastor_igmp_messages_total", "mcastor_mld_messages_total");
        router.metric(if group.contains(':') { mld } else { igmp }, &labels)
    };
    let before_queries = queries();
    eventually("two more queries", true, || {
        queries() >= before_queries + 2.0
    });
    (110..210).for_each(send);
    rx.expect(200);
    drop(rx);
    eventually("no member left", None, || member(&router, "out1", group));
    eventually("left upstream", Vec::<String>::new(), || {
        joined(&router, "in")
    });
    let before = wire.to(group).len();
    (210..220).for_each(send);
    router.expect_dropped("no_route", "in", 20);
    assert_eq!(wire.to(group).len(), before);
}

fn igmp_hosts_of_every_version_join_and_leave(lab: &Lab) {
    for (n, version) in ["3", "2", "1"].iter().enumerate() {
        let sysctl = ("net/ipv4/conf/eth1/force_igmp_version", *version);
        assert_joins_and_leaves(lab, version, sysctl, &format!("225.1.2.{}", n + 1));
    }
}

fn mld_hosts_of_every_version_join_and_leave(lab: &Lab) {
    for (n, version) in ["2", "1"].iter().enumerate() {
        let sysctl = ("net/ipv6/conf/eth1/force_mld_version", *version);
        assert_joins_and_leaves(lab, version, sysctl, &format!("ff0e::8000:{}", n + 1));
    }
}

fn leave_on_one_downstream_keeps_the_other(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out*"], ""));
    let group = "225.1.2.3";
    let _two = UdpRx::join(&star.rcv, "eth2", "225.1.2.3:5000");
    // The group is already joined upstream, so the stream is forwarded.
    eventually("joined upstream", 1, || joined(&router, "in").len());
    let one = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    eventually("two members", 2, || members(&router).len());
    let wire = Capture::new(&star.rcv, "eth2");
    let up = Capture::new(&star.src, "eth0");
    let flow = NumberedStream::start(&star.src, "eth0", "10.0.0.10:9", "225.1.2.3:5000", 2000);
    flow.wait_for_more(200);
    drop(one);
    eventually("one member left", 1, || members(&router).len());
    flow.wait_for_more(400);
    let sent = flow.finish();
    eventually("every packet", sent as usize, || wire.to(group).len());
    // No upstream membership ended in the meantime: no TO_IN and no BLOCK record.
    let leaves = up.to("224.0.0.22");
    let to_in =
        |s: &&crate::lab::IpPacket| matches!(s.body(), [0x22, _, _, _, _, _, _, _, 3 | 6, ..]);
    assert_eq!(leaves.iter().filter(to_in).count(), 0);
}

fn only_the_joined_source_is_forwarded(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out*"], ""));
    let member_of = join_source(&star.rcv, "eth1", "10.0.0.10", "232.1.2.3");
    eventually(
        "joined upstream",
        vec!["232.1.2.3 include [\"10.0.0.10\"]".to_string()],
        || joined(&router, "in"),
    );
    let wire = Capture::new(&star.rcv, "eth1");
    let inject = Injector::new(&star.src, "eth0");
    let send = |source: &str, n: u32| {
        let src = format!("{source}:9");
        inject.send(&Udp::new(&src, "232.1.2.3:5000", n.to_be_bytes()).frame());
    };
    for n in 0..20 {
        send("10.0.0.10", n);
        send("10.0.0.11", n);
    }
    let seen = wire.expect("232.1.2.3", 20);
    assert!(
        seen.iter()
            .all(|s| s.src == "10.0.0.10".parse::<std::net::IpAddr>().expect("v4"))
    );
    router.expect_dropped("not_wanted", "in", 20);
    // Another interface joins the other source: each gets its own.
    let _second = join_source(&star.rcv, "eth2", "10.0.0.11", "232.1.2.3");
    let both = "232.1.2.3 include [\"10.0.0.10\", \"10.0.0.11\"]".to_string();
    eventually("the union is joined", vec![both], || joined(&router, "in"));
    drop(member_of);
    let other = "232.1.2.3 include [\"10.0.0.11\"]".to_string();
    eventually("one source left", vec![other], || joined(&router, "in"));
    let wire2 = Capture::new(&star.rcv, "eth2");
    (0..20).for_each(|n| send("10.0.0.11", n));
    wire2.expect("232.1.2.3", 20);
    // The other source's join on eth2 did not add packets on eth1.
    let data = wire
        .to("232.1.2.3")
        .into_iter()
        .filter(|s| s.protocol == 17);
    assert_eq!(data.count(), 20);
}

fn join_during_a_flow_is_served_quickly(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    let mut waits = Vec::new();
    for n in 0..40 {
        let group = format!("225.2.0.{n}");
        let dst = format!("{group}:5000");
        let wire = Capture::new(&star.rcv, "eth1");
        let inject = Injector::new(&star.src, "eth0");
        let send = |n: u32| inject.send(&Udp::new("10.0.0.10:9", &dst, n.to_be_bytes()).frame());
        // The flow is running already, and is cached as not forwarded.
        (0..3).for_each(send);
        let joined_at = Instant::now();
        let _rx = UdpRx::join(&star.rcv, "eth1", &dst);
        let mut sent = 3;
        while wire.to(&group).is_empty() {
            assert!(joined_at.elapsed() < TIMEOUT, "{group}: no packet arrived");
            send(sent);
            sent += 1;
            // Without a pause, a busy machine sends more packets than the capture can hold.
            std::thread::sleep(Duration::from_millis(1));
        }
        waits.push(joined_at.elapsed());
        // No packet is missing after the first one.
        (sent..sent + 20).for_each(send);
        let first = sequence_number(wire.to(&group)[0].payload());
        eventually("no gap", (sent + 20 - first) as usize, || {
            wire.to(&group).len()
        });
    }
    waits.sort();
    println!(
        "join to first packet: median {:?}, longest {:?}",
        waits[20], waits[39]
    );
    // The goal is 10 ms, but other tests run in parallel.
    assert!(waits[10] < Duration::from_millis(100), "{waits:?}");
    drop(router);
}

fn downstream_streams_go_upstream_and_across(lab: &Lab) {
    for upward in [true, false] {
        let star = Star::v4(lab, 2);
        let extra = format!("upward = {upward}\n");
        let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out*"], &extra));
        let up = Capture::new(&star.src, "eth0");
        let tx = Injector::new(&star.rcv, "eth1");
        let send =
            |n: u32| tx.send(&Udp::new("10.0.1.10:9", "225.1.2.3:5000", n.to_be_bytes()).frame());
        (0..10).for_each(send);
        let expected = if upward { 10 } else { 0 };
        if upward {
            up.expect("225.1.2.3", 10);
        } else {
            router.expect_dropped("no_route", "out1", 10);
        }
        // The receiver is in the sender's namespace, so it does not accept the packets.
        let _member = UdpRx::join(&star.rcv, "eth2", "225.1.2.3:5000");
        let across = Capture::new(&star.rcv, "eth2");
        eventually("a member", 1, || members(&router).len());
        (10..30).for_each(send);
        across.expect("225.1.2.3", 20);
        let goes_up = if upward { 30 } else { 0 };
        eventually("upstream", goes_up, || up.to("225.1.2.3").len());
        assert!(goes_up >= expected);
    }
}

fn static_route_and_members_form_a_union(lab: &Lab) {
    let star = Star::v4(lab, 3);
    let toml = route(
        "static",
        "in",
        "",
        "225.1.2.0/24",
        &["out1", "out2"],
        "ttl = \"keep\"\nloop_guard = false\n",
    ) + &proxy(&["in"], &["out2", "out3"], "");
    let router = Router::start(lab, &star.rtr, &toml);
    let wires: Vec<Capture> = (1..=3)
        .map(|n| Capture::new(&star.rcv, &format!("eth{n}")))
        .collect();
    let inject = Injector::new(&star.src, "eth0");
    let send = |n: u32| {
        inject.send(
            &Udp::new("10.0.0.10:9", "225.1.2.3:5000", n.to_be_bytes())
                .ttl(9)
                .frame(),
        );
    };
    (0..10).for_each(send);
    wires[0].expect("225.1.2.3", 10);
    wires[1].expect("225.1.2.3", 10);
    let _three = UdpRx::join(&star.rcv, "eth3", "225.1.2.3:5000");
    eventually("joined upstream", 1, || joined(&router, "in").len());
    let _two = UdpRx::join(&star.rcv, "eth2", "225.1.2.3:5000");
    eventually("two members", 2, || members(&router).len());
    (10..30).for_each(send);
    wires[0].expect("225.1.2.3", 30);
    // `out2` gets each packet once, although both route and member select it; the route's TTL
    // applies.
    let both = wires[1].expect("225.1.2.3", 30);
    assert!(both.iter().all(|s| s.ttl == 9));
    let learned = wires[2].expect("225.1.2.3", 20);
    assert!(learned.iter().all(|s| s.ttl == 8));
    router.expect_routed("static", "out2", 30);
    router.expect_routed("p", "out3", 20);
    router.expect_routed("p", "out2", 0);
}

fn standby_upstream_takes_over(lab: &Lab) {
    let star = Star::v4(lab, 2);
    // `out2` is the second upstream: its far end sends the same stream.
    let extra = "takeover = \"2s\"\nupward = false\n";
    let router = Router::start(lab, &star.rtr, &proxy(&["in", "out2"], &["out1"], extra));
    let _rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    eventually("joined on both", true, || {
        joined(&router, "in").len() == 1 && joined(&router, "out2").len() == 1
    });
    let wire = Capture::new(&star.rcv, "eth1");
    let one = Injector::new(&star.src, "eth0");
    let two = Injector::new(&star.rcv, "eth2");
    let frame = |n: u32| Udp::new("10.0.0.10:9", "225.1.2.3:5000", n.to_be_bytes()).frame();
    let mut silent = Instant::now();
    for n in 0..20 {
        silent = Instant::now();
        one.send(&frame(n));
        eventually("the first upstream is active", n as usize + 1, || {
            wire.to("225.1.2.3").len()
        });
        two.send(&frame(n));
    }
    router.expect_dropped("standby", "out2", 20);
    // The first upstream falls silent: the second takes over within the configured time.
    let mut n = 20;
    while wire.to("225.1.2.3").len() == 20 {
        assert!(
            silent.elapsed() < TIMEOUT,
            "the second upstream did not take over"
        );
        two.send(&frame(n));
        n += 1;
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(
        silent.elapsed() >= Duration::from_millis(1700),
        "{:?}",
        silent.elapsed()
    );
    (n..n + 20).for_each(|n| two.send(&frame(n)));
    let first = sequence_number(wire.to("225.1.2.3")[20].payload());
    eventually("every packet from then on", 20 + n + 20 - first, || {
        wire.to("225.1.2.3").len() as u32
    });
    one.send(&frame(0));
    router.expect_dropped("standby", "in", 1);
}

fn members_survive_actor_panics(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start_with(
        lab,
        &star.rtr,
        &proxy(&["in"], &["out1"], ""),
        &[("MCASTOR_TEST_PANIC", "1")],
    );
    let _rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    eventually("a member", 1, || members(&router).len());
    let wire = Capture::new(&star.rcv, "eth1");
    let flow = NumberedStream::start(&star.src, "eth0", "10.0.0.10:9", "225.1.2.3:5000", 1000);
    for actor in ["membership", "routing", "joins", "links"] {
        flow.wait_for_more(100);
        router
            .control()
            .expect_ok(&serde_json::json!({ "panic": actor }));
        eventually("rebuilt", 1.0, || {
            router.metric("mcastor_actor_restarts_total", &[("actor", actor)])
        });
        eventually("a member again", 1, || members(&router).len());
    }
    flow.wait_for_more(2000);
    let sent = flow.finish();
    eventually("no packet is lost", sent as usize, || {
        wire.to("225.1.2.3").len()
    });
}

/// Without a querier, hosts do not repeat their reports.
fn members_without_querier_survive_membership_panic(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let rule = proxy(&["in"], &["out1"], "querier = \"off\"\n")
        .replace("query_interval = \"2s\"", "query_interval = \"60s\"");
    let router = Router::start_with(lab, &star.rtr, &rule, &[("MCASTOR_TEST_PANIC", "1")]);
    let _rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    eventually("a member", 1, || members(&router).len());
    let wire = Capture::new(&star.rcv, "eth1");
    let flow = NumberedStream::start(&star.src, "eth0", "10.0.0.10:9", "225.1.2.3:5000", 1000);
    let panic = serde_json::json!({ "panic": "membership" });
    router.control().expect_ok(&panic);
    eventually("rebuilt", 1.0, || {
        router.metric("mcastor_actor_restarts_total", &[("actor", "membership")])
    });
    // Longer than the time that queried hosts are given: the response interval and one second.
    flow.wait_for_more(3000);
    let sent = flow.finish();
    eventually("no packet is lost", sent as usize, || {
        wire.to("225.1.2.3").len()
    });
}

/// Two hosts are behind one bridge of the router; only one is a member.
fn snooping_bridge_delivers_only_to_members(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let hosts: Vec<Ns> = ["h1", "h2"].iter().map(|h| lab.ns(h)).collect();
    star.rtr.ip_batch(
        "link add br0 type bridge\nlink set br0 type bridge mcast_snooping 1\n\
         link set br0 up\naddress add 10.0.9.1/24 dev br0\naddress add fd00:9::1/64 dev br0 nodad\n",
    );
    for (n, host) in hosts.iter().enumerate() {
        let host_number = 10 + n;
        let v4 = format!("10.0.9.{host_number}/24");
        let v6 = format!("fd00:9::{host_number}/64");
        connect_to_bridge(&star.rtr, n, host, &[&v4, &v6]);
    }
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["br*"], ""));
    let groups = ["225.1.2.3", "ff0e::8000:1"];
    let dst = ["225.1.2.3:5000", "[ff0e::8000:1]:5000"];
    let src = ["10.0.0.10:9", "[fd00::10]:9"];
    let listening: Vec<UdpRx> = dst
        .iter()
        .map(|d| UdpRx::join(&hosts[0], "eth0", d))
        .collect();
    eventually("members of both", 2, || members(&router).len());
    eventually("the bridge has both groups in its table", true, || {
        let out = star.rtr.output("bridge", &["mdb", "show", "dev", "br0"]);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        groups.iter().all(|g| text.contains(g)) && text.contains("p0")
    });
    let inject = Injector::new(&star.src, "eth0");
    let send = |n: u32| {
        for i in 0..2 {
            inject.send(&Udp::new(src[i], dst[i], n.to_be_bytes()).frame());
        }
    };
    // The bridge floods until hosts have had time to answer the first query.
    let floods = Capture::new(&hosts[1], "eth0");
    let mut probes = 0;
    eventually("the bridge stops flooding", true, || {
        let before = groups.map(|g| floods.to(g).len());
        send(0);
        probes += 1;
        // The bridge sends its copies at the same time.
        wait_until(TIMEOUT, || listening.iter().all(|rx| rx.count() >= probes));
        groups.map(|g| floods.to(g).len()) == before
    });
    let other = Capture::new(&hosts[1], "eth0");
    (0..50).for_each(send);
    for rx in &listening {
        rx.expect(probes + 50);
    }
    for group in groups {
        assert_eq!(
            other.to(group).len(),
            0,
            "{group} at the port without a member"
        );
    }
    let log = router.program.stderr();
    assert!(log.contains("stop flooding"), "{log}");
    // A host behind the bridge also sends upstream.
    let up = Capture::new(&star.src, "eth0");
    UdpTx::new(&hosts[1], "eth0", "225.7.7.7:5000").send("hello");
    up.expect("225.7.7.7", 1);
}
