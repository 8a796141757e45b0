//! A rehearsal: the lines of a journal are played against a shield that has counted nothing, at their own times. Whom
//! would it have delayed or denied?
//!
//! Names, services and outcomes are understood as they were when the attempts came, by the same functions. What cannot be
//! known is left out: an attempt is judged at the time of its line, which is when it was decided; an attempt that the shield
//! itself refused then says nothing about its password; and a delay moves no later attempt.

mod line;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::charge;
use super::journal;
use super::masters::{self, Masters, Who};
use super::{Reason, Service};
use crate::config::Config;
use crate::identity::LoginRules;
use crate::throttle::{Because, Course, Judgement, Subject, Throttle};
use line::{Line, Read, Told};

/// Bytes of a line that are looked at; the journal's own are much shorter.
pub const MAX_LINE: usize = 64 * 1024;

/// Rows of the report. What would make more is counted.
const MAX_ROWS: usize = 10_000;

/// A journal that is being played.
#[derive(Debug)]
pub struct Replay {
    throttle: Throttle,
    names: LoginRules,
    masters: Masters,
    base: Instant,
    /// The time of the first line, since 1970.
    first: Option<Duration>,
    /// Stands for the password of a line that does not tell it.
    unlike: u16,
    rows: BTreeMap<(Arc<str>, String), Row>,
    so_far: Replayed,
}

/// What would have been done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Replayed {
    /// Lines read.
    pub lines: u64,
    /// Those of other kinds.
    pub other_lines: u64,
    /// Those that are too long, or begin like a decision and cannot be read.
    pub unreadable_lines: u64,
    /// Decisions that were played.
    pub attempts: u64,
    /// Those that the shield refused when they came: nothing is known of their passwords.
    pub refused_then: u64,
    /// Attempts that would be delayed.
    pub delayed: u64,
    /// Of these, those that got in: honest people who would wait.
    pub delayed_accepted: u64,
    /// Attempts that would be denied.
    pub denied: u64,
    /// Of these, those that got in: false alarms.
    pub denied_accepted: u64,
    /// Attempts that a rule would only write down.
    pub logged: u64,
    /// A row for each rule and whom it acts on: false alarms first, then by the time of the first attempt.
    pub rows: Vec<Row>,
    /// Attempts that have no row because there are so many.
    pub without_row: u64,
}

/// What a rule or list would have done to somebody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The rule; or `list:allow`, `list:deny`.
    pub rule: String,
    /// Whom it is about, in the shield's words.
    pub whom: String,
    /// delay | deny | log | allow
    pub action: &'static str,
    /// Attempts.
    pub times: u64,
    /// Of these, those that got in.
    pub accepted: u64,
    /// The time of the first.
    pub first: String,
    /// The time of the last.
    pub last: String,
}

impl Replay {
    /// A rehearsal with the rules of a configuration, whether they are switched on or not. `base` is any moment.
    #[must_use]
    pub fn new(config: &Config, base: Instant) -> Self {
        let mut settings = config.throttle.clone();
        settings.enabled = true;
        Self {
            // The journal tells passwords apart, not we.
            throttle: Throttle::new(&settings, [0; 32], base),
            names: config.names(),
            masters: Masters::new(config),
            base,
            first: None,
            unlike: 0,
            rows: BTreeMap::new(),
            so_far: Replayed::default(),
        }
    }

    /// Plays a line, without its end.
    pub fn line(&mut self, line: &[u8]) {
        self.so_far.lines += 1;
        let read = if line.len() > MAX_LINE { Read::Unreadable } else { line::read(line) };
        match read {
            Read::Decision(line) => self.play(&line),
            Read::Other => self.so_far.other_lines += 1,
            Read::Unreadable => self.so_far.unreadable_lines += 1,
        }
    }

