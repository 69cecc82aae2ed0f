//! Operation of the router: settings, commands, HTTP, signals.

use std::net::TcpListener;

use super::{cases, route};
use crate::lab::router::BINARY;
use crate::lab::{
    Injector, Lab, Program, Router, Star, TIMEOUT, Udp, UdpRx, UdpTx, eventually, wait_until,
};

cases!("operation":
    denied_engine_socket_is_explained,
    json_log_has_names_as_fields,
    misspelt_interface_is_answered_with_a_similar_one,
    busy_http_port_logs_a_warning,
    invalid_settings_exit_2_with_location,
    valid_settings_pass_check,
    missing_settings_file_exits_2,
    environment_overrides_the_settings_file,
    invalid_environment_variable_is_named,
    health_and_api_endpoints_answer,
    show_prints_table_and_json,
    show_without_router_names_the_socket,
    sigterm_exits_cleanly,
    sigint_exits_cleanly,
    queued_packets_are_sent_before_exit,
    control_socket_mode_is_0600,
    invalid_arguments_exit_2,
);

fn r() -> String {
    route("r", "in", "", "225.1.2.3", &["out1"], "")
}

/// An interface may appear later, so a missing one is no error. But nothing waits silently.
fn misspelt_interface_is_answered_with_a_similar_one(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let router = Router::start(lab, &star.rtr, &r());
    let hint = "outt1, which does not exist now (did you mean out1?)";
    let added = router.run("add in 225.9.9.9 outt1");
    assert!(added.contains(hint), "{added}");
    let joined = router.run("join outt1 225.9.9.8");
    assert!(joined.contains(hint), "{joined}");
    // Another number is another interface.
    let other = router.run("add in 225.9.9.7 out7");
    assert!(
        other.ends_with("; waiting for out7, which does not exist now\n"),
        "{other}"
    );
    let pending = router.run("show pending");
    assert!(pending.contains("did you mean out1?"), "{pending}");
    let log = router.program.stderr();
    assert!(
        log.contains("waiting for interface outt1, which does not exist"),
        "{log}"
    );
    assert!(
        log.contains("waiting for interface out7 (present: "),
        "{log}"
    );
    let refused = router.try_run("trace --pcap /nowhere/t.pcapng 225.1.2.3");
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        error.contains("cannot write /nowhere/t.pcapng (--pcap)"),
        "{error}"
    );
    // No trace is left behind.
    assert_eq!(
        router.try_run("trace --seconds 1 225.1.2.3").status.code(),
        Some(3)
    );
}

/// Names of interfaces and routes are fields of JSON lines, for queries of a log store.
fn json_log_has_names_as_fields(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let waiting = route("later", "in", "", "225.7.7.7", &["eth7"], "");
    let router = Router::start(
        lab,
        &star.rtr,
        &(r() + &waiting + "[log]\nformat = \"json\"\n"),
    );
    star.rcv.ip("link set eth1 down");
    let fields = |text: &str, interface: &str| {
        let log = router.program.stderr();
        let lines = log.lines().map(|line| {
            let parsed: serde_json::Value = serde_json::from_str(line).expect("a JSON line");
            parsed["fields"].clone()
        });
        let mut matching = lines.filter(|fields| {
            fields["message"]
                .as_str()
                .is_some_and(|message| message.contains(text))
        });
        matching.any(|fields| fields["interface"] == interface)
    };
    for (text, interface) in [
        ("in: capturing", "in"),
        ("waiting for interface eth7", "eth7"),
        ("no carrier", "out1"),
    ] {
        eventually(text, true, || fields(text, interface));
    }
}

fn busy_http_port_logs_a_warning(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let _busy = star
        .rtr
        .enter(|| TcpListener::bind("127.0.0.1:9464").expect("bind"));
    let mut router = Router::launch(lab, &star.rtr, &r(), &[]);
    let rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    let tx = UdpTx::new(&star.src, "eth0", "225.1.2.3:5000");
    let forwards = wait_until(TIMEOUT, || {
        tx.send("x");
        rx.count() > 0
    });
    assert!(forwards, "packets are not forwarded");
    let output = || router.program.stderr() + &router.program.stdout();
    assert!(
        wait_until(TIMEOUT, || output().contains("9464")),
        "no warning names the port: {}",
        output()
    );
    assert!(output().contains("WARN"), "{}", output());
    assert_eq!(router.program.exit_status(), None);
}

