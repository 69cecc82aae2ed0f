//! What is shown of a single row.

use std::collections::BTreeMap;

use super::snapshot::{Reading, drop_key, flow_key, group_key, stream_key};
use super::tables::View;
use crate::api::streams::{StreamHealth, StreamLoss};
use crate::api::{DropView, ExplainQuery, FlowView, GroupView, InterfaceView, StreamView, explain};
use crate::cli::explain::packet_of;
use crate::cli::output::paragraph;

/// Returns the packet whose explanation belongs to a row: of a flow or a drop.
pub(super) fn packet(view: View, snapshot: &Reading, key: &str) -> Option<ExplainQuery> {
    match view {
        View::Flows => {
            let flow = snapshot.flows.iter().find(|flow| flow_key(flow) == key)?;
            packet_of_flow(flow)
        }
        View::Drops => {
            let drop = snapshot.drops.iter().find(|drop| drop_key(drop) == key)?;
            packet_of(drop)
        }
        View::Interfaces | View::Joins | View::Streams => None,
    }
}

fn packet_of_flow(flow: &FlowView) -> Option<ExplainQuery> {
    Some(ExplainQuery {
        iif: Some(flow.iif.clone()),
        source: flow.source.parse().ok()?,
        group: flow.group.parse().ok()?,
        port: explain::default_port(),
        size: explain::default_size(),
        ttl: explain::default_ttl(),
    })
}

/// Returns the text about a row, or `None` if the row is not there any more.
pub(super) fn text(view: View, snapshot: &Reading, key: &str) -> Option<String> {
    match view {
        View::Interfaces => {
            let found = snapshot.interfaces.iter().find(|i| i.name == key);
            found.map(interface_text)
        }
        View::Flows => {
            let found = snapshot.flows.iter().find(|flow| flow_key(flow) == key);
            found.map(flow_text)
        }
        View::Drops => {
            let found = snapshot.drops.iter().find(|drop| drop_key(drop) == key);
            found.map(drop_text)
        }
        View::Joins => {
            let found = snapshot.groups.iter().find(|g| group_key(g) == key);
            found.map(group_text)
        }
        View::Streams => {
            let found = snapshot.streams.iter().find(|s| stream_key(s) == key);
            found.map(stream_text)
        }
    }
}

/// Lines with a title in front of each value.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, title: &str, value: impl std::fmt::Display) {
        self.0 += &format!("{title:<18} {value}\n");
    }

    fn add_counts(&mut self, title: &str, counts: &BTreeMap<String, u64>) {
        let total: u64 = counts.values().sum();
        self.add(title, total);
        for (reason, packets) in counts {
            self.0 += &format!("  {reason:<16} {packets}\n");
        }
    }

    fn add_lost(&mut self, title: &str, lost: &BTreeMap<String, StreamLoss>) {
        let minute: u64 = lost.values().map(|count| count.minute).sum();
        let total: u64 = lost.values().map(|count| count.total).sum();
        self.add(
            title,
            format!("{minute} in the last minute, {total} in all"),
        );
        for (reason, count) in lost {
            self.0 += &format!("  {reason:<16} {}, {}\n", count.minute, count.total);
        }
    }
}

fn interface_text(i: &InterfaceView) -> String {
    let mut lines = Lines::default();
    lines.add("index", i.index);
    lines.add("MTU", i.mtu);
    lines.add("received", i.received_packets);
    lines.add("sent", i.transmitted_packets);
    lines.add_counts("dropped", &i.dropped_packets);
    lines.add("dropped at socket", i.socket_dropped_packets);
    lines.add_counts("refused messages", &i.refused_messages);
    if let Some(threshold) = i.ttl_threshold {
        lines.add("TTL threshold", threshold);
    }
    if let Some(proxy) = &i.downstream_of {
        lines.add("downstream of", proxy);
    }
    if !i.upstream_of.is_empty() {
        lines.add("upstream of", i.upstream_of.join(", "));
    }
    for querier in &i.queriers {
        let address = querier.address.as_deref().unwrap_or("none");
        let own = if querier.us { " (this router)" } else { "" };
        lines.add(
            &format!("{} querier", querier.protocol),
            format!("{address}{own}"),
        );
    }
    if let Some(bandwidth) = &i.bandwidth {
        let (admitted, limit) = (bandwidth.admitted, bandwidth.limit);
        lines.add("bandwidth", format!("{admitted} of {limit} bit/s"));
        lines.add("refused streams", bandwidth.refused_streams.join(" "));
    }
    for conflict in &i.subnet_conflicts {
        lines.0 += &paragraph(conflict, 0);
    }
    lines.0
}

fn flow_text(flow: &FlowView) -> String {
    let mut lines = Lines::default();
    lines.add("packets", flow.packets);
    lines.add("bytes", flow.bytes);
    lines.add(
        "first packet",
        format!("{:.1} s ago", flow.age_ms as f64 / 1000.0),
    );
    lines.add(
        "last packet",
        format!("{:.1} s ago", flow.idle_ms as f64 / 1000.0),
    );
    lines.add("forwarded by", &flow.plane);
    if let Some(why) = &flow.declined {
        lines.0 += &paragraph(&format!("Not forwarded in the kernel: {why}"), 0);
    }
    lines.0
}

