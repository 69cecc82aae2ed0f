//! Which streams are monitored, and as what.

use std::time::Duration;

use http::Uri;
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
    /// Whether requests are sent over TLS.
    pub is_tls: bool,
    /// The name or address of the server, an IPv6 address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The path, with the query.
    pub path: String,
}

/// A text that is not the URL of a webhook.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebhookError {
    /// The scheme is missing, or another one.
    #[error("not an http:// or https:// URL")]
    Scheme,
    /// The host is empty, the port is invalid, or there is a user name.
    #[error("{0:?} is no host with an optional port")]
    Host(String),
    /// Another part is invalid.
    #[error("{0}")]
    Url(String),
}

impl Webhook {
    /// Returns host and port, as in a URL.
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

impl std::str::FromStr for Webhook {
    type Err = WebhookError;

    /// Parses `http://HOST[:PORT][/PATH]`, or the same with `https`.
    fn from_str(text: &str) -> Result<Self, WebhookError> {
        let (is_tls, default_port) = match text.split_once("://") {
            Some(("http", _)) => (false, 80),
            Some(("https", _)) => (true, 443),
            _ => return Err(WebhookError::Scheme),
        };
        let url = |e: &dyn std::fmt::Display| WebhookError::Url(e.to_string());
        let uri = text.parse::<Uri>().map_err(|e| url(&e))?;
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let host = uri.host().unwrap_or_default();
        // What is neither host nor port is a user name, or a port that is no number.
        let port = match authority.strip_prefix(host) {
            Some("") => Some(default_port),
            Some(port) => port.strip_prefix(':').and_then(|port| port.parse().ok()),
            None => None,
        };
        let port = port.filter(|_| !host.is_empty());
        let port = port.ok_or_else(|| WebhookError::Host(authority.into()))?;
        Ok(Self {
            is_tls,
            host: host.trim_matches(['[', ']']).into(),
            port,
            path: uri
                .path_and_query()
                .map_or("/", |path| path.as_str())
                .into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn webhook_is_a_host_with_a_path() {
        let parsed = |text: &str| {
            let webhook = text.parse::<Webhook>();
            webhook.map(|w| (w.is_tls, w.authority(), w.path))
        };
        let expected = |is_tls, authority: &str, path: &str| {
            Ok((is_tls, authority.to_string(), path.to_string()))
        };
        assert_eq!(
            parsed("http://127.0.0.1:9093/api/v2/alerts?a=b"),
            expected(false, "127.0.0.1:9093", "/api/v2/alerts?a=b")
        );
        assert_eq!(
            parsed("http://[::1]/alerts"),
            expected(false, "[::1]:80", "/alerts")
        );
        assert_eq!(
            parsed("https://alerts.example.net"),
            expected(true, "alerts.example.net:443", "/")
        );
        for text in ["ftp://10.0.0.1/", "10.0.0.1", "HTTP", ""] {
            assert_eq!(parsed(text), Err(WebhookError::Scheme), "{text}");
        }
        for host in ["10.0.0.1:99999", "user@10.0.0.1", "alerts:"] {
            let error = WebhookError::Host(host.into());
            assert_eq!(parsed(&format!("https://{host}/")), Err(error));
        }
        for text in [
            "http://",
            "http:///alerts",
            "http://10.0.0.1/a b",
            "https://a b/",
        ] {
            assert!(parsed(text).is_err(), "{text}");
        }
    }
}