/// Invalid settings: a label, the text, the location and words that the error must contain.
const BAD: &[(&str, &str, &str, &[&str])] = &[
    (
        "no group",
        "[[route]]\nfrom = \"a\"\nto = [\"b\"]\n",
        ":1:",
        &["group"],
    ),
    (
        "unicast group",
        "[[route]]\nfrom = \"a\"\ngroup = \"10.0.0.1\"\nto = [\"b\"]\n",
        ":3:",
        &["10.0.0.1", "multicast"],
    ),
    (
        "host bits",
        "[[route]]\nfrom = \"a\"\ngroup = \"225.1.2.3/24\"\nto = [\"b\"]\n",
        ":3:",
        &["225.1.2.0/24"],
    ),
    (
        "multicast source",
        "[[route]]\nfrom = \"a\"\ngroup = \"225.1.2.3\"\nsource = \"225.1.1.1\"\nto = [\"b\"]\n",
        ":4:",
        &["225.1.1.1"],
    ),
    (
        "mixed families",
        "[[route]]\nfrom = \"a\"\ngroup = \"225.1.2.3\"\nsource = \"fd00::1\"\nto = [\"b\"]\n",
        ":4:",
        &["fd00::1"],
    ),
    (
        "egress twice",
        "[[route]]\nfrom = \"a\"\ngroup = \"225.1.2.3\"\nto = [\"b\", \"b\"]\n",
        ":4:",
        &["for the second time"],
    ),
    (
        "equal rules",
        "[[route]]\nfrom = \"a\"\ngroup = \"225.1.2.3\"\nto = [\"b\"]\n[[route]]\nfrom = \"a\"\ngroup = \"225.1.2.3\"\nto = [\"c\"]\n",
        ":7:",
        &["225.1.2.3"],
    ),
    (
        "unknown key",
        "[[route]]\nfrom = \"a\"\ngruop = \"225.1.2.3\"\nto = [\"b\"]\n",
        ":3:",
        &["gruop"],
    ),
    (
        "unknown table",
        "[htpp]\nlisten = \"127.0.0.1:1\"\n",
        ":1:",
        &["htpp"],
    ),
    (
        "wrong type",
        "[[route]]\nfrom = \"a\"\ngroup = \"225.1.2.3\"\nto = \"b\"\n",
        ":4:",
        &["to"],
    ),
    (
        "TTL 0",
        "[[route]]\nfrom = \"a\"\ngroup = \"225.1.2.3\"\nto = [\"b\"]\nttl = { set = 0 }\n",
        ":5:",
        &["255"],
    ),
    (
        "TTL 256",
        "[[route]]\nfrom = \"a\"\ngroup = \"225.1.2.3\"\nto = [\"b\"]\nttl = { set = 256 }\n",
        ":5:",
        &["256"],
    ),
    (
        "TTL word",
        "[[route]]\nfrom = \"a\"\ngroup = \"225.1.2.3\"\nto = [\"b\"]\nttl = \"drop\"\n",
        ":5:",
        &["drop", "keep"],
    ),
    (
        "threshold 0",
        "[[interface]]\nname = \"a\"\nttl_threshold = 0\n",
        ":3:",
        &["0"],
    ),
    (
        "interface twice",
        "[[interface]]\nname = \"a\"\n[[interface]]\nname = \"a\"\n",
        ":4:",
        &["a"],
    ),
    (
        "long name",
        "[[route]]\nfrom = \"a-name-that-is-too-long\"\ngroup = \"225.1.2.3\"\nto = [\"b\"]\n",
        ":2:",
        &["15"],
    ),
    (
        "listen",
        "[http]\nlisten = \"localhost\"\n",
        ":2:",
        &["localhost"],
    ),
    (
        "plane",
        "[plane]\nkind = \"warp\"\n",
        ":2:",
        &["warp", "packet"],
    ),
    ("not toml", "[[route]\nfrom = \"a\"\n", ":1:", &[]),
];

fn invalid_settings_exit_2_with_location(lab: &Lab) {
    let ns = lab.ns("a");
    let mut faults = String::new();
    for (label, toml, location, words) in BAD {
        let path = lab.file("bad.toml");
        std::fs::write(&path, toml).expect("writing settings");
        let path = path.display().to_string();
        for args in [
            vec!["check", path.as_str()],
            vec!["run", "--config", path.as_str()],
        ] {
            let mut command = ns.command(BINARY);
            command.args(&args);
            let mut program = Program::start(lab, command);
            if !wait_until(TIMEOUT, || program.exit_status().is_some()) {
                faults += &format!("{label}: {} is still running\n", args[0]);
                continue;
            }
            let (status, printed) = (program.wait(), program.stderr());
            let location = format!("{path}{location}");
            if status.code() != Some(2)
                || !printed.contains(&location)
                || words.iter().any(|w| !printed.contains(w))
            {
                faults += &format!(
                    "{label}: {}: {status}, expected {location} {words:?}:\n{printed}\n",
                    args[0]
                );
            }
            if printed.contains("panicked") {
                faults += &format!("{label}: panic\n");
            }
        }
    }
    assert!(faults.is_empty(), "{faults}");
}

