//! `mcastor mnat-server` and an etcd with TLS, client certificates and users.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use mcastor::mnat::client::MnatClient;
use mcastor::mnat::protocol::MnatRequest;
use mcastor::mnat::{Channel, Target};
use serde_json::{Value, json};

use super::cases;
use crate::lab::mnat::{Ca, start_server};
use crate::lab::{Lab, Ns, Program, TIMEOUT, eventually, wait_until};

cases!("mnat_etcd_tls":
    #[Program("etcd", "etcd-server")] mappings_are_kept_in_etcd_with_client_certificates,
    #[Program("etcd", "etcd-server")] mappings_are_kept_in_etcd_with_users,
    #[Program("etcd", "etcd-server")] unusable_options_of_etcd_are_explained,
);

const POOL: &str = r#"{"group-pool": {"ranges": [
    {"group-range": "239.1.0.0/16", "source-range": "10.9.9.9"}]}}"#;

/// The address of etcd that requires a client certificate.
const URL: &str = "https://127.0.0.1:2379";
/// The address of the same etcd without TLS.
const PLAIN_URL: &str = "http://127.0.0.1:2378";
/// Where the server listens.
const SERVER: &str = "127.0.0.1:8443";

/// An etcd with one member, and the files of its clients.
struct TlsEtcd<'l> {
    lab: &'l Lab,
    ns: Ns,
    ca: Ca,
    folder: PathBuf,
    _etcd: Program,
}

