//! A private Dovecot: 2.3 of Debian 12 or 2.4 of Debian 13, in the trees that `contrib/debian-tree` makes. A host that
//! is a Debian 12 is its own.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use super::{
    MAIL_ID, Running, directory_of, free_port, listens, program, read_text, run, scratch,
    wait_until,
};

const PACKAGES: &str =
    "dovecot-imapd dovecot-pop3d dovecot-managesieved dovecot-lmtpd dovecot-submissiond";

/// Where it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// Debian 12: this machine, where it is one and `GATEPOST_BOOKWORM_TREE` is not set; otherwise its tree.
    Bookworm,
    /// The Debian 13 tree.
    Trixie,
}

impl Home {
    /// The directory that programs are locked in; `None` is this machine itself.
    fn tree(self) -> Option<PathBuf> {
        static IS_BOOKWORM: LazyLock<bool> = LazyLock::new(|| {
            let release = read_text(Path::new("/etc/os-release"));
            std::env::var_os("GATEPOST_BOOKWORM_TREE").is_none()
                && release.lines().any(|line| line == "VERSION_CODENAME=bookworm")
        });
        let release = match self {
            Self::Bookworm if *IS_BOOKWORM => return None,
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        };
        let cache = std::env::var_os("GATEPOST_CACHE").unwrap_or("/var/cache/gatepost".into());
        let tree = PathBuf::from(cache).join(release);
        assert!(
            tree.join(".complete").exists(),
            "no Debian in {0}: contrib/debian-tree {release} {0} (package debootstrap)",
            tree.display()
        );
        Some(tree)
    }

    /// A directory of one's own, which programs there can reach.
    pub(crate) fn scratch(self) -> TempDir {
        scratch(&self.tree().unwrap_or("/".into()).join("tmp"))
    }

    /// A path of the host, as programs there see it.
    pub(crate) fn seen_inside(self, path: &Path) -> PathBuf {
        match self.tree() {
            Some(tree) => Path::new("/").join(path.strip_prefix(tree).unwrap()),
            None => path.to_owned(),
        }
    }

    /// The command for a program there, which this package has.
    pub(crate) fn program(self, path: &str, package: &str) -> Command {
        let Some(tree) = self.tree() else { return program(path, package) };
        let mut command = program("/usr/sbin/chroot", "coreutils");
        command.arg(tree).arg(path);
        command
    }
}

/// Who answers its questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judge {
    /// The shim hands its sockets to the gatepost that listens at `Place::socket`.
    Gatepost,
    /// Its own auth process: everybody's password is "open".
    Static,
    /// Its own auth process, with what is for pasting in contrib/checkpassword (2.3).
    Checkpassword,
    /// The same with contrib/dovecot-dict (2.3).
    Dict,
    /// The same with contrib/dovecot-lua; the port of gatepost's http door.
    Lua(u16),
    /// The same with contrib/mailcow's extra.conf behind what mailcow has itself, with [`TOKEN`] for the door (2.3).
    Mailcow(u16),
    /// Its own auth process, with what is for pasting in contrib/dovecot-2.3 and -2.4 for the auth policy; the port of
    /// gatepost's http door. What comes of a login is said by its name: see [`PEOPLE`].
    Policy(u16),
    /// Login and mail processes ask gatepost's own sockets, as contrib/dovecot-sockets shows. ManageSieve cannot.
    Sockets,
}

/// What a door may want from those who ask it.
pub(crate) const TOKEN: &str = "let-me-ask";

