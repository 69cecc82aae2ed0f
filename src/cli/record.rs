//! `mcastor record`: keeps the latest packets of a stream, and writes them when something happens.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tempfile::NamedTempFile;

use super::exit::{FAILED, print_error, stream_failed};
use super::group_and_port::GroupAndPort;
use super::output::print_line;
use super::pcapng::{PcapPacket, PcapngWriter};
use super::signals::stop_on_signals;
use crate::model::{Group, IfName, Source};
use crate::probe::captured::{LINK_TYPE_IP, udp_datagram};
use crate::probe::packet_ring::{PacketRing, RingContents, RingPacket};
use crate::probe::record_events::{RecordConditions, RecordReasons, RecordSchedule, RecordWatch};
use crate::probe::{DatagramStats, ProbeDatagram, StreamError};
use crate::traffic::{GroupCapture, RtpReceiverStats};

/// Exit code if no file was written, because there was no packet.
const NO_PACKET: u8 = 3;

/// Longest wait before signals and conditions are checked.
const TICK: Duration = Duration::from_millis(20);

/// Most files with the same name and another number.
const MAX_NUMBER: u32 = 99_999;

/// Keep the last minute of a stream in memory, and write it to a file when something happens
///
/// Joins the group, captures its packets, and keeps the latest. Writes them to FILE on SIGUSR1, at
/// the end (SIGINT, SIGTERM, --seconds), and under the conditions of --on. Further files are
/// numbered: stream.pcapng, stream-2.pcapng. An existing file is never replaced.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "\
Examples:
  The last minute before Ctrl-C:
    mcastor record eth0 239.1.2.3 stream.pcapng

  For days: the minute around each loss of RTP packets, and around each silence of two seconds:
    mcastor record eth0 239.1.2.3:5004 --on loss --on silence=2s stream.pcapng

  Ten seconds on request, of one source:
    mcastor record eth0 232.1.2.3 --source 10.0.0.10 --ring 10s stream.pcapng
    kill -USR1 PID

  What is in the file:
    tshark -r stream.pcapng -d udp.port==5004,rtp -q -z rtp,streams

A file appears when it is complete. Its comment has the reason (capinfos FILE). Two files never
contain the same packet. A condition waits until the ring is full again after the last file, so that
a faulty stream makes one file in the time of --ring, and no packet between two files is missing.

Needs CAP_NET_RAW. Packets are recorded from the IP header on, as they arrive, with fragments, and
also those that the host's firewall drops. What this host itself sends is not recorded.

Exit codes: 0 a file was written, 1 a file could not be written, 2 invalid arguments or a socket
error, 3 no packet arrived.")]
pub struct RecordArgs {
    /// Interface to join and capture on
    #[arg(value_name = "INTERFACE")]
    interface: IfName,
    /// Group, and the UDP port if only packets to this port matter
    #[arg(value_name = "GROUP[:PORT]")]
    group: RecordedGroup,
    /// File to write, in pcapng format
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Only packets of this source; join it alone (source-specific multicast)
    #[arg(long, value_name = "ADDRESS")]
    source: Option<Source>,
    /// How much time is kept
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = ring_time)]
    ring: Duration,
    /// How much memory the packets may take, in MiB. The oldest ones are left out first
    #[arg(long, value_name = "MIB", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(1..=65_536))]
    memory: u32,
    /// Also write on this condition: `loss` of RTP packets, or `silence=TIME` without a packet
    #[arg(long, value_name = "CONDITION")]
    on: Vec<Condition>,
    /// With --on: write this time after the condition, so that the file has what follows
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    after: Duration,
    /// Write at most N files, so that a faulty stream does not fill the disk
    #[arg(long, value_name = "N", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(1..))]
    files: u32,
    /// Stop after this time
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=315_360_000))]
    seconds: Option<u64>,
    /// Print one JSON object a line for each file
    #[arg(long)]
    json: bool,
}

fn ring_time(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if (1..=3600).contains(&time.as_secs()) => Ok(time),
        _ => Err("the time must be 1s to 1h, such as 60s or 5m".into()),
    }
}

/// A group with or without a port.
#[derive(Debug, Clone, Copy)]
struct RecordedGroup {
    group: Group,
    port: Option<u16>,
}

