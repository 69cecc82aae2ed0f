//! What is wrong with a stream, and whose fault it is.

use std::collections::BTreeMap;

use crate::api::streams::{StreamEgressView, StreamHealth, StreamLoss, StreamVerdict, TsView};
use crate::forward::DropReason;

/// The reason of packets that the kernel dropped before they could be read.
pub const SOCKET: &str = "socket";

/// What a verdict is based on.
pub struct Judged<'a> {
    /// Milliseconds since the last packet.
    pub idle_ms: u64,
    /// Milliseconds without a packet after which a stream is silent.
    pub silent_after_ms: u64,
    /// Packets that were lost before this router; `None` if the stream has no numbers.
    pub lost_before: Option<StreamLoss>,
    /// Packets that were lost here, by reason.
    pub lost_here: &'a BTreeMap<String, StreamLoss>,
    /// The egresses.
    pub egresses: &'a [StreamEgressView],
    /// Faults of the contents in the last minute.
    pub faults_minute: u64,
    /// The stream as it arrives.
    pub health: &'a StreamHealth,
}

/// Returns the verdict, and its explanation.
pub fn judge(judged: &Judged<'_>) -> (StreamVerdict, String) {
    let here: u64 = judged.lost_here.values().map(|lost| lost.minute).sum();
    let before = judged.lost_before.map_or(0, |lost| lost.minute);
    let verdict = match (before, here) {
        _ if judged.idle_ms >= judged.silent_after_ms => StreamVerdict::Silent,
        (1.., 1..) => StreamVerdict::LostBeforeAndHere,
        (1.., 0) => StreamVerdict::LostBefore,
        (0, 1..) => StreamVerdict::LostHere,
        (0, 0) if judged.faults_minute > 0 => StreamVerdict::Faulty,
        (0, 0) => StreamVerdict::Fine,
    };
    let mut sentences = Vec::new();
    if verdict == StreamVerdict::Silent {
        let seconds = judged.idle_ms as f64 / 1000.0;
        sentences.push(format!("No packet has arrived for {seconds:.1} s."));
    }
    if before > 0 {
        sentences.push(lost_before(judged, before));
    }
    if here > 0 {
        sentences.extend(lost_here(judged));
    }
    if judged.faults_minute > 0 {
        sentences.push(faults(judged.health));
    }
    if sentences.is_empty() {
        sentences.push(match judged.lost_before {
            Some(_) => "No packet is missing, and all of them leave.".into(),
            None => "All packets that arrive leave. They have no sequence numbers, so it cannot \
                     be seen whether some are missing."
                .into(),
        });
    }
    (verdict, sentences.join(" "))
}

/// Returns such as `1 packet`.
fn counted(number: u64, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        _ => format!("{number} {noun}s"),
    }
}

fn was_or_were(number: u64) -> &'static str {
    if number == 1 { "was" } else { "were" }
}

fn lost_before(judged: &Judged<'_>, before: u64) -> String {
    let StreamHealth { rtp, sequence, .. } = judged.health;
    let numbered = rtp.as_ref().map(|rtp| rtp.sequence).or(*sequence);
    let noun = match numbered {
        Some(_) => "packet",
        None => "MPEG-TS packet",
    };
    // Of all packets that were sent to this router, also those that the kernel dropped here.
    let socket = judged.lost_here.get(SOCKET).map_or(0, |lost| lost.minute);
    let sent = judged.health.packets_minute + before + socket;
    let share = numbered.map_or(String::new(), |_| {
        format!(" ({:.3} %)", before as f64 * 100.0 / sent as f64)
    });
    format!(
        "Lost before us: {}{share} in the last minute did not arrive.",
        counted(before, noun)
    )
}

