//! The control socket in unfriendly hands, and the start and end of the process around it.

use std::time::{Duration, Instant};

use super::{cases, route};
use crate::lab::control::Control;
use crate::lab::{BINARY, Capture, Lab, Numbered, Router, Star, eventually, in_order};

cases!("control":
    two_daemons_on_one_socket,
    socket_paths_that_cannot_be,
    floods_and_half_open_clients_do_no_harm,
    stop_by_command_within_a_second,
    who_lacks_a_right_is_told_which,
);

const GROUP: &str = "225.1.2.3";

fn r() -> String {
    route("r", "in", "", GROUP, &["out1"], "")
}

fn two_daemons_on_one_socket(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let mut first = Router::start(lab, &star.rtr, &r());
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
        "the first is unharmed"
    );
    // A stale socket is replaced.
    first.program.stop(libc::SIGKILL, Duration::from_secs(5));
    assert!(first.socket.exists());
    let third = Router::launch(lab, &star.rtr, "", &env);
    let show = serde_json::json!({ "show": "routes" });
    eventually("the third answers", true, || {
        Control::new(&first.socket).is_ok_and(|mut c| c.ask(&show).is_ok())
    });
    drop(third);
    assert!(!first.socket.exists());
}

fn socket_paths_that_cannot_be(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let file = lab.file("regular");
    std::fs::write(&file, "precious").expect("writing");
    for (path, reason) in [
        (file.display().to_string(), "is not a socket"),
        ("/nowhere/at/all.sock".into(), "the folder must exist"),
        (
            "/proc/mcastor.sock".into(),
            "cannot make the control socket",
        ),
    ] {
        let env = [("MCASTOR__CONTROL__SOCKET", path.as_str())];
        let mut router = Router::launch(lab, &star.rtr, "", &env);
        assert_eq!(router.program.wait().code(), Some(1));
        let said = router.program.stderr();
        assert!(said.contains(&path) && said.contains(reason), "{said}");
    }
    assert_eq!(
        std::fs::read_to_string(&file).ok().as_deref(),
        Some("precious")
    );
}

fn floods_and_half_open_clients_do_no_harm(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &r());
    let capture = Capture::new(&star.rcv, "eth1");
    let traffic = Numbered::start(&star.src, "eth0", "10.0.0.10:9", "225.1.2.3:5000", 500);
    let ask = || {
        let begun = Instant::now();
        assert_eq!(router.control().show("routes").len(), 1);
        begun.elapsed()
    };
    let mut idle = Vec::new();
    for n in 0..200 {
        let mut client = router.control();
        let _ = match n % 4 {
            0 => Ok(()),
            1 => client.send(b"{\"version\":1,"),
            // Asks and never reads.
            2 => client.send(&b"{\"version\":1,\"command\":{\"show\":\"routes\"}}\n".repeat(200)),
            _ => client.send(&[0xff; 1000]),
        };
        idle.push(client);
    }
    let took = ask();
    println!("answered in {took:?} among 200 others");
    assert!(took < Duration::from_secs(5), "{took:?}");
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
    ask();
    let sent = traffic.finish();
    capture.expect(GROUP, sent as usize);
    in_order(&capture, GROUP);
}

fn stop_by_command_within_a_second(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let stopped = || {
        let mut router = Router::start(lab, &star.rtr, &r());
        let begun = Instant::now();
        router.tell("stop");
        assert_eq!(router.program.wait().code(), Some(0));
        assert!(!router.socket.exists());
        begun.elapsed()
    };
    // A busy machine may keep one of them waiting.
    let best = (0..5).map(|_| stopped()).min();
    assert!(best < Some(Duration::from_secs(1)), "{best:?}");
}

/// As nobody: the socket is not theirs, neither is the folder it shall be in, and without
/// CAP_NET_RAW there is no capture.
fn who_lacks_a_right_is_told_which(lab: &Lab) {
    let star = Star::v4(lab, 1);
    // A folder and a program that everybody may use.
    let dir = tempfile::tempdir().expect("a folder");
    let open = std::os::unix::fs::PermissionsExt::from_mode;
    std::fs::set_permissions(dir.path(), open(0o755)).expect("permissions");
    let program = dir.path().join("mcastor").display().to_string();
    std::fs::copy(BINARY, &program).expect("a copy");
    let socket = dir.path().join("mcastor.sock").display().to_string();
    let env = [("MCASTOR__CONTROL__SOCKET", socket.as_str())];
    let _router = Router::launch(lab, &star.rtr, &r(), &env);
    eventually("it answers", true, || {
        Control::new(std::path::Path::new(&socket)).is_ok()
    });
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let refused = |more: &[&str], words: &str, reason: &str| {
        let mut args = nobody.to_vec();
        args.extend(more);
        args.push(&program);
        args.extend(words.split(' '));
        let out = star.rtr.output("setpriv", &args);
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{words}: {said}");
        assert!(said.contains(reason), "{words}: {said}");
    };
    let show = format!("show routes --socket {socket}");
    refused(&[], &show, "run as the user that runs mcastor");
    refused(&[], "run", "give the program CAP_NET_RAW");
    // Without settings the socket is in /run, which is root's.
    let raw = ["--inh-caps=+net_raw", "--ambient-caps=+net_raw"];
    refused(&raw, "run", "the folder must exist and be writable");
}
