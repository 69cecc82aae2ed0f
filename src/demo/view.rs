//! The output of the demo, and its verdict.

use std::io::{IsTerminal, Write};
use std::net::IpAddr;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::probe::Latency;

/// The counts of one flow, as a row of the table and in the JSON output.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FlowRow {
    /// Name of the route.
    pub flow: &'static str,
    /// Destination group.
    pub group: IpAddr,
    /// Packets sent.
    pub sent: u64,
    /// Packets forwarded, according to the metrics of the router.
    pub forwarded: Option<u64>,
    /// Distinct packets received.
    pub received: u64,
    /// Packets missing.
    pub lost: u64,
    /// Duplicate packets received.
    pub duplicates: u64,
    /// Lowest sequence number received; the sender starts with 0.
    pub first_seq: Option<u64>,
    /// Highest sequence number received.
    pub last_seq: Option<u64>,
    /// TTL or hop limit at the sender.
    pub ttl_sent: u8,
    /// Expected TTL or hop limit on arrival.
    pub ttl_expected: u8,
    /// Lowest TTL or hop limit on arrival.
    pub ttl_min: Option<u8>,
    /// Highest TTL or hop limit on arrival.
    pub ttl_max: Option<u8>,
    /// Latency from sender to receiver in microseconds.
    pub latency_us: Option<Latency>,
}

impl FlowRow {
    /// Describes why a flow whose sender has finished failed; `None` if it passed.
    pub fn failure(&self) -> Option<String> {
        let FlowRow {
            flow,
            sent,
            received,
            lost,
            duplicates,
            ..
        } = self;
        if *sent == 0 {
            return Some(format!("{flow}: nothing was sent"));
        }
        if received != sent {
            let (head, tail) = match (self.first_seq, self.last_seq) {
                (Some(first), Some(last)) => (first, sent.saturating_sub(last + 1)),
                _ => (0, 0),
            };
            let detail = match lost.saturating_sub(head + tail) {
                _ if *received == 0 => String::new(),
                middle => format!(" ({head} at the start, {middle} in between, {tail} at the end)"),
            };
            return Some(format!("{flow}: {lost} of {sent} packets lost{detail}"));
        }
        if *duplicates > 0 {
            return Some(format!("{flow}: {duplicates} packets arrived twice"));
        }
        let expected = Some(self.ttl_expected);
        if self.ttl_min != expected || self.ttl_max != expected {
            let got = |ttl: Option<u8>| ttl.map_or("none".into(), |t| t.to_string());
            return Some(format!(
                "{flow}: TTL {} to {} on arrival, expected {}",
                got(self.ttl_min),
                got(self.ttl_max),
                self.ttl_expected
            ));
        }
        match self.forwarded {
            Some(n) if n == *sent => None,
            Some(n) => Some(format!(
                "{flow}: all {sent} packets arrived, but the router counted {n}"
            )),
            None => Some(format!(
                "{flow}: the router's metrics do not show this route"
            )),
        }
    }
}

/// The verdict of the demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// Every packet of every flow arrived exactly once, with the expected TTL.
    Pass,
    /// A packet is missing, duplicated or changed, or the router failed.
    Fail,
}

/// The verdict, its reason and the counts. Its JSON form is the output of `--json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DemoOutcome {
    /// The verdict.
    pub verdict: Verdict,
    /// The reason: one line, plus the last log lines if the router exited.
    pub reason: String,
    /// URL of the metrics while the demo runs.
    pub metrics: String,
    /// The counts of each flow.
    pub flows: Vec<FlowRow>,
}

impl DemoOutcome {
    /// Creates a failure from before the first packet.
    pub fn failed(reason: String, metrics: String) -> Self {
        Self {
            verdict: Verdict::Fail,
            reason,
            metrics,
            flows: Vec::new(),
        }
    }

    /// Derives the verdict from `flows`. `router_exit` describes how the router exited, if it did;
    /// this is a failure. `drops` lists packets that the router dropped. They are added to the
    /// reason of a failure, but are no failure themselves.
    pub fn judge(
        flows: Vec<FlowRow>,
        router_exit: Option<String>,
        drops: &str,
        metrics: String,
    ) -> Self {
        let mut failures: Vec<_> = flows.iter().filter_map(FlowRow::failure).collect();
        failures.extend(router_exit);
        let sent: u64 = flows.iter().map(|r| r.sent).sum();
        let (verdict, reason) = if failures.is_empty() && !flows.is_empty() {
            let flows = flows.len();
            let reason = format!("{flows} flows, {sent} packets sent, forwarded and received");
            (Verdict::Pass, reason)
        } else {
            if !drops.is_empty() {
                failures.push(format!("the router dropped {drops}"));
            }
            (Verdict::Fail, failures.join("; "))
        };
        Self {
            verdict,
            reason,
            metrics,
            flows,
        }
    }

    /// Returns the last line of the text output.
    pub fn to_line(&self) -> String {
        let verdict = match self.verdict {
            Verdict::Pass => "PASS",
            Verdict::Fail => "FAIL",
        };
        format!("{verdict}: {}", self.reason)
    }
}

/// The output format while the demo runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OutputFormat {
    /// A table that is redrawn in place.
    Terminal,
    /// One line per flow and second.
    Plain,
    /// No output; the JSON object is printed at the end.
    Quiet,
}

/// The progress display of the demo on standard output.
#[derive(Debug)]
pub struct DemoView {
    format: OutputFormat,
    /// Lines of the last table, directly above the cursor.
    drawn: usize,
}