fn valid_settings_pass_check(lab: &Lab) {
    let ns = lab.ns("a");
    let path = lab.file("good.toml");
    let toml = "[http]\nlisten = \"127.0.0.1:9464\"\n[control]\nsocket = \"/run/mcastor/mcastor.sock\"\n\
                [plane]\nkind = \"auto\"\n[[interface]]\nname = \"eth1\"\nttl_threshold = 3\n\
                [[route]]\nname = \"cameras\"\nfrom = \"eth0\"\nsource = \"192.168.1.0/24\"\n\
                group = \"225.1.2.0/24\"\nto = [\"eth1\", \"veth*\"]\nttl = \"decrement\"\n";
    std::fs::write(&path, toml).expect("writing settings");
    let out = ns.output(BINARY, &["check", &path.display().to_string()]);
    assert_eq!(
        out.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
}

fn missing_settings_file_exits_2(lab: &Lab) {
    let ns = lab.ns("a");
    for args in [
        &["check", "/nowhere/m.toml"][..],
        &["run", "--config", "/nowhere/m.toml"],
    ] {
        let out = ns.output(BINARY, args);
        assert_eq!(out.status.code(), Some(2), "{args:?}");
        assert!(String::from_utf8_lossy(&out.stderr).contains("/nowhere/m.toml"));
    }
}

fn environment_overrides_the_settings_file(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let env = [("MCASTOR__HTTP__LISTEN", "127.0.0.1:9999")];
    let router = Router::start_with(lab, &star.rtr, &r(), &env);
    assert_eq!(
        router
            .get("/healthz")
            .expect("on the port of the environment")
            .status,
        200
    );
    let file = "127.0.0.1:9464".parse().expect("an address");
    assert!(
        crate::lab::http::get(&star.rtr, file, "/healthz").is_err(),
        "the server listens on the port of the file"
    );
}

fn invalid_environment_variable_is_named(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let mut router = Router::launch(
        lab,
        &star.rtr,
        &r(),
        &[("MCASTOR__HTTP__LISTEN", "everywhere")],
    );
    assert_eq!(router.program.wait().code(), Some(2));
    let printed = router.program.stderr();
    assert!(
        printed.contains("MCASTOR__HTTP__LISTEN") && printed.contains("everywhere"),
        "{printed}"
    );
}

fn json(router: &Router, path: &str) -> serde_json::Value {
    let answer = router.get(path).unwrap_or_else(|e| panic!("{path}: {e}"));
    assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    assert!(
        answer.head.contains("content-type: application/json"),
        "{path}: {}",
        answer.head
    );
    serde_json::from_str(&answer.body).unwrap_or_else(|e| panic!("{path}: {e}: {}", answer.body))
}

fn health_and_api_endpoints_answer(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &r());
    Injector::new(&star.src, "eth0").send(&Udp::new("10.0.0.10:9", "225.1.2.3:5000", "x").frame());
    router.expect_routed("r", "out1", 1);
    for path in ["/healthz", "/readyz"] {
        assert_eq!(router.get(path).expect(path).status, 200);
    }
    let routes = json(&router, "/api/v1/routes").to_string();
    assert!(
        routes.contains("\"r\"") && routes.contains("225.1.2.3") && routes.contains("out1"),
        "{routes}"
    );
    let interfaces = json(&router, "/api/v1/interfaces").to_string();
    assert!(
        interfaces.contains("\"in\"") && interfaces.contains("\"out1\""),
        "{interfaces}"
    );
    assert_eq!(router.get("/nothing").expect("an answer").status, 404);
}

