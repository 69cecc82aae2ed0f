//! Every key of the settings, and where a path of keys leads.

use std::fmt;

/// What may stand under a key.
#[derive(Debug)]
pub(super) enum Kind {
    /// A string.
    Text,
    /// `true` or `false`.
    Flag,
    /// A whole number.
    Number,
    /// A list of strings.
    List,
    /// A word, or `true` or `false`.
    WordOrFlag,
    /// A word, or an inline table with these keys.
    WordOrTable(&'static [Key]),
    /// `[name]`, or an inline table where it stands in another.
    Table(&'static [Key]),
    /// `[[name]]`.
    Tables(&'static [Key]),
}

/// A key and what it takes.
#[derive(Debug)]
pub(super) struct Key {
    pub name: &'static str,
    pub kind: Kind,
    /// A right value, as an error may show it.
    pub example: &'static str,
}

const fn key(name: &'static str, kind: Kind, example: &'static str) -> Key {
    Key {
        name,
        kind,
        example,
    }
}

/// The whole format.
pub(super) static ROOT: Kind = Kind::Table(&[
    key(
        "http",
        Kind::Table(&[key("listen", Kind::Text, r#""127.0.0.1:9464""#)]),
        "",
    ),
    key(
        "control",
        Kind::Table(&[key("socket", Kind::Text, r#""/run/mcastor.sock""#)]),
        "",
    ),
    key(
        "docker",
        Kind::Table(&[key("socket", Kind::Text, r#""/var/run/docker.sock""#)]),
        "",
    ),
    key(
        "plane",
        Kind::Table(&[
            key("kind", Kind::Text, r#""auto""#),
            key("qdisc_bypass", Kind::Flag, "false"),
            key("busy_poll", Kind::Number, "200"),
        ]),
        "",
    ),
    key(
        "log",
        Kind::Table(&[
            key("level", Kind::Text, r#""info""#),
            key("format", Kind::Text, r#""text""#),
        ]),
        "",
    ),
    key(
        "interface",
        Kind::Tables(&[
            key("name", Kind::Text, r#""eth1""#),
            key("ttl_threshold", Kind::Number, "3"),
            key("enabled", Kind::Flag, "false"),
            key("mrdisc", Kind::Flag, "true"),
        ]),
        "",
    ),
    key(
        "route",
        Kind::Tables(&[
            key("name", Kind::Text, r#""cameras""#),
            key("from", Kind::Text, r#""eth0""#),
            key("source", Kind::Text, r#""192.168.1.0/24""#),
            key("except_sources", Kind::List, r#"["192.168.1.7"]"#),
            key("group", Kind::Text, r#""225.1.2.0/24""#),
            key("to", Kind::List, r#"["eth1"]"#),
            key(
                "ttl",
                Kind::WordOrTable(&[key("set", Kind::Number, "8")]),
                "{ set = 8 }",
            ),
            key("link_local", Kind::Flag, "true"),
            key("join", Kind::WordOrFlag, r#""auto""#),
            key("loop_guard", Kind::Flag, "true"),
            key(
                "rewrite",
                Kind::Table(&[
                    key("source", Kind::Text, r#""10.9.1.2""#),
                    key("group", Kind::Text, r#""239.1.1.1""#),
                    key("port", Kind::Number, "5001"),
                ]),
                r#"{ group = "239.1.1.1" }"#,
            ),
        ]),
        "",
    ),
    key(
        "join",
        Kind::Tables(&[
            key("interface", Kind::Text, r#""eth0""#),
            key("source", Kind::Text, r#""10.0.0.10""#),
            key("group", Kind::Text, r#""232.1.2.3""#),
        ]),
        "",
    ),
    key(
        "proxy",
        Kind::Tables(&[
            key("name", Kind::Text, r#""cameras""#),
            key("upstream", Kind::List, r#"["eth0"]"#),
            key("downstream", Kind::List, r#"["br-*"]"#),
            key("upward", Kind::Flag, "true"),
            key("querier", Kind::Text, r#""auto""#),
            key(
                "version",
                Kind::Table(&[
                    key("igmp", Kind::Number, "3"),
                    key("mld", Kind::Number, "2"),
                ]),
                "{ igmp = 3, mld = 2 }",
            ),
            key("groups", Kind::List, r#"["239.0.0.0/8"]"#),
            key("deny_groups", Kind::List, r#"["239.255.0.0/16"]"#),
            key("sources", Kind::List, r#"["10.0.0.0/8"]"#),
            key("deny_sources", Kind::List, r#"["10.0.0.7"]"#),
            key("fast_leave", Kind::Flag, "true"),
            key(
                "ttl",
                Kind::WordOrTable(&[key("set", Kind::Number, "8")]),
                "{ set = 8 }",
            ),
            key("header_checks", Kind::Text, r#""strict""#),
            key("takeover", Kind::Text, r#""1s""#),
            key(
                "timers",
                Kind::Table(&[
                    key("robustness", Kind::Number, "2"),
                    key("query_interval", Kind::Text, r#""125s""#),
                    key("query_response_interval", Kind::Text, r#""10s""#),
                    key("last_member_query_interval", Kind::Text, r#""1s""#),
                    key("last_member_query_count", Kind::Number, "2"),
                    key("startup_query_count", Kind::Number, "2"),
                    key("startup_query_interval", Kind::Text, r#""31s""#),
                ]),
                r#"{ query_interval = "60s" }"#,
            ),
            key(
                "limits",
                Kind::Table(&[
                    key("groups", Kind::Number, "4096"),
                    key("sources_per_group", Kind::Number, "256"),
                    key("reports_per_second", Kind::Number, "10000"),
                ]),
                "{ groups = 4096 }",
            ),
        ]),
        "",
    ),
    key(
        "mrdisc",
        Kind::Table(&[key("interval", Kind::Text, r#""20s""#)]),
        "",
    ),
    key(
        "mnat",
        Kind::Table(&[
            key("role", Kind::Text, r#""egress""#),
            key("server", Kind::Text, r#""https://mnat.example.net:8443""#),
            key("ca", Kind::Text, r#""/etc/mnat/ca.pem""#),
            key("cert", Kind::Text, r#""/etc/mnat/client.pem""#),
            key("key", Kind::Text, r#""/etc/mnat/client.key""#),
            key("upstream", Kind::Text, r#""xup0""#),
            key("downstream", Kind::Text, r#""xdn0""#),
            key("joinfile", Kind::Text, r#""/var/run/mnat/egress.sgs""#),
            key("joins", Kind::List, r#"["members", "joinfile"]"#),
            key("grace", Kind::Text, r#""5m""#),
        ]),
        "",
    ),
    key(
        "limits",
        Kind::Table(&[
            key("flows", Kind::Number, "65536"),
            key("flow_idle", Kind::Number, "60"),
        ]),
        "",
    ),
]);

static TEXT: Kind = Kind::Text;

impl Kind {
    /// The keys this one holds, where it is a table or a list of tables.
    pub fn keys(&self) -> &'static [Key] {
        match self {
            Self::Table(keys) | Self::Tables(keys) | Self::WordOrTable(keys) => keys,
            _ => &[],
        }
    }
}

/// One step of a [`KeyPath`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

/// The way to a value: `route[1].to[0]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(super) struct KeyPath(pub Vec<Step>);

impl KeyPath {
    /// The path to a table of the top level.
    pub fn root(name: &str) -> Self {
        Self::default().key(name)
    }

    /// One key further.
    pub fn key(&self, name: &str) -> Self {
        self.then(Step::Key(name.into()))
    }

    /// One list entry further.
    pub fn index(&self, index: usize) -> Self {
        self.then(Step::Index(index))
    }

    fn then(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    /// The path without its last step.
    pub fn parent(&self) -> Self {
        Self(self.0[..self.0.len().saturating_sub(1)].to_vec())
    }

    /// The last key on the path.
    pub fn last_key(&self) -> &str {
        let keys = self.0.iter().rev().find_map(|step| match step {
            Step::Key(name) => Some(name.as_str()),
            Step::Index(_) => None,
        });
        keys.unwrap_or_default()
    }

    /// Where the path ends in the format: its kind, and the key that says so.
    pub fn find(&self) -> Option<(&'static Kind, Option<&'static Key>)> {
        let mut kind: &'static Kind = &ROOT;
        let mut found = None;
        let mut entry_of_tables = false;
        for step in &self.0 {
            match (step, kind) {
                (Step::Index(_), Kind::Tables(_)) if !entry_of_tables => entry_of_tables = true,
                (Step::Index(_), Kind::List) => kind = &TEXT,
                (Step::Key(_), Kind::Tables(_)) if !entry_of_tables => return None,
                (Step::Key(name), _) => {
                    let key = kind.keys().iter().find(|key| key.name == name)?;
                    entry_of_tables = false;
                    kind = &key.kind;
                    found = Some(key);
                }
                (Step::Index(_), _) => return None,
            }
        }
        Some((kind, found))
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(name) if n == 0 => f.write_str(name)?,
                Step::Key(name) => write!(f, ".{name}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// The table that a key with this name belongs to, written as its header.
pub(super) fn home_of(name: &str) -> Option<String> {
    ROOT.keys().iter().find_map(|table| {
        let holds = table.kind.keys().iter().any(|key| key.name == name);
        holds.then(|| header(table))
    })
}

/// `[http]` or `[[route]]`.
pub(super) fn header(table: &Key) -> String {
    match table.kind {
        Kind::Tables(_) => format!("[[{}]]", table.name),
        _ => format!("[{}]", table.name),
    }
}

/// The known word nearest to what was written, if any is near.
pub(super) fn nearest<'a>(
    written: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let written = written.to_lowercase().replace('-', "_");
    let (distance, word) = known
        .into_iter()
        .map(|word| {
            let part = written.len() >= 3 && word.starts_with(&written);
            let distance = if part {
                0
            } else {
                strsim::damerau_levenshtein(&written, word)
            };
            (distance, word)
        })
        .min_by_key(|(distance, _)| *distance)?;
    (distance <= (word.len() / 3).max(1)).then_some(word)
}

/// `` `a`, `b`, `c` ``.
pub(super) fn listed<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<_> = words.into_iter().map(|word| format!("`{word}`")).collect();
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_kinds() {
        let route = KeyPath::root("route");
        assert!(matches!(
            route.index(3).key("group").find(),
            Some((Kind::Text, Some(Key { name: "group", .. })))
        ));
        assert!(matches!(
            route.index(0).key("to").index(1).find(),
            Some((Kind::Text, _))
        ));
        assert!(matches!(
            route.index(0).key("ttl").key("set").find(),
            Some((Kind::Number, _))
        ));
        for wrong in [
            route.key("group"),
            route.index(0).index(0),
            route.index(0).key("group").index(0),
            KeyPath::root("http").index(0),
            KeyPath::root("htp"),
        ] {
            assert!(wrong.find().is_none(), "{wrong}");
        }
    }

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let known = ["from", "except_sources", "group", "to", "ttl"];
        assert_eq!(nearest("form", known), Some("from"));
        assert_eq!(nearest("except", known), Some("except_sources"));
        assert_eq!(nearest("Except-Source", known), Some("except_sources"));
        assert_eq!(nearest("grp", known), None);
        assert_eq!(nearest("rewrite", known), None);
    }
}
