//! Containers of a real Docker Engine, and multicast between them and a LAN.

use super::cases;
use crate::lab::{
    BINARY, Capture, Docker, Lab, LinkEnd, Ns, NumberedStream, Program, Router, UdpRx, UdpTx,
    connect, eventually, missing, sequence_number,
};

/// A packet that has not arrived by then counts as lost.
const LOST_AFTER: std::time::Duration = std::time::Duration::from_secs(2);

cases!("docker":
    #[Docker] bridge_network_receives_and_sends,
    #[Docker] containers_join_with_every_igmp_and_mld_version,
    #[Docker] names_resolve_as_containers_and_networks_change,
    #[Docker] stream_survives_receiver_network_and_engine_restarts,
    #[Docker] names_wait_until_the_engine_starts,
    #[Docker] misspelt_name_is_answered_with_a_similar_one,
    #[Docker] overlay_network_names_the_gateway_bridge,
);

/// A host with an engine, and a LAN with one other host.
///
///     lan eth0 ---- lan0 host (engine)
///     10.0.0.10     10.0.0.1
///     fd00::10      fd00::1
pub(super) struct Site {
    pub(super) lan: Ns,
    pub(super) host: Ns,
    pub(super) docker: Docker,
}

impl Site {
    pub(super) fn new(lab: &Lab) -> Self {
        Self::with_engine(lab, Docker::start)
    }

    /// Creates a site with the engine that `start` starts.
    pub(super) fn with_engine(lab: &Lab, start: fn(&Lab, &Ns) -> Docker) -> Self {
        let (lan, host) = (lab.ns("lan"), lab.ns("host"));
        connect(
            LinkEnd::new(&host, "lan0", &["10.0.0.1/24", "fd00::1/64"]),
            LinkEnd::new(&lan, "eth0", &["10.0.0.10/24", "fd00::10/64"]),
        );
        host.ip("route add default via 10.0.0.10");
        lan.ip("route add default dev eth0");
        let docker = start(lab, &host);
        Self { lan, host, docker }
    }

    /// Creates a site with an isolated network for IPv4 and IPv6: 172.30.0.0/24 and fd30::/64.
    pub(super) fn bridged(lab: &Lab) -> Self {
        let site = Self::new(lab);
        site.network("bridged", 30);
        site
    }

    pub(super) fn network(&self, name: &str, n: u8) {
        self.docker.run(&format!(
            "network create --internal --ipv6 --subnet 172.{n}.0.0/24 --subnet fd{n:02}::/64 {name}"
        ));
    }

    pub(super) fn router(&self, lab: &Lab, toml: &str) -> Router {
        Router::start(
            lab,
            &self.host,
            &format!("{}{toml}", self.docker.settings()),
        )
    }

    /// Starts `mcastor <words>` on the other host of the LAN.
    pub(super) fn on_lan(&self, lab: &Lab, words: &str) -> Program {
        let words: Vec<&str> = words.split_whitespace().collect();
        self.lan.spawn(lab, BINARY, &words)
    }
}

/// Returns the settings of a proxy that also forwards packets sent with a TTL of 1.
pub(super) fn proxy(downstream: &str) -> String {
    format!(
        "[[proxy]]\nname = \"p\"\ndownstream = [\"{downstream}\"]\nttl = {{ set = 16 }}\n\
         [proxy.timers]\nquery_interval = \"2s\"\nquery_response_interval = \"300ms\"\n\
         last_member_query_interval = \"100ms\"\n"
    )
}

/// Returns the firewall rules and sysctls of a namespace, without values that change by themselves.
fn firewall_and_sysctls(ns: &Ns) -> String {
    let mut all = String::new();
    for program in ["iptables-save", "ip6tables-save"] {
        let out = ns.output(program, &[]);
        assert!(out.status.success(), "{program}");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            // Removes the counters of `:FORWARD DROP [12:3456]`.
            all += line.split(" [").next().unwrap_or(line);
            all.push('\n');
        }
    }
    let out = ns.output("sysctl", &["--all", "--pattern", "^net\\."]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let volatile = ["conntrack_count", "inet_peer", "file-nr"];
    for line in text.lines() {
        if !volatile.iter().any(|c| line.contains(c)) {
            all += line;
            all.push('\n');
        }
    }
    assert!(all.contains("net.ipv4.ip_forward"), "{all}");
    all
}

