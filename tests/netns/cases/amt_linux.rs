//! AMT with the `amt` driver of Linux at the other end of the tunnel. Debian's kernels lack the
//! driver: tests/kernels builds it for a guest.

use super::amt::{AmtTopology, joined_groups, tunnels};
use super::cases;
use super::mnat::join_source_v6;
use crate::lab::proxy::{join_source, joined};
use crate::lab::{Capture, GroupMember, IpPacket, Lab, UdpRx, UdpTx, eventually};

cases!("amt_linux":
    #[LinkKind("amt")] gateway_receives_streams_of_a_linux_relay,
    #[LinkKind("amt")] linux_gateway_receives_streams_of_a_relay,
);

/// Packets that are counted.
const PACKETS: u32 = 50;

/// The relay drops MLD requests with the P flag of the RFC, and keeps one nonce for both protocols.
fn gateway_receives_streams_of_a_linux_relay(lab: &Lab) {
    let topology = AmtTopology::new(lab);
    let AmtTopology { rel, rcv, .. } = &topology;
    rel.ip_batch(
        "link add amtr type amt mode relay local 10.1.0.1 dev wan0\n\
         address add 10.9.0.1/24 dev amtr\naddress add fd09::1/64 dev amtr nodad\n\
         link set amtr up\n",
    );
    let gateway = topology.gateway(lab, "\"10.1.0.1\"");
    let _four = join_source(rcv, "eth1", "10.9.0.1", "232.1.1.1");
    let _six = join_source_v6(rcv, "eth1", "fd09::1", "ff3e::8000:1");
    let wire = Capture::new(rcv, "eth1");
    for group in ["232.1.1.1", "ff3e::8000:1"] {
        let to = match group.contains(':') {
            true => format!("[{group}]:5000"),
            false => format!("{group}:5000"),
        };
        let sender = UdpTx::new(rel, "amtr", &to);
        let with = |payload: &[u8]| {
            let has = |packet: &IpPacket| packet.protocol == 17 && packet.payload() == payload;
            let packets = wire.to(group).into_iter();
            packets.filter(has).count()
        };
        // The driver does not show what its gateways joined.
        eventually(&format!("the first packet to {group}"), true, || {
            sender.send(b"first");
            with(b"first") > 0
        });
        for _ in 0..PACKETS {
            sender.send(b"then");
        }
        eventually(group, PACKETS as usize, || with(b"then"));
    }
    let tunnel = &tunnels(&gateway, "internet")[0];
    for protocol in ["igmp", "mld"] {
        assert_eq!(tunnel[protocol], "connected", "{tunnel}");
    }
    assert_eq!(tunnel["memberships"], 2, "{tunnel}");
}

/// The gateway drops queries with the G flag of the RFC, sends one nonce for both protocols, and
/// keeps the MAC of the last query.
fn linux_gateway_receives_streams_of_a_relay(lab: &Lab) {
    let topology = AmtTopology::new(lab);
    let relay = topology.relay(lab);
    let gw = &topology.gw;
    gw.ip_batch(
        "link add amtg type amt mode gateway local 10.2.0.1 discovery 10.1.0.1 dev wan0\n\
         link set amtg up\n",
    );
    let first = GroupMember::new(gw, "amtg", "232.1.1.1").join("10.0.0.10");
    let second = GroupMember::new(gw, "amtg", "ff3e::8000:1").join("fd00::10");
    eventually("both groups at the relay", 2, || joined_groups(&relay));
    eventually("joined upstream", 2, || joined(&relay, "in").len());
    let four = UdpRx::bind(gw, "amtg", "232.1.1.1:5000");
    let six = UdpRx::bind(gw, "amtg", "[ff3e::8000:1]:5000");
    // The driver begins a cycle every two seconds, and drops packets until it has sent its report.
    let mut sent = 0;
    eventually("the packets of both streams", true, || {
        topology.send(sent, sent + 10);
        sent += 10;
        let has_all = |rx: &UdpRx| rx.count() >= PACKETS as usize;
        has_all(&four) && has_all(&six)
    });
    println!(
        "{} and {} of {sent} packets arrived",
        four.count(),
        six.count()
    );
    let labels = [("iface", "tunnels")];
    relay.expect_metric("mcastor_amt_copies_total", &labels, 2 * u64::from(sent));
    // A leave ends the stream.
    drop((first, second));
    eventually("no group at the relay", 0, || joined_groups(&relay));
}
