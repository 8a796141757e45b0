//! Writes that end within a time limit: a buffer of ours, or a stream for code that has no such limit of its own
//! (hyper).

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Writes the buffer out with one write where the peer takes it, and empties it.
///
/// # Errors
/// If the connection breaks, or the peer takes nothing for `limit` ([`io::ErrorKind::TimedOut`]).
pub(super) async fn write_out<S: AsyncWrite + Unpin>(
    stream: &mut S,
    output: &mut Vec<u8>,
    limit: Duration,
) -> io::Result<()> {
    if output.is_empty() {
        return Ok(());
    }
    // Nearly always the peer takes it all at once, and no timer is needed.
    let at_once = poll_fn(|context| match Pin::new(&mut *stream).poll_write(context, output) {
        Poll::Ready(written) => Poll::Ready(written),
        Poll::Pending => Poll::Ready(Ok(0)),
    });
    let written = at_once.await?;
    if written < output.len() {
        let rest = output.get(written..).unwrap_or_default();
        tokio::time::timeout(limit, stream.write_all(rest))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "peer takes no answers"))??;
    }
    output.clear();
    Ok(())
}

/// A stream whose peer must take bytes within `limit`; else the write fails with [`io::ErrorKind::TimedOut`].
#[derive(Debug)]
pub(super) struct WriteTimeout<S> {
    stream: S,
    limit: Duration,
    timer: Pin<Box<Sleep>>,
    waiting: Waiting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    No,
    Yes,
}

impl<S> WriteTimeout<S> {
    pub(super) fn new(stream: S, limit: Duration) -> Self {
        let timer = Box::pin(tokio::time::sleep(limit));
        Self { stream, limit, timer, waiting: Waiting::No }
    }

    /// Passes on what the stream says, and counts the time as long as that is "not yet".
    fn limited<T>(
        &mut self,
        context: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.waiting = Waiting::No;
            return polled;
        }
        if self.waiting == Waiting::No {
            self.timer.as_mut().reset(Instant::now() + self.limit);
            self.waiting = Waiting::Yes;
        }
        ready!(self.timer.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeout<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteTimeout<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.limited(context, polled)
    }

    // Without these two hyper would copy every answer, the longest too, into a buffer of its own.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.limited(context, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.limited(context, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(context);
        self.limited(context, polled)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_cut_off_after_the_limit() {
        let (ours, _theirs) = tokio::io::duplex(16);
        let mut stream = WriteTimeout::new(ours, Duration::from_secs(10));
        let begun = Instant::now();

        let error = stream.write_all(&[0; 64]).await.unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed().as_secs(), 10);
    }
}