/// Checks that a report has `packets` packets of one stream, none lost, with the TTL set.
#[track_caller]
fn assert_complete(report: &serde_json::Value, packets: u64, source: &str) {
    assert_eq!(report["ok"], true, "{report:#}");
    assert_eq!(report["received"], packets, "{report:#}");
    let streams = report["streams"].as_array().expect("streams");
    assert_eq!(streams.len(), 1, "{report:#}");
    let seen = streams[0]["source"].as_str().expect("a source");
    assert!(seen.starts_with(source), "from {seen}, not {source}");
    for ttl in ["ttl_min", "ttl_max"] {
        assert_eq!(streams[0][ttl], 16, "{report:#}");
    }
}

/// The main use case, for IPv4 and IPv6: the LAN sends 225.1.2.3 port 5000 with a TTL of 1 and 2, a
/// listener in an isolated network receives, and then the other way round. No firewall rule and no
/// sysctl changes.
fn bridge_network_receives_and_sends(lab: &Lab) {
    let site = Site::bridged(lab);
    let docker = &site.docker;
    let bridge = docker.bridge("bridged");
    let details = site.host.try_ip(&format!("-details link show {bridge}"));
    let details = details.expect("the bridge");
    assert!(details.contains("mcast_snooping 1"), "{details}");
    let versions = [
        ("v4", "225.1.2.3", "10.0.0.10", "172.30.0."),
        ("v6", "ff0e::8000:123", "fd00::10", "fd30::"),
    ];
    let listen = |name: &str, group: &str| {
        let words = format!("recv --interface eth0 --group {group} --count 1000 --json");
        docker.run_mcastor(name, "--network bridged", &words);
        docker.wait_for_log(name, "joined");
    };
    for (version, group, ..) in versions {
        listen(&format!("listener-{version}"), group);
    }
    let before = firewall_and_sysctls(&site.host);
    let router = site.router(lab, &proxy("network:bridged"));
    for (version, group, source, _) in versions {
        eventually("a member", true, || {
            let groups = router.control().show("groups");
            let is_member = |g: &serde_json::Value| g["role"] == "router" && g["group"] == group;
            groups.iter().any(is_member)
        });
        for ttl in [1, 2] {
            let words = format!(
                "send --interface eth0 --group {group} --ttl {ttl} --count 100 --rate 1000"
            );
            // Two senders with one address are two streams with different IDs.
            let mut sender = site.on_lan(lab, &words);
            assert!(sender.wait().success(), "{}", sender.stderr());
        }
        router.expect_routed("p", &bridge, if version == "v4" { 200 } else { 400 });
        let name = format!("listener-{version}");
        docker.run(&format!("kill --signal INT {name}"));
        let report = docker.report(&name);
        let streams = report["streams"].as_array().expect("streams").clone();
        assert_eq!(report["received"], 200, "{report:#}");
        assert_eq!(report["lost"], 0, "{report:#}");
        for stream in streams {
            assert_eq!(stream["source"], source, "{report:#}");
            assert_eq!(stream["ttl_min"], 16, "{report:#}");
        }
    }
    // The opposite direction.
    for (version, group, _, prefix) in versions {
        let words = format!("recv --interface eth0 --group {group} --count 100 --json");
        let mut listener = site.on_lan(lab, &words);
        eventually("joined on the LAN", true, || {
            listener.stderr().contains("joined")
        });
        let words =
            format!("send --interface eth0 --group {group} --ttl 1 --count 100 --rate 1000");
        docker.run_mcastor(&format!("sender-{version}"), "--network bridged", &words);
        assert_eq!(docker.wait(&format!("sender-{version}")), 0);
        assert!(listener.wait().success(), "{}", listener.stdout());
        let report = serde_json::from_str(&listener.stdout()).expect("a report");
        assert_complete(&report, 100, prefix);
    }
    docker.run("rm --force listener-v4 listener-v6 sender-v4 sender-v6");
    for (version, group, ..) in versions {
        listen(&format!("listener-{version}"), group);
    }
    let log = router.program.stderr();
    assert!(log.contains("default route is on lan0"), "{log}");
    router.stop();
    assert_unchanged(&before, &firewall_and_sysctls(&site.host));
}

