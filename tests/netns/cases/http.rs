//! The HTTP server and its clients: hostile ones, foreign hosts, and a UNIX socket.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{cases, route, star_v4};
use crate::lab::{
    Capture, Injector, Lab, Ns, NumberedStream, Router, Star, Udp, eventually, http,
    received_in_order,
};

cases!("http":
    unread_pipelined_requests_do_not_affect_others,
    idle_connections_give_way_to_new_ones,
    late_request_is_counted,
    unread_answer_times_out,
    only_the_first_request_of_a_connection_is_answered,
    foreign_host_is_refused,
    api_can_be_turned_off,
    unix_socket_serves_http,
);

const ADDRESS: &str = "127.0.0.1:9464";
const GROUP: &str = "225.1.2.3";
const REFUSED: &str = "mcastor_http_refused_total";

/// Opens connections from inside `ns` and writes `request` to each.
fn connect(ns: &Ns, count: usize, request: &str) -> Vec<TcpStream> {
    let address: SocketAddr = ADDRESS.parse().expect("an address");
    ns.enter(|| {
        let connect = |_| {
            let mut stream = TcpStream::connect(address).expect("a connection");
            let timeout = Some(Duration::from_millis(200));
            stream.set_write_timeout(timeout).expect("a timeout");
            // The server need not accept all of it.
            let _ = stream.write_all(request.as_bytes());
            stream
        };
        (0..count).map(connect).collect()
    })
}

