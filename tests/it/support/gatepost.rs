//! The daemon under test, with a configuration of its own.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::clients::http;
use super::dovecot::{Place, dict_key};
use super::postfix;
use super::samba::{self, Samba};
use super::slapd::{LEAK_MARK, PEOPLE, SERVICE_DN, SERVICE_PASSWORD, Slapd};
use super::three_eight_nine::ThreeEightNine;
use super::{MAIL_ID, Running, directory_of, free_port, program, read_text, scratch, wait_until};

/// Every configuration of the tests is these tables; a test replaces the ones it is about.
#[derive(Debug)]
pub(crate) struct Configuration {
    directory: TempDir,
    pub(crate) web: u16,
    pub(crate) auth_port: u16,
    tables: BTreeMap<String, String>,
    environment: Vec<(String, String)>,
    launcher: Vec<String>,
}

impl Configuration {
    /// Planet Express in one directory, all doors open, refusals without delay worth mentioning.
    pub(crate) fn new(slapd: &Slapd) -> Self {
        let mut new = Self::without_directory();
        new.planet(slapd.port);
        new.home(&format!("{}/mail/{{domain}}/{{local}}", new.path("").display()));
        new
    }

    /// The same with a Samba domain controller as the directory.
    pub(crate) fn for_samba(samba: &Samba) -> Self {
        let mut new = Self::without_directory();
        new.planet(389);
        new.home(&format!("{}/mail/{{domain}}/{{local}}", new.path("").display()));
        let address = &samba.address;
        new.set(
            "directory.planet",
            &format!(
                "preset = \"samba\"\ndomains = [\"planetexpress.com\"]\nhosts = [{address:?}]\ntls = \"none\"\n\
                 bind_dn = {:?}\nbind_password = {SERVICE_PASSWORD:?}",
                samba::SERVICE
            ),
        );
        new.set("directory.planet.search.people", &format!("base = \"CN=Users,{}\"", samba::BASE));
        new.set("directory.planet.identity", "login_attributes = [\"mail\"]");
        new
    }

    /// The same with a 389 Directory Server.
    pub(crate) fn for_389(server: &ThreeEightNine) -> Self {
        let mut new = Self::without_directory();
        new.planet(server.port);
        new.home(&format!("{}/mail/{{domain}}/{{local}}", new.path("").display()));
        new.change("directory.planet", "preset", "\"389ds\"");
        new.change("directory.planet", "feed", "\"auto\"");
        new
    }

    fn without_directory() -> Self {
        let directory = scratch(Path::new("/tmp"));
        directory_of(&directory.path().join("mail"), MAIL_ID, 0o755);
        let mut new = Self {
            web: free_port(),
            auth_port: free_port(),
            tables: BTreeMap::new(),
            directory,
            environment: Vec::new(),
            launcher: Vec::new(),
        };
        new.doors();
        new
    }

    /// Takes the sockets of a Dovecot that will run there, and keeps the mail where it can reach it.
    pub(crate) fn for_dovecot(mut self, place: &Place) -> Self {
        let path = place.socket();
        self.set(
            "listen.dovecot",
            &format!("protocol = \"dovecot\"\npath = {path:?}\nfailure_delay = \"200ms\""),
        );
        self.home(&place.home_template());
        self
    }

    /// Opens the socket at which a Postfix that will run there asks about passwords.
    pub(crate) fn for_postfix(mut self, place: &postfix::Place) -> Self {
        let path = place.socket("auth");
        self.set(
            "listen.postfix",
            &format!("protocol = \"dovecot-auth\"\npath = {path:?}\nfailure_delay = \"200ms\""),
        );
        self
    }

