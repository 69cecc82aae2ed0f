//! The examples of conf/compose with the published image, started by docker-compose. Each example
//! uses a different kind of container network.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::cases;
use super::docker::Site;
use crate::lab::bpffs::BpfFs;
use crate::lab::discovery_site::{
    Device, FOUND, SEARCH, answers, asker, browse, http_get, minidlna, probe, probe_match,
    read_from, serve,
};
use crate::lab::mnat::{self, Ca, ServerState};
use crate::lab::{
    BINARY, Docker, Lab, Ns, Program, TIMEOUT, UdpRx, UdpTx, avahi, eventually, http, wait_until,
};

cases!("compose":
    #[Docker] #[Program("docker-compose", "docker-compose")] bridge_network_example,
    #[Docker] #[Program("docker-compose", "docker-compose")] #[BpfPrograms]
    kernel_forwarding_example,
    #[Docker] #[Program("docker-compose", "docker-compose")] #[BpfPrograms]
    replaced_container_loses_nothing,
    #[Docker] #[Program("docker-compose", "docker-compose")] ipv6_network_example,
    #[Docker] #[Program("docker-compose", "docker-compose")] internal_network_example,
    #[Docker] #[Program("docker-compose", "docker-compose")]
    internal_network_with_strict_rp_filter_example,
    #[Docker] #[Program("docker-compose", "docker-compose")] routed_bridge_example,
    #[Docker] #[Program("docker-compose", "docker-compose")]
    #[Program("avahi-daemon", "avahi-daemon")] #[Python("zeroconf", "python3-zeroconf")]
    discovery_example,
    #[Docker] #[Program("docker-compose", "docker-compose")] #[Program("minidlnad", "minidlna")]
    media_server_example,
    #[Docker] #[Program("docker-compose", "docker-compose")] host_network_example,
    #[Docker] #[Program("docker-compose", "docker-compose")] #[LinkKind("macvlan")] macvlan_example,
    #[Docker] #[Program("docker-compose", "docker-compose")] #[LinkKind("macvlan")]
    two_networks_example,
    #[Docker] #[Program("docker-compose", "docker-compose")] sidecar_example,
    #[Docker] #[Program("docker-compose", "docker-compose")] second_uplink_example,
    #[Docker] interface_moved_into_a_container_receives,
    #[Docker] image_runs_unprivileged_and_names_missing_capabilities,
    #[Docker] mnat_images_accept_prototype_arguments,
    #[Docker] #[Program("docker-compose", "docker-compose")] mnat_example,
    #[Docker] #[Program("docker-compose", "docker-compose")] amt_example_by_name_and_by_address,
    #[Docker] driad_ingest_image_accepts_prototype_arguments,
    #[Docker] driad_ingest_tunnels_leave_by_the_network_of_amt,
);

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The size limit of an image with the static binary, in bytes.
const MAX_IMAGE_BYTES: u64 = 20_000_000;

/// Builds the images from image/ with the binary under test and its shared libraries, or with the
/// static binary that `make test-image` names.
fn build_image(lab: &Lab, docker: &Docker) {
    let directory = lab.file("image");
    std::fs::create_dir(&directory).expect("a directory");
    let static_binary = std::env::var("MCASTOR_IMAGE_BINARY").ok();
    let binary = static_binary.as_deref().unwrap_or(BINARY);
    let ldd = Command::new("ldd").arg(binary).output().expect("ldd");
    let ldd = String::from_utf8_lossy(&ldd.stdout).into_owned();
    let libraries = ldd
        .lines()
        .filter_map(|l| l.split_whitespace().find(|w| w.starts_with('/')));
    let packed = Command::new("python3")
        .arg(in_repository("image/archive.py"))
        .arg(directory.join("mcastor.tar"))
        .arg(binary)
        .args(libraries)
        .output()
        .expect("python3");
    let printed = String::from_utf8_lossy(&packed.stderr);
    assert!(packed.status.success(), "archive.py: {printed}");
    std::fs::copy(
        in_repository("image/Dockerfile"),
        directory.join("Dockerfile"),
    )
    .expect("the Dockerfile");
    let directory = directory.display();
    docker.run(&format!("build --quiet --tag mcastor {directory}"));
    for target in ["mnat-ingress", "mnat-egress", "mnat-server", "driad-ingest"] {
        let tag = format!("--target {target} --tag mcastor-{target}");
        docker.run(&format!("build --quiet {tag} {directory}"));
    }
    if static_binary.is_some() {
        assert!(!ldd.contains("=>"), "{binary} is not static: {ldd}");
        let size = docker.run("image inspect --format {{.Size}} mcastor");
        let size: u64 = size.parse().expect("a size");
        assert!(size < MAX_IMAGE_BYTES, "the image has {size} bytes");
    }
}

