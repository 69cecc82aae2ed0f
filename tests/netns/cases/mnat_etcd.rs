//! Three MNAT servers that share their state in etcd, and faults of any of them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mcastor::mnat::client::MnatClient;
use mcastor::mnat::protocol::MnatRequest;
use mcastor::mnat::{Channel, MnatRole, Target};
use serde_json::Value;

use super::cases;
use crate::lab::mnat::{Ca, start_server};
use crate::lab::random::Random;
use crate::lab::switch::connect_to_bridge;
use crate::lab::{Lab, Ns, Program, eventually, wait_until};

cases!("mnat_etcd":
    #[Program("etcd", "etcd-server")] servers_that_assign_at_once_agree,
    #[Program("etcd", "etcd-server")] #[Iptables] faults_of_servers_and_etcd_lose_no_mapping,
);

const POOL: &str = r#"{"group-pool": {"ranges": [
    {"group-range": "239.1.0.0/16", "source-range": "10.9.9.9"}]}}"#;

/// The interval at which clients of the prototype poll.
const POLL_INTERVAL: Duration = Duration::from_secs(10);

fn address(n: usize) -> String {
    format!("10.9.0.{}", n + 1)
}

/// A namespace with a member of etcd and a server.
struct Site {
    ns: Ns,
    n: usize,
    data: PathBuf,
    etcd: Program,
    server: Program,
}

/// Three sites and the clients on a bridge.
///
/// ```text
///     s0 eth0 ---+
///     s1 eth0 --- [br0 in sw] --- eth0 clients
///     s2 eth0 ---+
/// ```
struct Cluster<'l> {
    lab: &'l Lab,
    sites: Vec<Site>,
    clients: ClientSpace,
    ca: Ca,
}

/// The namespace of the clients.
#[derive(Clone)]
struct ClientSpace {
    ns: Ns,
    ca_file: PathBuf,
}

impl ClientSpace {
    /// Runs a client that uses the server `first` at first.
    fn run<T: Send>(&self, first: usize, run: impl AsyncFnOnce(Client) -> T + Send) -> T {
        self.ns.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(run(Client::new(self.ca_file.clone(), first)))
        })
    }
}

impl<'l> Cluster<'l> {
    fn start(lab: &'l Lab) -> Self {
        let switch = lab.ns("sw");
        switch.ip_batch("link add br0 type bridge\nlink set br0 up\n");
        let names = ["s0", "s1", "s2"];
        let spaces = names.map(|name| lab.ns(name));
        for (n, ns) in spaces.iter().enumerate() {
            connect_to_bridge(&switch, n, ns, &[&format!("{}/24", address(n))]);
        }
        let ns = lab.ns("clients");
        connect_to_bridge(&switch, 3, &ns, &["10.9.0.100/24"]);
        let (ca, ca_file) = (Ca::new(), lab.file("ca.pem"));
        std::fs::write(&ca_file, ca.pem()).expect("writing a certificate");
        let started = spaces.into_iter().enumerate().map(|(n, ns)| {
            let data = lab.file("etcd");
            let etcd = start_etcd(lab, &ns, n, &data, "new");
            (n, ns, data, etcd)
        });
        // All members are started first: none works alone.
        let started: Vec<_> = started.collect();
        let sites = started.into_iter().map(|(n, ns, data, etcd)| {
            let server = serve(lab, &ns, n, &ca);
            Site {
                ns,
                n,
                data,
                etcd,
                server,
            }
        });
        let sites = sites.collect();
        Self {
            lab,
            sites,
            clients: ClientSpace { ns, ca_file },
            ca,
        }
    }

    /// Kills a server and starts it again after a pause.
    fn kill_server(&mut self, n: usize, pause: Duration) {
        let site = &mut self.sites[n];
        site.server.signal(libc::SIGKILL);
        site.server.wait();
        std::thread::sleep(pause);
        site.server = serve(self.lab, &site.ns, n, &self.ca);
    }

    /// Kills a member of etcd and starts it again after a pause.
    fn kill_etcd(&mut self, n: usize, pause: Duration) {
        let site = &mut self.sites[n];
        site.etcd.signal(libc::SIGKILL);
        site.etcd.wait();
        std::thread::sleep(pause);
        site.etcd = start_etcd(self.lab, &site.ns, n, &site.data, "existing");
    }

    /// Cuts a site off from the others for a while. Clients still reach it.
    fn partition(&self, n: usize, time: Duration) {
        let others = (0..self.sites.len()).filter(|other| *other != n);
        let others: Vec<String> = others.map(address).collect();
        let change = |action: &str| {
            for other in &others {
                for (chain, side) in [("INPUT", "-s"), ("OUTPUT", "-d")] {
                    let words = ["-w", action, chain, side, other, "-j", "DROP"];
                    let output = self.sites[n].ns.output("iptables", &words);
                    let error = String::from_utf8_lossy(&output.stderr);
                    assert!(output.status.success(), "iptables: {error}");
                }
            }
        };
        change("-A");
        std::thread::sleep(time);
        change("-D");
    }

