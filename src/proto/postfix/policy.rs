//! Policy delegation: what `check_policy_service` of Postfix asks at each step of an SMTP session.
//!
//! A request is lines `name=value` in any order, ended by an empty line; the reply is one line `action=…` and an empty
//! one. The connection stays open for the next:
//!
//! ```text
//! C: request=smtpd_access_policy
//! C: protocol_state=RCPT
//! C: client_address=192.0.2.9
//! C: sender=joe@example.org
//! C: recipient=ann@example.net
//! C: sasl_username=amy@example.org
//! C:
//! S: action=553 5.7.1 not owned by user amy@example.org
//! S:
//! ```
//!
//! See Postfix' SMTPD_POLICY_README. What is of no use here is read over; a name that comes twice counts as said last.

use std::net::IpAddr;

use bytes::BytesMut;
use memchr::memchr;

use super::one_line;

/// The longest request. Postfix' longest are some 3 kB, certificates' names included.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// The most attributes of one request; Postfix 3.10 sends about 35.
pub const MAX_ATTRIBUTES: usize = 256;

/// SMTP replies end at 512 bytes; Postfix puts the address before our text.
const MAX_TEXT_BYTES: usize = 400;

/// What is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// How far the session is.
    pub state: State,
    /// Whom the message is from, as the client typed it; empty: nobody, as in bounces, or not said yet.
    pub sender: Vec<u8>,
    /// Who is logged in; empty: nobody.
    pub login: Vec<u8>,
    /// What Postfix calls the message: the same in all requests about it, and in no others. Empty before there is one.
    pub instance: Vec<u8>,
    /// Where the client is, where Postfix knows it.
    pub client: Option<IpAddr>,
}

/// How far an SMTP session is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// At `DATA`.
    Data,
    /// After the message.
    EndOfMessage,
    /// At `MAIL FROM`.
    Mail,
    /// Where there is no sender yet (CONNECT, EHLO, HELO), or not one of a message (VRFY, ETRN).
    #[default]
    Other,
    /// At `RCPT TO`; the usual place, since Postfix delays refusals until then.
    Recipient,
}

/// What Postfix shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action<'a> {
    /// "Later", with a text: 450, unless another restriction refuses for good.
    DeferIfPermit(&'a str),
    /// Nothing speaks against it: the restrictions that follow decide. There is no `OK` here, which would skip them.
    Dunno,
    /// Refuse.
    Refuse {
        /// Reply code and enhanced code (RFC 3463), such as `553 5.7.1`.
        code: &'static str,
        /// The text after Postfix' own `<address>: Sender address rejected:`.
        text: &'a str,
    },
}

/// Why a connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A line without `=`.
    #[error("a line of a request is no attribute")]
    NoAttribute,
    /// More than [`MAX_REQUEST_BYTES`].
    #[error("a request is longer than 65536 bytes")]
    TooLong,
    /// More than [`MAX_ATTRIBUTES`].
    #[error("a request has more than 256 attributes")]
    TooMany,
}

/// One connection: the request that is being read.
#[derive(Debug, Default)]
pub struct Session {
    request: Request,
    is_ours: bool,
    attributes: usize,
    bytes: usize,
}

impl Session {
    /// Takes the next request from what was read; `None`: more is needed.
    ///
    /// # Errors
    /// What is wrong with it. Nothing after it can be understood.
    pub fn next_request(&mut self, input: &mut BytesMut) -> Result<Option<Request>, Fault> {
        loop {
            let Some(end) = memchr(b'\n', input) else {
                let too_long = self.bytes + input.len() > MAX_REQUEST_BYTES;
                return if too_long { Err(Fault::TooLong) } else { Ok(None) };
            };
            let line = input.split_to(end + 1);
            self.bytes += line.len();
            if self.bytes > MAX_REQUEST_BYTES {
                return Err(Fault::TooLong);
            }
            let line = line.strip_suffix(b"\n").unwrap_or_default();
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if !line.is_empty() {
                self.attribute(line)?;
                continue;
            }
            let Self { mut request, is_ours, attributes, .. } = std::mem::take(self);
            // An empty line alone asks nothing.
            if attributes > 0 {
                if !is_ours {
                    request.state = State::Other;
                }
                return Ok(Some(request));
            }
        }
    }

    /// Whether a request has begun and not ended.
    #[must_use]
    pub fn is_within_request(&self) -> bool {
        self.attributes > 0
    }