/// Returns whether the engine has the capabilities BPF and PERFMON. Docker before 23.0 does not.
fn knows_bpf(docker: &Docker) -> bool {
    let created = docker.try_run("create --cap-add BPF mcastor");
    created.status.success()
}

/// A running example.
struct Example {
    site: Site,
    file: PathBuf,
}

impl Example {
    fn up(lab: &Lab, file: &str, env: &[(&str, &str)]) -> Self {
        Self::up_file(lab, in_repository("conf/compose").join(file), env)
    }

    fn up_file(lab: &Lab, mut file: PathBuf, env: &[(&str, &str)]) -> Self {
        let site = Site::new(lab);
        build_image(lab, &site.docker);
        let text = std::fs::read_to_string(&file).expect("the example");
        // The former name of both capabilities. Other examples stay beside the files that they name.
        let replaced = text.replace("BPF, PERFMON", "SYS_ADMIN");
        if replaced != text && !knows_bpf(&site.docker) {
            file = lab.file("example.yml");
            std::fs::write(&file, replaced).expect("a copy");
        }
        let example = Self { site, file };
        example.compose(&["up", "--detach"], env);
        example.site.docker.wait_for_log("t_listener_1", "joined");
        example
    }

    fn compose(&self, words: &[&str], env: &[(&str, &str)]) {
        let socket = self.site.docker.socket();
        let out = Command::new("docker-compose")
            .args(["--project-name", "t", "--file"])
            .arg(&self.file)
            .args(words)
            .env("DOCKER_HOST", format!("unix://{socket}"))
            .env("DOCKER_SOCKET", socket)
            .envs(env.iter().copied())
            .output()
            .expect("docker-compose");
        let printed = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "docker-compose: {printed}");
    }

    /// Waits until the instance in `ns` has a member of `group` and has joined it upstream.
    fn wait_for_member(&self, ns: &Ns, group: &str) {
        eventually("a member", true, || {
            let address = "127.0.0.1:9464".parse().expect("an address");
            let groups = http::get(ns, address, "/api/v1/groups");
            let groups = groups.ok().and_then(|a| {
                let all: serde_json::Value = serde_json::from_str(&a.body).ok()?;
                all["show"]["groups"].as_array().cloned()
            });
            let groups = groups.unwrap_or_default();
            let has = |role| {
                groups
                    .iter()
                    .any(|g| g["role"] == role && g["group"] == group)
            };
            has("router") && has("host")
        });
    }

    /// Returns the namespace of the listener, and its address in a network.
    fn listener(&self, lab: &Lab, network: &str) -> (Ns, String) {
        let docker = &self.site.docker;
        let format = format!("{{{{.NetworkSettings.Networks.{network}.IPAddress}}}}");
        let address = docker.run(&format!("inspect --format {format} t_listener_1"));
        (docker.namespace_of(lab, "t_listener_1"), address)
    }

    /// Waits until the names of all routes are resolved.
    fn wait_until_nothing_is_pending(&self) {
        eventually("nothing is pending", Some(0), || {
            let address = "127.0.0.1:9464".parse().expect("an address");
            let pending = http::get(&self.site.host, address, "/api/v1/pending").ok()?;
            let all: serde_json::Value = serde_json::from_str(&pending.body).ok()?;
            Some(all["show"]["pending"].as_array()?.len())
        });
    }

    /// Sends from the LAN with TTL 1.
    fn send_from_lan(&self, lab: &Lab, group: &str) {
        self.send_from_lan_with(lab, group, 1);
    }

    fn send_from_lan_with(&self, lab: &Lab, group: &str, ttl: u8) {
        let words =
            format!("send --interface eth0 --group {group} --ttl {ttl} --count 100 --rate 500");
        let mut sender = self.site.on_lan(lab, &words);
        assert!(sender.wait().success(), "{}", sender.stderr());
    }

    /// Sends from the LAN and waits until the listener has received all packets.
    fn assert_delivered(&self, lab: &Lab, group: &str) {
        self.send_from_lan(lab, group);
        self.assert_listener_succeeds("10.0.0.10");
    }

    fn assert_listener_succeeds(&self, source: &str) {
        let docker = &self.site.docker;
        let code = docker.wait("t_listener_1");
        let logs = docker.logs("t_listener_1");
        assert_eq!(code, 0, "{logs}");
        assert!(logs.contains(source), "not from {source}: {logs}");
    }

    /// Sends from a container on `network` with TTL 1 and checks that the LAN receives the packets.
    fn assert_delivered_to_lan(&self, lab: &Lab, network: &str, group: &str, source: &str) {
        let words = format!("recv --interface eth0 --group {group} --count 100 --json");
        let mut listener = self.site.on_lan(lab, &words);
        eventually("joined on the LAN", true, || {
            listener.stderr().contains("joined")
        });
        self.site.docker.run(&format!(
            "run --name back --network {network} mcastor send --interface eth0 --group {group} \
             --ttl 1 --count 100 --rate 500"
        ));
        assert!(listener.wait().success(), "{}", listener.stdout());
        let report: serde_json::Value = serde_json::from_str(&listener.stdout()).expect("a report");
        let seen = report["streams"][0]["source"].as_str().expect("a source");
        assert!(seen.starts_with(source), "{report:#}");
    }
}

