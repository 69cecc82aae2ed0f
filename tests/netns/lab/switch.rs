//! A switch: a bridge in a namespace of its own between a downstream interface and its hosts.

use super::ns::{Lab, Ns, ip_batch};
use super::star::Star;

/// Puts a bridge called `br0` behind `out1` of a star, with hosts on further ports.
///
///     rtr out1 ---- eth1 [ br0 in rcv ] p0 ---- eth0 first host
///                                       p1 ---- eth0 second host
///
/// The bridge has no address. Hosts have 10.0.1.20, .21... `bridge` is the rest of
/// `ip link add br0 type bridge`.
pub fn switch(lab: &Lab, star: &Star, bridge: &str, hosts: &[&str]) -> Vec<Ns> {
    star.rcv.ip_batch(&format!(
        "address flush dev eth1\nlink add br0 type bridge {bridge}\n\
         link set br0 address 02:00:00:00:00:01\nlink set eth1 master br0\nlink set br0 up\n"
    ));
    let v6 = star.rtr.enter(|| {
        std::fs::read_to_string("/proc/sys/net/ipv6/conf/default/disable_ipv6")
            .is_ok_and(|v| v.trim() == "0")
    });
    let mut made = Vec::new();
    for (n, role) in hosts.iter().enumerate() {
        let host = lab.ns(role);
        if !v6 {
            host.sysctl("net/ipv6/conf/default/disable_ipv6", "1");
        }
        let line = format!(
            "link add p{n} netns {} type veth peer name eth0 netns {}\n",
            star.rcv.name(),
            host.name()
        );
        ip_batch(&[], &line).unwrap_or_else(|e| panic!("{e}"));
        star.rcv
            .ip_batch(&format!("link set p{n} master br0\nlink set p{n} up\n"));
        host.ip_batch(&format!(
            "link set eth0 up\naddress add 10.0.1.{}/24 dev eth0\nroute add default via 10.0.1.1\n",
            20 + n
        ));
        host.carries("eth0");
        made.push(host);
    }
    made
}

/// What `bridge <words>` says in a namespace.
pub fn bridge(ns: &Ns, words: &str) -> String {
    let words: Vec<&str> = words.split_whitespace().collect();
    let out = ns.output("bridge", &words);
    String::from_utf8_lossy(&out.stdout).into_owned()
}
