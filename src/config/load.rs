//! Reads the configuration: the main file, `conf.d/*.toml` next to it in name order, then `GATEPOST__…` variables;
//! what comes later wins. The only place that reads files and the environment for settings.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use figment::providers::Serialized;
use figment::value::{Dict, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::layer::{self, GivenSecret, Layer, Place, Sorted};
use super::lines::key_lines;
use super::problem::{Notice, Origin, Problem, Problems, Report, dotted};
use super::schema::{Kind, Section, schema};
use super::{Config, check};
use crate::identity::Domain;
use crate::secret::Secret;

const PREFIX: &str = "GATEPOST__";
const MAX_SECRET_BYTES: u64 = 64 << 10;

/// A configuration that can be used.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings: checked, names and hosts in their one form.
    pub config: Config,
    /// Key → where it came from; a key that is not here has its default.
    pub origins: BTreeMap<String, Origin>,
    /// What an operator should know.
    pub notices: Vec<Notice>,
    /// Key → the value that a preset gives to what was left out. Filled by [`Loaded::preset`], for `show`.
    pub presets: BTreeMap<String, serde_json::Value>,
}

impl Loaded {
    /// Tells `show` the value that a preset fills in; a key that was set keeps its own.
    pub fn preset(&mut self, key: &str, value: impl Into<serde_json::Value>) {
        if !self.origins.contains_key(key) {
            self.origins.insert(key.to_owned(), Origin::Preset);
            self.presets.insert(key.to_owned(), value.into());
        }
    }
}

/// Reads the configuration with this process's environment.
///
/// # Errors
/// Everything that is wrong, in one go.
pub fn load(path: &Path) -> Result<Loaded, Problems> {
    let mut unreadable = Vec::new();
    let mut environment = Vec::new();
    for (name, value) in std::env::vars_os() {
        match (name.into_string(), value.into_string()) {
            (Ok(name), Ok(value)) => environment.push((name, value)),
            (Ok(name), Err(_)) if name.starts_with(PREFIX) => {
                let origin = Origin::Environment(name);
                unreadable.push(Problem::new("", &origin, "not valid UTF-8"));
            }
            _ => {}
        }
    }
    match load_with(path, environment.into_iter()) {
        Err(problems) => Err(Problems([unreadable, problems.0].concat())),
        Ok(_) if !unreadable.is_empty() => Err(Problems(unreadable)),
        Ok(loaded) => Ok(loaded),
    }
}

/// Reads the configuration with the environment given.
///
/// # Errors
/// Everything that is wrong, in one go.
pub fn load_with(
    path: &Path,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Loaded, Problems> {
    let environment: BTreeMap<String, String> = environment.collect();
    let schema = schema();
    let mut sorted = Sorted::default();
    // A table that a file writes changes a built-in rule key by key, and leaves the others.
    let mut figment =
        Figment::from(Serialized::default("throttle.rule", super::throttle::built_in()));
    let mut notices = Vec::new();
    for file in files(path, &mut sorted.problems) {
        if let Some(layer) = read_file(&file, &mut sorted.problems) {
            notice_readable_secrets(&file, &layer, &mut notices);
            figment = figment.merge(Sources(layer::sort(&schema, layer, &mut sorted)));
        }
    }
    let variables = variables(&schema, &environment, &mut sorted);
    figment = figment.merge(Sources(layer::sort(&schema, variables, &mut sorted)));

    let mut config: Config = figment.extract().unwrap_or_else(|error| {
        // Every value was tried alone before, so this is a fault of ours; it must not pass as "all defaults".
        let problem = Problem::new(dotted(&error.path), &Origin::Default, "cannot be read");
        sorted.problems.push(problem);
        Config::default()
    });
    place_secrets(&mut config, &environment, &mut sorted, &mut notices);
    let mut report = Report::default();
    check::settle(&mut config, &mut report);
    finish(config, sorted, report, notices)
}

fn finish(
    config: Config,
    mut sorted: Sorted,
    report: Report,
    mut notices: Vec<Notice>,
) -> Result<Loaded, Problems> {
    let origin = |path: &[String]| {
        let mut above = (0..=path.len()).rev().filter_map(|length| path.get(..length));
        above.find_map(|key| sorted.origins.get(key)).cloned().unwrap_or(Origin::Default)
    };
    let broken: Vec<String> = sorted.problems.iter().map(|problem| problem.key.clone()).collect();
    let found = report.problems.into_iter().filter_map(|finding| {
        let key = dotted(&finding.path);
        // A value that could not be read left its default behind; that default is nobody's mistake.
        let is_item =
            |rest: &str| rest.strip_prefix('.').is_some_and(|n| n.parse::<usize>().is_ok());
        let is_same = |other: &String| {
            other.strip_prefix(&key).is_some_and(|rest| rest.is_empty() || is_item(rest))
        };
        let is_echo = broken.iter().any(is_same);
        let problem = Problem::new(key, &origin(&finding.path), finding.message);
        (!is_echo).then(|| problem.expecting(finding.expected))
    });
    let found: Vec<Problem> = found.collect();
    sorted.problems.extend(found);
    if !sorted.problems.is_empty() {
        return Err(Problems(sorted.problems));
    }
    notices.extend(report.notices);
    let origins = sorted.origins.into_iter();
    let mut origins: BTreeMap<_, _> =
        origins.map(|(path, origin)| (dotted(&settled(path)), origin)).collect();
    for name in config.directory.keys() {
        // `bind_dn` was made of the pair.
        let [user, base, dn] =
            ["bind_user", "bind_base", "bind_dn"].map(|key| dotted(&["directory", name, key]));
        origins.remove(&base);
        if let Some(origin) = origins.remove(&user) {
            origins.entry(dn).or_insert(origin);
        }
    }
    Ok(Loaded { config, origins, notices, presets: BTreeMap::new() })
}

/// The key path after domains took their one form.
fn settled(mut path: Vec<String>) -> Vec<String> {
    if let [section, name, ..] = path.as_mut_slice()
        && section == "domain"
        && let Ok(domain) = Domain::parse(name)
    {
        domain.as_str().clone_into(name);
    }
    path
}

/// The main file and what stands in `conf.d` beside it.
fn files(path: &Path, problems: &mut Vec<Problem>) -> Vec<PathBuf> {
    let directory = path.parent().unwrap_or(Path::new("")).join("conf.d");
    let mut further = match fs::read_dir(&directory) {
        Ok(entries) => entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|file| file.extension().is_some_and(|extension| extension == "toml"))
            .filter(|file| {
                !file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
            })
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            problems.push(unreadable(&directory, &error));
            Vec::new()
        }
    };
    further.sort();
    further.insert(0, path.to_owned());
    further
}

