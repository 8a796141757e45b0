//! The source of one mailbox field: `["displayName", "cn"]`, or a table
//! `{ attr = ["quota"], transform = "bytes:KiB", policy = "force" }`.

use std::fmt;
use std::str::FromStr;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One field's source: a list of attributes, or a table with `attr`, `transform`, `policy`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// Attributes, first non-empty wins.
    pub attr: Vec<String>,
    /// `lower`, `trim`, `strip_prefix:X`, `bytes:KiB` (also B, MiB, GiB, TiB); none: as it is.
    pub transform: Option<Transform>,
    /// What becomes of a value the mailbox already has.
    pub policy: Policy,
}

/// What is done to an attribute's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transform {
    /// A number of units of that many bytes.
    Bytes(u64),
    /// To lower case.
    Lower,
    /// Cut off the front.
    StripPrefix(String),
    /// Blanks at both ends go.
    Trim,
}

/// What becomes of a value the mailbox already has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Written at creation only.
    CreateOnly,
    /// The directory wins.
    #[default]
    Force,
    /// Written only while the mailbox has none.
    Keep,
    /// Of sets: added, never removed.
    Merge,
}

/// No transform of ours; says what is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected lower, trim, strip_prefix:X or bytes:UNIT with B, KiB, MiB, GiB or TiB")]
pub struct TransformError;

const UNITS: [(&str, u64); 5] =
    [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

impl FromStr for Transform {
    type Err = TransformError;

    fn from_str(text: &str) -> Result<Self, TransformError> {
        match text.split_once(':') {
            None if text == "lower" => Ok(Self::Lower),
            None if text == "trim" => Ok(Self::Trim),
            Some(("strip_prefix", prefix)) if !prefix.is_empty() => {
                Ok(Self::StripPrefix(prefix.to_owned()))
            }
            Some(("bytes", unit)) => {
                let known = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit));
                known.map(|(_, bytes)| Self::Bytes(*bytes)).ok_or(TransformError)
            }
            _ => Err(TransformError),
        }
    }
}

impl fmt::Display for Transform {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => {
                let unit =
                    UNITS.iter().find(|(_, size)| size == bytes).map_or("B", |(name, _)| name);
                write!(formatter, "bytes:{unit}")
            }
            Self::Lower => formatter.write_str("lower"),
            Self::StripPrefix(prefix) => write!(formatter, "strip_prefix:{prefix}"),
            Self::Trim => formatter.write_str("trim"),
        }
    }
}

impl Serialize for Transform {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Transform {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// The written form with all its words.
#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Table {
    attr: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transform: Option<Transform>,
    policy: Policy,
}

impl Serialize for Mapping {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.transform.is_none() && self.policy == Policy::default() {
            return self.attr.serialize(serializer);
        }
        let Self { attr, transform, policy } = self.clone();
        Table { attr, transform, policy }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Mapping {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MappingVisitor)
    }
}

struct MappingVisitor;

impl<'de> Visitor<'de> for MappingVisitor {
    type Value = Mapping;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of attributes, or a table with attr, transform and policy")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Mapping, A::Error> {
        let mut attr = Vec::new();
        while let Some(name) = items.next_element()? {
            attr.push(name);
        }
        Ok(Mapping { attr, ..Mapping::default() })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Mapping, A::Error> {
        let Table { attr, transform, policy } =
            Table::deserialize(MapAccessDeserializer::new(map))?;
        Ok(Mapping { attr, transform, policy })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_a_list_or_a_table_and_is_written_as_it_is_read() {
        for json in [
            r#"["displayName","cn"]"#,
            r#"{"attr":["quota"],"transform":"bytes:KiB","policy":"force"}"#,
            r#"{"attr":["mail"],"transform":"strip_prefix:smtp:","policy":"keep"}"#,
            r#"{"attr":["lang"],"policy":"create-only"}"#,
        ] {
            let mapping: Mapping = serde_json::from_str(json).unwrap();
            assert_eq!(serde_json::to_string(&mapping).unwrap(), json);
        }
    }

    #[test]
    fn what_is_no_transform_is_refused() {
        for text in ["", "upper", "bytes", "bytes:parsec", "strip_prefix:", "strip_prefix"] {
            assert_eq!(text.parse::<Transform>(), Err(TransformError), "{text}");
        }
        assert_eq!("bytes:mib".parse(), Ok(Transform::Bytes(1 << 20)));
    }
}