impl Judge {
    /// Paths as in what is for pasting, below a directory of the test's own.
    fn pasted(self, version: Version, path: &str) -> Option<String> {
        let text = match (self, version) {
            (Self::Gatepost | Self::Static, _) => return None,
            (Self::Checkpassword, _) => {
                include_str!("../../../contrib/checkpassword/dovecot-2.3.conf")
            }
            (Self::Dict, _) => include_str!("../../../contrib/dovecot-dict/dovecot-2.3.conf"),
            (Self::Mailcow(_), _) => include_str!("../../../contrib/mailcow/extra.conf"),
            (Self::Lua(_), Version::V23) => {
                include_str!("../../../contrib/dovecot-lua/dovecot-2.3.conf")
            }
            (Self::Lua(_), Version::V24) => {
                include_str!("../../../contrib/dovecot-lua/dovecot-2.4.conf")
            }
            (Self::Policy(_), Version::V23) => {
                include_str!("../../../contrib/dovecot-2.3/auth-policy.conf")
            }
            (Self::Policy(_), Version::V24) => {
                include_str!("../../../contrib/dovecot-2.4/auth-policy.conf")
            }
            (Self::Sockets, Version::V23) => {
                include_str!("../../../contrib/dovecot-sockets/dovecot-2.3.conf")
            }
            (Self::Sockets, Version::V24) => {
                include_str!("../../../contrib/dovecot-sockets/dovecot-2.4.conf")
            }
        };
        // Dovecot's own delays of refusals are not what is tested.
        let delays = "auth_failure_delay = 0\nservice anvil {\n unix_listener anvil-auth-penalty {\n  mode = 0\n }\n}\n";
        Some(self.at(text, path) + delays)
    }

    fn at(self, text: &str, path: &str) -> String {
        let mut text = text.to_owned();
        for place in ["/etc/dovecot/", "/run/gatepost/", "/usr/lib/gatepost/"] {
            text = text.replace(place, &format!("{path}/"));
        }
        match self {
            Self::Policy(port) => text
                .replace("127.0.0.1:8420", &format!("127.0.0.1:{port}"))
                .replace("YOUR-TOKEN", TOKEN)
                .replace("YOUR-RANDOM-TEXT", "nonce123"),
            Self::Lua(port) => text.replace("127.0.0.1:8420", &format!("127.0.0.1:{port}")),
            Self::Mailcow(port) => text
                .replace("127.0.0.1:8420", &format!("127.0.0.1:{port}"))
                .replace("token = \"\"", &format!("token = {TOKEN:?}")),
            _ => text,
        }
    }
}

/// The directory of an instance, made before it is started: gatepost binds its socket there, and the homes of
/// mailboxes lie there.
#[derive(Debug)]
pub(crate) struct Place {
    home: Home,
    directory: TempDir,
}

impl Place {
    pub(crate) fn new(home: Home) -> Self {
        let directory = home.scratch();
        directory_of(&directory.path().join("mail"), MAIL_ID, 0o755);
        Self { home, directory }
    }

    /// Where gatepost listens for the shim, as the host sees it.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("gatepost")
    }

    /// A path there, as the host sees it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The home of mailboxes as Dovecot sees it, for a template.
    pub(crate) fn home_template(&self) -> String {
        format!("{}/mail/{{domain}}/{{local}}", self.seen_inside().display())
    }

    /// Where a mailbox's new messages lie, as the host sees it.
    pub(crate) fn new_mail_of(&self, domain: &str, local: &str) -> PathBuf {
        self.directory.path().join(format!("mail/{domain}/{local}/Maildir/new"))
    }

    /// A path there, as Dovecot sees it.
    pub(crate) fn inner(&self, name: &str) -> String {
        self.seen_inside().join(name).display().to_string()
    }

    /// The directory as Dovecot sees it.
    fn seen_inside(&self) -> PathBuf {
        self.home.seen_inside(self.directory.path())
    }
}

/// A running Dovecot.
#[derive(Debug)]
pub(crate) struct Dovecot {
    pub(crate) place: Place,
    pub(crate) imap: u16,
    pub(crate) pop3: u16,
    pub(crate) sieve: u16,
    pub(crate) submission: u16,
    pub(crate) lmtp: u16,
    running: Running,
}

impl Dovecot {
    pub(crate) fn start(place: Place, judge: Judge) -> Self {
        Self::with(place, judge, "")
    }

    /// With these lines at the end of its configuration, which win.
    pub(crate) fn start_with(place: Place, judge: Judge, lines: &str) -> Self {
        Self::with(place, judge, lines)
    }

    /// With the very lines of contrib for Gatepost and for a Postfix beside it, whose queue directory this is.
    pub(crate) fn beside_postfix(place: Place, spool: &Path) -> Self {
        let (inner, spool) =
            (place.seen_inside().display().to_string(), spool.display().to_string());
        let lines = match version(place.home) {
            Version::V23 => concat!(
                include_str!("../../../contrib/dovecot-2.3/gatepost.conf"),
                include_str!("../../../contrib/dovecot-2.3/postfix.conf")
            ),
            // 10 MB more than the quota by default: too much for a test.
            Version::V24 => concat!(
                "quota_storage_grace = 0\n",
                include_str!("../../../contrib/dovecot-2.4/gatepost.conf"),
                include_str!("../../../contrib/dovecot-2.4/postfix.conf")
            ),
        };
        let lines = lines
            .replace("/usr/lib/gatepost/gatepost-dovecot-auth", &format!("{inner}/shim"))
            .replace("/run/gatepost/dovecot", &format!("{inner}/gatepost"))
            .replace("/var/spool/postfix", &spool);
        Self::with(place, Judge::Gatepost, &lines)
    }

