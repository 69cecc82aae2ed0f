use std::num::NonZeroU16;

use serde_json::Value;

use super::*;
use crate::wire::ip::set_ttl;

fn bytes_of(digits: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(byte).collect()
}

/// Decrements the TTL and translates, as the switch does.
fn translate(vector: &Value) -> Result<Vec<Vec<u8>>, DropReason> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut packet = bytes_of(&text(&vector["in"]));
    let datagram = IpHeader::parse(&packet)?;
    packet.truncate(datagram.packet_len);
    set_ttl(&mut packet, datagram.ttl - 1);
    let [from, to] = [&vector["from"], &vector["to"]];
    let matched = (
        text(&from[0]).parse().unwrap(),
        text(&from[1]).parse().unwrap(),
    );
    let replacement = (text(&to[0]).parse().ok(), text(&to[1]).parse().ok());
    let port = vector["port"].as_u64();
    let port = port.and_then(|port| NonZeroU16::new(port.try_into().unwrap()));
    let rule = TranslationRule::new(matched, replacement, port, false).unwrap();
    if rule.kind().keeps_ip_version() {
        translate_in_place(&mut packet, &datagram, &rule)?;
        return Ok(vec![packet]);
    }
    let mtu = vector["mtu"].as_u64().unwrap() as usize;
    let mut ids = Identifications::default();
    let (mut out, mut ranges) = (vec![0xee; 3], Vec::new());
    let on_packet = |range| ranges.push(range);
    let translated = translate_version(
        &packet, &datagram, &rule, &mut ids, mtu, &mut out, on_packet,
    );
    if let Err(reason) = translated {
        assert_eq!(out, [0xee; 3]);
        return Err(reason);
    }
    Ok(ranges
        .into_iter()
        .map(|range| out[range].to_vec())
        .collect())
}

/// The expected packets were built by scapy (tests/vectors/translate/build.py). Packets with
/// offload, which the switch completes first, are left to tests/translate.rs.
#[test]
fn translated_packets_equal_those_of_scapy() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/vectors/translate/vectors.json"
    );
    let vectors: Vec<Value> =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut compared = 0;
    for vector in vectors.iter().filter(|vector| vector["offload"].is_null()) {
        let left = translate(vector);
        let expected: Vec<Vec<u8>> = (vector["out"].as_array().into_iter().flatten())
            .map(|packet| bytes_of(packet.as_str().unwrap()))
            .collect();
        match vector["drop"].as_str() {
            Some(reason) => assert_eq!(left.unwrap_err().label(), reason, "{}", vector["name"]),
            None => assert_eq!(left.unwrap(), expected, "{}", vector["name"]),
        }
        compared += 1;
    }
    assert!(compared > 200, "{compared}");
}
