//! Lets tshark decode the AMT messages of this program. Skipped without tshark; `MCASTOR_TSHARK`
//! names another program.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::time::Duration;

use mcastor::wire::amt::{AmtMessage, FlagLayout, PORT, ResponseMac};
use mcastor::wire::membership::build;
use mcastor::wire::membership_message::{
    Generation, GroupRecord, MembershipMessage, Query, RecordType,
};

const MAC: ResponseMac = ResponseMac([0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6]);
const NONCE: u32 = 0x0102_0304;

/// Writes packets as a pcap file with the link type LINKTYPE_RAW, and returns tshark's fields of
/// each, or `None` without tshark.
fn decode(packets: &[Vec<u8>], fields: &[&str]) -> Option<Vec<String>> {
    let tshark = std::env::var("MCASTOR_TSHARK").unwrap_or_else(|_| "tshark".into());
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut pcap = Vec::new();
    pcap.extend(0xa1b2_c3d4u32.to_le_bytes());
    pcap.extend([2, 0, 4, 0]);
    pcap.extend([0; 8]);
    pcap.extend(65_535u32.to_le_bytes());
    pcap.extend(101u32.to_le_bytes());
    for packet in packets {
        pcap.extend([0; 8]);
        pcap.extend((packet.len() as u32).to_le_bytes());
        pcap.extend((packet.len() as u32).to_le_bytes());
        pcap.extend(packet);
    }
    fs::write(file.path(), pcap).unwrap();
    let mut command = Command::new(tshark);
    command
        .arg("-r")
        .arg(file.path())
        .args(["-T", "fields", "-E", "separator=;"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().ok()?;
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    Some(text.lines().map(String::from).collect())
}

/// Returns an IPv4 packet with a UDP datagram without a checksum.
fn datagram(port: u16, payload: &[u8]) -> Vec<u8> {
    let len = 28 + payload.len() as u16;
    let mut packet = vec![0x45, 0];
    packet.extend(len.to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 7, 192, 0, 2, 9]);
    mcastor::wire::ip::refresh_ipv4_checksum(&mut packet);
    packet.extend(40_000u16.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend((8 + payload.len() as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

fn built(message: &MembershipMessage, source: IpAddr) -> Vec<u8> {
    build(message, source, 1400).unwrap().remove(0)
}

fn general_query(source: IpAddr) -> Vec<u8> {
    let query = Query {
        generation: Generation::Three,
        group: None,
        max_response_time: Duration::from_secs(1),
        suppress: false,
        robustness: 2,
        interval: Some(Duration::from_secs(125)),
        sources: Vec::new(),
    };
    built(&MembershipMessage::Query(query), source)
}

fn report(source: IpAddr, group: &str, sender: &str) -> Vec<u8> {
    let records = vec![GroupRecord {
        kind: RecordType::AllowNewSources,
        group: group.parse().unwrap(),
        sources: vec![sender.parse().unwrap()],
    }];
    built(&MembershipMessage::Records(records), source)
}

#[test]
fn tshark_decodes_every_message() {
    let link_local: IpAddr = "fe80::1".parse().unwrap();
    let igmp_query = general_query([192, 0, 2, 9].into());
    let mld_query = general_query(link_local);
    let igmp_report = report(Ipv4Addr::UNSPECIFIED.into(), "232.1.2.3", "198.51.100.1");
    let mld_report = report(link_local, "ff3e::8000:1", "2001:db8::1");
    let data = datagram(5000, b"inner");
    let nonce = NONCE;
    let query = |packet, gateway: Option<&str>, is_limit_reached| AmtMessage::MembershipQuery {
        is_limit_reached,
        mac: MAC,
        nonce,
        packet,
        gateway: gateway.map(|addr| addr.parse().unwrap()),
        flags: FlagLayout::Standard,
    };
    let update = |packet| AmtMessage::MembershipUpdate {
        mac: MAC,
        nonce,
        packet,
    };
    let request = |is_mld| AmtMessage::Request {
        nonce,
        is_mld,
        flags: FlagLayout::Standard,
    };
    let advertisement = |relay| AmtMessage::RelayAdvertisement { nonce, relay };
    let messages = [
        AmtMessage::RelayDiscovery { nonce },
        advertisement([192, 0, 2, 9].into()),
        advertisement("2001:db8::9".parse::<Ipv6Addr>().unwrap().into()),
        request(false),
        request(true),
        query(&igmp_query, None, true),
        query(&igmp_query, Some("192.0.2.7:40000"), false),
        query(&mld_query, Some("[2001:db8::7]:40000"), false),
        update(&igmp_report),
        update(&mld_report),
        AmtMessage::MulticastData { packet: &data },
        AmtMessage::Teardown {
            mac: MAC,
            nonce,
            gateway: "192.0.2.7:40000".parse().unwrap(),
        },
    ];
    let packets: Vec<_> = messages
        .iter()
        .map(|m| datagram(PORT, &m.to_bytes()))
        .collect();
    let fields = [
        "amt.type",
        "amt.discovery_nonce",
        "amt.request_nonce",
        "amt.relay_address.ipv4",
        "amt.relay_address.ipv6",
        "amt.request.p",
        "amt.membership_query.l",
        "amt.membership_query.g",
        "amt.response_mac",
        "amt.gateway.port_number",
        "amt.gateway.ip_address",
        "igmp.type",
        "icmpv6.type",
        "_ws.malformed",
    ];
    let Some(decoded) = decode(&packets, &fields) else {
        println!("skipped: no tshark");
        return;
    };
    let (n, mac) = ("0x01020304", "0x0000a1a2a3a4a5a6");
    let expected = [
        format!("1;{n};;;;;;;;;;;;"),
        format!("2;{n};;192.0.2.9;;;;;;;;;;"),
        format!("2;{n};;;2001:db8::9;;;;;;;;;"),
        format!("3;;{n};;;0;;;;;;;;"),
        format!("3;;{n};;;1;;;;;;;;"),
        format!("4;;{n};;;;1;0;{mac};;;0x11;;"),
        format!("4;;{n};;;;0;1;{mac};40000;::192.0.2.7;0x11;;"),
        format!("4;;{n};;;;0;1;{mac};40000;2001:db8::7;;130;"),
        format!("5;;{n};;;;;;{mac};;;0x22;;"),
        format!("5;;{n};;;;;;{mac};;;;143;"),
        "6;;;;;;;;;;;;;".into(),
        format!("7;;{n};;;;;;{mac};40000;::192.0.2.7;;;"),
    ];
    assert_eq!(decoded.len(), expected.len(), "{decoded:#?}");
    for (decoded, expected) in decoded.iter().zip(&expected) {
        assert_eq!(decoded, expected);
    }
}
