//! Alerts about monitored streams, in the format of Prometheus Alertmanager
//! (`POST /api/v2/alerts`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::events::{Event, EventKind, EventTracker, StreamName};

/// How often an alert that lasts is sent again.
const AGAIN: Duration = Duration::from_secs(30);

/// How long an alert lasts that is not sent again.
const LASTS: Duration = Duration::from_secs(120);

/// The most alerts of one request.
const MAX_ALERTS: usize = 200;

/// An alert that lasts.
#[derive(Debug, Clone)]
struct Firing {
    began: SystemTime,
    event: Event,
}

/// The alerts that last, and those that have ended.
#[derive(Debug, Clone, Default)]
pub struct Alerts {
    firing: BTreeMap<(EventKind, StreamName), Firing>,
    sent: Option<SystemTime>,
}

/// Returns the name of an alert; `None` if an event ends one.
fn alert_name(kind: EventKind) -> Option<&'static str> {
    Some(match kind {
        EventKind::Silent => "McastorStreamSilent",
        EventKind::Loss => "McastorStreamLoss",
        EventKind::SourceChanged => "McastorStreamSourceChanged",
        EventKind::RateChanged => "McastorStreamRateChanged",
        EventKind::Back | EventKind::LossEnded => return None,
    })
}

fn alert(event: &Event, began: SystemTime, ends: SystemTime) -> Option<Value> {
    let StreamName { iif, source, group } = &event.stream;
    let text = |time| humantime::format_rfc3339_millis(time).to_string();
    Some(json!({
        "labels": {
            "alertname": alert_name(event.kind)?,
            "iif": iif,
            "source": source,
            "group": group,
            "route": event.route.clone().unwrap_or_default(),
        },
        "annotations": {
            "summary": format!("({source}, {group}) from {iif}: {}", event.kind.label()),
            "description": event.text,
        },
        "startsAt": text(began),
        "endsAt": text(ends),
    }))
}

impl Alerts {
    /// Returns the bodies of the requests that are due after these events.
    pub fn requests(
        &mut self,
        events: &[Event],
        tracker: &EventTracker,
        now: SystemTime,
    ) -> Vec<String> {
        // After a step back of the clock, an alert would begin after its end.
        for firing in self.firing.values_mut() {
            firing.began = firing.began.min(now);
        }
        let mut alerts = Vec::new();
        for event in events {
            let is_lasting = matches!(event.kind, EventKind::Silent | EventKind::Loss);
            if is_lasting {
                let key = (event.kind, event.stream.clone());
                let firing = Firing {
                    began: now,
                    event: event.clone(),
                };
                self.firing.insert(key, firing);
            }
            alerts.extend(alert(event, now, now + LASTS));
        }
        // An alert ends with its cause, and with the stream.
        let mut ended = std::mem::take(&mut self.firing);
        for (kind, stream) in tracker.lasting() {
            if let Some((key, firing)) = ended.remove_entry(&(kind, stream.clone())) {
                self.firing.insert(key, firing);
            }
        }
        alerts.extend(ended.values().filter_map(|f| alert(&f.event, f.began, now)));
        let is_due = |sent: SystemTime| match now.duration_since(sent) {
            Ok(past) => past >= AGAIN,
            Err(_) => true,
        };
        if self.sent.is_none_or(is_due) {
            self.sent = Some(now);
            // Those of this call are sent already.
            let new: BTreeSet<_> = events.iter().map(|e| (e.kind, e.stream.clone())).collect();
            let earlier = self.firing.iter().filter(|(key, _)| !new.contains(key));
            let lasting = |f: &Firing| alert(&f.event, f.began, now + LASTS);
            alerts.extend(earlier.filter_map(|(_, firing)| lasting(firing)));
        }
        let body = |alerts: &[Value]| Value::from(alerts.to_vec()).to_string();
        alerts.chunks(MAX_ALERTS).map(body).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::EventThresholds;

    /// Alertmanager's `postableAlerts`: a list of objects with `labels`, `annotations`, `startsAt`
    /// and `endsAt`.
    #[test]
    fn alert_lasts_until_the_stream_is_gone() {
        let mut alerts = Alerts::default();
        let event = Event {
            kind: EventKind::Silent,
            stream: StreamName {
                iif: "eth0".into(),
                source: "10.0.0.1".into(),
                group: "225.1.2.3".into(),
            },
            route: Some("cameras".into()),
            text: "No packet has arrived for 2.0 s.".into(),
        };
        let view = crate::api::StreamView {
            iif: "eth0".into(),
            source: "10.0.0.1".into(),
            group: "225.1.2.3".into(),
            route: None,
            monitor: "rate".into(),
            kind: "rate".into(),
            verdict: crate::api::streams::StreamVerdict::Silent,
            explanation: String::new(),
            age_ms: 0,
            idle_ms: 2000,
            ingress: Default::default(),
            lost_before: None,
            lost_here: Default::default(),
            egresses: Vec::new(),
        };
        let thresholds = EventThresholds {
            loss_ppm: 0,
            rate_percent: 0,
        };
        let mut tracker = EventTracker::default();
        tracker.look(&[view], thresholds);
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let at = |seconds| start + Duration::from_secs(seconds);
        let read = |bodies: Vec<String>| -> Vec<Value> {
            let read = |body: &String| serde_json::from_str(body).unwrap();
            bodies.iter().map(read).collect()
        };
        let first = read(alerts.requests(&[event], &tracker, start));
        let expected = json!([[{
            "labels": {
                "alertname": "McastorStreamSilent",
                "iif": "eth0",
                "source": "10.0.0.1",
                "group": "225.1.2.3",
                "route": "cameras",
            },
            "annotations": {
                "summary": "(10.0.0.1, 225.1.2.3) from eth0: silent",
                "description": "No packet has arrived for 2.0 s.",
            },
            "startsAt": "2023-11-14T22:13:20.000Z",
            "endsAt": "2023-11-14T22:15:20.000Z",
        }]]);
        assert_eq!(Value::from(first), expected);
        assert_eq!(read(alerts.requests(&[], &tracker, at(29))).len(), 0);
        let again = read(alerts.requests(&[], &tracker, at(30)));
        assert_eq!(again[0][0]["startsAt"], "2023-11-14T22:13:20.000Z");
        assert_eq!(again[0][0]["endsAt"], "2023-11-14T22:15:50.000Z");
        // The clock was set back by an hour.
        let earlier = start - Duration::from_secs(3600);
        let again = read(alerts.clone().requests(&[], &tracker, earlier));
        assert_eq!(again[0][0]["startsAt"], "2023-11-14T21:13:20.000Z");
        assert_eq!(again[0][0]["endsAt"], "2023-11-14T21:15:20.000Z");
        tracker.look(&[], thresholds);
        let ended = read(alerts.requests(&[], &tracker, at(40)));
        assert_eq!(ended[0][0]["endsAt"], "2023-11-14T22:14:00.000Z");
        assert_eq!(read(alerts.requests(&[], &tracker, at(90))).len(), 0);
    }
}
