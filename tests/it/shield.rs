//! The shield: nobody is locked out by those who guess, nobody guesses against memory, nobody who is remembered waits
//! (login.md M-2, M-6, L-1 to L-3; issue 4, R3).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::gatepost::{Answer, Configuration, Gatepost};
use crate::support::samba::{self, Samba};
use crate::support::slapd::{Slapd, Wish, mail_of, password_of};
use crate::support::{now, pass_time, wait_until};

const NEW: &str = "new-Tr0ub4dor";
const OWNER: &str = "192.0.2.7";

fn start(fresh: &str, wish: Wish) -> (Gatepost, Slapd) {
    let slapd = Slapd::with(wish);
    let mut configuration = Configuration::new(&slapd);
    configuration.add("memory", &format!("fresh = {fresh:?}\nrefused = \"1h\""));
    (configuration.start(), slapd)
}

fn login_from(gatepost: &Gatepost, client: &str, password: &str) -> Answer {
    let body = json!({
        "username": mail_of("fry"), "password": password, "service": "imap", "client_ip": client,
    });
    gatepost.post_login(body.to_string().as_bytes())
}

/// How often each status and reason was answered.
fn tally(answers: impl IntoIterator<Item = Answer>) -> BTreeMap<String, usize> {
    let mut tally = BTreeMap::new();
    for answer in answers {
        *tally.entry(format!("{} {}", answer.status, answer.reason())).or_default() += 1;
    }
    tally
}

#[track_caller]
fn accepted(answer: &Answer) {
    assert_eq!(answer.status, 200, "{answer:?}");
}

fn refreshes(gatepost: &Gatepost, outcome: &str) -> f64 {
    let label = format!("outcome=\"{outcome}\"");
    gatepost.metric("gatepost_memory_refreshes_total", &[&label])
}

#[test]
fn a_login_near_the_end_of_fresh_is_answered_from_memory_and_makes_the_directory_be_asked() {
    let slapd = Slapd::start();
    let mut configuration = Configuration::new(&slapd);
    // Asked again after 1.08 s.
    configuration.add("memory", "fresh = \"1h\"\nrefresh_ahead = 0.0003");
    let gatepost = configuration.start();
    accepted(&login_from(&gatepost, OWNER, &password_of("fry")));
    accepted(&login_from(&gatepost, OWNER, &password_of("fry")));
    assert_eq!(slapd.binds_as("fry"), 1);

    pass_time(Duration::from_millis(1200));
    for _ in 0..5 {
        accepted(&login_from(&gatepost, OWNER, &password_of("fry")));
    }
    wait_until("the directory is asked ahead", Duration::from_secs(5), || {
        refreshes(&gatepost, "accepted") > 0.5
    });
    assert_eq!(slapd.binds_as("fry"), 2, "once for all of them");

    // The directory's no ends the memory at once; whoever made it be asked was let in.
    slapd.set_password("fry", NEW);
    pass_time(Duration::from_millis(1200));
    accepted(&login_from(&gatepost, OWNER, &password_of("fry")));
    wait_until("the directory is asked ahead", Duration::from_secs(5), || {
        refreshes(&gatepost, "refused") > 0.5
    });
    let answer = login_from(&gatepost, OWNER, &password_of("fry"));
    assert_eq!((answer.status, answer.reason()), (403, "wrong-password"));
    accepted(&login_from(&gatepost, OWNER, NEW));

    // Background questions are no logins.
    let logins = gatepost.metric("gatepost_logins_total", &["source=\"directory\""]);
    assert!((logins - 2.0).abs() < 0.5, "{logins} logins by the directory");
}

#[test]
fn a_background_question_without_an_answer_leaves_the_memory_as_it_is() {
    let mut slapd = Slapd::start();
    let mut configuration = Configuration::new(&slapd);
    configuration.add("memory", "fresh = \"1h\"\nrefresh_ahead = 0.0001");
    let gatepost = configuration.start();
    accepted(&login_from(&gatepost, OWNER, &password_of("fry")));
    slapd.stop();
    pass_time(Duration::from_millis(500));

    for _ in 0..20 {
        accepted(&login_from(&gatepost, OWNER, &password_of("fry")));
    }

    wait_until("the directory is asked ahead", Duration::from_secs(10), || {
        refreshes(&gatepost, "later") > 0.5
    });
    accepted(&login_from(&gatepost, OWNER, &password_of("fry")));
    let asked = refreshes(&gatepost, "later");
    assert!(asked < 1.5, "asked {asked} times, not once in 10 s");
}

