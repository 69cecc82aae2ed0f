//! The MNAT client against a server with TLS and HTTP/2: recorded exchanges, certificates and
//! faults.

#[allow(dead_code)] // other test binaries use the rest
#[path = "mnat/server.rs"]
mod server;

#[path = "mnat/replay.rs"]
mod replay;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mcastor::mnat::Target;
use mcastor::mnat::client::{MnatClient, MnatClientError};
use mcastor::mnat::protocol::{MAX_RESPONSE_LEN, MnatRequest, Op};
use mcastor::mnat::{Channel, Machine, MappingChange, MnatEvent, MnatRole};
use serde_json::json;
use server::{Ca, CloseAt, ClosingServer, Files, ReceivedRequest, Reply, Server, Tls};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

fn target(server: &Server, files: &Files) -> Target {
    target_at(server.address, files)
}

fn target_at(address: SocketAddr, files: &Files) -> Target {
    Target {
        host: "localhost".into(),
        port: address.port(),
        ca: Some(files.path("ca.pem")),
        cert: Some(files.path("client.pem")),
        key: None,
        only_if_present: true,
    }
}

fn tls(ca: &Ca) -> Tls {
    Tls {
        identity: ca.sign(&["localhost"], 0),
        clients: None,
        alpn: b"h2",
    }
}

fn watcher() -> Reply {
    let body = json!({ "watcher-id": "A", "refresh-period": 20 });
    Reply::Answer(200, body.to_string().into_bytes())
}

async fn request_watcher_id(client: &mut MnatClient) -> Result<(u16, Vec<u8>), MnatClientError> {
    client.send(&MnatRequest::new_watcher()).await
}

/// Returns the text of an error. Texts name no web sites, such as the manual of rustls.
fn error_text(result: Result<(u16, Vec<u8>), MnatClientError>) -> String {
    let text = result.expect_err("the request succeeded").to_string();
    assert!(!text.contains("://"), "{text}");
    text
}

/// Asserts that an error names the documentation, and contains `expected`.
#[track_caller]
fn assert_hint(why: &str, expected: &str) {
    let documented = why.contains("see docs/mnat.md#certificates");
    assert!(documented && why.contains(expected), "{why}");
}

#[test]
fn server_certificate_is_verified_with_the_ca_on_disk() {
    let (ca, other) = (Ca::new(), Ca::new());
    let server = Server::local(tls(&ca), |_| watcher());
    let files = Files::new();
    block_on(async {
        let mut client = MnatClient::new(target(&server, &files));
        files.put("ca.pem", &other.pem());
        let why = error_text(request_watcher_id(&mut client).await);
        assert!(
            why.contains("not signed by a CA in") && why.contains("ca.pem"),
            "{why}"
        );
        files.put("ca.pem", "nonsense");
        let why = error_text(request_watcher_id(&mut client).await);
        assert!(
            why.contains("ca.pem: the file contains no certificate"),
            "{why}"
        );
        files.put("ca.pem", &ca.pem());
        assert_eq!(request_watcher_id(&mut client).await.unwrap().0, 200);
    });
}

#[test]
fn server_certificate_errors_have_distinct_texts() {
    let ca = Ca::new();
    let files = Files::new();
    files.put("ca.pem", &ca.pem());
    let error_with = |names: &[&str], days, alpn: &'static [u8]| {
        let tls = Tls {
            identity: ca.sign(names, days),
            clients: None,
            alpn,
        };
        let server = Server::local(tls, |_| watcher());
        let mut client = MnatClient::new(target(&server, &files));
        error_text(block_on(request_watcher_id(&mut client)))
    };
    let why = error_with(&["mnat.example.net"], 0, b"h2");
    assert!(why.contains("it is not valid for localhost"), "{why}");
    let why = error_with(&["localhost"], -1, b"h2");
    assert!(why.contains("it has expired"), "{why}");
    let why = error_with(&["localhost"], 0, b"http/1.1");
    assert!(why.contains("does not support HTTP/2"), "{why}");
}

#[test]
fn errors_name_missing_file_and_closed_port() {
    let ca = Ca::new();
    let server = Server::local(tls(&ca), |_| watcher());
    let files = Files::new();
    files.put("ca.pem", &ca.pem());
    let required = Target {
        only_if_present: false,
        ..target(&server, &files)
    };
    let why = error_text(block_on(request_watcher_id(&mut MnatClient::new(required))));
    assert!(why.contains("client.pem"), "{why}");
    let closed = Target {
        port: 1,
        ..target(&server, &files)
    };
    let why = error_text(block_on(request_watcher_id(&mut MnatClient::new(closed))));
    assert!(why.contains("cannot connect to localhost:1"), "{why}");
}

