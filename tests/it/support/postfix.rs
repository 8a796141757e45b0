//! A private Postfix whose smtpd asks a Dovecot auth socket.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::{directory_of, free_port, listens, program, read_text, run, scratch, wait_until};

/// A running Postfix.
#[derive(Debug)]
pub(crate) struct Postfix {
    directory: TempDir,
    pub(crate) port: u16,
}

impl Postfix {
    /// `sasl_path` is what `smtpd_sasl_path` takes: `unix:/path` or `inet:host:port`.
    pub(crate) fn start(sasl_path: &str) -> Self {
        let directory = scratch(Path::new("/tmp"));
        let port = free_port();
        let postfix = Self { port, directory };
        let path = postfix.directory.path();
        let configuration = path.join("etc");
        fs::create_dir(&configuration).unwrap();
        fs::create_dir(path.join("spool")).unwrap();
        let owner = run(program("id", "coreutils").args(["-u", "postfix"]));
        directory_of(&path.join("data"), owner.trim().parse().unwrap(), 0o700);
        fs::write(configuration.join("main.cf"), main_cf(path, sasl_path)).unwrap();
        fs::write(configuration.join("master.cf"), master_cf(port)).unwrap();
        postfix.command("start");
        wait_until("Postfix listens", Duration::from_secs(20), || listens(port));
        postfix
    }

    pub(crate) fn log(&self) -> String {
        read_text(&self.log_path())
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("postfix.log")
    }

    fn command(&self, word: &str) {
        let mut command = program("/usr/sbin/postfix", "postfix");
        let output =
            command.arg("-c").arg(self.directory.path().join("etc")).arg(word).output().unwrap();
        let said = super::printed(&output) + &self.log();
        assert!(output.status.success() || std::thread::panicking(), "postfix {word}: {said}");
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        self.command("stop");
    }
}

fn main_cf(path: &Path, sasl_path: &str) -> String {
    let path = path.display();
    format!(
        "compatibility_level = 3.6\nqueue_directory = {path}/spool\ndata_directory = {path}/data\n\
         maillog_file = {path}/postfix.log\nmaillog_file_prefixes = /tmp\nmyhostname = mx.planetexpress.com\n\
         inet_interfaces = 127.0.0.1\ninet_protocols = ipv4\nmydestination =\nlocal_recipient_maps =\n\
         alias_maps =\nalias_database =\nmynetworks =\nsmtpd_peername_lookup = no\n\
         smtpd_sasl_auth_enable = yes\nsmtpd_sasl_type = dovecot\nsmtpd_sasl_path = {sasl_path}\n\
         smtpd_sasl_security_options = noanonymous\n\
         smtpd_relay_restrictions = permit_sasl_authenticated, reject\n\
         smtpd_client_connection_count_limit = 0\n"
    )
}

fn master_cf(port: u16) -> String {
    format!(
        "127.0.0.1:{port} inet n - n - 200 smtpd\n\
         pickup unix n - n 60 1 pickup\ncleanup unix n - n - 0 cleanup\nqmgr unix n - n 300 1 qmgr\n\
         rewrite unix - - n - - trivial-rewrite\nbounce unix - - n - 0 bounce\ndefer unix - - n - 0 bounce\n\
         proxymap unix - - n - - proxymap\nerror unix - - n - - error\nretry unix - - n - - error\n\
         anvil unix - - n - 1 anvil\npostlog unix-dgram n - n - 1 postlogd\n"
    )
}
