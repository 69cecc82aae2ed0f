//! Finds the bytes of the file, or the environment variable, from which a value comes.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use toml_edit::{Document, Item};

use super::key_path::{KeyPath, PathSegment};
use super::report::{NamedText, SourceLocation};

/// A file that is valid TOML, with the byte range of every key.
pub(super) struct FileText {
    text: Arc<NamedText>,
    /// Empty after [`FileText::release`]; then the text is parsed again on the next use.
    document: OnceCell<Option<Document<Arc<str>>>>,
    line_starts: LineStarts,
}

impl FileText {
    pub fn new(text: Arc<NamedText>, document: Document<Arc<str>>) -> Self {
        let line_starts = LineStarts::new(&text.text);
        Self {
            text,
            document: Some(document).into(),
            line_starts,
        }
    }

    /// Frees the parsed document, which takes far more memory than the text.
    pub fn release(&mut self) {
        self.document.take();
    }

    pub fn root(&self) -> &Item {
        static NO_ITEM: Item = Item::None;
        let parse = || Document::parse(self.text.text.clone()).ok();
        let document = self.document.get_or_init(parse);
        document.as_ref().map_or(&NO_ITEM, Document::as_item)
    }

    fn location(&self, span: Range<usize>) -> SourceLocation {
        location_in(&self.text, &self.line_starts, span)
    }

    fn span_of(&self, path: &KeyPath, target: LabelTarget) -> Option<Range<usize>> {
        let mut item = self.root();
        let mut key_span = None;
        for segment in &path.0 {
            match segment {
                PathSegment::Key(name) => {
                    let table = item.as_table_like();
                    key_span = table.and_then(|table| table.key(name)?.span());
                    item = item.get(name.as_str())?;
                }
                PathSegment::Index(index) => {
                    item = item.get(*index)?;
                    key_span = None;
                }
            }
        }
        let value_span = item.span();
        match target {
            LabelTarget::Key => key_span.or(value_span),
            LabelTarget::Value => value_span.or(key_span),
        }
    }
}

/// Whether a label marks the key or the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LabelTarget {
    Key,
    Value,
}

/// The byte offset of the start of each line.
pub(super) struct LineStarts(Vec<usize>);

impl LineStarts {
    pub fn new(text: &str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self(std::iter::once(0).chain(ends.map(|(n, _)| n + 1)).collect())
    }

    /// Returns line and column, from 1. The column counts characters.
    fn position(&self, text: &str, offset: usize) -> (usize, usize) {
        let line = self.0.partition_point(|start| *start <= offset);
        let start = self.0.get(line.saturating_sub(1)).copied().unwrap_or(0);
        let column = text.get(start..offset).map_or(0, |s| s.chars().count());
        (line, column + 1)
    }
}

/// Converts a byte range of a file to a location.
pub(super) fn location_in(
    text: &Arc<NamedText>,
    line_starts: &LineStarts,
    span: Range<usize>,
) -> SourceLocation {
    let bytes = &text.text;
    let start = span.start.min(bytes.len());
    let end = span.end.clamp(start, bytes.len());
    let (line, column) = line_starts.position(bytes, start);
    SourceLocation::File {
        text: text.clone(),
        line,
        column,
        span: start..end,
    }
}

/// An environment variable.
#[derive(Debug, Clone)]
pub(super) struct EnvVariable {
    pub name: String,
    pub value: String,
}

impl EnvVariable {
    /// Returns the location of the variable's name or value.
    pub fn location(&self, target: LabelTarget) -> SourceLocation {
        let text: Arc<str> = format!("{}={}", self.name, self.value).into();
        let span = match target {
            LabelTarget::Key => 0..self.name.len(),
            LabelTarget::Value => self.name.len() + 1..text.len(),
        };
        SourceLocation::Variable {
            name: self.name.clone(),
            text: Arc::new(NamedText {
                name: "environment".into(),
                text,
            }),
            span,
        }
    }
}

/// The sources of the settings: a file and environment variables.
#[derive(Default)]
pub(super) struct Sources {
    pub file: Option<FileText>,
    pub variables: BTreeMap<KeyPath, EnvVariable>,
}

impl Sources {
    /// Returns the variable that set the value at `path` or a value that contains it.
    fn variable(&self, path: &KeyPath) -> Option<&EnvVariable> {
        if self.variables.is_empty() {
            return None;
        }
        let mut path = path.clone();
        while !path.0.is_empty() {
            if let Some(variable) = self.variables.get(&path) {
                return Some(variable);
            }
            path.0.pop();
        }
        None
    }

    /// Returns the location of the value at `path`.
    pub fn value(&self, path: &KeyPath) -> SourceLocation {
        self.find(path, LabelTarget::Value)
    }

    /// Returns the location of the key at `path`.
    pub fn key(&self, path: &KeyPath) -> SourceLocation {
        self.find(path, LabelTarget::Key)
    }

    fn find(&self, path: &KeyPath, target: LabelTarget) -> SourceLocation {
        if let Some(variable) = self.variable(path) {
            return variable.location(target);
        }
        let in_file = |path: &KeyPath, target| {
            let file = self.file.as_ref()?;
            Some(file.location(file.span_of(path, target)?))
        };
        // A missing key is shown at its table. A table that only the environment sets has no
        // variable of its own; any variable below it serves.
        let parent = path.parent();
        let table_in_file = || match path.0.last() {
            Some(PathSegment::Key(_)) if !parent.0.is_empty() => in_file(&parent, LabelTarget::Key),
            _ => None,
        };
        in_file(path, target)
            .or_else(table_in_file)
            .or_else(|| self.variable_below(path))
            .or_else(|| self.variable_below(&parent))
            .or_else(|| Some(self.file.as_ref()?.location(0..0)))
            .unwrap_or(SourceLocation::Unknown)
    }

    fn variable_below(&self, path: &KeyPath) -> Option<SourceLocation> {
        let (_, variable) = self
            .variables
            .range(path.clone()..)
            .next()
            .filter(|(other, _)| other.0.starts_with(&path.0))?;
        Some(variable.location(LabelTarget::Key))
    }

    /// Returns the byte range of the value at `path`, if the value comes from the file.
    pub fn span(&self, path: &KeyPath) -> Option<Range<usize>> {
        match self.value(path) {
            SourceLocation::File { span, .. } => Some(span),
            _ => None,
        }
    }
}
