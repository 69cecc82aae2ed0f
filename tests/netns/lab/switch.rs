//! A switch: a bridge in its own namespace between a downstream interface and its hosts.

use super::link::{LinkEnd, connect};
use super::ns::{Lab, Ns};
use super::star::Star;

/// Inserts the bridge `br0` behind `out1` of a star and connects hosts to further ports. Returns
/// the hosts.
///
/// ```text
///     rtr out1 ---- eth1 [ br0 in rcv ] p0 ---- eth0 first host
///                                       p1 ---- eth0 second host
/// ```
///
/// The bridge has no address. Hosts have 10.0.1.20, 10.0.1.21... `bridge` holds further arguments
/// of `ip link add br0 type bridge`.
pub fn switch(lab: &Lab, star: &Star, bridge: &str, hosts: &[&str]) -> Vec<Ns> {
    star.rcv.ip_batch(&format!(
        "address flush dev eth1\nlink add br0 type bridge {bridge}\n\
         link set br0 address 02:00:00:00:00:01\nlink set eth1 master br0\nlink set br0 up\n"
    ));
    let v6 = star.rtr.enter(|| {
        std::fs::read_to_string("/proc/sys/net/ipv6/conf/default/disable_ipv6")
            .is_ok_and(|v| v.trim() == "0")
    });
    let connect_host = |(n, role): (usize, &&str)| {
        let host = lab.ns(role);
        if !v6 {
            host.disable_ipv6();
        }
        let address = format!("10.0.1.{}/24", 20 + n);
        connect_to_bridge(&star.rcv, n, &host, &[&address]);
        host.ip("route add default via 10.0.1.1");
        host
    };
    hosts.iter().enumerate().map(connect_host).collect()
}

/// Connects `eth0` of a host to `br0` of a namespace through the new bridge port `p<n>`.
pub fn connect_to_bridge(ns: &Ns, n: usize, host: &Ns, addresses: &[&str]) {
    let port = format!("p{n}");
    connect(
        LinkEnd::new(ns, port.as_str(), &[]),
        LinkEnd::new(host, "eth0", addresses),
    );
    ns.ip(&format!("link set {port} master br0"));
}

/// Returns the output of `bridge <words>` in a namespace.
pub fn bridge(ns: &Ns, words: &str) -> String {
    let words: Vec<&str> = words.split_whitespace().collect();
    let out = ns.output("bridge", &words);
    String::from_utf8_lossy(&out.stdout).into_owned()
}
