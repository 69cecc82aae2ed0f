//! `mcastor add`, `remove`, `join`, `leave`, `flush`, `reload`, `stop`: one request each.

use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::show::default_socket;
use super::{fail, unusable};
use crate::api::{JoinSpec, RewriteSpec, RouteSpec, RuleChange, ShowReply};
use crate::control::{Command, client};
use crate::model::{GroupPrefix, IfPattern};

/// Where the daemon listens.
#[derive(Debug, clap::Args)]
pub struct SocketArgs {
    /// Control socket of the daemon
    #[arg(long, value_name = "PATH", default_value_os_t = default_socket())]
    pub socket: PathBuf,
}

/// Arguments of `add` and `remove`.
#[derive(Debug, clap::Args)]
pub struct RouteArgs {
    /// Interface packets arrive on, a name or a pattern
    #[arg(value_name = "IIF")]
    pub from: IfPattern,
    /// [SOURCE[/LEN]] GROUP[/LEN] [OIF...]: who sends (any, when left out), to which groups,
    /// and the interfaces packets leave on
    #[arg(value_name = "[SOURCE] GROUP [OIF]", required = true, num_args = 1..)]
    pub rest: Vec<String>,
    /// Source packets leave with, an address or a prefix as long as that of SOURCE
    #[arg(long, value_name = "SOURCE[/LEN]")]
    pub rewrite_source: Option<String>,
    /// Group packets leave for, an address or a prefix as long as that of GROUP
    #[arg(long, value_name = "GROUP[/LEN]")]
    pub rewrite_group: Option<String>,
    /// UDP destination port packets leave with
    #[arg(long, value_name = "PORT")]
    pub rewrite_port: Option<NonZeroU16>,
    #[command(flatten)]
    socket: SocketArgs,
}

impl RouteArgs {
    fn rewrite(&self) -> Option<RewriteSpec> {
        let rewrite = RewriteSpec {
            source: self.rewrite_source.clone(),
            group: self.rewrite_group.clone(),
            port: self.rewrite_port,
        };
        let RewriteSpec {
            source,
            group,
            port,
        } = &rewrite;
        let any = source.is_some() || group.is_some() || port.is_some();
        any.then_some(rewrite)
    }
}

/// Arguments of `join` and `leave`.
#[derive(Debug, clap::Args)]
pub struct JoinArgs {
    /// Interface to join on, a name or a pattern
    #[arg(value_name = "IIF")]
    pub interface: IfPattern,
    /// `[SOURCE] GROUP[/LEN]`
    #[arg(
        value_name = "[SOURCE] GROUP",
        required = true,
        num_args = 1..=2,
        help = "[SOURCE] GROUP[/LEN]: only what this source sends (any, when left out), to which group"
    )]
    pub rest: Vec<String>,
    #[command(flatten)]
    socket: SocketArgs,
}

/// What stands after the interface: source, group, and what is left.
type Rest = (Option<String>, String, Vec<String>);

/// Tells source and group apart: a source is what is not multicast.
fn split(rest: &[String]) -> Result<Rest, String> {
    let first_is_group = rest[0].parse::<GroupPrefix>();
    match (first_is_group, rest) {
        (Ok(_), [group, oifs @ ..]) => Ok((None, group.clone(), oifs.to_vec())),
        (Err(_), [source, group, oifs @ ..]) if group.parse::<GroupPrefix>().is_ok() => {
            Ok((Some(source.clone()), group.clone(), oifs.to_vec()))
        }
        (Err(e), _) => Err(format!(
            "{e}; after the interface come an optional source and a group: \
             eth0 10.0.0.10 225.1.2.3"
        )),
        (Ok(_), []) => Err("a group is missing".into()),
    }
}

/// `mcastor add`.
pub fn add(args: RouteArgs) -> ExitCode {
    route(args, RuleChange::Add)
}

/// `mcastor remove`.
pub fn remove(args: RouteArgs) -> ExitCode {
    route(args, RuleChange::Remove)
}

fn route(args: RouteArgs, change: fn(RouteSpec) -> RuleChange) -> ExitCode {
    let (source, group, to) = match split(&args.rest) {
        Ok(rest) => rest,
        Err(e) => return unusable(&e),
    };
    let spec = RouteSpec {
        rewrite: args.rewrite(),
        from: args.from.to_string(),
        source,
        group,
        to,
        join: None,
        stop: false,
    };
    tell(&args.socket.socket, Command::Change(change(spec)))
}

/// `mcastor join`.
pub fn join(args: JoinArgs) -> ExitCode {
    membership(args, RuleChange::Join)
}

/// `mcastor leave`.
pub fn leave(args: JoinArgs) -> ExitCode {
    membership(args, RuleChange::Leave)
}

fn membership(args: JoinArgs, change: fn(JoinSpec) -> RuleChange) -> ExitCode {
    let (source, group, left) = match split(&args.rest) {
        Ok(rest) => rest,
        Err(e) => return unusable(&e),
    };
    if let Some(extra) = left.first() {
        return unusable(&format!("{extra} is one argument too many"));
    }
    let spec = JoinSpec {
        interface: args.interface.to_string(),
        source,
        group,
    };
    tell(&args.socket.socket, Command::Change(change(spec)))
}

/// `mcastor flush`, `reload` and `stop`.
pub fn simple(args: &SocketArgs, command: Command) -> ExitCode {
    tell(&args.socket, command)
}

fn tell(socket: &Path, command: Command) -> ExitCode {
    match client::ask(socket, command) {
        Ok(ShowReply::Done(done)) => {
            println!("{done}");
            ExitCode::SUCCESS
        }
        Ok(_) => fail(&"the daemon answered something else than was asked"),
        Err(e) => fail(&e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split_words(text: &str) -> Result<Rest, String> {
        let words: Vec<String> = text.split(' ').map(String::from).collect();
        split(&words)
    }

    #[test]
    fn a_source_is_what_is_not_multicast() {
        let rest = |s: Option<&str>, g: &str, o: &[&str]| {
            let oifs = o.iter().map(ToString::to_string).collect();
            Ok((s.map(String::from), g.to_string(), oifs))
        };
        assert_eq!(
            split_words("225.1.2.3 eth1"),
            rest(None, "225.1.2.3", &["eth1"])
        );
        assert_eq!(
            split_words("10.0.0.0/8 225.1.2.0/24 eth1 eth2"),
            rest(Some("10.0.0.0/8"), "225.1.2.0/24", &["eth1", "eth2"])
        );
        assert_eq!(
            split_words("2001:db8::1 ff3e::1"),
            rest(Some("2001:db8::1"), "ff3e::1", &[])
        );
        assert!(split_words("10.0.0.1 eth1").is_err());
        assert!(split_words("10.0.0.1").is_err());
    }
}
