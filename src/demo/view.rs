//! What the demo shows, and the verdict.

use std::io::{IsTerminal, Write};
use std::net::IpAddr;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::probe::Latency;

/// One flow.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FlowRow {
    /// The name of its route.
    pub flow: &'static str,
    /// Its group.
    pub group: IpAddr,
    /// Packets sent.
    pub sent: u64,
    /// Packets forwarded, by the metrics of the router.
    pub forwarded: Option<u64>,
    /// Distinct packets received.
    pub received: u64,
    /// Packets missing.
    pub lost: u64,
    /// Packets received once more.
    pub duplicates: u64,
    /// Lowest sequence number received; the sender begins with 0.
    pub first_seq: Option<u64>,
    /// Highest sequence number received.
    pub last_seq: Option<u64>,
    /// TTL or hop limit at the sender.
    pub ttl_sent: u8,
    /// TTL or hop limit it should arrive with.
    pub ttl_expected: u8,
    /// Lowest it arrived with.
    pub ttl_min: Option<u8>,
    /// Highest it arrived with.
    pub ttl_max: Option<u8>,
    /// Latency in microseconds, sender to receiver.
    pub latency_us: Option<Latency>,
}

impl FlowRow {
    /// What is wrong with a flow whose sender is done; `None` where all is well.
    pub fn trouble(&self) -> Option<String> {
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
            let place = match lost.saturating_sub(head + tail) {
                _ if *received == 0 => String::new(),
                middle => format!(" ({head} at the start, {middle} between, {tail} at the end)"),
            };
            return Some(format!("{flow}: {lost} of {sent} packets lost{place}"));
        }
        if *duplicates > 0 {
            return Some(format!("{flow}: {duplicates} packets arrived twice"));
        }
        let want = Some(self.ttl_expected);
        if self.ttl_min != want || self.ttl_max != want {
            let got = |ttl: Option<u8>| ttl.map_or("none".into(), |t| t.to_string());
            return Some(format!(
                "{flow}: TTL {} to {} on arrival instead of {}",
                got(self.ttl_min),
                got(self.ttl_max),
                self.ttl_expected
            ));
        }
        match self.forwarded {
            Some(n) if n == *sent => None,
            Some(n) => Some(format!(
                "{flow}: all {sent} packets arrived, the router counted {n}"
            )),
            None => Some(format!("{flow}: the router's metrics do not count it")),
        }
    }
}

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// Every packet of every flow arrived once, as it should.
    Pass,
    /// Not so.
    Fail,
}

/// The verdict, why, and the figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DemoOutcome {
    /// How it went.
    pub verdict: Verdict,
    /// Why, in one line or, with the log of a router that ended, a few.
    pub reason: String,
    /// Where the metrics are while the demo is up.
    pub metrics: String,
    /// Each flow.
    pub flows: Vec<FlowRow>,
}

impl DemoOutcome {
    /// A failure before any packet was sent.
    pub fn failed(reason: String, metrics: String) -> Self {
        Self {
            verdict: Verdict::Fail,
            reason,
            metrics,
            flows: Vec::new(),
        }
    }

    /// The verdict on `flows`; `gone` says how the router ended, if it has, and `drops` what it
    /// counted as dropped, which explains a failure and is none by itself.
    pub fn judge(flows: Vec<FlowRow>, gone: Option<String>, drops: &str, metrics: String) -> Self {
        let mut troubles: Vec<_> = flows.iter().filter_map(FlowRow::trouble).collect();
        troubles.extend(gone);
        let sent: u64 = flows.iter().map(|r| r.sent).sum();
        let (verdict, reason) = if troubles.is_empty() && !flows.is_empty() {
            let flows = flows.len();
            let reason = format!("{flows} flows, {sent} packets sent, forwarded and received");
            (Verdict::Pass, reason)
        } else {
            if !drops.is_empty() {
                troubles.push(format!("the router dropped {drops}"));
            }
            (Verdict::Fail, troubles.join("; "))
        };
        Self {
            verdict,
            reason,
            metrics,
            flows,
        }
    }

