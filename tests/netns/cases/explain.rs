//! `mcastor explain`: the answer is compared with what then happens to a packet.

use serde_json::Value;

use super::{cases, route};
use crate::lab::proxy::{joined, known_groups, proxy};
use crate::lab::{Capture, GroupMember, Injector, Lab, Router, Star, Udp, eventually};

cases!("explain":
    explanation_matches_forwarding,
    ingress_that_is_down_is_named,
    members_and_seen_packets_are_listed,
    refused_reports_and_queriers_are_listed,
    last_dropped_packet_is_explained,
    errors_name_the_remedy,
);

fn explain(router: &Router, words: &str) -> (Value, Option<i32>) {
    let out = router.try_run(&format!("explain --json {words}"));
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    let answer = serde_json::from_slice(&out.stdout);
    (
        answer.unwrap_or_else(|e| panic!("{e}: {stderr}")),
        out.status.code(),
    )
}

/// A decision about an interface that is down says that no packet arrives there.
fn ingress_that_is_down_is_named(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(
        lab,
        &star.rtr,
        &route("r", "in", "", "225.1.2.3", &["out1"], ""),
    );
    let is_down = || explain(&router, "10.0.0.10 225.1.2.3").0["interfaces"][0]["is_down"].clone();
    assert_eq!(is_down(), false);
    star.src.ip("link set eth0 down");
    eventually("the interface is down", Value::from(true), is_down);
    let printed = router.try_run("explain 10.0.0.10 225.1.2.3").stdout;
    let printed = String::from_utf8_lossy(&printed).into_owned();
    assert!(printed.contains("no packet arrives on it now"), "{printed}");
    let refused = router.try_run("show flows --iif nope").stderr;
    let refused = String::from_utf8_lossy(&refused).into_owned();
    assert!(refused.contains("interfaces that receive: in"), "{refused}");
    let refused = router.get("/api/v1/flows?iif=nope").expect("an answer");
    assert_eq!(refused.status, 400, "{}", refused.body);
    let unknown = router.get("/api/v1/nope").expect("an answer");
    assert!(
        unknown.body.contains(" /api/v1/explain"),
        "{}",
        unknown.body
    );
}

