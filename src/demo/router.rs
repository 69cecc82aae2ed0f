//! The router of the demo: a child process that runs `mcastor run`.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::error::{DemoError, system_error};
use super::flows::DemoFlow;
use super::network;
use crate::sys::netns::NetNs;
use crate::sys::spawn;

/// Default HTTP port of `mcastor run`, so that an existing Prometheus configuration scrapes the
/// demo.
const PORT: u16 = 9464;
/// Pause between two polls of the child process.
const PAUSE: Duration = Duration::from_millis(20);
/// Longest wait for an HTTP response.
const HTTP_TIMEOUT: Duration = Duration::from_millis(500);
/// Longest wait for the exit of the child process before it is killed.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);
/// Largest part of an HTTP response that is read, in bytes.
const RESPONSE_MAX: u64 = 4 << 20;

/// Opens a listener on the loopback interface of the calling thread's network namespace.
pub fn bind_http() -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, PORT))
        .or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
}

/// The running router. Dropping it stops the process and removes its directory.
#[derive(Debug)]
pub struct RouterProcess {
    child: Child,
    dir: PathBuf,
    http: SocketAddr,
    routes: Vec<&'static str>,
}

impl RouterProcess {
    /// Starts the router in `netns`, with HTTP on `listener`. The kernel kills it if the calling
    /// thread ends.
    pub fn start(
        netns: &NetNs,
        listener: TcpListener,
        flows: &[DemoFlow],
    ) -> Result<Self, DemoError> {
        let http = listener
            .local_addr()
            .map_err(system_error("get the port of the metrics"))?;
        let dir = make_dir().map_err(system_error("create a directory for the demo"))?;
        let child = (|| {
            let path = dir.join("router.toml");
            fs::write(&path, settings(http, &dir.join("control.sock"), flows))?;
            let log = File::create(dir.join("router.log"))?;
            let args = [OsStr::new("run"), OsStr::new("--config"), path.as_os_str()];
            spawn::spawn_self(&args, netns, &listener, log)
        })();
        match child {
            Ok(child) => Ok(Self {
                child,
                dir,
                http,
                routes: flows.iter().map(|f| f.name).collect(),
            }),
            Err(error) => {
                let _ = fs::remove_dir_all(&dir);
                Err(system_error("start the router")(error))
            }
        }
    }

    /// Returns the URL of the metrics.
    pub fn metrics_url(&self) -> String {
        format!("http://{}/metrics", self.http)
    }

    /// Returns the path of the control socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    /// Returns the path of the settings file.
    pub fn config(&self) -> PathBuf {
        self.dir.join("router.toml")
    }

