//! Changed settings and commands, under counted traffic.

use serde_json::json;

use super::{cases, route};
use crate::lab::{
    Capture, Lab, Numbered, Router, Star, UdpRx, UdpTx, check_order, eventually, in_order, number,
};

cases!("reload":
    a_hundred_reloads_leave_an_unchanged_route_alone,
    a_bad_file_changes_nothing,
    commands_live_until_a_reload,
    what_needs_a_restart_is_said,
    changes_by_command_leave_other_routes_alone,
    soak_memory_is_flat_over_changes,
);

const GROUP: &str = "225.1.2.3";
const DST: &str = "225.1.2.3:5000";
const SRC: &str = "10.0.0.10:9";

fn steady() -> String {
    route("steady", "in", "", GROUP, &["out1"], "")
}

fn successful(router: &Router) -> u64 {
    router.metric("mcastor_config_last_reload_successful", &[]) as u64
}

fn route_names(router: &Router) -> Vec<(String, String)> {
    let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
    let shown = router.control().show("routes");
    let of = |r: &serde_json::Value| (text(&r["name"]), text(&r["origin"]));
    shown.iter().map(of).collect()
}

/// By signal and by command in turn, the file another one each time.
fn a_hundred_reloads_leave_an_unchanged_route_alone(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let mut router = Router::start(lab, &star.rtr, &steady());
    let rx = UdpRx::join(&star.rcv, "eth1", DST);
    let traffic = Numbered::start(&star.src, "eth0", SRC, DST, 2000);
    for n in 0..100 {
        // Before and after the steady one, so that it stands elsewhere in the snapshot; other
        // interfaces become ingresses and egresses and cease to be.
        let other = match n % 4 {
            0 => route("other", "in", "", &format!("225.2.0.{n}"), &["out2"], ""),
            1 => route("other", "out2", "", "225.2.0.0/16", &["in", "out1"], ""),
            2 => route("other", "in", "10.9.9.9", GROUP, &["out2"], ""),
            _ => String::new(),
        };
        let names = usize::from(!other.is_empty()) + 1;
        let toml = match n % 2 {
            0 => other + &steady(),
            _ => steady() + &other,
        };
        router.rewrite(&toml);
        if n % 2 == 0 {
            router.program.signal(libc::SIGHUP);
        } else {
            let said = router.control().must(&json!("reload"));
            assert_eq!(said["done"], format!("reloaded, routes: {names}"));
        }
        eventually("the new rules", names, || route_names(&router).len());
        traffic.more(20);
    }
    let sent = traffic.finish();
    let got: Vec<u32> = rx.expect(sent as usize).iter().map(|p| number(p)).collect();
    check_order(&got);
    router.expect_routed("steady", "out1", sent.into());
    router.expect_metric("mcastor_actor_restarts_total", &[], 0);
    println!("100 reloads: {sent} packets, none lost, doubled or out of order");
}

fn a_bad_file_changes_nothing(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let mut router = Router::start(lab, &star.rtr, &steady());
    let capture = Capture::new(&star.rcv, "eth1");
    assert_eq!(successful(&router), 1);
    let traffic = Numbered::start(&star.src, "eth0", SRC, DST, 500);
    let bad = route("steady", "in", "", "10.0.0.1", &["out1"], "");
    router.rewrite(&bad);
    let out = router.try_tell("reload");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    let config = router.config.display().to_string();
    assert!(
        out.status.code() == Some(1)
            && ["10.0.0.1", config.as_str(), "old ones stay"]
                .iter()
                .all(|w| said.contains(w)),
        "{}: {said}",
        out.status
    );
    assert_eq!(successful(&router), 0);
    router.rewrite(&steady());
    assert_eq!(router.tell("reload").trim(), "reloaded, routes: 1");
    assert_eq!(successful(&router), 1);
    router.rewrite(&bad);
    router.program.signal(libc::SIGHUP);
    eventually("the gauge after SIGHUP", 0, || successful(&router));
    std::fs::remove_file(&router.config).expect("removing the settings");
    assert!(!router.try_tell("reload").status.success());
    assert_eq!(successful(&router), 0);
    router.rewrite(&steady());
    router.program.signal(libc::SIGHUP);
    eventually("the gauge after a good file", 1, || successful(&router));
    let sent = traffic.finish();
    capture.expect(GROUP, sent as usize);
    in_order(&capture, GROUP);
}

