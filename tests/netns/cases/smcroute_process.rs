//! mcastor as an smcrouted process, compared with Debian's: flags, privileges, names, logs and
//! notifications. [`DIFFERENCES`] lists the intended differences.

use std::time::Duration;

use super::cases;
use crate::lab::smcroute::{
    BOTH, Daemon, Implementation, ROUTE_TO_ALL, run_client, send_and_collect, smcrouted,
    star_per_implementation, text,
};
use crate::lab::{BINARY, Lab, Star, TIMEOUT, Udp, eventually, wait_until};

cases!("smcroute_process":
    #[Program("smcrouted", "smcroute")] flags_return_matching_exit_codes,
    #[Program("smcrouted", "smcroute")] script_calls_match_smcroute,
    script_runs_without_capabilities,
    script_does_not_wake_up_an_idle_daemon,
    #[Program("smcrouted", "smcroute")] old_program_name_controls_the_daemon,
    invalid_line_is_logged_and_skipped,
    forwarding_continues_after_dropping_privileges,
    user_owned_symlinks_are_not_followed,
    named_instances_run_in_the_background,
    #[Program("smcrouted", "smcroute")] background_start_reports_its_result,
    startup_delay_table_option_and_symlink_invocation,
    run_check_and_convert_accept_smcroute_files,
    #[Program("smcrouted", "smcroute")] syslog_facility_matches_smcroute,
    sd_notify_reports_ready_watchdog_and_stopping,
    #[Program("smcrouted", "smcroute")] log_levels_are_increasingly_verbose,
    http_listens_only_with_http_flag,
);

/// Flags with different exit codes: Debian's code, mcastor's code, and the reason.
const DIFFERENCES: &[(&str, i32, i32, &str)] = &[
    (
        "-n -F GOOD",
        78,
        0,
        "Debian's knows no interfaces while it checks",
    ),
    (
        "-n -F ODD",
        78,
        0,
        "Debian's knows no interfaces while it checks",
    ),
];

fn flags_return_matching_exit_codes(lab: &Lab) {
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
        "-F BAD -l crit",
        "-F BAD -l alert",
        "-F BAD -l emerg",
        "-F BAD -l panic",
        "-F BAD -l INFO",
        "-F BAD -l Debug",
        "-F BAD -l NOTICE",
        "-N -I name -D 3 -v",
        "-I",
        "-D",
    ];
    for flag in flags {
        let mut words: Vec<&str> = flag.split(' ').collect();
        for word in &mut words {
            if let Some((_, path)) = files.iter().find(|(name, _)| name == word) {
                *word = path;
            }
        }
        let [ours, theirs] =
            BOTH.map(|implementation| smcrouted(&star.rtr, implementation, &words).status.code());
        match DIFFERENCES.iter().find(|d| d.0 == flag) {
            Some((_, t, o, why)) => {
                assert_eq!((theirs, ours), (Some(*t), Some(*o)), "{flag}: {why}");
            }
            None => assert_eq!(ours, theirs, "{flag}"),
        }
    }
}

/// Writes an executable shell script.
fn write_script(path: &std::path::Path, line: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, format!("#!/bin/sh\n{line}\n")).expect("writing");
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("chmod");
}

