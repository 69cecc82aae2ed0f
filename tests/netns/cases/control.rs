//! The control socket with misbehaving clients, and the start and end of the process around it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{cases, route};
use crate::lab::control::Control;
use crate::lab::{
    BINARY, Capture, Injector, IpPacket, Lab, NumberedStream, Router, Star, Udp, eventually,
    received_in_order,
};

cases!("control":
    second_daemon_refuses_a_socket_in_use,
    unusable_socket_paths_are_rejected,
    misbehaving_clients_do_not_block_others,
    stop_command_ends_within_a_second,
    missing_privileges_are_named,
    answered_adds_are_in_force_and_lose_no_packet,
    refused_commands_name_cause_and_remedy,
);

const GROUP: &str = "225.1.2.3";

fn one_route() -> String {
    route("r", "in", "", GROUP, &["out1"], "")
}

fn second_daemon_refuses_a_socket_in_use(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let mut first = Router::start(lab, &star.rtr, &one_route());
    let path = first.socket.display().to_string();
    let env = [
        ("MCASTOR__CONTROL__SOCKET", path.as_str()),
        ("MCASTOR__HTTP__LISTEN", "off"),
    ];
    let mut second = Router::launch(lab, &star.rtr, "", &env);
    assert_eq!(second.program.wait().code(), Some(1));
    assert!(
        second
            .program
            .stderr()
            .contains(&format!("another mcastor answers on {path}"))
    );
    assert_eq!(
        first.control().show("routes").len(),
        1,
        "the first daemon still works"
    );
    // A stale socket is replaced.
    first.program.stop(libc::SIGKILL, Duration::from_secs(5));
    assert!(first.socket.exists());
    let third = Router::launch(lab, &star.rtr, "", &env);
    let show = serde_json::json!({ "show": "routes" });
    eventually("the third router responds", true, || {
        Control::new(&first.socket).is_ok_and(|mut c| c.request(&show).is_ok())
    });
    drop(third);
    assert!(!first.socket.exists());
}

fn unusable_socket_paths_are_rejected(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let file = lab.file("regular");
    std::fs::write(&file, "precious").expect("writing");
    for (path, reason) in [
        (file.display().to_string(), "is not a socket"),
        ("/nowhere/at/all.sock".into(), "the folder must exist"),
        ("/proc/mcastor.sock".into(), "cannot create the socket"),
    ] {
        let env = [("MCASTOR__CONTROL__SOCKET", path.as_str())];
        let mut router = Router::launch(lab, &star.rtr, "", &env);
        assert_eq!(router.program.wait().code(), Some(1));
        let printed = router.program.stderr();
        assert!(
            printed.contains(&path) && printed.contains(reason),
            "{printed}"
        );
    }
    assert_eq!(
        std::fs::read_to_string(&file).ok().as_deref(),
        Some("precious")
    );
}

fn misbehaving_clients_do_not_block_others(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &one_route());
    let capture = Capture::new(&star.rcv, "eth1");
    let traffic = NumberedStream::start(&star.src, "eth0", "10.0.0.10:9", "225.1.2.3:5000", 500);
    let query = || {
        let started = Instant::now();
        assert_eq!(router.control().show("routes").len(), 1);
        started.elapsed()
    };
    let mut idle = Vec::new();
    for n in 0..200 {
        let mut client = router.control();
        let _ = match n % 4 {
            0 => Ok(()),
            1 => client.send(b"{\"version\":1,"),
            // Sends requests and never reads the answers.
            2 => client.send(&b"{\"version\":1,\"command\":{\"show\":\"routes\"}}\n".repeat(200)),
            _ => client.send(&[0xff; 1000]),
        };
        idle.push(client);
    }
    let took = query();
    println!("answered in {took:?} with 200 other clients connected");
    assert!(took < Duration::from_secs(20), "{took:?}");
    drop(idle);
    let mut client = router.control();
    client.send(&[b'x'; 70_000]).expect("sending");
    client.send(b"\n").ok();
    assert!(
        client
            .line()
            .unwrap_or_default()
            .contains("at most 65536 bytes")
    );
    for garbage in [
        &b"\n"[..],
        b"hi\n",
        b"{}\n",
        b"[[[[[[[[\n",
        b"{\"version\":9e99}\n",
        b"\xff\xfe\n",
    ] {
        let mut client = router.control();
        client.send(garbage).expect("sending");
        let line = client.line().unwrap_or_default();
        assert!(
            line.is_empty() || line.contains("error"),
            "{garbage:?}: {line}"
        );
    }
    query();
    let sent = traffic.finish();
    capture.expect(GROUP, sent as usize);
    received_in_order(&capture, GROUP);
}

fn stop_command_ends_within_a_second(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let stopped = || {
        let mut router = Router::start(lab, &star.rtr, &one_route());
        let started = Instant::now();
        router.run("stop");
        assert_eq!(router.program.wait().code(), Some(0));
        assert!(!router.socket.exists());
        started.elapsed()
    };
    // On a busy machine, some of the five may take longer.
    let best = (0..5).map(|_| stopped()).min();
    assert!(best < Some(Duration::from_secs(1)), "{best:?}");
}

