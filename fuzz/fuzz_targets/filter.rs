//! Search filters as an administrator writes them, and logins that are filled in.
#![no_main]

use gatepost_fuzz::filter::{Filter, LoginFilter, escape};
use gatepost_fuzz::identity::{Case, Login, LoginRules};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // A filter, a line end, a name.
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (filter, name) = text.split_once('\n').unwrap_or((text, "joe@example.org"));
    match Filter::parse(filter) {
        Ok(parsed) => assert_eq!(Filter::parse(parsed.as_str()), Ok(parsed)),
        Err(error) => assert!(error.column <= filter.chars().count() + 1),
    }
    let rules = LoginRules {
        default_domain: None,
        case: Case::Keep,
        separator: "".into(),
        alias_domains: Default::default(),
    };
    if let (Ok(template), Ok(login)) =
        (LoginFilter::parse(filter), Login::parse(name.as_bytes(), &rules))
    {
        // Nobody's name changes what is asked.
        let filled = template.fill(&login);
        assert_eq!(Filter::parse(filled.as_str()), Ok(filled.clone()));
        let brackets = |text: &str| text.matches(['(', ')', '*']).count();
        let plain = Login::parse(b"joe@example.org", &rules).unwrap();
        assert_eq!(brackets(filled.as_str()), brackets(template.fill(&plain).as_str()));
    }
    assert!(!escape(name).contains(['(', ')', '*', '\0']));
});
