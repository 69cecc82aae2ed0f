//! Source filters of memberships.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use super::Source;

/// A source filter (RFC 9776 section 3.1, RFC 9777 section 4.1). An `Include` filter without
/// sources means that there is no membership.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(tag = "mode", content = "sources", rename_all = "lowercase")]
pub enum SourceFilter {
    /// Only these sources.
    Include(BTreeSet<Source>),
    /// All sources except these.
    Exclude(BTreeSet<Source>),
}

impl SourceFilter {
    /// Returns the filter that accepts no source.
    pub fn none() -> Self {
        Self::Include(BTreeSet::new())
    }

    /// Returns the filter that accepts every source.
    pub fn any() -> Self {
        Self::Exclude(BTreeSet::new())
    }

    /// Returns whether the filter accepts no source.
    pub fn is_none(&self) -> bool {
        matches!(self, Self::Include(sources) if sources.is_empty())
    }

    /// Returns whether the filter accepts packets from `source`.
    pub fn accepts(&self, source: Source) -> bool {
        match self {
            Self::Include(sources) => sources.contains(&source),
            Self::Exclude(sources) => !sources.contains(&source),
        }
    }

    /// Returns the filter that accepts the same sources except some.
    pub fn without(&self, sources: &BTreeSet<Source>) -> Self {
        match self {
            Self::Include(included) => Self::Include(included - sources),
            Self::Exclude(excluded) => Self::Exclude(excluded | sources),
        }
    }

    /// Returns the filter that accepts the sources that either filter accepts (RFC 9776 section
    /// 3.2).
    pub fn union(&self, other: &Self) -> Self {
        use SourceFilter::{Exclude, Include};
        match (self, other) {
            (Include(a), Include(b)) => Include(a | b),
            (Exclude(a), Exclude(b)) => Exclude(a & b),
            (Exclude(excluded), Include(included)) | (Include(included), Exclude(excluded)) => {
                Exclude(excluded - included)
            }
        }
    }
}

impl Default for SourceFilter {
    fn default() -> Self {
        Self::none()
    }
}

impl fmt::Display for SourceFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mode, sources) = match self {
            Self::Include(sources) => ("include", sources),
            Self::Exclude(sources) => ("exclude", sources),
        };
        write!(f, "{mode} {{")?;
        for (i, source) in sources.iter().enumerate() {
            write!(f, "{}{source}", if i == 0 { "" } else { ", " })?;
        }
        f.write_str("}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn source(n: u8) -> Source {
        Source::new([10, 0, 0, n + 1].into()).unwrap()
    }

    fn filter() -> impl Strategy<Value = SourceFilter> {
        let sources = proptest::collection::btree_set(0u8..6, 0..6);
        (any::<bool>(), sources).prop_map(|(include, sources)| {
            let sources = sources.into_iter().map(source).collect();
            match include {
                true => SourceFilter::Include(sources),
                false => SourceFilter::Exclude(sources),
            }
        })
    }

    proptest! {
        #[test]
        fn filter_without_sources_accepts_all_others(a in filter(), n in 0u8..8) {
            let rest = a.without(&[source(n)].into());
            for m in 0..8 {
                let s = source(m);
                prop_assert_eq!(rest.accepts(s), a.accepts(s) && m != n);
            }
        }

        #[test]
        fn union_accepts_sources_of_both(a in filter(), b in filter()) {
            let both = a.union(&b);
            for n in 0..8 {
                let s = source(n);
                prop_assert_eq!(both.accepts(s), a.accepts(s) || b.accepts(s));
            }
        }
    }
}
