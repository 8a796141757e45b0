//! Units of the configuration: spans of time ("15m"), sizes ("5 GiB"), file modes ("0660"), rates ("3/10m", "100/h").

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A span of time: `250ms`, `8s`, `15m`, `12h`, `30d`; `0` is no time at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A size in bytes: `0`, `512`, `100 KiB`, `512 MiB`, `5 GiB`, `1 TiB`; blanks do not matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A unix file mode, written in octal: `"0660"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileMode(pub u32);

/// So many in so much time: `3/10m`, `100/h`. Neither is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub count: u32,
    /// In which time.
    pub window: Span,
}

/// A rate that is not exceeded; empty: there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimit(pub Option<Rate>);

/// A value that its unit does not allow; says what is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {0}")]
pub struct UnitError(&'static str);

const SPAN: UnitError = UnitError("a span of time such as 250ms, 8s, 15m, 12h or 30d");
const SIZE: UnitError = UnitError("a size such as 0, 100 KiB, 512 MiB or 5 GiB");
const MODE: UnitError = UnitError("a file mode in octal such as \"0660\"");

const RATE: UnitError = UnitError("a number and a span of time such as \"3/10m\"");
const LIMIT: UnitError =
    UnitError("a number and a span of time such as \"100/h\", or \"\" for no limit");

impl Span {
    /// Whole seconds.
    #[must_use]
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (number, unit) = number_and_unit(text).ok_or(SPAN)?;
        let millis = match unit {
            "" if number == 0 => 0,
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(SPAN),
        };
        number.checked_mul(millis).map(|all| Self(Duration::from_millis(all))).ok_or(SPAN)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
        match units.into_iter().find(|(size, _)| millis > 0 && millis.is_multiple_of(*size)) {
            Some((size, unit)) => write!(formatter, "{}{unit}", millis / size),
            None if millis == 0 => formatter.write_str("0s"),
            None => write!(formatter, "{millis}ms"),
        }
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (number, unit) = number_and_unit(text).ok_or(SIZE)?;
        let shift = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kib" => 10,
            "m" | "mib" => 20,
            "g" | "gib" => 30,
            "t" | "tib" => 40,
            _ => return Err(SIZE),
        };
        number.checked_mul(1 << shift).map(Self).ok_or(SIZE)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        match units
            .into_iter()
            .find(|(shift, _)| self.0 > 0 && self.0.is_multiple_of(1_u64 << shift))
        {
            Some((shift, unit)) => write!(formatter, "{} {unit}", self.0 >> shift),
            None => write!(formatter, "{}", self.0),
        }
    }
}

impl FromStr for FileMode {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777).map(Self).ok_or(MODE)
    }
}

impl FromStr for Rate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (count, window) = text.split_once('/').ok_or(RATE)?;
        let count = count.trim().parse().map_err(|_| RATE)?;
        let window = window.trim();
        // "h" alone is one hour.
        let is_one = window.starts_with(|c: char| c.is_ascii_alphabetic());
        let window = if is_one { format!("1{window}").parse() } else { window.parse::<Span>() };
        let window = window.map_err(|_| RATE)?;
        if count == 0 || window.0.is_zero() {
            return Err(RATE);
        }
        Ok(Self { count, window })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.count, self.window)
    }
}

impl FromStr for RateLimit {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        if text.trim().is_empty() {
            return Ok(Self(None));
        }
        text.parse().map(|rate| Self(Some(rate))).map_err(|_| LIMIT)
    }
}

impl fmt::Display for RateLimit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |rate| rate.fmt(formatter))
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:04o}", self.0)
    }
}

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(end)?;
    Some((number.parse().ok()?, unit.trim()))
}

macro_rules! as_text {
    ($($unit:ident $expected:ident),+) => {$(
        impl Serialize for $unit {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $unit {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                // A bare number is read too: the environment turns "0" into one.
                #[derive(Deserialize)]
                #[serde(untagged)]
                enum Raw { Text(String), Number(u64) }
                let text = match Raw::deserialize(deserializer).map_err(|_| serde::de::Error::custom($expected))? {
                    Raw::Text(text) => text,
                    Raw::Number(number) => number.to_string(),
                };
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}
as_text!(Span SPAN, ByteSize SIZE, FileMode MODE, Rate RATE, RateLimit LIMIT);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_and_shown() {
        for (text, shown) in
            [("8s", "8s"), ("90s", "90s"), ("3600s", "1h"), ("1500ms", "1500ms"), ("0", "0s")]
        {
            assert_eq!(text.parse::<Span>().map(|span| span.to_string()), Ok(shown.to_owned()));
        }
        for (text, bytes, shown) in [
            ("5 GiB", 5 << 30, "5 GiB"),
            ("0", 0, "0"),
            ("1500", 1500, "1500"),
            ("1k", 1024, "1 KiB"),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)));
            assert_eq!(ByteSize(bytes).to_string(), shown);
        }
        assert_eq!("0660".parse(), Ok(FileMode(0o660)));
        let rate = "3/10m".parse::<Rate>().unwrap();
        assert_eq!(
            (rate.count, rate.window, rate.to_string()),
            (3, Span::seconds(600), "3/10m".into())
        );
        assert_eq!("100/h".parse::<Rate>().unwrap().to_string(), "100/1h");
        for (text, shown) in [("", ""), (" ", ""), ("100/h", "100/1h"), ("9/2d", "9/2d")] {
            assert_eq!(text.parse::<RateLimit>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_unit_is_refused() {
        for text in ["", "8", "s", "8 weeks", "-1s", "99999999999999999d"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
        for text in ["", "GiB", "5 parsecs", "99999999999 TiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
        for text in ["", "3", "0/10m", "3/0s", "-1/10m", "3/", "/10m", "3/10m/1"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
        for text in ["100", "0/h", "100/hour", "-"] {
            assert!(text.parse::<RateLimit>().is_err(), "{text}");
        }
        for text in ["", "9", "01000"] {
            assert!(text.parse::<FileMode>().is_err(), "{text}");
        }
    }
}
