//! mcastor as smcrouted, compared with Debian's: the same configuration files and packets must be
//! forwarded, joined and announced alike.

use super::cases;
use super::joins::kernel;
use crate::lab::smcroute::{
    ArrivedPackets, BOTH, Daemon, Implementation, ROUTE_TO_ALL, run_client, send_and_collect,
    smcrouted, star_per_implementation, text,
};
use crate::lab::{Capture, Injector, Lab, Star, TIMEOUT, Udp, eventually, wait_until};

cases!("smcroute_forwarding":
    #[Program("smcrouted", "smcroute")] every_directive_forwards_like_smcroute,
    #[Program("smcrouted", "smcroute")] commands_change_forwarding_like_smcroute,
    #[Program("smcrouted", "smcroute")] joined_groups_match_smcroute,
    #[Program("smcrouted", "smcroute")] reload_discards_routes_added_by_command,
    #[Program("smcrouted", "smcroute")] idle_flows_are_flushed,
    routes_wait_for_missing_interfaces,
    #[Program("smcrouted", "smcroute")] mrdisc_announcements_match_smcroute,
    extensions_beyond_smcroute_work,
    #[Program("smcrouted", "smcroute")] command_route_without_egress_blocks_packets,
    #[Program("smcrouted", "smcroute")] disabled_interface_is_not_an_egress,
);

fn every_directive_forwards_like_smcroute(lab: &Lab) {
    let conf = format!(
        "{ROUTE_TO_ALL}phyint out2 enable ttl-threshold 8\n\
         mgroup from in group 225.1.2.3\n\
         mroute from in group 225.1.2.3 to out1 out2\n\
         mroute from in source 10.0.0.10 group 225.1.2.4 to out2 out3\n\
         mroute from in group 225.1.3.0/24 source 10.0.0.10 to out1\n\
         mroute from in source 10.0.0.0/28 group 225.1.4.1 to out3\n\
         mroute from in source 0.0.0.0 group 225.1.5.1 to out+\n\
         mroute from i+ group 225.1.6.1 to out1 # behind it\n\
         mroute from in group ff0e::42 to out1 out3\n\
         mroute from in source fd00:0::10 group ff0e::43 to out2\n"
    );
    let mut packets = Vec::new();
    let groups = [
        "225.1.2.3",
        "225.1.2.4",
        "225.1.3.0",
        "225.1.3.255",
        "225.1.4.1",
        "225.1.5.1",
        "225.1.6.1",
        "225.7.7.7",
    ];
    for group in groups {
        for source in ["10.0.0.10", "10.0.0.11", "10.0.0.99"] {
            for ttl in [1, 2, 8, 9, 64] {
                let payload = format!("packet {group} {source} {ttl}");
                let to = format!("{group}:5000");
                packets.push(Udp::new(&format!("{source}:9"), &to, payload).ttl(ttl));
            }
        }
    }
    for group in ["ff0e::42", "ff0e::43", "ff0e::44"] {
        for source in ["fd00:0::10", "fd00:0::11"] {
            for ttl in [1, 2, 8, 9, 64] {
                let payload = format!("packet {group} {source} {ttl}");
                let to = format!("[{group}]:5000");
                packets.push(Udp::new(&format!("[{source}]:9"), &to, payload).ttl(ttl));
            }
        }
    }
    let [ours, theirs] = star_per_implementation(lab, 3).map(|(implementation, star)| {
        let _daemon = Daemon::start(lab, &star.rtr, implementation, &conf, &[]);
        // The first pass lets Debian's learn each flow, because it may lose the first packet.
        send_and_collect(&star, 3, &packets);
        send_and_collect(&star, 3, &packets)
    });
    assert!(theirs.len() > 60, "{} arrived", theirs.len());
    let only = |a: &ArrivedPackets, b: &ArrivedPackets| -> Vec<String> {
        let readable = |(n, ttl, ip): &(usize, u8, Vec<u8>)| {
            let at = if ip[0] >> 4 == 4 { 28 } else { 48 };
            format!("eth{n} ttl {ttl} {}", String::from_utf8_lossy(&ip[at..]))
        };
        a.difference(b).map(readable).collect()
    };
    assert_eq!(only(&ours, &theirs), [""; 0], "only ours");
    // Linux stores the TTL threshold of an IPv6 interface and ignores it.
    let below = [
        "eth2 ttl 1 packet ff0e::43 fd00:0::10 2",
        "eth2 ttl 7 packet ff0e::43 fd00:0::10 8",
    ];
    assert_eq!(only(&theirs, &ours), below, "only theirs");
}

