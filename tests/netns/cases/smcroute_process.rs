//! This program as a daemon of smcroute's kind, beside Debian's: flags, rights, names, logs and
//! what the system is told. [`DIFFERENCES`] lists where they differ on purpose.

use std::time::Duration;

use super::cases;
use crate::lab::smcroute::{BOTH, Daemon, EVERYBODY, Whose, ask, pass, smcrouted, text, two};
use crate::lab::{BINARY, Lab, PATIENCE, Star, Udp, eventually, wait_until};

cases!("smcroute_process":
    #[Program("smcrouted", "smcroute")] flags_end_alike,
    #[Program("smcrouted", "smcroute")] scripts_are_called_alike,
    a_bad_line_is_told_and_the_rest_runs,
    rights_are_dropped_and_packets_go_on,
    links_of_the_user_are_not_followed,
    instances_by_name_in_the_background,
    #[Program("smcrouted", "smcroute")] a_start_in_the_background_tells_how_it_went,
    a_delay_a_table_and_a_link_of_that_name,
    the_router_and_check_take_the_file_too,
    #[Program("smcrouted", "smcroute")] both_speak_to_syslog,
    a_supervisor_hears_that_it_lives,
    #[Program("smcrouted", "smcroute")] levels_say_more_and_more,
    http_listens_only_where_asked,
);

/// Flags that end differently.
const DIFFERENCES: &[(&str, i32, i32, &str)] = &[
    (
        "-n -F GOOD",
        78,
        0,
        "theirs knows no interfaces while it checks",
    ),
    ("-n -F ODD", 78, 0, "likewise"),
];

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
        "-F BAD -l crit",
        "-F BAD -l alert",
        "-F BAD -l emerg",
        "-F BAD -l panic",
        "-F BAD -l INFO",
        "-F BAD -l Debug",
        "-F BAD -l NOTICE",
    ];
    for flag in flags {
        let mut words: Vec<&str> = flag.split(' ').collect();
        for word in &mut words {
            if let Some((_, path)) = files.iter().find(|(name, _)| name == word) {
                *word = path;
            }
        }
        let [ours, theirs] = BOTH.map(|whose| smcrouted(&star.rtr, whose, &words).status.code());
        match DIFFERENCES.iter().find(|d| d.0 == flag) {
            Some((_, t, o, why)) => {
                assert_eq!((theirs, ours), (Some(*t), Some(*o)), "{flag}: {why}");
            }
            None => assert_eq!(ours, theirs, "{flag}"),
        }
    }
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

fn links_of_the_user_are_not_followed(lab: &Lab) {
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
    let daemon = Daemon::start(lab, &star.rtr, Whose::Ours, EVERYBODY, &flags);
    assert_eq!(std::fs::metadata(&other).expect("there").uid(), 0);
    assert_eq!(std::fs::read_to_string(&other).expect("there"), "precious");
    let socket = std::fs::metadata(&daemon.socket).expect("a socket");
    assert_eq!(socket.uid(), 65534);
    assert_eq!(pass(&star, 3, &[]).len(), 3);
    let said = daemon.program.stderr();
    assert!(said.contains("cannot write the pid file"), "{said}");
}

/// Daemons of these names end with the test, whatever came of it.
struct Background<'a>(&'a [String]);

impl Drop for Background<'_> {
    fn drop(&mut self) {
        for name in self.0 {
            // One without a pid file has a socket.
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

fn a_start_in_the_background_tells_how_it_went(lab: &Lab) {
    let conf = lab.file("conf");
    std::fs::write(&conf, EVERYBODY).expect("writing");
    let conf = conf.to_str().expect("UTF-8");
    let names = [Whose::Ours, Whose::Theirs]
        .map(|w| ["a", "b", "c"].map(|n| format!("mcl-{}-{w:?}-{n}", std::process::id())));
    let _ends = names.each_ref().map(|names| Background(names));
    for ((whose, star), names) in two(lab, 3).into_iter().zip(&names) {
        let start = |flags: &[&str]| {
            let output = smcrouted(&star.rtr, whose, &[&["-f", conf], flags].concat());
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            (output.status.code(), said)
        };
        let pid = |n: usize| format!("/run/{}.pid", names[n]);
        // Ours waits until it stands; Debian's leaves that to whoever looks.
        let stands = |n: usize| {
            let there = || std::path::Path::new(&pid(n)).exists();
            assert!(there() || whose == Whose::Theirs, "{}", pid(n));
            assert!(wait_until(PATIENCE, there), "{}", pid(n));
        };
        let end = |n: usize| {
            let file = pid(n);
            let live = std::fs::read_to_string(&file).expect("a pid");
            let killed = std::process::Command::new("kill").arg(live.trim()).status();
            assert!(killed.expect("kill").success());
            eventually("the end", false, || {
                std::path::Path::new(&format!("/proc/{}", live.trim())).exists()
            });
        };
        // Without a folder for its socket it routes on.
        assert_eq!(start(&["-i", &names[0], "-u", "/nodir/x.sock"]).0, Some(0));
        stands(0);
        assert_eq!(pass(&star, 3, &[]).len(), 3);
        end(0);
        // Without one for its pid file too.
        assert_eq!(start(&["-i", &names[1], "-P", "/nodir/x.pid"]).0, Some(0));
        let socket = format!("/run/{}.sock", names[1]);
        let socket = std::path::Path::new(&socket);
        eventually("routes", true, || {
            text(&ask(&star.rtr, whose, socket, &["show"], "")).contains("225.255.0.1")
        });
        assert_eq!(pass(&star, 3, &[]).len(), 3);
        if whose == Whose::Ours {
            // Debian's takes the socket over.
            let path = socket.to_str().expect("UTF-8");
            let (code, said) = start(&["-i", &names[2], "-u", path]);
            assert_eq!(code, Some(69), "{said}");
            assert!(said.contains("another mcastor answers"), "{said}");
            assert!(!std::path::Path::new(&pid(2)).exists());
        }
        let ended = ask(&star.rtr, whose, socket, &["kill"], "");
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
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
