//! The router under test: this program's `run` as a child process.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::flows::DemoFlow;
use super::{DemoError, network, system};
use crate::sys::netns::NetNs;
use crate::sys::spawn;

/// The port `mcastor run` serves by default, so that a Prometheus set up for it sees the demo.
const PORT: u16 = 9464;
const PAUSE: Duration = Duration::from_millis(20);
/// Longest wait for an answer, and for the end of the child.
const ANSWER: Duration = Duration::from_millis(500);
const END: Duration = Duration::from_secs(2);
/// Most of an answer that is read.
const ANSWER_MAX: u64 = 4 << 20;

/// A listener on the loopback interface of the calling thread's namespace.
pub fn bind_http() -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, PORT))
        .or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
}

/// The router, until it is dropped: then it is stopped and its folder removed.
#[derive(Debug)]
pub struct RouterProcess {
    child: Child,
    dir: PathBuf,
    http: SocketAddr,
    routes: Vec<&'static str>,
}

impl RouterProcess {
    /// Starts it inside `netns`, serving HTTP on `listener`. It dies with the calling thread.
    pub fn start(
        netns: &NetNs,
        listener: TcpListener,
        flows: &[DemoFlow],
    ) -> Result<Self, DemoError> {
        let http = listener
            .local_addr()
            .map_err(system("ask for the port of the metrics"))?;
        let dir = make_dir().map_err(system("make a folder for the demo"))?;
        let started = (|| {
            let path = dir.join("router.toml");
            fs::write(&path, settings(http, &dir.join("control.sock"), flows))?;
            let log = File::create(dir.join("router.log"))?;
            let args = [OsStr::new("run"), OsStr::new("--config"), path.as_os_str()];
            spawn::spawn_self(&args, netns, &listener, log)
        })();
        match started {
            Ok(child) => Ok(Self {
                child,
                dir,
                http,
                routes: flows.iter().map(|f| f.name).collect(),
            }),
            Err(error) => {
                let _ = fs::remove_dir_all(&dir);
                Err(system("start the router")(error))
            }
        }
    }

    /// Where its metrics are.
    pub fn metrics_url(&self) -> String {
        format!("http://{}/metrics", self.http)
    }

    /// Its control socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    /// Its settings.
    pub fn config(&self) -> PathBuf {
        self.dir.join("router.toml")
    }

