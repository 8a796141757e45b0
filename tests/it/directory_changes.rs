//! Somebody's entry changes while the daemon remembers them.

use crate::support::gatepost::{Answer, Configuration, Gatepost};
use crate::support::slapd::{BASE, FORMER, Slapd, Wish, mail_of, password_of};

const NEW: &str = "new-Tr0ub4dor";

/// `fresh` is how long a proven password is answered from memory; 1ms: the directory is asked each time.
fn start(fresh: &str, wish: Wish) -> (Gatepost, Slapd) {
    let slapd = Slapd::with(wish);
    let mut configuration = Configuration::new(&slapd);
    configuration.add("memory", &format!("fresh = {fresh:?}\nabsent = \"1ms\"\nrefused = \"1h\""));
    configuration.change("directory.planet.search.people", "base", &format!("{BASE:?}"));
    configuration.add("directory.planet.identity", "disabled_rule = \"filter:(title=left)\"");
    (configuration.start(), slapd)
}

fn login(gatepost: &Gatepost, password: &str) -> Answer {
    gatepost.login(&mail_of("fry"), password)
}

fn accepted(answer: &Answer) {
    assert_eq!(answer.status, 200, "{answer:?}");
}

fn refused(answer: &Answer, reasons: &[&str]) {
    assert_eq!(answer.status, 403, "{answer:?}");
    assert!(reasons.contains(&answer.reason()), "{answer:?} instead of {reasons:?}");
}

#[test]
fn a_new_password_works_at_once_and_ends_the_old_one() {
    let (gatepost, slapd) = start("1h", Wish::default());
    accepted(&login(&gatepost, &password_of("fry")));

    slapd.set_password("fry", NEW);

    // Nobody told us yet: fresh memory.
    accepted(&login(&gatepost, &password_of("fry")));
    accepted(&login(&gatepost, NEW));
    // The directory accepted a password that memory did not hold: the older proof is asked again (M-5).
    refused(&login(&gatepost, &password_of("fry")), &["wrong-password"]);
    accepted(&login(&gatepost, NEW));
}

#[test]
fn an_old_password_ends_when_its_proof_is_no_longer_fresh() {
    let (gatepost, slapd) = start("1ms", Wish::default());
    accepted(&login(&gatepost, &password_of("fry")));

    slapd.set_password("fry", NEW);

    refused(&login(&gatepost, &password_of("fry")), &["wrong-password"]);
    accepted(&login(&gatepost, NEW));
}

#[test]
fn a_wrong_password_never_ends_a_good_one() {
    let (gatepost, slapd) = start("1h", Wish::default());
    accepted(&login(&gatepost, &password_of("fry")));

    refused(&login(&gatepost, "wrong"), &["wrong-password"]);
    accepted(&login(&gatepost, &password_of("fry")));

    assert_eq!(slapd.binds_as("fry"), 2);
}

#[test]
fn a_known_wrong_password_is_not_bound_again() {
    let (gatepost, slapd) = start("1h", Wish::default());

    for _ in 0..5 {
        refused(&login(&gatepost, "wrong"), &["wrong-password"]);
    }

    assert_eq!(slapd.binds_as("fry"), 1);
}

#[test]
fn somebody_who_moved_to_another_unit_gets_into_the_same_mailbox() {
    let (gatepost, slapd) = start("1ms", Wish::default());
    accepted(&login(&gatepost, &password_of("fry")));

    slapd.move_to("fry", FORMER);

    accepted(&login(&gatepost, &password_of("fry")));
    refused(&login(&gatepost, "wrong"), &["wrong-password"]);
    assert_eq!(gatepost.mailboxes(), [mail_of("fry")]);
}

#[test]
fn somebody_who_is_disabled_is_refused_at_the_next_question_and_gets_back_in_later() {
    let (gatepost, slapd) = start("1ms", Wish::default());
    accepted(&login(&gatepost, &password_of("fry")));

    slapd.set_attribute("fry", "title", "left");
    refused(&login(&gatepost, &password_of("fry")), &["disabled"]);

    slapd.set_attribute("fry", "title", "back");
    accepted(&login(&gatepost, &password_of("fry")));
}