const GROUP: &str = "225.1.2.3";
const LAN: [(&str, &str); 3] = [
    ("INTERFACE", "lan0"),
    ("SUBNET", "10.0.0.0/24"),
    ("ADDRESS", "10.0.0.77"),
];

fn bridge_network_example(lab: &Lab) {
    let example = Example::up(lab, "bridge.yml", &[]);
    example.wait_for_member(&example.site.host, GROUP);
    // The command of docs/containers.md.
    let docker = &example.site.docker;
    let groups = docker.run("exec t_mcastor_1 /usr/bin/mcastor show groups");
    assert!(groups.contains(GROUP), "{groups}");
    // The volume keeps the state over a restart of the container.
    docker.run("restart --time 0 t_mcastor_1");
    docker.wait_for_log("t_mcastor_1", "ago; groups of members: ");
    example.wait_for_member(&example.site.host, GROUP);
    // It has the HEALTHCHECK of the image, and no router.
    let health = docker.run("exec t_listener_1 /usr/bin/mcastor health");
    assert!(
        health.contains("this container runs `mcastor recv`"),
        "{health}"
    );
    example.assert_delivered(lab, GROUP);
    example.assert_delivered_to_lan(lab, "cameras", GROUP, "172.");
}

fn kernel_forwarding_example(lab: &Lab) {
    let example = Example::up(lab, "kernel.yml", &[]);
    let host = &example.site.host;
    example.wait_until_nothing_is_pending();
    let logs = example.site.docker.logs("t_mcastor_1");
    assert!(logs.contains(", plane ebpf, "), "{logs}");
    example.send_from_lan_with(lab, GROUP, 8);
    example.assert_listener_succeeds("10.0.0.10");
    let docker = &example.site.docker;
    docker.run(&format!(
        "run --detach --name more --network fast mcastor recv --interface eth0 --group {GROUP} \
         --count 100000"
    ));
    docker.wait_for_log("more", "joined");
    let address = "127.0.0.1:9464".parse().expect("an address");
    let in_kernel = crate::lab::wait_until(Duration::from_secs(20), || {
        example.send_from_lan_with(lab, GROUP, 8);
        let metrics = http::get(host, address, "/metrics").map(|answer| answer.body);
        let metrics = metrics.unwrap_or_default();
        let mut lines = metrics.lines();
        lines.any(|l| l.starts_with("mcastor_route_packets_total") && l.contains("\"ebpf\""))
    });
    let explain = format!("exec t_mcastor_1 /usr/bin/mcastor explain 10.0.0.10 {GROUP}:5000");
    assert!(in_kernel, "{}", docker.run(&explain));
}

