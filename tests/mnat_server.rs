//! `mcastor mnat-server` as a process, with clients on this machine.

#[allow(dead_code)] // other test binaries use the rest
#[path = "mnat/server.rs"]
mod server;

#[path = "mnat/limits.rs"]
mod limits;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mcastor::mnat::Target;
use mcastor::mnat::client::{MnatClient, MnatResponse};
use mcastor::mnat::protocol::{MnatRequest, Op};
use serde_json::{Value, json};
use server::{Ca, Files};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

const POOL: &str = r#"{"group-pool": {"ranges": [
    {"group-range": "239.1.1.0/24", "source-range": "10.9.1.2"}]}}"#;

/// A server process with its files.
struct Process {
    child: Child,
    port: u16,
    files: Files,
    arguments: Vec<String>,
    log: Arc<Mutex<String>>,
    open_files: Option<usize>,
}

impl Process {
    fn start(pool: &str, options: &[&str]) -> Self {
        Self::start_with(pool, options, None)
    }

    /// Starts a server with this limit of open files.
    fn start_with(pool: &str, options: &[&str], open_files: Option<usize>) -> Self {
        let files = Files::new();
        let ca = Ca::new();
        files.put("ca.pem", &ca.pem());
        let pem = ca.sign(&["localhost"], 0).pem;
        let cert = files.put("server.pem", &pem);
        let pool = files.put("pool.json", pool);
        let mut arguments: Vec<String> = ["mnat-server", "--listen", "127.0.0.1:0"]
            .map(String::from)
            .into();
        for (flag, path) in [("--cert", &cert), ("--key", &cert), ("--pool", &pool)] {
            arguments.extend([flag.into(), path.display().to_string()]);
        }
        let folder = files.path("").display().to_string();
        arguments.extend(options.iter().map(|o| o.replace("FILES/", &folder)));
        Self::run(files, arguments, open_files)
    }

