//! The effective configuration with the origin of each value; secrets are masked.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::load::Loaded;
use super::problem::{Origin, dotted};
use super::schema::{Kind, Section, schema};

/// What stands for a secret that is set; `-` for one that is not.
const MASK: &str = "********";

/// One effective setting.
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) value: Value,
    is_secret: bool,
}

/// Every effective key with value and origin, one a line, as TOML with dotted keys.
#[must_use]
pub fn show(loaded: &Loaded) -> String {
    let mut shown = String::new();
    for entry in entries(&loaded.config) {
        let (value, origin) = value_and_origin(loaded, &entry);
        let setting = format!("{} = {}", entry.key, toml_value(&value));
        let _ = writeln!(shown, "{setting:<60} # {origin}");
    }
    shown
}

/// The same as JSON: `{"store.url": {"value": …, "origin": "default"}, …}`.
#[must_use]
pub fn show_json(loaded: &Loaded) -> Value {
    let entries = entries(&loaded.config);
    let members = entries.into_iter().map(|entry| {
        let (value, origin) = value_and_origin(loaded, &entry);
        (entry.key, json!({ "value": value, "origin": origin.to_string() }))
    });
    Value::Object(members.collect::<Map<_, _>>())
}

fn value_and_origin(loaded: &Loaded, entry: &Entry) -> (Value, Origin) {
    let file = entry.is_secret.then(|| format!("{}_file", entry.key));
    let origin = loaded.origins.get(&entry.key).or_else(|| loaded.origins.get(&file?));
    let value = loaded.presets.get(&entry.key).filter(|_| origin == Some(&Origin::Preset));
    let value = value.unwrap_or(&entry.value);
    let value = if value.is_null() { json!("") } else { value.clone() };
    (value, origin.cloned().unwrap_or(Origin::Default))
}

/// Every setting in the order of the structs.
pub(super) fn entries(config: &super::Config) -> Vec<Entry> {
    let mut walk = Walk { config, path: Vec::new(), entries: Vec::new() };
    walk.section(&schema(), &serde_json::to_value(config).unwrap_or_default());
    walk.entries
}

struct Walk<'a> {
    config: &'a super::Config,
    path: Vec<String>,
    entries: Vec<Entry>,
}

impl Walk<'_> {
    fn section(&mut self, section: &Section, table: &Value) {
        for field in &section.fields {
            self.path.push(field.name.to_owned());
            let value = table.get(field.name).unwrap_or(&Value::Null);
            match &field.kind {
                Kind::Section(inner) => self.section(inner, value),
                Kind::Named(inner) => self.named(inner, value),
                Kind::Secret => self.secret(),
                Kind::Setting(_) => self.entry(value.clone()),
            }
            self.path.pop();
        }
    }

    fn named(&mut self, section: &Section, tables: &Value) {
        for (name, table) in tables.as_object().into_iter().flatten() {
            self.path.push(name.clone());
            self.section(section, table);
            self.path.pop();
        }
    }

    fn entry(&mut self, value: Value) {
        self.entries.push(Entry { key: dotted(&self.path), value, is_secret: false });
    }

    fn secret(&mut self) {
        let is_set = match self.path.as_slice() {
            [section, name, key] if section == "listen" => {
                let door = self.config.listen.get(name);
                door.is_some_and(|door| match key.as_str() {
                    "password_key" => !door.password_key.is_empty(),
                    _ => !door.token.is_empty(),
                })
            }
            [section, _] if section == "shared" => !self.config.shared.url.is_empty(),
            [_, name, _] => {
                let directory = self.config.directory.get(name);
                directory.is_some_and(|directory| !directory.bind_password.is_empty())
            }
            _ => false,
        };
        let value = json!(if is_set { MASK } else { "-" });
        self.entries.push(Entry { key: dotted(&self.path), value, is_secret: true });
    }
}

/// A value as TOML writes it, on one line.
pub(super) fn toml_value(value: &Value) -> String {
    match value {
        Value::Null => "\"\"".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        // JSON's escapes are TOML's.
        Value::String(_) => value.to_string(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(toml_value).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(members) if members.is_empty() => "{}".to_owned(),
        Value::Object(members) => {
            let member =
                |(key, value)| format!("{} = {}", dotted::<&String>(&[key]), toml_value(value));
            let members: Vec<String> = members.iter().map(member).collect();
            format!("{{ {} }}", members.join(", "))
        }
    }
}
