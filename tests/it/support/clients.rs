//! Small clients of each protocol, line by line over TCP. A reply is returned as the server said it; a server that
//! hangs up or says nothing gives what came until then, so that a test can name it.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::net::{AddressFamily, SocketType};

use super::{printed, program};

/// Longer than any deadline of a login, shorter than Dovecot's patience.
const PATIENCE: Duration = Duration::from_secs(40);

/// What the PLAIN mechanism says.
pub(crate) fn plain(user: &[u8], password: &[u8]) -> String {
    STANDARD.encode([b"\0", user, b"\0", password].concat())
}

/// IMAP LOGIN; the tagged reply.
pub(crate) fn imap_login(port: u16, user: &str, password: &str) -> String {
    let mut line = Line::connect(port);
    line.receive();
    line.send(&format!("a LOGIN {} {}", quoted(user), quoted(password)));
    line.receive_until(|reply| reply.starts_with("a "))
}

/// The same from another address of the loopback net, by a client that first says its ID: bytes of any kind.
pub(crate) fn imap_login_as(
    (source, port): (Ipv4Addr, u16),
    id: &[u8],
    (user, password): (&str, &str),
) -> String {
    let mut line = Line::over_tcp(connect_from(source, port));
    line.receive();
    line.send(&format!("i ID (\"name\" {{{}}}", id.len()));
    line.receive_until(|reply| reply.starts_with('+'));
    line.send_raw(&[id, b")\r\n"].concat());
    line.receive_until(|reply| reply.starts_with("i "));
    line.send(&format!("a LOGIN {} {}", quoted(user), quoted(password)));
    line.receive_until(|reply| reply.starts_with("a "))
}

/// IMAP AUTHENTICATE PLAIN, for names and passwords of any bytes.
pub(crate) fn imap_plain(port: u16, user: &[u8], password: &[u8]) -> String {
    let mut line = Line::connect(port);
    line.receive();
    line.send("a AUTHENTICATE PLAIN");
    let prompt = line.receive();
    if !prompt.starts_with('+') {
        return prompt;
    }
    line.send(&plain(user, password));
    line.receive_until(|reply| reply.starts_with("a ") || reply.starts_with("* BYE"))
}

/// POP3 USER and PASS; the reply to PASS.
pub(crate) fn pop3_login(port: u16, user: &str, password: &str) -> String {
    let mut line = Line::connect(port);
    line.receive();
    line.send(&format!("USER {user}"));
    line.receive();
    line.send(&format!("PASS {password}"));
    line.receive()
}

/// POP3 AUTH PLAIN.
pub(crate) fn pop3_plain(port: u16, user: &[u8], password: &[u8]) -> String {
    let mut line = Line::connect(port);
    line.receive();
    line.send("AUTH PLAIN");
    let prompt = line.receive();
    if !prompt.starts_with('+') {
        return prompt;
    }
    line.send(&plain(user, password));
    line.receive()
}

/// ManageSieve AUTHENTICATE "PLAIN"; the reply.
pub(crate) fn sieve_login(port: u16, user: impl AsRef<[u8]>, password: impl AsRef<[u8]>) -> String {
    let mut line = Line::connect(port);
    line.receive_until(|reply| reply.starts_with("OK"));
    let response = plain(user.as_ref(), password.as_ref());
    line.send(&format!("AUTHENTICATE \"PLAIN\" {{{}+}}\r\n{response}", response.len()));
    line.receive_until(|reply| ["OK", "NO", "BYE"].iter().any(|word| reply.starts_with(word)))
}

/// SMTP EHLO and AUTH PLAIN; the reply to AUTH.
pub(crate) fn smtp_login(port: u16, user: impl AsRef<[u8]>, password: impl AsRef<[u8]>) -> String {
    let mut line = Line::connect(port);
    let reply = line.ehlo();
    if !reply.starts_with("250") {
        return reply;
    }
    line.send("AUTH PLAIN");
    let prompt = line.receive();
    if !prompt.starts_with("334") {
        return prompt;
    }
    line.send(&plain(user.as_ref(), password.as_ref()));
    line.receive_code()
}