impl FromStr for RecordedGroup {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let GroupAndPort { group, port } = text.parse()?;
        let group = Group::new(group).map_err(|e| e.to_string())?;
        Ok(Self { group, port })
    }
}

/// An argument of `--on`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Loss,
    Silence(Duration),
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("silence=")) {
            ("loss", _) => Ok(Self::Loss),
            (_, Some(time)) => match humantime::parse_duration(time) {
                Ok(time) if time >= Duration::from_millis(100) => Ok(Self::Silence(time)),
                _ => Err(format!(
                    "{time} is not a time of at least 100ms, such as 2s"
                )),
            },
            _ => Err("not a condition; there are `loss` and `silence=2s`".into()),
        }
    }
}

fn conditions(on: &[Condition]) -> RecordConditions {
    let silence = on.iter().find_map(|condition| match condition {
        Condition::Silence(time) => Some(*time),
        Condition::Loss => None,
    });
    RecordConditions {
        loss: on.contains(&Condition::Loss),
        silence,
    }
}

/// Runs `mcastor record`.
pub fn run(args: &RecordArgs) -> ExitCode {
    match record(args) {
        Ok(code) => code,
        Err(error) => stream_failed("record", &error),
    }
}

fn record(args: &RecordArgs) -> Result<ExitCode, StreamError> {
    let RecordedGroup { group, port } = args.group;
    let other_version = |s: &Source| s.addr().is_ipv4() != group.addr().is_ipv4();
    if let Some(source) = args.source.filter(other_version) {
        return Err(StreamError::Usage(format!(
            "--source {source} and {group} have different IP versions"
        )));
    }
    check_folder(&args.file)?;
    let stop = stop_on_signals()?;
    let request = on_request()?;
    let mut capture = GroupCapture::open(&args.interface, group, args.source)?;
    eprintln!("recording {group} on {}", args.interface);
    std::thread::scope(|scope| {
        // One file is written, and one waits.
        let (files, waiting) = sync_channel::<Recording>(1);
        let mut writer = RecordingWriter::new(args);
        let written = scope.spawn(move || {
            waiting
                .iter()
                .for_each(|recording| writer.write(&recording));
            writer
        });
        let ended = Recorder::new(args, group, port).run(&mut capture, &stop, &request, &files);
        // The writer ends when it has written everything.
        drop(files);
        let writer = written.join();
        ended?;
        Ok(match writer {
            Ok(writer) if !writer.has_failed => match writer.files {
                0 => NO_PACKET.into(),
                _ => ExitCode::SUCCESS,
            },
            _ => FAILED.into(),
        })
    })
}

/// Checks that files can be created beside `file`. What is to be recorded may happen only once, and
/// after days.
fn check_folder(file: &Path) -> Result<(), StreamError> {
    let folder = folder_of(file);
    match NamedTempFile::new_in(folder) {
        Ok(_) => Ok(()),
        Err(e) => Err(StreamError::Usage(format!(
            "no file can be created in {}: {}; name another folder",
            folder.display(),
            e.kind()
        ))),
    }
}

fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Returns a flag that SIGUSR1 sets.
fn on_request() -> Result<Arc<AtomicBool>, StreamError> {
    let request = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGUSR1, Arc::clone(&request)).map_err(
        |error| StreamError::System {
            what: "catch signals",
            error,
        },
    )?;
    Ok(request)
}

/// The packets of a file, and why it is written.
struct Recording {
    contents: RingContents,
    reasons: RecordReasons,
}

/// Captures, and decides when a file is written.
struct Recorder<'a> {
    args: &'a RecordArgs,
    group: Group,
    port: Option<u16>,
    ring: PacketRing,
    rtp: RtpReceiverStats,
    watch: RecordWatch,
    schedule: RecordSchedule,
    last_packet: Option<Duration>,
    /// Reasons whose file could not be handed over yet.
    late: Option<RecordReasons>,
}

