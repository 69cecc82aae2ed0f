//! Renders what discovery has seen.

use std::time::Instant;

use crate::actors::messages::{DiscoveryReport, ObservationReport, QuestionReport};
use crate::api::view::{
    DiscoveryAskerView, DiscoveryOfferView, DiscoveryProtocolView, DiscoveryQuestionView,
    DiscoveryView,
};

/// Renders one `[[discovery]]`.
pub fn discovery(report: DiscoveryReport) -> DiscoveryView {
    let now = Instant::now();
    let rule = &report.rule;
    let protocol = |protocol: &crate::discovery::protocol::DiscoveryProtocol| {
        let (relays, reason) = rule.relays_answers(*protocol);
        DiscoveryProtocolView {
            protocol: protocol.to_string(),
            answers: if relays { "relay" } else { "direct" }.into(),
            reason: reason.into(),
        }
    };
    let names = |links: &[crate::model::IfName]| links.iter().map(ToString::to_string).collect();
    let [from, to] = &report.links;
    DiscoveryView {
        name: rule.name.clone(),
        from: names(from),
        to: names(to),
        protocols: rule.protocols.iter().map(protocol).collect(),
        offers: report
            .offers
            .iter()
            .map(|offer| offer_view(offer, now))
            .collect(),
        askers: report
            .asked
            .iter()
            .map(|question| asker_view(question, now))
            .collect(),
        questions: report
            .questions
            .iter()
            .map(|question| question_view(question, now))
            .collect(),
    }
}

fn offer_view(report: &ObservationReport, now: Instant) -> DiscoveryOfferView {
    let ObservationReport {
        ends,
        key,
        observation,
    } = report;
    let [from, to] = ends;
    DiscoveryOfferView {
        from: from.to_string(),
        to: to.to_string(),
        protocol: key.protocol.to_string(),
        device: key.host.to_string(),
        mac: observation.station.map(|station| station.to_string()),
        what: key.what.clone(),
        instance: key.instance.clone(),
        messages: observation.messages,
        idle_ms: idle_ms(observation.last, now),
        withheld: observation.withheld.map(|reason| reason.label().into()),
        explanation: observation.withheld.map(|reason| reason.meaning().into()),
    }
}

fn asker_view(report: &ObservationReport, now: Instant) -> DiscoveryAskerView {
    let ObservationReport {
        ends,
        key,
        observation,
    } = report;
    let [from, to] = ends;
    DiscoveryAskerView {
        from: from.to_string(),
        to: to.to_string(),
        protocol: key.protocol.to_string(),
        asker: key.host.to_string(),
        mac: observation.station.map(|station| station.to_string()),
        what: key.what.clone(),
        instance: key.instance.clone(),
        messages: observation.messages,
        idle_ms: idle_ms(observation.last, now),
        withheld: observation.withheld.map(|reason| reason.label().into()),
        explanation: observation.withheld.map(|reason| reason.meaning().into()),
    }
}

fn idle_ms(last: Instant, now: Instant) -> u64 {
    now.saturating_duration_since(last).as_millis() as u64
}

fn question_view(report: &QuestionReport, now: Instant) -> DiscoveryQuestionView {
    let QuestionReport {
        ends,
        port,
        question,
    } = report;
    let [from, to] = ends;
    let remaining = question.expires.saturating_duration_since(now);
    DiscoveryQuestionView {
        from: from.to_string(),
        to: to.to_string(),
        protocol: question.asker.protocol.to_string(),
        asker: question.asker.address.to_string(),
        port: *port,
        answers: question.answers,
        remaining_ms: remaining.as_millis() as u64,
    }
}