    fn run(files: Files, arguments: Vec<String>, open_files: Option<usize>) -> Self {
        let binary = std::env::var("MCASTOR_BINARY");
        let binary = binary.unwrap_or_else(|_| env!("CARGO_BIN_EXE_mcastor").into());
        let mut command = match open_files {
            Some(limit) => {
                let mut command = Command::new("prlimit");
                command.arg(format!("--nofile={limit}")).arg(binary);
                command
            }
            None => Command::new(binary),
        };
        let mut child = command
            .args(&arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let port = loop {
            let line = lines.next().expect("the server ended").unwrap();
            println!("{line}");
            log.lock().unwrap().push_str(&format!("{line}\n"));
            if let Some((_, rest)) = line.split_once("https://127.0.0.1:") {
                break rest.split('/').next().unwrap().parse().unwrap();
            }
        };
        let written = log.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                written.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        Self {
            child,
            port,
            files,
            arguments,
            log,
            open_files,
        }
    }

    /// Kills the process and starts it again.
    fn restart(mut self) -> Self {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let files = std::mem::replace(&mut self.files, Files::new());
        Self::run(files, self.arguments.clone(), self.open_files)
    }

    fn client_with(&self, cert: Option<&str>) -> Client {
        self.client_of("ca.pem", cert)
    }

    fn client_of(&self, ca: &str, cert: Option<&str>) -> Client {
        Client(MnatClient::new(Target {
            host: "localhost".into(),
            port: self.port,
            ca: Some(self.files.path(ca)),
            cert: cert.map(|name| self.files.path(name)),
            key: None,
            only_if_present: true,
        }))
    }

    fn client(&self) -> Client {
        self.client_with(None)
    }

    /// Reads a resource of `--http`.
    fn http_get(&self, path: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(20);
        // The address is logged before or after that of the clients.
        let port = loop {
            let log = self.log.lock().unwrap().clone();
            if let Some((_, rest)) = log.split_once("http://127.0.0.1:") {
                break rest.split('/').next().unwrap().to_string();
            }
            assert!(Instant::now() < deadline, "{log}");
            std::thread::sleep(Duration::from_millis(20));
        };
        let mut tcp = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
        write!(tcp, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut text = String::new();
        tcp.read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Client(MnatClient);

const JOINED: &str = "/mnat-ds/data/ietf-mnat:egress-global-joined";
const WATCHING: &str = "/mnat-ds/data/ietf-mnat:ingress-watching";

impl Client {
    /// Sends a request of any form. Panics if there is no answer.
    async fn ask(&mut self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let methods = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"];
        let method = methods.into_iter().find(|m| *m == method).unwrap();
        let body = match body {
            Value::Null => None,
            Value::String(text) => Some(text.clone().into_bytes()),
            other => Some(other.to_string().into_bytes()),
        };
        let request = MnatRequest {
            op: Op::Poll,
            method,
            path: path.into(),
            body,
            wait: None,
        };
        let (status, body) = self.0.send(&request).await.expect("an answer");
        let text = || match body.is_empty() {
            true => Value::Null,
            false => String::from_utf8_lossy(&body).into(),
        };
        (
            status,
            serde_json::from_slice(&body).unwrap_or_else(|_| text()),
        )
    }

    async fn watcher(&mut self) -> String {
        let (_, body) = self.0.send(&MnatRequest::new_watcher()).await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        body["watcher-id"].as_str().unwrap().into()
    }

    async fn join(&mut self, id: &str, joined: &[(&str, &str)]) -> u16 {
        let entries = joined.iter().enumerate();
        let entries = entries.map(
            |(n, (source, group))| json!({ "id": n.to_string(), "source": source, "group": group }),
        );
        let entries: Vec<Value> = entries.collect();
        let body = json!({ "ietf-mnat:watcher": { "id": id, "joined-sg": entries } });
        let path = format!("{JOINED}/watcher={id}");
        self.ask("PUT", &path, &body).await.0
    }

    /// Polls as our ends do. Returns the response and the mappings in it.
    async fn poll(&mut self, id: &str, wait: u64, known: Option<String>) -> (MnatResponse, Value) {
        let request = MnatRequest::poll(id).waiting(Duration::from_secs(wait), known);
        let response = self.0.request(&request).await.unwrap();
        let body: Value = serde_json::from_slice(&response.body).unwrap_or_default();
        let mapped = body["ietf-mnat:watcher"][0]["mapped-sg"].clone();
        (response, mapped)
    }

    async fn mapped(&mut self, id: &str) -> Value {
        self.poll(id, 1, None).await.1
    }
}

fn recording(name: &str) -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mnat/recordings");
    let text = std::fs::read_to_string(folder.join(format!("recorded-{name}.jsonl"))).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.collect()
}

/// Replaces recorded watcher ids in a text by those of the server.
fn replaced(text: &str, ids: &BTreeMap<String, String>) -> String {
    let mut text = text.to_string();
    for (recorded, ours) in ids {
        text = text.replace(recorded, ours);
    }
    text
}

/// The global streams of an answer to a poll, with their states.
fn states(body: &Value) -> Option<BTreeSet<(String, String)>> {
    let mapped = body["ietf-mnat:watcher"][0]["mapped-sg"].as_array()?;
    let row = |m: &Value| {
        let state = m["state"].as_str().unwrap().replace("ietf-mnat:", "");
        (m["global-subscription"].to_string(), state)
    };
    Some(mapped.iter().map(row).collect())
}

/// Sends the recorded requests to a server. Returns each recorded line with the answer.
fn replay(lines: &[Value], pool: &str) -> Vec<(Value, u16, Value)> {
    let server = Process::start(pool, &[]);
    let mut ids = BTreeMap::new();
    let mut answers = Vec::new();
    block_on(async {
        let mut client = server.client();
        for line in lines.iter().filter(|line| line.get("request").is_some()) {
            let request = &line["request"];
            let path = replaced(request["path"].as_str().unwrap(), &ids);
            let body = match &request["body"] {
                Value::String(text) => Value::String(replaced(text, &ids)),
                other => serde_json::from_str(&replaced(&other.to_string(), &ids)).unwrap(),
            };
            let method = request["method"].as_str().unwrap();
            let (status, answer) = client.ask(method, &path, &body).await;
            if let Some(recorded) = line["response"]["body"]["watcher-id"].as_str() {
                let ours = answer["watcher-id"].as_str().unwrap();
                ids.insert(recorded.into(), ours.into());
            }
            if method == "GET" {
                assert_ne!(answer, Value::Null, "GET {path} is answered without a body");
            }
            answers.push((line.clone(), status, answer));
        }
    });
    answers
}

/// The answers that differ from those of the prototype, by method, path and note of the recording.
const OTHER_STATUSES: &[(&str, &str, u16)] = &[
    // The prototype drops the connection.
    ("POST", "wrong path", 404),
    ("PUT", "asm-group join", 204),
    ("PUT", "no joined-sg", 400),
    ("GET", "GET unknown watcher child", 404),
    // The prototype's list has faults.
    ("PUT", "body id differs from URL id", 400),
    ("PUT", "RFC 7951 list form", 204),
    ("PUT", "no module prefix", 204),
    ("POST", "refresh wrong envelope", 204),
    ("POST", "refresh no body", 400),
    // RFC 8040 section 4.5: a PUT creates the resource.
    ("PUT", "PUT on a watcher not in the datastore", 201),
    // Ids are issued by the server only.
    ("POST", "POST self made id", 404),
    ("GET", "all watchers", 403),
    // Subscriptions and YANG libraries are not part of the server.
    ("GET", "ylib", 404),
    ("POST", "establish-subscription", 400),
    ("POST", "establish-subscription 2", 400),
];

/// The same, for lines without a note, by path.
const OTHER_PATHS: &[(&str, u16)] = &[
    (JOINED, 403),
    (WATCHING, 403),
    ("/mnat-ds/data/ietf-mnat:assigned-channels/watcher", 403),
    ("/mnat-ds/data", 403),
    ("/restconf_running/data/ietf-mnat:egress-global-joined", 404),
];

#[test]
fn every_recorded_bad_input_gets_an_answer() {
    let answers = replay(&recording("bad-input"), POOL);
    assert_eq!(answers.len(), 70);
    for (line, status, answer) in answers {
        let (method, path) = (&line["request"]["method"], &line["request"]["path"]);
        let note = line["note"].as_str().unwrap_or_default();
        let by_note = OTHER_STATUSES
            .iter()
            .find(|(m, n, _)| method == m && note == *n);
        let by_path = OTHER_PATHS
            .iter()
            .find(|(p, _)| method == "GET" && path == p);
        let recorded = line["response"]["status"].as_u64().map(|s| s as u16);
        let expected = by_note
            .map(|(.., status)| *status)
            .or(by_path.map(|(_, status)| *status))
            .or(recorded);
        // Both say that the request is wrong.
        let is_client_error = |status: u16| matches!(status, 400 | 404);
        let same_kind = expected.is_some_and(|e| is_client_error(e) && is_client_error(status));
        assert!(
            same_kind || Some(status) == expected,
            "{line}: {status} {answer}"
        );
        if status >= 400 {
            let error = &answer["ietf-restconf:errors"]["error"][0];
            for member in ["error-type", "error-tag", "error-message"] {
                assert!(error[member].is_string(), "{line}: {answer}");
            }
        }
        if let (true, Some(states)) = (recorded.is_some(), states(&line["response"]["body"])) {
            let ours = self::states(&answer).unwrap_or_default();
            assert_eq!(ours, states, "{line}");
        }
    }
}

/// Recorded sessions: the server assigns what the prototype assigns, to the same watchers.
#[test]
fn recorded_sessions_get_the_same_answers() {
    let exhausted = "third (S,G) into a pool of two";
    for (name, pool, sections) in [
        ("monitors", POOL, None),
        ("delete", POOL, None),
        (
            "assignment",
            r#"{"group-pool": {"ranges": [
                {"group-range": "239.1.1.0/31", "source-range": "10.9.1.2"}]}}"#,
            Some(0..14),
        ),
        (
            "assignment",
            r#"{"group-pool": {"ranges": [
                {"group-range": "239.1.1.0/24", "source-range": "asm"}]}}"#,
            Some(14..18),
        ),
        ("assignment", POOL, Some(18..21)),
        (
            "assignment",
            r#"{"group-pool": {"ranges": [
                {"group-range": "239.192.0.0/14", "source-range": "keep"}]}}"#,
            Some(21..25),
        ),
        (
            "assignment",
            r#"{"group-pool": {"ranges": [
                {"group-range": "ff35::8000:0/126", "source-range": "fd00::10/127"}]}}"#,
            Some(25..29),
        ),
    ] {
        let lines = recording(name);
        let lines = match sections {
            Some(range) => &lines[range],
            None => &lines[..],
        };
        for (line, status, answer) in replay(lines, pool) {
            let note = line["note"].as_str().unwrap_or_default();
            let (method, path) = (&line["request"]["method"], &line["request"]["path"]);
            println!("{name} {method} {path} -> {status} {note}");
            let recorded = line["response"]["status"].as_u64().map(|s| s as u16);
            match (note, recorded) {
                (_, None) if note == exhausted => assert_eq!(status, 204),
                // Here that request took effect.
                ("after the failed PUT", _) => assert_eq!(states(&answer).unwrap().len(), 3),
                ("asm pool: GET after a join", _) => {
                    let local = &answer["ietf-mnat:watcher"][0]["mapped-sg"];
                    // Such entries stop the prototype's clients, so they do not get them.
                    assert_eq!(local, &json!([]));
                }
                // After this line, the server differs on purpose: an address is held first, and
                // what is deleted is left.
                ("freed space handed to the unassigned one", _) => {
                    let states = states(&answer).unwrap();
                    let assigned = states.iter().filter(|(_, s)| s.starts_with("assigned"));
                    assert_eq!((states.len(), assigned.count()), (2, 1));
                }
                ("keep: v6 global source with v4 local group", _) => {
                    let states = states(&answer).unwrap();
                    let assigned = states.iter().filter(|(_, s)| s.starts_with("assigned"));
                    assert_eq!((states.len(), assigned.count()), (2, 1), "{answer}");
                }
                ("assignment survives DELETE", _) => {
                    assert_eq!(states(&answer), Some(BTreeSet::new()));
                }
                ("POST with the RFC 7951 list form", _) => assert_eq!(status, 404, "{answer}"),
                ("multi-character monitor id is dropped", _) => {
                    assert_eq!(states(&answer).unwrap().len(), 1);
                }
                ("refresh without the leaf", _)
                | ("refresh, empty body", _)
                | ("watching without monitor list", _) => assert_eq!(status, 400),
                ("refresh wrong envelope", _) => assert_eq!(status, 204),
                ("PUT after DELETE" | "ingress watcher PUTs joins without a POST first", _) => {
                    assert_eq!(status, 201);
                }
                ("sub path", _) => assert_eq!(status, 404),
                // The condition of the recorded request is not recorded.
                ("If-None-Match", _) => assert_eq!(status, 200),
                (_, Some(recorded)) if name == "monitors" && recorded == 500 => {
                    assert!(status >= 400 || status == 204);
                }
                (_, Some(recorded)) => {
                    let expired = name == "monitors";
                    let is_set = |s| matches!(s, 201 | 204);
                    assert!(
                        status == recorded
                            || (is_set(status) && is_set(recorded) && method == "PUT")
                            || expired,
                        "{line}: {status} {answer}"
                    );
                    if let (Some(ours), Some(recorded)) =
                        (states(&answer), states(&line["response"]["body"]))
                    {
                        let globals = |s: &BTreeSet<(String, String)>| -> BTreeSet<String> {
                            s.iter().map(|(global, _)| global.clone()).collect()
                        };
                        assert_eq!(globals(&ours), globals(&recorded), "{line}");
                        // The prototype gives up before its pool is full.
                        let unassigned = |states: &BTreeSet<(String, String)>| {
                            states.iter().filter(|(_, s)| s == "unassigned").count()
                        };
                        assert!(
                            unassigned(&ours) <= unassigned(&recorded),
                            "{line}: {answer}"
                        );
                    }
                }
                (_, None) => assert!(matches!(status, 400 | 404), "{line}: {status}"),
            }
        }
    }
}