    /// Opens the doors of the ways in that leave Dovecot its own auth process, or some of it.
    pub(crate) fn for_other_ways(mut self, place: &Place) -> Self {
        let key = dict_key();
        for (name, protocol, mode, more) in [
            ("dict", "dovecot-dict", "0666", format!("password_key = {key:?}")),
            ("checkpassword", "checkpassword", "0666", String::new()),
            ("dovecot-login", "dovecot-auth", "0666", "failure_delay = \"0s\"".into()),
            ("dovecot-master", "dovecot-master", "0600", String::new()),
        ] {
            let path = place.path(name);
            let body = format!("protocol = {protocol:?}\npath = {path:?}\nmode = {mode:?}\n{more}");
            self.set(&format!("listen.{name}"), &body);
        }
        self.change("listen.web", "serve", "[\"login\", \"lookup\", \"health\", \"metrics\"]");
        self.home(&place.home_template());
        self
    }

    /// Replaces a table.
    pub(crate) fn set(&mut self, table: &str, body: &str) {
        self.tables.insert(table.to_owned(), body.to_owned());
    }

    /// Takes a table out.
    pub(crate) fn remove(&mut self, table: &str) {
        self.tables.remove(table);
    }

    /// Adds lines to a table.
    pub(crate) fn add(&mut self, table: &str, lines: &str) {
        let body = self.tables.entry(table.to_owned()).or_default();
        *body = format!("{body}\n{lines}");
    }

    /// Replaces one line of a table, found by its key.
    pub(crate) fn change(&mut self, table: &str, key: &str, value: &str) {
        let body = self.tables.get_mut(table).unwrap_or_else(|| panic!("no table {table}"));
        let others = body.lines().filter(|line| line.split(' ').next() != Some(key));
        *body = others.chain([format!("{key} = {value}").as_str()]).collect::<Vec<_>>().join("\n");
    }

    /// The lines of a table.
    pub(crate) fn table(&self, table: &str) -> &str {
        &self.tables[table]
    }

    /// The file of the store.
    pub(crate) fn database(&self) -> PathBuf {
        self.path("gatepost.db")
    }

    /// The unix socket that speaks Dovecot's auth client protocol.
    pub(crate) fn auth_socket(&self) -> PathBuf {
        self.path("auth")
    }

    /// A variable in the daemon's environment.
    pub(crate) fn environment(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// The daemon is started by this program with these arguments, its own command line following.
    pub(crate) fn launch_by(&mut self, launcher: &[&str]) {
        self.launcher = launcher.iter().map(|&word| word.to_owned()).collect();
    }

    pub(crate) fn start(self) -> Gatepost {
        Gatepost::start(self)
    }

    /// A place in the daemon's own directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn file(&self) -> PathBuf {
        self.path("gatepost.toml")
    }