/// Packets that routes with different rules forward, refuse and fragment. For each, the egresses
/// and the reasons of the explanation are those of the captures and counters.
fn explanation_matches_forwarding(lab: &Lab) {
    let star = Star::v4(lab, 3);
    star.rtr.ip("link set out2 mtu 600");
    let toml = [
        route(
            "cams",
            "in",
            "",
            "225.1.2.0/24",
            &["out1", "out2", "out3"],
            "",
        ),
        route(
            "less",
            "in",
            "",
            "225.1.0.0/16",
            &["out1"],
            "except_sources = [\"10.0.0.66\"]\n",
        ),
        route(
            "new",
            "in",
            "",
            "225.2.0.0/16",
            &["out1"],
            "rewrite = { group = \"226.2.0.0/16\" }\n",
        ),
    ];
    let threshold = "[[interface]]\nname = \"out3\"\nttl_threshold = 20\n";
    let router = Router::start(lab, &star.rtr, &(toml.concat() + threshold));
    let inject = Injector::new(&star.src, "eth0");
    let captures = ["out1", "out2", "out3"]
        .map(|out| (out, Capture::new(&star.rcv, &out.replace("out", "eth"))));
    let mut sent = Vec::new();
    for (number, (source, group, ttl, size)) in [
        ("10.0.0.10", "225.1.2.3", 64, 100),
        ("10.0.0.10", "225.1.2.4", 9, 100),
        ("10.0.0.10", "225.1.2.5", 64, 1344),
        ("10.0.0.10", "225.1.2.6", 1, 100),
        ("10.0.0.10", "225.1.9.1", 64, 100),
        ("10.0.0.66", "225.1.9.2", 64, 100),
        ("10.0.0.10", "225.2.1.1", 64, 100),
        ("10.0.0.10", "225.9.9.9", 64, 100),
        ("127.0.0.5", "225.1.2.7", 64, 100),
    ]
    .into_iter()
    .enumerate()
    {
        let words = format!("--iif in --ttl {ttl} --size {size} {source} {group}:5000");
        let (answer, code) = explain(&router, &words);
        let ingress = &answer["interfaces"][0];
        let forwarded = ingress["forwarded"].as_bool().expect("a boolean");
        assert_eq!(code, Some(if forwarded { 0 } else { 3 }), "{words}");
        let drops = |iface: &str, reason: &str| {
            let labels = [("iface", iface), ("reason", reason)];
            router.metric("mcastor_dropped_packets_total", &labels) as u64
        };
        let before = ingress["reason"].as_str().map(|reason| drops("in", reason));
        let payload = vec![number as u8; size - 28];
        inject.send(
            &Udp::new(&format!("{source}:9"), &format!("{group}:5000"), payload)
                .ttl(ttl)
                .frame(),
        );
        if let (Some(reason), Some(before)) = (ingress["reason"].as_str(), before) {
            eventually(&format!("{words}: {reason}"), before + 1, || {
                drops("in", reason)
            });
        }
        let egresses = ingress["egresses"].as_array().expect("a list").clone();
        for (out, capture) in &captures {
            let egress = egresses.iter().find(|egress| egress["oif"] == *out);
            let packets = egress.map_or(0, |egress| egress["packets"].as_u64().expect("a number"));
            let group = match group.strip_prefix("225.2.") {
                Some(rest) => format!("226.2.{rest}"),
                None => group.to_owned(),
            };
            let seen = capture.expect(&group, packets as usize);
            if let (Some(packet), Some(egress)) = (seen.first(), egress) {
                assert_eq!(
                    u64::from(packet.ttl),
                    egress["ttl"].as_u64().expect("a TTL"),
                    "{words}"
                );
            }
        }
        sent.push((words, ingress["reason"].clone(), egresses));
    }
    let reasons: Vec<&str> = sent
        .iter()
        .filter_map(|(_, reason, _)| reason.as_str())
        .collect();
    assert_eq!(
        reasons,
        ["ttl_expired", "source_excepted", "no_route", "bad_source"]
    );
    let refused = |at: usize| {
        let egresses = sent[at].2.iter();
        let refused: Vec<String> = egresses
            .filter_map(|egress| Some(format!("{} {}", egress["oif"], egress["reason"].as_str()?)))
            .collect();
        refused
    };
    assert_eq!(refused(0), Vec::<String>::new());
    assert_eq!(refused(1), ["\"out3\" ttl_threshold"]);
    assert_eq!(sent[2].2[1]["packets"], 3);
    assert_eq!(sent[6].2[0]["rewrite"]["group"], "226.2.0.0/16");
}

fn members_and_seen_packets_are_listed(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    let words = "--iif in 10.0.0.10 239.1.2.3";
    let (answer, code) = explain(&router, words);
    assert_eq!(code, Some(3));
    assert_eq!(answer["interfaces"][0]["reason"], "no_route");
    assert_eq!(answer["groups"], Value::Array(Vec::new()));
    let _member = GroupMember::any_source(&star.rcv, "eth1", "239.1.2.3");
    eventually("the member", 1, || known_groups(&router));
    eventually("the join upstream", 1, || joined(&router, "in").len());
    let capture = Capture::new(&star.rcv, "eth1");
    Injector::new(&star.src, "eth0").send(&Udp::new("10.0.0.10:9", "239.1.2.3:5000", "x").frame());
    capture.expect("239.1.2.3", 1);
    let (answer, code) = explain(&router, words);
    assert_eq!(code, Some(0));
    let roles: Vec<&str> = answer["groups"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|group| group["role"].as_str())
        .collect();
    assert_eq!(roles.len(), 2, "{roles:?}");
    assert_eq!(answer["seen"][0]["packets"], 1);
    // An explanation is no packet.
    router.expect_metric(
        "mcastor_interface_received_packets_total",
        &[("iface", "in")],
        1,
    );
    let printed = router.run(&format!("explain {words}"));
    assert!(printed.contains("-> out1: leaves with TTL 63"), "{printed}");
}