/// SMTP EHLO and AUTH LOGIN; the reply to the password.
pub(crate) fn smtp_auth_login(port: u16, user: &str, password: &str) -> String {
    let mut line = Line::connect(port);
    line.ehlo();
    line.send("AUTH LOGIN");
    for answer in [user, password] {
        let prompt = line.receive();
        if !prompt.starts_with("334") {
            return prompt;
        }
        line.send(&STANDARD.encode(answer));
    }
    line.receive_code()
}

/// One SMTP session, step by step.
pub(crate) struct Smtp(Line);

impl Smtp {
    pub(crate) fn connect(port: u16) -> Self {
        let mut line = Line::connect(port);
        let reply = line.ehlo();
        assert!(reply.starts_with("250"), "EHLO: {reply:?}");
        Self(line)
    }

    /// A session of somebody who got in.
    pub(crate) fn login(port: u16, user: &str, password: &str) -> Self {
        let mut smtp = Self::connect(port);
        let reply =
            smtp.say(&format!("AUTH PLAIN {}", plain(user.as_bytes(), password.as_bytes())));
        assert!(reply.starts_with("235"), "AUTH: {reply:?}");
        smtp
    }

    /// The last line of the reply.
    pub(crate) fn say(&mut self, text: &str) -> String {
        self.0.send(text);
        self.0.receive_code()
    }

    /// RSET, MAIL and RCPT; the reply to RCPT. `from` may have parameters behind its `>`.
    pub(crate) fn ask(&mut self, from: &str, recipient: &str) -> String {
        self.say("RSET");
        let reply = self.say(&format!("MAIL FROM:{from}"));
        if !reply.starts_with("250") {
            return reply;
        }
        self.say(&format!("RCPT TO:<{recipient}>"))
    }

    /// The message itself, after [`Smtp::ask`]; the reply to it.
    pub(crate) fn send(&mut self, body: &str) -> String {
        let reply = self.say("DATA");
        if !reply.starts_with("354") {
            return reply;
        }
        self.say(&format!("Subject: test\r\n\r\n{body}\r\n."))
    }
}

/// Delivers one message by LMTP; the reply to the message, or to the recipient if that was refused.
pub(crate) fn lmtp_deliver(port: u16, recipient: &str, body: &str) -> String {
    let mut line = Line::connect(port);
    line.receive();
    line.send("LHLO client");
    line.receive_code();
    line.send("MAIL FROM:<sender@planetexpress.com>");
    line.receive_code();
    line.send(&format!("RCPT TO:<{recipient}>"));
    let reply = line.receive_code();
    if !reply.starts_with("250") {
        return reply;
    }
    line.send("DATA");
    line.receive_code();
    line.send(&format!("Subject: test\r\n\r\n{body}\r\n."));
    line.receive_code()
}

/// One HTTP request; status and body.
pub(crate) fn http(port: u16, method: &str, path: &str, body: &[u8]) -> (u16, String) {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return (0, "connection refused".into());
    };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    // A server that already refused may close before it has read the whole body: its answer counts.
    drop(stream.write_all(&[head.as_bytes(), body].concat()));
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer));
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    (status, body.to_owned())
}

/// SMTP without AUTH: the reply to the recipient.
pub(crate) fn smtp_recipient(port: u16, recipient: &str) -> String {
    let mut line = Line::connect(port);
    line.ehlo();
    line.send("MAIL FROM:<sender@example.org>");
    let reply = line.receive_code();
    if !reply.starts_with("250") {
        return reply;
    }
    line.send(&format!("RCPT TO:<{recipient}>"));
    line.receive_code()
}

/// Sends these bytes to the port; what comes back until the server hangs up or says nothing more for `patience`.
pub(crate) fn exchange(port: u16, bytes: &[u8], patience: Duration) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(patience)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer));
    String::from_utf8_lossy(&answer).into_owned()
}

