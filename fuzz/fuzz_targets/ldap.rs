//! What an LDAP server sends: messages in a stream, results with controls, entries.
#![no_main]

use bytes::Buf;
use gatepost_fuzz::Stream;
use gatepost_fuzz::answer::{Item, Message, decode, intermediate, whole_message};
use libfuzzer_sys::fuzz_target;

const LIMIT: usize = 64 * 1024;
const POLICY: &str = "1.3.6.1.4.1.42.2.27.8.5.1";

fuzz_target!(|data: &[u8]| {
    let Some(stream) = Stream::new(data) else { return };
    stream.check(
        || (),
        |(), input, said| {
            loop {
                match whole_message(input, LIMIT) {
                    Ok(None) => return true,
                    Ok(Some(place)) => {
                        assert!(place.end <= input.len() && place.len() <= LIMIT);
                        hear(&input[place.clone()], said);
                        input.advance(place.end);
                    }
                    Err(error) => {
                        said.extend(error.to_string().bytes());
                        return false;
                    }
                }
            }
        },
    );
});

fn hear(content: &[u8], said: &mut Vec<u8>) {
    let Some(message) = Message::parse(content) else { return };
    if let Some(outcome) = message.result(message.id, message.tag) {
        said.extend(
            format!("{} {} {:?}", outcome.code, outcome.words(), outcome.control(POLICY)).bytes(),
        );
    }
    said.extend(intermediate(message.operation).unwrap_or_default());
    if let Ok(Item::Entry(entry)) = decode(message.operation) {
        // Every value is found again under its name, whatever its case.
        for (name, values) in entry.attributes.iter() {
            assert!(entry.attributes.values(&name.to_ascii_uppercase()).eq(values.clone()));
        }
        said.extend(format!("{} {:?}", entry.dn, entry.attributes).bytes());
    }
}
