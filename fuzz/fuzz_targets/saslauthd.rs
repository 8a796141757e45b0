//! A question of Cyrus SASL's, and the answer.
#![no_main]

use gatepost_fuzz::proto::saslauthd::{Reply, Request, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // Its beginnings are unfinished until the four fields are there, and then these stay. The fifth is not waited for.
    let whole = parse(data).map(|request| request.as_ref().map(four));
    let mut beginnings = (0..data.len()).map(|end| parse(&data[..end]));
    if let Some(first) = beginnings.find(|beginning| !matches!(beginning, Ok(None))) {
        assert_eq!(first.map(|request| request.as_ref().map(four)), whole);
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let mut output = Vec::new();
        Reply::No(text).encode(&mut output);
        let (length, text) = output.split_first_chunk::<2>().unwrap();
        assert_eq!(usize::from(u16::from_be_bytes(*length)), text.len());
        assert!(text.starts_with(b"NO") && text.len() < 1024);
    }
});

fn four(request: &Request) -> [Vec<u8>; 4] {
    let Request { login, password, service, realm, .. } = request.clone();
    [login, password.as_bytes().to_vec(), service, realm]
}
