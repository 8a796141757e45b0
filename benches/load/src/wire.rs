//! The protocols, from the client's side.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::people::{address, password};

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// `POST /?command=allow`, as Dovecot's policy client asks.
    Allow,
    /// Dovecot's auth client protocol: many requests in flight, answered in any order.
    Dovecot,
    /// `POST /v1/login`, keep-alive.
    Http,
    /// IMAP `LOGIN`, a connection for each.
    Imap,
    /// `GET /?command=ping`: the same server and a constant answer.
    Ping,
    /// `POST /?command=report` of a success.
    Report,
    /// Cyrus SASL's, a connection for each request.
    Saslauthd,
    /// Postfix' look-ups of mailboxes.
    Socketmap,
}

/// Where a server listens.
#[derive(Clone, Debug)]
pub enum Endpoint {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// Somebody who wants in, and what must be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    Right(u64),
    Wrong(u64),
    Unknown(u64),
}

/// What was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    Accepted,
    Refused,
    Later,
}

/// An answer, and how many bytes it took. Protocols that answer in turn give no id.
#[derive(Debug)]
pub struct Answer<'a> {
    pub id: Option<u32>,
    pub said: Said,
    pub user: Option<&'a str>,
    pub length: usize,
}

impl Asker {
    pub fn expected(self) -> Said {
        match self {
            Self::Right(_) => Said::Accepted,
            Self::Wrong(_) | Self::Unknown(_) => Said::Refused,
        }
    }

    pub fn name(self) -> String {
        match self {
            Self::Right(person) | Self::Wrong(person) => address(person),
            Self::Unknown(number) => format!("nobody{number:06}@load.example"),
        }
    }

    /// Everybody has a net of their own: whoever tries many passwords from one is held back, and that is not what is measured
    /// here.
    fn client(self) -> std::net::Ipv4Addr {
        let (Self::Right(number) | Self::Wrong(number) | Self::Unknown(number)) = self;
        let number = u32::try_from(number % (1 << 16)).unwrap_or_default();
        std::net::Ipv4Addr::from_bits((10 << 24) | (number << 8) | 7)
    }

    fn password(self) -> String {
        match self {
            Self::Right(person) => password(person),
            Self::Wrong(number) | Self::Unknown(number) => format!("wrong-{number:06}"),
        }
    }
}

impl Protocol {
    /// Whether a connection serves one request only.
    pub fn is_one_shot(self) -> bool {
        matches!(self, Self::Saslauthd | Self::Imap)
    }

    /// Appends the request.
    pub fn ask(self, id: u32, asker: Asker, output: &mut Vec<u8>) -> io::Result<()> {
        let (name, password) = (asker.name(), asker.password());
        match self {
            // What a Dovecot login process sends. `no-penalty` spares Dovecot a question to its anvil process.
            Self::Dovecot => {
                let credentials = STANDARD.encode(format!("\0{name}\0{password}"));
                writeln!(
                    output,
                    "AUTH\t{id}\tPLAIN\tservice=imap\tsecured\tno-penalty\tsession=cT9sKl{id:08x}\tlip=192.0.2.1\t\
                     rip={}\tlport=143\trport=50100\tresp={credentials}",
                    asker.client()
                )
            }
            Self::Http => {
                let body = format!(
                    r#"{{"username":"{name}","password":"{password}","service":"imap","client_ip":"{}"}}"#,
                    asker.client()
                );
                write!(
                    output,
                    "POST /v1/login HTTP/1.1\r\nHost: gatepost\r\nContent-Type: application/json\r\n\
                     Content-Length: {}\r\n\r\n{body}",
                    body.len()
                )
            }
            Self::Allow | Self::Report => {
                let (command, more) = match self {
                    Self::Allow => ("allow", ""),
                    _ => ("report", r#""success":true,"policy_reject":false,"#),
                };
                let body = format!(
                    r#"{{"device_id":"","login":"{name}","protocol":"imap","pwhash":"0893","remote":"{}","session_id":"cT9sKl{id:08x}",{more}"tls":true}}"#,
                    asker.client()
                );
                write!(
                    output,
                    "POST /policy?command={command} HTTP/1.1\r\nHost: gatepost\r\nUser-Agent: dovecot/auth-policy-client\r\n\
                     Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                )
            }
            Self::Ping => {
                output.write_all(b"GET /policy?command=ping HTTP/1.1\r\nHost: gatepost\r\n\r\n")
            }
            Self::Imap => write!(output, "a LOGIN {name} {password}\r\n"),
            Self::Saslauthd => {
                for field in [name.as_str(), &password, "imap", ""] {
                    let length = u16::try_from(field.len()).map_err(io::Error::other)?;
                    output.extend_from_slice(&length.to_be_bytes());
                    output.extend_from_slice(field.as_bytes());
                }
                Ok(())
            }
            Self::Socketmap => {
                let request = format!("mailbox {name}");
                write!(output, "{}:{request},", request.len())
            }
        }
    }

    /// The next answer; `None`: more must be read.
    pub fn answer(self, input: &[u8]) -> anyhow::Result<Option<Answer<'_>>> {
        match self {
            Self::Dovecot => dovecot_answer(input),
            Self::Http | Self::Allow | Self::Report | Self::Ping => http_answer(input),
            Self::Imap => imap_answer(input),
            Self::Saslauthd => Ok(saslauthd_answer(input)),
            Self::Socketmap => socketmap_answer(input),
        }
        .with_context(|| format!("answered with {:?}", String::from_utf8_lossy(input)))
    }
}

fn line(input: &[u8]) -> anyhow::Result<Option<&str>> {
    let Some(end) = memchr::memchr(b'\n', input) else { return Ok(None) };
    Ok(Some(std::str::from_utf8(input.get(..end).unwrap_or_default())?))
}

fn dovecot_answer(input: &[u8]) -> anyhow::Result<Option<Answer<'_>>> {
    let Some(line) = line(input)? else { return Ok(None) };
    let mut fields = line.split('\t');
    let (word, id) = (fields.next(), fields.next());
    let mut said = match word {
        Some("OK") => Said::Accepted,
        Some("FAIL") => Said::Refused,
        _ => bail!("neither OK nor FAIL"),
    };
    let mut user = None;
    for field in fields {
        match field.split_once('=') {
            Some(("user", name)) => user = Some(name),
            Some(("code", "temp_fail")) => said = Said::Later,
            // How Dovecot's own auth says it.
            None if field == "temp" => said = Said::Later,
            _ => {}
        }
    }
    let id = id.context("no id")?.parse()?;
    Ok(Some(Answer { id: Some(id), said, user, length: line.len() + 1 }))
}

