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
            bridge: "br0".into(),
            docker: None,
        };
        if bridge == Bridge::Routed {
            this.run("iptables -t nat -F POSTROUTING");
            this.permit_udp("FORWARD");
        }
        this
    }

    /// Creates a site with a Docker Engine, whose host admits nothing else.
    pub fn docker(lab: &Lab, bridge: Bridge) -> Self {
        let [device, rtr] = ["device", "rtr"].map(|role| lab.ns(role));
        connect(
            LinkEnd::new(&rtr, "eth0", &["10.0.0.1/24", "fd00::1/64"]),
            LinkEnd::new(&device, "eth0", &["10.0.0.10/24", "fd00::10/64"]),
        );
        let docker = Docker::start(lab, &rtr);
        drop_input(&rtr);
        let masquerade = "com.docker.network.bridge.enable_ip_masquerade";
        docker.run(&format!(
            "network create --subnet 172.20.0.0/16 --ipv6 --subnet fd20::/64 \
             --opt {masquerade}={} home",
            bridge == Bridge::Masqueraded
        ));
        docker.run_idle("app", "--network home");
        let this = Self {
            container: docker.namespace_of(lab, "app"),
            bridge: docker.bridge("home"),
            device,
            rtr,
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

    /// Starts the router with the settings of a recipe.
    pub fn start(&self, lab: &Lab, heading: &str) -> Router {
        let settings = match &self.docker {
            Some(docker) => docker.settings() + &recipe(heading),
            None => recipe(heading).replace("network:home", &self.bridge),
        };
        start_on(lab, &self.rtr, &settings, &["eth0", &self.bridge])
    }
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
