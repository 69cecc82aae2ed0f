//! Measures the steps of the data path separately. The forwarding bench measures the cost of
//! passing packets to an actor.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mcastor::forward::finish::finish_packet;
use mcastor::forward::fragment::fragment;
use mcastor::forward::segment::segment;
use mcastor::forward::{Arrival, Decision, LoopGuard, decide};
use mcastor::model::{
    InterfaceId, JoinPolicy, Link, Links, MonitorKind, ProxyRule, RouteName, RouteRule, Source,
    SourceFilter, SourcePrefix,
};
use mcastor::pipeline::{Batch, Packet, Switch};
use mcastor::streams::analyzer::{Analyzer, Point};
use mcastor::sys::confinement::{FileAccess, confine_thread};
use mcastor::table::flows::{FlowBudget, Flows};
use mcastor::table::{Fib, MembershipDatabase, Rib, StreamState};
use mcastor::wire::checksum;
use mcastor::wire::ip::{IpHeader, refresh_ipv4_checksum};
use mcastor::wire::offload::Offload;
use std::hint::black_box;

const PAYLOAD: usize = 200;
const HEADERS: usize = 28;
/// Number of packets that take turns.
const PACKETS: usize = 64;

fn source(i: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 1, 0, 1).to_bits() + i as u32)
}

fn group(i: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(225, 0, 0, 1).to_bits() + i as u32)
}

fn packet(i: usize, payload: usize) -> Vec<u8> {
    let mut p = vec![0x5a; HEADERS + payload];
    let total = p.len() as u16;
    p[..20].fill(0);
    p[0] = 0x45;
    p[2..4].copy_from_slice(&total.to_be_bytes());
    p[8] = 16;
    p[9] = 17;
    p[12..16].copy_from_slice(&source(i).octets());
    p[16..20].copy_from_slice(&group(i).octets());
    p[20..24].copy_from_slice(&[0x13, 0x88, 0x13, 0x88]);
    p[24..26].copy_from_slice(&(total - 20).to_be_bytes());
    p[26..28].fill(0);
    refresh_ipv4_checksum(&mut p);
    p
}

/// Returns a FIB with `rules` rules from `in` to `egresses` interfaces. The rules are (S,G) if
/// `pairs` is true, otherwise (*,G).
fn fib(rules: usize, pairs: bool, egresses: usize) -> Fib {
    let (rib, links) = rib(rules, pairs, egresses);
    rib.build_fib(&links, 1)
}

/// Returns the rules and the links of [`fib`].
fn rib(rules: usize, pairs: bool, egresses: usize) -> (Rib, Links) {
    let link = |index, name: String| {
        Link::new(
            InterfaceId::new(index).expect("not zero"),
            name.parse().expect("a name"),
        )
    };
    let out = (0..egresses).map(|i| link(i as u32 + 2, format!("out{i}")));
    let links: Links = std::iter::once(link(1, "in".into())).chain(out).collect();
    let rules = (0..rules).map(|i| {
        let group = group(i).to_string().parse().expect("a group");
        let to = (0..egresses).map(|i| format!("out{i}").parse().expect("a name"));
        RouteRule {
            name: RouteName::new(i.to_string()),
            source: match pairs {
                true => source(i).to_string().parse().expect("a source"),
                false => SourcePrefix::any_for(group),
            },
            join: JoinPolicy::Never,
            ..RouteRule::new("in".parse().expect("a name"), group, to.collect())
        }
    });
    let rib = Rib {
        rules: rules.collect(),
        interfaces: vec![],
        ..Rib::default()
    };
    (rib, links)
}

fn ingress(fib: &Fib) -> &mcastor::table::Ingress {
    &fib.ingresses[&InterfaceId::new(1).expect("not zero")]
}

fn ttl(decision: Decision<'_>) -> Option<u8> {
    decision.variants().next().map(|variant| variant.ttl)
}

