//! A device on a LAN and a container behind a bridge, for the recipes of docs/discovery.md: in plain
//! namespaces, or with a real Docker Engine. Addresses are the same.

use std::path::Path;

use super::discovery_site::{drop_input, site, start_on};
use super::docker::Docker;
use super::harness::pypi_program;
use super::link::{LinkEnd, connect};
use super::ns::{Lab, Ns};
use super::program::Program;
use super::router::Router;

/// How the LAN and the bridge network reach each other by unicast.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Bridge {
    /// Containers connect to the LAN with the address of the host, and nothing to them.
    Masqueraded,
    /// Addresses stay as they are. The LAN has a route, and the host admits UDP.
    Routed,
}

/// A device on a LAN, and a container of the network `home`.
///
/// ```text
///     device 10.0.0.10 eth0 ---- eth0 rtr 10.0.0.1, bridge 172.20.0.1 ---- eth0 172.20.0.2 container
/// ```
pub struct RecipeSite {
    /// The device, 10.0.0.10 and fd00::10.
    pub device: Ns,
    /// The host of the container.
    pub rtr: Ns,
    /// The container, 172.20.0.2 and fd20::2.
    pub container: Ns,
    lan: &'static str,
    bridge: String,
    docker: Option<Docker>,
}

impl RecipeSite {
    /// Creates a site without a container engine.
    pub fn plain(lab: &Lab, bridge: Bridge) -> Self {
        let site = site(lab, 1);
        let mut containers = site.containers;
        let this = Self {
            device: site.device,
            rtr: site.rtr,
            container: containers.remove(0),
            lan: "eth0",
            bridge: "br0".into(),
            docker: None,
        };
        if bridge == Bridge::Routed {
            this.run("iptables -t nat -F POSTROUTING");
            this.permit_udp("FORWARD");
        }
        this
    }

    /// Creates a site with a Docker Engine, whose host admits nothing else. Port 8000 of the container
    /// is published as 18000.
    pub fn docker(lab: &Lab, bridge: Bridge) -> Self {
        Self::docker_beside(lab, "eth0", bridge)
    }

    /// As [`Self::docker`]. `lan` is the interface of the host to the LAN, as in [`connect_port`].
    pub fn docker_beside(lab: &Lab, lan: &'static str, bridge: Bridge) -> Self {
        let [device, rtr] = ["device", "rtr"].map(|role| lab.ns(role));
        connect_port(&rtr, lan, &["10.0.0.1/24", "fd00::1/64"], &device);
        add_addresses(&device, "eth0", &["10.0.0.10/24", "fd00::10/64"]);
        let docker = Docker::start(lab, &rtr);
        drop_input(&rtr);
        let masquerade = "com.docker.network.bridge.enable_ip_masquerade";
        docker.run(&format!(
            "network create --subnet 172.20.0.0/16 --ipv6 --subnet fd20::/64 \
             --opt {masquerade}={} home",
            bridge == Bridge::Masqueraded
        ));
        docker.run_idle("app", "--network home --publish 18000:8000");
        let this = Self {
            container: docker.namespace_of(lab, "app"),
            bridge: docker.bridge("home"),
            device,
            rtr,
            lan,
            docker: Some(docker),
        };
        if bridge == Bridge::Routed {
            this.permit_udp("DOCKER-USER");
        }
        this
    }

    #[track_caller]
    fn run(&self, words: &str) {
        let out = self.rtr.output("sh", &["-c", words]);
        assert!(out.status.success(), "{words}: {out:?}");
    }

    /// Lets the LAN send UDP to the bridge, and gives it a route.
    fn permit_udp(&self, chain: &str) {
        let bridge = &self.bridge;
        self.run(&format!(
            "iptables -I {chain} -i eth0 -o {bridge} -p udp -j ACCEPT"
        ));
        self.device.ip("route add 172.20.0.0/16 via 10.0.0.1");
    }

    /// Starts the router with the settings of a recipe. With a Docker Engine, the router is a container
    /// of this engine, which ends with it, and is not returned.
    pub fn start(&self, lab: &Lab, heading: &str) -> Option<Router> {
        let links = [self.lan, "network:home"];
        self.start_with(lab, &recipe(heading), links)
    }

    /// As [`Self::start`], with other settings and links.
    pub fn start_with(&self, lab: &Lab, settings: &str, links: [&str; 2]) -> Option<Router> {
        let bridge = |name: &str| name.replace("network:home", &self.bridge);
        let links = links.map(bridge);
        let Some(docker) = &self.docker else {
            let links = [links[0].as_str(), &links[1]];
            return Some(start_on(lab, &self.rtr, &bridge(settings), &links));
        };
        docker.run_router(lab, "mcastor", settings);
        for link in links {
            docker.wait_for_log("mcastor", &format!("taking part on {link}"));
        }
        None
    }
}

/// Connects a router to `eth0` of a host. `port` is the interface of the router, with these addresses.
/// One named `vlan` and a number is a VLAN, where the kernel has VLANs.
pub fn connect_port(rtr: &Ns, port: &str, addresses: &[&str], host: &Ns) {
    let under = format!("un-{port}");
    connect(
        LinkEnd::new(rtr, under.as_str(), &[]),
        LinkEnd::new(host, "uplink", &[]),
    );
    name_link(rtr, &under, port, port);
    name_link(host, "uplink", "eth0", port);
    add_addresses(rtr, port, addresses);
}

/// Gives a link its name, or makes the VLAN of that name on it.
fn name_link(ns: &Ns, link: &str, name: &str, kind: &str) {
    let vlan = kind.strip_prefix("vlan").map(|id| {
        ns.try_ip(&format!(
            "link add link {link} name {name} type vlan id {id}"
        ))
    });
    if vlan.is_none_or(|made| made.is_err()) {
        ns.ip_batch(&format!(
            "link set {link} down\nlink set {link} name {name}\n"
        ));
    }
}

/// Sets an interface up with these addresses.
pub fn add_addresses(ns: &Ns, name: &str, addresses: &[&str]) {
    let mut lines = String::new();
    for address in addresses {
        let nodad = if address.contains(':') { " nodad" } else { "" };
        lines += &format!("address add {address} dev {name}{nodad}\n");
    }
    ns.ip_batch(&(lines + &format!("link set {name} up\n")));
}

/// Returns the settings of a recipe: the first block of TOML below a heading of docs/discovery.md.
pub fn recipe(heading: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/discovery.md");
    let text = std::fs::read_to_string(path).expect("the document");
    let below = text.split_once(&format!("# {heading}\n"));
    let (_, below) = below.unwrap_or_else(|| panic!("no heading {heading}"));
    let section = below.split("\n##").next().unwrap_or(below);
    let (_, block) = section.split_once("```toml\n").expect("settings");
    let (settings, _) = block.split_once("```").expect("the end of the settings");
    settings.into()
}

/// Starts a script of tests/netns/discovery with the packages from PyPI.
pub fn python(lab: &Lab, ns: &Ns, script: &str, arguments: &[&str]) -> Program {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/netns/discovery");
    let file = folder.join(script).with_extension("py");
    let python = pypi_program("python3");
    let mut words = vec![Path::to_str(&file).expect("a path")];
    words.extend(arguments);
    ns.spawn(lab, python.to_str().expect("a path"), &words)
}
