//! What is for pasting, read by the programs it is for: systemd's units and files, fail2ban's filters, jails
//! and action, the ruleset for nftables, and contrib/quickstart, which runs Dovecot's and Postfix' files.
//! (tests/tree knows which test exercises which file.)

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::gatepost::Configuration;
use crate::support::slapd::{Slapd, mail_of, password_of};
use crate::support::{Running, program, run, scratch, wait_until};

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
    let mut configuration = Configuration::new(&slapd);
    configuration.set("throttle", "enabled = true\ndeny = [\"192.0.2.6\"]");
    // It says something about nearly every line, and does nothing.
    configuration.set(
        "throttle.rule.net",
        "count = \"attempts\"\nper = \"net\"\nlimit = 1\naction = \"log\"\nallowance = 0",
    );
    let gatepost = configuration.start();
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
    // The guessing shield said no.
    assert_eq!(login(&mail_of("fry"), "new-Tr0ub4dor", "192.0.2.6"), 403);
    let log = gatepost.configuration.path("gatepost.log");
    wait_until("the journal is written", Duration::from_secs(5), || {
        // The forged name stands within one line.
        gatepost.log().lines().filter(|line| line.contains(" login verdict=")).count() == 9
    });
    let ignored = |line: &&str| line.contains("detail=\"old-password\" throttle=");
    assert_eq!(gatepost.log().lines().filter(ignored).count(), 1, "{}", gatepost.log());

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

        for guesser in
            ["192.0.2.1", "2001:db8::2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.6"]
        {
            assert!(said.contains(&format!("      {guesser}  ")), "{guesser} is not found: {said}");
        }
        assert!(said.contains(" 6 matched"), "{said}");
        assert!(!said.contains("      198.51.100."), "{said}");
        let mut regex = program("fail2ban-regex", "fail2ban");
        let throttled = filter.with_file_name("gatepost-throttled.conf");
        let said = run(regex.arg("--verbose").arg(log).arg(&throttled));
        assert!(said.contains("      192.0.2.6  ") && said.contains(" 1 matched"), "{said}");
    }
}

/// A configuration of fail2ban with ours in it.
fn fail2ban() -> (tempfile::TempDir, PathBuf) {
    let directory = scratch(Path::new("/tmp"));
    let etc = directory.path().join("fail2ban");
    run(program("cp", "coreutils").arg("-r").arg("/etc/fail2ban").arg(&etc));
    for file in [
        "action.d/gatepost-nftables.conf",
        "filter.d/gatepost.conf",
        "filter.d/gatepost-throttled.conf",
        "jail.d/gatepost.conf",
    ] {
        fs::copy(contrib("fail2ban").join(file), etc.join(file)).unwrap();
    }
    (directory, etc)
}

#[test]
fn fail2ban_takes_the_jails() {
    let (_directory, etc) = fail2ban();

    let mut test = program("fail2ban-client", "fail2ban");
    let said = run(test.arg("-c").arg(&etc).arg("-d"));

    assert!(said.contains("['add', 'gatepost', 'systemd']"), "{said}");
    assert!(said.contains("['add', 'gatepost-throttled', 'systemd']"), "{said}");
    assert!(said.contains("login verdict=refuse"), "{said}");
}

/// A net of its own, in which root has a packet filter for itself.
struct Net(Running);