#[test]
fn client_certificate_is_sent_and_reloaded_on_change() {
    let (ca, clients) = (Ca::new(), Ca::new());
    let (first, second) = (clients.sign(&["one"], 0), clients.sign(&["two"], 0));
    let untrusted = Ca::new().sign(&["one"], 0);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let tls = Tls {
        clients: Some(clients),
        ..tls(&ca)
    };
    let recorder = seen.clone();
    let server = Server::local(tls, move |request: ReceivedRequest| {
        recorder.lock().unwrap().push(request.identity);
        watcher()
    });
    let files = Files::new();
    files.put("ca.pem", &ca.pem());
    block_on(async {
        let mut client = MnatClient::new(target(&server, &files));
        let why = error_text(request_watcher_id(&mut client).await);
        assert!(why.contains("rejects the connection"), "{why}");
        assert_hint(&why, "may require a client certificate");
        let path = files.put("client.pem", &untrusted.pem);
        let why = error_text(request_watcher_id(&mut client).await);
        let named = format!("may not accept the client certificate {}", path.display());
        assert_hint(&why, &named);
        files.put("client.pem", &first.pem);
        request_watcher_id(&mut client).await.unwrap();
        request_watcher_id(&mut client).await.unwrap();
        // An incomplete file: the connection continues to work.
        files.put("client.pem", &second.pem[..second.pem.len() / 2]);
        request_watcher_id(&mut client).await.unwrap();
        files.put("client.pem", &second.pem);
        request_watcher_id(&mut client).await.unwrap();
        // The key belongs to another certificate.
        let (cert, _) = first.pem.split_once("-----BEGIN PRIVATE").unwrap();
        let (_, key) = second.pem.split_once("-----BEGIN PRIVATE").unwrap();
        files.put("client.pem", &format!("{cert}-----BEGIN PRIVATE{key}"));
        let mut new_client = MnatClient::new(target(&server, &files));
        let why = error_text(request_watcher_id(&mut new_client).await);
        assert!(why.contains("cannot be used"), "{why}");
    });
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 4);
    assert!(seen[0] == seen[1] && seen[1] == seen[2] && seen[2] != seen[3]);
}

/// The script of the prototype makes such certificates under OpenSSL 3.
#[test]
fn version_1_client_certificate_is_sent() {
    let (ca, clients) = (Ca::new(), Ca::new());
    let server = ClosingServer::start(ca.sign(&["localhost"], 0), CloseAt::Finished);
    let identity = clients.sign_version_1("one");
    let other = clients.sign_version_1("two");
    let files = Files::new();
    files.put("ca.pem", &ca.pem());
    let path = files.put("client.pem", &identity.pem);
    let request = || {
        let mut client = MnatClient::new(target_at(server.address, &files));
        error_text(block_on(request_watcher_id(&mut client)))
    };
    assert_hint(&request(), "which has X.509 version 1");
    let received = || server.received.lock().unwrap().clone();
    assert_eq!(received(), [Some(identity.der().to_vec())]);
    // The key belongs to another certificate.
    let (cert, _) = identity.pem.split_once("-----BEGIN PRIVATE").unwrap();
    let (_, key) = other.pem.split_once("-----BEGIN PRIVATE").unwrap();
    files.put("client.pem", &format!("{cert}-----BEGIN PRIVATE{key}"));
    let why = request();
    let unusable = format!("the client certificate {} cannot be used", path.display());
    assert!(why.contains(&unusable), "{why}");
    assert_eq!(received().len(), 1);
    // A server that refuses it, as rustls does.
    files.put("client.pem", &identity.pem);
    let tls = Tls {
        clients: Some(clients),
        ..tls(&ca)
    };
    let server = Server::local(tls, |_| watcher());
    let mut client = MnatClient::new(target(&server, &files));
    let why = error_text(block_on(request_watcher_id(&mut client)));
    assert!(why.contains("rejects the connection"), "{why}");
    assert_hint(
        &why,
        "which has X.509 version 1; make a version 3 certificate",
    );
}

#[test]
fn version_1_server_certificate_is_refused_with_its_reason() {
    let ca = Ca::new();
    let server = ClosingServer::start(ca.sign_version_1("localhost"), CloseAt::Finished);
    let files = Files::new();
    files.put("ca.pem", &ca.pem());
    let mut client = MnatClient::new(target_at(server.address, &files));
    let why = error_text(block_on(request_watcher_id(&mut client)));
    assert_hint(&why, "it has X.509 version 1, but TLS requires version 3");
}

/// The server closes TCP without an alert, as the prototype's does.
#[test]
fn closed_handshake_names_the_likely_cause() {
    let ca = Ca::new();
    let files = Files::new();
    files.put("ca.pem", &ca.pem());
    for at in [CloseAt::Start, CloseAt::ServerHello, CloseAt::Finished] {
        let server = ClosingServer::start(ca.sign(&["localhost"], 0), at);
        let request = || {
            let mut client = MnatClient::new(target_at(server.address, &files));
            let why = error_text(block_on(request_watcher_id(&mut client)));
            let text = "closed the connection in the TLS handshake without a reason";
            assert!(why.contains(text), "{at:?}: {why}");
            why
        };
        let _ = std::fs::remove_file(files.path("client.pem"));
        if at == CloseAt::Start {
            let why = request();
            assert!(why.contains("not be a TLS server"), "{why}");
            continue;
        }
        assert_hint(&request(), "it may require a client certificate");
        let path = files.put("client.pem", &Ca::new().sign(&["one"], 0).pem);
        let refused = format!("may not accept the client certificate {}", path.display());
        assert_hint(&request(), &refused);
    }
}

