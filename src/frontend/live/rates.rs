//! Rates, computed from counters that are read once in a while.

use ahash::AHashMap;
use serde_json::{Map, Value, json};

use super::table::LiveRow;
use crate::frontend::flow_views::ListedFlow;
use crate::model::InterfaceId;
use crate::table::flows::FlowKey;

/// Shortest time between two readings of a counter from which a rate is computed.
const MIN_INTERVAL_MS: u64 = 900;
/// How long a flow without packets keeps its rate, at least.
const MAX_SILENCE_MS: u64 = 2_500;

/// The counters of the rows of a table, and their rates.
#[derive(Debug, Default)]
pub struct CounterRates(AHashMap<String, Reading>);

#[derive(Debug, Clone)]
struct Reading {
    at_ms: u64,
    counters: Vec<u64>,
    /// Per second. `None` after the first reading.
    rates: Option<Vec<f64>>,
}

impl CounterRates {
    /// Adds a property `rates` to each row that had the same key at an earlier time, with the rates
    /// of its `counters` per second. Forgets other rows.
    pub fn add_to(&mut self, rows: &mut [LiveRow], counters: &[&str], at_ms: u64) {
        let mut readings = AHashMap::with_capacity(rows.len());
        for row in rows {
            let value = |name: &&str| row.values.get(*name).and_then(Value::as_u64).unwrap_or(0);
            let values: Vec<u64> = counters.iter().map(value).collect();
            let reading = next_reading(self.0.remove(&row.key), values, at_ms);
            if let Some(rates) = &reading.rates {
                let named = counters.iter().zip(rates);
                let rates = named.map(|(name, rate)| ((*name).to_owned(), json!(rounded(*rate))));
                let rates: Map<String, Value> = rates.collect();
                row.values.insert("rates".into(), rates.into());
            }
            readings.insert(row.key.clone(), reading);
        }
        self.0 = readings;
    }
}

fn next_reading(former: Option<Reading>, counters: Vec<u64>, at_ms: u64) -> Reading {
    let first = |counters| Reading {
        at_ms,
        counters,
        rates: None,
    };
    let Some(former) = former else {
        return first(counters);
    };
    let elapsed_ms = at_ms.saturating_sub(former.at_ms);
    if elapsed_ms < MIN_INTERVAL_MS {
        return former;
    }
    let pairs = || counters.iter().zip(&former.counters);
    // A counter that was lowered belongs to something new of the same name.
    if pairs().any(|(new, old)| new < old) {
        return first(counters);
    }
    let seconds = elapsed_ms as f64 / 1000.0;
    let rates = pairs().map(|(new, old)| (new - old) as f64 / seconds);
    Reading {
        rates: Some(rates.collect()),
        at_ms,
        counters,
    }
}

/// Returns a rate with as many digits as a reader can use.
fn rounded(rate: f64) -> f64 {
    match rate < 10.0 {
        true => (rate * 10.0).round() / 10.0,
        false => rate.round(),
    }
}

/// The counters of all flows, and their rates.
///
/// The time between two readings of a flow is that between its last packets, not that between the
/// readings. So the rate is exact for a flow with few packets, and for one of the kernel, whose
/// counters are read once a second at another time.
#[derive(Debug, Default)]
pub struct FlowRates(AHashMap<(InterfaceId, FlowKey, bool), FlowReading>);

/// The counters of a flow, and its rate.
#[derive(Debug, Clone, Copy, PartialEq)]
struct FlowReading {
    packets: u64,
    bytes: u64,
    seen_ms: u64,
    /// How long the rate is valid without a further packet.
    valid_ms: u64,
    rate: Option<FlowRate>,
}

/// The rate of a flow.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct FlowRate {
    /// Packets per second.
    pub packets: f64,
    /// Bits per second, of IP packets.
    pub bits: f64,
}

impl FlowRates {
    /// Returns the rates after another reading. Forgets flows that have ended.
    pub fn after(&self, rows: &[ListedFlow], now_ms: u64) -> Self {
        let reading = |row: &ListedFlow| {
            let key = (row.index, row.record.key, row.dropped);
            (key, next_flow_reading(self.0.get(&key), row, now_ms))
        };
        Self(rows.iter().map(reading).collect())
    }

    /// Returns the rate of a flow. `None` if it has been read only once.
    pub fn rate(&self, row: &ListedFlow) -> Option<FlowRate> {
        let reading = self.0.get(&(row.index, row.record.key, row.dropped))?;
        let rate = reading.rate?;
        Some(FlowRate {
            packets: rounded(rate.packets),
            bits: rounded(rate.bits),
        })
    }
}