/// Another container takes the place of the router, under counted traffic.
fn replaced_container_loses_nothing(lab: &Lab) {
    let bpffs = BpfFs::mount(lab);
    let text = std::fs::read_to_string(in_repository("conf/compose/kernel.yml"));
    let mount = format!("- {}:/sys/fs/bpf", bpffs.mount_point().display());
    let text = text
        .expect("the example")
        .replace("- /sys/fs/bpf:/sys/fs/bpf", &mount);
    assert!(text.contains(&mount));
    let file = lab.file("kernel.yml");
    std::fs::write(&file, text).expect("a copy");
    let example = Example::up_file(lab, file, &[]);
    example.wait_until_nothing_is_pending();
    let docker = &example.site.docker;
    let receive = |name: &str, count: u32| {
        docker.run(&format!(
            "run --detach --name {name} --network fast mcastor recv --interface eth0 --group \
             {GROUP} --count {count} --json"
        ));
        docker.wait_for_log(name, "joined");
    };
    receive("warm-up", 100_000);
    let words = |count: u32| {
        format!("send --interface eth0 --group {GROUP} --ttl 8 --count {count} --rate 200")
    };
    let mut warm_up = example.site.on_lan(lab, &words(10_000));
    let shows_kernel = || {
        let flows = "exec t_mcastor_1 /usr/bin/mcastor show flows";
        docker.run(flows).contains("ebpf")
    };
    assert!(crate::lab::wait_until(TIMEOUT, shows_kernel));
    warm_up.stop(libc::SIGTERM, TIMEOUT);
    receive("counting", 2_000);
    let mut sender = example.site.on_lan(lab, &words(2_000));
    let before = docker.run("inspect --format {{.Id}} t_mcastor_1");
    example.compose(
        &["up", "--detach", "--force-recreate", "--no-deps", "mcastor"],
        &[],
    );
    assert_ne!(docker.run("inspect --format {{.Id}} t_mcastor_1"), before);
    assert!(sender.wait().success(), "{}", sender.stderr());
    assert_eq!(docker.wait("counting"), 0, "{}", docker.logs("counting"));
    let logs = docker.logs("t_mcastor_1");
    assert!(
        logs.contains("the kernel has forwarded 1 flows since"),
        "{logs}"
    );
}

fn ipv6_network_example(lab: &Lab) {
    let group = "ff0e::8000:123";
    let example = Example::up(lab, "ipv6.yml", &[]);
    example.wait_for_member(&example.site.host, group);
    example.send_from_lan(lab, group);
    example.assert_listener_succeeds("fd00::10");
    example.assert_delivered_to_lan(lab, "cameras6", group, "fd28:6:");
}

fn internal_network_example(lab: &Lab) {
    let example = Example::up(lab, "internal.yml", &[]);
    example.wait_for_member(&example.site.host, GROUP);
    example.assert_delivered(lab, GROUP);
    example.assert_delivered_to_lan(lab, "closed", GROUP, "172.");
}

/// The host's kernel has `rp_filter` on, so the source address must be rewritten.
fn internal_network_with_strict_rp_filter_example(lab: &Lab) {
    let example = Example::up(lab, "internal-rewrite.yml", &[("LAN", "10.0.0.0/24")]);
    example.wait_until_nothing_is_pending();
    example.send_from_lan(lab, GROUP);
    example.assert_listener_succeeds("172.27.77.10");
    example.assert_delivered_to_lan(lab, "strict", GROUP, "172.27.0.");
}

fn routed_bridge_example(lab: &Lab) {
    let example = Example::up(lab, "routed-bridge.yml", &[]);
    let pid = example
        .site
        .docker
        .run("inspect --format {{.State.Pid}} t_mcastor_1");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    assert!(status.contains("Uid:\t65532\t"), "{status}");
    example.wait_for_member(&example.site.host, GROUP);
    example.assert_delivered(lab, GROUP);
    example.assert_delivered_to_lan(lab, "routed", GROUP, "172.28.9.");
}

