//! This program as smcrouted and smcroutectl, beside Debian's: the same files, flags, commands
//! and packets, and what comes of them. [`DIFFERENCES`] lists where they differ on purpose.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::cases;
use super::joins::kernel;
use crate::lab::smcroute::{BOTH, Daemon, Whose, ask, smcrouted, text};
use crate::lab::{BINARY, Capture, Injector, Lab, PATIENCE, Star, Udp, eventually, wait_until};

cases!("smcroute":
    #[Program("smcrouted", "smcroute")] every_directive_forwards_alike,
    #[Program("smcrouted", "smcroute")] tables_are_the_same_for_every_client_and_daemon,
    #[Program("smcrouted", "smcroute")] commands_end_alike,
    #[Program("smcrouted", "smcroute")] commands_change_what_is_forwarded,
    #[Program("smcrouted", "smcroute")] flags_end_alike,
    #[Program("smcrouted", "smcroute")] the_same_groups_are_joined,
    #[Program("smcrouted", "smcroute")] scripts_are_called_alike,
    #[Program("smcrouted", "smcroute")] a_reload_replaces_what_commands_added,
    #[Program("smcrouted", "smcroute")] idle_flows_are_flushed,
    lies_on_the_socket_change_nothing,
    a_bad_line_is_told_and_the_rest_runs,
    lines_wait_for_their_interfaces,
    rights_are_dropped_and_packets_go_on,
    instances_by_name_in_the_background,
    a_delay_a_table_and_a_link_of_that_name,
    the_router_and_check_take_the_file_too,
    #[Program("smcrouted", "smcroute")] routers_are_announced_alike,
    #[Program("smcrouted", "smcroute")] both_speak_to_syslog,
    a_supervisor_hears_that_it_lives,
    first_packets_many_interfaces_and_moving_sources,
    #[Program("smcrouted", "smcroute")] a_route_to_nowhere_stops_alike,
    #[Program("smcrouted", "smcroute")] a_disabled_interface_takes_no_part,
    #[Program("smcrouted", "smcroute")] levels_say_more_and_more,
    http_listens_only_where_asked,
);

/// Command lines that end differently: theirs, ours, and why.
const DIFFERENCES: &[(&str, i32, i32, &str)] = &[
    ("join in 1.2.3.4", 0, 1, "not a group"),
    ("add in 224.0.0.5 out1", 0, 1, "never forwarded by either"),
    ("foo", 0, 1, "theirs shows routes for any unknown word"),
];

/// Flags that end differently.
const FLAG_DIFFERENCES: &[(&str, i32, i32, &str)] = &[
    (
        "-n -F GOOD",
        78,
        0,
        "theirs knows no interfaces while it checks",
    ),
    ("-n -F ODD", 78, 0, "likewise"),
];

fn two(lab: &Lab, egresses: usize) -> [(Whose, Star); 2] {
    let tag = lab.file("").display().to_string();
    let tag = tag.rsplit('/').next().unwrap_or_default().to_string();
    BOTH.map(|whose| {
        (
            whose,
            Star::one_of(lab, egresses, &format!("{tag}{whose:?}")),
        )
    })
}

/// What arrived of the test's own packets: where, TTL, and all bytes but TTL and checksum.
type Arrived = BTreeSet<(usize, u8, Vec<u8>)>;

/// Sends packets and then one that reaches everybody; tells what arrived before that.
fn pass(star: &Star, egresses: usize, packets: &[Udp]) -> Arrived {
    let captures: Vec<Capture> = (1..=egresses)
        .map(|n| Capture::new(&star.rcv, &format!("eth{n}")))
        .collect();
    let inject = Injector::new(&star.src, "eth0");
    for packet in packets {
        inject.send(&packet.frame());
        // The kernel queues few packets of a flow it has no route for yet.
        std::thread::yield_now();
    }
    let last = Udp::new("10.0.0.10:9", "225.255.0.1:5000", "the last");
    inject.send(&last.frame());
    let mut arrived = Arrived::new();
    for (n, capture) in captures.iter().enumerate() {
        let mut seen = Vec::new();
        let there = wait_until(PATIENCE, || {
            let frames = capture.frames();
            seen.extend(
                frames
                    .iter()
                    .filter(|f| !f.outgoing)
                    .filter_map(|f| crate::lab::Seen::read(&f.bytes)),
            );
            seen.iter().any(|s| s.dst.to_string() == "225.255.0.1")
        });
        assert!(there, "the last packet did not reach eth{}", n + 1);
        let own = seen
            .iter()
            .filter(|s| s.dst.is_multicast() && s.protocol == 17);
        for s in own.filter(|s| s.payload().starts_with(b"packet") || s.payload() == b"the last") {
            arrived.insert((n + 1, s.ttl, s.untouchable()));
        }
    }
    arrived
}

const EVERYBODY: &str = "mroute from in group 225.255.0.1 to out1 out2 out3\n";

