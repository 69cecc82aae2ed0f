//! The eBPF plane without its process: what is pinned forwards on, and the next process continues.

use super::ebpf::wait_until_offloaded;
use super::{cases, route};
use crate::lab::bpffs::BpfFs;
use crate::lab::ns::BPFFS_VARIABLE;
use crate::lab::numbered_stream::{NumberedStream, missing, received_in_order};
use crate::lab::random::Random;
use crate::lab::{Capture, Lab, Router, Star, TIMEOUT, eventually, wait_until};

cases!("ebpf_restart":
    #[BpfPrograms] killed_process_loses_nothing,
    #[BpfPrograms] settings_changed_between_processes_apply_at_start,
    #[BpfPrograms] removed_routes_are_not_forwarded_after_the_start,
    #[BpfPrograms] packet_plane_replaces_what_is_pinned,
    #[BpfPrograms] interfaces_change_while_there_is_no_process,
    #[BpfPrograms] process_that_does_not_return_is_missed,
    #[BpfPrograms] stop_can_keep_forwarding,
    #[BpfPrograms] flows_continue_with_other_table_sizes,
    #[BpfPrograms] log_says_what_outlives_the_process,
    #[BpfPrograms] filters_forward_on_without_a_bpf_file_system,
    #[BpfPrograms] filters_that_were_left_are_removed,
    #[Program("bpftool", "bpftool")] #[BpfPrograms] tables_of_another_version_are_replaced,
    #[BpfPrograms] second_process_is_refused,
);

const GROUP: &str = "225.1.2.3";

pub(super) fn bpffs_settings(bpffs: &BpfFs, routes: &str) -> String {
    let bpffs = bpffs.folder();
    let bpffs = bpffs.display();
    format!("[plane]\nkind = \"ebpf\"\nbpffs = \"{bpffs}\"\norphan_after = \"60s\"\n{routes}")
}

/// A stream that the kernel forwards, and what arrives of it.
struct Stream {
    stream: NumberedStream,
    capture: Capture,
    group: String,
}

impl Stream {
    fn start(star: &Star, source: &str, group: &str, arrives_as: &str, per_second: u32) -> Self {
        let capture = Capture::new(&star.rcv, "eth1");
        Self {
            stream: NumberedStream::start(&star.src, "eth0", source, group, per_second),
            capture,
            group: arrives_as.into(),
        }
    }

    /// Waits until this many more packets have been sent.
    #[track_caller]
    fn go_on(&self, packets: u32) {
        self.stream.wait_for_more(packets);
        self.capture.collect();
    }

    /// Ends the stream, of which all packets must have arrived in their order.
    #[track_caller]
    fn expect_all(self) -> u32 {
        let sent = self.stream.finish();
        self.capture.expect(&self.group, sent as usize);
        let got = received_in_order(&self.capture, &self.group);
        assert!(missing(sent, &got).is_empty(), "{:?}", missing(sent, &got));
        assert_eq!(got.len(), sent as usize);
        sent
    }
}

/// Starts a router with these settings, and a stream that the kernel then forwards.
#[track_caller]
fn start_offloaded(lab: &Lab, star: &Star, toml: &str) -> (Router, Stream) {
    let router = Router::start(lab, &star.rtr, toml);
    let stream = Stream::start(star, "10.0.0.10:4000", "225.1.2.3:5000", GROUP, 2000);
    wait_until_offloaded(&router, "out1");
    (router, stream)
}

/// Returns how often the process is killed. `make soak` sets another number.
pub(super) fn restarts() -> u32 {
    let named = std::env::var("MCASTOR_SOAK_RESTARTS").ok();
    named.map_or(8, |n| n.parse().expect("a number"))
}

