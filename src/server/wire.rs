//! One connection of questions and answers in turn: what is common to the drivers of such protocols. Answers gather in
//! `output` and leave with one write when there is nothing left to read.

use std::fmt::Display;
use std::io;
use std::pin::Pin;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::door::Door;
use super::patience::Patience;
use super::write_timeout::write_out;

/// Bytes read at a time; a request may be longer than one read.
const READ_BYTES: usize = 4096;

/// One connection.
pub(super) struct Wire<S> {
    stream: S,
    door: Door,
    patience: Patience,
    /// One wait for all reads: to begin to wait takes the lock that all connections share.
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
    /// What was read and not understood yet.
    pub(super) input: BytesMut,
    /// What was answered and not sent yet.
    pub(super) output: Vec<u8>,
}

/// What is waited for. Between requests there is no time limit: mail servers close by themselves, and what they find
/// closed they may take for a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Awaits {
    /// The next request, or the rest of one whose beginning is in `input`.
    Request,
    /// The rest of a request whose beginning was taken out of `input` already.
    RestOfRequest,
}

/// What reading led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// There is more in `input`.
    Bytes,
    /// The peer says no more (it may still listen: Exim's readsocket half-closes), or the daemon stops.
    End,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Wire<S> {
    pub(super) fn new(stream: S, door: &Door, shutdown: CancellationToken) -> Self {
        let input = BytesMut::with_capacity(READ_BYTES);
        let (door, patience) = (door.clone(), Patience::default());
        let stopped = Box::pin(shutdown.cancelled_owned());
        Self { stream, door, patience, stopped, input, output: Vec::new() }
    }

    /// A whole request was taken out of `input`.
    pub(super) fn understood(&mut self) {
        self.patience.rest();
    }

    /// Writes what was answered, then reads more.
    ///
    /// # Errors
    /// The connection broke, the peer takes no answers, or it did not finish a request in time (which is counted).
    pub(super) async fn read(&mut self, awaits: Awaits) -> io::Result<Read> {
        self.flush().await?;
        match awaits {
            Awaits::Request => self.patience.wants_more(&self.input),
            Awaits::RestOfRequest => self.patience.has_begun(),
        }
        self.input.reserve(READ_BYTES);
        // Bytes that wait in the kernel come before the end, so that what was sent before a stop is answered. A peer that
        // never pauses is cut off by the daemon's own end.
        let read = tokio::select! {
            biased;
            read = self.stream.read_buf(&mut self.input) => read?,
            () = self.patience.over() => {
                self.door.metrics.protocol_error(&self.door.name);
                return Err(Patience::exhausted());
            }
            () = &mut self.stopped => 0,
        };
        Ok(if read == 0 { Read::End } else { Read::Bytes })
    }

    /// The peer broke the protocol: counted and told; what was answered before still goes out.
    ///
    /// # Errors
    /// Always: the connection cannot go on.
    pub(super) async fn broken(&mut self, error: impl Display + Send) -> io::Result<()> {
        let door = &self.door;
        door.metrics.protocol_error(&door.name);
        tracing::warn!(door = %door.name, %error, "a client broke the protocol");
        let broken = io::Error::new(io::ErrorKind::InvalidData, error.to_string());
        self.flush().await?;
        Err(broken)
    }

    pub(super) async fn flush(&mut self) -> io::Result<()> {
        write_out(&mut self.stream, &mut self.output, self.door.write_timeout).await
    }

    /// Sends what is left, and ends.
    pub(super) async fn close(&mut self) -> io::Result<()> {
        self.flush().await?;
        self.stream.shutdown().await
    }
}
