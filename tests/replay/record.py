#!/usr/bin/env python3
"""Records what real hosts and queriers say on a link, as logs for tests/membership.rs.

    sudo tests/replay/record.py igmp > tests/replay/recorded-igmp.txt
    sudo tests/replay/record.py mld > tests/replay/recorded-mld.txt

Needs Debian's frr, and namespaces, which it makes and removes. The hosts are Linux, one for each
version; the querier is FRR's pimd for IGMP, the Linux bridge for MLD. Where a line of pimd's
follows a `?`, it is what pimd held at that moment. The answers of the machine are added by
MCASTOR_WRITE_EXPECTED=1.
"""

import ctypes
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time

OWN = {"igmp": "10.0.1.100", "mld": "fe80::ff"}
VERSIONS = {"igmp": {"h3": 3, "h2": 2, "h1": 1}, "mld": {"h3": 2, "h2": 1}}
ETH_P_ALL = 3
MCAST_JOIN_GROUP, MCAST_BLOCK_SOURCE, MCAST_UNBLOCK_SOURCE, MCAST_LEAVE_GROUP = 42, 43, 44, 45
MCAST_JOIN_SOURCE_GROUP, MCAST_LEAVE_SOURCE_GROUP = 46, 47


def run(*words):
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


class Lab:
    """A bridge in a namespace of its own, and a namespace for each host on it."""

    def __init__(self, protocol):
        self.protocol = protocol
        self.tag = f"rec{os.getpid()}"
        self.spaces = []
        self.dir = tempfile.mkdtemp()
        os.chmod(self.dir, 0o755)
        self.children = []
        self.switch = self.space("sw")
        self.ip(self.switch, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        self.ip(self.switch, "link", "set", "br0", "up")
        for n, host in enumerate(["q", *VERSIONS[protocol]]):
            self.host(host, n + 1)

    def space(self, name):
        full = f"{self.tag}-{name}"
        run("ip", "netns", "add", full)
        self.spaces.append(full)
        return full

    def ip(self, space, *words):
        run("ip", "-n", space, *words)

    def host(self, name, n):
        space = self.space(name)
        self.ip(self.switch, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", space)
        self.ip(self.switch, "link", "set", name, "master", "br0", "up")
        # Told by the kernel, addresses would be others in each recording.
        self.ip(space, "link", "set", "eth0", "addrgenmode", "none")
        version = VERSIONS[self.protocol].get(name)
        kind, key = {"igmp": ("ipv4", "force_igmp_version"), "mld": ("ipv6", "force_mld_version")}[self.protocol]
        if version:
            write = f"echo {version} > /proc/sys/net/{kind}/conf/eth0/{key}"
            run("ip", "netns", "exec", space, "sh", "-c", write)
        self.ip(space, "link", "set", "eth0", "up")
        self.ip(space, "address", "add", f"10.0.1.{n * 10}/24", "dev", "eth0")
        self.ip(space, "address", "add", f"fe80::{n * 10}/64", "dev", "eth0", "nodad")
        self.ip(space, "route", "add", "224.0.0.0/4", "dev", "eth0")

    def within(self, name):
        with open(f"/run/netns/{self.tag}-{name}") as space:
            if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), 0) != 0:
                raise OSError(ctypes.get_errno(), "setns")

    def socket(self, name, family, kind, protocol=0):
        self.within(name)
        made = socket.socket(family, kind, protocol)
        index = socket.if_nametoindex("eth0") if name != "sw" else socket.if_nametoindex("br0")
        return made, index

    def pimd(self):
        conf = "interface eth0\n ip igmp\n ip igmp query-interval 10\n ip igmp query-max-response-time 20\n"
        open(f"{self.dir}/pimd.conf", "w").write(conf)
        open(f"{self.dir}/zebra.conf", "w").write("hostname z\n")
        run("chown", "-R", "frr:frr", self.dir)
        for daemon in ["zebra", "pimd"]:
            self.children.append(subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.tag}-q", f"/usr/lib/frr/{daemon}", "-u", "frr", "-g", "frr",
                 "-A", "127.0.0.1", "-P", "0", "-f", f"{self.dir}/{daemon}.conf", "-i", f"{self.dir}/{daemon}.pid",
                 "--vty_socket", self.dir, "-z", f"{self.dir}/zserv.api"],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            while daemon == "zebra" and not os.path.exists(f"{self.dir}/zserv.api"):
                time.sleep(0.1)

    def bridge_asks(self):
        self.within("q")
        self.ip(f"{self.tag}-q", "link", "set", "eth0", "down")
        space = f"{self.tag}-q"
        self.ip(space, "link", "add", "br0", "type", "bridge", "mcast_snooping", "1", "mcast_mld_version", "2",
                "mcast_query_interval", "1000", "mcast_query_response_interval", "200",
                "mcast_startup_query_interval", "250", "mcast_last_member_interval", "100")
        self.ip(space, "link", "set", "br0", "addrgenmode", "none")
        self.ip(space, "link", "set", "eth0", "master", "br0")
        self.ip(space, "link", "set", "eth0", "up")
        self.ip(space, "link", "set", "br0", "up")
        self.ip(space, "address", "add", "fe80::1/64", "dev", "br0", "nodad")
        self.ip(space, "link", "set", "br0", "type", "bridge", "mcast_querier", "1")

    def held(self):
        """What pimd holds: group, mode and sources."""
        def show(what):
            command = ["vtysh", "--vty_socket", self.dir, "-d", "pimd", "-c", f"show ip igmp {what}"]
            return subprocess.run(command, capture_output=True, check=True, text=True).stdout

        # Those with a timer are wanted; those without are excluded.
        sources = {}
        for line in show("sources").splitlines():
            match line.split():
                case [*_, group, source, timer, "Y" | "N", _] if source != "*":
                    sources.setdefault(group, []).append(f"{source}={'no' if timer == '--:--' else 'yes'}")
        lines = []
        for found in json.loads(show("groups json")).get("eth0", {}).get("groups", []):
            listed = " ".join(sorted(sources.get(found["group"], [])))
            lines.append(f"{found['group']} {found.get('mode', 'none').lower()} {listed}".strip())
        return sorted(lines)

    def end(self):
        for child in reversed(self.children):
            child.terminate()
            child.wait()
        for space in self.spaces:
            run("ip", "netns", "del", space)
        shutil.rmtree(self.dir)


