//! Links of the pages lead somewhere, and files that they name exist.

use std::path::Path;

#[test]
fn every_link_and_every_file_that_a_page_names_exists() {
    let mut pages = super::files("docs", ".md");
    pages.extend(["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"].map(String::from));
    let mut missing = Vec::new();
    for page in pages {
        let text = super::read(&page);
        let beside = super::root().join(&page).parent().unwrap().to_owned();
        for link in links(&text).filter(|link| !link.contains("://") && !link.starts_with('#')) {
            let path = link.split('#').next().unwrap();
            if !beside.join(path).exists() {
                missing.push(format!("{page} links to {link}"));
            }
        }
        for name in names(&text) {
            if !super::root().join(name).exists() && !beside.join(name).exists() {
                missing.push(format!("{page} names {name}"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn every_rule_that_the_code_names_stands_on_the_page_of_rules() {
    let page = super::read("docs/login.md");
    let mut missing = Vec::new();
    for file in super::files("src", ".rs") {
        let text = super::read(&file);
        for rest in text.split("login.md ").skip(1) {
            let rule = rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').next().unwrap();
            if rule.contains('-') && !page.contains(&format!("**{rule}**")) {
                missing.push(format!("{file} names {rule}"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// What stands in `[…](here)`.
fn links(page: &str) -> impl Iterator<Item = &str> {
    page.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link)
}

/// Words that look like a file of ours: `contrib/quickstart`, `docs/LOGGING.md`, `proto/sasl.rs`.
fn names(page: &str) -> impl Iterator<Item = &str> {
    let is_path = |letter: char| letter.is_alphanumeric() || "_-./*".contains(letter);
    page.split(move |letter| !is_path(letter))
        .map(|word| word.trim_end_matches(['.', '/', '-']))
        .filter(|word| !word.contains('*'))
        .filter(|word| Path::new(word).components().count() > 1)
        .filter(|word| {
            let tops = ["config", "contrib", "docs", "migrations", "src", "tests", ".ci"];
            word.split('/').next().is_some_and(|top| tops.contains(&top))
        })
}
