//! The text of `mcastor show streams`.

use comfy_table::Table;

use super::output::paragraph;
use super::table::{NO_BREAK, new_table, seconds, table_text};
use crate::api::StreamView;
use crate::api::streams::{StreamHealth, StreamVerdict};

/// Returns the table of monitored streams, and below it what is wrong with each.
pub(super) fn streams_text(streams: &[StreamView]) -> String {
    if streams.is_empty() {
        return "No stream is monitored. Set `monitor` in a route or proxy.".into();
    }
    let mut text = table_text(streams_table(streams)) + "\n";
    let faulty = |stream: &&StreamView| stream.verdict != StreamVerdict::Fine;
    for stream in streams.iter().filter(faulty) {
        let StreamView { source, group, .. } = stream;
        text += &format!("\n({source}, {group}) from {}:\n", stream.iif);
        text += &paragraph(&stream.explanation, 2);
    }
    text.truncate(text.trim_end().len());
    text
}

/// Returns the table of monitored streams.
pub(super) fn streams_table(streams: &[StreamView]) -> Table {
    let header = [
        "VERDICT",
        "IIF",
        "(S, G)",
        "KIND",
        "PACKETS/S",
        "MBIT/S",
        "IDLE",
        "LOST BEFORE",
        "LOST HERE",
        "JITTER",
        "DF:MLR",
    ];
    let mut table = new_table(&header, &[4, 5, 6, 7, 8, 9]);
    for stream in streams {
        let StreamHealth { rate, rtp, mdi, .. } = &stream.ingress;
        let jitter_us = rtp.as_ref().and_then(|rtp| rtp.jitter_us);
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        table.add_row([
            stream.verdict.words().into(),
            stream.iif.clone(),
            format!("({}, {})", stream.source, stream.group),
            stream.kind.clone(),
            rate.packets_per_second.to_string(),
            format!("{:.3}", rate.bits_per_second as f64 / 1e6),
            seconds(stream.idle_ms),
            or_none(stream.lost_before.map(|lost| lost.total.to_string())),
            lost_here(stream),
            or_none(jitter_us.map(milliseconds)),
            or_none(mdi.map(|mdi| {
                let delay_factor = milliseconds(mdi.delay_factor_us);
                format!("{delay_factor}:{}", mdi.media_loss_rate)
            })),
        ]);
    }
    table
}

/// Returns the LOST HERE column, such as `3 (queue_full)`.
fn lost_here(stream: &StreamView) -> String {
    let total: u64 = stream.lost_here.values().map(|lost| lost.total).sum();
    let reasons: Vec<&str> = stream.lost_here.keys().map(String::as_str).collect();
    match reasons.as_slice() {
        [] => total.to_string(),
        reasons => format!("{total} ({})", reasons.join(", ")),
    }
}

fn milliseconds(us: u64) -> String {
    format!("{:.1}{NO_BREAK}ms", us as f64 / 1000.0)
}
