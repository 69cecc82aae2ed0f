//! Limits of the memory that large answers take: while they are rendered, and until clients have read
//! them.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::body::{BodySize, MessageBody};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::refusals::Refusals;
use crate::metrics::http::HttpRefusal;

/// Limit of the answers that clients have not read, in KiB. A larger answer is sent alone.
const MAX_UNREAD_KIB: u32 = 16 << 10;
/// Answers of /api/v1 that are rendered at the same time.
const MAX_API_RENDERS: usize = 2;
/// How long a request waits for its turn, and again for memory.
const MAX_WAIT: Duration = Duration::from_secs(1);
/// Bytes that are handed to the connection at a time. actix-http copies them.
const CHUNK: usize = 16 << 10;

/// The limits of large answers.
pub struct AnswerLimits {
    /// One permit is 1 KiB.
    unread: Arc<Semaphore>,
    metrics: Arc<Semaphore>,
    api: Arc<Semaphore>,
    refusals: Refusals,
}

/// The permission to render one answer.
pub struct RenderTurn<'a> {
    limits: &'a AnswerLimits,
    _permit: OwnedSemaphorePermit,
}

/// Too many answers are being rendered, or have not been read.
#[derive(Debug, thiserror::Error)]
#[error(
    "too many answers are being rendered, or have not been read by other clients; try again in a \
     moment"
)]
pub struct Busy;

impl AnswerLimits {
    /// Returns limits of which nothing is used.
    pub fn new(refusals: Refusals) -> Self {
        Self {
            unread: Arc::new(Semaphore::new(MAX_UNREAD_KIB as usize)),
            metrics: Arc::new(Semaphore::new(1)),
            api: Arc::new(Semaphore::new(MAX_API_RENDERS)),
            refusals,
        }
    }

    /// Waits until the metrics may be rendered.
    ///
    /// # Errors
    /// The wait takes too long.
    pub async fn metrics_turn(&self) -> Result<RenderTurn<'_>, Busy> {
        self.turn(&self.metrics).await
    }

    /// Waits until an answer of the API may be rendered.
    ///
    /// # Errors
    /// The wait takes too long.
    pub async fn api_turn(&self) -> Result<RenderTurn<'_>, Busy> {
        self.turn(&self.api).await
    }

    async fn turn(&self, queue: &Arc<Semaphore>) -> Result<RenderTurn<'_>, Busy> {
        Ok(RenderTurn {
            limits: self,
            _permit: self.acquire(queue, 1).await?,
        })
    }

    async fn acquire(&self, from: &Arc<Semaphore>, n: u32) -> Result<OwnedSemaphorePermit, Busy> {
        // The semaphores are never closed.
        match timeout(MAX_WAIT, from.clone().acquire_many_owned(n)).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => {
                self.refusals.report(
                    HttpRefusal::Busy,
                    "answered 503, because too many answers are being rendered, or have not been \
                     read; look for clients that hang or query too often",
                );
                Err(Busy)
            }
        }
    }
}

impl RenderTurn<'_> {
    /// Returns the rendered answer as a body, as soon as there is memory for it.
    ///
    /// # Errors
    /// The wait takes too long.
    pub async fn body(self, text: impl Into<Vec<u8>>) -> Result<AnswerBody, Busy> {
        let text: Vec<u8> = text.into();
        let kib = u32::try_from(text.len().div_ceil(1024)).unwrap_or(MAX_UNREAD_KIB);
        let limits = self.limits;
        let memory = limits.acquire(&limits.unread, kib.min(MAX_UNREAD_KIB));
        Ok(AnswerBody {
            _memory: memory.await?,
            // Without spare capacity.
            unsent: text.into_boxed_slice().into(),
        })
    }
}

/// A body that is sent in chunks and counts as unread until it is dropped.
#[derive(Debug)]
pub struct AnswerBody {
    unsent: Bytes,
    _memory: OwnedSemaphorePermit,
}

impl MessageBody for AnswerBody {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.unsent.len() as u64)
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Infallible>>> {
        let len = self.unsent.len().min(CHUNK);
        Poll::Ready((len > 0).then(|| Ok(self.unsent.split_to(len))))
    }
}