fn next_flow_reading(former: Option<&FlowReading>, row: &ListedFlow, now_ms: u64) -> FlowReading {
    let flow = &row.record.flow;
    let reading = FlowReading {
        packets: flow.packets,
        bytes: flow.bytes,
        seen_ms: flow.seen_ms,
        valid_ms: MAX_SILENCE_MS,
        rate: None,
    };
    let former = match former {
        Some(former) if flow.packets >= former.packets && flow.bytes >= former.bytes => *former,
        // A new flow, or another one with the same addresses.
        _ => return reading,
    };
    if now_ms.saturating_sub(flow.seen_ms) > former.valid_ms {
        return FlowReading {
            rate: Some(FlowRate::default()),
            // The silence is not part of the next rate.
            seen_ms: now_ms,
            valid_ms: former.valid_ms,
            ..reading
        };
    }
    let elapsed_ms = flow.seen_ms.saturating_sub(former.seen_ms);
    // No packet, or a burst, which the next reading compares with a longer time.
    if flow.packets == former.packets || elapsed_ms < MIN_INTERVAL_MS / 4 {
        return former;
    }
    let seconds = elapsed_ms as f64 / 1000.0;
    FlowReading {
        rate: Some(FlowRate {
            packets: (flow.packets - former.packets) as f64 / seconds,
            bits: (flow.bytes - former.bytes) as f64 * 8.0 / seconds,
        }),
        valid_ms: MAX_SILENCE_MS.max(2 * elapsed_ms),
        ..reading
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::flows::{Flow, FlowRecord, Verdicts};

    fn rows(packets: u64) -> Vec<LiveRow> {
        let values = json!({"packets": packets, "other": 7});
        let Value::Object(values) = values else {
            panic!("no object")
        };
        let key = "eth0".into();
        vec![LiveRow { key, values }]
    }

    #[test]
    fn counters_have_rates_from_the_second_reading_on() {
        let mut rates = CounterRates::default();
        let mut rate = |packets, at_ms| {
            let mut rows = rows(packets);
            rates.add_to(&mut rows, &["packets"], at_ms);
            rows[0]
                .values
                .get("rates")
                .map(|rates| rates["packets"].clone())
        };
        assert_eq!(rate(100, 1_000), None);
        assert_eq!(rate(600, 2_000), Some(json!(500.0)));
        assert_eq!(rate(602, 2_250), Some(json!(500.0)), "too short a time");
        assert_eq!(rate(608, 4_000), Some(json!(4.0)));
        assert_eq!(rate(608, 5_000), Some(json!(0.0)));
        assert_eq!(rate(3, 6_000), None, "a new interface of the same name");
    }

    #[test]
    fn rows_that_end_are_forgotten() {
        let mut rates = CounterRates::default();
        rates.add_to(&mut rows(1), &["packets"], 1_000);
        rates.add_to(&mut [], &["packets"], 2_000);
        assert!(rates.0.is_empty());
    }

    fn flow(packets: u64, seen_ms: u64) -> ListedFlow {
        ListedFlow {
            index: InterfaceId::new(1).unwrap(),
            dropped: false,
            record: FlowRecord {
                key: ([10, 0, 0, 1].into(), [232, 1, 1, 1].into()),
                flow: Flow {
                    verdicts: Verdicts::default(),
                    generation: 0,
                    packets,
                    bytes: packets * 125,
                    began_ms: 0,
                    seen_ms,
                },
            },
        }
    }

    /// Returns the packet rates after each reading: packets, time of the last one, time of reading.
    fn flow_rates(readings: &[(u64, u64, u64)]) -> Vec<Option<f64>> {
        let mut rates = FlowRates::default();
        let rate = |(packets, seen_ms, now_ms): &(u64, u64, u64)| {
            let row = flow(*packets, *seen_ms);
            rates = rates.after(&[row], *now_ms);
            rates.rate(&row).map(|rate| rate.packets)
        };
        readings.iter().map(rate).collect()
    }

    #[test]
    fn flow_rate_is_that_between_its_last_packets() {
        let readings = [(100, 990, 1_000), (200, 1_990, 2_100), (300, 2_990, 3_050)];
        assert_eq!(flow_rates(&readings), [None, Some(100.0), Some(100.0)]);
    }

    /// The counters of the kernel are read once a second: sometimes not at all between two readings,
    /// sometimes twice.
    #[test]
    fn flow_rate_is_steady_if_counters_are_read_at_another_time() {
        let readings = [
            (100, 1_000, 1_001),
            (200, 2_000, 2_001),
            (200, 2_000, 2_999),
            (400, 4_000, 4_001),
        ];
        let steady = Some(100.0);
        assert_eq!(flow_rates(&readings), [None, steady, steady, steady]);
    }

    #[test]
    fn flow_rate_of_a_silent_flow_becomes_zero() {
        let readings = [
            (100, 1_000, 1_000),
            (200, 2_000, 2_000),
            (200, 2_000, 4_000),
            (200, 2_000, 5_000),
        ];
        let rates = flow_rates(&readings);
        assert_eq!(rates[2..], [Some(100.0), Some(0.0)]);
    }

    #[test]
    fn flow_rate_of_rare_packets_stays_until_the_next_is_overdue() {
        let readings = [
            (1, 0, 0),
            (2, 10_000, 10_000),
            (2, 10_000, 29_000),
            (2, 10_000, 31_000),
        ];
        let rates = flow_rates(&readings);
        assert_eq!(rates[1..], [Some(0.1), Some(0.1), Some(0.0)]);
    }
}
