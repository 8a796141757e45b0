//! Mailboxes whose password is checked here, and masters who log in as others.

use std::time::Duration;

use crate::support::clients::{AuthClient, Wire};
use crate::support::gatepost::{Configuration, Gatepost};
use crate::support::slapd::{Slapd, mail_of, password_of};
use crate::support::{printed, wait_until};

/// Everybody's local password in these tests.
const HERE: &str = "here-Tr0ub4dor";
/// Of `HERE`, by `doveadm pw -s SSHA512` of Dovecot 2.3.19.
const FOREIGN: &str = "{SSHA512}QybdnXvE97e247OygVYYL3TwpVSAeTXwgY4+6CeSz+xPGuRpewOqJZOsKxLdHhbHYvBZqeFfz9RZr0+KudmYhV+/ULU=";

impl Gatepost {
    fn command(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run(arguments, input);
        assert!(output.status.success(), "{arguments:?}: {}", printed(&output));
        printed(&output)
    }

    fn verdict(&self, name: &str, password: &str) -> (u16, String) {
        let answer = self.login(name, password);
        (answer.status, answer.reason().to_owned())
    }

    fn source(&self, name: &str, password: &str) -> String {
        self.login(name, password).body["source"].as_str().unwrap_or("none").to_owned()
    }

    /// The hash that the store keeps, byte for byte.
    fn stored_hash(&self, address: &str) -> String {
        let mut command = crate::support::program("sqlite3", "sqlite3");
        let question = format!(
            "SELECT COALESCE(password, '-') FROM mailboxes JOIN addresses ON owner = id \
             WHERE address = '{address}'"
        );
        crate::support::run(command.arg(self.configuration.database()).arg(question))
    }
}

fn refused(reason: &str) -> (u16, String) {
    (403, reason.to_owned())
}

#[test]
fn a_local_mailbox_lets_its_own_password_in_and_never_asks_a_directory() {
    let slapd = Slapd::start();
    let gatepost = Configuration::new(&slapd).start();
    let name = mail_of("postmaster");

    assert_eq!(gatepost.verdict(&name, HERE), refused("unknown"));
    let binds = slapd.count_log(&["SRCH base="]);
    gatepost.command(&["mailbox", "create", &name, "--template", "crew"], "");
    assert_eq!(gatepost.verdict(&name, HERE), refused("no-password"));
    gatepost.command(&["mailbox", "set-password", &name], HERE);

    assert_eq!(gatepost.source(&name, HERE), "local");
    assert_eq!(gatepost.source(&name, HERE), "memory");
    assert_eq!(gatepost.verdict(&name, "wrong"), refused("wrong-password"));
    let shown = gatepost.mailbox(&name).unwrap();
    assert_eq!(
        (shown["provider"].as_str(), shown["quota"].as_u64()),
        (Some("local"), Some(1 << 30))
    );
    assert_eq!(slapd.count_log(&["SRCH base="]), binds, "a directory was asked");
    let output = gatepost.run(&["login", "test", &name], HERE);
    assert_eq!(output.status.code(), Some(0), "{}", printed(&output));
    assert_eq!(gatepost.run(&["login", "test", &name], "wrong").status.code(), Some(7));
    assert_eq!(gatepost.run(&["explain", &name], "").status.code(), Some(0));
}

#[test]
fn a_new_password_ends_the_old_one_at_once() {
    let slapd = Slapd::start();
    let gatepost = Configuration::new(&slapd).start();
    let name = mail_of("postmaster");
    gatepost.command(&["mailbox", "create", &name, "--template", "crew"], "");
    gatepost.command(&["mailbox", "set-password", &name], HERE);
    assert_eq!(gatepost.login(&name, HERE).status, 200);
    assert_eq!(gatepost.verdict(&name, "new-Tr0ub4dor"), refused("wrong-password"));

    gatepost.command(&["mailbox", "set-password", &name], "new-Tr0ub4dor");

    assert_eq!(gatepost.verdict(&name, HERE), refused("wrong-password"));
    assert_eq!(gatepost.source(&name, "new-Tr0ub4dor"), "local");
    gatepost.command(&["mailbox", "disable", &name], "");
    assert_eq!(gatepost.verdict(&name, "new-Tr0ub4dor"), refused("mailbox-disabled"));
}

