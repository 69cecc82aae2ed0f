//! TTL and hop limit: policies and thresholds.

use super::{cases, route};
use crate::lab::{Capture, Injector, Lab, Router, Star, Udp};

cases!("ttl":
    decrement_v4,
    decrement_v6,
    keep_and_set_v4,
    keep_and_set_v6,
    threshold_means_more_than,
    only_written_thresholds_stop_keep_and_set,
);

/// What leaves, per TTL on arrival: the TTLs seen at `iface`.
fn leaves(star: &Star, iface: &str, group: &str, arrive: &[u8], want: &[u8]) {
    let capture = Capture::new(&star.rcv, iface);
    let inject = Injector::new(&star.src, "eth0");
    let (from, to) = if group.contains(':') {
        ("[fd00:0::10]:9".into(), format!("[{group}]:5000"))
    } else {
        (String::from("10.0.0.10:9"), format!("{group}:5000"))
    };
    for ttl in arrive {
        inject.send(
            &Udp::new(&from, &to, format!("came with {ttl}"))
                .ttl(*ttl)
                .frame(),
        );
    }
    let seen = capture.expect(group, want.len());
    assert_eq!(
        seen.iter().map(|s| s.ttl).collect::<Vec<_>>(),
        want,
        "{iface} {group}"
    );
    assert!(seen.iter().all(|s| s.header_ok && s.udp_ok()), "{seen:x?}");
}

fn decrement_v4(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(
        lab,
        &star.rtr,
        &route("r", "in", "", "225.1.2.3", &["out1"], ""),
    );
    leaves(
        &star,
        "eth1",
        "225.1.2.3",
        &[1, 0, 255, 2, 1, 3],
        &[254, 1, 2],
    );
    router.expect_dropped("ttl_expired", "in", 3);
    router.expect_routed("r", "out1", 3);
}

fn decrement_v6(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let router = Router::start(
        lab,
        &star.rtr,
        &route("r", "in", "", "ff3e::1:2", &["out1"], ""),
    );
    leaves(
        &star,
        "eth1",
        "ff3e::1:2",
        &[1, 0, 255, 2, 1, 3],
        &[254, 1, 2],
    );
    router.expect_dropped("ttl_expired", "in", 3);
    router.expect_routed("r", "out1", 3);
}

fn keep_and_set_v4(lab: &Lab) {
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
    leaves(&star, "eth1", "225.1.2.3", &[1, 2, 255], &[1, 2, 255]);
    leaves(&star, "eth1", "225.1.2.4", &[1, 8, 255], &[8, 8, 8]);
    leaves(&star, "eth1", "225.1.2.5", &[1, 8, 255], &[7, 254]);
    router.expect_dropped("ttl_expired", "in", 1);
}

fn keep_and_set_v6(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let toml = route("k", "in", "", "ff3e::3", &["out1"], "ttl = \"keep\"\n")
        + &route("s", "in", "", "ff3e::4", &["out1"], "ttl = { set = 8 }\n");
    let router = Router::start(lab, &star.rtr, &toml);
    leaves(&star, "eth1", "ff3e::3", &[1, 2, 255], &[1, 2, 255]);
    leaves(&star, "eth1", "ff3e::4", &[1, 8, 255], &[8, 8, 8]);
    router.expect_dropped("ttl_expired", "in", 0);
}

fn threshold_means_more_than(lab: &Lab) {
    let star = Star::dual(lab, 2);
    let toml = String::from("[[interface]]\nname = \"out1\"\nttl_threshold = 3\n")
        + &route("r", "in", "", "225.1.2.3", &["out1", "out2"], "")
        + &route("r6", "in", "", "ff3e::1:2", &["out1", "out2"], "");
    let router = Router::start(lab, &star.rtr, &toml);
    leaves(&star, "eth1", "225.1.2.3", &[1, 2, 3, 4, 64], &[3, 63]);
    // 2 and 3 at out1; 1 expired before any egress was asked.
    router.expect_metric(
        "mcastor_dropped_packets_total",
        &[("reason", "ttl_threshold")],
        2,
    );
    router.expect_routed("r", "out2", 4);
    router.expect_dropped("ttl_expired", "in", 1);
    leaves(&star, "eth1", "ff3e::1:2", &[3, 4], &[3]);
    router.expect_routed("r6", "out2", 2);
}

fn only_written_thresholds_stop_keep_and_set(lab: &Lab) {
    // The same packets again and again, at once: without the guard, which would stop them.
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
    leaves(&star, "eth1", "225.1.2.3", &[1, 2, 6], &[2, 6]);
    leaves(&star, "eth2", "225.1.2.3", &[1, 5, 6], &[6]);
    leaves(&star, "eth3", "225.1.2.3", &[1, 2], &[1, 2]);
    leaves(&star, "eth1", "225.1.2.4", &[1, 2, 6], &[8, 8]);
    leaves(&star, "eth2", "225.1.2.4", &[1, 5, 6], &[8]);
    leaves(&star, "eth3", "225.1.2.4", &[1, 2], &[8, 8]);
    router.expect_dropped("ttl_expired", "in", 0);
}
