//! `mcastor doctor`: each cause is created, and found; a healthy host has no finding.

use std::process::Output;

use serde_json::Value;

use super::docker::Site;
use super::{cases, route};
use crate::lab::parallel::ParallelRouters;
use crate::lab::proxy::{known_groups, proxy};
use crate::lab::router::KernelRouter;
use crate::lab::{
    BINARY, GroupMember, Injector, Lab, Ns, NumberedStream, Router, Star, Udp, UdpRx, eventually,
};

cases!("doctor":
    healthy_hosts_have_no_finding,
    #[LinkKind("bridge")] #[Iptables] causes_on_a_host_are_found,
    causes_at_the_router_are_found,
    missing_engine_and_default_route_are_named,
    users_without_capabilities_are_told_what_is_missing,
    #[Iptables] #[Program("smcrouted", "smcroute")] #[LinkKind("bridge")] other_programs_and_rules_are_found,
    #[LinkKind("bridge")] other_forwarder_on_the_link_is_found,
    packets_that_a_stopped_process_loses_are_found,
    wrong_checksums_are_found,
    sandboxes_without_packet_sockets_and_old_kernels_are_found,
    probe_proves_the_path,
    #[Docker] probe_reaches_containers,
);

fn try_doctor(ns: &Ns, words: &str) -> Output {
    let mut arguments = vec!["doctor"];
    arguments.extend(words.split_whitespace());
    ns.output(BINARY, &arguments)
}

/// Returns the labels of what is found.
fn doctor(ns: &Ns, words: &str) -> Vec<String> {
    let out = try_doctor(ns, &format!("--json {words}"));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let answer: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let findings = answer["findings"].as_array().expect("a list");
    let expected = if findings.is_empty() { 0 } else { 3 };
    assert_eq!(out.status.code(), Some(expected), "{text}");
    let label = |finding: &Value| finding["problem"].as_str().expect("a label").to_owned();
    // The machine may be busy, may have an engine, and may not take BPF programs.
    let machine = [
        "backlog-drops",
        "engine-socket",
        "old-kernel",
        "packet-plane",
    ];
    let labels = findings.iter().map(label);
    labels
        .filter(|label| !machine.contains(&label.as_str()))
        .collect()
}

/// Creates a cause, finds it, and removes it.
#[track_caller]
fn assert_found(ns: &Ns, words: &str, label: &str, create: impl FnOnce(), remove: impl FnOnce()) {
    assert_eq!(doctor(ns, words), Vec::<String>::new(), "before {label}");
    create();
    assert_eq!(doctor(ns, words), [label]);
    remove();
    assert_eq!(doctor(ns, words), Vec::<String>::new(), "after {label}");
}

fn socket(router: &Router) -> String {
    format!("--socket {}", router.socket().display())
}

fn healthy_hosts_have_no_finding(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    let _member = GroupMember::any_source(&star.rcv, "eth1", "239.1.2.3");
    eventually("the member", 1, || known_groups(&router));
    let inject = Injector::new(&star.src, "eth0");
    (0..20).for_each(|_| inject.send(&Udp::new("10.0.0.10:9", "239.1.2.3:5000", "x").frame()));
    router.expect_routed("p", "out1", 20);
    for (ns, words) in [
        (&star.src, "--interface eth0".to_owned()),
        (&star.rcv, "--interface eth1 --group 239.1.2.3".to_owned()),
        (&star.rtr, socket(&router)),
        (&star.rtr, format!("--group 239.1.2.3 {}", socket(&router))),
    ] {
        assert_eq!(doctor(ns, &words), Vec::<String>::new(), "{words}");
    }
    let printed = try_doctor(&star.rtr, &socket(&router));
    let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
    assert!(printed.starts_with("Nothing was found.\n"), "{printed}");
    assert!(printed.contains("and the running mcastor"), "{printed}");
}

