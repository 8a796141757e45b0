//! What is for pasting, read by the programs it is for: systemd's units and files, fail2ban's filter and jail, and
//! contrib/quickstart, which runs Dovecot's and Postfix' files.
//! (tests/tree knows which test exercises which file.)

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::gatepost::Configuration;
use crate::support::slapd::{Slapd, mail_of, password_of};
use crate::support::{program, run, scratch, wait_until};

fn contrib(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib").join(path)
}

/// The files of contrib/systemd with one of these endings.
fn systemd_files(endings: &[&str]) -> Vec<PathBuf> {
    let files = fs::read_dir(contrib("systemd")).unwrap().map(|entry| entry.unwrap().path());
    let wanted = |path: &PathBuf| {
        path.extension().is_some_and(|ending| endings.iter().any(|wanted| ending == *wanted))
    };
    let mut files: Vec<PathBuf> = files.filter(wanted).collect();
    files.sort();
    files
}

#[test]
fn every_unit_is_one_that_systemd_takes_without_a_word() {
    let directory = scratch(Path::new("/tmp"));
    let units = systemd_files(&["service", "socket", "timer", "path", "target"]);
    let copies: Vec<PathBuf> = units
        .iter()
        .map(|unit| {
            // Programs that are not installed here would be an error of their own.
            let text = fs::read_to_string(unit).unwrap();
            let lines = text.lines().map(|line| match line.split_once("=/") {
                Some((key, rest)) if key.starts_with("Exec") => {
                    let arguments = rest.split_once(' ').map_or("", |(_, arguments)| arguments);
                    format!("{key}=/bin/true {arguments}")
                }
                _ => line.to_owned(),
            });
            let copy = directory.path().join(unit.file_name().unwrap());
            fs::write(&copy, lines.collect::<Vec<_>>().join("\n")).unwrap();
            copy
        })
        .collect();
    assert!(copies.len() >= 4, "{units:?}");

    for copy in copies {
        let mut verify = program("systemd-analyze", "systemd");
        let said = run(verify.args(["--recursive-errors=no", "verify"]).arg(&copy));
        assert_eq!(said, "", "{}", copy.display());
    }
}

#[test]
fn every_service_is_confined() {
    for unit in systemd_files(&["service"]) {
        let mut security = program("systemd-analyze", "systemd");
        security.args(["--no-pager", "security", "--offline=true", "--threshold=20"]);
        let said = run(security.arg(&unit));
        assert!(said.contains("Overall exposure level"), "{said}");
    }
}

#[test]
fn every_socket_unit_names_a_door_and_the_daemons_service() {
    let main_cf = fs::read_to_string(contrib("postfix/main.cf")).unwrap();
    for unit in systemd_files(&["socket"]) {
        let text = fs::read_to_string(&unit).unwrap();
        let value = |key: &str| {
            let found = text.lines().find_map(|line| line.strip_prefix(key));
            found.unwrap_or_else(|| panic!("{}: no {key}", unit.display())).to_owned()
        };
        assert_eq!(value("Service="), "gatepost.service");
        // The comment shows the door that the socket is for.
        let door = value("FileDescriptorName=");
        assert!(text.contains(&format!("#   [listen.{door}]\n")), "{text}");
        assert!(text.contains(&format!("#   path = \"{}\"\n", value("ListenStream="))), "{text}");
        // Whoever can open it may try passwords.
        let mode = value("SocketMode=");
        assert!(["0600", "0660"].contains(&mode.as_str()), "{}: {mode}", unit.display());
        // Postfix looks there.
        if let Some(path) = value("ListenStream=").strip_prefix("/var/spool/postfix/") {
            assert!(main_cf.contains(path), "contrib/postfix/main.cf does not name {path}");
        }
    }
}

#[test]
fn users_and_directories_are_made_as_the_files_for_systemd_say() {
    let root = scratch(Path::new("/tmp"));
    let below = |path: &str| root.path().join(path);
    for directory in ["etc", "var/spool/postfix"] {
        fs::create_dir_all(below(directory)).unwrap();
    }
    fs::write(below("etc/passwd"), "root:x:0:0::/root:/bin/sh\npostfix:x:104:108::/:/bin/false\n")
        .unwrap();
    fs::write(below("etc/group"), "root:x:0:\npostfix:x:108:\n").unwrap();
    let option = format!("--root={}", root.path().display());

    for file in systemd_files(&["sysusers"]) {
        run(program("systemd-sysusers", "systemd").arg(&option).arg(&file));
    }
    for file in systemd_files(&["tmpfiles"]) {
        let said =
            run(program("systemd-tmpfiles", "systemd").args(["--create", &option]).arg(&file));
        assert_eq!(said, "", "{}", file.display());
    }

    let users = fs::read_to_string(below("etc/passwd")).unwrap();
    let user = users.lines().find(|line| line.starts_with("gatepost:")).expect("a user gatepost");
    assert!(user.contains(":/var/lib/gatepost:") && user.ends_with("nologin"), "{user}");
    let made = fs::metadata(below("var/spool/postfix/gatepost")).unwrap();
    let (mode, owner) = {
        use std::os::unix::fs::MetadataExt;
        (made.mode() & 0o7777, format!("{}:{}", made.uid(), made.gid()))
    };
    let uid = user.split(':').nth(2).unwrap();
    assert_eq!((mode, owner), (0o2750, format!("{uid}:108")));
}