/// The process is killed again and again: while it forwards, and while it starts. No packet of an
/// IPv4 stream, an IPv6 stream and a rewritten one is lost, doubled or late.
fn killed_process_loses_nothing(lab: &Lab) {
    let bpffs = BpfFs::mount(lab);
    let star = Star::dual(lab, 1);
    let mut routes = route("r", "in", "", GROUP, &["out1"], "");
    routes += &route("r6", "in", "", "ff3e::1:2", &["out1"], "");
    let rewrite = "rewrite = { group = \"239.9.9.9\" }\n";
    routes += &route("rw", "in", "10.0.0.10", "225.7.7.7", &["out1"], rewrite);
    let mut router = Router::start(lab, &star.rtr, &bpffs_settings(&bpffs, &routes));
    let rate = 4000 / crate::lab::slowness().min(4);
    let streams = [
        ("10.0.0.10:4000", "225.1.2.3:5000", GROUP),
        ("[fd00::10]:4000", "[ff3e::1:2]:5000", "ff3e::1:2"),
        ("10.0.0.10:4001", "225.7.7.7:5000", "239.9.9.9"),
    ];
    let streams = streams
        .map(|(source, group, arrives_as)| Stream::start(&star, source, group, arrives_as, rate));
    let all_offloaded = || router.run("show flows").matches("ebpf").count() == 3;
    assert!(
        wait_until(TIMEOUT, all_offloaded),
        "{}",
        router.run("show flows")
    );
    // What the process itself forwarded must be in the stored counters.
    let stored = router.socket.with_extension("state").join("learned");
    let is_stored = || {
        let text = std::fs::read_to_string(&stored).unwrap_or_default();
        text.matches("mcastor_route_packets_total").count() == 6
    };
    assert!(wait_until(TIMEOUT, is_stored), "{}", stored.display());
    streams.iter().for_each(|stream| stream.go_on(rate));
    let mut random = Random::default();
    for _ in 0..restarts() {
        streams
            .iter()
            .for_each(|stream| stream.go_on(1 + random.below(500) as u32));
        router.kill();
        streams
            .iter()
            .for_each(|stream| stream.go_on(1 + random.below(500) as u32));
        router.launch_again(lab);
        // Some of these times are shorter than the start takes.
        let start = std::time::Duration::from_millis(random.below(400) as u64);
        std::thread::sleep(start);
        streams.iter().for_each(|stream| stream.capture.collect());
    }
    router.kill();
    router.start_again(lab);
    assert!(wait_until(TIMEOUT, || router
        .run("show flows")
        .matches("ebpf")
        .count()
        == 3));
    streams.iter().for_each(|stream| stream.go_on(500));
    let sent = streams.map(Stream::expect_all);
    assert!(sent.iter().all(|sent| *sent > 1000), "{sent:?}");
    // Some packets may count twice: those since the last time at which the counters were stored, if
    // the process was killed in the moment after that.
    for (route, sent) in ["r", "r6", "rw"].into_iter().zip(sent) {
        let labels = [("route", route), ("oif", "out1")];
        let counted = router.metric("mcastor_route_packets_total", &labels) as u32;
        let most = sent + sent / 50;
        assert!(
            (sent..=most).contains(&counted),
            "{route}: {counted} of {sent}"
        );
    }
    router.stop();
    assert_eq!(bpffs.pinned(), Vec::<String>::new());
}

/// An egress and a TTL that were added while there was no process.
fn settings_changed_between_processes_apply_at_start(lab: &Lab) {
    let bpffs = BpfFs::mount(lab);
    let star = Star::v4(lab, 2);
    let routes = route("r", "in", "", GROUP, &["out1"], "");
    let other = Capture::new(&star.rcv, "eth2");
    let (mut router, stream) = start_offloaded(lab, &star, &bpffs_settings(&bpffs, &routes));
    router.kill();
    let routes = route(
        "r",
        "in",
        "",
        GROUP,
        &["out2", "out1"],
        "ttl = { set = 99 }\nloop_guard = false\n",
    );
    router.write_settings(&bpffs_settings(&bpffs, &routes));
    stream.go_on(200);
    assert!(other.to(GROUP).is_empty(), "the old settings apply");
    router.start_again(lab);
    stream.go_on(500);
    wait_until_offloaded(&router, "out2");
    stream.expect_all();
    let got = other.to(GROUP);
    assert!(got.len() > 400, "{}", got.len());
    assert!(got.iter().all(|packet| packet.ttl == 99), "TTL");
}

/// When the new process is ready, nothing is forwarded that its settings do not forward.
fn removed_routes_are_not_forwarded_after_the_start(lab: &Lab) {
    let bpffs = BpfFs::mount(lab);
    for (tag, ingress) in [("a", "in"), ("b", "out1")] {
        let star = Star::tagged(lab, 1, tag);
        let routes = route("r", "in", "", GROUP, &["out1"], "");
        let (mut router, stream) = start_offloaded(lab, &star, &bpffs_settings(&bpffs, &routes));
        router.kill();
        let egress = if ingress == "in" { "out1" } else { "in" };
        let other = route("other", ingress, "", "225.9.9.9", &[egress], "");
        router.write_settings(&bpffs_settings(&bpffs, &other));
        stream.go_on(200);
        router.start_again(lab);
        let after = Capture::new(&star.rcv, "eth1");
        stream.go_on(500);
        assert_eq!(after.to(GROUP).len(), 0, "{ingress}");
        router.stop();
        assert_eq!(bpffs.pinned(), Vec::<String>::new());
    }
}