/// Requests the probes until `stop` is set. Returns how many there were, and the longest wait.
fn probe(ns: &Ns, stop: &AtomicBool) -> (usize, Duration) {
    let address: SocketAddr = ADDRESS.parse().expect("an address");
    let (mut probes, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Acquire) {
        for path in ["/healthz", "/readyz"] {
            let started = Instant::now();
            let answer = http::get(ns, address, path);
            let took = started.elapsed();
            let status = answer.map(|answer| answer.status);
            assert!(
                matches!(status, Ok(200)),
                "{path}: {status:?} after {took:?}"
            );
            probes += 1;
            longest = longest.max(took);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    (probes, longest)
}

/// Starts a router with more than 500 kB of metrics: packets of many routes have been sent. Route
/// `r` forwards [`GROUP`].
fn start_with_large_metrics(lab: &Lab) -> (Star, Router) {
    const ROUTES: u32 = 4_000;
    let star = Star::v4(lab, 1);
    let groups = (0..ROUTES).map(|n| format!("239.7.{}.{}", n / 250, n % 250));
    // The stored counters take memory of their own.
    let mut toml = "[state]\ndir = \"off\"\n".to_owned();
    toml += &route("r", "in", "", GROUP, &["out1"], "");
    for (n, group) in groups.clone().enumerate() {
        let name = format!("route number {n}");
        toml += &route(&name, "in", "", &group, &["out1"], "join = false\n");
    }
    let router = Router::start(lab, &star.rtr, &toml);
    let inject = Injector::new(&star.src, "eth0");
    for (n, group) in (1u32..).zip(groups) {
        inject.send(&Udp::new("10.0.0.10:9", &format!("{group}:5000"), "x").frame());
        if n.is_multiple_of(500) {
            let labels = [("iface", "out1")];
            router.expect_metric(
                "mcastor_interface_transmitted_packets_total",
                &labels,
                n.into(),
            );
        }
    }
    let size = router.get("/metrics").expect("metrics").body.len();
    assert!(size > 500_000, "{size} bytes of metrics");
    println!("{size} bytes of metrics");
    (star, router)
}

/// Clients send many requests for large answers and read nothing. Memory stays bounded, probes are
/// answered, a stream loses nothing, and other clients still get their metrics afterwards.
fn unread_pipelined_requests_do_not_affect_others(lab: &Lab) {
    const CONNECTIONS: usize = 64;
    let (star, router) = start_with_large_metrics(lab);
    let capture = Capture::new(&star.rcv, "eth1");
    let stream = NumberedStream::start(&star.src, "eth0", "10.0.0.10:9", "225.1.2.3:5000", 500);
    stream.wait_for_more(100);
    router.program.reset_peak_rss();
    let before = router.program.rss();
    let stop = AtomicBool::new(false);
    let (probes, longest) = std::thread::scope(|scope| {
        let prober = scope.spawn(|| probe(&star.rtr, &stop));
        let requests = "GET /metrics HTTP/1.1\r\nHost: router\r\n\r\n".repeat(2_000);
        let mut open = Vec::new();
        for _ in 0..3 {
            open.extend(connect(&star.rtr, CONNECTIONS, &requests));
            std::thread::sleep(Duration::from_secs(2));
        }
        stop.store(true, Ordering::Release);
        prober.join().expect("the probes")
    });
    let grown = router.program.peak_rss().saturating_sub(before);
    println!(
        "memory grew by {} KiB; {probes} probes, the longest took {longest:?}",
        grown >> 10
    );
    assert!(grown < 32 << 20, "memory grew by {grown} bytes");
    assert!(probes > 50, "{probes} probes");
    assert!(longest < Duration::from_secs(1), "a probe took {longest:?}");
    let sent = stream.finish();
    capture.expect(GROUP, sent as usize);
    assert_eq!(received_in_order(&capture, GROUP).len(), sent as usize);
    eventually("metrics are served again", true, || {
        router
            .get("/metrics")
            .is_ok_and(|answer| answer.status == 200)
    });
    let refused = |reason| router.metric(REFUSED, &[("reason", reason)]);
    assert!(refused("pipelined") >= (3 * CONNECTIONS) as f64);
    assert!(
        refused("busy") > 0.0,
        "memory for unread answers had no limit"
    );
    assert!(refused("write_timeout") > 0.0);
    let log = router.program.stderr();
    let lines = log.lines().filter(|line| line.contains(" http: ")).count();
    assert!((3..12).contains(&lines), "{lines} lines:\n{log}");
}

fn idle_connections_give_way_to_new_ones(lab: &Lab) {
    let (star, router) = star_v4(lab, 1);
    let mut idle = connect(&star.rtr, 400, "GET /metrics HTTP/1.1\r\n");
    let started = Instant::now();
    assert_eq!(router.get("/healthz").expect("an answer").status, 200);
    let took = started.elapsed();
    assert!(took < Duration::from_secs(1), "a probe took {took:?}");
    // 256 connections are kept, and each request of this test takes a further one.
    let evicted = router.metric(REFUSED, &[("reason", "evicted")]);
    assert!((144.0..=160.0).contains(&evicted), "{evicted} were evicted");
    let mut first = idle.remove(0);
    assert_eq!(first.read(&mut [0]).unwrap_or(0), 0, "the oldest is open");
    let mut newest = idle.pop().expect("connections");
    newest
        .write_all(b"Host: a\r\n\r\n")
        .expect("an open connection");
    let mut answer = String::new();
    newest.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

/// A client that sends half a request is answered with 408, and counted.
fn late_request_is_counted(lab: &Lab) {
    let (star, router) = star_v4(lab, 1);
    let mut late = connect(&star.rtr, 1, "GET /metrics HTTP/1.1\r\nHost: router\r\n");
    router.expect_metric(REFUSED, &[("reason", "request_timeout")], 1);
    let mut answer = String::new();
    late[0].read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

/// A slow reader holds no memory of the server for longer than the timeout.
fn unread_answer_times_out(lab: &Lab) {
    let (star, router) = start_with_large_metrics(lab);
    let whole = router.get("/metrics").expect("metrics").body.len();
    let request = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut stalled = connect(&star.rtr, 1, request).remove(0);
    router.expect_metric(REFUSED, &[("reason", "write_timeout")], 1);
    let mut received = Vec::new();
    let _ = stalled.read_to_end(&mut received);
    assert!(
        received.len() < whole,
        "{} of {whole} bytes",
        received.len()
    );
}

fn only_the_first_request_of_a_connection_is_answered(lab: &Lab) {
    let (star, router) = star_v4(lab, 1);
    let address = ADDRESS.parse().expect("an address");
    let request = |text: &str| http::request(&star.rtr, address, text).expect("an answer");
    let two = "GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2);
    let answer = request(&two);
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (200, "{\"status\":\"ready\"}")
    );
    assert!(answer.head.contains("connection: close"), "{}", answer.head);
    let head = "POST /readyz HTTP/1.1\r\nHost: a\r\n";
    for body in [
        "Content-Length: 5\r\n\r\nhello",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello",
    ] {
        let started = Instant::now();
        let answer = request(&format!("{head}{body}"));
        assert_eq!(answer.status, 404);
        assert!(
            answer
                .body
                .starts_with("only GET is served; there are /metrics")
        );
        let took = started.elapsed();
        assert!(took < Duration::from_secs(1), "{body:?} took {took:?}");
    }
    router.expect_metric(REFUSED, &[("reason", "pipelined")], 3);
    let long = format!("GET /readyz HTTP/1.1\r\nA: {}\r\n\r\n", "a".repeat(20_000));
    let answer = http::request(&star.rtr, address, &long);
    assert!(answer.is_err() || answer.is_ok_and(|a| a.status == 0));
    router.expect_metric(REFUSED, &[("reason", "long_head")], 1);
}

fn foreign_host_is_refused(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let toml = "[http]\nhosts = [\"metrics.example.net\"]\n".to_string()
        + &route("r", "in", "", GROUP, &["out1"], "");
    let router = Router::start(lab, &star.rtr, &toml);
    let address = ADDRESS.parse().expect("an address");
    let status = |line: &str, host: &str| {
        let text = format!("GET {line} HTTP/1.1\r\n{host}\r\n");
        let answer = http::request(&star.rtr, address, &text).expect("an answer");
        if answer.status == 421 {
            assert!(answer.body.contains("[http] hosts"), "{}", answer.body);
        }
        answer.status
    };
    let paths = ["/api/v1/routes", "/metrics", "/healthz", "/nothing"];
    for path in paths {
        assert_eq!(status(path, "Host: evil.example:9464\r\n"), 421, "{path}");
    }
    assert_eq!(
        status("http://evil.example/metrics", "Host: localhost\r\n"),
        421
    );
    let two = "Host: a\r\nHost: evil.example\r\n";
    assert_eq!(status("/metrics", two), 400, "two hosts");
    router.expect_metric(REFUSED, &[("reason", "host")], 5);
    for host in [
        "",
        "localhost",
        "[::1]:9464",
        "10.0.0.1",
        "mcastor:80",
        "metrics.example.net",
    ] {
        assert_eq!(
            status("/api/v1/routes", &format!("Host: {host}\r\n")),
            200,
            "{host}"
        );
    }
    let text = "GET /api/v1/routes HTTP/1.0\r\n\r\n";
    let answer = http::request(&star.rtr, address, text).expect("an answer");
    assert_eq!(answer.status, 200, "no host");
    let log = router.program.stderr();
    assert_eq!(log.matches("evil.example").count(), 1, "{log}");
}

fn api_can_be_turned_off(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let toml = "[http]\napi = false\n".to_string() + &route("r", "in", "", GROUP, &["out1"], "");
    let router = Router::start(lab, &star.rtr, &toml);
    for path in [
        "/api/v1/routes",
        "/api/v1/flows?dropped=true",
        "/api/v1/x/y",
    ] {
        let answer = router.get(path).expect("an answer");
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.body.contains("api = false"), "{}", answer.body);
    }
    let answer = router.get("/nothing").expect("an answer");
    assert_eq!((answer.status, answer.body.contains("/api")), (404, false));
    assert_eq!(router.get("/metrics").expect("metrics").status, 200);
}

/// The file is private and is removed at the end. Any host is accepted.
fn unix_socket_serves_http(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let path = lab.file("http.sock");
    let toml = format!("[http]\nlisten = \"unix:{}\"\n", path.display())
        + &route("r", "in", "", GROUP, &["out1"], "");
    let router = Router::launch(lab, &star.rtr, &toml, &[]);
    let get = |line: &str| {
        let stream = UnixStream::connect(&path).ok()?;
        let request = format!("GET {line} HTTP/1.1\r\nHost: any.example\r\n\r\n");
        http::exchange(stream, &request).ok()
    };
    eventually("/readyz answers", Some(200), || {
        get("/readyz").map(|answer| answer.status)
    });
    let mode = std::fs::metadata(&path)
        .expect("the socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let metrics = get("/metrics").expect("metrics").body;
    assert!(metrics.contains("mcastor_build_info"), "{metrics}");
    assert_eq!(get("/api/v1/routes").map(|answer| answer.status), Some(200));
    assert!(router.get("/readyz").is_err(), "a TCP port is open too");
    router.stop();
    assert!(!path.exists());
}
