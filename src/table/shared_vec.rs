//! A vector whose clones share their elements, so that a changed copy of a large one is cheap.

use std::ops::Index;
use std::sync::Arc;

/// Elements in one chunk. A change copies one chunk and the list of chunks, instead of all
/// elements.
const CHUNK: usize = 64;

/// A vector of shared chunks. A clone shares all of them; a change copies the chunk of the changed
/// element if a clone shares it.
#[derive(Debug)]
pub struct SharedVec<T> {
    /// All chunks but the last are full, and none is empty.
    chunks: Arc<[Arc<Vec<T>>]>,
}

impl<T> Clone for SharedVec<T> {
    fn clone(&self) -> Self {
        Self {
            chunks: self.chunks.clone(),
        }
    }
}

impl<T> Default for SharedVec<T> {
    fn default() -> Self {
        Self {
            chunks: Arc::new([]),
        }
    }
}

impl<T> SharedVec<T> {
    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        match self.chunks.split_last() {
            Some((last, full)) => full.len() * CHUNK + last.len(),
            None => 0,
        }
    }

    /// Returns whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Returns an element; `None` past the end.
    #[inline]
    pub fn get(&self, position: usize) -> Option<&T> {
        self.chunks.get(position / CHUNK)?.get(position % CHUNK)
    }

    /// Returns all elements in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &T> + Clone {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// Returns whether one is a clone of the other, and neither changed since.
    pub fn ptr_eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.chunks, &other.chunks)
    }

    /// Returns the positions of the elements that are not shared with `other`. Their values may
    /// nevertheless be equal.
    pub fn unshared<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = usize> + 'a {
        let chunks = self.chunks.iter().enumerate();
        let unshared = chunks.filter(move |(at, chunk)| {
            let same = other.chunks.get(*at).is_some_and(|o| Arc::ptr_eq(o, chunk));
            !same
        });
        unshared.flat_map(|(at, chunk)| at * CHUNK..at * CHUNK + chunk.len())
    }
}

impl<T: Clone> SharedVec<T> {
    /// Appends an element.
    pub fn push(&mut self, value: T) {
        let last = self.chunks.len().saturating_sub(1);
        let has_space = self.chunks.last().is_some_and(|c| c.len() < CHUNK);
        match Arc::make_mut(&mut self.chunks).get_mut(last) {
            Some(chunk) if has_space => Arc::make_mut(chunk).push(value),
            _ => {
                let chunk = Arc::new(vec![value]);
                let chunks = self.chunks.iter().cloned();
                self.chunks = chunks.chain(std::iter::once(chunk)).collect();
            }
        }
    }

    /// Replaces an element. Does nothing past the end.
    pub fn set(&mut self, position: usize, value: T) {
        let chunk = Arc::make_mut(&mut self.chunks).get_mut(position / CHUNK);
        let element = chunk.and_then(|c| Arc::make_mut(c).get_mut(position % CHUNK));
        if let Some(element) = element {
            *element = value;
        }
    }

    /// Removes an element. Its cost depends on the number of elements after it.
    pub fn remove(&mut self, position: usize) {
        let before = position / CHUNK;
        let later = self.iter().skip(before * CHUNK).cloned().enumerate();
        let later = later.filter(|(at, _)| before * CHUNK + at != position);
        let later: Self = later.map(|(_, value)| value).collect();
        let kept = self.chunks.iter().take(before);
        self.chunks = kept.chain(later.chunks.iter()).cloned().collect();
    }
}

impl<T> FromIterator<T> for SharedVec<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        let mut values = values.into_iter().fuse();
        let chunks = std::iter::from_fn(|| {
            let chunk: Vec<T> = values.by_ref().take(CHUNK).collect();
            (!chunk.is_empty()).then(|| Arc::new(chunk))
        });
        Self {
            chunks: chunks.collect(),
        }
    }
}

impl<T> From<Vec<T>> for SharedVec<T> {
    fn from(values: Vec<T>) -> Self {
        values.into_iter().collect()
    }
}

impl<T> Index<usize> for SharedVec<T> {
    type Output = T;

    #[inline]
    fn index(&self, position: usize) -> &T {
        &self.chunks[position / CHUNK][position % CHUNK]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Clones keep their elements while others change.
        #[test]
        fn changes_equal_those_of_a_vec(
            len in 0usize..200, steps in prop::collection::vec((0u8..4, any::<prop::sample::Index>()), 1..40),
        ) {
            let mut model: Vec<usize> = (0..len).collect();
            let mut vec: SharedVec<usize> = model.clone().into();
            let mut former = Vec::new();
            for (n, (operation, at)) in steps.into_iter().enumerate() {
                former.push((model.clone(), vec.clone()));
                match operation {
                    0 | 1 => {
                        model.push(1000 + n);
                        vec.push(1000 + n);
                    }
                    _ if model.is_empty() => {}
                    2 => {
                        let at = at.index(model.len());
                        model[at] = 2000 + n;
                        vec.set(at, 2000 + n);
                    }
                    _ => {
                        let at = at.index(model.len());
                        model.remove(at);
                        vec.remove(at);
                    }
                }
            }
            former.push((model, vec));
            for (model, vec) in former {
                prop_assert_eq!(vec.iter().copied().collect::<Vec<_>>(), model.clone());
                prop_assert_eq!(vec.len(), model.len());
                prop_assert_eq!(vec.get(model.len()), None);
                prop_assert!(model.iter().enumerate().all(|(at, value)| vec[at] == *value));
            }
        }
    }

    #[test]
    fn only_changed_chunks_are_unshared() {
        let old: SharedVec<u32> = (0..1000).collect();
        let mut new = old.clone();
        assert!(new.ptr_eq(&old));
        new.set(70, 7);
        new.push(1000);
        assert!(!new.ptr_eq(&old));
        let unshared: Vec<_> = new.unshared(&old).collect();
        let expected: Vec<_> = (64..128).chain(960..1001).collect();
        assert_eq!(unshared, expected);
    }
}
