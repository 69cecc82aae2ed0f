//! The usual topology: one sender, the router, and its egresses in one receiving namespace.
//!
//! ```text
//!     src eth0 ---- in  rtr  out1 ---- eth1 rcv
//!                            out2 ---- eth2
//! ```
//!
//! Link 0 is 10.0.0.0/24 and fd00:0::/64, link N is 10.0.N.0/24 and fd00:N::/64. The router has
//! host address 1 on every link, sender and receiver have host address 10.

use super::link::{LinkEnd, connect, connect_all};
use super::ns::{Lab, Ns};

/// The namespaces of sender, router and receivers.
pub struct Star {
    /// The sender, with `eth0`.
    pub src: Ns,
    /// The router, with `in`, `out1`...
    pub rtr: Ns,
    /// The receivers, with `eth1`...
    pub rcv: Ns,
}

impl Star {
    /// Creates a star with IPv4 only, so that the links carry no packets but the test's own.
    pub fn v4(lab: &Lab, egresses: usize) -> Self {
        Self::new(lab, egresses, false, "")
    }

    /// Creates a star with IPv4 and IPv6.
    pub fn dual(lab: &Lab, egresses: usize) -> Self {
        Self::new(lab, egresses, true, "")
    }

    /// Creates one of several stars of a test with IPv4 and IPv6; `tag` distinguishes their
    /// namespaces.
    pub fn tagged(lab: &Lab, egresses: usize, tag: &str) -> Self {
        Self::new(lab, egresses, true, tag)
    }

    /// As [`Self::tagged`], with IPv4 only.
    pub fn v4_tagged(lab: &Lab, egresses: usize, tag: &str) -> Self {
        Self::new(lab, egresses, false, tag)
    }

    fn new(lab: &Lab, egresses: usize, v6: bool, tag: &str) -> Self {
        let star = Self {
            src: lab.ns(&format!("src{tag}")),
            rtr: lab.ns(&format!("rtr{tag}")),
            rcv: lab.ns(&format!("rcv{tag}")),
        };
        let (src, rtr, rcv) = (&star.src, &star.rtr, &star.rcv);
        if !v6 {
            [src, rtr, rcv].into_iter().for_each(Ns::disable_ipv6);
        }
        let mut links = vec![(end(rtr, "in", 0, 1, v6), end(src, "eth0", 0, 10, v6))];
        links.extend((1..=egresses).map(|n| {
            let near = end(rtr, &format!("out{n}"), n, 1, v6);
            (near, end(rcv, &format!("eth{n}"), n, 10, v6))
        }));
        connect_all(&links);
        let mut src_routes =
            String::from("route add default via 10.0.0.1\nroute add 224.0.0.0/4 dev eth0\n");
        let mut rcv_routes = String::new();
        if egresses > 0 {
            rcv_routes += "route add default via 10.0.1.1\nroute add 224.0.0.0/4 dev eth1\n";
        }
        if v6 {
            src_routes += "route add ::/0 via fd00:0::1\n";
            rcv_routes += "route add ::/0 via fd00:1::1\n";
        }
        src.ip_batch(&src_routes);
        rcv.ip_batch(&rcv_routes);
        star
    }

    /// Adds egress `n`, or recreates it after its deletion: `out<n>` and `eth<n>`, IPv4 only.
    pub fn add_egress(&self, n: usize) {
        self.add_egress_named(&format!("out{n}"), n);
    }

    /// As [`Self::add_egress`], with another interface name at the router.
    pub fn add_egress_named(&self, name: &str, n: usize) {
        let near = end(&self.rtr, name, n, 1, false);
        connect(near, end(&self.rcv, &format!("eth{n}"), n, 10, false));
    }

    /// Recreates `in` and `eth0` after their deletion, IPv4 only.
    pub fn recreate_ingress(&self) {
        let near = end(&self.rtr, "in", 0, 1, false);
        connect(near, end(&self.src, "eth0", 0, 10, false));
    }
}

/// Describes a link end with the addresses of link `net` and host `host`.
fn end<'a>(ns: &'a Ns, iface: &str, net: usize, host: usize, v6: bool) -> LinkEnd<'a> {
    let v4_address = format!("10.0.{net}.{host}/24");
    let v6_address = format!("fd00:{net}::{host}/64");
    let addresses = [v4_address.as_str(), &v6_address];
    LinkEnd::new(ns, iface, &addresses[..1 + usize::from(v6)])
}

/// Creates a macvlan interface on top of `under`, which can be removed while the link below stays.
pub fn macvlan(ns: &Ns, name: &str, under: &str) {
    ns.ip_batch(&format!(
        "link add {name} link {under} type macvlan mode bridge\nlink set {name} up\n"
    ));
}