fn refused_reports_and_queriers_are_listed(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let extra = "deny_groups = [\"239.7.0.0/16\"]\n";
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], extra));
    let _denied = GroupMember::any_source(&star.rcv, "eth1", "239.7.1.1");
    let words = "--iif in 10.0.0.10 239.7.1.1";
    let refused = || {
        explain(&router, words).0["refused"]
            .as_array()
            .expect("a list")
            .clone()
    };
    eventually("the refusal", false, || refused().is_empty());
    let refused = &refused()[0];
    assert_eq!(
        (&refused["interface"], &refused["reason"]),
        (&"out1".into(), &"group_denied".into())
    );
    assert_eq!(refused["last_sender"], "10.0.1.10");
    let (answer, code) = explain(&router, words);
    assert_eq!(code, Some(3));
    let querier = &answer["queriers"][0];
    assert_eq!(
        (&querier["interface"], &querier["us"]),
        (&"out1".into(), &true.into())
    );
    let printed = router.try_run(&format!("explain {words}"));
    let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
    for expected in [
        "The querier on out1 is this router, 10.0.1.1.",
        "refused as group_denied",
    ] {
        assert!(printed.contains(expected), "{printed}");
    }
    assert!(printed.lines().all(|line| line.len() <= 80), "{printed}");
    // Another group has none.
    let (answer, _) = explain(&router, "--iif in 10.0.0.10 239.8.1.1");
    assert_eq!(answer["refused"], Value::Array(Vec::new()));
}

fn last_dropped_packet_is_explained(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(
        lab,
        &star.rtr,
        &route("r", "in", "", "225.1.2.3", &["out1"], ""),
    );
    let inject = Injector::new(&star.src, "eth0");
    let send = |group: &str, ttl: u8| {
        inject.send(
            &Udp::new("10.0.0.10:9", &format!("{group}:5004"), [0; 72])
                .ttl(ttl)
                .frame(),
        );
    };
    let drops = |reason: &str, count: usize| {
        let labels = [("iface", "in"), ("reason", reason)];
        router.expect_metric("mcastor_dropped_packets_total", &labels, count as u64);
    };
    send("225.1.2.3", 1);
    drops("ttl_expired", 1);
    send("239.9.9.9", 7);
    let is_explained = || explain(&router, "--last no_route").0["packet"]["group"] == "239.9.9.9";
    eventually("the last packet", true, is_explained);
    let (answer, code) = explain(&router, "--last ttl_expired");
    assert_eq!(code, Some(3));
    let packet = serde_json::json!({
        "source": "10.0.0.10", "group": "225.1.2.3", "port": 5004, "size": 100, "ttl": 1
    });
    assert_eq!(answer["packet"], packet);
    assert_eq!(answer["interfaces"][0]["reason"], "ttl_expired");
    assert_eq!(answer["drops"][0]["packets"], 1);

    let path = "/api/v1/explain?source=10.0.0.10&group=225.1.2.3&ttl=1&size=100&port=5004";
    let over_http = router.get(path).expect("an answer");
    let over_http: Value = serde_json::from_str(&over_http.body).expect("JSON");
    assert_eq!(over_http["explain"]["interfaces"], answer["interfaces"]);
    for (arguments, expected) in [
        ("source=10.0.0.10&group=10.0.0.9", "not a multicast group"),
        (
            "source=10.0.0.10&group=225.1.2.3&iif=eth9",
            "interfaces that receive: in",
        ),
        ("source=10.0.0.10", "missing field"),
    ] {
        let refused = router
            .get(&format!("/api/v1/explain?{arguments}"))
            .expect("an answer");
        assert_eq!(refused.status, 400, "{}", refused.body);
        assert!(refused.body.contains(expected), "{}", refused.body);
    }
    let none = router.try_run("explain --last too_big");
    let printed = String::from_utf8_lossy(&none.stderr).into_owned();
    assert!(
        printed.contains("no packet with an address was dropped as too_big"),
        "{printed}"
    );
}

fn errors_name_the_remedy(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(
        lab,
        &star.rtr,
        &route("r", "in", "", "225.1.2.3", &["out1"], ""),
    );
    for (words, expected) in [
        ("10.0.0.10 10.0.0.1", "10.0.0.1 is not a multicast group"),
        ("10.0.0.10 ff3e::1", "different IP versions"),
        (
            "--iif eth7 10.0.0.10 225.1.2.3",
            "interfaces that receive: in",
        ),
        ("--size 20 10.0.0.10 225.1.2.3", "at least 28 bytes"),
        ("10.0.0.10 225.1.2.3:x", "write 239.1.2.3"),
    ] {
        let out = router.try_run(&format!("explain {words}"));
        let printed = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(printed.contains(expected), "{words}: {printed}");
        assert!(matches!(out.status.code(), Some(1 | 2)), "{words}");
    }
}