fn lost_here(judged: &Judged<'_>) -> Vec<String> {
    let lost = judged.lost_here.iter().filter(|(_, lost)| lost.minute > 0);
    let sentence = |(reason, lost): (&String, &StreamLoss)| {
        let here = |egress: &&StreamEgressView| egress.lost_here.contains_key(reason);
        let egresses = judged.egresses.iter().filter(here);
        let names: Vec<&str> = egresses.map(|egress| egress.interface.as_str()).collect();
        let place = match names.as_slice() {
            [] => String::new(),
            names => format!(" on {}", names.join(", ")),
        };
        let was = was_or_were(lost.minute);
        let remedy = remedy(reason);
        let packets = counted(lost.minute, "packet");
        format!("Lost here ({reason}): {packets} {was} dropped{place} in the last minute. {remedy}")
    };
    lost.map(sentence).collect()
}

fn remedy(reason: &str) -> &'static str {
    if reason == SOCKET {
        return "The kernel dropped packets because this process read them too slowly: give it \
                more CPU.";
    }
    let mut reasons = DropReason::ALL.iter();
    let known = reasons.find(|known| known.label() == reason);
    known.map_or("", |known| known.remedy())
}

fn faults(health: &StreamHealth) -> String {
    let mut found: Vec<&str> = Vec::new();
    if let Some(ts) = &health.ts {
        let TsView {
            sync_errors,
            pat_errors,
            pmt_errors,
            pid_errors,
            transport_errors,
            ..
        } = ts;
        let kinds = [
            (*sync_errors, "sync bytes are wrong"),
            (*pat_errors, "the PAT is late or faulty"),
            (*pmt_errors, "a PMT is late or faulty"),
            (*pid_errors, "a PID is missing"),
            (*transport_errors, "the transport error indicator is set"),
        ];
        found.extend(
            kinds
                .iter()
                .filter(|(count, _)| *count > 0)
                .map(|kind| kind.1),
        );
    }
    if found.is_empty() {
        found.push("its numbers started anew: the sender restarted, or very many were lost");
    }
    format!("Faulty as it arrives: {}.", found.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(minute: u64) -> StreamLoss {
        StreamLoss { total: 99, minute }
    }

    fn verdict(
        before: Option<u64>,
        here: &[(&str, u64)],
        faults_minute: u64,
        idle_ms: u64,
    ) -> (StreamVerdict, String) {
        let lost_here = here
            .iter()
            .map(|(reason, n)| (reason.to_string(), count(*n)));
        let lost_here: BTreeMap<String, StreamLoss> = lost_here.collect();
        let egress = StreamEgressView {
            interface: "eth1".into(),
            lost_here: lost_here.clone(),
            health: StreamHealth::default(),
        };
        judge(&Judged {
            idle_ms,
            silent_after_ms: 2000,
            lost_before: before.map(count),
            lost_here: &lost_here,
            egresses: &[egress],
            faults_minute,
            health: &StreamHealth::default(),
        })
    }

    #[test]
    fn blame_is_assigned_by_where_packets_were_lost() {
        use StreamVerdict::*;
        assert_eq!(verdict(Some(0), &[], 0, 100).0, Fine);
        assert_eq!(verdict(None, &[], 0, 100).0, Fine);
        assert_eq!(verdict(Some(3), &[], 1, 100).0, LostBefore);
        assert_eq!(verdict(Some(0), &[("queue_full", 2)], 1, 100).0, LostHere);
        assert_eq!(verdict(Some(0), &[("queue_full", 0)], 0, 100).0, Fine);
        let both = verdict(Some(1), &[("too_big", 1)], 0, 100);
        assert_eq!(both.0, LostBeforeAndHere);
        assert_eq!(verdict(Some(0), &[], 1, 100).0, Faulty);
        assert_eq!(verdict(Some(3), &[("too_big", 1)], 1, 2000).0, Silent);
    }

    #[test]
    fn explanation_names_reason_egress_and_remedy() {
        let (_, text) = verdict(Some(1), &[("queue_full", 2)], 0, 100);
        assert!(
            text.contains("Lost before us: 1 MPEG-TS packet in the last"),
            "{text}"
        );
        let expected = "Lost here (queue_full): 2 packets were dropped on eth1 in the last minute.";
        assert!(text.contains(expected), "{text}");
        assert!(text.contains(DropReason::QueueFull.remedy()), "{text}");
        let (_, text) = verdict(None, &[], 0, 100);
        assert!(text.contains("no sequence numbers"), "{text}");
    }
}
