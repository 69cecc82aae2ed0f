//! Whether the kernel forwards what arrives or leaves on an interface.

/// Whether a plane that forwards by itself, in the kernel, does so for an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KernelForwarding {
    /// Where it can.
    #[default]
    Auto,
    /// Neither what arrives nor what leaves.
    Never,
    /// Where it can. A packet that leaves on a veth goes directly to the other end in another
    /// network namespace.
    ToPeer,
}
