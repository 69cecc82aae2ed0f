//! Clients that use more than their share of a server.

use std::future::poll_fn;
use std::io::Read;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::SendStream;
use h2::client::{ResponseFuture, SendRequest};
use http::Request;
use tokio::net::TcpSocket;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::{JOINED, POOL, Process, block_on};

const ASSIGNED: &str = "/mnat-ds/data/ietf-mnat:assigned-channels";

/// Two clients on this machine.
const GREEDY: &str = "127.0.0.2";
const MODEST: &str = "127.0.0.1";
/// The longest body that a server accepts.
const MAX_BODY: usize = 1 << 20;
/// How long a client waits. Slow bodies and idle connections last longer.
const PATIENCE: Duration = Duration::from_secs(20);

type Sender = SendRequest<Bytes>;

fn tls_config(server: &Process) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for ca in CertificateDer::pem_file_iter(server.files.path("ca.pem")).unwrap() {
        roots.add(ca.unwrap()).unwrap();
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// Opens a connection from an address of this machine. Returns `None` if that fails or takes too
/// long. The connection answers pings.
async fn connect(server: &Process, from: &str) -> Option<Sender> {
    let connected = async {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
        let address = ([127, 0, 0, 1], server.port).into();
        let tcp = socket.connect(address).await.ok()?;
        let name = ServerName::try_from("localhost").unwrap();
        let tls = TlsConnector::from(tls_config(server));
        let tls = tls.connect(name, tcp).await.ok()?;
        let (sender, connection) = h2::client::handshake(tls).await.ok()?;
        tokio::spawn(connection);
        Some(sender)
    };
    timeout(PATIENCE, connected).await.ok().flatten()
}

/// Sends a request with this body. Returns the status of the answer; `None` if there is none in time.
async fn put(sender: &mut Sender, body: Bytes) -> Option<u16> {
    let answered = async {
        let (response, mut stream) = begin(sender, put_of("x"), false).await?;
        stream.send_data(body, true).ok()?;
        Some(response.await.ok()?.status().as_u16())
    };
    timeout(PATIENCE, answered).await.ok().flatten()
}

/// The request for joins of a watcher.
fn put_of(id: &str) -> Request<()> {
    let url = format!("https://localhost{JOINED}/watcher={id}");
    Request::put(url).body(()).unwrap()
}

/// Sends the head of a request, which is all of it if `is_whole`.
async fn begin(
    sender: &mut Sender,
    request: Request<()>,
    is_whole: bool,
) -> Option<(ResponseFuture, SendStream<Bytes>)> {
    poll_fn(|cx| sender.poll_ready(cx)).await.ok()?;
    sender.send_request(request, is_whole).ok()
}

/// Returns the number of connections that the server closed for a reason.
fn closed(server: &Process, reason: &str) -> u32 {
    let text = server.http_get("/metrics");
    let name = format!("mcastor_mnat_closed_connections_total{{reason=\"{reason}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    line.expect("a counter").parse().unwrap()
}

/// Waits until the server has closed at least `count` connections for a reason.
async fn wait_closed(server: &Process, reason: &str, count: u32) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while closed(server, reason) < count {
        assert!(Instant::now() < deadline, "{}", server.http_get("/metrics"));
        sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the log has this text.
async fn wait_logged(server: &Process, text: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !server.log.lock().unwrap().contains(text) {
        assert!(Instant::now() < deadline, "{}", server.log.lock().unwrap());
        sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn client_with_all_connections_does_not_lock_out_others() {
    // The server keeps half of them for itself.
    const OPEN_FILES: usize = 128;
    const LIMIT: usize = OPEN_FILES / 2;
    let options = ["--http", "127.0.0.1:0"];
    let server = Process::start_with(POOL, &options, Some(OPEN_FILES));
    block_on(async {
        // Idle for longer than all others.
        let mut early = connect(&server, MODEST).await.expect("a connection");
        let mut greedy = Vec::new();
        for n in 0..2 * LIMIT {
            // A request makes a connection the last of its client that gives way.
            if n == LIMIT - 1 || n == LIMIT + LIMIT / 2 {
                let status = put(&mut greedy[0], Bytes::from_static(b"{}")).await;
                assert_eq!(status, Some(400), "after {n} connections");
            }
            let Some(sender) = connect(&server, GREEDY).await else {
                break;
            };
            greedy.push(sender);
        }
        let late = connect(&server, MODEST).await;
        let mut late = late.expect("a place for a client with one connection");
        for client in [&mut late, &mut early] {
            let status = put(client, Bytes::from_static(b"{}")).await;
            assert_eq!(status, Some(400), "{}", server.log.lock().unwrap());
        }
        assert_eq!(greedy.len(), 2 * LIMIT);
        wait_closed(&server, "evicted", LIMIT as u32).await;
        wait_logged(&server, &format!("those of {GREEDY}")).await;
    });
}

#[test]
fn unfinished_bodies_do_not_delay_those_of_others() {
    let server = Process::start(POOL, &["--http", "127.0.0.1:0"]);
    block_on(async {
        let mut modest = connect(&server, MODEST).await.expect("a connection");
        let body = Bytes::from(vec![b' '; MAX_BODY - 1]);
        let mut unfinished = Vec::new();
        // 80 MiB, more than the server keeps.
        for _ in 0..5 {
            let mut sender = connect(&server, GREEDY).await.expect("a connection");
            for _ in 0..16 {
                let request = begin(&mut sender, put_of("x"), false).await;
                let Some((response, mut stream)) = request else {
                    break;
                };
                if stream.send_data(body.clone(), false).is_ok() {
                    unfinished.push((response, stream));
                }
            }
            let status = put(&mut modest, body.slice(..200_000)).await;
            assert_eq!(
                status,
                Some(400),
                "the greedy client has {}",
                unfinished.len()
            );
        }
        wait_closed(&server, "body_memory", 1).await;
        let status = put(&mut modest, body.clone()).await;
        assert_eq!(status, Some(400));
    });
}

#[test]
fn unread_answers_are_given_up_if_they_take_too_much_memory() {
    // An answer has 3.2 MB; all together have more than the server keeps.
    const JOINS: usize = 18_000;
    let pool = r#"{"group-pool": {"ranges": [
        {"group-range": "239.0.0.0/8", "source-range": "10.9.1.2"}]}}"#;
    let server = Process::start(pool, &["--http", "127.0.0.1:0"]);
    block_on(async {
        let mut modest = connect(&server, MODEST).await.expect("a connection");
        let mut client = server.client();
        let id = client.watcher().await;
        let sources: Vec<String> = (0..JOINS)
            .map(|n| format!("10.1.{}.{}", n / 200, n % 200 + 1))
            .collect();
        let joined: Vec<(&str, &str)> = sources.iter().map(|s| (s.as_str(), "232.1.1.1")).collect();
        assert_eq!(client.join(&id, &joined).await, 201);
        let poll = Request::get(format!("https://localhost{ASSIGNED}/watcher={id}"));
        let poll = poll.header("prefer", "wait=1").body(()).unwrap();
        let mut greedy = Vec::new();
        for _ in 0..7 {
            greedy.push(connect(&server, GREEDY).await.expect("a connection"));
        }
        let mut unread = Vec::new();
        for sender in &mut greedy {
            for _ in 0..16 {
                unread.extend(begin(sender, poll.clone(), true).await);
            }
        }
        wait_closed(&server, "answer_memory", 1).await;
        assert_eq!(put(&mut modest, Bytes::from_static(b"{}")).await, Some(400));
    });
}

#[test]
fn connection_is_closed_if_the_handshake_takes_too_long() {
    let server = Process::start(POOL, &["--http", "127.0.0.1:0"]);
    let mut silent = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    let limit = Some(Duration::from_secs(40));
    silent.set_read_timeout(limit).unwrap();
    assert_eq!(silent.read(&mut [0; 16]).unwrap(), 0);
    block_on(wait_closed(&server, "handshake_timeout", 1));
}
