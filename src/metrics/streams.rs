//! Metrics of monitored streams. Only these have the addresses of streams as labels, and only for
//! streams for which the settings ask, up to a limit.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::{GaugeVec, IntCounter, IntCounterVec, IntGauge, Opts};

use super::families::{Families, MetricsRegistry};

/// The labels of a stream: ingress, source, group.
pub type StreamLabels = [String; 3];

/// The metric families of monitored streams. Clones share them.
#[derive(Clone)]
pub struct StreamFamilies {
    counters: Arc<Vec<(StreamCounter, IntCounterVec)>>,
    gauges: Arc<Vec<(StreamGauge, GaugeVec)>>,
    verdict: GaugeVec,
    events: IntCounterVec,
    alerts: IntCounterVec,
    monitored: IntGauge,
    limit: IntGauge,
    left_out: IntCounter,
    /// The series of each stream.
    known: Arc<Mutex<BTreeMap<StreamLabels, KnownSeries>>>,
}

/// The series of a stream, and the highest total of each counter since its analyzer began.
type KnownSeries = BTreeMap<Series, u64>;

/// By how much a total may fall while its analyzer goes on: packets that come late are no longer
/// lost. One that falls further has begun again.
const MAX_FALL: u64 = 100;

/// A series of a stream: its family and its additional label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Series {
    Counter(StreamCounter, String),
    Gauge(StreamGauge),
    Verdict(String),
}

/// A counter of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StreamCounter {
    /// Packets that arrived.
    Packets,
    /// IP bytes that arrived.
    Bytes,
    /// Packets that were lost before this router.
    LostBefore,
    /// Packets that were lost here, by reason.
    LostHere,
    /// Packets that were sent, by egress.
    Sent,
    /// Faults of MPEG-TS, by kind.
    TsErrors,
}

impl StreamCounter {
    /// All counters.
    pub const ALL: [Self; 6] = [
        Self::Packets,
        Self::Bytes,
        Self::LostBefore,
        Self::LostHere,
        Self::Sent,
        Self::TsErrors,
    ];

    fn name_and_help(self) -> (&'static str, &'static str) {
        match self {
            Self::Packets => (
                "mcastor_stream_packets_total",
                "Packets of a monitored stream that arrived",
            ),
            Self::Bytes => (
                "mcastor_stream_bytes_total",
                "IP bytes of a monitored stream that arrived",
            ),
            Self::LostBefore => (
                "mcastor_stream_lost_before_packets_total",
                "Packets of a monitored stream that were lost before this router, by their numbers",
            ),
            Self::LostHere => (
                "mcastor_stream_lost_here_packets_total",
                "Packets of a monitored stream that arrived and were dropped, by reason",
            ),
            Self::Sent => (
                "mcastor_stream_sent_packets_total",
                "Packets of a monitored stream that were sent, by egress",
            ),
            Self::TsErrors => (
                "mcastor_stream_ts_errors_total",
                "Faults of MPEG-TS in a monitored stream as it arrived, by kind",
            ),
        }
    }

    /// Returns the name of the additional label.
    fn label(self) -> Option<&'static str> {
        match self {
            Self::LostHere => Some("reason"),
            Self::Sent => Some("oif"),
            Self::TsErrors => Some("kind"),
            Self::Packets | Self::Bytes | Self::LostBefore => None,
        }
    }
}

/// A gauge of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StreamGauge {
    /// Seconds since the last packet.
    Idle,
    /// Bits per second.
    Rate,
    /// Interarrival jitter of RTP in seconds.
    Jitter,
    /// Delay factor in seconds.
    DelayFactor,
    /// Media loss rate.
    MediaLossRate,
}

impl StreamGauge {
    /// All gauges.
    pub const ALL: [Self; 5] = [
        Self::Idle,
        Self::Rate,
        Self::Jitter,
        Self::DelayFactor,
        Self::MediaLossRate,
    ];

    fn name_and_help(self) -> (&'static str, &'static str) {
        match self {
            Self::Idle => (
                "mcastor_stream_idle_seconds",
                "Time since the last packet of a monitored stream",
            ),
            Self::Rate => (
                "mcastor_stream_bits_per_second",
                "Bits of IP packets of a monitored stream in the last full second",
            ),
            Self::Jitter => (
                "mcastor_stream_jitter_seconds",
                "Interarrival jitter of a monitored RTP stream (RFC 3550)",
            ),
            Self::DelayFactor => (
                "mcastor_stream_delay_factor_seconds",
                "Delay factor of a monitored MPEG-TS stream (RFC 4445)",
            ),
            Self::MediaLossRate => (
                "mcastor_stream_media_loss_rate",
                "Lost MPEG-TS packets per second of a monitored stream (RFC 4445)",
            ),
        }
    }
}

