//! Pieces of HTTP that several shapes read: percent-encoding, queries, Basic credentials, `X-Forwarded-For`, `Accept`.
//!
//! ```text
//! Authorization: Basic am9lOnNlY3JldA==             → joe, secret
//! X-Forwarded-For: 203.0.113.1, 192.0.2.9, 10.0.0.2  → 192.0.2.9, where 10.0.0.0/8 is trusted
//! ```

use std::net::{IpAddr, SocketAddr};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use zeroize::Zeroizing;

use crate::secret::Password;

/// Undoes percent-encoding. `+` stays what it is, and so does a `%` that no two hexadecimal digits follow.
#[must_use]
pub fn percent_decoded(text: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = (byte == b'%').then(|| after.split_at_checked(2)).flatten();
        let escaped = escaped.and_then(|(digits, after)| Some((hexadecimal(digits)?, after)));
        let (byte, after) = escaped.unwrap_or((byte, after));
        decoded.push(byte);
        rest = after;
    }
    decoded
}

fn hexadecimal(digits: &[u8]) -> Option<u8> {
    let [high, low] = digits else { return None };
    let value = |digit: u8| char::from(digit).to_digit(16);
    u8::try_from(value(*high)? * 16 + value(*low)?).ok()
}

/// The first value of a name in a query (`a=1&b=2`), decoded; `None`: the name is not there.
#[must_use]
pub fn query_value(query: Option<&str>, name: &str) -> Option<Vec<u8>> {
    let pairs = query.unwrap_or_default().split('&');
    let mut pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let (_, value) = pairs.find(|(key, _)| *key == name)?;
    Some(percent_decoded(value.as_bytes()))
}

/// What follows the scheme in an `Authorization` field. `scheme` is in lower case and ends in a blank.
#[must_use]
pub fn after_scheme<'a>(value: &'a [u8], scheme: &[u8]) -> Option<&'a [u8]> {
    // RFC 9110 §11.1: the scheme's case does not matter.
    let (given, rest) = value.split_at_checked(scheme.len())?;
    given.eq_ignore_ascii_case(scheme).then(|| rest.trim_ascii())
}

/// Name and password of `Authorization: Basic`, bytes as they came.
#[must_use]
pub fn basic_credentials(authorization: &[u8]) -> Option<(Vec<u8>, Password)> {
    let encoded = after_scheme(authorization, b"basic ")?;
    let pair = Zeroizing::new(BASE64_STANDARD.decode(encoded).ok()?);
    // RFC 7617 §2: the user-id ends at the first colon.
    let colon = memchr::memchr(b':', &pair)?;
    let (name, password) = pair.split_at_checked(colon)?;
    Some((name.to_vec(), Password::new(password.get(1..)?)))
}

/// The client behind a chain of trusted proxies: the last hop of `X-Forwarded-For` that is none of them, or the first
/// if all are. Proxies append, so that what stands further left may be the client's own invention. `fields` are the
/// values of that field in the order in which they came.
#[must_use]
pub fn forwarded_client<'a>(
    fields: impl DoubleEndedIterator<Item = &'a [u8]>,
    is_trusted: impl Fn(IpAddr) -> bool,
) -> Option<IpAddr> {
    let mut client = None;
    for hop in fields.rev().flat_map(|field| field.rsplit(|byte| *byte == b',')) {
        // Whoever wrote this hop is not understood, so nothing before it can be believed.
        let address = hop_address(hop)?;
        client = Some(address);
        if !is_trusted(address) {
            break;
        }
    }
    client
}

/// An address, with or without a port: `192.0.2.9`, `192.0.2.9:4711`, `2001:db8::9`, `[2001:db8::9]:4711`.
fn hop_address(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop.trim_ascii()).ok()?;
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse::<IpAddr>().ok();
    let address = address.or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()))?;
    Some(address.to_canonical())
}

