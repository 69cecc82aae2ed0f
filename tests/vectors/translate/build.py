"""Writes vectors.json beside this file: received packets and the expected translated packets.

scapy builds the expected packets independently of the received ones and computes every length and
checksum. Run it again after a change: /usr/bin/python3 build.py"""

import json
import os

from scapy.all import (AH, ESP, GRE, ICMP, IP, SCTP, TCP, UDP, ICMPv6DestUnreach,
                       ICMPv6EchoReply, ICMPv6EchoRequest, IPOption, IPOption_LSRR, IPOption_NOP,
                       IPOption_Router_Alert, IPOption_Timestamp, IPv6, IPv6ExtHdrDestOpt,
                       IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting, PadN, Raw,
                       checksum, in4_chksum, in6_chksum, raw)

# Source and group before and after the translation.
FOUR, FOUR_TO = ("10.0.0.10", "225.1.2.3"), ("10.9.1.2", "239.1.1.1")
SIX, SIX_TO = ("fd00::10", "ff3e::1:2"), ("fd00:9::2", "ff3e::9:9")
PAIRS = {"4to4": (FOUR, FOUR_TO), "6to6": (SIX, SIX_TO), "4to6": (FOUR, SIX_TO), "6to4": (SIX, FOUR_TO)}
vectors = []


def four(to, ttl, **more):
    return IP(src=to[0], dst=to[1], ttl=ttl, **{"id": 77, **more})


def six(to, ttl, **more):
    return IPv6(src=to[0], dst=to[1], hlim=ttl, **more)


def is_six(to):
    return ":" in to[0]


def ip(to, ttl, tos=0, **more):
    if is_six(to):
        return six(to, ttl, tc=tos, **more)
    return four(to, ttl, tos=tos, **more)


def out_ip(pair, to, size, tos=0, flags=0, options=None, fl=0, ident=77):
    """Returns the IP header of the translated packet; `size` is the length of its payload."""
    if pair == "4to4":
        return four(to, 8, tos=tos, flags=flags, options=options or [], id=ident)
    if pair == "6to6":
        return six(to, 8, tc=tos, fl=fl)
    if pair == "4to6":
        return six(to, 8, tc=tos)
    # The translator assigns the first identification, and sets DF above 1260 bytes.
    return four(to, 8, tos=tos, id=1, flags="DF" if size + 20 > 1260 else 0)


def add(name, pair, arrives, leaves, *, to=None, port=None, offload=None, mtu=1500):
    """`leaves` holds the expected packets, or the drop reason."""
    frm, default = PAIRS[pair]
    vectors.append({
        "name": f"{pair} {name}",
        "from": frm,
        "to": to or default,
        "port": port,
        "mtu": mtu,
        "offload": offload,
        "in": raw(arrives).hex(),
        **({"drop": leaves} if isinstance(leaves, str) else {"out": [raw(p).hex() for p in leaves]}),
    })


def body(size):
    return Raw(bytes((7 * n + size) % 256 for n in range(size)))


def udp(port, **more):
    return UDP(sport=4000, dport=port, **more)


def udp_bytes(to, port, data, chksum=None):
    """Returns the UDP datagram without the IP header, with the checksum for these addresses."""
    return raw(ip(to, 9) / udp(port, chksum=chksum) / data)[40 if is_six(to) else 20:]


def partial(to, packet, udp_at):
    """Returns the packet with the sum of the pseudo-header in the checksum field, as on a veth."""
    b = bytearray(raw(packet))
    length = len(b) - udp_at
    empty = bytes(b[udp_at:udp_at + 6]) + b"\0\0" + bytes(b[udp_at + 8:])
    whole = in6_chksum(17, IPv6(src=to[0], dst=to[1]), empty) if is_six(to) else \
        in4_chksum(17, IP(src=to[0], dst=to[1]), empty)
    # The checksum of pseudo-header and datagram minus the checksum of the datagram.
    pseudo = ((~whole & 0xFFFF) - (~checksum(empty) & 0xFFFF)) % 0xFFFF
    b[udp_at + 6:udp_at + 8] = pseudo.to_bytes(2, "big")
    assert length == int.from_bytes(b[udp_at + 4:udp_at + 6], "big")
    return Raw(bytes(b))


