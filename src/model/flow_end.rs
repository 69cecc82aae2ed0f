//! Why a flow is no longer remembered. Each is the `reason` label of
//! `mcastor_flow_ends_total` and a line in docs/metrics.md.

/// Why a flow ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FlowEnd {
    /// It had no packet for too long.
    Idle,
    /// It had been idle longest when another one needed room.
    Evicted,
    /// Somebody flushed it, or its interface is no longer captured.
    Flushed,
}

impl FlowEnd {
    /// All of them; the position of each is its number.
    pub const ALL: [Self; 3] = [Self::Idle, Self::Evicted, Self::Flushed];

    /// The metrics label.
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
    fn labels_are_unique_and_discriminants_are_indexes() {
        let labels: HashSet<_> = FlowEnd::ALL.iter().map(|e| e.label()).collect();
        assert_eq!(labels.len(), FlowEnd::ALL.len());
        for (i, end) in FlowEnd::ALL.iter().enumerate() {
            assert_eq!(*end as usize, i);
        }
    }
}
