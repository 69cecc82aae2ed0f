//! The log output of the router. Other hosts and programs can cause log lines, and their texts are part
//! of them. So each line is escaped before it is written, and the lines of each log statement are
//! limited.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Level, Metadata};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FormatFields, MakeWriter};

use crate::actors::log_limit::{LogLimit, SuppressedLines};
use crate::model::escape::{EscapeStyle, escape};

/// Lines of one statement in a minute.
const MAX_LINES: u32 = 100;
/// Lines of one statement at level debug or trace in a minute.
const MAX_DEBUG_LINES: u32 = 1000;
/// Lines of one statement of a library in a minute. Libraries log each invalid request of a client.
const MAX_LIBRARY_LINES: u32 = 10;

/// Fields that JSON lines have for programs. The text of a line names them already.
const JSON_FIELDS: [&str; 5] = ["interface", "route", "source", "group", "event"];

/// Formats the message and the fields of a line of text, without [`JSON_FIELDS`].
pub(super) struct TextFields;

impl<'w> FormatFields<'w> for TextFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = TextVisitor {
            writer,
            is_first: true,
            result: Ok(()),
        };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct TextVisitor<'w> {
    writer: Writer<'w>,
    is_first: bool,
    result: fmt::Result,
}

impl Visit for TextVisitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if self.result.is_err() || JSON_FIELDS.contains(&field.name()) {
            return;
        }
        let space = if self.is_first { "" } else { " " };
        self.is_first = false;
        self.result = match field.name() {
            "message" => write!(self.writer, "{space}{value:?}"),
            name => write!(self.writer, "{space}{name}={value:?}"),
        };
    }
}

/// Makes writers that escape control characters and omit lines above the limits. The formatter must
/// not use ANSI colours.
pub(super) struct RouterLog<M> {
    inner: M,
    style: EscapeStyle,
    /// The lines of each statement.
    limits: Mutex<HashMap<Identifier, LogLimit>>,
}

impl<M> RouterLog<M> {
    /// Returns a log for lines of text, or of JSON with [`EscapeStyle::Json`].
    pub(super) fn new(inner: M, style: EscapeStyle) -> Self {
        Self {
            inner,
            style,
            limits: Mutex::default(),
        }
    }

    /// Returns whether a line of the statement with these metadata is within the limit.
    fn permit(&self, metadata: &Metadata<'_>) -> Option<SuppressedLines> {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = limits.entry(metadata.callsite());
        let limit = limit.or_insert_with(|| LogLimit::new(max_lines(metadata)));
        limit.permit(Instant::now())
    }
}

fn max_lines(metadata: &Metadata<'_>) -> u32 {
    let is_ours = metadata.target().split("::").next() == Some("mcastor");
    match (is_ours, *metadata.level()) {
        (false, _) => MAX_LIBRARY_LINES,
        (true, Level::DEBUG | Level::TRACE) => MAX_DEBUG_LINES,
        (true, _) => MAX_LINES,
    }
}

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for RouterLog<M> {
    type Writer = LineWriter<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter {
            inner: Some(self.inner.make_writer()),
            style: self.style,
            suppressed: None,
        }
    }

    /// A system log takes the level of the line from `metadata`.
    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Self::Writer {
        let suppressed = self.permit(metadata);
        LineWriter {
            inner: suppressed.map(|_| self.inner.make_writer_for(metadata)),
            style: self.style,
            suppressed,
        }
    }
}

/// Writes one line. The formatter passes each line as a whole.
pub(super) struct LineWriter<W> {
    /// None if the line is omitted.
    inner: Option<W>,
    style: EscapeStyle,
    /// The number of lines of the same statement that were omitted before.
    suppressed: Option<SuppressedLines>,
}

impl<W: Write> Write for LineWriter<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(inner) = &mut self.inner {
            let suppressed = self.suppressed.filter(|lines| lines.count() > 0);
            inner.write_all(finish(line, self.style, suppressed).as_bytes())?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.as_mut().map_or(Ok(()), Write::flush)
    }
}