    fn attribute(&mut self, line: &[u8]) -> Result<(), Fault> {
        let equals = memchr(b'=', line).ok_or(Fault::NoAttribute)?;
        let (name, value) = line.split_at(equals);
        let value = value.get(1..).unwrap_or_default();
        self.attributes += 1;
        if self.attributes > MAX_ATTRIBUTES {
            return Err(Fault::TooMany);
        }
        match name {
            b"request" => self.is_ours = value == b"smtpd_access_policy",
            b"protocol_state" => self.request.state = State::parse(value),
            b"sender" => self.request.sender = value.to_vec(),
            b"sasl_username" => self.request.login = value.to_vec(),
            b"instance" => self.request.instance = value.to_vec(),
            b"client_address" => {
                let text = std::str::from_utf8(value).ok();
                let address: Option<IpAddr> = text.and_then(|text| text.parse().ok());
                self.request.client = address.map(|address| address.to_canonical());
            }
            _ => {}
        }
        Ok(())
    }
}

impl State {
    fn parse(word: &[u8]) -> Self {
        match word {
            b"DATA" => Self::Data,
            b"END-OF-MESSAGE" => Self::EndOfMessage,
            b"MAIL" => Self::Mail,
            b"RCPT" => Self::Recipient,
            _ => Self::Other,
        }
    }
}

