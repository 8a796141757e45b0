//! The daemon as a service: what systemd gives it and hears from it, many connections, a stop and reloads under load.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::clients::{AuthClient, Wire, http};
use crate::support::gatepost::Configuration;
use crate::support::slapd::{Slapd, Wish, mail_of, password_of};
use crate::support::{now, pass_time, wait_until};

const FIELDS: &str = "service=imap";

#[test]
fn systemd_hears_that_the_daemon_is_ready_lives_reloads_and_stops_while_no_directory_answers() {
    let mut slapd = Slapd::start();
    let mut configuration = Configuration::new(&slapd);
    slapd.stop();
    let heard = Heard::at(&configuration.path("notify"));
    configuration.environment("NOTIFY_SOCKET", configuration.path("notify").to_str().unwrap());
    configuration.environment("WATCHDOG_USEC", "400000");
    let mut gatepost = configuration.start();

    let ready = heard.next_but("WATCHDOG=1");
    assert!(ready.starts_with("READY=1\nSTATUS=3 doors; directories: "), "{ready}");
    for _ in 0..4 {
        heard.until("WATCHDOG=1");
    }

    gatepost.hup();
    let reloading = heard.until("RELOADING=1");
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    let ready = heard.until("READY=1");
    assert!(!ready.contains("not taken"), "{ready}");

    gatepost.configuration.set("nonsense", "");
    gatepost.hup();
    heard.until("RELOADING=1");
    let ready = heard.until("READY=1");
    assert!(ready.contains("the new configuration was not taken"), "{ready}");

    gatepost.stop();
    heard.until("STOPPING=1");
}

#[test]
fn the_watchdog_of_another_process_is_not_answered() {
    let slapd = Slapd::start();
    let mut configuration = Configuration::new(&slapd);
    let heard = Heard::at(&configuration.path("notify"));
    configuration.environment("NOTIFY_SOCKET", configuration.path("notify").to_str().unwrap());
    configuration.environment("WATCHDOG_USEC", "100000");
    configuration.environment("WATCHDOG_PID", "1");
    let mut gatepost = configuration.start();

    heard.until("READY=1");
    pass_time(Duration::from_millis(500));
    gatepost.stop();

    assert!(heard.next_but("STATUS=").starts_with("STOPPING=1"));
}

/// What arrives where systemd would listen.
struct Heard(UnixDatagram);

impl Heard {
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self(socket)
    }

    fn next(&self) -> String {
        let mut buffer = [0; 1024];
        let length = self.0.recv(&mut buffer).expect("systemd hears something");
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    /// The next message that begins otherwise.
    fn next_but(&self, start: &str) -> String {
        self.find(|message| !message.starts_with(start))
    }

    /// The next message that begins so.
    fn until(&self, start: &str) -> String {
        self.find(|message| message.starts_with(start))
    }

    fn find(&self, is_it: impl Fn(&str) -> bool) -> String {
        loop {
            let message = self.next();
            if is_it(&message) {
                return message;
            }
        }
    }
}

#[test]
fn sockets_that_systemd_passes_take_the_place_of_the_doors_own() {
    let slapd = Slapd::start();
    let mut configuration = Configuration::new(&slapd);
    let [one, other, control] =
        ["one", "other", "control"].map(|name| configuration.path(name).display().to_string());
    let web = format!("127.0.0.1:{}", configuration.web);
    let names = "--fdname=auth:auth:web:control";
    let sockets = ["-l", &one, "-l", &other, "-l", &web, "-l", &control, names];
    configuration.launch_by(&[&["systemd-socket-activate"], &sockets[..]].concat());
    // It starts the daemon at the first connection, which is the look whether it is ready.
    let mut gatepost = configuration.start();

    for socket in [&one, &other] {
        let mut client = AuthClient::connect(Wire::Unix(Path::new(socket)), 2);
        let answer = client.login(FIELDS, mail_of("fry"), password_of("fry"));
        assert!(answer.starts_with("OK\t"), "{answer}");
    }
    assert!(!gatepost.configuration.auth_socket().exists(), "the door opened its own socket too");
    // A door without a passed socket opens its own.
    AuthClient::connect(Wire::Tcp(gatepost.configuration.auth_port), 2);
    assert!(gatepost.run(&["health"], "").status.success());
    let inodes = || [&one, &other, &control].map(|path| fs::metadata(path).unwrap().ino());
    let before = inodes();
    gatepost.stop();
    assert_eq!(inodes(), before, "the paths are systemd's");
}

