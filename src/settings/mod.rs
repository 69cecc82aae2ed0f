//! stub
#![allow(missing_docs)]
use crate::model::*;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
#[derive(Debug, Clone)]
pub struct Settings {
    pub http: HttpSettings,
    pub control: ControlSettings,
    pub plane: PlaneSettings,
    pub log: LogSettings,
    pub interfaces: Vec<InterfaceSettings>,
    pub routes: Vec<RouteRule>,
}
#[derive(Debug, Clone)]
pub struct HttpSettings {
    pub listen: Option<SocketAddr>,
}
#[derive(Debug, Clone)]
pub struct ControlSettings {
    pub socket: PathBuf,
}
#[derive(Debug, Clone, Copy)]
pub enum PlaneKind {
    Auto,
    Packet,
}
#[derive(Debug, Clone)]
pub struct PlaneSettings {
    pub kind: PlaneKind,
    pub qdisc_bypass: bool,
}
#[derive(Debug, Clone, Copy)]
pub enum LogFormat {
    Text,
    Json,
}
#[derive(Debug, Clone)]
pub struct LogSettings {
    pub level: String,
    pub format: LogFormat,
}
#[derive(Debug, Clone)]
pub struct InterfaceSettings {
    pub name: IfPattern,
    pub ttl_threshold: Option<TtlThreshold>,
}
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Report(pub String);
impl Settings {
    pub fn load(
        file: Option<&Path>,
        _env: impl Iterator<Item = (String, String)>,
    ) -> Result<Settings, Report> {
        let t: toml_edit::DocumentMut = std::fs::read_to_string(file.unwrap())
            .unwrap()
            .parse()
            .unwrap();
        let s = |i: Option<&toml_edit::Item>| i.and_then(|i| i.as_str()).map(str::to_string);
        let mut routes = vec![];
        for r in t
            .get("route")
            .and_then(|r| r.as_array_of_tables())
            .into_iter()
            .flatten()
        {
            let group: GroupPrefix = s(r.get("group")).unwrap().parse().unwrap();
            let source = s(r.get("source"))
                .map(|s| s.parse().unwrap())
                .unwrap_or(SourcePrefix::any_for(group));
            let from: IfPattern = s(r.get("from")).unwrap().parse().unwrap();
            let ttl = match r.get("ttl") {
                None => TtlPolicy::Decrement,
                Some(i) => match i.as_str() {
                    Some("keep") => TtlPolicy::Keep,
                    Some(_) => TtlPolicy::Decrement,
                    None => TtlPolicy::Set(i.get("set").unwrap().as_integer().unwrap() as u8),
                },
            };
            routes.push(RouteRule {
                name: s(r.get("name"))
                    .map(RouteName::new)
                    .unwrap_or(RouteName::default_for(&from, source, group)),
                origin: Origin::Settings,
                from,
                source,
                except_sources: r
                    .get("except_sources")
                    .and_then(|t| t.as_array())
                    .into_iter()
                    .flatten()
                    .map(|v| v.as_str().unwrap().parse().unwrap())
                    .collect(),
                group,
                to: r
                    .get("to")
                    .unwrap()
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|v| v.as_str().unwrap().parse().unwrap())
                    .collect(),
                ttl,
                link_local: r
                    .get("link_local")
                    .and_then(|b| b.as_bool())
                    .unwrap_or(false),
            });
        }
        let interfaces = t
            .get("interface")
            .and_then(|r| r.as_array_of_tables())
            .into_iter()
            .flatten()
            .map(|i| InterfaceSettings {
                name: s(i.get("name")).unwrap().parse().unwrap(),
                ttl_threshold: i
                    .get("ttl_threshold")
                    .and_then(|t| t.as_integer())
                    .and_then(|t| TtlThreshold::new(t as u8)),
            })
            .collect();
        Ok(Settings {
            http: HttpSettings {
                listen: s(t.get("http").and_then(|h| h.get("listen")))
                    .unwrap_or("127.0.0.1:9464".into())
                    .parse()
                    .ok(),
            },
            control: ControlSettings {
                socket: s(t.get("control").and_then(|h| h.get("socket")))
                    .unwrap_or("/run/mcastor.sock".into())
                    .into(),
            },
            plane: PlaneSettings {
                kind: PlaneKind::Auto,
                qdisc_bypass: t
                    .get("plane")
                    .and_then(|p| p.get("qdisc_bypass"))
                    .and_then(|b| b.as_bool())
                    .unwrap_or(false),
            },
            log: LogSettings {
                level: "debug".into(),
                format: LogFormat::Text,
            },
            interfaces,
            routes,
        })
    }
}
