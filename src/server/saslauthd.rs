//! Cyrus SASL's saslauthd: one question per connection, from Postfix with `smtpd_sasl_type = cyrus`, Cyrus IMAP, Exim
//! and whatever else links libsasl.
//!
//! "Later" is a close without an answer: libsasl makes an error of it and the mail server a temporary one (`454`),
//! whereas `NO` is always a wrong password to them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::door::Door;
use super::listener::Peer;
use super::write_timeout::write_out;
use crate::auth::{Attempt, Reason, Refused, Service, Verdict};
use crate::clock;
use crate::identity::Domain;
use crate::lookup::{Found, Map};
use crate::proto::saslauthd::{MAX_FIELD_BYTES, MAX_REQUEST_BYTES, Reply, Request, parse};

/// From the connection to the end of the request: a client of this protocol says all it has to say at once.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);

/// Serves one connection: one request, one answer.
///
/// # Errors
/// What ended it, if not the peer.
pub(super) async fn serve<S>(
    mut stream: S,
    door: Arc<Door>,
    peer: Peer,
    shutdown: CancellationToken,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    // What came before a stop is read before it is heeded.
    let request = tokio::select! {
        biased;
        request = read_request(&mut stream) => request,
        () = shutdown.cancelled() => return Ok(()),
    };
    let request = match request {
        Ok(Some(request)) => request,
        Ok(None) => return Ok(()),
        Err(error) => {
            door.metrics.protocol_error(&door.name);
            tracing::warn!(door = %door.name, %error, "saslauthd client sent no whole request");
            return Err(error);
        }
    };
    let mut output = Vec::new();
    match decide(&door, request, peer).await {
        Verdict::Accept(_) => Reply::Ok.encode(&mut output),
        Verdict::Reject(refused) => Reply::No(words(&refused)).encode(&mut output),
        Verdict::Unavailable(_) => return Ok(()),
    }
    write_out(&mut stream, &mut output, door.write_timeout).await?;
    stream.shutdown().await
}

