//! `mcastor check [FILE]`: checks settings.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use super::exit::print_error;
use crate::settings::{DEFAULT_FILE, Settings, environment};

/// The exit code for refused settings.
pub const EXIT_BAD_SETTINGS: u8 = 2;

/// Checks a file together with the environment of this process. Without `named`, this is
/// [`DEFAULT_FILE`], which may be missing if the environment has settings.
///
/// For good settings, prints a summary on standard output and returns 0. For bad settings, prints
/// the report on standard error and returns [`EXIT_BAD_SETTINGS`]. With `json`, either answer is
/// one JSON object on standard output.
pub fn run(named: Option<&Path>, json: bool) -> ExitCode {
    let default = Path::new(DEFAULT_FILE);
    let has_file = || default.try_exists().unwrap_or(true);
    let file = match named {
        None if !has_file() && environment().next().is_some() => None,
        None => Some(default),
        Some(file) => Some(file),
    };
    let settings = Settings::load(file, environment());
    let source = file.map_or("environment".into(), Path::to_string_lossy);
    let mut out = io::stdout().lock();
    let (text, code) = match (&settings, json) {
        (Ok(settings), json) if !settings.skipped.is_empty() => {
            if !json {
                settings.skipped.iter().for_each(|line| print_error(line));
            }
            let problems = serde_json::json!({ "ok": false, "problems": settings.skipped });
            let text = if json {
                format!("{problems}\n")
            } else {
                String::new()
            };
            (text, EXIT_BAD_SETTINGS)
        }
        (Ok(settings), false) => (summary(&source, settings), 0),
        (Ok(settings), true) => (json_summary(settings), 0),
        (Err(report), true) => (format!("{}\n", report.json()), EXIT_BAD_SETTINGS),
        (Err(report), false) => {
            // So is a closed standard error.
            let _ = write!(io::stderr(), "{}", report.pretty());
            (String::new(), EXIT_BAD_SETTINGS)
        }
    };
    // A closed pipe is not an error: the reader needs no more output.
    let _ = out.write_all(text.as_bytes());
    ExitCode::from(code)
}

