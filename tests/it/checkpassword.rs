//! `gatepost-checkpassword` as Dovecot and qmail start it.

use std::fs;
use std::io::{Read, Write, pipe};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};

use crate::support::gatepost::{Configuration, Gatepost};
use crate::support::slapd::{Slapd, mail_of, password_of};
use crate::support::{MAIL_ID, directory_of, printed, scratch, wait_until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_gatepost-checkpassword");
pub(crate) const REPLY: &str = "/usr/lib/dovecot/checkpassword-reply";

struct World {
    gatepost: Gatepost,
    socket: PathBuf,
    home: tempfile::TempDir,
    _slapd: Slapd,
}

/// What came of one start.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    /// What lay on descriptor 4.
    reply: String,
    output: Output,
}

impl World {
    fn start() -> Self {
        let slapd = Slapd::start();
        let home = scratch(std::path::Path::new("/tmp"));
        let socket = home.path().join("checkpassword");
        let mut configuration = Configuration::new(&slapd);
        configuration.set(
            "listen.checkpassword",
            &format!("protocol = \"checkpassword\"\npath = {socket:?}"),
        );
        let template = format!("\"{}/{{local}}\"", home.path().display());
        configuration.change("template.crew", "home", &template);
        Self { gatepost: configuration.start(), socket, home, _slapd: slapd }
    }

    fn run(&self, given: &[u8], environment: &[(&str, &str)], next: &[&str]) -> Ended {
        start(&self.socket.display().to_string(), given, environment, next)
    }
}

