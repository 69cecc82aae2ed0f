"""Checks packets of a translating route: translated.py FILE SOURCE GROUP PORT TTL COUNT

FILE must contain COUNT UDP packets. All must have SOURCE, GROUP, PORT and TTL (or hop limit), and the
lengths and checksums that scapy computes."""

import sys

from scapy.all import IP, UDP, IPv6, in6_chksum, raw, rdpcap

path, source, group, port, ttl, count = sys.argv[1:]
faults = []


def rebuilt(ip):
    """Returns the bytes of the packet with lengths and checksums computed by scapy."""
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
    actual = (ip.src, ip.dst, ip[UDP].dport, hops)
    if actual != (source, group, int(port), int(ttl)):
        faults.append(f"packet {at} is {actual}")
    if ip[UDP].chksum == 0:
        faults.append(f"packet {at} has no UDP checksum")
    if rebuilt(ip) != raw(ip):
        faults.append(f"packet {at}: {ip.show2(dump=True)}")
    # Also checks the sum directly, without rebuilding the packet.
    if IPv6 in ip and in6_chksum(17, ip, raw(ip[UDP])) != 0:
        faults.append(f"packet {at}: invalid UDP checksum")

if len(packets) != int(count):
    faults.append(f"{len(packets)} packets, not {count}")
print("\n".join(faults[:20]) or f"{len(packets)} packets, all checksums valid")
sys.exit(bool(faults))
