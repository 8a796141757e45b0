//! A connection of Postfix' policy delegation, and any text through an answer.
#![no_main]

use gatepost_fuzz::Stream;
use gatepost_fuzz::proto::postfix::policy::{Action, MAX_REQUEST_BYTES, Session};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some(stream) = Stream::new(data) else { return };
    stream.check(Session::default, |session, input, said| {
        loop {
            match session.next_request(input) {
                Ok(Some(request)) => said.extend(format!("{request:?}\n").bytes()),
                Ok(None) => break,
                Err(fault) => {
                    said.extend(fault.to_string().bytes());
                    return false;
                }
            }
        }
        assert!(input.len() <= MAX_REQUEST_BYTES, "a request has its bound");
        true
    });
    if let Ok(text) = std::str::from_utf8(stream.bytes) {
        for action in [Action::DeferIfPermit(text), Action::Refuse { code: "553 5.7.1", text }] {
            let mut output = Vec::new();
            action.encode(&mut output);
            let line = output.strip_prefix(b"action=").and_then(|it| it.strip_suffix(b"\n\n"));
            assert!(!line.unwrap().iter().any(|byte| b"\0\r\n".contains(byte)), "{action:?}");
        }
    }
});