#[test]
fn a_thousand_attempts_with_one_wrong_password_are_one_bind() {
    let (gatepost, slapd) = start("1h", Wish { ppolicy: true, ..Wish::default() });

    let answers = tally((0..1000).map(|number| {
        login_from(&gatepost, &format!("198.51.{}.{}", 100 + number % 4, number % 250), "wrong")
    }));

    assert_eq!(answers, BTreeMap::from([("403 wrong-password".into(), 1000)]));
    assert_eq!(slapd.binds_as("fry"), 1);
}

#[test]
fn a_thousand_wrong_passwords_lock_nobody_out_whose_directory_locks_after_three() {
    let (gatepost, slapd) = start("1ms", Wish { ppolicy: true, ..Wish::default() });
    accepted(&login_from(&gatepost, OWNER, &password_of("fry")));
    let before = slapd.binds_as("fry");

    let guesses = |gatepost: &Gatepost| {
        tally((0..1000).map(|number| {
            let client = format!("198.51.{}.{}", number % 200, number % 250);
            login_from(gatepost, &client, &format!("guess {number}"))
        }))
    };
    let answers = guesses(&gatepost);

    // One less than the directory's three, of which one is kept for the owner.
    assert_eq!(answers["403 wrong-password"], 1, "{answers:?}");
    assert_eq!(answers.values().sum::<usize>(), 1000);
    assert!(answers.keys().all(|word| word == "403 wrong-password" || word.starts_with("503 ")));
    assert_eq!(slapd.binds_as("fry") - before, 1);
    // The owner's reserved bind: nothing is fresh any more.
    accepted(&login_from(&gatepost, OWNER, &password_of("fry")));
    assert_eq!(slapd.binds_as("fry") - before, 2);
    // And after all that again.
    assert!(guesses(&gatepost).keys().all(|word| !word.starts_with("200")));
    assert!(slapd.bind("fry", &password_of("fry")), "the account is locked");
    accepted(&login_from(&gatepost, OWNER, &password_of("fry")));
}

#[test]
fn the_budget_of_the_configuration_holds_where_the_directory_has_none() {
    let slapd = Slapd::start();
    let mut configuration = Configuration::new(&slapd);
    configuration.set("directory.planet.auth", "wrong_binds = \"4/1h\"");
    let gatepost = configuration.start();
    accepted(&login_from(&gatepost, OWNER, &password_of("fry")));

    let strangers = tally((0..20).map(|number| {
        login_from(&gatepost, &format!("198.51.{number}.1"), &format!("guess {number}"))
    }));
    let owner = tally((0..5).map(|number| login_from(&gatepost, OWNER, &format!("typo {number}"))));

    assert_eq!(
        strangers,
        BTreeMap::from([("403 wrong-password".into(), 3), ("503 budget-spent".into(), 17)])
    );
    assert_eq!(
        owner,
        BTreeMap::from([("403 wrong-password".into(), 1), ("503 budget-spent".into(), 4)])
    );
    assert_eq!(slapd.binds_as("fry"), 5);
    // What is remembered answers as before: the right one, and those refused.
    accepted(&login_from(&gatepost, OWNER, &password_of("fry")));
    assert_eq!(login_from(&gatepost, "198.51.0.1", "guess 0").reason(), "wrong-password");
    // "Later" was not remembered: an administrator lets the account begin anew.
    let forgotten = gatepost.run(&["memory", "forget", &mail_of("fry")], "");
    assert!(forgotten.status.success(), "{forgotten:?}");
    assert_eq!(login_from(&gatepost, "198.51.19.1", "guess 19").reason(), "wrong-password");
}

#[test]
fn other_names_of_an_account_give_no_more_guesses() {
    let (gatepost, slapd) = start("1h", Wish::default());
    let names =
        ["hubert@planetexpress.com", "professor@planetexpress.com", "Professor@PlanetExpress.com"];

    let answers = tally((0..30).map(|number| {
        let body = json!({
            "username": names[number % 3], "password": format!("guess {number}"), "service": "imap",
            "client_ip": format!("198.51.{number}.1"),
        });
        gatepost.post_login(body.to_string().as_bytes())
    }));

    // Nobody was let in yet for whom one would be kept.
    assert_eq!(answers["403 wrong-password"], 3, "{answers:?}");
    assert_eq!(slapd.binds_as("professor"), 3);
}