    /// What starts the daemon in the foreground.
    pub(crate) fn command(&self) -> Command {
        let gatepost = env!("CARGO_BIN_EXE_gatepost");
        let mut command = match self.launcher.split_first() {
            None => program(gatepost, "gatepost"),
            Some((launcher, arguments)) => {
                let mut command = program(launcher, "systemd");
                command.args(arguments).arg(gatepost);
                command
            }
        };
        command.arg("--config").arg(self.file()).arg("serve");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Writes the file.
    pub(crate) fn write(&self) {
        let mut text = String::new();
        for (table, body) in &self.tables {
            write!(text, "[{table}]\n{body}\n\n").unwrap();
        }
        fs::write(self.file(), text).unwrap();
    }

    fn doors(&mut self) {
        let (web, auth_port) = (self.web, self.auth_port);
        let (database, control, socket) =
            (self.path("gatepost.db"), self.path("control"), self.auth_socket());
        self.set("node", &format!("control = {control:?}"));
        self.set("store", &format!("url = \"sqlite://{}\"", database.display()));
        let delay = "failure_delay = \"200ms\"";
        self.set(
            "listen.auth",
            &format!("protocol = \"dovecot-auth\"\npath = {socket:?}\nmode = \"0666\"\n{delay}"),
        );
        self.set(
            "listen.auth-tcp",
            &format!("protocol = \"dovecot-auth\"\naddress = \"127.0.0.1:{auth_port}\"\n{delay}"),
        );
        self.set(
            "listen.web",
            &format!(
                "protocol = \"http\"\naddress = \"127.0.0.1:{web}\"\nserve = [\"login\", \"health\", \"metrics\"]"
            ),
        );
        self.set("login", "deadline = \"6s\"");
        self.set("memory", "capacity = \"64 MiB\"");
        // Most tests try more wrong passwords than an honest person; those about the shield switch it on.
        self.set("throttle", "enabled = false");
        self.set("log", "level = \"debug\"");
    }

    fn planet(&mut self, port: u16) {
        self.set("domain.\"planetexpress.com\"", "active = true");
        self.set("template.crew", "quota = \"1 GiB\"");
        self.set("template.office", "quota = \"5 GiB\"");
        self.set(
            "directory.planet",
            &format!(
                "preset = \"openldap\"\ndomains = [\"planetexpress.com\"]\nhosts = [\"127.0.0.1\"]\nport = {port}\n\
                 tls = \"none\"\nbind_dn = \"{SERVICE_DN}\"\nbind_password = \"{SERVICE_PASSWORD}\"\n\
                 connect_timeout = \"2s\"\ntimeout = \"2s\"\n\
                 feed = \"none\""
            ),
        );
        self.set(
            "directory.planet.search.people",
            &format!("base = \"{PEOPLE}\"\nfilter = \"(objectClass=inetOrgPerson)\""),
        );
        self.set("directory.planet.identity", "login_attributes = [\"mail\", \"uid\"]");
        self.set("directory.planet.template", "attribute = \"employeeType\"");
        for template in ["crew", "office"] {
            self.set(
                &format!("directory.planet.template.rule.{template}"),
                &format!("value = \"{template}\"\ntemplate = \"{template}\""),
            );
        }
    }

    fn home(&mut self, home: &str) {
        for template in ["template.crew", "template.office"] {
            for (key, value) in [
                ("home", format!("{home:?}")),
                ("uid", MAIL_ID.to_string()),
                ("gid", MAIL_ID.to_string()),
            ] {
                self.change(template, key, &value);
            }
        }
    }
}

/// A running daemon.
#[derive(Debug)]
pub(crate) struct Gatepost {
    pub(crate) configuration: Configuration,
    running: Option<Running>,
}

/// What `POST /v1/login` answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) fn reason(&self) -> &str {
        self.body["reason"].as_str().unwrap_or("")
    }

    pub(crate) fn mailbox(&self, field: &str) -> &Value {
        &self.body["mailbox"][field]
    }
}

impl Gatepost {
    fn start(configuration: Configuration) -> Self {
        let mut new = Self { configuration, running: None };
        new.start_again();
        new
    }

    /// Starts it with what the configuration holds now, and waits until it serves.
    pub(crate) fn start_again(&mut self) {
        assert!(self.running.is_none(), "gatepost runs already");
        self.configuration.write();
        let log = File::options().append(true).create(true).open(self.log_path()).unwrap();
        let mut command = self.configuration.command();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut running = Running::start("gatepost", &mut command);
        wait_until("gatepost is ready", Duration::from_secs(20), || {
            assert!(running.ended().is_none(), "gatepost ended: {}", self.log());
            http(self.configuration.web, "GET", "/readyz", b"").0 == 200
        });
        self.running = Some(running);
    }

    /// Writes the configuration as it is now and sends SIGHUP.
    pub(crate) fn hup(&self) {
        self.configuration.write();
        self.hang_up();
    }

    /// Sends SIGHUP; the file is as it stands.
    pub(crate) fn hang_up(&self) {
        self.running.as_ref().expect("gatepost runs").signal(Signal::HUP);
    }

    /// SIGTERM, without waiting for the end; `stop` waits.
    pub(crate) fn terminate(&self) {
        self.running.as_ref().expect("gatepost runs").signal(Signal::TERM);
    }

    /// The memory it occupies (VmRSS), in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let id = self.running.as_ref().expect("gatepost runs").id();
        let status = read_text(Path::new(&format!("/proc/{id}/status")));
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Takes the store's file away, as a broken disk or mount would, or brings it back.
    pub(crate) fn store_is_there(&self, there: bool) {
        let (file, away) = (self.configuration.database(), self.configuration.path("away.db"));
        let (from, to) = if there { (away, file) } else { (file, away) };
        fs::rename(from, to).unwrap();
    }

