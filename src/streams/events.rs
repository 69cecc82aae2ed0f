//! Events of monitored streams: what has changed since the last look at them.

use std::collections::{BTreeMap, BTreeSet};

use super::verdict::SOCKET;
use crate::api::StreamView;
use crate::api::streams::StreamVerdict;
use crate::model::EventThresholds;

/// Looks in a row at which the rate must differ before it has changed.
const RATE_LOOKS: u32 = 4;

/// What happened to a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventKind {
    /// No packets arrive any more.
    Silent,
    /// Packets arrive again.
    Back,
    /// The loss of the last minute is above the threshold.
    Loss,
    /// It no longer is.
    LossEnded,
    /// Another source sends to the group in place of the former one.
    SourceChanged,
    /// The rate has changed.
    RateChanged,
}

impl EventKind {
    /// All kinds.
    pub const ALL: [Self; 6] = [
        Self::Silent,
        Self::Back,
        Self::Loss,
        Self::LossEnded,
        Self::SourceChanged,
        Self::RateChanged,
    ];

    /// Returns the kind as in the log and in the labels of metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Back => "back",
            Self::Loss => "loss",
            Self::LossEnded => "loss_ended",
            Self::SourceChanged => "source_changed",
            Self::RateChanged => "rate_changed",
        }
    }
}

/// The stream of an event.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamName {
    /// The ingress.
    pub iif: String,
    /// Source address.
    pub source: String,
    /// Group address.
    pub group: String,
}

impl StreamName {
    fn of(view: &StreamView) -> Self {
        Self {
            iif: view.iif.clone(),
            source: view.source.clone(),
            group: view.group.clone(),
        }
    }
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The stream.
    pub stream: StreamName,
    /// The route or proxy of the stream.
    pub route: Option<String>,
    /// What happened, in words and numbers.
    pub text: String,
}

/// What was known of a stream at the last look.
#[derive(Debug, Clone, Default)]
struct Known {
    is_silent: bool,
    has_loss: bool,
    /// The rate that others are compared with, and how often in a row they differed.
    bits_per_second: Option<u64>,
    rate_differs: u32,
}

/// Compares each look at the streams with the one before.
#[derive(Debug, Clone, Default)]
pub struct EventTracker {
    streams: BTreeMap<StreamName, Known>,
    /// The source of each group on an ingress that has one source.
    sources: BTreeMap<(String, String), String>,
}

/// Returns the lost packets of a million in the last minute.
fn loss_ppm(view: &StreamView) -> u64 {
    let here: u64 = view.lost_here.values().map(|lost| lost.minute).sum();
    let before = view.lost_before.map_or(0, |lost| lost.minute);
    // What the kernel dropped did not arrive either.
    let socket = view.lost_here.get(SOCKET).map_or(0, |lost| lost.minute);
    let packets = view.ingress.packets_minute + before + socket;
    (before + here) * 1_000_000 / packets.max(1)
}

impl EventTracker {
    /// Returns what has changed.
    pub fn look(&mut self, views: &[StreamView], thresholds: EventThresholds) -> Vec<Event> {
        let mut events = Vec::new();
        let mut present = BTreeSet::new();
        for view in views {
            let stream = StreamName::of(view);
            let known = self.streams.entry(stream.clone()).or_default();
            let mut happened = |kind, text: String| {
                events.push(Event {
                    kind,
                    stream: stream.clone(),
                    route: view.route.clone(),
                    text,
                });
            };
            known.compare(view, thresholds, &mut happened);
            present.insert(stream);
        }
        self.streams.retain(|stream, _| present.contains(stream));
        self.compare_sources(views, &mut events);
        events
    }

    /// Finds groups whose only source has changed.
    fn compare_sources(&mut self, views: &[StreamView], events: &mut Vec<Event>) {
        let mut active: BTreeMap<(String, String), Vec<&StreamView>> = BTreeMap::new();
        for view in views.iter().filter(|v| v.verdict != StreamVerdict::Silent) {
            let group = (view.iif.clone(), view.group.clone());
            active.entry(group).or_default().push(view);
        }
        for (group, views) in &active {
            let [view] = views.as_slice() else {
                continue;
            };
            let former = self.sources.insert(group.clone(), view.source.clone());
            let Some(former) = former.filter(|former| *former != view.source) else {
                continue;
            };
            events.push(Event {
                kind: EventKind::SourceChanged,
                stream: StreamName::of(view),
                route: view.route.clone(),
                text: format!("{} sends in place of {former}", view.source),
            });
        }
        let groups: BTreeSet<(String, String)> = views
            .iter()
            .map(|view| (view.iif.clone(), view.group.clone()))
            .collect();
        self.sources.retain(|group, _| groups.contains(group));
    }

