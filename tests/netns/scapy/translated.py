"""Checks what a route that rewrites sent: translated.py FILE SOURCE GROUP PORT TTL COUNT

There must be COUNT UDP packets, all from SOURCE to GROUP and PORT, each with that TTL or hop
limit, every length and every checksum right, as scapy computes it."""

import sys

from scapy.all import IP, UDP, IPv6, in6_chksum, raw, rdpcap

path, source, group, port, ttl, count = sys.argv[1:]
faults = []


def made_anew(ip):
    """The packet with lengths and checksums as scapy makes them."""
    again = ip.copy()
    if IP in again:
        del again[IP].chksum, again[IP].len
    else:
        del again[IPv6].plen
    del again[UDP].chksum, again[UDP].len
    return raw(again)


packets = [p for p in rdpcap(path) if UDP in p]
for at, packet in enumerate(packets):
    ip = packet[IPv6] if ":" in group else packet[IP]
    hops = ip.hlim if IPv6 in ip else ip.ttl
    told = (ip.src, ip.dst, ip[UDP].dport, hops)
    if told != (source, group, int(port), int(ttl)):
        faults.append(f"packet {at} is {told}")
    if ip[UDP].chksum == 0:
        faults.append(f"packet {at} has no UDP checksum")
    if made_anew(ip) != raw(ip):
        faults.append(f"packet {at}: {ip.show2(dump=True)}")
    # Computed without scapy's own way of filling in, too.
    if IPv6 in ip and in6_chksum(17, ip, raw(ip[UDP])) != 0:
        faults.append(f"packet {at}: the sum over it is not zero")

if len(packets) != int(count):
    faults.append(f"{len(packets)} packets, not {count}")
print("\n".join(faults[:20]) or f"{len(packets)} packets, every checksum right")
sys.exit(bool(faults))