    fn with(place: Place, judge: Judge, further_lines: &str) -> Self {
        let directory = place.directory.path().to_owned();
        let [imap, pop3, sieve, submission, lmtp] = std::array::from_fn(|_| free_port());
        let inner = place.seen_inside();
        let ports = [imap, pop3, sieve, submission, lmtp];
        let version = version(place.home);
        let text = match version {
            Version::V23 => configuration_23(&inner, ports, judge),
            Version::V24 => configuration_24(&inner, ports, judge),
        };
        let pasted = judge.pasted(version, &inner.display().to_string()).unwrap_or_default();
        fs::write(directory.join("dovecot.conf"), text + &pasted + further_lines).unwrap();
        beside(&directory, &inner, judge);
        // A copy beside the configuration, so that the tree can run it as well. Made by cp: a descriptor open for
        // writing here could be inherited by a program that another test starts, and the shim would be "text busy".
        for (program_of_ours, name) in [
            (env!("CARGO_BIN_EXE_gatepost-dovecot-auth"), "shim"),
            (env!("CARGO_BIN_EXE_gatepost-checkpassword"), "gatepost-checkpassword"),
        ] {
            let mut copy = program("cp", "coreutils");
            run(copy.arg(program_of_ours).arg(directory.join(name)));
        }
        let mut command = inside(place.home, "/usr/sbin/dovecot", "dovecot-core");
        command.arg("-F").arg("-c").arg(inner.join("dovecot.conf"));
        let output = directory.join("output");
        let file = File::create(&output).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        let mut running = Running::start("dovecot", &mut command);
        let log = directory.join("dovecot.log");
        wait_until("Dovecot listens", Duration::from_secs(30), || {
            let said = || read_text(&output) + &read_text(&log);
            assert!(running.ended().is_none(), "dovecot ended: {}", said());
            let mut ports = ports.iter().filter(|port| has_sieve(judge) || **port != sieve);
            ports.all(|port| listens(*port))
        });
        Self { place, imap, pop3, sieve, submission, lmtp, running }
    }

    /// Runs doveadm against this instance.
    pub(crate) fn doveadm(&self, arguments: &[&str]) -> Output {
        let mut command = inside(self.place.home, "/usr/bin/doveadm", "dovecot-core");
        command.arg("-c").arg(self.place.seen_inside().join("dovecot.conf")).args(arguments);
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// Reads its configuration again; the auth service is started anew.
    pub(crate) fn reload(&self) {
        let reloads = || self.log().matches("SIGHUP received").count();
        let before = reloads();
        let output = self.doveadm(&["reload"]);
        assert!(output.status.success(), "doveadm reload: {}", super::printed(&output));
        wait_until("Dovecot has reloaded", Duration::from_secs(10), || reloads() > before);
    }

    pub(crate) fn log(&self) -> String {
        read_text(&self.place.directory.path().join("dovecot.log"))
    }

    /// Lines of its log that say something is wrong. That it was asked to reload is news, which Dovecot calls a
    /// warning.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let wrong = ["Error: ", "Warning: ", "Fatal: ", "Panic: "];
        let log = self.log();
        let lines = log.lines().filter(|line| wrong.iter().any(|word| line.contains(word)));
        lines.filter(|line| !line.contains("SIGHUP received")).map(str::to_owned).collect()
    }
}

