//! The roles in which an interface takes over a stream. Each is a value of the `role` label of
//! `mcastor_takeovers_total` and has a line in docs/metrics.md.

/// The role in which an interface took over a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TakeoverRole {
    /// It became the active ingress in place of another interface.
    Ingress,
    /// The stream leaves on it again, because another router does not send it there any more.
    Egress,
}

impl TakeoverRole {
    /// All roles.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// Returns the metrics label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}