fn causes_on_a_host_are_found(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let host = &star.rcv;
    let run = |program: &str, words: &str| {
        let arguments: Vec<&str> = words.split_whitespace().collect();
        let out = host.output(program, &arguments);
        assert!(
            out.status.success(),
            "{words}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
    };
    let ip = |words: &str| host.ip(words);
    let iptables = |words: &str| run("iptables", words);
    let _member = GroupMember::any_source(host, "eth1", "239.1.2.3");

    let words = "--interface eth1";
    assert_found(
        host,
        words,
        "interface-down",
        || ip("link set eth1 down"),
        || {
            ip("link set eth1 up");
            host.wait_until_up("eth1");
            host.ip_batch("route add default via 10.0.1.1\nroute add 224.0.0.0/4 dev eth1\n");
        },
    );
    assert_found(
        host,
        words,
        "no-carrier",
        || {
            star.rtr.ip("link set out1 down");
            eventually("no carrier", true, || doctor(host, words) == ["no-carrier"]);
        },
        || {
            star.rtr.ip("link set out1 up");
            host.wait_until_up("eth1");
        },
    );
    assert_found(
        host,
        words,
        "no-multicast-flag",
        || ip("link set eth1 multicast off"),
        || ip("link set eth1 multicast on"),
    );
    assert_found(
        host,
        words,
        "multicast-route",
        || {
            host.ip_batch(
                "link add other type veth peer name peer\nlink set peer up\nlink set other up\nroute add 239.0.0.0/8 dev other\n",
            )
        },
        || ip("link del other"),
    );
    assert_found(
        host,
        "--group 239.1.2.3",
        "firewall-drops-igmp",
        || iptables("-A INPUT -p igmp -j DROP"),
        || iptables("-D INPUT -p igmp -j DROP"),
    );
    assert_found(
        host,
        "",
        "firewall-drops-multicast",
        || iptables("-A INPUT -d 224.0.0.0/4 -j DROP"),
        || iptables("-D INPUT -d 224.0.0.0/4 -j DROP"),
    );
    assert_found(
        host,
        "",
        "snooping-without-querier",
        || {
            host.ip_batch("link add br0 type bridge\nlink set br0 up\nlink add p type veth peer name q\nlink set p master br0\nlink set p up\n")
        },
        || ip("link set br0 type bridge mcast_querier 1"),
    );
    assert_found(
        host,
        "",
        "querier-without-snooping",
        || ip("link set br0 type bridge mcast_snooping 0"),
        || ip("link del br0"),
    );
    assert_found(
        host,
        "",
        "max-memberships",
        || host.sysctl("net/ipv4/igmp_max_memberships", "1"),
        || host.sysctl("net/ipv4/igmp_max_memberships", "20"),
    );
    let default = host.try_ip("route show default").unwrap_or_default();
    let via = default
        .split_whitespace()
        .nth(2)
        .expect("a default route")
        .to_owned();
    assert_found(
        host,
        "",
        "reverse-path-filter",
        || {
            host.sysctl("net/ipv4/conf/eth1/rp_filter", "1");
            ip("route del default");
        },
        || ip(&format!("route add default via {via}")),
    );
    assert_eq!(doctor(host, "--interface eth7"), ["interface-missing"]);
    assert_eq!(doctor(host, "--group 239.7.7.7"), ["no-report"]);
    let printed = try_doctor(host, "--interface eth7");
    let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
    assert!(
        printed.contains("1. interface-missing (certain)"),
        "{printed}"
    );
    assert!(
        printed.contains("Not examined: the running mcastor"),
        "{printed}"
    );
    assert!(printed.lines().all(|line| line.len() <= 80), "{printed}");
    assert!(!printed.contains("?."), "{printed}");
}

fn causes_at_the_router_are_found(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, "");
    let words = socket(&router);
    assert_eq!(doctor(&star.rtr, &words), ["nothing-configured"]);
    router.run("add in 225.1.2.3 out1");
    let send = |group: &str, ttl: u8| {
        let inject = Injector::new(&star.src, "eth0");
        inject.send(
            &Udp::new("10.0.0.10:9", &format!("{group}:5000"), "x")
                .ttl(ttl)
                .frame(),
        );
    };
    let rtr = &star.rtr;
    assert_found(
        rtr,
        &words,
        "interface-pending",
        || _ = router.run("add in 225.7.7.7 eth7"),
        || _ = router.run("remove in 225.7.7.7"),
    );
    assert_found(
        rtr,
        &words,
        "mtu-mismatch",
        || rtr.ip("link set out1 mtu 1400"),
        || rtr.ip("link set out1 mtu 1500"),
    );
    assert_found(
        rtr,
        &words,
        "same-subnet",
        || rtr.ip("addr add 10.0.0.77/24 dev out1"),
        || rtr.ip("addr del 10.0.0.77/24 dev out1"),
    );
    // Not routed on purpose, unless somebody asks.
    send("239.9.9.9", 64);
    router.expect_dropped("no_route", "in", 1);
    assert_eq!(doctor(rtr, &words), Vec::<String>::new());
    let asked = doctor(rtr, &format!("--group 239.9.9.9 {words}"));
    assert_eq!(asked, ["no-report", "packets-dropped"]);
    send("225.1.2.3", 1);
    router.expect_dropped("ttl_expired", "in", 1);
    assert_eq!(doctor(rtr, &words), ["packets-dropped"]);
    let printed = try_doctor(rtr, &words);
    let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
    assert!(printed.contains("Raise the TTL at the sender"), "{printed}");
}

