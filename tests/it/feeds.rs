//! What changes at the directory reaches the memory of logins without anybody asking.

use std::io::Write as _;
use std::time::{Duration, Instant};

use crate::support::gatepost::{Answer, Configuration, Gatepost};
use crate::support::samba::Samba;
use crate::support::slapd::{FORMER, Slapd, Wish, mail_of, password_of};
use crate::support::three_eight_nine::ThreeEightNine;
use crate::support::{now, pass_time, wait_until};

const NEW: &str = "new-Tr0ub4dor";

/// How soon a change must be seen (docs/PERFORMANCE.md R4).
const SOON: Duration = Duration::from_secs(2);

/// Searches for what was modified lately take turns with pauses of twenty times their length.
const POLLS: Duration = Duration::from_secs(6);

/// Long enough for a change to be seen, where the test is that nothing happens.
const A_WHILE: Duration = Duration::from_millis(700);

/// With `fresh = "1ms"` the directory is asked again after this.
const NOT_FRESH: Duration = Duration::from_millis(5);

fn syncprov() -> Wish {
    Wish { syncprov: true, ppolicy: true, ..Wish::default() }
}

/// What is proven is answered from memory for an hour, unless the feed ends it.
fn start(wish: Wish) -> (Gatepost, Slapd) {
    start_with("fresh = \"1h\"\nrefused = \"1h\"", wish, "filter:(title=left)")
}

fn start_with(memory: &str, wish: Wish, disabled_rule: &str) -> (Gatepost, Slapd) {
    let slapd = Slapd::with(wish);
    let mut configuration = Configuration::new(&slapd);
    configuration.change("directory.planet", "feed", "\"auto\"");
    configuration.add("memory", &format!("{memory}\nabsent = \"1ms\""));
    configuration.add("directory.planet.identity", &format!("disabled_rule = {disabled_rule:?}"));
    (configuration.start(), slapd)
}

fn followed(gatepost: &Gatepost, kind: &str) {
    wait_until("changes are followed", Duration::from_secs(10), || {
        gatepost.metric("gatepost_directory_feed", &[&format!("kind={kind:?}")]) > 0.0
    });
}

fn login(gatepost: &Gatepost, password: &str) -> Answer {
    gatepost.login(&mail_of("fry"), password)
}

fn accepted(answer: &Answer) {
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// The remembered password of fry is refused soon after this moment; says how soon.
fn refused_soon(gatepost: &Gatepost, what: &str, reason: &str) {
    refused_within(SOON, gatepost, what, reason);
}

fn refused_within(limit: Duration, gatepost: &Gatepost, what: &str, reason: &str) {
    let start = now();
    wait_until(what, limit, || {
        let answer = login(gatepost, &password_of("fry"));
        assert!(answer.status == 200 || answer.reason() == reason, "{answer:?}");
        answer.status != 200
    });
    say(what, start);
}

#[expect(
    clippy::let_underscore_must_use,
    reason = "a figure for whoever runs the test with --nocapture"
)]
fn say(what: &str, start: Instant) {
    let _ = writeln!(std::io::stderr(), "{what}: seen after {} ms", start.elapsed().as_millis());
}

#[test]
fn a_changed_password_ends_the_remembered_one() {
    let (gatepost, slapd) = start(syncprov());
    followed(&gatepost, "syncrepl");
    accepted(&login(&gatepost, &password_of("fry")));
    accepted(&gatepost.login(&mail_of("leela"), &password_of("leela")));

    slapd.set_password("fry", NEW);

    refused_soon(&gatepost, "syncrepl: a changed password", "wrong-password");
    accepted(&login(&gatepost, NEW));
    accepted(&gatepost.login(&mail_of("leela"), &password_of("leela")));
    assert_eq!(slapd.binds_as("leela"), 1, "nobody else is asked about again");
}

/// Without a password policy there is no attribute that tells when the password changed.
#[test]
fn a_changed_password_ends_the_remembered_one_where_no_stamp_tells() {
    let (gatepost, slapd) = start(Wish { syncprov: true, ..Wish::default() });
    followed(&gatepost, "syncrepl");
    accepted(&login(&gatepost, &password_of("fry")));

    slapd.set_password("fry", NEW);

    refused_soon(&gatepost, "syncrepl without a stamp: a changed password", "wrong-password");
}

#[test]
fn somebody_disabled_or_removed_is_refused() {
    let (gatepost, slapd) = start(syncprov());
    followed(&gatepost, "syncrepl");
    accepted(&login(&gatepost, &password_of("fry")));

    slapd.set_attribute("fry", "title", "left");
    refused_soon(&gatepost, "syncrepl: disabled", "disabled");
    slapd.set_attribute("fry", "title", "back");
    wait_until("fry is back", SOON, || login(&gatepost, &password_of("fry")).status == 200);
    slapd.delete("fry");

    refused_soon(&gatepost, "syncrepl: removed", "unknown");
}

