//! The header fields of nginx' auth_http.
#![no_main]

use gatepost_fuzz::Fields;
use gatepost_fuzz::proto::nginx::{Question, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let fields = Fields::new(data);
    if let Ok(request) = parse(|name| fields.get(name))
        && let Question::Login { user, password } = &request.question
    {
        // Escaped as nginx does it, or more, they come through.
        let (user_again, password_again) = (escaped(user), escaped(password.as_bytes()));
        let again = parse(|name| match name {
            "auth-user" => Some(&user_again),
            "auth-pass" => Some(&password_again),
            name => fields.get(name),
        });
        let Ok(Question::Login { user: again, password: password_again }) =
            again.map(|request| request.question)
        else {
            panic!("no login");
        };
        assert_eq!((&again, password_again.as_bytes()), (user, password.as_bytes()));
    }
});

fn escaped(text: &[u8]) -> Vec<u8> {
    text.iter().flat_map(|byte| format!("%{byte:02X}").into_bytes()).collect()
}
