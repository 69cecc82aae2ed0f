//! Programs of others on both sides of `[[discovery]]`, one for each protocol that is answered by
//! unicast: what is found is connected to.

use std::net::SocketAddr;
use std::process::Output;
use std::time::Duration;

use super::cases;
use crate::lab::discovery_site::{
    Device, answers, asker, discovery, minidlna, read_from, serve, site, start,
};
use crate::lab::harness::pypi_program;
use crate::lab::{Lab, Ns, Program, TIMEOUT, eventually, wait_until};

cases!("discovery_programs":
    #[Iptables] #[Python("gi", "python3-gi")]
    #[Python("gi; gi.require_version('GSSDP', '1.6')", "gir1.2-gssdp-1.6")]
    gssdp_finds_a_device_of_gssdp,
    #[Iptables] #[Program("minidlnad", "minidlna")] #[PyPi("upnp-client")]
    upnp_client_finds_media_server_and_calls_it,
    #[Iptables] #[Program("coap-server-notls", "libcoap3-bin")]
    coap_servers_are_found_and_read,
    #[Iptables] #[Program("llmnrd", "llmnrd")] #[Program("llmnr-query", "llmnrd")]
    llmnr_name_is_resolved,
    #[Iptables] slp_service_is_found,
    #[Iptables] #[Program("sapserver", "minisapserver")]
    sap_announcement_keeps_its_source,
);

/// Runs a program until its output satisfies `is_found`. Returns the output.
#[track_caller]
fn run_until(ns: &Ns, program: &str, words: &[&str], is_found: impl Fn(&str) -> bool) -> String {
    let mut text = String::new();
    let found = wait_until(TIMEOUT, || {
        let Output { stdout, stderr, .. } = ns.output(program, words);
        text = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
        is_found(&text)
    });
    assert!(found, "{program} {words:?}: {text}");
    text
}

const GSSDP_DEVICE: &str = r#"
import gi
gi.require_version("GSSDP", "1.6")
from gi.repository import GLib, GSSDP
client = GSSDP.Client.new_for_address(None, 0, GSSDP.UDAVersion.VERSION_1_0)
group = GSSDP.ResourceGroup.new(client)
kind = "urn:schemas-upnp-org:device:Basic:1"
group.add_resource_simple(kind, "uuid:7::" + kind, "http://10.0.0.10:8000/description.xml")
group.set_available(True)
GLib.MainLoop().run()
"#;

const GSSDP_BROWSER: &str = r#"
import gi
gi.require_version("GSSDP", "1.6")
from gi.repository import GLib, GSSDP
client = GSSDP.Client.new_for_address(None, 0, GSSDP.UDAVersion.VERSION_1_0)
browser = GSSDP.ResourceBrowser.new(client, "urn:schemas-upnp-org:device:Basic:1")
browser.connect("resource-available", lambda _, usn, urls: print("found", usn, urls, flush=True))
browser.set_active(True)
GLib.MainLoop().run()
"#;

fn python(lab: &Lab, ns: &Ns, script: &str) -> Program {
    let file = lab.file("script.py");
    std::fs::write(&file, script).expect("a script");
    ns.spawn(lab, "/usr/bin/python3", &[file.to_str().expect("a path")])
}

/// The library of GNOME on both sides.
fn gssdp_finds_a_device_of_gssdp(lab: &Lab) {
    let site = site(lab, 1);
    let _router = start(lab, &site, &discovery("\"ssdp\"", ""));
    serve(&site.device, 8000, "a device");
    let device = python(lab, &site.device, GSSDP_DEVICE);
    let browser = python(lab, &site.containers[0], GSSDP_BROWSER);
    let found = "found uuid:7::urn:schemas-upnp-org:device:Basic:1 \
                 ['http://10.0.0.10:8000/description.xml']";
    let is_found = wait_until(TIMEOUT, || browser.stdout().contains(found));
    assert!(
        is_found,
        "{}{}{}",
        browser.stdout(),
        browser.stderr(),
        device.stderr()
    );
    assert_eq!(read_from(&site.containers[0], "10.0.0.10:8000"), "a device");
}

/// async-upnp-client, which Home Assistant uses, in a container: finds minidlna on the LAN, and calls
/// an action of its content directory.
fn upnp_client_finds_media_server_and_calls_it(lab: &Lab) {
    let site = site(lab, 1);
    let _router = start(lab, &site, &discovery("\"ssdp\"", ""));
    let _server = minidlna(lab, &site.device);
    let container = &site.containers[0];
    let client = pypi_program("upnp-client");
    let client = client.to_str().expect("a path");
    let search = ["--timeout", "3", "search", "--bind", "172.20.0.2"];
    let url = "http://10.0.0.10:8200/rootDesc.xml";
    run_until(container, client, &search, |text| text.contains(url));
    let call = ["call-action", url, "ContentDirectory/GetSystemUpdateID"];
    run_until(container, client, &call, |text| text.contains("\"Id\""));
}

