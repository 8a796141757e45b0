//! One source of settings (a file, or the environment) held against the schema: unknown keys and wrong types become
//! problems, secrets are taken out, and what remains can be read for sure. Pure: no file, no environment.

use std::collections::{BTreeMap, BTreeSet};

use figment::value::{Dict, Empty, Tag, Value};

use super::problem::{Origin, Problem, dotted};
use super::schema::{Field, Kind, Section};

/// A source of settings as it was written.
pub(super) struct Layer {
    pub(super) settings: Dict,
    pub(super) place: Place,
}

/// Where a layer's keys stand.
pub(super) enum Place {
    /// The environment: key path → name of the variable.
    Environment(BTreeMap<Vec<String>, String>),
    /// A file: key path → line.
    File(std::path::PathBuf, BTreeMap<Vec<String>, usize>),
}

impl Place {
    /// Where `path` came from; a key without a line of its own has that of the nearest one above.
    pub(super) fn origin(&self, path: &[String]) -> Origin {
        let above = (0..=path.len()).rev().filter_map(|length| path.get(..length));
        match self {
            Self::File(file, lines) => {
                let line = above.into_iter().find_map(|key| lines.get(key).copied());
                Origin::File(file.clone(), line)
            }
            Self::Environment(variables) => above
                .into_iter()
                .find_map(|key| variables.get(key))
                .or_else(|| {
                    variables.iter().find(|(key, _)| key.starts_with(path)).map(|(_, name)| name)
                })
                .map_or(Origin::Default, |name| Origin::Environment(name.clone())),
        }
    }
}

/// How a secret is given.
pub(super) enum GivenSecret {
    /// `KEY_file = "path"`.
    File(String),
    /// `KEY = "…"`: itself, or `env:NAME`.
    Text(crate::secret::Secret),
}

/// What the layers give together.
#[derive(Default)]
pub(super) struct Sorted {
    /// Key path of each setting and each table → where it was last set.
    pub(super) origins: BTreeMap<Vec<String>, Origin>,
    /// Key path of a secret → how it is given.
    pub(super) secrets: BTreeMap<Vec<String>, GivenSecret>,
    /// What was wrong so far.
    pub(super) problems: Vec<Problem>,
}

/// Sorts one layer: returns the settings that can be read.
pub(super) fn sort(section: &Section, layer: Layer, sorted: &mut Sorted) -> Dict {
    Sorter { place: &layer.place, path: Vec::new(), secrets: BTreeSet::new(), sorted }
        .table(section, layer.settings)
}

struct Sorter<'a> {
    place: &'a Place,
    path: Vec<String>,
    /// The secrets that this layer gave.
    secrets: BTreeSet<Vec<String>>,
    sorted: &'a mut Sorted,
}

impl Sorter<'_> {
    fn table(&mut self, section: &Section, table: Dict) -> Dict {
        let mut good = Dict::new();
        for (key, value) in table {
            self.path.push(key);
            if let Some(value) = self.key(section, value) {
                good.insert(self.path.last().cloned().unwrap_or_default(), value);
            }
            self.path.pop();
        }
        good
    }

    fn key(&mut self, section: &Section, value: Value) -> Option<Value> {
        let name = self.path.last().cloned().unwrap_or_default();
        match section.field(&name) {
            Some(Field { kind: Kind::Setting(default), .. }) => {
                self.setting(section, &name, value, default.is_null())
            }
            Some(Field { kind: Kind::Section(inner), .. }) => {
                self.tables(value).map(|table| Value::from(self.table(inner, table)))
            }
            Some(Field { kind: Kind::Named(inner), .. }) => {
                self.tables(value).map(|tables| Value::from(self.named(inner, tables)))
            }
            Some(Field { kind: Kind::Secret, .. }) => {
                self.secret(&name, value, GivenSecret::text);
                None
            }
            None => {
                let base = name.strip_suffix("_file").and_then(|base| section.field(base));
                match base {
                    Some(Field { name, kind: Kind::Secret, .. }) => {
                        self.secret(name, value, GivenSecret::File);
                    }
                    _ => self.unknown(section, &name),
                }
                None
            }
        }
    }

    fn named(&mut self, section: &Section, tables: Dict) -> Dict {
        let mut good = Dict::new();
        for (name, value) in tables {
            self.path.push(name.clone());
            if let Some(table) = self.tables(value) {
                good.insert(name, self.table(section, table).into());
            }
            self.path.pop();
        }
        good
    }

    /// The value as a table, or a problem.
    fn tables(&mut self, value: Value) -> Option<Dict> {
        let origin = self.place.origin(&self.path);
        match value {
            Value::Dict(_, table) => {
                self.sorted.origins.entry(self.path.clone()).or_insert(origin);
                Some(table)
            }
            _ => {
                let problem = Problem::new(dotted(&self.path), &origin, "not a table");
                self.sorted.problems.push(problem.expecting(format!("[{}]", dotted(&self.path))));
                None
            }
        }
    }

    fn setting(
        &mut self,
        section: &Section,
        name: &str,
        value: Value,
        is_optional: bool,
    ) -> Option<Value> {
        self.note_origin();
        if is_optional && value.as_str() == Some("") {
            return Some(Value::Empty(Tag::Default, Empty::None));
        }
        let candidates = match (&value, self.place) {
            (Value::String(_, text), Place::Environment(_)) => lenient(text),
            _ => vec![value],
        };
        let mut first_error = None;
        for candidate in candidates {
            match section.probe(name, &candidate) {
                Ok(()) => return Some(candidate),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        if let Some(error) = first_error {
            self.bad_value(name, &error);
        }
        None
    }

    /// figment's own text would show the value, so only its kind and path are used.
    fn bad_value(&mut self, name: &str, error: &figment::Error) {
        let mut path = self.path.clone();
        path.extend(error.path.iter().skip(1).cloned());
        let (message, expected) = explain(&error.kind, name);
        let origin = self.place.origin(&path);
        self.sorted
            .problems
            .push(Problem::new(dotted(&path), &origin, message).expecting(expected));
    }

    /// One layer gives a secret once: which of two would count is not for us to guess.
    fn secret(&mut self, base: &str, value: Value, given: fn(String) -> GivenSecret) {
        self.note_origin();
        let written = dotted(&self.path);
        let origin = self.place.origin(&self.path);
        let Value::String(_, text) = value else {
            let problem = Problem::new(written, &origin, "not a text");
            self.sorted.problems.push(problem.expecting("a text in quotes"));
            return;
        };
        let mut path = self.path.clone();
        path.pop();
        path.push(base.to_owned());
        if text.is_empty() {
            // An empty text takes back what an earlier file said.
            self.sorted.secrets.remove(&path);
        } else if !self.secrets.insert(path.clone()) {
            let problem = Problem::new(written, &origin, format!("{base} is set as well"));
            self.sorted.problems.push(problem.expecting("one of both"));
        } else {
            self.sorted.secrets.insert(path, given(text));
        }
    }

    fn unknown(&mut self, section: &Section, name: &str) {
        let hint = nearest(name, section.keys())
            .map_or(String::new(), |near| format!(", did you mean {near}?"));
        let origin = self.place.origin(&self.path);
        let problem = Problem::new(dotted(&self.path), &origin, format!("no such key{hint}"));
        self.sorted.problems.push(problem);
    }

    fn note_origin(&mut self) {
        let origin = self.place.origin(&self.path);
        self.sorted.origins.insert(self.path.clone(), origin);
    }
}

impl GivenSecret {
    fn text(text: String) -> Self {
        Self::Text(crate::secret::Secret::new(text))
    }
}

/// What a text of the environment may stand for, the text itself first: "12345" and "true" stay text where text is
/// wanted, and blanks stay.
fn lenient(text: &str) -> Vec<Value> {
    let mut candidates = vec![Value::from(text)];
    let trimmed = text.trim();
    if let Ok(table) = toml::from_str::<Dict>(&format!("value = {trimmed}")) {
        candidates.extend(table.into_values());
    }
    if let Some(list) = trimmed.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let items = list.split(',').map(str::trim).filter(|item| !item.is_empty());
        candidates.push(Value::from(items.map(Value::from).collect::<Vec<_>>()));
    }
    candidates
}