#[test]
fn a_passed_socket_that_is_no_door_or_does_not_fit_is_a_clear_start_error() {
    let slapd = Slapd::start();
    let configuration = Configuration::new(&slapd);
    let path = configuration.path("passed");
    let start = |arguments: &[&str]| -> Output {
        let mut configuration = Configuration::new(&slapd);
        configuration.launch_by(
            &[&["systemd-socket-activate", "-l", path.to_str().unwrap()], arguments].concat(),
        );
        configuration.write();
        let mut command = configuration.command();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        wait_until("the socket is there", Duration::from_secs(10), || {
            UnixStream::connect(&path).is_ok()
        });
        let output = child.wait_with_output().unwrap();
        fs::remove_file(&path).unwrap();
        output
    };

    for (arguments, wrong) in [
        (
            &["--fdname=gatepost.socket"][..],
            "\"gatepost.socket\", and there is none; FileDescriptorName= is one of: auth, auth-tcp, web, control",
        ),
        (&[][..], "FileDescriptorName="),
        (&["--fdname=auth-tcp"], "listen.auth-tcp: the passed socket is a unix socket"),
    ] {
        let output = start(arguments);
        let said = crate::support::printed(&output);
        assert!(!output.status.success() && said.contains("socket activation: "), "{said}");
        assert!(said.contains(wrong), "{said}");
    }
}

#[test]
fn ten_thousand_idle_and_a_thousand_slow_connections_hurt_nobody() {
    const IDLE: usize = 10_000;
    const SLOW: usize = 1_000;
    raise_file_limit();
    let slapd = Slapd::start();
    let mut configuration = Configuration::new(&slapd);
    configuration.add("listen.auth", "max_connections = 12000");
    let gatepost = configuration.start();
    let socket = gatepost.configuration.auth_socket();
    let connect = || {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut first = [0; 7];
        stream.read_exact(&mut first).unwrap();
        stream
    };
    let login = || {
        let begun = now();
        let mut client = AuthClient::connect(Wire::Unix(&socket), 2);
        let answer = client.login(FIELDS, mail_of("fry"), password_of("fry"));
        assert!(answer.starts_with("OK\t"), "{answer}");
        begun.elapsed()
    };
    login();
    let before = gatepost.resident_kib();

    let idle: Vec<UnixStream> = (0..IDLE).map(|_| connect()).collect();
    let mut slow: Vec<UnixStream> = (0..SLOW).map(|_| connect()).collect();
    for byte in b"VERSI" {
        for stream in &mut slow {
            stream.write_all(&[*byte]).unwrap();
        }
        let slowest = (0..50).map(|_| login()).max().unwrap();
        eprintln!("slowest login of 50: {slowest:?}");
        assert!(slowest < Duration::from_secs(1), "{slowest:?}");
        pass_time(Duration::from_secs(1));
    }

    let grown = gatepost.resident_kib().saturating_sub(before);
    eprintln!("{grown} KiB for {} connections", IDLE + SLOW);
    assert!(grown < 220 * 1024, "{grown} KiB for {} connections", IDLE + SLOW);
    let open = gatepost.metric("gatepost_connections", &["door=\"auth\""]);
    assert!(open > 10_999.5, "{open} connections are open");
    drop((idle, slow));
    wait_until("they are gone", Duration::from_secs(10), || {
        gatepost.metric("gatepost_connections", &["door=\"auth\""]) < 0.5
    });
}

