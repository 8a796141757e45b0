//! Grace (login.md M-3) and the breaker behind it: attempts to provoke it, and what it takes to be given it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::clients::{AuthClient, Wire};
use crate::support::gatepost::{Answer, Configuration, Gatepost};
use crate::support::ldap_proxy::{Fault, LdapProxy, Speaks};
use crate::support::slapd::{Slapd, Wish, mail_of, password_of};
use crate::support::{now, pass_time, printed, wait_until};

/// login.md M-3: so long nothing may have answered.
const SILENCE: Duration = Duration::from_secs(5);

/// A daemon that asks the directory at each login, through the proxy.
struct World {
    gatepost: Gatepost,
    proxy: LdapProxy,
    slapd: Slapd,
}

impl World {
    fn start(change: impl FnOnce(&mut Configuration)) -> Self {
        let slapd = Slapd::with(Wish { recruits: 40, ..Wish::default() });
        let proxy = LdapProxy::start(&slapd, Speaks::Clear);
        let mut configuration = Configuration::new(&slapd);
        configuration.add("memory", "fresh = \"0s\"");
        configuration.change("directory.planet", "port", &proxy.port.to_string());
        for key in ["connect_timeout", "timeout"] {
            configuration.change("directory.planet", key, "\"1s\"");
        }
        change(&mut configuration);
        Self { gatepost: configuration.start(), proxy, slapd }
    }

    fn login(&self, uid: &str) -> Answer {
        self.gatepost.login(&mail_of(uid), &password_of(uid))
    }

    fn prove(&self, uids: &[&str]) {
        for uid in uids {
            let answer = self.login(uid);
            assert_eq!(answer.status, 200, "{uid}: {answer:?}");
        }
    }

    /// Accepted logins by grace.
    fn graces(&self) -> f64 {
        self.gatepost.metric("gatepost_logins_total", &["verdict=\"accept\"", "source=\"grace\""])
    }

    fn assert_no_grace(&self) {
        assert!(self.graces() < 0.5, "grace was given: {}", self.gatepost.log());
        assert!(!self.gatepost.log().contains("source=grace"), "{}", self.gatepost.log());
    }

    /// Nobody answers, and whoever is proven gets in by grace; fry shows it.
    fn wait_for_grace(&self) {
        self.proxy.set(Fault::Refused);
        wait_until("fry gets in by grace", Duration::from_secs(20), || {
            self.login("fry").status == 200
        });
    }

    fn disable(&self, uid: &str) {
        let output = self.gatepost.run(&["mailbox", "disable", &mail_of(uid)], "");
        assert!(output.status.success(), "{}", printed(&output));
    }
}

#[test]
fn grace_is_given_after_five_seconds_of_silence_at_once_and_marked() {
    for fault in [Fault::Hung, Fault::Refused] {
        let world = World::start(|_| {});
        world.prove(&["fry"]);
        // The last answer came after this.
        let last_answer = now();
        world.prove(&["fry"]);

        world.proxy.set(fault);
        let mut put_off = 0;
        wait_until("grace", Duration::from_secs(20), || match world.login("fry").status {
            200 => true,
            503 => {
                put_off += 1;
                false
            }
            other => panic!("{fault:?}: {other}"),
        });

        let after = last_answer.elapsed();
        assert!(after >= SILENCE, "{fault:?}: grace after {after:?}");
        assert!(after < SILENCE + Duration::from_secs(4), "{fault:?}: no grace before {after:?}");
        assert!(put_off > 0, "{fault:?}");
        assert!((world.graces() - 1.0).abs() < 0.5, "{fault:?}: {}", world.graces());
        wait_until("the journal has it", Duration::from_secs(5), || {
            let log = world.gatepost.log();
            log.lines().any(|line| {
                line.contains(" login verdict=accept")
                    && line.contains("fry@")
                    && line.contains(" source=grace")
            })
        });
        // With the breaker open nobody waits: neither who has grace nor who has none.
        for (uid, password, status) in [
            ("fry", password_of("fry"), 200),
            ("fry", "wrong".into(), 503),
            ("leela", password_of("leela"), 503),
            ("nobody", "wrong".into(), 503),
        ] {
            let begun = now();
            let answer = world.gatepost.login(&mail_of(uid), &password);
            let took = begun.elapsed();
            assert_eq!(answer.status, status, "{fault:?}, {uid}: {answer:?}");
            assert!(took < Duration::from_millis(800), "{fault:?}, {uid}: {took:?}");
        }

        world.proxy.set(Fault::Nothing);
        let back = now();
        wait_until("the directory is asked again", Duration::from_secs(10), || {
            world.login("leela").status == 200
        });
        assert!(back.elapsed() < Duration::from_secs(4), "{fault:?}: {:?}", back.elapsed());
        let answer = world.gatepost.login(&mail_of("fry"), "wrong");
        assert_eq!((answer.status, answer.reason()), (403, "wrong-password"), "{fault:?}");
    }
}