#[test]
fn the_hash_of_another_system_is_taken_as_it_is_and_nonsense_is_not() {
    let slapd = Slapd::start();
    let gatepost = Configuration::new(&slapd).start();
    let name = mail_of("postmaster");
    gatepost.command(&["mailbox", "create", &name, "--template", "crew"], "");

    for nonsense in ["secret", "{PLAIN}secret", "{SSHA}x"] {
        let output = gatepost.run(&["mailbox", "set-password", "--hash", &name], nonsense);
        assert_eq!(output.status.code(), Some(2), "{nonsense}: {}", printed(&output));
        assert!(!printed(&output).contains(nonsense), "{}", printed(&output));
    }
    gatepost.command(&["mailbox", "set-password", "--hash", &name], FOREIGN);

    assert_eq!(gatepost.source(&name, HERE), "local");
    assert_eq!(gatepost.stored_hash(&name).trim(), FOREIGN);
}

#[test]
fn a_mailbox_goes_to_local_and_back_and_its_hash_stays_byte_for_byte() {
    let slapd = Slapd::start();
    let gatepost = Configuration::new(&slapd).start();
    let (name, directory) = (mail_of("fry"), password_of("fry"));
    assert_eq!(gatepost.source(&name, &directory), "directory");
    gatepost.command(&["mailbox", "set-password", "--hash", &name], FOREIGN);
    assert_eq!(gatepost.login(&name, &directory).status, 200, "the directory still decides");
    // Who was only refused is remembered too, and must not be any more below.
    gatepost.command(&["memory", "forget", "--all"], "");
    assert_eq!(gatepost.verdict(&name, HERE), refused("wrong-password"));

    gatepost.command(&["mailbox", "set-provider", &name, "local"], "");
    let binds = slapd.binds_as("fry");
    assert_eq!(gatepost.source(&name, HERE), "local");
    assert_eq!(gatepost.verdict(&name, &directory), refused("wrong-password"));
    assert_eq!(slapd.binds_as("fry"), binds, "a directory was asked");

    gatepost.command(&["mailbox", "set-provider", &name, "ldap:planet"], "");
    assert_eq!(gatepost.source(&name, &directory), "directory");
    assert_eq!(gatepost.verdict(&name, HERE), refused("wrong-password"));
    assert_eq!(gatepost.stored_hash(&name).trim(), FOREIGN);
    let unknown = gatepost.run(&["mailbox", "set-provider", &name, "ldap:planetx"], "");
    assert_eq!(unknown.status.code(), Some(2), "{}", printed(&unknown));
    assert_eq!(gatepost.mailbox(&name).unwrap()["provider"], "ldap:planet");
}

#[test]
fn a_mailbox_given_to_another_directory_is_asked_about_there_at_once() {
    let slapd = Slapd::start();
    let mut configuration = Configuration::new(&slapd);
    for table in ["", ".search.people", ".identity", ".template"] {
        let body = configuration.table(&format!("directory.planet{table}")).to_owned();
        configuration.set(&format!("directory.zapp{table}"), &body);
    }
    configuration.add("directory.zapp.template", "default = \"office\"");
    let gatepost = configuration.start();
    let (name, password) = (mail_of("fry"), password_of("fry"));
    assert_eq!(gatepost.source(&name, &password), "directory");
    assert_eq!(gatepost.source(&name, &password), "memory");
    assert_eq!(gatepost.mailbox(&name).unwrap()["template"], "crew");

    gatepost.command(&["mailbox", "set-provider", &name, "ldap:zapp"], "");

    assert_eq!(gatepost.source(&name, &password), "directory");
    assert_eq!(gatepost.mailbox(&name).unwrap()["template"], "office");
}

