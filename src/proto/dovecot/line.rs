//! Lines of tab-separated, tab-escaped fields: what Dovecot's protocols, and ours with gatepost-checkpassword, have in
//! common.

use std::borrow::Cow;
use std::ops::Deref;

use bytes::{Buf as _, BytesMut};
use memchr::{memchr, memchr_iter, memrchr};
use zeroize::Zeroize;

const TAB: u8 = b'\t';
const ESCAPE: u8 = 0x01;

/// Appends a value with the bytes that would break a line escaped: NUL, 0x01, TAB, CR and LF become 0x01 followed by
/// `0`, `1`, `t`, `r` and `n`.
pub fn escape(value: &[u8], output: &mut Vec<u8>) {
    let breaks = |byte: u8| matches!(byte, 0 | ESCAPE | TAB | b'\r' | b'\n');
    // A fold that looks at every byte is done sixteen at a time.
    if !value.iter().fold(false, |any, byte| any | breaks(*byte)) {
        output.extend_from_slice(value);
        return;
    }
    for &byte in value {
        let letter = match byte {
            0 => b'0',
            ESCAPE => b'1',
            TAB => b't',
            b'\r' => b'r',
            b'\n' => b'n',
            plain => {
                output.push(plain);
                continue;
            }
        };
        output.extend_from_slice(&[ESCAPE, letter]);
    }
}

/// Undoes [`escape`]. 0x01 before any other byte stands for that byte; 0x01 at the end stands for nothing.
#[must_use]
pub fn unescape(field: &[u8]) -> Cow<'_, [u8]> {
    if memchr(ESCAPE, field).is_none() {
        return Cow::Borrowed(field);
    }
    let mut value = Vec::with_capacity(field.len());
    let mut bytes = field.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte != ESCAPE {
            value.push(byte);
            continue;
        }
        match bytes.next() {
            Some(b'0') => value.push(0),
            Some(b'1') => value.push(ESCAPE),
            Some(b't') => value.push(TAB),
            Some(b'r') => value.push(b'\r'),
            Some(b'n') => value.push(b'\n'),
            Some(other) => value.push(other),
            None => {}
        }
    }
    Cow::Owned(value)
}

/// The fields of a line, still escaped.
pub(in crate::proto) fn fields(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut ends = memchr_iter(TAB, line);
    let mut start = Some(0);
    std::iter::from_fn(move || {
        let from = start?;
        let end = ends.next();
        start = end.map(|end| end + 1);
        line.get(from..end.unwrap_or(line.len()))
    })
}

/// Splits `key=value` at the first `=`; a bare flag has an empty value. The value is still escaped.
pub(in crate::proto) fn key_value(field: &[u8]) -> (&[u8], &[u8]) {
    // Keys are short: to begin a search of many bytes at a time costs more than to look at each.
    let at = field.iter().position(|byte| *byte == b'=');
    match at.and_then(|at| field.split_at_checked(at)) {
        Some((key, value)) => (key, value.strip_prefix(b"=").unwrap_or(value)),
        None => (field, b""),
    }
}

/// A decimal number without sign or blanks.
pub(in crate::proto) fn number(field: &[u8]) -> Option<u32> {
    if !field.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Unescapes text for people and logs: at most `limit` bytes of it, with anything that is not UTF-8 replaced.
pub(in crate::proto) fn text(field: &[u8], limit: usize) -> Box<str> {
    let value = unescape(field);
    let mut text = String::from_utf8_lossy(&value).into_owned();
    text.truncate(text.floor_char_boundary(limit));
    text.into_boxed_str()
}

/// Finds the lines in a stream that arrives in pieces.
#[derive(Debug)]
pub(in crate::proto) struct Lines {
    limit: usize,
    /// So many bytes of the input are known to hold no LF, so that a line that comes byte by byte is looked at once.
    scanned: usize,
}

impl Lines {
    /// Lines of at most `limit` bytes, the LF not counted.
    pub(in crate::proto) fn new(limit: usize) -> Self {
        Self { limit, scanned: 0 }
    }

    /// The first complete line, left in the input.
    pub(in crate::proto) fn peek<'i>(
        &mut self,
        input: &'i [u8],
    ) -> Result<Option<&'i [u8]>, LineTooLong> {
        let start = self.scanned.min(input.len());
        let end = input.get(start..).and_then(|rest| memchr(b'\n', rest)).map(|at| start + at);
        self.scanned = end.unwrap_or(input.len());
        if self.scanned > self.limit {
            return Err(LineTooLong { limit: self.limit });
        }
        Ok(end.and_then(|end| input.get(..end)))
    }

    /// The first complete line. It is taken off the input when it is dropped.
    pub(in crate::proto) fn next<'i>(
        &mut self,
        input: &'i mut BytesMut,
    ) -> Result<Option<Line<'i>>, LineTooLong> {
        let Some(length) = self.peek(input)?.map(<[u8]>::len) else { return Ok(None) };
        self.scanned = 0;
        Ok(Some(Line { input, length, secret: 0 }))
    }
}