fn http_answer(input: &[u8]) -> anyhow::Result<Option<Answer<'_>>> {
    let Some(end) = memchr::memmem::find(input, b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(input.get(..end).unwrap_or_default())?;
    let said = match head.split(' ').nth(1) {
        Some("200") => Said::Accepted,
        Some("403") => Said::Refused,
        Some("503") => Said::Later,
        _ => bail!("another status"),
    };
    let lengths = head.lines().filter_map(|line| line.split_once(": "));
    let mut lengths = lengths.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let body: usize = lengths.next().context("no Content-Length")?.1.parse()?;
    let length = end + 4 + body;
    let Some(body) = input.get(end + 4..length) else { return Ok(None) };
    let body = std::str::from_utf8(body)?;
    // A policy server refuses with a number.
    let said = if body.contains(r#""status":-1"#) { Said::Refused } else { said };
    let user = body.split_once(r#""user":""#).and_then(|(_, rest)| rest.split('"').next());
    Ok(Some(Answer { id: None, said, user, length }))
}

/// The line with the tag; what stands before it is passed over.
fn imap_answer(input: &[u8]) -> anyhow::Result<Option<Answer<'_>>> {
    let mut at = 0;
    while let Some(line) = line(input.get(at..).unwrap_or_default())? {
        at += line.len() + 1;
        let said = match line.strip_prefix("a ") {
            Some(rest) if rest.starts_with("OK") => Said::Accepted,
            Some(rest) if rest.contains("UNAVAILABLE") => Said::Later,
            Some(rest) if rest.starts_with("NO") => Said::Refused,
            Some(_) => bail!("another answer"),
            None => continue,
        };
        return Ok(Some(Answer { id: None, said, user: None, length: at }));
    }
    Ok(None)
}

fn saslauthd_answer(input: &[u8]) -> Option<Answer<'_>> {
    let said = match input.get(2..4)? {
        b"OK" => Said::Accepted,
        _ => Said::Refused,
    };
    Some(Answer { id: None, said, user: None, length: input.len() })
}

fn socketmap_answer(input: &[u8]) -> anyhow::Result<Option<Answer<'_>>> {
    let Some(colon) = memchr::memchr(b':', input) else { return Ok(None) };
    let length: usize = std::str::from_utf8(input.get(..colon).unwrap_or_default())?.parse()?;
    let end = colon + 1 + length;
    let (Some(reply), Some(b',')) = (input.get(colon + 1..end), input.get(end)) else {
        ensure!(input.get(end).is_none(), "no comma");
        return Ok(None);
    };
    let (word, value) = std::str::from_utf8(reply)?.split_once(' ').context("no space")?;
    let said = match word {
        "OK" => Said::Accepted,
        "NOTFOUND" => Said::Refused,
        _ => Said::Later,
    };
    Ok(Some(Answer { id: None, said, user: Some(value), length: end + 1 }))
}

/// A connected socket of either kind.
#[derive(Debug)]
pub enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    pub fn connect(endpoint: &Endpoint) -> io::Result<Self> {
        let stream = match endpoint {
            Endpoint::Unix(path) => Self::Unix(UnixStream::connect(path)?),
            Endpoint::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                Self::Tcp(stream)
            }
        };
        stream.wait_at_most(Duration::from_secs(30))?;
        Ok(stream)
    }

    /// How long a read may take.
    pub fn wait_at_most(&self, limit: Duration) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_read_timeout(Some(limit)),
            Self::Tcp(stream) => stream.set_read_timeout(Some(limit)),
        }
    }

    /// How long a write may take.
    pub fn write_within(&self, limit: Duration) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_write_timeout(Some(limit)),
            Self::Tcp(stream) => stream.set_write_timeout(Some(limit)),
        }
    }

    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
        })
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buffer),
            Self::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
