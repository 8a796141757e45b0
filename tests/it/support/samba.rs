//! A private Samba domain controller: the nearest to Active Directory that Debian has. It has no ports of its own, but
//! an address of its own.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::slapd::{SERVICE_PASSWORD, mail_of, password_of};
use super::{Running, program, read_text, run, scratch, wait_until};

/// The name that the service account binds by.
pub(crate) const SERVICE: &str = "gatepost@planet.example";
pub(crate) const BASE: &str = "DC=planet,DC=example";
const ADMIN_PASSWORD: &str = "Bridge-Tr0ub4dor-1";

/// What runs a piece of Python against the database, as the controller itself does.
const ADMIN: &str = "import sys
from samba.samdb import SamDB
from samba.auth import system_session
from samba.param import LoadParm
lp = LoadParm()
lp.load(sys.argv[1])
db = SamDB(url=lp.private_path('sam.ldb'), session_info=system_session(), lp=lp)
exec(sys.stdin.read())
";

/// A domain controller with fry, leela and the service account.
#[derive(Debug)]
pub(crate) struct Samba {
    directory: TempDir,
    pub(crate) address: String,
    running: Option<Running>,
}

impl Samba {
    pub(crate) fn start() -> Self {
        let directory = scratch(Path::new("/tmp"));
        let address = own_address();
        let data = directory.path().join("data");
        let mut provision = program("samba-tool", "samba-common-bin");
        provision.args(["domain", "provision", "--dns-backend=NONE", "--server-role=dc"]);
        provision.args(["--realm=PLANET.EXAMPLE", "--domain=PLANET", "--host-name=dc1"]);
        provision.arg(format!("--host-ip={address}")).arg(format!("--adminpass={ADMIN_PASSWORD}"));
        // The data is thrown away: nobody waits for the disk.
        provision.arg("--option=ldb:nosync=true").arg("--targetdir").arg(&data);
        run(&mut provision);
        let mut samba = Self { directory, address, running: None };
        fs::write(samba.path("smb.conf"), samba.configuration(&data)).unwrap();
        fs::write(samba.path("admin.py"), ADMIN).unwrap();
        // Who is no administrator sees removed entries only with a right of its own at CN=Deleted Objects.
        let mut people = format!(
            "db.newuser('gatepost', '{SERVICE_PASSWORD}')\n\
             db.add_remove_group_members('Administrators', ['gatepost'])\n"
        );
        for uid in ["fry", "leela"] {
            let (password, mail) = (password_of(uid), mail_of(uid));
            people += &format!("db.newuser('{uid}', '{password}', mailaddress='{mail}')\n");
        }
        samba.administer(&people);
        for uid in ["fry", "leela"] {
            samba.set_attribute(uid, "employeeType", "crew");
        }
        samba.run_it();
        samba
    }

    fn run_it(&mut self) {
        let mut command = program("/usr/sbin/samba", "samba-ad-dc");
        command.args(["-F", "-M", "single", "--no-process-group", "-s"]);
        command.arg(self.path("smb.conf")).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut running = Running::start("samba", &mut command);
        let (address, log) = (self.address.clone(), self.path("log"));
        wait_until("samba listens", Duration::from_secs(60), || {
            assert!(running.ended().is_none(), "samba ended: {}", read_text(&log));
            std::net::TcpStream::connect((address.as_str(), 389)).is_ok()
        });
        self.running = Some(running);
    }

    /// Runs Python with `db`, a `SamDB`.
    pub(crate) fn administer(&self, python: &str) {
        // Not whatever python3 comes first in the path: Debian's has the modules.
        let mut command = program("/usr/bin/python3", "python3-samba");
        command.arg(self.path("admin.py")).arg(self.path("smb.conf")).stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(python.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "python3 failed");
    }

    pub(crate) fn set_password(&self, uid: &str, password: &str) {
        self.administer(&format!("db.setpassword('(sAMAccountName={uid})', '{password}')"));
    }

    pub(crate) fn disable(&self, uid: &str) {
        self.administer(&format!("db.disable_account('(sAMAccountName={uid})')"));
    }

    pub(crate) fn enable(&self, uid: &str) {
        self.administer(&format!("db.enable_account('(sAMAccountName={uid})')"));
    }

    pub(crate) fn delete(&self, uid: &str) {
        self.administer(&format!("db.deleteuser('{uid}')"));
    }

    pub(crate) fn set_attribute(&self, uid: &str, attribute: &str, value: &str) {
        self.administer(&format!(
            "db.modify_ldif('''dn: CN={uid},CN=Users,{BASE}\nchangetype: modify\nreplace: {attribute}\n\
             {attribute}: {value}\n''')"
        ));
    }

    fn configuration(&self, data: &Path) -> String {
        let (own, data) = (self.directory.path().display(), data.display());
        format!(
            "[global]\nnetbios name = DC1\nrealm = PLANET.EXAMPLE\nworkgroup = PLANET\n\
             server role = active directory domain controller\nserver services = ldap\n\
             interfaces = {}/8\nbind interfaces only = yes\nldap server require strong auth = no\n\
             old password allowed period = 0\nldb:nosync = true\nprivate dir = {data}/private\nlock directory = {data}\n\
             state directory = {data}/state\ncache directory = {data}/cache\npid directory = {own}\n\
             ncalrpc dir = {own}/ncalrpc\nlog file = {own}/log\n",
            self.address
        )
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for Samba {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.end_with_children();
        }
    }
}

/// A loopback address that no other test has: by the process and a number.
fn own_address() -> String {
    static NUMBER: AtomicU8 = AtomicU8::new(1);
    let [_, _, third, fourth] = std::process::id().to_be_bytes();
    format!("127.{}.{third}.{}", 100 + NUMBER.fetch_add(1, Ordering::Relaxed) % 100, fourth.max(1))
}
