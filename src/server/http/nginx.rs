//! nginx' mail proxy (`auth_http`): may this person in, and where does the session go? The bytes are in
//! [`crate::proto::nginx`].
//!
//! nginx looks at header fields only, whatever the status. It tells the client what `Auth-Status` says; "later" is said so
//! too, in words that mail programs know, because an answer without fields is an "internal server error" to them.

use std::borrow::Cow;
use std::net::SocketAddr;

use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};

use super::super::words;
use super::{Answer, Asked, Call, HttpDoor, Problem, add_field};
use crate::auth::{Refused, Service, Verdict};
use crate::lookup::{Found, Map};
use crate::proto::dovecot::auth::FailCode;
use crate::proto::nginx::{MailProtocol, NginxAnswer, NginxRequest, Question, parse};

/// Tries on one connection after which a refused client is disconnected.
const MAX_ATTEMPTS: u32 = 5;
/// Seconds that nginx holds a refusal back for us, without a request that waits.
const WAIT_SECONDS: u32 = 2;

/// What nginx shall tell the client: `Auth-Status`, and `Auth-Error-Code` in SMTP.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    status: Cow<'static, str>,
    code: Option<&'static str>,
}

impl Said {
    /// For IMAP and POP3.
    fn line(status: impl Into<Cow<'static, str>>) -> Self {
        Self { status: status.into(), code: None }
    }

    const fn smtp(code: &'static str, status: &'static str) -> Self {
        Self { status: Cow::Borrowed(status), code: Some(code) }
    }

    fn answer(&self, wait_seconds: Option<u32>) -> NginxAnswer<'_> {
        NginxAnswer::Refuse { status: &self.status, error_code: self.code, wait_seconds }
    }
}

impl HttpDoor {
    pub(super) async fn nginx(&self, call: &Call) -> Answer {
        let request = match parse(|name| call.field(name)) {
            Ok(request) => request,
            Err(error) => {
                tracing::warn!(door = %self.name, %error, "a request in nginx' shape cannot be read");
                return Problem::unreadable(&error).spoken();
            }
        };
        let NginxRequest { question, protocol, attempt, client_ip } = request;
        // Without a place to go, a yes would be none: nobody is asked.
        let (key, upstream) = self.upstream(protocol, &question);
        let Some(upstream) = upstream else {
            tracing::error!(
                door = %self.name,
                "nginx asks where {} goes, but upstream.{key} is not set",
                protocol.as_str()
            );
            let said = match question {
                Question::Recipient(_) => RECIPIENT_LATER,
                _ => later(protocol),
            };
            return spoken(&said.answer(None));
        };
        match question {
            Question::Login { user, password } => {
                let asked = Asked {
                    login: user,
                    password,
                    service: Some(service(protocol)),
                    service_name: protocol.as_str().into(),
                    client: client_ip,
                    session: None,
                };
                match self.decide(call, asked).await {
                    Verdict::Accept(accepted) => spoken(&NginxAnswer::Pass {
                        upstream,
                        user: Some(accepted.mailbox.address.as_str()),
                    }),
                    Verdict::Reject(refused) => {
                        spoken(&refusal(protocol, &refused).answer(self.wait(attempt)))
                    }
                    Verdict::Unavailable(_) => spoken(&later(protocol).answer(None)),
                }
            }
            Question::Recipient(address) => self.recipient(address, upstream).await,
            Question::Unoffered => {
                tracing::warn!(
                    door = %self.name,
                    protocol = protocol.as_str(),
                    "nginx offers a way to log in that is none here: only plain and login are"
                );
                spoken(&unoffered(protocol).answer(None))
            }
        }
    }

    /// The setting that says where this goes, and what it says.
    fn upstream(
        &self,
        protocol: MailProtocol,
        question: &Question,
    ) -> (&'static str, Option<SocketAddr>) {
        match (protocol, question) {
            (_, Question::Recipient(_)) => ("mx", self.upstream.mx),
            (MailProtocol::Imap, _) => ("imap", self.upstream.imap),
            (MailProtocol::Pop3, _) => ("pop3", self.upstream.pop3),
            (MailProtocol::Smtp, _) => ("smtp", self.upstream.smtp),
        }
    }

    /// Seconds that nginx holds the refusal back, after which the client may try again; `None`: it has tried enough.
    fn wait(&self, attempt: u32) -> Option<u32> {
        let seconds = if self.failure_delay.is_zero() { WAIT_SECONDS } else { 1 };
        (attempt < MAX_ATTEMPTS).then_some(seconds)
    }

    /// SMTP without AUTH: is the recipient one of ours?
    async fn recipient(&self, address: Vec<u8>, upstream: SocketAddr) -> Answer {
        // RFC 5321 §4.5.1: postmaster without a domain is everybody's; the server behind nginx knows whose.
        if address.eq_ignore_ascii_case(b"postmaster") {
            return spoken(&NginxAnswer::Pass { upstream, user: None });
        }
        let found = match self.find(Map::Mailbox, address.clone()).await {
            Found::Nothing => self.find(Map::Alias, address).await,
            found => found,
        };
        match found {
            Found::Value(_) => spoken(&NginxAnswer::Pass { upstream, user: None }),
            Found::Nothing => spoken(&NO_SUCH_RECIPIENT.answer(None)),
            Found::Later => spoken(&RECIPIENT_LATER.answer(None)),
        }
    }
}

fn service(protocol: MailProtocol) -> Service {
    match protocol {
        MailProtocol::Imap => Service::Imap,
        MailProtocol::Pop3 => Service::Pop3,
        MailProtocol::Smtp => Service::Smtp,
    }
}

