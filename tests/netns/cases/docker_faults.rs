//! Containers, networks and the engine restart and are made anew under traffic. Each receiver gets
//! every packet for as long as it exists.

use super::cases;
use super::docker::{Site, to_names, waiting};
use crate::lab::{
    Capture, Lab, Ns, Numbered, Router, UdpRx, eventually, ip_batch, missing, number, wait_until,
};

cases!("docker_faults":
    #[Docker] every_receiver_has_every_packet_of_its_life,
    #[Docker] an_engine_that_leaves_containers_running_costs_nothing,
    #[Docker] a_closed_network_hears_what_is_rewritten,
);

const GROUP: &str = "225.1.2.3";
/// Packets a second.
const RATE: u32 = 500;

/// Two networks, a container on each, and a machine on a wire that no engine knows of.
struct Stage {
    site: Site,
    router: Router,
    wired: Capture,
    stream: Numbered,
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
        site.docker.idle("app", "--network bridged");
        site.docker.idle("guest", "--network other");
        let far = lab.ns("wired");
        let link = format!(
            "link add wire netns {} type veth peer name eth0 netns {}\n",
            site.host.name(),
            far.name()
        );
        ip_batch(&[], &link).unwrap_or_else(|e| panic!("{e}"));
        far.ip("link set eth0 up");
        site.host.ip("link set wire up");
        site.host.carries("wire");
        far.carries("eth0");
        let toml = to_names(&["container:app", "network:other", "wire"]);
        let router = site.router(lab, &toml);
        let stage = Self {
            wired: Capture::new(&far, "eth0"),
            stream: Numbered::start(
                &site.lan,
                "eth0",
                "10.0.0.10:9",
                &format!("{GROUP}:5000"),
                RATE,
            ),
            router,
            site,
        };
        eventually("the wire has packets", true, || {
            !stage.wired.to(GROUP).is_empty()
        });
        stage
    }

    /// From now on, in a container that runs.
    fn life(&self, lab: &Lab, name: &str) -> Life {
        eventually("it is found", Vec::<String>::new(), || {
            waiting(&self.router)
        });
        let inside = self.site.docker.inside(lab, name);
        let life = Life {
            name: name.into(),
            capture: Capture::new(&inside, "eth0"),
        };
        eventually(&format!("{name} has packets"), true, || {
            !life.numbers().is_empty()
        });
        self.reached(&[&life]);
        life
    }

    /// Waits until these have what is being sent now: what comes after is not cut short by it.
    fn reached(&self, lives: &[&Life]) {
        self.stream.more(50);
        let mark = self.stream.sent() - 1;
        for life in lives {
            eventually(&format!("{} has {mark}", life.name), true, || {
                life.numbers().last() >= Some(&mark)
            });
        }
    }

    /// The end: of those that live, each has the last packet; the wire has all there were.
    fn finish(self, alive: &[&Life], ended: &[&Life]) {
        let first = numbers(&self.wired)[0];
        let sent = self.stream.finish();
        for life in alive {
            eventually(&format!("{} has the last", life.name), sent - 1, || {
                *life.numbers().last().expect("a packet")
            });
        }
        let mut told = String::new();
        for life in alive.iter().chain(ended) {
            told += &life.whole();
        }
        let on_wire = |wired: &Capture| {
            let mut lost = missing(sent, &numbers(wired));
            lost.retain(|n| *n >= first);
            lost
        };
        eventually("the wire has all", Vec::<u32>::new(), || {
            on_wire(&self.wired)
        });
        let all = numbers(&self.wired).len() as u32;
        assert_eq!(all, sent - first, "some came twice");
        println!("sent {sent}; none lost on the wire{told}");
        self.router.stop();
    }
}

fn numbers(capture: &Capture) -> Vec<u32> {
    let all = capture.to(GROUP);
    all.iter().map(|s| number(s.payload())).collect()
}

/// A container from its start, or its being found, to its end.
struct Life {
    name: String,
    capture: Capture,
}

impl Life {
    fn numbers(&self) -> Vec<u32> {
        numbers(&self.capture)
    }

    /// From its first packet to its last there is each, once; says which these are.
    #[track_caller]
    fn whole(&self) -> String {
        let all = self.numbers();
        let gap = all.windows(2).find(|w| w[1] != w[0] + 1);
        assert!(gap.is_none(), "{}: {gap:?}", self.name);
        format!(", {} {}..={}", self.name, all[0], all[all.len() - 1])
    }
}