class Member:
    """A socket of a host, and what it asks of its kernel."""

    def __init__(self, lab, host):
        self.v6 = lab.protocol == "mld"
        self.family = socket.AF_INET6 if self.v6 else socket.AF_INET
        self.level = socket.IPPROTO_IPV6 if self.v6 else socket.IPPROTO_IP
        self.socket, self.index = lab.socket(host, self.family, socket.SOCK_DGRAM)

    def address(self, text):
        raw = socket.inet_pton(self.family, text)
        told = struct.pack("=HHI", self.family, 0, 0) + raw if self.v6 else struct.pack("=HH", self.family, 0) + raw
        return told.ljust(128, b"\0")

    def ask(self, what, group, source=None):
        told = struct.pack("=I4x", self.index) + self.address(group)
        if source:
            told += self.address(source)
        self.socket.setsockopt(self.level, what, told)


def messages(protocol, frame):
    """The IP packet of a frame, if it is of that protocol."""
    kind, packet = frame[12:14], frame[14:]
    if protocol == "igmp" and kind == b"\x08\x00" and packet[9] == 2:
        return packet[:int.from_bytes(packet[2:4], "big")]
    # Behind a hop-by-hop header: MLD and nothing else.
    if protocol == "mld" and kind == b"\x86\xdd" and packet[6] == 0:
        return packet[:40 + int.from_bytes(packet[4:6], "big")]
    return None


def record(protocol, steps):
    lab = Lab(protocol)
    try:
        tap, index = lab.socket("sw", socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        tap.bind(("br0", ETH_P_ALL))
        run("ip", "-n", lab.switch, "link", "set", "br0", "promisc", "on")
        sockets = {}
        lab.pimd() if protocol == "igmp" else lab.bridge_asks()
        start = time.monotonic()
        lines, held = [], []

        def listen(until):
            while (left := until - time.monotonic()) > 0:
                tap.settimeout(left)
                try:
                    frame = tap.recv(65536)
                except TimeoutError:
                    return
                if packet := messages(protocol, frame):
                    lines.append(f"{time.monotonic() - start:.3f} < {packet.hex()}")

        for at, what, *words in steps:
            listen(start + at)
            if what == "?":
                lines.append(f"{at} ?")
                if protocol == "igmp":
                    lines += [f"# pimd: {line}" for line in lab.held()]
                continue
            host, group, *source = words
            member = sockets.get((host, group)) or Member(lab, host)
            sockets[host, group] = member
            lines.append(f"# {host}: {what} {' '.join(words[1:])}")
            member.ask(globals()[what], group, *source)
        return lines
    finally:
        lab.end()


def steps(protocol):
    """The same wishes in both protocols."""
    v6 = protocol == "mld"
    any_source, other = ("ff1e::1:3", "ff1e::1:4") if v6 else ("239.1.2.3", "239.1.2.4")
    ssm = "ff3e::8000:1" if v6 else "232.1.1.1"
    one, two = ("2001:db8::1", "2001:db8::2") if v6 else ("10.9.0.1", "10.9.0.2")
    yield 6, "MCAST_JOIN_GROUP", "h3", any_source
    yield 7, "MCAST_JOIN_SOURCE_GROUP", "h3", ssm, one
    yield 9, "?"
    yield 10, "MCAST_JOIN_SOURCE_GROUP", "h3", ssm, two
    yield 11, "MCAST_BLOCK_SOURCE", "h3", any_source, one
    yield 13, "?"
    yield 14, "MCAST_LEAVE_SOURCE_GROUP", "h3", ssm, one
    yield 15, "MCAST_UNBLOCK_SOURCE", "h3", any_source, one
    yield 19, "?"
    yield 20, "MCAST_JOIN_GROUP", "h2", any_source
    yield 21, "MCAST_JOIN_GROUP", "h2", other
    yield 25, "MCAST_LEAVE_GROUP", "h2", other
    yield 29, "?"
    yield 30, "MCAST_LEAVE_GROUP", "h3", any_source
    yield 31, "MCAST_LEAVE_SOURCE_GROUP", "h3", ssm, two
    yield 35, "?"
    if not v6:
        yield 36, "MCAST_JOIN_GROUP", "h1", other
        yield 40, "MCAST_LEAVE_GROUP", "h1", other
    yield 46, "?"
    yield 47, "MCAST_LEAVE_GROUP", "h2", any_source
    yield 75, "?"


def main():
    protocol = sys.argv[1]
    lines = record(protocol, steps(protocol))
    section = {
        "igmp": "# RFC 9776 sections 5 to 7, recorded: Linux hosts of version 3 (10.0.1.20), 2 (.30) and 1 (.40),\n"
                "# FRR's pimd (10.0.1.10) the querier. After each `?` what pimd held then.",
        "mld": "# RFC 9777 sections 6 to 8, recorded: Linux hosts of version 2 (fe80::20) and 1 (fe80::30), a Linux\n"
               "# bridge (fe80::1) the querier.",
    }[protocol]
    print(section)
    print("# Made by record.py.")
    print(f"machine {protocol} own={OWN[protocol]}")
    print("\n".join(lines))


main()
