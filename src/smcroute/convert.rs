//! Conversion of `smcroute.conf` to TOML, for `mcastor convert`.

use std::fmt::Write;
use std::sync::Arc;

use super::conf::{Conf, ConfLine};
use super::line::Directive;
use super::phyint::SmcrouteInterface;
use super::toml_text::{comment, list, quoted};
use crate::model::{JoinRule, RouteRule, TtlPolicy};

/// Converts `conf` to TOML settings with the same effect. Keeps comments. Interface options, routes
/// and joins appear at the position of their first line. Invalid lines become comments.
pub fn convert(conf: &Conf) -> String {
    let mut out = String::new();
    let mut file: Option<&Arc<str>> = None;
    for (at, line) in conf.lines.iter().enumerate() {
        if file.is_some_and(|file| *file != line.location.file) {
            comment(&mut out, &format!(" {}", line.location));
        }
        file = Some(&line.location.file);
        convert_line(&mut out, conf, at, line);
    }
    out
}

fn convert_line(out: &mut String, conf: &Conf, at: usize, line: &ConfLine) {
    let mut tables: Vec<String> = Vec::new();
    let here = conf.interfaces.iter().filter(|i| i.at == at);
    tables.extend(here.map(interface));
    let here = conf.routes.iter().filter(|(n, _)| *n == at);
    tables.extend(here.map(|(_, rule)| route(rule)));
    let here = conf.joins.iter().filter(|(n, _)| *n == at);
    tables.extend(here.map(|(_, rule)| join(rule)));
    let text = line.comment.as_deref();
    if let Some(text) = text {
        comment(out, text);
    }
    match &line.directive {
        Some(Directive::Include(path)) => {
            comment(out, &format!(" include {path}: its lines follow"));
        }
        Some(_) if tables.is_empty() => {
            let why = format!(" {}: part of another table, or not routed", line.location);
            comment(out, &why);
        }
        None if text.is_none() => out.push('\n'),
        _ => {}
    }
    for table in tables {
        out.push_str(&table);
        out.push('\n');
    }
}

fn interface(interface: &SmcrouteInterface) -> String {
    let mut out = format!("[[interface]]\nname = {}\n", quoted(&interface.name));
    if interface.disabled {
        out.push_str("enabled = false\n");
    }
    if interface.mrdisc {
        out.push_str("mrdisc = true\n");
    }
    if interface.capture {
        out.push_str("capture = true\n");
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
        comment(&mut out, " drops matching packets");
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
