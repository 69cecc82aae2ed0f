//! Reasons for missed goals, found by profiling. A report shows the reason only if the goal is
//! missed.

/// The name of a goal in the table, and the reason.
const REASONS: &[(&str, &str)] = &[
    (
        "CPU per packet at 300k/s, 1 egress",
        "88 % of the time of the router is in sendmmsg, where the kernel copies the packet into a \
         new buffer; ip_mroute forwards the received buffer without a copy. The program itself \
         takes 8 %, wake-ups take 3 %",
    ),
    (
        "CPU per packet at 100k/s, 4 egresses",
        "most of the time is in sendmmsg, which copies the packet into a separate buffer for each \
         egress; the clones of ip_mroute share the bytes",
    ),
    (
        "CPU per packet at 100k/s, sender offload on, 1 egress",
        "as with one egress; in addition, the router computes the checksum that the sender left \
         incomplete, which ip_mroute does not do",
    ),
    (
        "CPU per packet at 100k/s, sender offload on, 4 egresses",
        "as with four egresses; in addition, the router computes the checksum that the sender left \
         incomplete, once per packet",
    ),
    (
        "maximum rate, 4 egresses",
        "one core sends for all egresses, at the CPU time per packet above",
    ),
    (
        "loss at 300k/s, 4 egresses",
        "all egresses together need 1.2 million packets per second from one core, which can send \
         four times the maximum rate below. ip_mroute does not reach 300k/s either: it slows down \
         the sender",
    ),
    (
        "ebpf: maximum rate, 1 egress",
        "the core of the sender forwards too, and sending takes most of its time; the two programs \
         take 3 %, the packet socket with its filter 4 %",
    ),
    (
        "ebpf: maximum rate, 4 egresses",
        "as with one egress; each further copy is a clone of the packet, which takes most of the rest",
    ),
    (
        "ebpf: CPU per packet at 100k/s, 4 egresses",
        "three of the four copies are clones, as in ip_mroute; only the last one is redirected. The \
         rounds differ by more than the distance to the goal",
    ),
    (
        "ebpf: CPU per packet at 300k/s, 1 egress, to the peer of a veth",
        "the redirect alone takes 0.14x; the filter of the capture socket, with the lookup and the \
         counters, takes the rest",
    ),
    (
        "ebpf: CPU per packet, 100,000 flows relative to 1 flow",
        "a packet of one of many flows finds the buckets of the flow table, the record and the \
         counters outside the caches of the processor; one flow is always in them",
    ),
    (
        "p50 at 10k/s",
        "the machine is slow (compare the p50 of ip_mroute below with 4.7 us in latency.md), or \
         other processes use the core: busy polling then pauses, and each packet has to wake a \
         halted core",
    ),
];

/// Returns the reason for a missed goal; empty if none is known.
pub fn reason_for(goal: &str) -> &'static str {
    let found = REASONS.iter().find(|(name, _)| *name == goal);
    found.map_or("", |(_, reason)| reason)
}
