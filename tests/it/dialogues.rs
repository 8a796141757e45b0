//! Plays tests/dialogues against the daemon's sockets: the same files that src/proto/dialogues.rs plays against the
//! pure sessions, with the same people behind.

#[path = "../dialogues/script.rs"]
mod script;

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use gatepost::proto::handover::{Description, HandedKind, Message, Place};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tempfile::TempDir;

use crate::support::gatepost::{Configuration, Gatepost};
use crate::support::slapd::{BASE, PEOPLE, SERVICE_DN, SERVICE_PASSWORD, Slapd, Wish};
use crate::support::{free_port, scratch};
use script::{Dialogue, Found, Step, read_dialogues};

/// Longer than any answer takes, shorter than anybody's patience with a test that waits for the wrong line.
const PATIENCE: Duration = Duration::from_secs(20);

/// The daemon with a door for each protocol.
struct World {
    directory: TempDir,
    _sockets: Vec<UnixListener>,
    /// The sockets stay handed over as long as this lives.
    _shim: UnixStream,
    gatepost: Gatepost,
    _slapd: Slapd,
}

impl World {
    fn start() -> Self {
        let slapd = directory();
        let directory = scratch(Path::new("/tmp"));
        let mut gatepost = doors(Configuration::new(&slapd), directory.path(), &slapd).start();
        provision(&gatepost);
        // Memory goes with the daemon; from now on nobody answers for example.net.
        gatepost.stop();
        gatepost.configuration.change("directory.lost", "port", &free_port().to_string());
        gatepost.start_again();
        let (shim, sockets) = hand_over(directory.path());
        Self { directory, _sockets: sockets, _shim: shim, gatepost, _slapd: slapd }
    }

