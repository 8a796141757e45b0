//! A private Exim, which `contrib/exim-tree` lays beside Postfix, with the files of contrib/exim as they stand there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::{Running, free_port, listens, program, read_text, scratch, wait_until};

const MAIN: &str = include_str!("../../../contrib/exim/main.conf");
const ACL: &str = include_str!("../../../contrib/exim/acl.conf");
const ROUTERS: &str = include_str!("../../../contrib/exim/routers.conf");
const TRANSPORTS: &str = include_str!("../../../contrib/exim/transports.conf");
const AUTHENTICATORS: &str = include_str!("../../../contrib/exim/authenticators.conf");
const SASLAUTHD: &str = include_str!("../../../contrib/exim/authenticators-saslauthd.conf");

/// Whom it asks about passwords.
#[derive(Clone, Debug)]
pub(crate) enum Judge {
    /// Dovecot's auth client protocol: a path, or host and port with a blank between.
    Dovecot(String),
    /// saslauthd's protocol, on this socket.
    Saslauthd(PathBuf),
}

/// A running Exim.
#[derive(Debug)]
pub(crate) struct Exim {
    directory: TempDir,
    pub(crate) port: u16,
    running: Running,
}

impl Exim {
    /// `maps` is the socketmap door: a path, or `inet:host:port`.
    pub(crate) fn start(judge: &Judge, maps: &str) -> Self {
        let directory = scratch(Path::new("/tmp"));
        let port = free_port();
        let file = directory.path().join("exim.conf");
        fs::write(&file, configuration(directory.path(), judge, maps)).unwrap();
        // It does not read what others could have written.
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let mut command = exim(judge);
        command.arg("-C").arg(file).args(["-bdf", "-oX"]).arg(format!("127.0.0.1:{port}"));
        command.arg("-oP").arg(directory.path().join("exim.pid"));
        let said = directory.path().join("output");
        let output = fs::File::create(&said).unwrap();
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        let mut running = Running::start("exim", &mut command);
        wait_until("Exim listens", Duration::from_secs(20), || {
            assert!(running.ended().is_none(), "exim ended: {}", read_text(&said));
            listens(port)
        });
        Self { directory, port, running }
    }

    /// `exim -bt`: which router takes an address, and where to.
    pub(crate) fn route(&self, address: &str) -> String {
        let mut command = program(binary().to_str().unwrap(), "exim4 (contrib/exim-tree)");
        command.arg("-C").arg(self.directory.path().join("exim.conf")).args(["-bt", address]);
        super::printed(&command.output().unwrap())
    }

    pub(crate) fn log(&self) -> String {
        read_text(&self.directory.path().join("spool/log/mainlog"))
            + &read_text(&self.directory.path().join("spool/log/paniclog"))
    }
}

impl Drop for Exim {
    fn drop(&mut self) {
        self.running.end_with_children();
    }
}

fn binary() -> PathBuf {
    let cache = std::env::var_os("GATEPOST_CACHE").unwrap_or("/var/cache/gatepost".into());
    let tree = PathBuf::from(cache).join("exim");
    let binary = tree.join("usr/sbin/exim4");
    assert!(binary.exists(), "no Exim in {0}: contrib/exim-tree {0}", tree.display());
    binary
}

/// The path of saslauthd's socket is compiled in, below /run: such an Exim gets a /run of its own.
fn exim(judge: &Judge) -> Command {
    let binary = binary();
    let Judge::Saslauthd(socket) = judge else {
        return program(binary.to_str().unwrap(), "exim4 (contrib/exim-tree)");
    };
    let mut command = program("unshare", "util-linux");
    let script = "mount -t tmpfs tmpfs /run && mkdir /run/saslauthd && ln -s \"$1\" /run/saslauthd/mux && \
                  shift && exec \"$@\"";
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(socket).arg(binary);
    command
}

/// What an instance of one's own needs, and around it the files for pasting.
fn configuration(path: &Path, judge: &Judge, maps: &str) -> String {
    let (binary, path) = (binary(), path.display());
    let (auth, authenticators) = match judge {
        Judge::Dovecot(place) => (place.as_str(), AUTHENTICATORS),
        Judge::Saslauthd(_) => ("/nonexistent", SASLAUTHD),
    };
    let main = replaced(
        MAIN,
        "GATEPOST_AUTH = /run/gatepost/exim\n",
        &format!("GATEPOST_AUTH = {auth}\n"),
    );
    let main = replaced(
        &main,
        "GATEPOST_MAPS = /run/gatepost/exim-maps\n",
        &format!("GATEPOST_MAPS = {maps}\n"),
    );
    format!(
        "AUTH_SERVER_ALLOW_NOTLS_PASSWORDS = yes\nexim_path = {}\nprimary_hostname = mx.planetexpress.com\n\
         spool_directory = {path}/spool\nlog_file_path = {path}/spool/log/%slog\n\
         pid_file_path = {path}/exim.pid\nwrite_rejectlog = false\ndaemon_startup_retries = 0\n\
         notifier_socket =\nlocal_interfaces = 127.0.0.1\ndisable_ipv6 = true\nhost_lookup =\nrfc1413_hosts =\n\
         smtp_accept_max = 200\nsmtp_accept_max_per_host = 200\nsmtp_enforce_sync = false\n\
         tls_advertise_hosts =\nqueue_only = true\nkeep_environment =\nacl_smtp_rcpt = recipient\n\
         acl_smtp_mail = gatepost_sender\n\
         {main}\ndomainlist local_domains = @ : +gatepost_domains\nbegin acl\n{ACL}\nrecipient:\n accept authenticated = *\n\
         require message = relay not permitted\n domains = +local_domains\n require verify = recipient\n accept\n\
         begin routers\n{ROUTERS}\nbegin transports\n{TRANSPORTS}\nbegin authenticators\n{authenticators}",
        binary.display()
    )
}

fn replaced(text: &str, old: &str, new: &str) -> String {
    assert!(text.contains(old), "contrib/exim/main.conf has no line {old:?}");
    text.replace(old, new)
}
