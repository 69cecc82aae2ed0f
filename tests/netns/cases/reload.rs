//! Reloads of changed settings, and changes by command, under counted traffic.

use serde_json::json;

use super::{cases, route};
use crate::lab::{
    Capture, Lab, NumberedStream, Router, Star, UdpRx, UdpTx, assert_increasing, eventually,
    received_in_order, sequence_number,
};

cases!("reload":
    hundred_reloads_keep_an_unchanged_route,
    invalid_settings_file_changes_nothing,
    command_changes_last_until_reload,
    reload_reports_settings_that_need_a_restart,
    systemd_is_notified_of_start_and_result,
    command_changes_keep_other_routes,
    soak_of_changes_keeps_memory_flat,
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

/// Returns name and origin of each route.
fn route_names(router: &Router) -> Vec<(String, String)> {
    let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
    let shown = router.control().show("routes");
    let row = |r: &serde_json::Value| (text(&r["name"]), text(&r["origin"]));
    shown.iter().map(row).collect()
}

/// Reloads alternate between signal and command, each with different settings.
fn hundred_reloads_keep_an_unchanged_route(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let mut router = Router::start(lab, &star.rtr, &steady());
    let rx = UdpRx::join(&star.rcv, "eth1", DST);
    let traffic = NumberedStream::start(&star.src, "eth0", SRC, DST, 2000);
    for n in 0..100 {
        // The other route comes before or after the steady one, which changes its index in the
        // snapshot. Other interfaces become ingress and egress and stop being so.
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
        router.write_settings(&toml);
        if n % 2 == 0 {
            router.program.signal(libc::SIGHUP);
        } else {
            let printed = router.control().expect_ok(&json!("reload"));
            assert_eq!(printed["done"], format!("reloaded, routes: {names}"));
        }
        eventually("the new rules", names, || route_names(&router).len());
        traffic.wait_for_more(20);
    }
    let sent = traffic.finish();
    let got: Vec<u32> = rx
        .expect(sent as usize)
        .iter()
        .map(|p| sequence_number(p))
        .collect();
    assert_increasing(&got);
    router.expect_routed("steady", "out1", sent.into());
    router.expect_metric("mcastor_actor_restarts_total", &[], 0);
    println!("100 reloads: {sent} packets, none lost, duplicated or out of order");
}

fn invalid_settings_file_changes_nothing(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let mut router = Router::start(lab, &star.rtr, &steady());
    let capture = Capture::new(&star.rcv, "eth1");
    assert_eq!(successful(&router), 1);
    let traffic = NumberedStream::start(&star.src, "eth0", SRC, DST, 500);
    let bad = route("steady", "in", "", "10.0.0.1", &["out1"], "");
    router.write_settings(&bad);
    let out = router.try_run("reload");
    let printed = String::from_utf8_lossy(&out.stderr).into_owned();
    let config = router.config.display().to_string();
    assert!(
        out.status.code() == Some(1)
            && ["10.0.0.1", config.as_str(), "active settings are unchanged"]
                .iter()
                .all(|w| printed.contains(w)),
        "{}: {printed}",
        out.status
    );
    assert_eq!(successful(&router), 0);
    router.write_settings(&steady());
    assert_eq!(router.run("reload").trim(), "reloaded, routes: 1");
    assert_eq!(successful(&router), 1);
    router.write_settings(&bad);
    router.program.signal(libc::SIGHUP);
    eventually("the gauge after SIGHUP", 0, || successful(&router));
    std::fs::remove_file(&router.config).expect("removing the settings");
    assert!(!router.try_run("reload").status.success());
    assert_eq!(successful(&router), 0);
    router.write_settings(&steady());
    router.program.signal(libc::SIGHUP);
    eventually("the gauge after a good file", 1, || successful(&router));
    let sent = traffic.finish();
    capture.expect(GROUP, sent as usize);
    received_in_order(&capture, GROUP);
}

fn command_changes_last_until_reload(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let router = Router::start(lab, &star.rtr, &steady());
    let one = Capture::new(&star.rcv, "eth1");
    let two = Capture::new(&star.rcv, "eth2");
    router.run("add in 10.0.0.0/24 225.2.2.2 out1");
    router.run("add in 10.0.0.0/24 225.2.2.2 out2");
    router.run("join in 225.3.3.3");
    let pair = |n: &str, o: &str| (n.to_owned(), o.to_owned());
    let by_command = pair("in (10.0.0.0/24, 225.2.2.2)", "command");
    let both = vec![pair("steady", "settings"), by_command];
    assert_eq!(route_names(&router), both);
    let table = router.run("show routes");
    assert!(
        table.contains("command") && table.contains("settings"),
        "{table}"
    );
    let tx = UdpTx::new(&star.src, "eth0", "225.2.2.2:5000");
    tx.send("x");
    one.expect("225.2.2.2", 1);
    two.expect("225.2.2.2", 1);
    router.run("remove in 10.0.0.0/24 225.2.2.2 out2");
    assert_eq!(route_names(&router), both);
    // Refused commands, with the reason.
    for (words, reason) in [
        ("remove in 225.9.9.9", "no route"),
        ("remove in 10.0.0.0/24 225.2.2.2 out9", "out9"),
        ("add in 224.0.0.5 out1", "link-local"),
        ("add in fd00::1 225.1.1.1 out1", "different IP versions"),
        ("join in 225.3.3.3", "already joined"),
        ("leave in 225.4.4.4", "not joined"),
        ("join in 225.0.0.0/8", "more than"),
    ] {
        let out = router.try_run(words);
        let printed = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(
            out.status.code() == Some(1) && printed.contains(reason),
            "{words}: {}: {printed}",
            out.status
        );
    }
    router.run("reload");
    assert_eq!(route_names(&router), both[..1]);
    let groups = router.control().show("groups");
    assert_eq!(groups.len(), 1, "{groups:?}");
    assert_eq!(router.run("flush").trim(), "flows flushed: 1");
    router.expect_metric("mcastor_flows", &[], 0);
}

fn reload_reports_settings_that_need_a_restart(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &steady());
    router.write_settings(&(steady() + "[plane]\nqdisc_bypass = true\n[limits]\nflows = 7\n"));
    let printed = router.run("reload");
    assert!(
        printed.contains("plane") && printed.contains("restart"),
        "{printed}"
    );
    router.expect_metric("mcastor_flow_limit", &[], 7);
}