#[test]
fn a_locked_account_is_refused_and_its_proof_stays() {
    let (gatepost, mut slapd) = start("1ms", Wish { ppolicy: true, ..Wish::default() });
    accepted(&login(&gatepost, &password_of("fry")));

    for number in 0..3 {
        assert!(!slapd.bind("fry", &format!("wrong {number}")));
    }

    // OpenLDAP answers a bare 49; the read of the entry tells (B-1).
    refused(&login(&gatepost, &password_of("fry")), &["locked", "not-now"]);
    slapd.modify(&format!(
        "dn: uid=fry,ou=people,{BASE}\nchangetype: modify\ndelete: pwdAccountLockedTime\n"
    ));
    accepted(&login(&gatepost, &password_of("fry")));
    slapd.stop();
    accepted_within_grace(&gatepost);
}

/// The proof is there: while the directory is away it counts.
fn accepted_within_grace(gatepost: &Gatepost) {
    crate::support::wait_until("grace begins", std::time::Duration::from_secs(15), || {
        let answer = login(gatepost, &password_of("fry"));
        assert_ne!(answer.status, 403, "{answer:?}");
        answer.status == 200
    });
}

#[test]
fn somebody_deleted_and_created_again_never_gets_the_old_mailbox() {
    let (gatepost, slapd) = start("1ms", Wish::default());
    accepted(&login(&gatepost, &password_of("fry")));

    slapd.delete("fry");
    refused(&login(&gatepost, &password_of("fry")), &["unknown"]);
    slapd.create("fry");

    refused(&login(&gatepost, &password_of("fry")), &["id-changed"]);
    assert_eq!(gatepost.mailboxes(), [mail_of("fry")]);
}

#[test]
fn an_administrators_disable_wins_over_memory_and_directory() {
    let (gatepost, _slapd) = start("1h", Wish::default());
    accepted(&login(&gatepost, &password_of("fry")));

    let disabled = gatepost.run(&["mailbox", "disable", &mail_of("fry")], "");
    assert!(disabled.status.success(), "{disabled:?}");
    let answer = login(&gatepost, &password_of("fry"));
    assert_eq!(answer.status, 403, "{answer:?}");

    let enabled = gatepost.run(&["mailbox", "enable", &mail_of("fry")], "");
    assert!(enabled.status.success(), "{enabled:?}");
    accepted(&login(&gatepost, &password_of("fry")));
}

#[test]
fn forgetting_somebody_makes_the_next_login_ask() {
    let (gatepost, slapd) = start("1h", Wish::default());
    accepted(&login(&gatepost, &password_of("fry")));
    accepted(&login(&gatepost, &password_of("fry")));
    assert_eq!(slapd.binds_as("fry"), 1);

    let forgotten = gatepost.run(&["memory", "forget", &mail_of("fry")], "");
    assert!(forgotten.status.success(), "{forgotten:?}");

    accepted(&login(&gatepost, &password_of("fry")));
    assert_eq!(slapd.binds_as("fry"), 2);
}

#[test]
fn a_login_test_says_the_verdict_by_its_exit_code_and_changes_nothing() {
    let (gatepost, mut slapd) = start("1ms", Wish::default());
    let name = mail_of("fry");
    let arguments = ["login", "test", name.as_str(), "--protocol", "imap", "--password-stdin"];
    let test = |password: &str| gatepost.run(&arguments, &format!("{password}\n")).status.code();

    assert_eq!(test(&password_of("fry")), Some(0));
    assert_eq!(test("wrong"), Some(7));
    assert_eq!(gatepost.mailbox(&name), None);
    slapd.stop();
    assert_eq!(test(&password_of("fry")), Some(4));
}

/// login.md V-6: the name of a mailbox finds somebody else in the directory now.
#[test]
fn a_namesake_gets_neither_the_mailbox_nor_one_of_their_own_by_its_name() {
    let (gatepost, slapd) = start("1ms", Wish::default());
    accepted(&login(&gatepost, &password_of("fry")));
    slapd.delete("fry");
    slapd.create("fry2");
    // fry2 takes fry's address over.
    slapd.set_attribute("fry2", "mail", &mail_of("fry"));

    let answer = gatepost.login(&mail_of("fry"), &password_of("fry2"));

    refused(&answer, &["id-changed"]);
    assert_eq!(gatepost.mailboxes(), [mail_of("fry")]);
}
