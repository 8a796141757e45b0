//! The floor: a tokio server that frames a protocol and answers OK without any work, the least that sockets cost.

use std::net::SocketAddr;

use anyhow::Context;
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};

use crate::wire::Protocol;

const GREETING: &[u8] = b"VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nSPID\t1\nCUID\t1\n\
    COOKIE\t00000000000000000000000000000000\nDONE\n";

/// Serves at an address, or else a path, until killed.
pub fn serve(protocol: Protocol, socket: &str) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        if let Ok(address) = socket.parse::<SocketAddr>() {
            let listener = TcpListener::bind(address).await.context("binding the socket")?;
            loop {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                tokio::spawn(answer(stream, protocol));
            }
        }
        let listener = UnixListener::bind(socket).context("binding the socket")?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(answer(stream, protocol));
        }
    })
}

async fn answer<S>(mut stream: S, protocol: Protocol) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut input = BytesMut::new();
    let mut output = Vec::new();
    if protocol == Protocol::Dovecot {
        output.extend_from_slice(GREETING);
    }
    loop {
        stream.write_all(&output).await?;
        let is_over = protocol.is_one_shot() && !output.is_empty();
        output.clear();
        input.reserve(16 * 1024);
        if is_over || stream.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
        while let Some(used) = match protocol {
            Protocol::Dovecot => dovecot(&input, &mut output),
            Protocol::Http | Protocol::Allow | Protocol::Report | Protocol::Ping => {
                http(&input, &mut output)
            }
            Protocol::Saslauthd | Protocol::Imap => saslauthd(&input, &mut output),
            Protocol::Socketmap => socketmap(&input, &mut output),
        } {
            input.advance(used);
        }
    }
}

/// Answers the first request and says how long it is; `None`: it is not all there.
fn dovecot(input: &[u8], output: &mut Vec<u8>) -> Option<usize> {
    let end = memchr::memchr(b'\n', input)?;
    if let Some(request) = input.get(..end)?.strip_prefix(b"AUTH\t") {
        output.extend_from_slice(b"OK\t");
        output.extend_from_slice(request.split(|byte| *byte == b'\t').next()?);
        output.extend_from_slice(b"\tuser=person000000@load.example\n");
    }
    Some(end + 1)
}

fn http(input: &[u8], output: &mut Vec<u8>) -> Option<usize> {
    let end = memchr::memmem::find(input, b"\r\n\r\n")?;
    let head = input.get(..end)?;
    let length: usize = match memchr::memmem::find(head, b"Content-Length: ") {
        Some(at) => {
            let number = head.get(at + 16..)?.split(|byte| *byte == b'\r').next()?;
            std::str::from_utf8(number).ok()?.parse().ok()?
        }
        None => 0,
    };
    input.get(end + 4..end + 4 + length)?;
    output.extend_from_slice(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{\"verdict\":\"accept\"}",
    );
    Some(end + 4 + length)
}

fn saslauthd(input: &[u8], output: &mut Vec<u8>) -> Option<usize> {
    let mut at = 0;
    for _ in 0..4 {
        let length = input.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)?;
        at += 2 + usize::from(length);
        input.get(..at)?;
    }
    output.extend_from_slice(b"\0\x02OK");
    Some(input.len())
}

fn socketmap(input: &[u8], output: &mut Vec<u8>) -> Option<usize> {
    let colon = memchr::memchr(b':', input)?;
    let length: usize = std::str::from_utf8(input.get(..colon)?).ok()?.parse().ok()?;
    input.get(colon + 1..colon + 2 + length)?;
    output.extend_from_slice(b"28:OK person000000@load.example,");
    Some(colon + 2 + length)
}