/// Returns a formatted line with escapes and the number of omitted lines.
fn finish(line: &[u8], style: EscapeStyle, suppressed: Option<SuppressedLines>) -> String {
    let text = String::from_utf8_lossy(line);
    let (text, end) = match text.strip_suffix('\n') {
        Some(text) => (text, "\n"),
        None => (&*text, ""),
    };
    let mut line = escape(text, style).into_owned();
    match suppressed {
        None => {}
        Some(lines) if style == EscapeStyle::Text => line += &lines.to_string(),
        // The formatter wrote an object.
        Some(lines) => {
            let object = line.strip_suffix('}').unwrap_or(&line);
            line = format!("{object},\"suppressed_lines\":{}}}", lines.count());
        }
    }
    line + end
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A writer that collects what is written.
    #[derive(Clone, Default)]
    struct Collected(Arc<Mutex<Vec<u8>>>);

    impl Collected {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Collected {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Returns what `run` logs in both formats, text and JSON.
    fn logged(run: impl Fn()) -> [String; 2] {
        let collected = [Collected::default(), Collected::default()];
        let [text, json] = collected.clone();
        let writer = move || text.clone();
        let log = tracing_subscriber::fmt().with_ansi(false).without_time();
        let log = log.fmt_fields(TextFields);
        let log = log.with_writer(RouterLog::new(writer, EscapeStyle::Text));
        tracing::subscriber::with_default(log.finish(), &run);
        let writer = move || json.clone();
        let log = tracing_subscriber::fmt().json().without_time();
        let log = log.with_writer(RouterLog::new(writer, EscapeStyle::Json));
        tracing::subscriber::with_default(log.finish(), &run);
        collected.map(|c| c.text())
    }

    #[test]
    fn message_is_one_line_without_control_characters() {
        let message = "a\u{1b}[31m\u{202e}b\n2026-01-01 ERROR forged\u{9b}";
        let logs = logged(|| tracing::warn!("{message}"));
        for log in &logs {
            assert_eq!(log.lines().count(), 1, "{log}");
            assert!(log.ends_with('\n') && log.is_ascii(), "{log:?}");
            assert!(!log.trim_end().contains(char::is_control), "{log:?}");
        }
        let json: serde_json::Value = serde_json::from_str(&logs[1]).unwrap();
        assert_eq!(json["fields"]["message"], message);
    }

    #[test]
    fn json_fields_are_not_repeated_in_text() {
        let [text, json] = logged(|| {
            let (interface, event) = ("eth0", "up");
            tracing::info!(
                interface,
                event,
                source = "10.0.0.1",
                routes = 3,
                "eth0: up"
            );
        });
        assert!(text.ends_with(": eth0: up routes=3\n"), "{text:?}");
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["fields"]["interface"], "eth0");
        assert_eq!(json["fields"]["message"], "eth0: up");
    }

    #[test]
    fn ordinary_message_is_unchanged() {
        let [text, _] = logged(|| tracing::warn!("eth0: Grüße"));
        assert!(text.ends_with(": eth0: Grüße\n"), "{text:?}");
    }

    /// A statement that runs 65,546 times leaves 100 lines, one of a library ten. Other statements
    /// are not affected.
    #[test]
    fn lines_of_each_statement_are_limited() {
        let logs = logged(|| {
            for n in 0..65_546 {
                tracing::info!("mapping {n}");
                tracing::error!(target: "actix_http::h1", "stream error {n}");
            }
            tracing::info!("another statement");
        });
        for log in logs {
            assert_eq!(log.matches("mapping").count(), MAX_LINES as usize);
            assert_eq!(
                log.matches("stream error").count(),
                MAX_LIBRARY_LINES as usize
            );
            assert_eq!(log.matches("another statement").count(), 1);
        }
    }

    #[test]
    fn next_line_shows_the_number_of_omitted_lines() {
        let start = Instant::now();
        let mut limit = LogLimit::new(1);
        limit.permit(start);
        limit.permit(start);
        let suppressed = limit.permit(start + std::time::Duration::from_secs(60));
        let text = finish(b"WARN a\n", EscapeStyle::Text, suppressed);
        assert_eq!(text, "WARN a (1 more lines like this one were left out)\n");
        let json = finish(b"{\"a\":{}}\n", EscapeStyle::Json, suppressed);
        assert_eq!(json, "{\"a\":{},\"suppressed_lines\":1}\n");
    }
}
