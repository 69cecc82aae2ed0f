//! Flows: their limit against spoofed sources, their expiry, and sources that move.

use std::time::Duration;

use super::{cases, route};
use crate::lab::{
    Capture, Injector, Lab, NumberedStream, Router, Star, Udp, UdpRx, assert_increasing,
    eventually, sequence_number, wait_until,
};

cases!("flow_limits":
    spoofed_sources_stay_within_flow_limit,
    idle_flows_expire_and_busy_flows_remain,
    source_moving_to_another_ingress_is_forwarded,
);

const DST: &str = "225.1.2.3:5000";

fn flow_ends(router: &Router, reason: &str) -> u64 {
    router.metric("mcastor_flow_ends_total", &[("reason", reason)]) as u64
}

fn spoofed_sources_stay_within_flow_limit(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let toml = route("r", "in", "", "225.0.0.0/8", &["out1"], "") + "[limits]\nflows = 1000\n";
    let router = Router::start(lab, &star.rtr, &toml);
    router.expect_metric("mcastor_flow_limit", &[], 1000);
    let rx = UdpRx::join(&star.rcv, "eth1", DST);
    let traffic = NumberedStream::start(&star.src, "eth0", "10.0.0.10:9", DST, 500);
    let inject = Injector::new(&star.src, "eth0");
    let rss_before = router.program.rss();
    let mut most = 0;
    for n in 0..20_000u32 {
        let src = format!("10.{}.{}.{}:9", 1 + n / 62_500, n / 250 % 250, 1 + n % 250);
        inject.send(&Udp::new(&src, "225.9.9.9:5000", "x").frame());
        if n % 20 == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
        if n % 500 == 0 {
            most = most.max(router.metric("mcastor_flows", &[]) as u64);
        }
    }
    let sent = traffic.finish();
    let got: Vec<u32> = rx
        .expect(sent as usize)
        .iter()
        .map(|p| sequence_number(p))
        .collect();
    assert_increasing(&got);
    router.expect_routed("r", "out1", 20_000 + u64::from(sent));
    eventually("evicted flows", 19_001, || flow_ends(&router, "evicted"));
    router.expect_metric("mcastor_flows", &[], 1000);
    assert!(most <= 1000, "{most} flows");
    let flows = router.control().show("flows");
    let legitimate = flows.iter().find(|f| f["source"] == "10.0.0.10");
    assert_eq!(flows.len(), 1000);
    let carried = legitimate.map(|f| f["packets"].as_u64());
    assert_eq!(
        carried,
        Some(Some(sent.into())),
        "the flow was evicted: {legitimate:?}"
    );
    let rss_after = router.program.rss();
    println!(
        "20000 spoofed sources: {} kB more",
        rss_after.saturating_sub(rss_before) / 1024
    );
    assert!(
        rss_after < rss_before + (16 << 20),
        "{rss_before} to {rss_after} bytes"
    );
}

fn idle_flows_expire_and_busy_flows_remain(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let toml = |idle: u32| {
        route("r", "in", "", "225.0.0.0/8", &["out1"], "")
            + &format!("[limits]\nflow_idle = {idle}\n")
    };
    let router = Router::start(lab, &star.rtr, &toml(1));
    let rx = UdpRx::join(&star.rcv, "eth1", DST);
    let traffic = NumberedStream::start(&star.src, "eth0", "10.0.0.10:9", DST, 100);
    let inject = Injector::new(&star.src, "eth0");
    let send_from_nine = |group: &str| {
        for n in 1..=9 {
            let src = format!("10.0.1.{n}:9");
            inject.send(&Udp::new(&src, group, "x").frame());
        }
    };
    send_from_nine("225.9.9.9:5000");
    eventually("ten flows", true, || {
        router.control().show("flows").len() == 10
    });
    eventually("nine flows expired", 9, || flow_ends(&router, "idle"));
    let flows = router.control().show("flows");
    assert!(
        flows.len() == 1 && flows[0]["source"] == "10.0.0.10",
        "{flows:?}"
    );
    router.write_settings(&toml(3600));
    router.run("reload");
    send_from_nine("225.9.9.8:5000");
    let stays = !wait_until(Duration::from_secs(3), || flow_ends(&router, "idle") > 9);
    assert!(stays, "flows expired before an hour");
    assert_eq!(router.control().show("flows").len(), 10);
    rx.expect(traffic.finish() as usize);
    assert_eq!(flow_ends(&router, "evicted"), 0);
}

/// Packets of one source arrive alternately on two interfaces, ten at a time.
fn source_moving_to_another_ingress_is_forwarded(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let extra = "ingress = \"all\"\n";
    let toml = route("r", "in", "", "225.1.2.3", &["out1"], extra)
        + &route("moved", "out2", "", "225.1.2.3", &["out1"], extra);
    let router = Router::start(lab, &star.rtr, &toml);
    let capture = Capture::new(&star.rcv, "eth1");
    let injectors = [
        Injector::new(&star.src, "eth0"),
        Injector::new(&star.rcv, "eth2"),
    ];
    for n in 0..100u32 {
        injectors[n as usize / 10 % 2].send(&Udp::new("10.0.0.10:9", DST, n.to_be_bytes()).frame());
        // Packets that arrive on two interfaces are not ordered relative to each other.
        capture.expect("225.1.2.3", n as usize + 1);
    }
    router.expect_routed("r", "out1", 50);
    router.expect_routed("moved", "out1", 50);
    let flows = router.control().show("flows");
    let mut iifs: Vec<_> = flows.iter().map(|f| f["iif"].to_string()).collect();
    iifs.sort();
    assert_eq!(iifs, ["\"in\"", "\"out2\""]);
}
