"""Writes test frames of many kinds to a pcap file: build.py OUT [kernel]

`kernel` omits frames that the multicast routing of the Linux kernel changes (IPv4 timestamp option)
or does not forward (IPv6 router alert)."""

import sys

from scapy.all import (GRE, ICMP, IP, SCTP, TCP, UDP, Ether, ICMPv6EchoRequest,
                       IPOption_Router_Alert, IPOption_Timestamp, IPv6, IPv6ExtHdrDestOpt,
                       IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting, PadN, Raw,
                       RouterAlert, fragment, fragment6, wrpcap)

e4 = Ether(src="02:00:00:00:00:0a", dst="01:00:5e:01:02:03")
e6 = Ether(src="02:00:00:00:00:0a", dst="33:33:00:01:00:02")


def ip4(**more):
    return IP(src="10.0.0.10", dst="225.1.2.3", **{"ttl": 9, **more})


def ip6(**more):
    return IPv6(src="fd00::10", dst="ff3e::1:2", **{"hlim": 9, **more})


udp = UDP(sport=4000, dport=5000)
body = Raw(bytes(range(256)))

four = [
    ip4(tos=0xB8) / udp / body,
    ip4(ttl=255, id=0, flags="DF") / udp / Raw(b"odd"),
    ip4(ttl=2) / UDP(sport=4000, dport=5000, chksum=0) / body,
    ip4() / udp,
    ip4(options=[IPOption_Router_Alert()]) / udp / body,
    ip4(options=[IPOption_Timestamp(flg=0)]) / udp / body,
    ip4() / ICMP() / body,
    ip4() / TCP(sport=1, dport=2, flags="S"),
    ip4() / SCTP(sport=1, dport=2) / body,
    ip4() / GRE() / IP(src="192.0.2.1", dst="192.0.2.2") / udp / body,
    ip4(proto=253) / body,
    *fragment(ip4(id=77) / udp / Raw(b"f" * 3000), fragsize=1000),
]
six = [
    ip6(tc=0xB8, fl=0xABCDE) / udp / body,
    ip6(hlim=255) / udp / Raw(b"odd"),
    ip6(hlim=2) / udp,
    ip6() / IPv6ExtHdrHopByHop(options=[RouterAlert(), PadN(optdata=b"")]) / udp / body,
    ip6() / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 4)]) / udp / body,
    ip6() / IPv6ExtHdrRouting(type=3, segleft=0) / udp / body,
    ip6() / ICMPv6EchoRequest(data=b"ping"),
    ip6(nh=253) / body,
    *fragment6(ip6() / IPv6ExtHdrFragment(id=78) / udp / Raw(b"f" * 3000), 1000),
]
if "kernel" in sys.argv[2:]:
    four = [p for p in four if not any(isinstance(o, IPOption_Timestamp) for o in p.options)]
    six = [p for p in six if IPv6ExtHdrHopByHop not in p]
wrpcap(sys.argv[1], [e4 / p for p in four] + [e6 / p for p in six])
