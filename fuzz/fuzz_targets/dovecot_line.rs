//! Escaping of fields in Dovecot's lines.
#![no_main]

use gatepost_fuzz::proto::dovecot::line::{escape, unescape};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut field = Vec::new();
    escape(data, &mut field);
    assert!(!field.iter().any(|byte| b"\0\t\r\n".contains(byte)));
    assert_eq!(*unescape(&field), *data);
    assert!(unescape(data).len() <= data.len());
});
