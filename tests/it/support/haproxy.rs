//! A private HAProxy with the proxies of contrib/haproxy.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;

use super::{Running, free_port, listens, program, scratch, wait_until};

const PROXIES: &str = include_str!("../../../contrib/haproxy/haproxy.cfg");

/// A running HAProxy.
#[derive(Debug)]
pub(crate) struct Haproxy {
    /// Before the door that speaks Dovecot's auth protocol.
    pub(crate) auth: u16,
    /// Before the http door.
    pub(crate) web: u16,
    _running: Running,
    _directory: TempDir,
}

impl Haproxy {
    /// Before a gatepost whose doors have these ports.
    pub(crate) fn start(auth_door: u16, web_door: u16) -> Self {
        let directory = scratch(Path::new("/tmp"));
        let (auth, web) = (free_port(), free_port());
        let mut proxies = PROXIES.to_owned();
        for (shown, port) in
            [(":12345", auth), (":12346", auth_door), (":8421", web), (":8420", web_door)]
        {
            assert!(proxies.contains(shown), "{shown} is not in contrib/haproxy/haproxy.cfg");
            proxies = proxies.replace(shown, &format!(":{port}"));
        }
        let file = directory.path().join("haproxy.cfg");
        fs::write(&file, format!("global\n    maxconn 100\n\n{proxies}")).unwrap();
        let mut command = program("haproxy", "haproxy");
        command.arg("-db").arg("-f").arg(&file);
        let log = fs::File::create(directory.path().join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let running = Running::start("haproxy", &mut command);
        wait_until("HAProxy listens", Duration::from_secs(10), || listens(auth) && listens(web));
        Self { auth, web, _running: running, _directory: directory }
    }
}