#[test]
fn a_mailbox_that_nobody_could_log_in_to_is_not_made() {
    let slapd = Slapd::start();
    let gatepost = Configuration::new(&slapd).start();

    let cut =
        gatepost.run(&["mailbox", "create", "list+x@planetexpress.com", "--template", "crew"], "");

    assert_eq!(cut.status.code(), Some(2), "{}", printed(&cut));
    assert!(printed(&cut).contains("is list@planetexpress.com"), "{}", printed(&cut));
}

#[test]
fn a_local_mailbox_given_to_a_directory_becomes_its_persons_at_the_next_login() {
    let slapd = Slapd::start();
    let gatepost = Configuration::new(&slapd).start();
    let name = mail_of("leela");
    gatepost.command(&["mailbox", "create", &name, "--template", "office"], "");
    gatepost.command(&["mailbox", "set-password", &name], HERE);
    assert_eq!(gatepost.source(&name, HERE), "local");
    let made = gatepost.mailbox(&name).unwrap();

    gatepost.command(&["mailbox", "set-provider", &name, "ldap:planet"], "");

    assert_eq!(gatepost.source(&name, &password_of("leela")), "directory");
    let now = gatepost.mailbox(&name).unwrap();
    assert_eq!(now["template"], "crew", "the directory's template rules now");
    assert_eq!(now["home"], made["home"]);
    assert!(now["id"].as_str().is_some(), "{now}");
}

#[test]
fn by_another_name_the_directory_does_not_take_a_local_mailbox_back() {
    let slapd = Slapd::start();
    slapd.set_attribute("zoidberg", "mail", &mail_of("john"));
    let mut configuration = Configuration::new(&slapd);
    configuration.add("login", "default_domain = \"planetexpress.com\"");
    let gatepost = configuration.start();
    let (name, directory) = (mail_of("john"), password_of("zoidberg"));
    assert_eq!(gatepost.login("zoidberg", &directory).status, 200, "by the uid");
    gatepost.command(&["mailbox", "set-password", &name], HERE);

    gatepost.command(&["mailbox", "set-provider", &name, "local"], "");

    assert_eq!(gatepost.source("john", HERE), "local");
    assert_eq!(gatepost.verdict("zoidberg", &directory), refused("provider-mismatch"));
    assert_eq!(gatepost.verdict("zoidberg", &directory), refused("provider-mismatch"));
    assert_eq!(gatepost.mailbox(&name).unwrap()["provider"], "local");
}

#[test]
fn the_own_password_counts_while_the_directory_is_away_where_fallback_says_so() {
    for (fallback, status) in [("never", 503), ("unavailable", 200)] {
        let mut slapd = Slapd::start();
        let mut configuration = Configuration::new(&slapd);
        configuration.set("directory.planet.auth", &format!("fallback = {fallback:?}"));
        let gatepost = configuration.start();
        let (name, directory) = (mail_of("fry"), password_of("fry"));
        assert_eq!(gatepost.login(&name, &directory).status, 200);
        gatepost.command(&["mailbox", "set-password", &name], HERE);
        assert_eq!(gatepost.verdict(&name, HERE), refused("wrong-password"));
        gatepost.command(&["memory", "forget", "--all"], "");

        slapd.stop();
        // One failed question is not yet an outage.
        wait_until("the directory counts as away", Duration::from_secs(20), || {
            gatepost.login(&name, HERE).status == status
        });
        let away = gatepost.login(&name, HERE);
        let wrong = gatepost.login(&name, "wrong");
        let nobody = gatepost.login(&mail_of("zoidberg"), HERE);

        assert_eq!(away.status, status, "{fallback}: {away:?}");
        assert_eq!(wrong.status, 503, "a wrong one may be the directory's: {wrong:?}");
        assert_eq!(nobody.status, 503, "{nobody:?}");
        slapd.start_again();
        wait_until("the directory decides again", Duration::from_secs(20), || {
            gatepost.login(&name, &directory).status == 200
        });
        assert_eq!(gatepost.verdict(&name, HERE), refused("wrong-password"));
    }
}

