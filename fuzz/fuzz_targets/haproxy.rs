//! The PROXY header ahead of a connection.
#![no_main]

use gatepost_fuzz::proto::haproxy::{Header, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let whole = parse(data);
    // What its beginnings say is "more", until one says what the whole says.
    let mut beginnings = (0..data.len()).map(|end| parse(&data[..end]));
    if let Some(first) = beginnings.find(|beginning| !matches!(beginning, Ok(None))) {
        assert_eq!(first, whole);
    }
    if let Ok(Some((Header::Client(client), length))) = whole {
        assert!(length <= data.len());
        let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
        let (ip, port) = (client.ip(), client.port());
        let line = format!("PROXY {family} {ip} {ip} {port} 25\r\n");
        assert_eq!(parse(line.as_bytes()), Ok(Some((Header::Client(client), line.len()))));
    }
});
