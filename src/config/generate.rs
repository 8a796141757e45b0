//! The files that are made from the structs: `config/gatepost.toml` and `docs/CONFIGURATION.md`. A test compares both
//! with what stands in the tree; `GATEPOST_BLESS=1 cargo test config` writes them anew.

use std::fmt::Write;

use serde_json::Value;

use super::problem::dotted;
use super::schema::{Field, Kind, Section, schema};
use super::show::toml_value;

const WIDTH: usize = 100;

/// What the sample tables hold beside defaults. The first table of a kind is shown with every key, others with these.
const SAMPLE: &str = r#"
[listen.dovecot]
protocol = "dovecot"
path = "/run/gatepost/dovecot"

[listen.postfix]
protocol = "dovecot-auth"
path = "/run/gatepost/auth"
group = "postfix"

[listen.web]
protocol = "http"
address = "127.0.0.1:8420"
serve = ["login", "health", "metrics"]

[domain."corp.example"]

[template.standard]
quota = "5 GiB"

[directory.corp]
domains = ["corp.example"]
hosts = ["ldap1.corp.example", "ldap2.corp.example"]
bind_dn = "cn=gatepost,ou=services,dc=corp,dc=example"
bind_password_file = "/etc/gatepost/corp.password"

[directory.corp.search.people]
base = "ou=people,dc=corp,dc=example"
filter = "(objectClass=inetOrgPerson)"

[directory.corp.template]
attribute = "employeeType"
default = "standard"

[directory.corp.template.rule.staff]
value = "staff"
template = "standard"
"#;

const TOML_HEAD: &str = "\
# Every setting of Gatepost with its default. Made from the source (docs/CONFIGURATION.md, too).
#
# `# text` explains; `#key = value` and `#[table]` are not in use. The tables with a name, such as
# listen.dovecot and directory.corp, are samples: take the mark away and put your own values in.
#
# conf.d/*.toml next to this file is merged over it in name order, then variables such as
# GATEPOST__STORE__URL. A secret is KEY = \"text\", KEY = \"env:NAME\" or KEY_file = \"path\".
";

const MANUAL_HEAD: &str = "\
# Configuration

Made from the source: the text is the doc comment of each setting. The same in TOML, ready to edit: `config/gatepost.toml`;
complete small files: `config/examples/`.

- **Files.** The main file (TOML), then `conf.d/*.toml` next to it in name order. What comes later wins, key by key;
  everything repeatable is a table with a name, so merging never drops a door or a rule. Lists are replaced as a whole.
- **Environment.** `GATEPOST__STORE__URL` sets `store.url`: names are split at `__`, case does not matter, and `-` and `.`
  of a table's name are written `_`. Values stand as they are, blanks included; lists are written `[a, b]`.
- **Secrets.** `bind_password`, `token`, `password_key` and `shared.url` may be a literal, `KEY_file = \"path\"` (one newline at the end is cut), or
  `KEY = \"env:NAME\"`. They are never shown: `gatepost config show` prints `********`, or `-` if none is set.
- **Mistakes.** `gatepost config check` lists all of them at once, with key, file, line and what is expected. A key that
  does not exist is a mistake, too.
- **Reload.** `gatepost reload` or SIGHUP reads everything again. A file with a mistake changes nothing. Changes of
  `[node]`, `[store]`, `[listen]`, `[shared]`, `log.format` and `memory.capacity` take effect after a restart; the log names them.
- **Units.** Spans of time: `250ms`, `8s`, `15m`, `12h`, `30d`. Sizes: `100 KiB`, `512 MiB`, `5 GiB`. Rates:
  `3/10m`, `100/h`.
";

/// The complete, commented configuration file.
#[must_use]
pub fn config_file() -> String {
    let mut file = TomlFile { text: TOML_HEAD.to_owned(), path: Vec::new() };
    let sample: Value = toml::from_str(SAMPLE).unwrap_or_default();
    for field in schema().fields {
        let title = format!("\n# {:-<width$}\n", "", width = WIDTH - 2);
        file.text.push_str(&title);
        file.comment(field.doc);
        file.below(&field, sample.get(field.name), Use::Live);
    }
    file.text
}

/// The manual page of the configuration.
#[must_use]
pub fn manual() -> String {
    let mut manual = MANUAL_HEAD.to_owned();
    for field in schema().fields {
        document(&field, &mut Vec::new(), &mut manual);
    }
    manual
}

/// Whether settings are in use or only a sample.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Live,
    Sample,
}

struct TomlFile {
    text: String,
    path: Vec<String>,
}

impl TomlFile {
    fn below(&mut self, field: &Field, sample: Option<&Value>, used: Use) {
        self.path.push(field.name.to_owned());
        match &field.kind {
            Kind::Section(section) => self.section(section, sample, used),
            Kind::Named(section) => {
                let tables = sample.and_then(Value::as_object).into_iter().flatten();
                for (index, (name, table)) in tables.enumerate() {
                    self.path.push(name.clone());
                    match index {
                        0 => self.section(section, Some(table), Use::Sample),
                        _ => self.short_sample(section, table),
                    }
                    self.path.pop();
                }
            }
            Kind::Secret | Kind::Setting(_) => {}
        }
        self.path.pop();
    }

