//! The shape of the configuration, taken from the structs: which keys there are, their docs and defaults. One tree
//! serves unknown keys, environment names, `show` and the generated files, so none of them can drift.

use documented::DocumentedFields;
use figment::value::{Dict, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::directory::{Auth, Directory, Identity, Lazy, Map, Rule, Search, TemplateChoice};
use super::{Config, domain, listen, login, master, memory, node, store, template, throttle};

/// A table with known keys.
pub(super) struct Section {
    pub(super) fields: Vec<Field>,
    probe: fn(Dict) -> Result<(), Box<figment::Error>>,
}

/// One key of a table.
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) doc: &'static str,
    pub(super) kind: Kind,
}

/// What stands behind a key.
pub(super) enum Kind {
    /// Tables by name, all of one shape.
    Named(Section),
    /// A secret: literal, `_file` or `env:`; no part of the serialised form.
    Secret,
    /// A table.
    Section(Section),
    /// A value, and its default.
    Setting(serde_json::Value),
}

impl Section {
    fn of<T: Default + Serialize + DeserializeOwned + DocumentedFields>() -> Self {
        let defaults = serde_json::to_value(T::default()).unwrap_or_default();
        let fields = T::FIELD_NAMES.iter().zip(T::FIELD_DOCS).map(|(name, doc)| {
            // A field that is not serialised is a secret; nothing else is skipped.
            let kind = match defaults.get(name) {
                Some(default) => Kind::Setting(default.clone()),
                None => Kind::Secret,
            };
            Field { name, doc, kind }
        });
        Self { fields: fields.collect(), probe: probe::<T> }
    }

    fn with(mut self, name: &str, kind: Kind) -> Self {
        if let Some(field) = self.fields.iter_mut().find(|field| field.name == name) {
            field.kind = kind;
        }
        self
    }

    /// The field of that name.
    pub(super) fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// Whether the section can be read with just this key set.
    pub(super) fn probe(&self, key: &str, value: &Value) -> Result<(), Box<figment::Error>> {
        (self.probe)(Dict::from([(key.to_owned(), value.clone())]))
    }

    /// Every key that may be written here.
    pub(super) fn keys(&self) -> impl Iterator<Item = String> {
        self.fields.iter().flat_map(|field| {
            let file = matches!(field.kind, Kind::Secret).then(|| format!("{}_file", field.name));
            std::iter::once(field.name.to_owned()).chain(file)
        })
    }
}

fn probe<T: DeserializeOwned>(dict: Dict) -> Result<(), Box<figment::Error>> {
    Value::from(dict).deserialize::<T>().map(drop).map_err(Box::new)
}

/// The whole configuration's shape.
pub(super) fn schema() -> Section {
    let template_choice =
        Section::of::<TemplateChoice>().with("rule", Kind::Named(Section::of::<Rule>()));
    let directory = Section::of::<Directory>()
        .with("search", Kind::Named(Section::of::<Search>()))
        .with("identity", Kind::Section(Section::of::<Identity>()))
        .with("auth", Kind::Section(Section::of::<Auth>()))
        .with("lazy", Kind::Section(Section::of::<Lazy>()))
        .with("map", Kind::Section(Section::of::<Map>()))
        .with("template", Kind::Section(template_choice));
    let door = Section::of::<listen::Listen>()
        .with("tls", Kind::Section(Section::of::<listen::DoorTls>()))
        .with("upstream", Kind::Section(Section::of::<listen::Upstream>()));
    let shield = Section::of::<throttle::Throttle>()
        .with("rule", Kind::Named(Section::of::<throttle::Rule>()));
    Section::of::<Config>()
        .with("node", Kind::Section(Section::of::<node::Node>()))
        .with("store", Kind::Section(Section::of::<store::Store>()))
        .with("listen", Kind::Named(door))
        .with("login", Kind::Section(Section::of::<login::Login>()))
        .with("master", Kind::Named(Section::of::<master::Master>()))
        .with("memory", Kind::Section(Section::of::<memory::Memory>()))
        .with("shared", Kind::Section(Section::of::<throttle::Shared>()))
        .with("throttle", Kind::Section(shield))
        .with("log", Kind::Section(Section::of::<node::Log>()))
        .with("domain", Kind::Named(Section::of::<domain::Domain>()))
        .with("template", Kind::Named(Section::of::<template::Template>()))
        .with("directory", Kind::Named(directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(section: &Section, at: &str, found: &mut Vec<String>) {
        for field in &section.fields {
            let key = format!("{at}{}", field.name);
            match &field.kind {
                Kind::Named(inner) | Kind::Section(inner) => {
                    secrets(inner, &format!("{key}."), found);
                }
                Kind::Secret => found.push(key),
                Kind::Setting(_) => {}
            }
        }
    }

    #[test]
    fn the_secrets_are_those_that_the_loader_knows_how_to_place() {
        let mut found = Vec::new();
        secrets(&schema(), "", &mut found);
        assert_eq!(
            found,
            ["listen.token", "listen.password_key", "shared.url", "directory.bind_password"]
        );
    }
}