/// What the kernel forwarded is forwarded once, by packet sockets.
fn packet_plane_replaces_what_is_pinned(lab: &Lab) {
    let bpffs = BpfFs::mount(lab);
    for (n, change) in ["kind = \"packet\"", "interface"].into_iter().enumerate() {
        let star = Star::tagged(lab, 1, &n.to_string());
        let mut routes = route("r", "in", "", GROUP, &["out1"], "");
        let (mut router, stream) = start_offloaded(lab, &star, &bpffs_settings(&bpffs, &routes));
        router.kill();
        if change == "interface" {
            routes += "[[interface]]\nname = \"in\"\nplane = \"packet\"\n";
        }
        let new = bpffs_settings(&bpffs, &routes).replace(
            "kind = \"ebpf\"",
            match change {
                "interface" => "kind = \"ebpf\"",
                other => other,
            },
        );
        router.write_settings(&new);
        router.start_again(lab);
        stream.go_on(500);
        let sent = stream.stream.finish();
        let got = received_in_order(&stream.capture, GROUP);
        let lost = missing(sent, &got);
        // The kernel has stopped before the capture opens.
        assert!(lost.len() < 2000, "{} of {sent}", lost.len());
        let labels = [("plane", "packet"), ("oif", "out1")];
        let by_sockets = router.metric("mcastor_route_packets_total", &labels);
        assert!(by_sockets > 400.0, "{by_sockets}");
        router.stop();
        assert_eq!(bpffs.pinned(), Vec::<String>::new());
    }
}

/// An ingress is renamed, and one is removed and made again.
fn interfaces_change_while_there_is_no_process(lab: &Lab) {
    let bpffs = BpfFs::mount(lab);
    let star = Star::v4(lab, 1);
    let routes = route("r", "in*", "", GROUP, &["out1"], "");
    let (mut router, stream) = start_offloaded(lab, &star, &bpffs_settings(&bpffs, &routes));
    router.kill();
    star.rtr.ip("link set dev in down");
    star.rtr.ip("link set dev in name input");
    star.rtr.ip("link set dev input up");
    router.start_again(lab);
    let labels = [("iif", "input"), ("oif", "out1"), ("plane", "ebpf")];
    let is_counted = || router.metric("mcastor_route_packets_total", &labels) > 100.0;
    assert!(
        wait_until(TIMEOUT, is_counted),
        "{}",
        router.run("show flows")
    );
    stream.stream.finish();
    router.kill();
    star.rtr.ip("link del dev input");
    router.start_again(lab);
    router.stop();
    assert_eq!(bpffs.pinned(), Vec::<String>::new());
}

