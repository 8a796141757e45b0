//! Names typed at a login, addresses and domains: what was parsed is in its one form.
#![no_main]

use std::collections::BTreeMap;

use gatepost_fuzz::identity::{Address, Case, Domain, Login, LoginRules};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((choice, typed)) = data.split_first() else { return };
    let domain = |text| Domain::parse(text).unwrap();
    let rules = LoginRules {
        default_domain: (choice & 1 == 0).then(|| domain("example.org")),
        case: if choice & 2 == 0 { Case::Fold } else { Case::Keep },
        separator: if choice & 4 == 0 { "+" } else { "" }.into(),
        alias_domains: BTreeMap::from([(domain("other.example"), domain("example.org"))]),
    };
    if let Ok(login) = Login::parse(typed, &rules) {
        let address = login.address.as_str();
        assert!(address.len() <= 320 && !address.chars().any(char::is_control));
        assert_eq!(Address::parse(address, rules.case).as_ref(), Ok(&login.address));
        let again = Login::parse(address.as_bytes(), &rules).unwrap();
        assert_eq!(again.address, login.address);
    }
    if let Ok(text) = std::str::from_utf8(typed)
        && let Ok(domain) = Domain::parse(text)
    {
        assert_eq!(Domain::parse(domain.as_str()), Ok(domain));
    }
});
