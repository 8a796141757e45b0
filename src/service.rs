//! What a login is for.

/// What a login is for, and so which protocol a template must allow (login.md S).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Service {
    /// `dav`: http, dav, radicale.
    Dav,
    /// `imap`.
    Imap,
    /// lmtp, doveadm: an administrator's test; no protocol is checked.
    Lookup,
    /// `pop3`.
    Pop3,
    /// `sieve`: sieve, managesieve.
    Sieve,
    /// `smtp`: smtp, submission, submissions.
    Smtp,
}

impl Service {
    /// Understands what a door says; `None` for a name that is missing or unknown.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        const WORDS: &[(&str, Service)] = &[
            ("imap", Service::Imap),
            ("smtp", Service::Smtp),
            ("submission", Service::Smtp),
            ("submissions", Service::Smtp),
            ("pop3", Service::Pop3),
            // Cyrus says "pop".
            ("pop", Service::Pop3),
            ("sieve", Service::Sieve),
            ("managesieve", Service::Sieve),
            ("http", Service::Dav),
            ("dav", Service::Dav),
            ("radicale", Service::Dav),
            ("lmtp", Service::Lookup),
            ("doveadm", Service::Lookup),
        ];
        let (_, service) = WORDS.iter().find(|(word, _)| name.eq_ignore_ascii_case(word))?;
        Some(*service)
    }

    /// The word in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.protocol().unwrap_or("lookup")
    }

    /// The protocol a mailbox must allow; `None`: nothing is checked.
    #[must_use]
    pub fn protocol(self) -> Option<&'static str> {
        match self {
            Self::Dav => Some("dav"),
            Self::Imap => Some("imap"),
            Self::Lookup => None,
            Self::Pop3 => Some("pop3"),
            Self::Sieve => Some("sieve"),
            Self::Smtp => Some("smtp"),
        }
    }
}
