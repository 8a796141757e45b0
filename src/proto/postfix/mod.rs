//! What Postfix asks beside passwords: look-up tables ([`socketmap`]) and its policy server ([`policy`]).

pub mod policy;
pub mod socketmap;

/// Text that may stand in a reply: printable ASCII on one line, cut at `limit` bytes. SMTP replies are ASCII, and a
/// line end would end the reply before its time.
fn one_line(text: &str, limit: usize) -> impl Iterator<Item = u8> {
    let letter = |letter: char| {
        let byte = u8::try_from(letter).ok().filter(|byte| (b' '..=b'~').contains(byte));
        byte.unwrap_or(b'?')
    };
    text.chars().map(letter).take(limit)
}
