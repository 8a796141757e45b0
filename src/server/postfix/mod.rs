//! What Postfix asks beside passwords: look-up tables (`maps`) and its policy server (`policy`). Both are questions and
//! answers in turn, on connections that stay open.

pub(super) mod maps;
pub(super) mod policy;

use std::io;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::write_timeout::write_out;
use crate::clock;

/// A request that has begun must be complete within this time.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);
/// Bytes read at a time; a request may be longer than one read.
const READ_BYTES: usize = 4096;

/// One connection.
struct Wire<S> {
    stream: S,
    input: BytesMut,
    output: Vec<u8>,
    write_limit: Duration,
    /// When the request that is being read began.
    begun: Option<Instant>,
}

/// What is waited for. Between requests there is no time limit: Postfix closes by itself, and what it finds closed it
/// may take for a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaits {
    Request,
    RestOfRequest,
}

/// What reading led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    Bytes,
    /// The peer says no more (it may still listen: Exim's readsocket half-closes), or the daemon stops.
    End,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Wire<S> {
    fn new(stream: S, write_limit: Duration) -> Self {
        let input = BytesMut::with_capacity(READ_BYTES);
        Self { stream, input, output: Vec::new(), write_limit, begun: None }
    }

    /// Writes what was answered, then reads more.
    async fn read(&mut self, awaits: Awaits, shutdown: &CancellationToken) -> io::Result<Read> {
        self.flush().await?;
        let until = match awaits {
            Awaits::Request => {
                self.begun = None;
                None
            }
            Awaits::RestOfRequest => {
                Some(*self.begun.get_or_insert_with(clock::now) + REQUEST_LIMIT)
            }
        };
        self.input.reserve(READ_BYTES);
        let read = tokio::select! {
            read = self.stream.read_buf(&mut self.input) => read?,
            () = tokio::time::sleep_until(until.unwrap_or_else(clock::now).into()), if until.is_some() => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "a request was not ended"));
            }
            () = shutdown.cancelled() => 0,
        };
        Ok(if read == 0 { Read::End } else { Read::Bytes })
    }

    async fn flush(&mut self) -> io::Result<()> {
        write_out(&mut self.stream, &mut self.output, self.write_limit).await
    }

    async fn close(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }
}

/// Says the same thing at most once in ten seconds: one message makes Postfix ask some thirty times.
#[derive(Debug, Default)]
struct Seldom(std::sync::Mutex<Option<Instant>>);

impl Seldom {
    const PAUSE: Duration = Duration::from_secs(10);

    fn is_due(&self, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let is_due = last.is_none_or(|last| now.duration_since(last) >= Self::PAUSE);
        if is_due {
            *last = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests;