fn command_changes_keep_other_routes(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let router = Router::start(lab, &star.rtr, &steady());
    let rx = UdpRx::join(&star.rcv, "eth1", DST);
    let traffic = NumberedStream::start(&star.src, "eth0", SRC, DST, 2000);
    let mut control = router.control();
    for n in 0..200 {
        let spec = json!({ "from": "in", "group": format!("225.4.0.{}", n / 2), "to": ["out2"] });
        let change = if n % 2 == 0 { "add" } else { "remove" };
        control.expect_ok(&json!({ "change": { change: spec } }));
        traffic.wait_for_more(5);
    }
    let sent = traffic.finish();
    let got: Vec<u32> = rx
        .expect(sent as usize)
        .iter()
        .map(|p| sequence_number(p))
        .collect();
    assert_increasing(&got);
}

/// `MCASTOR_SOAK_CHANGES` sets the number of changes.
fn soak_of_changes_keeps_memory_flat(lab: &Lab) {
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
    let traffic = NumberedStream::start(&star.src, "eth0", SRC, DST, 500);
    let mut control = router.control();
    // State kept for names that were used once is bounded; it must fill up before the measurement.
    let mut settled = 0;
    let started = std::time::Instant::now();
    for n in 0..changes {
        if n == changes / 4 {
            settled = router.program.rss();
        }
        let group = format!("225.6.{}.{}", n / 256 % 256, n % 256);
        let spec = json!({ "from": format!("in{n}*"), "group": group, "to": ["out1"] });
        control.expect_ok(&json!({ "change": { "add": spec } }));
        // Without egresses in the command, the whole rule is removed.
        let spec = json!({ "from": format!("in{n}*"), "group": group });
        control.expect_ok(&json!({ "change": { "remove": spec } }));
    }
    assert_eq!(router.control().show("routes").len(), 2);
    let per_route = started.elapsed() / (2 * changes);
    let after_routes = router.program.rss();
    // Interface changes are slower; each interface has its own name, as those of containers.
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
    let table = router.run("show interfaces");
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
        assert!(
            to < from + (4 << 20),
            "memory grew from {from} to {to} bytes"
        );
    }
}

/// Units with `Type=notify-reload` need the messages of a reload in this form (sd_notify(3)).
fn systemd_is_notified_of_start_and_result(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let socket = lab.file("notify");
    let notifications = std::os::unix::net::UnixDatagram::bind(&socket).expect("a socket");
    let timeout = Some(std::time::Duration::from_secs(10));
    notifications.set_read_timeout(timeout).expect("a timeout");
    let next = || {
        loop {
            let mut buffer = [0; 4096];
            let len = notifications.recv(&mut buffer).expect("a notification");
            let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
            // Of memberships that are kept.
            if !text.starts_with("FDSTORE") {
                return text;
            }
        }
    };
    let path = socket.display().to_string();
    let env = [("NOTIFY_SOCKET", path.as_str())];
    let mut router = Router::start_with(lab, &star.rtr, &steady(), &env);
    assert_eq!(next().trim(), "READY=1");
    router.run("reload");
    let time = next();
    let time = time.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
    assert!(time.is_some_and(|t| t.trim().parse::<u64>().is_ok()));
    assert_eq!(next().trim(), "READY=1\nSTATUS=reloaded, routes: 1");
    router.write_settings(&route("steady", "in", "", "10.0.0.1", &["out1"], ""));
    router.program.signal(libc::SIGHUP);
    assert!(next().starts_with("RELOADING=1\n"));
    let status = next();
    assert!(
        status.starts_with("READY=1\nSTATUS=reload refused: the settings are invalid"),
        "{status}"
    );
}
