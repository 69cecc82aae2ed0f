//! `mcastor convert FILE`: prints an `smcroute.conf` or an `igmpproxy.conf` as TOML.

use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::ExitCode;

use ipnet::Ipv4Net;

use super::exit::{UNUSABLE, print_error, usage_error};
use crate::igmpproxy;
use crate::settings::{MAX_FILE, Settings, read_smcroute};
use crate::smcroute::convert::convert;

/// The programs whose configuration can be converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ConfFormat {
    /// smcroute.conf
    Smcroute,
    /// igmpproxy.conf
    Igmpproxy,
}

/// Prints the TOML settings equivalent to a file. Invalid lines and what has no counterpart are
/// reported on standard error; the exit code is [`UNUSABLE`] if lines are invalid.
pub fn run(format: Option<ConfFormat>, file: &Path, strict: bool) -> ExitCode {
    let format = format.unwrap_or_else(|| match read_text(file) {
        Ok(text) if igmpproxy::conf::is_igmpproxy_format(&text) => ConfFormat::Igmpproxy,
        _ => ConfFormat::Smcroute,
    });
    match format {
        ConfFormat::Smcroute => convert_smcroute(file, strict),
        ConfFormat::Igmpproxy => convert_igmpproxy(file),
    }
}

fn convert_smcroute(file: &Path, strict: bool) -> ExitCode {
    // The environment does not take part in a conversion.
    if let Err(report) = Settings::load_smcroute(file, strict, std::iter::empty()) {
        return usage_error(&report);
    }
    let conf = read_smcroute(file, strict);
    // Ignores a closed standard output.
    let _ = io::stdout().write_all(convert(&conf).as_bytes());
    let messages = conf.faults.iter().chain(&conf.notes);
    messages.for_each(|message| print_error(message));
    match conf.faults.len() {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::from(UNUSABLE),
    }
}

fn convert_igmpproxy(file: &Path) -> ExitCode {
    let name = file.display();
    let text = match read_text(file) {
        Ok(text) => text,
        Err(e) => return usage_error(&format!("{name}: {e}")),
    };
    let conversion = igmpproxy::conf::parse(&text)
        .map_err(|e| format!("{name} {e}"))
        .and_then(|conf| {
            let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
            let subnets = |interface: &str| connected_subnets(&routes, interface);
            let converted = igmpproxy::convert::convert(&conf, subnets);
            converted.map_err(|e| format!("{name}: {e}"))
        });
    match conversion {
        Ok(conversion) => {
            // Ignores a closed standard output.
            let _ = io::stdout().write_all(conversion.toml.as_bytes());
            let notes = conversion.notes.iter();
            notes.for_each(|note| print_error(&format_args!("{name}: note: {note}")));
            ExitCode::SUCCESS
        }
        Err(e) => usage_error(&e),
    }
}

fn read_text(file: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(file)?;
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns the subnets of an interface: the routes without a gateway in the text of
/// `/proc/net/route`, whose numbers are in hexadecimal and in network byte order.
fn connected_subnets(routes: &str, interface: &str) -> Vec<Ipv4Net> {
    let address = |text: &str| {
        let number = u32::from_str_radix(text, 16).ok()?;
        Some(Ipv4Addr::from(number.to_ne_bytes()))
    };
    let subnet = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [name, destination, gateway, _, _, _, _, mask, ..] = fields[..] else {
            return None;
        };
        if name != interface || !address(gateway)?.is_unspecified() {
            return None;
        }
        let net = Ipv4Net::with_netmask(address(destination)?, address(mask)?).ok()?;
        (net.prefix_len() > 0 && !net.addr().is_multicast()).then_some(net)
    };
    routes.lines().filter_map(subnet).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn connected_subnets_are_routes_without_gateway() {
        let routes = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            eth0\t000000E0\t00000000\t0001\t0\t0\t0\t000000F0\t0\t0\t0\n\
            eth1\t0000A8C0\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
        let nets = connected_subnets(routes, "eth0");
        assert_eq!(nets, ["192.0.2.0/24".parse().unwrap()]);
    }
}
