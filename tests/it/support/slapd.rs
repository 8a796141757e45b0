//! A private slapd with the people of the Planet Express directory.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Signal;
use tempfile::TempDir;

use super::{Running, free_port, listens, program, read_text, run, scratch, wait_until};

pub(crate) const BASE: &str = "dc=planetexpress,dc=com";
pub(crate) const PEOPLE: &str = "ou=people,dc=planetexpress,dc=com";
pub(crate) const FORMER: &str = "ou=former,dc=planetexpress,dc=com";
pub(crate) const SERVICE_DN: &str = "cn=gatepost,ou=services,dc=planetexpress,dc=com";
pub(crate) const SERVICE_PASSWORD: &str = "service-Tr0ub4dor";
const ADMIN_DN: &str = "cn=admin,dc=planetexpress,dc=com";
const ADMIN_PASSWORD: &str = "GoodNewsEveryone-Tr0ub4dor";

/// uid, given name, surname, employeeType (the attribute that picks the template).
const CREW: [(&str, &str, &str, &str); 7] = [
    ("fry", "Philip", "Fry", "crew"),
    ("leela", "Turanga", "Leela", "crew"),
    ("bender", "Bender", "Rodriguez", "crew"),
    ("hermes", "Hermes", "Conrad", "office"),
    ("professor", "Hubert", "Farnsworth", "office"),
    ("zoidberg", "John", "Zoidberg", "crew"),
    ("amy", "Amy", "Wong", "intern"),
];

/// Everybody's password holds this, so that one search of a log finds any that leaked.
pub(crate) const LEAK_MARK: &str = "Tr0ub4dor";

/// The password somebody starts with. Not the bare uid as in the public test directory: names stand in logs.
pub(crate) fn password_of(uid: &str) -> String {
    format!("{uid}-{LEAK_MARK}")
}

/// The mail address of somebody.
pub(crate) fn mail_of(uid: &str) -> String {
    format!("{uid}@planetexpress.com")
}

/// The DN somebody starts with.
pub(crate) fn dn_of(uid: &str) -> String {
    format!("uid={uid},{PEOPLE}")
}

/// A directory server.
#[derive(Debug)]
pub(crate) struct Slapd {
    directory: TempDir,
    pub(crate) port: u16,
    pub(crate) tls_port: u16,
    running: Option<Running>,
}

/// What a directory shall be like.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wish {
    /// An account locks after three wrong passwords.
    pub(crate) ppolicy: bool,
    /// Groups show as memberOf.
    pub(crate) member_of: bool,
    /// Changes are told as they happen (RFC 4533).
    pub(crate) syncprov: bool,
    /// Each login leaves its time at the entry.
    pub(crate) last_bind: bool,
    /// Also recruit01, recruit02, …
    pub(crate) recruits: usize,
}

impl Slapd {
    pub(crate) fn start() -> Self {
        Self::with(Wish::default())
    }

    pub(crate) fn with(wish: Wish) -> Self {
        let directory = scratch(Path::new("/tmp"));
        let path = directory.path();
        fs::create_dir(path.join("db")).unwrap();
        make_certificates(path);
        fs::write(path.join("slapd.conf"), configuration(path, wish)).unwrap();
        fs::write(path.join("people.ldif"), people(wish)).unwrap();
        let mut load = program("/usr/sbin/slapadd", "slapd");
        run(load.arg("-f").arg(path.join("slapd.conf")).arg("-l").arg(path.join("people.ldif")));
        let mut slapd = Self { port: free_port(), tls_port: free_port(), directory, running: None };
        slapd.start_again();
        if wish.member_of {
            // slapadd runs no overlays: groups come in by the front door.
            slapd.ldif("ldapadd", &groups());
        }
        slapd
    }

