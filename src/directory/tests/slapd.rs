//! A private slapd: own directory, free loopback port, killed when dropped.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

pub(super) const BASE: &str = "dc=planetexpress,dc=com";
pub(super) const SERVICE: &str = "cn=service,dc=planetexpress,dc=com";
const ADMIN: &str = "cn=admin,dc=planetexpress,dc=com";

/// What the server is to be like.
#[derive(Clone, Default)]
pub(super) struct Wish {
    /// Lines for the end of slapd.conf.
    pub(super) conf: &'static str,
    /// Further entries.
    pub(super) ldif: &'static str,
    /// Offer ldaps on a second port, and StartTLS, also at ::1.
    pub(super) tls: bool,
}

pub(super) struct Slapd {
    pub(super) port: u16,
    pub(super) tls_port: u16,
    directory: tempfile::TempDir,
    urls: String,
    child: Child,
}

impl Slapd {
    pub(super) fn start(wish: &Wish) -> Self {
        assert!(Path::new("/usr/sbin/slapd").exists(), "install the Debian package slapd");
        assert!(Path::new("/usr/bin/ldapmodify").exists(), "install the Debian package ldap-utils");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().display();
        std::fs::create_dir(directory.path().join("db")).unwrap();
        let tls = if wish.tls {
            make_certificates(directory.path());
            format!(
                "TLSCACertificateFile {path}/ca.pem\nTLSCertificateFile {path}/cert.pem\n\
                 TLSCertificateKeyFile {path}/key.pem\n"
            )
        } else {
            String::new()
        };
        let conf = format!(
            "modulepath /usr/lib/ldap\nmoduleload back_mdb\nmoduleload ppolicy\nmoduleload memberof\n\
             include /etc/ldap/schema/core.schema\ninclude /etc/ldap/schema/cosine.schema\n\
             include /etc/ldap/schema/inetorgperson.schema\n{tls}\
             database mdb\nsuffix {BASE}\nrootdn {ADMIN}\nrootpw admin\ndirectory {path}/db\n\
             maxsize 16777216\ndbnosync\n\
             access to attrs=userPassword by anonymous auth by * none\naccess to * by * read\n\
             overlay memberof\n{}\n",
            wish.conf
        );
        std::fs::write(directory.path().join("slapd.conf"), conf).unwrap();
        let (port, tls_port) = (free_port(), free_port());
        let mut urls = format!("ldap://127.0.0.1:{port}/");
        if wish.tls {
            urls += &format!(
                " ldap://[::1]:{port}/ ldaps://127.0.0.1:{tls_port}/ ldaps://[::1]:{tls_port}/"
            );
        }
        let child = spawn(directory.path(), &urls);
        let slapd = Self { port, tls_port, directory, urls, child };
        slapd.wait_until_up();
        slapd.change(PEOPLE);
        slapd.change(wish.ldif);
        slapd
    }

    pub(super) fn url(&self) -> String {
        format!("ldap://127.0.0.1:{}", self.port)
    }

    pub(super) fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// Changes entries as the administrator; LDIF, `changetype: add` where none is given.
    pub(super) fn change(&self, ldif: &str) {
        let file = self.directory.path().join("change.ldif");
        std::fs::write(&file, ldif).unwrap();
        let output = Command::new("ldapmodify")
            .args(["-a", "-x", "-w", "admin", "-D", ADMIN, "-H", &self.url(), "-f"])
            .arg(&file)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// How many binds were tried as this DN.
    pub(super) fn binds(&self, dn: &str) -> usize {
        let wanted = format!("BIND dn=\"{dn}\" method=128");
        self.log().lines().filter(|line| line.contains(&wanted)).count()
    }

    /// How many searches ran whose log line holds this.
    pub(super) fn searches(&self, text: &str) -> usize {
        self.log()
            .lines()
            .filter(|line| line.contains(" SRCH base=") && line.contains(text))
            .count()
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.directory.path().join("log")).unwrap()).into()
    }

    pub(super) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
        // The signal is sent, but each thread stops when it comes to it, and may answer until then.
        while signal == Signal::STOP && !self.has_stopped() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn has_stopped(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        threads.flatten().all(|thread| {
            let status = std::fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            status.contains("State:\tT")
        })
    }

    pub(super) fn restart(&mut self) {
        self.stop();
        self.child = spawn(self.directory.path(), &self.urls);
        self.wait_until_up();
    }

    pub(super) fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn wait_until_up(&self) {
        for _ in 0..200 {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        panic!("slapd did not start: {}", self.log());
    }
}

impl Drop for Slapd {
    fn drop(&mut self) {
        self.stop();
    }
}

fn spawn(directory: &Path, urls: &str) -> Child {
    let log =
        std::fs::OpenOptions::new().create(true).append(true).open(directory.join("log")).unwrap();
    // -d 256: stays in the foreground and logs each operation.
    Command::new("/usr/sbin/slapd")
        .args(["-d", "256", "-h", urls, "-f"])
        .arg(directory.join("slapd.conf"))
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

pub(super) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// A CA, and a server certificate for 127.0.0.1, ::1 and directory.example.
fn make_certificates(directory: &Path) {
    let run = |arguments: &str| {
        let output = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(directory)
            .output()
            .expect("install the Debian package openssl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let names = "basicConstraints=CA:FALSE\n\
                 subjectAltName=IP:127.0.0.1,IP:::1,DNS:directory.example\n";
    std::fs::write(directory.join("names"), names).unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    run(&format!("req -x509 {key} -keyout ca.key -out ca.pem -days 9 -subj /CN=TestCA"));
    run(&format!("req {key} -keyout key.pem -out request.pem -subj /CN=slapd"));
    run(
        "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -out cert.pem -days 9 \
         -extfile names",
    );
}

const PEOPLE: &str = "
dn: dc=planetexpress,dc=com
objectClass: domain
dc: planetexpress

dn: cn=service,dc=planetexpress,dc=com
objectClass: organizationalRole
objectClass: simpleSecurityObject
cn: service
userPassword: service

dn: ou=people,dc=planetexpress,dc=com
objectClass: organizationalUnit
ou: people

dn: ou=moon,dc=planetexpress,dc=com
objectClass: organizationalUnit
ou: moon

dn: uid=fry,ou=people,dc=planetexpress,dc=com
objectClass: inetOrgPerson
uid: fry
cn: Philip J. Fry
sn: Fry
mail: fry@planetexpress.com
mail: orange@planetexpress.com
userPassword: fry

dn: uid=leela,ou=people,dc=planetexpress,dc=com
objectClass: inetOrgPerson
uid: leela
cn: Turanga Leela
sn: Leela
mail: leela@planetexpress.com
userPassword: leela

dn: uid=amy,ou=people,dc=planetexpress,dc=com
objectClass: inetOrgPerson
uid: amy
cn: Amy Wong
sn: Wong
title: intern
mail: amy@planetexpress.com
userPassword: amy

dn: cn=ship_crew,ou=people,dc=planetexpress,dc=com
objectClass: groupOfNames
cn: ship_crew
member: uid=leela,ou=people,dc=planetexpress,dc=com
";