fn users_without_capabilities_are_told_what_is_missing(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let doctor_as_user = |keep: &str| {
        let caps = format!("--bounding-set=-all{keep} --inh-caps=-all");
        let mut arguments = vec!["--reuid=65534", "--clear-groups"];
        arguments.extend(caps.split_whitespace());
        arguments.extend([BINARY, "doctor", "--json"]);
        let out = star.src.output("setpriv", &arguments);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert_eq!(out.status.code(), Some(3), "{text}");
        text
    };
    let found = doctor_as_user("");
    assert!(
        found.contains("\"missing-capability\"") && found.contains("no CAP_NET_RAW"),
        "{found}"
    );
    assert!(!found.contains("packet-plane"), "{found}");
    let lacking = [
        "--bounding-set=-bpf,-perfmon,-sys_admin",
        BINARY,
        "doctor",
        "--json",
    ];
    let out = star.src.output("setpriv", &lacking);
    let found = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        found.contains("\"packet-plane\"") && found.contains("need CAP_BPF and CAP_PERFMON,"),
        "{found}"
    );
    let row = route("r", "in", "", "225.1.2.3", &["out1"], "");
    let router = Router::start(lab, &star.rtr, &row);
    // A router that runs as root has what it needs.
    assert_eq!(doctor(&star.rtr, &socket(&router)), Vec::<String>::new());
}

fn run(ns: &Ns, program: &str, words: &str) {
    let arguments: Vec<&str> = words.split_whitespace().collect();
    let out = ns.output(program, &arguments);
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{program} {words}: {error}");
}

fn other_programs_and_rules_are_found(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let rtr = &star.rtr;
    let router = Router::start(lab, rtr, &route("r", "in", "", "225.1.2.3", &["out1"], ""));
    let words = socket(&router);
    let iptables = |words: &str| run(rtr, "iptables", words);
    assert_found(
        rtr,
        &words,
        "ttl-rule",
        || iptables("-t mangle -A PREROUTING -d 225.0.0.0/8 -j TTL --ttl-set 16"),
        || iptables("-t mangle -D PREROUTING -d 225.0.0.0/8 -j TTL --ttl-set 16"),
    );
    rtr.ip_batch(
        "link add br0 type bridge mcast_querier 1\nlink set br0 up\n\
         link add p type veth peer name q\nlink set p master br0\nlink set p up\n",
    );
    rtr.sysctl("net/bridge/bridge-nf-call-iptables", "1");
    assert_found(
        rtr,
        &words,
        "bridge-netfilter",
        || iptables("-P FORWARD DROP"),
        || iptables("-P FORWARD ACCEPT"),
    );
    let mut kernel = None;
    let conf = "phyint in enable ttl-threshold 1\nphyint out1 enable ttl-threshold 1\n\
                mroute from in group 225.9.9.9 source 10.0.0.10 to out1\n";
    assert_eq!(doctor(rtr, &words), Vec::<String>::new());
    kernel.replace(KernelRouter::start(lab, rtr, conf));
    assert_eq!(doctor(rtr, &words), ["other-router"]);
    drop(kernel.take());
    eventually("no other router", Vec::<String>::new(), || {
        doctor(rtr, &words)
    });
}

/// Names of an engine and of the default route are not searched with `ip link`.
fn missing_engine_and_default_route_are_named(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let toml = route("r", "in", "", "225.1.2.3", &["network:cameras"], "")
        + "[[proxy]]\ndownstream = [\"out1\"]\n[docker]\nsocket = \"/run/no-engine.sock\"\n";
    let router = Router::start(lab, &star.rtr, &toml);
    let engine = "network:cameras: the container engine does not answer: /run/no-engine.sock: ";
    let engine_remedy = "mount the socket: -v /run/no-engine.sock:/run/no-engine.sock:ro";
    let default_route = "route:default: there is no default route; set `upstream` in the proxy";
    let is_named = |text: &str| {
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        [engine, engine_remedy, default_route]
            .iter()
            .all(|part| text.contains(part))
    };
    eventually("hints", true, || {
        let pending = router.control().show("pending");
        is_named(&serde_json::Value::from(pending).to_string())
    });
    let words = format!("--json {}", socket(&router));
    let found = try_doctor(&star.rtr, &words).stdout;
    let found = String::from_utf8_lossy(&found);
    assert!(is_named(&found), "{found}");
    assert!(!found.contains("check the name"), "{found}");
    let log = router.program.stderr();
    let waiting = "waiting for interface route:default (there is no default route; set `upstream`";
    assert!(log.contains(waiting), "{log}");
}