#[test]
fn nobody_guesses_against_memory_while_the_directory_is_away() {
    let (gatepost, mut slapd) = start("1h", Wish::default());
    accepted(&login_from(&gatepost, OWNER, &password_of("fry")));
    slapd.stop();

    let began = now();
    let guesses = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let gatepost = &gatepost;
                scope.spawn(move || {
                    tally((0..2500).map(|number| {
                        login_from(gatepost, "198.51.100.9", &format!("guess {thread} {number}"))
                    }))
                })
            })
            .collect();
        let mut all = BTreeMap::new();
        for (word, count) in threads.into_iter().flat_map(|thread| thread.join().unwrap()) {
            *all.entry(word).or_insert(0) += count;
        }
        all
    });
    println!("10000 guesses in {:?}: {guesses:?}", began.elapsed());

    assert!(guesses.keys().all(|word| word.starts_with("503 ")), "{guesses:?}");
    // Four may look at memory at once, before the twentieth is counted.
    assert!(guesses["503 unproven"] >= 10_000 - 24, "{guesses:?}");
    // The right one, too, and from the whole net.
    for client in ["198.51.100.9", "198.51.100.200"] {
        let answer = login_from(&gatepost, client, &password_of("fry"));
        assert_eq!((answer.status, answer.reason()), (503, "unproven"));
    }
    accepted(&login_from(&gatepost, OWNER, &password_of("fry")));
    accepted(&login_from(&gatepost, "203.0.113.5", &password_of("fry")));
}

/// login.md M-4.
#[test]
fn an_administrator_who_sets_a_password_that_was_refused_need_not_wait() {
    let (gatepost, slapd) = start("1h", Wish { ppolicy: true, ..Wish::default() });
    // From here on the entry has a readable change stamp.
    slapd.set_password("fry", &password_of("fry"));
    let refused = tally((0..3).map(|_| login_from(&gatepost, OWNER, NEW)));
    assert_eq!(refused, BTreeMap::from([("403 wrong-password".into(), 3)]));
    wait_until("the stamp is read", Duration::from_secs(5), || {
        slapd.count_log(&["SRCH base=\"uid=fry,"]) == 1
    });
    // Its time has seconds only.
    pass_time(Duration::from_millis(1100));

    slapd.set_password("fry", NEW);

    wait_until("the new password is good", Duration::from_secs(15), || {
        login_from(&gatepost, OWNER, NEW).status == 200
    });
    // Once at the first refusal that was hit, once 10 s later, and beside the bind.
    assert_eq!(slapd.count_log(&["SRCH base=\"uid=fry,"]), 3, "reads of the entry alone");
}

/// The directory counts failures until a login succeeds or the password is set; so does the budget.
#[test]
fn a_new_password_from_the_administrator_opens_an_account_whose_budget_is_spent() {
    let (gatepost, slapd) = start("1h", Wish { ppolicy: true, ..Wish::default() });
    let guesses = tally((0..10).map(|number| {
        login_from(&gatepost, &format!("198.51.{number}.1"), &format!("guess {number}"))
    }));
    assert_eq!(guesses["403 wrong-password"], 2, "{guesses:?}");
    assert_eq!(login_from(&gatepost, OWNER, NEW).reason(), "budget-spent");

    slapd.set_password("fry", NEW);

    wait_until("the new password is good", Duration::from_secs(15), || {
        login_from(&gatepost, OWNER, NEW).status == 200
    });
}

#[test]
fn a_client_with_the_password_from_before_a_change_is_recognised_and_not_punished() {
    let (gatepost, slapd) = start("1h", Wish { ppolicy: true, ..Wish::default() });
    let phone = "203.0.113.77";
    slapd.set_password("fry", &password_of("fry"));
    accepted(&login_from(&gatepost, phone, &password_of("fry")));
    slapd.set_password("fry", NEW);
    accepted(&login_from(&gatepost, OWNER, NEW));
    let before = slapd.binds_as("fry");

    let answers = tally((0..200).map(|_| login_from(&gatepost, phone, &password_of("fry"))));

    assert_eq!(answers, BTreeMap::from([("403 wrong-password".into(), 200)]));
    assert_eq!(slapd.binds_as("fry") - before, 1, "once for each change");
    let old = |line: &&str| {
        line.contains("client=203.0.113.77") && line.contains("detail=\"old-password\"")
    };
    wait_until("the journal is written", Duration::from_secs(5), || {
        gatepost.log().lines().filter(old).count() == 200
    });
    let counted = gatepost.metric("gatepost_old_passwords_total", &[]);
    assert!((counted - 200.0).abs() < 0.5, "{counted}");
    // It is listed, by account and among all.
    let show = gatepost.run(&["--json", "memory", "show", &mail_of("fry")], "");
    let shown: Value = serde_json::from_slice(&show.stdout).unwrap();
    let client = &shown["old_password_clients"][0];
    assert_eq!((&client["client"], &client["service"]), (&json!(phone), &json!("imap")));
    assert_eq!(client["attempts"], 200);
    let list = gatepost.run(&["memory", "old-passwords"], "");
    let list = String::from_utf8(list.stdout).unwrap();
    let expected = format!("{} client={phone} service=imap attempts=200 ", mail_of("fry"));
    assert!(list.starts_with(&expected), "{list}");
    // The owner's new password is as good as ever, and the account is not locked.
    accepted(&login_from(&gatepost, OWNER, NEW));
    assert!(slapd.bind("fry", NEW));
}

