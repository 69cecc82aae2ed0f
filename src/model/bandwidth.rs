//! A bit rate.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// The units, with their bits per second. The largest comes first.
const UNITS: [(&str, u64); 4] = [
    ("Gbit", 1_000_000_000),
    ("Mbit", 1_000_000),
    ("kbit", 1_000),
    ("bit", 1),
];

/// A bit rate of IP packets: a number and a unit as in tc(8), such as `1.5Gbit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Bandwidth(u64);

/// A text is no bit rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a bit rate is a number with the unit bit, kbit, Mbit or Gbit")]
pub struct BandwidthError;

impl Bandwidth {
    /// Returns a rate in bits per second.
    pub fn from_bits(bits_per_second: u64) -> Self {
        Self(bits_per_second)
    }

    /// Returns the bits per second.
    pub fn bits(self) -> u64 {
        self.0
    }
}

impl FromStr for Bandwidth {
    type Err = BandwidthError;

    fn from_str(text: &str) -> Result<Self, BandwidthError> {
        let text = text.trim();
        let is_digit = |c: char| c.is_ascii_digit() || c == '.';
        let end = text.find(|c| !is_digit(c)).ok_or(BandwidthError)?;
        let (number, unit) = text.split_at(end);
        let number: f64 = number.parse().map_err(|_| BandwidthError)?;
        let unit = unit.trim_start();
        let known = UNITS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(unit));
        let (_, factor) = known.ok_or(BandwidthError)?;
        let bits = number * *factor as f64;
        // Below 2^53, so that the number is exact.
        let is_valid = (1.0..=1e15).contains(&bits);
        is_valid.then_some(Self(bits as u64)).ok_or(BandwidthError)
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fitting = UNITS.iter().find(|(_, factor)| self.0 >= *factor);
        let (unit, factor) = fitting.unwrap_or(&("bit", 1));
        let rounded = format!("{:.2}", self.0 as f64 / *factor as f64);
        let short = rounded.trim_end_matches('0').trim_end_matches('.');
        f.pad(&format!("{short}{unit}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_those_of_tc() {
        for (text, bits, shown) in [
            ("1Gbit", 1_000_000_000, "1Gbit"),
            ("1.5 gbit", 1_500_000_000, "1.5Gbit"),
            ("800Mbit", 800_000_000, "800Mbit"),
            ("64kbit", 64_000, "64kbit"),
            ("1000kbit", 1_000_000, "1Mbit"),
            ("500bit", 500, "500bit"),
        ] {
            let bandwidth: Bandwidth = text.parse().unwrap();
            assert_eq!(
                (bandwidth.bits(), bandwidth.to_string().as_str()),
                (bits, shown)
            );
        }
        for bad in [
            "",
            "1",
            "Gbit",
            "0Gbit",
            "-1Gbit",
            "1GB",
            "1.2.3Mbit",
            "1e9bit",
        ] {
            assert_eq!(bad.parse::<Bandwidth>(), Err(BandwidthError), "{bad}");
        }
        assert_eq!(Bandwidth::from_bits(0).to_string(), "0bit");
    }
}
