//! Decimal numbers without the cost of formatting: answers and the journal are full of them.

/// Appends a number without leading zeros.
pub(crate) fn write(value: u64, output: &mut Vec<u8>) {
    output.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Appends the last `width` digits of a number.
pub(crate) fn write_digits(mut value: u64, width: usize, output: &mut Vec<u8>) {
    let start = output.len();
    output.resize(start + width, b'0');
    for digit in output.iter_mut().skip(start).rev() {
        *digit += u8::try_from(value % 10).unwrap_or_default();
        value /= 10;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_are_written_as_the_library_writes_them(value: u64) {
            for value in [value, value % 1000, 0, u64::MAX] {
                let mut output = b"x".to_vec();
                write(value, &mut output);
                prop_assert_eq!(output, format!("x{value}").into_bytes());
            }
        }
    }
}
