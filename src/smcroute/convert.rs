//! The same as TOML: what `mcastor convert` prints.

use std::fmt::Write;
use std::sync::Arc;

use super::conf::{Conf, Line};
use super::line::Directive;
use super::phyint::SmcrouteInterface;
use crate::model::{JoinRule, RouteRule, TtlPolicy};

/// The settings that mean what `conf` means, with its comments. Interface options, routes and
/// joins stand where their first line stood; lines that were not read stay as comments.
pub fn convert(conf: &Conf) -> String {
    let mut out = String::new();
    let mut file: Option<&Arc<str>> = None;
    for (at, line) in conf.lines.iter().enumerate() {
        if file.is_some_and(|file| *file != line.place.file) {
            comment(&mut out, &format!(" {}", line.place));
        }
        file = Some(&line.place.file);
        one(&mut out, conf, at, line);
    }
    out
}

fn one(out: &mut String, conf: &Conf, at: usize, line: &Line) {
    let mut tables: Vec<String> = Vec::new();
    // Options that other lines have a say in are given where the last of those is.
    let here = conf.interfaces.iter().filter(|i| i.at == at);
    tables.extend(here.map(interface));
    let here = conf.routes.iter().filter(|(n, _)| *n == at);
    tables.extend(here.map(|(_, rule)| route(rule)));
    let here = conf.joins.iter().filter(|(n, _)| *n == at);
    tables.extend(here.map(|(_, rule)| join(rule)));
    let behind = line.comment.as_deref();
    if let Some(behind) = behind {
        comment(out, behind);
    }
    match &line.directive {
        Some(Directive::Include(path)) => {
            comment(out, &format!(" include {path}: its lines follow"));
        }
        Some(_) if tables.is_empty() => {
            let why = format!(" {}: part of another table, or not routed", line.place);
            comment(out, &why);
        }
        None if behind.is_none() => out.push('\n'),
        _ => {}
    }
    for table in tables {
        out.push_str(&table);
        out.push('\n');
    }
}

/// A comment; what TOML allows in none is replaced.
fn comment(out: &mut String, text: &str) {
    let plain = |c: char| {
        if c.is_control() && c != '\t' {
            '\u{fffd}'
        } else {
            c
        }
    };
    out.push('#');
    out.extend(text.chars().map(plain));
    out.push('\n');
}

fn quoted(text: &dyn ToString) -> String {
    toml_edit::Value::from(text.to_string()).to_string()
}

fn list<T: ToString>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(|i| quoted(i)).collect();
    format!("[{}]", items.join(", "))
}

fn interface(interface: &SmcrouteInterface) -> String {
    let mut out = format!("[[interface]]\nname = {}\n", quoted(&interface.name));
    if interface.disabled {
        out.push_str("enabled = false\n");
    }
    if interface.mrdisc {
        out.push_str("mrdisc = true\n");
    }
    if let Some(threshold) = interface.ttl_threshold {
        let _ = writeln!(out, "ttl_threshold = {}", threshold.get());
    }
    out
}

fn route(rule: &RouteRule) -> String {
    let mut out = format!("[[route]]\nfrom = {}\n", quoted(&rule.from));
    if !rule.source.is_any() {
        let _ = writeln!(out, "source = {}", quoted(&rule.source));
    }
    if !rule.except_sources.is_empty() {
        let _ = writeln!(out, "except_sources = {}", list(&rule.except_sources));
    }
    let _ = writeln!(out, "group = {}", quoted(&rule.group));
    if rule.to.is_empty() {
        comment(&mut out, " stops what it takes");
    }
    let _ = writeln!(out, "to = {}", list(&rule.to));
    match rule.ttl {
        TtlPolicy::Decrement => {}
        TtlPolicy::Keep => out.push_str("ttl = \"keep\"\n"),
        TtlPolicy::Set(ttl) => {
            let _ = writeln!(out, "ttl = {{ set = {ttl} }}");
        }
    }
    out.push_str("join = false\n");
    out
}

fn join(rule: &JoinRule) -> String {
    let mut out = format!("[[join]]\ninterface = {}\n", quoted(&rule.interface));
    if let Some(source) = rule.source {
        let _ = writeln!(out, "source = {}", quoted(&source));
    }
    let _ = writeln!(out, "group = {}", quoted(&rule.group));
    out
}