#[test]
fn a_full_queue_is_never_grace() {
    let world = World::start(|configuration| {
        configuration
            .add("directory.planet", "bind_connections = 2\nqueue = 2\nsearch_connections = 1");
    });
    let recruits: Vec<_> = (1..=30).map(|number| format!("recruit{number:02}")).collect();
    for uid in &recruits {
        world.prove(&[uid]);
    }
    world.proxy.set(Fault::Delayed(Duration::from_millis(300)));

    // Longer than the silence that grace needs: thirty known people and as many names of nobody want in all the time.
    let (over, busy, accepted) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for (number, uid) in recruits.iter().enumerate() {
            let (world, over, busy, accepted) = (&world, &over, &busy, &accepted);
            scope.spawn(move || {
                for round in (0..).take_while(|_| !over.load(Ordering::Relaxed)) {
                    let answer = world.login(uid);
                    match (answer.status, answer.reason()) {
                        (200, _) => accepted.fetch_add(1, Ordering::Relaxed),
                        (503, "busy" | "deadline") => busy.fetch_add(1, Ordering::Relaxed),
                        _ => panic!("{uid}: {answer:?}"),
                    };
                    let ghost = format!("ghost{number}-{round}@planetexpress.com");
                    let answer = world.gatepost.login(&ghost, "boo").status;
                    assert!([403, 503].contains(&answer), "{ghost}: {answer}");
                    pass_time(Duration::from_millis(20));
                }
            });
        }
        pass_time(SILENCE + Duration::from_secs(2));
        over.store(true, Ordering::Relaxed);
    });

    let (busy, accepted) = (busy.into_inner(), accepted.into_inner());
    eprintln!("a full queue: {accepted} accepted, {busy} put off, none by grace");
    assert!(busy > 0 && accepted > 0, "{accepted} accepted, {busy} put off");
    world.assert_no_grace();
}

#[test]
fn a_directory_slower_than_our_deadline_is_never_grace() {
    // Slow for everybody, but in its own time limit; and dumb at the binds of people while it answers all else.
    for fault in [Fault::Delayed(Duration::from_millis(1500)), Fault::HungPeople] {
        let world = World::start(|configuration| {
            configuration.set("login", "deadline = \"1s\"");
            configuration.change("directory.planet", "timeout", "\"4s\"");
            configuration.change("directory.planet", "connect_timeout", "\"4s\"");
        });
        world.prove(&["fry", "leela"]);
        world.proxy.set(fault);

        let begun = now();
        while begun.elapsed() < SILENCE + Duration::from_secs(3) {
            std::thread::scope(|scope| {
                for uid in ["fry", "leela"] {
                    let world = &world;
                    scope.spawn(move || {
                        let begun = now();
                        let answer = world.login(uid);
                        let took = begun.elapsed();
                        // An answer that comes late is an answer to whoever waits for it then, with a question of
                        // their own just begun: the directory's, never grace.
                        let late = matches!(fault, Fault::Delayed(_)) && answer.status == 200;
                        assert!(answer.status == 503 || late, "{fault:?}: {answer:?}");
                        assert!(took < Duration::from_secs(3), "{fault:?}: {took:?}");
                    });
                }
            });
        }
        world.assert_no_grace();

        world.proxy.set(Fault::Nothing);
        wait_until("fry gets in", Duration::from_secs(10), || world.login("fry").status == 200);
    }
}

#[test]
fn grace_is_not_for_whoever_was_refused_demoted_disabled_or_gone_and_local_accounts_need_none() {
    let world = World::start(|configuration| {
        configuration.add("directory.planet.identity", "disabled_rule = \"filter:(title=former)\"");
    });
    let everybody = ["fry", "leela", "hermes", "bender", "professor", "zoidberg", "recruit01"];
    world.prove(&everybody);
    let login = |uid: &str, password: &str| world.gatepost.login(&mail_of(uid), password).status;

    // leela: a new password was accepted, which demotes the old one.
    world.slapd.set_password("leela", "new-Tr0ub4dor");
    assert_eq!(login("leela", "new-Tr0ub4dor"), 200);
    // hermes: the old one was refused.
    world.slapd.set_password("hermes", "new-Tr0ub4dor");
    assert_eq!(login("hermes", &password_of("hermes")), 403);
    // bender: seen disabled in the directory. professor: gone from it.
    world.slapd.set_attribute("bender", "title", "former");
    assert_eq!(login("bender", &password_of("bender")), 403);
    world.slapd.delete("professor");
    assert_eq!(login("professor", &password_of("professor")), 403);
    // zoidberg: disabled by the administrator, here.
    world.disable("zoidberg");

    world.wait_for_grace();

    assert_eq!(login("recruit01", &password_of("recruit01")), 200);
    assert_eq!(login("leela", "new-Tr0ub4dor"), 200, "the one that was accepted last");
    for uid in ["leela", "hermes", "bender", "professor", "zoidberg"] {
        let answer = world.login(uid);
        assert_ne!(answer.status, 200, "{uid}: {answer:?}");
    }
    assert_eq!(login("zoidberg", &password_of("zoidberg")), 403, "his mailbox is disabled");
    assert_eq!(login("fry", "never-proven"), 503);

    world.proxy.set(Fault::Nothing);
    wait_until("the directory is asked again", Duration::from_secs(10), || {
        login("recruit02", &password_of("recruit02")) == 200
    });
    world.prove(&["fry", "recruit01"]);
}

