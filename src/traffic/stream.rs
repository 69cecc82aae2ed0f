//! The options that the sender and the receiver of a test stream share.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::model::{Group, IfName, Source};
use crate::probe::{StreamError, consecutive_groups};
use crate::sys::ifaddr::{InterfaceAddresses, interfaces};

/// The stream, and when it ends.
///
/// The sender and the receiver replace the help of the arguments whose meaning differs. The
/// display orders leave gaps for their own arguments.
#[derive(Debug, Clone, clap::Args)]
pub struct StreamOptions {
    /// Interface of this host
    #[arg(short, long, value_name = "NAME", display_order = 10)]
    pub interface: IfName,
    /// Multicast group, IPv4 or IPv6; with --flows, the first of them
    #[arg(short, long, value_name = "ADDR", display_order = 20)]
    pub group: Group,
    /// Source address of the packets
    #[arg(short, long, value_name = "ADDR", display_order = 30)]
    pub source: Option<Source>,
    /// UDP port
    #[arg(short, long, default_value_t = 5000, value_parser = clap::value_parser!(u16).range(1..),
        display_order = 40)]
    pub port: u16,
    /// Number of packets per flow
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..),
        display_order = 50)]
    pub count: Option<u64>,
    /// Stop after so many seconds
    #[arg(long, value_name = "S", value_parser = seconds, display_order = 60)]
    pub seconds: Option<f64>,
    /// Number of consecutive groups, one flow each
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000),
        display_order = 70)]
    pub flows: u16,
}

impl StreamOptions {
    /// Returns the defaults of the command line for `group` on `interface`.
    pub fn new(interface: IfName, group: Group) -> Self {
        Self {
            interface,
            group,
            source: None,
            port: 5000,
            count: None,
            seconds: None,
            flows: 1,
        }
    }

    /// Finds the interface and checks that it is up.
    pub(super) fn find_interface(&self) -> Result<InterfaceAddresses, StreamError> {
        find_interface(&self.interface)
    }

    /// Returns the groups of the flows, after a check that group and source have the same IP
    /// version.
    pub(super) fn groups(&self) -> Result<Vec<Group>, StreamError> {
        let (group, flows) = (self.group, self.flows);
        let other_version = |s: &Source| s.addr().is_ipv4() != group.addr().is_ipv4();
        if let Some(source) = self.source.filter(other_version) {
            return Err(StreamError::Usage(format!(
                "--source {source} and --group {group} have different IP versions"
            )));
        }
        consecutive_groups(group, flows).ok_or_else(|| {
            StreamError::Usage(format!(
                "--flows {flows}: too many groups from {group} to the end of the multicast range"
            ))
        })
    }
}

/// Finds an interface and checks that it is up.
pub(super) fn find_interface(name: &IfName) -> Result<InterfaceAddresses, StreamError> {
    let all = interfaces().map_err(|error| StreamError::System {
        what: "list the interfaces",
        error,
    })?;
    let Some(found) = all.iter().find(|i| i.name == *name) else {
        let have: Vec<_> = all.iter().map(|i| i.name.as_str()).collect();
        return Err(StreamError::NoInterface {
            name: name.clone(),
            have: have.join(", "),
        });
    };
    if !found.up {
        return Err(StreamError::Down(name.clone()));
    }
    Ok(found.clone())
}

/// Parses a number of seconds: positive, and at most ten years.
pub(super) fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(s) if s > 0.0 && s <= 3.2e8 => Ok(s),
        _ => Err("the number of seconds must be positive, such as 10 or 0.5".into()),
    }
}

/// Returns `IPv4` or `IPv6`, for messages.
pub(super) fn family(group: Group) -> &'static str {
    match group.addr() {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    }
}

/// Converts to a duration. Values out of range, which the parser rejects, become the longest
/// duration.
pub(super) fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

/// Returns the time of day in nanoseconds since 1970.
pub(super) fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| d.as_nanos() as u64)
}