/// In place of Home Assistant, the container finds and reads a service of ESPHome on the LAN, and
/// offers one of HomeKit. A host of the LAN finds and reads this one at the address of the host and
/// the published port. The container also finds a device by SSDP and one by WS-Discovery.
fn discovery_example(lab: &Lab) {
    let example = Example::up(lab, "discovery.yml", &[]);
    example.wait_until_nothing_is_pending();
    let site = &example.site;
    let (inside, address) = example.listener(lab, "home");
    serve(&site.lan, 6053, "lights");
    serve(&inside, 8080, "accessories");
    let offer = |ns, host, service| avahi::start(lab, ns, host, &["eth0"], &[service], false);
    let _lan = offer(&site.lan, "lamp", ("lamp", "_esphomelib._tcp", 6053));
    let _inside = offer(&inside, "home", ("home", "_hap._tcp", 8080));
    let browsers = [
        (
            browse(lab, &inside, &address, &["_esphomelib._tcp.local."]),
            "read lamp._esphomelib._tcp.local. 10.0.0.10 6053 lights",
        ),
        (
            browse(lab, &site.lan, "10.0.0.10", &["_hap._tcp.local."]),
            "read home._hap._tcp.local. 10.0.0.1 18080 accessories",
        ),
    ];
    for (browser, expected) in &browsers {
        let is_read = wait_until(TIMEOUT, || browser.stdout().contains(expected));
        assert!(
            is_read,
            "{expected}: {}{}",
            browser.stdout(),
            browser.stderr()
        );
    }
    for (port, question, answer) in [
        (1900, SEARCH.to_vec(), FOUND.to_vec()),
        (3702, probe(1).into_bytes(), probe_match().into_bytes()),
    ] {
        let group = format!("239.255.255.250:{port}");
        let device = Device::join(&site.lan, &group);
        let socket = asker(&inside, "0.0.0.0:0");
        socket.send_to(&question, &group).expect("a question");
        let mut received = Vec::new();
        eventually("the answer", true, || {
            device.answer(&answer);
            received.extend(answers(&socket));
            !received.is_empty()
        });
        assert_eq!(received[0].0, answer);
        assert_eq!(received[0].1, ([10, 0, 0, 10], port).into());
    }
    assert_eq!(read_from(&inside, "10.0.0.10:6053"), "lights");
}

/// A host of the LAN, in place of a TV, finds the media server by SSDP, and reads its description and
/// its picture at the address of the container.
fn media_server_example(lab: &Lab) {
    let example = Example::up(lab, "media-server.yml", &[]);
    example.wait_until_nothing_is_pending();
    let site = &example.site;
    let (inside, address) = example.listener(lab, "media");
    site.lan.ip("route add 172.28.10.0/24 via 10.0.0.1");
    let _server = minidlna(lab, &inside);
    let target = "urn:schemas-upnp-org:device:MediaServer:1";
    let search = String::from_utf8_lossy(SEARCH).replace("ssdp:all", target);
    let url = format!("http://{address}:8200/rootDesc.xml");
    let mut round = 0;
    let is_found = wait_until(TIMEOUT, || {
        round += 1;
        let socket = asker(&site.lan, "0.0.0.0:0");
        let search = format!("{search}X: {round}");
        let group = "239.255.255.250:1900";
        socket
            .send_to(search.as_bytes(), group)
            .expect("a question");
        wait_until(Duration::from_secs(2), || {
            let answers = answers(&socket);
            let mut texts = answers
                .iter()
                .map(|(text, _)| String::from_utf8_lossy(text));
            texts.any(|text| text.contains(&url))
        })
    });
    assert!(is_found, "no answer with {url}");
    let description = http_get(&site.lan, &url);
    assert!(description.contains("<friendlyName>shelf"), "{description}");
    let picture = http_get(&site.lan, &format!("http://{address}:8200/icons/sm.png"));
    assert!(picture.contains("PNG"), "{picture}");
}

fn host_network_example(lab: &Lab) {
    let example = Example::up(lab, "host.yml", &[("INTERFACE", "lan0")]);
    example.assert_delivered(lab, GROUP);
}

fn macvlan_example(lab: &Lab) {
    let example = Example::up(lab, "macvlan.yml", &LAN);
    // A limit of macvlan: packets of the host itself do not reach the container.
    let pid = example
        .site
        .docker
        .run("inspect --format {{.State.Pid}} t_listener_1");
    let inside = lab.attach("macvlan", pid.parse().expect("a process id"));
    let rx = UdpRx::join(&inside, "eth0", "225.1.2.4:5000");
    UdpTx::new(&example.site.host, "lan0", "225.1.2.4:5000").send("from the parent");
    UdpTx::new(&example.site.lan, "eth0", "225.1.2.4:5000").send("from the LAN");
    rx.expect_texts(&["from the LAN"]);
    example.assert_delivered(lab, GROUP);
}

fn two_networks_example(lab: &Lab) {
    let example = Example::up(lab, "two-networks.yml", &LAN);
    let inside = example.site.docker.namespace_of(lab, "t_mcastor_1");
    example.wait_for_member(&inside, GROUP);
    example.assert_delivered(lab, GROUP);
    example.assert_delivered_to_lan(lab, "receivers", GROUP, "172.");
}

