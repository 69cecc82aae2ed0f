//! The resources of the server, and their paths.

/// Path of the API on the server.
pub const ROOT: &str = "/mnat-ds";

const JOINED: &str = "data/ietf-mnat:egress-global-joined";
const WATCHING: &str = "data/ietf-mnat:ingress-watching";
const ASSIGNED: &str = "data/ietf-mnat:assigned-channels";
const OPERATIONS: &str = "operations";
const NEW_WATCHER: &str = "operations/ietf-mnat:get-new-watcher-id";
const REFRESH: &str = "operations/ietf-mnat:refresh-watcher-id";
const LIBRARY_VERSION: &str = "yang-library-version";
const DATA: &str = "data";

/// A resource that a path names. A list without an id stands for all watchers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resource {
    /// The root of the API (RFC 8040 section 3.3).
    Api,
    /// The document that names the root (RFC 8040 section 3.1).
    HostMeta,
    /// The version of the YANG library.
    LibraryVersion,
    /// The list of operations.
    Operations,
    /// All data.
    Data,
    /// The operation that issues a watcher id.
    NewWatcher,
    /// The operation that keeps a watcher id valid.
    Refresh,
    /// The channels that an egress joins.
    Joined(Option<String>),
    /// The sources that an ingress watches.
    Watching(Option<String>),
    /// The mappings for a watcher.
    Assigned(Option<String>),
    /// An operation that does not exist.
    UnknownOperation,
}

impl Resource {
    /// Parses the path of a request, which may end with a query. Returns `None` for a path that does
    /// not exist.
    pub fn parse(path: &str) -> Option<Self> {
        let path = path.split(['?', '#']).next().unwrap_or_default();
        if path == "/.well-known/host-meta" {
            return Some(Self::HostMeta);
        }
        let path = path.strip_prefix(ROOT)?;
        let path = match path {
            "" | "/" => return Some(Self::Api),
            path => path.strip_prefix('/')?,
        };
        let path = path.strip_suffix('/').unwrap_or(path);
        match path {
            OPERATIONS => return Some(Self::Operations),
            NEW_WATCHER => return Some(Self::NewWatcher),
            REFRESH => return Some(Self::Refresh),
            LIBRARY_VERSION => return Some(Self::LibraryVersion),
            DATA => return Some(Self::Data),
            _ if path.starts_with("operations/") => return Some(Self::UnknownOperation),
            _ => {}
        }
        type List = fn(Option<String>) -> Resource;
        let lists: [(&str, List); 3] = [
            (JOINED, Self::Joined),
            (WATCHING, Self::Watching),
            (ASSIGNED, Self::Assigned),
        ];
        let (rest, list) = lists
            .into_iter()
            .find_map(|(name, list)| Some((path.strip_prefix(name)?, list)))?;
        match rest {
            "" | "/watcher" => Some(list(None)),
            rest => {
                let key = rest.strip_prefix("/watcher=")?;
                (!key.contains('/')).then(|| list(Some(decode_key(key))))
            }
        }
    }

    /// Returns the path.
    pub fn path(&self) -> String {
        let (list, id) = match self {
            Self::Api => return ROOT.into(),
            Self::HostMeta => return "/.well-known/host-meta".into(),
            Self::LibraryVersion => (LIBRARY_VERSION, &None),
            Self::Operations | Self::UnknownOperation => (OPERATIONS, &None),
            Self::Data => (DATA, &None),
            Self::NewWatcher => (NEW_WATCHER, &None),
            Self::Refresh => (REFRESH, &None),
            Self::Joined(id) => (JOINED, id),
            Self::Watching(id) => (WATCHING, id),
            Self::Assigned(id) => (ASSIGNED, id),
        };
        match id {
            Some(id) => format!("{ROOT}/{list}/watcher={}", encode_key(id)),
            None => format!("{ROOT}/{list}"),
        }
    }
}

/// Formats an id as a key in a path. Escapes all but the unreserved characters (RFC 8040 section
/// 3.5.3).
fn encode_key(id: &str) -> String {
    let mut key = String::with_capacity(id.len());
    for byte in id.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            key.push(byte.into());
        } else {
            key += &format!("%{byte:02X}");
        }
    }
    key
}

/// Returns the id of a key in a path. An invalid escape stands for itself.
fn decode_key(key: &str) -> String {
    let mut bytes = Vec::with_capacity(key.len());
    let mut rest = key.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = match rest {
            [b'%', high, low, ..] => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16);
                digit(high)
                    .zip(digit(low))
                    .map(|(high, low)| (high * 16 + low) as u8)
            }
            _ => None,
        };
        (bytes, rest) = match escaped {
            Some(byte) => {
                bytes.push(byte);
                (bytes, &rest[3..])
            }
            None => {
                bytes.push(*first);
                (bytes, tail)
            }
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_parsed_as_formatted() {
        let id = || Some("A/B %é".to_string());
        for resource in [
            Resource::Api,
            Resource::HostMeta,
            Resource::LibraryVersion,
            Resource::Operations,
            Resource::Data,
            Resource::NewWatcher,
            Resource::Refresh,
            Resource::Joined(None),
            Resource::Joined(id()),
            Resource::Watching(None),
            Resource::Watching(id()),
            Resource::Assigned(None),
            Resource::Assigned(id()),
        ] {
            assert_eq!(Resource::parse(&resource.path()), Some(resource));
        }
        let assigned = Some(Resource::Assigned(Some("A%4".into())));
        assert_eq!(
            Resource::parse("/mnat-ds/data/ietf-mnat:assigned-channels/watcher=A%4?depth=1"),
            assigned
        );
    }

    #[test]
    fn unknown_paths_are_refused() {
        for path in [
            "",
            "/",
            "/nosuch",
            "/mnat-dsx",
            "/mnat-ds/data/foo:bar",
            "/mnat-ds/data/ietf-mnat:assigned-channels/watcher=A/mapped-sg",
            "/mnat-ds/data/ietf-mnat:assigned-channels/x",
        ] {
            assert_eq!(Resource::parse(path), None, "{path}");
        }
        assert_eq!(
            Resource::parse("/mnat-ds/operations/ietf-mnat:nosuch"),
            Some(Resource::UnknownOperation)
        );
    }
}
