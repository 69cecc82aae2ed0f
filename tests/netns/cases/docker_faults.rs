//! Containers, networks and the engine are restarted and recreated under traffic. Each receiver
//! gets every packet for as long as it exists.

use super::cases;
use super::docker::{Site, to_names, waiting};
use crate::lab::{
    Capture, Lab, LinkEnd, Ns, NumberedStream, Router, UdpRx, connect, eventually, missing,
    sequence_number, wait_until,
};

cases!("docker_faults":
    #[Docker] receivers_get_every_packet_while_running,
    #[Docker] live_restore_engine_restart_loses_no_packet,
    #[Docker] source_rewrite_passes_the_reverse_path_filter,
);

const GROUP: &str = "225.1.2.3";
/// Packets per second.
const RATE: u32 = 500;

/// Two container networks with one container each, and a host on a link outside of Docker.
struct Stage {
    site: Site,
    router: Router,
    wired: Capture,
    stream: NumberedStream,
}

impl Stage {
    fn new(lab: &Lab, live_restore: bool) -> Self {
        let mut site = Site::bridged(lab);
        if live_restore {
            site.docker.stop_engine();
            site.docker.live_restore();
            site.docker.start_engine(lab);
        }
        site.network("other", 31);
        site.docker.run_idle("app", "--network bridged");
        site.docker.run_idle("guest", "--network other");
        let far = lab.ns("wired");
        connect(
            LinkEnd::new(&site.host, "wire", &[]),
            LinkEnd::new(&far, "eth0", &[]),
        );
        let toml = to_names(&["container:app", "network:other", "wire"]);
        let router = site.router(lab, &toml);
        let stage = Self {
            wired: Capture::new(&far, "eth0"),
            stream: NumberedStream::start(
                &site.lan,
                "eth0",
                "10.0.0.10:9",
                &format!("{GROUP}:5000"),
                RATE,
            ),
            router,
            site,
        };
        eventually("packets arrive on the wire", true, || {
            !stage.wired.to(GROUP).is_empty()
        });
        stage
    }

    /// Starts to observe a running container.
    fn observe(&self, lab: &Lab, name: &str) -> Observation {
        eventually("the container is found", Vec::<String>::new(), || {
            waiting(&self.router)
        });
        let inside = self.site.docker.namespace_of(lab, name);
        let observation = Observation {
            name: name.into(),
            capture: Capture::new(&inside, "eth0"),
        };
        eventually(&format!("{name} receives packets"), true, || {
            !observation.numbers().is_empty()
        });
        self.wait_until_received(&[&observation]);
        observation
    }

    /// Waits until these containers have received a packet sent after this call, so that later
    /// events cannot affect earlier packets.
    fn wait_until_received(&self, observations: &[&Observation]) {
        self.stream.wait_for_more(50);
        let mark = self.stream.sent() - 1;
        for observation in observations {
            eventually(
                &format!("{} received {mark}", observation.name),
                true,
                || observation.numbers().last() >= Some(&mark),
            );
        }
    }

    /// Stops the stream. Running containers must have received the last packet, and the wire every
    /// packet since its first.
    fn finish(self, running: &[&Observation], ended: &[&Observation]) {
        let first = numbers(&self.wired)[0];
        let sent = self.stream.finish();
        for observation in running {
            eventually(
                &format!("{} received the last", observation.name),
                sent - 1,
                || *observation.numbers().last().expect("a packet"),
            );
        }
        let mut ranges = String::new();
        for observation in running.iter().chain(ended) {
            ranges += &observation.checked_range();
        }
        let on_wire = |wired: &Capture| {
            let mut lost = missing(sent, &numbers(wired));
            lost.retain(|n| *n >= first);
            lost
        };
        eventually("the wire received all", Vec::<u32>::new(), || {
            on_wire(&self.wired)
        });
        let all = numbers(&self.wired).len() as u32;
        assert_eq!(all, sent - first, "duplicates on the wire");
        println!("sent {sent}; none lost on the wire{ranges}");
        self.router.stop();
    }
}

fn numbers(capture: &Capture) -> Vec<u32> {
    let all = capture.to(GROUP);
    all.iter().map(|s| sequence_number(s.payload())).collect()
}

/// The packets that a container received between two of its restarts.
struct Observation {
    name: String,
    capture: Capture,
}

impl Observation {
    fn numbers(&self) -> Vec<u32> {
        numbers(&self.capture)
    }

    /// Checks that no packet is missing or duplicated between the first and the last one. Returns
    /// their numbers as text.
    #[track_caller]
    fn checked_range(&self) -> String {
        let all = self.numbers();
        let gap = all.windows(2).find(|w| w[1] != w[0] + 1);
        assert!(gap.is_none(), "{}: {gap:?}", self.name);
        format!(", {} {}..={}", self.name, all[0], all[all.len() - 1])
    }
}

