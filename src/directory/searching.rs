//! Searches that share a connection of our own: each is one message out, and the answers are told apart by their ids
//! (RFC 4511 §4.5). What is asked while another write is under way leaves with the next one.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, BytesMut};
use ldap3::Scope;
use ldap3::asn1::{ASNTag, write::encode_into};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::answer::{Item, Message, decode, whole_message};
use super::ber::{write_element, write_number};
use super::bind::BindConnection;
use super::connection::{Found, OperationError, Query, SIZE_LIMIT};
use super::entry::EntryError;
use super::wire::{EXTENDED_RESPONSE, Stream};
use crate::cache::Table;
use crate::clock;

/// An entry may name thousands of groups.
const MESSAGE_LIMIT: usize = 4 * 1024 * 1024;

/// Requests that wait to be written; who finds no room waits, within the time limit.
const QUEUE: usize = 64;

/// More than this waits to be written: the server does not read.
const OUTPUT_LIMIT: usize = 64 * 1024;

/// Room that is made for what comes.
const ROOM: usize = 16 * 1024;

/// Room that is kept after a long message.
const MOST_ROOM: usize = 256 * 1024;

const SEARCH_DONE: u8 = 0x65;

/// A connection for searches, many at a time; it closes when the last of them has let go of it.
pub(super) struct SearchConnection {
    requests: mpsc::Sender<Request>,
    last_id: AtomicU32,
    born: Instant,
    /// Tells the driver that nobody is left, even while it takes no requests.
    _alive: oneshot::Sender<()>,
}

struct Request {
    id: u32,
    message: Vec<u8>,
    waiting: Waiting,
}

/// Who waits for a search's end, and what it found so far.
struct Waiting {
    answer: oneshot::Sender<Result<Found, OperationError>>,
    limit: usize,
    found: Found,
    problem: Option<EntryError>,
}

impl SearchConnection {
    /// From now on the connection searches, as whoever it was bound last.
    pub(super) fn start(connection: BindConnection) -> Self {
        let (stream, input, last_id) = connection.into_parts();
        Self::on(stream, input, last_id)
    }

    fn on(stream: Box<dyn Stream>, input: BytesMut, last_id: u32) -> Self {
        let (requests, queue) = mpsc::channel(QUEUE);
        let (alive, gone) = oneshot::channel();
        let (waiting, output) = (Table::default(), BytesMut::new());
        tokio::spawn(Driver { stream, queue, gone, waiting, input, output }.run());
        Self { requests, last_id: AtomicU32::new(last_id), born: clock::now(), _alive: alive }
    }

    /// A search. Referrals are ignored.
    ///
    /// # Errors
    /// [`OperationError`].
    pub(super) async fn search(
        &self,
        query: &Query<'_>,
        within: Duration,
    ) -> Result<Found, OperationError> {
        // Beyond two thousand million searches numbers would come again; no connection grows that old.
        let id = self.last_id.fetch_add(1, Ordering::Relaxed).wrapping_add(1) & 0x7fff_ffff;
        let message = search_request(id, query)?;
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting {
            answer,
            limit: usize::from(query.limit),
            found: Found { code: 0, text: String::new(), entries: Vec::new() },
            problem: None,
        };
        let asked = async {
            let sent = self.requests.send(Request { id, message, waiting }).await;
            sent.map_err(|_| OperationError::NotSent)?;
            answered.await.unwrap_or_else(|_| Err(OperationError::Broken("no answer came".into())))
        };
        match timeout(within, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(OperationError::Timeout(within)),
        }
    }

    /// Whether it is known to have ended. False may be late.
    pub(super) fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    /// How long it has been open.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.born)
    }
}

/// Owns the stream.
struct Driver {
    stream: Box<dyn Stream>,
    queue: mpsc::Receiver<Request>,
    gone: oneshot::Receiver<()>,
    waiting: Table<u32, Waiting>,
    input: BytesMut,
    output: BytesMut,
}

impl Driver {
    async fn run(mut self) {
        let end = self.drive().await;
        self.queue.close();
        // Who asked may have given up. (Not `try_recv`: who has room already but has not put the request in is waited for.)
        while let Some(request) = self.queue.recv().await {
            let _ = request.waiting.answer.send(Err(OperationError::NotSent));
        }
        for waiting in self.waiting.into_values() {
            let ended = match &end {
                Ok(()) => "no answer came".to_owned(),
                Err(error) => error.to_string(),
            };
            let _ = waiting.answer.send(Err(OperationError::Broken(ended)));
        }
    }