fn unreadable(path: &Path, error: &io::Error) -> Problem {
    let origin = Origin::File(path.to_owned(), None);
    Problem::new("", &origin, format!("cannot be read: {error}"))
}

fn read_file(path: &Path, problems: &mut Vec<Problem>) -> Option<Layer> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            problems.push(unreadable(path, &error));
            return None;
        }
    };
    match toml::from_str::<Dict>(&text) {
        Ok(settings) => {
            Some(Layer { settings, place: Place::File(path.to_owned(), key_lines(&text)) })
        }
        Err(error) => {
            let line = error.span().map(|span| super::lines::line_at(&text, span.start));
            let origin = Origin::File(path.to_owned(), line);
            // Only `message`: the whole text would show the line, and with it perhaps a secret.
            let message = error.message().replace('\n', ", ");
            problems.push(Problem::new("", &origin, format!("not TOML: {message}")));
            None
        }
    }
}

/// A secret that stands in a file which everybody may read.
fn notice_readable_secrets(path: &Path, layer: &Layer, notices: &mut Vec<Notice>) {
    let readable = fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o004 != 0);
    let Place::File(_, lines) = &layer.place else { return };
    for key in lines.keys().filter(|_| readable) {
        let is_secret = matches!(
            key.iter().map(String::as_str).collect::<Vec<_>>().as_slice(),
            ["directory", _, "bind_password"]
                | ["listen", _, "token" | "password_key"]
                | ["shared", "url"]
        );
        let mut value = Some(&layer.settings);
        let text = key.iter().fold(None, |_, segment| {
            let found = value.and_then(|table| table.get(segment));
            value = found.and_then(Value::as_dict);
            found.and_then(Value::as_str)
        });
        if is_secret && text.is_some_and(|text| !text.is_empty() && !text.starts_with("env:")) {
            let message = format!("stands in {}, which everybody may read", path.display());
            notices.push(Notice { key: dotted(key), message });
        }
    }
}

/// The variables that name settings, as a layer.
fn variables(
    schema: &Section,
    environment: &BTreeMap<String, String>,
    sorted: &mut Sorted,
) -> Layer {
    let mut settings = Dict::new();
    let mut places = BTreeMap::new();
    for (name, value) in environment {
        let Some(key) = name.strip_prefix(PREFIX) else { continue };
        let segments: Vec<&str> = key.split("__").collect();
        let path = key_of(schema, &segments, sorted);
        places.insert(path.clone(), name.clone());
        let is_whole = !segments.contains(&"");
        if !is_whole || insert(&mut settings, &path, value).is_none() {
            let origin = Origin::Environment(name.clone());
            let problem = Problem::new(dotted(&path), &origin, "names no setting");
            sorted.problems.push(problem.expecting("a name such as GATEPOST__STORE__URL"));
        }
    }
    Layer { settings, place: Place::Environment(places) }
}