fn script_calls_match_smcroute(lab: &Lab) {
    let conf = format!("{ROUTE_TO_ALL}mroute from in source 10.0.0.10 group 225.1.2.4 to out1\n");
    let [ours, theirs] = star_per_implementation(lab, 3).map(|(implementation, star)| {
        let (script, log) = (lab.file("script"), lab.file("calls"));
        let line = format!(
            "echo \"$# $1 ${{source:-none}} ${{group:-none}}\" >> {}",
            log.display()
        );
        write_script(&script, &line);
        let mut daemon = Daemon::start(
            lab,
            &star.rtr,
            implementation,
            &conf,
            &["-e", script.to_str().expect("UTF-8")],
        );
        let calls = || std::fs::read_to_string(&log).unwrap_or_default();
        let count = |n: usize| eventually("calls", n, || calls().lines().count());
        let packet = Udp::new("10.0.0.10:9", "225.1.2.4:5000", "packet");
        send_and_collect(&star, 3, &[packet.clone(), packet]);
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

/// The daemon runs as root. Without measures, a program that it starts has all capabilities again.
fn script_runs_without_capabilities(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let (script, log) = (lab.file("script"), lab.file("privileges"));
    let fields = "^(CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs)";
    let line = format!("grep -E '{fields}' /proc/self/status >> {}", log.display());
    write_script(&script, &line);
    let script = script.to_str().expect("UTF-8");
    let mut daemon = Daemon::start(lab, &star.rtr, Implementation::Mcastor, "", &["-e", script]);
    daemon.program.signal(libc::SIGHUP);
    let privileges = || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let words = text.split_whitespace().map(String::from);
        words.collect::<Vec<_>>().join(" ")
    };
    let none = "0000000000000000";
    let expected =
        format!("CapPrm: {none} CapEff: {none} CapBnd: {none} CapAmb: {none} NoNewPrivs: 1");
    eventually("the script ran", expected, privileges);
}

/// Returns how often the threads of a process have slept.
fn sleeps(pid: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("tasks");
    let of_task = |task: std::fs::DirEntry| {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
        line.and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    tasks.flatten().map(of_task).sum()
}

/// Compares a daemon with a script to one without. The script is called as soon as a flow starts.
fn script_does_not_wake_up_an_idle_daemon(lab: &Lab) {
    let (script, log) = (lab.file("script"), lab.file("calls"));
    write_script(&script, &format!("echo $1 >> {}", log.display()));
    let calls = || {
        std::fs::read_to_string(&log)
            .unwrap_or_default()
            .lines()
            .count()
    };
    let flags = ["-e", script.to_str().expect("UTF-8")];
    let [with, without] = [("script", &flags[..]), ("none", &[])].map(|(tag, flags)| {
        let star = Star::tagged(lab, 3, tag);
        star.rtr.disable_ipv6();
        let daemon = Daemon::start(lab, &star.rtr, Implementation::Mcastor, ROUTE_TO_ALL, flags);
        std::thread::sleep(Duration::from_secs(1));
        let before = sleeps(daemon.program.pid());
        std::thread::sleep(Duration::from_secs(3));
        let after = sleeps(daemon.program.pid());
        if !flags.is_empty() {
            assert_eq!(calls(), 0);
            send_and_collect(&star, 3, &[]);
            eventually("the script is called", 1, calls);
            assert_eq!(daemon.smcroutectl(&["flush"]).status.code(), Some(0));
            eventually("the end of the flow is known", true, || {
                send_and_collect(&star, 3, &[]);
                calls() >= 2
            });
        }
        after - before
    });
    println!("sleeps in 3 s: {with} with a script, {without} without");
    assert!(
        with <= without + 15,
        "{with} with a script, {without} without"
    );
}

/// `smcroute` was daemon and client in one before 2.0.
fn old_program_name_controls_the_daemon(lab: &Lab) {
    let links = lab.file("links");
    std::fs::create_dir(&links).expect("a folder");
    let [ours, theirs] = star_per_implementation(lab, 3).map(|(implementation, star)| {
        let (conf, socket) = (lab.file("conf"), lab.file("sock"));
        let pid = lab.file("pid");
        let _ = std::fs::remove_file(&socket);
        std::fs::write(&conf, ROUTE_TO_ALL).expect("writing");
        let path = |p: &std::path::Path| p.display().to_string();
        let (conf, socket, pid) = (path(&conf), path(&socket), path(&pid));
        let program = match implementation {
            Implementation::Mcastor => {
                let link = links.join("smcroute");
                std::os::unix::fs::symlink(BINARY, &link).expect("a link");
                path(&link)
            }
            Implementation::Smcroute => "/usr/sbin/smcroute".into(),
        };
        let args = ["-d", "-n", "-f", &conf, "-u", &socket, "-P", &pid];
        let mut daemon = star.rtr.spawn(lab, &program, &args);
        assert!(wait_until(TIMEOUT, || std::path::Path::new(&pid).exists()));
        let run = |words: &str| {
            let words: Vec<&str> = words.split(' ').collect();
            let args = [&words[..1], &["-u", &socket], &words[1..]].concat();
            star.rtr.output(&program, &args).status.code()
        };
        let codes = [
            run("-a in 10.0.0.10 225.1.2.3 out1 out2"),
            run("-a in 10.0.0.10 225.1.2.4 out1"),
            run("-r in 10.0.0.10 225.1.2.4"),
            run("-j in 225.1.2.3"),
            run("-j in 225.1.2.3"),
            run("-h"),
            run("-x"),
        ];
        let shown = run_client(
            &star.rtr,
            Implementation::Smcroute,
            std::path::Path::new(&socket),
            &["-t", "show"],
            "",
        );
        let packet = Udp::new("10.0.0.10:9", "225.1.2.3:5000", "packet");
        let arrived = send_and_collect(&star, 3, &[packet]);
        assert_eq!(star.rtr.output(&program, &["-v"]).status.code(), Some(0));
        let kill = run_client(
            &star.rtr,
            implementation,
            std::path::Path::new(&socket),
            &["kill"],
            "",
        );
        assert_eq!(kill.status.code(), Some(0));
        eventually("the daemon exits", true, || daemon.exit_status().is_some());
        (codes, text(&shown), arrived)
    });
    assert_eq!(ours, theirs);
    assert_eq!(ours.2.len(), 3 + 2);
}

fn invalid_line_is_logged_and_skipped(lab: &Lab) {
    let star = Star::v4(lab, 3);
    let conf = format!("mroute from in group 1.2.3.4 to out1\n{ROUTE_TO_ALL}");
    let mut daemon = Daemon::start(lab, &star.rtr, Implementation::Mcastor, &conf, &[]);
    let file = daemon.conf.display().to_string();
    let message = format!("{file} line 1: mroute: group 1.2.3.4 is not multicast");
    assert!(
        daemon.program.stderr().contains(&message),
        "{}",
        daemon.program.stderr()
    );
    assert_eq!(send_and_collect(&star, 3, &[]).len(), 3);
    std::fs::write(&daemon.conf, format!("{ROUTE_TO_ALL}phyint\n")).expect("writing");
    daemon.program.signal(libc::SIGHUP);
    let message = format!("{file} line 2: phyint: no interface");
    eventually("the line is logged", true, || {
        daemon.program.stderr().contains(&message)
    });
    assert_eq!(send_and_collect(&star, 3, &[]).len(), 3);
}

fn forwarding_continues_after_dropping_privileges(lab: &Lab) {
    let star = Star::v4(lab, 3);
    let daemon = Daemon::start(
        lab,
        &star.rtr,
        Implementation::Mcastor,
        ROUTE_TO_ALL,
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
    assert_eq!(send_and_collect(&star, 3, &[]).len(), 3);
    // An interface that appears later is captured without root, too.
    star.rtr.ip("link del out3");
    star.add_egress(3);
    eventually("all three egresses", 3, || {
        send_and_collect(&star, 3, &[]).len()
    });
    assert_eq!(
        daemon
            .smcroutectl(&["add", "in", "225.1.1.1", "out1"])
            .status
            .code(),
        Some(0)
    );
    assert_eq!(daemon.smcroutectl(&["reload"]).status.code(), Some(0));
}

fn user_owned_symlinks_are_not_followed(lab: &Lab) {
    use std::os::unix::fs::MetadataExt;
    let star = Star::v4(lab, 3);
    let (folder, other) = (lab.file("folder"), lab.file("other"));
    std::fs::create_dir(&folder).expect("a folder");
    std::os::unix::fs::chown(&folder, Some(65534), None).expect("chown");
    std::fs::write(&other, "precious").expect("writing");
    let pid = folder.join("pid");
    std::os::unix::fs::symlink(&other, &pid).expect("a link");
    let pid = pid.to_str().expect("UTF-8");
    let flags = ["-p", "nobody", "-P", pid];
    let daemon = Daemon::start(
        lab,
        &star.rtr,
        Implementation::Mcastor,
        ROUTE_TO_ALL,
        &flags,
    );
    assert_eq!(std::fs::metadata(&other).expect("metadata").uid(), 0);
    assert_eq!(std::fs::read_to_string(&other).expect("text"), "precious");
    let socket = std::fs::metadata(&daemon.socket).expect("a socket");
    assert_eq!(socket.uid(), 65534);
    assert_eq!(send_and_collect(&star, 3, &[]).len(), 3);
    // The link was replaced.
    let written = std::fs::symlink_metadata(pid).expect("a pid file");
    assert!(written.is_file());
    assert_eq!(written.uid(), 65534);
    let text = std::fs::read_to_string(pid).expect("text");
    assert_eq!(text.trim(), daemon.program.pid().to_string());
}

/// Daemons with these names. Dropping this stops them.
struct Background<'a>(&'a [String]);

impl Drop for Background<'_> {
    fn drop(&mut self) {
        for name in self.0 {
            // A daemon without a pid file has a socket.
            let _ = std::process::Command::new(BINARY)
                .args(["smcroutectl", "-i", name, "kill"])
                .output();
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

fn named_instances_run_in_the_background(lab: &Lab) {
    let star = Star::v4(lab, 3);
    let conf = lab.file("conf");
    std::fs::write(&conf, ROUTE_TO_ALL).expect("writing");
    let conf = conf.to_str().expect("UTF-8");
    let names = ["a", "b"].map(|n| format!("mcl-{}-{n}", std::process::id()));
    let _background = Background(&names);
    for name in &names {
        let output = smcrouted(
            &star.rtr,
            Implementation::Mcastor,
            &["-i", name, "-f", conf],
        );
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
    for name in &names {
        let pid = std::path::PathBuf::from(format!("/run/{name}.pid"));
        assert!(wait_until(TIMEOUT, || pid.exists()), "{pid:?}");
        let client = |implementation: Implementation, words: &[&str]| match implementation {
            Implementation::Mcastor => star
                .rtr
                .output(BINARY, &[&["smcroutectl", "-i", name], words].concat()),
            Implementation::Smcroute => star
                .rtr
                .output("smcroutectl", &[&["-i", name.as_str()], words].concat()),
        };
        let live = std::fs::read_to_string(&pid).expect("a pid");
        let comm = format!("/proc/{}/comm", live.trim());
        assert_eq!(
            std::fs::read_to_string(&comm)
                .expect("a running process")
                .trim(),
            "mcastor"
        );
        assert!(text(&client(Implementation::Mcastor, &["-t", "show"])).contains("225.255.0.1"));
        assert_eq!(
            client(Implementation::Mcastor, &["kill"]).status.code(),
            Some(0)
        );
        eventually("the daemon exits", false, || {
            std::path::Path::new(&comm).exists() || pid.exists()
        });
        assert!(!std::path::Path::new(&format!("/run/{name}.sock")).exists());
    }
}

fn background_start_reports_its_result(lab: &Lab) {
    let conf = lab.file("conf");
    std::fs::write(&conf, ROUTE_TO_ALL).expect("writing");
    let conf = conf.to_str().expect("UTF-8");
    let names = [Implementation::Mcastor, Implementation::Smcroute]
        .map(|w| ["a", "b", "c"].map(|n| format!("mcl-{}-{w:?}-{n}", std::process::id())));
    let _background = names.each_ref().map(|names| Background(names));
    for ((implementation, star), names) in star_per_implementation(lab, 3).into_iter().zip(&names) {
        let start = |flags: &[&str]| {
            let output = smcrouted(&star.rtr, implementation, &[&["-f", conf], flags].concat());
            let printed = String::from_utf8_lossy(&output.stderr).into_owned();
            (output.status.code(), printed)
        };
        let pid = |n: usize| format!("/run/{}.pid", names[n]);
        // mcastor returns when the daemon is ready; Debian's returns at once.
        let wait_until_ready = |n: usize| {
            let exists = || std::path::Path::new(&pid(n)).exists();
            assert!(
                exists() || implementation == Implementation::Smcroute,
                "{}",
                pid(n)
            );
            assert!(wait_until(TIMEOUT, exists), "{}", pid(n));
        };
        let terminate = |n: usize| {
            let file = pid(n);
            let live = std::fs::read_to_string(&file).expect("a pid");
            let killed = std::process::Command::new("kill").arg(live.trim()).status();
            assert!(killed.expect("kill").success());
            eventually("the daemon exits", false, || {
                std::path::Path::new(&format!("/proc/{}", live.trim())).exists()
            });
        };
        // The daemon forwards even if the folder of its socket is missing.
        assert_eq!(start(&["-i", &names[0], "-u", "/nodir/x.sock"]).0, Some(0));
        wait_until_ready(0);
        assert_eq!(send_and_collect(&star, 3, &[]).len(), 3);
        terminate(0);
        // The same for the folder of its pid file.
        assert_eq!(start(&["-i", &names[1], "-P", "/nodir/x.pid"]).0, Some(0));
        let socket = format!("/run/{}.sock", names[1]);
        let socket = std::path::Path::new(&socket);
        eventually("routes", true, || {
            text(&run_client(
                &star.rtr,
                implementation,
                socket,
                &["show"],
                "",
            ))
            .contains("225.255.0.1")
        });
        assert_eq!(send_and_collect(&star, 3, &[]).len(), 3);
        if implementation == Implementation::Mcastor {
            // Debian's replaces the socket of the other daemon.
            let path = socket.to_str().expect("UTF-8");
            let (code, printed) = start(&["-i", &names[2], "-u", path]);
            assert_eq!(code, Some(69), "{printed}");
            assert!(printed.contains("another mcastor answers"), "{printed}");
            assert!(!std::path::Path::new(&pid(2)).exists());
        }
        let ended = run_client(&star.rtr, implementation, socket, &["kill"], "");
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    }
}

fn startup_delay_table_option_and_symlink_invocation(lab: &Lab) {
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
    std::fs::write(&conf, ROUTE_TO_ALL).expect("writing");
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
    let started_at = std::time::Instant::now();
    let mut daemon = star.rtr.spawn(lab, &called("smcrouted"), &args);
    assert!(wait_until(TIMEOUT, || socket.exists()));
    assert!(started_at.elapsed() >= Duration::from_secs(1));
    let show = ["-u", &path(&socket), "-t", "show"];
    let shown = || text(&star.rtr.output(&called("smcroutectl"), &show));
    eventually("routes", true, || shown().contains("225.255.0.1"));
    assert_eq!(
        daemon.stderr().matches("-t 123").count(),
        1,
        "{}",
        daemon.stderr()
    );
    // There is no TCP listener by default.
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

fn run_check_and_convert_accept_smcroute_files(lab: &Lab) {
    let star = Star::v4(lab, 3);
    let (good, bad) = (lab.file("good.conf"), lab.file("bad.conf"));
    std::fs::write(&good, ROUTE_TO_ALL).expect("writing");
    std::fs::write(&bad, format!("{ROUTE_TO_ALL}mroute from in\n")).expect("writing");
    let run = |args: &[&str]| star.rtr.output(BINARY, args);
    let path = |p: &std::path::Path| p.display().to_string();
    let checked = run(&["check", &path(&good)]);
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    let printed = text(&checked);
    assert!(
        printed.contains("note: ") && printed.contains("iptables"),
        "{printed}"
    );
    assert!(
        printed.contains("rp_filter") && printed.contains("ip mroute"),
        "{printed}"
    );
    let checked = run(&["check", &path(&bad)]);
    assert_eq!(checked.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert_eq!(stderr, format!("{} line 2: mroute: no group\n", path(&bad)));
    let socket = path(&lab.file("sock"));
    let mut command = star.rtr.command(BINARY);
    command.args(["run", "--config", &path(&bad)]);
    command
        .env("MCASTOR__CONTROL__SOCKET", &socket)
        .env("MCASTOR__HTTP__LISTEN", "off");
    let program = crate::lab::Program::start(lab, command);
    eventually("the line is logged", true, || {
        program.stderr().contains("line 2: mroute: no group")
    });
    let printed = program.stderr();
    assert_eq!(printed.matches("rp_filter").count(), 1, "{printed}");
    eventually("the router answers", true, || {
        run(&["show", "routes", "--socket", &socket])
            .status
            .success()
    });
    let waits = run(&["add", "--socket", &socket, "nix", "225.1.1.1", "out1"]);
    assert_eq!(waits.status.code(), Some(0), "{waits:?}");
    // The converted TOML file is valid.
    let converted = run(&["convert", &path(&good)]);
    assert_eq!(converted.status.code(), Some(0), "{converted:?}");
    let toml = lab.file("made.toml");
    std::fs::write(&toml, &converted.stdout).expect("writing");
    assert_eq!(run(&["check", &path(&toml)]).status.code(), Some(0));
}

fn syslog_facility_matches_smcroute(lab: &Lab) {
    let [ours, theirs] = star_per_implementation(lab, 1).map(|(implementation, star)| {
        let (log, conf) = (lab.file("log"), lab.file("conf"));
        std::fs::write(&conf, "foo bar\n").expect("writing");
        let syslog = std::os::unix::net::UnixDatagram::bind(&log).expect("a socket");
        syslog.set_nonblocking(true).expect("nonblocking");
        // A private /dev whose log socket is ours.
        let script = "mount -t tmpfs t /mnt && \
                      for d in null zero random urandom; do touch /mnt/$d; mount --bind /dev/$d /mnt/$d; done; \
                      ln -s \"$0\" /mnt/log; mount --rbind /mnt /dev; exec \"$@\"";
        let (program, first) = match implementation {
            Implementation::Mcastor => (BINARY, "smcrouted"),
            Implementation::Smcroute => ("/usr/sbin/smcrouted", "-n"),
        };
        let path = |p: &std::path::Path| p.display().to_string();
        let args = [
            "-m", "sh", "-c", script, &path(&log), program, first, "-n", "-s", "-i", "a-name",
            "-f", &path(&conf), "-u", &path(&lab.file("sock")), "-P", &path(&lab.file("pid")),
        ];
        let program = star.rtr.spawn(lab, "unshare", &args);
        let mut lines = Vec::new();
        let logged = wait_until(TIMEOUT, || {
            let mut line = [0; 4096];
            while let Ok(n) = syslog.recv(&mut line) {
                lines.push(String::from_utf8_lossy(&line[..n]).into_owned());
            }
            lines.iter().any(|l| l.contains("foo"))
        });
        assert!(logged, "{implementation:?}: {lines:?} {}", program.stderr());
        let line = lines.iter().find(|l| l.contains("foo")).expect("the line");
        assert!(line.contains(&format!("a-name[{}]", program.pid())), "{line}");
        assert!(line.contains("line 1"), "{line}");
        // The priority is <facility * 8 + level>.
        let number = line.trim_start_matches('<').split('>').next().and_then(|n| n.parse::<u8>().ok());
        number.expect(line) / 8
    });
    assert_eq!(ours, theirs, "the facility");
}

fn sd_notify_reports_ready_watchdog_and_stopping(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let (conf, ready) = (lab.file("conf"), lab.file("ready"));
    std::fs::write(&conf, "").expect("writing");
    let notifications = std::os::unix::net::UnixDatagram::bind(&ready).expect("a socket");
    notifications.set_nonblocking(true).expect("nonblocking");
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
    let mut received = Vec::new();
    let mut expect_notification = |what: &str, times: usize| {
        let complete = wait_until(TIMEOUT, || {
            let mut text = [0; 256];
            while let Ok(n) = notifications.recv(&mut text) {
                received.push(String::from_utf8_lossy(&text[..n]).trim().to_string());
            }
            received.iter().filter(|t| *t == what).count() >= times
        });
        assert!(complete, "{what}: {received:?}");
    };
    expect_notification("READY=1", 1);
    expect_notification("WATCHDOG=1", 4);
    program.signal(libc::SIGTERM);
    expect_notification("STOPPING=1", 1);
    assert_eq!(program.wait().code(), Some(0));
}

fn log_levels_are_increasingly_verbose(lab: &Lab) {
    let conf = format!("mroute from in group 1.2.3.4 to out1\n{ROUTE_TO_ALL}");
    let levels = ["none", "err", "warning", "notice", "info", "debug"];
    for (implementation, star) in star_per_implementation(lab, 3) {
        let logs = levels.map(|level| {
            let mut daemon = Daemon::start(lab, &star.rtr, implementation, &conf, &["-l", level]);
            daemon.program.stop(libc::SIGTERM, TIMEOUT);
            daemon.program.stderr()
        });
        // Debian's logs everything with `none`.
        let logs = logs.map(|text| text.lines().map(String::from).collect::<Vec<_>>());
        let lines = logs.each_ref().map(Vec::len);
        assert!(lines[1..].is_sorted(), "{implementation:?}: {lines:?}");
        assert_eq!(
            lines[0] == 0,
            implementation == Implementation::Mcastor,
            "{:?}",
            logs[0]
        );
        assert!(lines[5] > lines[2], "{implementation:?}: {lines:?}");
        // Both log a skipped line as a warning.
        let warned = logs[2].join("\n");
        assert!(warned.contains("1.2.3.4"), "{implementation:?}: {warned}");
    }
    let star = Star::tagged(lab, 1, "levels");
    let codes = BOTH.map(|implementation| {
        smcrouted(&star.rtr, implementation, &["-n", "-l", "loud", "-h"]).status
    });
    assert!(codes.iter().all(|c| c.code().is_some()), "{codes:?}");
}

fn http_listens_only_with_http_flag(lab: &Lab) {
    let star = Star::tagged(lab, 3, "http");
    let listeners = || text(&star.rtr.output("ss", &["-Hltn"]));
    let daemon = Daemon::start(lab, &star.rtr, Implementation::Mcastor, ROUTE_TO_ALL, &[]);
    assert_eq!(send_and_collect(&star, 3, &[]).len(), 3);
    assert_eq!(listeners(), "");
    drop(daemon);
    let address = "127.0.0.1:19464";
    let _daemon = Daemon::start(
        lab,
        &star.rtr,
        Implementation::Mcastor,
        ROUTE_TO_ALL,
        &["--http", address],
    );
    assert_eq!(send_and_collect(&star, 3, &[]).len(), 3);
    let all = listeners();
    assert_eq!(all.lines().count(), 1, "{all}");
    assert!(all.contains(address), "{all}");
    let http = address.parse().expect("an address");
    eventually("packets in the metrics", true, || {
        let answer = crate::lab::http::get(&star.rtr, http, "/metrics");
        let body = answer.map(|a| a.body).unwrap_or_default();
        body.contains("mcastor_route_packets_total")
    });
}
