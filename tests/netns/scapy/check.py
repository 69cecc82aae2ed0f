"""Compares sent with received packets: check.py SENT RECEIVED HOPS

Every sent packet must be received once and in order within its IP version. Its TTL must be lower by
HOPS, every checksum must be valid, and nothing else may have changed. If the UDP checksum of a sent
packet was incomplete, that of the received packet must be complete."""

import sys

from scapy.all import IP, UDP, IPv6, IPv6ExtHdrFragment, in6_chksum, raw, rdpcap

sent_frames, received_frames = rdpcap(sys.argv[1]), rdpcap(sys.argv[2])
hops = int(sys.argv[3])
faults = []


def udp_checksum_is_valid(packet):
    """Returns None if the packet has no UDP checksum that can be checked."""
    if UDP not in packet or IPv6ExtHdrFragment in packet:
        return None
    ip = packet[IP] if IP in packet else packet[IPv6]
    if IP in packet and (ip.frag or "MF" in ip.flags or packet[UDP].underlayer is not ip):
        return None
    if packet[UDP].chksum == 0:
        return None
    if IPv6 in packet:
        return in6_chksum(17, packet[UDP].underlayer, raw(packet[UDP])[: packet[UDP].len]) == 0
    rebuilt = IP(raw(ip))
    actual, rebuilt[UDP].chksum = rebuilt[UDP].chksum, None
    return IP(raw(rebuilt))[UDP].chksum == actual


def without_changed_fields(packet, udp_checksum):
    """Returns the bytes of an IP packet with TTL and checksums set to zero."""
    ip = bytearray(raw(packet.payload))
    if ip[0] >> 4 == 4:
        ip = ip[: ip[2] << 8 | ip[3]]
        ip[8] = ip[10] = ip[11] = 0
    else:
        ip = ip[: 40 + (ip[4] << 8 | ip[5])]
        ip[7] = 0
    if udp_checksum and UDP in packet:
        at = len(raw(packet.payload)) - len(raw(packet[UDP]))
        ip[at + 6] = ip[at + 7] = 0
    return bytes(ip)


for layer, ttl in ((IP, "ttl"), (IPv6, "hlim")):
    sent = [p for p in sent_frames if p.payload.__class__ is layer]
    received = [p for p in received_frames if p.payload.__class__ is layer]
    if len(sent) != len(received):
        faults.append(f"{layer.__name__}: {len(sent)} sent, {len(received)} received")
        faults += [f"  sent {p.summary()}" for p in sent]
        faults += [f"  received {p.summary()}" for p in received]
        continue
    for n, (i, o) in enumerate(zip(sent, received)):
        name = f"{layer.__name__} {n} ({i.summary()})"
        if getattr(o[layer], ttl) != getattr(i[layer], ttl) - hops:
            faults.append(f"{name}: TTL {getattr(i[layer], ttl)} -> {getattr(o[layer], ttl)}")
        if layer is IP:
            header = IP(raw(o[IP]))
            actual, header.chksum = header.chksum, None
            if IP(raw(header)).chksum != actual:
                faults.append(f"{name}: invalid header checksum {actual:#x}")
        is_incomplete = udp_checksum_is_valid(i) is False
        if udp_checksum_is_valid(o) is False:
            faults.append(f"{name}: invalid UDP checksum")
        before, after = (without_changed_fields(p, is_incomplete) for p in (i, o))
        if before != after:
            faults.append(f"{name}: changed\n  {before.hex()}\n  {after.hex()}")

print(f"compared {len(sent_frames)} with {len(received_frames)}")
print("\n".join(faults))
sys.exit(1 if faults or not sent_frames else 0)