/// Names in variables are upper-case, and `-` and `.` become `_`: a table that a file names is found all the same.
fn key_of(schema: &Section, segments: &[&str], sorted: &Sorted) -> Vec<String> {
    let alike = |known: &str, given: &str| {
        known.replace(['-', '.'], "_").eq_ignore_ascii_case(&given.replace(['-', '.'], "_"))
    };
    let mut path: Vec<String> = Vec::new();
    let mut section = Some(schema);
    let mut in_named = false;
    for segment in segments {
        if in_named {
            let known = sorted
                .origins
                .keys()
                .filter(|key| key.len() > path.len() && key.starts_with(&path));
            let mut names = known.filter_map(|key| key.get(path.len()));
            let name = names.find(|name| alike(name, segment)).cloned();
            path.push(name.unwrap_or_else(|| segment.to_ascii_lowercase()));
            in_named = false;
            continue;
        }
        let name = segment.to_ascii_lowercase();
        let kind = section.and_then(|section| section.field(&name)).map(|field| &field.kind);
        (section, in_named) = match kind {
            Some(Kind::Section(inner)) => (Some(inner), false),
            Some(Kind::Named(inner)) => (Some(inner), true),
            _ => (None, false),
        };
        path.push(name);
    }
    path
}

/// `None`: another variable already says something above or below this key.
fn insert(table: &mut Dict, path: &[String], value: &str) -> Option<()> {
    match path {
        [] => None,
        [key] if table.contains_key(key) => None,
        [key] => {
            table.insert(key.clone(), Value::from(value));
            Some(())
        }
        [key, rest @ ..] => match table.entry(key.clone()).or_insert_with(|| Dict::new().into()) {
            Value::Dict(_, inner) => insert(inner, rest, value),
            _ => None,
        },
    }
}

/// A sorted layer for figment, which merges them.
struct Sources(Dict);

impl Provider for Sources {
    fn metadata(&self) -> Metadata {
        Metadata::named("settings")
    }

    fn data(&self) -> Result<figment::value::Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.0.clone()))
    }
}

fn place_secrets(
    config: &mut Config,
    environment: &BTreeMap<String, String>,
    sorted: &mut Sorted,
    notices: &mut Vec<Notice>,
) {
    for (path, given) in std::mem::take(&mut sorted.secrets) {
        let written = match &given {
            GivenSecret::File(_) => file_key(&path),
            GivenSecret::Text(_) => path.clone(),
        };
        let secret = match &given {
            GivenSecret::File(file) => read_secret(Path::new(file), &written, notices),
            GivenSecret::Text(text) => named_secret(text, environment),
        };
        match (secret, path.iter().map(String::as_str).collect::<Vec<_>>().as_slice()) {
            (Ok(secret), ["listen", name, "token"]) => {
                config.listen.entry((*name).to_owned()).or_default().token = secret;
            }
            (Ok(secret), ["listen", name, "password_key"]) => {
                config.listen.entry((*name).to_owned()).or_default().password_key = secret;
            }
            (Ok(secret), ["shared", "url"]) => config.shared.url = secret,
            (Ok(secret), ["directory", name, "bind_password"]) => {
                config.directory.entry((*name).to_owned()).or_default().bind_password = secret;
            }
            (result, _) => {
                let message = result.err().unwrap_or_else(|| "no such secret".to_owned());
                let origin = sorted.origins.get(&written).cloned().unwrap_or(Origin::Default);
                sorted.problems.push(Problem::new(dotted(&path), &origin, message));
            }
        }
    }
}

fn file_key(path: &[String]) -> Vec<String> {
    let mut path = path.to_vec();
    if let Some(last) = path.last_mut() {
        last.push_str("_file");
    }
    path
}

fn named_secret(text: &Secret, environment: &BTreeMap<String, String>) -> Result<Secret, String> {
    let Some(name) = text.expose().strip_prefix("env:") else { return Ok(text.clone()) };
    match environment.get(name) {
        Some(value) if !value.is_empty() => Ok(Secret::new(value.clone())),
        Some(_) => Err(format!("environment variable {name} is empty")),
        None => Err(format!("environment variable {name} is not set")),
    }
}

fn read_secret(file: &Path, key: &[String], notices: &mut Vec<Notice>) -> Result<Secret, String> {
    let shown = file.display();
    let failed = |error: io::Error| format!("{shown} cannot be read: {error}");
    let metadata = fs::metadata(file).map_err(failed)?;
    if !metadata.is_file() || metadata.len() > MAX_SECRET_BYTES {
        return Err(format!("{shown} is no file with a secret"));
    }
    if metadata.mode() & 0o004 != 0 {
        notices.push(Notice { key: dotted(key), message: format!("everybody may read {shown}") });
    }
    let text = zeroize::Zeroizing::new(fs::read_to_string(file).map_err(failed)?);
    let text =
        text.strip_suffix('\n').map_or(text.as_str(), |cut| cut.strip_suffix('\r').unwrap_or(cut));
    if text.is_empty() { Err(format!("{shown} is empty")) } else { Ok(Secret::new(text)) }
}
