//! `mcastor mnat-server` with our ends, over a core that delivers only what is joined.

use std::cell::RefCell;
use std::path::PathBuf;
use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::cases;
use super::mnat::{LONG, join_source_v6, mapped};
use crate::lab::mnat::{Ca, start_server};
use crate::lab::proxy::join_source;
use crate::lab::switch::wait_until_snooping;
use crate::lab::{
    Capture, Injector, Lab, LinkEnd, Ns, NumberedStream, Program, Router, connect_all, eventually,
    missing, received_in_order, wait_until,
};

cases!("mnat_server":
    join_is_followed_by_packets_within_a_second,
    two_egresses_share_mappings_v4_and_v6,
    streams_cross_a_core_of_the_other_ip_version,
    exhausted_pool_leaves_streams_unassigned,
    streams_survive_kills_of_the_server,
    ends_follow_a_changed_pool,
    curl_is_served,
    #[Python("httpx", "python3-httpx")] #[Python("h2", "python3-h2")] httpx_is_served,
);

/// Senders, ends and hosts around a core, and the server in it.
///
/// ```text
///     src eth0 --- [br0] --- in ing mid --- [br1] --- net0 eg1 out --- eth1 rc1
///                                             |------ net0 eg2 out --- eth1 rc2
///                                             `------ eth0 srv
/// ```
pub(super) struct Network {
    pub(super) src: Ns,
    pub(super) ing: Ns,
    pub(super) egresses: [Ns; 2],
    pub(super) hosts: [Ns; 2],
    srv: Ns,
    ca: Ca,
    pub(super) ca_file: PathBuf,
}

pub(super) const SERVER: &str = "10.9.0.9";

/// The switches deliver multicast only to ports with members, and are the queriers. They consider
/// themselves valid queriers after the query response interval, here one second.
const SNOOPING: &str = "mcast_snooping 1 mcast_querier 1 mcast_igmp_version 3 mcast_mld_version 2 \
                        mcast_query_interval 1000 mcast_query_response_interval 100";

pub(super) const POOL_V4: &str = r#"{"group-pool": {"ranges": [
    {"group-range": "239.1.1.0/24", "source-range": "10.9.9.9"}]}}"#;

impl Network {
    pub(super) fn new(lab: &Lab) -> Self {
        let ns = |name| lab.ns(name);
        let network = Self {
            src: ns("src"),
            ing: ns("ing"),
            egresses: [ns("eg1"), ns("eg2")],
            hosts: [ns("rc1"), ns("rc2")],
            srv: ns("srv"),
            ca: Ca::new(),
            ca_file: lab.file("ca.pem"),
        };
        std::fs::write(&network.ca_file, network.ca.pem()).unwrap();
        let switches = lab.ns("sw");
        let (src, ing, srv) = (&network.src, &network.ing, &network.srv);
        let ([eg1, eg2], [rc1, rc2]) = (&network.egresses, &network.hosts);
        let port = |name| LinkEnd::new(&switches, name, &[]);
        connect_all(&[
            (
                port("p0"),
                LinkEnd::new(src, "eth0", &["10.0.0.10/24", "fd00::10/64"]),
            ),
            (
                port("p1"),
                LinkEnd::new(ing, "in", &["10.0.0.1/24", "fd00::1/64"]),
            ),
            (
                port("p2"),
                LinkEnd::new(ing, "mid", &["10.9.0.1/24", "fd09::1/64"]),
            ),
            (
                port("p3"),
                LinkEnd::new(eg1, "net0", &["10.9.0.2/24", "fd09::2/64"]),
            ),
            (
                port("p4"),
                LinkEnd::new(eg2, "net0", &["10.9.0.3/24", "fd09::3/64"]),
            ),
            (port("p5"), LinkEnd::new(srv, "eth0", &["10.9.0.9/24"])),
            (
                LinkEnd::new(eg1, "out", &["10.0.1.1/24", "fd01::1/64"]),
                LinkEnd::new(rc1, "eth1", &["10.0.1.10/24", "fd01::10/64"]),
            ),
            (
                LinkEnd::new(eg2, "out", &["10.0.2.1/24", "fd02::1/64"]),
                LinkEnd::new(rc2, "eth1", &["10.0.2.10/24", "fd02::10/64"]),
            ),
        ]);
        for (bridge, ports) in [
            ("br0", &["p0", "p1"][..]),
            ("br1", &["p2", "p3", "p4", "p5"]),
        ] {
            let masters = ports
                .iter()
                .map(|p| format!("link set {p} master {bridge}\n"));
            let masters: String = masters.collect();
            switches.ip_batch(&format!(
                "link add {bridge} type bridge {SNOOPING}\n{masters}link set {bridge} up\n"
            ));
        }
        for ((from, iif), (to, oif)) in
            [((src, "eth0"), (ing, "in")), ((ing, "mid"), (eg1, "net0"))]
        {
            let (inject, behind) = (Injector::new(from, iif), Capture::new(to, oif));
            wait_until_snooping(&inject, &behind, &["239.255.9.9", "ff0e::9:9"]);
        }
        network
    }