    fn play(&mut self, line: &Line) {
        let first = *self.first.get_or_insert(line.at);
        let Some(now) = self.base.checked_add(line.at.saturating_sub(first)) else {
            self.so_far.unreadable_lines += 1;
            return;
        };
        self.so_far.attempts += 1;
        self.unlike = self.unlike.wrapping_add(1);
        let unlike = self.unlike;
        self.so_far.refused_then += u64::from(line.told == Told::Refuse(Reason::Throttled));
        let who = self.who(line);
        let login = who.as_ref().map(|who| who.whose_password().address.as_str());
        let subject = Subject {
            client: line.client,
            login,
            service: service(line),
            session: line.session.as_deref(),
            ja3: None,
        };
        let judgement = self.throttle.check(&subject, now);
        for because in judgement.all() {
            let whom = self.throttle.whom(&subject, because);
            note(&mut self.rows, &mut self.so_far, (because, whom), line);
        }
        self.count(&judgement, line);
        if judgement.action == Course::Deny {
            return;
        }
        let decision = line.decision(matches!(who, Some(Who::Other { .. })));
        // An older line does not tell its password: it is taken for another one each time.
        let guess = || line.guess.or(Some(unlike)).filter(|_| login.is_some());
        if let Some(outcome) = charge::outcome(decision, guess) {
            self.throttle.learn(&subject, outcome, now);
        }
    }

    /// Who the attempt was about, as it was understood then.
    fn who(&self, line: &Line) -> Option<Who> {
        let is_nobody = matches!(
            line.told,
            Told::Refuse(Reason::BadName | Reason::BadPasswordForm | Reason::UnknownService)
        );
        if is_nobody {
            return None;
        }
        // The line names first whom they log in as.
        let (login, authzid) = match &line.master {
            Some(master) => (master, line.login.as_slice()),
            None => (&line.login, &[][..]),
        };
        masters::who(&self.names, &self.masters, login, authzid).ok()
    }

    fn count(&mut self, judgement: &Judgement, line: &Line) {
        let accepted = u64::from(line.told == Told::Accept);
        let so_far = &mut self.so_far;
        match judgement.action {
            Course::Delay(_) => {
                so_far.delayed += 1;
                so_far.delayed_accepted += accepted;
            }
            Course::Deny => {
                so_far.denied += 1;
                so_far.denied_accepted += accepted;
            }
            Course::Go => {
                let is_rule = matches!(judgement.because, Some(Because::Rule { .. }));
                so_far.logged += u64::from(is_rule);
            }
        }
    }

    /// What would have been done.
    #[must_use]
    pub fn finish(self) -> Replayed {
        let mut rows: Vec<Row> = self.rows.into_values().collect();
        let alarm = |row: &Row| if row.action == "deny" { row.accepted } else { 0 };
        rows.sort_by(|a, b| {
            alarm(b).cmp(&alarm(a)).then_with(|| a.first.cmp(&b.first)).then(a.rule.cmp(&b.rule))
        });
        Replayed { rows, ..self.so_far }
    }
}

fn note(
    rows: &mut BTreeMap<(Arc<str>, String), Row>,
    so_far: &mut Replayed,
    (because, whom): (&Because, String),
    line: &Line,
) {
    let key = (because.word(), whom);
    if rows.len() >= MAX_ROWS && !rows.contains_key(&key) {
        so_far.without_row += 1;
        return;
    }
    let at = shown(line.at);
    let (rule, whom) = (key.0.to_string(), key.1.clone());
    let row = rows.entry(key).or_insert_with(|| Row {
        rule,
        whom,
        action: because.action(),
        times: 0,
        accepted: 0,
        first: at.clone(),
        last: String::new(),
    });
    row.times += 1;
    row.accepted += u64::from(line.told == Told::Accept);
    row.last = at;
}

