//! The names of services as mail servers say them.

use std::borrow::Cow;

use super::dovecot::line;

/// The names that mail servers really say; any other is a text of its own.
const COMMON: &[&str] = &[
    "imap",
    "smtp",
    "pop3",
    "submission",
    "sieve",
    "managesieve",
    "lmtp",
    "doveadm",
    "submissions",
    "http",
    "dav",
];

/// A service's name, still escaped, as text for people and logs: at most `limit` bytes of it.
pub(super) fn name(field: &[u8], limit: usize) -> Cow<'static, str> {
    let common = COMMON.iter().copied().find(|common| common.as_bytes() == field);
    common.map_or_else(|| Cow::Owned(line::text(field, limit).into()), Cow::Borrowed)
}