#[test]
fn somebody_moved_out_of_the_place_is_refused() {
    let (gatepost, slapd) = start(syncprov());
    followed(&gatepost, "syncrepl");
    accepted(&login(&gatepost, &password_of("fry")));

    slapd.move_to("fry", FORMER);

    refused_soon(&gatepost, "syncrepl: moved away", "unknown");
}

#[test]
fn a_changed_attribute_reaches_the_mailbox_at_the_next_login_without_a_bind() {
    let (gatepost, slapd) = start(syncprov());
    followed(&gatepost, "syncrepl");
    // So that there is a stamp, which tells that the password did not change.
    slapd.set_password("fry", NEW);
    accepted(&login(&gatepost, NEW));
    assert_eq!(gatepost.mailbox(&mail_of("fry")).unwrap()["template"], "crew");
    let binds = slapd.binds_as("fry");

    slapd.set_attribute("fry", "employeeType", "office");

    wait_until("the mailbox follows", SOON, || {
        accepted(&login(&gatepost, NEW));
        gatepost.mailbox(&mail_of("fry")).unwrap()["template"] == "office"
    });
    assert_eq!(slapd.binds_as("fry"), binds);
}

#[test]
fn failed_logins_change_nothing() {
    let (gatepost, slapd) = start(syncprov());
    followed(&gatepost, "syncrepl");
    accepted(&login(&gatepost, &password_of("fry")));
    let binds = slapd.binds_as("fry");

    // Two: the third would lock the account.
    for number in 0..2 {
        assert!(!slapd.bind("fry", &format!("wrong {number}")));
    }
    pass_time(A_WHILE);

    accepted(&login(&gatepost, &password_of("fry")));
    assert_eq!(slapd.binds_as("fry"), binds + 2, "only those two");
}

/// Where no stamp tells, any other change may be a new password; a login's own trace is none.
#[test]
fn logins_that_leave_their_time_at_the_entry_change_nothing() {
    let wish = Wish { syncprov: true, last_bind: true, ..Wish::default() };
    let (gatepost, slapd) = start(wish);
    followed(&gatepost, "syncrepl");
    accepted(&login(&gatepost, &password_of("fry")));

    assert!(slapd.bind("fry", &password_of("fry")));
    pass_time(A_WHILE);

    accepted(&login(&gatepost, &password_of("fry")));
    assert_eq!(slapd.binds_as("fry"), 2, "ours and that one");
}

#[test]
fn a_feed_that_broke_off_comes_back_and_tells_what_it_missed() {
    let (gatepost, mut slapd) = start(syncprov());
    followed(&gatepost, "syncrepl");
    accepted(&login(&gatepost, &password_of("fry")));

    slapd.stop();
    wait_until("the feed is lost", Duration::from_secs(10), || {
        gatepost.metric("gatepost_directory_feed", &["kind=\"syncrepl\""]) == 0.0
    });
    // Meanwhile memory answers as without a feed.
    accepted(&login(&gatepost, &password_of("fry")));
    assert!(gatepost.log().contains("changes are no longer followed"));
    slapd.elsewhere(|slapd| slapd.set_password("fry", NEW));
    followed(&gatepost, "syncrepl");

    refused_soon(&gatepost, "syncrepl: changed while the feed was away", "wrong-password");
}

#[test]
fn a_reload_keeps_the_feed_or_ends_it() {
    let (mut gatepost, slapd) = start(syncprov());
    followed(&gatepost, "syncrepl");
    let began = |gatepost: &Gatepost| gatepost.log().matches("changes are followed").count();

    gatepost.configuration.add("login", "lowercase = true");
    gatepost.hup();
    wait_until("reloaded", SOON, || gatepost.log().contains("configuration reloaded"));
    pass_time(A_WHILE);
    assert_eq!(began(&gatepost), 1, "the profile is the same");

    gatepost.configuration.change("directory.planet", "feed", "\"none\"");
    gatepost.hup();
    wait_until("the feed has ended", SOON, || {
        gatepost.metric("gatepost_directory_feed", &[]) == 0.0
    });
    accepted(&login(&gatepost, &password_of("fry")));
    slapd.set_password("fry", NEW);
    pass_time(A_WHILE);
    accepted(&login(&gatepost, &password_of("fry")));
}

/// The last resort, where the server has no way to tell: it is asked each second.
#[test]
fn without_a_feed_of_the_servers_changes_are_seen_by_timestamps() {
    let (gatepost, slapd) = start(Wish { ppolicy: true, ..Wish::default() });
    followed(&gatepost, "timestamp");
    accepted(&login(&gatepost, &password_of("fry")));

    slapd.set_attribute("fry", "title", "left");
    refused_within(POLLS, &gatepost, "timestamps: disabled", "disabled");
    slapd.set_attribute("fry", "title", "back");
    wait_until("fry is back", SOON, || login(&gatepost, &password_of("fry")).status == 200);
    slapd.set_password("fry", NEW);

    refused_within(POLLS, &gatepost, "timestamps: a changed password", "wrong-password");
}

