//! The report of `mcastor recv --rtp` as text.

use comfy_table::{CellAlignment, Table, presets};

use super::silent_groups::{remarks_text, silent_text};
use crate::traffic::RtpReceiveReport;
use crate::traffic::rtp_stats::RtpJitter;

/// Formats the report as a table and summary lines.
pub(super) fn text(report: &RtpReceiveReport) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "group",
        "source",
        "ssrc",
        "type",
        "received",
        "lost",
        "dup",
        "reord",
        "jitter us",
        "max",
        "max delta us",
    ]);
    for s in &report.streams {
        let us = |field: fn(&RtpJitter) -> f64| match &s.jitter_us {
            Some(jitter) => format!("{:.0}", field(jitter)),
            None => "-".into(),
        };
        let sequence = &s.rtp.sequence;
        table.add_row([
            s.group.to_string(),
            s.source.to_string(),
            format!("0x{:08x}", s.rtp.ssrc),
            s.rtp.payload_type.to_string(),
            s.received.to_string(),
            sequence.lost.to_string(),
            sequence.duplicates.to_string(),
            sequence.reordered.to_string(),
            us(|jitter| jitter.mean),
            us(|jitter| jitter.max),
            format!("{:.0}", s.max_delta_us),
        ]);
    }
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = String::new();
    if !report.streams.is_empty() {
        text = format!("{}\n\n", table.trim_fmt());
    }
    text += &format!(
        "{} received, {} lost, {} duplicates, {} reordered in {:.1} s",
        report.received, report.lost, report.duplicates, report.reordered, report.seconds
    );
    let restarts: u64 = report.streams.iter().map(|s| s.rtp.restarts).sum();
    let remarks = [
        (restarts, "restarts of the sequence numbers"),
        (report.foreign, "not RTP"),
        (
            report.untracked,
            "in streams beyond the limit, without statistics",
        ),
        (report.socket_dropped, "dropped at the socket"),
    ];
    text + &remarks_text(&remarks) + &silent_text(&report.interface, &report.silent)
}
