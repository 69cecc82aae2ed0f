//! Why goals are missed, where they are: found by profiling, kept beside the figures. A reason is
//! shown only where the goal is missed.

/// The goal as the table calls it, and why.
const REASONS: &[(&str, &str)] = &[
    (
        "CPU a packet at 300k/s, 1 egress",
        "88 % of the router's time is in sendmmsg, where the kernel copies the packet into a new \
         buffer, which ip_mroute only passes on; the program itself takes 8 %, waking 3 %",
    ),
    (
        "CPU a packet at 100k/s, 4 egresses",
        "each egress is a copy and a buffer of its own in sendmmsg, where most of the time \
         goes; ip_mroute's clones share the bytes",
    ),
    (
        "CPU a packet at 100k/s, sender offload on, 1 egress",
        "as with one egress, and the checksum the sender left open is computed here; the \
         kernel's forwarding never does",
    ),
    (
        "CPU a packet at 100k/s, sender offload on, 4 egresses",
        "as with four egresses, and the checksum the sender left open is computed once",
    ),
    (
        "maximum rate, 4 egresses",
        "one core sends for all egresses, at the CPU a packet above",
    ),
    (
        "loss at 300k/s, 4 egresses",
        "1.2 million packets a second leave by one core, which sends four times the maximum below. \
         ip_mroute does not come to 300k/s either: it slows the sender",
    ),
    (
        "p50 at 10k/s",
        "a slow machine (compare ip_mroute's own p50 below, and latency.md from one on which that \
         is 4.7 us), or others on the core: then looking for packets rests, and waking a halted \
         core is paid for each",
    ),
];

/// Why a goal is missed.
pub fn of(goal: &str) -> &'static str {
    let found = REASONS.iter().find(|(what, _)| *what == goal);
    found.map_or("", |(_, why)| why)
}
