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