fn commands_change_forwarding_like_smcroute(lab: &Lab) {
    let group = |n: usize| format!("225.4.0.{n}:5000");
    let mut tables: Vec<Vec<String>> = Vec::new();
    let [ours, theirs] = star_per_implementation(lab, 3).map(|(implementation, star)| {
        let daemon = Daemon::start(lab, &star.rtr, implementation, ROUTE_TO_ALL, &[]);
        let run = |client: Implementation, words: &str| {
            let output = daemon.run_client(client, &words.split(' ').collect::<Vec<_>>());
            assert_eq!(output.status.code(), Some(0), "{words}: {output:?}");
        };
        let packets: Vec<Udp> = (1..=4)
            .map(|n| Udp::new("10.0.0.10:9", &group(n), format!("packet {n}")))
            .collect();
        let mut steps = Vec::new();
        for (n, client) in BOTH.into_iter().enumerate() {
            run(
                client,
                &format!("add in 10.0.0.10 225.4.0.{} out1 out2", n + 1),
            );
            run(client, &format!("add in 225.4.0.{} out+", n + 3));
        }
        send_and_collect(&star, 3, &packets);
        steps.push(send_and_collect(&star, 3, &packets));
        // The counters match too; the kernel's table has its own order.
        let shown = text(&daemon.smcroutectl(&["-p", "-d", "show"]));
        let mut lines: Vec<String> = shown.lines().map(String::from).collect();
        lines.sort();
        tables.push(lines);
        for (n, client) in BOTH.into_iter().enumerate() {
            run(
                client,
                &format!("remove in 10.0.0.10 225.4.0.{} out1", n + 1),
            );
        }
        steps.push(send_and_collect(&star, 3, &packets));
        for (n, client) in BOTH.into_iter().enumerate() {
            run(
                client,
                &format!("remove in 10.0.0.10 225.4.0.{} out2", n + 1),
            );
            run(client, "flush");
        }
        send_and_collect(&star, 3, &packets);
        steps.push(send_and_collect(&star, 3, &packets));
        for n in 1..=2 {
            run(
                Implementation::Mcastor,
                &format!("remove in 10.0.0.10 225.4.0.{n}"),
            );
        }
        let batch = "join in 225.4.9.1\n# a comment\n\nleave in 225.4.9.1\n";
        let output = run_client(
            &star.rtr,
            Implementation::Mcastor,
            &daemon.socket,
            &["-b"],
            batch,
        );
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        steps
    });
    assert_eq!(ours[0].len(), 3 + 2 * 2 + 2 * 3, "{ours:?}");
    for (n, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        assert_eq!(ours, theirs, "step {n}");
    }
    assert_eq!(tables[0], tables[1]);
}

fn joined_groups_match_smcroute(lab: &Lab) {
    let conf = "mgroup from in group 225.1.2.0/27\n\
                mgroup from in source 10.0.0.0/30 group 232.1.2.3\n\
                mgroup from in source 10.0.0.10 group 232.1.2.4/31\n\
                mgroup from out1 group ff0e::40/125\n\
                mroute from in group 225.9.9.9 to out1\n";
    let [ours, theirs] = star_per_implementation(lab, 1).map(|(implementation, star)| {
        let daemon = Daemon::start(lab, &star.rtr, implementation, conf, &[]);
        let all = || {
            let mut all = kernel(&star.rtr, "in");
            all.extend(
                kernel(&star.rtr, "out1")
                    .into_iter()
                    .filter(|g| g.starts_with("ff0e")),
            );
            all
        };
        let joined = wait_until(TIMEOUT, || all().len() >= 46);
        assert!(joined, "{implementation:?}: {:?}", all());
        // Debian's joins further groups for its own signalling, which the file does not name.
        let mut found = all();
        found.retain(|g| !g.starts_with("224.0.0.") && !g.starts_with("ff02"));
        drop(daemon);
        found
    });
    assert_eq!(ours, theirs);
}