/// A message and what is expected, without the value.
fn explain(kind: &figment::error::Kind, name: &str) -> (String, String) {
    use figment::error::{Actual, Kind};
    let wrong_type = |actual: &Actual| {
        let is = match actual {
            Actual::Bool(_) => "true or false",
            Actual::Unsigned(_) | Actual::Signed(_) | Actual::Float(_) => "a number",
            Actual::Char(_) | Actual::Str(_) => "a text",
            Actual::Seq => "a list",
            Actual::Map => "a table",
            _ => "something else",
        };
        format!("{is} does not fit")
    };
    match kind {
        Kind::InvalidType(actual, expected) => (wrong_type(actual), plain(expected)),
        Kind::InvalidValue(_, expected) => ("value out of range".into(), plain(expected)),
        Kind::InvalidLength(_, expected) => ("wrong number of values".into(), plain(expected)),
        Kind::UnknownVariant(given, known) => {
            let hint = nearest(given, known.iter().copied())
                .map_or(String::new(), |near| format!(", did you mean {near}?"));
            (format!("not a known word{hint}"), known.join(", "))
        }
        Kind::UnknownField(given, known) => {
            let hint = nearest(given, known.iter().copied())
                .map_or(String::new(), |near| format!(", did you mean {near}?"));
            (format!("no such key{hint}"), known.join(", "))
        }
        Kind::ISizeOutOfRange(_) | Kind::USizeOutOfRange(_) => {
            ("value out of range".into(), String::new())
        }
        Kind::Message(text) => {
            let expected = text.strip_prefix("expected ").unwrap_or(well_known(name));
            ("cannot be understood".into(), expected.to_owned())
        }
        _ => ("cannot be understood".into(), String::new()),
    }
}

/// Rust's names of types in an operator's words.
fn plain(expected: &str) -> String {
    match expected {
        "a boolean" => "true or false".into(),
        "a sequence" => "a list".into(),
        "a string" | "path string" => "a text in quotes".into(),
        "a map" => "a table".into(),
        "u16" => "a whole number from 0 to 65535".into(),
        "u32" | "u64" | "usize" => "a whole number, 0 or more".into(),
        other if other.starts_with("struct ") => "a table".into(),
        other => other.to_owned(),
    }
}

/// For types whose own errors do not say what they want.
fn well_known(name: &str) -> &'static str {
    match name {
        "address" => "an address and a port such as 127.0.0.1:8420 or [::1]:8420",
        "allow" | "trusted" => "nets such as 192.0.2.0/24",
        _ => "",
    }
}

/// The name that was probably meant.
pub(super) fn nearest<S: Into<String>>(
    given: &str,
    names: impl Iterator<Item = S>,
) -> Option<String> {
    let given = given.to_ascii_lowercase().replace('-', "_");
    names
        .map(Into::into)
        .map(|name: String| (strsim::damerau_levenshtein(&given, &name.replace('-', "_")), name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 4)
        .min()
        .map(|(_, name)| name)
}
