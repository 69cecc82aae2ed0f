//! TTL and hop limit: policies and thresholds.

use super::{cases, route, star_v4, star_v6};
use crate::lab::{Capture, Injector, Lab, Router, Star, Udp, eventually, wait_until};

cases!("ttl":
    ttl_is_decremented_v4,
    hop_limit_is_decremented_v6,
    keep_and_set_policies_v4,
    keep_and_set_policies_v6,
    ttl_must_exceed_the_threshold,
    only_configured_thresholds_apply_to_keep_and_set,
    expired_ttl_is_logged_once_for_each_route,
);

/// Streams of two routes arrive with TTL 1, one of them only after packets with a higher TTL. A
/// third route sets the TTL.
fn expired_ttl_is_logged_once_for_each_route(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let settings = route("first", "in", "", "225.1.2.0/24", &["out1"], "")
        + &route("second", "in", "", "225.1.3.1", &["out1"], "")
        + &route(
            "third",
            "in",
            "",
            "225.1.4.1",
            &["out1"],
            "ttl = { set = 8 }\n",
        );
    let router = Router::start(lab, &star.rtr, &settings);
    let inject = Injector::new(&star.src, "eth0");
    let send = |group: &str, ttl: u8| {
        inject.send(
            &Udp::new("10.0.0.10:9", &format!("{group}:5000"), "x")
                .ttl(ttl)
                .frame(),
        );
    };
    for n in 1..=10 {
        send(&format!("225.1.2.{n}"), 1);
        send("225.1.4.1", 1);
    }
    send("225.1.3.1", 5);
    send("225.1.3.1", 1);
    router.expect_dropped("ttl_expired", "in", 11);
    let lines = |route: &str| {
        let log = router.program.stderr();
        let lines = log.lines().filter(|l| l.contains("with TTL 1"));
        lines
            .filter(|l| l.contains(route) && l.contains("ttl = { set = N }"))
            .count()
    };
    eventually("one line for each route", (1, 1), || {
        (lines("first"), lines("second"))
    });
    // Flows are examined once a second.
    send("225.1.2.99", 1);
    let logged = || (lines("first"), lines("second"), lines("third"));
    let more = wait_until(std::time::Duration::from_millis(2500), || {
        logged() != (1, 1, 0)
    });
    assert!(!more, "{:?}", logged());
    let shown = router.run("show flows --dropped");
    assert!(
        shown.contains("225.1.2.99") && shown.contains("(dropped)"),
        "{shown}"
    );
    assert!(!router.run("show flows").contains("225.1.2.99"));
    let flows = router
        .get("/api/v1/flows?dropped=true&group=225.1.2.99")
        .expect("an answer");
    assert!(flows.body.contains("\"dropped\":true"), "{}", flows.body);
}

/// Sends one packet for each TTL in `sent` and checks the TTLs of the packets that leave `iface`.
fn assert_ttls(star: &Star, iface: &str, group: &str, sent: &[u8], expected: &[u8]) {
    let capture = Capture::new(&star.rcv, iface);
    let inject = Injector::new(&star.src, "eth0");
    let (from, to) = if group.contains(':') {
        ("[fd00:0::10]:9".into(), format!("[{group}]:5000"))
    } else {
        (String::from("10.0.0.10:9"), format!("{group}:5000"))
    };
    for ttl in sent {
        inject.send(
            &Udp::new(&from, &to, format!("sent with {ttl}"))
                .ttl(*ttl)
                .frame(),
        );
    }
    let seen = capture.expect(group, expected.len());
    assert_eq!(
        seen.iter().map(|s| s.ttl).collect::<Vec<_>>(),
        expected,
        "{iface} {group}"
    );
    assert!(seen.iter().all(|s| s.header_ok && s.udp_ok()), "{seen:x?}");
}

fn ttl_is_decremented_v4(lab: &Lab) {
    let (star, router) = star_v4(lab, 1);
    assert_ttls(
        &star,
        "eth1",
        "225.1.2.3",
        &[1, 0, 255, 2, 1, 3],
        &[254, 1, 2],
    );
    router.expect_dropped("ttl_expired", "in", 3);
    router.expect_routed("r", "out1", 3);
}