#[test]
fn client_reconnects_after_every_kind_of_failure() {
    let ca = Ca::new();
    let long = vec![b' '; MAX_RESPONSE_LEN + 1];
    let mut replies = vec![
        Reply::Drop,
        Reply::Reset,
        Reply::GoAway,
        Reply::Late(Duration::from_secs(60), 200, vec![]),
        Reply::Answer(200, long),
    ];
    let expected = ["dropped", "dropped", "dropped", "timeout", "too_long"];
    replies.reverse();
    let mut broken = false;
    let server = Server::local(tls(&ca), move |_| {
        broken = !broken;
        if broken && let Some(reply) = replies.pop() {
            return reply;
        }
        watcher()
    });
    let files = Files::new();
    files.put("ca.pem", &ca.pem());
    block_on(async {
        let mut client =
            MnatClient::new(target(&server, &files)).with_timeout(Duration::from_secs(2));
        for label in expected {
            let error = request_watcher_id(&mut client).await.expect_err(label);
            assert_eq!(error.label(), label, "{error}");
            assert!(!error.to_string().contains("://"), "{error}");
            assert_eq!(request_watcher_id(&mut client).await.unwrap().0, 200);
        }
        server.set_open(false);
        let error = request_watcher_id(&mut client).await.expect_err("closed");
        assert!(["dropped", "tls"].contains(&error.label()), "{error}");
        server.set_open(true);
        assert_eq!(request_watcher_id(&mut client).await.unwrap().0, 200);
    });
}

/// Returns the `n`th global channel and its local channel.
fn mapping(n: usize) -> (Channel, Channel) {
    let source = format!("23.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255);
    let group = format!("239.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255);
    (
        Channel::parse(Some(&source), "232.1.1.1").unwrap(),
        Channel::parse(Some("10.9.1.2"), &group).unwrap(),
    )
}

/// Requests, responses and comparison of 10,000 mappings over TLS.
#[test]
fn ten_thousand_mappings_are_handled_within_a_second() {
    const MANY: usize = 10_000;
    let ca = Ca::new();
    let changed = Arc::new(Mutex::new(false));
    let change = changed.clone();
    let body = |changed: bool| {
        let pair = |c: Channel| json!({ "source": c.source(), "group": c.group().to_string() });
        let entry = |n: usize| {
            let (global, mut local) = mapping(n + 1);
            if changed && n == 4711 {
                local = mapping(MANY + 7).1;
            }
            json!({ "id": n, "state": "ietf-mnat:assigned-local-multicast",
                "global-subscription": pair(global), "local-mapping": pair(local) })
        };
        let entries: Vec<_> = (0..MANY).map(entry).collect();
        let body = json!({ "ietf-mnat:watcher": [{ "id": "A", "mapped-sg": entries }] });
        body.to_string().into_bytes()
    };
    let (before, after) = (body(false), body(true));
    let server = Server::local(tls(&ca), move |request: ReceivedRequest| {
        match request.method.as_str() {
            "GET" if *change.lock().unwrap() => Reply::Answer(200, after.clone()),
            "GET" => Reply::Answer(200, before.clone()),
            "PUT" => {
                assert!(request.body.len() < 1 << 20, "{}", request.body.len());
                Reply::Answer(204, vec![])
            }
            _ => watcher(),
        }
    });
    let files = Files::new();
    files.put("ca.pem", &ca.pem());
    let joins: BTreeSet<Channel> = (1..=MANY).map(|n| mapping(n).0).collect();
    block_on(async {
        let mut client = MnatClient::new(target(&server, &files));
        let mut now = Instant::now();
        let mut machine = Machine::new(MnatRole::Egress, Duration::from_secs(300), now, 1);
        machine.set_joins(now, &joins);
        let mut polls = 0;
        while polls < 3 {
            now = machine.poll_timeout().unwrap().max(now);
            machine.handle_timeout(now);
            let Some(request) = machine.poll_request(now) else {
                continue;
            };
            let start = Instant::now();
            let (status, body) = client.send(&request).await.unwrap();
            let answered = start.elapsed();
            machine.handle_outcome(now, Ok((status, &body)));
            let took = start.elapsed();
            let changes: Vec<MappingChange> = std::iter::from_fn(|| machine.poll_event())
                .filter_map(|e| match e {
                    MnatEvent::Change(change) => Some(change),
                    _ => None,
                })
                .collect();
            if request.op == Op::Poll {
                polls += 1;
                println!("{MANY} mappings: answered in {answered:?}, compared by {took:?}");
                assert!(took < Duration::from_secs(1), "{took:?}");
                match polls {
                    1 => assert_eq!(changes.len(), MANY),
                    2 => assert_eq!(changes, []),
                    _ => assert!(matches!(changes[..], [MappingChange::Swap { .. }])),
                }
                *changed.lock().unwrap() = polls == 2;
            }
        }
    });
}
