//! A switch: a bridge in its own namespace, between a downstream interface and its hosts or between
//! the source and the router.

use super::frame::Udp;
use super::link::{LinkEnd, connect, connect_all};
use super::ns::{Lab, Ns};
use super::packet::{Capture, Injector};
use super::star::Star;
use super::{TIMEOUT, eventually, wait_until};

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

/// Inserts a snooping bridge with a querier between `src` and `in` of the router of a star.
/// `options` are further options of `ip link set br0 type bridge`.
pub fn upstream_switch(lab: &Lab, star: &Star, options: &str) -> Ns {
    let switch = lab.ns("sw");
    star.rtr.ip("link del in");
    connect_all(&[
        (
            LinkEnd::new(&switch, "p0", &[]),
            LinkEnd::new(&star.src, "eth0", &["10.0.0.10/24"]),
        ),
        (
            LinkEnd::new(&switch, "p1", &[]),
            LinkEnd::new(&star.rtr, "in", &["10.0.0.1/24"]),
        ),
    ]);
    switch.ip_batch(&format!(
        "link add br0 type bridge\n\
         link set br0 type bridge mcast_snooping 1 mcast_igmp_version 3 mcast_mld_version 2 {options}\n\
         link set p0 master br0\nlink set p1 master br0\n\
         address add 10.0.0.200/24 dev br0\nlink set br0 up\n\
         link set br0 type bridge mcast_querier 1\n"
    ));
    switch
}

/// Waits until a switch delivers `groups`, which have no member, to no port any more. It floods
/// them until it considers its querier valid. `at` is a capture behind the switch.
#[track_caller]
pub fn wait_until_snooping(inject: &Injector, at: &Capture, groups: &[&str]) {
    // Switches flood this group always: when it arrives, the packets before it have arrived.
    const MARKER: &str = "224.0.0.99";
    let count = |group: &&str| at.to(group).len();
    let send = |group: &str| {
        let (from, to) = match group.contains(':') {
            true => ("[fd00::10]:9", format!("[{group}]:5000")),
            false => ("10.0.0.10:9", format!("{group}:5000")),
        };
        inject.send(&Udp::new(from, &to, "x").frame());
    };
    eventually("the switch snoops", true, || {
        let (before, marker) = (groups.iter().map(count).sum::<usize>(), count(&MARKER));
        groups.iter().for_each(|group| send(group));
        send(MARKER);
        wait_until(TIMEOUT, || count(&MARKER) > marker);
        groups.iter().map(count).sum::<usize>() == before
    });
}