for pair, (frm, to) in PAIRS.items():
    head = 40 if is_six(frm) else 20
    largest = 1500 - head - 8
    for size in (0, 1, 2, 255, 1400, largest):
        for port in (None, 5001):
            arrives = ip(frm, 9, tos=0xB9) / udp(5000) / body(size)
            leaves = out_ip(pair, to, size + 8, tos=0xB9) / udp(port or 5000) / body(size)
            mtu = 9000 if pair == "4to6" else 1500
            name = f"{size} bytes, port {port}"
            add(name, pair, arrives, [leaves], port=port, mtu=mtu)
            off = partial(frm, arrives, head)
            start = {"start": head, "offset": 6}
            add(f"{name}, unfinished", pair, off, [leaves], port=port, offload=start, mtu=mtu)
    # The computed checksum is zero after, or before, the translation.
    for what, side in (("out", to), ("in", frm)):
        data = bytearray(raw(body(64)) + b"\0\0")
        unset = int.from_bytes(udp_bytes(side, 5000, Raw(bytes(data)))[6:8], "big")
        data[-2:] = unset.to_bytes(2, "big")
        arrives = ip(frm, 9) / udp(5000) / Raw(bytes(data))
        leaves = out_ip(pair, to, len(data) + 8) / udp(5000) / Raw(bytes(data))
        assert udp_bytes(side, 5000, Raw(bytes(data)))[6:8] == b"\xff\xff", what
        add(f"computed zero {what}", pair, arrives, [leaves])
        off = partial(frm, arrives, head)
        add(f"computed zero {what}, unfinished", pair, off, [leaves],
            offload={"start": head, "offset": 6})
    # Without a checksum: none is added, except from IPv4 to IPv6, where one is required.
    for size in (0, 1, 300):
        none = None if pair == "4to6" else 0
        add(f"no checksum, {size} bytes", pair, ip(frm, 9) / udp(5000, chksum=0) / body(size),
            [out_ip(pair, to, size + 8) / udp(5001, chksum=none) / body(size)], port=5001)
    # A wrong checksum stays wrong by the same difference.
    right = int.from_bytes(udp_bytes(frm, 5000, body(99))[6:8], "big")
    becomes = int.from_bytes(udp_bytes(to, 5000, body(99))[6:8], "big")
    wrong = (becomes + 0x1234) % 0xFFFF or 0xFFFF
    add("wrong checksum", pair, ip(frm, 9) / udp(5000, chksum=(right + 0x1234) % 0xFFFF) / body(99),
        [out_ip(pair, to, 107) / udp(5000, chksum=wrong) / body(99)])
    # A GSO packet.
    whole = ip(frm, 9) / udp(5000) / body(2500)
    data, segments = raw(body(2500)), []
    for n in range(3):
        part = Raw(data[n * 1000:n * 1000 + 1000])
        header = out_ip(pair, to, len(part) + 8, ident=77 + n)
        if pair == "6to4":
            header.id = 1 + n
        segments.append(header / udp(5001) / part)
    add("segments", pair, whole, segments, port=5001, offload={"segments": 1000})
    # Fragments. The first one contains the UDP header.
    for name, port in (("fragments", None), ("fragments, port", 5001)):
        old, new = (udp_bytes(a, p, body(2997)) for a, p in ((frm, 5000), (to, port or 5000)))
        for at in range(0, len(old), 1000):
            piece, more, off = slice(at, at + 1000), at + 1000 < len(old), at // 8
            sides = []
            for addr, ttl, content in ((frm, 9, old), (to, 8, new)):
                if is_six(addr):
                    sides.append(six(addr, ttl) / IPv6ExtHdrFragment(nh=17, offset=off, m=more, id=77) / Raw(content[piece]))
                else:
                    sides.append(four(addr, ttl, proto=17, frag=off, flags="MF" if more else 0) / Raw(content[piece]))
            add(f"{name} at {at}", pair, sides[0], [sides[1]], port=port)
    # ICMP echo, and other protocols over IP.
    ping = {False: (ICMP(type=8, id=7, seq=3), ICMP(type=0, id=7, seq=3), 0),
            True: (ICMPv6EchoRequest(id=7, seq=3), ICMPv6EchoReply(id=7, seq=3), 0)}
    for n, name in enumerate(("request", "reply")):
        for size in (0, 1, 56):
            add(f"echo {name}, {size} bytes", pair, ip(frm, 9) / ping[is_six(frm)][n] / body(size),
                [out_ip(pair, to, size + 8) / ping[is_six(to)][n] / body(size)], port=5001)
    inner = IP(src="192.0.2.1", dst="192.0.2.2") / udp(5000) / body(9)
    for name, layer in (("GRE", GRE() / inner), ("IP in IP", inner)):
        size = len(raw(layer))
        add(name, pair, ip(frm, 9) / layer, [out_ip(pair, to, size) / layer])
    number = "nh" if is_six(frm) else "proto"
    for name, layer in (("TCP", TCP()), ("SCTP", SCTP()), ("ESP", ESP(spi=1, seq=1, data=b"x" * 16)),
                        ("AH", AH(nh=17, payloadlen=1, spi=1) / udp(5000)), ("253", body(8))):
        more = {number: 253} if name == "253" else {}
        add(name, pair, ip(frm, 9, **more) / layer, "translate_protocol")
    other = ICMPv6DestUnreach() if is_six(frm) else ICMP(type=13)
    add("other ICMP", pair, ip(frm, 9) / other / body(12), "translate_protocol")
    add("UDP cut short", pair, ip(frm, 9, **{number: 17}) / body(7), "malformed")