    /// The last line for people.
    pub fn to_line(&self) -> String {
        let verdict = match self.verdict {
            Verdict::Pass => "PASS",
            Verdict::Fail => "FAIL",
        };
        format!("{verdict}: {}", self.reason)
    }
}

/// Where the demo writes while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A table that is drawn over itself.
    Terminal,
    /// A line per flow and second.
    Plain,
    /// Nothing; the JSON comes at the end.
    Quiet,
}

/// The picture of a running demo on standard output.
#[derive(Debug)]
pub struct DemoView {
    kind: Kind,
    /// Lines of the table that stands above the cursor.
    drawn: usize,
}

impl DemoView {
    /// Suited to what standard output is; silent with `json`.
    pub fn new(json: bool) -> Self {
        let kind = if json {
            Kind::Quiet
        } else if std::io::stdout().is_terminal() {
            Kind::Terminal
        } else {
            Kind::Plain
        };
        Self { kind, drawn: 0 }
    }

    /// A line that stays.
    pub fn say(&mut self, line: &str) {
        if self.kind != Kind::Quiet {
            put(&format!("{line}\n"));
            self.drawn = 0;
        }
    }

    /// The state after so many seconds.
    pub fn table(&mut self, second: u64, rows: &[FlowRow]) {
        match self.kind {
            Kind::Quiet => {}
            Kind::Plain => put(&rows
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
            Kind::Terminal => {
                let text = format!("{}\n", draw(rows));
                // Up to the first line of the last table, and clear from there.
                let back = match self.drawn {
                    0 => String::new(),
                    n => format!("\x1b[{n}A\x1b[J"),
                };
                self.drawn = text.lines().count();
                put(&(back + &text));
            }
        }
    }
}

/// Writes at once. A reader that went away does not stop the test.
fn put(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn cells(row: &FlowRow) -> [String; 9] {
    let us = |of: fn(&Latency) -> f64| {
        let latency = row.latency_us.as_ref();
        latency.map_or("-".into(), |l| format!("{:.1}", of(l)))
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
    fn a_pass_needs_every_figure_to_be_right() {
        let judge = |row| DemoOutcome::judge(vec![row], None, "", String::new());
        assert_eq!(judge(good()).verdict, Verdict::Pass);
        type Spoil = fn(&mut FlowRow);
        let spoils: [(Spoil, &str); 8] = [
            (|r| r.sent = 0, "nothing was sent"),
            (|r| (r.received, r.lost) = (0, 10), "10 of 10 packets lost"),
            (
                |r| {
                    (r.received, r.lost) = (7, 3);
                    (r.first_seq, r.last_seq) = (Some(1), Some(8));
                },
                "3 of 10 packets lost (1 at the start, 1 between, 1 at the end)",
            ),
            (|r| r.duplicates = 1, "1 packets arrived twice"),
            (|r| r.ttl_min = Some(14), "TTL 14 to 15"),
            (|r| (r.ttl_min, r.ttl_max) = (None, None), "TTL none"),
            (|r| r.forwarded = Some(9), "the router counted 9"),
            (|r| r.forwarded = None, "do not count it"),
        ];
        for (spoil, reason) in spoils {
            let mut row = good();
            spoil(&mut row);
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
        let gone = DemoOutcome::judge(vec![good()], Some("ended".into()), "", String::new());
        assert_eq!(gone.to_line(), "FAIL: ended");
        assert_eq!(
            DemoOutcome::judge(vec![], None, "", String::new()).verdict,
            Verdict::Fail
        );
    }

    #[test]
    fn json_names_the_verdict_as_the_line_does() {
        let outcome = DemoOutcome::judge(vec![good()], None, "", "http://x/metrics".into());
        assert_eq!(serde_json::json!(outcome)["verdict"], "PASS");
        assert!(outcome.to_line().starts_with("PASS: 1 flows, 10 packets"));
        assert!(draw(&outcome.flows).contains("16->15"));
    }
}