#[test]
fn waiting_poll_is_answered_when_something_changes() {
    let server = Process::start(POOL, &[]);
    block_on(async {
        let (mut ingress, mut egress) = (server.client(), server.client());
        let watching = ingress.watcher().await;
        let body = json!({ "ietf-mnat:watcher": { "id": watching, "monitor": [
            { "id": "0", "global-source-prefix": "0.0.0.0/0" }] } });
        assert_eq!(ingress.ask("POST", WATCHING, &body).await.0, 201);
        let (first, mapped) = ingress.poll(&watching, 20, None).await;
        assert_eq!((first.status, mapped), (200, json!([])));
        let tag = first.entity_tag.expect("an entity tag");
        // Nothing changes.
        let start = Instant::now();
        let (unchanged, _) = ingress.poll(&watching, 1, Some(tag.clone())).await;
        assert_eq!((unchanged.status, unchanged.body.len()), (304, 0));
        assert!(start.elapsed() >= Duration::from_secs(1));
        // A join is reported at once.
        let id = egress.watcher().await;
        let start = Instant::now();
        let poll = ingress.poll(&watching, 20, Some(tag));
        let join = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            egress.join(&id, &[("10.0.0.1", "232.1.1.1")]).await
        };
        let ((changed, mapped), status) = tokio::join!(poll, join);
        assert_eq!((changed.status, status), (200, 201));
        assert_eq!(mapped.as_array().unwrap().len(), 1);
        assert!(start.elapsed() < Duration::from_secs(5));
        // A client without the preference is answered at once, without an entity tag.
        let plain = ingress.0.request(&MnatRequest::poll(&watching)).await;
        assert_eq!(plain.unwrap().entity_tag, None);
    });
}

