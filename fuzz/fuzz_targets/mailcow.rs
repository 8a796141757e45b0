//! The body that mailcow's Lua script posts.
#![no_main]

use gatepost_fuzz::proto::mailcow::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match parse(data) {
        Ok(request) => {
            let username = std::str::from_utf8(&request.username);
            let password = std::str::from_utf8(request.password.as_bytes());
            if let (Ok(username), Ok(password)) = (username, password) {
                let body = serde_json::json!({
                    "username": username, "password": password, "real_rip": "", "service": request.service,
                });
                let again = parse(body.to_string().as_bytes()).unwrap();
                assert_eq!(
                    (again.username, again.service),
                    (request.username.clone(), request.service)
                );
                assert_eq!(again.password.as_bytes(), password.as_bytes());
            }
        }
        Err(error) => assert!(error.to_string().len() < 100, "an error never quotes the body"),
    }
});