/// What the protocol of Dovecot's auth clients runs over.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wire<'a> {
    Unix(&'a Path),
    Tcp(u16),
    /// Over TCP from another address of the loopback net.
    TcpFrom(Ipv4Addr, u16),
}

/// A client of Dovecot's auth protocol, as Postfix, Exim or a login process is one.
pub(crate) struct AuthClient {
    line: Line,
    pub(crate) greeting: Vec<String>,
}

impl AuthClient {
    /// Connects and shakes hands. `minor` is the version the client says: 0 Postfix and Exim, 2 Dovecot 2.3.
    pub(crate) fn connect(wire: Wire<'_>, minor: u32) -> Self {
        let mut line = match wire {
            Wire::Unix(path) => Line::over_unix(path),
            Wire::Tcp(port) => Line::connect(port),
            Wire::TcpFrom(source, port) => Line::over_tcp(connect_from(source, port)),
        };
        let mut greeting = Vec::new();
        loop {
            let text = line.receive();
            greeting.push(text.clone());
            if text.is_empty() || text == "DONE" {
                break;
            }
        }
        line.send_raw(format!("VERSION\t1\t{minor}\nCPID\t{}\n", std::process::id()).as_bytes());
        Self { line, greeting }
    }

    /// Connects and says hello without waiting for the greeting, which is still to be read.
    pub(crate) fn connect_blindly(path: &Path) -> Self {
        let mut line = Line::over_unix(path);
        line.send_raw(format!("VERSION\t1\t2\nCPID\t{}\n", std::process::id()).as_bytes());
        Self { line, greeting: Vec::new() }
    }

    /// The first answer after the greeting.
    pub(crate) fn answer_after_greeting(&mut self) -> String {
        self.line.receive_until(|text| text == "DONE");
        self.answer()
    }

    /// Asks without waiting. `fields` stands between the mechanism and the response, such as `service=smtp\tnologin`.
    pub(crate) fn ask(
        &mut self,
        id: u32,
        fields: &str,
        user: impl AsRef<[u8]>,
        password: impl AsRef<[u8]>,
    ) {
        self.ask_plain(id, fields, "", user, password);
    }

    /// The same with an authorization id.
    pub(crate) fn ask_plain(
        &mut self,
        id: u32,
        fields: &str,
        authzid: &str,
        user: impl AsRef<[u8]>,
        password: impl AsRef<[u8]>,
    ) {
        let parts = [authzid.as_bytes(), b"\0", user.as_ref(), b"\0", password.as_ref()];
        let response = STANDARD.encode(parts.concat());
        self.line.send_raw(format!("AUTH\t{id}\tPLAIN\t{fields}\tresp={response}\n").as_bytes());
    }

    /// The next answer; empty if the server hung up.
    pub(crate) fn answer(&mut self) -> String {
        self.line.receive()
    }

    /// Asks and waits.
    pub(crate) fn login(
        &mut self,
        fields: &str,
        user: impl AsRef<[u8]>,
        password: impl AsRef<[u8]>,
    ) -> String {
        self.ask(1, fields, user, password);
        self.answer()
    }
}

/// A connection from another address of the loopback net.
pub(crate) fn connect_from(source: Ipv4Addr, port: u16) -> TcpStream {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrV4::new(source, 0)).unwrap();
    rustix::net::connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)).unwrap();
    socket.into()
}

/// A connection of lines.
struct Line {
    reader: BufReader<Box<dyn Read + Send>>,
    writer: Box<dyn Write + Send>,
}

impl Line {
    fn connect(port: u16) -> Self {
        Self::over_tcp(TcpStream::connect(("127.0.0.1", port)).unwrap())
    }

    fn over_tcp(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let writer = stream.try_clone().unwrap();
        Self { reader: BufReader::new(Box::new(stream)), writer: Box::new(writer) }
    }