fn every_directive_forwards_alike(lab: &Lab) {
    let conf = format!(
        "{EVERYBODY}phyint out2 enable ttl-threshold 8\n\
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
    let [ours, theirs] = two(lab, 3).map(|(whose, star)| {
        let _daemon = Daemon::start(lab, &star.rtr, whose, &conf, &[]);
        // Once to let Debian's learn each flow (it may lose the first), then for the record.
        pass(&star, 3, &packets);
        pass(&star, 3, &packets)
    });
    assert!(theirs.len() > 60, "{} arrived", theirs.len());
    let only = |a: &Arrived, b: &Arrived| -> Vec<String> {
        let readable = |(n, ttl, ip): &(usize, u8, Vec<u8>)| {
            let at = if ip[0] >> 4 == 4 { 28 } else { 48 };
            format!("eth{n} ttl {ttl} {}", String::from_utf8_lossy(&ip[at..]))
        };
        a.difference(b).map(readable).collect()
    };
    assert_eq!(only(&ours, &theirs), [""; 0], "only ours");
    // Linux notes the threshold of an IPv6 interface and does not look at it.
    let below = [
        "eth2 ttl 1 packet ff0e::43 fd00:0::10 2",
        "eth2 ttl 7 packet ff0e::43 fd00:0::10 8",
    ];
    assert_eq!(only(&theirs, &ours), below, "only theirs");
}

const TABLES: &str = "mgroup from in group 225.1.2.3\n\
     mgroup from in source 10.0.0.10 group 232.1.2.3\n\
     mgroup from out1 group ff0e::42\n\
     mroute from in group 225.1.2.3 to out2 out1\n\
     mroute from in source 10.0.0.10 group 225.1.2.4 to out1\n\
     mroute from in group 225.1.3.0/24 to out+\n\
     mroute from in group ff0e::42 to out1 out2\n";

fn tables_are_the_same_for_every_client_and_daemon(lab: &Lab) {
    let daemons = two(lab, 2).map(|(whose, star)| {
        let daemon = Daemon::start(lab, &star.rtr, whose, TABLES, &[]);
        (star, daemon)
    });
    for words in [
        "-p show",
        "-p",
        "-t show",
        "-p show routes",
        "-p s r",
        "-p -d show",
        "-p show groups",
        "-p s g",
        "-t show groups",
        "-p -d show groups",
        "-p show interfaces",
        "-t s i",
        "-p -d show interfaces",
    ] {
        let words: Vec<&str> = words.split(' ').collect();
        let mut told = Vec::new();
        for (_, daemon) in &daemons {
            for client in BOTH {
                let output = daemon.ask(client, &words);
                assert_eq!(output.status.code(), Some(0), "{words:?}");
                let mut lines: Vec<String> = text(&output).lines().map(String::from).collect();
                if words.contains(&"-d") && words.contains(&"groups") {
                    // The kernel's own list has an order of its own.
                    lines.sort();
                }
                told.push((client, daemon.whose, lines));
            }
        }
        let theirs = told.last().expect("four").2.clone();
        assert!(theirs.len() > 3, "{theirs:?}");
        for (client, daemon, lines) in told {
            assert_eq!(
                lines, theirs,
                "{words:?}: client {client:?}, daemon {daemon:?}"
            );
        }
    }
    // With headings for terminals; Debian's asks the terminal for its width first.
    for (_, daemon) in &daemons {
        let [ours, theirs] = BOTH.map(|client| text(&daemon.ask(client, &["show"])));
        let (_, theirs) = theirs.split_once("\x1b[4m").expect("a title");
        assert_eq!(ours, format!("\x1b[4m{theirs}"));
    }
    let (_, ours) = &daemons[0];
    let shown = |what: &str| -> serde_json::Value {
        let json = text(&ours.ask(Whose::Ours, &["-j", "show", what]));
        serde_json::from_str(&json).expect("JSON")
    };
    assert_eq!(
        shown("routes")["routes"]["ssm"][0],
        serde_json::json!({"source": "10.0.0.10", "group": "225.1.2.4", "iif": "in", "oifs": ["out1"]})
    );
    assert_eq!(
        shown("groups")["groups"]["conf"].as_array().map(Vec::len),
        Some(3)
    );
    assert!(
        shown("interfaces")["interfaces"]
            .as_array()
            .is_some_and(|i| i.len() >= 4)
    );
    assert_eq!(shown("pending")["pending"], serde_json::json!([]));
    // What 2.5.6 does not know.
    let (_, theirs) = &daemons[1];
    assert_eq!(
        theirs.ask(Whose::Ours, &["-j", "show"]).status.code(),
        Some(1)
    );
}

fn commands_end_alike(lab: &Lab) {
    let commands = [
        "add in 225.2.2.1 out1",
        "add in 225.2.2.1 out2",
        "add in 10.0.0.1 225.2.2.2 out1 out2",
        "add in 0.0.0.0 225.2.2.3 out1",
        "add in 225.2.3.0/24 out+",
        "a in 225.2.2.4 nix",
        "add nix 225.2.2.5 out1",
        "add in 225.2.2.6",
        "add in",
        "add in 10.0.0.1 out1",
        "add in 10.0.0.0/24 225.2.2.7 out1",
        "add in ff0e::9 out1",
        "add in 225.2.2.8 in out1",
        "remove in 225.2.2.1 out1",
        "remove in 225.2.2.1 out1",
        "remove in 225.2.2.1 out2",
        "rem in 225.2.2.1",
        "rem in 225.2.2.1",
        "del in 10.0.0.1 225.2.2.2",
        "remove in 225.99.1.1",
        "remove in",
        "join in 225.3.3.1",
        "join in 225.3.3.1",
        "join in 10.0.0.1 232.3.3.2",
        "join in 225.3.4.0/30",
        "join in ff0e::10",
        "join nix 225.3.3.3",
        "j in",
        "leave in 225.3.3.1",
        "leave in 225.3.3.1",
        "l in 10.0.0.1 232.3.3.2",
        "leave in 225.3.4.0/30",
        "leave nix 225.3.3.9",
        "flush",
        "f",
        "reload",
        "re",
        "restart",
        "show nonsense",
        "help",
        "version",
        "-v",
        "-h",
        "-x",
        "-i",
        "join in 1.2.3.4",
        "add in 224.0.0.5 out1",
        "add in 10.0.0.1 225.9.9.1",
        "foo",
        "kill",
    ];
    // Every client asks a daemon of its own, so that each command finds what the last one left.
    let ended = |daemon: Whose, client: Whose| {
        let star = Star::one_of(lab, 2, &format!("{daemon:?}{client:?}"));
        let daemon = Daemon::start(lab, &star.rtr, daemon, "phyint in enable\n", &[]);
        commands.map(|command| {
            let words: Vec<&str> = command.split(' ').collect();
            let output = daemon.ask(client, &words);
            let code = output.status.code().expect("an end");
            if client == Whose::Ours {
                assert_eq!(output.stderr.is_empty(), code == 0, "{command}: {output:?}");
            }
            code
        })
    };
    let theirs = ended(Whose::Theirs, Whose::Theirs);
    assert!(theirs.iter().sum::<i32>() > 10, "{theirs:?}");
    let mut faults = Vec::new();
    for (daemon, client) in [
        (Whose::Theirs, Whose::Ours),
        (Whose::Ours, Whose::Theirs),
        (Whose::Ours, Whose::Ours),
    ] {
        let codes = ended(daemon, client);
        for (n, command) in commands.iter().enumerate() {
            let listed = DIFFERENCES.iter().find(|d| d.0 == *command);
            // Unknown words are the client's matter, the rest is the daemon's.
            let decides = if *command == "foo" { client } else { daemon };
            let want = match listed {
                Some((_, _, ours, _)) if decides == Whose::Ours => *ours,
                Some((_, theirs, _, _)) => *theirs,
                None => theirs[n],
            };
            if codes[n] != want || listed.is_some_and(|d| d.1 != theirs[n]) {
                let code = codes[n];
                faults.push(format!(
                    "{command}: {code}, not {want}: client {client:?}, daemon {daemon:?}"
                ));
            }
        }
    }
    assert_eq!(faults, [""; 0]);
}

fn commands_change_what_is_forwarded(lab: &Lab) {
    let group = |n: usize| format!("225.4.0.{n}:5000");
    let mut tables: Vec<Vec<String>> = Vec::new();
    let [ours, theirs] = two(lab, 3).map(|(whose, star)| {
        let daemon = Daemon::start(lab, &star.rtr, whose, EVERYBODY, &[]);
        let tell = |client: Whose, words: &str| {
            let output = daemon.ask(client, &words.split(' ').collect::<Vec<_>>());
            assert_eq!(output.status.code(), Some(0), "{words}: {output:?}");
        };
        let packets: Vec<Udp> = (1..=4)
            .map(|n| Udp::new("10.0.0.10:9", &group(n), format!("packet {n}")))
            .collect();
        let mut steps = Vec::new();
        for (n, client) in BOTH.into_iter().enumerate() {
            tell(
                client,
                &format!("add in 10.0.0.10 225.4.0.{} out1 out2", n + 1),
            );
            tell(client, &format!("add in 225.4.0.{} out+", n + 3));
        }
        pass(&star, 3, &packets);
        steps.push(pass(&star, 3, &packets));
        // Counted alike too; the kernel's table has an order of its own.
        let shown = text(&daemon.theirs(&["-p", "-d", "show"]));
        let mut lines: Vec<String> = shown.lines().map(String::from).collect();
        lines.sort();
        tables.push(lines);
        for (n, client) in BOTH.into_iter().enumerate() {
            tell(
                client,
                &format!("remove in 10.0.0.10 225.4.0.{} out1", n + 1),
            );
        }
        steps.push(pass(&star, 3, &packets));
        for (n, client) in BOTH.into_iter().enumerate() {
            tell(
                client,
                &format!("remove in 10.0.0.10 225.4.0.{} out2", n + 1),
            );
            tell(client, "flush");
        }
        pass(&star, 3, &packets);
        steps.push(pass(&star, 3, &packets));
        for n in 1..=2 {
            tell(Whose::Ours, &format!("remove in 10.0.0.10 225.4.0.{n}"));
        }
        let batch = "join in 225.4.9.1\n# a comment\n\nleave in 225.4.9.1\n";
        let output = ask(&star.rtr, Whose::Ours, &daemon.socket, &["-b"], batch);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        steps
    });
    assert_eq!(ours[0].len(), 3 + 2 * 2 + 2 * 3, "{ours:?}");
    for (n, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        assert_eq!(ours, theirs, "step {n}");
    }
    assert_eq!(tables[0], tables[1]);
}

fn flags_end_alike(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let write = |what: &str, conf: &str| {
        let path = lab.file(what);
        std::fs::write(&path, conf).expect("writing");
        path.display().to_string()
    };
    let files = [
        (
            "GOOD",
            write("good", "mroute from in group 225.1.2.3 to out1\n"),
        ),
        (
            "BAD",
            write("bad", "mroute from in group 225.1.2.3 to out1\nfoo\n"),
        ),
        (
            "ODD",
            write("odd", "mroute from nix group 225.1.2.3 to out1\n"),
        ),
        (
            "JOINS",
            write(
                "joins",
                "mgroup from in group 225.1.2.3\nphyint in enable\n",
            ),
        ),
    ];
    let flags = [
        "-h",
        "-v",
        "-Z",
        "-f",
        "-m 3 -n",
        "-m 181 -n",
        "-p nobody-of-that-name -n",
        "-n -F GOOD",
        "-n -F BAD",
        "-n -F ODD",
        "-n -F JOINS",
        "-n -F /nonexistent",
        "-F BAD -l debug",
    ];
    for flag in flags {
        let mut words: Vec<&str> = flag.split(' ').collect();
        for word in &mut words {
            if let Some((_, path)) = files.iter().find(|(name, _)| name == word) {
                *word = path;
            }
        }
        let [ours, theirs] = BOTH.map(|whose| smcrouted(&star.rtr, whose, &words).status.code());
        match FLAG_DIFFERENCES.iter().find(|d| d.0 == flag) {
            Some((_, t, o, why)) => {
                assert_eq!((theirs, ours), (Some(*t), Some(*o)), "{flag}: {why}");
            }
            None => assert_eq!(ours, theirs, "{flag}"),
        }
    }
}

fn the_same_groups_are_joined(lab: &Lab) {
    let conf = "mgroup from in group 225.1.2.0/27\n\
                mgroup from in source 10.0.0.0/30 group 232.1.2.3\n\
                mgroup from in source 10.0.0.10 group 232.1.2.4/31\n\
                mgroup from out1 group ff0e::40/125\n\
                mroute from in group 225.9.9.9 to out1\n";
    let [ours, theirs] = two(lab, 1).map(|(whose, star)| {
        let daemon = Daemon::start(lab, &star.rtr, whose, conf, &[]);
        let all = || {
            let mut all = kernel(&star.rtr, "in");
            all.extend(
                kernel(&star.rtr, "out1")
                    .into_iter()
                    .filter(|g| g.starts_with("ff0e")),
            );
            all
        };
        let joined = wait_until(PATIENCE, || all().len() >= 46);
        assert!(joined, "{whose:?}: {:?}", all());
        // Debian's has groups for its own signalling that are no matter of the file.
        let mut found = all();
        found.retain(|g| !g.starts_with("224.0.0.") && !g.starts_with("ff02"));
        drop(daemon);
        found
    });
    assert_eq!(ours, theirs);
}

fn scripts_are_called_alike(lab: &Lab) {
    let conf = format!("{EVERYBODY}mroute from in source 10.0.0.10 group 225.1.2.4 to out1\n");
    let [ours, theirs] = two(lab, 3).map(|(whose, star)| {
        use std::os::unix::fs::PermissionsExt;
        let (script, log) = (lab.file("script"), lab.file("calls"));
        let body = format!(
            "#!/bin/sh\necho \"$# $1 ${{source:-none}} ${{group:-none}}\" >> {}\n",
            log.display()
        );
        std::fs::write(&script, body).expect("writing");
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).expect("chmod");
        let mut daemon = Daemon::start(
            lab,
            &star.rtr,
            whose,
            &conf,
            &["-e", script.to_str().expect("UTF-8")],
        );
        let calls = || std::fs::read_to_string(&log).unwrap_or_default();
        let count = |n: usize| eventually("calls", n, || calls().lines().count());
        let packet = Udp::new("10.0.0.10:9", "225.1.2.4:5000", "packet");
        pass(&star, 3, &[packet.clone(), packet]);
        count(1);
        daemon.program.signal(libc::SIGHUP);
        count(2);
        calls()
    });
    assert_eq!(ours, theirs);
    assert_eq!(
        ours,
        "1 install 10.0.0.10 225.255.0.1\n1 reload none none\n"
    );
}