    /// Starts the server.
    pub(super) fn serve(&self, lab: &Lab, pool: &str, options: &[&str]) -> Program {
        let address = format!("{SERVER}:8443");
        start_server(lab, &self.srv, &self.ca, &address, pool, options)
    }

    fn settings(&self, role: &str, up: &str, down: &str) -> String {
        format!(
            "[mnat]\nrole = \"{role}\"\nserver = \"https://{SERVER}:8443\"\nca = \"{}\"\n\
             upstream = \"{up}\"\ndownstream = \"{down}\"\n",
            self.ca_file.display(),
        )
    }

    pub(super) fn ingress(&self, lab: &Lab) -> Router {
        Router::start(lab, &self.ing, &self.settings("ingress", "in", "mid"))
    }

    pub(super) fn egress(&self, lab: &Lab, n: usize) -> Router {
        let settings = self.settings("egress", "net0", "out");
        Router::start(lab, &self.egresses[n], &settings)
    }

    /// Runs curl at the server. Returns the status and the body.
    fn curl(&self, method: &str, path: &str, body: Option<&Value>) -> (String, Value) {
        let url = format!("https://{SERVER}:8443/mnat-ds/{path}");
        let ca = self.ca_file.display().to_string();
        let mut arguments: Vec<String> = [
            "-sS",
            "--http2",
            "--cacert",
            &ca,
            "-X",
            method,
            "-w",
            "\n%{http_version} %{http_code}",
        ]
        .map(String::from)
        .into();
        if let Some(body) = body {
            arguments.extend(["-d".into(), body.to_string()]);
            arguments.extend([
                "-H".into(),
                "content-type: application/yang-data+json".into(),
            ]);
        }
        arguments.push(url);
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let Output { stdout, stderr, .. } = self.egresses[0].output("curl", &words);
        let text = String::from_utf8_lossy(&stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').unwrap_or(("", ""));
        assert!(!status.is_empty(), "{}", String::from_utf8_lossy(&stderr));
        (
            status.into(),
            serde_json::from_str(body).unwrap_or_default(),
        )
    }
}

fn locals(router: &Router) -> Vec<String> {
    let mut locals: Vec<String> = mapped(router)
        .into_iter()
        .filter(|(_, _, state)| state == "assigned")
        .map(|(_, local, _)| local)
        .collect();
    locals.sort();
    locals
}

/// Waits until a router has this number of assigned mappings. Returns the local groups.
#[track_caller]
fn wait_assigned(router: &Router, count: usize) -> Vec<String> {
    let complete = wait_until(LONG, || locals(router).len() == count);
    assert!(complete, "{:?}, expected {count}", mapped(router));
    locals(router)
}

/// Measures the time from the join of a host to the first packet of the stream.
fn join_is_followed_by_packets_within_a_second(lab: &Lab) {
    let network = Network::new(lab);
    let _server = network.serve(lab, POOL_V4, &[]);
    let _ingress = network.ingress(lab);
    let egress = network.egress(lab, 0);
    eventually("the ends are registered", true, || {
        egress.metric("mcastor_mnat_server_up", &[]) == 1.0
    });
    let groups: Vec<String> = (1..=9).map(|n| format!("232.1.1.{n}")).collect();
    let streams: Vec<NumberedStream> = groups
        .iter()
        .map(|group| {
            let to = format!("{group}:5000");
            NumberedStream::start(&network.src, "eth0", "10.0.0.10:9", &to, 50)
        })
        .collect();
    let wire = Capture::new(&network.hosts[0], "eth1");
    let mut times = Vec::new();
    let mut joins = Vec::new();
    for group in &groups {
        let start = Instant::now();
        joins.push(join_source(&network.hosts[0], "eth1", "10.0.0.10", group));
        let arrived = wait_until(LONG, || !wire.to(group).is_empty());
        assert!(arrived, "{group}: {:?}", mapped(&egress));
        times.push(start.elapsed());
    }
    times.sort();
    println!("from join to packet: {times:?}");
    let median = times[times.len() / 2];
    assert!(median < Duration::from_secs(1), "{times:?}");
    drop((streams, joins));
}

fn two_egresses_share_mappings_v4_and_v6(lab: &Lab) {
    let network = Network::new(lab);
    let pool = r#"{"group-pool": {"ranges": [
        {"group-range": "239.1.1.0/24", "source-range": "10.9.9.8/31"},
        {"group-range": "ff35::8000:0/112", "source-range": "fd09::99"}]}}"#;
    let _server = network.serve(lab, pool, &[]);
    let ingress = network.ingress(lab);
    let egresses = [network.egress(lab, 0), network.egress(lab, 1)];
    let mut joins = Vec::new();
    for host in &network.hosts {
        joins.push(join_source(host, "eth1", "10.0.0.10", "232.1.1.1"));
        joins.push(join_source_v6(host, "eth1", "fd00::10", "ff3e::8000:1"));
    }
    let shared = wait_assigned(&ingress, 2);
    for egress in &egresses {
        assert_eq!(wait_assigned(egress, 2), shared);
    }
    assert!(
        shared[0].starts_with("239.1.1.") && shared[1].starts_with("ff35::8000:"),
        "{shared:?}"
    );
    let wires = [0, 1].map(|n| Capture::new(&network.hosts[n], "eth1"));
    let streams = [
        ("10.0.0.10:9", "232.1.1.1"),
        ("[fd00::10]:9", "ff3e::8000:1"),
    ]
    .map(|(from, group)| {
        let to = match group.contains(':') {
            true => format!("[{group}]:5000"),
            false => format!("{group}:5000"),
        };
        NumberedStream::start(&network.src, "eth0", from, &to, 100)
    });
    for group in ["232.1.1.1", "ff3e::8000:1"] {
        for wire in &wires {
            eventually(group, true, || wire.to(group).len() >= 50);
        }
    }
    // The stream of the other egress continues.
    joins.drain(..2);
    assert_eq!(wait_assigned(&egresses[0], 0), [""; 0]);
    assert_eq!(wait_assigned(&egresses[1], 2), shared);
    assert_eq!(wait_assigned(&ingress, 2), shared);
    let before = wires[1].to("232.1.1.1").len();
    eventually("packets at the other egress", true, || {
        wires[1].to("232.1.1.1").len() >= before + 50
    });
    drop(streams);
}

