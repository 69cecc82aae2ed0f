//! Reasons for the end of a flow. Each is a value of the `reason` label of
//! `mcastor_flow_ends_total` and has a line in docs/metrics.md.

/// The reason why a flow was removed from the flow table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FlowEnd {
    /// It had no packets for the idle timeout.
    Idle,
    /// It was idle for longest when a new flow exceeded the limit.
    Evicted,
    /// A command flushed it, or its interface is not captured any more.
    Flushed,
}

impl FlowEnd {
    /// All reasons. The position of each is its discriminant.
    pub const ALL: [Self; 3] = [Self::Idle, Self::Evicted, Self::Flushed];

    /// Returns the metrics label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Evicted => "evicted",
            Self::Flushed => "flushed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn labels_are_unique_and_discriminants_are_positions() {
        let labels: HashSet<_> = FlowEnd::ALL.iter().map(|e| e.label()).collect();
        assert_eq!(labels.len(), FlowEnd::ALL.len());
        for (i, end) in FlowEnd::ALL.iter().enumerate() {
            assert_eq!(*end as usize, i);
        }
    }
}
