//! The abstract UNIX sockets on which keepers are found. Abstract names belong to the network
//! namespace, as memberships do.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, ErrorKind, Read};
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

/// The first part of the name of each keeper.
const PREFIX: &str = "mcastor-keeper:";

/// The longest part of a path in a name. A name has at most 107 bytes.
const MAX_PATH: usize = 80;

/// Limit of the keepers that are ended at once. Other programs may use such names too.
const MAX_KEEPERS: usize = 64;

/// How long a keeper may need to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Returns a new name for a keeper of the instance that serves commands on this socket.
pub(super) fn new_name(socket: &Path) -> String {
    format!("{PREFIX}{:08x}:{}", random(), path_part(socket))
}

/// Returns a random number.
pub(super) fn random() -> u32 {
    // RandomState has a random seed.
    RandomState::new().build_hasher().finish() as u32
}

/// Returns the end of a path, without a line end, which would end the name in the kernel's list.
fn path_part(socket: &Path) -> String {
    let path = std::path::absolute(socket).unwrap_or_else(|_| socket.into());
    let path = path.to_string_lossy().replace('\n', "?");
    let start = path.len().saturating_sub(MAX_PATH);
    let start = (start..=path.len()).find(|at| path.is_char_boundary(*at));
    path[start.unwrap_or_default()..].to_owned()
}

/// Returns the address of a name.
pub(super) fn address(name: &str) -> io::Result<SockAddr> {
    SockAddr::unix(format!("\0{name}"))
}

/// Ends the keepers of this network namespace whose process has ended: those of one instance, or
/// all. Skips the name `own`. Returns how many there were.
///
/// # Errors
/// The list of the kernel cannot be read.
pub fn end_orphaned(socket: Option<&Path>, own: Option<&str>) -> io::Result<usize> {
    let list = std::fs::read("/proc/thread-self/net/unix")?;
    let list = String::from_utf8_lossy(&list);
    let path = socket.map(path_part);
    let names = keepers(&list, path.as_deref()).into_iter();
    let names = names.filter(|name| Some(*name) != own);
    Ok(names.take(MAX_KEEPERS).filter(|name| end(name)).count())
}

/// Returns the names of keepers in a list of UNIX sockets: of the instance with this path, or all.
fn keepers<'a>(list: &'a str, path: Option<&str>) -> BTreeSet<&'a str> {
    let name = |line: &'a str| {
        let (_, name) = line.split_once(" @")?;
        let (_, of) = name.strip_prefix(PREFIX)?.split_once(':')?;
        path.is_none_or(|path| of == path).then_some(name)
    };
    list.lines().filter_map(name).collect()
}

/// Tells a keeper to end, and waits. Returns whether it does: it does not if its process lives.
fn end(name: &str) -> bool {
    let connected = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // Any program can listen on such a name, and leave connections waiting.
        socket.set_nonblocking(true)?;
        socket.connect(&address(name)?)?;
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(socket)
    };
    let answer = connected().and_then(|mut socket| socket.read(&mut [0]));
    match answer {
        Ok(bytes) => bytes > 0,
        Err(e) => e.kind() == ErrorKind::ConnectionReset,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keepers_of_one_instance_are_found() {
        let (own, other) = (new_name(Path::new("/run/a b")), new_name(Path::new("/b")));
        let line = |name: &str| format!("0: 2 0 10000 1 1 77 @{name}\n");
        let list = ["Num RefCount\n0: 2 0 0 2 1 5 /run/x\n", &line(&own)].concat();
        let list = [list, line(&other), line(&own), line("x:y")].concat();
        assert_eq!(keepers(&list, Some("/run/a b")), [&*own].into());
        assert_eq!(keepers(&list, None).len(), 2);
    }

    #[test]
    fn long_paths_fit_into_a_name() {
        let name = new_name(Path::new(&format!("/{}/s", "\u{fc}".repeat(60))));
        assert!(name.len() <= 107 && name.ends_with("/s"), "{name}");
        assert!(address(&name).is_ok());
    }
}
