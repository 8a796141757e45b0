//! Work goes on while the daemon is reloaded and restarted, while everybody comes at once, and while somebody sends what
//! has no end.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::outage_table::{self, Door, Heard};
use crate::support::clients::{AuthClient, Wire, imap_login, pop3_login};
use crate::support::dovecot::{Dovecot, Home, Judge, Place};
use crate::support::gatepost::{Configuration, Gatepost};
use crate::support::slapd::{Slapd, Wish, mail_of, password_of};
use crate::support::{now, pass_time, wait_until};

#[test]
fn two_hundred_equal_cold_attempts_at_sixteen_doors_are_one_search_and_one_bind() {
    const AT_EACH: usize = 13;
    let world = outage_table::World::start();
    let (name, password) = (mail_of("fry"), password_of("fry"));
    let searches = || {
        let (all, probes) =
            (world.slapd.count_log(&["SRCH base="]), world.slapd.count_log(&["SRCH base=\"\""]));
        all - probes
    };
    let before = searches();
    let start = Barrier::new(AT_EACH * Door::ALL.len());

    std::thread::scope(|scope| {
        for door in Door::ALL {
            for _ in 0..AT_EACH {
                let (world, start, name, password) = (&world, &start, &name, &password);
                scope.spawn(move || {
                    start.wait();
                    let answer = world.knock(door, name, password);
                    assert_eq!(door.heard(&answer), Heard::In, "{door:?}: {answer}");
                });
            }
        }
    });

    assert_eq!(world.slapd.binds_as("fry"), 1);
    assert_eq!(searches() - before, 1);
    let boxes = world.gatepost.mailboxes();
    assert_eq!(boxes.iter().filter(|address| **address == name).count(), 1);
}

/// Everybody who wants in while something is done to the daemon: each attempt must be judged as it is, not even put off.
struct Crowd<'a> {
    gatepost: &'a Gatepost,
    over: AtomicBool,
    attempts: AtomicUsize,
}