fn spoken(answer: &NginxAnswer<'_>) -> Answer {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for (name, value) in answer.fields() {
        add_field(&mut response, name, &value);
    }
    response
}

const NO_SUCH_RECIPIENT: Said = Said::smtp("550", "5.1.1 No such mailbox here");
const RECIPIENT_LATER: Said = Said::smtp("451 4.3.0", "Temporary lookup failure");

/// "Later", as Dovecot's login processes say it.
fn later(protocol: MailProtocol) -> Said {
    match protocol {
        MailProtocol::Imap => Said::line("[UNAVAILABLE] Temporary authentication failure."),
        MailProtocol::Pop3 => Said::line("[SYS/TEMP] Temporary authentication failure."),
        MailProtocol::Smtp => Said::smtp("454 4.7.0", "Temporary authentication failure."),
    }
}

fn unoffered(protocol: MailProtocol) -> Said {
    match protocol {
        MailProtocol::Imap => Said::line("[CANNOT] This way to log in is not offered."),
        MailProtocol::Pop3 => Said::line("This way to log in is not offered."),
        MailProtocol::Smtp => Said::smtp("504 5.5.4", "This way to log in is not offered."),
    }
}

/// A refusal, as Dovecot's login processes say it: [`words::of`] decides how much the client hears.
fn refusal(protocol: MailProtocol, refused: &Refused) -> Said {
    let said = words::of(refused);
    let text = match said.code {
        Some(FailCode::PassExpired) => "Password expired.",
        Some(FailCode::AuthzFail) => "Authorization failed.",
        _ => said.text.unwrap_or("Authentication failed."),
    };
    match protocol {
        MailProtocol::Imap => {
            let code = match said.code {
                Some(FailCode::PassExpired) => "EXPIRED",
                Some(FailCode::AuthzFail) => "AUTHORIZATIONFAILED",
                _ if said.text.is_some() => "ALERT",
                _ => "AUTHENTICATIONFAILED",
            };
            Said::line(format!("[{code}] {text}"))
        }
        MailProtocol::Pop3 => Said::line(format!("[AUTH] {text}")),
        MailProtocol::Smtp => Said::smtp("535 5.7.8", text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Reason, Source};

    fn cell(said: &Said) -> String {
        match said.code {
            Some(code) => format!("`{code} {}`", said.status),
            None => format!("`{}`", said.status),
        }
    }

    fn row(first: &str, words: impl Fn(MailProtocol) -> Said) -> String {
        let cells = MailProtocol::ALL.map(|protocol| cell(&words(protocol)));
        format!("| {first} | {} |\n", cells.join(" | "))
    }

    /// The table as docs/protocols/nginx.md prints it: reasons that are heard alike share a row.
    fn table() -> String {
        let mut rows: Vec<(Vec<&str>, Refused)> = Vec::new();
        for proven in [true, false] {
            for &reason in Reason::ALL {
                let refused = Refused { proven, ..Refused::new(reason, Source::Directory) };
                let plain = Refused::new(Reason::WrongPassword, Source::Directory);
                if words::of(&refused) == words::of(&plain) {
                    continue;
                }
                match rows.iter_mut().find(|(_, it)| words::of(it) == words::of(&refused)) {
                    Some((reasons, _)) if reasons.contains(&reason.as_str()) => {}
                    Some((reasons, _)) => reasons.push(reason.as_str()),
                    None => rows.push((vec![reason.as_str()], refused)),
                }
            }
        }
        let mut table = String::from("| | IMAP | POP3 | SMTP |\n|---|---|---|---|\n");
        for (reasons, refused) in rows {
            table += &row(&reasons.join(", "), |protocol| refusal(protocol, &refused));
        }
        let plain = Refused::new(Reason::WrongPassword, Source::Directory);
        table += &row("any other refusal", |protocol| refusal(protocol, &plain));
        table += &row("later", later);
        table += &row("CRAM-MD5, APOP, EXTERNAL", unoffered);
        table += &format!(
            "| recipient unknown (`smtp_auth none`) | | | {} |\n",
            cell(&NO_SUCH_RECIPIENT)
        );
        table + &format!("| recipient, later | | | {} |\n", cell(&RECIPIENT_LATER))
    }

    /// Else nginx would pass sessions on to itself.
    #[test]
    fn the_door_for_pasting_is_the_same_in_both_places_and_leads_to_other_ports_than_nginx_own() {
        let docs = include_str!("../../../docs/protocols/nginx.md");
        let pasted = include_str!("../../../contrib/nginx/mail.conf");
        let upstream = |text: &'static str| {
            let (_, rest) = text.split_once("upstream = {").unwrap();
            rest.lines().next().unwrap()
        };
        assert_eq!(upstream(docs), upstream(pasted));
        let ports = pasted.lines().filter_map(|line| line.trim().strip_prefix("listen "));
        let ports: Vec<_> = ports.map(|port| port.trim_end_matches(';')).collect();
        assert_eq!(ports.len(), 4);
        for port in ports {
            assert!(!upstream(docs).contains(&format!(":{port}\"")), "{port}");
        }
        for line in ["smtpd_authorized_xclient_hosts = 127.0.0.1\n", "mynetworks =\n"] {
            assert!(docs.contains(line) && pasted.contains(line), "{line}");
        }
    }

    #[test]
    fn the_table_of_words_stands_in_the_docs() {
        let docs = include_str!("../../../docs/protocols/nginx.md");
        assert!(docs.contains(&table()), "docs/protocols/nginx.md must hold:\n{}", table());
    }
}
