//! A connection of Postfix' socketmap, and any value through a reply.
#![no_main]

use gatepost_fuzz::Stream;
use gatepost_fuzz::proto::postfix::socketmap::{MAX_REQUEST_BYTES, Reply, next_request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some(stream) = Stream::new(data) else { return };
    stream.check(
        || (),
        |(), input, said| {
            loop {
                match next_request(input) {
                    Ok(Some(request)) => {
                        said.extend(format!("{request:?}\n").bytes());
                        if let Ok(key) = std::str::from_utf8(&request.key) {
                            Reply::Found(key).encode(said);
                        }
                    }
                    Ok(None) => break,
                    Err(fault) => {
                        said.extend(fault.to_string().bytes());
                        return false;
                    }
                }
            }
            assert!(input.len() <= MAX_REQUEST_BYTES + 8, "a request has its bound");
            true
        },
    );
    if let Ok(text) = std::str::from_utf8(stream.bytes) {
        for reply in [Reply::Found(text), Reply::Temp(text), Reply::Perm(text)] {
            is_one_netstring(&reply);
        }
    }
});

fn is_one_netstring(reply: &Reply<'_>) {
    let mut output = Vec::new();
    reply.encode(&mut output);
    let colon = output.iter().position(|byte| *byte == b':').unwrap();
    let length: usize = std::str::from_utf8(&output[..colon]).unwrap().parse().unwrap();
    assert_eq!((output.len(), output.last()), (colon + length + 2, Some(&b',')), "{reply:?}");
    let payload = &output[colon + 1..colon + 1 + length];
    assert!(!payload.iter().any(|byte| b"\0\r\n".contains(byte)), "{reply:?}");
}