fn shown(at: Duration) -> String {
    let mut text = Vec::new();
    journal::timestamp(at, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// mailcow names no service where no protocol is to be checked.
fn service(line: &Line) -> Option<Service> {
    let is_known = line.told != Told::Refuse(Reason::UnknownService);
    match line.service.as_str() {
        "" => is_known.then_some(Service::Lookup),
        name => Service::parse(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::throttle::{Action, Count, Per, Rule};
    use crate::config::units::Span;

    fn config(rules: &[(&str, Rule)]) -> Config {
        let mut config = Config::default();
        config.throttle.enabled = false;
        config.throttle.rule =
            rules.iter().map(|(name, rule)| ((*name).to_owned(), rule.clone())).collect();
        config.login.default_domain = "planetexpress.com".into();
        config
    }

    fn rule(per: Per, limit: u32, action: Action) -> Rule {
        let count = Count::DistinctWrongPasswords;
        Rule { count, per, limit, action, window: Span::seconds(600), ..Rule::default() }
    }

    /// A refused attempt at so many seconds.
    fn wrong(second: u32, client: &str, login: &str, guess: u16) -> String {
        format!(
            "2026-11-22T21:{:02}:{:02}.000Z login verdict=refuse reason=wrong-password client={client} login={login:?} \
             service=imap door=dovecot source=directory ms=1.0 session=S{client} guess={guess:04x}",
            second / 60,
            second % 60
        )
    }

    fn right(second: u32, client: &str, login: &str) -> String {
        let line = wrong(second, client, login, 0);
        let line = line.replace("verdict=refuse reason=wrong-password", "verdict=accept");
        line.replace(" guess=0000", "")
    }

    fn replayed(config: &Config, lines: &[String]) -> Replayed {
        let mut replay = Replay::new(config, crate::clock::now());
        lines.iter().for_each(|line| replay.line(line.as_bytes()));
        replay.finish()
    }

    #[test]
    fn who_would_be_held_back_is_told_by_rule_and_false_alarms_come_first() {
        let config = config(&[
            ("deny-login", rule(Per::Login, 3, Action::Deny)),
            ("slow-net", rule(Per::LoginNet, 2, Action::Delay)),
        ]);
        let mut lines: Vec<String> =
            (0..4_u16).map(|n| wrong(n.into(), "192.0.2.9", "Fry", n)).collect();
        lines.push(wrong(10, "198.51.100.1", "leela@planetexpress.com", 1));
        lines.extend((0..3_u16).map(|n| wrong(20, &format!("203.0.113.{n}"), "amy", 7 + n)));
        lines.push(right(30, "10.0.0.1", "amy@planetexpress.com"));
        lines.push("2026-11-22T21:51:00.123456Z  INFO gatepost: something".into());
        lines.push(wrong(40, "192.0.2.9", "fry", 3).replace("guess=0003", "guess=3"));

        let done = replayed(&config, &lines);

        assert_eq!((done.lines, done.other_lines, done.unreadable_lines), (11, 1, 1));
        assert_eq!((done.attempts, done.refused_then), (9, 0));
        // fry's third password waits, his fourth is denied; amy's third waits, and amy herself is denied.
        assert_eq!((done.delayed, done.delayed_accepted), (2, 0));
        assert_eq!((done.denied, done.denied_accepted), (2, 1));
        let rows: Vec<_> = done
            .rows
            .iter()
            .map(|row| (&*row.rule, &*row.whom, row.action, row.times, row.accepted))
            .collect();
        assert_eq!(
            rows,
            [
                ("deny-login", "amy@planetexpress.com", "deny", 1, 1),
                ("slow-net", "fry@planetexpress.com from 192.0.2.0/24", "delay", 1, 0),
                ("deny-login", "fry@planetexpress.com", "deny", 1, 0),
                ("slow-net", "amy@planetexpress.com from 203.0.113.0/24", "delay", 1, 0),
            ]
        );
        assert_eq!(done.rows[1].first, "2026-11-22T21:00:02.000Z");
    }

    #[test]
    fn what_was_denied_is_not_learned_and_what_was_only_logged_is() {
        let guesses: Vec<String> =
            (0..10_u16).map(|n| wrong(n.into(), "192.0.2.9", "fry", n)).collect();
        for (action, denied, logged) in [(Action::Deny, 7, 0), (Action::Log, 0, 7)] {
            let done = replayed(&config(&[("guessing", rule(Per::LoginNet, 3, action))]), &guesses);
            assert_eq!((done.denied, done.logged), (denied, logged));
        }
        // The window goes by the times of the lines: after it the denied ones were never there.
        let config = config(&[("guessing", rule(Per::LoginNet, 3, Action::Deny))]);
        let later: Vec<String> =
            (0..4_u16).map(|n| wrong(1000 + u32::from(n), "192.0.2.9", "fry", n)).collect();
        let done = replayed(&config, &[guesses, later].concat());
        assert_eq!((done.denied, done.rows.len(), done.rows[0].times), (8, 1, 8));
        assert_eq!(done.rows[0].last, "2026-11-22T21:16:43.000Z");
    }

    #[test]
    fn lines_count_as_the_attempts_did() {
        let cases = [
            // The same password again.
            (wrong(0, "192.0.2.9", "fry", 7), 1),
            // Without the short hash each is unlike any other.
            (wrong(0, "192.0.2.9", "fry", 7).replace(" guess=0007", ""), 3),
            // A phone with an old password, an outage, an honest person, somebody disabled.
            (wrong(0, "192.0.2.9", "fry", 7).replace(" ms=", " detail=\"old-password\" ms="), 0),
            (
                wrong(0, "192.0.2.9", "fry", 7)
                    .replace("refuse reason=wrong-password", "later reason=directory-unavailable"),
                0,
            ),
            (wrong(0, "192.0.2.9", "fry", 7).replace("wrong-password", "password-expired"), 0),
            (wrong(0, "192.0.2.9", "fry", 7).replace("wrong-password", "disabled"), 0),
            // The shield said no then.
            (wrong(0, "192.0.2.9", "fry", 7).replace("wrong-password", "throttled"), 0),
            (right(0, "192.0.2.9", "fry"), 0),
        ];
        for (line, expected) in cases {
            let config = config(&[("guessing", rule(Per::Ip, 9, Action::Deny))]);
            let mut replay = Replay::new(&config, crate::clock::now());
            (0..3).for_each(|_| replay.line(line.as_bytes()));
            let subject = Subject { client: Some([192, 0, 2, 9].into()), ..Subject::default() };
            let shown = replay.throttle.show(&subject, replay.base);
            assert_eq!(shown[0].count, expected, "{line}");
        }
    }

    #[test]
    fn a_master_is_charged_and_not_whom_they_enter() {
        let config = config(&[("guessing", rule(Per::Login, 1, Action::Deny))]);
        let line = |reason: &str, source: &str| {
            wrong(0, "192.0.2.9", "fry", 7)
                .replace("login=\"fry\"", "login=\"fry\" master=\"hermes\"")
                .replace("wrong-password", reason)
                .replace("source=directory", &format!("source={source}"))
        };
        let rows = |line: &str| replayed(&config, &[line.to_owned(), line.to_owned()]).rows;

        assert_eq!(rows(&line("wrong-password", "directory"))[0].whom, "hermes@planetexpress.com");
        // Their own password was right: there is only nobody to enter.
        assert!(rows(&line("unknown", "directory").replace(" guess=0007", "")).is_empty());
        assert_eq!(rows(&line("unknown", "directory")).len(), 1);
    }

    #[test]
    fn hostile_lines_are_counted_bounded_and_move_no_clock() {
        let config = config(&[("guessing", rule(Per::Ip, 1, Action::Deny))]);
        let mut replay = Replay::new(&config, crate::clock::now());
        replay.line(&vec![b'x'; MAX_LINE + 1]);
        replay.line(b"\xff\xfe\0");
        for number in 0..20_000_u32 {
            let client = format!("10.{}.{}.{}", number >> 16, number >> 8 & 255, number & 255);
            let line = wrong(number % 3600, &client, "fry", 1);
            replay.line(line.as_bytes());
            replay.line(line.as_bytes());
        }
        // Out of order, and at the end of time.
        replay.line(wrong(0, "192.0.2.9", "fry", 1).replace("2026", "1970").as_bytes());
        replay.line(wrong(0, "192.0.2.9", "fry", 1).replace("2026", "9999").as_bytes());

        let done = replay.finish();

        assert_eq!((done.unreadable_lines, done.other_lines, done.attempts), (1, 1, 40_002));
        assert_eq!(done.rows.len(), MAX_ROWS);
        assert_eq!(done.without_row, done.denied - 10_000);
    }
}