fn bench_decide(c: &mut Criterion) {
    let mut g = c.benchmark_group("decide");
    for rules in [10, 10_000, 100_000] {
        let fib = fib(rules, true, 1);
        let streams = StreamState::default();
        let arrival = Arrival {
            fib: &fib,
            ingress: ingress(&fib),
            streams: &streams,
            sender: None,
            now_ms: 1,
        };
        // As many flows as rules, so that large tables do not fit in the cache.
        let flows = rules.min(100_000);
        let few: Vec<_> = (0..PACKETS).map(|i| packet(i % flows, PAYLOAD)).collect();
        let many: Vec<_> = (0..flows).map(|i| packet(i * 7919 % flows, 40)).collect();
        g.bench_function(BenchmarkId::new("known flow, cached", rules), |b| {
            let mut known = Flows::new(FlowBudget::new(1 << 20));
            let mut i = 0;
            b.iter(|| {
                i = (i + 1) % PACKETS;
                decide(arrival, &mut known, black_box(&few[i])).map(ttl)
            });
        });
        g.bench_function(BenchmarkId::new("known flow, all in turn", rules), |b| {
            let mut known = Flows::new(FlowBudget::new(1 << 20));
            for packet in &many {
                let _ = decide(arrival, &mut known, packet);
            }
            let mut i = 0;
            b.iter(|| {
                i = (i + 1) % many.len();
                decide(arrival, &mut known, black_box(&many[i])).map(ttl)
            });
        });
        g.bench_function(BenchmarkId::new("new flow", rules), |b| {
            // With a budget of one flow, each packet evicts the previous flow and searches the
            // rules.
            let mut known = Flows::new(FlowBudget::new(1));
            let mut i = 0;
            b.iter(|| {
                i = (i + 1) % many.len();
                decide(arrival, &mut known, black_box(&many[i])).map(ttl)
            });
        });
    }
    g.finish();
}

/// Measures the addition and removal of one route: from the command to the FIB that forwards
/// accordingly, compared with a FIB that is built from all rules.
fn bench_route_changes(c: &mut Criterion) {
    let mut g = c.benchmark_group("one route");
    for rules in [10, 10_000, 100_000] {
        let (mut current, links) = rib(rules, true, 1);
        let mut builder = current.fib_builder(&links);
        let mut fib = builder.build(1);
        let (one_more, _) = rib(rules + 1, true, 1);
        let added = &one_more.rules[rules];
        g.bench_function(
            BenchmarkId::new("add, publish, remove, publish", rules),
            |b| {
                b.iter(|| {
                    // Routing changes a copy, so that a refused change has no effect.
                    let mut next = current.clone();
                    let change = next.add(added.clone()).expect("a new route");
                    assert!(builder.apply(&change));
                    current = next;
                    fib = builder.build(fib.generation + 1);
                    let mut next = current.clone();
                    let change = next.remove(&added.from, added.source, added.group, &[]);
                    assert!(builder.apply(&change.expect("the route exists")));
                    current = next;
                    fib = builder.build(fib.generation + 1);
                });
            },
        );
        g.bench_function(BenchmarkId::new("build from all rules", rules), |b| {
            b.iter(|| current.build_fib(&links, 1));
        });
    }
    g.finish();
}

/// Measures a membership change of one group among 10,000 groups with 10 sources each, on one and
/// on 50 interfaces: from the report to the FIB that forwards accordingly.
fn bench_memberships(c: &mut Criterion) {
    const GROUPS: usize = 10_000;
    let mut g = c.benchmark_group("one membership of 10,000 groups");
    for downstreams in [1, 50] {
        let names = (0..=downstreams).map(|i| format!("if{i}"));
        let links: Links = (1u32..)
            .zip(names)
            .map(|(i, name)| {
                let index = InterfaceId::new(i).expect("not zero");
                Link::new(index, name.parse().expect("a name"))
            })
            .collect();
        let pattern = |name: &str| vec![name.parse().expect("a pattern")];
        let rib = Rib {
            proxies: vec![ProxyRule::new(pattern("if0"), pattern("if*"))],
            ..Rib::default()
        };
        let mut database = MembershipDatabase::default();
        let downstream =
            |i: usize| InterfaceId::new((i % downstreams) as u32 + 2).expect("not zero");
        let nth_group = |i: usize| group(i).to_string().parse().expect("a group");
        let sources = |from: usize| {
            let all = (from..from + 10).map(|n| Source::new(source(n).into()).expect("a source"));
            SourceFilter::Include(all.collect())
        };
        for i in 0..GROUPS {
            // With many interfaces, each group has members on a few of them.
            for n in 0..downstreams.min(4) {
                database.set(downstream(i * 7 + i / 50 * n), nth_group(i), sources(0));
            }
        }
        let mut fib = rib.build_fib(&links, 1);
        database.rebuild(&mut fib);
        let mut n = 0;
        g.bench_function(BenchmarkId::new("update and publish", downstreams), |b| {
            b.iter(|| {
                n += 1;
                database.set(downstream(n), nth_group(n % GROUPS), sources(n % 3));
                if let Some(next) = database.update(&fib, n as u64) {
                    fib = next;
                }
            });
        });
        g.bench_function(BenchmarkId::new("rebuild", downstreams), |b| {
            b.iter(|| database.rebuild(&mut fib));
        });
    }
    g.finish();
}

