//! Which streams are monitored, and as what.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

use super::GroupPrefix;

/// What the packets of a monitored stream are examined as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MonitorKind {
    /// As what they are recognised as.
    Auto,
    /// RTP (RFC 3550), with MPEG-TS inside where it is recognised.
    Rtp,
    /// MPEG-TS in UDP or RTP.
    Ts,
    /// Packets with a sequence number at a fixed offset.
    Sequence,
    /// Only times and sizes.
    Rate,
}

impl MonitorKind {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::Auto, Self::Rtp, Self::Ts, Self::Sequence, Self::Rate];

    /// Returns the word in the settings.
    pub fn label(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Rtp => "rtp",
            Self::Ts => "ts",
            Self::Sequence => "sequence",
            Self::Rate => "rate",
        }
    }
}

/// The sequence number of a packet: a big-endian number in its UDP payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceField {
    /// Offset of the first byte.
    pub offset: u16,
    /// Number of bytes: 2, 4 or 8.
    pub bytes: u8,
}

/// What is monitored besides the routes and proxies that ask for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MonitorRules {
    /// Groups that are monitored whichever route or proxy forwards them.
    pub groups: Vec<GroupPrefix>,
    /// How they are monitored; `None` as [`MonitorKind::Auto`].
    pub kind: Option<MonitorKind>,
    /// The sequence number of streams that are monitored as [`MonitorKind::Sequence`]. `None`: that
    /// of `mcastor send`.
    pub sequence: Option<SequenceField>,
}

/// When events of streams are reported, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventSettings {
    /// How long a stream may be without packets before it is silent.
    pub silent_after: Duration,
    /// When loss and changes of the rate are reported.
    pub thresholds: EventThresholds,
    /// Where alerts are sent.
    pub webhook: Option<Webhook>,
}

impl Default for EventSettings {
    fn default() -> Self {
        Self {
            silent_after: Duration::from_secs(2),
            thresholds: EventThresholds {
                loss_ppm: 1000,
                rate_percent: 50,
            },
            webhook: None,
        }
    }
}

/// What is reported as an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventThresholds {
    /// Lost packets of a million in a minute, above which loss is reported.
    pub loss_ppm: u64,
    /// By how many percent the rate must change; 0: never.
    pub rate_percent: u64,
}

/// Where alerts are sent: an HTTP server, and the path of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// The address of the server.
    pub address: SocketAddr,
    /// The path, with the query.
    pub path: String,
}

/// A text that is not the URL of a webhook.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebhookError {
    /// The scheme is missing, or another one.
    #[error("not an http:// URL")]
    Scheme,
    /// The host is a name, or the port is invalid.
    #[error("{0:?} is no IP address with an optional port")]
    Address(String),
}

impl std::str::FromStr for Webhook {
    type Err = WebhookError;

    /// Parses `http://ADDRESS[:PORT][/PATH]`.
    fn from_str(text: &str) -> Result<Self, WebhookError> {
        let rest = text.strip_prefix("http://").ok_or(WebhookError::Scheme)?;
        let (host, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let is_visible = |c: char| c.is_ascii_graphic();
        let with_port = |host: &str| host.parse().or_else(|_| format!("{host}:80").parse());
        match with_port(host) {
            Ok(address) if path.chars().all(is_visible) => Ok(Self {
                address,
                path: path.into(),
            }),
            _ => Err(WebhookError::Address(host.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn webhook_is_an_address_with_a_path() {
        let parsed = |text: &str| {
            let webhook = text.parse::<Webhook>();
            webhook.map(|w| (w.address.to_string(), w.path))
        };
        let alerts = "/api/v2/alerts".to_string();
        let expected = ("127.0.0.1:9093".to_string(), alerts.clone());
        assert_eq!(parsed("http://127.0.0.1:9093/api/v2/alerts"), Ok(expected));
        assert_eq!(
            parsed("http://[::1]/api/v2/alerts"),
            Ok(("[::1]:80".into(), alerts))
        );
        assert_eq!(
            parsed("http://10.0.0.1"),
            Ok(("10.0.0.1:80".into(), "/".into()))
        );
        assert_eq!(parsed("https://10.0.0.1/"), Err(WebhookError::Scheme));
        for host in ["alerts.example.net", "10.0.0.1:99999", ""] {
            let error = WebhookError::Address(host.into());
            assert_eq!(parsed(&format!("http://{host}/")), Err(error));
        }
        assert!(parsed("http://10.0.0.1/a b").is_err());
    }
}
