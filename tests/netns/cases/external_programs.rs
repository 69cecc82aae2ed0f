//! Third-party programs send, receive and verify packets.

use std::path::{Path, PathBuf};

use super::{cases, route, star_v4, star_v6};
use crate::lab::router::{BINARY, KernelRouter};
use crate::lab::{
    Capture, Injector, Lab, Ns, Program, Router, Star, TIMEOUT, UdpRx, UdpTx, eventually, pcap,
    wait_until,
};

cases!("external_programs":
    #[Program("ping", "iputils-ping")] ping_is_answered_v4,
    #[Program("ping", "iputils-ping")] ping_is_answered_v6,
    #[Program("iperf", "iperf")] iperf_stream_is_forwarded_v4,
    #[Program("tcpdump", "tcpdump")] tcpdump_sees_forwarded_packets,
    #[Program("tcpdump", "tcpdump")] qdisc_bypass_hides_forwarded_packets_from_tcpdump,
    #[Program("tcpdump", "tcpdump")] #[Scapy] tcpdump_captures_match_on_both_sides,
    #[Scapy] scapy_finds_packets_unchanged,
    #[Program("mandoc", "mandoc")] manual_pages_have_no_warning_of_mandoc,
    #[Program("smcrouted", "smcroute")] #[KernelMroute] #[Scapy] scapy_check_passes_for_kernel_routing,
);

fn assert_ping_answered(star: &Star, group: &str, member: &str) {
    star.rcv.sysctl("net/ipv4/icmp_echo_ignore_broadcasts", "0");
    // The answers are unicast, which the kernel forwards.
    star.rtr.sysctl("net/ipv4/ip_forward", "1");
    star.rtr.sysctl("net/ipv6/conf/all/forwarding", "1");
    let _member = UdpRx::join(&star.rcv, "eth1", member);
    let capture = Capture::new(&star.rcv, "eth1");
    let args = [
        "-c", "3", "-i", "0.2", "-t", "5", "-W", "10", "-I", "eth0", group,
    ];
    let out = star.src.output("ping", &args);
    let printed = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.status.success(),
        "{printed}{}",
        String::from_utf8_lossy(&out.stderr)
    );
    assert!(printed.contains("3 received"), "{printed}");
    let seen = capture.expect(group, 3);
    assert!(
        seen.iter().all(|s| s.ttl == 4 && s.protocol != 17),
        "{seen:x?}"
    );
}

fn ping_is_answered_v4(lab: &Lab) {
    let star = Star::v4(lab, 1);
    star.rtr.sysctl("net/ipv6/conf/all/disable_ipv6", "1");
    let router = Router::start(
        lab,
        &star.rtr,
        &route("r", "in", "", "225.1.2.3", &["out1"], ""),
    );
    assert_ping_answered(&star, "225.1.2.3", "225.1.2.3:5000");
    router.expect_routed("r", "out1", 3);
}

fn ping_is_answered_v6(lab: &Lab) {
    let (star, router) = star_v6(lab, 1);
    assert_ping_answered(&star, "ff3e::1:2", "[ff3e::1:2]:5000");
    router.expect_routed("r", "out1", 3);
}

fn iperf_stream_is_forwarded_v4(lab: &Lab) {
    let (star, router) = star_v4(lab, 1);
    let (at_in, at_out) = (
        Capture::new(&star.rtr, "in"),
        Capture::new(&star.rcv, "eth1"),
    );
    let server = star.rcv.spawn(
        lab,
        "iperf",
        &["-s", "-u", "-B", "225.1.2.3%eth1", "-l", "1200"],
    );
    // The server prints this when its socket is bound; it joins the group a moment later.
    assert!(
        wait_until(TIMEOUT, || server.stdout().contains("listening")),
        "{}",
        server.stdout()
    );
    eventually("iperf joined", true, || {
        let groups = star
            .rcv
            .try_ip("maddress show dev eth1")
            .unwrap_or_default();
        groups.contains("225.1.2.3")
    });
    let args = [
        "-c",
        "225.1.2.3",
        "-u",
        "-T",
        "5",
        "-b",
        "8m",
        "-t",
        "1",
        "-l",
        "1200",
    ];
    let out = star.src.output("iperf", &args);
    let printed = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{printed}");
    // iperf's receiver loses packets while it hands the first one over to a new thread. So the test
    // counts packets on the wire, and checks the kernel's UDP counters for checksum errors.
    let connected = || server.stdout().contains("connected with 10.0.0.10");
    assert!(wait_until(TIMEOUT, connected), "{}", server.stdout());
    // iperf versions differ by one in the number of packets they report as sent.
    let sent = at_in.to("225.1.2.3").len();
    assert!(sent > 500, "{sent} datagrams on the wire; iperf: {printed}");
    router.expect_routed("r", "out1", sent as u64);
    assert_eq!(at_out.to("225.1.2.3").len(), sent);
    let snmp = star
        .rcv
        .enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp").expect("snmp"));
    let mut udp = snmp
        .lines()
        .filter(|l| l.starts_with("Udp:"))
        .map(|l| l.split(' '));
    let (names, values) = (udp.next().expect("names"), udp.next().expect("values"));
    let wrong = names.zip(values).find(|(name, _)| *name == "InCsumErrors");
    assert_eq!(wrong, Some(("InCsumErrors", "0")), "{snmp}");
}