fn streams_cross_a_core_of_the_other_ip_version(lab: &Lab) {
    let network = Network::new(lab);
    let pool_v6 = r#"{"group-pool": {"ranges": [
        {"group-range": "ff35::8000:0/112", "source-range": "fd09::99"}]}}"#;
    for (pool, core) in [(POOL_V4, "239."), (pool_v6, "ff35:")] {
        let mut server = network.serve(lab, pool, &[]);
        let ingress = network.ingress(lab);
        let egress = network.egress(lab, 0);
        let host = &network.hosts[0];
        let joins = (
            join_source(host, "eth1", "10.0.0.10", "232.1.1.1"),
            join_source_v6(host, "eth1", "fd00::10", "ff3e::8000:1"),
        );
        let local = wait_assigned(&egress, 2);
        assert!(local.iter().all(|l| l.starts_with(core)), "{local:?}");
        wait_assigned(&ingress, 2);
        let wire = Capture::new(host, "eth1");
        let streams = [
            NumberedStream::start(&network.src, "eth0", "10.0.0.10:9", "232.1.1.1:5000", 100),
            NumberedStream::start(
                &network.src,
                "eth0",
                "[fd00::10]:9",
                "[ff3e::8000:1]:5000",
                100,
            ),
        ];
        for group in ["232.1.1.1", "ff3e::8000:1"] {
            eventually(group, true, || wire.to(group).len() >= 50);
        }
        drop((streams, joins));
        egress.stop();
        ingress.stop();
        server.stop(libc::SIGTERM, Duration::from_secs(10));
    }
}

