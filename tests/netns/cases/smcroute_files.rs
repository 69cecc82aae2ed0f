//! What an `smcroute.conf` means, beside Debian's: files that cannot be read, lines that stop, and
//! the order of `phyint` lines.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::cases;
use crate::lab::smcroute::{Arrived, Daemon, EVERYBODY, Whose, pass, text, two};
use crate::lab::{Lab, Star, Udp, eventually};

cases!("smcroute_files":
    #[Program("smcrouted", "smcroute")] an_include_leaves_out_only_what_cannot_be_read,
    a_reload_without_the_file_changes_nothing,
    #[Program("smcrouted", "smcroute")] a_line_to_nowhere_stops_alike,
    #[Program("smcrouted", "smcroute")] the_last_phyint_line_counts_whole,
);

fn an_include_leaves_out_only_what_cannot_be_read(lab: &Lab) {
    let folder = lab.file("included");
    std::fs::create_dir_all(folder.join("c.conf")).expect("folders");
    symlink("/nowhere", folder.join("b.conf")).expect("a link");
    let line = |group: &str| format!("mroute from in group {group} to out1\n");
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("writing");
    write("a.conf", &line("225.1.2.3"));
    write("z.conf", &line("225.1.2.4"));
    let conf = format!("include {}/*.conf\n{EVERYBODY}", folder.display());
    let packets = ["225.1.2.3", "225.1.2.4"].map(|group| {
        Udp::new(
            "10.0.0.10:9",
            &format!("{group}:5000"),
            format!("packet {group}"),
        )
    });
    let [ours, theirs] = two(lab, 3).map(|(whose, star)| {
        let daemon = Daemon::start(lab, &star.rtr, whose, &conf, &[]);
        pass(&star, 3, &packets);
        if whose == Whose::Ours {
            let said = daemon.program.stderr();
            for name in ["b.conf", "c.conf"] {
                let told = format!("line 1: include: {}/{name}: ", folder.display());
                assert!(said.contains(&told), "{said}");
            }
        }
        pass(&star, 3, &packets)
    });
    assert_eq!(ours, theirs);
    assert_eq!(ours.len(), 3 + 2);
}

fn a_reload_without_the_file_changes_nothing(lab: &Lab) {
    let star = Star::v4(lab, 3);
    let daemon = Daemon::start(lab, &star.rtr, Whose::Ours, EVERYBODY, &["-p", "nobody"]);
    let mode = |mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&daemon.conf, mode).expect("chmod");
    };
    let reload = |code: i32| {
        let output = daemon.ask(Whose::Ours, &["reload"]);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert_eq!(pass(&star, 3, &[]).len(), 3);
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    mode(0o600);
    let told = reload(1);
    assert!(told.contains("cannot be read: Permission denied"), "{told}");
    mode(0o644);
    reload(0);
    std::fs::remove_file(&daemon.conf).expect("removing");
    let told = reload(1);
    assert!(told.contains("does not exist"), "{told}");
    eventually("told", true, || {
        daemon.program.stderr().contains("does not exist")
    });
}

fn a_line_to_nowhere_stops_alike(lab: &Lab) {
    let conf = format!(
        "{EVERYBODY}mroute from in group 225.1.2.4\n\
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
    let [ours, theirs] = two(lab, 3).map(|(whose, star)| {
        let daemon = Daemon::start(lab, &star.rtr, whose, &conf, &[]);
        let shown = text(&daemon.theirs(&["-p", "show"]));
        pass(&star, 3, &packets);
        (shown, pass(&star, 3, &packets))
    });
    assert_eq!(ours.1, theirs.1);
    // Of 225.1.2.3 both, of 225.1.2.7 what another source sent.
    assert_eq!(ours.1.len(), 3 + 3);
    let nowhere = "(*, 225.1.2.4)                             in   \n";
    assert!(
        ours.0.contains(nowhere) && theirs.0.contains(nowhere),
        "{ours:?}"
    );
}

fn the_last_phyint_line_counts_whole(lab: &Lab) {
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
    let [ours, theirs] = two(lab, 3).map(|(whose, star)| {
        files.map(|file| {
            // Thresholds must let the last packet through.
            let conf = format!("{file}mroute from in group 225.1.2.3 to out1 out2\n{EVERYBODY}");
            let _daemon = Daemon::start(lab, &star.rtr, whose, &conf, &[]);
            pass(&star, 3, &packets);
            pass(&star, 3, &packets)
        })
    });
    for ((ours, theirs), file) in ours.iter().zip(&theirs).zip(files) {
        assert_eq!(ours, theirs, "{file}");
    }
    let reached = |arrived: &Arrived, n: usize| arrived.iter().filter(|a| a.0 == n).count();
    // Above 9 or 1, and the last one.
    assert_eq!((reached(&ours[0], 1), reached(&ours[0], 2)), (3, 6));
    assert_eq!((reached(&ours[1], 1), reached(&ours[1], 2)), (6, 6));
}