fn show_prints_table_and_json(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &r());
    let socket = router.socket.display().to_string();
    for (table, words) in [
        ("routes", ["225.1.2.3", "out1"]),
        ("interfaces", ["in", "out1"]),
    ] {
        for form in [&[][..], &["--json"]] {
            let args = [&["show", table, "--socket", &socket], form].concat();
            let out = router.cli(&args);
            let printed = String::from_utf8_lossy(&out.stdout).into_owned();
            assert!(
                out.status.success(),
                "{args:?}: {}",
                String::from_utf8_lossy(&out.stderr)
            );
            assert!(
                words.iter().all(|w| printed.contains(w)),
                "{args:?}: {printed}"
            );
            if !form.is_empty() {
                let value: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
                let api = json(&router, &format!("/api/v1/{table}"));
                let api = api.pointer(&format!("/show/{table}")).unwrap_or(&api);
                assert_eq!(&value, api, "the output differs from HTTP");
            }
        }
    }
}

fn show_without_router_names_the_socket(lab: &Lab) {
    let ns = lab.ns("a");
    let socket = lab.file("none.sock").display().to_string();
    let out = ns.output(BINARY, &["show", "routes", "--socket", &socket]);
    let printed = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(
        !out.status.success() && printed.contains(&socket),
        "{}: {printed}",
        out.status
    );
}

fn assert_clean_exit(lab: &Lab, signal: i32) {
    let star = Star::v4(lab, 1);
    let mut router = Router::start(lab, &star.rtr, &r());
    assert!(router.socket.exists());
    let pid = std::fs::read_to_string(router.pid_file()).expect("a pid file");
    assert_eq!(pid.trim(), router.program.pid().to_string());
    let started = std::time::Instant::now();
    let status = router.program.stop(signal, TIMEOUT);
    println!("exited {:?} after the signal", started.elapsed());
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(
        started.elapsed().as_millis() < 3000,
        "took {:?}",
        started.elapsed()
    );
    assert!(
        !router.socket.exists(),
        "the control socket was left behind"
    );
    assert!(!router.pid_file().exists(), "the pid file was left behind");
}

fn sigterm_exits_cleanly(lab: &Lab) {
    assert_clean_exit(lab, libc::SIGTERM);
}

fn sigint_exits_cleanly(lab: &Lab) {
    assert_clean_exit(lab, libc::SIGINT);
}

/// Packets that wait in the receive queue when SIGTERM arrives are forwarded before the exit.
fn queued_packets_are_sent_before_exit(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let mut router = Router::start(lab, &star.rtr, &r());
    let rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    let tx = UdpTx::new(&star.src, "eth0", "225.1.2.3:5000");
    tx.send("warm");
    rx.expect(1);
    router.program.signal(libc::SIGSTOP);
    (0..200).for_each(|n| tx.send(format!("{n}")));
    router.program.signal(libc::SIGTERM);
    router.program.signal(libc::SIGCONT);
    assert_eq!(router.program.wait().code(), Some(0));
    rx.expect(201);
}

fn control_socket_mode_is_0600(lab: &Lab) {
    use std::os::unix::fs::PermissionsExt;
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &r());
    let mode = std::fs::metadata(&router.socket)
        .expect("the socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

fn invalid_arguments_exit_2(lab: &Lab) {
    let ns = lab.ns("a");
    for args in [
        &["run", "--no-such"][..],
        &["no-such"],
        &["check", "a.toml", "b.toml"],
        &["show", "nothing"],
        &["run", "--config"],
    ] {
        let out = ns.output(BINARY, args);
        let printed = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(2), "{args:?}: {printed}");
        assert!(
            printed.contains("Usage") || printed.contains("error"),
            "{args:?}: {printed}"
        );
    }
}

/// The socket of a container engine belongs to another user.
fn denied_engine_socket_is_explained(lab: &Lab) {
    use std::os::unix::fs::PermissionsExt;

    let star = Star::v4(lab, 1);
    let socket = lab.file("engine.sock");
    let _engine = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600)).expect("a mode");
    std::os::unix::fs::chown(&socket, Some(65534), Some(65534)).expect("an owner");
    let toml = route("r", "network:cameras", "", "225.1.2.3", &["out1"], "")
        + &format!("[docker]\nsocket = \"{}\"\n", socket.display());
    // It keeps no capability that overrides permissions.
    let router = Router::start(lab, &star.rtr, &toml);
    let lines = || -> Vec<String> {
        let text = router.program.stderr();
        let of_engine = text.lines().filter(|line| line.contains(" docker: "));
        of_engine.map(str::to_owned).collect()
    };
    eventually("a line", 1, || lines().len());
    let line = &lines()[0];
    assert!(
        line.contains("run as root, or in the group of the socket"),
        "{line}"
    );
    assert_eq!(line.matches("engine.sock").count(), 1, "{line}");
}