    /// Ends when nobody holds the connection any more, or it breaks.
    async fn drive(&mut self) -> io::Result<()> {
        let (mut reader, mut writer) = tokio::io::split(&mut self.stream);
        let mut requests = Vec::with_capacity(QUEUE);
        let mut needs_flush = false;
        loop {
            while let Some(place) = whole_message(&self.input, MESSAGE_LIMIT)? {
                let end = place.end;
                let content = self.input.get(place).unwrap_or_default();
                hear(&mut self.waiting, content, &mut self.output)?;
                self.input.advance(end);
            }
            if self.input.is_empty() && self.input.capacity() > MOST_ROOM {
                self.input = BytesMut::new();
            }
            // Taken from the front again once all before it was heard: no new room for each answer.
            if self.input.capacity() - self.input.len() < ROOM / 4 {
                self.input.reserve(ROOM);
            }
            let output = &mut self.output;
            let (has_output, has_room) = (!output.is_empty(), output.len() < OUTPUT_LIMIT);
            let write = async {
                match has_output {
                    true => writer.write_buf(output).await.map(drop),
                    false => writer.flush().await,
                }
            };
            tokio::select! {
                biased;
                _ = &mut self.gone => return Ok(()),
                received = self.queue.recv_many(&mut requests, QUEUE), if has_room => {
                    if received == 0 {
                        return Ok(());
                    }
                }
                written = write, if has_output || needs_flush => {
                    written?;
                    needs_flush = has_output;
                }
                read = reader.read_buf(&mut self.input) => {
                    if read? == 0 {
                        return Err(io::Error::other("the server closed it"));
                    }
                }
            }
            let is_awaited = |request: &Request| !request.waiting.answer.is_closed();
            for Request { id, message, waiting } in requests.drain(..).filter(is_awaited) {
                self.output.put_slice(&message);
                self.waiting.insert(id, waiting);
            }
        }
    }
}

/// One message of the server's.
fn hear(all: &mut Table<u32, Waiting>, content: &[u8], output: &mut BytesMut) -> io::Result<()> {
    let malformed = || io::Error::other("the server sent what is no ldap message");
    let message = Message::parse(content).ok_or_else(malformed)?;
    if message.id == 0 {
        // RFC 4511 §4.4.1: it closes the connection after this.
        let notice = message.result(0, EXTENDED_RESPONSE).ok_or_else(malformed)?;
        let text = format!("the server ends it: code {} {}", notice.code, notice.words());
        return Err(io::Error::other(text.trim_end().to_owned()));
    }
    // The rest of a search that was given up.
    let Some(waiting) = all.get_mut(&message.id) else { return Ok(()) };
    if waiting.answer.is_closed() {
        all.remove(&message.id);
        if message.tag != SEARCH_DONE {
            output.put_slice(&abandon_request(message.id));
        }
        return Ok(());
    }
    if message.tag == SEARCH_DONE {
        let done = message.result(message.id, SEARCH_DONE).ok_or_else(malformed)?;
        if let Some(waiting) = all.remove(&message.id) {
            waiting.end(done.code, done.words());
        }
        return Ok(());
    }
    match decode(message.operation) {
        Ok(Item::Entry(_)) if waiting.found.entries.len() >= waiting.limit => {
            // The server does not keep to the size limit.
            output.put_slice(&abandon_request(message.id));
            if let Some(waiting) = all.remove(&message.id) {
                waiting.end(SIZE_LIMIT, String::new());
            }
        }
        Ok(Item::Entry(entry)) => waiting.found.entries.push(entry),
        Ok(Item::Ignored) => {}
        Err(error) => waiting.problem = Some(error.into()),
    }
    Ok(())
}

impl Waiting {
    fn end(self, code: u32, text: String) {
        let answer = match self.problem {
            Some(problem) => Err(problem.into()),
            None => Ok(Found { code, text, ..self.found }),
        };
        // Who asked may have given up.
        let _ = self.answer.send(answer);
    }
}

