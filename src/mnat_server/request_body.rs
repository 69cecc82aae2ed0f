//! Bodies of requests, and the memory that they use together.

use std::time::Duration;

use h2::RecvStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::rest::MAX_BODY;
use super::site::{MemoryKind, ServerSite};
use crate::frontend::http::{ClientSource, Share};

/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How much of a body that is too long is read, so that the client sees the answer.
const MAX_DISCARDED: usize = 16 << 20;

/// Who sends a body.
#[derive(Clone, Copy)]
pub struct BodySender<'s> {
    /// The server.
    pub site: &'s ServerSite,
    /// The client.
    pub source: ClientSource,
    /// Closes the connection if the bodies of all requests use too much memory.
    pub closed: &'s CancellationToken,
}

/// The body of a request.
pub struct RequestBody {
    /// `None` if the body is longer than [`MAX_BODY`].
    bytes: Option<Vec<u8>>,
    /// `None` if the body uses no memory.
    share: Option<Share>,
}

/// Why a body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyError {
    /// The client did not send it in time.
    Slow,
    /// It is longer than what is read of a body that is too long.
    Long,
    /// The client ended the stream or the connection.
    Ended,
}

impl RequestBody {
    /// Reads a body as fast as it arrives, so that it does not wait in buffers of h2, where nothing
    /// counts it.
    ///
    /// # Errors
    /// The client does not send it.
    pub async fn read(stream: &mut RecvStream, sender: BodySender<'_>) -> Result<Self, BodyError> {
        let read = timeout(BODY_TIMEOUT, Self::read_all(stream, sender)).await;
        read.unwrap_or(Err(BodyError::Slow))
    }

    async fn read_all(stream: &mut RecvStream, sender: BodySender<'_>) -> Result<Self, BodyError> {
        let (mut bytes, mut share) = (Some(Vec::new()), None);
        let mut len = 0;
        while let Some(chunk) = stream.data().await {
            let chunk = chunk.map_err(|_| BodyError::Ended)?;
            // Fails only if the connection is gone.
            let _ = stream.flow_control().release_capacity(chunk.len());
            len += chunk.len();
            if len > MAX_DISCARDED {
                return Err(BodyError::Long);
            }
            if len > MAX_BODY {
                (bytes, share) = (None, None);
            }
            if let Some(bytes) = &mut bytes {
                bytes.extend_from_slice(&chunk);
                let BodySender {
                    site,
                    source,
                    closed,
                } = sender;
                let kind = MemoryKind::Bodies;
                share = Some(site.use_memory(kind, share, chunk.len(), source, closed));
            }
        }
        Ok(Self { bytes, share })
    }

    /// Returns the bytes; `None` if the body is longer than [`MAX_BODY`].
    pub fn bytes(&self) -> Option<&[u8]> {
        self.bytes.as_deref()
    }

    /// Returns the share of the body in the memory of all bodies.
    pub fn into_share(self) -> Option<Share> {
        self.share
    }
}