fn a_reload_replaces_what_commands_added(lab: &Lab) {
    for how in ["signal", "command"] {
        let [ours, theirs] = two(lab, 3).map(|(whose, star)| {
            let mut daemon = Daemon::start(lab, &star.rtr, whose, EVERYBODY, &[]);
            daemon.theirs(&["add", "in", "10.0.0.10", "225.1.2.5", "out1"]);
            let conf = format!(
                "{EVERYBODY}mroute from in source 10.0.0.10 group 225.1.2.4 to out1\nbogus line\n"
            );
            std::fs::write(&daemon.conf, conf).expect("writing");
            match how {
                "signal" => daemon.program.signal(libc::SIGHUP),
                _ => drop(daemon.theirs(&["reload"])),
            }
            eventually("the new route", true, || {
                text(&daemon.theirs(&["-t", "show"])).contains("225.1.2.4")
            });
            text(&daemon.theirs(&["-p", "show"]))
        });
        assert_eq!(ours, theirs, "{how}");
        assert!(!ours.contains("225.1.2.5"), "{ours}");
    }
}

fn idle_flows_are_flushed(lab: &Lab) {
    for (whose, star) in two(lab, 3) {
        let daemon = Daemon::start(lab, &star.rtr, whose, EVERYBODY, &["-c", "1"]);
        pass(&star, 3, &[]);
        let flows = || {
            let shown = text(&daemon.theirs(&["-t", "show"]));
            shown.matches("(10.0.0.10, 225.255.0.1)").count()
        };
        eventually("no flow", 0, flows);
        pass(&star, 3, &[]);
        assert!(daemon.theirs(&["flush"]).status.success());
    }
}

