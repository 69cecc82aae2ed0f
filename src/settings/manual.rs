//! Generates the manual page mcastor.toml(5) from the declaration of the keys.

use roff::{Inline, Roff, bold, roman};

use super::declaration::{DefaultValue, KeyDeclaration, KeyType};
use super::file::DEFAULT_FILE;
use super::raw::RawSettings;

/// Returns the manual page of the settings file in roff format. `date` and `source` are in its
/// footer.
pub fn manual_page(date: &str, source: &str) -> String {
    let mut roff = Roff::new();
    roff.control(
        "TH",
        ["mcastor.toml", "5", date, source, "Files of mcastor"],
    );
    roff.control("SH", ["NAME"]);
    roff.text([roman(
        "mcastor.toml - settings of the multicast router mcastor",
    )]);
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([bold(DEFAULT_FILE)]);
    roff.control("SH", ["DESCRIPTION"]);
    add_paragraphs(
        &mut roff,
        &[
            "`mcastor run` reads this file at its start and at each reload. It is written in TOML. \
             Each key that is not required has a default, so an empty file is valid: it forwards \
             nothing. A file with a problem is refused as a whole.",
            "`mcastor check` checks the file. `systemctl reload mcastor` or `mcastor reload` puts \
             changes in force; changes of http, control, state, docker, plane and log need a restart.",
            "A table with two pairs of brackets, such as [[route]], can be repeated. The name of an \
             interface may be a pattern with * and ?.",
        ],
    );
    for table in RawSettings::DECLARATION.keys {
        add_table(&mut roff, table, &table.header());
    }
    roff.control("SH", ["ENVIRONMENT"]);
    add_paragraphs(
        &mut roff,
        &[
            "A variable overrides the key of its name in the file: `MCASTOR__HTTP__LISTEN` is listen \
             in [http]. For tables that can be repeated, the name has the number of the table: \
             `MCASTOR__ROUTE__0__FROM` is from in the first [[route]]. Lists are separated by commas.",
        ],
    );
    roff.control("SH", ["EXAMPLES"]);
    roff.control("nf", []);
    for line in EXAMPLE.lines() {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
    roff.control("SH", ["SEE ALSO"]);
    roff.text([
        bold("mcastor"),
        roman("(1), "),
        bold("mcastor-check"),
        roman("(1), "),
        bold("mcastor-run"),
        roman("(1)"),
    ]);
    roff.render()
}

const EXAMPLE: &str = r#"[[route]]
name = "cameras"
from = "eth0"
group = "225.1.2.0/24"
to = ["eth1"]
join = true

[[proxy]]
upstream = ["eth0"]
downstream = ["br-*", "docker0"]"#;

/// Adds a section for a table, and for each table inside.
fn add_table(roff: &mut Roff, table: &KeyDeclaration, header: &str) {
    roff.control("SH", [header]);
    for line in table.text_lines() {
        roff.text(inlines(line));
    }
    let keys = || table.key_type.keys().iter();
    for key in keys().filter(|key| !key.is_table()) {
        roff.control("TP", []);
        roff.text([bold(key.name)]);
        for line in key.text_lines() {
            roff.text(inlines(line));
        }
        let default = match (key.default, key.default_toml()) {
            (DefaultValue::Required, _) => "Required".into(),
            (DefaultValue::Described(text), _) => format!("Default: {text}"),
            (_, toml) => format!("Default: {}", toml.unwrap_or_default()),
        };
        let range = match key.key_type {
            KeyType::Boolean => String::new(),
            _ => format!(" Range: {}.", key.range_markdown()),
        };
        roff.text(inlines(&format!("{default}.{range}")));
    }
    for inner in keys().filter(|key| key.is_table()) {
        let header = match inner.key_type {
            KeyType::Tables(_) => inner.header(),
            _ => table.header_of_inner(inner),
        };
        add_table(roff, inner, &header);
    }
}

fn add_paragraphs(roff: &mut Roff, paragraphs: &[&str]) {
    for (n, paragraph) in paragraphs.iter().enumerate() {
        if n > 0 {
            roff.control("PP", []);
        }
        roff.text(inlines(paragraph));
    }
}

/// Converts Markdown with code spans: they become bold.
fn inlines(markdown: &str) -> Vec<Inline> {
    let parts = markdown.split('`').enumerate();
    parts
        .filter(|(_, part)| !part.is_empty())
        .map(|(n, part)| if n % 2 == 0 { roman(part) } else { bold(part) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_has_each_key_with_its_default() {
        let page = manual_page("2026-01-01", "mcastor 1");
        for table in RawSettings::DECLARATION.keys {
            assert!(page.contains(&format!(".SH {}\n", table.header())));
            for key in table.key_type.keys() {
                assert!(page.contains(key.name), "{}", key.name);
            }
        }
        assert!(page.contains(".TP\n\\fBlisten\\fR\n"));
        assert!(page.contains("Default: \"127.0.0.1:9464\". Range: address and port, "));
    }

    #[test]
    fn code_spans_become_bold() {
        let expected = vec![roman("a "), bold("b"), roman(" c")];
        assert_eq!(inlines("a `b` c"), expected);
    }
}