/// One line without its LF, still in the input. It may hold a password, so it is zeroed when dropped.
pub(in crate::proto) struct Line<'i> {
    input: &'i mut BytesMut,
    length: usize,
    /// Where the part begins that is zeroed. Zeroing goes byte by byte and costs more than reading.
    secret: usize,
}

impl Line<'_> {
    /// All but the last field is no secret.
    pub(in crate::proto) fn only_last_field_is_secret(&mut self) {
        self.secret = memrchr(TAB, self).unwrap_or_default();
    }
}

impl Deref for Line<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.input.get(..self.length).unwrap_or_default()
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if let Some(secret) = self.input.get_mut(self.secret..self.length) {
            secret.zeroize();
        }
        self.input.advance(self.length + 1);
    }
}

/// The peer sent more than a line may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line of more than {limit} bytes")]
pub struct LineTooLong {
    /// The most bytes a line may hold.
    pub limit: usize,
}

/// Writes one line.
pub(in crate::proto) struct Writer<'o>(&'o mut Vec<u8>);

impl<'o> Writer<'o> {
    /// Begins a line with its command.
    pub(in crate::proto) fn line(output: &'o mut Vec<u8>, command: &str) -> Self {
        output.extend_from_slice(command.as_bytes());
        Self(output)
    }

    /// A numeric field.
    pub(in crate::proto) fn number(self, number: impl Into<u64>) -> Self {
        self.0.push(TAB);
        crate::decimal::write(number.into(), self.0);
        self
    }

