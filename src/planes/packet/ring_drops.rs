//! Separates the packets that the kernel drops at a ring: those for which there was no space, and
//! those whose offload it cannot describe.
//!
//! The kernel counts both together. A packet of the second kind leaves a place without a frame in a
//! block, which is read later than it is counted.

/// The drops of a ring.
#[derive(Debug, Default)]
pub(super) struct RingDrops {
    /// Drops that the kernel counted since the last call of [`RingDrops::take`].
    pub(super) recent: u64,
    /// Drops of the call before, whose blocks may not have been read then.
    older: u64,
    /// Places without a frame since the last call.
    pub(super) empty: u64,
}

impl RingDrops {
    /// Returns the packets that had no space, and those with an unknown offload. The former are
    /// returned one call late, unless this is the `last` call: their blocks may contain places that
    /// explain them. Each drop is returned once.
    pub(super) fn take(&mut self, last: bool) -> (u64, u64) {
        // More places than drops were counted as lost before they were found.
        let unknown = std::mem::take(&mut self.empty).min(self.older + self.recent);
        let from_older = unknown.min(self.older);
        let recent = std::mem::take(&mut self.recent) - (unknown - from_older);
        let mut lost = std::mem::take(&mut self.older) - from_older;
        match last {
            true => lost += recent,
            false => self.older = recent,
        }
        (lost, unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the results of calls, each with the drops and places since the call before.
    fn results(calls: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let mut drops = RingDrops::default();
        let mut result = |(at, (recent, empty)): (usize, &(u64, u64))| {
            drops.recent += recent;
            drops.empty += empty;
            drops.take(at + 1 == calls.len())
        };
        calls.iter().enumerate().map(&mut result).collect()
    }

    #[test]
    fn place_explains_a_drop_of_this_call_or_the_one_before() {
        assert_eq!(results(&[(3, 3), (0, 0)]), [(0, 3), (0, 0)]);
        assert_eq!(results(&[(3, 0), (0, 3), (0, 0)]), [(0, 0), (0, 3), (0, 0)]);
        assert_eq!(results(&[(3, 1), (4, 5), (0, 0)]), [(0, 1), (0, 5), (1, 0)]);
    }

    #[test]
    fn drops_without_places_are_losses() {
        assert_eq!(results(&[(3, 0), (0, 0), (0, 0)]), [(0, 0), (3, 0), (0, 0)]);
        assert_eq!(results(&[(3, 1)]), [(2, 1)]);
    }

    #[test]
    fn late_place_is_not_counted_again() {
        assert_eq!(
            results(&[(3, 0), (0, 0), (0, 3), (2, 0), (0, 0)]),
            [(0, 0), (3, 0), (0, 0), (0, 0), (2, 0)]
        );
    }
}
