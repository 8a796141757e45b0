//! What a request is answered.

use super::line::Writer;

/// A FAIL line repeats the name typed only up to this length, in bytes: Exim reads no line of 8 KiB or more.
const MAX_ECHOED_NAME_BYTES: usize = 320;

/// The answer to a request.
#[derive(Clone, Copy, Debug)]
pub enum Reply<'a> {
    /// Let them in.
    Ok {
        /// The canonical name; mail servers take it as the identity.
        user: &'a str,
        /// Further fields; one with an empty value is sent as a bare flag. Leave them out for anything but Dovecot's
        /// login processes.
        fields: &'a [(&'a str, &'a str)],
    },
    /// Do not.
    Fail {
        /// The name typed, for the mail server's log. Left out when longer than 320 bytes.
        user: Option<&'a str>,
        /// What kind of failure; Postfix and Exim do not look at it.
        code: Option<FailCode>,
        /// Shown to the person. Control characters are left out.
        reason: Option<&'a str>,
    },
}

/// What kind of failure a FAIL is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailCode {
    /// Nobody can say now.
    TempFail,
    /// One account may not act as the other.
    AuthzFail,
    /// The account is disabled.
    UserDisabled,
    /// The password has expired.
    PassExpired,
}

impl Reply<'_> {
    /// Appends the answer's line.
    pub(super) fn encode(&self, id: u32, output: &mut Vec<u8>) {
        match *self {
            Self::Ok { user, fields } => {
                Writer::line(output, "OK").number(id).pair("user", user).fields(fields).end();
            }
            Self::Fail { user, code, reason } => Writer::line(output, "FAIL")
                .number(id)
                .optional("user", user.filter(|name| name.len() <= MAX_ECHOED_NAME_BYTES))
                .optional("code", code.map(FailCode::as_str))
                .reason(reason)
                .end(),
        }
    }
}

impl FailCode {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TempFail => "temp_fail",
            Self::AuthzFail => "authz_fail",
            Self::UserDisabled => "user_disabled",
            Self::PassExpired => "pass_expired",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::line::{fields, key_value, number, unescape};
    use super::*;

    /// What a mail server reads: the word, the number, the other fields.
    fn read(reply: &Reply<'_>, id: u32) -> (String, Option<u32>, Vec<(String, String)>) {
        let mut output = Vec::new();
        reply.encode(id, &mut output);
        let line = output.strip_suffix(b"\n").unwrap();
        assert!(!line.contains(&b'\n'), "one line");
        let text = |field: &[u8]| String::from_utf8(unescape(field).into_owned()).unwrap();
        let mut all = fields(line);
        let (word, id) = (text(all.next().unwrap()), number(all.next().unwrap()));
        let pair = |field| {
            let (key, value) = key_value(field);
            (text(key), text(value))
        };
        (word, id, all.map(pair).collect())
    }

    proptest! {
        #[test]
        fn an_ok_reads_as_it_was_said(id: u32, user: String, key in "[^=]{1,9}", value: String) {
            let reply = Reply::Ok { user: &user, fields: &[(&key, &value)] };

            let expected = vec![("user".to_owned(), user.clone()), (key.clone(), value.clone())];
            prop_assert_eq!(read(&reply, id), ("OK".to_owned(), Some(id), expected));
        }

        #[test]
        fn a_fail_reads_as_it_was_said(
            id: u32,
            user: Option<String>,
            long in 0..400_usize,
            code in prop::option::of(prop::sample::select(vec![
                FailCode::TempFail,
                FailCode::AuthzFail,
                FailCode::UserDisabled,
                FailCode::PassExpired,
            ])),
            reason: Option<String>,
        ) {
            let user = user.map(|user| user + &"x".repeat(long));
            let reply = Reply::Fail { user: user.as_deref(), code, reason: reason.as_deref() };

            let user = user.clone().filter(|user| user.len() <= MAX_ECHOED_NAME_BYTES);
            let reason = reason.as_ref().map(|reason| reason.replace(char::is_control, ""));
            let expected = [
                ("user", user),
                ("code", code.map(|code| code.as_str().to_owned())),
                ("reason", reason),
            ];
            let expected = expected.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
            let expected: Vec<_> = expected.collect();
            prop_assert_eq!(read(&reply, id), ("FAIL".to_owned(), Some(id), expected));
        }
    }
}
