//! `send`, `recv` and `record` with RTP, and captures that are played, compared with tshark.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::cases;
use crate::lab::router::BINARY;
use crate::lab::tshark::{Tcpdump, rtp_streams, tshark};
use crate::lab::{Injector, Lab, Ns, Program, Star, TIMEOUT, Udp, UdpRx, eventually, wait_until};

cases!("rtp":
    #[Program("tcpdump", "tcpdump")] #[Program("tshark", "tshark")]
    recv_counts_rtp_as_tshark_does,
    #[Program("tcpdump", "tcpdump")] #[Program("tshark", "tshark")]
    sent_rtp_is_rtp_for_tshark,
    #[Program("tcpdump", "tcpdump")] #[Program("tshark", "tshark")]
    capture_is_played_at_its_pace,
    #[Program("tcpdump", "tcpdump")] #[Program("tshark", "tshark")]
    fragments_and_truncated_packets_are_skipped,
    #[Program("tshark", "tshark")] record_writes_the_time_around_a_loss,
    #[Program("tshark", "tshark")] record_writes_on_signals_and_keeps_to_its_memory,
    record_reports_silence_and_absence,
);

const GROUP: &str = "225.1.2.3";

/// The frame of an RTP packet to [`GROUP`], with a clock of 8,000 Hz.
fn rtp(ssrc: u32, sequence: u16, timestamp: u32, len: usize) -> Vec<u8> {
    let mut payload = vec![0x80, 0];
    payload.extend(sequence.to_be_bytes());
    payload.extend(timestamp.to_be_bytes());
    payload.extend(ssrc.to_be_bytes());
    payload.resize(len.max(payload.len()), 0x55);
    Udp::new("10.0.0.10:9", &format!("{GROUP}:5000"), payload).frame()
}

/// Starts a command of mcastor in `ns`, and waits until its standard error has a word.
#[track_caller]
fn start(lab: &Lab, ns: &Ns, words: &str, ready: &str) -> Program {
    let program = ns.spawn(lab, BINARY, &words.split_whitespace().collect::<Vec<_>>());
    let is_ready = wait_until(TIMEOUT, || program.stderr().contains(ready));
    assert!(is_ready, "{words}: {}", program.stderr());
    program
}

#[track_caller]
fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// Runs a command of mcastor in `ns`; returns its exit code and the JSON that it prints.
#[track_caller]
fn run(ns: &Ns, words: &str) -> (Option<i32>, Value) {
    let out = ns.output(BINARY, &words.split_whitespace().collect::<Vec<_>>());
    let errors = String::from_utf8_lossy(&out.stderr);
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(!text.is_empty(), "{words}: {errors}");
    (out.status.code(), json(&text))
}

