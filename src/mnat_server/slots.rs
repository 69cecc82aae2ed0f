//! The free slots of a range. Pure.

use std::collections::BTreeMap;

/// How many random slots are tried before the next free one is searched.
const RANDOM_TRIES: usize = 16;

/// The slots of a range that are in use, as intervals. Memory and time depend on the number of used
/// slots, not on the size of the range.
#[derive(Debug)]
pub struct FreeSlots {
    size: u128,
    used: u128,
    /// The end of each interval of used slots, exclusive, by its start. Adjacent intervals are
    /// merged.
    intervals: BTreeMap<u128, u128>,
}

impl FreeSlots {
    /// Returns a range of `size` free slots.
    pub fn new(size: u128) -> Self {
        Self {
            size,
            used: 0,
            intervals: BTreeMap::new(),
        }
    }

    /// Returns the number of free slots.
    pub fn free(&self) -> u128 {
        self.size - self.used
    }

    /// Returns the end of the interval of used slots that contains `index`.
    fn end_of_interval(&self, index: u128) -> Option<u128> {
        let (_, end) = self.intervals.range(..=index).next_back()?;
        (*end > index).then_some(*end)
    }

    /// Takes a free slot at random. Returns `None` if there is none.
    pub fn take_random(&mut self, random: &mut dyn FnMut() -> u128) -> Option<u128> {
        if self.free() == 0 {
            return None;
        }
        // While most slots are free, a few tries find one, and each free slot is equally likely.
        // Otherwise the first free slot after a random one is taken.
        let mut index = random() % self.size;
        for _ in 1..RANDOM_TRIES {
            if self.take(index) {
                return Some(index);
            }
            index = random() % self.size;
        }
        if let Some(end) = self.end_of_interval(index) {
            // Behind the last slot follows the first one.
            index = if end < self.size { end } else { 0 };
            index = self.end_of_interval(index).unwrap_or(index);
        }
        self.take(index).then_some(index)
    }

    /// Takes a slot. Returns false if it is in use or does not exist.
    pub fn take(&mut self, index: u128) -> bool {
        if index >= self.size || self.end_of_interval(index).is_some() {
            return false;
        }
        let end = self.intervals.remove(&(index + 1)).unwrap_or(index + 1);
        let before = self.intervals.range_mut(..index).next_back();
        match before {
            Some((_, before_end)) if *before_end == index => *before_end = end,
            _ => {
                self.intervals.insert(index, end);
            }
        }
        self.used += 1;
        true
    }

    /// Releases a slot. Returns false if it is free.
    pub fn release(&mut self, index: u128) -> bool {
        let Some((start, end)) = self.intervals.range_mut(..=index).next_back() else {
            return false;
        };
        let (start, former_end) = (*start, *end);
        if former_end <= index {
            return false;
        }
        match start == index {
            true => {
                self.intervals.remove(&index);
            }
            false => *end = index,
        }
        if index + 1 < former_end {
            self.intervals.insert(index + 1, former_end);
        }
        self.used -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Returns a sequence of random numbers (splitmix64).
    fn random(mut state: u64) -> impl FnMut() -> u128 {
        let mut next = move || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        move || u128::from(next()) << 64 | u128::from(next())
    }

    #[test]
    fn every_slot_is_found() {
        for size in [1, 2, 3, 256, 1000] {
            let mut random = random(7);
            let mut slots = FreeSlots::new(size);
            let taken: BTreeSet<u128> = (0..size)
                .map(|_| slots.take_random(&mut random).unwrap())
                .collect();
            assert_eq!(taken.len() as u128, size);
            assert_eq!((slots.free(), slots.take_random(&mut random)), (0, None));
            assert_eq!(slots.intervals.len(), 1);
        }
    }

    #[test]
    fn slots_are_as_in_a_set() {
        let mut random = random(3);
        let mut slots = FreeSlots::new(64);
        let mut model = BTreeSet::new();
        for _ in 0..20_000 {
            let index = random() % 66;
            match random() % 3 {
                0 => assert_eq!(slots.take(index), index < 64 && model.insert(index)),
                1 => assert_eq!(slots.release(index), model.remove(&index)),
                _ => {
                    let taken = slots.take_random(&mut random);
                    assert_eq!(taken.is_some(), model.len() < 64);
                    assert!(taken.is_none_or(|index| model.insert(index)));
                }
            }
            assert_eq!(slots.free(), 64 - model.len() as u128);
            let intervals = model.iter().filter(|i| !model.contains(&(*i + 1))).count();
            assert_eq!(slots.intervals.len(), intervals);
        }
    }

    #[test]
    fn empty_range_is_assigned_evenly() {
        let mut random = random(5);
        let mut counts = [0; 16];
        for _ in 0..16_000 {
            let mut slots = FreeSlots::new(16);
            (0..8).for_each(|_| assert!(slots.take_random(&mut random).is_some()));
            let index = slots.take_random(&mut random).unwrap();
            counts[index as usize] += 1;
        }
        assert!(counts.iter().all(|n| (850..1150).contains(n)), "{counts:?}");
    }
}
