//! A private nginx: the files of contrib/nginx as they stand there, with ports of the test's own.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;

use super::{Running, free_port, listens, program, read_text, scratch, wait_until};

const MAIL: &str = include_str!("../../../contrib/nginx/mail.conf");
const FORWARD_AUTH: &str = include_str!("../../../contrib/nginx/forward-auth.conf");

/// A running nginx.
#[derive(Debug)]
pub(crate) struct Nginx {
    directory: TempDir,
    running: Running,
}

/// The ports of the mail proxy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MailPorts {
    pub(crate) imap: u16,
    pub(crate) pop3: u16,
    pub(crate) submission: u16,
    pub(crate) smtp: u16,
}

impl Nginx {
    /// The mail proxy, which asks the door on this port.
    pub(crate) fn mail(door: u16) -> (Self, MailPorts) {
        let [imap, pop3, submission, smtp] = std::array::from_fn(|_| free_port());
        let text = [
            ("127.0.0.1:8421", format!("127.0.0.1:{door}")),
            ("listen 143;", format!("listen 127.0.0.1:{imap};")),
            ("listen 110;", format!("listen 127.0.0.1:{pop3};")),
            ("listen 587;", format!("listen 127.0.0.1:{submission};")),
            ("listen 25;", format!("listen 127.0.0.1:{smtp};")),
        ]
        .into_iter()
        .fold(MAIL.to_owned(), |text, (from, to)| replaced(&text, from, &to));
        let module = "/usr/lib/nginx/modules/ngx_mail_module.so";
        assert!(Path::new(module).exists(), "apt-get install libnginx-mod-mail");
        let nginx = Self::start(&[imap, pop3, submission, smtp], |_| {
            format!("load_module {module};\n{text}")
        });
        (nginx, MailPorts { imap, pop3, submission, smtp })
    }

    /// A web site that asks the door on this port, and an application behind it that says what it was told. Gives the
    /// site's port.
    pub(crate) fn forward_auth(door: u16) -> (Self, u16) {
        let [site, application] = std::array::from_fn(|_| free_port());
        let text = replaced(FORWARD_AUTH, "127.0.0.1:8420", &format!("127.0.0.1:{door}"));
        let text = replaced(&text, "127.0.0.1:5232", &format!("127.0.0.1:{application}"));
        let nginx = Self::start(&[site, application], |path| {
            let path = path.display();
            let mut temporary = String::new();
            for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
                temporary += &format!("{kind}_temp_path {path}/{kind};\n");
            }
            format!(
                "http {{\naccess_log off;\n{temporary}\
                 server {{\nlisten 127.0.0.1:{site};\n{text}}}\n\
                 server {{\nlisten 127.0.0.1:{application};\nlocation / {{\nreturn 200 \
                 \"$http_remote_user|$http_remote_email|$http_remote_name|$http_x_remote_user|$http_authorization\";\n}}\n}}\n}}\n"
            )
        });
        (nginx, site)
    }

    fn start(ports: &[u16], body: impl Fn(&Path) -> String) -> Self {
        let directory = scratch(Path::new("/tmp"));
        let path = directory.path();
        let log = path.join("nginx.log");
        let text = format!(
            "daemon off;\nuser www-data;\nworker_processes 1;\npid {0}/nginx.pid;\nerror_log {0}/nginx.log info;\n\
             {1}\nevents {{ worker_connections 256; }}\n",
            path.display(),
            body(path)
        );
        fs::write(path.join("nginx.conf"), text).unwrap();
        let mut command = program("/usr/sbin/nginx", "nginx");
        command.arg("-p").arg(path).arg("-c").arg(path.join("nginx.conf")).arg("-e").arg(&log);
        let output = File::create(path.join("output")).unwrap();
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        let mut running = Running::start("nginx", &mut command);
        wait_until("nginx listens", Duration::from_secs(20), || {
            let said = || read_text(&path.join("output")) + &read_text(&log);
            assert!(running.ended().is_none(), "nginx ended: {}", said());
            ports.iter().all(|port| listens(*port))
        });
        Self { directory, running }
    }

    pub(crate) fn log(&self) -> String {
        read_text(&self.directory.path().join("nginx.log"))
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.running.end_with_children();
    }
}

/// The text with something else in one place; a file that no longer holds that place fails the test.
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "the file for pasting holds no {from:?}");
    text.replace(from, to)
}
