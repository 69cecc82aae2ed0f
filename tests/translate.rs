//! Compares translated packets with packets that scapy built. `tests/vectors/translate/build.py`
//! generates the test vectors.

use std::net::IpAddr;

use mcastor::forward::DropReason;
use mcastor::forward::segment::segment;
use mcastor::model::{InterfaceId, Link, Links, RouteRule, TranslationRule};
use mcastor::pipeline::{Batch, Packet, Switch};
use mcastor::table::{Fib, Rib};
use mcastor::wire::ip::IpHeader;
use mcastor::wire::offload::Offload;
use serde::Deserialize;

#[derive(Deserialize)]
struct Vector {
    name: String,
    from: (String, String),
    to: (String, String),
    port: Option<u16>,
    mtu: u32,
    offload: Option<OffloadSpec>,
    #[serde(rename = "in")]
    input: String,
    #[serde(default)]
    out: Vec<String>,
    drop: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OffloadSpec {
    Checksum { start: u16, offset: u16 },
    Segments { segments: u16 },
}

fn unhex(hex: &str) -> Vec<u8> {
    let byte = |i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(byte).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn fib(from: &(String, String), to: &(String, String), port: Option<u16>, mtu: u32) -> Fib {
    let link = |index, name: &str| Link {
        mtu,
        ..Link::new(InterfaceId::new(index).unwrap(), name.parse().unwrap())
    };
    let links: Links = [link(1, "in"), link(2, "out")].into_iter().collect();
    let out = vec!["out".parse().unwrap()];
    let mut rule = RouteRule::new("in".parse().unwrap(), from.1.parse().unwrap(), out);
    rule.source = from.0.parse().unwrap();
    let translated = (Some(to.0.parse().unwrap()), Some(to.1.parse().unwrap()));
    let port = port.and_then(std::num::NonZeroU16::new);
    let translation = TranslationRule::new((rule.source, rule.group), translated, port, false);
    rule.translation = Some(translation.unwrap());
    let rib = Rib {
        rules: vec![rule].into(),
        ..Rib::default()
    };
    rib.build_fib(&links, 1)
}

/// Runs a packet through the switch. Returns the packets that leave, or the drop reason.
fn run_switch(fib: &Fib, packet: &[u8], offload: Offload) -> Result<Vec<Vec<u8>>, DropReason> {
    // The packet is between other bytes, which must not affect the result.
    let mut bytes = vec![0xee; 14];
    bytes.extend_from_slice(packet);
    bytes.extend_from_slice(&[0xee; 14]);
    let meta = Packet {
        start: 14,
        len: packet.len() as u32,
        ethertype: if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd },
        offload,
        ..Packet::default()
    };
    let ingress = &fib.ingresses[&InterfaceId::new(1).unwrap()];
    let batch = Batch::from_bytes(bytes, vec![meta]);
    let switched = Switch::default().run(fib, ingress, batch, 0);
    let dropped = DropReason::ALL
        .iter()
        .find(|r| switched.counts.dropped[**r as usize] > 0);
    if let Some(reason) = dropped {
        assert!(switched.egresses.is_empty());
        return Err(*reason);
    }
    let slots = &switched.egresses[0].1;
    let translated: u64 = switched.counts.translated.iter().sum();
    let mut left = Vec::new();
    for slot in slots {
        let packet = switched.shared.packet(slot);
        let Some(segments) = slot.segments else {
            left.push(packet.to_vec());
            continue;
        };
        // A GSO packet, which the egress segments.
        let datagram = IpHeader::parse(packet).unwrap();
        let (mut out, mut ranges) = (Vec::new(), Vec::new());
        let payload = segments.payload();
        segment(packet, &datagram, payload, &mut out, |r| ranges.push(r))?;
        left.extend(ranges.into_iter().map(|r| out[r].to_vec()));
    }
    assert!(translated == switched.counts.packets && translated <= left.len() as u64);
    Ok(left)
}

fn vectors() -> Vec<Vector> {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/vectors/translate/vectors.json"
    );
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn translated_packets_equal_scapy_packets() {
    let vectors = vectors();
    assert!(vectors.len() > 200);
    let mut faults = Vec::new();
    for v in &vectors {
        let offload = match v.offload {
            None => Offload::None,
            Some(OffloadSpec::Checksum { start, offset }) => Offload::Checksum { start, offset },
            Some(OffloadSpec::Segments { segments }) => Offload::UdpSegments { payload: segments },
        };
        let fib = fib(&v.from, &v.to, v.port, v.mtu);
        let left = run_switch(&fib, &unhex(&v.input), offload);
        let left = left.map(|all| all.iter().map(|p| hex(p)).collect::<Vec<_>>());
        let expected = match &v.drop {
            Some(reason) => Err(reason.as_str()),
            None => Ok(v.out.clone()),
        };
        let left = left.map_err(DropReason::label);
        if left != expected {
            let text = |r: &Result<Vec<String>, &str>| match r {
                Ok(all) => all.join("\n    "),
                Err(reason) => (*reason).to_string(),
            };
            faults.push(format!(
                "{}\n  {}\n  {}",
                v.name,
                text(&left),
                text(&expected)
            ));
        }
    }
    assert!(
        faults.is_empty(),
        "{} of {}:\n{}",
        faults.len(),
        vectors.len(),
        faults.join("\n")
    );
}

/// Translates the result of each vector back, for vectors within one IP version and with one
/// result.
#[test]
fn inverse_translation_restores_the_packet() {
    let mut tried = 0;
    for v in vectors()
        .iter()
        .filter(|v| v.drop.is_none() && v.offload.is_none())
    {
        let v4 = |s: &str| s.parse::<IpAddr>().unwrap().is_ipv4();
        let plain = v.out.len() == 1 && v.mtu < 9000;
        if v4(&v.from.0) != v4(&v.to.0) || !plain {
            continue;
        }
        // The port before the translation is 5000.
        let original_port = v.port.map(|_| 5000);
        let inverse = fib(&v.to, &v.from, original_port, v.mtu);
        let left = run_switch(&inverse, &unhex(&v.out[0]), Offload::None);
        let left = left.unwrap_or_else(|r| panic!("{}: {}", v.name, r.label()));
        // Everything but the TTL is restored.
        let mut packet = unhex(&v.input);
        let ttl = left[0][if packet[0] >> 4 == 4 { 8 } else { 7 }];
        mcastor::wire::ip::set_ttl(&mut packet, ttl);
        assert_eq!(hex(&left[0]), hex(&packet), "{}", v.name);
        tried += 1;
    }
    assert!(tried > 50, "{tried}");
}