#[test]
fn silence_is_borne_and_half_a_line_is_not() {
    let slapd = Slapd::start();
    let gatepost = Configuration::new(&slapd).start();
    let mut silent = AuthClient::connect(Wire::Unix(&gatepost.configuration.auth_socket()), 2);
    let mut half = UnixStream::connect(gatepost.configuration.auth_socket()).unwrap();
    half.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
    half.write_all(b"VERSION\t1\t2\nCPI").unwrap();
    let begun = now();

    let mut said = Vec::new();
    half.read_to_end(&mut said).unwrap();

    let after = begun.elapsed();
    assert!((29..35).contains(&after.as_secs()), "closed after {after:?}");
    assert!(String::from_utf8(said).unwrap().ends_with("DONE\n"));
    let answer = silent.login(FIELDS, mail_of("fry"), password_of("fry"));
    assert!(answer.starts_with("OK\t"), "{answer}");
}

#[test]
fn connections_beyond_the_limit_wait_until_there_is_room() {
    let slapd = Slapd::start();
    let mut configuration = Configuration::new(&slapd);
    configuration.add("listen.auth", "max_connections = 2");
    let gatepost = configuration.start();
    let socket = gatepost.configuration.auth_socket();
    let first = AuthClient::connect(Wire::Unix(&socket), 2);
    let _second = AuthClient::connect(Wire::Unix(&socket), 2);

    let mut third = UnixStream::connect(&socket).unwrap();
    third.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut byte = [0];
    assert!(third.read(&mut byte).is_err(), "it was let in beyond the limit");
    drop(first);

    third.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(third.read(&mut byte).unwrap(), 1);
}

#[test]
fn at_term_every_request_that_was_sent_is_answered_and_the_exit_is_clean() {
    const PEOPLE: usize = 10;
    const EACH: u32 = 30;
    let slapd = Slapd::with(Wish { recruits: PEOPLE, ..Wish::default() });
    let mut gatepost = Configuration::new(&slapd).start();
    let socket = gatepost.configuration.auth_socket();
    let known = (mail_of("fry"), password_of("fry"));
    assert_eq!(gatepost.login(&known.0, &known.1).status, 200);
    let mut busy: Vec<_> = (0..8).map(|_| AuthClient::connect(Wire::Unix(&socket), 2)).collect();
    let mut cold: Vec<_> =
        (0..PEOPLE).map(|_| AuthClient::connect(Wire::Unix(&socket), 2)).collect();

    // Some that memory answers, some for which a directory must be asked that is slow just now.
    slapd.pause();
    for (number, client) in (1..).zip(&mut cold) {
        let uid = format!("recruit{number:02}");
        client.ask(1, FIELDS, mail_of(&uid), password_of(&uid));
    }
    let mut web = post(gatepost.configuration.web, "recruit01");
    for id in 1..=EACH {
        for client in &mut busy {
            client.ask(id, FIELDS, &known.0, &known.1);
        }
    }
    // The last of them is still in the backlog perhaps, or unread: it is answered all the same.
    let mut late = AuthClient::connect_blindly(&socket);
    late.ask(1, FIELDS, &known.0, &known.1);
    gatepost.terminate();
    wait_until("it stops", Duration::from_secs(5), || gatepost.log().contains("stopping"));
    slapd.resume();

    for client in &mut busy {
        for _ in 0..EACH {
            let answer = client.answer();
            assert!(answer.starts_with("OK\t"), "{answer}");
        }
        assert_eq!(client.answer(), "", "then it is closed");
    }
    for client in &mut cold {
        let answer = client.answer();
        assert!(answer.starts_with("OK\t"), "{answer}");
    }
    assert!(late.answer_after_greeting().starts_with("OK\t"));
    let mut answer = String::new();
    web.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    gatepost.stop();
}

/// Sends a login over HTTP and does not wait.
fn post(port: u16, uid: &str) -> TcpStream {
    let body = serde_json::json!({
        "username": mail_of(uid), "password": password_of(uid), "service": "imap",
    });
    let body = body.to_string();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let length = body.len();
    write!(stream, "POST /v1/login HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}")
        .unwrap();
    stream
}