/// Checks that both texts are equal, except for the names of veth interfaces, which are different
/// for every container.
#[track_caller]
fn assert_unchanged(before: &str, after: &str) {
    let normalised = |text: &str| -> Vec<String> {
        let mut lines: Vec<String> = text
            .lines()
            .map(|line| match line.find(".veth") {
                Some(at) => {
                    let end = line[at + 1..].find('.').map_or(line.len(), |e| at + 1 + e);
                    format!("{}.veth{}", &line[..at], &line[end..])
                }
                None => line.to_string(),
            })
            .collect();
        lines.sort();
        lines.dedup();
        lines
    };
    let (before, after) = (normalised(before), normalised(after));
    let changed: Vec<&String> = before
        .iter()
        .filter(|l| !after.contains(l))
        .chain(after.iter().filter(|l| !before.contains(l)))
        .collect();
    assert!(changed.is_empty(), "changed: {changed:#?}");
}

/// The kernel of a container joins with each protocol version, behind a snooping bridge.
fn containers_join_with_every_igmp_and_mld_version(lab: &Lab) {
    let site = Site::bridged(lab);
    site.docker.run_idle("app", "--network bridged");
    let app = site.docker.namespace_of(lab, "app");
    let router = site.router(lab, &proxy("network:bridged"));
    let cases = [
        ("ipv4/conf/eth0/force_igmp_version", "3", "225.1.2.3:5000"),
        ("ipv4/conf/eth0/force_igmp_version", "2", "225.1.2.2:5000"),
        (
            "ipv6/conf/eth0/force_mld_version",
            "2",
            "[ff0e::8000:2]:5000",
        ),
        (
            "ipv6/conf/eth0/force_mld_version",
            "1",
            "[ff0e::8000:1]:5000",
        ),
    ];
    for (sysctl, version, to) in cases {
        app.sysctl(&format!("net/{sysctl}"), version);
        let group = to.rsplit_once(':').expect("a port").0;
        let group = group.trim_matches(['[', ']']);
        let rx = UdpRx::join(&app, "eth0", to);
        eventually(
            "the version of the member",
            Some(version.to_string()),
            || {
                let groups = router.control().show("groups");
                let is_member =
                    |g: &&serde_json::Value| g["role"] == "router" && g["group"] == group;
                let version = &groups.iter().find(is_member)?["version"];
                version.as_str().map(String::from)
            },
        );
        let tx = UdpTx::new(&site.lan, "eth0", to);
        tx.ttl(1);
        (0..50).for_each(|n: u32| tx.send(n.to_be_bytes()));
        rx.expect(50);
        drop(rx);
        eventually("the member left", false, || {
            let groups = router.control().show("groups");
            groups
                .iter()
                .any(|g| g["role"] == "router" && g["group"] == group)
        });
    }
}

pub(super) fn to_names(to: &[&str]) -> String {
    format!(
        "[[route]]\nname = \"r\"\nfrom = \"lan0\"\ngroup = \"225.1.2.3\"\nto = {to:?}\n\
         ttl = {{ set = 16 }}\n"
    )
}

pub(super) fn waiting(router: &Router) -> Vec<String> {
    let pending = router.control().show("pending");
    let names = pending.iter().flat_map(|p| p["waiting_for"].as_array());
    let mut names: Vec<String> = names
        .flatten()
        .filter_map(|n| n.as_str().map(String::from))
        .collect();
    names.sort();
    names
}

/// Sends until the receiver gets a packet, then checks that each packet arrives once.
#[track_caller]
pub(super) fn assert_reachable(site: &Site, inside: &Ns, iface: &str) {
    let rx = UdpRx::join(inside, iface, "225.1.2.3:5000");
    let tx = UdpTx::new(&site.lan, "eth0", "225.1.2.3:5000");
    eventually("a packet arrives", true, || {
        tx.send("hello");
        rx.count() > 0
    });
    let before = rx.count();
    // A duplicate of an earlier packet may still be on its way, so this is tried again.
    eventually("one packet arrives once", true, || {
        let before = rx.count();
        tx.send("again");
        crate::lab::wait_until(LOST_AFTER, || rx.count() > before) && rx.count() == before + 1
    });
    assert!(rx.count() > before);
    let (from, _) = rx.received().pop().expect("a packet");
    assert_eq!(from.to_string(), "10.0.0.10");
}

