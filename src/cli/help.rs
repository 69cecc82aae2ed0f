//! Help texts that fit the terminal.

/// A line of the source was wrapped if the next word would make it longer than this.
const COLUMNS: usize = 88;

/// Joins the lines of each paragraph after the options. clap wraps a line that is longer than the
/// terminal, but keeps each line break: a text that the source wraps at 100 columns would be ragged at
/// 80.
pub fn with_filled_paragraphs(command: clap::Command) -> clap::Command {
    let after = command.get_after_help().map(ToString::to_string);
    let after_long = command.get_after_long_help().map(ToString::to_string);
    let command = match after {
        Some(text) => command.after_help(filled(&text)),
        None => command,
    };
    match after_long {
        Some(text) => command.after_long_help(filled(&text)),
        None => command,
    }
}

/// Joins each wrapped line with the next one. Indented lines stay as they are.
fn filled(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    // Length of the last line in the source.
    let mut length = 0;
    for line in text.split('\n') {
        let is_prose = |line: &str| !line.is_empty() && !line.starts_with(' ');
        let word = line.split(' ').next().unwrap_or_default().chars().count();
        match lines.last_mut() {
            Some(last) if is_prose(last) && is_prose(line) && length + 1 + word > COLUMNS => {
                last.push(' ');
                last.push_str(line);
            }
            _ => lines.push(line.to_owned()),
        }
        length = line.chars().count();
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_wrapped_lines_are_joined() {
        let long = "word ".repeat(19) + "word";
        let text = format!("{long}\nword ends.\n\nExamples:\n  mcastor stop\n\nExit codes: 0\n");
        let expected = text.replacen("word\nword", "word word", 1);
        assert_eq!(filled(&text), expected);
    }

    #[test]
    fn summary_of_each_command_says_what_it_does() {
        for command in crate::cli::command().get_subcommands() {
            let summary = command.get_about().map(ToString::to_string);
            let summary = summary.unwrap_or_default();
            let is_good = !summary.is_empty() && !summary.starts_with("Arguments");
            assert!(is_good, "{}: {summary}", command.get_name());
        }
    }

    #[test]
    fn help_of_trace_has_one_line_for_a_paragraph() {
        let mut command = crate::cli::command();
        let trace = command.find_subcommand_mut("trace").expect("trace");
        let help = trace.get_after_help().map(ToString::to_string);
        assert!(help.unwrap_or_default().contains(" or why it is dropped. "));
    }
}
