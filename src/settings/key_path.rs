//! Paths of keys, such as `route[1].to[0]`.

use std::fmt;

/// One segment of a [`KeyPath`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum PathSegment {
    Key(String),
    Index(usize),
}

/// The path from the top level of the settings to a value: `route[1].to[0]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(super) struct KeyPath(pub Vec<PathSegment>);

impl KeyPath {
    /// Returns the path to a table of the top level.
    pub fn root(name: &str) -> Self {
        Self::default().key(name)
    }

    /// Returns the path extended by a key.
    pub fn key(&self, name: &str) -> Self {
        self.with(PathSegment::Key(name.into()))
    }

    /// Returns the path extended by the index of a list entry.
    pub fn index(&self, index: usize) -> Self {
        self.with(PathSegment::Index(index))
    }

    fn with(&self, segment: PathSegment) -> Self {
        let mut segments = self.0.clone();
        segments.push(segment);
        Self(segments)
    }

    /// Returns the path without its last segment.
    pub fn parent(&self) -> Self {
        Self(self.0[..self.0.len().saturating_sub(1)].to_vec())
    }

    /// Returns the last key on the path; an index may follow it.
    pub fn last_key(&self) -> &str {
        let last = self.0.iter().rev().find_map(|segment| match segment {
            PathSegment::Key(name) => Some(name.as_str()),
            PathSegment::Index(_) => None,
        });
        last.unwrap_or_default()
    }

    /// Whether the path ends with the index of a list entry.
    pub fn ends_with_index(&self) -> bool {
        matches!(self.0.last(), Some(PathSegment::Index(_)))
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, segment) in self.0.iter().enumerate() {
            match segment {
                PathSegment::Key(name) if n == 0 => f.write_str(name)?,
                PathSegment::Key(name) => write!(f, ".{name}")?,
                PathSegment::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}
