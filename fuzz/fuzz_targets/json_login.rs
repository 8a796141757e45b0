//! The body of `POST /v1/login`.
#![no_main]

use gatepost_fuzz::proto::json_login::{VerdictAnswer, encode_verdict, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match parse(data) {
        Ok(request) => {
            let username = std::str::from_utf8(&request.username);
            let password = std::str::from_utf8(request.password.as_bytes());
            if let (Ok(username), Ok(password)) = (username, password) {
                let body = serde_json::json!({"username": username, "password": password});
                let again = parse(body.to_string().as_bytes()).unwrap();
                assert_eq!(again.username, request.username);
                assert_eq!(again.password.as_bytes(), request.password.as_bytes());
                let answer = VerdictAnswer::Refuse { reason: username };
                let answer = encode_verdict(&answer);
                let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
                assert_eq!(answer["reason"], username);
            }
        }
        Err(error) => assert!(error.to_string().len() < 100, "an error never quotes the body"),
    }
});