fn receivers_get_every_packet_while_running(lab: &Lab) {
    let mut stage = Stage::new(lab, false);
    let app = stage.observe(lab, "app");
    let guest = stage.observe(lab, "guest");
    // One receiver restarts. The other is recreated together with its network, whose bridge
    // differs.
    stage.wait_until_received(&[&app, &guest]);
    stage.site.docker.run("restart --time 0 app");
    let app2 = stage.observe(lab, "app");
    stage.wait_until_received(&[&app2, &guest]);
    let docker = &stage.site.docker;
    let bridge = docker.bridge("other");
    docker.run("rm --force guest");
    docker.run("network rm other");
    stage.site.network("other", 31);
    stage.site.docker.run_idle("guest", "--network other");
    let guest2 = stage.observe(lab, "guest");
    assert_ne!(stage.site.docker.bridge("other"), bridge);
    // The engine stops with its containers and starts again.
    stage.wait_until_received(&[&app2, &guest2]);
    stage.site.docker.stop_engine();
    stage.stream.wait_for_more(200);
    stage.site.docker.start_engine(lab);
    stage.site.docker.run("start app guest");
    let app3 = stage.observe(lab, "app");
    let guest3 = stage.observe(lab, "guest");
    stage.wait_until_received(&[&app3, &guest3]);
    stage.finish(&[&app3, &guest3], &[&app, &app2, &guest, &guest2]);
}

/// With `live-restore` the receivers run without interruption.
fn live_restore_engine_restart_loses_no_packet(lab: &Lab) {
    let mut stage = Stage::new(lab, true);
    let app = stage.observe(lab, "app");
    let guest = stage.observe(lab, "guest");
    stage.site.docker.stop_engine();
    let router = &stage.router;
    router.expect_metric("mcastor_docker_connected", &[], 0);
    stage.wait_until_received(&[&app, &guest]);
    stage.site.docker.start_engine(lab);
    stage
        .router
        .expect_metric("mcastor_docker_connected", &[], 1);
    stage.wait_until_received(&[&app, &guest]);
    app.checked_range();
    // Events of the engine are followed again: the rename takes the route away from `app`.
    stage.site.docker.run("rename app apple");
    eventually("renamed", vec!["container:app".to_string()], || {
        waiting(&stage.router)
    });
    stage.site.docker.run("rename apple app");
    let app2 = stage.observe(lab, "app");
    stage.wait_until_received(&[&guest, &app2]);
    stage.finish(&[&guest, &app2], &[]);
}

/// Returns the kernel counter `name` of `group` in a file of `/proc/net`.
fn kernel_counter(ns: &Ns, file: &str, group: &str, name: &str) -> u64 {
    let path = format!("/proc/thread-self/net/{file}");
    let text = ns
        .enter(|| std::fs::read_to_string(&path))
        .expect("counters");
    let mut lines = text
        .lines()
        .filter(|l| l.starts_with(&format!("{group}: ")));
    let (names, values) = (lines.next(), lines.next());
    let names = names.expect("names").split_whitespace();
    let values = values.expect("values").split_whitespace();
    let found = names.zip(values).find(|(n, _)| *n == name);
    found.and_then(|(_, v)| v.parse().ok()).expect("a counter")
}

/// Without a default route and with `rp_filter` on, the receiver's kernel has no route back to the
/// sender and drops its packets. A rewritten source address passes.
fn source_rewrite_passes_the_reverse_path_filter(lab: &Lab) {
    const SENT: u64 = 100;
    let site = Site::new(lab);
    let docker = &site.docker;
    docker.run("network create --internal --subnet 172.29.0.0/16 --ip-range 172.29.0.0/24 closed");
    let strict = "--sysctl net.ipv4.conf.all.rp_filter=1";
    docker.run_idle("app", &format!("--network closed {strict}"));
    let inside = docker.namespace_of(lab, "app");
    // Engines before 25.0 add a default route to internal networks.
    if inside.try_ip("route show default") != Ok(String::new()) {
        inside.ip("route del default");
    }
    let rx = UdpRx::join(&inside, "eth0", &format!("{GROUP}:5000"));
    let filtered = || kernel_counter(&inside, "netstat", "TcpExt", "IPReversePathFilter");
    let delivered = || kernel_counter(&inside, "snmp", "Udp", "InDatagrams");
    let bridge = docker.bridge("closed");
    let route = |translation: &str| {
        format!(
            "[[route]]\nname = \"r\"\nfrom = \"route:default\"\nsource = \"10.0.0.0/24\"\n\
             group = \"{GROUP}\"\nto = [\"network:closed\"]\nttl = {{ set = 16 }}\n{translation}"
        )
    };
    let router = site.router(lab, &route(""));
    eventually("the network is found", Vec::<String>::new(), || {
        waiting(&router)
    });
    let send = || {
        let words = format!(
            "send --interface eth0 --group {GROUP} --port 5000 --ttl 1 --count {SENT} --rate 1000"
        );
        let mut sender = site.on_lan(lab, &words);
        assert!(sender.wait().success(), "{}", sender.stderr());
    };
    assert_eq!((filtered(), delivered()), (0, 0));
    send();
    router.expect_routed("r", &bridge, SENT);
    // The packets arrived, and the kernel dropped them.
    eventually("dropped by the reverse path filter", SENT, filtered);
    assert_eq!((rx.count(), delivered()), (0, 0));
    let rewrite = "rewrite = { source = \"172.29.77.0/24\" }\n";
    router.write_settings(&format!("{}{}", docker.settings(), route(rewrite)));
    router.run("reload");
    send();
    wait_until(crate::lab::TIMEOUT, || rx.count() as u64 >= SENT);
    assert_eq!(rx.count() as u64, SENT, "{} filtered", filtered());
    assert_eq!((filtered(), delivered()), (SENT, SENT));
    // The translation keeps the host part of the source address.
    assert!(
        rx.received()
            .iter()
            .all(|(from, _)| from.to_string() == "172.29.77.10")
    );
    router.stop();
}