    /// Returns the site whose member of etcd is the leader.
    fn leader(&self) -> Option<usize> {
        let status = |site: &Site| {
            let url = "http://127.0.0.1:2379/v3/maintenance/status";
            let words = ["-s", "-m", "1", "-d", "{}", url];
            let output = site.ns.output("curl", &words);
            serde_json::from_slice::<Value>(&output.stdout).ok()
        };
        let is_leader = |site: &&Site| {
            status(site).is_some_and(|s| {
                let (leader, own) = (&s["leader"], &s["header"]["member_id"]);
                leader.is_string() && leader == own
            })
        };
        self.sites.iter().find(is_leader).map(|site| site.n)
    }
}

fn serve(lab: &Lab, ns: &Ns, n: usize, ca: &Ca) -> Program {
    // Its own member first.
    let urls = (0..3).map(|k| format!("http://{}:2379", address((n + k) % 3)));
    let urls = urls.collect::<Vec<_>>().join(",");
    let at = format!("{}:8443", address(n));
    start_server(lab, ns, ca, &at, POOL, &["--etcd", &urls])
}

fn start_etcd(lab: &Lab, ns: &Ns, n: usize, data: &std::path::Path, state: &str) -> Program {
    let (name, own) = (format!("m{n}"), address(n));
    let members = (0..3).map(|k| format!("m{k}=http://{}:2380", address(k)));
    let members = members.collect::<Vec<_>>().join(",");
    let mut command = ns.command("etcd");
    command.arg("--data-dir").arg(data);
    for (option, value) in [
        ("name", name),
        ("listen-peer-urls", format!("http://{own}:2380")),
        ("initial-advertise-peer-urls", format!("http://{own}:2380")),
        (
            "listen-client-urls",
            format!("http://{own}:2379,http://127.0.0.1:2379"),
        ),
        ("advertise-client-urls", format!("http://{own}:2379")),
        ("initial-cluster", members),
        ("initial-cluster-state", state.into()),
        ("auto-compaction-mode", "revision".into()),
        ("auto-compaction-retention", "1000".into()),
        ("log-level", "error".into()),
        ("logger", "zap".into()),
    ] {
        command.arg(format!("--{option}={value}"));
    }
    Program::start(lab, command)
}

/// A client that uses one server until a request fails, and then the next one.
struct Client {
    servers: Vec<MnatClient>,
    current: usize,
    /// The longest time that a request took, with all its attempts.
    longest: Duration,
}

impl Client {
    fn new(ca: PathBuf, first: usize) -> Self {
        let server = |n| {
            MnatClient::new(Target {
                host: address(n),
                port: 8443,
                ca: Some(ca.clone()),
                cert: None,
                key: None,
                only_if_present: true,
            })
        };
        Self {
            servers: (0..3).map(server).collect(),
            current: first % 3,
            longest: Duration::ZERO,
        }
    }