impl Drop for Dovecot {
    fn drop(&mut self) {
        // The master takes its children with it; killing it would leave them behind.
        if self.running.ended().is_none() {
            self.running.signal(Signal::TERM);
            if !std::thread::panicking() {
                self.running.wait(Duration::from_secs(20));
                return;
            }
            for _ in 0..100 {
                if self.running.ended().is_some() {
                    return;
                }
                super::pass_time(Duration::from_millis(50));
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V23,
    V24,
}

fn version(home: Home) -> Version {
    let text = run(inside(home, "/usr/sbin/dovecot", "dovecot-core").arg("--version"));
    let (start, version) = match home {
        Home::Bookworm => ("2.3.", Version::V23),
        Home::Trixie => ("2.4.", Version::V24),
    };
    assert!(text.starts_with(start), "Dovecot {text} instead of {start}");
    version
}

fn inside(home: Home, path: &str, package: &str) -> Command {
    let imap = home.tree().unwrap_or("/".into()).join("usr/lib/dovecot/imap");
    assert!(imap.exists(), "apt-get install {PACKAGES}");
    home.program(path, package)
}

/// The key that Dovecot and a dict door share.
pub(crate) fn dict_key() -> String {
    (0..32).map(|byte| format!("{byte:02x}")).collect()
}

/// The other files that are for pasting.
fn beside(directory: &Path, inner: &Path, judge: Judge) {
    let lua = include_str!("../../../contrib/dovecot-lua/gatepost.lua");
    let dict = include_str!("../../../contrib/dovecot-dict/gatepost-dict.conf.ext");
    let dict = dict.replace("YOUR-64-HEXADECIMAL-DIGITS", &dict_key());
    for (name, text, mode) in [
        ("gatepost.lua", lua, 0o644),
        ("gatepost-dict.conf.ext", &dict, 0o600),
        ("passwd-verify.lua", MAILCOWS_SCRIPT, 0o644),
        ("people.lua", PEOPLE, 0o644),
        ("dovecot-master.passwd", "", 0o644),
    ] {
        fs::write(directory.join(name), judge.at(text, &inner.display().to_string())).unwrap();
        fs::set_permissions(directory.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
}

/// ManageSieve's login process knows no other socket than that of Dovecot's own auth process.
fn has_sieve(judge: Judge) -> bool {
    judge != Judge::Sockets
}

fn configuration_23(path: &Path, ports: [u16; 5], judge: Judge) -> String {
    let path = path.display();
    let sieve = if has_sieve(judge) { "sieve " } else { "" };
    let judge = match judge {
        Judge::Gatepost | Judge::Sockets => String::new(),
        Judge::Checkpassword | Judge::Dict | Judge::Lua(_) => {
            "auth_mechanisms = plain login\n".into()
        }
        Judge::Mailcow(_) => mailcows_own(&path.to_string()),
        Judge::Policy(_) => format!(
            "auth_mechanisms = plain login\n\
             passdb {{\n driver = lua\n args = file={path}/people.lua blocking=yes\n}}\n\
             userdb {{\n driver = static\n args = uid={MAIL_ID} gid={MAIL_ID} home={path}/mail/%d/%n\n}}\n"
        ),
        Judge::Static => format!(
            "auth_mechanisms = plain login\npassdb {{\n driver = static\n args = password=open\n}}\n\
             userdb {{\n driver = static\n args = uid={MAIL_ID} gid={MAIL_ID} home={path}/mail/%d/%n\n}}\n"
        ),
    } + &services(&path.to_string(), ports, judge);
    format!(
        "base_dir = {path}/run\nstate_dir = {path}/state\nlog_path = {path}/dovecot.log\n\
         protocols = imap pop3 {sieve}lmtp submission\nlisten = 127.0.0.1\nssl = no\n\
         disable_plaintext_auth = no\nmail_location = maildir:~/Maildir\nfirst_valid_uid = 1\n\
         submission_relay_host = 127.0.0.1\nsubmission_backend_capabilities = 8BITMIME\n{judge}"
    )
}

/// What stands in mailcow's dovecot.conf before extra.conf: its own script, which knows nobody here, masters, and a
/// cache of logins.
fn mailcows_own(path: &str) -> String {
    format!(
        "auth_mechanisms = plain login\nauth_master_user_separator = *\n\
         auth_cache_verify_password_with_worker = yes\nauth_cache_negative_ttl = 60s\nauth_cache_ttl = 300s\n\
         auth_cache_size = 10M\n\
         passdb {{\n driver = lua\n args = file={path}/passwd-verify.lua blocking=yes cache_key=%s:%u:%w\n \
         result_success = return-ok\n result_failure = continue\n result_internalfail = continue\n}}\n\
         passdb {{\n driver = passwd-file\n args = {path}/dovecot-master.passwd\n master = yes\n \
         skip = authenticated\n}}\n"
    )
}

/// A stand-in for mailcow's passwd-verify.lua.
const MAILCOWS_SCRIPT: &str = "function auth_password_verify(request, password)\n \
     return dovecot.auth.PASSDB_RESULT_PASSWORD_MISMATCH, \"Failed to authenticate\"\nend\n";

/// A passdb whose people are what they are called; whoever is called otherwise has the password "open".
const PEOPLE: &str = r#"
function auth_password_verify(request, password)
  local results = {
    nobody = dovecot.auth.PASSDB_RESULT_USER_UNKNOWN,
    disabled = dovecot.auth.PASSDB_RESULT_USER_DISABLED,
    expired = dovecot.auth.PASSDB_RESULT_PASS_EXPIRED,
    broken = dovecot.auth.PASSDB_RESULT_INTERNAL_FAILURE,
  }
  local result = results[request.user:match("^%a+")]
  if result then
    return result, "as it is called"
  end
  if password == "open" then
    return dovecot.auth.PASSDB_RESULT_OK, {}
  end
  return dovecot.auth.PASSDB_RESULT_PASSWORD_MISMATCH, "wrong"
end
"#;

fn configuration_24(path: &Path, ports: [u16; 5], judge: Judge) -> String {
    let path = path.display();
    let sieve = if has_sieve(judge) { " sieve = yes\n" } else { "" };
    let judge = match judge {
        Judge::Gatepost | Judge::Sockets => String::new(),
        Judge::Checkpassword | Judge::Dict | Judge::Lua(_) | Judge::Mailcow(_) => {
            "auth_mechanisms = plain login\n".into()
        }
        Judge::Policy(_) => format!(
            "auth_mechanisms = plain login\npassdb lua {{\n lua_file = {path}/people.lua\n}}\n\
             userdb static {{\n fields {{\n  uid = {MAIL_ID}\n  gid = {MAIL_ID}\n  \
             home = {path}/mail/%{{user | domain}}/%{{user | username}}\n }}\n}}\n"
        ),
        Judge::Static => format!(
            "auth_mechanisms = plain login\npassdb static {{\n password = open\n}}\n\
             userdb static {{\n fields {{\n  uid = {MAIL_ID}\n  gid = {MAIL_ID}\n  \
             home = {path}/mail/%{{user | domain}}/%{{user | username}}\n }}\n}}\n"
        ),
    } + &services(&path.to_string(), ports, judge);
    format!(
        "dovecot_config_version = 2.4.1\ndovecot_storage_version = 2.4.1\n\
         base_dir = {path}/run\nstate_dir = {path}/state\nlog_path = {path}/dovecot.log\n\
         protocols {{\n imap = yes\n pop3 = yes\n{sieve} lmtp = yes\n submission = yes\n}}\n\
         listen = 127.0.0.1\nssl = no\nauth_allow_cleartext = yes\nmail_driver = maildir\n\
         mail_path = ~/Maildir\nfirst_valid_uid = 1\nsubmission_relay_host = 127.0.0.1\n\
         submission_backend_capabilities = 8BITMIME\n{judge}"
    )
}

/// The blocks that 2.3 and 2.4 read alike.
fn services(path: &str, ports: [u16; 5], judge: Judge) -> String {
    let [imap, pop3, sieve, submission, lmtp] = ports;
    let login = |service: &str, listener: &str, port: u16, other: &str| {
        let other = match other {
            "" => String::new(),
            name => format!(" inet_listener {name} {{\n  port = 0\n }}\n"),
        };
        format!(
            "service {service} {{\n inet_listener {listener} {{\n  port = {port}\n }}\n{other}}}\n"
        )
    };
    let auth = match judge {
        Judge::Gatepost => {
            format!("service auth {{\n executable = {path}/shim {path}/gatepost\n}}\n")
        }
        _ => String::new(),
    };
    auth + &login("imap-login", "imap", imap, "imaps")
        + &login("pop3-login", "pop3", pop3, "pop3s")
        + &(if has_sieve(judge) {
            login("managesieve-login", "sieve", sieve, "")
        } else {
            String::new()
        })
        + &login("submission-login", "submission", submission, "submissions")
        + &login("lmtp", "lmtp", lmtp, "")
}