/// `None`: the peer went away before it said anything, or said nothing for so long; a probe does either.
async fn read_request<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Option<Request>> {
    let mut filled = 0;
    let read = tokio::time::timeout(REQUEST_LIMIT, read_whole(stream, &mut filled)).await;
    match read {
        Ok(request) => request,
        Err(_) if filled == 0 => Ok(None),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn read_whole<S: AsyncRead + Unpin>(
    stream: &mut S,
    filled: &mut usize,
) -> io::Result<Option<Request>> {
    let mut buffer = Zeroizing::new(vec![0; MAX_REQUEST_BYTES]);
    loop {
        let room = buffer.get_mut(*filled..).unwrap_or_default();
        let read = stream.read(room).await?;
        if read == 0 {
            return if *filled == 0 { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        *filled += read;
        let input = buffer.get(..*filled).unwrap_or_default();
        let parsed =
            parse(input).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if parsed.is_some() {
            return Ok(parsed);
        }
    }
}

async fn decide(door: &Door, request: Request, peer: Peer) -> Verdict {
    let excess = if request.login.len() > MAX_FIELD_BYTES {
        Some(Reason::BadName)
    } else if request.password.as_bytes().len() > MAX_FIELD_BYTES {
        Some(Reason::BadPasswordForm)
    } else {
        None
    };
    let attempt = attempt(door, request, peer);
    let Some(reason) = excess else { return door.decide_and_delay(attempt).await };
    let due = attempt.arrived + door.failure_delay;
    let verdict = door.core.refuse(&attempt, reason);
    door.delay(&verdict, due).await;
    verdict
}

fn attempt(door: &Door, request: Request, peer: Peer) -> Attempt {
    let Request { login, password, mut service, realm, client } = request;
    service.truncate(MAX_FIELD_BYTES);
    let service = String::from_utf8_lossy(&service);
    Attempt {
        login: joined(door, login, &realm),
        authzid: Vec::new(),
        password,
        service: Service::parse(&service),
        service_name: service.into_owned().into(),
        client: door.client(client, &peer),
        peer: peer.credentials,
        session: None,
        door: Arc::clone(&door.name),
        arrived: clock::now(),
    }
}

/// libsasl cuts `user@realm` in two; where it has nothing to cut, it says the server's own host name, or what the mail
/// server calls its default realm. So the realm is a part of the name only where it is a mail domain of ours, and never
/// where the name has a domain already.
fn joined(door: &Door, mut login: Vec<u8>, realm: &[u8]) -> Vec<u8> {
    if !login.is_empty() && !login.contains(&b'@') && is_ours(door, realm) {
        login.push(b'@');
        login.extend_from_slice(realm);
    }
    login
}

/// A mail domain that the configuration or a directory lists.
fn is_ours(door: &Door, realm: &[u8]) -> bool {
    if realm.is_empty() || realm.len() > MAX_FIELD_BYTES {
        return false;
    }
    if let Some(Found::Value(_)) = door.lookup.recall(Map::Domain, realm) {
        return true;
    }
    let domain = std::str::from_utf8(realm).ok().and_then(|text| Domain::parse(text).ok());
    domain.is_some_and(|domain| !door.core.setup().directories.route(&domain).is_empty())
}

/// The words behind `NO`: one table (login.md D-1), printed in docs/protocols/saslauthd.md and compared by a test.
/// Anything beyond "failed" is said only to those who proved the password (login.md O-7); libsasl ignores it, logs of
/// other clients show it.
fn words(refused: &Refused) -> &'static str {
    if !refused.proven {
        return "";
    }
    match refused.reason {
        Reason::PasswordExpired => "The password has expired",
        Reason::MustChange => "The password must be changed first",
        _ => super::words::of(refused).text.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Source;

    /// The table as docs/protocols/saslauthd.md prints it.
    fn table() -> String {
        let mut lines = String::from("| reason | password proven | answer |\n|---|---|---|\n");
        for proven in [true, false] {
            for &reason in Reason::ALL {
                let text = words(&Refused { proven, ..Refused::new(reason, Source::Directory) });
                if !text.is_empty() {
                    let proven = if proven { "yes" } else { "no" };
                    lines += &format!("| {} | {proven} | `NO {text}` |\n", reason.as_str());
                }
            }
        }
        lines
    }

    #[test]
    fn the_table_of_reasons_stands_in_the_docs() {
        let docs = include_str!("../../docs/protocols/saslauthd.md");
        assert!(docs.contains(&table()), "docs/protocols/saslauthd.md must hold:\n{}", table());
    }

    async fn request(input: &[&[u8]]) -> io::Result<Option<Request>> {
        let (mut ours, mut theirs) = tokio::io::duplex(16 * 1024);
        let writing = async {
            for part in input {
                theirs.write_all(part).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(theirs);
        };
        tokio::join!(read_request(&mut ours), writing).0
    }

    #[tokio::test]
    async fn a_request_may_come_byte_by_byte() {
        let bytes = b"\0\x03fry\0\x06secret\0\x04imap\0\0";
        let bytes: Vec<&[u8]> = bytes.chunks(1).collect();

        let request = request(&bytes).await.unwrap().unwrap();

        assert_eq!((&*request.login, &*request.service), (&b"fry"[..], &b"imap"[..]));
    }

    #[tokio::test]
    async fn an_end_in_the_middle_is_an_error_and_an_end_before_the_beginning_is_none() {
        assert!(request(&[]).await.unwrap().is_none());
        for input in [&b"\0"[..], b"\0\x03fry\0\x06sec", b"\0\x03fry\0\x06secret\0\x04imap\0"] {
            let error = request(&[input]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{input:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_in_the_middle_has_30_seconds() {
        let begun = tokio::time::Instant::now();
        let (mut ours, mut theirs) = tokio::io::duplex(1024);
        theirs.write_all(b"\0\x03fry\0\x06sec").await.unwrap();

        let error = read_request(&mut ours).await.unwrap_err();

        assert_eq!((error.kind(), begun.elapsed()), (io::ErrorKind::TimedOut, REQUEST_LIMIT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_nothing_is_closed_without_a_fault() {
        let (mut ours, _theirs) = tokio::io::duplex(1024);

        assert!(read_request(&mut ours).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn lengths_beyond_the_limit_end_the_reading() {
        // In the second case the first length fits, and no other could.
        for input in [&[&b"\xff\xff"[..]][..], &[b"\x1f\xfe", &[b'x'; 8190]]] {
            let error = request(input).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }
}