impl<'a> Recorder<'a> {
    fn new(args: &'a RecordArgs, group: Group, port: Option<u16>) -> Self {
        let max_bytes = (args.memory as usize).saturating_mul(1 << 20);
        Self {
            args,
            group,
            port,
            ring: PacketRing::new(args.ring, max_bytes),
            rtp: RtpReceiverStats::default(),
            watch: RecordWatch::new(conditions(&args.on)),
            schedule: RecordSchedule::new(args.ring, args.after),
            last_packet: None,
            late: None,
        }
    }

    fn run(
        mut self,
        capture: &mut GroupCapture,
        stop: &AtomicBool,
        request: &AtomicBool,
        files: &SyncSender<Recording>,
    ) -> Result<(), StreamError> {
        let started = Instant::now();
        let limit = self.args.seconds.map_or(Duration::MAX, Duration::from_secs);
        loop {
            let received = capture.receive(TICK, &mut |received_ns, packet| {
                self.add(started.elapsed(), received_ns, packet);
            });
            let now = started.elapsed();
            let mut reasons = self.watch.poll(now, self.last_packet, self.rtp.lost());
            reasons.signal = request.swap(false, Ordering::Relaxed);
            reasons.end = stop.load(Ordering::Relaxed) || now >= limit || received.is_err();
            self.schedule.add(reasons, now);
            self.ring.expire(now_ns());
            if let Some(due) = self.schedule.poll(now) {
                self.hand_over(due, files);
            } else if let Some(due) = self.late.take() {
                self.hand_over(due, files);
            }
            if reasons.end {
                if let Some(late) = self.late.take() {
                    let contents = self.ring.take();
                    let recording = Recording {
                        contents,
                        reasons: late,
                    };
                    // Waits for the file before.
                    let _ = files.send(recording);
                }
                let dropped = capture.take_dropped();
                if dropped > 0 {
                    print_error(&format_args!(
                        "{dropped} packets were not recorded: the host was too busy to read them"
                    ));
                }
                return received;
            }
        }
    }

    /// Adds a packet, if it is one of the stream.
    fn add(&mut self, now: Duration, received_ns: u64, packet: &[u8]) {
        let datagram = udp_datagram(LINK_TYPE_IP, packet, packet.len() as u32).ok();
        if let Some(datagram) = datagram {
            let is_other_port = self.port.is_some_and(|port| port != datagram.port);
            let is_other = |source: Source| source.addr() != datagram.source;
            if is_other_port || self.args.source.is_some_and(is_other) {
                return;
            }
            self.rtp.add(&ProbeDatagram {
                group: self.group.addr(),
                source: datagram.source,
                ttl: None,
                received_ns,
                data: datagram.payload,
            });
        }
        self.last_packet = Some(now);
        self.ring.push(received_ns, packet);
    }

    /// Gives the packets to the writer. If it is busy, they stay in the ring.
    fn hand_over(&mut self, mut reasons: RecordReasons, files: &SyncSender<Recording>) {
        if let Some(late) = self.late.take() {
            reasons.add(late);
        }
        if self.ring.is_empty() {
            // At the end, the exit code says so too.
            print_error(&format_args!(
                "nothing to write ({reasons}): no packet in the last {}",
                humantime::format_duration(self.args.ring)
            ));
            return;
        }
        let contents = self.ring.take();
        match files.try_send(Recording { contents, reasons }) {
            Ok(()) => {}
            Err(TrySendError::Full(back) | TrySendError::Disconnected(back)) => {
                self.ring.put_back(back.contents);
                self.late = Some(back.reasons);
            }
        }
    }
}

/// What was written. Its JSON form is a line of the output of `--json`.
#[derive(Debug, Serialize)]
struct RecordingReport<'a> {
    file: String,
    reasons: RecordReasons,
    interface: &'a IfName,
    packets: usize,
    bytes: usize,
    first_ns: u64,
    last_ns: u64,
    left_out: u64,
}

/// Writes recordings to numbered files.
struct RecordingWriter<'a> {
    args: &'a RecordArgs,
    files: u32,
    has_failed: bool,
}

impl<'a> RecordingWriter<'a> {
    fn new(args: &'a RecordArgs) -> Self {
        Self {
            args,
            files: 0,
            has_failed: false,
        }
    }

