//! Metrics of the HTTP server.

use prometheus::IntCounterVec;

use super::families::{Families, MetricsRegistry};

/// Why the HTTP server refused a request or closed a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpRefusal {
    /// The host of the request is not a name of this machine.
    Host,
    /// Other answers were being rendered, or had not been read, for too long.
    Busy,
    /// A newer connection replaced the oldest one of the address with most.
    Evicted,
    /// The client did not send its request in time.
    RequestTimeout,
    /// The client did not read its answer.
    WriteTimeout,
    /// The client sent more than one request on its connection.
    Pipelined,
    /// The request line and the headers were too long.
    LongHead,
    /// Too many event streams were open.
    EventStreams,
    /// A web page of another site asked for an event stream.
    CrossSite,
}

impl HttpRefusal {
    /// All reasons.
    pub const ALL: [Self; 9] = [
        Self::Host,
        Self::Busy,
        Self::Evicted,
        Self::RequestTimeout,
        Self::WriteTimeout,
        Self::Pipelined,
        Self::LongHead,
        Self::EventStreams,
        Self::CrossSite,
    ];

    /// Returns the value of the label `reason`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Busy => "busy",
            Self::Evicted => "evicted",
            Self::RequestTimeout => "request_timeout",
            Self::WriteTimeout => "write_timeout",
            Self::Pipelined => "pipelined",
            Self::LongHead => "long_head",
            Self::EventStreams => "event_streams",
            Self::CrossSite => "cross_site",
        }
    }
}

/// The metric families of the HTTP server. Clones share them.
#[derive(Clone)]
pub struct HttpFamilies {
    refused: IntCounterVec,
}

impl HttpFamilies {
    /// Registers the families.
    pub(super) fn new(registry: &MetricsRegistry) -> prometheus::Result<Self> {
        let refused = Families(registry).counters(
            "mcastor_http_refused_total",
            "HTTP requests that were refused, and connections that were closed early",
            &["reason"],
        )?;
        for reason in HttpRefusal::ALL {
            refused.with_label_values(&[reason.label()]);
        }
        Ok(Self { refused })
    }

    /// Counts a refusal.
    pub fn count_refusal(&self, reason: HttpRefusal) {
        self.refused.with_label_values(&[reason.label()]).inc();
    }
}
