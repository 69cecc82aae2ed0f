//! Options of interfaces that are configured by name or pattern.

use std::time::Duration;

use crate::model::{IfPattern, Link, TtlThreshold};

/// Options of the interfaces that match a name or pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceOptions {
    /// The name or pattern.
    pub name: IfPattern,
    /// Packets leave only if they arrived with a TTL above this.
    pub ttl_threshold: Option<TtlThreshold>,
    /// Interval of multicast router advertisements; `None` if none are sent.
    pub mrdisc: Option<Duration>,
    /// Whether the interface is excluded from all rules.
    pub disabled: bool,
    /// Whether packets are captured even if no rule receives them.
    pub capture: bool,
}

impl InterfaceOptions {
    /// Returns the options of a link: the first whose literal name matches, else the first whose
    /// pattern does.
    pub fn of_link<'a>(all: &'a [Self], link: &Link) -> Option<&'a Self> {
        let matching = |is_pattern: bool| {
            all.iter()
                .find(move |o| o.name.is_pattern() == is_pattern && link.is_named(&o.name))
        };
        matching(false).or_else(|| matching(true))
    }
}
