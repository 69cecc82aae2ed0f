//! `mcastor add`, `remove`, `join`, `leave`, `flush`, `reload`, `stop`: one control request each.

use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::exit::{fail, usage_error};
use super::output::print_line;
use super::show::default_socket;
use crate::api::{JoinSpec, RewriteSpec, RouteSpec, RuleChange, ShowReply};
use crate::frontend::control::{Command, client};
use crate::model::escape::{EscapeStyle, escape};
use crate::model::{AddrError, GroupPrefix, IfPattern, LinkError};

/// The control socket argument of the commands that talk to a running router.
#[derive(Debug, clap::Args)]
pub struct SocketArgs {
    /// Control socket of the running mcastor
    #[arg(long, value_name = "PATH", default_value_os_t = default_socket())]
    pub socket: PathBuf,
}

/// Arguments of `add` and `remove`.
#[derive(Debug, clap::Args)]
pub struct RouteArgs {
    /// Interface that packets arrive on: a name or a pattern
    #[arg(value_name = "IIF", value_parser = ingress_of_route)]
    pub from: IfPattern,
    /// [SOURCE[/LEN]] GROUP[/LEN] [OIF...]: the source (any if omitted), the group, and the
    /// interfaces that packets leave on
    #[arg(value_name = "[SOURCE] GROUP [OIF]", required = true, num_args = 1..)]
    pub rest: Vec<String>,
    /// Translate the source address: an address, or a prefix with as many host bits as SOURCE
    #[arg(long, value_name = "SOURCE[/LEN]")]
    pub rewrite_source: Option<String>,
    /// Translate the group address: an address, or a prefix with as many host bits as GROUP
    #[arg(long, value_name = "GROUP[/LEN]")]
    pub rewrite_group: Option<String>,
    /// Translate the UDP destination port
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
    /// Interface of the join: a name or a pattern
    #[arg(value_name = "IIF", value_parser = interface_of_join)]
    pub interface: IfPattern,
    /// `[SOURCE] GROUP[/LEN]`
    #[arg(
        value_name = "[SOURCE] GROUP",
        required = true,
        num_args = 1..=2,
        help = "[SOURCE] GROUP[/LEN]: the only source to receive from (any if omitted), and the group"
    )]
    pub rest: Vec<String>,
    #[command(flatten)]
    socket: SocketArgs,
}

fn ingress_of_route(text: &str) -> Result<IfPattern, String> {
    interface_before(text, "IIF [SOURCE] GROUP [OIF]...")
}

fn interface_of_join(text: &str) -> Result<IfPattern, String> {
    interface_before(text, "IIF [SOURCE] GROUP")
}

/// Parses the name or pattern of an interface, the first argument of `order`. Refuses an address,
/// which the kernel would accept as a name.
fn interface_before(text: &str, order: &str) -> Result<IfPattern, String> {
    match text.parse::<GroupPrefix>() {
        Err(AddrError::NotAnAddress(_)) => text.parse().map_err(|e: LinkError| e.to_string()),
        _ => Err(format!(
            "an address, where an interface belongs; the order is {order}"
        )),
    }
}

/// The arguments after the interface: source, group, and the remaining words.
type Addresses = (Option<String>, String, Vec<String>);

/// Splits the arguments after the interface. The first word is a source unless it is a group.
fn split_addresses(rest: &[String]) -> Result<Addresses, String> {
    let first_is_group = rest[0].parse::<GroupPrefix>();
    match (first_is_group, rest) {
        (Ok(_), [group, oifs @ ..]) => Ok((None, group.clone(), oifs.to_vec())),
        (Err(_), [source, group, oifs @ ..]) if group.parse::<GroupPrefix>().is_ok() => {
            Ok((Some(source.clone()), group.clone(), oifs.to_vec()))
        }
        // The words after an address are not examined further.
        (Err(e @ AddrError::WithPort(_)), _) => Err(e.to_string()),
        (Err(AddrError::NotMulticast(_)), [_, group, ..])
            if let Err(e @ AddrError::WithPort(_)) = group.parse::<GroupPrefix>() =>
        {
            Err(e.to_string())
        }
        (Err(e), _) => Err(format!(
            "{e}; expected an optional source and a group after the interface, such as \
             eth0 10.0.0.10 225.1.2.3"
        )),
        (Ok(_), []) => Err("the group is missing".into()),
    }
}

/// Runs `mcastor add`.
pub fn add(args: RouteArgs) -> ExitCode {
    route(args, RuleChange::Add)
}