/// Runs as `nobody`: the socket belongs to another user, the folder of the default socket is not
/// writable, and without CAP_NET_RAW packets cannot be captured.
fn missing_privileges_are_named(lab: &Lab) {
    let star = Star::v4(lab, 1);
    // A folder and a program that every user may access.
    let dir = tempfile::tempdir().expect("a folder");
    let open = std::os::unix::fs::PermissionsExt::from_mode;
    std::fs::set_permissions(dir.path(), open(0o755)).expect("permissions");
    let program = dir.path().join("mcastor").display().to_string();
    std::fs::copy(BINARY, &program).expect("a copy");
    let socket = dir.path().join("mcastor.sock").display().to_string();
    let env = [("MCASTOR__CONTROL__SOCKET", socket.as_str())];
    let _router = Router::launch(lab, &star.rtr, &one_route(), &env);
    eventually("the router responds", true, || {
        Control::new(std::path::Path::new(&socket)).is_ok()
    });
    let as_nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let refused = |more: &[&str], words: &str, reason: &str| {
        let mut args = as_nobody.to_vec();
        args.extend(more);
        args.push(&program);
        args.extend(words.split(' '));
        let out = star.rtr.output("setpriv", &args);
        let printed = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{words}: {printed}");
        assert!(printed.contains(reason), "{words}: {printed}");
    };
    let show = format!("show routes --socket {socket}");
    refused(&[], &show, "run as the user that runs mcastor");
    refused(&[], "run", "give the program CAP_NET_RAW");
    // Without settings the socket is in /run, which belongs to root.
    let raw = ["--inh-caps=+net_raw", "--ambient-caps=+net_raw"];
    refused(&raw, "run", "the folder must exist and be writable");
}

/// Adds 1,000 routes, and sends one packet on each as soon as its command is answered.
fn answered_adds_are_in_force_and_lose_no_packet(lab: &Lab) {
    const ADDS: usize = 1000;
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &one_route());
    let capture = Capture::new(&star.rcv, "eth1");
    let inject = Injector::new(&star.src, "eth0");
    let stream = NumberedStream::start(&star.src, "eth0", "10.0.0.10:9", "225.1.2.3:5000", 2000);
    stream.wait_for_more(100);
    let group = |n: usize| format!("225.7.{}.{}", n / 250, n % 250 + 1);
    let change = |verb: &str, n: usize, to: &[&str]| {
        let route = serde_json::json!({ "from": "in", "group": group(n), "to": to });
        serde_json::json!({ "change": { verb: route } })
    };
    let mut control = router.control();
    let started = Instant::now();
    for n in 0..ADDS {
        control.expect_ok(&change("add", n, &["out1"]));
        let to = format!("{}:5000", group(n));
        inject.send(&Udp::new("10.0.0.10:9", &to, "first").frame());
    }
    println!("{ADDS} adds: {:?}", started.elapsed());
    assert_eq!(control.show("routes").len(), ADDS + 1);
    let first_packets = || {
        let frames = capture.frames().into_iter();
        let packets = frames.filter_map(|frame| IpPacket::parse(&frame.bytes));
        let first = packets.filter(|packet| packet.payload() == b"first");
        first
            .map(|packet| packet.dst.to_string())
            .collect::<Vec<_>>()
    };
    eventually("every first packet is forwarded", ADDS, || {
        first_packets().len()
    });
    let forwarded: BTreeSet<String> = first_packets().into_iter().collect();
    let groups: BTreeSet<String> = (0..ADDS).map(group).collect();
    assert!(forwarded == groups, "each group gets its first packet");
    let started = Instant::now();
    for n in 0..ADDS {
        control.expect_ok(&change("remove", n, &[]));
    }
    println!("{ADDS} removals: {:?}", started.elapsed());
    assert_eq!(control.show("routes").len(), 1);
    let sent = stream.finish();
    capture.expect(GROUP, sent as usize);
    received_in_order(&capture, GROUP);
    router.expect_routed("r", "out1", sent.into());
    router.expect_metric("mcastor_actor_restarts_total", &[], 0);
}

fn refused_commands_name_cause_and_remedy(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &one_route());
    for (words, message) in [
        (
            "leave in 225.1.2.3",
            "in (*, 225.1.2.3) is joined by route \"r\"; remove the route, or set join = false in it",
        ),
        (
            "leave in 225.7.7.7",
            "in (*, 225.7.7.7) is not joined by [[join]] or `mcastor join`; `mcastor show groups`",
        ),
        (
            "remove in 225.1.2.3 eth7",
            "route \"r\" does not send to eth7; it sends to out1",
        ),
        (
            "add in 225.9.9.8:5000 out1",
            "`225.9.9.8:5000` has a port; write the address without it, 225.9.9.8",
        ),
        (
            "join 225.1.2.3",
            "an address, where an interface belongs; the order is IIF [SOURCE] GROUP",
        ),
        (
            "explain 225.1.2.3 10.1.0.2",
            "a multicast group, where the source belongs; the order is SOURCE GROUP[:PORT]",
        ),
        (
            "explain 225.1.2.3",
            "a multicast group, where the source belongs; the order is SOURCE GROUP[:PORT]",
        ),
    ] {
        let out = router.try_run(words);
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success(), "{words}");
        assert!(stderr.contains(message), "{words}: {stderr}");
    }
}
