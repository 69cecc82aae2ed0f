//! Two LANs with several routers between them.
//!
//! ```text
//!     src eth0 ---- [ br0 in lana ] ---- lan0 r1 lan1 ---- [ br0 in lanb ] ---- eth0 rcv
//!                                   ---- lan0 r2 lan1 ----
//! ```
//!
//! LAN A is 10.0.0.0/24 and LAN B is 10.0.1.0/24, IPv4 only. Router N has host address N, sender
//! and receiver have host address 100. The link-layer addresses of the routers are in the order of
//! their numbers.

use super::link::{LinkEnd, connect_all};
use super::ns::{Lab, Ns};

/// The namespaces of the LANs, the routers and the hosts.
pub struct ParallelRouters {
    /// The sender, with `eth0` on LAN A.
    pub src: Ns,
    /// The receiver, with `eth0` on LAN B.
    pub rcv: Ns,
    /// The routers, with `lan0` on LAN A and `lan1` on LAN B.
    pub routers: Vec<Ns>,
}

impl ParallelRouters {
    /// Creates the LANs with `count` routers. `bridge` holds further arguments of
    /// `ip link add br0 type bridge`, for both LANs.
    pub fn new(lab: &Lab, count: usize, bridge: &str) -> Self {
        Self::tagged(lab, count, bridge, "")
    }

    /// Creates one of several such networks of a test; `tag` tells their namespaces apart.
    pub fn tagged(lab: &Lab, count: usize, bridge: &str, tag: &str) -> Self {
        let ns = |role: &str| {
            let ns = lab.ns(&format!("{role}{tag}"));
            ns.disable_ipv6();
            ns
        };
        let lans = [ns("lana"), ns("lanb")];
        for lan in &lans {
            lan.ip_batch(&format!(
                "link add br0 type bridge {bridge}\nlink set br0 up\n"
            ));
        }
        let (src, rcv) = (ns("src"), ns("rcv"));
        let routers: Vec<Ns> = (1..=count).map(|n| ns(&format!("r{n}"))).collect();
        let mut links = Vec::new();
        for (n, router) in (1..).zip(&routers) {
            for (net, lan) in lans.iter().enumerate() {
                links.push((
                    LinkEnd::new(lan, format!("p{n}"), &[]),
                    LinkEnd::new(
                        router,
                        format!("lan{net}"),
                        &[&format!("10.0.{net}.{n}/24")],
                    ),
                ));
            }
        }
        for (net, (lan, host)) in lans.iter().zip([&src, &rcv]).enumerate() {
            links.push((
                LinkEnd::new(lan, "host", &[]),
                LinkEnd::new(host, "eth0", &[&format!("10.0.{net}.100/24")]),
            ));
        }
        connect_all(&links);
        for (n, router) in (1..).zip(&routers) {
            router.ip_batch(&format!(
                "link set lan0 address 02:00:00:00:00:1{n}\nlink set lan1 address 02:00:00:00:01:1{n}\n"
            ));
        }
        for lan in &lans {
            let ports = (1..=count).map(|n| format!("link set p{n} master br0\n"));
            lan.ip_batch(&(ports.collect::<String>() + "link set host master br0\n"));
        }
        src.ip("route add 224.0.0.0/4 dev eth0");
        rcv.ip("route add 224.0.0.0/4 dev eth0");
        Self { src, rcv, routers }
    }
}