    /// Waits until it is ready. `Some` says why it will not be.
    pub fn wait_ready(
        &mut self,
        patience: Duration,
        stop: &AtomicBool,
    ) -> Result<Option<String>, DemoError> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(reason) = self.gone() {
                return Ok(Some(reason));
            }
            let last = match get(self.http, "/readyz") {
                Ok((200, _)) => return Ok(None),
                Ok((status, _)) => format!("/readyz answers {status}"),
                Err(e) if e.kind() == io::ErrorKind::NetworkUnreachable => {
                    return Err(DemoError::Loopback(e));
                }
                Err(e) => e.to_string(),
            };
            if stop.load(Ordering::Relaxed) {
                return Ok(Some("stopped before the router was ready".into()));
            }
            if Instant::now() > deadline {
                let log = self.log();
                return Ok(Some(format!("the router is not ready ({last}){log}")));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// `Some` says how it ended, if it has.
    pub fn gone(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok()??;
        Some(format!("the router ended ({status}){}", self.log()))
    }

    /// The last lines of its log, as an addition to a sentence.
    fn log(&self) -> String {
        let text = fs::read(self.dir.join("router.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().filter(|l| !l.trim().is_empty()).collect();
        let last = &lines[lines.len().saturating_sub(5)..];
        last.iter().map(|line| format!("\n  | {line}")).collect()
    }

    /// Packets forwarded by each route, from the metrics; `None` where they do not tell.
    pub fn forwarded(&self) -> Vec<Option<u64>> {
        let text = match get(self.http, "/metrics") {
            Ok((200, text)) => text,
            _ => String::new(),
        };
        let count = |route: &&str| packets_of(&text, route);
        self.routes.iter().map(count).collect()
    }

    /// What it dropped and why, from the metrics, in words; empty where nothing or unknown.
    pub fn drops(&self) -> String {
        match get(self.http, "/metrics") {
            Ok((200, page)) => drops_of(&page),
            _ => String::new(),
        }
    }

    /// Stops it and removes its folder.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let deadline = Instant::now() + END;
        if let Ok(None) = self.child.try_wait() {
            spawn::terminate(&self.child);
        }
        while let Ok(None) = self.child.try_wait() {
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                break;
            }
            std::thread::sleep(PAUSE);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Drop for RouterProcess {
    fn drop(&mut self) {
        self.end();
    }
}

/// A new folder that only this user can enter.
fn make_dir() -> io::Result<PathBuf> {
    let base = std::env::temp_dir();
    let mut attempt = 0u32;
    loop {
        let dir = base.join(format!("mcastor-demo-{}-{attempt}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => return Ok(dir),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && attempt < 100 => attempt += 1,
            Err(e) => return Err(e),
        }
    }
}

/// The settings file of the router.
fn settings(http: SocketAddr, socket: &Path, flows: &[DemoFlow]) -> String {
    let socket = toml_edit::Value::from(socket.to_string_lossy().into_owned());
    let mut text = format!(
        "# The router of `mcastor demo`.\n\
         [http]\nlisten = \"{http}\"\n\n[control]\nsocket = {socket}\n"
    );
    for flow in flows {
        text += &format!(
            "\n[[route]]\nname = \"{}\"\nfrom = \"{}\"\ngroup = \"{}\"\nto = [\"{}\"]\n",
            flow.name,
            network::IN,
            flow.group,
            network::OUT
        );
        if flow.keep_ttl {
            text += "ttl = \"keep\"\n";
        }
    }
    text
}

/// Asks for `path`: status and body.
fn get(addr: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&addr, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    // An answer to HTTP/1.0 is never chunked.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {addr}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
    parse_answer(&String::from_utf8_lossy(&answer))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an answer of HTTP"))
}

fn parse_answer(text: &str) -> Option<(u16, String)> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?;
    Some((status.parse().ok()?, body.to_owned()))
}

/// The sum of the packet counters of `route` in a page of metrics.
fn packets_of(page: &str, route: &str) -> Option<u64> {
    let label = format!("route=\"{route}\"");
    page.lines()
        .filter_map(|line| line.strip_prefix("mcastor_route_packets_total{"))
        .filter_map(|line| line.split_once('}'))
        .filter(|(labels, _)| labels.split(',').any(|l| l == label))
        .filter_map(|(_, value)| value.trim().parse::<f64>().ok())
        .map(|value| value as u64)
        .reduce(u64::saturating_add)
}

/// The counters of dropped packets above 0 in a page of metrics.
fn drops_of(page: &str) -> String {
    let value_of = |labels: &str, name: &str| {
        labels.split(',').find_map(|label| {
            let value = label.strip_prefix(name)?.strip_prefix("=\"")?;
            Some(value.strip_suffix('"')?.to_owned())
        })
    };
    page.lines()
        .filter_map(|line| line.strip_prefix("mcastor_dropped_packets_total{"))
        .filter_map(|line| line.split_once("} "))
        .filter(|(_, count)| *count != "0")
        .filter_map(|(labels, count)| {
            let reason = value_of(labels, "reason")?;
            Some(format!(
                "{count} {reason} at {}",
                value_of(labels, "iface")?
            ))
        })
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_a_route_are_added_up() {
        let page = "# HELP mcastor_route_packets_total Packets\n\
             mcastor_route_packets_total{iif=\"in\",oif=\"out\",plane=\"packet\",route=\"ipv4\"} 5\n\
             mcastor_route_packets_total{iif=\"in\",oif=\"out\",plane=\"ebpf\",route=\"ipv4\"} 7\n\
             mcastor_route_packets_total{iif=\"in\",oif=\"out\",plane=\"packet\",route=\"ipv46\"} 9\n\
             mcastor_route_bytes_total{route=\"ipv4\"} 11\n";
        assert_eq!(packets_of(page, "ipv4"), Some(12));
        assert_eq!(packets_of(page, "ttl-1"), None);
        assert_eq!(packets_of("", "ipv4"), None);
    }

    #[test]
    fn drops_are_named() {
        let page = "mcastor_dropped_packets_total{iface=\"out\",reason=\"queue_full\"} 6\n\
             mcastor_dropped_packets_total{iface=\"in\",reason=\"ttl\"} 0\n\
             mcastor_dropped_packets_total{reason=\"no_route\",iface=\"in\"} 2\n";
        assert_eq!(drops_of(page), "6 queue_full at out, 2 no_route at in");
        assert_eq!(drops_of("x\n"), "");
    }

    #[test]
    fn answers_are_split_and_nonsense_is_refused() {
        assert_eq!(
            parse_answer("HTTP/1.1 503 Service Unavailable\r\nA: b\r\n\r\nno"),
            Some((503, "no".into()))
        );
        assert_eq!(parse_answer("SSH-2.0-x\r\n\r\n"), None);
        assert_eq!(parse_answer("HTTP/1.1\r\n\r\n"), None);
    }

    #[test]
    fn settings_are_toml_whatever_the_path() {
        let flows = DemoFlow::all(true);
        let http = SocketAddr::from(([127, 0, 0, 1], 9464));
        let text = settings(http, Path::new("/tmp/a \"b\"\\c"), &flows);
        let doc: toml_edit::DocumentMut = text.parse().unwrap();
        assert_eq!(doc["control"]["socket"].as_str(), Some("/tmp/a \"b\"\\c"));
        let routes = doc["route"].as_array_of_tables().unwrap();
        assert_eq!(routes.len(), 3);
        assert_eq!(
            routes.get(1).unwrap()["group"].as_str(),
            Some("ff3e::225:1")
        );
        assert_eq!(routes.get(2).unwrap()["ttl"].as_str(), Some("keep"));
    }
}