impl<'l> TlsEtcd<'l> {
    fn start(lab: &'l Lab) -> Self {
        let ns = lab.ns("s0");
        let folder = lab.file("files");
        std::fs::create_dir(&folder).expect("a folder");
        let ca = Ca::new();
        let put = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).expect("writing a file");
            path.display().to_string()
        };
        let ca_file = put("ca.pem", &ca.pem());
        let certificate = put("etcd.pem", &ca.sign(&["127.0.0.1"], 0).pem);
        put("client.pem", &ca.sign(&["mnat"], 0).pem);
        put("nameless.pem", &ca.sign_without_common_name(&["mnat"]).pem);
        put("foreign.pem", &Ca::new().sign(&["mnat"], 0).pem);
        let mut command = ns.command("etcd");
        command.arg("--data-dir").arg(lab.file("etcd"));
        let urls = format!("{URL},{PLAIN_URL}");
        for (option, value) in [
            ("listen-client-urls", urls.as_str()),
            ("advertise-client-urls", URL),
            ("listen-peer-urls", "http://127.0.0.1:2380"),
            ("initial-advertise-peer-urls", "http://127.0.0.1:2380"),
            ("initial-cluster", "default=http://127.0.0.1:2380"),
            ("cert-file", &certificate),
            ("key-file", &certificate),
            ("trusted-ca-file", &ca_file),
            ("client-cert-auth", "true"),
            ("log-level", "error"),
            ("logger", "zap"),
        ] {
            command.arg(format!("--{option}={value}"));
        }
        let etcd = Program::start(lab, command);
        let site = Self {
            lab,
            ns,
            ca,
            folder,
            _etcd: etcd,
        };
        let status = || site.ask_etcd("maintenance/status", &json!({}), "");
        let answers = || status()["leader"].is_string();
        assert!(wait_until(TIMEOUT, answers), "etcd does not answer");
        site
    }

    /// Makes a call of etcd's JSON interface with a token. Null is no answer.
    fn ask_etcd(&self, path: &str, body: &Value, token: &str) -> Value {
        let (url, body) = (format!("{PLAIN_URL}/v3/{path}"), body.to_string());
        let header = format!("Authorization: {token}");
        let words = ["-s", "-m", "5", "-H", &header, "-d", &body, &url];
        let output = self.ns.output("curl", &words);
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// Replaces `FILES` in options by the folder of the files.
    fn options(&self, options: &str) -> Vec<String> {
        let folder = self.folder.display().to_string();
        let words = options.split(' ');
        words.map(|word| word.replace("FILES", &folder)).collect()
    }

    fn serve(&self, options: &str) -> Program {
        let options = self.options(options);
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        start_server(self.lab, &self.ns, &self.ca, SERVER, POOL, &options)
    }

    /// Joins a stream with a new client.
    fn join(&self) -> Client {
        let ca = self.folder.join("ca.pem");
        self.ns.enter(|| block_on(Client::join(ca)))
    }

    /// Joins a stream, kills the server, and checks that the next one has the same mapping.
    fn expect_kept_mappings(&self, options: &str) {
        let mut server = self.serve(options);
        let client = self.join();
        server.stop(libc::SIGKILL, TIMEOUT);
        let server = self.serve(options);
        eventually("the state is read", true, || {
            server
                .stderr()
                .contains("1 watchers and 1 mappings are in etcd")
        });
        self.ns.enter(|| block_on(client.expect_mapping()));
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(future)
}

/// A client that has joined a stream.
struct Client {
    ca: PathBuf,
    id: String,
    local: Value,
}

impl Client {
    async fn join(ca: PathBuf) -> Self {
        let (_, body) = send(&ca, &MnatRequest::new_watcher()).await;
        let id = body["watcher-id"].as_str().expect("an id").to_string();
        let joined = Channel::parse(Some("10.0.0.10"), "232.1.1.1").expect("a channel");
        let (status, body) = send(&ca, &MnatRequest::join(&id, [joined].into_iter())).await;
        assert!(matches!(status, 201 | 204), "{status} {body}");
        let local = local(&ca, &id).await;
        assert!(local["group"].is_string(), "{local}");
        Self { ca, id, local }
    }

    async fn expect_mapping(&self) {
        assert_eq!(local(&self.ca, &self.id).await, self.local);
    }
}

/// Returns the local channel of the only stream of a watcher.
async fn local(ca: &std::path::Path, id: &str) -> Value {
    let (_, body) = send(ca, &MnatRequest::poll(id)).await;
    body["ietf-mnat:watcher"][0]["mapped-sg"][0]["local-mapping"].clone()
}

/// Sends a request until it is answered.
async fn send(ca: &std::path::Path, request: &MnatRequest) -> (u16, Value) {
    let (host, port) = SERVER.split_once(':').expect("a port");
    let mut client = MnatClient::new(Target {
        host: host.into(),
        port: port.parse().expect("a port"),
        ca: Some(ca.into()),
        cert: None,
        key: None,
        only_if_present: false,
    });
    let start = Instant::now();
    loop {
        match client.send(request).await {
            Ok((status, body)) => {
                return (status, serde_json::from_slice(&body).unwrap_or_default());
            }
            Err(e) => assert!(start.elapsed() < TIMEOUT, "{e}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn mappings_are_kept_in_etcd_with_client_certificates(lab: &Lab) {
    let site = TlsEtcd::start(lab);
    let options = format!("--etcd {URL} --etcd-ca FILES/ca.pem --etcd-cert FILES/client.pem");
    site.expect_kept_mappings(&options);
}

/// The user may only read and write the keys of the server. Tokens become invalid when users change,
/// which a running server survives. With users, etcd refuses client certificates with a common name.
fn mappings_are_kept_in_etcd_with_users(lab: &Lab) {
    let site = TlsEtcd::start(lab);
    let encode = |text: &str| data_encoding::BASE64.encode(text.as_bytes());
    let permission = json!({ "permType": "READWRITE", "key": encode("/mcastor/mnat/"),
        "range_end": encode("/mcastor/mnat0") });
    for (path, body) in [
        ("user/add", json!({ "name": "root", "password": "r" })),
        ("role/add", json!({ "name": "root" })),
        ("user/grant", json!({ "user": "root", "role": "root" })),
        ("user/add", json!({ "name": "mnat", "password": "secret" })),
        ("role/add", json!({ "name": "mnat" })),
        ("role/grant", json!({ "name": "mnat", "perm": permission })),
        ("user/grant", json!({ "user": "mnat", "role": "mnat" })),
        ("enable", json!({})),
    ] {
        let answer = site.ask_etcd(&format!("auth/{path}"), &body, "");
        assert!(answer["header"].is_object(), "{path}: {answer}");
    }
    std::fs::write(site.folder.join("password"), "secret\n").expect("writing a password");
    std::fs::write(site.folder.join("wrong"), "wrong\n").expect("writing a password");
    let tls = format!("--etcd {URL} --etcd-ca FILES/ca.pem --etcd-cert FILES/nameless.pem");
    let user = "--etcd-user mnat --etcd-password-file FILES";
    let options = format!("{tls} {user}/password");
    site.expect_kept_mappings(&options);
    let mut server = site.serve(&options);
    site.join();
    let root = json!({ "name": "root", "password": "r" });
    let token = site.ask_etcd("auth/authenticate", &root, "")["token"].clone();
    let token = token.as_str().expect("a token");
    let changed = site.ask_etcd("auth/role/add", &json!({ "name": "other" }), token);
    assert!(changed["header"].is_object(), "{changed}");
    site.join();
    server.stop(libc::SIGKILL, TIMEOUT);
    for (options, expected) in [
        (format!("{tls} {user}/wrong"), "authentication failed"),
        (format!("{tls} {user}/none"), "cannot read"),
        (tls.clone(), "set --etcd-user and --etcd-password-file"),
    ] {
        let mut server = site.serve(&options);
        let ended = wait_until(TIMEOUT, || server.exit_status().is_some());
        let log = server.stderr();
        assert!(ended && log.contains(expected), "{options}: {log}");
    }
}

fn unusable_options_of_etcd_are_explained(lab: &Lab) {
    let site = TlsEtcd::start(lab);
    let plain = PLAIN_URL.replace("http://", "https://");
    let no_tls = URL.replace("https://", "http://");
    let ca = "--etcd-ca FILES/ca.pem";
    for (options, expected) in [
        (format!("--etcd {URL}"), "set --etcd-ca"),
        (format!("--etcd {URL} {ca}"), "set --etcd-cert"),
        (
            format!("--etcd {URL} {ca} --etcd-cert FILES/foreign.pem"),
            "may not accept the client certificate",
        ),
        (
            format!("--etcd {URL} --etcd-ca FILES/none.pem"),
            "cannot read",
        ),
        (
            format!("--etcd {URL} {ca} --etcd-cert FILES/ca.pem"),
            "cannot read",
        ),
        (format!("--etcd {plain} {ca}"), "use http://"),
        (format!("--etcd {no_tls}"), "use https://"),
        (format!("--etcd {PLAIN_URL} {ca}"), "need https://"),
        ("--etcd 127.0.0.1:2379".into(), "expected http://HOST:PORT"),
    ] {
        let mut server = site.serve(&options);
        let explained = wait_until(TIMEOUT, || server.stderr().contains(expected));
        assert!(explained, "{options}: {}", server.stderr());
        server.stop(libc::SIGKILL, TIMEOUT);
    }
}
