//! The problems of the settings, each with its location.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use miette::{
    Diagnostic, LabeledSpan, MietteError, MietteHandler, MietteHandlerOpts, MietteSpanContents,
    ReportHandler, SourceCode, SourceSpan, SpanContents,
};
use serde::Serialize;
use textwrap::{WordSeparator, WordSplitter};

use super::key_path::KeyPath;

/// The largest number of problems in a [`SettingsReport`]. Further problems are only counted.
pub const MAX_PROBLEMS: usize = 50;

/// A text that labels point into, with its name: the file, or an environment variable with its
/// value.
#[derive(Debug)]
pub(super) struct NamedText {
    pub name: String,
    pub text: Arc<str>,
}

impl SourceCode for NamedText {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        lines_before: usize,
        lines_after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let inner = self.text.read_span(span, lines_before, lines_after)?;
        // miette counts columns in bytes; editors count characters.
        let start = inner.span().offset();
        let before = self.text.get(start.saturating_sub(inner.column())..start);
        let column = before.map_or(inner.column(), |before| before.chars().count());
        Ok(Box::new(MietteSpanContents::new_named(
            self.name.clone(),
            inner.data(),
            *inner.span(),
            inner.line(),
            column,
            inner.line_count(),
        )))
    }
}

/// The location of a problem.
#[derive(Debug, Clone)]
pub(super) enum SourceLocation {
    /// In a file; `line` and `column` count from 1, the column in characters.
    File {
        text: Arc<NamedText>,
        line: usize,
        column: usize,
        span: Range<usize>,
    },
    /// In an environment variable. The text is `NAME=value`.
    Variable {
        name: String,
        text: Arc<NamedText>,
        span: Range<usize>,
    },
    /// A file that cannot be read.
    UnreadableFile { file: String },
    /// Unknown: there is neither a file nor a variable.
    Unknown,
}

impl SourceLocation {
    /// Returns the form in which the message of another problem refers to this location: the line
    /// or the variable.
    pub fn short(&self) -> String {
        match self {
            Self::File { line, .. } => format!("line {line}"),
            Self::Variable { name, .. } => format!("variable {name}"),
            Self::UnreadableFile { file } => file.clone(),
            Self::Unknown => "the settings".into(),
        }
    }

    fn source(&self) -> Option<(&Arc<NamedText>, &Range<usize>)> {
        match self {
            Self::File { text, span, .. } | Self::Variable { text, span, .. } => Some((text, span)),
            _ => None,
        }
    }

    fn sort_key(&self) -> (u8, usize) {
        match self {
            Self::File { span, .. } => (0, span.start),
            _ => (1, 0),
        }
    }
}

impl fmt::Display for SourceLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File {
                text, line, column, ..
            } => write!(f, "{}:{line}:{column}", text.name),
            Self::Variable { name, .. } => f.write_str(name),
            Self::UnreadableFile { file } => f.write_str(file),
            Self::Unknown => f.write_str("settings"),
        }
    }
}

/// One problem: its location, the value found, the value expected, and how to fix it.
#[derive(Debug, Clone)]
pub struct Problem {
    pub(super) location: SourceLocation,
    pub(super) key: String,
    pub(super) found: String,
    pub(super) expected: String,
    pub(super) help: String,
    /// A second location in the same file, and its label.
    pub(super) related: Option<(Range<usize>, String)>,
}

impl Problem {
    pub(super) fn new(
        location: SourceLocation,
        key: &KeyPath,
        found: impl Into<String>,
        expected: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self {
            location,
            key: key.to_string(),
            found: found.into(),
            expected: expected.into(),
            help: help.into(),
            related: None,
        }
    }

    /// Returns the file, for a problem in a file.
    pub fn file(&self) -> Option<&str> {
        match &self.location {
            SourceLocation::File { text, .. } => Some(&text.name),
            SourceLocation::UnreadableFile { file } => Some(file),
            _ => None,
        }
    }

    /// Returns the environment variable, for a value from the environment.
    pub fn variable(&self) -> Option<&str> {
        match &self.location {
            SourceLocation::Variable { name, .. } => Some(name),
            _ => None,
        }
    }

    /// Returns the line in the file, from 1.
    pub fn line(&self) -> Option<usize> {
        match self.location {
            SourceLocation::File { line, .. } => Some(line),
            _ => None,
        }
    }

    /// Returns the column in the line, from 1, in characters.
    pub fn column(&self) -> Option<usize> {
        match self.location {
            SourceLocation::File { column, .. } => Some(column),
            _ => None,
        }
    }

    /// Returns the key path, such as `route[1].group`; empty where no single key is wrong.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Returns what was found.
    pub fn found(&self) -> &str {
        &self.found
    }

    /// Returns what was expected.
    pub fn expected(&self) -> &str {
        &self.expected
    }

    /// Returns how to fix the problem; may be empty.
    pub fn help_text(&self) -> &str {
        &self.help
    }