/// Runs `mcastor remove`.
pub fn remove(args: RouteArgs) -> ExitCode {
    route(args, RuleChange::Remove)
}

fn route(args: RouteArgs, change: fn(RouteSpec) -> RuleChange) -> ExitCode {
    let (source, group, to) = match split_addresses(&args.rest) {
        Ok(addresses) => addresses,
        Err(e) => return usage_error(&e),
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
    send_command(&args.socket.socket, Command::Change(change(spec)))
}

/// Runs `mcastor join`.
pub fn join(args: JoinArgs) -> ExitCode {
    membership(args, RuleChange::Join)
}

/// Runs `mcastor leave`.
pub fn leave(args: JoinArgs) -> ExitCode {
    membership(args, RuleChange::Leave)
}

fn membership(args: JoinArgs, change: fn(JoinSpec) -> RuleChange) -> ExitCode {
    let (source, group, left) = match split_addresses(&args.rest) {
        Ok(addresses) => addresses,
        Err(e) => return usage_error(&e),
    };
    if let Some(extra) = left.first() {
        return usage_error(&format!("unexpected argument {extra} after the group"));
    }
    let spec = JoinSpec {
        interface: args.interface.to_string(),
        source,
        group,
    };
    send_command(&args.socket.socket, Command::Change(change(spec)))
}

/// Runs `mcastor flush`, `reload` or `stop`.
pub fn run_without_arguments(args: &SocketArgs, command: Command) -> ExitCode {
    send_command(&args.socket, command)
}

/// Arguments of `stop`.
#[derive(Debug, clap::Args)]
pub struct StopArgs {
    /// Let the kernel forward the flows that it forwards already, for at most plane.orphan_after.
    /// The next mcastor continues with them. For an upgrade
    #[arg(long)]
    pub keep_forwarding: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// `mcastor stop`.
pub fn stop(args: &StopArgs) -> ExitCode {
    let command = match args.keep_forwarding {
        true => Command::StopKeepForwarding,
        false => Command::Stop,
    };
    send_command(&args.socket.socket, command)
}

/// Sends `command` to the router and prints the result.
fn send_command(socket: &Path, command: Command) -> ExitCode {
    match client::send(socket, command) {
        Ok(ShowReply::Done(done)) => {
            print_line(&escape(&done, EscapeStyle::Lines));
            ExitCode::SUCCESS
        }
        Ok(_) => fail(&"unexpected reply from the running mcastor; do both have the same version?"),
        Err(e) => fail(&e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split_words(text: &str) -> Result<Addresses, String> {
        let words: Vec<String> = text.split(' ').map(String::from).collect();
        split_addresses(&words)
    }

    #[test]
    fn unicast_address_before_group_is_source() {
        let expected = |s: Option<&str>, g: &str, o: &[&str]| {
            let oifs = o.iter().map(ToString::to_string).collect();
            Ok((s.map(String::from), g.to_string(), oifs))
        };
        assert_eq!(
            split_words("225.1.2.3 eth1"),
            expected(None, "225.1.2.3", &["eth1"])
        );
        assert_eq!(
            split_words("10.0.0.0/8 225.1.2.0/24 eth1 eth2"),
            expected(Some("10.0.0.0/8"), "225.1.2.0/24", &["eth1", "eth2"])
        );
        assert_eq!(
            split_words("2001:db8::1 ff3e::1"),
            expected(Some("2001:db8::1"), "ff3e::1", &[])
        );
        assert!(split_words("10.0.0.1 eth1").is_err());
        assert!(split_words("10.0.0.1").is_err());
    }

    #[test]
    fn address_with_port_is_refused_with_the_address_to_write() {
        for words in ["225.1.2.3:5000 eth1", "10.0.0.1 225.1.2.3:5000 eth1"] {
            let error = split_words(words).unwrap_err();
            assert!(
                error.contains("write the address without it, 225.1.2.3"),
                "{error}"
            );
        }
    }

    #[test]
    fn address_in_place_of_an_interface_is_refused_with_the_order() {
        for text in [
            "225.1.2.3",
            "10.0.0.1",
            "225.1.2.0/24",
            "225.1.2.3:5000",
            "ff3e::1",
        ] {
            let error = interface_of_join(text).unwrap_err();
            assert!(
                error.ends_with("the order is IIF [SOURCE] GROUP"),
                "{error}"
            );
        }
        for text in ["eth0", "br-*", "network:cameras"] {
            assert!(ingress_of_route(text).is_ok(), "{text}");
        }
    }
}
