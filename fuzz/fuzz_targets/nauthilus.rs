//! Nauthilus' two ways to ask: a body, and header fields.
#![no_main]

use gatepost_fuzz::Fields;
use gatepost_fuzz::proto::nauthilus::{Mode, OkAnswer, parse_headers, parse_json};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    let mode = if choice & 1 == 0 { Mode::Login } else { Mode::NoAuth };
    let fields = Fields::new(data);
    let outcomes = [parse_json(data, mode), parse_headers(|name| fields.get(name), mode)];
    for outcome in outcomes {
        match outcome {
            Ok(request) => {
                assert!(mode == Mode::NoAuth || !request.password.as_bytes().is_empty());
                let account = String::from_utf8_lossy(&request.username);
                let fields = [(account.to_string(), account.to_string())];
                let answer = OkAnswer::new(&account, 1, &fields).encode();
                let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
                assert_eq!(answer["attributes"]["account"][0], *account);
            }
            Err(error) => assert!(error.to_string().len() < 100, "an error never quotes a value"),
        }
    }
});