fn other_forwarder_on_the_link_is_found(lab: &Lab) {
    let net = ParallelRouters::new(lab, 2, "mcast_snooping 0");
    let start = |n: usize| {
        let row = route("r", "lan0", "", "225.1.2.3", &["lan1"], "");
        Router::start(lab, &net.routers[n], &row)
    };
    let routers = [start(0), start(1)];
    for (ns, router) in net.routers.iter().zip(&routers) {
        assert_eq!(doctor(ns, &socket(router)), Vec::<String>::new());
    }
    let to = "225.1.2.3:5000";
    let stream = NumberedStream::start(&net.src, "eth0", "10.0.0.100:9", to, 100);
    let second = Router::launch(
        lab,
        &net.routers[0],
        "[plane]\nshared = true\n[http]\nlisten = \"off\"\n",
        &[],
    );
    eventually(
        "two processes",
        vec!["duplicate-forwarder".to_owned()],
        || doctor(&net.routers[0], &socket(&routers[0])),
    );
    let warning = format!(
        "another mcastor (process {}) forwards packets in this network namespace",
        routers[0].program.pid()
    );
    let log = second.program.stderr();
    assert_eq!(log.matches(&warning).count(), 1, "{log}");
    let log = routers[0].program.stderr();
    assert!(!log.contains("another mcastor"), "{log}");
    second.stop();
    // The one with the higher address yields, and says to whom.
    eventually("the other forwarder", true, || {
        let findings =
            (net.routers.iter().zip(&routers)).flat_map(|(ns, router)| doctor(ns, &socket(router)));
        findings
            .into_iter()
            .any(|label| label == "duplicate-forwarder")
    });
    stream.finish();
    let warnings = routers.iter().map(|router| router.program.stderr());
    let warned =
        warnings.filter(|log| log.matches("also forwards streams to this link").count() == 1);
    assert_eq!(warned.count(), 1);
}

/// A process that gets no CPU time loses what its socket cannot hold.
fn packets_that_a_stopped_process_loses_are_found(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let row = route("r", "in", "", "225.1.2.3", &["out1"], "");
    let mut router = Router::start(lab, &star.rtr, &row);
    let words = socket(&router);
    assert_eq!(doctor(&star.rtr, &words), Vec::<String>::new());
    router.program.signal(libc::SIGSTOP);
    let inject = Injector::new(&star.src, "eth0");
    let frame = Udp::new("10.0.0.10:9", "225.1.2.3:5000", [0; 1400]).frame();
    (0..30_000).for_each(|_| inject.send(&frame));
    router.program.signal(libc::SIGCONT);
    eventually("the loss is found", true, || {
        doctor(&star.rtr, &words).contains(&"capture-drops".to_owned())
    });
}

fn wrong_checksums_are_found(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    let receiver = UdpRx::join(&star.rcv, "eth1", "239.1.2.3:5000");
    eventually("the member", 1, || known_groups(&router));
    let inject = Injector::new(&star.src, "eth0");
    let mut frame = Udp::new("10.0.0.10:9", "239.1.2.3:5000", "x").frame();
    inject.send(&frame);
    receiver.expect(1);
    assert_eq!(doctor(&star.rcv, "--interface eth1"), Vec::<String>::new());
    // The UDP checksum, behind Ethernet and IPv4.
    frame[14 + 20 + 6] ^= 1;
    inject.send(&frame);
    eventually(
        "the drop is found",
        vec!["checksum-errors".to_owned()],
        || doctor(&star.rcv, "--interface eth1"),
    );
}