/// Starts tcpdump of UDP into a file and waits until it listens.
pub(super) fn tcpdump(lab: &Lab, ns: &Ns, iface: &str) -> (Program, PathBuf) {
    let path = lab.file("tcpdump.pcap");
    let file = path.display().to_string();
    let args = [
        "-i",
        iface,
        "-U",
        "--immediate-mode",
        "-s",
        "2048",
        "-B",
        "32768",
        "-Z",
        "root",
        "-w",
        &file,
        "udp",
    ];
    let program = ns.spawn(lab, "tcpdump", &args);
    assert!(
        wait_until(TIMEOUT, || program.stderr().contains("listening on")),
        "{}",
        program.stderr()
    );
    (program, path)
}

fn count_dumped(path: &Path, text: &str) -> usize {
    let frames = if path.exists() {
        pcap::read(path)
    } else {
        Vec::new()
    };
    frames
        .iter()
        .filter(|f| f.ends_with(text.as_bytes()))
        .count()
}

fn assert_visible_to_tcpdump(lab: &Lab, toml: &str, visible: usize) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, toml);
    let (_tcpdump, path) = tcpdump(lab, &star.rtr, "out1");
    let rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    let tx = UdpTx::new(&star.src, "eth0", "225.1.2.3:5000");
    (0..10).for_each(|_| tx.send("routed"));
    rx.expect(10);
    router.expect_routed("r", "out1", 10);
    // tcpdump always sees the host's own packet. It marks the end of the capture.
    UdpTx::new(&star.rtr, "out1", "225.1.9.9:5000").send("the end");
    eventually("tcpdump saw the host's own packet", 1, || {
        count_dumped(&path, "the end")
    });
    assert_eq!(count_dumped(&path, "routed"), visible);
}

fn tcpdump_sees_forwarded_packets(lab: &Lab) {
    assert_visible_to_tcpdump(lab, &route("r", "in", "", "225.1.2.3", &["out1"], ""), 10);
}

fn qdisc_bypass_hides_forwarded_packets_from_tcpdump(lab: &Lab) {
    let plane = String::from("[plane]\nqdisc_bypass = true\n");
    assert_visible_to_tcpdump(
        lab,
        &(plane + &route("r", "in", "", "225.1.2.3", &["out1"], "")),
        0,
    );
}

const SCAPY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/netns/scapy");

/// Runs one of the scapy scripts, which must succeed.
#[track_caller]
pub(super) fn scapy(ns: &Ns, script: &str, args: &[&str]) {
    let script = format!("{SCAPY}/{script}");
    let out = ns.output("/usr/bin/python3", &[&[script.as_str()], args].concat());
    let (printed, err) = (
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr),
    );
    assert!(out.status.success(), "{script}: {printed}{err}");
}

