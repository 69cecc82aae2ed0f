//! The meaning of `smcroute.conf` compared with Debian's: unreadable files, routes without egress,
//! and the order of `phyint` lines.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::cases;
use crate::lab::smcroute::{
    ArrivedPackets, Daemon, Implementation, ROUTE_TO_ALL, send_and_collect,
    star_per_implementation, text,
};
use crate::lab::{Lab, Star, Udp, eventually};

cases!("smcroute_files":
    #[Program("smcrouted", "smcroute")] include_skips_only_unreadable_files,
    failed_reload_keeps_the_routes,
    #[Program("smcrouted", "smcroute")] route_without_egress_blocks_matching_packets,
    #[Program("smcrouted", "smcroute")] last_phyint_line_replaces_earlier_ones,
    #[Program("smcrouted", "smcroute")] unusual_lines_have_the_meaning_of_smcroute,
);

fn include_skips_only_unreadable_files(lab: &Lab) {
    let folder = lab.file("included");
    std::fs::create_dir_all(folder.join("c.conf")).expect("folders");
    symlink("/nowhere", folder.join("b.conf")).expect("a link");
    let line = |group: &str| format!("mroute from in group {group} to out1\n");
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("writing");
    write("a.conf", &line("225.1.2.3"));
    write("z.conf", &line("225.1.2.4"));
    let conf = format!("include {}/*.conf\n{ROUTE_TO_ALL}", folder.display());
    let packets = ["225.1.2.3", "225.1.2.4"].map(|group| {
        Udp::new(
            "10.0.0.10:9",
            &format!("{group}:5000"),
            format!("packet {group}"),
        )
    });
    let [ours, theirs] = star_per_implementation(lab, 3).map(|(implementation, star)| {
        let daemon = Daemon::start(lab, &star.rtr, implementation, &conf, &[]);
        send_and_collect(&star, 3, &packets);
        if implementation == Implementation::Mcastor {
            let stderr = daemon.program.stderr();
            for name in ["b.conf", "c.conf"] {
                let message = format!("line 1: include: {}/{name}: ", folder.display());
                assert!(stderr.contains(&message), "{stderr}");
            }
        }
        send_and_collect(&star, 3, &packets)
    });
    assert_eq!(ours, theirs);
    assert_eq!(ours.len(), 3 + 2);
}

fn failed_reload_keeps_the_routes(lab: &Lab) {
    let star = Star::v4(lab, 3);
    let daemon = Daemon::start(
        lab,
        &star.rtr,
        Implementation::Mcastor,
        ROUTE_TO_ALL,
        &["-p", "nobody"],
    );
    let mode = |mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&daemon.conf, mode).expect("chmod");
    };
    let reload = |code: i32| {
        let output = daemon.run_client(Implementation::Mcastor, &["reload"]);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert_eq!(send_and_collect(&star, 3, &[]).len(), 3);
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    mode(0o600);
    let stderr = reload(1);
    assert!(
        stderr.contains("cannot be read: Permission denied"),
        "{stderr}"
    );
    mode(0o644);
    reload(0);
    std::fs::remove_file(&daemon.conf).expect("removing");
    let stderr = reload(1);
    assert!(stderr.contains("does not exist"), "{stderr}");
    eventually("the error is logged", true, || {
        daemon.program.stderr().contains("does not exist")
    });
}

fn route_without_egress_blocks_matching_packets(lab: &Lab) {
    let conf = format!(
        "{ROUTE_TO_ALL}mroute from in group 225.1.2.4\n\
         mroute from in group 225.1.2.5 to\n\
         mroute from in group 225.1.2.6 to in\n\
         mroute from in group 225.1.0.0/16 to out3\n\
         mroute from in source 10.0.0.10 group 225.1.2.7 to\n"
    );
    let packet = |source: &str, n: u8| {
        let to = format!("225.1.2.{n}:5000");
        Udp::new(&format!("{source}:9"), &to, format!("packet {source} {n}"))
    };
    let packets: Vec<Udp> = (3..=7)
        .flat_map(|n| ["10.0.0.10", "10.0.0.11"].map(|source| packet(source, n)))
        .collect();
    let [ours, theirs] = star_per_implementation(lab, 3).map(|(implementation, star)| {
        let daemon = Daemon::start(lab, &star.rtr, implementation, &conf, &[]);
        let shown = text(&daemon.smcroutectl(&["-p", "show"]));
        send_and_collect(&star, 3, &packets);
        (shown, send_and_collect(&star, 3, &packets))
    });
    assert_eq!(ours.1, theirs.1);
    // Both packets for 225.1.2.3; for 225.1.2.7 only the packet of the other source.
    assert_eq!(ours.1.len(), 3 + 3);
    let without_egress = "(*, 225.1.2.4)                             in   \n";
    assert!(
        ours.0.contains(without_egress) && theirs.0.contains(without_egress),
        "{ours:?}"
    );
}