    /// Returns the streams that are silent, and those with loss.
    pub fn lasting(&self) -> impl Iterator<Item = (EventKind, &StreamName)> {
        self.streams.iter().flat_map(|(stream, known)| {
            let silent = known.is_silent.then_some((EventKind::Silent, stream));
            let loss = known.has_loss.then_some((EventKind::Loss, stream));
            silent.into_iter().chain(loss)
        })
    }
}

impl Known {
    fn compare(
        &mut self,
        view: &StreamView,
        thresholds: EventThresholds,
        happened: &mut impl FnMut(EventKind, String),
    ) {
        let is_silent = view.verdict == StreamVerdict::Silent;
        if is_silent != self.is_silent {
            self.is_silent = is_silent;
            match is_silent {
                true => happened(EventKind::Silent, view.explanation.clone()),
                false => happened(EventKind::Back, "packets arrive again".into()),
            }
        }
        let loss_ppm = loss_ppm(view);
        let has_loss = loss_ppm > thresholds.loss_ppm;
        if has_loss != self.has_loss {
            self.has_loss = has_loss;
            let percent = loss_ppm as f64 / 10_000.0;
            match has_loss {
                true => {
                    let text = format!("{percent:.3} % loss in a minute. {}", view.explanation);
                    happened(EventKind::Loss, text);
                }
                false => {
                    let text = format!("{percent:.3} % loss in the last minute");
                    happened(EventKind::LossEnded, text);
                }
            }
        }
        self.compare_rate(view, thresholds.rate_percent, happened);
    }

