//! The errors of the demo.

use crate::probe::StreamError;

/// The reason why the demo cannot run. It says nothing about the router.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The system does not permit network namespaces.
    #[error(
        "cannot make network namespaces: {0}\n\
         Run it as root (`sudo mcastor demo`). Without root it needs unprivileged user namespaces: \
         sysctl user.max_user_namespaces above 0 and, if they exist, \
         kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0. \
         In a container: --cap-add SYS_ADMIN --cap-add NET_ADMIN --cap-add NET_RAW."
    )]
    Namespaces(std::io::Error),
    /// Links or addresses could not be created.
    #[error(
        "cannot create the links of the demo: {0}\nIt needs the kernel's `veth` driver: `modprobe veth`."
    )]
    Links(String),
    /// An operation on a file, a socket or a process failed.
    #[error("cannot {what}: {error}")]
    System {
        /// The operation, as an infinitive.
        what: &'static str,
        /// The error of the system.
        error: std::io::Error,
    },
    /// A stream could not be sent or received.
    #[error("{0}")]
    Stream(#[from] StreamError),
    /// The metrics of the router cannot be read over the loopback interface.
    #[error(
        "cannot reach 127.0.0.1: {0}\nThe loopback interface of this network namespace is down; \
         set it up with `ip link set lo up`."
    )]
    Loopback(std::io::Error),
}

/// Returns a function that adds the failed operation to a system error.
pub(crate) fn system_error(what: &'static str) -> impl Fn(std::io::Error) -> DemoError {
    move |error| DemoError::System { what, error }
}
