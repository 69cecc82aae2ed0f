//! Everything that is wrong with the settings, and where.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use miette::{
    Diagnostic, LabeledSpan, MietteError, MietteHandler, MietteHandlerOpts, MietteSpanContents,
    ReportHandler, SourceCode, SourceSpan, SpanContents,
};
use serde::Serialize;

/// Problems a [`Report`] holds at most; the rest is only counted.
pub const MOST_PROBLEMS: usize = 50;

/// A text that labels point into: the file, or an environment variable with its value.
pub(super) type Text = Arc<NamedText>;

/// A text and what it is called.
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
        // miette counts columns in bytes, people and editors in characters.
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

/// Where a problem stands.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// In a file; `line` and `column` count from 1, the column in characters.
    File {
        text: Text,
        line: usize,
        column: usize,
        span: Range<usize>,
    },
    /// In an environment variable. The text is `NAME=value`.
    Variable {
        name: String,
        text: Text,
        span: Range<usize>,
    },
    /// The file as a whole: it cannot be read.
    Whole { file: String },
    /// Nowhere: neither file nor environment was given.
    Nowhere,
}

impl Place {
    /// How another problem refers to this place: `line 12` or the variable.
    pub fn short(&self) -> String {
        match self {
            Self::File { line, .. } => format!("line {line}"),
            Self::Variable { name, .. } => format!("variable {name}"),
            Self::Whole { file } => file.clone(),
            Self::Nowhere => "the settings".into(),
        }
    }

    fn source(&self) -> Option<(&Text, &Range<usize>)> {
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

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File {
                text, line, column, ..
            } => write!(f, "{}:{line}:{column}", text.name),
            Self::Variable { name, .. } => f.write_str(name),
            Self::Whole { file } => f.write_str(file),
            Self::Nowhere => f.write_str("settings"),
        }
    }
}

/// One thing that is wrong: where, what was found, what was expected, and how to mend it.
#[derive(Debug, Clone)]
pub struct Problem {
    pub(super) place: Place,
    pub(super) key: String,
    pub(super) found: String,
    pub(super) expected: String,
    pub(super) help: String,
    /// A second place in the same file that the problem is about.
    pub(super) also: Option<(Range<usize>, String)>,
}

impl Problem {
    /// The file, where the problem is in one.
    pub fn file(&self) -> Option<&str> {
        match &self.place {
            Place::File { text, .. } => Some(&text.name),
            Place::Whole { file } => Some(file),
            _ => None,
        }
    }

    /// The environment variable, where the value came from one.
    pub fn variable(&self) -> Option<&str> {
        match &self.place {
            Place::Variable { name, .. } => Some(name),
            _ => None,
        }
    }

    /// Line in the file, from 1.
    pub fn line(&self) -> Option<usize> {
        match self.place {
            Place::File { line, .. } => Some(line),
            _ => None,
        }
    }

    /// Column in the line, from 1, in characters.
    pub fn column(&self) -> Option<usize> {
        match self.place {
            Place::File { column, .. } => Some(column),
            _ => None,
        }
    }

    /// The key path, such as `route[1].group`; empty where no single key is at fault.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What stands there.
    pub fn found(&self) -> &str {
        &self.found
    }

    /// What should stand there.
    pub fn expected(&self) -> &str {
        &self.expected
    }

    /// How to mend it; may be empty.
    pub fn help_text(&self) -> &str {
        &self.help
    }

    /// `FILE:LINE:COL: found …, expected …`.
    pub fn plain(&self) -> String {
        format!("{}: {self}", self.place)
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
        self.place.source().map(|(text, _)| text as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let (_, span) = self.place.source()?;
        let label = (!self.key.is_empty()).then(|| self.key.clone());
        let first = LabeledSpan::new_primary_with_span(label, span.clone());
        // The second place is in the file: under a variable there is nothing to draw it on.
        let in_file = matches!(self.place, Place::File { .. });
        let second = self.also.iter().filter(move |_| in_file);
        let second = second
            .map(|(span, label)| LabeledSpan::new_with_span(Some(label.clone()), span.clone()));
        Some(Box::new(std::iter::once(first).chain(second)))
    }
}

/// All problems found in one reading of the settings, in the order of the file.
///
/// `Display` gives one plain line a problem; [`Report::pretty`] shows each with the lines it
/// is about.
#[derive(Debug, Clone)]
pub struct Report {
    problems: Vec<Problem>,
    left_out: usize,
}

impl Report {
    pub(super) fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.place.sort_key());
        let left_out = problems.len().saturating_sub(MOST_PROBLEMS);
        problems.truncate(MOST_PROBLEMS);
        Self { problems, left_out }
    }

    /// The problems, at most [`MOST_PROBLEMS`].
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// How many more there are.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// The report for a person at a terminal: each problem with the lines it is about, in
    /// colour where standard error shows colour.
    pub fn pretty(&self) -> impl fmt::Display + '_ {
        self.pretty_with(MietteHandlerOpts::new().terminal_links(false).build())
    }

    fn pretty_with(&self, handler: MietteHandler) -> impl fmt::Display + '_ {
        Pretty {
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

    /// The problems as `mcastor check --json` prints them.
    pub fn json(&self) -> serde_json::Value {
        let problems: Vec<_> = self.problems.iter().map(JsonProblem::from).collect();
        serde_json::json!({ "ok": false, "problems": problems, "left_out": self.left_out })
    }
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

struct Pretty<'a> {
    report: &'a Report,
    handler: MietteHandler,
}

impl fmt::Display for Pretty<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.report.problems.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            match problem.place {
                // Without a snippet the header alone would not say where.
                Place::Whole { .. } | Place::Nowhere => {
                    let named = Named(problem);
                    self.handler.debug(&named, f)?;
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

/// A problem whose header says where it is.
#[derive(Debug)]
struct Named<'a>(&'a Problem);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.plain())
    }
}

impl std::error::Error for Named<'_> {}

impl Diagnostic for Named<'_> {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.0.help()
    }
}

impl fmt::Display for Report {
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

impl std::error::Error for Report {}

impl Diagnostic for Report {
    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        Some(Box::new(
            self.problems
                .iter()
                .map(|problem| problem as &dyn Diagnostic),
        ))
    }
}
