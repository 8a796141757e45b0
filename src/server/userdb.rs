//! A mailbox as Dovecot's userdb fields, in the spellings of 2.3 and 2.4 together: each version ignores the other's.

use crate::store::{Place, Settings};

/// The fields. A home stands as it is: neither version expands variables in it (a test delivers mail to a name with
/// `%` on both). Settings it does expand, so templates double the `%` of what they fill into `extra` (login.md N-5).
pub(super) fn fields(place: &Place, settings: &Settings) -> Vec<(String, String)> {
    let mut fields = vec![
        ("uid".to_owned(), place.uid.to_string()),
        ("gid".to_owned(), place.gid.to_string()),
        ("home".to_owned(), place.home.to_string()),
    ];
    let quota = settings.quota;
    if quota > 0 {
        fields.push(("quota_rule".to_owned(), format!("*:bytes={quota}")));
        fields.push(("quota_storage_size".to_owned(), format!("{quota}B")));
    }
    for (key, value) in &settings.extra {
        // What an administrator wrote in a template is meant for Dovecot as it stands, variables included.
        fields.retain(|(other, _)| **other != **key);
        fields.push((key.to_string(), value.to_string()));
    }
    fields
}
