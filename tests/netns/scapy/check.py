"""Compares what went in with what came out: check.py IN OUT HOPS

Every packet must be there once and in order within its family, its TTL lower by HOPS, every
checksum right, and nothing else changed. A UDP checksum that was not finished on the way in
must be finished on the way out."""

import sys

from scapy.all import IP, UDP, IPv6, IPv6ExtHdrFragment, in6_chksum, raw, rdpcap

before, after = rdpcap(sys.argv[1]), rdpcap(sys.argv[2])
hops = int(sys.argv[3])
faults = []


def udp_right(packet):
    """Whether the UDP checksum is right; None where there is none to check."""
    if UDP not in packet or IPv6ExtHdrFragment in packet:
        return None
    ip = packet[IP] if IP in packet else packet[IPv6]
    if IP in packet and (ip.frag or "MF" in ip.flags or packet[UDP].underlayer is not ip):
        return None
    if packet[UDP].chksum == 0:
        return None
    if IPv6 in packet:
        return in6_chksum(17, packet[UDP].underlayer, raw(packet[UDP])[: packet[UDP].len]) == 0
    again = IP(raw(ip))
    want, again[UDP].chksum = again[UDP].chksum, None
    return IP(raw(again))[UDP].chksum == want


def blank(packet, udp_sum):
    ip = bytearray(raw(packet.payload))
    if ip[0] >> 4 == 4:
        ip = ip[: ip[2] << 8 | ip[3]]
        ip[8] = ip[10] = ip[11] = 0
    else:
        ip = ip[: 40 + (ip[4] << 8 | ip[5])]
        ip[7] = 0
    if udp_sum and UDP in packet:
        at = len(raw(packet.payload)) - len(raw(packet[UDP]))
        ip[at + 6] = ip[at + 7] = 0
    return bytes(ip)


for layer, ttl in ((IP, "ttl"), (IPv6, "hlim")):
    ins = [p for p in before if p.payload.__class__ is layer]
    outs = [p for p in after if p.payload.__class__ is layer]
    if len(ins) != len(outs):
        faults.append(f"{layer.__name__}: {len(ins)} in, {len(outs)} out")
        faults += [f"  in {p.summary()}" for p in ins] + [f"  out {p.summary()}" for p in outs]
        continue
    for n, (i, o) in enumerate(zip(ins, outs)):
        name = f"{layer.__name__} {n} ({i.summary()})"
        if getattr(o[layer], ttl) != getattr(i[layer], ttl) - hops:
            faults.append(f"{name}: TTL {getattr(i[layer], ttl)} -> {getattr(o[layer], ttl)}")
        if layer is IP:
            header = IP(raw(o[IP]))
            want, header.chksum = header.chksum, None
            if IP(raw(header)).chksum != want:
                faults.append(f"{name}: header checksum {want:#x}")
        unfinished = udp_right(i) is False
        if udp_right(o) is False:
            faults.append(f"{name}: UDP checksum")
        if blank(i, unfinished) != blank(o, unfinished):
            faults.append(f"{name}: changed\n  {blank(i, unfinished).hex()}\n  {blank(o, unfinished).hex()}")

print(f"compared {len(before)} with {len(after)}")
print("\n".join(faults))
sys.exit(1 if faults or not before else 0)
