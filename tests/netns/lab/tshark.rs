//! Captures with tcpdump, read by tshark and the other tools of Wireshark.

use std::path::{Path, PathBuf};

use super::{Lab, Ns, Program, TIMEOUT, wait_until};

/// tcpdump, writing to a file.
pub struct Tcpdump {
    program: Program,
    path: PathBuf,
}

impl Tcpdump {
    /// Captures UDP packets on `iface`, and waits until it does.
    #[track_caller]
    pub fn start(lab: &Lab, ns: &Ns, iface: &str) -> Self {
        let path = lab.file("capture.pcap");
        let file = path.display().to_string();
        // Packet by packet, with nanoseconds; as root, because the file is in the folder of root.
        let words = ["-i", iface, "-U", "-w", &file, "-Z", "root", "-B", "16384"];
        let options = ["--immediate-mode", "--time-stamp-precision=nano", "udp"];
        let program = ns.spawn(lab, "tcpdump", &[&words[..], &options].concat());
        let listens = wait_until(TIMEOUT, || program.stderr().contains("listening on"));
        assert!(listens, "tcpdump: {}", program.stderr());
        Self { program, path }
    }

    /// Waits until the file has `packets`, ends, and returns the file.
    #[track_caller]
    pub fn finish(mut self, ns: &Ns, packets: usize) -> PathBuf {
        let all = wait_until(TIMEOUT, || packets_in(ns, &self.path) >= packets);
        self.program.stop(libc::SIGINT, TIMEOUT);
        assert!(all, "{} packets", packets_in(ns, &self.path));
        self.path
    }
}

/// Returns the number of packets in a file.
fn packets_in(ns: &Ns, path: &Path) -> usize {
    let out = ns.output("tcpdump", &["-nr", &path.display().to_string()]);
    String::from_utf8_lossy(&out.stdout).lines().count()
}

/// Runs tshark on a file and returns what it prints.
#[track_caller]
pub fn tshark(ns: &Ns, path: &Path, words: &str) -> String {
    let file = path.display().to_string();
    let mut args = vec!["-r", &file, "-n"];
    args.extend(words.split_whitespace());
    let out = ns.output("tshark", &args);
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "tshark {words}: {errors}");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// What `tshark -z rtp,streams` says of a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct TsharkStream {
    /// Synchronisation source.
    pub ssrc: u32,
    /// Packets, with duplicates.
    pub packets: u64,
    /// Expected packets less `packets`.
    pub lost: i64,
    /// Jitter in milliseconds.
    pub mean_jitter: f64,
    /// Largest jitter in milliseconds.
    pub max_jitter: f64,
    /// Longest time between two packets in milliseconds.
    pub max_delta: f64,
}

/// Returns the RTP streams to UDP port 5000 in a file.
#[track_caller]
pub fn rtp_streams(ns: &Ns, path: &Path) -> Vec<TsharkStream> {
    let text = tshark(ns, path, "-d udp.port==5000,rtp -q -z rtp,streams");
    let rows = text.lines().filter(|line| line.contains("0x"));
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ssrc = words.iter().position(|word| word.starts_with("0x"));
        let after = &words[ssrc.expect("an SSRC")..];
        // The numbers behind "lost (percent)" are: deltas and jitters, each min, mean and max.
        let percent = after.iter().position(|word| word.ends_with("%)"));
        let percent = percent.unwrap_or_else(|| panic!("{text}"));
        let number = |position: usize| -> f64 {
            let word = after.get(position).unwrap_or_else(|| panic!("{line}"));
            word.parse().unwrap_or_else(|_| panic!("{word}: {line}"))
        };
        let digits = after[0].trim_start_matches("0x");
        TsharkStream {
            ssrc: u32::from_str_radix(digits, 16).expect("hex"),
            packets: number(percent - 2) as u64,
            lost: number(percent - 1) as i64,
            max_delta: number(percent + 3),
            mean_jitter: number(percent + 5),
            max_jitter: number(percent + 6),
        }
    };
    rows.map(row).collect()
}
