//! Tips for arguments that clap refuses.

use std::ffi::OsString;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Adds a tip to an error about an argument that `mcastor` does not have, if users of another
/// program or command probably mean something that exists. `words` are the arguments after the
/// program name.
pub(super) fn with_tip(mut error: clap::Error, words: &[OsString]) -> clap::Error {
    if let Some(tip) = tip(&error, words) {
        let tip = ContextValue::StyledStrs(vec![StyledStr::from(tip)]);
        error.insert(ContextKind::Suggested, tip);
    }
    error
}

fn tip(error: &clap::Error, words: &[OsString]) -> Option<String> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    match words.first()?.to_str()? {
        "run" if !argument.starts_with('-') => Some(format!(
            "name the settings file with '--config {argument}'; there can be only one"
        )),
        first if first == argument => command_of_smcroute(first),
        _ => None,
    }
}

/// Returns what replaces an option of smcroute 1.x.
fn command_of_smcroute(option: &str) -> Option<String> {
    let command = match option {
        "-a" => "add",
        "-r" => "remove",
        "-j" => "join",
        "-l" => "leave",
        "-k" => "stop",
        "-d" => "run",
        _ => return None,
    };
    Some(format!(
        "the command is 'mcastor {command}'; with smcrouted it is 'mcastor smcroute {option}'"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(line: &str) -> String {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let all = std::iter::once("mcastor".into()).chain(words.iter().cloned());
        let error = crate::cli::command().try_get_matches_from(all).unwrap_err();
        with_tip(error, &words).to_string()
    }

    #[test]
    fn settings_file_of_run_needs_config() {
        for line in ["run a.toml", "run a.toml b.toml"] {
            let text = message(line);
            assert!(
                text.contains("tip: name the settings file with '--config a.toml'"),
                "{text}"
            );
        }
        assert!(!message("run --confg a.toml").contains("name the settings file"));
    }

    #[test]
    fn options_of_smcroute_name_the_command() {
        let text = message("-a eth0 239.1.1.1 eth1");
        let tip = "tip: the command is 'mcastor add'; with smcrouted it is 'mcastor smcroute -a'";
        assert!(text.contains(tip), "{text}");
        assert!(!message("add -a").contains("smcroute"));
    }
}