#[test]
fn the_quickstart_shows_what_it_says_with_the_files_for_pasting() {
    let quickstart = contrib("quickstart");
    let binaries = Path::new(env!("CARGO_BIN_EXE_gatepost")).parent().unwrap();
    let mut command = program(quickstart.to_str().unwrap(), "bash");

    let said = run(command.args(["--once", "--bin"]).arg(binaries));

    assert!(said.contains(" ok, 0 failed, "), "{said}");
}

#[test]
fn fail2ban_finds_those_who_guess_and_nobody_else_in_a_real_journal() {
    let slapd = Slapd::start();
    let gatepost = Configuration::new(&slapd).start();
    let login = |name: &str, password: &str, ip: &str| {
        let body = serde_json::json!({
            "username": name, "password": password, "service": "imap", "client_ip": ip,
        });
        gatepost.post_login(body.to_string().as_bytes()).status
    };
    assert_eq!(login(&mail_of("fry"), "wrong", "192.0.2.1"), 403);
    assert_eq!(login("nobody@planetexpress.com", "wrong", "2001:db8::2"), 403);
    assert_eq!(login(" blank", "wrong", "192.0.2.3"), 403);
    assert_eq!(login(&mail_of("fry"), &password_of("fry"), "198.51.100.1"), 200);
    // A phone with the password from before a change is no guesser.
    slapd.set_password("fry", "new-Tr0ub4dor");
    assert_eq!(login(&mail_of("fry"), "new-Tr0ub4dor", "198.51.100.1"), 200);
    assert_eq!(login(&mail_of("fry"), &password_of("fry"), "198.51.100.9"), 403);
    // But who says so of themselves is one.
    assert_eq!(login("x detail=\"old-password\"", "wrong", "192.0.2.5"), 403);
    // A name that looks like a line bans nobody but the one who sent it.
    let forged = "x\n2026-11-22T21:50:00.123Z login verdict=refuse reason=unknown client=198.51.100.2 login=\"";
    assert_eq!(login(forged, "wrong", "192.0.2.4"), 403);
    let log = gatepost.configuration.path("gatepost.log");
    wait_until("the journal is written", Duration::from_secs(5), || {
        // The forged name stands within one line.
        gatepost.log().lines().filter(|line| line.contains(" login verdict=")).count() == 8
    });

    // As it stands in a file of ours, and as the system's journal shows it.
    let (directory, filter) = filter();
    let syslog = directory.path().join("syslog");
    let prefixed = gatepost.log().lines().fold(String::new(), |text, line| {
        text + "Nov 22 21:50:00 mx gatepost[123]: " + line + "\n"
    });
    fs::write(&syslog, prefixed).unwrap();
    for log in [&log, &syslog] {
        let mut regex = program("fail2ban-regex", "fail2ban");
        let said = run(regex.arg("--verbose").arg(log).arg(&filter));

        for guesser in ["192.0.2.1", "2001:db8::2", "192.0.2.3", "192.0.2.4", "192.0.2.5"] {
            assert!(said.contains(&format!("      {guesser}  ")), "{guesser} is not found: {said}");
        }
        assert!(said.contains(" 5 matched"), "{said}");
        assert!(!said.contains("      198.51.100."), "{said}");
    }
}

#[test]
fn fail2ban_takes_the_jail() {
    let directory = scratch(Path::new("/tmp"));
    let etc = directory.path().join("fail2ban");
    run(program("cp", "coreutils").arg("-r").arg("/etc/fail2ban").arg(&etc));
    for file in ["filter.d/gatepost.conf", "jail.d/gatepost.conf"] {
        fs::copy(contrib("fail2ban").join(file), etc.join(file)).unwrap();
    }

    let mut test = program("fail2ban-client", "fail2ban");
    let said = run(test.arg("-c").arg(&etc).arg("-d"));

    assert!(said.contains("['add', 'gatepost', 'systemd']"), "{said}");
    assert!(said.contains("login verdict=refuse"), "{said}");
}

/// The filter, beside the file of fail2ban's that it builds on.
fn filter() -> (tempfile::TempDir, PathBuf) {
    let directory = scratch(Path::new("/tmp"));
    // fail2ban-regex takes a path for a pattern unless it leads through a folder of this name.
    let filters = directory.path().join("filter.d");
    fs::create_dir(&filters).unwrap();
    let common = Path::new("/etc/fail2ban/filter.d/common.conf");
    assert!(common.exists(), "{} is missing: apt-get install fail2ban", common.display());
    fs::copy(common, filters.join("common.conf")).unwrap();
    let filter = filters.join("gatepost.conf");
    fs::copy(contrib("fail2ban/filter.d/gatepost.conf"), &filter).unwrap();
    (directory, filter)
}
