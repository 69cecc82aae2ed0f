//! `mcastor man`: the manual pages, one for each command and one for the settings file.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;
use roff::{Roff, bold, roman};

use super::exit::{fail, usage_error};
use super::output::print;
use super::smcroutectl::ClientArgs;
use super::smcrouted::DaemonArgs;
use crate::settings;

/// The date in the footer of the pages: that of the release.
const DATE: &str = "2026-11-29";
/// The program and its version, in the footer of the pages.
const SOURCE: &str = concat!("mcastor ", env!("CARGO_PKG_VERSION"));

/// A manual page in roff format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManualPage {
    /// The name without the section, such as `mcastor-run`.
    pub name: String,
    /// The section of the manual.
    pub section: u8,
    /// The text.
    pub text: String,
}

impl ManualPage {
    /// Returns the path below a folder such as /usr/share/man: `man1/mcastor-run.1`.
    pub fn path(&self) -> String {
        format!("man{0}/{1}.{0}", self.section, self.name)
    }
}

/// Returns the pages that are installed with mcastor, whose command line is `command`: mcastor(1), a
/// page for each of its commands and for their commands, and mcastor.toml(5).
///
/// # Errors
/// A page cannot be generated.
pub fn manual_pages(command: clap::Command) -> io::Result<Vec<ManualPage>> {
    let mut mcastor = command.disable_help_subcommand(true);
    // Sets the names of the commands: `mcastor run`, and mcastor-run for the page.
    mcastor.build();
    let mut pages = Vec::new();
    add_pages(&mcastor, &mut pages)?;
    pages.push(ManualPage {
        name: "mcastor.toml".into(),
        section: 5,
        text: settings::manual_page(DATE, SOURCE),
    });
    Ok(pages)
}

/// Adds the page of a command, and those of the commands that it names.
fn add_pages(command: &clap::Command, pages: &mut Vec<ManualPage>) -> io::Result<()> {
    pages.push(command_page(command, 1)?);
    let named = command.get_subcommands().filter(|c| !c.is_hide_set());
    for command in named {
        add_pages(command, pages)?;
    }
    Ok(())
}

/// Returns the pages of the program names that replace smcroute: smcrouted(8) and smcroutectl(8).
///
/// # Errors
/// A page cannot be generated.
pub fn smcroute_pages() -> io::Result<Vec<ManualPage>> {
    [DaemonArgs::command(), ClientArgs::command()]
        .into_iter()
        .map(|mut command| {
            command.build();
            command_page(&command, 8)
        })
        .collect()
}

/// Prints the page with the name `page`, or of the command with this name. With `folder`, writes all
/// pages of [`manual_pages`] below it instead.
pub fn run(command: clap::Command, page: &str, folder: Option<&Path>) -> ExitCode {
    let pages = match manual_pages(command).and_then(|pages| Ok((pages, smcroute_pages()?))) {
        Ok((pages, smcroute)) => match folder {
            None => smcroute.into_iter().chain(pages).collect::<Vec<_>>(),
            Some(folder) => {
                return match write_pages(&pages, folder) {
                    Ok(()) => ExitCode::SUCCESS,
                    Err(e) => fail(&format_args!("{}: {e}", folder.display())),
                };
            }
        },
        Err(e) => return fail(&e),
    };
    let command = format!("mcastor-{page}");
    let found = pages.iter().find(|p| p.name == page);
    let found = found.or_else(|| pages.iter().find(|p| p.name == command));
    match found {
        Some(page) => print(page.text.as_bytes()),
        None => {
            let names: Vec<&str> = pages.iter().map(|p| p.name.as_str()).collect();
            let names = names.join(", ");
            usage_error(&format_args!(
                "there is no manual page {page}; there are: {names}"
            ))
        }
    }
}

fn write_pages(pages: &[ManualPage], folder: &Path) -> io::Result<()> {
    for page in pages {
        let path = folder.join(page.path());
        if let Some(section) = path.parent() {
            std::fs::create_dir_all(section)?;
        }
        std::fs::write(path, &page.text)?;
    }
    Ok(())
}

fn command_page(command: &clap::Command, section: u8) -> io::Result<ManualPage> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    let section_text = section.to_string();
    let man = clap_mangen::Man::new(command.clone())
        .title(name)
        .section(&section_text)
        .date(DATE)
        .source(SOURCE)
        .manual("Commands of mcastor");
    let mut text = Vec::new();
    // Defines how apostrophes are written.
    Roff::new().to_writer(&mut text)?;
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    if command.get_arguments().any(|a| !a.is_hide_set()) {
        man.render_options_section(&mut text)?;
    }
    if command.get_subcommands().any(|c| !c.is_hide_set()) {
        man.render_subcommands_section(&mut text)?;
    }
    let after_help = command.get_after_long_help();
    let after_help = after_help.or_else(|| command.get_after_help());
    let help = after_help.map(ToString::to_string).unwrap_or_default();
    let mut end = HelpSections::parse(&help).to_roff();
    end.control("SH", ["SEE ALSO"]);
    let others = [("mcastor", "(1)"), ("mcastor.toml", "(5)")];
    let others = others.into_iter().filter(|(other, _)| *other != name);
    let mut inlines = Vec::new();
    for (other, section) in others {
        if !inlines.is_empty() {
            inlines.push(roman(", "));
        }
        inlines.extend([bold(other), roman(section)]);
    }
    end.text(inlines);
    text.write_all(end.to_roff().as_bytes())?;
    let text = String::from_utf8(text).map_err(io::Error::other)?;
    // clap_mangen separates possible values from the help text by two line breaks and an empty line.
    let text = text.replace("\n.br\n\n.br\n", "\n.sp\n");
    let lines = text.lines().map(|line| format!("{}\n", line.trim_end()));
    Ok(ManualPage {
        name: name.into(),
        section,
        text: lines.collect(),
    })
}