impl DemoView {
    /// Chooses the format for standard output: a table on a terminal, else lines; none with `json`.
    pub fn new(json: bool) -> Self {
        let format = if json {
            OutputFormat::Quiet
        } else if std::io::stdout().is_terminal() {
            OutputFormat::Terminal
        } else {
            OutputFormat::Plain
        };
        Self { format, drawn: 0 }
    }

    /// Prints a line that later tables do not overwrite.
    pub fn print_line(&mut self, line: &str) {
        if self.format != OutputFormat::Quiet {
            write_flushed(&format!("{line}\n"));
            self.drawn = 0;
        }
    }

    /// Prints the counts after `second` seconds.
    pub fn print_table(&mut self, second: u64, rows: &[FlowRow]) {
        match self.format {
            OutputFormat::Quiet => {}
            OutputFormat::Plain => write_flushed(&rows
                .iter()
                .map(|row| {
                    let cells = cells(row);
                    format!(
                        "{second}s {} {} sent={} forwarded={} received={} lost={} ttl={} p50={}us p99={}us\n",
                        cells[0], cells[1], cells[2], cells[3], cells[4], cells[5], cells[6],
                        cells[7], cells[8],
                    )
                })
                .collect::<String>()),
            OutputFormat::Terminal => {
                let text = format!("{}\n", draw(rows));
                // Moves up to the first line of the last table and clears the screen from there.
                let back = match self.drawn {
                    0 => String::new(),
                    n => format!("\x1b[{n}A\x1b[J"),
                };
                self.drawn = text.lines().count();
                write_flushed(&(back + &text));
            }
        }
    }
}

/// Writes and flushes. Ignores errors: a closed output must not stop the test.
fn write_flushed(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn cells(row: &FlowRow) -> [String; 9] {
    let us = |field: fn(&Latency) -> f64| {
        let latency = row.latency_us.as_ref();
        latency.map_or("-".into(), |l| format!("{:.1}", field(l)))
    };
    [
        row.flow.to_string(),
        row.group.to_string(),
        row.sent.to_string(),
        row.forwarded.map_or("-".into(), |n| n.to_string()),
        row.received.to_string(),
        row.lost.to_string(),
        match row.ttl_min {
            Some(ttl) => format!("{}->{ttl}", row.ttl_sent),
            None => format!("{}->-", row.ttl_sent),
        },
        us(|l| l.p50),
        us(|l| l.p99),
    ]
}

fn draw(rows: &[FlowRow]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "flow",
        "group",
        "sent",
        "forwarded",
        "received",
        "lost",
        "ttl",
        "p50 us",
        "p99 us",
    ]);
    for row in rows {
        table.add_row(cells(row));
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> FlowRow {
        FlowRow {
            flow: "ipv4",
            group: [225, 1, 2, 3].into(),
            sent: 10,
            forwarded: Some(10),
            received: 10,
            lost: 0,
            duplicates: 0,
            first_seq: Some(0),
            last_seq: Some(9),
            ttl_sent: 16,
            ttl_expected: 15,
            ttl_min: Some(15),
            ttl_max: Some(15),
            latency_us: None,
        }
    }

    #[test]
    fn verdict_passes_only_if_every_count_is_right() {
        let judge = |row| DemoOutcome::judge(vec![row], None, "", String::new());
        assert_eq!(judge(good()).verdict, Verdict::Pass);
        type Fault = fn(&mut FlowRow);
        let faults: [(Fault, &str); 8] = [
            (|r| r.sent = 0, "nothing was sent"),
            (|r| (r.received, r.lost) = (0, 10), "10 of 10 packets lost"),
            (
                |r| {
                    (r.received, r.lost) = (7, 3);
                    (r.first_seq, r.last_seq) = (Some(1), Some(8));
                },
                "3 of 10 packets lost (1 at the start, 1 in between, 1 at the end)",
            ),
            (|r| r.duplicates = 1, "1 packets arrived twice"),
            (|r| r.ttl_min = Some(14), "TTL 14 to 15"),
            (|r| (r.ttl_min, r.ttl_max) = (None, None), "TTL none"),
            (|r| r.forwarded = Some(9), "the router counted 9"),
            (|r| r.forwarded = None, "do not show this route"),
        ];
        for (inject, reason) in faults {
            let mut row = good();
            inject(&mut row);
            let outcome = judge(row);
            assert_eq!(outcome.verdict, Verdict::Fail, "{reason}");
            assert!(outcome.reason.contains(reason), "{}", outcome.reason);
        }
        let mut lossy = good();
        lossy.duplicates = 2;
        let dropped = DemoOutcome::judge(vec![lossy], None, "2 loop at in", String::new());
        assert!(
            dropped
                .reason
                .ends_with("; the router dropped 2 loop at in")
        );
        let fine = DemoOutcome::judge(vec![good()], None, "2 no_route at in", String::new());
        assert_eq!(fine.verdict, Verdict::Pass);
        let exited = DemoOutcome::judge(vec![good()], Some("ended".into()), "", String::new());
        assert_eq!(exited.to_line(), "FAIL: ended");
        assert_eq!(
            DemoOutcome::judge(vec![], None, "", String::new()).verdict,
            Verdict::Fail
        );
    }

    #[test]
    fn json_and_text_show_the_same_verdict() {
        let outcome = DemoOutcome::judge(vec![good()], None, "", "http://x/metrics".into());
        assert_eq!(serde_json::json!(outcome)["verdict"], "PASS");
        assert!(outcome.to_line().starts_with("PASS: 1 flows, 10 packets"));
        assert!(draw(&outcome.flows).contains("16->15"));
    }
}
