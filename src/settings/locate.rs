//! From the path of a key to the bytes that were written for it.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use toml_edit::{Document, Item};

use super::keys::{KeyPath, Step};
use super::report::{NamedText, Place, Text};

/// A file that parsed, with the byte range of every key.
pub(super) struct FileText {
    text: Text,
    /// Parsed again where it was forgotten.
    document: OnceCell<Option<Document<Arc<str>>>>,
    lines: Lines,
}

impl FileText {
    pub fn new(text: Text, document: Document<Arc<str>>) -> Self {
        let lines = Lines::of(&text.text);
        Self {
            text,
            document: Some(document).into(),
            lines,
        }
    }

    /// Lets go of what was parsed until it is asked for again.
    pub fn forget(&mut self) {
        self.document.take();
    }

    pub fn root(&self) -> &Item {
        static NOTHING: Item = Item::None;
        let parse = || Document::parse(self.text.text.clone()).ok();
        let document = self.document.get_or_init(parse);
        document.as_ref().map_or(&NOTHING, Document::as_item)
    }

    fn place(&self, span: Range<usize>) -> Place {
        place_in(&self.text, &self.lines, span)
    }

    fn span_of(&self, path: &KeyPath, part: Part) -> Option<Range<usize>> {
        let mut at = self.root();
        let mut key_span = None;
        for step in &path.0 {
            match step {
                Step::Key(name) => {
                    key_span = at.as_table_like().and_then(|table| table.key(name)?.span());
                    at = at.get(name.as_str())?;
                }
                Step::Index(index) => {
                    at = at.get(*index)?;
                    key_span = None;
                }
            }
        }
        let value_span = at.span();
        match part {
            Part::Key => key_span.or(value_span),
            Part::Value => value_span.or(key_span),
        }
    }
}

/// Whether a label goes under the key or under the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Key,
    Value,
}

/// The byte offset at which each line starts.
pub(super) struct Lines(Vec<usize>);

impl Lines {
    pub fn of(text: &str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self(std::iter::once(0).chain(ends.map(|(n, _)| n + 1)).collect())
    }

    /// Line and column, from 1; the column counts characters.
    fn position(&self, text: &str, offset: usize) -> (usize, usize) {
        let line = self.0.partition_point(|start| *start <= offset);
        let start = self.0.get(line.saturating_sub(1)).copied().unwrap_or(0);
        let column = text.get(start..offset).map_or(0, |s| s.chars().count());
        (line, column + 1)
    }
}

/// A place in a file from a byte range.
pub(super) fn place_in(text: &Text, lines: &Lines, span: Range<usize>) -> Place {
    let whole = &text.text;
    let start = span.start.min(whole.len());
    let end = span.end.clamp(start, whole.len());
    let (line, column) = lines.position(whole, start);
    Place::File {
        text: text.clone(),
        line,
        column,
        span: start..end,
    }
}

/// An environment variable as it was set.
#[derive(Debug, Clone)]
pub(super) struct Variable {
    pub name: String,
    pub value: String,
}

impl Variable {
    /// The variable, with a label under its name or its value.
    pub fn place(&self, part: Part) -> Place {
        let text: Arc<str> = format!("{}={}", self.name, self.value).into();
        let span = match part {
            Part::Key => 0..self.name.len(),
            Part::Value => self.name.len() + 1..text.len(),
        };
        Place::Variable {
            name: self.name.clone(),
            text: Arc::new(NamedText {
                name: "environment".into(),
                text,
            }),
            span,
        }
    }
}

/// Where the settings came from.
#[derive(Default)]
pub(super) struct Sources {
    pub file: Option<FileText>,
    pub variables: BTreeMap<KeyPath, Variable>,
}

impl Sources {
    /// The variable that gave the value at `path`, or a value that holds it.
    pub fn variable(&self, path: &KeyPath) -> Option<&Variable> {
        if self.variables.is_empty() {
            return None;
        }
        let mut at = path.clone();
        while !at.0.is_empty() {
            if let Some(variable) = self.variables.get(&at) {
                return Some(variable);
            }
            at.0.pop();
        }
        None
    }

    /// The place of the value at `path`.
    pub fn value(&self, path: &KeyPath) -> Place {
        self.find(path, Part::Value)
    }

    /// The place of the key at `path`.
    pub fn key(&self, path: &KeyPath) -> Place {
        self.find(path, Part::Key)
    }

    fn find(&self, path: &KeyPath, part: Part) -> Place {
        if let Some(variable) = self.variable(path) {
            return variable.place(part);
        }
        let file = |path: &KeyPath, part| {
            let file = self.file.as_ref()?;
            Some(file.place(file.span_of(path, part)?))
        };
        // A key that is not there is shown at the table that lacks it. A table that only the
        // environment speaks of has no variable of its own: any below it will do.
        let parent = path.parent();
        let table = || match path.0.last() {
            Some(Step::Key(_)) if !parent.0.is_empty() => file(&parent, Part::Key),
            _ => None,
        };
        file(path, part)
            .or_else(table)
            .or_else(|| self.below(path))
            .or_else(|| self.below(&parent))
            .or_else(|| Some(self.file.as_ref()?.place(0..0)))
            .unwrap_or(Place::Nowhere)
    }

    fn below(&self, path: &KeyPath) -> Option<Place> {
        let (_, variable) = self
            .variables
            .range(path.clone()..)
            .next()
            .filter(|(other, _)| other.0.starts_with(&path.0))?;
        Some(variable.place(Part::Key))
    }

    /// The byte range at `path` in the file, where the file is what counts there.
    pub fn span(&self, path: &KeyPath) -> Option<Range<usize>> {
        match self.value(path) {
            Place::File { span, .. } => Some(span),
            _ => None,
        }
    }
}