#[test]
fn answers_to_prototypes_fit_into_their_window() {
    let pool = r#"{"group-pool": {"ranges": [
        {"group-range": "239.1.0.0/16", "source-range": "10.9.1.2"}]}}"#;
    let server = Process::start(pool, &[]);
    block_on(async {
        let mut client = server.client();
        let id = client.watcher().await;
        let sources: Vec<String> = (0..2000)
            .map(|n| format!("10.1.{}.{}", n / 200, n % 200 + 1))
            .collect();
        let joined: Vec<(&str, &str)> = sources.iter().map(|s| (s.as_str(), "232.1.1.1")).collect();
        assert_eq!(client.join(&id, &joined).await, 201);
        assert_eq!(client.mapped(&id).await.as_array().unwrap().len(), 2000);
        let plain = client.0.send(&MnatRequest::poll(&id)).await.unwrap();
        assert!(plain.1.len() <= 65_535 && plain.1.len() > 60_000);
        let log = server.log.clone();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !log.lock().unwrap().contains("an answer lacks") {
            assert!(Instant::now() < deadline, "{}", log.lock().unwrap());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

#[test]
fn floods_are_delayed_and_long_bodies_refused() {
    let server = Process::start(POOL, &[]);
    block_on(async {
        let mut client = server.client();
        let id = client.watcher().await;
        let start = Instant::now();
        for _ in 0..60 {
            let answer = client.0.send(&MnatRequest::refresh(&id)).await.unwrap();
            assert_eq!(answer.0, 204);
        }
        assert!(
            start.elapsed() > Duration::from_millis(500),
            "{:?}",
            start.elapsed()
        );
        let long = Value::String("x".repeat(3 << 20));
        let (status, body) = client
            .ask("PUT", &format!("{JOINED}/watcher={id}"), &long)
            .await;
        assert_eq!(status, 413, "{body}");
        assert_eq!(client.join(&id, &[]).await, 201);
    });
}

#[test]
fn state_survives_a_kill() {
    let mut server = Process::start(POOL, &["--state", "FILES/state"]);
    let mut seen = Value::Null;
    let mut ids = Vec::new();
    for round in 0..3 {
        block_on(async {
            let mut client = server.client();
            if round == 0 {
                for source in ["10.0.0.1", "10.0.0.2"] {
                    let id = client.watcher().await;
                    let joined = [(source, "232.1.1.1"), ("10.0.0.9", "232.1.1.1")];
                    assert_eq!(client.join(&id, &joined).await, 201);
                    ids.push(id);
                }
                let watching = client.watcher().await;
                let body = json!({ "ietf-mnat:watcher": { "id": watching, "monitor": [
                    { "id": "0", "global-source-prefix": "0.0.0.0/0" }] } });
                assert_eq!(client.ask("POST", WATCHING, &body).await.0, 201);
                ids.push(watching);
                seen = client.mapped(&ids[2]).await;
                assert_eq!(seen.as_array().unwrap().len(), 3);
            }
            assert_eq!(client.mapped(&ids[2]).await, seen, "round {round}");
            assert_eq!(client.mapped(&ids[0]).await.as_array().unwrap().len(), 2);
            assert_eq!(
                client
                    .0
                    .send(&MnatRequest::refresh(&ids[0]))
                    .await
                    .unwrap()
                    .0,
                204
            );
        });
        server = server.restart();
    }
    // State of another pool is refused.
    let other = POOL.replace("239.1.1.0", "239.1.2.0");
    server.files.put("pool.json", &other);
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_mcastor"))
        .args(&server.arguments)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("has mappings of another pool"), "{text}");
}

/// Kills the server at random under load. Nothing that it answered is forgotten, and no local channel
/// is assigned twice. `MCASTOR_KILLS` sets the number of kills.
#[test]
fn nothing_is_forgotten_or_assigned_twice_by_kills_under_load() {
    let kills = std::env::var("MCASTOR_KILLS")
        .ok()
        .and_then(|k| k.parse().ok())
        .unwrap_or(5);
    let pool = r#"{"group-pool": {"ranges": [
        {"group-range": "239.0.0.0/8", "source-range": "10.9.1.2"}]}}"#;
    let mut server = Process::start(pool, &["--state", "FILES/state"]);
    /// What a client knows: its watcher id, its joins, and the mappings.
    #[derive(Default)]
    struct Known {
        id: Option<String>,
        joined: usize,
        mapped: BTreeMap<String, Value>,
    }
    let mut known: Vec<Known> = (0..4).map(|_| Known::default()).collect();
    let mut joins = 0;
    for kill in 0..kills {
        let wait = Duration::from_millis(100 + kill * 37 % 400);
        let clients = known.iter_mut().enumerate().map(|(n, known)| {
            let mut client = server.client();
            async move {
                let end = tokio::time::sleep(wait);
                let load = async {
                    if known.id.is_none() {
                        known.id = Some(client.watcher().await);
                    }
                    let id = known.id.clone().unwrap();
                    // What was answered before the kill is still there.
                    loop {
                        let mapped = client.mapped(&id).await;
                        let mapped = mapped.as_array().expect("a known watcher").clone();
                        let now: BTreeMap<String, Value> = mapped
                            .iter()
                            .map(|m| {
                                (
                                    m["global-subscription"].to_string(),
                                    m["local-mapping"].clone(),
                                )
                            })
                            .collect();
                        for (global, local) in &known.mapped {
                            assert_eq!(now.get(global), Some(local), "client {n}");
                        }
                        known.mapped = now;
                        assert!(known.mapped.len() >= known.joined);
                        let more = known.mapped.len() + 1;
                        let sources: Vec<String> = (0..more)
                            .map(|s| format!("10.{n}.{}.{}", s / 200, s % 200 + 1))
                            .collect();
                        let joined: Vec<(&str, &str)> =
                            sources.iter().map(|s| (s.as_str(), "232.1.1.1")).collect();
                        assert!(matches!(client.join(&id, &joined).await, 201 | 204));
                        known.joined = more;
                    }
                };
                tokio::select! {
                    () = load => {}
                    () = end => {}
                }
            }
        });
        block_on(async {
            futures_util::future::join_all(clients).await;
        });
        joins = known.iter().map(|k| k.joined).sum();
        server = server.restart();
    }
    let locals = known
        .iter()
        .flat_map(|k| k.mapped.values().map(Value::to_string));
    let locals: Vec<String> = locals.collect();
    let distinct: BTreeSet<&String> = locals.iter().collect();
    println!("{kills} kills, {joins} joins, {} mappings", locals.len());
    assert_eq!(distinct.len(), locals.len());
    assert!(joins > 0);
}

