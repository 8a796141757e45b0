//! On which line a key of a TOML file stands, for problems that name it.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Key path → line, counted from 1. Empty for what is no TOML.
pub(super) fn key_lines(text: &str) -> BTreeMap<Vec<String>, usize> {
    let mut lines = BTreeMap::new();
    if let Ok(Keys(keys)) = toml::from_str(text) {
        collect(text, keys, &mut Vec::new(), &mut lines);
    }
    lines
}

/// The line of a byte.
pub(super) fn line_at(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

fn collect(
    text: &str,
    keys: Vec<(toml::Spanned<String>, Keys)>,
    path: &mut Vec<String>,
    lines: &mut BTreeMap<Vec<String>, usize>,
) {
    for (key, below) in keys {
        let line = line_at(text, key.span().start);
        path.push(key.into_inner());
        lines.insert(path.clone(), line);
        collect(text, below.0, path, lines);
        path.pop();
    }
}

/// The keys of a table and below; of anything else, none.
struct Keys(Vec<(toml::Spanned<String>, Keys)>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(KeysVisitor)
    }
}

struct KeysVisitor;

impl<'de> Visitor<'de> for KeysVisitor {
    type Value = Keys;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
        let mut keys = Vec::new();
        // A date looks like a table to serde, one without keys of ours.
        while let Ok(Some(entry)) = map.next_entry() {
            keys.push(entry);
        }
        Ok(Keys(keys))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Keys, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Keys(Vec::new()))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Keys, E> {
        Ok(Keys(Vec::new()))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Keys, E> {
        Ok(Keys(Vec::new()))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Keys, E> {
        Ok(Keys(Vec::new()))
    }

    fn visit_str<E>(self, _: &str) -> Result<Keys, E> {
        Ok(Keys(Vec::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_the_line_it_stands_on() {
        let text = "[a]\nb = 1\nc = { d = true }\n\n[a.\"x.y\"]\ne = [\n 1]\nf = 1979-05-27\n";
        let lines = key_lines(text);
        for (path, line) in [
            (vec!["a"], 1),
            (vec!["a", "b"], 2),
            (vec!["a", "c", "d"], 3),
            (vec!["a", "x.y"], 5),
            (vec!["a", "x.y", "e"], 6),
        ] {
            let path: Vec<String> = path.into_iter().map(String::from).collect();
            assert_eq!(lines.get(&path), Some(&line), "{path:?} in {lines:?}");
        }
    }
}
