//! A connection of Dovecot 2.3's dict proxy, and any text through an answer.
#![no_main]

use std::sync::LazyLock;

use gatepost_fuzz::Stream;
use gatepost_fuzz::proto::dovecot::dict::{DictReply, DictSession, MAX_LINE_BYTES, PasswordKey};
use libfuzzer_sys::fuzz_target;

/// As in the dialogues.
const KEY_DIGITS: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
static KEY: LazyLock<PasswordKey> = LazyLock::new(|| PasswordKey::parse(KEY_DIGITS).unwrap());

fuzz_target!(|data: &[u8]| {
    let Some(stream) = Stream::new(data) else { return };
    stream.check(DictSession::new, |session, input, said| {
        loop {
            match session.next_command(input, &KEY) {
                Ok(Some(command)) => said.extend(format!("{command:?}\n").bytes()),
                Ok(None) => break,
                Err(error) => {
                    said.extend(error.to_string().bytes());
                    return false;
                }
            }
        }
        assert!(input.len() <= MAX_LINE_BYTES, "a line has its bound");
        true
    });
    if let Ok(text) = std::str::from_utf8(stream.bytes) {
        let members = [("user", text), (text, "x")];
        for reply in
            [DictReply::Found(&members), DictReply::Failed(text), DictReply::ListItem(text)]
        {
            let mut output = Vec::new();
            reply.encode(&mut output);
            let end = output.iter().position(|byte| *byte == b'\n');
            assert!(end == Some(output.len() - 1) && end > Some(0), "{reply:?}");
        }
    }
});