fn drop_text(drop: &DropView) -> String {
    let mut text = format!("{} on {}:\n", drop.reason, drop.interface);
    text += &paragraph(&drop.meaning, 2);
    text += &paragraph(&format!("To do: {}", drop.remedy), 2);
    text
}

fn group_text(group: &GroupView) -> String {
    let mut lines = Lines::default();
    lines.add("role", &group.role);
    lines.add("mode", &group.mode);
    if let Some(version) = &group.version {
        lines.add("oldest version", version);
    }
    for source in &group.sources {
        let not = if source.forwarded { "" } else { "not " };
        let expires = source.expires_ms;
        let expires = expires.map(|ms| format!(", expires in {:.1} s", ms as f64 / 1000.0));
        let expires = expires.unwrap_or_default();
        lines.add("source", format!("{not}{}{expires}", source.source));
    }
    if !group.reporters.is_empty() {
        lines.add("members", group.reporters.join(" "));
    }
    if let Some(reporter) = &group.last_reporter {
        lines.add("last report from", reporter);
    }
    for (title, streams) in [
        ("translated from", &group.original),
        ("translated to", &group.joined_for),
    ] {
        for stream in streams {
            lines.add(title, stream);
        }
    }
    if let Some(error) = &group.error {
        lines.0 += &paragraph(error, 0);
    }
    lines.0
}

fn stream_text(stream: &StreamView) -> String {
    let mut lines = Lines(paragraph(
        &format!("{}: {}", stream.verdict.words(), stream.explanation),
        0,
    ));
    lines.0 += "\n";
    lines.add("examined as", &stream.kind);
    lines.add("route", stream.route.as_deref().unwrap_or("-"));
    lines.add(
        "last packet",
        format!("{:.1} s ago", stream.idle_ms as f64 / 1000.0),
    );
    if let Some(lost) = stream.lost_before {
        let (minute, total) = (lost.minute, lost.total);
        lines.add(
            "lost before us",
            format!("{minute} in the last minute, {total} in all"),
        );
    }
    lines.add_lost("lost here", &stream.lost_here);
    lines.0 += &format!("\nAs it arrives on {}\n", stream.iif);
    add_health(&mut lines, &stream.ingress);
    for egress in &stream.egresses {
        lines.0 += &format!("\nAs it leaves on {}\n", egress.interface);
        lines.add_lost("lost here", &egress.lost_here);
        add_health(&mut lines, &egress.health);
    }
    lines.0
}

fn add_health(lines: &mut Lines, health: &StreamHealth) {
    let ms = |us: u64| us as f64 / 1000.0;
    lines.add("packets", health.packets);
    let rate = &health.rate;
    lines.add(
        "rate",
        format!(
            "{} packets/s, {} bit/s",
            rate.packets_per_second, rate.bits_per_second
        ),
    );
    lines.add(
        "peak of 10 ms",
        format!("{} packets", rate.peak_10ms_packets),
    );
    if let Some(times) = &health.inter_arrival {
        let (p50, p99, max) = (ms(times.p50_us), ms(times.p99_us), ms(times.max_us));
        lines.add(
            "time between",
            format!("p50 {p50:.3}, p99 {p99:.3}, max {max:.3} ms"),
        );
    }
    if let Some(rtp) = &health.rtp {
        let (ssrc, kind) = (rtp.ssrc, rtp.payload_type);
        lines.add("RTP", format!("SSRC 0x{ssrc:08x}, payload type {kind}"));
        if let Some(jitter) = rtp.jitter_us {
            lines.add("jitter", format!("{:.3} ms", ms(jitter)));
        }
    }
    let sequence = health.rtp.as_ref().map(|rtp| rtp.sequence);
    if let Some(sequence) = sequence.or(health.sequence) {
        lines.add(
            "sequence",
            format!(
                "{} lost of {}, {} reordered, {} duplicates",
                sequence.lost, sequence.expected, sequence.reordered, sequence.duplicates
            ),
        );
    }
    if let Some(mdi) = &health.mdi {
        let factor = ms(mdi.delay_factor_us);
        lines.add(
            "DF:MLR",
            format!("{factor:.3} ms:{}/s", mdi.media_loss_rate),
        );
    }
    if let Some(ts) = &health.ts {
        lines.add("MPEG-TS packets", ts.packets);
        for (title, errors) in [
            ("sync errors", ts.sync_errors),
            ("continuity errors", ts.continuity_errors),
            ("PAT errors", ts.pat_errors),
            ("PMT errors", ts.pmt_errors),
            ("PID errors", ts.pid_errors),
            ("transport errors", ts.transport_errors),
            ("scrambled", ts.scrambled),
        ] {
            lines.add(title, errors);
        }
        if let Some(jitter) = ts.pcr_jitter_us {
            lines.add("PCR jitter", format!("{:.3} ms", ms(jitter)));
        }
    }
}
