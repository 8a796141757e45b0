//! Nothing below contrib lies about untried, and scripts are read by shellcheck.

use std::process::Command;

/// What exercises which files below contrib; a name that ends in `/` stands for all below it. What exercises a file names
/// it, folder included, outside of comments.
const EXERCISED: &[(&str, &str)] = &[
    ("as-root.sh", "tests/run"),
    ("checkpassword/dovecot-2.3.conf", "tests/it/support/dovecot.rs"),
    ("checkpassword/qmail-pop3d", "tests/it/dovecot_ways.rs"),
    ("cyrus/imapd.conf", "tests/it/cyrus_exim.rs"),
    ("cyrus/main.cf", "tests/it/support/postfix.rs"),
    ("cyrus/smtpd.conf", "tests/it/cyrus_exim.rs"),
    ("debian-tree", "tests/run"),
    ("dovecot-2.3/auth-policy.conf", "tests/it/support/dovecot.rs"),
    ("dovecot-2.3/postfix.conf", "tests/it/support/dovecot.rs"),
    ("dovecot-2.4/auth-policy.conf", "tests/it/support/dovecot.rs"),
    ("dovecot-2.4/postfix.conf", "tests/it/support/dovecot.rs"),
    ("dovecot-dict/", "tests/it/support/dovecot.rs"),
    ("dovecot-lua/", "tests/it/support/dovecot.rs"),
    ("dovecot-sockets/", "tests/it/support/dovecot.rs"),
    ("exim-tree", "tests/run"),
    ("exim/", "tests/it/support/exim.rs"),
    ("fail2ban/filter.d/gatepost-throttled.conf", "tests/it/contrib.rs"),
    ("fail2ban/filter.d/gatepost.conf", "tests/it/contrib.rs"),
    ("haproxy/haproxy.cfg", "tests/it/support/haproxy.rs"),
    ("mailcow/extra.conf", "tests/it/support/dovecot.rs"),
    ("mailcow/gatepost.toml", "tests/it/http_doors.rs"),
    ("nftables/", "tests/it/contrib.rs"),
    ("nginx/", "tests/it/support/nginx.rs"),
    ("packages", "contrib/prepare"),
    ("packages.sh", "contrib/prepare"),
    ("postfix/", "contrib/quickstart"),
    ("prepare", "tests/run"),
];

/// The same where the name is put together or a whole folder is listed, and by which words.
const EXERCISED_BY_WORDS: &[(&str, &str, &str)] = &[
    ("dovecot-2.3/gatepost.conf", "contrib/quickstart", "contrib/dovecot-$dovecot/gatepost.conf"),
    ("dovecot-2.4/gatepost.conf", "contrib/quickstart", "contrib/dovecot-$dovecot/gatepost.conf"),
    (
        "fail2ban/action.d/gatepost-nftables.conf",
        "tests/it/contrib.rs",
        "action.d/gatepost-nftables.conf",
    ),
    ("fail2ban/jail.d/gatepost.conf", "tests/it/contrib.rs", "contrib(\"fail2ban\").join(file)"),
    ("quickstart", "tests/it/contrib.rs", "contrib(\"quickstart\")"),
    ("quickstart.d/", "contrib/quickstart", "contrib/quickstart.d"),
    ("systemd/", "tests/it/contrib.rs", "read_dir(contrib(\"systemd\"))"),
];

#[test]
fn every_file_for_pasting_is_exercised_by_something() {
    let found = super::files("contrib", "");
    let found: Vec<&str> =
        found.iter().map(|path| path.strip_prefix("contrib/").unwrap()).collect();
    let by_name = EXERCISED.iter().map(|(name, by)| (*name, *by, None));
    let by_words = EXERCISED_BY_WORDS.iter().map(|(name, by, words)| (*name, *by, Some(*words)));
    let mut faults = Vec::new();
    let mut exercised = Vec::new();
    for (name, by, words) in by_name.chain(by_words) {
        let is = |path: &str| name == path || (name.ends_with('/') && path.starts_with(name));
        let files: Vec<&str> = found.iter().copied().filter(|path| is(path)).collect();
        if files.is_empty() {
            faults.push(format!("contrib/{name}: is not there"));
        }
        let text = super::read(by);
        for path in files {
            let own = if path.contains('/') { path.to_owned() } else { format!("contrib/{path}") };
            let words = words.unwrap_or(&own);
            if !names(&text, words) {
                faults.push(format!("contrib/{path}: {by} does not say {words}"));
            }
            exercised.push(path);
        }
    }
    for path in found.iter().filter(|path| !exercised.contains(path)) {
        faults.push(format!("contrib/{path}: nothing exercises it"));
    }
    assert!(faults.is_empty(), "see EXERCISED in tests/tree/contrib.rs:\n{}", faults.join("\n"));
}

/// Whether the words stand in a line of the text that is no comment, and not as the beginning of a longer name.
fn names(text: &str, words: &str) -> bool {
    let is_code = |line: &&str| !line.trim_start().starts_with(['#', '/']);
    let is_name = words.ends_with(char::is_alphanumeric);
    let goes_on = |rest: &str| {
        let mut rest = rest.chars();
        let next = rest.next().unwrap_or(' ');
        next.is_alphanumeric()
            || "-_".contains(next)
            || (next == '.' && rest.next().is_some_and(char::is_alphanumeric))
    };
    let mut lines = text.lines().filter(is_code);
    lines.any(|line| line.split(words).skip(1).any(|rest| !is_name || !goes_on(rest)))
}

#[test]
fn a_file_is_named_only_in_full_and_only_by_code() {
    for (text, words, expected) in [
        ("run contrib/packages)", "contrib/packages", true),
        ("source contrib/packages.sh", "contrib/packages", false),
        ("copy nginx/mail.conf.", "nginx/mail.conf", true),
        ("copy mail.conf of nginx", "nginx/mail.conf", false),
        ("  // as nginx/mail.conf", "nginx/mail.conf", false),
        ("# contrib/debian-tree makes it", "contrib/debian-tree", false),
    ] {
        assert_eq!(names(text, words), expected, "{words} in {text}");
    }
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
