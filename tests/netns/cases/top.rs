//! `mcastor top` in a terminal of tmux, and as plain lines.

use std::time::Duration;

use super::{cases, route};
use crate::lab::router::BINARY;
use crate::lab::{Injector, Lab, Ns, Program, Router, Star, TIMEOUT, Udp, eventually, wait_until};

cases!("top":
    #[Program("tmux", "tmux")] top_shows_counted_traffic_and_opens_a_flow,
    #[Program("tmux", "tmux")] top_finds_a_flow_beyond_those_that_it_reads,
    #[Program("tmux", "tmux")] top_leaves_the_terminal_as_it_was,
    top_prints_plain_lines_without_a_terminal,
);

/// A terminal of 80 columns and 24 lines with a shell.
struct Terminal {
    ns: Ns,
    socket: String,
    _server: Program,
}

impl Terminal {
    fn new(lab: &Lab, ns: &Ns) -> Self {
        let socket = lab.file("tmux").display().to_string();
        // The server stays in the foreground, so that it ends with the test.
        let server = ns.spawn(lab, "tmux", &["-D", "-S", &socket, "-f", "/dev/null"]);
        let terminal = Self {
            ns: ns.clone(),
            socket,
            _server: server,
        };
        let shell = "PS1='ready> ' exec sh";
        let words = ["new-session", "-d", "-x", "80", "-y", "24", shell];
        let started = wait_until(TIMEOUT, || terminal.tmux(&words).is_some());
        assert!(started, "tmux does not start");
        terminal.expect("ready>");
        terminal
    }

    fn tmux(&self, words: &[&str]) -> Option<String> {
        // -N: the server is the one above, and never one that this command starts.
        let args = [&["-N", "-S", &self.socket], words].concat();
        let out = self.ns.output("tmux", &args);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        out.status.success().then_some(text)
    }

    fn keys(&self, keys: &[&str]) {
        assert!(
            self.tmux(&[&["send-keys"], keys].concat()).is_some(),
            "{keys:?}"
        );
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"]).unwrap_or_default()
    }

    /// Waits until the screen has a text; returns the screen.
    #[track_caller]
    fn expect(&self, text: &str) -> String {
        self.expect_screen(text, |screen| screen.contains(text))
    }

    #[track_caller]
    fn expect_screen(&self, what: &str, is_met: impl Fn(&str) -> bool) -> String {
        let mut screen = String::new();
        let met = wait_until(TIMEOUT, || {
            screen = self.screen();
            is_met(&screen)
        });
        assert!(met, "{what} is not on the screen:\n{screen}");
        screen
    }

    fn top(&self, router: &Router, words: &str) {
        let socket = router.socket().display();
        let line = format!("{BINARY} top --socket {socket} --interval 0.2 {words}");
        self.keys(&[&line, "Enter"]);
    }
}

/// Starts a router with a route of three groups to two interfaces.
fn start_router(lab: &Lab) -> (Star, Router) {
    let star = Star::v4(lab, 2);
    let toml = route(
        "cams",
        "in",
        "",
        "225.1.2.0/24",
        &["out1", "out2"],
        "join = false\n",
    );
    let router = Router::start(lab, &star.rtr, &toml);
    (star, router)
}

/// Sends 30, 20 and 10 packets to three groups, and 7 to one without a route.
fn send(star: &Star) {
    let inject = Injector::new(&star.src, "eth0");
    for (group, packets) in [
        ("225.1.2.1", 30),
        ("225.1.2.2", 20),
        ("225.1.2.3", 10),
        ("225.9.9.9", 7),
    ] {
        let frame = Udp::new("10.0.0.10:9", &format!("{group}:5000"), [0; 100]).frame();
        (0..packets).for_each(|_| inject.send(&frame));
    }
}