/// Whether an `Accept` field asks for plain text.
#[must_use]
pub fn accepts_text(accept: &[u8]) -> bool {
    let ranges = accept.split(|byte| *byte == b',');
    let mut kinds = ranges.filter_map(|range| range.split(|byte| *byte == b';').next());
    kinds.any(|kind| kind.trim_ascii().eq_ignore_ascii_case(b"text/plain"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn percent_signs_are_decoded_and_nothing_else() {
        for (encoded, decoded) in [
            (&b"p%25w%20+\xc3\xbc\x7f"[..], &b"p%w +\xc3\xbc\x7f"[..]),
            (b"%00%0A%1f", b"\0\n\x1f"),
            (b"100%", b"100%"),
            (b"%2", b"%2"),
            (b"%zz%+1", b"%zz%+1"),
            (b"", b""),
        ] {
            assert_eq!(percent_decoded(encoded), decoded, "{encoded:?}");
        }
    }

    #[test]
    fn a_query_gives_its_first_value() {
        let query = Some("mode=no-auth&x&after=a%40b+c&mode=2");
        for (name, value) in [
            ("mode", Some(&b"no-auth"[..])),
            ("x", Some(b"")),
            ("after", Some(b"a@b+c")),
            ("y", None),
        ] {
            assert_eq!(query_value(query, name).as_deref(), value, "{name}");
        }
        assert_eq!(query_value(None, "mode"), None);
    }

    #[test]
    fn basic_credentials_are_bytes_cut_at_the_first_colon() {
        let given = |pair: &[u8]| format!("bAsIc   {}", BASE64_STANDARD.encode(pair));
        for (pair, name, password) in [
            (&b"joe:a:b"[..], &b"joe"[..], &b"a:b"[..]),
            (b"joe:", b"joe", b""),
            (b":\xff", b"", b"\xff"),
        ] {
            let (read, secret) = basic_credentials(given(pair).as_bytes()).unwrap();
            assert_eq!((&*read, secret.as_bytes()), (name, password));
        }
        for bad in [&b"Basic !!!"[..], b"Basic", b"Bearer am9lOnM=", b"Basic am9l"] {
            assert!(basic_credentials(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn the_client_is_the_last_hop_that_is_not_trusted() {
        for (fields, client) in [
            (&["203.0.113.1, 192.0.2.9, 10.0.0.2"][..], Some("192.0.2.9")),
            (&["203.0.113.1", "192.0.2.9,10.0.0.2"], Some("192.0.2.9")),
            (&["10.0.0.3, 10.0.0.2"], Some("10.0.0.3")),
            (&["192.0.2.9:4711"], Some("192.0.2.9")),
            (&["[2001:db8::9]:4711, 10.1.1.1"], Some("2001:db8::9")),
            (&["[2001:db8::9]"], Some("2001:db8::9")),
            (&["::ffff:192.0.2.9"], Some("192.0.2.9")),
            (&["192.0.2.9, unknown, 10.0.0.2"], None),
            (&["192.0.2.9, "], None),
            (&[], None),
        ] {
            let trusted = |address: IpAddr| address.to_string().starts_with("10.");
            let found = forwarded_client(fields.iter().map(|field| field.as_bytes()), trusted);
            assert_eq!(found, client.map(|client| client.parse().unwrap()), "{fields:?}");
        }
    }

    #[test]
    fn text_is_for_those_who_ask_for_it() {
        for (accept, asked) in [
            ("text/plain", true),
            ("application/json;q=0.5, Text/Plain;q=0.9", true),
            ("*/*", false),
            ("application/json", false),
            ("text/plainer", false),
            ("", false),
        ] {
            assert_eq!(accepts_text(accept.as_bytes()), asked, "{accept}");
        }
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(bytes: Vec<u8>) {
            let encoded: String = bytes.iter().map(|byte| format!("%{byte:02X}")).collect();
            prop_assert_eq!(percent_decoded(encoded.as_bytes()), bytes);
        }

        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>, query: String) {
            let _ = percent_decoded(&bytes);
            let _ = accepts_text(&bytes);
            let _ = query_value(Some(&query), "a");
            let _ = basic_credentials(&bytes);
            let _ = forwarded_client([&*bytes].into_iter(), |_| true);
        }
    }
}
