//! An MNAT server for the ingress and egress in namespaces. It assigns local groups in ascending
//! order.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::ns::{Lab, Ns};
use super::{Program, binary, eventually, wait_until};

#[allow(dead_code)] // other test binaries use the rest
#[path = "../../mnat/server.rs"]
mod server;

pub use server::{Ca, Server};
use server::{ReceivedRequest, Reply, RequestHandler, Tls};

/// Starts a server at `address` of `ns` with a certificate for that address. With `clients`, client
/// certificates signed by that CA are required.
#[track_caller]
pub fn serve(
    ns: &Ns,
    ca: &Ca,
    clients: Option<Ca>,
    address: &str,
    server_state: &Arc<Mutex<ServerState>>,
) -> Server {
    // The previous server may still be closing its connections.
    let mut listener = None;
    wait_until(Duration::from_secs(60), || {
        listener = ns.enter(|| TcpListener::bind(address)).ok();
        listener.is_some()
    });
    let host = address.rsplit_once(':').expect("a port").0;
    let tls = Tls {
        identity: ca.sign(&[host], 0),
        clients,
        alpn: b"h2",
    };
    Server::start(listener.expect("a port"), tls, server_state.clone())
}

/// A name of `mcastor mnat-server` in its certificate, for clients that want one.
pub const SERVER_NAME: &str = "mnat.test";

/// Starts `mcastor mnat-server` at `address` of `ns`, with a certificate for that address and for
/// [`SERVER_NAME`], and waits until it listens.
#[track_caller]
pub fn start_server(
    lab: &Lab,
    ns: &Ns,
    ca: &Ca,
    address: &str,
    pool: &str,
    options: &[&str],
) -> Program {
    let pem = lab.file("server.pem");
    if !pem.exists() {
        let host = address.rsplit_once(':').expect("a port").0;
        let identity = ca.sign(&[host, SERVER_NAME], 0);
        std::fs::write(&pem, identity.pem).expect("writing a certificate");
    }
    let pool_file = lab.file("pool.json");
    std::fs::write(&pool_file, pool).expect("writing a pool");
    let mut command = ns.command(&binary());
    command
        .args(["mnat-server", "--listen", address])
        .arg("--cert")
        .arg(&pem)
        .arg("--key")
        .arg(&pem)
        .arg("--pool")
        .arg(&pool_file)
        .args(options);
    let server = Program::start(lab, command);
    let is_up = || server.stderr().contains("serving on https://");
    eventually("the server listens", true, is_up);
    server
}

/// The state of the MNAT server, reduced to what ingress and egress need.
#[derive(Default)]
pub struct ServerState {
    watchers: BTreeMap<String, Vec<Value>>,
    locals: BTreeMap<String, Value>,
    /// The local groups before the last [`Self::reassign`].
    former: BTreeMap<String, Value>,
    /// The last byte of the local group that was assigned last.
    pub next: u8,
    /// Whether local groups are assigned for any source.
    pub any_source: bool,
    /// The refresh period that clients are given, in seconds.
    pub refresh: u64,
}

impl ServerState {
    /// Creates a state whose first local group is 239.1.1.(`next` + 1).
    pub fn starting_at(next: u8) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            next,
            refresh: 20,
            ..Self::default()
        }))
    }

    /// Adds the join of an egress outside of the test.
    pub fn add_remote_join(&mut self, source: &str, group: &str) {
        let joined = json!({ "source": source, "group": group });
        self.assign(&joined);
        self.watchers.insert("elsewhere".into(), vec![joined]);
    }

    fn assign(&mut self, joined: &Value) {
        self.next += 1;
        let group = format!("239.1.1.{}", self.next);
        let local = match self.any_source {
            true => json!({ "asm-group": group }),
            false => json!({ "source": "10.9.9.9", "group": group }),
        };
        self.locals.insert(key(joined), local);
    }

    /// Returns the number of watcher ids that were given out.
    pub fn watcher_count(&self) -> usize {
        self.watchers.len()
    }

    /// Assigns another local group to every stream.
    pub fn reassign(&mut self) {
        self.former = self.locals.clone();
        let all = self.watchers.values().flatten();
        let all: BTreeMap<String, Value> = all.map(|j| (key(j), j.clone())).collect();
        all.values().for_each(|joined| self.assign(joined));
    }

    /// Assigns the local groups again that the streams had before the last [`Self::reassign`].
    pub fn reassign_former(&mut self) {
        std::mem::swap(&mut self.former, &mut self.locals);
    }

    /// Returns the number of streams that have a local group.
    pub fn assigned(&self) -> usize {
        self.locals.len()
    }

    /// Returns the last byte of the local group of a stream.
    pub fn local(&self, source: &str, group: &str) -> u8 {
        let local = &self.locals[&key(&json!({ "source": source, "group": group }))];
        let group = local["group"].as_str().expect("a group");
        group
            .rsplit_once('.')
            .expect("IPv4")
            .1
            .parse()
            .expect("a byte")
    }
}

fn key(joined: &Value) -> String {
    format!("{},{}", joined["source"], joined["group"])
}

impl RequestHandler for Arc<Mutex<ServerState>> {
    fn answer(&mut self, request: ReceivedRequest) -> Reply {
        let mut server_state = self.lock().unwrap();
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let json = |status, body: Value| Reply::Answer(status, body.to_string().into_bytes());
        let done = || Reply::Answer(204, vec![]);
        let path = request.path.trim_start_matches("/mnat-ds/");
        let (head, id) = path.split_once('=').unwrap_or((path, ""));
        let watcher = &body["ietf-mnat:watcher"];
        match (request.method.as_str(), head) {
            ("POST", "operations/ietf-mnat:get-new-watcher-id") => {
                let id = format!("W{}-{}", server_state.next, server_state.watchers.len());
                server_state.watchers.insert(id.clone(), vec![]);
                json(
                    200,
                    json!({ "watcher-id": id, "refresh-period": server_state.refresh }),
                )
            }
            ("POST", "operations/ietf-mnat:refresh-watcher-id") => {
                let id = body["ietf-mnat:input"]["ietf-mnat:watcher-id"].as_str();
                let known = id.is_some_and(|id| server_state.watchers.contains_key(id));
                Reply::Answer(if known { 204 } else { 500 }, vec![])
            }
            ("POST", _) => done(),
            ("PUT", _) if !server_state.watchers.contains_key(id) => Reply::Answer(404, vec![]),
            ("PUT", _) => {
                let joined = watcher["joined-sg"].as_array().unwrap().clone();
                for one in &joined {
                    if !server_state.locals.contains_key(&key(one)) {
                        server_state.assign(one);
                    }
                }
                server_state.watchers.insert(id.to_string(), joined);
                done()
            }
            _ if !server_state.watchers.contains_key(id) => {
                json(200, json!({ "ietf-mnat:watcher": [{}] }))
            }
            _ => {
                let all = server_state.watchers.values().flatten();
                let entry = |joined: &Value| {
                    json!({ "id": 1, "state": "ietf-mnat:assigned-local-multicast",
                        "global-subscription": { "source": joined["source"], "group": joined["group"] },
                        "local-mapping": server_state.locals[&key(joined)] })
                };
                let mapped: Vec<Value> = all.map(entry).collect();
                json(
                    200,
                    json!({ "ietf-mnat:watcher": [{ "id": id, "mapped-sg": mapped }] }),
                )
            }
        }
    }
}