fn exhausted_pool_leaves_streams_unassigned(lab: &Lab) {
    let network = Network::new(lab);
    let pool = r#"{"group-pool": {"ranges": [
        {"group-range": "239.1.1.1/32", "source-range": "10.9.9.9"}]}}"#;
    let _server = network.serve(lab, pool, &[]);
    let (ingress, egress) = (network.ingress(lab), network.egress(lab, 0));
    let host = &network.hosts[0];
    let _first = join_source(host, "eth1", "10.0.0.10", "232.1.1.1");
    wait_assigned(&egress, 1);
    let _second = join_source(host, "eth1", "10.0.0.10", "232.1.1.2");
    for router in [&egress, &ingress] {
        let row = |group: &str, local: &str, state: &str| {
            (group.to_string(), local.to_string(), state.to_string())
        };
        let expected = [
            row("232.1.1.1", "239.1.1.1", "assigned"),
            row("232.1.1.2", "-", "unassigned"),
        ];
        eventually("both streams", expected.to_vec(), || mapped(router));
    }
}

/// Kills the server while a stream runs and hosts join and leave. `MCASTOR_MNAT_KILLS` sets the number
/// of kills.
fn streams_survive_kills_of_the_server(lab: &Lab) {
    let kills = std::env::var("MCASTOR_MNAT_KILLS").ok();
    let kills: u32 = kills.map_or(5, |n| n.parse().expect("a number"));
    let network = Network::new(lab);
    let state = lab.file("state");
    let options = ["--state", state.to_str().unwrap()];
    let mut server = network.serve(lab, POOL_V4, &options);
    let (ingress, egress) = (network.ingress(lab), network.egress(lab, 0));
    let host = &network.hosts[0];
    let _steady = join_source(host, "eth1", "10.0.0.10", "232.1.1.1");
    let local = wait_assigned(&egress, 1);
    wait_assigned(&ingress, 1);
    let wire = Capture::new(host, "eth1");
    let sender = NumberedStream::start(&network.src, "eth0", "10.0.0.10:9", "232.1.1.1:5000", 200);
    eventually("the first packet", true, || {
        !wire.to("232.1.1.1").is_empty()
    });
    let first = received_in_order(&wire, "232.1.1.1")[0];
    let other = RefCell::new(None);
    for kill in 0..kills {
        // A host joins or leaves, and the server dies a little later.
        let group = format!("232.1.2.{}", kill % 200 + 1);
        other.replace(Some(join_source(host, "eth1", "10.0.0.10", &group)));
        std::thread::sleep(Duration::from_millis(u64::from(kill * 53 % 300)));
        server.signal(libc::SIGKILL);
        server.wait();
        server = network.serve(lab, POOL_V4, &options);
        let is_mapped = |router: &Router, group: &str| {
            let all = mapped(router);
            all.iter()
                .any(|(g, _, state)| g == group && state == "assigned")
        };
        for router in [&egress, &ingress] {
            let complete = wait_until(LONG, || is_mapped(router, &group));
            assert!(complete, "kill {kill}: {:?}", mapped(router));
        }
        let steady = mapped(&egress).into_iter().find(|(g, ..)| g == "232.1.1.1");
        let expected = (
            "232.1.1.1".to_string(),
            local[0].clone(),
            "assigned".to_string(),
        );
        assert_eq!(steady, Some(expected), "kill {kill}");
    }
    sender.wait_for_more(100);
    let sent = sender.finish();
    eventually("the last packet", true, || {
        received_in_order(&wire, "232.1.1.1").last() == Some(&(sent - 1))
    });
    let got = received_in_order(&wire, "232.1.1.1");
    let lost: Vec<u32> = missing(sent, &got)
        .into_iter()
        .filter(|n| *n > first)
        .collect();
    println!("{kills} kills, sent {sent}, lost {}", lost.len());
    assert!(lost.is_empty(), "{lost:?}");
}

fn ends_follow_a_changed_pool(lab: &Lab) {
    let network = Network::new(lab);
    let mut server = network.serve(lab, POOL_V4, &[]);
    let (ingress, egress) = (network.ingress(lab), network.egress(lab, 0));
    let host = &network.hosts[0];
    let _join = join_source(host, "eth1", "10.0.0.10", "232.1.1.1");
    wait_assigned(&egress, 1);
    wait_assigned(&ingress, 1);
    let wire = Capture::new(host, "eth1");
    let _sender = NumberedStream::start(&network.src, "eth0", "10.0.0.10:9", "232.1.1.1:5000", 100);
    eventually("the first packet", true, || {
        !wire.to("232.1.1.1").is_empty()
    });
    server.stop(libc::SIGTERM, Duration::from_secs(10));
    let other = POOL_V4.replace("239.1.1.0", "239.7.7.0");
    let _server = network.serve(lab, &other, &[]);
    for router in [&egress, &ingress] {
        let moved = wait_until(LONG, || {
            let now = locals(router);
            now.len() == 1 && now[0].starts_with("239.7.7.")
        });
        assert!(moved, "{:?}", mapped(router));
    }
    let core = Capture::new(&network.egresses[0], "net0");
    let arrives = || {
        core.frames().iter().any(|f| {
            crate::lab::IpPacket::parse(&f.bytes)
                .is_some_and(|p| p.dst.to_string().starts_with("239.7.7."))
        })
    };
    let arrived = wait_until(LONG, arrives);
    assert!(arrived, "no packet in the new group");
    let before = wire.to("232.1.1.1").len();
    eventually("packets again", true, || {
        wire.to("232.1.1.1").len() > before + 50
    });
}