/// RFC 4511 §4.5.1: aliases are not followed, the server's own time limit counts.
fn search_request(id: u32, query: &Query<'_>) -> Result<Vec<u8>, OperationError> {
    let scope = match query.scope {
        Scope::Base => 0,
        Scope::OneLevel => 1,
        Scope::Subtree => 2,
    };
    let filter = ldap3::parse_filter(query.filter.as_str())
        .map_err(|()| OperationError::Filter(query.filter.as_str().to_owned()))?;
    let mut encoded = BytesMut::new();
    encode_into(&mut encoded, filter.into_structure())
        .map_err(|error| OperationError::Broken(error.to_string()))?;

    let mut attributes = Vec::with_capacity(512);
    query.attributes.iter().for_each(|name| write_element(0x04, name.as_bytes(), &mut attributes));
    let mut search = Vec::with_capacity(attributes.len() + encoded.len() + query.base.len() + 32);
    write_element(0x04, query.base.as_bytes(), &mut search);
    write_element(0x0a, &[scope], &mut search);
    write_element(0x0a, &[0], &mut search);
    write_number(query.limit.into(), &mut search);
    write_number(0, &mut search);
    write_element(0x01, &[0], &mut search);
    search.extend_from_slice(&encoded);
    write_element(0x30, &attributes, &mut search);
    Ok(request(id, 0x63, &search))
}

/// RFC 4511 §4.11. The id of an abandon is nobody's: there is no answer to it.
fn abandon_request(id: u32) -> Vec<u8> {
    let mut number = Vec::new();
    write_number(id, &mut number);
    // The number's content alone, under the operation's tag.
    let content = number.get(2..).unwrap_or_default();
    request(0x7fff_ffff, 0x50, content)
}