/// Keywords in unusual order, words without a meaning, names that no interface can have.
fn unusual_lines_have_the_meaning_of_smcroute(lab: &Lab) {
    let lines = [
        "phyint out1 flat enable ttl-threshold 0",
        "phyint out2 enable ttl-threshold many",
        "phyint lo enable",
        "mroute group 225.2.0.1 from in source 10.0.0.10 to out1",
        "mroute from in group 225.2.0.2 to out1 source 10.0.0.99",
        "mroute to out1 from in group 225.2.0.3",
        "mroute from in to out1 group 225.2.0.4",
        "mroute from nix from in group 225.2.0.5 to out2",
        "mroute from in group 225.9.9.9 group 225.2.0.6 to out1",
        "mroute from in group 225.2.0.7 to out1 to out2",
        "mroute from in group 225.2.0.8 to an-interface-name-too-long out2",
        "mroute from in group 225.2.0.9 to out1, out2",
        "mroute from in group 225.2.0.10 to lo out1",
        "mroute from lo group 225.2.0.11 to out1",
        "mroute from in group 225.2.0.12 enable to out1",
        "mgroup group 225.3.0.1 from in",
        "mgroup from in group 225.3.0.2 to out1 source 10.0.0.10",
        "mgroup from lo group 225.3.0.3",
        "ssmgroup from in source 10.0.0.10 group 232.3.0.4",
    ];
    let conf = format!("{}\n{ROUTE_TO_ALL}", lines.join("\n"));
    let packets: Vec<Udp> = (1..=12)
        .map(|n| {
            Udp::new(
                "10.0.0.10:9",
                &format!("225.2.0.{n}:5000"),
                format!("packet {n}"),
            )
        })
        .collect();
    let [ours, theirs] = star_per_implementation(lab, 3).map(|(implementation, star)| {
        let daemon = Daemon::start(lab, &star.rtr, implementation, &conf, &[]);
        let groups = text(&daemon.smcroutectl(&["-t", "show", "groups"]));
        send_and_collect(&star, 3, &packets);
        let arrived = send_and_collect(&star, 3, &packets);
        let routes = text(&daemon.smcroutectl(&["-t", "show"]));
        let mut rows: Vec<&str> = routes.lines().filter(|r| r.starts_with("(*")).collect();
        rows.sort_unstable();
        (groups, rows.join("\n"), arrived)
    });
    assert_eq!(ours.0, theirs.0);
    assert_eq!(ours.1, theirs.1);
    assert_eq!(ours.2, theirs.2);
    assert_eq!(ours.2.len(), 3 + 10, "{:?}", ours.2);
}

fn last_phyint_line_replaces_earlier_ones(lab: &Lab) {
    let packets: Vec<Udp> = [1, 2, 3, 5, 10, 12]
        .map(|ttl| Udp::new("10.0.0.10:9", "225.1.2.3:5000", format!("packet {ttl}")).ttl(ttl))
        .into();
    let files = [
        "phyint out1 enable ttl-threshold 2\nphyint out+ ttl-threshold 9\n\
         phyint out2 ttl-threshold 9\nphyint out2 mrdisc\n",
        "phyint out+ ttl-threshold 11\nphyint out1 enable mrdisc\nphyint out2 disable\n\
         phyint out+ enable\n",
        "phyint out2 disable\nphyint out2 ttl-threshold 4\nphyint out1 ttl-threshold 4\n\
         phyint out1\n",
        "phyint o+ ttl-threshold 2\nphyint out+ ttl-threshold 4\nphyint out2 mrdisc\n",
    ];
    let [ours, theirs] = star_per_implementation(lab, 3).map(|(implementation, star)| {
        files.map(|file| {
            // Thresholds must let the end marker through.
            let conf = format!("{file}mroute from in group 225.1.2.3 to out1 out2\n{ROUTE_TO_ALL}");
            let _daemon = Daemon::start(lab, &star.rtr, implementation, &conf, &[]);
            send_and_collect(&star, 3, &packets);
            send_and_collect(&star, 3, &packets)
        })
    });
    for ((ours, theirs), file) in ours.iter().zip(&theirs).zip(files) {
        assert_eq!(ours, theirs, "{file}");
    }
    let reached = |arrived: &ArrivedPackets, n: usize| arrived.iter().filter(|a| a.0 == n).count();
    // Packets above TTL 9 or 1, and the end marker.
    assert_eq!((reached(&ours[0], 1), reached(&ours[0], 2)), (3, 6));
    assert_eq!((reached(&ours[1], 1), reached(&ours[1], 2)), (6, 6));
}