    /// Returns the problem in one line: `FILE:LINE:COL: found …, expected …`.
    pub fn plain(&self) -> String {
        format!("{}: {self}", self.location)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "found {}, expected {}", self.found, self.expected)
    }
}

impl std::error::Error for Problem {}

impl Diagnostic for Problem {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        (!self.help.is_empty()).then(|| Box::new(&self.help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.location
            .source()
            .map(|(text, _)| text as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let (_, span) = self.location.source()?;
        let label = (!self.key.is_empty()).then(|| self.key.clone());
        let first = LabeledSpan::new_primary_with_span(label, span.clone());
        // The second location is in the file and cannot be drawn below a variable.
        let in_file = matches!(self.location, SourceLocation::File { .. });
        let second = self.related.iter().filter(move |_| in_file);
        let second = second
            .map(|(span, label)| LabeledSpan::new_with_span(Some(label.clone()), span.clone()));
        Some(Box::new(std::iter::once(first).chain(second)))
    }
}

/// The problems found while the settings were loaded, in the order of the file.
///
/// `Display` prints one line per problem; [`SettingsReport::pretty`] also shows the affected
/// lines of the file.
#[derive(Debug, Clone)]
pub struct SettingsReport {
    problems: Vec<Problem>,
    left_out: usize,
}

impl SettingsReport {
    pub(super) fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.location.sort_key());
        let left_out = problems.len().saturating_sub(MAX_PROBLEMS);
        problems.truncate(MAX_PROBLEMS);
        Self { problems, left_out }
    }

    /// Returns the problems, at most [`MAX_PROBLEMS`].
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Returns the number of problems beyond [`MAX_PROBLEMS`].
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// Formats the report for a terminal: each problem with the affected lines, in colour where
    /// standard error shows colour.
    pub fn pretty(&self) -> impl fmt::Display + '_ {
        self.pretty_with(report_options().build())
    }

    fn pretty_with(&self, handler: MietteHandler) -> impl fmt::Display + '_ {
        PrettyReport {
            report: self,
            handler,
        }
    }

    fn summary(&self) -> Option<String> {
        let all = self.problems.len() + self.left_out;
        match (all, self.left_out) {
            (0 | 1, _) => None,
            (_, 0) => Some(format!("{all} problems")),
            (_, more) => Some(format!("{all} problems; the last {more} are not shown")),
        }
    }

    /// Returns the problems as `mcastor check --json` prints them.
    pub fn json(&self) -> serde_json::Value {
        let problems: Vec<_> = self.problems.iter().map(JsonProblem::from).collect();
        serde_json::json!({ "ok": false, "problems": problems, "left_out": self.left_out })
    }
}

/// Returns how reports are drawn. Lines break at spaces only: a path or a URL that continues on the
/// next line cannot be copied.
fn report_options() -> MietteHandlerOpts {
    MietteHandlerOpts::new()
        .terminal_links(false)
        .word_separator(WordSeparator::AsciiSpace)
        .word_splitter(WordSplitter::NoHyphenation)
}

#[derive(Serialize)]
struct JsonProblem<'a> {
    file: Option<&'a str>,
    line: Option<usize>,
    column: Option<usize>,
    variable: Option<&'a str>,
    key: &'a str,
    found: &'a str,
    expected: &'a str,
    help: &'a str,
}

impl<'a> From<&'a Problem> for JsonProblem<'a> {
    fn from(problem: &'a Problem) -> Self {
        Self {
            file: problem.file(),
            line: problem.line(),
            column: problem.column(),
            variable: problem.variable(),
            key: problem.key(),
            found: problem.found(),
            expected: problem.expected(),
            help: problem.help_text(),
        }
    }
}

struct PrettyReport<'a> {
    report: &'a SettingsReport,
    handler: MietteHandler,
}

impl fmt::Display for PrettyReport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.report.problems.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            match problem.location {
                // Without lines to show, the header has to name the location.
                SourceLocation::UnreadableFile { .. } | SourceLocation::Unknown => {
                    let with_location = ProblemWithLocation(problem);
                    self.handler.debug(&with_location, f)?;
                }
                _ => self.handler.debug(problem, f)?,
            }
        }
        match self.report.summary() {
            Some(summary) => writeln!(f, "\n{summary}"),
            None => Ok(()),
        }
    }
}

/// A problem whose header names its location.
#[derive(Debug)]
struct ProblemWithLocation<'a>(&'a Problem);

impl fmt::Display for ProblemWithLocation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.plain())
    }
}

impl std::error::Error for ProblemWithLocation<'_> {}

impl Diagnostic for ProblemWithLocation<'_> {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.0.help()
    }
}

impl fmt::Display for SettingsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            f.write_str(&problem.plain())?;
        }
        match self.left_out {
            0 => Ok(()),
            more => write!(f, "\n{more} more problems"),
        }
    }
}

impl std::error::Error for SettingsReport {}

impl Diagnostic for SettingsReport {
    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        Some(Box::new(
            self.problems
                .iter()
                .map(|problem| problem as &dyn Diagnostic),
        ))
    }
}
