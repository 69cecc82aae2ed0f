//! The usual topology: one sender, the router, and its egresses in one receiving namespace.
//!
//!     src eth0 ---- in  rtr  out1 ---- eth1 rcv
//!                            out2 ---- eth2
//!
//! Link 0 is 10.0.0.0/24 and fd00:0::/64, link N 10.0.N.0/24 and fd00:N::/64; the router is
//! .1, everybody else .10.

use std::fmt::Write;

use super::ns::{Lab, Ns, ip_batch};

/// Sender, router, receivers.
pub struct Star {
    /// Has `eth0`.
    pub src: Ns,
    /// Has `in`, `out1`...
    pub rtr: Ns,
    /// Has `eth1`...
    pub rcv: Ns,
}

impl Star {
    /// IPv4 only, so that nothing but the test's own packets is on the wires.
    pub fn v4(lab: &Lab, egresses: usize) -> Self {
        Self::new(lab, egresses, false, "")
    }

    /// Both families.
    pub fn dual(lab: &Lab, egresses: usize) -> Self {
        Self::new(lab, egresses, true, "")
    }

    /// Both families, one of several stars of a test, told apart by `tag`.
    pub fn one_of(lab: &Lab, egresses: usize, tag: &str) -> Self {
        Self::new(lab, egresses, true, tag)
    }

    fn new(lab: &Lab, egresses: usize, v6: bool, tag: &str) -> Self {
        let star = Self {
            src: lab.ns(&format!("src{tag}")),
            rtr: lab.ns(&format!("rtr{tag}")),
            rcv: lab.ns(&format!("rcv{tag}")),
        };
        let (src, rtr, rcv) = (&star.src, &star.rtr, &star.rcv);
        if !v6 {
            for ns in [src, rtr, rcv] {
                ns.sysctl("net/ipv6/conf/default/disable_ipv6", "1");
            }
        }
        let mut links = format!(
            "link add in netns {} type veth peer name eth0 netns {}\n",
            rtr.name(),
            src.name()
        );
        let (mut up_rtr, mut up_rcv) = (String::new(), String::new());
        up_link(&mut up_rtr, "in", 0, 1, v6);
        for n in 1..=egresses {
            let _ = writeln!(
                links,
                "link add out{n} netns {} type veth peer name eth{n} netns {}",
                rtr.name(),
                rcv.name()
            );
            up_link(&mut up_rtr, &format!("out{n}"), n, 1, v6);
            up_link(&mut up_rcv, &format!("eth{n}"), n, 10, v6);
        }
        let mut up_src = String::new();
        up_link(&mut up_src, "eth0", 0, 10, v6);
        up_src += "route add default via 10.0.0.1\nroute add 224.0.0.0/4 dev eth0\n";
        if egresses > 0 {
            up_rcv += "route add default via 10.0.1.1\nroute add 224.0.0.0/4 dev eth1\n";
        }
        if v6 {
            up_src += "route add ::/0 via fd00:0::1\n";
            up_rcv += "route add ::/0 via fd00:1::1\n";
        }
        ip_batch(&[], &links).unwrap_or_else(|e| panic!("{e}"));
        // Both ends up before addresses, so that no address waits for its carrier.
        src.ip("link set eth0 up");
        rtr.ip_batch(&up_rtr);
        rcv.ip_batch(&up_rcv);
        src.ip_batch(&up_src);
        src.carries("eth0");
        for n in 1..=egresses.min(8) {
            rcv.carries(&format!("eth{n}"));
        }
        star
    }
}

impl Star {
    /// Adds egress `n`, or puts it back after it was deleted: `out<n>` and `eth<n>`, IPv4.
    pub fn plug(&self, n: usize) {
        self.plug_as(&format!("out{n}"), n);
    }

    /// As [`Self::plug`], under another name at the router.
    pub fn plug_as(&self, name: &str, n: usize) {
        let (rtr, rcv) = (self.rtr.name(), self.rcv.name());
        let links = format!("link add eth{n} netns {rcv} type veth peer name {name} netns {rtr}\n");
        ip_batch(&[], &links).unwrap_or_else(|e| panic!("{e}"));
        let (mut up_rtr, mut up_rcv) = (String::new(), String::new());
        // The far end first: what the router sends into a link that is up arrives.
        up_link(&mut up_rcv, &format!("eth{n}"), n, 10, false);
        up_link(&mut up_rtr, name, n, 1, false);
        self.rcv.ip_batch(&up_rcv);
        self.rtr.ip_batch(&up_rtr);
        self.rcv.carries(&format!("eth{n}"));
    }

    /// Puts `in` and `eth0` back after they were deleted, IPv4.
    pub fn plug_in(&self) {
        let (rtr, src) = (self.rtr.name(), self.src.name());
        let links = format!("link add in netns {rtr} type veth peer name eth0 netns {src}\n");
        ip_batch(&[], &links).unwrap_or_else(|e| panic!("{e}"));
        let (mut up_rtr, mut up_src) = (String::new(), String::new());
        up_link(&mut up_rtr, "in", 0, 1, false);
        up_link(&mut up_src, "eth0", 0, 10, false);
        self.src.ip_batch(&up_src);
        self.rtr.ip_batch(&up_rtr);
        self.src.carries("eth0");
    }
}

/// Puts a macvlan interface on top of another: one that comes and goes while the wire stays.
pub fn macvlan(ns: &Ns, name: &str, under: &str) {
    ns.ip_batch(&format!(
        "link add {name} link {under} type macvlan mode bridge\nlink set {name} up\n"
    ));
}

fn up_link(batch: &mut String, name: &str, net: usize, host: usize, v6: bool) {
    let _ = writeln!(
        batch,
        "link set {name} up\naddress add 10.0.{net}.{host}/24 dev {name}"
    );
    if v6 {
        let _ = writeln!(batch, "address add fd00:{net}::{host}/64 dev {name} nodad");
    }
}