    /// Waits until the router is ready, for at most `patience`. Returns the reason if it is not.
    pub fn wait_ready(
        &mut self,
        patience: Duration,
        stop: &AtomicBool,
    ) -> Result<Option<String>, DemoError> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(reason) = self.exit_reason() {
                return Ok(Some(reason));
            }
            let last = match http_get(self.http, "/readyz") {
                Ok((200, _)) => return Ok(None),
                Ok((status, _)) => format!("/readyz returns {status}"),
                Err(e) if e.kind() == io::ErrorKind::NetworkUnreachable => {
                    return Err(DemoError::Loopback(e));
                }
                Err(e) => e.to_string(),
            };
            if stop.load(Ordering::Relaxed) {
                return Ok(Some("stopped before the router was ready".into()));
            }
            if Instant::now() > deadline {
                let log = self.last_log_lines();
                return Ok(Some(format!("the router is not ready ({last}){log}")));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Returns how the process exited, with the end of its log; `None` while it runs.
    pub fn exit_reason(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok()??;
        Some(format!(
            "the router exited ({status}){}",
            self.last_log_lines()
        ))
    }

    /// Returns the last five lines of the log, to append to a message.
    fn last_log_lines(&self) -> String {
        let text = fs::read(self.dir.join("router.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().filter(|l| !l.trim().is_empty()).collect();
        let last = &lines[lines.len().saturating_sub(5)..];
        last.iter().map(|line| format!("\n  | {line}")).collect()
    }

    /// Returns the packets that each route forwarded, from the metrics; `None` if they lack the
    /// route.
    pub fn forwarded(&self) -> Vec<Option<u64>> {
        let text = match http_get(self.http, "/metrics") {
            Ok((200, text)) => text,
            _ => String::new(),
        };
        let count = |route: &&str| count_route_packets(&text, route);
        self.routes.iter().map(count).collect()
    }

    /// Returns the dropped packets by reason and interface, from the metrics, as text. Empty if
    /// there are none or the metrics cannot be read.
    pub fn drops(&self) -> String {
        match http_get(self.http, "/metrics") {
            Ok((200, page)) => describe_drops(&page),
            _ => String::new(),
        }
    }

    /// Stops the process and removes its directory.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let deadline = Instant::now() + EXIT_TIMEOUT;
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

/// Creates a directory that only this user can access.
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

/// Returns the settings file of the router.
fn settings(http: SocketAddr, socket: &Path, flows: &[DemoFlow]) -> String {
    let socket = toml_edit::Value::from(socket.to_string_lossy().into_owned());
    // If it is killed, what holds its memberships must not hold the namespaces for long.
    let mut text = format!(
        "# The router of `mcastor demo`.\n\
         [http]\nlisten = \"{http}\"\n\n[control]\nsocket = {socket}\n\n\
         [plane]\norphan_after = \"1s\"\n"
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

/// Requests `path` over HTTP; returns status and body.
fn http_get(addr: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&addr, HTTP_TIMEOUT)?;
    stream.set_read_timeout(Some(HTTP_TIMEOUT))?;
    stream.set_write_timeout(Some(HTTP_TIMEOUT))?;
    // A response to an HTTP/1.0 request is never chunked.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {addr}\r\n\r\n")?;
    let mut response = Vec::new();
    stream.take(RESPONSE_MAX).read_to_end(&mut response)?;
    parse_response(&String::from_utf8_lossy(&response))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an HTTP response"))
}

/// Splits an HTTP response into status and body; `None` if it is malformed.
fn parse_response(text: &str) -> Option<(u16, String)> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?;
    Some((status.parse().ok()?, body.to_owned()))
}

/// Returns the sum of the packet counters of `route` in a metrics page.
fn count_route_packets(page: &str, route: &str) -> Option<u64> {
    let label = format!("route=\"{route}\"");
    page.lines()
        .filter_map(|line| line.strip_prefix("mcastor_route_packets_total{"))
        .filter_map(|line| line.split_once('}'))
        .filter(|(labels, _)| labels.split(',').any(|l| l == label))
        .filter_map(|(_, value)| value.trim().parse::<f64>().ok())
        .map(|value| value as u64)
        .reduce(u64::saturating_add)
}

/// Describes the counters of dropped packets above 0 in a metrics page.
fn describe_drops(page: &str) -> String {
    let label_value = |labels: &str, name: &str| {
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
            let reason = label_value(labels, "reason")?;
            Some(format!(
                "{count} {reason} at {}",
                label_value(labels, "iface")?
            ))
        })
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn route_counters_are_summed() {
        let page = "# HELP mcastor_route_packets_total Packets\n\
             mcastor_route_packets_total{iif=\"in\",oif=\"out\",plane=\"packet\",route=\"ipv4\"} 5\n\
             mcastor_route_packets_total{iif=\"in\",oif=\"out\",plane=\"ebpf\",route=\"ipv4\"} 7\n\
             mcastor_route_packets_total{iif=\"in\",oif=\"out\",plane=\"packet\",route=\"ipv46\"} 9\n\
             mcastor_route_bytes_total{route=\"ipv4\"} 11\n";
        assert_eq!(count_route_packets(page, "ipv4"), Some(12));
        assert_eq!(count_route_packets(page, "ttl-1"), None);
        assert_eq!(count_route_packets("", "ipv4"), None);
    }

    #[test]
    fn drops_are_described_by_reason_and_interface() {
        let page = "mcastor_dropped_packets_total{iface=\"out\",reason=\"queue_full\"} 6\n\
             mcastor_dropped_packets_total{iface=\"in\",reason=\"ttl\"} 0\n\
             mcastor_dropped_packets_total{reason=\"no_route\",iface=\"in\"} 2\n";
        assert_eq!(
            describe_drops(page),
            "6 queue_full at out, 2 no_route at in"
        );
        assert_eq!(describe_drops("x\n"), "");
    }

    #[test]
    fn http_response_parser_rejects_malformed_status() {
        assert_eq!(
            parse_response("HTTP/1.1 503 Service Unavailable\r\nA: b\r\n\r\nno"),
            Some((503, "no".into()))
        );
        assert_eq!(parse_response("SSH-2.0-x\r\n\r\n"), None);
        assert_eq!(parse_response("HTTP/1.1\r\n\r\n"), None);
    }

    #[test]
    fn settings_escape_the_socket_path() {
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