fn every_receiver_has_every_packet_of_its_life(lab: &Lab) {
    let mut stage = Stage::new(lab, false);
    let app = stage.life(lab, "app");
    let guest = stage.life(lab, "guest");
    // A receiver restarts; another one is made anew with its network, which has another bridge.
    stage.reached(&[&app, &guest]);
    stage.site.docker.run("restart --time 0 app");
    let app2 = stage.life(lab, "app");
    stage.reached(&[&app2, &guest]);
    let docker = &stage.site.docker;
    let bridge = docker.bridge("other");
    docker.run("rm --force guest");
    docker.run("network rm other");
    stage.site.network("other", 31);
    stage.site.docker.idle("guest", "--network other");
    let guest2 = stage.life(lab, "guest");
    assert_ne!(stage.site.docker.bridge("other"), bridge);
    // The engine ends with its containers, and comes back.
    stage.reached(&[&app2, &guest2]);
    stage.site.docker.stop_engine();
    stage.stream.more(200);
    stage.site.docker.start_engine(lab);
    stage.site.docker.run("start app guest");
    let app3 = stage.life(lab, "app");
    let guest3 = stage.life(lab, "guest");
    stage.reached(&[&app3, &guest3]);
    stage.finish(&[&app3, &guest3], &[&app, &app2, &guest, &guest2]);
}

/// `live-restore`: the receivers exist all the time.
fn an_engine_that_leaves_containers_running_costs_nothing(lab: &Lab) {
    let mut stage = Stage::new(lab, true);
    let app = stage.life(lab, "app");
    let guest = stage.life(lab, "guest");
    stage.site.docker.stop_engine();
    let router = &stage.router;
    router.expect_metric("mcastor_docker_connected", &[], 0);
    stage.reached(&[&app, &guest]);
    stage.site.docker.start_engine(lab);
    stage
        .router
        .expect_metric("mcastor_docker_connected", &[], 1);
    stage.reached(&[&app, &guest]);
    app.whole();
    // The engine is followed again: what is new is found, and taken away from `app`.
    stage.site.docker.run("rename app apple");
    eventually("renamed", vec!["container:app".to_string()], || {
        waiting(&stage.router)
    });
    stage.site.docker.run("rename apple app");
    let app2 = stage.life(lab, "app");
    stage.reached(&[&guest, &app2]);
    stage.finish(&[&guest, &app2], &[]);
}

/// A counter of the kernel in a namespace: the line of its group, the column of its name.
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

/// No default route, and `rp_filter` on: the listener's kernel has no way back to the sender.
fn a_closed_network_hears_what_is_rewritten(lab: &Lab) {
    const SENT: u64 = 100;
    let site = Site::new(lab);
    let docker = &site.docker;
    docker.run("network create --internal --subnet 172.29.0.0/16 --ip-range 172.29.0.0/24 closed");
    let strict = "--sysctl net.ipv4.conf.all.rp_filter=1";
    docker.idle("app", &format!("--network closed {strict}"));
    let inside = docker.inside(lab, "app");
    // Engines before 25.0 give it one all the same.
    if inside.try_ip("route show default") != Ok(String::new()) {
        inside.ip("route del default");
    }
    let rx = UdpRx::join(&inside, "eth0", &format!("{GROUP}:5000"));
    let refused = || kernel_counter(&inside, "netstat", "TcpExt", "IPReversePathFilter");
    let taken = || kernel_counter(&inside, "snmp", "Udp", "InDatagrams");
    let bridge = docker.bridge("closed");
    let route = |more: &str| {
        format!(
            "[[route]]\nname = \"r\"\nfrom = \"route:default\"\nsource = \"10.0.0.0/24\"\n\
             group = \"{GROUP}\"\nto = [\"network:closed\"]\nttl = {{ set = 16 }}\n{more}"
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
    assert_eq!((refused(), taken()), (0, 0));
    send();
    router.expect_routed("r", &bridge, SENT);
    // It arrived, and the kernel dropped it.
    eventually("refused by the reverse path filter", SENT, refused);
    assert_eq!((rx.count(), taken()), (0, 0));
    let rewrite = "rewrite = { source = \"172.29.77.0/24\" }\n";
    router.rewrite(&format!("{}{}", docker.settings(), route(rewrite)));
    router.tell("reload");
    send();
    wait_until(crate::lab::PATIENCE, || rx.count() as u64 >= SENT);
    assert_eq!(rx.count() as u64, SENT, "{} refused", refused());
    assert_eq!((refused(), taken()), (SENT, SENT));
    // Each camera keeps an address of its own.
    assert!(
        rx.got()
            .iter()
            .all(|(from, _)| from.to_string() == "172.29.77.10")
    );
    router.stop();
}