/// Starts it with these bytes on descriptor 3, and waits for its end.
pub(crate) fn start(
    socket: &str,
    given: &[u8],
    environment: &[(&str, &str)],
    next: &[&str],
) -> Ended {
    let ((given_reader, mut given_writer), (mut reader, reply_writer)) =
        (pipe().unwrap(), pipe().unwrap());
    given_writer.write_all(given).unwrap();
    drop(given_writer);
    let map = |fd: OwnedFd, child_fd| FdMapping { parent_fd: fd, child_fd };
    let mut command = Command::new(PROGRAM);
    command.args(["--socket", socket]).args(next);
    command.env_clear().env("PATH", "/usr/bin:/bin").envs(environment.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.fd_mappings(vec![map(given_reader.into(), 3), map(reply_writer.into(), 4)]).unwrap();
    let child = command.spawn().unwrap();
    // Our ends of the pipes go with it.
    drop(command);
    let mut reply = String::new();
    reader.read_to_string(&mut reply).unwrap();
    let output = child.wait_with_output().unwrap();
    Ended { code: output.status.code(), reply, output }
}

/// Name and password as a mail server gives them.
pub(crate) fn given(name: &str, password: &str) -> Vec<u8> {
    format!("{name}\0{password}\0\0").into_bytes()
}

#[test]
fn dovecot_reads_exit_codes_and_fields() {
    let world = World::start();
    let (fry, password) = (mail_of("fry"), password_of("fry"));
    let login = [("SERVICE", "imap"), ("TCPREMOTEIP", "192.0.2.9"), ("AUTH_SESSION", "Zxa")];
    let look_up = [("SERVICE", "lmtp"), ("AUTHORIZED", "1")];

    let right = world.run(&given(&fry, &password), &login, &[REPLY]);
    assert_eq!(right.code, Some(0), "{}", printed(&right.output));
    let begin = format!("user={fry}\tuserdb_uid=5000\tuserdb_gid=5000\tuserdb_home=");
    assert!(right.reply.starts_with(&begin), "{}", right.reply);
    wait_until("the journal has it", Duration::from_secs(5), || {
        let log = world.gatepost.log();
        log.contains("client=192.0.2.9") && log.contains("session=Zxa")
    });

    for (name, password, environment, code) in [
        (&*fry, "wrong", &login[..], 1),
        ("nobody", "wrong", &login, 1),
        (&fry, "", &login, 1),
        (&fry, "", &look_up, 2),
        ("nobody", "", &look_up, 3),
    ] {
        let ended = world.run(&given(name, password), environment, &[REPLY]);
        assert_eq!(ended.code, Some(code), "{name}: {}", printed(&ended.output));
        assert_eq!(ended.reply.is_empty(), code != 2, "{name}: {}", ended.reply);
    }
}

#[test]
fn an_outage_is_111_whoever_asks() {
    let world = World::start();
    let right = given(&mail_of("zoidberg"), &password_of("zoidberg"));
    let look_up = [("SERVICE", "lmtp"), ("AUTHORIZED", "1")];
    world.gatepost.store_is_there(false);
    for (environment, next) in
        [(&[("SERVICE", "imap")][..], REPLY), (&look_up, REPLY), (&[("SERVICE", "pop3")], "true")]
    {
        assert_eq!(world.run(&right, environment, &[next]).code, Some(111), "{environment:?}");
        let nobody = start("/nonexistent/socket", &right, environment, &[next]);
        assert_eq!(nobody.code, Some(111), "{}", printed(&nobody.output));
        assert!(printed(&nobody.output).contains("/nonexistent/socket"));
    }
    world.gatepost.store_is_there(true);
}

#[test]
fn what_is_no_login_is_told_apart() {
    let imap = [("SERVICE", "imap")];
    let long = given("fry", &"x".repeat(600));
    for (bytes, next, code) in [
        (&long[..], REPLY, 1),
        (&long, "true", 1),
        (b"fry\0half", REPLY, 111),
        (b"fry\0half", "true", 2),
        (b"", "true", 2),
    ] {
        assert_eq!(start("/nonexistent", bytes, &imap, &[next]).code, Some(code), "{next}");
    }
    let misused = start("/nonexistent", b"", &imap, &[]);
    assert_eq!(misused.code, Some(2), "{}", printed(&misused.output));
    let look_up = [("AUTHORIZED", "1")];
    assert_eq!(start("/nonexistent", b"", &look_up, &[REPLY]).code, Some(111));
}

#[test]
fn for_qmail_the_next_program_runs_as_the_mailboxs_user_at_its_home() {
    let world = World::start();
    let home = world.home.path().join("fry");
    directory_of(&home, MAIL_ID, 0o700);
    let script = "echo \"$USER $HOME $(pwd) $(id -u) $(id -g) $(id -G)\"; cd /proc/$$/fd; for n in 0 3; do [ ! -e $n ] || echo $n; done";
    let program = ["--service", "pop3", "sh", "-c", script];

    let ended = world.run(&given(&mail_of("fry"), &password_of("fry")), &[], &program);

    let home = home.display();
    // 0 shows that the shell can see its descriptors at all; 3 must be closed.
    let expected = format!("{} {home} {home} 5000 5000 5000\n0\n", mail_of("fry"));
    assert_eq!(printed(&ended.output), expected);
    assert_eq!(ended.code, Some(0));
    let wrong = world.run(&given(&mail_of("fry"), "wrong"), &[], &program);
    assert_eq!((wrong.code, &*printed(&wrong.output)), (Some(1), ""));
}

#[test]
fn for_qmail_what_goes_wrong_after_the_login_is_111() {
    let world = World::start();
    let right = given(&mail_of("fry"), &password_of("fry"));

    let homeless = world.run(&right, &[], &["--service", "pop3", "true"]);
    assert_eq!(homeless.code, Some(111), "{}", printed(&homeless.output));

    let home = world.home.path().join("fry");
    directory_of(&home, MAIL_ID, 0o700);
    let missing = world.run(&right, &[], &["--service", "pop3", "/nonexistent/program"]);
    assert_eq!(missing.code, Some(111), "{}", printed(&missing.output));
    assert!(fs::read_dir(home).unwrap().next().is_none());
}

#[test]
fn a_stranger_on_the_daemons_path_hears_no_password() {
    let directory = scratch(std::path::Path::new("/tmp"));
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let socket = directory.path().join("door");
    let script = r#"use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new(Listen => 5, Local => $ARGV[0]) or die $!;
        my $c = $s->accept; my $got = sysread($c, my $bytes, 100); print "got $got\n""#;
    let mut stranger = Command::new("perl");
    stranger.arg("-e").arg(script).arg(&socket).stdout(Stdio::piped()).uid(4711);
    let stranger = stranger.spawn().unwrap();
    wait_until("the stranger listens", Duration::from_secs(5), || socket.exists());

    let right = given(&mail_of("fry"), &password_of("fry"));
    let ended = start(&socket.display().to_string(), &right, &[("SERVICE", "imap")], &[REPLY]);

    assert_eq!(ended.code, Some(111));
    let said = printed(&ended.output);
    assert!(said.contains("user 4711 is listening, which is neither root"), "{said}");
    assert_eq!(printed(&stranger.wait_with_output().unwrap()), "got 0\n");
}