/// Two streams, one with chosen faults: three packets dropped, one doubled, two swapped; its numbers
/// wrap.
fn recv_counts_rtp_as_tshark_does(lab: &Lab) {
    let star = Star::v4(lab, 0);
    let capture = Tcpdump::start(lab, &star.rtr, "in");
    let words =
        format!("recv --interface in --group {GROUP} --rtp --json --count 297 --seconds 60");
    let mut recv = start(lab, &star.rtr, &words, "joined");
    let inject = Injector::new(&star.src, "eth0");
    let mut order: Vec<u16> = (0..200).filter(|n| ![10, 11, 50].contains(n)).collect();
    order.insert(31, order[30]);
    let swapped = order.iter().position(|n| *n == 70).expect("70");
    order.swap(swapped, swapped + 1);
    for (n, number) in order.iter().enumerate() {
        let sequence = 65_450u16.wrapping_add(*number);
        inject.send(&rtp(0xaabb_ccdd, sequence, u32::from(*number) * 16, 100));
        if n % 2 == 1 {
            inject.send(&rtp(7, (n / 2) as u16, n as u32 * 16, 100));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    // 98 or 99 packets of the second stream, so that all have 296 numbers, and one more.
    let sent = order.len() + order.len() / 2;
    assert_eq!(sent, 198 + 99);
    inject.send(&rtp(0xaabb_ccdd, 65_450u16.wrapping_add(200), 3200, 100));
    assert_eq!(recv.wait().code(), Some(1), "{}", recv.stderr());
    let report = json(&recv.stdout());
    let file = capture.finish(&star.rtr, sent + 1);
    let expected = rtp_streams(&star.rtr, &file);
    assert_eq!(expected.len(), 2, "{expected:?}");
    let streams = report["streams"].as_array().expect("streams");
    for expected in &expected {
        let stream = streams.iter().find(|s| s["rtp"]["ssrc"] == expected.ssrc);
        let stream = stream.unwrap_or_else(|| panic!("{report}"));
        let sequence = &stream["rtp"]["sequence"];
        let count = |value: &Value| value.as_i64().unwrap_or_else(|| panic!("{stream}"));
        let duplicates = count(&sequence["duplicates"]);
        assert_eq!(
            count(&stream["received"]) + duplicates,
            expected.packets as i64
        );
        assert_eq!(count(&sequence["lost"]) - duplicates, expected.lost);
        let faults = match expected.ssrc {
            7 => (0, 0, 0),
            _ => (3, 1, 1),
        };
        let found = (
            count(&sequence["lost"]),
            count(&sequence["reordered"]),
            duplicates,
        );
        assert_eq!(found, faults, "{stream}");
        // Both have the times of the kernel.
        for (ours, theirs) in [
            (&stream["jitter_us"]["mean"], expected.mean_jitter),
            (&stream["jitter_us"]["max"], expected.max_jitter),
            (&stream["max_delta_us"], expected.max_delta),
        ] {
            let ours = ours.as_f64().expect("a number") / 1000.0;
            let is_near = (ours - theirs).abs() < 0.02 + theirs * 0.05;
            assert!(is_near, "{ours} ms, tshark {theirs} ms: {stream}");
        }
    }
}

fn sent_rtp_is_rtp_for_tshark(lab: &Lab) {
    let star = Star::v4(lab, 0);
    let capture = Tcpdump::start(lab, &star.rtr, "in");
    let words = format!("recv --interface in --group {GROUP} --flows 2 --rtp --json --count 100");
    let mut recv = start(lab, &star.rtr, &words, "joined 225.1.2.4");
    let (code, sent) = run(
        &star.src,
        &format!(
            "send --interface eth0 --group {GROUP} --flows 2 --count 100 --rate 500 --json --rtp \
             --payload-type 0 --ssrc 0x1234abcd --sequence 65530 --timestamp 7 --size 172"
        ),
    );
    assert_eq!(code, Some(0));
    let ssrcs = serde_json::json!([0x1234_abcdu32, 0x1234_abceu32]);
    assert_eq!(sent["rtp"]["ssrcs"], ssrcs);
    assert_eq!(
        (sent["packets"].as_u64(), &sent["rtp"]["clock_rate"]),
        (Some(200), &8000.into())
    );
    assert_eq!(recv.wait().code(), Some(0), "{}", recv.stdout());
    assert_eq!(json(&recv.stdout())["received"], 200);
    let file = capture.finish(&star.rtr, 200);
    let streams = rtp_streams(&star.rtr, &file);
    let mut counts: Vec<_> = streams
        .iter()
        .map(|s| (s.ssrc, s.packets, s.lost))
        .collect();
    counts.sort_unstable();
    assert_eq!(counts, [(0x1234_abcd, 100, 0), (0x1234_abce, 100, 0)]);
    let fields = "-d udp.port==5000,rtp -Y rtp.ssrc==0x1234abcd -T fields -e rtp.p_type -e rtp.seq \
                  -e rtp.timestamp -e udp.length";
    let text = tshark(&star.rtr, &file, fields);
    let expected = (0..100u32).map(|n| {
        let sequence = 65_530u16.wrapping_add(n as u16);
        format!("0\t{sequence}\t{}\t180", 7 + n * 16)
    });
    assert_eq!(
        text.lines().collect::<Vec<_>>(),
        expected.collect::<Vec<_>>()
    );
}

/// Captures 50 test packets at 100 a second.
fn captured(lab: &Lab, star: &Star) -> PathBuf {
    let capture = Tcpdump::start(lab, &star.rtr, "in");
    let words = format!("send --interface eth0 --group {GROUP} --count 50 --rate 100 --json");
    assert_eq!(run(&star.src, &words).0, Some(0));
    capture.finish(&star.rtr, 50)
}

/// Converts a capture with editcap.
fn convert(ns: &Ns, from: &Path, words: &str) -> PathBuf {
    let to = from.with_extension("converted");
    let (source, target) = (from.display().to_string(), to.display().to_string());
    let mut args: Vec<&str> = words.split_whitespace().collect();
    args.extend([source.as_str(), &target]);
    let out = ns.output("editcap", &args);
    assert!(out.status.success(), "{out:?}");
    to
}

fn capture_is_played_at_its_pace(lab: &Lab) {
    let star = Star::v4(lab, 0);
    let pcap = captured(lab, &star);
    let pcapng = convert(&star.rtr, &pcap, "-F pcapng");
    let own = UdpRx::join(&star.rtr, "in", &format!("{GROUP}:5000"));
    let other = UdpRx::join(&star.rtr, "in", "225.9.9.9:6000");
    let play = |file: &Path, words: &str| {
        let file = file.display();
        let started = Instant::now();
        let words = format!("send --interface eth0 --play {file} --json {words}");
        let (code, report) = run(&star.src, &words);
        assert_eq!(
            (code, report["packets"].as_u64()),
            (Some(0), Some(50)),
            "{report}"
        );
        let captured = report["capture_seconds"].as_f64().expect("a number");
        assert!((0.4..5.0).contains(&captured), "{report}");
        started.elapsed().as_secs_f64() / captured
    };
    // At its own pace, to its own group: never faster, and not much slower.
    let factor = play(&pcap, "");
    assert!((0.95..10.0).contains(&factor), "{factor}");
    let factor = play(&pcapng, "--group 225.9.9.9 --port 6000 --speed 0");
    assert!(factor < 0.8, "{factor}");
    let first = own.expect(50);
    assert_eq!(other.expect(50), first);
    let numbers = first.iter().map(|payload| payload[23]);
    assert!(
        numbers.eq(0..50),
        "the payloads of the capture, in their order"
    );
}

fn fragments_and_truncated_packets_are_skipped(lab: &Lab) {
    let star = Star::v4(lab, 0);
    let capture = Tcpdump::start(lab, &star.rtr, "in");
    for words in [
        "--count 3 --size 3000",
        "--count 4 --port 5001",
        "--count 5",
    ] {
        let words = format!("send --interface eth0 --group {GROUP} --rate 0 --json {words}");
        assert_eq!(run(&star.src, &words).0, Some(0));
    }
    // Of three fragments, the filter `udp` accepts all: they name the protocol in the IP header.
    let file = capture.finish(&star.rtr, 9 + 4 + 5);
    let rx = UdpRx::join(&star.rtr, "in", &format!("{GROUP}:5000"));
    let play = |file: &Path, words: &str| {
        let file = file.display();
        let words = format!("send --interface eth0 --speed 0 --json --play {file} {words}");
        run(&star.src, &words)
    };
    let (code, report) = play(&file, &format!("--only {GROUP}:5000"));
    assert_eq!(
        (code, report["packets"].as_u64()),
        (Some(0), Some(5)),
        "{report}"
    );
    let skipped = &report["skipped"];
    assert_eq!(
        (&skipped["fragments"], &skipped["not_selected"]),
        (&9.into(), &4.into())
    );
    rx.expect(5);
    let short = convert(&star.rtr, &file, "-s 100");
    let (code, report) = play(&short, "");
    assert_eq!(
        (code, report["packets"].as_u64()),
        (Some(1), Some(0)),
        "{report}"
    );
    // The first two fragments of each packet are truncated too.
    assert_eq!(report["skipped"]["truncated"], 9 + 6, "{report}");
    assert_eq!(report["skipped"]["fragments"], 3, "{report}");
    std::fs::write(&short, "no capture").expect("a file");
    let words = format!("send --interface eth0 --play {}", short.display());
    let out = star
        .src
        .output(BINARY, &words.split(' ').collect::<Vec<_>>());
    let errors = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{errors}");
    assert!(
        errors.contains("it is not a pcap or pcapng file"),
        "{errors}"
    );
}

/// Returns the lines of the files that `record` has written so far.
fn written(record: &Program) -> Vec<Value> {
    record.stdout().lines().map(json).collect()
}

fn record_writes_the_time_around_a_loss(lab: &Lab) {
    let star = Star::v4(lab, 0);
    let file = lab.file("stream.pcapng");
    let words = format!(
        "record in {GROUP}:5000 --on loss --ring 1h --after 300ms --json {}",
        file.display()
    );
    let mut record = start(lab, &star.rtr, &words, "recording");
    let inject = Injector::new(&star.src, "eth0");
    // Other ports, other groups and reordering are no loss.
    inject.send(&Udp::new("10.0.0.10:9", &format!("{GROUP}:5001"), "x").frame());
    inject.send(&Udp::new("10.0.0.10:9", "225.1.2.4:5000", "x").frame());
    for number in [0, 2, 1, 3, 4, 7, 8] {
        inject.send(&rtp(7, number, 0, 100));
    }
    eventually("a file after the loss", 1, || written(&record).len());
    let first = &written(&record)[0];
    assert_eq!(first["reasons"]["lost"], 2, "{first}");
    assert_eq!(
        (&first["packets"], &first["left_out"]),
        (&7.into(), &0.into())
    );
    assert_eq!(first["file"], file.display().to_string());
    let streams = rtp_streams(&star.rtr, &file);
    assert_eq!(
        (streams[0].ssrc, streams[0].packets, streams[0].lost),
        (7, 7, 2)
    );
    let text = tshark(&star.rtr, &file, "-q -z io,stat,0");
    assert!(text.contains("Frames"), "{text}");
    let info = star.rtr.output("capinfos", &[&file.display().to_string()]);
    let info = String::from_utf8_lossy(&info.stdout).into_owned();
    assert!(
        info.contains("225.1.2.3 on in: 2 RTP packets lost"),
        "{info}"
    );
    assert_eq!(record.stop(libc::SIGTERM, TIMEOUT).code(), Some(0));
}

/// Each packet is in one file, or counted as left out.
fn record_writes_on_signals_and_keeps_to_its_memory(lab: &Lab) {
    let star = Star::v4(lab, 0);
    let file = lab.file("stream.pcapng");
    std::fs::write(&file, "earlier").expect("a file");
    let words = format!("record in {GROUP} --memory 1 --json {}", file.display());
    let mut record = start(lab, &star.rtr, &words, "recording");
    let inject = Injector::new(&star.src, "eth0");
    let mut sent = 0;
    let mut send = |packets: u16| {
        for _ in 0..packets {
            inject.send(&rtp(7, sent, 0, 1200));
            sent += 1;
        }
        // All of them have been read, when a later one is.
        std::thread::sleep(Duration::from_millis(300));
    };
    send(20);
    record.signal(libc::SIGUSR1);
    eventually("a file after the signal", 1, || written(&record).len());
    send(1500);
    assert_eq!(record.stop(libc::SIGINT, TIMEOUT).code(), Some(0));
    let files = written(&record);
    let count = |n: usize, name: &str| files[n][name].as_u64().expect("a number");
    assert_eq!(
        (count(0, "packets"), &files[0]["reasons"]["signal"]),
        (20, &true.into())
    );
    assert_eq!(files[1]["reasons"]["end"], true);
    assert_eq!(
        count(1, "packets") + count(1, "left_out"),
        1500,
        "{files:?}"
    );
    assert!(
        count(1, "packets") < 900 && count(1, "packets") > 700,
        "{files:?}"
    );
    assert_eq!(std::fs::read_to_string(&file).expect("a file"), "earlier");
    for (n, first) in [(0, 0), (1, sent - count(1, "packets") as u16)] {
        let path = PathBuf::from(files[n]["file"].as_str().expect("a path"));
        assert_eq!(
            path,
            file.with_file_name(format!("{}-{}.pcapng", stem(&file), n + 2))
        );
        let numbers = "-d udp.port==5000,rtp -T fields -e rtp.seq";
        let numbers = tshark(&star.rtr, &path, numbers);
        assert_eq!(numbers.lines().count() as u64, count(n, "packets"));
        assert_eq!(numbers.lines().next(), Some(first.to_string().as_str()));
    }
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn record_reports_silence_and_absence(lab: &Lab) {
    let star = Star::v4(lab, 0);
    let file = lab.file("stream.pcapng");
    let path = file.display();
    let words = format!("record in {GROUP} --on silence=500ms --after 0s --json {path}");
    let mut record = start(lab, &star.rtr, &words, "recording");
    // Before the first packet there is nothing to write.
    eventually("the silence is reported", true, || {
        record
            .stderr()
            .contains("nothing to write (the stream fell silent)")
    });
    Injector::new(&star.src, "eth0").send(&rtp(7, 1, 0, 100));
    record.signal(libc::SIGUSR1);
    let files = || written(&record).len();
    assert!(wait_until(TIMEOUT, || files() > 0), "{}", record.stderr());
    assert_eq!(record.stop(libc::SIGTERM, TIMEOUT).code(), Some(0));
    let words = format!("record in {GROUP} --seconds 1 {path}");
    let out = star
        .rtr
        .output(BINARY, &words.split(' ').collect::<Vec<_>>());
    assert_eq!(out.status.code(), Some(3), "{out:?}");
    let words = format!("record nope {GROUP} {path}");
    let out = star
        .rtr
        .output(BINARY, &words.split(' ').collect::<Vec<_>>());
    assert_eq!(out.status.code(), Some(2), "{out:?}");
    assert!(String::from_utf8_lossy(&out.stderr).contains("no interface `nope`"));
    // A folder that does not exist is reported before anything is recorded.
    let words = format!("record in {GROUP} --seconds 1 {path}.d/stream.pcapng");
    let out = star
        .rtr
        .output(BINARY, &words.split(' ').collect::<Vec<_>>());
    assert_eq!(out.status.code(), Some(2), "{out:?}");
    assert!(String::from_utf8_lossy(&out.stderr).contains("no file can be created in"));
}
