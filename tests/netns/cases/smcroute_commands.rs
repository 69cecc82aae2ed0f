//! mcastor as smcroutectl, and its socket, compared with Debian's: the same commands and tables.
//! [`DIFFERENCES`] lists the intended differences.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use super::cases;
use crate::lab::smcroute::{BOTH, Daemon, Implementation, star_per_implementation, text};
use crate::lab::{BINARY, Injector, Lab, Star, TIMEOUT, Udp, eventually, wait_until};

cases!("smcroute_commands":
    #[Program("smcrouted", "smcroute")] tables_match_for_every_client_and_daemon,
    #[Program("smcrouted", "smcroute")] commands_return_matching_exit_codes,
    #[Program("smcrouted", "smcroute")] flags_are_accepted_after_the_command,
    #[Program("smcrouted", "smcroute")] output_matches_for_empty_and_disabled_configurations,
    #[Program("smcrouted", "smcroute")] dropped_flows_are_listed_like_smcroute,
    pending_rules_are_listed_and_become_active,
    malformed_ipc_messages_change_nothing,
);

/// Commands with different exit codes: Debian's code, mcastor's code, and the reason.
const DIFFERENCES: &[(&str, i32, i32, &str)] = &[
    ("join in 1.2.3.4", 0, 1, "not a multicast group"),
    ("foo", 0, 1, "Debian's shows routes for any unknown word"),
];

const TABLES: &str = "mgroup from in group 225.1.2.3\n\
     mgroup from in source 10.0.0.10 group 232.1.2.3\n\
     mgroup from out1 group ff0e::42\n\
     mroute from in group 225.1.2.3 to out2 out1\n\
     mroute from in source 10.0.0.10 group 225.1.2.4 to out1\n\
     mroute from in group 225.1.3.0/24 to out+\n\
     mroute from in group ff0e::42 to out1 out2\n";