    /// A field of bytes as lower-case hexadecimal digits.
    pub(in crate::proto) fn hex(self, bytes: &[u8]) -> Self {
        self.0.push(TAB);
        let digit = |half: u8| if half < 10 { b'0' + half } else { b'a' + half - 10 };
        self.0.extend(bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]));
        self
    }

    /// A field that is a bare value.
    pub(in crate::proto) fn value(self, value: &str) -> Self {
        self.0.push(TAB);
        escape(value.as_bytes(), self.0);
        self
    }

    /// A field `key=value`.
    pub(in crate::proto) fn pair(self, key: &str, value: &str) -> Self {
        self.bytes(key, value.as_bytes())
    }

    /// A field `key=value` whose value need not be text.
    pub(in crate::proto) fn bytes(self, key: &str, value: &[u8]) -> Self {
        self.0.push(TAB);
        escape(key.as_bytes(), self.0);
        self.0.push(b'=');
        escape(value, self.0);
        self
    }

    /// A field `key=value` if there is a value.
    pub(in crate::proto) fn optional(self, key: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.pair(key, value),
            None => self,
        }
    }

    /// Many fields; one with an empty value becomes a bare flag, because Dovecot compares flags whole (`nologin`).
    pub(in crate::proto) fn fields(self, fields: &[(&str, &str)]) -> Self {
        fields.iter().fold(self, |line, (key, value)| {
            if value.is_empty() { line.value(key) } else { line.pair(key, value) }
        })
    }

    /// `reason=` for people, without the control bytes that Postfix and Exim would pass on as they are.
    pub(in crate::proto) fn reason(self, reason: Option<&str>) -> Self {
        let Some(reason) = reason else { return self };
        if reason.contains(char::is_control) {
            return self.pair("reason", &reason.replace(char::is_control, ""));
        }
        self.pair("reason", reason)
    }

    /// Ends the line.
    pub(in crate::proto) fn end(self) {
        self.0.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn escaped(value: &[u8]) -> Vec<u8> {
        let mut output = Vec::new();
        escape(value, &mut output);
        output
    }

    #[test]
    fn the_five_bytes_are_escaped_as_dovecot_does() {
        assert_eq!(escaped(b"a\0\x01\t\r\nb"), b"a\x010\x011\x01t\x01r\x01nb");
    }

    #[test]
    fn unknown_escapes_stand_for_their_byte() {
        assert_eq!(*unescape(b"\x01x\x01l"), *b"xl");
        assert_eq!(*unescape(b"end\x01"), *b"end");
        assert!(matches!(unescape(b"plain"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_field_is_split_at_its_first_equals_sign() {
        assert_eq!(key_value(b"resp=a=="), (&b"resp"[..], &b"a=="[..]));
        assert_eq!(key_value(b"secured"), (&b"secured"[..], &b""[..]));
        assert_eq!(key_value(b"=x"), (&b""[..], &b"x"[..]));
    }

    #[test]
    fn numbers_are_plain_decimals_of_32_bits() {
        assert_eq!(number(b"4294967295"), Some(u32::MAX));
        for bad in [&b""[..], b"+1", b"-1", b" 1", b"1 ", b"0x1", b"4294967296", b"\xff"] {
            assert_eq!(number(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_line_at_the_limit_is_taken_and_one_above_is_not() {
        let mut input = BytesMut::from(&b"12345678\n123456789\n"[..]);
        let mut lines = Lines::new(8);

        assert_eq!(&*lines.next(&mut input).unwrap().unwrap(), b"12345678");
        assert_eq!(lines.next(&mut input).err(), Some(LineTooLong { limit: 8 }));
    }

    #[test]
    fn an_unfinished_line_above_the_limit_is_an_error_before_its_end() {
        let mut lines = Lines::new(8);

        assert!(lines.peek(b"12345678").unwrap().is_none());
        assert!(lines.peek(b"123456789").is_err());
    }

    #[test]
    fn reasons_lose_their_control_bytes() {
        let mut output = Vec::new();

        Writer::line(&mut output, "FAIL").number(1_u32).reason(Some("a\tb\r\nc\u{1}\u{7f}")).end();

        assert_eq!(output, b"FAIL\t1\treason=abc\n");
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        assert_eq!(&*text("aä".as_bytes(), 2), "a");
        assert_eq!(&*text(b"\xff", 8), "\u{fffd}");
    }

    proptest! {
        #[test]
        fn escaping_round_trips(value: Vec<u8>) {
            let escaped = escaped(&value);
            prop_assert!(!escaped.iter().any(|byte| b"\0\t\r\n".contains(byte)));
            prop_assert_eq!(&*unescape(&escaped), &*value);
        }

        #[test]
        fn anything_can_be_unescaped_and_never_grows(field: Vec<u8>) {
            prop_assert!(unescape(&field).len() <= field.len());
        }

        #[test]
        fn what_is_written_reads_back(id: u32, user: String, key in "[^=]{1,9}", value in ".+") {
            let mut output = Vec::new();
            let line = Writer::line(&mut output, "USER").number(id).value(&user);
            line.fields(&[(&key, &value), (&key, "")]).end();

            let mut input = BytesMut::from(&*output);
            let line = Lines::new(usize::MAX).next(&mut input).unwrap().unwrap();
            let fields: Vec<_> = fields(&line).collect();
            let [command, number_field, user_field, pair, flag] = *fields else {
                return Err(TestCaseError::fail(format!("{fields:?}")));
            };
            prop_assert_eq!((command, number(number_field)), (&b"USER"[..], Some(id)));
            prop_assert_eq!(&*unescape(user_field), user.as_bytes());
            let (pair_key, pair_value) = key_value(pair);
            prop_assert_eq!(&*unescape(pair_key), key.as_bytes());
            prop_assert_eq!(&*text(pair_value, usize::MAX), &*value);
            prop_assert_eq!(&*unescape(flag), key.as_bytes());
        }

        #[test]
        fn numbers_read_back_and_nothing_else_is_one(id: u32, field: Vec<u8>) {
            prop_assert_eq!(number(id.to_string().as_bytes()), Some(id));
            let digits = !field.is_empty() && field.iter().all(u8::is_ascii_digit);
            prop_assert!(number(&field).is_none() || digits);
        }

        #[test]
        fn lines_do_not_depend_on_the_pieces(stream in "[ab\n]{0,60}", cut in 1usize..9) {
            let mut whole = BytesMut::from(stream.as_bytes());
            let mut all = Vec::new();
            let mut lines = Lines::new(100);
            while let Some(line) = lines.next(&mut whole).unwrap() {
                all.push(line.to_vec());
            }

            let (mut input, mut lines, mut piecewise) = (BytesMut::new(), Lines::new(100), Vec::new());
            for piece in stream.as_bytes().chunks(cut) {
                input.extend_from_slice(piece);
                while let Some(line) = lines.next(&mut input).unwrap() {
                    piecewise.push(line.to_vec());
                }
            }
            prop_assert_eq!(all, piecewise);
            prop_assert_eq!(whole, input);
        }
    }
}
