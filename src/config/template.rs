//! `[template.NAME]`.

use std::collections::BTreeMap;

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

use super::check::{check_placeholders, check_protocols};
use super::problem::Report;
use super::units::{ByteSize, RateLimit};

/// Settings for mailboxes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Template {
    /// Size of the mailbox; 0: no limit.
    pub quota: ByteSize,
    /// What may be used: imap, pop3, smtp, sieve, dav.
    pub protocols: Vec<String>,
    /// yes | no (nobody logs in; mail by `disabled_delivery`) | delivery-only (mail is taken, nobody logs in).
    pub active: Active,
    /// Free words, for administrators.
    pub tags: Vec<String>,
    /// Further addresses, such as `"{local}@mail.{domain}"`.
    pub aliases: Vec<String>,
    /// The mailbox's directory, written once, at creation. Made of `{local}`, `{domain}`, `{address}`, `{id}` (the
    /// directory's immutable id).
    pub home: String,
    /// Numeric user id of the mail store. Written once, at creation.
    pub uid: u32,
    /// Numeric group id of the mail store. Written once, at creation.
    pub gid: u32,
    /// Mail for a mailbox that may not log in: accept | reject | tempfail.
    pub disabled_delivery: DisabledDelivery,
    /// Messages that a mailbox may send in a while, such as `"100/h"`; one with many recipients is one message. Counted by
    /// the door `postfix-policy`. Empty: no limit.
    pub send_limit: RateLimit,
    /// Further userdb fields for Dovecot, such as `{ mail = "maildir:~/Maildir" }`.
    pub extra: BTreeMap<String, String>,
}

impl Default for Template {
    fn default() -> Self {
        Self {
            quota: ByteSize(0),
            protocols: ["imap", "pop3", "smtp", "sieve"].map(String::from).to_vec(),
            active: Active::Yes,
            tags: Vec::new(),
            aliases: Vec::new(),
            home: "/var/vmail/{domain}/{local}".into(),
            uid: 5000,
            gid: 5000,
            disabled_delivery: DisabledDelivery::Accept,
            send_limit: RateLimit::default(),
            extra: BTreeMap::new(),
        }
    }
}

impl Template {
    pub(super) fn check(&self, report: &mut Report) {
        check_protocols(&self.protocols, "protocols", report);
        check_placeholders(&self.home, &["local", "domain", "address", "id"], "home", report);
        report.require(
            self.home.starts_with('/'),
            "home",
            "not a whole path",
            "a path such as /var/vmail/{domain}/{local}",
        );
        let is_own = ["{local}", "{address}", "{id}"].iter().any(|name| self.home.contains(name));
        report.require(
            is_own,
            "home",
            "everybody would share one directory",
            "{local}, {address} or {id} in it",
        );
        for alias in &self.aliases {
            check_placeholders(alias, &["local", "domain"], "aliases", report);
            report.require(
                alias.contains('@'),
                "aliases",
                "not an address",
                "an address such as {local}@mail.{domain}",
            );
        }
        for (key, id) in [("uid", self.uid), ("gid", self.gid)] {
            if id == 0 {
                report.notice(key, "0 is root, which Dovecot refuses for mail");
            }
        }
        if let Some(rate) = self.send_limit.0 {
            let fits =
                rate.count <= 60_000 && (1..=366 * 86_400).contains(&rate.window.0.as_secs());
            report.require(
                fits,
                "send_limit",
                "too many to count, or a span of time that is too short or too long",
                "up to 60000, in 1s to 366d",
            );
        }
        report.within("extra", |report| self.check_extra(report));
    }

    fn check_extra(&self, report: &mut Report) {
        const OURS: [&str; 4] = ["user", "uid", "gid", "home"];
        // Dovecot 2.3 and 2.4.
        const MAIL_PLACES: [&str; 2] = ["mail", "mail_path"];
        for (key, value) in &self.extra {
            let is_legal =
                |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '/' | ':' | '.');
            let fits = !key.is_empty() && key.chars().all(is_legal);
            report.require(
                fits,
                key,
                "not the name of a userdb field",
                "letters, digits, _ - / : and .",
            );
            report.require(
                !OURS.contains(&key.as_str()),
                key,
                "gatepost writes this field itself",
                "another field",
            );
            report.require(
                !value.contains(char::is_control),
                key,
                "a control byte in the value",
                "plain text",
            );
            // Unlike `home`, `extra` follows the template and the address.
            let follows = ["{local}", "{domain}", "{address}"].iter().any(|it| value.contains(it));
            if MAIL_PLACES.contains(&key.as_str()) && follows {
                report.notice(
                    key,
                    "a rename changes it, and the mail would seem gone; ~ and {id} stay the same",
                );
            }
        }
    }
}

/// Whether a mailbox may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Active {
    /// Mail is taken, nobody logs in.
    DeliveryOnly,
    /// No login; mail by `disabled_delivery`.
    No,
    /// In use.
    Yes,
}

/// What becomes of mail for a mailbox that may not log in (login.md U-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DisabledDelivery {
    /// Delivered.
    Accept,
    /// Refused: no such mailbox.
    Reject,
    /// Put off.
    Tempfail,
}
