//! A parser of the Prometheus text format.

use std::collections::BTreeMap;

/// One sample: name, labels, value.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Metric name, including suffixes such as `_bucket`.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Value.
    pub value: f64,
}

/// The content of one scrape.
#[derive(Debug, Default)]
pub struct Metrics {
    /// The samples, in order.
    pub samples: Vec<Sample>,
    /// Types by name, from `# TYPE`.
    pub types: BTreeMap<String, String>,
    /// Names with a `# HELP` text.
    pub helped: Vec<String>,
}

impl Metrics {
    /// Parses the text format 0.0.4; panics on invalid lines.
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        let mut metrics = Self::default();
        for line in text.lines().filter(|l| !l.trim().is_empty()) {
            if let Some(comment) = line.strip_prefix('#') {
                let words: Vec<&str> = comment.splitn(4, ' ').collect();
                match words[..] {
                    [_, "TYPE", name, kind] => drop(metrics.types.insert(name.into(), kind.into())),
                    [_, "HELP", name, _] => metrics.helped.push(name.into()),
                    _ => {}
                }
                continue;
            }
            metrics
                .samples
                .push(sample(line).unwrap_or_else(|| panic!("not a metric: {line}")));
        }
        metrics
    }

    /// Returns the sum of all series of `name` that have `labels`.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|s| s.value).sum()
    }

    /// Returns the series of `name` that have `labels`.
    pub fn matching<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&str, &str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |s| {
            s.name == name
                && labels
                    .iter()
                    .all(|(k, v)| s.labels.get(*k).is_some_and(|have| have == v))
        })
    }

    /// Formats the non-zero samples whose names start with `prefix`, for failure messages.
    pub fn show(&self, prefix: &str) -> String {
        let lines = self
            .samples
            .iter()
            .filter(|s| s.name.starts_with(prefix) && s.value != 0.0);
        lines
            .map(|s| format!("{}{:?} {}\n", s.name, s.labels, s.value))
            .collect()
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (name, mut rest) = line.split_at(line.find(['{', ' '])?);
    let mut labels = BTreeMap::new();
    if let Some(mut inner) = rest.strip_prefix('{') {
        loop {
            inner = inner.trim_start_matches(',');
            if let Some(after) = inner.strip_prefix('}') {
                rest = after;
                break;
            }
            let (key, after) = inner.split_once("=\"")?;
            let mut value = String::new();
            let mut chars = after.char_indices();
            let end = loop {
                match chars.next()? {
                    (i, '"') => break i,
                    (_, '\\') => match chars.next()?.1 {
                        'n' => value.push('\n'),
                        c => value.push(c),
                    },
                    (_, c) => value.push(c),
                }
            };
            labels.insert(key.to_owned(), value);
            inner = &after[end + 1..];
        }
    }
    let value = rest.trim().split(' ').next()?.parse().ok()?;
    Some(Sample {
        name: name.into(),
        labels,
        value,
    })
}
