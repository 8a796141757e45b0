//! Queries, Basic credentials, and who stands behind a chain of proxies.
#![no_main]

use std::hint::black_box;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use gatepost_fuzz::proto::http::{
    accepts_text, after_scheme, basic_credentials, forwarded_client, percent_decoded, query_value,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    assert!(percent_decoded(data).len() <= data.len());
    black_box((accepts_text(data), after_scheme(data, b"bearer "), basic_credentials(data)));
    if let Ok(query) = std::str::from_utf8(data) {
        black_box(query_value(Some(query), "user"));
    }
    let pair = [b"joe:", data].concat();
    let basic = format!("Basic {}", BASE64_STANDARD.encode(pair));
    let (name, password) = basic_credentials(basic.as_bytes()).unwrap();
    assert_eq!((&*name, password.as_bytes()), (&b"joe"[..], data));

    // However the hops are spread over fields, the last that is not trusted is the client.
    let is_trusted = |ip: std::net::IpAddr| ip.is_loopback();
    let lines = data.split(|byte| *byte == b'\n');
    let joined = data.iter().map(|byte| if *byte == b'\n' { b',' } else { *byte });
    let joined: Vec<u8> = joined.collect();
    assert_eq!(
        forwarded_client(lines, is_trusted),
        forwarded_client([&*joined].into_iter(), is_trusted)
    );
});