    fn connect(&self, socket: &str) -> UnixStream {
        let path = match socket {
            "client" => self.gatepost.configuration.auth_socket(),
            _ => self.directory.path().join(socket),
        };
        let stream = UnixStream::connect(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Plays a dialogue, with the client's bytes in writes of this length at most.
    fn play(&self, dialogue: &Dialogue, write_bytes: usize) {
        let mut line = Line { stream: self.connect(&dialogue.socket), received: Vec::new() };
        let mut said = String::new();
        for step in &dialogue.steps {
            let outcome = match step {
                Step::Client(bytes) => line.send(bytes, write_bytes),
                Step::Server(wanted) => line.expect(|received| wanted.find(received)),
                Step::Closes | Step::Error(_) => line.expect_end(),
                Step::Event(_) => Ok(()),
            };
            if let Err(trouble) = outcome {
                let (name, got) = (&dialogue.name, line.received.escape_ascii());
                panic!("{name}: after\n{said}wanted\n{step}\n{trouble}\n{got}");
            }
            said.push_str(&format!("{step}\n"));
        }
        let outcome = line.hang_up();
        let got = line.received.escape_ascii();
        assert!(outcome.is_ok(), "{}: after\n{said}unexpected\n{got}\n{outcome:?}", dialogue.name);
    }
}

/// What a client sees of one connection.
struct Line {
    stream: UnixStream,
    /// Received and not yet expected.
    received: Vec<u8>,
}

impl Line {
    fn send(&mut self, bytes: &[u8], write_bytes: usize) -> Result<(), String> {
        for piece in bytes.chunks(write_bytes) {
            match self.stream.write_all(piece) {
                // Who has heard enough may close before the rest comes; the next step sees what it said.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => break,
                outcome => outcome.map_err(|error| error.to_string())?,
            }
        }
        Ok(())
    }

    fn expect(&mut self, find: impl Fn(&[u8]) -> Found) -> Result<(), String> {
        loop {
            match find(&self.received) {
                Found::Wanted(length) => {
                    self.received.drain(..length);
                    return Ok(());
                }
                Found::Other => return Err("received".into()),
                Found::Unfinished if self.receive()? == 0 => return Err("the end, after".into()),
                Found::Unfinished => {}
            }
        }
    }

    fn expect_end(&mut self) -> Result<(), String> {
        while self.receive()? > 0 {}
        if self.received.is_empty() { Ok(()) } else { Err("received".into()) }
    }

    /// The client has nothing more to say, and must hear nothing more.
    fn hang_up(&mut self) -> Result<(), String> {
        match self.stream.shutdown(Shutdown::Write) {
            Err(error) if error.kind() != ErrorKind::NotConnected => Err(error.to_string()),
            _ => self.expect_end(),
        }
    }

    fn receive(&mut self) -> Result<usize, String> {
        let mut buffer = [0; 4096];
        let length = match self.stream.read(&mut buffer) {
            Ok(length) => length,
            // The server closed with something of ours unread.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
            Err(error) => return Err(error.to_string()),
        };
        self.received.extend_from_slice(&buffer[..length]);
        Ok(length)
    }
}

/// joe, ann, old and down, as `People` in src/proto/dialogues.rs describes them.
fn directory() -> Slapd {
    let slapd = Slapd::with(Wish { ppolicy: true, ..Wish::default() });
    for (uid, mail) in [
        ("joe", "joe@example.org"),
        ("ann", "ann@example.org"),
        ("old", "old@example.org"),
        ("down", "down@example.net"),
    ] {
        slapd.create(uid);
        slapd.set_password(uid, "secret");
        slapd.set_attribute(uid, "mail", mail);
    }
    slapd.modify(&format!(
        "dn: cn=default,ou=services,{BASE}\nchangetype: modify\nreplace: pwdLockout\npwdLockout: FALSE\n-\n\
         add: pwdMustChange\npwdMustChange: TRUE\n"
    ));
    for (uid, reset) in [("joe", false), ("ann", false), ("old", true), ("down", false)] {
        slapd.set_attribute(uid, "pwdReset", if reset { "TRUE" } else { "FALSE" });
    }
    slapd
}

fn doors(mut configuration: Configuration, directory: &Path, slapd: &Slapd) -> Configuration {
    let (no_delay, port) = ("\"0s\"", slapd.port);
    configuration.change("listen.auth", "failure_delay", no_delay);
    let path = directory.join("handover");
    configuration.set(
        "listen.dovecot",
        &format!("protocol = \"dovecot\"\npath = {path:?}\nfailure_delay = {no_delay}"),
    );
    let digits: String = (0..32).map(|byte| format!("{byte:02x}")).collect();
    for (socket, protocol, more) in [
        ("checkpassword", "checkpassword", String::new()),
        ("dict", "dovecot-dict", format!("password_key = {digits:?}")),
        ("policy", "postfix-policy", String::new()),
        ("saslauthd", "saslauthd", String::new()),
        ("socketmap", "socketmap", String::new()),
    ] {
        let path = directory.join(socket);
        let door = format!("protocol = \"{protocol}\"\npath = {path:?}\n{more}");
        configuration.set(&format!("listen.{socket}"), &door);
    }
    configuration.add("login", "default_domain = \"example.org\"");
    configuration.set("template.plain", "home = \"/var/mail/{local}\"\nuid = 5000\ngid = 5000");
    configuration.add("template.plain", "disabled_delivery = \"tempfail\"");
    for (profile, domain) in [("here", "example.org"), ("lost", "example.net")] {
        configuration.set(&format!("domain.\"{domain}\""), "active = true");
        configuration.set(
            &format!("directory.{profile}"),
            &format!(
                "preset = \"openldap\"\ndomains = [\"{domain}\"]\nhosts = [\"127.0.0.1\"]\nport = {port}\n\
                 tls = \"none\"\nbind_dn = \"{SERVICE_DN}\"\nbind_password = \"{SERVICE_PASSWORD}\""
            ),
        );
        configuration.set(
            &format!("directory.{profile}.search.people"),
            &format!("base = \"{PEOPLE}\"\nfilter = \"(mail=*@{domain})\""),
        );
        let names = "login_attributes = [\"mail\", \"uid\"]";
        configuration.set(&format!("directory.{profile}.identity"), names);
        configuration.set(&format!("directory.{profile}.template"), "default = \"plain\"");
    }
    configuration
}

/// The mailboxes of joe, ann and down, by their first logins.
fn provision(gatepost: &Gatepost) {
    for name in ["joe@example.org", "ann@example.org", "down@example.net"] {
        let answer = gatepost.login(name, "secret");
        assert_eq!(answer.status, 200, "{name}: {answer:?}");
    }
    for address in ["ann@example.org", "down@example.net"] {
        let output = gatepost.run(&["mailbox", "disable", address], "");
        assert!(output.status.success(), "{output:?}");
    }
}

/// What the shim does: hands over Dovecot's sockets `login`, `master` and `userdb`.
fn hand_over(directory: &Path) -> (UnixStream, Vec<UnixListener>) {
    let kinds = [HandedKind::Login, HandedKind::Master, HandedKind::Userdb];
    let path = |kind: HandedKind| -> PathBuf { directory.join(kind.as_str()) };
    let sockets = kinds.map(|kind| UnixListener::bind(path(kind)).unwrap());
    let descriptions = kinds.map(|kind| Description {
        name: kind.as_str().into(),
        kind,
        place: Place::Unix(path(kind)),
    });
    let message = Message {
        base_dir: directory.into(),
        version: "2.3.19.1".into(),
        sockets: descriptions.into(),
    };
    let message = message.encode().unwrap();
    let mut shim = UnixStream::connect(directory.join("handover")).unwrap();
    let descriptors: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let bytes = [IoSlice::new(&message)];
    assert_eq!(sendmsg(&shim, &bytes, &mut ancillary, SendFlags::empty()), Ok(message.len()));
    let mut answer = [0; 8];
    shim.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"taken\t3\n");
    (shim, sockets.into())
}

#[test]
fn every_dialogue_goes_as_written_on_the_live_socket() {
    let world = World::start();
    let (live, only_session): (Vec<_>, Vec<_>) =
        read_dialogues().into_iter().partition(|dialogue| dialogue.only_session.is_none());

    for dialogue in &live {
        world.play(dialogue, usize::MAX);
        world.play(dialogue, 1);
    }

    // Nothing may drop out unseen: raise the first number with each dialogue, the second with a good reason only.
    let played = live.len();
    assert!(played >= 93, "only {played} dialogues were played");
    let names: Vec<_> = only_session.iter().map(|dialogue| &dialogue.name).collect();
    assert!(names.len() <= 10, "not played: {names:#?}");
}