impl Crowd<'_> {
    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    /// Attempts by both wires of the auth protocol, and their truth.
    fn by_auth(&self, wire: Wire<'_>, name: &str, password: &str, begin: &str) {
        let mut client = AuthClient::connect(wire, 2);
        while self.goes_on() {
            let answer = client.login("service=imap", name, password);
            assert!(
                answer.starts_with(begin) && !answer.contains("temp_fail"),
                "{name}: {answer:?}"
            );
            self.attempts.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn by_http(&self, name: &str, password: &str, status: u16) {
        while self.goes_on() {
            let answer = self.gatepost.login(name, password);
            assert_eq!(answer.status, status, "{name}: {answer:?}");
            self.attempts.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn newcomers(&self, recruits: usize) {
        for number in (1..=recruits).take_while(|_| self.goes_on()) {
            let uid = format!("recruit{number:02}");
            let answer = self.gatepost.login(&mail_of(&uid), &password_of(&uid));
            assert_eq!(answer.status, 200, "{uid}: {answer:?}");
            self.attempts.fetch_add(1, Ordering::Relaxed);
            pass_time(Duration::from_millis(20));
        }
    }
}

#[test]
fn reloads_of_good_and_bad_files_fail_no_attempt_that_asks_the_directory() {
    const RECRUITS: usize = 400;
    let slapd = Slapd::with(Wish { recruits: RECRUITS, ..Wish::default() });
    let mut configuration = Configuration::new(&slapd);
    // The directory is asked each time, and for refusals too.
    configuration.add("memory", "fresh = \"0s\"\nrefused = \"1ms\"\nabsent = \"1ms\"");
    // So often that an account's budget would be spent.
    configuration.set("directory.planet.auth", "wrong_binds = \"1000/10m\"");
    let mut gatepost = configuration.start();
    let file = gatepost.configuration.path("gatepost.toml");
    let socket = gatepost.configuration.auth_socket();
    let port = gatepost.configuration.auth_port;
    let said = |gatepost: &Gatepost, words: &str| gatepost.log().matches(words).count();
    let written = |gatepost: &mut Gatepost| {
        gatepost.configuration.write();
        std::fs::read_to_string(&file).unwrap()
    };
    // Files by turns: what they say is made ahead, for the crowd holds the daemon.
    let rounds: Vec<_> = (1..=4)
        .map(|round| {
            let quota = |size: u32| format!("\"{size} GiB\"");
            gatepost.configuration.change("template.crew", "quota", &quota(round));
            gatepost.configuration.change("directory.planet", "queue", &(256 + round).to_string());
            let good = written(&mut gatepost);
            gatepost.configuration.change("template.crew", "quota", &quota(100));
            gatepost.configuration.set("nonsense", "");
            let bad = written(&mut gatepost);
            gatepost.configuration.remove("nonsense");
            (u64::from(round) << 30, good, bad)
        })
        .collect();
    let crowd =
        Crowd { gatepost: &gatepost, over: AtomicBool::new(false), attempts: AtomicUsize::new(0) };

    std::thread::scope(|scope| {
        let (crowd, socket) = (&crowd, &socket);
        let right = |uid: &str| (mail_of(uid), password_of(uid));
        let ((fry, fry_password), (leela, leela_password)) = (right("fry"), right("leela"));
        scope.spawn(move || crowd.by_auth(Wire::Unix(socket), &fry, &fry_password, "OK\t1"));
        scope.spawn(move || crowd.by_auth(Wire::Tcp(port), &leela, &leela_password, "OK\t1"));
        scope.spawn(|| {
            crowd.by_auth(Wire::Unix(socket), &mail_of("zoidberg"), "wrong", "FAIL\t1\t");
        });
        scope.spawn(|| crowd.by_http(&mail_of("nobody"), "wrong", 403));
        scope.spawn(|| crowd.by_http(&mail_of("bender"), &password_of("bender"), 200));
        scope.spawn(|| crowd.newcomers(RECRUITS));
        let _over = Over(&crowd.over);
        for (round, (quota, good, bad)) in (1..).zip(rounds) {
            for (text, words) in
                [(good, "configuration reloaded"), (bad, "the new configuration is not taken")]
            {
                std::fs::write(&file, text).unwrap();
                gatepost.hang_up();
                wait_until(words, Duration::from_secs(20), || said(&gatepost, words) == round);
                // What is in force is the good file's.
                let answer = gatepost.login(&mail_of("fry"), &password_of("fry"));
                assert_eq!(answer.mailbox("quota"), quota, "{words}: {answer:?}");
                pass_time(Duration::from_millis(200));
            }
        }
    });

    let attempts = crowd.attempts.into_inner();
    eprintln!("{attempts} attempts in 8 reloads, none failed");
    assert!(attempts > 100, "{attempts}");
    assert!(gatepost.metric("gatepost_logins_total", &["verdict=\"later\""]) < 0.5);
}

/// Says that it is over when it is dropped.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// On a machine that is busy with other tests two things are left to chance. A mail process that takes longer to start
/// than claims are awaited finds a daemon that knows nothing of its login: "later". And a request that is sent in the very
/// moment in which its connection is closed: Dovecot 2.3 itself calls that a failed login, and says so in its log.
#[test]
fn while_the_daemon_is_restarted_behind_dovecot_hardly_any_login_fails() {
    let slapd = Slapd::start();
    let place = Place::new(Home::Bookworm);
    let mut gatepost = Configuration::new(&slapd).for_dovecot(&place).start();
    let dovecot = Dovecot::start(place, Judge::Gatepost);
    let over = AtomicBool::new(false);
    let [logins, put_off] = [(); 2].map(|()| AtomicUsize::new(0));

    std::thread::scope(|scope| {
        for (number, uid) in ["fry", "leela", "bender", "hermes"].into_iter().enumerate() {
            let (dovecot, over, logins, put_off) = (&dovecot, &over, &logins, &put_off);
            scope.spawn(move || {
                let (name, password) = (mail_of(uid), password_of(uid));
                while !over.load(Ordering::Relaxed) {
                    let (reply, accepted, later) = match number % 2 {
                        0 => (imap_login(dovecot.imap, &name, &password), "a OK", "a NO [UNAV"),
                        _ => (pop3_login(dovecot.pop3, &name, &password), "+OK", "-ERR [SYS/TEMP]"),
                    };
                    let count = if reply.starts_with(accepted) {
                        logins
                    } else {
                        let put_off_so = reply.is_empty() || reply.starts_with(later);
                        let is_cut_off = dovecot.log().contains("closed with 1 pending requests");
                        assert!(put_off_so || is_cut_off, "{reply:?}: {}", dovecot.log());
                        put_off
                    };
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let _over = Over(&over);
        for _ in 0..5 {
            pass_time(Duration::from_millis(500));
            gatepost.stop();
            gatepost.start_again();
        }
        pass_time(Duration::from_millis(500));
    });

    let (logins, put_off) = (logins.into_inner(), put_off.into_inner());
    eprintln!("{logins} logins over five restarts, {put_off} failed");
    assert!(logins > 20, "{logins}");
    assert!(put_off <= logins / 20, "{put_off} failed, {logins} let in");
}

/// A stream of either kind.
trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

#[test]
fn what_has_no_end_is_cut_off_and_takes_neither_memory_nor_time_of_others() {
    const AT_EACH: usize = 8;
    const SENT: usize = 4 << 20;
    let slapd = Slapd::start();
    let mut configuration = Configuration::new(&slapd);
    outage_table::doors(&mut configuration);
    let gatepost = configuration.start();
    let configuration = &gatepost.configuration;
    let login = || {
        let begun = now();
        let answer = gatepost.login(&mail_of("fry"), &password_of("fry"));
        assert_eq!(answer.status, 200, "{answer:?}");
        begun.elapsed()
    };
    login();
    let before = gatepost.resident_kib();
    let endless = endless(configuration);
    let (over, slowest) = (AtomicBool::new(false), std::sync::Mutex::new(Duration::ZERO));
    std::thread::scope(|scope| {
        let _over = Over(&over);
        let attacks: Vec<_> = endless
            .iter()
            .flat_map(|attack| std::iter::repeat_n(attack, AT_EACH))
            .map(|(door, socket, begin)| {
                let web = configuration.web;
                scope.spawn(move || {
                    let stream: Box<dyn Stream> = match socket {
                        Some(path) => {
                            let stream = UnixStream::connect(path).unwrap();
                            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                            stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
                            Box::new(stream)
                        }
                        None => {
                            let stream = TcpStream::connect(("127.0.0.1", web)).unwrap();
                            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                            stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
                            Box::new(stream)
                        }
                    };
                    cut_off(door, stream, begin, SENT);
                })
            })
            .collect();
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let took = login();
                let mut slowest = slowest.lock().unwrap();
                *slowest = took.max(*slowest);
            }
        });
        for attack in attacks {
            attack.join().unwrap();
        }
    });

    let grown = gatepost.resident_kib().saturating_sub(before);
    let slowest = slowest.into_inner().unwrap();
    eprintln!("{} attacks: {grown} KiB more, slowest login {slowest:?}", AT_EACH * endless.len());
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    assert!(grown < 64 << 10, "{grown} KiB");
    login();
}

/// A door (`None`: the http one), and what begins well there and then never ends.
fn endless(configuration: &Configuration) -> [(&'static str, Option<PathBuf>, &'static [u8]); 13] {
    let auth = configuration.auth_socket();
    let path = |name: &str| configuration.path(name);
    [
        ("auth", Some(auth.clone()), &b"VERSION\t1\t2\nCPID\t1\nAUTH\t1\tPLAIN\tservice="[..]),
        ("auth, from the start", Some(auth), b"VERSION"),
        ("saslauthd", Some(path("saslauthd")), b"\xff\xff"),
        ("checkpassword", Some(path("checkpassword")), b"1\tlogin\t"),
        ("dict", Some(path("dict")), b"H3\t2\t0\t\tgatepost\nLshared/passdb/imap//"),
        ("master", Some(path("master")), b"VERSION\t1\t1\nUSER\t1\t"),
        ("socketmap", Some(path("maps")), b"999999999:"),
        ("policy", Some(path("policy")), b"request=smtpd_access_policy\nsender="),
        ("control", Some(path("control")), b"health "),
        ("http, the head", None, b"POST /v1/login HTTP/1.1\r\nX: "),
        ("http, the target", None, b"GET /"),
        (
            "http, the body",
            None,
            b"POST /v1/login HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n{",
        ),
        (
            "http, chunks",
            None,
            b"POST /v1/login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffff\r\n",
        ),
    ]
}

/// The door ends the connection before it has taken all of this, and never says yes.
fn cut_off(door: &str, mut stream: Box<dyn Stream>, begin: &[u8], bytes: usize) {
    let chunk = [b'a'; 1 << 14];
    let mut written = stream.write(begin).map(|_| 0);
    while written.as_ref().is_ok_and(|written| *written < bytes) {
        written = match (stream.write(&chunk), written) {
            (Ok(more), Ok(before)) => Ok(before + more),
            (Err(error), _) => Err(error),
            (_, error) => error,
        };
    }
    match &written {
        Err(error) => assert!(
            !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
            "{door}: it is neither read nor cut off"
        ),
        // A TCP socket takes as much into the kernel alone.
        Ok(_) => assert!(door.starts_with("http"), "{door}: it took {bytes} bytes"),
    }
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{door}: it is not cut off");
    }
    let answer = String::from_utf8_lossy(&answer);
    if door.starts_with("http") && !answer.is_empty() {
        assert!(answer.starts_with("HTTP/1.1 4"), "{door}: {answer}");
    }
    assert!(!answer.contains("OK\t1") && !answer.contains(" 200 "), "{door}: {answer}");
}
