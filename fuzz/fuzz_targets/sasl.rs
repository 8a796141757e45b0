//! SASL exchanges: any messages, and any names and passwords through an exchange.
#![no_main]

use gatepost_fuzz::proto::sasl::{Credentials, Exchange, Mechanism, Step};
use libfuzzer_sys::fuzz_target;
use zeroize::Zeroizing;

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    let mechanism = Mechanism::ALL[usize::from(*choice) % Mechanism::ALL.len()];
    let mut messages = data.split(|byte| *byte == b'\n');
    let initial = if choice & 0x80 == 0 { None } else { messages.next() };
    let mut step = Exchange::start(mechanism, initial.map(message));
    // No mechanism of ours asks more than twice.
    for _ in 0..2 {
        step = match (step, messages.next()) {
            (Step::Prompt(exchange, _), Some(message)) => exchange.proceed(self::message(message)),
            (step, _) => step,
        };
    }
    assert!(!matches!(step, Step::Prompt(..)) || messages.next().is_none());
    if let Step::Complete(given) = step {
        comes_through(&given);
    }
});

fn message(bytes: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(bytes.to_vec())
}

fn comes_through(given: &Credentials) {
    let password = given.password.as_bytes();
    let message = [&*given.authzid, &*given.authcid, password].join(&0);
    if [&given.authzid, &given.authcid].iter().all(|name| !name.contains(&0)) {
        let Step::Complete(again) =
            Exchange::start(Mechanism::Plain, Some(self::message(&message)))
        else {
            panic!("not complete");
        };
        assert_eq!((&again.authzid, &again.authcid), (&given.authzid, &given.authcid));
        assert_eq!(again.password.as_bytes(), password);
    }
}
