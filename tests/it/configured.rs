//! Directories as files describe them.

use gatepost::config::{Loaded, load_with};
use gatepost::directory::Directories;
use gatepost::metrics::Metrics;

const FILE: &str = r#"
[directory.corp]
domains = ["example.org"]
hosts = ["dc1"]
bind_dn = "cn=a,dc=b"
bind_password = "secret"
search.people.base = "dc=b"
"#;

/// The notices, or why there is no directory.
fn build(file: &str) -> Result<Vec<String>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gatepost.toml");
    std::fs::write(&path, file).unwrap();
    let Loaded { config, notices, .. } =
        load_with(&path, std::iter::empty()).map_err(|problems| problems.to_string())?;
    Directories::build(&config.directory, None, &Metrics::new())
        .map_err(|error| error.to_string())?;
    Ok(notices.iter().map(ToString::to_string).collect())
}

#[test]
fn a_service_account_may_be_a_user_below_a_base() {
    let pair = "bind_user = \"svc, mail\"\nbind_base = \"ou=services,dc=b\"";

    let built = build(&FILE.replace("bind_dn = \"cn=a,dc=b\"", pair));

    assert!(built.is_ok(), "{built:?}");
}

#[test]
fn a_filter_gets_its_outer_brackets_and_else_is_refused_at_its_column() {
    let with = |filter: &str| build(&format!("{FILE}search.people.filter = {filter:?}\n"));
    let added =
        "directory.corp.search.people.filter: no brackets around the filter: they are added";
    for (filter, told) in
        [("objectClass=person", true), ("&(a=b)(c=d)", true), ("(objectClass=person)", false)]
    {
        let notices = with(filter).unwrap();
        assert_eq!(notices.iter().any(|notice| notice == added), told, "{notices:?}");
    }
    for (filter, column) in [("objectClass", 12), ("(a=b)(c=d)", 6), ("a=(b)", 3), ("(|)", 3)] {
        let refused = with(filter).unwrap_err();
        let expected = format!("directory.corp.search.people.filter: {filter}: column {column}: ");
        assert!(refused.starts_with(&expected), "{refused}");
    }
}