fn sidecar_example(lab: &Lab) {
    let example = Example::up(lab, "sidecar.yml", &[]);
    let docker = &example.site.docker;
    let inside = docker.namespace_of(lab, "t_app_1");
    eventually("the sidecar is ready", 200, || {
        let address = "127.0.0.1:9464".parse().expect("an address");
        http::get(&inside, address, "/readyz").map_or(0, |a| a.status)
    });
    docker.run(
        "run --name source --network back mcastor send --interface eth0 --group 225.1.2.3 \
         --ttl 1 --count 100 --rate 500",
    );
    let source = docker.run("inspect --format {{range.IPAM.Config}}{{.Subnet}}{{end}} back");
    let prefix: Vec<&str> = source.split('.').take(2).collect();
    example.assert_listener_succeeds(&prefix.join("."));
}

fn second_uplink_example(lab: &Lab) {
    let example = Example::up(lab, "second-uplink.yml", &[("UPLINK", "lan0")]);
    // The default route and a rule for the network lead out of another interface.
    let host = &example.site.host;
    host.ip_batch(
        "route del default\nlink add up1 type veth peer name up2\nlink set up1 up\n\
         addr add 10.9.0.1/24 dev up1\nroute add default dev up1\n\
         rule add from 172.16.0.0/12 table 77\nroute add default dev up1 table 77\n",
    );
    example.wait_for_member(host, GROUP);
    example.assert_delivered(lab, GROUP);
    example.assert_delivered_to_lan(lab, "uplinked", GROUP, "172.");
}

/// With an interface moved into the container, as pipework does, multicast needs no router.
fn interface_moved_into_a_container_receives(lab: &Lab) {
    let site = Site::new(lab);
    site.docker.run_idle("app", "--network none");
    let mut script = site.host.command(
        in_repository("conf/compose/moved-interface.sh")
            .to_str()
            .expect("a path"),
    );
    let out = script
        .args(["lan0", "app", "10.0.0.1/24"])
        .env("DOCKER_HOST", format!("unix://{}", site.docker.socket()))
        .output()
        .expect("sh");
    let printed = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{printed}");
    let inside = site.docker.namespace_of(lab, "app");
    inside.wait_until_up("lan0");
    // The carrier of the other end returns later.
    site.lan.wait_until_up("eth0");
    let rx = UdpRx::join(&inside, "lan0", "225.1.2.3:5000");
    UdpTx::new(&site.lan, "eth0", "225.1.2.3:5000").send("in");
    rx.expect_texts(&["in"]);
    let rx = UdpRx::join(&site.lan, "eth0", "225.1.2.3:5000");
    UdpTx::new(&inside, "lan0", "225.1.2.3:5000").send("out");
    rx.expect_texts(&["out"]);
}

fn image_runs_unprivileged_and_names_missing_capabilities(lab: &Lab) {
    let site = Site::new(lab);
    let docker = &site.docker;
    build_image(lab, docker);
    let run = |name: &str, options: &str| {
        docker.run(&format!(
            "run --detach --name {name} --read-only --tmpfs /run/mcastor \
             --cap-drop ALL {options} --env MCASTOR__HTTP__LISTEN=off \
             --env MCASTOR__ROUTE__0__FROM=eth0 --env MCASTOR__ROUTE__0__GROUP=225.1.2.3 \
             --env MCASTOR__ROUTE__0__TO=eth1 mcastor"
        ))
    };
    let knows_bpf = knows_bpf(docker);
    // NET_ADMIN is bit 12, NET_RAW 13, PERFMON 38, BPF 39. The process must have exactly what the
    // container has.
    for (name, options, capabilities) in [
        ("raw", "--cap-add NET_RAW", "0000000000002000"),
        (
            "both",
            "--cap-add NET_RAW --cap-add NET_ADMIN",
            "0000000000003000",
        ),
        (
            "kernel",
            "--cap-add NET_RAW --cap-add NET_ADMIN --cap-add BPF --cap-add PERFMON",
            "000000c000003000",
        ),
        (
            "root",
            "--user 0 --cap-add NET_RAW --cap-add CHOWN",
            "0000000000002000",
        ),
    ] {
        if options.contains("BPF") && !knows_bpf {
            continue;
        }
        run(name, options);
        docker.wait_for_log(name, "eth0: capturing");
        let pid = docker.run(&format!("inspect --format {{{{.State.Pid}}}} {name}"));
        let user = if name == "root" { "0" } else { "65532" };
        let expected = [
            format!("Uid:\t{user}\t"),
            format!("CapEff:\t{capabilities}"),
            format!("CapPrm:\t{capabilities}"),
        ];
        eventually(
            &format!("user and capabilities of {name}"),
            Vec::new(),
            || {
                let status =
                    std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
                let is_missing = |line: &&String| !status.contains(line.as_str());
                expected.iter().filter(is_missing).cloned().collect()
            },
        );
    }
    for (name, options) in [
        ("none", ""),
        ("none-as-root", "--user 0"),
        (
            "no-file-capabilities",
            "--cap-add NET_RAW --security-opt no-new-privileges",
        ),
    ] {
        run(name, options);
        assert_eq!(docker.wait(name), 1, "{}", docker.logs(name));
        let logs = docker.logs(name);
        assert!(logs.contains("CAP_NET_RAW"), "{logs}");
    }
    let limit = Duration::from_secs(40);
    let healthy = crate::lab::wait_until(limit, || {
        docker.run("inspect --format {{.State.Health.Status}} raw") == "healthy"
    });
    assert!(
        healthy,
        "{}",
        docker.run("inspect --format {{.State.Health}} raw")
    );
}