fn reload_discards_routes_added_by_command(lab: &Lab) {
    for how in ["signal", "command"] {
        let [ours, theirs] = star_per_implementation(lab, 3).map(|(implementation, star)| {
            let mut daemon = Daemon::start(lab, &star.rtr, implementation, ROUTE_TO_ALL, &[]);
            daemon.smcroutectl(&["add", "in", "10.0.0.10", "225.1.2.5", "out1"]);
            let conf = format!(
                "{ROUTE_TO_ALL}mroute from in source 10.0.0.10 group 225.1.2.4 to out1\nbogus line\n"
            );
            std::fs::write(&daemon.conf, conf).expect("writing");
            match how {
                "signal" => daemon.program.signal(libc::SIGHUP),
                _ => drop(daemon.smcroutectl(&["reload"])),
            }
            eventually("the new route", true, || {
                text(&daemon.smcroutectl(&["-t", "show"])).contains("225.1.2.4")
            });
            text(&daemon.smcroutectl(&["-p", "show"]))
        });
        assert_eq!(ours, theirs, "{how}");
        assert!(!ours.contains("225.1.2.5"), "{ours}");
    }
}

fn idle_flows_are_flushed(lab: &Lab) {
    for (implementation, star) in star_per_implementation(lab, 3) {
        let daemon = Daemon::start(lab, &star.rtr, implementation, ROUTE_TO_ALL, &["-c", "1"]);
        send_and_collect(&star, 3, &[]);
        let flows = || {
            let shown = text(&daemon.smcroutectl(&["-t", "show"]));
            shown.matches("(10.0.0.10, 225.255.0.1)").count()
        };
        eventually("no flow is left", 0, flows);
        send_and_collect(&star, 3, &[]);
        assert!(daemon.smcroutectl(&["flush"]).status.success());
    }
}

fn routes_wait_for_missing_interfaces(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let daemon = Daemon::start(lab, &star.rtr, Implementation::Mcastor, ROUTE_TO_ALL, &[]);
    let pending = text(&daemon.run_client(Implementation::Mcastor, &["-t", "show", "pending"]));
    assert!(pending.contains(" out2 out3"), "{pending}");
    star.add_egress(2);
    star.add_egress(3);
    eventually("nothing is pending", true, || {
        text(&daemon.run_client(Implementation::Mcastor, &["-t", "show", "pending"]))
            .starts_with("No pending")
    });
    eventually("all three egresses", 3, || {
        send_and_collect(&star, 3, &[]).len()
    });
}

fn mrdisc_announcements_match_smcroute(lab: &Lab) {
    let [ours, theirs] = star_per_implementation(lab, 1).map(|(implementation, star)| {
        let capture = Capture::new(&star.rcv, "eth1");
        let conf = "phyint out1 enable mrdisc\n";
        // Without -N, Debian's creates its interfaces before it reads `mrdisc`.
        let _daemon = Daemon::start(lab, &star.rtr, implementation, conf, &["-N", "-m", "7"]);
        let mut advertisement = Vec::new();
        let mut v6 = false;
        let both = wait_until(TIMEOUT, || {
            for frame in capture.frames() {
                let Some(seen) = crate::lab::IpPacket::parse(&frame.bytes) else {
                    continue;
                };
                let group = seen.dst.to_string();
                if group == "224.0.0.106" && seen.body()[0] == 0x30 && advertisement.is_empty() {
                    advertisement = vec![seen.ttl, seen.protocol, seen.body()[0], seen.body()[1]];
                }
                v6 |= group == "ff02::6a";
            }
            !advertisement.is_empty() && (v6 || implementation == Implementation::Smcroute)
        });
        assert!(both, "{implementation:?}: {advertisement:?}, IPv6 {v6}");
        advertisement
    });
    assert_eq!(ours[..3], theirs[..3]);
    // Debian's announces 20, regardless of `-m`.
    assert_eq!((&ours[..], theirs[3]), (&[1, 2, 0x30, 7][..], 20));
}

