//! Which process of a network namespace takes the packets of an interface.
//!
//! A claim is a listening UNIX socket with an abstract name (`unix(7)`): such names belong to a network
//! namespace, as interfaces do, and the kernel removes them when the process ends.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::os::unix::process::parent_id;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use socket2::{Domain, SockAddr, Socket, Type};

use super::limits::{DescriptorUse, outside_reserve};
use crate::model::IfIndex;

/// How long the former process may need to end, and how often this one looks.
const END_TIMEOUT: Duration = Duration::from_secs(1);
const INTERVAL: Duration = Duration::from_millis(10);

/// How many processes may ask who has an interface. Their connections are never accepted.
const BACKLOG: i32 = 4096;

/// The claims of this process.
#[derive(Debug, Default)]
pub struct IngressClaims(Mutex<HashMap<IfIndex, Weak<IngressClaim>>>);

/// A claim. It ends with its last owner.
#[derive(Debug)]
pub struct IngressClaim {
    _socket: Socket,
}

impl IngressClaims {
    /// Claims an interface, or shares the claim that this process has. Waits up to a second for
    /// another process to end. `None` if the process that this one replaces still has it.
    ///
    /// # Errors
    /// `AddrInUse`: another mcastor takes the packets of this interface.
    pub fn take(&self, interface: IfIndex) -> io::Result<Option<Arc<IngressClaim>>> {
        let until = Instant::now() + END_TIMEOUT;
        let mut is_examined = false;
        loop {
            match self.attempt(interface) {
                Ok(claim) => return Ok(Some(claim)),
                Err(e) if e.kind() != ErrorKind::AddrInUse => return Err(e),
                Err(_) if !is_examined && holder(interface) == Some(parent_id()) => {
                    return Ok(None);
                }
                Err(_) if Instant::now() > until => return Err(refusal(holder(interface))),
                Err(_) => sleep(INTERVAL),
            }
            is_examined = true;
        }
    }

    /// Claims an interface if nobody has. Does not wait.
    pub fn take_if_free(&self, interface: IfIndex) -> Option<Arc<IngressClaim>> {
        self.attempt(interface).ok()
    }

    fn attempt(&self, interface: IfIndex) -> io::Result<Arc<IngressClaim>> {
        let mut claims = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(claim) = claims.get(&interface).and_then(Weak::upgrade) {
            return Ok(claim);
        }
        let claim = Arc::new(IngressClaim {
            _socket: listen(interface)?,
        });
        claims.retain(|_, claim| claim.strong_count() > 0);
        claims.insert(interface, Arc::downgrade(&claim));
        Ok(claim)
    }
}

/// Returns a socket that has the name of an interface.
fn listen(interface: IfIndex) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&address(interface)?)?;
    socket.listen(BACKLOG)?;
    outside_reserve(socket, DescriptorUse::Packets)
}

/// Returns the process that has claimed an interface; zero if it belongs to another PID namespace.
fn holder(interface: IfIndex) -> Option<u32> {
    let connected = || -> io::Result<i32> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // Nobody accepts the connections, so that the queue may be full.
        socket.set_nonblocking(true)?;
        socket.connect(&address(interface)?)?;
        Ok(getsockopt(&socket, PeerCredentials)?.pid())
    };
    u32::try_from(connected().ok()?).ok()
}

/// Returns the error for an interface that another process has claimed.
fn refusal(holder: Option<u32>) -> io::Error {
    let process = match holder {
        Some(pid) if pid > 0 => format!("process {pid}"),
        _ => "not visible from here".to_owned(),
    };
    let text = format!(
        "another mcastor ({process}) takes the packets of this interface; stop it, or set shared = \
         true in [plane] if they forward different streams"
    );
    io::Error::new(ErrorKind::AddrInUse, text)
}

fn address(interface: IfIndex) -> io::Result<SockAddr> {
    SockAddr::unix(format!("\0mcastor-ingress:{}", interface.get()))
}