fn sandboxes_without_packet_sockets_and_old_kernels_are_found(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let found = |program: &str, arguments: &[&str]| {
        let out = star.src.output(program, arguments);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert_eq!(out.status.code(), Some(3), "{text}");
        text
    };
    // Like RestrictAddressFamilies= without AF_PACKET: a filter that answers EPERM.
    let sandbox = format!(
        "{}/tests/netns/lab/no_packet_socket.py",
        env!("CARGO_MANIFEST_DIR")
    );
    let text = found("/usr/bin/python3", &[&sandbox, BINARY, "doctor", "--json"]);
    assert!(text.contains("\"no-packet-socket\""), "{text}");
    // The personality of the process makes the kernel report a release of Linux 2.6.
    let text = found("setarch", &["--uname-2.6", BINARY, "doctor", "--json"]);
    assert!(text.contains("\"old-kernel\""), "{text}");
    // A socket of another user, as /var/run/docker.sock is for users outside its group.
    let script = "mount -t tmpfs none /run && mkdir /run/podman && \
                  python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"/run/podman/podman.sock\")' && \
                  chmod 600 /run/podman/podman.sock && \
                  exec setpriv --reuid=65534 --clear-groups \"$0\" doctor --json";
    let text = found("unshare", &["--mount", "sh", "-c", script, BINARY]);
    assert!(text.contains("\"engine-socket\""), "{text}");
}

fn probe_proves_the_path(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    let [from, to] = [(&star.src, "eth0"), (&star.rcv, "eth1")]
        .map(|(ns, interface)| format!("netns:{}/{interface}", ns.name()));
    let probe = |words: &str| {
        let words = format!("--json --probe {from} {to} {words} {}", socket(&router));
        let out = try_doctor(&star.rtr, &words);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        (answer, out.status.code())
    };
    let (answer, code) = probe("");
    assert_eq!(code, Some(0), "{answer}");
    let report = &answer["probe"];
    let number = |key: &str| report[key].as_u64().expect("a number");
    assert_eq!((number("sent"), number("lost")), (100, 0), "{report}");
    assert_eq!(number("received") + number("before_first"), 100, "{report}");
    assert_eq!((number("ttl_sent"), number("ttl_received")), (16, 15));
    assert_eq!(report["source"], "10.0.0.10");
    router.expect_routed("p", "out1", number("received"));

    run(&star.rtr, "ip", "link set out1 down");
    let (answer, code) = probe("--group 239.7.7.7");
    assert_eq!(code, Some(3), "{answer}");
    assert_eq!(answer["findings"][0]["problem"], "probe-lost");
    assert_eq!(answer["probe"]["received"], 0);
    let missing = try_doctor(&star.rtr, &format!("--probe {from} netns:none/eth0"));
    let error = String::from_utf8_lossy(&missing.stderr);
    assert!(
        error.contains("the network namespace of netns:none/eth0"),
        "{error}"
    );
}

/// The rule of an internal network drops what one container sends to the other.
fn probe_reaches_containers(lab: &Lab) {
    let site = Site::bridged(lab);
    let docker = &site.docker;
    docker.run("network create --subnet 172.31.0.0/24 plain");
    for (network, names) in [
        ("plain", ["camera", "viewer"]),
        ("bridged", ["inner-camera", "inner-viewer"]),
    ] {
        for name in names {
            docker.run_idle(name, &format!("--network {network}"));
        }
    }
    let probe = |from: &str, to: &str| {
        let docker = docker.command();
        let mut doctor = site.host.command(BINARY);
        doctor.envs(
            docker
                .get_envs()
                .filter_map(|(key, value)| Some((key, value?))),
        );
        doctor.args(["doctor", "--json", "--probe"]);
        doctor.args([format!("container:{from}"), format!("container:{to}/eth0")]);
        let out = doctor.output().expect("the doctor");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        let findings = answer["findings"].as_array().expect("a list");
        let labels: Vec<_> = (findings.iter())
            .map(|finding| finding["problem"].as_str().expect("a label").to_owned())
            .collect();
        (answer["probe"].clone(), labels)
    };
    let (report, labels) = probe("camera", "viewer");
    assert_eq!(
        (&report["sent"], &report["lost"]),
        (&100.into(), &0.into()),
        "{report}"
    );
    assert_ne!(report["received"], 0, "{report}");
    assert!(!labels.contains(&"probe-lost".to_owned()), "{labels:?}");
    let (report, labels) = probe("inner-camera", "inner-viewer");
    assert_eq!(report["received"], 0, "{report}");
    for label in ["probe-lost", "internal-network"] {
        assert!(labels.contains(&label.to_owned()), "{labels:?}");
    }
}