/// Features that smcroute does not have: no loss of first packets, 40 interfaces, moving sources,
/// and extended options.
fn extensions_beyond_smcroute_work(lab: &Lab) {
    let star = Star::dual(lab, 40);
    let to: String = (2..=40).map(|n| format!(" out{n}")).collect();
    let conf = format!(
        "mroute from in group 225.1.2.3 to out1{to}\n\
         mroute from out1 group 225.1.2.3 to out40\n\
         mroute from in group 225.1.2.4 to out1 ttl set 16\n\
         mroute from in group 225.1.2.5 to out1 ttl keep except 10.0.0.11,10.0.0.12\n"
    );
    let daemon = Daemon::start(lab, &star.rtr, Implementation::Mcastor, &conf, &[]);
    let captures: Vec<Capture> = (1..=40)
        .map(|n| Capture::new(&star.rcv, &format!("eth{n}")))
        .collect();
    let inject = Injector::new(&star.src, "eth0");
    inject.send(&Udp::new("10.0.0.10:9", "225.1.2.3:5000", "packet first").frame());
    for capture in &captures {
        let seen = capture.expect("225.1.2.3", 1);
        assert_eq!(seen[0].payload(), b"packet first");
    }
    // The same source moves to another interface.
    let behind = Injector::new(&star.rcv, "eth1");
    // `in` stays the active ingress until it has been silent for a moment.
    let moved = Udp::new("10.0.0.10:9", "225.1.2.3:5000", "packet moved").frame();
    eventually("the stream continues from there", true, || {
        behind.send(&moved);
        let seen = captures[39].to("225.1.2.3");
        seen.iter().any(|s| s.payload() == b"packet moved")
    });
    for (source, group) in [
        ("10.0.0.10", "225.1.2.4"),
        ("10.0.0.11", "225.1.2.5"),
        ("10.0.0.10", "225.1.2.5"),
    ] {
        let to = format!("{group}:5000");
        inject.send(&Udp::new(&format!("{source}:9"), &to, source).ttl(1).frame());
    }
    let kept = captures[0].expect("225.1.2.5", 1);
    assert_eq!((kept[0].ttl, kept[0].payload()), (1, &b"10.0.0.10"[..]));
    assert_eq!(daemon.smcroutectl(&["-t", "s", "i"]).status.code(), Some(0));
    drop(daemon);
    // `--strict` rejects the extensions.
    let path = lab.file("strict");
    std::fs::write(&path, conf).expect("writing");
    let path = path.display().to_string();
    let strict = smcrouted(
        &star.rtr,
        Implementation::Mcastor,
        &["--strict", "-F", &path],
    );
    assert_eq!(strict.status.code(), Some(78));
    let printed = String::from_utf8_lossy(&strict.stderr).into_owned();
    assert_eq!(printed.matches(" line ").count(), 2, "{printed}");
    assert_eq!(
        smcrouted(&star.rtr, Implementation::Mcastor, &["-F", &path])
            .status
            .code(),
        Some(0)
    );
}

fn command_route_without_egress_blocks_packets(lab: &Lab) {
    let conf = format!("{ROUTE_TO_ALL}mroute from in group 225.4.0.5 to out1\n");
    let packet = |n: u8, group: u8| {
        let (from, to) = (format!("10.0.0.1{n}:9"), format!("225.4.0.{group}:5000"));
        Udp::new(&from, &to, format!("packet {n} {group}"))
    };
    let packets = [packet(0, 5), packet(1, 5), packet(0, 6)];
    let [ours, theirs] = star_per_implementation(lab, 3).map(|(implementation, star)| {
        let daemon = Daemon::start(lab, &star.rtr, implementation, &conf, &[]);
        for group in ["225.4.0.5", "225.4.0.6"] {
            let added = daemon.smcroutectl(&["add", "in", "10.0.0.10", group]);
            assert_eq!(
                added.status.code(),
                Some(0),
                "{implementation:?}: {added:?}"
            );
        }
        send_and_collect(&star, 3, &packets);
        let arrived = send_and_collect(&star, 3, &packets);
        let shown = text(&daemon.smcroutectl(&["-p", "show", "routes"]));
        let mut lines: Vec<String> = shown.lines().map(String::from).collect();
        lines.sort();
        // An egress can be added to the route later.
        daemon.smcroutectl(&["add", "in", "10.0.0.10", "225.4.0.6", "out2"]);
        (arrived, lines, send_and_collect(&star, 3, &packets))
    });
    // The end markers, and the packet of the other source.
    assert_eq!(ours.0.len(), 3 + 1, "{:?}", ours.0);
    assert_eq!(ours.2.len(), 3 + 2, "{:?}", ours.2);
    assert_eq!(ours, theirs);
}

fn disabled_interface_is_not_an_egress(lab: &Lab) {
    let conf = format!("phyint out3 disable\n{ROUTE_TO_ALL}");
    let [ours, theirs] = star_per_implementation(lab, 3).map(|(implementation, star)| {
        let _daemon = Daemon::start(lab, &star.rtr, implementation, &conf, &[]);
        let third = Capture::new(&star.rcv, "eth3");
        let arrived = [
            send_and_collect(&star, 2, &[]),
            send_and_collect(&star, 2, &[]),
        ];
        assert!(third.to("225.255.0.1").is_empty(), "{implementation:?}");
        arrived
    });
    assert_eq!(ours, theirs);
    assert_eq!(ours[0].len(), 2);
}