#[test]
fn ids_are_bound_to_client_certificates() {
    let clients = Ca::new();
    let files = Files::new();
    let ca_file = files.put("clientca.pem", &clients.pem());
    let server = Process::start(POOL, &["--client-ca", ca_file.to_str().unwrap()]);
    for name in ["one", "two"] {
        server
            .files
            .put(&format!("{name}.pem"), &clients.sign(&[name], 0).pem);
    }
    block_on(async {
        let mut one = server.client_with(Some("one.pem"));
        let id = one.watcher().await;
        assert_eq!(one.mapped(&id).await, json!([]));
        for mut other in [server.client_with(Some("two.pem")), server.client()] {
            assert_eq!(other.mapped(&id).await, Value::Null);
            assert_eq!(other.join(&id, &[]).await, 404);
        }
        // A renewed certificate has the same subject.
        server.files.put("one.pem", &clients.sign(&["one"], 0).pem);
        assert_eq!(one.mapped(&id).await, json!([]));
    });
    let required = Process::start(
        POOL,
        &[
            "--client-ca",
            ca_file.to_str().unwrap(),
            "--require-client-cert",
        ],
    );
    let refused = block_on(required.client().0.send(&MnatRequest::new_watcher()));
    let why = refused.unwrap_err().to_string();
    assert!(why.contains("client certificate"), "{why}");
}