/// Returns the names and patterns of interfaces in the settings, each once.
fn interface_names(settings: &Settings) -> Vec<&str> {
    let routes = settings.routes.iter();
    let mut names: Vec<&str> = routes
        .flat_map(|route| std::iter::once(&route.from).chain(&route.to))
        .chain(settings.interfaces.iter().map(|options| &options.name))
        .chain(settings.joins.iter().map(|join| &join.interface))
        .chain(
            settings
                .proxies
                .iter()
                .flat_map(|p| p.upstream.iter().chain(&p.downstream)),
        )
        .chain(settings.discovery.iter().flat_map(|rule| rule.patterns()))
        .map(|name| name.as_str())
        .chain(
            settings
                .mnat
                .iter()
                .flat_map(|end| [end.upstream.as_str(), end.downstream.as_str()]),
        )
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn summary(source: &str, settings: &Settings) -> String {
    let names = interface_names(settings);
    let counted = |n: usize, noun: &str| match n {
        0 => format!("no {noun}s"),
        1 => format!("1 {noun}"),
        n if noun.ends_with('y') && !noun.ends_with("ay") => {
            format!("{n} {}ies", noun.trim_end_matches('y'))
        }
        n => format!("{n} {noun}s"),
    };
    let mut parts = vec![counted(settings.routes.len(), "route")];
    let tables = [
        (settings.proxies.len(), "proxy"),
        (settings.joins.len(), "join"),
        (settings.discovery.len(), "discovery"),
        (settings.amt.gateways.len(), "AMT gateway"),
        (settings.amt.relays.len(), "AMT relay"),
    ];
    let present = tables.iter().filter(|(number, _)| *number > 0);
    parts.extend(present.map(|(number, noun)| counted(*number, noun)));
    if let Some(end) = &settings.mnat {
        parts.push(format!("MNAT {} of {}", end.role, end.target.host));
    }
    parts.push(counted(names.len(), "interface"));
    let mut text = format!("{source}: good. {}", parts.join(", "));
    if !names.is_empty() {
        text.push_str(": ");
        text.push_str(&names.join(", "));
    }
    text.push('\n');
    for note in settings.notes() {
        text.push_str("note: ");
        text.push_str(&note);
        text.push('\n');
    }
    text
}

fn json_summary(settings: &Settings) -> String {
    let answer = serde_json::json!({
        "ok": true,
        "routes": settings.routes,
        "joins": settings.joins,
        "proxies": settings.proxies,
        "interfaces": interface_names(settings),
        "notes": settings.notes(),
    });
    format!("{answer}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_lists_each_interface_once() {
        let env = [
            ("MCASTOR__ROUTE__0__FROM", "eth0"),
            ("MCASTOR__ROUTE__0__GROUP", "225.1.2.3"),
            ("MCASTOR__ROUTE__0__TO", "eth1,veth*"),
            ("MCASTOR__INTERFACE__0__NAME", "eth1"),
        ];
        let env = env.map(|(name, value)| (name.to_string(), value.to_string()));
        let settings = Settings::load(None, env.into_iter()).unwrap();
        assert_eq!(
            summary("a.toml", &settings),
            "a.toml: good. 1 route, 3 interfaces: eth0, eth1, veth*\n"
        );
        let env = [
            ("MCASTOR__PROXY__0__UPSTREAM", "eth0"),
            ("MCASTOR__PROXY__0__DOWNSTREAM", "br-*"),
            ("MCASTOR__PROXY__0__UPWARD", "false"),
            ("MCASTOR__PROXY__1__UPWARD", "false"),
            ("MCASTOR__PROXY__1__UPSTREAM", "eth1"),
            ("MCASTOR__PROXY__1__DOWNSTREAM", "eth2"),
        ];
        let env = env.map(|(name, value)| (name.to_string(), value.to_string()));
        let proxies = Settings::load(None, env.into_iter()).unwrap();
        assert_eq!(
            summary("a.toml", &proxies),
            "a.toml: good. no routes, 2 proxies, 4 interfaces: br-*, eth0, eth1, eth2\n"
        );
        let env = [
            ("MCASTOR__MNAT__ROLE", "egress"),
            ("MCASTOR__MNAT__SERVER", "https://mnat.example.net:8443"),
            ("MCASTOR__MNAT__UPSTREAM", "xup0"),
            ("MCASTOR__MNAT__DOWNSTREAM", "xdn0"),
        ];
        let env = env.map(|(name, value)| (name.to_string(), value.to_string()));
        let mnat = Settings::load(None, env.into_iter()).unwrap();
        assert_eq!(
            summary("a.toml", &mnat),
            "a.toml: good. no routes, MNAT egress of mnat.example.net, 2 interfaces: xdn0, xup0\n"
        );
        assert_eq!(
            summary("a.toml", &Settings::default()),
            "a.toml: good. no routes, no interfaces\n"
        );
        let env = [
            ("MCASTOR__DISCOVERY__0__BETWEEN", "eth0,network:home"),
            ("MCASTOR__DISCOVERY__0__PROTOCOLS", "mdns"),
            ("MCASTOR__JOIN__0__INTERFACE", "eth2"),
            ("MCASTOR__JOIN__0__GROUP", "225.1.2.3"),
            ("MCASTOR__AMT__GATEWAY__0__NAME", "internet"),
            ("MCASTOR__AMT__GATEWAY__0__RELAY", "driad"),
            ("MCASTOR__AMT__RELAY__0__NAME", "tunnels"),
        ];
        let env = env.map(|(name, value)| (name.to_string(), value.to_string()));
        let others = Settings::load(None, env.into_iter()).unwrap();
        assert_eq!(
            summary("a.toml", &others),
            "a.toml: good. no routes, 1 join, 1 discovery, 1 AMT gateway, 1 AMT relay, \
             3 interfaces: eth0, eth2, network:home\n"
        );
        let json: serde_json::Value = serde_json::from_str(&json_summary(&settings)).unwrap();
        assert_eq!(json["routes"][0]["name"], "eth0 (*, 225.1.2.3)");
    }
}