    fn write(&mut self, recording: &Recording) {
        let reasons = recording.reasons;
        if self.files >= self.args.files {
            print_error(&format_args!(
                "not written ({reasons}): there are {} files (--files)",
                self.files
            ));
            return;
        }
        match write_file(self.args, recording) {
            Ok(path) => {
                self.files += 1;
                self.print(&path, recording);
            }
            Err(error) => {
                self.has_failed = true;
                print_error(&format_args!(
                    "mcastor record: cannot write {} ({reasons}): {error}",
                    self.args.file.display()
                ));
            }
        }
    }

    fn print(&self, path: &Path, recording: &Recording) {
        let RingContents { packets, left_out } = &recording.contents;
        let time = |packet: Option<&RingPacket>| packet.map_or(0, |packet| packet.received_ns);
        let report = RecordingReport {
            file: path.display().to_string(),
            reasons: recording.reasons,
            interface: &self.args.interface,
            packets: packets.len(),
            bytes: packets.iter().map(|packet| packet.bytes.len()).sum(),
            first_ns: time(packets.first()),
            last_ns: time(packets.last()),
            left_out: *left_out,
        };
        if self.args.json {
            print_line(&serde_json::json!(report).to_string());
            return;
        }
        let seconds = report.last_ns.saturating_sub(report.first_ns) as f64 / 1e9;
        let mut text = format!(
            "{}: {} packets, {} bytes, {seconds:.3} s: {}",
            report.file, report.packets, report.bytes, report.reasons
        );
        if *left_out > 0 {
            text += &format!(
                "\n{left_out} older packets of the last {} were left out (--memory)",
                humantime::format_duration(self.args.ring)
            );
        }
        print_line(&text);
    }
}

/// Writes a recording to the first name that is not taken. The file appears when it is complete.
fn write_file(args: &RecordArgs, recording: &Recording) -> io::Result<PathBuf> {
    let mut file = NamedTempFile::new_in(folder_of(&args.file))?;
    let group = args.group.group;
    let comment = format!(
        "mcastor record: {group} on {}: {}; {} older packets left out",
        args.interface, recording.reasons, recording.contents.left_out
    );
    write_packets(file.as_file_mut(), args, recording, &comment)?;
    for number in 1..=MAX_NUMBER {
        let path = numbered(&args.file, number);
        match file.persist_noclobber(&path) {
            Ok(_) => return Ok(path),
            Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => file = e.file,
            Err(e) => return Err(e.error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn write_packets(
    file: &mut File,
    args: &RecordArgs,
    recording: &Recording,
    comment: &str,
) -> io::Result<()> {
    let mut writer = PcapngWriter::new(BufWriter::new(file), comment)?;
    for packet in &recording.contents.packets {
        writer.write(PcapPacket {
            interface: args.interface.as_str(),
            received_ns: packet.received_ns,
            bytes: &packet.bytes,
            len: packet.bytes.len() as u32,
            comment: "",
        })?;
    }
    writer.file().flush()?;
    writer.file().get_ref().sync_all()
}

/// Returns the path of file `number`: `a.pcapng`, `a-2.pcapng`.
fn numbered(path: &Path, number: u32) -> PathBuf {
    if number == 1 {
        return path.to_path_buf();
    }
    let mut name = path.file_stem().unwrap_or_default().to_os_string();
    name.push(format!("-{number}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

/// Returns the time of day in nanoseconds since 1970.
fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| d.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_parsed() {
        let on = ["loss", "silence=2s"].map(|text| text.parse().expect("a condition"));
        let expected = RecordConditions {
            loss: true,
            silence: Some(Duration::from_secs(2)),
        };
        assert_eq!(conditions(&on), expected);
        assert_eq!(conditions(&[]), RecordConditions::default());
        for wrong in ["los", "silence", "silence=2", "silence=1ms"] {
            assert!(wrong.parse::<Condition>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn files_are_numbered_and_never_replaced() {
        assert_eq!(
            numbered(Path::new("/a/b.c.pcapng"), 1),
            Path::new("/a/b.c.pcapng")
        );
        assert_eq!(
            numbered(Path::new("/a/b.c.pcapng"), 2),
            Path::new("/a/b.c-2.pcapng")
        );
        assert_eq!(numbered(Path::new("b"), 12), Path::new("b-12"));
    }
}