fn commands_live_until_a_reload(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let router = Router::start(lab, &star.rtr, &steady());
    let one = Capture::new(&star.rcv, "eth1");
    let two = Capture::new(&star.rcv, "eth2");
    router.tell("add in 10.0.0.0/24 225.2.2.2 out1");
    router.tell("add in 10.0.0.0/24 225.2.2.2 out2");
    router.tell("join in 225.3.3.3");
    let pair = |n: &str, o: &str| (n.to_owned(), o.to_owned());
    let by_command = pair("in (10.0.0.0/24, 225.2.2.2)", "command");
    let both = vec![pair("steady", "settings"), by_command];
    assert_eq!(route_names(&router), both);
    let table = router.tell("show routes");
    assert!(
        table.contains("command") && table.contains("settings"),
        "{table}"
    );
    let tx = UdpTx::new(&star.src, "eth0", "225.2.2.2:5000");
    eventually("the route is in force", true, || {
        tx.send("x");
        !one.to("225.2.2.2").is_empty()
    });
    one.expect("225.2.2.2", two.to("225.2.2.2").len());
    router.tell("remove in 10.0.0.0/24 225.2.2.2 out2");
    assert_eq!(route_names(&router), both);
    // Refused, with a reason.
    for (words, reason) in [
        ("remove in 225.9.9.9", "no route"),
        ("remove in 10.0.0.0/24 225.2.2.2 out9", "out9"),
        ("add in 225.1.2.3 in", "in is where the packets come from"),
        ("add in 224.0.0.5 out1", "link-local"),
        ("add in fd00::1 225.1.1.1 out1", "different IP versions"),
        ("join in 225.3.3.3", "already joined"),
        ("leave in 225.4.4.4", "not joined"),
        ("join in 225.0.0.0/8", "more than"),
    ] {
        let out = router.try_tell(words);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(
            out.status.code() == Some(1) && said.contains(reason),
            "{words}: {}: {said}",
            out.status
        );
    }
    router.tell("reload");
    assert_eq!(route_names(&router), both[..1]);
    let groups = router.control().show("groups");
    assert_eq!(groups.len(), 1, "{groups:?}");
    assert_eq!(router.tell("flush").trim(), "flows flushed: 1");
    router.expect_metric("mcastor_flows", &[], 0);
}

fn what_needs_a_restart_is_said(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &steady());
    router.rewrite(&(steady() + "[plane]\nqdisc_bypass = true\n[limits]\nflows = 7\n"));
    let said = router.tell("reload");
    assert!(said.contains("plane") && said.contains("restart"), "{said}");
    router.expect_metric("mcastor_flow_limit", &[], 7);
}

fn changes_by_command_leave_other_routes_alone(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let router = Router::start(lab, &star.rtr, &steady());
    let rx = UdpRx::join(&star.rcv, "eth1", DST);
    let traffic = Numbered::start(&star.src, "eth0", SRC, DST, 2000);
    let mut control = router.control();
    for n in 0..200 {
        let spec = json!({ "from": "in", "group": format!("225.4.0.{}", n / 2), "to": ["out2"] });
        let what = if n % 2 == 0 { "add" } else { "remove" };
        control.must(&json!({ "change": { what: spec } }));
        traffic.more(5);
    }
    let sent = traffic.finish();
    let got: Vec<u32> = rx.expect(sent as usize).iter().map(|p| number(p)).collect();
    check_order(&got);
}

/// `MCASTOR_SOAK_CHANGES` says how many.
fn soak_memory_is_flat_over_changes(lab: &Lab) {
    let changes: u32 = std::env::var("MCASTOR_SOAK_CHANGES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(600);
    let star = Star::v4(lab, 1);
    let router = Router::start(
        lab,
        &star.rtr,
        &(steady() + &route("c", "in", "", "225.5.0.0/16", &["c*"], "")),
    );
    let capture = Capture::new(&star.rcv, "eth1");
    let traffic = Numbered::start(&star.src, "eth0", SRC, DST, 500);
    let mut control = router.control();
    // What is kept for names that were used once is bounded, but must fill up first.
    let mut settled = 0;
    let begun = std::time::Instant::now();
    for n in 0..changes {
        if n == changes / 4 {
            settled = router.program.rss();
        }
        let group = format!("225.6.{}.{}", n / 256 % 256, n % 256);
        let spec = json!({ "from": format!("in{n}*"), "group": group, "to": ["out1"] });
        control.must(&json!({ "change": { "add": spec } }));
        // Without egresses named: the rule itself goes, not only what it sends to.
        let spec = json!({ "from": format!("in{n}*"), "group": group });
        control.must(&json!({ "change": { "remove": spec } }));
    }
    assert_eq!(router.control().show("routes").len(), 2);
    let per_route = begun.elapsed() / (2 * changes);
    let after_routes = router.program.rss();
    // Interfaces take the kernel longer; each has a name of its own, as those of containers.
    let interfaces = changes / 10;
    let mut settled_interfaces = 0;
    for n in 0..interfaces {
        if n == interfaces / 4 {
            settled_interfaces = router.program.rss();
        }
        star.rtr.ip_batch(&format!(
            "link add c{n} type veth peer name p{n}\nlink set c{n} up\nlink del c{n}\n"
        ));
    }
    let table = router.tell("show interfaces");
    assert!(!table.contains(&format!("c{}", interfaces - 1)), "{table}");
    let after = router.program.rss();
    let sent = traffic.finish();
    capture.expect(GROUP, sent as usize);
    println!(
        "{} route changes, {per_route:?} each: {} kB, then {} kB; {} interface changes: {} kB, \
         then {} kB",
        2 * changes,
        settled / 1024,
        after_routes / 1024,
        2 * interfaces,
        settled_interfaces / 1024,
        after / 1024
    );
    for (from, to) in [(settled, after_routes), (settled_interfaces, after)] {
        assert!(to < from + (4 << 20), "grows: {from} to {to} bytes");
    }
}