/// The images run without root and without a volume for the joinfile.
fn mnat_images_accept_prototype_arguments(lab: &Lab) {
    let site = Site::new(lab);
    let docker = &site.docker;
    build_image(lab, docker);
    let (ca, server_state) = (Ca::new(), ServerState::starting_at(0));
    let ca_file = lab.file("ca.pem");
    std::fs::write(&ca_file, ca.pem()).expect("the CA");
    let _server = mnat::serve(&site.lan, &ca, None, "10.0.0.10:8443", &server_state);
    let joinfile = lab.file("egress.sgs");
    std::fs::write(&joinfile, "10.0.0.10,232.1.1.1\n").expect("a joinfile");
    let run = |role: &str, options: &str, interfaces: &str, arguments: &str| {
        docker.run(&format!(
            "run --detach --name {role} --network host --cap-drop ALL --cap-add NET_RAW \
             --volume {}:/etc/mnat/ca.pem:ro {options} --env MCASTOR__HTTP__LISTEN=off \
             mcastor-mnat-{role} --server 10.0.0.10 --port 8443 {interfaces} {arguments}",
            ca_file.display()
        ));
    };
    let options = format!("--volume {}:/joined.sgs:ro", joinfile.display());
    let interfaces = "--upstream-interface docker0 --downstream-interface lan0";
    run("egress", &options, interfaces, "-f /joined.sgs");
    let interfaces = "--upstream-interface lan0 --downstream-interface docker0";
    run("ingress", "", interfaces, "");
    let copy = lab.file("ingress-joined.sgs");
    let copy_command = format!(
        "cp ingress:/var/run/mnat/ingress-joined.sgs {}",
        copy.display()
    );
    eventually("the joinfile of the ingress", true, || {
        let _ = docker.try_run(&copy_command);
        std::fs::read_to_string(&copy).is_ok_and(|t| t.contains("10.0.0.10,232.1.1.1"))
    });
}

/// Server, ends, sender and listener, with the certificates that the server makes.
fn mnat_example(lab: &Lab) {
    let example = Example::up(lab, "mnat.yml", &[]);
    let has_packets = || {
        example
            .site
            .docker
            .logs("t_listener_1")
            .contains("first packet")
    };
    eventually("packets at the listener", true, has_packets);
}

/// The relay by its name in the engine's DNS, then by its address.
fn amt_example_by_name_and_by_address(lab: &Lab) {
    let example = Example::up(lab, "amt.yml", &[]);
    let docker = &example.site.docker;
    let has_packets = || docker.logs("t_listener_1").contains("first packet");
    eventually("packets at the listener", true, has_packets);
    let network = "{{.NetworkSettings.Networks.t_internet.IPAddress}}";
    let relay = docker.run(&format!("inspect --format {network} t_relay_1"));
    docker.run("rm --force t_listener_1");
    example.compose(&["up", "--detach"], &[("RELAY", &relay)]);
    docker.wait_for_log("t_listener_1", "joined");
    eventually("packets through the other gateway", true, has_packets);
    let variables = docker.run("inspect --format {{.Config.Env}} t_gateway_1");
    assert!(variables.contains(&format!("RELAY={relay}")), "{variables}");
}