    /// Sends a request until some server answers.
    async fn send(&mut self, request: &MnatRequest) -> (u16, Value) {
        let start = Instant::now();
        loop {
            match self.servers[self.current].send(request).await {
                Ok((status, body)) => {
                    self.longest = self.longest.max(start.elapsed());
                    return (status, serde_json::from_slice(&body).unwrap_or_default());
                }
                Err(e) => {
                    assert!(start.elapsed() < Duration::from_secs(60), "{e}");
                    self.current = (self.current + 1) % self.servers.len();
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    async fn watcher(&mut self) -> String {
        let (status, body) = self.send(&MnatRequest::new_watcher()).await;
        assert_eq!(status, 200, "{body}");
        body["watcher-id"].as_str().expect("an id").into()
    }

    async fn join(&mut self, id: &str, joined: &[Channel]) {
        let request = MnatRequest::join(id, joined.iter().copied());
        let (status, body) = self.send(&request).await;
        assert!(matches!(status, 201 | 204), "{status} {body}");
    }

    /// Returns the mappings of a watcher; `None` for an unknown one.
    async fn mapped(&mut self, id: &str) -> Option<BTreeMap<String, String>> {
        let (_, body) = self.send(&MnatRequest::poll(id)).await;
        let mapped = body["ietf-mnat:watcher"][0]["mapped-sg"].as_array()?;
        let row = |entry: &Value| {
            let text = |channel: &Value| {
                let (source, group) = (channel["source"].as_str()?, channel["group"].as_str()?);
                Some(format!("{source},{group}"))
            };
            text(&entry["global-subscription"]).zip(text(&entry["local-mapping"]))
        };
        Some(mapped.iter().filter_map(row).collect())
    }

    /// Waits until a watcher has this number of mappings.
    async fn wait_mapped(&mut self, id: &str, count: usize) -> BTreeMap<String, String> {
        let start = Instant::now();
        loop {
            let mapped = self.mapped(id).await.expect("a known watcher");
            if mapped.len() == count {
                return mapped;
            }
            let late = start.elapsed() > POLL_INTERVAL;
            assert!(!late, "{} mappings, expected {count}", mapped.len());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn ingress(&mut self) -> String {
        let id = self.watcher().await;
        let (status, _) = self
            .send(&MnatRequest::register(MnatRole::Ingress, &id))
            .await;
        assert_eq!(status, 201);
        id
    }
}

/// The first number of the channels that all clients join.
const SHARED: usize = 200;

/// Returns channel `b` of client `a`.
fn channel(a: usize, b: usize) -> Channel {
    let source = format!("10.{a}.{}.{}", b / 250, b % 250 + 1);
    Channel::parse(Some(&source), "232.1.1.1").expect("a channel")
}

/// Checks that all servers have the same mappings, and none twice. Returns their number.
fn check_agreement(cluster: &Cluster) -> usize {
    let all = |n: usize| {
        cluster.clients.run(n, async |mut client: Client| {
            let id = client.ingress().await;
            client.mapped(&id).await.expect("a known watcher")
        })
    };
    let mut first = all(0);
    // Holds start some seconds after a watcher expired.
    let agree = wait_until(POLL_INTERVAL, || {
        first = all(0);
        (1..3).all(|n| all(n) == first)
    });
    assert!(agree, "the servers have different mappings");
    let mut locals: Vec<&String> = first.values().collect();
    locals.sort();
    locals.dedup();
    assert_eq!(locals.len(), first.len(), "assigned twice");
    first.len()
}

/// Three clients join some channels of their own and some that the others join at the same time.
fn servers_that_assign_at_once_agree(lab: &Lab) {
    const OWN: usize = 40;
    let cluster = Cluster::start(lab);
    let clients: Vec<_> = std::thread::scope(|scope| {
        let run = |n: usize| {
            let space = &cluster.clients;
            scope.spawn(move || {
                space.run(n, async |mut client: Client| {
                    let id = client.watcher().await;
                    let mut joined = Vec::new();
                    for k in 0..OWN {
                        joined.extend([channel(n, k), channel(SHARED, k)]);
                        client.join(&id, &joined).await;
                    }
                    (id.clone(), client.wait_mapped(&id, joined.len()).await)
                })
            })
        };
        let threads: Vec<_> = (0..3).map(run).collect();
        threads
            .into_iter()
            .map(|t| t.join().expect("a client"))
            .collect()
    });
    let all: BTreeMap<&String, &String> = clients.iter().flat_map(|(_, m)| m).collect();
    let total: usize = clients.iter().map(|(_, m)| m.len()).sum();
    assert_eq!((total, all.len()), (6 * OWN, 4 * OWN));
    // Each client has the mappings that the others have.
    for (_, mapped) in &clients {
        assert!(mapped.iter().all(|(global, local)| all[global] == local));
    }
    assert_eq!(check_agreement(&cluster), 4 * OWN);
    // Any server answers any id, and holds what is left.
    let (id, mapped) = &clients[0];
    for n in 1..3 {
        let other = cluster
            .clients
            .run(n, async |mut c: Client| c.mapped(id).await);
        assert_eq!(other.as_ref(), Some(mapped));
    }
    cluster
        .clients
        .run(1, async |mut c: Client| c.join(id, &[]).await);
    eventually("what the others joined", 3 * OWN, || {
        let count = async |mut c: Client| {
            let ingress = c.ingress().await;
            c.mapped(&ingress).await.map_or(0, |m| m.len())
        };
        cluster.clients.run(2, count)
    });
}

/// What the clients of a run have in common.
#[derive(Default)]
struct Load {
    is_over: AtomicBool,
    joins: AtomicU64,
    /// The global channel of each local one, while a client has both.
    owners: Mutex<BTreeMap<String, String>>,
}

impl Load {
    /// Forgets the mappings that a client is about to leave.
    fn forget(&self, known: &mut BTreeMap<String, String>, joined: &[String]) {
        let mut owners = self.owners.lock().expect("no panic");
        known.retain(|global, local| {
            let stays = joined.contains(global);
            if !stays {
                owners.remove(local);
            }
            stays
        });
    }

    /// Checks that no mapping moved, and that no local channel has two owners.
    fn check(&self, known: &BTreeMap<String, String>, mapped: &BTreeMap<String, String>) {
        let shared = format!("10.{SHARED}.");
        let mut owners = self.owners.lock().expect("no panic");
        for (global, local) in mapped {
            let before = known.get(global);
            assert!(before.is_none_or(|b| b == local), "{global} moved");
            if !global.starts_with(&shared) {
                let owner = owners.insert(local.clone(), global.clone());
                let is_same = owner.as_ref().is_none_or(|owner| owner == global);
                assert!(is_same, "{local} has {owner:?} and {global}");
            }
        }
    }

    /// A client that replaces ten of its channels twice a second. What it was answered must stay.
    async fn run(&self, mut client: Client, n: usize) -> Duration {
        const STEP: usize = 10;
        const KEPT: usize = 40;
        let id = client.watcher().await;
        let mut known: BTreeMap<String, String> = BTreeMap::new();
        let mut refreshed = Instant::now();
        let mut round = 0;
        while !self.is_over.load(Ordering::Relaxed) {
            let start = Instant::now();
            // The first channels are joined all the time, and by all clients.
            let steady = (0..STEP).map(|k| channel(SHARED, k));
            let first = (round * STEP).saturating_sub(KEPT);
            let moving = (first..(round + 1) * STEP).map(|k| channel(n, k % 20_000));
            let joined: Vec<Channel> = steady.chain(moving).collect();
            let keys: Vec<String> = joined.iter().map(name).collect();
            self.forget(&mut known, &keys);
            client.join(&id, &joined).await;
            self.joins.fetch_add(STEP as u64, Ordering::Relaxed);
            let mapped = client.wait_mapped(&id, joined.len()).await;
            self.check(&known, &mapped);
            known = mapped;
            if refreshed.elapsed() > Duration::from_secs(20) {
                let (status, _) = client.send(&MnatRequest::refresh(&id)).await;
                assert_eq!(status, 204, "client {n} was forgotten");
                refreshed = Instant::now();
            }
            round += 1;
            let pause = Duration::from_millis(500).saturating_sub(start.elapsed());
            tokio::time::sleep(pause).await;
        }
        client.longest
    }
}

/// Returns the name of a channel in [`Client::mapped`].
fn name(channel: &Channel) -> String {
    let source = channel.source().expect("a source");
    format!("{source},{}", channel.group())
}

/// Kills servers and members of etcd, and cuts them off, while clients join. `MCASTOR_ETCD_FAULTS` sets
/// the number of faults, `MCASTOR_ETCD_JOINS` the joins a second.
fn faults_of_servers_and_etcd_lose_no_mapping(lab: &Lab) {
    let variable = |name: &str, default: usize| {
        let value = std::env::var(name).ok();
        value.map_or(default, |n| n.parse().expect("a number"))
    };
    let faults = variable("MCASTOR_ETCD_FAULTS", 3);
    let clients = variable("MCASTOR_ETCD_JOINS", 60).div_ceil(20);
    let mut cluster = Cluster::start(lab);
    let load = Load::default();
    let space = cluster.clients.clone();
    let start = Instant::now();
    let longest = std::thread::scope(|scope| {
        let run = |n: usize| {
            let (load, space) = (&load, &space);
            scope.spawn(move || space.run(n, async |client: Client| load.run(client, n).await))
        };
        let threads: Vec<_> = (0..clients).map(run).collect();
        let mut random = Random::default();
        for fault in 0..faults {
            let before = load.joins.load(Ordering::Relaxed);
            let n = random.below(3);
            let short = Duration::from_millis(200 + random.below(800) as u64);
            let is_over = threads.iter().any(|t| t.is_finished());
            if is_over {
                break;
            }
            match fault % 3 {
                0 => cluster.kill_server(n, short),
                1 => {
                    let mut leader = None;
                    wait_until(POLL_INTERVAL, || {
                        leader = cluster.leader();
                        leader.is_some()
                    });
                    cluster.kill_etcd(leader.expect("a leader"), short);
                }
                _ => cluster.partition(n, short * 3),
            }
            // All clients go on.
            let enough = before + 20 * clients as u64;
            wait_until(POLL_INTERVAL, || {
                load.joins.load(Ordering::Relaxed) >= enough
            });
        }
        load.is_over.store(true, Ordering::Relaxed);
        let longest = threads.into_iter().map(|t| t.join().expect("a client"));
        longest.max().unwrap_or_default()
    });
    let joins = load.joins.load(Ordering::Relaxed);
    println!(
        "{faults} faults, {joins} joins in {:?}; the longest request took {longest:?}",
        start.elapsed()
    );
    assert!(longest < POLL_INTERVAL, "{longest:?}");
    check_agreement(&cluster);
}