/// The numbers of a stream.
#[derive(Debug, Clone, Default)]
pub struct StreamNumbers {
    /// The counters, with their additional label.
    pub counters: Vec<(StreamCounter, String, u64)>,
    /// The gauges.
    pub gauges: Vec<(StreamGauge, f64)>,
    /// The verdict.
    pub verdict: &'static str,
}

impl StreamFamilies {
    /// Registers the families.
    pub(super) fn new(registry: &MetricsRegistry) -> prometheus::Result<Self> {
        let make = Families(registry);
        let stream = ["iif", "source", "group"];
        let with = |label: Option<&'static str>| {
            let labels = stream.into_iter().chain(label);
            labels.collect::<Vec<_>>()
        };
        let counter = |counter: StreamCounter| {
            let (name, help) = counter.name_and_help();
            let labels = with(counter.label());
            // A process that takes over counts its own streams anew.
            let family = make.register(IntCounterVec::new(Opts::new(name, help), &labels)?)?;
            Ok((counter, family))
        };
        let gauge = |gauge: StreamGauge| {
            let (name, help) = gauge.name_and_help();
            let family = make.register(GaugeVec::new(Opts::new(name, help), &stream)?)?;
            Ok((gauge, family))
        };
        let verdict = Opts::new(
            "mcastor_stream_verdict",
            "1 for the verdict on a monitored stream",
        );
        let counters: prometheus::Result<Vec<_>> =
            StreamCounter::ALL.into_iter().map(counter).collect();
        let gauges: prometheus::Result<Vec<_>> = StreamGauge::ALL.into_iter().map(gauge).collect();
        Ok(Self {
            counters: Arc::new(counters?),
            gauges: Arc::new(gauges?),
            verdict: make.register(GaugeVec::new(verdict, &with(Some("verdict")))?)?,
            events: make.counters(
                "mcastor_stream_events_total",
                "Events of monitored streams",
                &["event"],
            )?,
            alerts: make.counters(
                "mcastor_stream_alert_requests_total",
                "Requests with alerts to the webhook, by result",
                &["result"],
            )?,
            monitored: make.gauge("mcastor_streams_monitored", "Monitored streams")?,
            limit: make.gauge("mcastor_streams_limit", "Limit of monitored streams")?,
            left_out: make.counter(
                "mcastor_streams_left_out_total",
                "Streams that were not monitored because of the limit",
            )?,
            known: Arc::default(),
        })
    }

    /// Sets the number of monitored streams and their limit, and counts those that were left out.
    pub fn set_limit(&self, monitored: usize, limit: usize, left_out: u64) {
        self.monitored.set(monitored as i64);
        self.limit.set(limit as i64);
        self.left_out.inc_by(left_out);
    }

    /// Counts an event.
    pub fn count_event(&self, event: &str) {
        self.events.with_label_values(&[event]).inc();
    }

    /// Counts a request with alerts, by its result as in docs/streams.md.
    pub fn count_alert_request(&self, result: &str) {
        self.alerts.with_label_values(&[result]).inc();
    }

    /// Sets the numbers of all streams, and removes the series of streams that are gone.
    pub fn set(&self, streams: &BTreeMap<StreamLabels, StreamNumbers>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|labels, series| {
            let numbers = streams.get(labels);
            if numbers.is_none() {
                series.keys().for_each(|series| self.remove(labels, series));
            }
            numbers.is_some()
        });
        for (labels, numbers) in streams {
            let series = known.entry(labels.clone()).or_default();
            let current = self.set_numbers(labels, numbers, series);
            let gone = series.keys().filter(|series| !current.contains_key(series));
            gone.for_each(|series| self.remove(labels, series));
            *series = current;
        }
    }

    fn set_numbers(
        &self,
        labels: &StreamLabels,
        numbers: &StreamNumbers,
        former: &KnownSeries,
    ) -> KnownSeries {
        let [iif, source, group] = labels.each_ref().map(String::as_str);
        let former_total = |counter: StreamCounter, label: &str| {
            let series = Series::Counter(counter, label.to_owned());
            former.get(&series).copied().unwrap_or(0)
        };
        // The number of packets never falls while an analyzer goes on.
        let has_begun_again = numbers.counters.iter().any(|(counter, label, total)| {
            *counter == StreamCounter::Packets && *total < former_total(*counter, label)
        });
        let mut series = BTreeMap::new();
        for (counter, label, total) in &numbers.counters {
            let family = self.counters.iter().find(|(other, _)| other == counter);
            let mut values = vec![iif, source, group];
            values.extend(counter.label().map(|_| label.as_str()));
            if let Some((_, family)) = family {
                let mut counted = former_total(*counter, label);
                if has_begun_again || total.saturating_add(MAX_FALL) < counted {
                    counted = 0;
                }
                let value = family.with_label_values(&values);
                value.inc_by(total.saturating_sub(counted));
                let series_of_counter = Series::Counter(*counter, label.clone());
                series.insert(series_of_counter, counted.max(*total));
            }
        }
        for (gauge, value) in &numbers.gauges {
            if let Some((_, family)) = self.gauges.iter().find(|(other, _)| other == gauge) {
                family.with_label_values(&[iif, source, group]).set(*value);
                series.insert(Series::Gauge(*gauge), 0);
            }
        }
        let values = [iif, source, group, numbers.verdict];
        self.verdict.with_label_values(&values).set(1.0);
        series.insert(Series::Verdict(numbers.verdict.into()), 0);
        series
    }

    fn remove(&self, labels: &StreamLabels, series: &Series) {
        let [iif, source, group] = labels.each_ref().map(String::as_str);
        // A series that is gone already needs nothing.
        let _ = match series {
            Series::Counter(counter, label) => {
                let family = self.counters.iter().find(|(other, _)| other == counter);
                let mut values = vec![iif, source, group];
                values.extend(counter.label().map(|_| label.as_str()));
                family.map(|(_, family)| family.remove_label_values(&values))
            }
            Series::Gauge(gauge) => {
                let family = self.gauges.iter().find(|(other, _)| other == gauge);
                family.map(|(_, family)| family.remove_label_values(&[iif, source, group]))
            }
            Series::Verdict(verdict) => {
                let values = [iif, source, group, verdict.as_str()];
                Some(self.verdict.remove_label_values(&values))
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_a_stream_end_with_it() {
        let registry = MetricsRegistry::default();
        let families = StreamFamilies::new(&registry).unwrap();
        let labels = ["eth0", "10.0.0.1", "225.1.2.3"].map(String::from);
        let numbers = |packets, verdict| StreamNumbers {
            counters: vec![
                (StreamCounter::Packets, String::new(), packets),
                (StreamCounter::Sent, "eth1".into(), packets),
            ],
            gauges: vec![(StreamGauge::Idle, 0.5)],
            verdict,
        };
        let series = || {
            let families = registry.gather().into_iter();
            let own = families.filter(|f| f.name().starts_with("mcastor_stream_"));
            own.map(|f| f.get_metric().len()).sum::<usize>()
        };
        families.set(&[(labels.clone(), numbers(5, "fine"))].into());
        assert_eq!(series(), 4);
        families.set(&[(labels.clone(), numbers(9, "silent"))].into());
        assert_eq!(series(), 4);
        let values = [labels[0].as_str(), &labels[1], &labels[2]];
        let packets = families.counters[0].1.with_label_values(&values);
        assert_eq!(packets.get(), 9);
        families.set(&BTreeMap::new());
        assert_eq!(series(), 0);
    }

    #[test]
    fn losses_count_on_when_an_analyzer_begins_again() {
        let families = StreamFamilies::new(&MetricsRegistry::default()).unwrap();
        let labels = ["eth0", "10.0.0.1", "225.1.2.3"].map(String::from);
        let values = labels.each_ref().map(String::as_str);
        let of = |counter| {
            families
                .counters
                .iter()
                .find(|(other, _)| *other == counter)
        };
        let lost = &of(StreamCounter::LostBefore).unwrap().1;
        let after = |packets, lost_before| {
            let total = |counter, total| (counter, String::new(), total);
            let numbers = StreamNumbers {
                counters: vec![
                    total(StreamCounter::Packets, packets),
                    total(StreamCounter::LostBefore, lost_before),
                ],
                gauges: Vec::new(),
                verdict: "fine",
            };
            families.set(&[(labels.clone(), numbers)].into());
            lost.with_label_values(&values).get()
        };
        assert_eq!(after(1000, 50), 50);
        // Three packets came late; two more are lost.
        assert_eq!(after(1100, 47), 50);
        assert_eq!(after(1200, 52), 52);
        // The analyzer began again, so these are other losses.
        assert_eq!(after(10, 4), 56);
        assert_eq!(after(20, 7), 59);
        assert_eq!(after(30, 507), 559);
        // Only the numbers began again: the stream has another port.
        assert_eq!(after(40, 3), 562);
    }
}
