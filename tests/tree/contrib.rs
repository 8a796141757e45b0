//! Nothing below contrib lies about untried, and scripts are read by shellcheck.

use std::process::Command;

/// What exercises which files below contrib; a name that ends in `/` stands for all below it.
const EXERCISED: &[(&str, &str)] = &[
    ("as-root.sh", "tests/run"),
    ("checkpassword/", "tests/it/support/dovecot.rs"),
    ("cyrus/imapd.conf", "tests/it/cyrus_exim.rs"),
    ("cyrus/main.cf", "tests/it/support/postfix.rs"),
    ("cyrus/smtpd.conf", "tests/it/cyrus_exim.rs"),
    ("dovecot-2.3/gatepost.conf", "contrib/quickstart"),
    ("dovecot-2.3/postfix.conf", "tests/it/support/dovecot.rs"),
    ("dovecot-2.4/gatepost.conf", "contrib/quickstart"),
    ("dovecot-2.4/postfix.conf", "tests/it/support/dovecot.rs"),
    ("dovecot-dict/", "tests/it/support/dovecot.rs"),
    ("dovecot-lua/", "tests/it/support/dovecot.rs"),
    ("dovecot-sockets/", "tests/it/support/dovecot.rs"),
    ("exim-tree", "tests/run"),
    ("exim/", "tests/it/support/exim.rs"),
    ("fail2ban/filter.d/gatepost.conf", "tests/it/contrib.rs"),
    ("fail2ban/jail.d/gatepost.conf", "tests/it/contrib.rs"),
    ("haproxy/haproxy.cfg", "tests/it/support/haproxy.rs"),
    ("mailcow/extra.conf", "tests/it/support/dovecot.rs"),
    ("mailcow/gatepost.toml", "tests/it/http_doors.rs"),
    ("nginx/forward-auth.conf", "tests/it/support/nginx.rs"),
    ("nginx/mail.conf", "tests/it/support/nginx.rs"),
    ("packages", "contrib/prepare"),
    ("packages.sh", "contrib/prepare"),
    ("postfix/main.cf", "contrib/quickstart"),
    ("postfix/master.cf", "contrib/quickstart"),
    ("prepare", "tests/run"),
    ("quickstart", "tests/it/contrib.rs"),
    ("quickstart.d/", "contrib/quickstart"),
    ("systemd/gatepost-maps.socket", "tests/it/contrib.rs"),
    ("systemd/gatepost-policy.socket", "tests/it/contrib.rs"),
    ("systemd/gatepost-postfix.socket", "tests/it/contrib.rs"),
    ("systemd/gatepost-saslauthd.socket", "tests/it/contrib.rs"),
    ("systemd/gatepost.service", "tests/it/contrib.rs"),
    ("systemd/gatepost.sysusers", "tests/it/contrib.rs"),
    ("systemd/gatepost.tmpfiles", "tests/it/contrib.rs"),
    ("trixie", "tests/run"),
];

#[test]
fn every_file_for_pasting_is_exercised_by_something() {
    let found = super::files("contrib", "");
    let is =
        |name: &str, path: &str| name == path || (name.ends_with('/') && path.starts_with(name));
    let mut faults = Vec::new();
    for path in found.iter().map(|path| path.strip_prefix("contrib/").unwrap()) {
        if !EXERCISED.iter().any(|(name, _)| is(name, path)) {
            faults.push(format!("contrib/{path}: nothing exercises it"));
        }
    }
    for (name, by) in EXERCISED {
        if !found.iter().any(|path| is(name, path.strip_prefix("contrib/").unwrap())) {
            faults.push(format!("contrib/{name}: is not there"));
        }
        // What exercises it knows it, or its folder, by name.
        let mut words = name.trim_end_matches('/').rsplit('/');
        let (file, folder) = (words.next().unwrap(), words.next());
        let text = super::read(by);
        if !text.contains(file) && !folder.is_some_and(|folder| text.contains(folder)) {
            faults.push(format!("contrib/{name}: {by} does not know it"));
        }
    }
    assert!(faults.is_empty(), "see EXERCISED in tests/tree/contrib.rs:\n{}", faults.join("\n"));
}

#[test]
fn shellcheck_has_nothing_to_say_about_any_script() {
    let places = ["contrib", "tests", "benches", "fuzz", ".ci"];
    let all = places.iter().flat_map(|place| super::files(place, ""));
    let scripts: Vec<String> = all.filter(|path| is_script(path)).collect();
    for known in [
        "contrib/prepare",
        "contrib/packages.sh",
        "tests/run",
        ".ci/run",
        "benches/load/run",
        "fuzz/run",
    ] {
        assert!(scripts.iter().any(|script| script == known), "{known} is not among {scripts:?}");
    }

    let mut shellcheck = Command::new("shellcheck");
    shellcheck.arg("--external-sources").args(&scripts).current_dir(super::root());
    let output = shellcheck.output().expect("shellcheck is missing: apt-get install shellcheck");

    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn is_script(path: &str) -> bool {
    let bytes = std::fs::read(super::root().join(path)).unwrap();
    let first = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let first = String::from_utf8_lossy(first);
    let interpreter = first.trim_end().rsplit(['/', ' ']).next().unwrap_or_default();
    first.starts_with("# shellcheck shell=")
        || (first.starts_with("#!") && ["sh", "bash", "dash"].contains(&interpreter))
}
