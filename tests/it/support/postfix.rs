//! A private Postfix: 3.7 of Debian 12 or 3.10 of Debian 13. Its smtpd asks an auth socket; or all of it asks
//! Gatepost, as contrib/postfix says.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::dovecot::Home;
use super::gatepost::Gatepost;
use super::{directory_of, free_port, listens, program, read_text, run, wait_until};

/// A running Postfix.
#[derive(Debug)]
pub(crate) struct Postfix {
    place: Place,
    /// `smtp`, for the world.
    pub(crate) port: u16,
    /// The service of contrib/postfix/master.cf.
    pub(crate) submission: u16,
    /// AUTH without TLS, and the policy server alone to judge senders.
    pub(crate) open_submission: u16,
}

/// The directory of an instance, made before it is started: others bind their sockets below its queue directory.
#[derive(Debug)]
pub(crate) struct Place {
    home: Home,
    directory: TempDir,
}

impl Place {
    pub(crate) fn new(home: Home) -> Self {
        let directory = home.scratch();
        let place = Self { home, directory };
        let path = place.directory.path();
        fs::create_dir(path.join("etc")).unwrap();
        fs::create_dir(path.join("spool")).unwrap();
        let id = |flag: &str| -> u32 {
            run(home.program("/usr/bin/id", "coreutils").args([flag, "postfix"]))
                .trim()
                .parse()
                .unwrap()
        };
        let (user, group) = (id("-u"), id("-g"));
        directory_of(&path.join("data"), user, 0o700);
        directory_of(&path.join("spool/private"), user, 0o700);
        // As contrib/systemd/gatepost.tmpfiles makes it.
        let ours = path.join("spool/gatepost");
        fs::create_dir(&ours).unwrap();
        std::os::unix::fs::chown(&ours, None, Some(group)).unwrap();
        fs::set_permissions(&ours, fs::Permissions::from_mode(0o2750)).unwrap();
        place
    }

    /// A socket of Gatepost's, as the host sees it.
    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.directory.path().join("spool/gatepost").join(name)
    }

    /// The queue directory as Postfix sees it, and whoever else lives in the same place.
    pub(crate) fn spool(&self) -> PathBuf {
        self.inner().join("spool")
    }

    /// The directory as Postfix sees it.
    fn inner(&self) -> PathBuf {
        self.home.seen_inside(self.directory.path())
    }

    fn certificate(&self) {
        let mut command = program("openssl", "openssl");
        command.current_dir(self.directory.path().join("etc"));
        command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]);
        command.args(["-nodes", "-days", "2", "-subj", "/CN=localhost"]);
        run(command.args(["-keyout", "key.pem", "-out", "cert.pem"]));
    }
}

impl Postfix {
    /// Asks this daemon by TCP: its own unix sockets cannot be seen from inside a tree.
    pub(crate) fn start(home: Home, judge: &Gatepost) -> Self {
        let sasl_path = format!("inet:127.0.0.1:{}", judge.configuration.auth_port);
        Self::with_sasl(Place::new(home), &sasl_path)
    }

    /// Asks by the socket `auth` of this place.
    pub(crate) fn by_socket(place: Place) -> Self {
        let sasl_path = format!("unix:{}/gatepost/auth", place.spool().display());
        Self::with_sasl(place, &sasl_path)
    }

    /// `sasl_path` is what `smtpd_sasl_path` takes: `unix:/path` or `inet:host:port`.
    pub(crate) fn with_sasl(place: Place, sasl_path: &str) -> Self {
        let sasl = format!(
            "smtpd_sasl_auth_enable = yes\nsmtpd_sasl_type = dovecot\nsmtpd_sasl_path = {sasl_path}\n\
             smtpd_sasl_security_options = noanonymous\n\
             smtpd_relay_restrictions = permit_sasl_authenticated, reject\n"
        );
        // Outside the chroot, where the path of a socket means what it says.
        Self::run(place, &sasl, "", 'n')
    }

    /// With the very lines of contrib/postfix; Gatepost's and Dovecot's sockets are where those say.
    pub(crate) fn of_contrib(place: Place) -> Self {
        Self::of_contrib_and(place, "")
    }

    /// With further lines in main.cf.
    pub(crate) fn of_contrib_and(place: Place, further_lines: &str) -> Self {
        place.certificate();
        let etc = place.inner().join("etc");
        let main = format!(
            "smtpd_tls_cert_file = {0}/cert.pem\nsmtpd_tls_key_file = {0}/key.pem\n\
             smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination\n{1}\n{further_lines}",
            etc.display(),
            include_str!("../../../contrib/postfix/main.cf")
        );
        Self::run(place, &main, include_str!("../../../contrib/postfix/master.cf"), 'y')
    }