impl Net {
    /// With the ruleset for pasting.
    fn start() -> Self {
        let mut command = program("unshare", "util-linux");
        // The shell ends with its standard input.
        command.args(["--net", "sh", "-c", "echo there; read -r _"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut net = Self(Running::start("a net of its own", &mut command));
        assert_eq!(net.0.hear(), "there\n");
        net.run(&["nft", "-f", contrib("nftables/gatepost.nft").to_str().unwrap()]);
        net
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = program("nsenter", "util-linux");
        command.arg("--target").arg(self.0.id().to_string()).arg("--net").args(words);
        command
    }

    fn run(&self, words: &[&str]) -> String {
        run(&mut self.command(words))
    }

    fn elements(&self, set: &str) -> String {
        self.run(&["nft", "list", "set", "inet", "gatepost", set])
    }
}

#[test]
fn the_packet_filter_takes_the_ruleset_and_the_lists_of_the_shield() {
    let ruleset = contrib("nftables/gatepost.nft");
    run(program("nft", "nftables").arg("-c").arg("-f").arg(&ruleset));
    let net = Net::start();
    // Loaded again it is the same.
    net.run(&["nft", "-f", ruleset.to_str().unwrap()]);
    let slapd = Slapd::start();
    let mut configuration = Configuration::new(&slapd);
    configuration.set("throttle", "enabled = true");
    configuration.set(
        "throttle.rule.stern",
        "count = \"failures\"\nper = \"ip\"\nlimit = 1\naction = \"deny\"",
    );
    let gatepost = configuration.start();
    for entry in [
        &["deny", "192.0.2.0/24", "--for", "90m"][..],
        &["deny", "192.0.2.9"],
        &["deny", "2001:db8::/64"],
        &["deny", "203.0.113.9", "fry@planetexpress.com"],
        &["deny", "leela@planetexpress.com"],
        &["allow", "192.0.2.77"],
    ] {
        let made = gatepost.run(&[&["policy"], entry].concat(), "");
        assert!(made.status.success(), "{made:?}");
    }
    for _ in 0..2 {
        let body =
            r#"{"username":"fry","password":"wrong","service":"imap","client_ip":"198.51.100.9"}"#;
        gatepost.post_login(body.as_bytes());
    }

    let fill = |arguments: &[&str]| {
        let listed = gatepost.run(&["--json", "policy", "list"], "");
        let mut fill = program("python3", "python3");
        fill.arg(contrib("nftables/fill")).args(arguments);
        let commands = piped(&mut fill, &listed.stdout);
        piped(&mut net.command(&["nft", "-f", "-"]), &commands);
    };
    fill(&[]);

    let denied = net.elements("denied4");
    assert!(denied.contains("192.0.2.0/24 timeout 1h"), "{denied}");
    assert!(!denied.contains("192.0.2.9"), "it lies in the net: {denied}");
    assert!(!denied.contains("203.0.113.9") && !denied.contains("198.51.100.9"), "{denied}");
    assert!(net.elements("denied6").contains("2001:db8::/64 timeout "), "{denied}");
    assert!(net.elements("allowed4").contains("192.0.2.77 timeout "));

    // Filled again it is what is listed then.
    for entry in [&["remove", "deny", "192.0.2.0/24"][..], &["remove", "allow", "192.0.2.77"]] {
        assert!(gatepost.run(&[&["policy"], entry].concat(), "").status.success());
    }
    fill(&["--acted", "600"]);
    let denied = net.elements("denied4");
    assert!(denied.contains("192.0.2.9 timeout "), "{denied}");
    assert!(denied.contains("198.51.100.9 timeout "), "{denied}");
    assert!(!denied.contains("192.0.2.0/24"), "{denied}");
    assert!(!net.elements("allowed4").contains("elements"));
}

#[test]
fn fail2ban_bans_who_goes_on_guessing_by_the_packet_filter() {
    let net = Net::start();
    let (directory, etc) = fail2ban();
    let log = directory.path().join("journal");
    fs::write(&log, "").unwrap();
    let base = directory.path().display();
    fs::write(
        etc.join("fail2ban.local"),
        format!("[DEFAULT]\nlogtarget = {base}/log\nsocket = {base}/socket\npidfile = {base}/pid\ndbfile = None\n"),
    )
    .unwrap();
    let jail = |name: &str, set: &str| {
        format!(
            "[{name}]\nenabled = true\nbackend = polling\nlogpath = {base}/journal\nmaxretry = 3\n\
             action = gatepost-nftables{set}\n"
        )
    };
    // Debian switches its own jail on.
    let others = "[sshd]\nenabled = false\n";
    let jails = [jail("gatepost", ""), jail("gatepost-throttled", "[set=throttled]")];
    let jails = format!("{others}{}", jails.concat());
    fs::write(etc.join("jail.d/zz.local"), jails).unwrap();
    let mut server = net.command(&["fail2ban-server", "-xf", "-c", etc.to_str().unwrap(), "start"]);
    server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _server = Running::start("fail2ban", &mut server);
    let said = || fs::read_to_string(directory.path().join("log")).unwrap_or_default();
    wait_until("fail2ban watches", Duration::from_secs(30), || {
        said().contains("Jail 'gatepost-throttled' started")
    });

    let line = |reason: &str, client: &str| {
        let at = run(program("date", "coreutils").args(["-u", "+%Y-%m-%dT%H:%M:%S.000Z"]));
        format!(
            "{} login verdict=refuse reason={reason} client={client} login=\"fry\" service=imap door=auth source=rules ms=0.1\n",
            at.trim_end()
        )
    };
    let mut lines = String::new();
    for _ in 0..3 {
        lines += &line("throttled", "192.0.2.9");
        lines += &line("throttled", "2001:db8::9");
        lines += &line("wrong-password", "192.0.2.10");
        lines += &line("disabled", "198.51.100.9");
    }
    fs::write(&log, lines).unwrap();

    for (set, client) in [
        ("guessers4", "192.0.2.9 timeout 1h"),
        ("guessers4", "192.0.2.10 timeout 1h"),
        ("guessers6", "2001:db8::9 timeout 1h"),
        ("throttled4", "192.0.2.9 timeout 12h"),
        ("throttled6", "2001:db8::9 timeout 12h"),
    ] {
        wait_until(&format!("{client} is banned"), Duration::from_secs(30), || {
            net.elements(set).contains(client)
        });
    }
    assert!(!net.elements("guessers4").contains("198.51.100.9"));
    assert!(!net.elements("throttled4").contains("192.0.2.10"));
    assert!(!said().contains(" ERROR "), "{}", said());
}

/// What a program that is fed this prints; its failure is the test's.
fn piped(command: &mut Command, input: &[u8]) -> Vec<u8> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    output.stdout
}

/// The filters, beside the file of fail2ban's that they build on; the path is the first one's.
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
    let throttled = filters.join("gatepost-throttled.conf");
    fs::copy(contrib("fail2ban/filter.d/gatepost-throttled.conf"), throttled).unwrap();
    (directory, filter)
}