# Only the source, the group or the port is translated.
for pair in ("4to4", "6to6"):
    frm, to = PAIRS[pair]
    for name, new in (("source", (to[0], frm[1])), ("group", (frm[0], to[1])), ("port", frm)):
        add(f"{name} only", pair, ip(frm, 9) / udp(5000) / body(40),
            [out_ip(pair, new, 48) / udp(5001) / body(40)], to=new, port=5001)
add("flow label and class", "6to6", six(SIX, 9, tc=0xB9, fl=0xABCDE) / udp(5000) / body(3),
    [six(SIX_TO, 8, tc=0xB9, fl=0xABCDE) / udp(5000) / body(3)])
add("flow label and class", "6to4", six(SIX, 9, tc=0xB9, fl=0xABCDE) / udp(5000) / body(3),
    [four(FOUR_TO, 8, tos=0xB9, id=1) / udp(5000) / body(3)])
for flags in (0, "DF"):
    add(f"flags {flags}", "4to4", four(FOUR, 9, flags=flags) / udp(5000) / body(3),
        [four(FOUR_TO, 8, flags=flags) / udp(5000) / body(3)])
    add(f"flags {flags}", "4to6", four(FOUR, 9, flags=flags) / udp(5000) / body(3),
        [six(SIX_TO, 8) / udp(5000) / body(3)])
for size in (1232, 1233):
    add(f"DF by size, {size}", "6to4", six(SIX, 9) / udp(5000) / body(size),
        [four(FOUR_TO, 8, id=1, flags="DF" if size > 1232 else 0) / udp(5000) / body(size)])

# IPv4 options are kept within IPv4 and removed from IPv4 to IPv6. A source route with remaining
# routers is not translated.
for name, options in (("router alert", [IPOption_Router_Alert()]),
                      ("timestamp", [IPOption_Timestamp(flg=0)]),
                      ("no operation", [IPOption_NOP()] * 3),
                      ("nonsense", [IPOption(b"\x9e\x00\x00\x00")]),
                      ("source route that was used", [IPOption_LSRR(pointer=8, routers=["192.0.2.1"])])):
    # scapy treats every source route as unused and includes its address in the checksum.
    udp4 = [Raw(udp_bytes(a, 5000, body(5))) for a in (FOUR, FOUR_TO)]
    arrives = four(FOUR, 9, options=options, proto=17) / udp4[0]
    add(f"option {name}", "4to4", arrives, [four(FOUR_TO, 8, options=options, proto=17) / udp4[1]])
    add(f"option {name}", "4to6", arrives, [six(SIX_TO, 8) / udp(5000) / body(5)])
route = [IPOption_NOP(), IPOption_LSRR(pointer=4, routers=["192.0.2.1"])]
for pair in ("4to4", "4to6"):
    add("option source route", pair, four(FOUR, 9, options=route) / udp(5000) / body(5), "translate_option")

# Extension headers are kept within IPv6 and removed from IPv6 to IPv4.
for name, chain in (("hop by hop", [IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 4)])]),
                    ("destination", [IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 12)])]),
                    ("routing that was used", [IPv6ExtHdrRouting(type=3, segleft=0, addresses=["fd00::99"])]),
                    ("three", [IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 4)]),
                               IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 4)]),
                               IPv6ExtHdrRouting(type=3, segleft=0)])):
    def chained(packet):
        for header in chain:
            packet = packet / header
        return packet
    for size in (5, 1230):
        data = udp(5000) / body(size)
        add(f"extension {name}, {size}", "6to6", chained(six(SIX, 9)) / data, [chained(six(SIX_TO, 8)) / data])
        add(f"extension {name}, {size}", "6to4", chained(six(SIX, 9)) / data,
            [four(FOUR_TO, 8, id=1, flags="DF" if size + 28 > 1260 else 0) / data])
