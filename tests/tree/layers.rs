//! No module names one above it. The arrows are those that docs/ARCHITECTURE.md draws.

use std::collections::BTreeMap;

type Arrows = BTreeMap<String, Vec<String>>;

#[test]
fn every_module_names_only_what_the_arrows_allow() {
    let arrows = arrows(&super::read("docs/ARCHITECTURE.md"));
    let mut broken = Vec::new();
    for file in super::files("src", ".rs") {
        let module = file.split(['/', '.']).nth(1).unwrap();
        for (line, text) in (1..).zip(super::read(&file).lines()) {
            let foreign = named(module, text).into_iter().filter(|it| !allows(&arrows, module, it));
            broken.extend(foreign.map(|it| format!("{file}:{line}: {module} may not name {it:?}")));
        }
    }
    assert!(broken.is_empty(), "see \"Who may name whom\":\n{}", broken.join("\n"));
}

/// `module → other others`, one to a line; `vocabulary = some words` is short for those words.
fn arrows(page: &str) -> Arrows {
    let (_, from_here) = page.split_once("```text arrows\n").unwrap();
    let lines = from_here.lines().take_while(|line| *line != "```");
    let arrow = |line: &str| {
        let (module, others) = line.split_once(['→', '=']).unwrap();
        (module.trim().to_owned(), others.split_whitespace().map(str::to_owned).collect())
    };
    lines.map(arrow).collect()
}

/// The paths below the crate's root that a line of code names: `config::listen` in `use crate::config::listen::Listen`.
fn named<'a>(module: &str, line: &'a str) -> Vec<&'a str> {
    let root = if matches!(module, "main" | "bin") { "gatepost::" } else { "crate::" };
    let is_path = |letter: char| letter.is_alphanumeric() || "_:".contains(letter);
    let after = |part: &'a str| part.split(|c| !is_path(c)).next().unwrap_or(part);
    let code = if line.trim_start().starts_with("//") { "" } else { line };
    code.split(root).skip(1).map(after).collect()
}

fn allows(arrows: &Arrows, module: &str, path: &str) -> bool {
    let is_below = |other: &str| path == other || path.starts_with(&format!("{other}::"));
    let others = arrows.get(module).map(Vec::as_slice).unwrap_or_default();
    is_below(module)
        || others.iter().any(|other| match other.as_str() {
            "everything" => true,
            "vocabulary" => arrows["vocabulary"].iter().any(|word| is_below(word)),
            other => is_below(other),
        })
}