fn request(id: u32, tag: u8, operation: &[u8]) -> Vec<u8> {
    let mut content = Vec::with_capacity(operation.len() + 16);
    write_number(id, &mut content);
    write_element(tag, operation, &mut content);
    let mut message = Vec::with_capacity(content.len() + 8);
    write_element(0x30, &content, &mut message);
    message
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, ready};

    use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

    use super::super::ber::element;
    use super::super::filter::Filter;
    use super::super::wire::read_message;
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    /// RFC 4511 §4.4.1: notice of disconnection.
    const NOTICE: &[u8] =
        b"\x30\x24\x02\x01\x00\x78\x1f\x0a\x01\x34\x04\x00\x04\x00\x8a\x161.3.6.1.4.1.1466.20036";

    fn connect() -> (Arc<SearchConnection>, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(4096);
        (Arc::new(SearchConnection::on(Box::new(ours), BytesMut::new(), 1)), theirs)
    }

    /// A search for this uid, under way.
    fn search(
        connection: &Arc<SearchConnection>,
        uid: &str,
        limit: u16,
    ) -> tokio::task::JoinHandle<Result<Found, OperationError>> {
        let (connection, filter) = (Arc::clone(connection), Filter::equals("uid", uid));
        tokio::spawn(async move {
            let attributes = ["mail".to_owned()];
            let query = Query {
                base: "dc=x",
                scope: Scope::Subtree,
                filter: &filter,
                attributes: &attributes,
                limit,
            };
            connection.search(&query, SOON).await
        })
    }

    fn entry(id: u32, dn: &str) -> Vec<u8> {
        let mut content = Vec::new();
        write_element(0x04, dn.as_bytes(), &mut content);
        write_element(0x30, &[], &mut content);
        request(id, 0x64, &content)
    }

    fn done(id: u32, code: u8) -> Vec<u8> {
        request(id, SEARCH_DONE, &[0x0a, 1, code, 0x04, 0, 0x04, 2, b'o', b'k'])
    }

    /// The id and the operation of what is asked next.
    async fn asked(server: &mut DuplexStream) -> (u32, u8, Vec<u8>) {
        let content = read_message(server).await.unwrap();
        let message = Message::parse(&content).unwrap();
        (message.id, message.tag, message.operation.to_vec())
    }

    /// As TLS may: what is written leaves when it is flushed.
    struct Holding {
        inner: DuplexStream,
        held: BytesMut,
    }

    impl AsyncRead for Holding {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.inner).poll_read(context, buffer)
        }
    }

    impl AsyncWrite for Holding {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.held.put_slice(bytes);
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            let Self { inner, held } = &mut *self;
            while !held.is_empty() {
                let written = ready!(Pin::new(&mut *inner).poll_write(context, held))?;
                held.advance(written);
            }
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_is_written_is_flushed() {
        let (ours, mut server) = tokio::io::duplex(4096);
        let holding = Holding { inner: ours, held: BytesMut::new() };
        let connection = SearchConnection::on(Box::new(holding), BytesMut::new(), 1);
        let connection = Arc::new(connection);
        for uid in ["fry", "leela"] {
            let search = search(&connection, uid, 5);
            let (id, ..) = asked(&mut server).await;
            server.write_all(&done(id, 0)).await.unwrap();
            assert!(search.await.unwrap().is_ok());
        }
    }

    #[tokio::test]
    async fn a_server_that_reads_nothing_does_not_keep_a_connection_that_nobody_holds() {
        let (ours, mut server) = tokio::io::duplex(16);
        let connection = SearchConnection::on(Box::new(ours), BytesMut::new(), 1);
        let connection = Arc::new(connection);
        let long = "x".repeat(OUTPUT_LIMIT);
        let searches = [search(&connection, &long, 5), search(&connection, &long, 5)];
        tokio::task::yield_now().await;
        for search in &searches {
            search.abort();
        }
        for search in searches {
            assert!(search.await.unwrap_err().is_cancelled());
        }
        drop(connection);
        let mut rest = Vec::new();
        tokio::time::timeout(SOON, server.read_to_end(&mut rest)).await.unwrap().unwrap();
        assert!(rest.len() <= 16);
    }

    #[tokio::test]
    async fn what_came_with_the_service_accounts_bind_is_heard() {
        let (ours, _server) = tokio::io::duplex(4096);
        let connection = SearchConnection::on(Box::new(ours), BytesMut::from(NOTICE), 1);
        let heard = search(&Arc::new(connection), "fry", 5).await.unwrap();
        assert!(matches!(heard, Err(OperationError::Broken(_) | OperationError::NotSent)));
    }

    #[tokio::test]
    async fn a_search_is_sent_as_the_rfc_says() {
        let (connection, mut server) = connect();
        drop(search(&connection, "fry", 5));
        let (id, tag, operation) = asked(&mut server).await;
        let (_, content, _) = element(&operation).unwrap();

        assert_eq!((id, tag), (2, 0x63));
        let expected = b"\x04\x04dc=x\x0a\x01\x02\x0a\x01\x00\x02\x01\x05\x02\x01\x00\x01\x01\x00\
            \xa3\x0a\x04\x03uid\x04\x03fry\x30\x06\x04\x04mail";
        assert_eq!(content, expected);
    }

    #[tokio::test]
    async fn answers_find_their_searches_in_whatever_order_they_come() {
        let (connection, mut server) = connect();
        let mut searches = Vec::new();
        for number in 0..40 {
            searches.push((number, search(&connection, &format!("u{number}"), 5)));
        }
        let mut answers = Vec::new();
        for _ in 0..40 {
            let (id, _, operation) = asked(&mut server).await;
            let text = String::from_utf8_lossy(&operation).into_owned();
            let (_, value) = text.split_once("uid\u{4}").unwrap();
            let mut value = value.chars();
            let length = value.next().unwrap() as usize;
            let uid: String = value.take(length).collect();
            answers.push((id, uid));
        }
        answers.reverse();
        let referral = request(answers[0].0, 0x73, b"\x04\x08ldap://x");
        server.write_all(&referral).await.unwrap();
        for (id, uid) in &answers {
            server.write_all(&entry(*id, &format!("uid={uid}"))).await.unwrap();
        }
        for (id, ..) in &answers {
            server.write_all(&done(*id, 0)).await.unwrap();
        }
        for (number, search) in searches {
            let found = search.await.unwrap().unwrap();
            assert_eq!((found.code, &*found.text), (0, "ok"));
            let dns: Vec<_> = found.entries.iter().map(|entry| &*entry.dn).collect();
            assert_eq!(dns, [format!("uid=u{number}")]);
        }
    }

    #[tokio::test]
    async fn a_server_that_knows_no_limit_is_told_to_stop() {
        let (connection, mut server) = connect();
        let found = search(&connection, "fry", 2);
        let (id, ..) = asked(&mut server).await;
        for dn in ["a", "b", "c", "d"] {
            server.write_all(&entry(id, dn)).await.unwrap();
        }
        let found = found.await.unwrap().unwrap();
        assert_eq!((found.code, found.entries.len()), (SIZE_LIMIT, 2));
        let (_, tag, operation) = asked(&mut server).await;
        assert_eq!((tag, operation), (0x50, vec![0x50, 1, 2]));
        // What still comes of it disturbs nobody.
        server.write_all(&done(id, 0)).await.unwrap();
        let next = search(&connection, "leela", 2);
        let (id, ..) = asked(&mut server).await;
        server.write_all(&done(id, 0)).await.unwrap();
        assert_eq!(next.await.unwrap().unwrap().entries, []);
    }

    #[tokio::test]
    async fn an_entry_that_cannot_be_read_ends_its_own_search_only() {
        let (connection, mut server) = connect();
        let (first, second) = (search(&connection, "fry", 5), search(&connection, "leela", 5));
        for uid in ["fry", "leela"] {
            let (id, _, operation) = asked(&mut server).await;
            let is_broken = operation.windows(3).any(|part| part == b"fry");
            let message = if is_broken { request(id, 0x64, b"x") } else { entry(id, uid) };
            server.write_all(&message).await.unwrap();
            server.write_all(&done(id, 0)).await.unwrap();
        }
        assert!(matches!(first.await.unwrap(), Err(OperationError::Entry(_))));
        assert_eq!(second.await.unwrap().unwrap().entries.len(), 1);
        assert!(!connection.is_closed());
    }

    #[tokio::test]
    async fn the_end_of_a_connection_is_heard_by_all_who_wait_and_by_who_comes_later() {
        for (last_words, reason) in [
            (&b""[..], "the server closed it"),
            (NOTICE, "the server ends it: code 52"),
            (b"HTTP/1.1 400 Bad Request\r\n", "what came is not ldap"),
            (b"\x30\x84\x7f\xff\xff\xff", "the answer is too long"),
            (b"\x30\x03\x02\x01\x02", "the server sent what is no ldap message"),
        ] {
            let (connection, mut server) = connect();
            let waiting = [search(&connection, "fry", 5), search(&connection, "leela", 5)];
            asked(&mut server).await;
            asked(&mut server).await;
            server.write_all(last_words).await.unwrap();
            server.shutdown().await.unwrap();
            for search in waiting {
                let heard = search.await.unwrap();
                assert_eq!(heard, Err(OperationError::Broken(reason.into())), "{last_words:02x?}");
            }
            let late = search(&connection, "bender", 5).await.unwrap();
            assert!(matches!(late, Err(OperationError::NotSent | OperationError::Broken(_))));
            assert!(connection.is_closed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_search_without_an_answer_ends_in_time_and_the_others_go_on() {
        let (connection, mut server) = connect();
        let (first, second) = (search(&connection, "fry", 5), search(&connection, "leela", 5));
        let (_, (id, ..)) = (asked(&mut server).await, asked(&mut server).await);
        server.write_all(&done(id, 0)).await.unwrap();
        let heard = [first.await.unwrap(), second.await.unwrap()];
        assert_eq!(heard.iter().filter(|heard| heard.is_ok()).count(), 1);
        assert!(heard.contains(&Err(OperationError::Timeout(SOON))));
    }

    #[tokio::test]
    async fn the_last_handle_closes_the_connection() {
        let (connection, mut server) = connect();
        drop(connection);
        assert_eq!(server.read(&mut [0; 8]).await.unwrap(), 0);
    }

    #[test]
    fn requests_of_all_lengths_are_whole() {
        let query = Query {
            base: "",
            scope: Scope::Base,
            filter: &Filter::parse("(uid=a)").unwrap(),
            attributes: &[],
            limit: 1,
        };
        for length in [1, 127, 128, 70_000] {
            let long = Filter::equals("uid", &"x".repeat(length));
            let sent = search_request(300, &Query { filter: &long, ..query.clone() }).unwrap();
            let (0x30, content, []) = element(&sent).unwrap() else { panic!("{length}") };
            assert_eq!(Message::parse(content).unwrap().id, 300);
        }
    }
}