/// One question of coap-client is answered by all servers, and one of them is read.
fn coap_servers_are_found_and_read(lab: &Lab) {
    let site = site(lab, 1);
    let _router = start(lab, &site, &discovery("\"coap\"", ""));
    let words = ["-g", "224.0.1.187", "-G", "eth0"];
    let _servers = [&site.device, &site.other].map(|ns| ns.spawn(lab, "coap-server-notls", &words));
    let container = &site.containers[0];
    // Servers wait up to five seconds, the leisure of RFC 7252 section 8.2.
    let question = ["-N", "-B", "6", "coap://224.0.1.187/.well-known/core"];
    run_until(container, "coap-client-notls", &question, |text| {
        text.contains("</time>")
    });
    let question = ["-B", "5", "coap://10.0.0.11/time"];
    run_until(container, "coap-client-notls", &question, |text| {
        text.contains(':')
    });
}

fn llmnr_name_is_resolved(lab: &Lab) {
    let site = site(lab, 1);
    let _router = start(lab, &site, &discovery("\"llmnr\"", ""));
    let _responder = site
        .device
        .spawn(lab, "llmnrd", &["-H", "shelf", "-i", "eth0"]);
    let words = ["-I", "eth0", "-T", "A", "-t", "3000", "shelf"];
    run_until(&site.containers[0], "llmnr-query", &words, |text| {
        text.contains("10.0.0.10")
    });
}

/// A service request of RFC 2608 section 8.1: header and body.
fn service_request() -> Vec<u8> {
    let body = [
        // No previous responders; the service type; the scope; no predicate and no SPI.
        &b"\x00\x00\x00\x0fservice:printer\x00\x07DEFAULT\x00\x00\x00\x00"[..],
    ]
    .concat();
    let len = 16 + body.len() as u8;
    // Version 2, SrvRqst, length, REQUEST MCAST, no extension, XID 7, language.
    let header = [2, 1, 0, 0, len, 0x20, 0, 0, 0, 0, 0, 7, 0, 2, b'e', b'n'];
    [&header[..], &body].concat()
}

/// Its reply of section 8.2, with one URL.
fn service_reply() -> Vec<u8> {
    let url = b"service:printer:lpr://10.0.0.10/queue";
    let entry = [&[0, 0xff, 0xff, 0, url.len() as u8][..], url, &[0]].concat();
    let len = (16 + 4 + entry.len()) as u8;
    let header = [2, 2, 0, 0, len, 0, 0, 0, 0, 0, 0, 7, 0, 2, b'e', b'n'];
    [&header[..], &[0, 0, 0, 1], &entry].concat()
}

/// Debian 12 has no program of SLP. The messages are those of RFC 2608.
fn slp_service_is_found(lab: &Lab) {
    let site = site(lab, 1);
    let _router = start(lab, &site, &discovery("\"slp\"", ""));
    let agent = Device::join(&site.device, "239.255.255.253:427");
    let socket = asker(&site.containers[0], "0.0.0.0:0");
    let request = service_request();
    assert_eq!(request.len(), usize::from(request[4]));
    socket
        .send_to(&request, "239.255.255.253:427")
        .expect("a request");
    let mut received = Vec::new();
    eventually("the reply", true, || {
        agent.answer(&service_reply());
        received.extend(answers(&socket));
        !received.is_empty()
    });
    let expected = (service_reply(), "10.0.0.10:427".parse::<SocketAddr>());
    assert_eq!((received[0].0.clone(), Ok(received[0].1)), expected);
}

/// The announcement of a session arrives in the container from the address of its announcer, which
/// is part of its identity (RFC 2974 section 6).
fn sap_announcement_keeps_its_source(lab: &Lab) {
    let site = site(lab, 1);
    let _router = start(lab, &site, &discovery("\"sap\"", ""));
    let settings = lab.file("sap.conf");
    let text = "[global]\nsap_delay=1\n[program]\nname=news\nuser=a\nmachine=b\nsite=c\n\
        address=239.1.2.3\nport=5004\n";
    std::fs::write(&settings, text).expect("settings");
    site.device.ip("route add 224.0.0.0/4 dev eth0");
    let file = settings.to_str().expect("a path");
    let server = site.device.spawn(lab, "sapserver", &["-c", file]);
    let listener = Device::join(&site.containers[0], "224.2.127.254:9875");
    let mut received = Vec::new();
    let arrived = wait_until(Duration::from_secs(30), || {
        received.extend(answers(&listener.socket));
        !received.is_empty()
    });
    assert!(arrived, "{}{}", server.stdout(), server.stderr());
    assert_eq!(
        received[0].1.ip(),
        SocketAddr::from(([10, 0, 0, 10], 0)).ip()
    );
    assert!(String::from_utf8_lossy(&received[0].0).contains("s=news"));
}