    fn over_unix(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let writer = stream.try_clone().unwrap();
        Self { reader: BufReader::new(Box::new(stream)), writer: Box::new(writer) }
    }

    fn send(&mut self, text: &str) {
        self.send_raw(format!("{text}\r\n").as_bytes());
    }

    fn send_raw(&mut self, bytes: &[u8]) {
        // A server that hung up is seen at the next read.
        drop(self.writer.write_all(bytes));
    }

    /// The next line without its end; empty when the server hung up.
    fn receive(&mut self) -> String {
        let mut bytes = Vec::new();
        match self.reader.read_until(b'\n', &mut bytes) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return format!("(silence for {PATIENCE:?})");
            }
            Err(_) => return String::new(),
        }
        String::from_utf8_lossy(&bytes).trim_end().to_owned()
    }

    /// The first line that is the last one; whatever came instead if the server hung up.
    fn receive_until(&mut self, last: impl Fn(&str) -> bool) -> String {
        loop {
            let text = self.receive();
            if text.is_empty() || text.starts_with("(silence") || last(&text) {
                return text;
            }
        }
    }

    /// The last line of an SMTP reply.
    fn receive_code(&mut self) -> String {
        self.receive_until(|reply| reply.as_bytes().get(3) != Some(&b'-'))
    }

    fn ehlo(&mut self) -> String {
        self.receive_code();
        self.send("EHLO client");
        self.receive_code()
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// curl logs in and does nothing; `url` such as `imap://127.0.0.1:143`. Its exit code: 0 in, 67 refused.
pub(crate) fn curl(url: &str, user: &str, password: &str) -> String {
    let mut command = program("curl", "curl");
    command.args(["-sS", "--max-time", "40", "--login-options", "AUTH=PLAIN", "--url", url]);
    command.args(["-u", &format!("{user}:{password}")]);
    // A command that needs no mailbox; POP3 has none but a look at the list.
    match url.starts_with("pop3") {
        true => command.arg("-I"),
        false => command.args(["-X", "NOOP"]),
    };
    exit_code(&mut command)
}

/// swaks says AUTH PLAIN; its exit code (0 in, 28 not) and the server's answer.
pub(crate) fn swaks(port: u16, user: &str, password: &str) -> String {
    let mut command = program("swaks", "swaks");
    command.args(["--server", &format!("127.0.0.1:{port}"), "--auth", "PLAIN"]);
    command.args(["--auth-user", user, "--auth-password", password, "--quit-after", "AUTH"]);
    let output = command.output().unwrap();
    let printed = printed(&output);
    let answers = printed.lines().filter_map(|line| line.get(..4).zip(line.get(4..)));
    let mut answers = answers.filter(|(mark, _)| ["<** ", "<~* ", "<-  "].contains(mark));
    let is_auth = |text: &str| {
        ["235", "535", "454", "435", "525"].iter().any(|code| text.trim().starts_with(code))
    };
    let answer = answers.find(|(_, text)| is_auth(text)).map_or("", |(_, text)| text.trim());
    format!("exit {}: {answer}", output.status.code().unwrap_or(-1))
}

/// sieve-connect lists the scripts. Its exit code: 0 in, 255 refused.
pub(crate) fn sieve_connect(port: u16, user: &str, password: &str) -> String {
    let mut command = program("sieve-connect", "sieve-connect");
    command.args(["-s", "127.0.0.1", "-p", &port.to_string(), "-u", user]);
    command.args(["--passwordfd", "0", "--notlsverify", "--list"]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    drop(child.stdin.take().unwrap().write_all(format!("{password}\n").as_bytes()));
    format!("exit {}", child.wait().unwrap().code().unwrap_or(-1))
}

fn exit_code(command: &mut Command) -> String {
    let output = command.stdout(Stdio::null()).stderr(Stdio::null()).output().unwrap();
    format!("exit {}", output.status.code().unwrap_or(-1))
}
