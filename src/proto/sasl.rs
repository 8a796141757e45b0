//! The SASL mechanisms PLAIN (RFC 4616) and LOGIN (draft-murchison-sasl-login): both give us a name and a password.

use std::fmt;

use zeroize::Zeroizing;

use crate::secret::Password;

/// The longest user name kept while a LOGIN client is asked for its password, in bytes. Logins end at 320
/// (login.md N-1); nothing longer can be anybody's.
const MAX_LOGIN_NAME_BYTES: usize = 1024;

/// A mechanism we offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// Name and password in one message.
    Plain,
    /// Name and password, each after a prompt.
    Login,
}

impl Mechanism {
    /// Every mechanism, in the order in which clients see them.
    pub const ALL: &'static [Self] = &[Self::Plain, Self::Login];

    /// Understands a mechanism's name; case does not matter, because Postfix and Exim pass on what the user's client
    /// typed.
    #[must_use]
    pub fn parse(name: &[u8]) -> Option<Self> {
        Self::ALL.iter().copied().find(|each| name.eq_ignore_ascii_case(each.as_str().as_bytes()))
    }

    /// The registered name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::Login => "LOGIN",
        }
    }
}

/// What a client proves itself with. Names are bytes as they came; whether they are logins is for others to judge.
#[derive(Clone)]
pub struct Credentials {
    /// The identity to act as; empty if none was given or if it is the same as `authcid`.
    pub authzid: Vec<u8>,
    /// The identity whose password this is.
    pub authcid: Vec<u8>,
    /// The password.
    pub password: Password,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Credentials")
            .field("authzid", &self.authzid.escape_ascii().to_string())
            .field("authcid", &self.authcid.escape_ascii().to_string())
            .field("password", &self.password)
            .finish()
    }
}

/// An exchange that waits for the client's next message.
#[derive(Debug)]
pub struct Exchange(Awaited);

#[derive(Debug)]
enum Awaited {
    PlainMessage,
    LoginName,
    LoginPassword { name: Vec<u8> },
}

/// What a message leads to.
#[derive(Debug)]
#[must_use]
pub enum Step {
    /// The client has said everything.
    Complete(Credentials),
    /// The client must be sent this and asked for more. The text is not yet base64.
    Prompt(Exchange, &'static str),
    /// The message is not one of this mechanism: the exchange has failed.
    Malformed,
}

impl Exchange {
    /// Begins an exchange, with the initial response if the client sent one.
    pub fn start(mechanism: Mechanism, initial: Option<Zeroizing<Vec<u8>>>) -> Step {
        match (mechanism, initial) {
            (Mechanism::Plain, None) => Step::Prompt(Self(Awaited::PlainMessage), ""),
            (Mechanism::Plain, Some(message)) => plain(message),
            // Dovecot asks for the name also when the initial response is there but empty.
            (Mechanism::Login, Some(name)) if !name.is_empty() => login_name(&name),
            (Mechanism::Login, _) => Step::Prompt(Self(Awaited::LoginName), "Username:"),
        }
    }

    /// Goes on with the client's next message.
    pub fn proceed(self, message: Zeroizing<Vec<u8>>) -> Step {
        match self.0 {
            Awaited::PlainMessage => plain(message),
            Awaited::LoginName => login_name(&message),
            Awaited::LoginPassword { name } => Step::Complete(Credentials {
                authzid: Vec::new(),
                authcid: name,
                password: Password::from(message),
            }),
        }
    }
}

/// RFC 4616 §2: `[authzid] NUL authcid NUL passwd`. A further NUL is taken for a part of the password, which the core
/// then refuses for its form and counts (login.md N-3).
fn plain(mut message: Zeroizing<Vec<u8>>) -> Step {
    let mut nuls = memchr::memchr_iter(0, &message);
    let (Some(first), Some(second)) = (nuls.next(), nuls.next()) else {
        return Step::Malformed;
    };
    let authzid = message.get(..first).unwrap_or_default();
    let authcid = message.get(first + 1..second).unwrap_or_default();
    // Many clients, doveadm among them, fill in the same name twice.
    let authzid = if authzid == authcid { Vec::new() } else { authzid.to_vec() };
    let authcid = authcid.to_vec();
    // The message's own buffer becomes the password's: one secret less to allocate and to zero.
    message.drain(..=second);
    Step::Complete(Credentials { authzid, authcid, password: Password::from(message) })
}

fn login_name(name: &[u8]) -> Step {
    if name.len() > MAX_LOGIN_NAME_BYTES {
        return Step::Malformed;
    }
    Step::Prompt(Exchange(Awaited::LoginPassword { name: name.to_vec() }), "Password:")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(bytes: impl AsRef<[u8]>) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(bytes.as_ref().to_vec())
    }