/// The image runs without root. The relay is given, so that the test needs no DNS.
fn driad_ingest_image_accepts_prototype_arguments(lab: &Lab) {
    let site = Site::new(lab);
    let docker = &site.docker;
    build_image(lab, docker);
    let joinfile = lab.file("joined.sgs");
    std::fs::write(&joinfile, "203.0.113.1,232.1.1.1\n").expect("a joinfile");
    let bind = || std::net::UdpSocket::bind("10.0.0.10:2268");
    let relay = site.lan.enter(bind).expect("port 2268");
    relay.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    docker.run(&format!(
        "run --detach --name ingest --network host --cap-drop ALL --cap-add NET_RAW \
         --volume {}:/joined.sgs:ro --env MCASTOR__HTTP__LISTEN=off \
         --env MCASTOR__AMT__GATEWAY__0__RELAY=10.0.0.10 \
         mcastor-driad-ingest -v --amt bridge --interface lan0 --joinfile /joined.sgs",
        joinfile.display()
    ));
    let mut message = [0; 64];
    let received = relay.recv(&mut message);
    let logs = docker.logs("ingest");
    // A Relay Discovery: type, three reserved bytes, nonce.
    assert_eq!(received.ok(), Some(8), "{logs}");
    assert_eq!(message[..4], [1, 0, 0, 0], "{logs}");
}

/// Relays are awaited on the LAN, on an internal network of the engine, and on the LAN as that of a
/// macvlan. A tunnel that is bound to the bridge of the internal network cannot leave on the LAN.
fn driad_ingest_tunnels_leave_by_the_network_of_amt(lab: &Lab) {
    let site = Site::new(lab);
    let docker = &site.docker;
    docker.run("network create --internal --subnet 172.31.0.0/24 inner");
    docker.run("network create --driver macvlan --opt parent=lan0 --subnet 10.0.0.0/24 outer");
    let joinfile = lab.file("joined.sgs");
    std::fs::write(&joinfile, "203.0.113.1,232.1.1.1\n").expect("a joinfile");
    let relay_on = |ns: &Ns, address: &str| {
        let bind = || std::net::UdpSocket::bind((address, 2268));
        let relay = ns.enter(bind).expect("port 2268");
        relay.set_nonblocking(true).expect("a socket");
        relay
    };
    let on_lan = relay_on(&site.lan, "10.0.0.10");
    let is_queried = |relay: &std::net::UdpSocket| relay.recv(&mut [0; 64]).is_ok();
    let start = |network: &str, relay: &str| {
        let mut command = site.host.command(BINARY);
        command
            .args(["driad-ingest", "--interface", "lan0", "--amt", network])
            .arg("--joinfile")
            .arg(&joinfile)
            .env("MCASTOR__AMT__GATEWAY__0__RELAY", relay)
            .env("MCASTOR__HTTP__LISTEN", "off")
            .env("MCASTOR__DOCKER__SOCKET", docker.socket())
            .env("MCASTOR__CONTROL__SOCKET", lab.file("ingest.sock"));
        command
    };
    for (network, logged) in [
        ("bridge", "by the routes of this host"),
        ("outer", "on lan0"),
    ] {
        let mut ingest = Program::start(lab, start(network, "10.0.0.10"));
        eventually(network, true, || is_queried(&on_lan));
        let log = ingest.stderr();
        assert!(log.contains(&format!("tunnels leave {logged}")), "{log}");
        ingest.stop(libc::SIGTERM, TIMEOUT);
        while is_queried(&on_lan) {}
    }
    // A container on the internal network is a relay; the host reaches no other one through it.
    docker.run_idle("relay", "--network inner --ip 172.31.0.9");
    let inside = docker.namespace_of(lab, "relay");
    let in_container = relay_on(&inside, "0.0.0.0");
    let relays = "[\"10.0.0.10\", \"172.31.0.9\"]";
    let mut ingest = Program::start(lab, start("inner", relays));
    eventually("the relay on the internal network", true, || {
        is_queried(&in_container)
    });
    let log = ingest.stderr();
    assert!(log.contains("tunnels leave on br-"), "{log}");
    assert!(!is_queried(&on_lan), "{log}");
    ingest.stop(libc::SIGTERM, TIMEOUT);

    let refused = start("inne", "10.0.0.10").output().expect("mcastor");
    let printed = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{printed}");
    assert!(printed.contains("no network inne; it has "), "{printed}");
}
