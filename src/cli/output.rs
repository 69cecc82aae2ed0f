//! Standard output of the subcommands.

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use super::exit::fail;

/// Writes `text` to standard output. A closed pipe is not an error.
pub fn print(text: &[u8]) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => fail(&e),
        _ => ExitCode::SUCCESS,
    }
}

/// Prints `text` and a newline. Ignores errors: a closed output must not change the exit code.
pub fn print_line(text: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Columns of a paragraph, as on a small terminal.
const COLUMNS: usize = 80;

/// Returns `text` in lines of at most 80 columns that begin with `indent` spaces. Each line ends with
/// a newline.
pub fn paragraph(text: &str, indent: usize) -> String {
    let mut lines = String::new();
    let mut width = 0;
    for word in text.split_whitespace() {
        let len = word.chars().count();
        if width > 0 && width + 1 + len <= COLUMNS {
            lines.push(' ');
            width += 1 + len;
        } else {
            if width > 0 {
                lines.push('\n');
            }
            lines.extend(std::iter::repeat_n(' ', indent));
            width = indent + len;
        }
        lines += word;
    }
    if width > 0 {
        lines.push('\n');
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraph_has_lines_of_eighty_columns() {
        let text = "word ".repeat(60);
        let lines = paragraph(&text, 4);
        assert_eq!(lines.split_whitespace().count(), 60);
        for line in lines.lines() {
            assert!(line.starts_with("    word") && line.len() <= 80, "{line}");
        }
        assert_eq!(lines.lines().map(str::len).max(), Some(78));
        assert_eq!(
            (paragraph("", 4), paragraph("a", 2)),
            (String::new(), "  a\n".into())
        );
    }
}