for pair in ("6to6", "6to4"):
    way = IPv6ExtHdrRouting(type=3, segleft=1, addresses=["fd00::99"])
    add("extension routing", pair, six(SIX, 9) / way / udp(5000) / body(5), "translate_option")
    late = IPv6ExtHdrFragment(nh=60, offset=3, m=0, id=5)
    add("extension behind a fragment", pair, six(SIX, 9) / late / body(16), "translate_option")
    cut = IPv6ExtHdrHopByHop(nh=17, len=30)
    add("extension cut short", pair, six(SIX, 9) / cut / body(16), "truncated")
atomic = IPv6ExtHdrFragment(nh=17, offset=0, m=0, id=0x1234_5678)
add("atomic fragment", "6to4", six(SIX, 9) / atomic / Raw(udp_bytes(SIX, 5000, body(9))),
    [four(FOUR_TO, 8, id=0x5678) / udp(5000) / body(9)])
add("atomic fragment", "6to6", six(SIX, 9) / atomic / Raw(udp_bytes(SIX, 5000, body(9))),
    [six(SIX_TO, 8) / atomic / Raw(udp_bytes(SIX_TO, 5000, body(9)))])

# Fragments whose checksum cannot be computed.
none = udp_bytes(FOUR, 5000, body(1500), chksum=0)
add("first fragment without a checksum", "4to6", four(FOUR, 9, proto=17, flags="MF") / Raw(none[:800]),
    "translate_fragment")
add("later fragment without a checksum", "4to6", four(FOUR, 9, proto=17, frag=100) / Raw(none[800:]),
    [six(SIX_TO, 8) / IPv6ExtHdrFragment(nh=17, offset=100, m=0, id=77) / Raw(none[800:])])
echo = raw(ICMP(id=7) / body(800))
add("fragment of an echo", "4to6", four(FOUR, 9, proto=1, flags="MF") / Raw(echo[:400]), "translate_fragment")
add("fragment of an echo", "4to4", four(FOUR, 9, proto=1, flags="MF") / Raw(echo[:400]),
    [four(FOUR_TO, 8, proto=1, flags="MF") / Raw(echo[:400])])
part = IPv6ExtHdrFragment(nh=58, offset=0, m=1, id=77)
echo6 = lambda to: raw(six(to, 9) / ICMPv6EchoRequest(id=7) / body(800))[40:440]
add("fragment of an echo", "6to4", six(SIX, 9) / part / Raw(echo6(SIX)), "translate_fragment")
add("fragment of an echo", "6to6", six(SIX, 9) / part / Raw(echo6(SIX)), [six(SIX_TO, 8) / part / Raw(echo6(SIX_TO))])

# Packets that exceed the MTU after the translation: fragmented if DF was clear, otherwise too big for
# the egress.
for size, mtu in ((1472, 1500), (1400, 1280), (1252, 1280), (1472, 1306)):
    content = udp_bytes(SIX_TO, 5000, body(size))
    room = (mtu - 48) // 8 * 8
    pieces = [six(SIX_TO, 8) / IPv6ExtHdrFragment(nh=17, offset=at // 8, m=at + room < len(content), id=77) /
              Raw(content[at:at + room]) for at in range(0, len(content), room)]
    add(f"{size} bytes over {mtu}", "4to6", four(FOUR, 9) / udp(5000) / body(size), pieces, mtu=mtu)
    add(f"{size} bytes over {mtu}, no checksum", "4to6", four(FOUR, 9) / udp(5000, chksum=0) / body(size),
        pieces, mtu=mtu)
    add(f"{size} bytes over {mtu}, DF", "4to6", four(FOUR, 9, flags="DF") / udp(5000) / body(size),
        [six(SIX_TO, 8) / udp(5000) / body(size)], mtu=mtu)
content = udp_bytes(SIX_TO, 5000, body(2952))
first = four(FOUR, 9, proto=17, flags="MF") / Raw(udp_bytes(FOUR, 5000, body(2952))[:1480])
add("fragment over 1500", "4to6", first,
    [six(SIX_TO, 8) / IPv6ExtHdrFragment(nh=17, offset=0, m=1, id=77) / Raw(content[:1448]),
     six(SIX_TO, 8) / IPv6ExtHdrFragment(nh=17, offset=181, m=1, id=77) / Raw(content[1448:1480])])

with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "vectors.json"), "w") as f:
    f.write("[\n" + ",\n".join(json.dumps(v) for v in vectors) + "\n]\n")
print(f"{len(vectors)} vectors")