fn names_resolve_as_containers_and_networks_change(lab: &Lab) {
    let site = Site::bridged(lab);
    let docker = &site.docker;
    let names = ["container:app", "network:other", "label:role=cam"];
    let router = site.router(lab, &to_names(&names));
    let expect_pending = |expected: &[&str]| {
        let expected: Vec<String> = expected.iter().map(|n| n.to_string()).collect();
        eventually("pending names", expected, || waiting(&router));
    };
    expect_pending(&["container:app", "label:role=cam", "network:other"]);
    // The container appears.
    docker.run_idle("app", "--network bridged");
    expect_pending(&["label:role=cam", "network:other"]);
    assert_reachable(&site, &docker.namespace_of(lab, "app"), "eth0");
    // A restart creates another veth interface.
    docker.run("restart --time 0 app");
    assert_reachable(&site, &docker.namespace_of(lab, "app"), "eth0");
    // The container is recreated.
    docker.run("rm --force app");
    expect_pending(&["container:app", "label:role=cam", "network:other"]);
    docker.run_idle("app", "--network bridged");
    assert_reachable(&site, &docker.namespace_of(lab, "app"), "eth0");
    // The container is renamed, and renamed back.
    docker.run("rename app apple");
    expect_pending(&["container:app", "label:role=cam", "network:other"]);
    docker.run("rename apple app");
    expect_pending(&["label:role=cam", "network:other"]);
    // A container is selected by label.
    docker.run_idle("cam", "--network bridged --label role=cam");
    expect_pending(&["network:other"]);
    assert_reachable(&site, &docker.namespace_of(lab, "cam"), "eth0");
    // A network appears; a container is disconnected and connected again.
    site.network("other", 31);
    expect_pending(&[]);
    let before = docker.bridge("other");
    docker.run_idle("guest", "--network other");
    assert_reachable(&site, &docker.namespace_of(lab, "guest"), "eth0");
    docker.run("network disconnect bridged app");
    expect_pending(&["container:app"]);
    docker.run("network connect bridged app");
    expect_pending(&[]);
    let app = docker.namespace_of(lab, "app");
    // The engine chooses the interface name inside.
    let addresses = app.try_ip("-o -4 addr show").expect("addresses");
    let line = addresses.lines().find(|l| l.contains(" 172.30.0."));
    let iface = line.and_then(|l| l.split_whitespace().nth(1));
    assert_reachable(&site, &app, iface.expect("an address of the network"));
    // The recreated network has another bridge.
    docker.run("rm --force guest");
    docker.run("network rm other");
    expect_pending(&["network:other"]);
    site.network("other", 31);
    expect_pending(&[]);
    assert_ne!(docker.bridge("other"), before);
    docker.run_idle("guest", "--network other");
    assert_reachable(&site, &docker.namespace_of(lab, "guest"), "eth0");
    router.stop();
}

/// A receiver, its network and the engine are restarted. Another receiver gets every packet.
fn stream_survives_receiver_network_and_engine_restarts(lab: &Lab) {
    let mut site = Site::bridged(lab);
    site.network("other", 31);
    site.docker.run_idle("permanent", "--network bridged");
    site.docker.run_idle("restarted", "--network other");
    let permanent = site.docker.namespace_of(lab, "permanent");
    let toml = to_names(&[
        "container:permanent",
        "container:restarted",
        "network:other",
    ]);
    let router = site.router(lab, &toml);
    eventually("all are found", Vec::<String>::new(), || waiting(&router));
    let wire = Capture::new(&permanent, "eth0");
    let stream = NumberedStream::start(&site.lan, "eth0", "10.0.0.10:9", "225.1.2.3:5000", 500);
    stream.wait_for_more(200);
    let docker = &site.docker;
    docker.run("restart --time 0 restarted");
    stream.wait_for_more(100);
    docker.run("rm --force restarted");
    docker.run("network rm other");
    stream.wait_for_more(100);
    site.network("other", 31);
    docker.run_idle("restarted", "--network other");
    eventually("all are found again", Vec::<String>::new(), || {
        waiting(&router)
    });
    stream.wait_for_more(100);
    let received = |wire: &Capture| -> Vec<u32> {
        let all = wire.to("225.1.2.3");
        all.iter().map(|s| sequence_number(s.payload())).collect()
    };
    let sent = stream.finish();
    eventually("the permanent receiver has all", Vec::<u32>::new(), || {
        missing(sent, &received(&wire))
    });
    assert_eq!(received(&wire).len(), sent as usize, "duplicates arrived");
    // The engine stops with its containers and starts again.
    site.docker.stop_engine();
    // The network is still found, because its bridge exists without the engine.
    eventually("both containers are pending", 2, || waiting(&router).len());
    site.docker.start_engine(lab);
    site.docker.run("start permanent restarted");
    eventually("found after the restart", Vec::<String>::new(), || {
        waiting(&router)
    });
    assert_reachable(&site, &site.docker.namespace_of(lab, "permanent"), "eth0");
    let log = router.program.stderr();
    assert!(
        log.contains("names of containers are not resolved until the engine answers"),
        "{log}"
    );
    router.stop();
}