/// The owner logs in `rounds` times while others try a different wrong password each, from as many nets; the slowest of
/// the owner's logins.
fn logins_under_fire(gatepost: &Gatepost, nets: usize, rounds: usize) -> Duration {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            let done = &done;
            scope.spawn(move || {
                for number in (thread..).step_by(4) {
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                    let net = number % nets;
                    let client = format!("198.{}.{}.1", 18 + net / 250, net % 250);
                    let answer = login_from(gatepost, &client, &format!("guess {number}"));
                    assert_ne!(answer.status, 200);
                }
            });
        }
        let mut slowest = Duration::ZERO;
        let mut refused = Vec::new();
        for _ in 0..rounds {
            let began = now();
            let answer = login_from(gatepost, OWNER, &password_of("fry"));
            slowest = slowest.max(began.elapsed());
            if answer.status != 200 {
                refused.push(answer);
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(refused.is_empty(), "{} of {rounds}: {refused:?}", refused.len());
        slowest
    })
}

#[test]
fn nobody_starves_the_owner_who_comes_from_a_known_net() {
    for (fresh, kind) in [("1h", "remembered"), ("1ms", "asked")] {
        let (gatepost, slapd) = start(fresh, Wish::default());
        accepted(&login_from(&gatepost, OWNER, &password_of("fry")));
        for nets in [1, 500] {
            let slowest = logins_under_fire(&gatepost, nets, 200);
            println!("owner {kind}, guesses from {nets} nets: 200 of 200 in, slowest {slowest:?}");
            assert!(slowest < Duration::from_secs(5), "{slowest:?}");
        }
        drop((gatepost, slapd));
    }
}

/// The same against Active Directory's own counter, as Samba keeps it.
#[test]
fn a_thousand_wrong_passwords_lock_nobody_out_of_a_samba_domain() {
    let samba = Samba::start();
    samba.administer(&format!(
        "db.modify_ldif('''dn: {}\nchangetype: modify\nreplace: lockoutThreshold\nlockoutThreshold: 5\n''')",
        samba::BASE
    ));
    let mut configuration = Configuration::for_samba(&samba);
    configuration.add("memory", "fresh = \"0s\"\nrefused = \"1h\"");
    let gatepost = configuration.start();
    accepted(&login_from(&gatepost, OWNER, &password_of("fry")));

    let same = tally((0..1000).map(|_| login_from(&gatepost, "198.51.100.1", "wrong")));
    let different = tally((0..1000).map(|number| {
        let client = format!("198.51.{}.{}", number % 200, number % 250);
        login_from(&gatepost, &client, &format!("guess {number}"))
    }));
    println!("one wrong password: {same:?}; a thousand: {different:?}");

    assert_eq!(same, BTreeMap::from([("403 wrong-password".into(), 1000)]));
    // One less than the domain's five, of which one is kept for the owner and one was spent before.
    assert_eq!(different["403 wrong-password"], 2, "{different:?}");
    let binds = gatepost.metric("gatepost_ldap_operations_total", &["bind", "refused"]);
    assert!((binds - 3.0).abs() < 0.5, "{binds} wrong binds");
    samba.administer(
        "fry = db.search(expression='(sAMAccountName=fry)', attrs=['lockoutTime', 'badPwdCount'])[0]\n\
         assert int(str(fry.get('lockoutTime', '0'))) == 0, 'locked'\n\
         assert int(str(fry['badPwdCount'])) == 3, str(fry['badPwdCount'])\n",
    );
    accepted(&login_from(&gatepost, OWNER, &password_of("fry")));
}