/// One test, for a domain takes long to make.
#[test]
fn changes_at_a_domain_controller_are_seen_by_its_update_numbers() {
    let samba = Samba::start();
    let mut configuration = Configuration::for_samba(&samba);
    configuration.add("memory", "fresh = \"1h\"\nabsent = \"1ms\"\nrefused = \"1h\"");
    let gatepost = configuration.start();
    followed(&gatepost, "usn");
    let asked = || gatepost.metric("gatepost_logins_total", &["source=\"directory\""]);
    let fry = |password: &str| login(&gatepost, password).status;
    accepted(&login(&gatepost, &password_of("fry")));
    accepted(&gatepost.login(&mail_of("leela"), &password_of("leela")));

    samba.disable("fry");
    refused_soon(&gatepost, "usn: disabled", "disabled");
    samba.enable("fry");
    wait_until("fry is back", SOON, || fry(&password_of("fry")) == 200);

    let before = asked();
    samba.set_attribute("fry", "employeeType", "office");
    wait_until("the mailbox follows", SOON, || {
        accepted(&login(&gatepost, &password_of("fry")));
        gatepost.mailbox(&mail_of("fry")).unwrap()["template"] == "office"
    });
    assert_eq!(asked(), before, "without a bind");

    samba.set_password("fry", NEW);
    refused_soon(&gatepost, "usn: a changed password", "wrong-password");
    wait_until("the new one counts", SOON, || fry(NEW) == 200);

    samba.delete("leela");
    wait_until("leela is gone", SOON, || {
        gatepost.login(&mail_of("leela"), &password_of("leela")).reason() == "unknown"
    });
}

/// login.md Q-1: what the feed vouches for is not read again.
#[test]
fn while_a_feed_vouches_for_an_entry_the_bind_alone_is_asked() {
    let (gatepost, slapd) =
        start_with("fresh = \"1ms\"", Wish { syncprov: true, ..Wish::default() }, "none");
    followed(&gatepost, "syncrepl");
    let reads = || slapd.count_log(&["SRCH base=\"uid=fry,", "scope=0"]);
    accepted(&login(&gatepost, &password_of("fry")));

    for _ in 0..3 {
        pass_time(NOT_FRESH);
        accepted(&login(&gatepost, &password_of("fry")));
    }
    assert_eq!((slapd.binds_as("fry"), reads()), (4, 0));

    slapd.set_attribute("fry", "employeeType", "office");
    wait_until("the entry is read for the change", SOON, || reads() == 1);
    wait_until("the mailbox follows", SOON, || {
        accepted(&login(&gatepost, &password_of("fry")));
        gatepost.mailbox(&mail_of("fry")).unwrap()["template"] == "office"
    });
    assert_eq!(reads(), 1, "and not again");
    assert_eq!(login(&gatepost, "wrong").reason(), "wrong-password");
}

/// login.md L-1 holds for the bind alone, too.
#[test]
fn the_budget_holds_while_a_feed_vouches() {
    let (gatepost, slapd) =
        start_with("fresh = \"1ms\"", Wish { syncprov: true, ..Wish::default() }, "none");
    followed(&gatepost, "syncrepl");
    accepted(&login(&gatepost, &password_of("fry")));
    let before = slapd.binds_as("fry");

    for number in 0..50 {
        pass_time(NOT_FRESH);
        let status = login(&gatepost, &format!("guess {number}")).status;
        assert_ne!(status, 200);
    }

    // The default of `auth.wrong_binds`, all of one net that was let in before.
    assert_eq!(slapd.binds_as("fry") - before, 3);
}

/// What depends on other entries is read at each question.
#[test]
fn nobody_vouches_for_a_filter() {
    let rule = "filter:(title=left)";
    let wish = Wish { syncprov: true, ..Wish::default() };
    let (gatepost, slapd) = start_with("fresh = \"1ms\"", wish, rule);
    followed(&gatepost, "syncrepl");

    accepted(&login(&gatepost, &password_of("fry")));
    pass_time(NOT_FRESH);
    accepted(&login(&gatepost, &password_of("fry")));

    assert!(slapd.count_log(&["SRCH base=\"uid=fry,", "scope=0"]) > 0);
}

#[test]
fn changes_at_389_directory_server_are_seen_by_its_content_sync() {
    let server = ThreeEightNine::start();
    let mut configuration = Configuration::for_389(&server);
    configuration.add("memory", "fresh = \"1h\"\nabsent = \"1ms\"\nrefused = \"1h\"");
    let gatepost = configuration.start();
    followed(&gatepost, "syncrepl");
    accepted(&login(&gatepost, &password_of("fry")));

    server.set_attribute("fry", "nsAccountLock", "true");
    refused_soon(&gatepost, "389-ds: disabled", "disabled");
    server.set_attribute("fry", "nsAccountLock", "false");
    wait_until("fry is back", SOON, || login(&gatepost, &password_of("fry")).status == 200);
    server.set_attribute("fry", "userPassword", NEW);
    refused_soon(&gatepost, "389-ds: a changed password", "wrong-password");
    accepted(&login(&gatepost, NEW));

    server.delete("fry");
    wait_until("fry is gone", SOON, || login(&gatepost, NEW).reason() == "unknown");
}
