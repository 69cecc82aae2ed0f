//! Checks of `[monitor]`, and of `monitor` in routes and proxies.

use super::addresses::parse_group;
use super::checker::Checker;
use super::key_path::KeyPath;
use super::raw::RawMonitor;
use super::validated::MonitorSettings;
use crate::model::{
    EventSettings, EventThresholds, MonitorKind, MonitorRules, SequenceField, Webhook, WebhookError,
};

/// Checks how streams are monitored.
pub(super) fn check_monitor_kind(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    raw: Option<String>,
) -> Option<MonitorKind> {
    let kinds = MonitorKind::ALL.map(|kind| (kind.label(), Some(kind)));
    checker.word(path, raw, &kinds)
}

pub(super) fn check_monitor(checker: &mut Checker<'_>, raw: RawMonitor) -> MonitorSettings {
    let path = KeyPath::root("monitor");
    let groups = raw.groups.unwrap_or_default().into_iter().enumerate();
    let groups = groups.filter_map(|(n, text)| {
        let path = path.key("groups").index(n);
        parse_group(checker, &path, &text?)
    });
    let groups = groups.collect();
    let kind = check_monitor_kind(checker, &path.key("kind"), raw.kind);
    let sequence = check_sequence(checker, &path, raw.sequence_offset, raw.sequence_bytes);
    let loss = path.key("loss_ppm");
    let loss_ppm = checker.integer_or_default(&loss, raw.loss_ppm, "1000 is 0.1 %.");
    let rate = path.key("rate_percent");
    let rate_percent = checker.integer_or_default(&rate, raw.rate_percent, "0 reports none.");
    MonitorSettings {
        rules: MonitorRules {
            groups,
            kind,
            sequence,
        },
        events: EventSettings {
            silent_after: checker.duration_or_default(&path.key("silent_after"), raw.silent_after),
            thresholds: EventThresholds {
                loss_ppm: loss_ppm as u64,
                rate_percent: rate_percent as u64,
            },
            webhook: check_webhook(checker, &path.key("webhook"), raw.webhook),
        },
    }
}

/// Checks the place of the sequence number. With one of the keys, the other has its default.
fn check_sequence(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    offset: Option<i64>,
    bytes: Option<i64>,
) -> Option<SequenceField> {
    if offset.is_none() && bytes.is_none() {
        return None;
    }
    let help = "The offset counts from the first byte after the UDP header.";
    let offset = checker.integer(&path.key("sequence_offset"), offset, help);
    let path = path.key("sequence_bytes");
    let help = "For example: sequence_bytes = 4.";
    let bytes = checker.integer(&path, bytes, help).unwrap_or(4);
    if !matches!(bytes, 2 | 4 | 8) {
        checker.refuse(&path, bytes.to_string(), "2, 4 or 8", help);
    }
    Some(SequenceField {
        offset: offset.unwrap_or_default() as u16,
        bytes: bytes as u8,
    })
}

fn check_webhook(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    text: Option<String>,
) -> Option<Webhook> {
    let text = text?;
    let error = match text.parse::<Webhook>() {
        Ok(webhook) => return Some(webhook),
        Err(error) => error,
    };
    let help: String = match error {
        WebhookError::Scheme => "The URL begins with http:// or https://.".into(),
        WebhookError::Host(_) => {
            "The host is a name or an address, with an optional port: no user name.".into()
        }
        WebhookError::Url(error) => format!("It is no URL: {error}."),
    };
    let expected = "a URL such as \"https://alerts.example.net:9093/api/v2/alerts\"";
    checker.refuse(path, format!("{text:?}"), expected, help);
    None
}