/// login.md Q-4: names that nobody knows get half of everything.
#[test]
fn a_flood_of_unknown_names_leaves_the_known_their_half_of_the_pool() {
    const FLOODERS: usize = 8;
    let world = World::start(|configuration| {
        configuration.add("directory.planet", "bind_connections = 8\nqueue = 32");
    });
    let uids: Vec<_> = (1..=4).map(|number| format!("recruit{number:02}")).collect();
    let rounds = 40;
    world.proxy.set(Fault::Delayed(Duration::from_millis(50)));
    let logins = || -> Vec<Duration> {
        let mut took: Vec<_> = std::thread::scope(|scope| {
            let people: Vec<_> = uids
                .iter()
                .map(|uid| {
                    let world = &world;
                    scope.spawn(move || -> Vec<Duration> {
                        let login = |_| {
                            let begun = now();
                            let answer = world.login(uid);
                            assert_eq!(answer.status, 200, "{uid}: {answer:?}");
                            begun.elapsed()
                        };
                        (0..rounds).map(login).collect()
                    })
                })
                .collect();
            people.into_iter().flat_map(|person| person.join().unwrap()).collect()
        });
        took.sort();
        took
    };
    for uid in &uids {
        world.prove(&[uid]);
    }
    let quiet = logins();

    let (over, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let flooded = std::thread::scope(|scope| {
        for flooder in 0..FLOODERS {
            let (world, over, asked) = (&world, &over, &asked);
            scope.spawn(move || {
                let socket = world.gatepost.configuration.auth_socket();
                let mut client = AuthClient::connect(Wire::Unix(&socket), 2);
                for first in (1..).step_by(16).take_while(|_| !over.load(Ordering::Relaxed)) {
                    for id in first..first + 16 {
                        client.ask(
                            id,
                            "service=imap",
                            format!("ghost{flooder}-{id}@planetexpress.com"),
                            "boo",
                        );
                    }
                    for _ in 0..16 {
                        let answer = client.answer();
                        assert!(answer.starts_with("FAIL\t"), "{answer}");
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        wait_until("the flood is on", Duration::from_secs(10), || {
            world.gatepost.log().contains("reason=busy")
        });
        let took = logins();
        over.store(true, Ordering::Relaxed);
        took
    });

    let percentile = |times: &[Duration], percent: usize| times[(times.len() - 1) * percent / 100];
    let figures =
        [&quiet, &flooded].map(|times| [50, 99, 100].map(|percent| percentile(times, percent)));
    eprintln!(
        "quiet p50, p99, max {:?}; in a flood of {} unknown names {:?}",
        figures[0],
        asked.load(Ordering::Relaxed),
        figures[1]
    );
    // Their half of the places is free: it takes what the directory takes, and what a busy machine adds.
    assert!(percentile(&flooded, 99) < Duration::from_secs(1), "{figures:?}");
    world.assert_no_grace();
}

/// login.md Q-4: nobody waits for a dead server twice.
#[test]
fn a_dead_server_is_probed_each_second_and_by_nobody_else_and_found_back_within_two() {
    for fault in [Fault::Dropped, Fault::Reset, Fault::Coded(52), Fault::Garbage] {
        let world = World::start(|_| {});
        world.prove(&["fry"]);
        world.proxy.set(fault);
        wait_until("the server is given up", Duration::from_secs(10), || {
            assert_eq!(world.login("leela").status, 503, "{fault:?}");
            world.gatepost.metric("gatepost_ldap_up", &[]) < 0.5
        });

        let requests = || world.proxy.binds() + world.proxy.searches();
        let (connections, before) = (world.proxy.connections(), requests());
        let begun = now();
        let mut logins = 0;
        while begun.elapsed() < Duration::from_secs(3) {
            let begun = now();
            assert_eq!(world.login("leela").status, 503, "{fault:?}");
            assert!(
                begun.elapsed() < Duration::from_millis(800),
                "{fault:?}: {:?}",
                begun.elapsed()
            );
            logins += 1;
        }
        let (connections, requests) =
            (world.proxy.connections() - connections, requests() - before);
        assert!((1..=4).contains(&connections), "{fault:?}: {connections} connections");
        assert!((1..=8).contains(&requests), "{fault:?}: {requests} requests of {logins} logins");

        world.proxy.set(Fault::Nothing);
        let back = now();
        wait_until("the server is found back", Duration::from_secs(10), || {
            world.login("leela").status == 200
        });
        let back = back.elapsed();
        eprintln!(
            "{fault:?}: {logins} logins, {connections} connections in 3 s, back after {back:?}"
        );
        assert!(back < Duration::from_secs(3), "{fault:?}: {back:?}");
    }
}