fn tables_match_for_every_client_and_daemon(lab: &Lab) {
    let daemons = star_per_implementation(lab, 2).map(|(implementation, star)| {
        let daemon = Daemon::start(lab, &star.rtr, implementation, TABLES, &[]);
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
        let mut tables = Vec::new();
        for (_, daemon) in &daemons {
            for client in BOTH {
                let output = daemon.run_client(client, &words);
                assert_eq!(output.status.code(), Some(0), "{words:?}");
                let mut lines: Vec<String> = text(&output).lines().map(String::from).collect();
                if words.contains(&"-d") && words.contains(&"groups") {
                    // The kernel's list has its own order.
                    lines.sort();
                }
                tables.push((client, daemon.implementation, lines));
            }
        }
        let theirs = tables.last().expect("four").2.clone();
        assert!(theirs.len() > 3, "{theirs:?}");
        for (client, daemon, lines) in tables {
            assert_eq!(
                lines, theirs,
                "{words:?}: client {client:?}, daemon {daemon:?}"
            );
        }
    }
    // Headings on terminals; Debian's client queries the terminal for its width first.
    for (_, daemon) in &daemons {
        let [ours, theirs] = BOTH.map(|client| text(&daemon.run_client(client, &["show"])));
        let (_, theirs) = theirs.split_once("\x1b[4m").expect("a title");
        assert_eq!(ours, format!("\x1b[4m{theirs}"));
    }
    let (_, ours) = &daemons[0];
    let shown = |what: &str| -> serde_json::Value {
        let json = text(&ours.run_client(Implementation::Mcastor, &["-j", "show", what]));
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
    // smcroute 2.5.6 does not know `-j`.
    let (_, theirs) = &daemons[1];
    assert_eq!(
        theirs
            .run_client(Implementation::Mcastor, &["-j", "show"])
            .status
            .code(),
        Some(1)
    );
}

fn commands_return_matching_exit_codes(lab: &Lab) {
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
        "help -x",
        "add in -5 out1",
        "add in 225.2.2.9 -x out1",
        "show -- -d",
        "show -d -- -x",
        "reload now",
        "flush now",
        "join in 1.2.3.4",
        "add in 224.0.0.5 out1",
        "add in ff01::114 out1",
        "add lo 225.2.2.10 out1",
        "add in 225.2.2.11 lo out1",
        "join in ff2e::/64",
        "add in 10.0.0.1 225.9.9.1",
        "foo",
        "kill it now",
    ];
    // Every client uses its own daemon, so that each command finds the state of the previous one.
    let exit_codes = |daemon: Implementation, client: Implementation| {
        let star = Star::tagged(lab, 2, &format!("{daemon:?}{client:?}"));
        let daemon = Daemon::start(lab, &star.rtr, daemon, "phyint in enable\n", &[]);
        commands.map(|command| {
            let words: Vec<&str> = command.split(' ').collect();
            let output = daemon.run_client(client, &words);
            let code = output.status.code().expect("an exit code");
            if client == Implementation::Mcastor {
                assert_eq!(output.stderr.is_empty(), code == 0, "{command}: {output:?}");
            }
            code
        })
    };
    let theirs = exit_codes(Implementation::Smcroute, Implementation::Smcroute);
    assert!(theirs.iter().sum::<i32>() > 10, "{theirs:?}");
    let mut faults = Vec::new();
    for (daemon, client) in [
        (Implementation::Smcroute, Implementation::Mcastor),
        (Implementation::Mcastor, Implementation::Smcroute),
        (Implementation::Mcastor, Implementation::Mcastor),
    ] {
        let codes = exit_codes(daemon, client);
        for (n, command) in commands.iter().enumerate() {
            let listed = DIFFERENCES.iter().find(|d| d.0 == *command);
            // The client rejects unknown words; the daemon decides on everything else.
            let decides = if *command == "foo" { client } else { daemon };
            let want = match listed {
                Some((_, _, ours, _)) if decides == Implementation::Mcastor => *ours,
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

fn flags_are_accepted_after_the_command(lab: &Lab) {
    let commands = [
        "show -p -u SOCK",
        "show -d -p -u SOCK",
        "show -t groups -u SOCK",
        "show groups -d -p -uSOCK",
        "show -pd interfaces -u SOCK",
        "show -u /nonexistent -u SOCK -p",
        "-p show routes -d -u SOCK",
        "add in -u SOCK 225.2.2.1 out1",
        "show -p -u SOCK -i other",
        "show -u /nonexistent",
        "show -i no-daemon-of-that-name",
        "kill -v",
        "kill -h",
        "show -b -p -u SOCK",
        "show -u",
        "show -u SOCK -- -p",
        "kill -u SOCK",
    ];
    let mut daemons = star_per_implementation(lab, 2).map(|(implementation, star)| {
        let daemon = Daemon::start(lab, &star.rtr, implementation, TABLES, &[]);
        (star, daemon)
    });
    for command in commands {
        let [ours, theirs] = daemons.each_ref().map(|(star, daemon)| {
            let socket = daemon.socket.display().to_string();
            let line = command.replace("SOCK", &socket);
            let mut program = match daemon.implementation {
                Implementation::Mcastor => star.rtr.command(BINARY),
                Implementation::Smcroute => star.rtr.command("/usr/sbin/smcroutectl"),
            };
            if daemon.implementation == Implementation::Mcastor {
                program.arg("smcroutectl");
            }
            program.args(line.split(' ')).stdin(Stdio::null());
            let output = program.output().expect("running the client");
            (output.status.code(), text(&output))
        });
        assert_eq!(ours.0, theirs.0, "{command}: {ours:?} {theirs:?}");
        if command.contains(" -p") && !command.contains("--") {
            assert_eq!(ours.1, theirs.1, "{command}");
        }
        if command.starts_with("show -d") {
            assert!(ours.1.contains("PACKETS      BYTES"), "{ours:?}");
        }
    }
    // The last command stopped these daemons.
    for (_, daemon) in &mut daemons {
        eventually("the daemon exits", true, || {
            daemon.program.exit_status().is_some()
        });
    }
}

fn output_matches_for_empty_and_disabled_configurations(lab: &Lab) {
    let files = [
        "",
        "phyint out1 disable\n\
         mroute from in group 225.1.2.3 to out1 out2\n\
         mroute from in group 225.1.2.4 to out1\n\
         mroute from out1 group 225.1.2.5 to out2\n\
         mroute from in source 10.0.0.10 group 225.1.2.6 to out+\n",
    ];
    let commands = [
        "show",
        "-p show",
        "-t show",
        "-p -d show",
        "-p show groups",
        "-p -d show groups",
        "-p show interfaces",
        "-p show ifaces",
        "-p show iface",
        "-p show rules",
        "-p show g",
        "add out1 225.8.8.9 out2",
        "remove out1 225.1.2.3",
        "remove out1 225.1.2.5",
        "join out1 225.9.9.9",
        "-p show group",
        "-p show gfoo",
        "leave out1 225.9.9.9",
        "add in 225.7.7.7 out1",
        "-p show routes",
    ];
    for conf in files {
        let mut outputs = Vec::new();
        for (implementation, star) in star_per_implementation(lab, 2) {
            let daemon = Daemon::start(lab, &star.rtr, implementation, conf, &[]);
            let run = |client: Implementation| {
                commands.map(|command| {
                    let words: Vec<&str> = command.split(' ').collect();
                    let output = daemon.run_client(client, &words);
                    let mut shown = text(&output);
                    if command == "show" && !shown.is_empty() {
                        // Debian's client queries the terminal for its width first.
                        shown = String::new();
                    }
                    (command, output.status.code(), shown)
                })
            };
            if conf.is_empty() {
                for words in ["show", "-t show", "show groups"] {
                    let words: Vec<&str> = words.split(' ').collect();
                    assert_eq!(
                        text(&daemon.run_client(Implementation::Mcastor, &words)),
                        "",
                        "{implementation:?}"
                    );
                }
            }
            outputs.push(run(Implementation::Smcroute));
        }
        for (ours, theirs) in outputs[0].iter().zip(&outputs[1]) {
            assert_eq!(ours, theirs, "with {conf:?}");
        }
    }
}

/// Returns the rows of the tables of `show -d`, sorted.
fn detailed_rows(daemon: &Daemon) -> Vec<String> {
    let shown = text(&daemon.smcroutectl(&["-t", "-d", "show"]));
    let mut rows: Vec<String> = shown.lines().map(|l| l.trim_end().to_string()).collect();
    rows.sort();
    rows
}

/// A stream arrives on an egress, another one has no route, and a third arrives with TTL 1.
fn dropped_flows_are_listed_like_smcroute(lab: &Lab) {
    let conf = "phyint in enable\nphyint out1 enable\nmroute from in group 225.1.2.0/24 to out1\n\
                mroute from in group ff2e::42 to out1\n\
                mroute from in source 10.0.0.10 group 225.1.3.1 to out1\n";
    let packet = |source: &str, to: &str, ttl: u8| Udp::new(source, to, "dropped").ttl(ttl).frame();
    let [ours, theirs] = star_per_implementation(lab, 1).map(|(implementation, star)| {
        let daemon = Daemon::start(lab, &star.rtr, implementation, conf, &[]);
        let (inject, back) = (
            Injector::new(&star.src, "eth0"),
            Injector::new(&star.rcv, "eth1"),
        );
        for _ in 0..3 {
            back.send(&packet("10.0.1.10:9", "225.1.2.1:5000", 2));
            back.send(&packet("[fd00:1::10]:9", "[ff2e::42]:5000", 2));
            inject.send(&packet("10.0.0.10:9", "225.9.9.9:5000", 9));
            inject.send(&packet("10.0.0.10:9", "225.1.2.2:5000", 1));
            inject.send(&packet("10.0.0.10:9", "225.1.3.1:5000", 1));
            // The kernel queues only a few packets of a flow without a route.
            std::thread::sleep(Duration::from_millis(50));
        }
        let is_of_test = |row: &&String| row.contains("(10.0.") || row.contains("fd00:1::10");
        let rows = || -> Vec<String> {
            let all = detailed_rows(&daemon);
            all.iter().filter(is_of_test).cloned().collect()
        };
        let counted = |rows: &[String]| rows.iter().filter(|r| r.contains("          3 ")).count();
        let complete = wait_until(TIMEOUT, || counted(&rows()) >= 5);
        let listed = rows();
        assert!(complete, "{implementation:?}: {listed:#?}");
        if implementation == Implementation::Mcastor {
            eventually("one warning for each route", 2, || {
                let printed = daemon.program.stderr();
                printed.matches("arrive on in with TTL 1").count()
            });
            assert_eq!(daemon.smcroutectl(&["flush"]).status.code(), Some(0));
            assert_eq!(rows().len(), 2, "{:#?}", rows());
        }
        listed
    });
    assert_eq!(ours, theirs);
}

/// The expected lines are those of smcroute 2.6, which Debian does not have.
fn pending_rules_are_listed_and_become_active(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let conf = "mroute from in group 225.1.2.3 to out2\nmroute from wg0 group 225.7.8.9 to out1\n\
                mgroup from wg0 source 10.0.0.5 group 232.4.5.6\n";
    let daemon = Daemon::start(lab, &star.rtr, Implementation::Mcastor, conf, &[]);
    let show = |words: &[&str]| text(&daemon.smcroutectl(words));
    assert_eq!(
        show(&["-p", "show", "pending"]).trim_end(),
        "PENDING ROUTES AND GROUPS\n\
         mroute  from in group 225.1.2.3 to out2\n\
         mroute  from wg0 group 225.7.8.9 to out1\n\
         mgroup  from wg0 source 10.0.0.5 group 232.4.5.6"
    );
    assert_eq!(show(&["-t", "show", "groups"]).trim_end(), "");
    star.add_egress(2);
    star.rtr.ip("link add wg0 type veth peer name wg1");
    eventually(
        "nothing is pending",
        "No pending routes or groups",
        || match show(&["-p", "show", "pending"]).trim_end() {
            "No pending routes or groups" => "No pending routes or groups",
            _ => "",
        },
    );
    let groups = show(&["-t", "show", "groups"]);
    assert!(groups.contains("(10.0.0.5, 232.4.5.6)"), "{groups}");
    let routes = show(&["-t", "show"]);
    assert!(
        routes.contains("wg0    out1") || routes.contains("wg0   out1"),
        "{routes}"
    );
}

fn malformed_ipc_messages_change_nothing(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let daemon = Daemon::start(lab, &star.rtr, Implementation::Mcastor, TABLES, &[]);
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
        stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
        // The daemon may have closed the connection already.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer)
            .trim_end_matches('\0')
            .to_string()
    };
    let join = b"in\x00225.66.6.6\0\0";
    let before = text(&daemon.smcroutectl(&["-t", "show", "groups"]));
    let valid = command(b'j', None, 2, join);
    for (bytes, cause) in [
        (
            command(b'z', None, 2, join),
            "Unknown or malformed IPC message 'z' from client.",
        ),
        (
            command(b'j', None, 0, join),
            "announces 0 strings and contains 2",
        ),
        (command(b'j', None, 1, join), "announces 1 strings"),
        (command(b'j', None, 9, join), "announces 9 strings"),
        (command(b'j', None, 65535, join), "announces 65535 strings"),
        (command(b'j', Some(0), 2, join), "16 to 1024 bytes, not 0"),
        (command(b'j', Some(15), 2, join), "not 15"),
        (
            command(b'j', Some(18), 2, join),
            "announces 2 strings and contains 0",
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
        (valid[..12].to_vec(), "ends after 12 bytes"),
        (vec![0xff; 3], "ends after 3 bytes"),
    ] {
        let answer = send(&bytes);
        assert!(answer.contains(cause), "{answer:?}, expected {cause:?}");
        let after = text(&daemon.smcroutectl(&["-t", "show", "groups"]));
        assert_eq!(after, before, "after {cause:?}");
    }
    assert_eq!(send(&valid), "");
    assert!(text(&daemon.smcroutectl(&["-t", "show", "groups"])).contains("225.66.6.6"));
    // Two commands in one write.
    let leave = command(b'l', None, 2, join);
    assert_eq!(
        send(&[valid, leave].concat()),
        "Already joined (*,225.66.6.6) on in"
    );
    assert_eq!(text(&daemon.smcroutectl(&["-t", "show", "groups"])), before);
    assert_eq!(daemon.smcroutectl(&["-t", "show"]).status.code(), Some(0));
}