/// Hermes may read the mail of everybody, from 192.0.2.0/24, by IMAP.
fn with_master(slapd: &Slapd) -> Gatepost {
    let mut configuration = Configuration::new(slapd);
    configuration.set("domain.\"mom.example\"", "");
    let office = configuration.table("template.office").to_owned();
    configuration.set("template.outside", &office);
    configuration.add("template.outside", "aliases = [\"{local}@planetexpress.com\"]");
    configuration.set(
        "master.audit",
        "user = \"hermes@planetexpress.com\"\ndomains = [\"planetexpress.com\"]\nservices = [\"imap\"]\n\
         nets = [\"192.0.2.0/24\"]",
    );
    configuration.start()
}

/// AUTH PLAIN with an authorization id, over the auth socket.
fn as_other(
    gatepost: &Gatepost,
    authzid: &str,
    authcid: &str,
    password: &str,
    fields: &str,
) -> String {
    let socket = gatepost.configuration.auth_socket();
    let mut client = AuthClient::connect(Wire::Unix(&socket), 2);
    client.ask_plain(1, fields, authzid, authcid, password);
    client.answer()
}

#[test]
fn a_master_logs_in_as_somebody_else_by_an_authorization_id_or_a_name_that_says_both() {
    let slapd = Slapd::start();
    let gatepost = with_master(&slapd);
    let (fry, hermes) = (mail_of("fry"), mail_of("hermes"));
    let (own, password) = (password_of("fry"), password_of("hermes"));
    let fields = "service=imap\trip=192.0.2.9";

    let nobody = as_other(&gatepost, &fry, &hermes, &password, fields);
    assert!(nobody.starts_with("FAIL\t1"), "a mailbox that is not there is not made: {nobody}");
    assert_eq!(gatepost.mailbox(&fry), None);
    assert_eq!(gatepost.login(&fry, &own).status, 200);

    let accepted = format!("OK\t1\tuser={fry}");
    assert_eq!(as_other(&gatepost, &fry, &hermes, &password, fields), accepted);
    assert_eq!(as_other(&gatepost, "", &format!("{fry}*{hermes}"), &password, fields), accepted);
    assert_eq!(
        as_other(&gatepost, &hermes, &hermes, &password, fields),
        format!("OK\t1\tuser={hermes}")
    );
    for (authzid, authcid, password, fields) in [
        (&fry, &hermes, "wrong", fields),
        (&fry, &hermes, &*password, "service=smtp\trip=192.0.2.9"),
        (&fry, &hermes, &*password, "service=imap\trip=198.51.100.9"),
        (&fry, &hermes, &*password, "service=imap"),
        (&hermes, &fry, &*own, fields),
        (&"fry@elsewhere.example".to_owned(), &hermes, &*password, fields),
    ] {
        let answer = as_other(&gatepost, authzid, authcid, password, fields);
        assert!(answer.starts_with("FAIL\t1"), "{authzid} {authcid} {fields}: {answer}");
    }
    let mom = "mom@mom.example";
    gatepost.command(&["mailbox", "create", mom, "--template", "outside"], "");
    let by_alias = as_other(&gatepost, &mail_of("mom"), &hermes, &password, fields);
    assert_eq!(by_alias, format!("FAIL\t1\tuser={hermes}\tcode=authz_fail"));
    gatepost.command(&["mailbox", "disable", &fry], "");
    let answer = as_other(&gatepost, &fry, &hermes, &password, fields);
    assert!(answer.starts_with("FAIL\t1"), "{answer}");
    let log = gatepost.log();
    assert!(log.contains(&format!("login={fry:?} master={hermes:?} mailbox={fry:?}")), "{log}");
}

#[test]
fn without_masters_an_authorization_id_is_refused_and_asks_nobody() {
    let slapd = Slapd::start();
    let gatepost = Configuration::new(&slapd).start();

    let answer = as_other(
        &gatepost,
        &mail_of("fry"),
        &mail_of("hermes"),
        &password_of("hermes"),
        "service=imap",
    );

    assert_eq!(answer, format!("FAIL\t1\tuser={}\tcode=authz_fail", mail_of("hermes")));
    assert_eq!(slapd.binds_of_people(), 0);
}