/// Returns the words of the line with all of `words`.
#[track_caller]
fn line<'a>(screen: &'a str, words: &[&str]) -> Vec<&'a str> {
    let has_all = |line: &&str| words.iter().all(|word| line.split(' ').any(|w| w == *word));
    let found = screen.lines().find(has_all);
    let found = found.unwrap_or_else(|| panic!("no line with {words:?}:\n{screen}"));
    found.split_whitespace().collect()
}

fn top_shows_counted_traffic_and_opens_a_flow(lab: &Lab) {
    let (star, router) = start_router(lab);
    let terminal = Terminal::new(lab, &star.rtr);
    terminal.top(&router, "");
    terminal.expect("1 Interfaces");
    send(&star);
    router.expect_routed("cams", "out2", 60);
    // Interfaces: 67 packets were received on `in`, and 60 of them sent on each of the others.
    let received = |screen: &str| {
        let row = screen.lines().find(|line| line.starts_with("in "));
        row.is_some_and(|row| row.split_whitespace().any(|word| word == "67"))
    };
    let screen = terminal.expect_screen("67 packets on in", received);
    assert!(line(&screen, &["out1"]).contains(&"60"), "{screen}");
    terminal.keys(&["2"]);
    let screen = terminal.expect("225.1.2.3");
    for (group, packets) in [
        ("225.1.2.1", "30"),
        ("225.1.2.2", "20"),
        ("225.1.2.3", "10"),
    ] {
        let row = line(&screen, &[group]);
        assert_eq!(
            (row[0], row[1], row[5]),
            ("in", "10.0.0.10", packets),
            "{screen}"
        );
    }
    assert!(
        screen.lines().all(|line| line.chars().count() <= 80),
        "{screen}"
    );
    // By group, from the last; then only one of them.
    terminal.keys(&["<"]);
    terminal.expect("GROUPv");
    terminal.keys(&["r"]);
    terminal.expect_screen("the reverse order", |screen| {
        let at = |group| screen.find(group);
        at("225.1.2.3").is_some() && at("225.1.2.3") < at("225.1.2.1")
    });
    terminal.keys(&["/", "2.2", "Enter"]);
    terminal.expect_screen("one flow", |screen| {
        screen.contains("225.1.2.2") && !screen.contains("225.1.2.1")
    });
    terminal.keys(&["Enter"]);
    let screen = terminal.expect("-> out1: leaves with TTL");
    assert!(line(&screen, &["packets"]).contains(&"20"), "{screen}");
    terminal.keys(&["Escape"]);
    terminal.expect("Escape: all rows");
    terminal.keys(&["3"]);
    let screen = terminal.expect("no_route");
    assert_eq!(line(&screen, &["no_route"])[0], "7", "{screen}");
    terminal.keys(&["p"]);
    terminal.expect("paused");
    send(&star);
    router.expect_dropped("no_route", "in", 14);
    // Several readings later.
    std::thread::sleep(Duration::from_secs(1));
    let screen = terminal.screen();
    assert_eq!(line(&screen, &["no_route"])[0], "7", "{screen}");
    terminal.keys(&["p"]);
    terminal.expect_screen("what was dropped meanwhile", |screen| {
        line(screen, &["no_route"])[0] == "14"
    });
    terminal.keys(&["?"]);
    terminal.expect("only rows with these words");
    terminal.keys(&["x", "q"]);
    terminal.expect("ready>");
}