fn lies_on_the_socket_change_nothing(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let daemon = Daemon::start(lab, &star.rtr, Whose::Ours, TABLES, &[]);
    let command = |letter: u8, length: Option<u64>, count: u16, strings: &[u8]| {
        let mut bytes = Vec::new();
        bytes.extend(length.unwrap_or(16 + strings.len() as u64).to_ne_bytes());
        bytes.extend(u16::from(letter).to_ne_bytes());
        bytes.extend(count.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(strings);
        bytes
    };
    let send = |bytes: &[u8]| {
        let mut stream = UnixStream::connect(&daemon.socket).expect("connecting");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        // The daemon may have hung up already.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer)
            .trim_end_matches('\0')
            .to_string()
    };
    let join = b"in\x00225.66.6.6\0\0";
    let before = text(&daemon.theirs(&["-t", "show", "groups"]));
    let whole = command(b'j', None, 2, join);
    for (bytes, cause) in [
        (
            command(b'z', None, 2, join),
            "Unknown or malformed IPC message 'z' from client.",
        ),
        (command(b'j', None, 0, join), "says 0 strings and holds 2"),
        (command(b'j', None, 1, join), "says 1 strings"),
        (command(b'j', None, 9, join), "says 9 strings"),
        (command(b'j', None, 65535, join), "says 65535 strings"),
        (command(b'j', Some(0), 2, join), "16 to 1024 bytes, not 0"),
        (command(b'j', Some(15), 2, join), "not 15"),
        (
            command(b'j', Some(18), 2, join),
            "says 2 strings and holds 0",
        ),
        (command(b'j', Some(1024), 2, join), "ends after 31 bytes"),
        (command(b'j', Some(1025), 2, join), "not 1025"),
        (
            command(b'j', Some(u64::MAX), 2, join),
            "not 18446744073709551615",
        ),
        (command(b'j', None, 2, b"in\x00225.66.6.6"), "strings"),
        (
            command(b'j', None, 2, b"in\x00225.66.6.\xff\0\0"),
            "not UTF-8",
        ),
        (
            command(b'j', None, 1, b"in\0\0"),
            "malformed IPC message 'j'",
        ),
        (command(b'a', None, 0, b"\0"), "malformed IPC message 'a'"),
        (
            command(b'a', None, 4, b"in\x0010.0.0.1\0ff0e::1\0out1\0\0"),
            "different IP versions",
        ),
        (
            command(b'a', None, 3, b"in\x00225.1.1.1/33\0out1\0\0"),
            "Invalid multicast group",
        ),
        (
            command(b'j', None, 2, &b"x".repeat(4000)),
            "16 to 1024 bytes",
        ),
        (whole[..12].to_vec(), "ends after 12 bytes"),
        (vec![0xff; 3], "ends after 3 bytes"),
    ] {
        let answer = send(&bytes);
        assert!(answer.contains(cause), "{answer:?}, expected {cause:?}");
        let after = text(&daemon.theirs(&["-t", "show", "groups"]));
        assert_eq!(after, before, "after {cause:?}");
    }
    assert_eq!(send(&whole), "");
    assert!(text(&daemon.theirs(&["-t", "show", "groups"])).contains("225.66.6.6"));
    // Two commands in one piece.
    let leave = command(b'l', None, 2, join);
    assert_eq!(
        send(&[whole, leave].concat()),
        "Already joined (*,225.66.6.6) on in"
    );
    assert_eq!(text(&daemon.theirs(&["-t", "show", "groups"])), before);
    assert_eq!(daemon.theirs(&["-t", "show"]).status.code(), Some(0));
}

fn a_bad_line_is_told_and_the_rest_runs(lab: &Lab) {
    let star = Star::v4(lab, 3);
    let conf = format!("mroute from in group 1.2.3.4 to out1\n{EVERYBODY}");
    let mut daemon = Daemon::start(lab, &star.rtr, Whose::Ours, &conf, &[]);
    let file = daemon.conf.display().to_string();
    let told = format!("{file} line 1: mroute: group 1.2.3.4 is not multicast");
    assert!(
        daemon.program.stderr().contains(&told),
        "{}",
        daemon.program.stderr()
    );
    assert_eq!(pass(&star, 3, &[]).len(), 3);
    std::fs::write(&daemon.conf, format!("{EVERYBODY}phyint\n")).expect("writing");
    daemon.program.signal(libc::SIGHUP);
    let told = format!("{file} line 2: phyint: no interface");
    eventually("told again", true, || {
        daemon.program.stderr().contains(&told)
    });
    assert_eq!(pass(&star, 3, &[]).len(), 3);
}

fn lines_wait_for_their_interfaces(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let daemon = Daemon::start(lab, &star.rtr, Whose::Ours, EVERYBODY, &[]);
    let pending = text(&daemon.ask(Whose::Ours, &["-t", "show", "pending"]));
    assert!(pending.contains("out2 out3"), "{pending}");
    star.plug(2);
    star.plug(3);
    eventually("nothing waits", "\n".to_string(), || {
        text(&daemon.ask(Whose::Ours, &["-t", "show", "pending"]))
    });
    eventually("all three", 3, || pass(&star, 3, &[]).len());
}

fn rights_are_dropped_and_packets_go_on(lab: &Lab) {
    let star = Star::v4(lab, 3);
    let daemon = Daemon::start(
        lab,
        &star.rtr,
        Whose::Ours,
        EVERYBODY,
        &["-p", "nobody:nogroup"],
    );
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.program.pid()));
    let status = status.expect("status");
    let field = |name: &str| {
        let line = status
            .lines()
            .find(|l| l.starts_with(name))
            .expect("a line");
        line.split_whitespace()
            .skip(1)
            .map(String::from)
            .collect::<Vec<_>>()
    };
    assert_eq!(field("Uid:"), ["65534"; 4]);
    assert_eq!(field("Gid:"), ["65534"; 4]);
    // CAP_NET_ADMIN is 12, CAP_NET_RAW 13.
    assert_eq!(field("CapEff:"), ["0000000000003000"]);
    assert_eq!(field("CapPrm:"), ["0000000000003000"]);
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.program.pid())).expect("tasks");
    for task in tasks.flatten() {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        assert!(status.contains("CapEff:\t0000000000003000"), "{status}");
    }
    assert_eq!(pass(&star, 3, &[]).len(), 3);
    // An interface that comes later is captured without root too.
    star.rtr.ip("link del out3");
    star.plug(3);
    eventually("all three", 3, || pass(&star, 3, &[]).len());
    assert_eq!(
        daemon
            .theirs(&["add", "in", "225.1.1.1", "out1"])
            .status
            .code(),
        Some(0)
    );
    assert_eq!(daemon.theirs(&["reload"]).status.code(), Some(0));
}

