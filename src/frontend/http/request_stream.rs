//! A connection that carries one request.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use actix_rt::net::{ActixStream, Ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::refusals::Refusals;
use crate::metrics::http::HttpRefusal;

/// How long a client may take to send its request.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest size of the request line and the headers, in bytes.
const MAX_HEAD: usize = 16 << 10;
/// How long a client may leave its answer unread.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client may take to close the connection after its answer.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
/// Most input that is discarded after the request, in bytes.
const MAX_DISCARDED: usize = 256 << 10;

/// A stream that ends after the head of the first request.
///
/// actix-http parses every request that it can read before it answers the first one. So the stream
/// hides all input after the first head: to actix-http, the client has closed its sending direction.
/// A write that makes no progress fails after [`WRITE_TIMEOUT`].
///
/// The kernel resets a connection that is closed with unread input, and a reset discards an answer
/// that is still in transit. So a shutdown discards input until the client closes its end.
pub struct RequestStream<S> {
    io: S,
    head: HeadScanner,
    head_bytes: usize,
    /// Whether the client sent more than the first head.
    is_pipelined: bool,
    /// Whether the client did not send its request in time.
    is_late: bool,
    /// Runs while the client does not read.
    write_timeout: Option<Pin<Box<Sleep>>>,
    linger: Option<Linger>,
    refusals: Refusals,
}

/// The state of a shutdown.
struct Linger {
    timeout: Pin<Box<Sleep>>,
    discarded: usize,
}

impl<S> RequestStream<S> {
    /// Wraps an accepted connection.
    pub fn new(io: S, refusals: Refusals) -> Self {
        Self {
            io,
            head: HeadScanner::default(),
            head_bytes: 0,
            is_pipelined: false,
            is_late: false,
            write_timeout: None,
            linger: None,
            refusals,
        }
    }

    fn report_pipelined(&mut self) {
        if !std::mem::replace(&mut self.is_pipelined, true) {
            self.refusals.report(
                HttpRefusal::Pipelined,
                "a client sent more than one request, or a body; only the first request of a \
                 connection is answered: open a connection for each",
            );
        }
    }

    /// Counts an answer of actix-http to a request that did not arrive in time.
    fn report_late(&mut self, answer: &[u8]) {
        let is_late = !self.head.is_complete && answer.starts_with(b"HTTP/1.1 408");
        if is_late && !std::mem::replace(&mut self.is_late, true) {
            self.refusals.report(
                HttpRefusal::RequestTimeout,
                format_args!(
                    "closed the connection of a client that did not send its request within {} s",
                    REQUEST_TIMEOUT.as_secs()
                ),
            );
        }
    }

    /// Fails after the write timeout.
    fn poll_write_timeout(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let timeout = self
            .write_timeout
            .get_or_insert_with(|| Box::pin(sleep(WRITE_TIMEOUT)));
        ready!(timeout.as_mut().poll(cx));
        self.refusals.report(
            HttpRefusal::WriteTimeout,
            format_args!(
                "closed the connection of a client that did not read its answer for {} s; look for \
                 a client that hangs",
                WRITE_TIMEOUT.as_secs()
            ),
        );
        Poll::Ready(io::ErrorKind::TimedOut.into())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for RequestStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.head.is_complete || self.head_bytes > MAX_HEAD {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let read = &buf.filled()[before..];
        let (used, len) = (self.head.scan(read), read.len());
        self.head_bytes += used;
        if used < len {
            buf.set_filled(before + used);
            self.report_pipelined();
        }
        if self.head_bytes > MAX_HEAD {
            self.refusals.report(
                HttpRefusal::LongHead,
                format_args!(
                    "closed a connection, because the headers of its request are longer than \
                     {MAX_HEAD} bytes; send shorter ones"
                ),
            );
            // Not parsed, even if it is complete.
            buf.set_filled(before);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for RequestStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.report_late(buf);
        match Pin::new(&mut self.io).poll_write(cx, buf) {
            Poll::Ready(written) => {
                self.write_timeout = None;
                Poll::Ready(written)
            }
            Poll::Pending => self.poll_write_timeout(cx).map(Err),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
        }
        let mut linger = self.linger.take().unwrap_or_else(|| Linger {
            timeout: Box::pin(sleep(LINGER_TIMEOUT)),
            discarded: 0,
        });
        while linger.discarded < MAX_DISCARDED {
            let mut discarded = [0; 4096];
            let mut buf = ReadBuf::new(&mut discarded);
            match Pin::new(&mut self.io).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    linger.discarded += buf.filled().len();
                    self.report_pipelined();
                }
                // The client has closed or reset the connection.
                Poll::Ready(_) => break,
                Poll::Pending => {
                    let timeout = linger.timeout.as_mut().poll(cx);
                    self.linger = Some(linger);
                    return timeout.map(Ok);
                }
            }
        }
        self.linger = Some(linger);
        Poll::Ready(Ok(()))
    }
}

impl<S: ActixStream> ActixStream for RequestStream<S> {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        self.io.poll_read_ready(cx)
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        self.io.poll_write_ready(cx)
    }
}

/// Finds the empty line that ends the head of a request.
#[derive(Default)]
struct HeadScanner {
    /// Whether the request line has begun. Empty lines before it are permitted.
    has_begun: bool,
    /// Whether the current line has begun with a character.
    line_has_begun: bool,
    is_complete: bool,
}

impl HeadScanner {
    /// Reads the next bytes of the connection. Returns how many of them belong to the head.
    fn scan(&mut self, bytes: &[u8]) -> usize {
        for (n, byte) in bytes.iter().enumerate() {
            match byte {
                b'\n' if self.has_begun && !self.line_has_begun => {
                    self.is_complete = true;
                    return n + 1;
                }
                b'\n' => self.line_has_begun = false,
                b'\r' => {}
                _ => (self.has_begun, self.line_has_begun) = (true, true),
            }
        }
        bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_ends_at_the_first_empty_line() {
        for (head, rest) in [
            ("GET / HTTP/1.1\r\n\r\n", ""),
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET /2"),
            ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "\r\n\r\n"),
            ("GET / HTTP/1.0\n\n", "\n"),
            ("GET / HTTP/1.0\nA: b\n\r\n", "body"),
        ] {
            let all = [head, rest].concat();
            for chunk in 1..=all.len() {
                let mut scanner = HeadScanner::default();
                let mut used = 0;
                for bytes in all.as_bytes().chunks(chunk) {
                    if !scanner.is_complete {
                        used += scanner.scan(bytes);
                    }
                }
                assert!(scanner.is_complete);
                assert_eq!(&all[..used], head, "in chunks of {chunk}");
            }
        }
    }

    #[test]
    fn head_without_an_empty_line_is_not_complete() {
        let mut scanner = HeadScanner::default();
        assert_eq!(scanner.scan(b"\r\n\r\nGET / HTTP/1.1\r\nA: b\r\n"), 26);
        assert!(!scanner.is_complete);
    }
}