fn hop_limit_is_decremented_v6(lab: &Lab) {
    let (star, router) = star_v6(lab, 1);
    assert_ttls(
        &star,
        "eth1",
        "ff3e::1:2",
        &[1, 0, 255, 2, 1, 3],
        &[254, 1, 2],
    );
    router.expect_dropped("ttl_expired", "in", 3);
    router.expect_routed("r", "out1", 3);
}

fn keep_and_set_policies_v4(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let toml = route("k", "in", "", "225.1.2.3", &["out1"], "ttl = \"keep\"\n")
        + &route("s", "in", "", "225.1.2.4", &["out1"], "ttl = { set = 8 }\n")
        + &route(
            "d",
            "in",
            "",
            "225.1.2.5",
            &["out1"],
            "ttl = \"decrement\"\n",
        );
    let router = Router::start(lab, &star.rtr, &toml);
    assert_ttls(&star, "eth1", "225.1.2.3", &[1, 2, 255], &[1, 2, 255]);
    assert_ttls(&star, "eth1", "225.1.2.4", &[1, 8, 255], &[8, 8, 8]);
    assert_ttls(&star, "eth1", "225.1.2.5", &[1, 8, 255], &[7, 254]);
    router.expect_dropped("ttl_expired", "in", 1);
}

fn keep_and_set_policies_v6(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let toml = route("k", "in", "", "ff3e::3", &["out1"], "ttl = \"keep\"\n")
        + &route("s", "in", "", "ff3e::4", &["out1"], "ttl = { set = 8 }\n");
    let router = Router::start(lab, &star.rtr, &toml);
    assert_ttls(&star, "eth1", "ff3e::3", &[1, 2, 255], &[1, 2, 255]);
    assert_ttls(&star, "eth1", "ff3e::4", &[1, 8, 255], &[8, 8, 8]);
    router.expect_dropped("ttl_expired", "in", 0);
}

fn ttl_must_exceed_the_threshold(lab: &Lab) {
    let star = Star::dual(lab, 2);
    let toml = String::from("[[interface]]\nname = \"out1\"\nttl_threshold = 3\n")
        + &route("r", "in", "", "225.1.2.3", &["out1", "out2"], "")
        + &route("r6", "in", "", "ff3e::1:2", &["out1", "out2"], "");
    let router = Router::start(lab, &star.rtr, &toml);
    assert_ttls(&star, "eth1", "225.1.2.3", &[1, 2, 3, 4, 64], &[3, 63]);
    // 2 and 3 are dropped at out1; 1 expires before the egresses are checked.
    router.expect_metric(
        "mcastor_dropped_packets_total",
        &[("reason", "ttl_threshold")],
        2,
    );
    router.expect_routed("r", "out2", 4);
    router.expect_dropped("ttl_expired", "in", 1);
    assert_ttls(&star, "eth1", "ff3e::1:2", &[3, 4], &[3]);
    router.expect_routed("r6", "out2", 2);
}

fn only_configured_thresholds_apply_to_keep_and_set(lab: &Lab) {
    // The loop guard is off, because it would drop the repeated packets.
    let star = Star::v4(lab, 3);
    let toml = String::from("[[interface]]\nname = \"out1\"\nttl_threshold = 1\n")
        + "[[interface]]\nname = \"out2\"\nttl_threshold = 5\n"
        + &route(
            "k",
            "in",
            "",
            "225.1.2.3",
            &["out*"],
            "ttl = \"keep\"\nloop_guard = false\n",
        )
        + &route(
            "s",
            "in",
            "",
            "225.1.2.4",
            &["out*"],
            "ttl = { set = 8 }\nloop_guard = false\n",
        );
    let router = Router::start(lab, &star.rtr, &toml);
    assert_ttls(&star, "eth1", "225.1.2.3", &[1, 2, 6], &[2, 6]);
    assert_ttls(&star, "eth2", "225.1.2.3", &[1, 5, 6], &[6]);
    assert_ttls(&star, "eth3", "225.1.2.3", &[1, 2], &[1, 2]);
    assert_ttls(&star, "eth1", "225.1.2.4", &[1, 2, 6], &[8, 8]);
    assert_ttls(&star, "eth2", "225.1.2.4", &[1, 5, 6], &[8]);
    assert_ttls(&star, "eth3", "225.1.2.4", &[1, 2], &[8, 8]);
    router.expect_dropped("ttl_expired", "in", 0);
}