fn bench_packet_functions(c: &mut Criterion) {
    let plain = packet(1, PAYLOAD);
    c.bench_function("parse", |b| b.iter(|| IpHeader::parse(black_box(&plain))));
    for size in [64, 200, 1400] {
        let p = packet(1, size);
        c.bench_function(&format!("checksum/{size}"), |b| {
            b.iter(|| checksum::compute(black_box(&p)))
        });
    }
    let mut g = c.benchmark_group("rewrite");
    let mut p = plain.clone();
    g.bench_function("ttl", |b| {
        b.iter(|| finish_packet(black_box(&mut p), Offload::None, 15))
    });
    for size in [64, 200, 1400] {
        let mut p = packet(1, size);
        let offload = Offload::Checksum {
            start: 20,
            offset: 6,
        };
        g.bench_function(BenchmarkId::new("ttl and incomplete checksum", size), |b| {
            b.iter(|| finish_packet(black_box(&mut p), offload, 15))
        });
    }
    g.finish();
    let long = packet(1, 16 * PAYLOAD);
    let datagram = IpHeader::parse(&long).expect("a packet");
    let mut out = Vec::new();
    c.bench_function("segment/16 of 200", |b| {
        b.iter(|| {
            out.clear();
            segment(
                black_box(&long),
                &datagram,
                PAYLOAD as u16,
                &mut out,
                |range| {
                    black_box(range);
                },
            )
        })
    });
    c.bench_function("fragment/3228 at 1500", |b| {
        b.iter(|| {
            out.clear();
            fragment(black_box(&long), 1500, &mut out, |range| {
                black_box(range);
            })
        })
    });
    let guard = LoopGuard::default();
    let mut p = plain;
    let mut n = 0u32;
    c.bench_function("loop guard", |b| {
        b.iter(|| {
            n = n.wrapping_add(1);
            p[28..32].copy_from_slice(&n.to_ne_bytes());
            guard.recognises(7, black_box(&p), u64::from(n >> 10))
        })
    });
}

/// Measures a complete batch: decide, finish, sort by egress.
fn bench_switch(c: &mut Criterion) {
    let mut g = c.benchmark_group("switch");
    for egresses in [1, 4, 16] {
        let fib = fib(10, true, egresses);
        let ingress = ingress(&fib);
        let (mut bytes, mut packets) = (Vec::new(), Vec::new());
        for i in 0..PACKETS {
            let p = packet(i % 10, PAYLOAD);
            packets.push(Packet {
                start: bytes.len() as u32,
                len: p.len() as u32,
                ethertype: 0x0800,
                ..Packet::default()
            });
            bytes.extend(p);
        }
        let mut switch = Switch::default();
        g.throughput(Throughput::Elements(PACKETS as u64));
        g.bench_function(BenchmarkId::new("64 packets, egresses", egresses), |b| {
            b.iter_batched(
                || Batch::from_bytes(bytes.clone(), packets.clone()),
                |batch| switch.run(&fib, ingress, batch, 1).egresses,
                BatchSize::LargeInput,
            )
        });
    }
    // What no route takes: packets of one stream, and packets that each have a new source.
    for (name, step) in [("one stream", 0), ("new sources", PACKETS)] {
        let fib = fib(10, true, 1);
        let ingress = ingress(&fib);
        let mut switch = Switch::default();
        let mut first = 0;
        g.throughput(Throughput::Elements(PACKETS as u64));
        g.bench_function(BenchmarkId::new("64 packets, dropped", name), |b| {
            b.iter_batched(
                || {
                    first += step;
                    let (mut bytes, mut packets) = (Vec::new(), Vec::new());
                    for i in 0..PACKETS {
                        let mut p = packet(20, PAYLOAD);
                        let from = source(first + i * usize::from(step > 0));
                        p[12..16].copy_from_slice(&from.octets());
                        refresh_ipv4_checksum(&mut p);
                        packets.push(Packet {
                            start: bytes.len() as u32,
                            len: p.len() as u32,
                            ethertype: 0x0800,
                            ..Packet::default()
                        });
                        bytes.extend(p);
                    }
                    Batch::from_bytes(bytes, packets)
                },
                |batch| switch.run(&fib, ingress, batch, 1).counts.packets,
                BatchSize::LargeInput,
            )
        });
    }
    g.finish();
}