/// Daemons of these names end with the test, whatever came of it.
struct Background<'a>(&'a [String]);

impl Drop for Background<'_> {
    fn drop(&mut self) {
        for name in self.0 {
            let file = format!("/run/{name}.pid");
            let pid = std::fs::read_to_string(&file).unwrap_or_default();
            if !pid.is_empty() {
                let _ = std::process::Command::new("kill")
                    .args(["-9", pid.trim()])
                    .status();
            }
            let _ = std::fs::remove_file(&file);
            let _ = std::fs::remove_file(format!("/run/{name}.sock"));
        }
    }
}

fn instances_by_name_in_the_background(lab: &Lab) {
    let star = Star::v4(lab, 3);
    let conf = lab.file("conf");
    std::fs::write(&conf, EVERYBODY).expect("writing");
    let conf = conf.to_str().expect("UTF-8");
    let names = ["a", "b"].map(|n| format!("mcl-{}-{n}", std::process::id()));
    let _ends = Background(&names);
    for name in &names {
        let output = smcrouted(&star.rtr, Whose::Ours, &["-i", name, "-f", conf]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
    for name in &names {
        let pid = std::path::PathBuf::from(format!("/run/{name}.pid"));
        assert!(wait_until(PATIENCE, || pid.exists()), "{pid:?}");
        let client = |whose: Whose, words: &[&str]| match whose {
            Whose::Ours => star
                .rtr
                .output(BINARY, &[&["smcroutectl", "-i", name], words].concat()),
            Whose::Theirs => star
                .rtr
                .output("smcroutectl", &[&["-i", name.as_str()], words].concat()),
        };
        let live = std::fs::read_to_string(&pid).expect("a pid");
        let comm = format!("/proc/{}/comm", live.trim());
        assert_eq!(
            std::fs::read_to_string(&comm).expect("alive").trim(),
            "mcastor"
        );
        assert!(text(&client(Whose::Ours, &["-t", "show"])).contains("225.255.0.1"));
        assert_eq!(client(Whose::Ours, &["kill"]).status.code(), Some(0));
        eventually("the end", false, || {
            std::path::Path::new(&comm).exists() || pid.exists()
        });
        assert!(!std::path::Path::new(&format!("/run/{name}.sock")).exists());
    }
}

fn a_delay_a_table_and_a_link_of_that_name(lab: &Lab) {
    let star = Star::v4(lab, 3);
    let links = lab.file("links");
    std::fs::create_dir(&links).expect("a folder");
    let called = |name: &str| {
        let path = links.join(name);
        let _ = std::os::unix::fs::symlink(BINARY, &path);
        path.display().to_string()
    };
    let (conf, socket) = (lab.file("conf"), lab.file("sock"));
    let pid = lab.file("pid");
    std::fs::write(&conf, EVERYBODY).expect("writing");
    let path = |p: &std::path::Path| p.display().to_string();
    let args = [
        "-n",
        "-N",
        "-d",
        "1",
        "-t",
        "123",
        "-m",
        "30",
        "-l",
        "info",
        "-f",
        &path(&conf),
        "-u",
        &path(&socket),
        "-P",
        &path(&pid),
    ];
    let begun = std::time::Instant::now();
    let mut daemon = star.rtr.spawn(lab, &called("smcrouted"), &args);
    assert!(wait_until(PATIENCE, || socket.exists()));
    assert!(begun.elapsed() >= Duration::from_secs(1));
    let show = ["-u", &path(&socket), "-t", "show"];
    let shown = || text(&star.rtr.output(&called("smcroutectl"), &show));
    eventually("routes", true, || shown().contains("225.255.0.1"));
    assert_eq!(
        daemon.stderr().matches("-t 123").count(),
        1,
        "{}",
        daemon.stderr()
    );
    // No listener unless one is asked for.
    let tcp = star
        .rtr
        .enter(|| std::fs::read_to_string("/proc/thread-self/net/tcp"));
    assert_eq!(tcp.expect("sockets").lines().count(), 1);
    assert_eq!(
        daemon.stop(libc::SIGINT, Duration::from_secs(5)).code(),
        Some(0)
    );
    assert!(!pid.exists() && !socket.exists());
}

fn the_router_and_check_take_the_file_too(lab: &Lab) {
    let star = Star::v4(lab, 3);
    let (good, bad) = (lab.file("good.conf"), lab.file("bad.conf"));
    std::fs::write(&good, EVERYBODY).expect("writing");
    std::fs::write(&bad, format!("{EVERYBODY}mroute from in\n")).expect("writing");
    let run = |args: &[&str]| star.rtr.output(BINARY, args);
    let path = |p: &std::path::Path| p.display().to_string();
    let checked = run(&["check", &path(&good)]);
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    let checked = run(&["check", &path(&bad)]);
    assert_eq!(checked.status.code(), Some(2));
    let told = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert_eq!(told, format!("{} line 2: mroute: no group\n", path(&bad)));
    let socket = path(&lab.file("sock"));
    let mut command = star.rtr.command(BINARY);
    command.args(["run", "--config", &path(&bad)]);
    command
        .env("MCASTOR__CONTROL__SOCKET", &socket)
        .env("MCASTOR__HTTP__LISTEN", "off");
    let program = crate::lab::Program::start(lab, command);
    eventually("told", true, || {
        program.stderr().contains("line 2: mroute: no group")
    });
    eventually("routed", true, || {
        run(&["show", "routes", "--socket", &socket])
            .status
            .success()
    });
    let waits = run(&["add", "--socket", &socket, "nix", "225.1.1.1", "out1"]);
    assert_eq!(waits.status.code(), Some(0), "{waits:?}");
    // TOML made of the file routes the same.
    let converted = run(&["convert", &path(&good)]);
    assert_eq!(converted.status.code(), Some(0), "{converted:?}");
    let toml = lab.file("made.toml");
    std::fs::write(&toml, &converted.stdout).expect("writing");
    assert_eq!(run(&["check", &path(&toml)]).status.code(), Some(0));
}

fn routers_are_announced_alike(lab: &Lab) {
    let [ours, theirs] = two(lab, 1).map(|(whose, star)| {
        let capture = Capture::new(&star.rcv, "eth1");
        let conf = "phyint out1 enable mrdisc\n";
        // Without -N Debian's has made its interfaces before it reads of mrdisc.
        let _daemon = Daemon::start(lab, &star.rtr, whose, conf, &["-N", "-m", "7"]);
        let mut told = Vec::new();
        let mut v6 = false;
        let both = wait_until(PATIENCE, || {
            for frame in capture.frames() {
                let Some(seen) = crate::lab::Seen::read(&frame.bytes) else {
                    continue;
                };
                let group = seen.dst.to_string();
                if group == "224.0.0.106" && seen.body()[0] == 0x30 && told.is_empty() {
                    told = vec![seen.ttl, seen.protocol, seen.body()[0], seen.body()[1]];
                }
                v6 |= group == "ff02::6a";
            }
            !told.is_empty() && (v6 || whose == Whose::Theirs)
        });
        assert!(both, "{whose:?}: {told:?}, IPv6 {v6}");
        told
    });
    assert_eq!(ours[..3], theirs[..3]);
    // Debian's tells 20 whatever -m says.
    assert_eq!((&ours[..], theirs[3]), (&[1, 2, 0x30, 7][..], 20));
}

fn both_speak_to_syslog(lab: &Lab) {
    let [ours, theirs] = two(lab, 1).map(|(whose, star)| {
        let (log, conf) = (lab.file("log"), lab.file("conf"));
        std::fs::write(&conf, "foo bar\n").expect("writing");
        let heard = std::os::unix::net::UnixDatagram::bind(&log).expect("a socket");
        heard.set_nonblocking(true).expect("nonblocking");
        // A /dev of its own, with our socket in it.
        let script = "mount -t tmpfs t /mnt && \
                      for d in null zero random urandom; do touch /mnt/$d; mount --bind /dev/$d /mnt/$d; done; \
                      ln -s \"$0\" /mnt/log; mount --rbind /mnt /dev; exec \"$@\"";
        let (program, first) = match whose {
            Whose::Ours => (BINARY, "smcrouted"),
            Whose::Theirs => ("/usr/sbin/smcrouted", "-n"),
        };
        let path = |p: &std::path::Path| p.display().to_string();
        let args = [
            "-m", "sh", "-c", script, &path(&log), program, first, "-n", "-s", "-i", "a-name",
            "-f", &path(&conf), "-u", &path(&lab.file("sock")), "-P", &path(&lab.file("pid")),
        ];
        let program = star.rtr.spawn(lab, "unshare", &args);
        let mut lines = Vec::new();
        let there = wait_until(PATIENCE, || {
            let mut line = [0; 4096];
            while let Ok(n) = heard.recv(&mut line) {
                lines.push(String::from_utf8_lossy(&line[..n]).into_owned());
            }
            lines.iter().any(|l| l.contains("foo"))
        });
        assert!(there, "{whose:?}: {lines:?} {}", program.stderr());
        let line = lines.iter().find(|l| l.contains("foo")).expect("there");
        assert!(line.contains(&format!("a-name[{}]", program.pid())), "{line}");
        assert!(line.contains("line 1"), "{line}");
        // <facility * 8 + level>
        let number = line.trim_start_matches('<').split('>').next().and_then(|n| n.parse::<u8>().ok());
        number.expect(line) / 8
    });
    assert_eq!(ours, theirs, "the facility");
}

fn a_supervisor_hears_that_it_lives(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let (conf, ready) = (lab.file("conf"), lab.file("ready"));
    std::fs::write(&conf, "").expect("writing");
    let heard = std::os::unix::net::UnixDatagram::bind(&ready).expect("a socket");
    heard.set_nonblocking(true).expect("nonblocking");
    let mut command = star.rtr.command(BINARY);
    command
        .env("NOTIFY_SOCKET", &ready)
        .env("WATCHDOG_USEC", "300000");
    command
        .args([
            "smcrouted",
            "-n",
            "-p",
            "root",
            "-p",
            "nobody",
            "-p",
            "root",
            "-f",
        ])
        .arg(&conf);
    command
        .arg("-u")
        .arg(lab.file("sock"))
        .arg("-P")
        .arg(lab.file("pid"));
    let mut program = crate::lab::Program::start(lab, command);
    let mut told = Vec::new();
    let mut hear = |what: &str, times: usize| {
        let there = wait_until(PATIENCE, || {
            let mut text = [0; 256];
            while let Ok(n) = heard.recv(&mut text) {
                told.push(String::from_utf8_lossy(&text[..n]).trim().to_string());
            }
            told.iter().filter(|t| *t == what).count() >= times
        });
        assert!(there, "{what}: {told:?}");
    };
    hear("READY=1", 1);
    hear("WATCHDOG=1", 4);
    program.signal(libc::SIGTERM);
    hear("STOPPING=1", 1);
    assert_eq!(program.wait().code(), Some(0));
}

/// What smcroute cannot.
fn first_packets_many_interfaces_and_moving_sources(lab: &Lab) {
    let star = Star::dual(lab, 40);
    let to: String = (2..=40).map(|n| format!(" out{n}")).collect();
    let conf = format!(
        "mroute from in group 225.1.2.3 to out1{to}\n\
         mroute from out1 group 225.1.2.3 to out40\n\
         mroute from in group 225.1.2.4 to out1 ttl set 16\n\
         mroute from in group 225.1.2.5 to out1 ttl keep except 10.0.0.11,10.0.0.12\n"
    );
    let daemon = Daemon::start(lab, &star.rtr, Whose::Ours, &conf, &[]);
    let captures: Vec<Capture> = (1..=40)
        .map(|n| Capture::new(&star.rcv, &format!("eth{n}")))
        .collect();
    let inject = Injector::new(&star.src, "eth0");
    inject.send(&Udp::new("10.0.0.10:9", "225.1.2.3:5000", "packet first").frame());
    for capture in &captures {
        let seen = capture.expect("225.1.2.3", 1);
        assert_eq!(seen[0].payload(), b"packet first");
    }
    // The same source, suddenly behind another interface.
    let behind = Injector::new(&star.rcv, "eth1");
    behind.send(&Udp::new("10.0.0.10:9", "225.1.2.3:5000", "packet moved").frame());
    let seen = captures[39].expect("225.1.2.3", 2);
    assert_eq!(seen[1].payload(), b"packet moved");
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
    assert_eq!(daemon.theirs(&["-t", "s", "i"]).status.code(), Some(0));
    drop(daemon);
    // Not with --strict.
    let path = lab.file("strict");
    std::fs::write(&path, conf).expect("writing");
    let path = path.display().to_string();
    let strict = smcrouted(&star.rtr, Whose::Ours, &["--strict", "-F", &path]);
    assert_eq!(strict.status.code(), Some(78));
    assert_eq!(String::from_utf8_lossy(&strict.stderr).lines().count(), 2);
    assert_eq!(
        smcrouted(&star.rtr, Whose::Ours, &["-F", &path])
            .status
            .code(),
        Some(0)
    );
}

fn a_route_to_nowhere_stops_alike(lab: &Lab) {
    let conf = format!("{EVERYBODY}mroute from in group 225.4.0.5 to out1\n");
    let packet = |n: u8, group: u8| {
        let (from, to) = (format!("10.0.0.1{n}:9"), format!("225.4.0.{group}:5000"));
        Udp::new(&from, &to, format!("packet {n} {group}"))
    };
    let packets = [packet(0, 5), packet(1, 5), packet(0, 6)];
    let [ours, theirs] = two(lab, 3).map(|(whose, star)| {
        let daemon = Daemon::start(lab, &star.rtr, whose, &conf, &[]);
        for group in ["225.4.0.5", "225.4.0.6"] {
            let added = daemon.theirs(&["add", "in", "10.0.0.10", group]);
            assert_eq!(added.status.code(), Some(0), "{whose:?}: {added:?}");
        }
        pass(&star, 3, &packets);
        let arrived = pass(&star, 3, &packets);
        let shown = text(&daemon.theirs(&["-p", "show", "routes"]));
        let mut lines: Vec<String> = shown.lines().map(String::from).collect();
        lines.sort();
        // One OIF may be given to it later.
        daemon.theirs(&["add", "in", "10.0.0.10", "225.4.0.6", "out2"]);
        (arrived, lines, pass(&star, 3, &packets))
    });
    // The last of each pass, and the packet of the other source.
    assert_eq!(ours.0.len(), 3 + 1, "{:?}", ours.0);
    assert_eq!(ours.2.len(), 3 + 2, "{:?}", ours.2);
    assert_eq!(ours, theirs);
}

fn a_disabled_interface_takes_no_part(lab: &Lab) {
    let conf = format!("phyint out3 disable\n{EVERYBODY}");
    let [ours, theirs] = two(lab, 3).map(|(whose, star)| {
        let _daemon = Daemon::start(lab, &star.rtr, whose, &conf, &[]);
        let third = Capture::new(&star.rcv, "eth3");
        let arrived = [pass(&star, 2, &[]), pass(&star, 2, &[])];
        assert!(third.to("225.255.0.1").is_empty(), "{whose:?}");
        arrived
    });
    assert_eq!(ours, theirs);
    assert_eq!(ours[0].len(), 2);
}

fn levels_say_more_and_more(lab: &Lab) {
    let conf = format!("mroute from in group 1.2.3.4 to out1\n{EVERYBODY}");
    let levels = ["none", "err", "warning", "notice", "info", "debug"];
    for (whose, star) in two(lab, 3) {
        let said = levels.map(|level| {
            let mut daemon = Daemon::start(lab, &star.rtr, whose, &conf, &["-l", level]);
            daemon.program.stop(libc::SIGTERM, PATIENCE);
            daemon.program.stderr()
        });
        // Theirs says all it has with `none`.
        let said = said.map(|text| text.lines().map(String::from).collect::<Vec<_>>());
        let lines = said.each_ref().map(Vec::len);
        assert!(lines[1..].is_sorted(), "{whose:?}: {lines:?}");
        assert_eq!(lines[0] == 0, whose == Whose::Ours, "{:?}", said[0]);
        assert!(lines[5] > lines[2], "{whose:?}: {lines:?}");
        // A line that is skipped is worth a warning to both.
        let warned = said[2].join("\n");
        assert!(warned.contains("1.2.3.4"), "{whose:?}: {warned}");
    }
    let star = Star::one_of(lab, 1, "levels");
    let codes = BOTH.map(|whose| smcrouted(&star.rtr, whose, &["-n", "-l", "loud", "-h"]).status);
    assert!(codes.iter().all(|c| c.code().is_some()), "{codes:?}");
}

fn http_listens_only_where_asked(lab: &Lab) {
    let star = Star::one_of(lab, 3, "http");
    let listeners = || text(&star.rtr.output("ss", &["-Hltn"]));
    let daemon = Daemon::start(lab, &star.rtr, Whose::Ours, EVERYBODY, &[]);
    assert_eq!(pass(&star, 3, &[]).len(), 3);
    assert_eq!(listeners(), "");
    drop(daemon);
    let address = "127.0.0.1:19464";
    let _daemon = Daemon::start(lab, &star.rtr, Whose::Ours, EVERYBODY, &["--http", address]);
    assert_eq!(pass(&star, 3, &[]).len(), 3);
    let all = listeners();
    assert_eq!(all.lines().count(), 1, "{all}");
    assert!(all.contains(address), "{all}");
    let http = address.parse().expect("an address");
    eventually("packets in metrics", true, || {
        let answer = crate::lab::http::get(&star.rtr, http, "/metrics");
        let body = answer.map(|a| a.body).unwrap_or_default();
        body.contains("mcastor_route_packets_total")
    });
}