    /// By way of Cyrus SASL, with the lines of contrib/cyrus/main.cf and what libsasl is to read.
    pub(crate) fn with_cyrus(place: Place, smtpd_conf: &str) -> Self {
        let sasl = place.directory.path().join("etc/sasl");
        fs::create_dir(&sasl).unwrap();
        fs::write(sasl.join("smtpd.conf"), smtpd_conf).unwrap();
        let main = include_str!("../../../contrib/cyrus/main.cf");
        let main = main.replace("/etc/postfix", place.inner().join("etc").to_str().unwrap());
        let relay = "smtpd_relay_restrictions = permit_sasl_authenticated, reject\n";
        // In the chroot, as Debian has it: an absolute path in smtpd.conf means the one seen from there.
        Self::run(place, &(main + relay), "", 'y')
    }

    fn run(place: Place, main: &str, master: &str, chroot: char) -> Self {
        let [port, submission, open_submission] = std::array::from_fn(|_| free_port());
        let postfix = Self { place, port, submission, open_submission };
        let etc = postfix.place.directory.path().join("etc");
        fs::write(etc.join("main.cf"), main_cf(&postfix.place.inner()) + main).unwrap();
        let submission = format!("\n127.0.0.1:{submission} ");
        let master = master_cf(port, open_submission, chroot)
            + &master.replace("\nsubmission ", &submission);
        fs::write(etc.join("master.cf"), master).unwrap();
        postfix.command("start");
        wait_until("Postfix listens", Duration::from_secs(20), || listens(port));
        postfix
    }

    pub(crate) fn log(&self) -> String {
        read_text(&self.place.directory.path().join("postfix.log"))
    }

    fn command(&self, word: &str) {
        let mut command = self.place.home.program("/usr/sbin/postfix", "postfix");
        // A daemon must not keep the test's own output open.
        command.stdin(Stdio::null());
        let output = command.arg("-c").arg(self.place.inner().join("etc")).arg(word).output();
        let output = output.unwrap();
        let said = super::printed(&output) + &self.log();
        assert!(output.status.success() || std::thread::panicking(), "postfix {word}: {said}");
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        self.command("stop");
    }
}

/// `postmap -q`: asks one look-up table without a Postfix that runs.
pub(crate) struct Postmap {
    place: Place,
    port: u16,
}

impl Postmap {
    pub(crate) fn new(home: Home, port: u16) -> Self {
        let place = Place::new(home);
        let etc = place.directory.path().join("etc");
        fs::write(etc.join("main.cf"), "compatibility_level = 3.6\n").unwrap();
        fs::write(etc.join("master.cf"), "").unwrap();
        Self { place, port }
    }

    pub(crate) fn ask(&self, map: &str, key: &str) -> Output {
        let mut command = self.place.home.program("/usr/sbin/postmap", "postfix");
        command.arg("-c").arg(self.place.inner().join("etc")).arg("-q").arg(key);
        command.arg(format!("socketmap:inet:127.0.0.1:{}:{map}", self.port));
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// Its exit code and what it printed, without the port and whatever errno happened to be.
    pub(crate) fn said(&self, map: &str, key: &str) -> String {
        let output = self.ask(map, key);
        let mut printed = super::printed(&output).replace(&self.port.to_string(), "…");
        let error = "query error: ";
        if let Some(at) = printed.find(error) {
            printed.replace_range(at + error.len().., "…");
        }
        let code = output.status.code().unwrap_or(-1);
        format!("exit {code}: {}", printed.trim()).trim_end_matches(": ").to_owned()
    }
}

fn main_cf(path: &Path) -> String {
    let path = path.display();
    format!(
        "compatibility_level = 3.6\nqueue_directory = {path}/spool\ndata_directory = {path}/data\n\
         maillog_file = {path}/postfix.log\nmaillog_file_prefixes = /tmp\nmyhostname = mx.planetexpress.com\n\
         inet_interfaces = 127.0.0.1\ninet_protocols = ipv4\nmydestination =\nlocal_recipient_maps =\n\
         alias_maps =\nalias_database =\nmynetworks =\nsmtpd_peername_lookup = no\n\
         smtpd_client_connection_count_limit = 0\n"
    )
}

/// As Debian has it, where what asks Gatepost lives in the chroot; or out of it.
fn master_cf(port: u16, open_submission: u16, chroot: char) -> String {
    format!(
        "127.0.0.1:{port} inet n - {chroot} - 200 smtpd\n\
         127.0.0.1:{open_submission} inet n - {chroot} - - smtpd\n \
         -o smtpd_sasl_auth_enable=yes\n \
         -o smtpd_sender_restrictions=check_policy_service,unix:gatepost/policy\n \
         -o smtpd_relay_restrictions=permit_sasl_authenticated,reject\n\
         pickup unix n - n 60 1 pickup\ncleanup unix n - y - 0 cleanup\nqmgr unix n - n 300 1 qmgr\n\
         tlsmgr unix - - y 1000? 1 tlsmgr\nrewrite unix - - y - - trivial-rewrite\nlmtp unix - - y - - lmtp\n\
         bounce unix - - y - 0 bounce\ndefer unix - - y - 0 bounce\ntrace unix - - y - 0 bounce\n\
         proxymap unix - - n - - proxymap\nerror unix - - y - - error\nretry unix - - y - - error\n\
         anvil unix - - y - 1 anvil\npostlog unix-dgram n - n - 1 postlogd\n"
    )
}
