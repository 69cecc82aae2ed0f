//! Tests of the manual pages and completions against the commands.

use std::collections::BTreeSet;
use std::process::Command;

use mcastor::cli::man::{ManualPage, manual_pages, smcroute_pages};

fn run(args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_mcastor"))
        .args(args)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.code(), text)
}

fn paths(pages: &[ManualPage]) -> BTreeSet<String> {
    pages.iter().map(ManualPage::path).collect()
}

#[test]
fn each_command_has_a_manual_page() {
    let commands = mcastor::cli::command();
    let commands = commands.get_subcommands().filter(|c| !c.is_hide_set());
    let mut expected: BTreeSet<String> = commands
        .map(|command| format!("man1/mcastor-{}.1", command.get_name()))
        .collect();
    assert!(expected.len() > 20, "{expected:?}");
    for action in ["check", "certs"] {
        expected.insert(format!("man1/mcastor-mnat-server-{action}.1"));
    }
    expected.insert("man1/mcastor.1".into());
    expected.insert("man5/mcastor.toml.5".into());
    assert_eq!(
        paths(&manual_pages(mcastor::cli::command()).unwrap()),
        expected
    );
    let smcroute = paths(&smcroute_pages().unwrap());
    let expected = ["man8/smcroutectl.8", "man8/smcrouted.8"].map(String::from);
    assert_eq!(smcroute, expected.into());
}

#[test]
fn each_page_that_is_named_exists() {
    let pages = manual_pages(mcastor::cli::command()).unwrap();
    let names: BTreeSet<&str> = pages.iter().map(|page| page.name.as_str()).collect();
    for page in &pages {
        // Below SUBCOMMANDS: mcastor\-run(1).
        let lines = page.text.lines().filter(|line| line.ends_with("(1)"));
        for line in lines.filter(|line| line.starts_with("mcastor\\-")) {
            let name = line.trim_end_matches("(1)").replace('\\', "");
            assert!(names.contains(name.as_str()), "{}: {name}", page.name);
        }
    }
}

#[test]
fn pages_have_the_usual_sections() {
    for page in manual_pages(mcastor::cli::command()).unwrap() {
        let start = format!(".TH {} {} ", page.name, page.section);
        assert!(page.text.contains(&start), "{}", page.name);
        for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "SEE ALSO"] {
            let quoted = section.replace("SEE ALSO", "\"SEE ALSO\"");
            let heading = format!(".SH {quoted}\n");
            assert!(page.text.contains(&heading), "{}: {section}", page.name);
        }
        assert!(!page.text.contains(".SH EXTRA"), "{}", page.name);
    }
    let pages = manual_pages(mcastor::cli::command()).unwrap();
    let run = pages.iter().find(|p| p.name == "mcastor-run").unwrap();
    assert!(run.text.contains("\n.SH EXAMPLES\n.nf\n  With "));
}

#[test]
fn man_prints_or_writes_pages() {
    let (code, page) = run(&["man", "run"]);
    assert_eq!(code, Some(0));
    assert!(page.contains(".TH mcastor-run 1 "));
    assert!(run(&["man"]).1.contains(".TH mcastor 1 "));
    assert!(run(&["man", "smcrouted"]).1.contains(".TH smcrouted 8 "));
    assert_eq!(run(&["man", "nothing"]).0, Some(2));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display().to_string();
    assert_eq!(
        run(&["man", "--directory", &path]),
        (Some(0), String::new())
    );
    for page in manual_pages(mcastor::cli::command()).unwrap() {
        let written = std::fs::read_to_string(folder.path().join(page.path())).unwrap();
        assert_eq!(written, page.text);
    }
}

#[test]
fn completions_name_each_command() {
    let commands = mcastor::cli::command();
    for shell in ["bash", "zsh", "fish"] {
        let (code, script) = run(&["completions", shell]);
        assert_eq!(code, Some(0), "{shell}");
        for command in commands.get_subcommands().filter(|c| !c.is_hide_set()) {
            assert!(script.contains(command.get_name()), "{shell}");
        }
    }
}