    fn compare_rate(
        &mut self,
        view: &StreamView,
        percent: u64,
        happened: &mut impl FnMut(EventKind, String),
    ) {
        let rate = view.ingress.rate.bits_per_second;
        // The first second is not full, and silence has its own event.
        if percent == 0 || rate == 0 || view.age_ms < 3000 || self.is_silent {
            self.rate_differs = 0;
            return;
        }
        let Some(reference) = self.bits_per_second else {
            self.bits_per_second = Some(rate);
            return;
        };
        let differs = rate.abs_diff(reference) * 100 > reference * percent;
        self.rate_differs = if differs { self.rate_differs + 1 } else { 0 };
        if self.rate_differs >= RATE_LOOKS {
            self.rate_differs = 0;
            self.bits_per_second = Some(rate);
            let (before, now) = (reference as f64 / 1e6, rate as f64 / 1e6);
            let text = format!("{now:.3} Mbit/s after {before:.3} Mbit/s");
            happened(EventKind::RateChanged, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::streams::{StreamHealth, StreamLoss, StreamRate};

    const THRESHOLDS: EventThresholds = EventThresholds {
        loss_ppm: 1000,
        rate_percent: 50,
    };

    fn view(source: &str) -> StreamView {
        StreamView {
            iif: "eth0".into(),
            source: source.into(),
            group: "225.1.2.3".into(),
            route: Some("cameras".into()),
            monitor: "auto".into(),
            kind: "rtp".into(),
            verdict: StreamVerdict::Fine,
            explanation: "Why.".into(),
            age_ms: 10_000,
            idle_ms: 10,
            ingress: StreamHealth {
                packets_minute: 10_000,
                rate: StreamRate {
                    bits_per_second: 1_000_000,
                    ..StreamRate::default()
                },
                ..StreamHealth::default()
            },
            lost_before: Some(StreamLoss::default()),
            lost_here: BTreeMap::new(),
            egresses: Vec::new(),
        }
    }

    fn kinds(tracker: &mut EventTracker, views: &[StreamView]) -> Vec<EventKind> {
        let events = tracker.look(views, THRESHOLDS);
        events.iter().map(|event| event.kind).collect()
    }

    #[test]
    fn silence_and_return_are_reported_once() {
        let mut tracker = EventTracker::default();
        let fine = view("10.0.0.1");
        let silent = StreamView {
            verdict: StreamVerdict::Silent,
            ..view("10.0.0.1")
        };
        assert_eq!(kinds(&mut tracker, std::slice::from_ref(&fine)), []);
        assert_eq!(
            kinds(&mut tracker, std::slice::from_ref(&silent)),
            [EventKind::Silent]
        );
        assert_eq!(tracker.lasting().count(), 1);
        assert_eq!(kinds(&mut tracker, &[silent]), []);
        assert_eq!(kinds(&mut tracker, &[fine]), [EventKind::Back]);
        assert_eq!(kinds(&mut tracker, &[]), []);
        assert_eq!(tracker.lasting().count(), 0);
    }

    #[test]
    fn loss_above_the_threshold_is_reported_until_it_ends() {
        let mut tracker = EventTracker::default();
        let with_loss = |before, here| {
            let count = |minute| StreamLoss { total: 99, minute };
            StreamView {
                lost_before: Some(count(before)),
                lost_here: [("queue_full".to_string(), count(here))].into(),
                ..view("10.0.0.1")
            }
        };
        // 10 of 10,010 packets are less than 0.1 %, 11 of 10,011 are more.
        assert_eq!(kinds(&mut tracker, &[with_loss(10, 0)]), []);
        let events = tracker.look(&[with_loss(6, 5)], THRESHOLDS);
        assert_eq!(events[0].kind, EventKind::Loss);
        assert!(events[0].text.starts_with("0.110 % loss in a minute. Why."));
        assert_eq!(kinds(&mut tracker, &[with_loss(20, 0)]), []);
        assert_eq!(
            kinds(&mut tracker, &[with_loss(0, 10)]),
            [EventKind::LossEnded]
        );
    }

    #[test]
    fn share_of_loss_counts_packets_that_the_kernel_dropped() {
        let mut tracker = EventTracker::default();
        let lost = StreamLoss {
            total: 30_000,
            minute: 30_000,
        };
        let view = StreamView {
            lost_here: [(SOCKET.to_string(), lost)].into(),
            ..view("10.0.0.1")
        };
        let events = tracker.look(&[view], THRESHOLDS);
        assert!(events[0].text.starts_with("75.000 % loss in a minute."));
    }

    #[test]
    fn other_source_in_place_of_the_former_is_a_change() {
        let mut tracker = EventTracker::default();
        let [first, second] = [view("10.0.0.1"), view("10.0.0.2")];
        assert_eq!(kinds(&mut tracker, std::slice::from_ref(&first)), []);
        // Two sources at once are no change.
        assert_eq!(kinds(&mut tracker, &[first.clone(), second.clone()]), []);
        let silent = StreamView {
            verdict: StreamVerdict::Silent,
            ..first
        };
        let events = tracker.look(&[silent, second], THRESHOLDS);
        let texts: Vec<_> = events.iter().map(|e| (e.kind, e.text.as_str())).collect();
        let changed = "10.0.0.2 sends in place of 10.0.0.1";
        let expected = [
            (EventKind::Silent, "Why."),
            (EventKind::SourceChanged, changed),
        ];
        assert_eq!(texts, expected);
    }

    #[test]
    fn rate_must_differ_several_times_in_a_row() {
        let mut tracker = EventTracker::default();
        let with_rate = |bits_per_second| {
            let mut view = view("10.0.0.1");
            view.ingress.rate.bits_per_second = bits_per_second;
            view
        };
        assert_eq!(kinds(&mut tracker, &[with_rate(1_000_000)]), []);
        for rate in [
            2_000_000, 2_000_000, 1_400_000, 2_000_000, 2_000_000, 2_000_000,
        ] {
            assert_eq!(kinds(&mut tracker, &[with_rate(rate)]), []);
        }
        let events = tracker.look(&[with_rate(2_000_000)], THRESHOLDS);
        assert_eq!(events[0].kind, EventKind::RateChanged);
        assert_eq!(events[0].text, "2.000 Mbit/s after 1.000 Mbit/s");
        assert_eq!(kinds(&mut tracker, &[with_rate(2_000_000)]), []);
    }
}