/// Top reads the 1,000 flows with the most packets. The one that is searched for has the fewest.
fn top_finds_a_flow_beyond_those_that_it_reads(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let toml = route("r", "in", "", "225.0.0.0/8", &["out1"], "join = false\n");
    let router = Router::start(lab, &star.rtr, &toml);
    let inject = Injector::new(&star.src, "eth0");
    let send = |group: &str, packets| {
        let frame = Udp::new("10.0.0.10:9", &format!("{group}:5000"), "x").frame();
        (0..packets).for_each(|_| inject.send(&frame));
    };
    for n in 0..1500 {
        send(&format!("225.1.{}.{}", n / 200, n % 200), 2);
        if n % 20 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    send("225.77.1.1", 1);
    router.expect_routed("r", "out1", 3001);
    let terminal = Terminal::new(lab, &star.rtr);
    terminal.top(&router, "--view flows");
    terminal.expect("225.1.");
    // A prefix, which only the router understands.
    terminal.keys(&["/", "225.77.0.0/16", "Enter"]);
    let screen = terminal.expect("225.77.1.1");
    assert!(line(&screen, &["225.77.1.1"]).contains(&"1"), "{screen}");
    assert!(!screen.contains("225.1."), "{screen}");
    terminal.keys(&["Escape"]);
    terminal.expect_screen("the flows with the most packets", |screen| {
        screen.contains("225.1.") && !screen.contains("225.77.1.1")
    });
    terminal.keys(&["q"]);
}

fn top_leaves_the_terminal_as_it_was(lab: &Lab) {
    let (star, mut router) = start_router(lab);
    let terminal = Terminal::new(lab, &star.rtr);
    terminal.keys(&["echo be''fore", "Enter"]);
    terminal.expect("before");
    // Each way to end it brings the earlier screen back, and the mode of the terminal.
    let pids = || {
        star.rtr.output(
            "pgrep",
            &["-f", &format!("top --socket {}", router.socket().display())],
        )
    };
    let pid = || String::from_utf8_lossy(&pids().stdout).trim().to_owned();
    for (n, end) in ["q", "C-c", "TERM", "HUP"].into_iter().enumerate() {
        terminal.top(&router, "");
        terminal.expect("Enter: open");
        match end {
            "TERM" | "HUP" => {
                let killed = star.rtr.output("kill", &[&format!("-{end}"), &pid()]);
                assert!(killed.status.success(), "{killed:?}");
            }
            key => terminal.keys(&[key]),
        }
        // Until it has ended, it takes the keys from the shell.
        terminal.expect_screen("the earlier screen, with a prompt", |screen| {
            let has_prompt = screen.trim_end().ends_with("\nready>");
            screen.contains("before") && !screen.contains("Enter: open") && has_prompt
        });
        let done = format!("done{n}");
        terminal.keys(&[
            &format!("stty -a | grep -c ' icanon'; echo do''ne{n}"),
            "Enter",
        ]);
        let screen = terminal.expect(&done);
        let answer = screen.lines().rev().skip_while(|line| *line != done).nth(1);
        assert_eq!(answer, Some("1"), "{end}: {screen}");
    }
    // Without a terminal it ends too.
    let other = Terminal::new(lab, &star.rtr);
    other.top(&router, "");
    other.expect("Enter: open");
    drop(other);
    eventually("no process remains", String::new(), pid);
    // A router that goes away is reported, and the last numbers stay.
    terminal.top(&router, "");
    terminal.expect("Enter: open");
    router.kill();
    terminal.expect("no mcastor answers on");
    terminal.expect("out1");
    terminal.keys(&["q"]);
}

fn top_prints_plain_lines_without_a_terminal(lab: &Lab) {
    let (star, router) = start_router(lab);
    send(&star);
    router.expect_routed("cams", "out2", 60);
    let text = router.run("top --once --interval 0.1");
    for title in [
        "Interfaces (",
        "Flows (3)",
        "Drops (1)",
        "Joins (0)",
        "Streams (0)",
    ] {
        assert!(text.contains(title), "{text}");
    }
    assert!(!text.contains('\u{1b}'), "{text}");
    let row = line(&text, &["225.1.2.1"]);
    assert_eq!(
        &row[..6],
        ["in", "10.0.0.10", "225.1.2.1", "0", "0", "30"],
        "{text}"
    );
    assert_eq!(line(&text, &["no_route"])[0], "7", "{text}");
    let flows = router.run("top --once --interval 0.1 --view flows");
    assert!(
        flows.starts_with("Flows (3)") && !flows.contains("Drops"),
        "{flows}"
    );
    let nobody = star
        .rtr
        .output(BINARY, &["top", "--socket", "/nonexistent/socket"]);
    assert_eq!(nobody.status.code(), Some(1));
}