    /// SIGKILL.
    pub(crate) fn kill9(&mut self) {
        self.running.take().expect("gatepost runs").kill9();
    }

    /// SIGTERM; it ends by itself and says so by its exit code.
    pub(crate) fn stop(&mut self) {
        let status = self.running.take().expect("gatepost runs").stop();
        assert!(status.success(), "gatepost ended with {status}: {}", self.log());
    }

    pub(crate) fn log(&self) -> String {
        read_text(&self.log_path())
    }

    /// A login through `POST /v1/login`.
    pub(crate) fn login(&self, name: &str, password: &str) -> Answer {
        self.login_to("imap", name, password)
    }

    /// The same for another service than IMAP.
    pub(crate) fn login_to(&self, service: &str, name: &str, password: &str) -> Answer {
        let body = json!({
            "username": name, "password": password, "service": service, "client_ip": "192.0.2.7",
        });
        self.post_login(body.to_string().as_bytes())
    }

    /// `POST /v1/login` with any body.
    pub(crate) fn post_login(&self, body: &[u8]) -> Answer {
        let (status, text) = http(self.configuration.web, "POST", "/v1/login", body);
        Answer { status, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) }
    }

    /// A command of the command line against this daemon.
    pub(crate) fn run(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = program(env!("CARGO_BIN_EXE_gatepost"), "gatepost");
        command.arg("--config").arg(self.configuration.file()).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A command that reads nothing may have ended already.
        drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
        child.wait_with_output().unwrap()
    }

    /// What `mailbox show` says of an address; `None` if there is no such mailbox.
    pub(crate) fn mailbox(&self, address: &str) -> Option<Value> {
        let output = self.run(&["--json", "mailbox", "show", address], "");
        match output.status.code() {
            Some(0) => Some(serde_json::from_slice(&output.stdout).unwrap()),
            Some(8) => None,
            _ => panic!("mailbox show {address}: {}", super::printed(&output)),
        }
    }

    /// The addresses that `mailbox list` prints.
    pub(crate) fn mailboxes(&self) -> Vec<String> {
        let output = self.run(&["--json", "mailbox", "list"], "");
        assert!(output.status.success(), "mailbox list: {}", super::printed(&output));
        let list: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        list.iter().map(|mailbox| mailbox["address"].as_str().unwrap().to_owned()).collect()
    }

    /// The value of a metric, summed over the lines whose labels hold these texts.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let (_, text) = http(self.configuration.web, "GET", "/metrics", b"");
        let lines = text.lines().filter(|line| {
            line.split(['{', ' ']).next() == Some(name)
                && labels.iter().all(|label| line.contains(label))
        });
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    fn log_path(&self) -> PathBuf {
        self.configuration.path("gatepost.log")
    }
}

impl Drop for Gatepost {
    /// Whatever a test was about: the daemon must end cleanly, must not have panicked, and no password may stand in
    /// its log.
    fn drop(&mut self) {
        let log = self.log();
        if std::thread::panicking() {
            let start = log.char_indices().rev().nth(20_000).map_or(0, |(index, _)| index);
            let end = log.get(start..).unwrap_or_default();
            drop(writeln!(std::io::stderr(), "--- gatepost's log ends so:\n{end}"));
            return;
        }
        if self.running.is_some() {
            self.stop();
        }
        let log = self.log();
        assert!(!log.contains("panicked at"), "the daemon panicked: {log}");
        for mark in leak_marks() {
            assert!(!log.contains(&mark), "a password stands in the log ({mark}): {log}");
        }
    }
}

/// The mark of the tests' passwords, plain and as it looks inside base64 at each of the three alignments.
fn leak_marks() -> Vec<String> {
    let encoded = (0..3_usize).map(|shift| {
        let text =
            STANDARD_NO_PAD.encode([" ".repeat(shift).as_bytes(), LEAK_MARK.as_bytes()].concat());
        // The first and last letters also depend on what stands before and after the mark.
        text.chars().skip(shift + 1).take(10).collect()
    });
    encoded.chain([LEAK_MARK.to_owned()]).collect()
}