fn tcpdump_captures_match_on_both_sides(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let toml = route("r", "in", "", "225.1.2.3", &["out1"], "")
        + &route("r6", "in", "", "ff3e::1:2", &["out1"], "");
    let router = Router::start(lab, &star.rtr, &toml);
    let (mut before, sent) = tcpdump(lab, &star.src, "eth0");
    let (mut after, got) = tcpdump(lab, &star.rcv, "eth1");
    let (rx, rx6) = (
        UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000"),
        UdpRx::join(&star.rcv, "eth1", "[ff3e::1:2]:5000"),
    );
    let (tx, tx6) = (
        UdpTx::new(&star.src, "eth0", "225.1.2.3:5000"),
        UdpTx::new(&star.src, "eth0", "[ff3e::1:2]:5000"),
    );
    tx.set(libc::IPPROTO_IP, libc::IP_TOS, 0xb8);
    tx6.set(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, 0xb8);
    for n in 0..40 {
        tx.send(vec![n; usize::from(n) * 31]);
        tx6.send(vec![n; usize::from(n) * 29]);
    }
    rx.expect(40);
    rx6.expect(40);
    router.expect_routed("r6", "out1", 40);
    for path in [&sent, &got] {
        eventually("tcpdump wrote all packets", 80, || pcap::read(path).len());
    }
    before.stop(libc::SIGTERM, TIMEOUT);
    after.stop(libc::SIGTERM, TIMEOUT);
    scapy(
        &star.src,
        "check.py",
        &[&sent.display().to_string(), &got.display().to_string(), "1"],
    );
}

/// Injects frames built by scapy and lets scapy compare them with the forwarded ones.
fn assert_unchanged_by_forwarding(lab: &Lab, star: &Star, sent: &Path) {
    let frames = pcap::read(sent);
    let capture = Capture::new(&star.rcv, "eth1");
    let inject = Injector::new(&star.src, "eth0");
    frames.iter().for_each(|f| inject.send(f));
    let count = || capture.to("225.1.2.3").len() + capture.to("ff3e::1:2").len();
    wait_until(TIMEOUT, || count() >= frames.len());
    let got = lab.file("got.pcap");
    let to_groups = |f: &[u8]| {
        crate::lab::IpPacket::parse(f)
            .is_some_and(|s| ["225.1.2.3", "ff3e::1:2"].contains(&s.dst.to_string().as_str()))
    };
    let all = capture.frames();
    pcap::write(
        &got,
        all.iter()
            .map(|f| f.bytes.as_slice())
            .filter(|f| to_groups(f)),
    );
    scapy(
        &star.src,
        "check.py",
        &[&sent.display().to_string(), &got.display().to_string(), "1"],
    );
}

fn build(lab: &Lab, ns: &Ns, packet_set: &str) -> PathBuf {
    let sent = lab.file("sent.pcap");
    scapy(ns, "build.py", &[&sent.display().to_string(), packet_set]);
    sent
}

fn scapy_finds_packets_unchanged(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let sent = build(lab, &star.src, "all");
    let toml = route("r", "in", "", "225.1.2.3", &["out1"], "")
        + &route("r6", "in", "", "ff3e::1:2", &["out1"], "");
    let router = Router::start(lab, &star.rtr, &toml);
    assert_unchanged_by_forwarding(lab, &star, &sent);
    let frames = pcap::read(&sent).len() as u64;
    router.expect_metric("mcastor_route_packets_total", &[], frames);
}

/// The same check of the kernel's routing shows that the check itself accepts correct forwarding.
fn scapy_check_passes_for_kernel_routing(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let sent = build(lab, &star.src, "kernel");
    let _router = KernelRouter::start(
        lab,
        &star.rtr,
        "phyint in enable ttl-threshold 1\nphyint out1 enable ttl-threshold 1\n\
         mroute from in source 10.0.0.10 group 225.1.2.3 to out1\n\
         mroute from in source fd00:0::10 group ff3e::1:2 to out1\n",
    );
    assert_unchanged_by_forwarding(lab, &star, &sent);
}

fn manual_pages_have_no_warning_of_mandoc(lab: &Lab) {
    let (ns, folder) = (lab.ns("a"), lab.file("man"));
    let path = folder.display().to_string();
    let written = ns.output(BINARY, &["man", "--directory", &path]);
    assert!(written.status.success(), "{written:?}");
    let mut pages = Vec::new();
    for section in ["man1", "man5"] {
        let files = std::fs::read_dir(folder.join(section)).expect("a section");
        pages.extend(files.map(|file| file.expect("a page").path().display().to_string()));
    }
    assert!(pages.len() > 20, "{pages:?}");
    let mut args = vec!["-T", "lint", "-W", "warning"];
    args.extend(pages.iter().map(String::as_str));
    let lint = ns.output("mandoc", &args);
    let printed = String::from_utf8_lossy(&lint.stdout).into_owned();
    assert!(lint.status.success() && printed.is_empty(), "{printed}");
}