/// `plane.orphan_after` ends the forwarding, and `mcastor cleanup` removes the rest.
fn process_that_does_not_return_is_missed(lab: &Lab) {
    let bpffs = BpfFs::mount(lab);
    let star = Star::v4(lab, 1);
    let routes = route("r", "in", "", GROUP, &["out1"], "");
    let toml = bpffs_settings(&bpffs, &routes).replace("\"60s\"", "\"4s\"");
    let (mut router, stream) = start_offloaded(lab, &star, &toml);
    let folder = bpffs.folder().display().to_string();
    let cleanup = || {
        let out = star
            .rtr
            .output(crate::lab::BINARY, &["cleanup", "--bpffs", &folder]);
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let said = cleanup();
    assert!(said.contains("in use by a running mcastor"), "{said}");
    router.kill();
    let before = stream.capture.to(GROUP).len();
    stream.go_on(100);
    let goes_on = wait_until(TIMEOUT, || stream.capture.to(GROUP).len() >= before + 50);
    assert!(goes_on, "{before}");
    let mut arrived = 0;
    let has_ended = wait_until(TIMEOUT, || {
        let before = std::mem::replace(&mut arrived, stream.capture.to(GROUP).len());
        stream.go_on(200);
        stream.capture.to(GROUP).len() == before && before == arrived
    });
    assert!(has_ended, "the kernel forwards on");
    assert!(!bpffs.pinned().is_empty());
    // A process that has been silent for five seconds is not there any more.
    assert!(
        wait_until(TIMEOUT, || cleanup().contains(": removed")),
        "{:?}",
        bpffs.pinned()
    );
    assert_eq!(bpffs.pinned(), Vec::<String>::new());
    assert!(cleanup().contains("nothing to remove"));
}

fn stop_can_keep_forwarding(lab: &Lab) {
    let bpffs = BpfFs::mount(lab);
    let star = Star::v4(lab, 1);
    let routes = route("r", "in", "", GROUP, &["out1"], "");
    let (mut router, stream) = start_offloaded(lab, &star, &bpffs_settings(&bpffs, &routes));
    router.run("stop --keep-forwarding");
    router.program.wait();
    stream.go_on(500);
    router.start_again(lab);
    stream.go_on(500);
    router.program.stop(libc::SIGQUIT, TIMEOUT);
    stream.go_on(500);
    router.start_again(lab);
    stream.go_on(500);
    let log = router.program.stderr();
    assert!(
        log.contains("in: the kernel has forwarded 1 flows since"),
        "{log}"
    );
    let flows = router.control().show("flows");
    let packets = flows[0]["packets"].as_u64().unwrap_or_default();
    assert!(packets > 1000, "{flows:?}");
    let says_gap = || {
        router
            .program
            .stderr()
            .contains("in: captured again after at most")
    };
    assert!(wait_until(TIMEOUT, says_gap), "{}", router.program.stderr());
    stream.expect_all();
    router.stop();
    assert_eq!(bpffs.pinned(), Vec::<String>::new());
}

/// The next process has other limits.
fn flows_continue_with_other_table_sizes(lab: &Lab) {
    let bpffs = BpfFs::mount(lab);
    let star = Star::v4(lab, 1);
    let routes = route("r", "in", "", GROUP, &["out1"], "");
    let toml = bpffs_settings(&bpffs, &routes);
    let (mut router, stream) = start_offloaded(lab, &star, &toml);
    for flows in [100, 200_000, 1000] {
        router.kill();
        router.write_settings(&format!("{toml}[limits]\nflows = {flows}\n"));
        stream.go_on(100);
        router.start_again(lab);
        stream.go_on(500);
    }
    stream.expect_all();
}

fn log_says_what_outlives_the_process(lab: &Lab) {
    let bpffs = BpfFs::mount(lab);
    let star = Star::v4(lab, 1);
    let toml = bpffs_settings(&bpffs, &route("r", "in", "", GROUP, &["out1"], ""));
    let router = Router::start(lab, &star.rtr, &toml);
    let log = router.program.stderr();
    assert!(
        log.contains("the kernel forwards on for 1m (plane.orphan_after)"),
        "{log}"
    );
    router.stop();
    let other = lab.file("other");
    let toml = toml.replace(
        &bpffs.folder().display().to_string(),
        &other.display().to_string(),
    );
    let router = Router::start(lab, &star.rtr, &toml);
    let log = router.program.stderr();
    for expected in [
        "the kernel forwards on for 1m (plane.orphan_after), but",
        "is not in a BPF file system (plane.bpffs)",
    ] {
        assert!(log.contains(expected), "{log}");
    }
    assert!(!other.exists(), "a folder was made");
    router.stop();
}

/// Returns settings of the eBPF plane without a BPF file system.
fn settings_without_bpffs(lab: &Lab, orphan_after: &str, routes: &str) -> String {
    let folder = lab.file("no-bpf-file-system");
    format!(
        "[plane]\nkind = \"ebpf\"\nbpffs = \"{}\"\norphan_after = \"{orphan_after}\"\n{routes}",
        folder.display()
    )
}

/// Returns the filters at the ingress of an interface.
fn ingress_filters(star: &Star, interface: &str) -> String {
    let arguments = ["filter", "show", "dev", interface, "ingress"];
    let shown = star.rtr.output("tc", &arguments);
    String::from_utf8_lossy(&shown.stdout).into_owned()
}

/// Without the process nothing is lost. The next process starts with empty tables: packets that
/// arrive between its program and its capture are lost, and none is doubled.
fn filters_forward_on_without_a_bpf_file_system(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let routes = route("r", "in", "", GROUP, &["out1"], "");
    let toml = settings_without_bpffs(lab, "60s", &routes);
    let (mut router, stream) = start_offloaded(lab, &star, &toml);
    let mut lost = Vec::new();
    let mut sent = 0;
    for n in 0..4 {
        match n % 2 {
            0 => router.kill(),
            _ => {
                router.run("stop --keep-forwarding");
                router.program.wait();
            }
        }
        let killed_at = stream.stream.sent();
        stream.go_on(500);
        sent = stream.stream.sent();
        assert!(wait_until(TIMEOUT, || {
            let got = received_in_order(&stream.capture, GROUP);
            got.last().is_some_and(|last| *last >= sent)
        }));
        // The first of them may have been in the queue of the process.
        lost = missing(sent, &received_in_order(&stream.capture, GROUP));
        let while_gone = lost.iter().filter(|n| **n > killed_at + 50).count();
        assert_eq!(while_gone, 0, "lost without a process: {lost:?}");
        router.start_again(lab);
        wait_until_offloaded(&router, "out1");
        stream.go_on(200);
        let filters = ingress_filters(&star, "in");
        assert_eq!(filters.matches("handle 0x").count(), 1, "{filters}");
    }
    let all = stream.stream.finish();
    assert!(lost.len() < 400, "{} of {sent}", lost.len());
    println!("{} of {all} packets lost in 4 restarts", lost.len());
    router.stop();
    assert_eq!(ingress_filters(&star, "in"), "");
}

/// Filters of a process that died are removed by the next one where it does not capture, by one with
/// the packet plane, and by `mcastor cleanup`.
fn filters_that_were_left_are_removed(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let routes = route("r", "in", "", GROUP, &["out1"], "");
    let toml = settings_without_bpffs(lab, "60s", &routes);
    let (mut router, stream) = start_offloaded(lab, &star, &toml);
    let other = route("r", "out1", "", "225.9.9.9", &["in"], "");
    let other = settings_without_bpffs(lab, "60s", &other);
    let packet = toml.replace("\"ebpf\"", "\"packet\"");
    for settings in [other, packet] {
        router.kill();
        assert!(ingress_filters(&star, "in").contains("direct-action"));
        router.write_settings(&settings);
        router.start_again(lab);
        eventually("filters", String::new(), || ingress_filters(&star, "in"));
        router.write_settings(&toml);
        router.program.stop(libc::SIGTERM, TIMEOUT);
        router.start_again(lab);
        wait_until_offloaded(&router, "out1");
    }
    router.kill();
    // A kernel that keeps no names has nothing by which `cleanup` knows the filters.
    if ingress_filters(&star, "in").contains("mcastor_forward") {
        let out = star.rtr.output(crate::lab::BINARY, &["cleanup"]);
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(text.contains("programs on 1 interfaces: removed"), "{text}");
        assert_eq!(ingress_filters(&star, "in"), "");
    }
    stream.stream.finish();
}

/// Tables of another version cannot be read: the flows start anew, and no packet is doubled.
fn tables_of_another_version_are_replaced(lab: &Lab) {
    let bpffs = BpfFs::mount(lab);
    let star = Star::v4(lab, 1);
    let routes = route("r", "in", "", GROUP, &["out1"], "");
    let (mut router, stream) = start_offloaded(lab, &star, &bpffs_settings(&bpffs, &routes));
    router.kill();
    let pinned = bpffs.pinned();
    let instance = pinned.iter().find(|path| path.ends_with("/instance"));
    let instance = instance.expect("the table of the instance");
    // Layout 99, mark 7, never expired.
    let value = [
        ["99", "0", "0", "0", "7", "0", "0", "0"],
        ["0"; 8],
        ["255"; 8],
    ]
    .concat();
    let update = [
        "map", "update", "pinned", instance, "key", "0", "0", "0", "0", "value",
    ];
    let out = star.rtr.output("bpftool", &[&update[..], &value].concat());
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    router.start_again(lab);
    let log = router.program.stderr();
    let said = "another version of mcastor left tables in the kernel that this one cannot read";
    assert!(log.contains(said), "{log}");
    wait_until_offloaded(&router, "out1");
    stream.go_on(500);
    let sent = stream.stream.finish();
    let got = received_in_order(&stream.capture, GROUP);
    // Those that arrive after the program was replaced and before the capture is open.
    let lost = missing(sent, &got).len();
    assert!(lost < 500, "{lost} of {sent}");
    router.stop();
    assert_eq!(bpffs.pinned(), Vec::<String>::new());
}

/// A process with the same control socket does not touch what the first one uses.
fn second_process_is_refused(lab: &Lab) {
    let bpffs = BpfFs::mount(lab);
    let star = Star::v4(lab, 1);
    let routes = route("r", "in", "", GROUP, &["out1"], "");
    let (router, stream) = start_offloaded(lab, &star, &bpffs_settings(&bpffs, &routes));
    let before = bpffs.pinned();
    let config = router.config.display().to_string();
    let mut second = star.rtr.command(crate::lab::BINARY);
    second.env_remove(BPFFS_VARIABLE);
    let second = second.args(["run", "--config", &config]).output();
    let second = second.expect("a process");
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(
        !second.status.success() && said.contains("another mcastor answers on"),
        "{said}"
    );
    assert_eq!(bpffs.pinned(), before);
    stream.go_on(500);
    stream.expect_all();
}