/// The text after the options in the output of `--help`, by the sections of a manual page.
#[derive(Debug, Default, PartialEq, Eq)]
struct HelpSections<'a> {
    exit_status: Vec<&'a str>,
    notes: Vec<&'a str>,
    examples: Vec<&'a str>,
}

impl<'a> HelpSections<'a> {
    /// Sorts the lines of a help text. A section begins with a line `Example: …`, `Examples:` or
    /// `Exit codes: …`. Other lines that are not indented are notes, if they begin a paragraph.
    fn parse(help: &'a str) -> Self {
        let mut sections = Self::default();
        let mut current = &mut sections.notes;
        let mut begins_paragraph = true;
        for line in help.lines() {
            let words = |prefix: &str| line.strip_prefix(prefix).map(str::trim_start);
            if let Some(codes) = words("Exit codes:").or_else(|| words("Exit code:")) {
                current = &mut sections.exit_status;
                current.push(codes);
            } else if line.starts_with("Example") {
                current = &mut sections.examples;
                // "Example: mcastor flush" becomes an indented line, which is not filled.
                current.push(match line.split_once(": ") {
                    Some(_) => &line["Example:".len()..],
                    None => line,
                });
            } else {
                if begins_paragraph && !line.is_empty() && !line.starts_with(' ') {
                    current = &mut sections.notes;
                }
                current.push(line);
            }
            begins_paragraph = line.is_empty();
        }
        let is_heading = |line: &str| matches!(line, "Examples:" | "Example:");
        sections.examples.retain(|line| !is_heading(line));
        sections
    }

    fn to_roff(&self) -> Roff {
        let mut roff = Roff::new();
        for (title, lines) in [
            ("EXIT STATUS", &self.exit_status),
            ("NOTES", &self.notes),
            ("EXAMPLES", &self.examples),
        ] {
            add_section(&mut roff, title, lines);
        }
        roff
    }
}

/// Adds a section, unless it has no text. Indented lines are not filled.
fn add_section(roff: &mut Roff, title: &str, lines: &[&str]) {
    let Some(first) = lines.iter().position(|line| !line.is_empty()) else {
        return;
    };
    let last = lines.iter().rposition(|line| !line.is_empty());
    let lines = &lines[first..=last.unwrap_or(first)];
    roff.control("SH", [title]);
    let mut is_verbatim = false;
    for (n, line) in lines.iter().enumerate() {
        let next = lines.get(n + 1).unwrap_or(&"");
        match (line.is_empty(), line.starts_with(' ')) {
            (true, _) if is_verbatim && next.starts_with(' ') => drop(roff.text([roman("")])),
            (true, _) => {
                if is_verbatim {
                    roff.control("fi", []);
                    is_verbatim = false;
                }
                roff.control("PP", []);
            }
            (false, true) => {
                if !is_verbatim {
                    roff.control("nf", []);
                    is_verbatim = true;
                }
                roff.text([roman(*line)]);
            }
            (false, false) => {
                if is_verbatim {
                    roff.control("fi", []);
                    is_verbatim = false;
                }
                roff.text([roman(*line)]);
            }
        }
    }
    if is_verbatim {
        roff.control("fi", []);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_text_is_sorted_into_sections() {
        let help = "Reads it.\n\nExamples:\n  First:\n    mcastor a\n\nIt is\nshort.\n\n\
            Exit codes: 0 good,\n1 bad.";
        let sections = HelpSections::parse(help);
        assert_eq!(sections.exit_status, ["0 good,", "1 bad."]);
        assert_eq!(sections.notes, ["Reads it.", "", "It is", "short.", ""]);
        assert_eq!(sections.examples, ["  First:", "    mcastor a", ""]);
        let one_line = HelpSections::parse("Example: mcastor flush");
        assert_eq!(one_line.examples, [" mcastor flush"]);
        assert_eq!(HelpSections::parse(""), HelpSections::default());
    }

    #[test]
    fn indented_lines_are_not_filled() {
        let mut roff = Roff::new();
        add_section(&mut roff, "NOTES", &["", "one", "  two", "", "three", ""]);
        let expected = ".SH NOTES\none\n.nf\n  two\n.fi\n.PP\nthree\n";
        assert_eq!(roff.to_roff(), expected);
        let mut empty = Roff::new();
        add_section(&mut empty, "NOTES", &["", ""]);
        assert_eq!(empty.to_roff(), "");
    }
}