#[test]
fn changed_server_certificate_is_used_for_new_connections() {
    let server = Process::start(POOL, &[]);
    let ca = Ca::new();
    server
        .files
        .put("server.pem", &ca.sign(&["localhost"], 0).pem);
    server.files.put("ca.pem", &ca.pem());
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Err(e) = block_on(server.client().0.send(&MnatRequest::new_watcher())) {
        assert!(Instant::now() < deadline, "{e}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn check_reports_faults_with_their_place() {
    let files = Files::new();
    let check = |pool: &str| {
        let file = files.put("pool.json", pool);
        let output = Command::new(env!("CARGO_BIN_EXE_mcastor"))
            .args(["mnat-server", "check"])
            .arg(&file)
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    let (code, text) = check(POOL);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("239.1.1.0/24 from 10.9.1.2: 256 local (S,G)s"),
        "{text}"
    );
    let (code, text) = check(&POOL.replace("239.1.1.0/24", "239.1.1.1/24"));
    assert_eq!(code, Some(2), "{text}");
    assert!(
        text.contains("pool.json: group-pool.ranges[0].group-range: 239.1.1.1/24 has bits"),
        "{text}"
    );
    std::io::stdout().flush().unwrap();
}

/// Server and client work with the certificates that the server makes.
#[test]
fn made_certificates_are_accepted() {
    let files = Files::new();
    let folder = files.path("etc/mnat").display().to_string();
    let make = || {
        let output = Command::new(env!("CARGO_BIN_EXE_mcastor"))
            .args(["mnat-server", "certs", "--directory", &folder, "localhost"])
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    assert_eq!(make().0, Some(0));
    let mode = std::fs::metadata(&folder).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let (code, text) = make();
    assert!(code == Some(0) && text.contains("already"), "{text}");
    let pool = files.put("pool.json", POOL);
    let path = |name: &str| format!("{folder}/{name}");
    let arguments = [
        [
            "mnat-server",
            "--listen",
            "127.0.0.1:0",
            "--require-client-cert",
        ]
        .map(String::from),
        [
            "--cert".into(),
            path("server.crt"),
            "--key".into(),
            path("server.key"),
        ],
        [
            "--pool".into(),
            pool.display().to_string(),
            "--client-ca".into(),
            path("ca.pem"),
        ],
    ];
    let server = Process::run(files, arguments.concat(), None);
    block_on(async {
        let mut client = server.client_of("etc/mnat/ca.pem", Some("etc/mnat/client.pem"));
        assert!(!client.watcher().await.is_empty());
    });
    let files = Files::new();
    files.put("ca.key", "");
    let output = Command::new(env!("CARGO_BIN_EXE_mcastor"))
        .args(["mnat-server", "certs", "localhost", "--directory"])
        .arg(files.path(""))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("ca.key exists"), "{text}");
}

#[test]
fn metrics_and_health_are_served() {
    let server = Process::start(POOL, &["--http", "127.0.0.1:0"]);
    block_on(async {
        let mut client = server.client();
        let id = client.watcher().await;
        client.join(&id, &[("10.0.0.1", "232.1.1.1")]).await;
        client.mapped(&id).await;
    });
    let text = server.http_get("/metrics");
    for line in [
        "mcastor_mnat_pool_size 256",
        "mcastor_mnat_assigned 1",
        "mcastor_mnat_held_down 0",
        "mcastor_mnat_watchers 1",
        "mcastor_mnat_request_seconds_count{code=\"200\",op=\"poll\"} 1",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(server.http_get("/healthz").contains("\"status\":\"ok\""));
}

/// Serves many watchers with a connection each. `MCASTOR_MNAT_WATCHERS` sets their number, and
/// `MCASTOR_BINARY` another binary. Prints memory and the time of polls.
#[test]
fn many_watchers_are_served_quickly() {
    const JOINS: usize = 10;
    const CONNECTIONS: usize = 64;
    let watchers = std::env::var("MCASTOR_MNAT_WATCHERS").ok();
    let watchers: usize = watchers.map_or(100, |n| n.parse().expect("a number"));
    mcastor::sys::limits::raise_open_file_limit();
    let pool = r#"{"group-pool": {"ranges": [
        {"group-range": "239.0.0.0/8", "source-range": "10.9.1.2"}]}}"#;
    let options = ["--state", "FILES/state", "--http", "127.0.0.1:0"];
    let server = Process::start(pool, &options);
    let rss = || {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", server.child.id())).unwrap();
        let pages: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
        (pages * 4096) >> 20
    };
    println!("{} MiB at the start", rss());
    block_on(async {
        use futures_util::StreamExt;
        // Registers over few connections, so that the memory is that of the watchers.
        let start = Instant::now();
        let register = |share: usize| {
            let mut client = server.client();
            async move {
                let mut ids = Vec::new();
                for n in (share..watchers).step_by(CONNECTIONS) {
                    let id = client.watcher().await;
                    let sources: Vec<String> = (0..JOINS)
                        .map(|s| format!("10.{}.{}.{}", n / 250, n % 250, s + 1))
                        .collect();
                    let joined: Vec<(&str, &str)> =
                        sources.iter().map(|s| (s.as_str(), "232.1.1.1")).collect();
                    assert_eq!(client.join(&id, &joined).await, 201);
                    ids.push(id);
                }
                ids
            }
        };
        let ids = futures_util::future::join_all((0..CONNECTIONS).map(register)).await;
        println!(
            "{watchers} watchers with {JOINS} joins in {:?}: {} MiB",
            start.elapsed(),
            rss()
        );
        let start = Instant::now();
        let connect = |id: String| {
            let mut client = server.client();
            async move {
                assert_eq!(
                    client.0.send(&MnatRequest::refresh(&id)).await.unwrap().0,
                    204
                );
                (client, id)
            }
        };
        let clients = futures_util::stream::iter(ids.into_iter().flatten().map(connect));
        let mut clients: Vec<_> = clients.buffer_unordered(64).collect().await;
        println!(
            "a connection for each in {:?}: {} MiB",
            start.elapsed(),
            rss()
        );
        // Each polls twice and refreshes once in the interval of the prototype's clients.
        let cycle = Duration::from_secs(if watchers > 1000 { 10 } else { 1 });
        let interval = cycle / watchers as u32;
        let begin = Instant::now();
        let polls = clients
            .iter_mut()
            .enumerate()
            .map(|(n, (client, id))| async move {
                let mut times = Vec::new();
                tokio::time::sleep_until((begin + interval * n as u32).into()).await;
                for _ in 0..2 {
                    let start = Instant::now();
                    let (status, body) = client.0.send(&MnatRequest::poll(id)).await.unwrap();
                    times.push(start.elapsed());
                    assert_eq!(status, 200);
                    assert_eq!(
                        String::from_utf8(body)
                            .unwrap()
                            .matches("local-mapping")
                            .count(),
                        JOINS
                    );
                    let refreshed = client.0.send(&MnatRequest::refresh(id)).await.unwrap();
                    assert_eq!(refreshed.0, 204);
                    tokio::time::sleep(cycle / 2).await;
                }
                times
            });
        let times = futures_util::future::join_all(polls).await;
        let mut times: Vec<Duration> = times.into_iter().flatten().collect();
        times.sort();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
        println!(
            "{} polls: median {:?}, p99 {:?}, longest {:?}; {} MiB",
            times.len(),
            at(0.5),
            at(0.99),
            at(1.0),
            rss()
        );
    });
    // All connections are held, although they are those of one address.
    let evicted = "mcastor_mnat_closed_connections_total{reason=\"evicted\"} 0";
    assert!(server.http_get("/metrics").contains(evicted));
}