#[test]
fn reloads_under_load_lose_no_connection_and_fail_no_attempt() {
    let slapd = Slapd::start();
    let mut gatepost = Configuration::new(&slapd).start();
    let socket = gatepost.configuration.auth_socket();
    let port = gatepost.configuration.auth_port;
    let (name, password) = (mail_of("fry"), password_of("fry"));
    let (over, attempts) = (AtomicBool::new(false), AtomicUsize::new(0));
    let reloads = |gatepost: &crate::support::gatepost::Gatepost, words: &str| {
        gatepost.log().matches(words).count()
    };

    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..6)
            .map(|number| {
                let (over, attempts, name, password) = (&over, &attempts, &name, &password);
                let wire = if number % 2 == 0 { Wire::Unix(&socket) } else { Wire::Tcp(port) };
                scope.spawn(move || {
                    let mut client = AuthClient::connect(wire, 2);
                    while !over.load(Ordering::Relaxed) {
                        // One connection all along: a lost one fails every attempt from then on.
                        let answer = client.login(FIELDS, name, password);
                        assert!(answer.starts_with("OK\t"), "{answer:?}");
                        attempts.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for round in 1..=5 {
            gatepost.configuration.change("template.crew", "quota", &format!("\"{round} GiB\""));
            gatepost.hup();
            wait_until("it is reloaded", Duration::from_secs(10), || {
                reloads(&gatepost, "configuration reloaded") == round
            });
            gatepost.configuration.set("nonsense", "");
            gatepost.hup();
            wait_until("it is refused", Duration::from_secs(10), || {
                reloads(&gatepost, "the new configuration is not taken") == round
            });
            gatepost.configuration.remove("nonsense");
        }
        over.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().unwrap();
        }
    });

    assert!(attempts.load(Ordering::Relaxed) > 100, "{attempts:?}");
    let (_, metrics) = http(gatepost.configuration.web, "GET", "/metrics", b"");
    assert!(!metrics.contains("verdict=\"later\""), "{metrics}");
}

#[test]
fn a_stop_does_not_wait_behind_a_reload() {
    let slapd = Slapd::start();
    let mut gatepost = Configuration::new(&slapd).start();
    let file = gatepost.configuration.path("gatepost.toml");
    fs::remove_file(&file).unwrap();
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
    rustix::fs::mknodat(rustix::fs::CWD, &file, kind, mode | rustix::fs::Mode::WUSR, 0).unwrap();

    gatepost.hang_up();
    // Opens once the reload reads at the other end, where it finds nothing until this end is closed.
    let held_up = fs::OpenOptions::new().write(true).open(&file).unwrap();
    gatepost.terminate();
    wait_until("it stops", Duration::from_secs(5), || gatepost.log().contains("stopping"));

    fs::remove_file(&file).unwrap();
    drop(held_up);
    gatepost.stop();
}

#[test]
fn the_journal_names_the_process_that_asked() {
    let slapd = Slapd::start();
    let gatepost = Configuration::new(&slapd).start();
    let mut client = AuthClient::connect(Wire::Unix(&gatepost.configuration.auth_socket()), 2);
    client.login(FIELDS, mail_of("fry"), password_of("fry"));

    let uid = rustix::process::geteuid().as_raw();
    let end = format!(" peer.uid={uid} peer.pid={}", std::process::id());
    wait_until("the line is there", Duration::from_secs(5), || {
        gatepost
            .log()
            .lines()
            .any(|line| line.contains(" login verdict=accept") && line.ends_with(&end))
    });
}

/// This process opens more than the 1024 files that many systems give, and so does the daemon.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let enough = limit.maximum.is_none_or(|maximum| maximum >= 13_000);
    assert!(enough, "eleven thousand connections need `ulimit -Hn 13000`, here it is {limit:?}");
}