/// A packet of a stream with 1,000 packets a second: RTP, whose payload is MPEG-TS or something else.
fn monitored_packet(number: u16, is_ts: bool) -> Vec<u8> {
    let mut p = packet(0, 12 + 7 * 188);
    let payload = &mut p[HEADERS..];
    payload[..2].copy_from_slice(&[0x80, 33]);
    payload[2..4].copy_from_slice(&number.to_be_bytes());
    payload[4..8].copy_from_slice(&(u32::from(number) * 90).to_be_bytes());
    if is_ts {
        for (n, packet) in payload[12..].chunks_mut(188).enumerate() {
            let counter = (usize::from(number) * 7 + n) as u8 & 0xf;
            packet[..4].copy_from_slice(&[0x47, 1, 0, 0x10 | counter]);
        }
    }
    p
}

/// The examination of a packet of a monitored stream. 100 streams take turns.
fn bench_monitor(c: &mut Criterion) {
    const STREAMS: usize = 100;
    let mut g = c.benchmark_group("monitor");
    for (name, kind, is_ts, point) in [
        ("rate", MonitorKind::Rate, false, Point::Ingress),
        ("RTP, ingress", MonitorKind::Rtp, false, Point::Ingress),
        ("RTP, egress", MonitorKind::Rtp, false, Point::Egress),
        (
            "RTP with MPEG-TS, ingress",
            MonitorKind::Rtp,
            true,
            Point::Ingress,
        ),
    ] {
        let packets: Vec<_> = (0..=u16::MAX).map(|n| monitored_packet(n, is_ts)).collect();
        let mut streams: Vec<_> = (0..STREAMS)
            .map(|_| Analyzer::new(kind, None, point))
            .collect();
        let mut n = 0u64;
        g.bench_function(name, |b| {
            b.iter(|| {
                n += 1;
                let (number, stream) = (n / STREAMS as u64, n as usize % STREAMS);
                let packet = &packets[number as usize % packets.len()];
                streams[stream].add(black_box(packet), None, n * 10_000);
            });
        });
        g.bench_function(format!("{name}: report"), |b| {
            b.iter(|| streams[0].examined(n * 10_000));
        });
    }
    g.finish();
}

/// What confinement adds to each system call of a thread.
fn bench_confinement(c: &mut Criterion) {
    for confined in [false, true] {
        let thread = if confined { "confined" } else { "free" };
        c.bench_function(&format!("system call/{thread}"), |b| {
            b.iter_custom(|calls| {
                let thread = std::thread::spawn(move || {
                    if confined {
                        confine_thread(FileAccess::None).expect("confinement");
                    }
                    let start = Instant::now();
                    for _ in 0..calls {
                        black_box(std::os::unix::process::parent_id());
                    }
                    start.elapsed()
                });
                thread.join().expect("a time")
            });
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1_000))
        .sample_size(20);
    targets = bench_route_changes, bench_memberships, bench_decide, bench_packet_functions, bench_switch,
        bench_monitor, bench_confinement
}
criterion_main!(benches);