    fn section(&mut self, section: &Section, sample: Option<&Value>, used: Use) {
        self.header(used);
        let set = |key: &str| sample.and_then(|sample| sample.get(key));
        for field in &section.fields {
            match &field.kind {
                Kind::Setting(default) => {
                    self.comment(field.doc);
                    let in_use = if default.is_null() { Use::Sample } else { used };
                    self.setting(field.name, set(field.name).unwrap_or(default), in_use);
                }
                Kind::Secret => {
                    self.comment(field.doc);
                    let key = format!("{}_file", field.name);
                    match set(&key) {
                        Some(file) => self.setting(&key, file, used),
                        None => self.setting(field.name, &Value::Null, Use::Sample),
                    }
                }
                Kind::Named(_) | Kind::Section(_) => {}
            }
        }
        for field in &section.fields {
            if matches!(field.kind, Kind::Named(_) | Kind::Section(_)) {
                self.text.push('\n');
                self.comment(field.doc);
                self.below(field, set(field.name), used);
            }
        }
    }

    fn short_sample(&mut self, section: &Section, table: &Value) {
        self.text.push('\n');
        self.header(Use::Sample);
        for field in &section.fields {
            if let Some(value) = table.get(field.name) {
                self.setting(field.name, value, Use::Sample);
            }
        }
    }

    fn header(&mut self, used: Use) {
        let mark = mark(used);
        let _ = writeln!(self.text, "{mark}[{}]", dotted(&self.path));
    }

    fn setting(&mut self, key: &str, value: &Value, used: Use) {
        let _ = writeln!(self.text, "{}{key} = {}", mark(used), toml_value(value));
    }

    fn comment(&mut self, doc: &str) {
        let mut line = String::from("#");
        for word in doc.split_whitespace() {
            if line.chars().count() + 1 + word.chars().count() > WIDTH {
                self.text.push_str(&line);
                self.text.push('\n');
                line = String::from("#");
            }
            line.push(' ');
            line.push_str(word);
        }
        self.text.push_str(&line);
        self.text.push('\n');
    }
}

fn mark(used: Use) -> &'static str {
    match used {
        Use::Live => "",
        Use::Sample => "#",
    }
}

fn document(field: &Field, path: &mut Vec<String>, manual: &mut String) {
    path.push(field.name.to_owned());
    let section = match &field.kind {
        Kind::Named(section) => {
            path.push("NAME".to_owned());
            section
        }
        Kind::Section(section) => section,
        Kind::Secret | Kind::Setting(_) => {
            path.pop();
            return;
        }
    };
    let _ = write!(manual, "\n## `[{}]`\n\n{}\n\n", path.join("."), one_line(field.doc));
    let rows: Vec<String> = section.fields.iter().filter_map(row).collect();
    if !rows.is_empty() {
        let _ = write!(manual, "| key | default | meaning |\n|---|---|---|\n{}", rows.concat());
    }
    for inner in &section.fields {
        document(inner, path, manual);
    }
    if matches!(field.kind, Kind::Named(_)) {
        path.pop();
    }
    path.pop();
}

fn row(field: &Field) -> Option<String> {
    let default = match &field.kind {
        Kind::Setting(Value::Null) | Kind::Secret => "none".to_owned(),
        Kind::Setting(default) => format!("`{}`", toml_value(default)),
        Kind::Named(_) | Kind::Section(_) => return None,
    };
    let meaning = one_line(field.doc).replace('|', "\\|");
    Some(format!("| `{}` | {default} | {meaning} |\n", field.name))
}

fn one_line(doc: &str) -> String {
    doc.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Config, load_with};

    fn compare(path: &str, made: &str) {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        if std::env::vars_os().any(|(name, value)| name == "GATEPOST_BLESS" && value == "1") {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, made).unwrap();
        }
        let stands = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(stands == made, "{path} is out of date: GATEPOST_BLESS=1 cargo test --lib config");
    }

    #[test]
    fn the_configuration_file_in_the_tree_is_the_one_made_from_the_source() {
        compare("config/gatepost.toml", &config_file());
    }

    #[test]
    fn the_manual_in_the_tree_is_the_one_made_from_the_source() {
        compare("docs/CONFIGURATION.md", &manual());
    }

    #[test]
    fn the_configuration_file_is_read_without_problems_and_says_nothing_but_defaults() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gatepost.toml");
        std::fs::write(&path, config_file()).unwrap();

        let config = load_with(&path, std::iter::empty()).unwrap().config;

        assert_eq!(config, Config::default());
    }

    #[test]
    fn the_samples_in_the_configuration_file_work_when_the_marks_are_taken_away() {
        let directory = tempfile::tempdir().unwrap();
        let secret = directory.path().join("secret");
        std::fs::write(&secret, "hunter2\n").unwrap();
        let uncomment = |line: &str| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_alphabetic() || c == '[') => {
                rest.to_owned()
            }
            _ => line.to_owned(),
        };
        let text: Vec<String> = config_file().lines().map(uncomment).collect();
        let text = text.join("\n").replace("/etc/gatepost/corp.password", secret.to_str().unwrap());
        let path = directory.path().join("gatepost.toml");
        std::fs::write(&path, &text).unwrap();

        let config = load_with(&path, std::iter::empty()).unwrap_or_else(|e| panic!("{e}")).config;

        assert_eq!(config.listen.len(), 3);
        assert_eq!(config.directory["corp"].bind_password.expose(), "hunter2");
        assert_eq!(config.directory["corp"].hosts[0], "ldap1.corp.example:636");
    }

    #[test]
    fn the_example_files_are_read_without_problems() {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/examples");
        let secrets = ["OPENLDAP_PASSWORD", "AD_PASSWORD"].map(|name| (name.into(), "x".into()));
        for name in ["openldap.toml", "active-directory.toml"] {
            let loaded = load_with(&examples.join(name), secrets.clone().into_iter());
            let loaded = loaded.unwrap_or_else(|problems| panic!("{problems}"));
            assert_eq!(loaded.notices, [], "{name}");
            assert!(!loaded.config.directory.is_empty() && !loaded.config.listen.is_empty());
        }
    }
}
