//! A private 389 Directory Server with fry, the service account, and content synchronization (RFC 4533).
//!
//! `dscreate` makes instances for systemd only; this fills the package's template of a configuration instead.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;

use super::slapd::{BASE, PEOPLE, SERVICE_DN, SERVICE_PASSWORD, dn_of, mail_of, password_of};
use super::{Running, free_port, listens, program, read_text, run, scratch, wait_until};

const TEMPLATE: &str = "/usr/share/dirsrv/data/template-dse.ldif";
const ADMIN_DN: &str = "cn=Directory Manager";
const ADMIN_PASSWORD: &str = "Bridge-Tr0ub4dor-1";

/// A 389 Directory Server.
#[derive(Debug)]
pub(crate) struct ThreeEightNine {
    directory: TempDir,
    pub(crate) port: u16,
    running: Option<Running>,
}

impl ThreeEightNine {
    pub(crate) fn start() -> Self {
        let mut server =
            Self { directory: scratch(Path::new("/tmp")), port: free_port(), running: None };
        for name in ["config/schema", "db", "bak", "ldif", "run", "lock", "log"] {
            fs::create_dir_all(server.path(name)).unwrap();
        }
        fs::write(
            server.path("config/schema/99user.ldif"),
            "dn: cn=schema\nobjectClass: top\nobjectClass: ldapSubentry\nobjectClass: subschema\ncn: schema\n",
        )
        .unwrap();
        fs::write(server.path("config/dse.ldif"), server.configuration()).unwrap();
        server.run_it();
        server.change(&content());
        server
    }

    fn run_it(&mut self) {
        let mut command = program("/usr/sbin/ns-slapd", "389-ds-base");
        command.arg("-D").arg(self.path("config")).args(["-d", "0"]);
        let log = fs::File::create(self.path("said")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut running = Running::start("ns-slapd", &mut command);
        let (port, log) = (self.port, self.path("log/errors"));
        wait_until("ns-slapd listens", Duration::from_secs(60), || {
            assert!(running.ended().is_none(), "ns-slapd ended: {}", read_text(&log));
            listens(port)
        });
        self.running = Some(running);
    }

    pub(crate) fn set_attribute(&self, uid: &str, attribute: &str, value: &str) {
        let dn = dn_of(uid);
        self.change(&format!(
            "dn: {dn}\nchangetype: modify\nreplace: {attribute}\n{attribute}: {value}\n"
        ));
    }

    pub(crate) fn delete(&self, uid: &str) {
        self.change(&format!("dn: {}\nchangetype: delete\n", dn_of(uid)));
    }

    fn change(&self, ldif: &str) {
        let path = self.path("change.ldif");
        fs::write(&path, ldif).unwrap();
        let mut command = program("ldapmodify", "ldap-utils");
        command.args(["-x", "-H", &format!("ldap://127.0.0.1:{}", self.port)]);
        command.args(["-D", ADMIN_DN, "-w", ADMIN_PASSWORD, "-f"]);
        run(command.arg(path));
    }

    fn configuration(&self) -> String {
        assert!(Path::new(TEMPLATE).exists(), "{TEMPLATE} is missing: apt-get install 389-ds-base");
        let mut hash = program("pwdhash", "389-ds-base");
        let hash = hash.args(["-s", "SSHA512", ADMIN_PASSWORD]).output().unwrap();
        let hash = String::from_utf8(hash.stdout).unwrap();
        let port = self.port.to_string();
        let mut text = read_text(Path::new(TEMPLATE));
        for (name, value) in [
            ("fqdn", "localhost"),
            ("ds_port", &port),
            ("ds_user", "root"),
            ("ds_suffix", BASE),
            ("ds_passwd", hash.trim()),
            ("rootdn", ADMIN_DN),
            ("db_lib", "mdb"),
            ("ldapi_enabled", "off"),
            ("ldapi_autobind", "off"),
        ] {
            text = text.replace(&format!("%{name}%"), value);
        }
        for (name, place) in [
            ("config_dir", "config"),
            ("cert_dir", "config"),
            ("schema_dir", "config/schema"),
            ("db_dir", "db"),
            ("db_home_dir", "db"),
            ("bak_dir", "bak"),
            ("ldif_dir", "ldif"),
            ("run_dir", "run"),
            ("ldapi", "run/ldapi"),
            ("lock_dir", "lock"),
            ("log_dir", "log"),
            ("inst_dir", "run"),
            ("tmp_dir", "run"),
        ] {
            text = text.replace(&format!("%{name}%"), &self.path(place).display().to_string());
        }
        for plugin in ["Retro Changelog Plugin", "Content Synchronization"] {
            text = switched_on(&text, plugin);
        }
        text
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for ThreeEightNine {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.end_with_children();
        }
    }
}

/// The configuration with one plugin on.
fn switched_on(text: &str, plugin: &str) -> String {
    let (before, rest) = text.split_once(&format!("dn: cn={plugin},")).expect("the plugin");
    let (entry, after) = rest.split_once("\n\n").expect("an end of the entry");
    let entry = entry.replace("nsslapd-pluginenabled: off", "nsslapd-pluginenabled: on");
    format!("{before}dn: cn={plugin},{entry}\n\n{after}")
}

/// A database for the suffix, whoever may read it, and people.
fn content() -> String {
    let (fry, mail, password) = (dn_of("fry"), mail_of("fry"), password_of("fry"));
    format!(
        "dn: cn=planet,cn=ldbm database,cn=plugins,cn=config\nchangetype: add\nobjectClass: extensibleObject\n\
         objectClass: nsBackendInstance\ncn: planet\nnsslapd-suffix: {BASE}\n\n\
         dn: cn=\"{BASE}\",cn=mapping tree,cn=config\nchangetype: add\nobjectClass: extensibleObject\n\
         objectClass: nsMappingTree\ncn: {BASE}\nnsslapd-state: backend\nnsslapd-backend: planet\n\n\
         dn: {BASE}\nchangetype: add\nobjectClass: domain\ndc: planetexpress\n\
         aci: (targetattr=\"*\")(version 3.0; acl \"service\"; allow (read,search,compare) userdn=\"ldap:///{SERVICE_DN}\";)\n\n\
         dn: ou=services,{BASE}\nchangetype: add\nobjectClass: organizationalUnit\n\n\
         dn: {SERVICE_DN}\nchangetype: add\nobjectClass: organizationalRole\nobjectClass: simpleSecurityObject\n\
         userPassword: {SERVICE_PASSWORD}\n\n\
         dn: {PEOPLE}\nchangetype: add\nobjectClass: organizationalUnit\n\n\
         dn: {fry}\nchangetype: add\nobjectClass: inetOrgPerson\nuid: fry\ncn: Philip Fry\nsn: Fry\nmail: {mail}\n\
         employeeType: crew\nuserPassword: {password}\n"
    )
}
