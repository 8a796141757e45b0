//! JSON objects whose members are strings, and strings are bytes: other servers' scripts paste into them what was typed,
//! UTF-8 or not.
//!
//! ```text
//! {"username": "joe", "password": "p\u00e4ss", "tries": 3}     asked for username, password, service:
//! username = joe · password = päss · service = nothing          (members that were not asked for are ignored)
//! ```

use std::fmt;
use std::net::IpAddr;

use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::error::Category;
use zeroize::Zeroizing;

/// A member's value; zeroed when dropped, because it may be a password.
pub type Value = Zeroizing<Vec<u8>>;

/// Why a body is not what was expected. Never holds a value of the body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not JSON.
    #[error("body is not JSON: line {line}, column {column}")]
    Syntax {
        /// From 1.
        line: usize,
        /// From 0.
        column: usize,
    },
    /// JSON, but not an object.
    #[error("body is not a JSON object")]
    NotAnObject,
    /// A member that must be there is not.
    #[error("member {0} is missing")]
    Missing(&'static str),
    /// A member is not a string.
    #[error("member {0} is not a string")]
    NotText(&'static str),
    /// A member is there twice: which one counts must not depend on who reads it.
    #[error("member {0} is there more than once")]
    Duplicate(&'static str),
    /// A member is not UTF-8 where it must be.
    #[error("member {0} is not UTF-8")]
    NotUtf8(&'static str),
    /// A member is no IP address.
    #[error("member {0} is not an IP address")]
    NotAnAddress(&'static str),
}

/// Reads an object and gives the values of these members, in this order; `null` counts as absent. The caller has bounded
/// the body's length.
///
/// # Errors
/// Names what is wrong, and the member where one is.
pub fn strings<const N: usize>(
    body: &[u8],
    members: &[&'static str; N],
) -> Result<[Option<Value>; N], JsonError> {
    let mut draft = Draft::new(members);
    let mut json = serde_json::Deserializer::from_slice(body);
    draft
        .deserialize(&mut json)
        .and_then(|()| json.end())
        .map_err(|error| draft.explain(&error))?;
    Ok(draft.values)
}

/// The value of a member that must be there.
///
/// # Errors
/// It is not.
pub fn required(member: &'static str, value: Option<Value>) -> Result<Vec<u8>, JsonError> {
    let mut value = value.ok_or(JsonError::Missing(member))?;
    Ok(std::mem::take(&mut *value))
}

/// A member that is text; "" counts as absent.
///
/// # Errors
/// It is not UTF-8.
pub fn optional_text(
    member: &'static str,
    value: Option<Value>,
) -> Result<Option<Box<str>>, JsonError> {
    let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(None) };
    let text = std::str::from_utf8(&value).map_err(|_| JsonError::NotUtf8(member))?;
    Ok(Some(text.into()))
}

/// A member that is an IP address; "" counts as absent.
///
/// # Errors
/// It is something else.
pub fn optional_address(
    member: &'static str,
    value: Option<Value>,
) -> Result<Option<IpAddr>, JsonError> {
    let Some(text) = optional_text(member, value)? else { return Ok(None) };
    let address = text.parse::<IpAddr>().map_err(|_| JsonError::NotAnAddress(member))?;
    Ok(Some(address.to_canonical()))
}

/// What was read so far.
struct Draft<'m, const N: usize> {
    members: &'m [&'static str; N],
    values: [Option<Value>; N],
    /// The members met so far, also those that are `null`.
    met: [bool; N],
    /// The object has begun.
    entered: bool,
    /// The member whose value is being read.
    current: Option<&'static str>,
    duplicate: Option<&'static str>,
}

impl<'m, const N: usize> Draft<'m, N> {
    fn new(members: &'m [&'static str; N]) -> Self {
        Self {
            members,
            values: [const { None }; N],
            met: [false; N],
            entered: false,
            current: None,
            duplicate: None,
        }
    }

    /// serde's own messages quote values, which may be the password; ours name the member.
    fn explain(&self, error: &serde_json::Error) -> JsonError {
        if let Some(member) = self.duplicate {
            return JsonError::Duplicate(member);
        }
        match (error.classify(), self.current) {
            (Category::Data, Some(member)) => JsonError::NotText(member),
            (Category::Data, None) if !self.entered => JsonError::NotAnObject,
            _ => JsonError::Syntax { line: error.line(), column: error.column() },
        }
    }
}

impl<'de, const N: usize> DeserializeSeed<'de> for &mut Draft<'_, N> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, const N: usize> Visitor<'de> for &mut Draft<'_, N> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        self.entered = true;
        while let Some(Name(name)) = members.next_key()? {
            let known = self.members.iter().zip(&mut self.values).zip(&mut self.met);
            let Some(((member, value), met)) =
                known.into_iter().find(|((member, _), _)| member.as_bytes() == name)
            else {
                members.next_value::<IgnoredAny>()?;
                continue;
            };
            if std::mem::replace(met, true) {
                self.duplicate = Some(member);
                return Err(A::Error::custom("duplicate member"));
            }
            self.current = Some(member);
            *value = members.next_value::<Option<Text>>()?.map(|text| text.0);
            self.current = None;
        }
        Ok(())
    }
}

/// A member's name as bytes.
#[derive(PartialEq)]
struct Name(Vec<u8>);

/// A string's bytes, UTF-8 or not.
struct Text(Value);

struct Bytes;

impl Visitor<'_> for Bytes {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        Ok(Zeroizing::new(bytes.to_vec()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Zeroizing::new(text.as_bytes().to_vec()))
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(Bytes).map(Self)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(Bytes).map(|bytes| Self(bytes.to_vec()))
    }
}