fn names_wait_until_the_engine_starts(lab: &Lab) {
    let mut site = Site::bridged(lab);
    site.docker.run_idle("app", "--network bridged");
    site.docker.stop_engine();
    let router = site.router(lab, &to_names(&["container:app", "container:unknown"]));
    eventually("the missing engine is logged", true, || {
        let log = router.program.stderr();
        log.contains("names of containers are not resolved until the engine answers")
            && log.contains("docker.sock") | log.contains("/sock")
    });
    assert_eq!(waiting(&router), ["container:app", "container:unknown"]);
    router.expect_metric("mcastor_docker_connected", &[], 0);
    // The message is logged once, however often the connection is tried.
    let logged = || {
        router
            .program
            .stderr()
            .matches("names of containers are not resolved until the engine answers")
            .count()
    };
    assert_eq!(logged(), 1, "{}", router.program.stderr());
    site.docker.start_engine(lab);
    site.docker.run("start app");
    eventually("found", vec!["container:unknown".to_string()], || {
        waiting(&router)
    });
    assert_reachable(&site, &site.docker.namespace_of(lab, "app"), "eth0");
    router.expect_metric("mcastor_docker_connected", &[], 1);
    router.stop();
}

/// Returns the hints of `show pending`.
pub(super) fn hints(router: &Router) -> Vec<String> {
    let pending = router.control().show("pending");
    let hints = pending.iter().flat_map(|p| p["hints"].as_array());
    let hints = hints.flatten().filter_map(|h| h.as_str().map(String::from));
    hints.collect()
}

/// A name that no interface has is answered with the nearest name of the engine, in `show pending`
/// and once in the log.
fn misspelt_name_is_answered_with_a_similar_one(lab: &Lab) {
    let site = Site::new(lab);
    site.network("cameras", 30);
    site.docker.run_idle("home-web-1", "--network cameras");
    let to = ["network:camras", "container:web", "container:other"];
    let router = site.router(lab, &to_names(&to));
    let expected = [
        "network:camras: did you mean network:cameras?",
        "container:web: did you mean container:home-web-1?",
    ];
    eventually("hints", expected.map(String::from).to_vec(), || {
        hints(&router)
    });
    // Changes of rules and containers do not repeat the lines.
    for n in 0..3 {
        site.docker.run_idle(&format!("x{n}"), "--network cameras");
    }
    router.run("add lan0 225.1.2.4 container:x2");
    eventually("the last container is found", 3, || waiting(&router).len());
    let log = router.program.stderr();
    for (name, similar) in [
        ("network:camras", "network:cameras"),
        ("container:web", "container:home-web-1"),
    ] {
        let line = format!("{name} matches no interface: did you mean {similar}?");
        assert_eq!(log.matches(&line).count(), 1, "{log}");
    }
    router.stop();
}

/// The bridge of an overlay network is in a hidden namespace. `network:docker_gwbridge`, of which
/// each container of an overlay network is also a port, works.
fn overlay_network_names_the_gateway_bridge(lab: &Lab) {
    let site = Site::new(lab);
    let docker = &site.docker;
    docker.run("swarm init --advertise-addr 10.0.0.1 --listen-addr 10.0.0.1:2377");
    docker.run("network create --driver overlay --attachable cams");
    docker.run_idle("app", "--network cams");
    let to = ["network:cams", "container:app", "network:docker_gwbridge"];
    let router = site.router(lab, &to_names(&to));
    eventually("only the gateway bridge is found", 2, || {
        waiting(&router).len()
    });
    let hints = hints(&router);
    assert_eq!(hints.len(), 2, "{hints:?}");
    for (hint, name) in hints.iter().zip(to) {
        let rest = hint.strip_prefix(&format!("{name}: ")).unwrap_or_default();
        assert!(rest.contains("overlay"), "{hints:?}");
        assert!(rest.contains("network:docker_gwbridge"), "{hints:?}");
        let line = format!("{name} matches no interface: {rest}");
        assert!(router.program.stderr().contains(&line), "{line}");
    }
    // The second interface of the container is a port of the gateway bridge.
    let app = docker.namespace_of(lab, "app");
    assert_reachable(&site, &app, "eth1");
    router.stop();
}