    fn complete(step: Step) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        match step {
            Step::Complete(Credentials { authzid, authcid, password }) => {
                (authzid, authcid, password.as_bytes().to_vec())
            }
            other => panic!("not complete: {other:?}"),
        }
    }

    fn prompt(step: Step) -> (Exchange, &'static str) {
        match step {
            Step::Prompt(exchange, text) => (exchange, text),
            other => panic!("no prompt: {other:?}"),
        }
    }

    #[test]
    fn plain_gives_its_three_parts() {
        for (said, authzid, authcid, password) in [
            (&b"\0joe\0secret"[..], &b""[..], &b"joe"[..], &b"secret"[..]),
            (b"joe\0joe\0secret", b"", b"joe", b"secret"),
            (b"boss\0joe\0secret", b"boss", b"joe", b"secret"),
            (b"\0joe\0", b"", b"joe", b""),
            (b"\0joe\0\t\r\n\x01\xff ", b"", b"joe", b"\t\r\n\x01\xff "),
            (b"\0\0", b"", b"", b""),
        ] {
            let step = Exchange::start(Mechanism::Plain, Some(message(said)));
            assert_eq!(complete(step), (authzid.to_vec(), authcid.to_vec(), password.to_vec()));
        }
    }

    #[test]
    fn plain_with_too_few_nuls_is_malformed() {
        for bad in [&b""[..], b"joe", b"joe\0secret"] {
            let step = Exchange::start(Mechanism::Plain, Some(message(bad)));
            assert!(matches!(step, Step::Malformed), "{bad:?}");
        }
    }

    #[test]
    fn a_further_nul_is_a_part_of_the_password() {
        let (_, name, password) =
            complete(Exchange::start(Mechanism::Plain, Some(message(b"\0joe\0a\0b"))));

        assert_eq!((name.as_slice(), password.as_slice()), (&b"joe"[..], &b"a\0b"[..]));
    }

    #[test]
    fn plain_without_initial_response_is_asked_for_with_an_empty_prompt() {
        let (exchange, text) = prompt(Exchange::start(Mechanism::Plain, None));

        assert_eq!(text, "");
        assert_eq!(complete(exchange.proceed(message(b"\0joe\0x"))).1, b"joe");
    }

    #[test]
    fn login_asks_for_name_and_password() {
        for initial in [None, Some(message(b""))] {
            let (exchange, text) = prompt(Exchange::start(Mechanism::Login, initial));
            assert_eq!(text, "Username:");
            let (exchange, text) = prompt(exchange.proceed(message(b"joe")));
            assert_eq!(text, "Password:");
            let given = complete(exchange.proceed(message(b"\0\xff")));
            assert_eq!(given, (vec![], b"joe".to_vec(), b"\0\xff".to_vec()));
        }
    }

    #[test]
    fn the_initial_response_of_login_is_the_name() {
        let (exchange, text) = prompt(Exchange::start(Mechanism::Login, Some(message(b"joe"))));

        assert_eq!(text, "Password:");
        assert_eq!(complete(exchange.proceed(message(b""))).2, b"");
    }

    #[test]
    fn an_endless_login_name_is_malformed() {
        let step = Exchange::start(Mechanism::Login, Some(message([b'a'; 1025])));

        assert!(matches!(step, Step::Malformed));
    }

    #[test]
    fn mechanisms_are_named_without_case() {
        assert_eq!(Mechanism::parse(b"pLaIn"), Some(Mechanism::Plain));
        assert_eq!(Mechanism::parse(b"LOGIN"), Some(Mechanism::Login));
        assert_eq!(Mechanism::parse(b"CRAM-MD5"), None);
        assert_eq!(Mechanism::parse(b""), None);
    }

    #[test]
    fn debug_output_never_shows_the_password() {
        let step = Exchange::start(Mechanism::Plain, Some(message(b"\0joe\0hunter2")));

        let shown = format!("{step:?}");

        assert!(shown.contains("joe") && !shown.contains("hunter2"), "{shown}");
    }
    proptest! {
        #[test]
        fn plain_and_login_give_what_was_said(authzid in "[^\0]{0,9}", authcid in "[^\0]{0,99}", password: Vec<u8>) {
            let parts = [authzid.as_bytes(), authcid.as_bytes(), &password].map(<[u8]>::to_vec);
            let expected = |authzid: Vec<u8>| (authzid, parts[1].clone(), password.clone());

            let plain = Exchange::start(Mechanism::Plain, Some(message(parts.join(&0))));
            let other = if authzid == authcid { Vec::new() } else { parts[0].clone() };
            prop_assert_eq!(complete(plain), expected(other));

            let (exchange, _) = prompt(Exchange::start(Mechanism::Login, None));
            let (exchange, _) = prompt(exchange.proceed(message(&parts[1])));
            prop_assert_eq!(complete(exchange.proceed(message(&password))), expected(Vec::new()));
        }

        #[test]
        fn random_messages_never_panic_and_end(initial: Option<Vec<u8>>, messages: [Vec<u8>; 2]) {
            for mechanism in Mechanism::ALL {
                let mut step = Exchange::start(*mechanism, initial.clone().map(message));
                for next in &messages {
                    step = match step {
                        Step::Prompt(exchange, _) => exchange.proceed(message(next)),
                        step => step,
                    };
                }
                prop_assert!(!matches!(step, Step::Prompt(..)), "{:?}", step);
            }
        }
    }
}
