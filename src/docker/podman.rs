//! The part of Podman's own API that its Docker-compatible API lacks: the bridges of networks.

use std::time::Duration;

use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Path of the list of networks. Podman 4 and later serve it, in this version too.
const NETWORKS: &str = "/v4.0.0/libpod/networks/json";
/// The first major version of Podman whose list of networks contains the bridges.
pub(super) const FIRST_VERSION: u32 = 4;
/// Limit of a reply in bytes.
const MAX_REPLY: usize = 16 << 20;

/// An error of a request to Podman's own API.
#[derive(Debug, thiserror::Error)]
pub enum PodmanError {
    /// The version is too old.
    #[error("Podman {0} does not report the bridges of its networks; Podman {FIRST_VERSION} does")]
    Version(String),
    /// The socket cannot be reached.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The connection failed.
    #[error("{0}")]
    Http(#[from] hyper::Error),
    /// The request is not valid.
    #[error("{0}")]
    Request(#[from] http::Error),
    /// The reply cannot be read or is too long.
    #[error("cannot read the list of networks: {0}")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The reply is an error of Podman.
    #[error("{NETWORKS}: Podman answers {0}")]
    Status(StatusCode),
    /// The reply is not a list of networks.
    #[error("cannot parse the list of networks: {0}")]
    Json(#[from] serde_json::Error),
    /// The reply does not arrive in time.
    #[error("Podman does not answer")]
    Timeout(#[from] tokio::time::error::Elapsed),
}

/// A network in Podman's own API.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PodmanNetwork {
    /// The network ID, as in the Docker-compatible API.
    pub id: String,
    /// The name. The Docker-compatible API calls the default network `bridge` instead.
    pub name: String,
    /// The bridge of a bridge network; the parent interface of a macvlan network.
    #[serde(default)]
    pub network_interface: Option<String>,
}

/// Reads the networks from the socket at `path`.
pub async fn read_networks(path: &str, limit: Duration) -> Result<Vec<PodmanNetwork>, PodmanError> {
    timeout(limit, request_networks(path)).await?
}

async fn request_networks(path: &str) -> Result<Vec<PodmanNetwork>, PodmanError> {
    let stream = TokioIo::new(UnixStream::connect(path).await?);
    let (mut sender, connection) = http1::handshake(stream).await?;
    let request = Request::get(NETWORKS).header(header::HOST, "podman");
    let request = request.body(Empty::<Bytes>::new())?;
    let exchange = async move {
        let reply = sender.send_request(request).await?;
        let status = reply.status();
        if status != StatusCode::OK {
            return Err(PodmanError::Status(status));
        }
        let body = Limited::new(reply.into_body(), MAX_REPLY).collect().await;
        let body = body.map_err(PodmanError::Body)?;
        Ok(serde_json::from_slice(&body.to_bytes())?)
    };
    // The connection ends when the exchange drops its sender.
    let (networks, closed) = tokio::join!(exchange, connection);
    let networks = networks?;
    closed?;
    Ok(networks)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The list of Podman 4.3.1 with CNI, shortened.
    const REPLY: &str = r#"[
        {"name": "cameras", "id": "48c237a6", "driver": "bridge",
         "network_interface": "cni-podman1", "subnets": [{"subnet": "172.30.0.0/24"}],
         "ipv6_enabled": true, "internal": true, "options": {"isolate": "true"}},
        {"name": "none-yet", "id": "1", "driver": "bridge"}
    ]"#;

    #[test]
    fn network_list_contains_bridges() {
        let networks: Vec<PodmanNetwork> = serde_json::from_str(REPLY).unwrap();
        let bridges: Vec<_> = networks
            .iter()
            .map(|n| n.network_interface.as_deref())
            .collect();
        assert_eq!(bridges, [Some("cni-podman1"), None]);
        assert_eq!(networks[0].id, "48c237a6");
    }
}