/// httpx keeps one HTTP/2 connection for all requests.
fn httpx_is_served(lab: &Lab) {
    const SCRIPT: &str = r#"
import httpx, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[1])
with httpx.Client(http2=True, verify=context, base_url=sys.argv[2] + "/mnat-ds") as client:
    def ask(status, method, path, body=None):
        headers = {"content-type": "application/yang-data+json"}
        answer = client.request(method, path, json=body, headers=headers)
        assert answer.http_version == "HTTP/2", answer.http_version
        assert answer.status_code == status, (method, path, answer.status_code, answer.text)
        return answer.json() if answer.content else None
    id = ask(200, "POST", "/operations/ietf-mnat:get-new-watcher-id")["watcher-id"]
    joined = [{"id": str(n), "source": f"10.0.0.{n + 1}", "group": "232.1.1.1"} for n in range(200)]
    path = f"/data/ietf-mnat:egress-global-joined/watcher={id}"
    for status in (201, 204):
        ask(status, "PUT", path, {"ietf-mnat:watcher": {"id": id, "joined-sg": joined}})
    mapped = ask(200, "GET", f"/data/ietf-mnat:assigned-channels/watcher={id}")
    mapped = mapped["ietf-mnat:watcher"][0]["mapped-sg"]
    assert len({m["local-mapping"]["group"] for m in mapped}) == 200, mapped
    refresh = {"ietf-mnat:input": {"ietf-mnat:watcher-id": id}}
    ask(204, "POST", "/operations/ietf-mnat:refresh-watcher-id", refresh)
    ask(204, "DELETE", path)
    print("done")
"#;
    let network = Network::new(lab);
    let _server = network.serve(lab, POOL_V4, &[]);
    let ca = network.ca_file.display().to_string();
    let url = format!("https://{SERVER}:8443");
    let words = ["-c", SCRIPT, &ca, &url];
    let output = network.egresses[0].output("/usr/bin/python3", &words);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        "done",
        "{error}"
    );
}

/// curl is a client that knows nothing of this server.
fn curl_is_served(lab: &Lab) {
    let network = Network::new(lab);
    let _server = network.serve(lab, POOL_V4, &[]);
    let (status, body) = network.curl("POST", "operations/ietf-mnat:get-new-watcher-id", None);
    assert_eq!(status, "2 200");
    let id = body["watcher-id"].as_str().expect("an id").to_string();
    let joined = json!({ "ietf-mnat:watcher": { "id": id, "joined-sg": [
        { "id": "0", "source": "10.0.0.10", "group": "232.1.1.1" }] } });
    let path = format!("data/ietf-mnat:egress-global-joined/watcher={id}");
    assert_eq!(network.curl("PUT", &path, Some(&joined)).0, "2 201");
    assert_eq!(network.curl("PUT", &path, Some(&joined)).0, "2 204");
    let path = format!("data/ietf-mnat:assigned-channels/watcher={id}");
    let (status, body) = network.curl("GET", &path, None);
    assert_eq!(status, "2 200");
    let entry = &body["ietf-mnat:watcher"][0]["mapped-sg"][0];
    assert_eq!(
        entry["state"], "ietf-mnat:assigned-local-multicast",
        "{body}"
    );
    let refresh = json!({ "ietf-mnat:input": { "watcher-id": id } });
    let path = "operations/ietf-mnat:refresh-watcher-id";
    assert_eq!(network.curl("POST", path, Some(&refresh)).0, "2 204");
    let unknown = "data/ietf-mnat:assigned-channels/watcher=NOSUCH";
    let (status, body) = network.curl("GET", unknown, None);
    assert_eq!(
        (status.as_str(), body),
        ("2 200", json!({ "ietf-mnat:watcher": [{}] }))
    );
}