    /// Starts it on the same ports, with the same data.
    pub(crate) fn start_again(&mut self) {
        assert!(self.running.is_none(), "slapd runs already");
        let (port, tls_port) = (self.port, self.tls_port);
        let log = File::options().append(true).create(true).open(self.log_path()).unwrap();
        // -d also keeps it in the foreground; 256 is the level "stats".
        let mut command = program("/usr/sbin/slapd", "slapd");
        command
            .args(["-d", "256", "-h"])
            .arg(format!("ldap://127.0.0.1:{port}/ ldaps://127.0.0.1:{tls_port}/"))
            .arg("-f")
            .arg(self.directory.path().join("slapd.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let mut running = Running::start("slapd", &mut command);
        let log_path = self.log_path();
        wait_until("slapd listens", Duration::from_secs(20), || {
            assert!(running.ended().is_none(), "slapd ended: {}", read_text(&log_path));
            listens(port) && listens(tls_port)
        });
        self.running = Some(running);
    }

    /// SIGTERM: later connections are refused.
    pub(crate) fn stop(&mut self) {
        self.running.take().expect("slapd runs").stop();
    }

    /// Starts it on other ports, where nobody follows it, has the work done there, and starts it on its own again.
    pub(crate) fn elsewhere(&mut self, work: impl FnOnce(&Self)) {
        let own = (self.port, self.tls_port);
        (self.port, self.tls_port) = (free_port(), free_port());
        self.start_again();
        work(self);
        self.stop();
        (self.port, self.tls_port) = own;
        self.start_again();
    }

    /// SIGKILL: connections break off.
    pub(crate) fn kill9(&mut self) {
        self.running.take().expect("slapd runs").kill9();
    }

    /// SIGSTOP: connections are taken by the kernel and never answered.
    pub(crate) fn pause(&self) {
        let running = self.running.as_ref().expect("slapd runs");
        running.signal(Signal::STOP);
        // Each thread stops when it gets its turn: on a busy machine some go on answering for a while.
        let tasks = format!("/proc/{}/task", running.id());
        let is_stopped = |task: PathBuf| {
            let stat = read_text(&task.join("stat"));
            stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T'))
        };
        wait_until("every thread of slapd has stopped", Duration::from_secs(10), || {
            let mut tasks = fs::read_dir(&tasks).unwrap();
            tasks.all(|task| is_stopped(task.unwrap().path()))
        });
    }

    /// SIGCONT.
    pub(crate) fn resume(&self) {
        self.running.as_ref().expect("slapd runs").signal(Signal::CONT);
    }

    /// The certificate that signed the server's.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// A certificate that did not sign the server's.
    pub(crate) fn wrong_ca_file(&self) -> PathBuf {
        self.directory.path().join("other-ca.pem")
    }

    /// Applies LDIF change records as administrator.
    pub(crate) fn modify(&self, ldif: &str) {
        self.ldif("ldapmodify", ldif);
    }

    pub(crate) fn set_password(&self, uid: &str, password: &str) {
        let dn = dn_of(uid);
        self.modify(&format!(
            "dn: {dn}\nchangetype: modify\nreplace: userPassword\nuserPassword: {password}\n"
        ));
    }

    /// A password of any bytes.
    pub(crate) fn set_raw_password(&self, uid: &str, password: &[u8]) {
        let (dn, encoded) = (dn_of(uid), STANDARD.encode(password));
        self.modify(&format!(
            "dn: {dn}\nchangetype: modify\nreplace: userPassword\nuserPassword:: {encoded}\n"
        ));
    }

    pub(crate) fn set_attribute(&self, uid: &str, attribute: &str, value: &str) {
        let dn = dn_of(uid);
        self.modify(&format!(
            "dn: {dn}\nchangetype: modify\nreplace: {attribute}\n{attribute}: {value}\n"
        ));
    }

    /// Whoever is to change their password may do nothing else; for a directory with `ppolicy`.
    pub(crate) fn must_change(&self, uid: &str) {
        self.modify(&format!(
            "dn: cn=default,ou=services,{BASE}\nchangetype: modify\nreplace: pwdMustChange\npwdMustChange: TRUE\n\n\
             dn: {}\nchangetype: modify\nreplace: pwdReset\npwdReset: TRUE\n",
            dn_of(uid)
        ));
    }

    /// Moves somebody to another organisational unit: same entry, other DN.
    pub(crate) fn move_to(&self, uid: &str, parent: &str) {
        let dn = dn_of(uid);
        self.modify(&format!(
            "dn: {dn}\nchangetype: modrdn\nnewrdn: uid={uid}\ndeleteoldrdn: 1\nnewsuperior: {parent}\n"
        ));
    }

    pub(crate) fn delete(&self, uid: &str) {
        self.modify(&format!("dn: {}\nchangetype: delete\n", dn_of(uid)));
    }

    /// Somebody of that name and password, as a new entry with an entryUUID of its own.
    pub(crate) fn create(&self, uid: &str) {
        self.ldif("ldapadd", &person(uid, "New", "Comer", "crew"));
    }

    /// One bind with ldapwhoami, as another program on the net would do it; whether it was accepted.
    pub(crate) fn bind(&self, uid: &str, password: &str) -> bool {
        let mut command = program("ldapwhoami", "ldap-utils");
        command.args(["-x", "-H", &self.url(), "-D", &dn_of(uid), "-w", password]);
        command.output().unwrap().status.success()
    }

    pub(crate) fn url(&self) -> String {
        format!("ldap://127.0.0.1:{}", self.port)
    }

    /// Lines of slapd's log that hold all these texts.
    pub(crate) fn count_log(&self, texts: &[&str]) -> usize {
        let log = read_text(&self.log_path());
        log.lines().filter(|line| texts.iter().all(|text| line.contains(text))).count()
    }

    /// Binds asked for as this person, whatever came of them.
    pub(crate) fn binds_as(&self, uid: &str) -> usize {
        self.count_log(&[&format!("BIND dn=\"uid={uid},"), "method=128"])
    }

    /// Binds asked for as anybody but the service account and the administrator.
    pub(crate) fn binds_of_people(&self) -> usize {
        self.count_log(&["BIND dn=\"uid=", "method=128"])
    }

    fn ldif(&self, tool: &str, ldif: &str) {
        let path = self.directory.path().join("change.ldif");
        fs::write(&path, ldif).unwrap();
        let mut command = program(tool, "ldap-utils");
        command.args(["-x", "-H", &self.url(), "-D", ADMIN_DN, "-w", ADMIN_PASSWORD, "-f"]);
        run(command.arg(path));
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("slapd.log")
    }
}

impl Drop for Slapd {
    fn drop(&mut self) {
        // A paused program would not heed SIGTERM; Running kills, and the data is thrown away anyway.
        self.running = None;
    }
}

fn configuration(directory: &Path, wish: Wish) -> String {
    let path = directory.display();
    let mut text = String::new();
    for schema in ["core", "cosine", "inetorgperson", "nis"] {
        writeln!(text, "include /etc/ldap/schema/{schema}.schema").unwrap();
    }
    let module = |wanted: bool, name: &str| match wanted {
        true => format!("moduleload {name}\n"),
        false => String::new(),
    };
    text += "modulepath /usr/lib/ldap\nmoduleload back_mdb\n";
    text += &(module(wish.ppolicy, "ppolicy") + &module(wish.member_of, "memberof"));
    text += &module(wish.syncprov, "syncprov");
    write!(
        text,
        "loglevel stats\npidfile {path}/slapd.pid\nargsfile {path}/slapd.args\n\
         TLSCACertificateFile {path}/ca.pem\nTLSCertificateFile {path}/server.pem\n\
         TLSCertificateKeyFile {path}/server.key\n\
         database mdb\nsuffix {BASE}\nrootdn {ADMIN_DN}\nrootpw {ADMIN_PASSWORD}\ndirectory {path}/db\n\
         maxsize 67108864\nindex objectClass,uid,mail,employeeType,entryUUID eq\n\
         access to attrs=userPassword by anonymous auth by * none\n\
         access to * by dn.exact={SERVICE_DN} read by * none\n"
    )
    .unwrap();
    if wish.ppolicy {
        // Without ppolicy_use_lockout a locked account answers even the right password with a bare 49, as by default.
        text += &format!("overlay ppolicy\nppolicy_default cn=default,ou=services,{BASE}\n");
    }
    if wish.member_of {
        text += "overlay memberof\n";
    }
    if wish.last_bind {
        text += "lastbind on\n";
    }
    if wish.syncprov {
        text += "overlay syncprov\n";
    }
    text
}

fn people(wish: Wish) -> String {
    let mut ldif = format!(
        "dn: {BASE}\nobjectClass: dcObject\nobjectClass: organization\no: Planet Express\ndc: planetexpress\n\n"
    );
    for unit in
        [PEOPLE, FORMER, "ou=services,dc=planetexpress,dc=com", "ou=groups,dc=planetexpress,dc=com"]
    {
        write!(ldif, "dn: {unit}\nobjectClass: organizationalUnit\n\n").unwrap();
    }
    write!(
        ldif,
        "dn: {SERVICE_DN}\nobjectClass: organizationalRole\nobjectClass: simpleSecurityObject\n\
         userPassword: {SERVICE_PASSWORD}\n\n"
    )
    .unwrap();
    if wish.ppolicy {
        write!(
            ldif,
            "dn: cn=default,ou=services,{BASE}\nobjectClass: device\nobjectClass: pwdPolicy\npwdAttribute: userPassword\n\
             pwdLockout: TRUE\npwdMaxFailure: 3\n\n"
        )
        .unwrap();
    }
    for (uid, given_name, surname, kind) in CREW {
        ldif += &(person(uid, given_name, surname, kind) + "\n");
    }
    for number in 1..=wish.recruits {
        ldif += &(person(&format!("recruit{number:02}"), "New", "Recruit", "crew") + "\n");
    }
    ldif
}

fn person(uid: &str, given_name: &str, surname: &str, kind: &str) -> String {
    let (dn, mail, password) = (dn_of(uid), mail_of(uid), password_of(uid));
    let second = if uid == "professor" { "mail: hubert@planetexpress.com\n" } else { "" };
    format!(
        "dn: {dn}\nobjectClass: inetOrgPerson\nuid: {uid}\ncn: {given_name} {surname}\nsn: {surname}\n\
         givenName: {given_name}\nmail: {mail}\n{second}employeeType: {kind}\nuserPassword: {password}\n"
    )
}

fn groups() -> String {
    let mut ldif = String::new();
    for (group, members) in [
        ("admin_staff", ["professor", "hermes"].as_slice()),
        ("ship_crew", &["fry", "leela", "bender"]),
    ] {
        write!(ldif, "dn: cn={group},ou=groups,{BASE}\nobjectClass: groupOfNames\n").unwrap();
        for member in members {
            writeln!(ldif, "member: {}", dn_of(member)).unwrap();
        }
        ldif.push('\n');
    }
    ldif
}

/// `ca.pem`, `server.pem` and its key, signed by that; `other-ca.pem`, which signed nothing.
pub(crate) fn make_certificates(path: &Path) {
    authority(path, "ca");
    authority(path, "other-ca");
    let mut request = openssl(path);
    request.args(["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
    run(request.args(["-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.csr"]));
    let names = "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n";
    fs::write(path.join("names"), names).unwrap();
    let mut sign = openssl(path);
    sign.args(["x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key"]);
    run(sign.args(["-CAcreateserial", "-days", "2", "-extfile", "names", "-out", "server.pem"]));
}

fn authority(path: &Path, name: &str) {
    let mut command = openssl(path);
    command.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]);
    command.args(["-days", "2", "-subj", &format!("/CN=Gatepost test {name}")]);
    command.args(["-addext", "keyUsage=critical,keyCertSign,cRLSign"]);
    run(command.args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")]));
}

fn openssl(path: &Path) -> std::process::Command {
    let mut command = program("openssl", "openssl");
    command.current_dir(path);
    command
}
