//! The bodies of the auth-policy protocol, and where its commands are named.
#![no_main]

use gatepost_fuzz::proto::auth_policy::{
    Attribute, Key, PolicyError, named, parse_entry, parse_key, parse_tuple,
};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        let (path, query) = text.split_once('?').map_or((text, None), |(a, b)| (a, Some(b)));
        let _ = named(path, query);
    }
    match parse_tuple(data) {
        Ok(tuple) => {
            // Said again, it is the same.
            let attribute = |value: &Attribute| match value {
                Attribute::One(text) => json!(text),
                Attribute::Many(texts) => json!(texts),
            };
            let attrs: serde_json::Map<String, Value> =
                tuple.attrs.iter().map(|(name, value)| (name.clone(), attribute(value))).collect();
            let again = json!({
                "login": tuple.login, "remote": tuple.remote, "pwhash": tuple.pwhash.expose(),
                "success": tuple.success, "policy_reject": tuple.policy_reject, "device_id": tuple.device_id,
                "device_attrs": tuple.device_attrs, "protocol": tuple.protocol, "tls": tuple.tls,
                "session_id": tuple.session_id, "attrs": attrs, "ja3": tuple.ja3,
            });
            let again = parse_tuple(again.to_string().as_bytes()).unwrap();
            let known = (tuple.fail_type, tuple.t);
            let mut expected = tuple;
            (expected.fail_type, expected.t) = (again.fail_type, again.t);
            assert_eq!(again, expected, "{known:?}");
        }
        Err(error) => check(&error),
    }
    match parse_entry(data) {
        Ok(entry) => {
            assert_eq!(parse_key(data), Ok(entry.key.clone()));
            let (field, bits) = match &entry.key {
                Key::Netmask(ip, bits) => (ip.to_string(), Some(*bits)),
                Key::Ip(ip) | Key::IpLogin(ip, _) | Key::IpJa3(ip, _) => (ip.to_string(), None),
                Key::Login(text) | Key::Ja3(text) => (text.clone(), None),
            };
            assert!(!field.is_empty() && bits.is_none_or(|bits| bits <= 128));
        }
        Err(error) => check(&error),
    }
});

fn check(error: &PolicyError) {
    assert!([400, 500].contains(&error.status()));
    assert!(error.to_string().len() < 100, "an error never quotes the body");
}
