//! The message by which Dovecot's sockets are handed over, and the daemon's answer.
#![no_main]

use gatepost_fuzz::proto::handover::{Answer, HandedKind, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(Some(message)) = Message::parse(data)
        && let Ok(bytes) = message.encode()
    {
        assert_eq!(Message::parse(&bytes), Ok(Some(message)));
        // What begins a message is no fault, and no message yet.
        for end in 0..bytes.len() {
            assert_eq!(Message::parse(&bytes[..end]), Ok(None), "{end}");
        }
    }
    if let Ok(Some(answer)) = Answer::parse(data) {
        let again = Answer::parse(&answer.encode()).unwrap().unwrap();
        assert_eq!(again.encode(), answer.encode());
    }
    if let Ok(settings) = std::str::from_utf8(data) {
        let kind = HandedKind::from_settings(settings);
        assert_eq!(kind.as_str().parse(), Ok(kind));
    }
});