impl Action<'_> {
    /// Writes the reply.
    pub fn encode(&self, output: &mut Vec<u8>) {
        output.extend_from_slice(b"action=");
        let (word, text) = match *self {
            Self::DeferIfPermit(text) => ("DEFER_IF_PERMIT", text),
            Self::Dunno => ("DUNNO", ""),
            Self::Refuse { code, text } => (code, text),
        };
        output.extend_from_slice(word.as_bytes());
        if !text.is_empty() {
            output.push(b' ');
            output.extend(one_line(text, MAX_TEXT_BYTES));
        }
        output.extend_from_slice(b"\n\n");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As Postfix 3.7 sends it.
    const REAL: &str = "request=smtpd_access_policy\nprotocol_state=RCPT\nprotocol_name=ESMTP\n\
        client_address=192.0.2.9\nclient_name=unknown\nclient_port=41010\nreverse_client_name=unknown\n\
        server_address=192.0.2.1\nserver_port=587\nhelo_name=laptop\nsender=Amy@Example.org\n\
        recipient=ann@example.net\nrecipient_count=0\nqueue_id=\ninstance=2f1.6a1b.0\nsize=0\netrn_domain=\n\
        stress=\nsasl_method=PLAIN\nsasl_username=amy@example.org\nsasl_sender=\nccert_subject=\n\
        ccert_issuer=\nccert_fingerprint=\nccert_pubkey_fingerprint=\nencryption_protocol=TLSv1.3\n\
        encryption_cipher=TLS_AES_256_GCM_SHA384\nencryption_keysize=256\npolicy_context=\n\n";

    fn amy() -> Request {
        Request {
            state: State::Recipient,
            sender: b"Amy@Example.org".into(),
            login: b"amy@example.org".into(),
            instance: b"2f1.6a1b.0".into(),
            client: "192.0.2.9".parse().ok(),
        }
    }

    fn read(session: &mut Session, input: &mut BytesMut) -> (Vec<Request>, Option<Fault>) {
        let mut all = Vec::new();
        loop {
            match session.next_request(input) {
                Ok(Some(request)) => all.push(request),
                Ok(None) => return (all, None),
                Err(fault) => return (all, Some(fault)),
            }
        }
    }

    fn parsed(text: &str) -> (Vec<Request>, Option<Fault>) {
        read(&mut Session::default(), &mut BytesMut::from(text))
    }

    #[test]
    fn a_real_request_is_understood_with_either_line_end_and_twice_on_one_connection() {
        let twice = REAL.repeat(2);
        assert_eq!(parsed(&twice), (vec![amy(), amy()], None));
        assert_eq!(parsed(&twice.replace('\n', "\r\n")), (vec![amy(), amy()], None));
    }

    #[test]
    fn attributes_mean_what_they_say() {
        let request = |text: &str| {
            let text = format!("request=smtpd_access_policy\n{text}\n\n");
            let (mut all, fault) = parsed(&text);
            assert_eq!((all.len(), fault), (1, None), "{text}");
            all.remove(0)
        };
        for (word, state) in [
            ("MAIL", State::Mail),
            ("RCPT", State::Recipient),
            ("DATA", State::Data),
            ("END-OF-MESSAGE", State::EndOfMessage),
            ("CONNECT", State::Other),
            ("rcpt", State::Other),
            ("", State::Other),
        ] {
            assert_eq!(request(&format!("protocol_state={word}")).state, state, "{word}");
        }
        assert_eq!(request("sender=a=b@c").sender, b"a=b@c");
        assert_eq!(request("sender=a\nsender=b").sender, b"b", "the last one counts");
        assert_eq!(request("shoe_size=44\nsender=").sender, b"");
        assert_eq!(request("sasl_username=\u{e4}").login, "\u{e4}".as_bytes());
        assert_eq!(request("client_address=unknown").client, None);
        assert_eq!(request("client_address=::ffff:192.0.2.9").client, amy().client);
    }

    #[test]
    fn another_request_than_access_policy_is_one_without_a_state() {
        let other = REAL.replace("smtpd_access_policy", "something_new");

        let (all, _) = parsed(&other);

        assert_eq!(all[0].state, State::Other);
        assert_eq!(parsed("protocol_state=RCPT\n\n").0[0].state, State::Other);
    }

    #[test]
    fn what_is_no_request_ends_the_connection() {
        let many = "a=b\n".repeat(MAX_ATTRIBUTES + 1);
        let long = format!("sender={}", "x".repeat(MAX_REQUEST_BYTES));
        let lines = format!("sender={}\n", "x".repeat(20_000)).repeat(4);
        for (text, fault) in [
            ("GET / HTTP/1.1\r\n", Fault::NoAttribute),
            (&many, Fault::TooMany),
            (&long, Fault::TooLong),
            (&lines, Fault::TooLong),
        ] {
            assert_eq!(parsed(text), (vec![], Some(fault)));
        }
        assert_eq!(parsed("\n\r\n\n"), (vec![], None), "empty lines ask nothing");
    }

    #[test]
    fn a_request_that_was_read_line_by_line_is_still_within() {
        let mut session = Session::default();
        let mut input = BytesMut::from("request=smtpd_access_policy\n");

        assert_eq!(session.next_request(&mut input), Ok(None));

        assert!(input.is_empty() && session.is_within_request());
        input.extend_from_slice(b"\n");
        assert!(session.next_request(&mut input).unwrap().is_some());
        assert!(!session.is_within_request());
    }

    #[test]
    fn actions_are_one_line_and_an_empty_one() {
        let refuse = |text| Action::Refuse { code: "553 5.7.1", text };
        for (action, said) in [
            (Action::Dunno, "action=DUNNO\n\n"),
            (Action::DeferIfPermit("try later"), "action=DEFER_IF_PERMIT try later\n\n"),
            (refuse("not owned by user a"), "action=553 5.7.1 not owned by user a\n\n"),
            (refuse("a\nb\r\0ä"), "action=553 5.7.1 a?b???\n\n"),
        ] {
            let mut output = Vec::new();
            action.encode(&mut output);
            assert_eq!(String::from_utf8(output).unwrap(), said);
        }
        let (long, mut output) = ("x".repeat(1000), Vec::new());
        refuse(&long).encode(&mut output);
        assert!(output.len() < 430, "{}", output.len());
    }

    fn states() -> impl Strategy<Value = (&'static str, State)> {
        prop::sample::select(vec![
            ("MAIL", State::Mail),
            ("RCPT", State::Recipient),
            ("DATA", State::Data),
            ("END-OF-MESSAGE", State::EndOfMessage),
            ("HELO", State::Other),
        ])
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn requests_survive_any_cutting_and_order(
            (word, state) in states(),
            sender in "[^\r\n]{0,40}",
            login in "[^\r\n]{0,40}",
            instance in "[^\r\n]{0,20}",
            client: IpAddr,
            turn in 0_usize..6,
            piece in 1_usize..50,
        ) {
            let mut lines = [
                "request=smtpd_access_policy".to_owned(),
                format!("protocol_state={word}"),
                format!("sender={sender}"),
                format!("sasl_username={login}"),
                format!("instance={instance}"),
                format!("client_address={client}"),
            ];
            lines.rotate_left(turn);
            let text = lines.join("\n") + "\n\n";
            let client = Some(client.to_canonical());
            let expected = Request {
                state,
                sender: sender.into_bytes(),
                login: login.into_bytes(),
                instance: instance.into_bytes(),
                client,
            };
            let (mut session, mut input, mut all) = (Session::default(), BytesMut::new(), vec![]);

            for piece in text.as_bytes().chunks(piece) {
                input.extend_from_slice(piece);
                let (some, fault) = read(&mut session, &mut input);
                prop_assert_eq!(fault, None);
                all.extend(some);
            }

            prop_assert_eq!(all, vec![expected]);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&mut Session::default(), &mut BytesMut::from(&bytes[..]));
        }

        #[test]
        fn every_reply_is_one_action_and_an_empty_line(text in "(?s).{0,600}") {
            let mut output = Vec::new();
            Action::Refuse { code: "550 5.7.1", text: &text }.encode(&mut output);
            prop_assert!(output.starts_with(b"action=550 5.7.1") && output.ends_with(b"\n\n"));
            prop_assert!(output.is_ascii());
            prop_assert_eq!(output.iter().filter(|byte| **byte == b'\n').count(), 2);
        }
    }
}
