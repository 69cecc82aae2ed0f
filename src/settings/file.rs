//! Reads the file and parses it as TOML.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use toml_edit::Document;

use super::key_path::KeyPath;
use super::locate::{FileText, LineStarts, location_in};
use super::report::{NamedText, Problem, SourceLocation};

/// The settings file of `mcastor run` and `mcastor check`, unless they name another one.
pub const DEFAULT_FILE: &str = "/etc/mcastor/mcastor.toml";

/// The largest settings file, in bytes. 100,000 routes take 10 MiB. While a file is loaded, it
/// takes about fifty times its size in memory.
pub const MAX_FILE: u64 = 16 * 1024 * 1024;

/// Reads and parses `file`.
///
/// # Errors
/// The file cannot be read, is larger than [`MAX_FILE`], or is not TOML in UTF-8.
pub(super) fn read(file: &Path) -> Result<FileText, Box<Problem>> {
    let name = file.display().to_string();
    let problem = |found: String, expected: &str, help: &str| {
        let location = SourceLocation::UnreadableFile { file: name.clone() };
        let key = KeyPath::default();
        Box::new(Problem::new(location, &key, found, expected, help))
    };
    let unreadable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => problem(
            "no such file".into(),
            "a settings file",
            "Check the path. An empty file is valid.",
        ),
        std::io::ErrorKind::PermissionDenied => problem(
            "a file without read permission for this user".into(),
            "a readable settings file",
            "Check the permissions of the file and of the folders above it.",
        ),
        _ => problem(
            format!("a file that cannot be read ({error})"),
            "a readable settings file",
            "",
        ),
    };
    let file = File::open(file).map_err(unreadable)?;
    if file.metadata().map_err(unreadable)?.is_dir() {
        return Err(problem(
            "a directory".into(),
            "a settings file",
            "Name the file itself, such as /etc/mcastor/mcastor.toml.",
        ));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(problem(
            "a file over 16 MiB".into(),
            "settings of at most 16 MiB",
            "Is this the right file?",
        ));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..offset]
            .iter()
            .filter(|b| **b == b'\n')
            .count()
            + 1;
        problem(
            format!("bytes that are not UTF-8 in line {line} (byte {offset} of the file)"),
            "a UTF-8 text file",
            "Save the file as UTF-8.",
        )
    })?;
    parse(&name, text)
}

/// Parses the text of a file called `name`.
pub(super) fn parse(name: &str, text: String) -> Result<FileText, Box<Problem>> {
    let text: Arc<str> = text.into();
    let named = Arc::new(NamedText {
        name: name.into(),
        text: text.clone(),
    });
    match Document::parse(text.clone()) {
        Ok(document) => Ok(FileText::new(named, document)),
        Err(error) => {
            let span = error.span().unwrap_or(text.len()..text.len());
            let (found, expected, help) = syntax(error.message(), text.get(span.clone()));
            let location = location_in(&named, &LineStarts::new(&text), span);
            let key = KeyPath::default();
            Err(Box::new(Problem::new(
                location, &key, found, expected, help,
            )))
        }
    }
}

/// Converts a message of the TOML parser to the texts `found`, `expected` and `help` of a
/// [`Problem`]. `source` is the text at the location of the message.
pub(super) fn syntax(message: &str, source: Option<&str>) -> (String, String, String) {
    let (fault, expected) = message.split_once(", expected ").unwrap_or((message, ""));
    let source = source
        .map(str::trim)
        .filter(|source| !source.is_empty() && source.len() <= 40);
    let shown = source.map_or_else(|| "a value".to_string(), |source| format!("`{source}`"));
    let texts = |found: String, expected: &str, help: String| (found, expected.to_string(), help);
    match fault {
        "duplicate key" => texts(
            format!("{shown} for the second time"),
            "each key once in its table",
            "Remove one of the two. Another route starts with its own [[route]].".into(),
        ),
        "string values must be quoted" => texts(
            format!("{shown} without quotes"),
            "a string in quotes",
            source.map_or_else(String::new, |source| format!("Write \"{source}\".")),
        ),
        // The parser takes an address without quotes for a number.
        "invalid float" | "extra unexpected dot" => texts(
            format!("{shown}, which is not a number"),
            "a value",
            "Write addresses in quotes: group = \"225.1.2.3\".".into(),
        ),
        "integer number overflowed" | "floating-point number overflowed" => texts(
            format!("{shown}, which is too large"),
            "a smaller number",
            String::new(),
        ),
        "missing comma between array elements" => texts(
            "list entries without a comma between them".into(),
            "`,` or `]`",
            "Write a list as [\"eth1\", \"eth2\"].".into(),
        ),
        "unclosed array table" | "unclosed table" => texts(
            "a header without its closing bracket".into(),
            expected,
            "Write headers as [http] and [[route]].".into(),
        ),
        "key with no value" => texts(
            "a key without a value".into(),
            expected,
            "Write each setting in a line of the form key = value. A file in the format of smcroute \
             has a name that does not end in .toml; `mcastor convert` turns it into TOML."
                .into(),
        ),
        _ => {
            let found = match source {
                Some(source) if !fault.contains(source) => format!("`{source}` ({fault})"),
                _ => fault.to_string(),
            };
            let expected = match expected {
                "" => "valid TOML",
                "nothing" => "nothing more here",
                "newline, `#`" => "the end of the line",
                expected => expected,
            };
            let help = match fault {
                _ if fault.contains("array") => "Write a list as [\"eth1\", \"eth2\"].",
                _ if fault.contains("string") => "Close the quotes on the same line.",
                _ if fault.contains("key or value") => "Write one key per line.",
                _ => "",
            };
            texts(found, expected, help.into())
        }
    }
}
