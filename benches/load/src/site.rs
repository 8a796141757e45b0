//! The servers: slapd with the people, and who answers for it. All private, in one directory; `run` stops what is
//! listed in its `pids`.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::connection::Door;
use crate::people::{self, SERVICE_DN, SERVICE_PASSWORD, SUFFIX};
use crate::processes::Counted;
use crate::wire::{Endpoint, Protocol};

/// The user of the mail, in Dovecot's part.
const MAIL_ID: u32 = 5000;

#[derive(Debug)]
pub struct Site {
    dir: PathBuf,
    programs: PathBuf,
    pub slapd_port: u16,
    /// Of the template, in GiB.
    quota: u32,
    ports: Vec<(String, u16)>,
    daemons: Vec<(String, Child)>,
}

/// A Gatepost: all its doors, and a store of its own.
#[derive(Clone, Copy, Debug)]
pub struct Gatepost {
    pub name: &'static str,
    /// `memory.fresh`
    pub fresh: &'static str,
    /// `queue` of its directory.
    pub queue: u32,
}

/// Answers from memory.
pub const REMEMBERS: Gatepost = Gatepost { name: "gatepost", fresh: "1h", queue: 256 };
/// The same with more room to wait for a connection to the directory than by default.
pub const PATIENT: Gatepost = Gatepost { queue: 10_000, ..REMEMBERS };
/// Dovecot, whose auth process is the shim.
pub const ON_GATEPOST: &str = "dovecot-on-gatepost";
/// Knows the entry, and asks the directory every time.
pub const ASKS: Gatepost = Gatepost { name: "gatepost-asks", fresh: "0s", ..REMEMBERS };

impl Site {
    /// Makes the directory and starts slapd.
    pub fn new(dir: &Path, programs: &Path, people: u64) -> anyhow::Result<Self> {
        fs::create_dir_all(dir.join("pids"))?;
        let mut site = Self {
            dir: dir.to_owned(),
            programs: programs.canonicalize()?,
            slapd_port: free_port()?,
            quota: 1,
            ports: Vec::new(),
            daemons: Vec::new(),
        };
        site.start_slapd(people)?;
        Ok(site)
    }

    fn start_slapd(&mut self, people: u64) -> anyhow::Result<()> {
        let (dir, port) = (self.dir.display().to_string(), self.slapd_port);
        let configuration = format!(
            "include /etc/ldap/schema/core.schema\ninclude /etc/ldap/schema/cosine.schema\n\
             include /etc/ldap/schema/inetorgperson.schema\nmodulepath /usr/lib/ldap\nmoduleload back_mdb\n\
             moduleload back_monitor\nmoduleload syncprov\nloglevel none\npidfile {dir}/slapd.pid\n\
             database monitor\naccess to * by dn.exact={SERVICE_DN} read\n\
             database mdb\nsuffix {SUFFIX}\ndirectory {dir}/db\nmaxsize 8589934592\nenvflags nosync\n\
             index objectClass,uid,mail,entryUUID,entryCSN eq\n\
             access to attrs=userPassword by anonymous auth by * none\n\
             access to * by dn.exact={SERVICE_DN} read by * none\n\
             limits dn.exact={SERVICE_DN} size=unlimited\n\
             overlay syncprov\nsyncprov-checkpoint 100 10\nsyncprov-sessionlog 10000\n"
        );
        fs::create_dir(self.dir.join("db"))?;
        fs::write(self.dir.join("slapd.conf"), configuration)?;
        people::write_ldif(&self.dir.join("people.ldif"), people)?;
        let load = Command::new("/usr/sbin/slapadd")
            .args(["-q", "-f", &format!("{dir}/slapd.conf"), "-b", SUFFIX])
            .args(["-l", &format!("{dir}/people.ldif")])
            .status()
            .context("slapadd (package slapd)")?;
        ensure!(load.success(), "slapadd failed");
        let mut slapd = Command::new("/usr/sbin/slapd");
        slapd.args(["-d", "0", "-h", &format!("ldap://127.0.0.1:{port}/")]);
        slapd.args(["-f", &format!("{dir}/slapd.conf")]);
        self.start("slapd", &mut slapd)?;
        self.until("slapd listens", || listens(port))
    }

    pub fn start_gatepost(&mut self, gatepost: Gatepost) -> anyhow::Result<()> {
        let configuration = self.gatepost_configuration(gatepost)?;
        fs::write(&configuration.0, configuration.1)?;
        let mut command = Command::new(self.programs.join("gatepost"));
        command.arg("--config").arg(&configuration.0).arg("serve");
        self.start(gatepost.name, &mut command)?;
        let door = self.door(gatepost.name, Protocol::Dovecot)?;
        self.until("gatepost listens", || crate::connection::Connection::open(&door).is_ok())
    }

    fn gatepost_configuration(&mut self, gatepost: Gatepost) -> anyhow::Result<(PathBuf, String)> {
        let Gatepost { name, fresh, queue } = gatepost;
        let (dir, ldap) = (self.dir.display().to_string(), self.slapd_port);
        let web = self.port(name)?;
        let mut text = format!(
            "[node]\ncontrol = \"{dir}/{name}-control\"\n[store]\nurl = \"sqlite://{dir}/{name}.db\"\n\
             [memory]\nfresh = \"{fresh}\"\ncapacity = \"4 GiB\"\n\
             [listen.web]\nprotocol = \"http\"\naddress = \"127.0.0.1:{web}\"\nserve = [\"login\", \"policy\"]\n\
             [throttle.rule.spraying-from-everywhere]\nlimit = 0\n\
             [listen.shim]\nprotocol = \"dovecot\"\npath = \"{dir}/{name}-shim\"\npeers = [\"root\"]\n"
        );
        for protocol in ["dovecot-auth", "saslauthd", "socketmap", "checkpassword"] {
            let delay = if protocol == "dovecot-auth" { "failure_delay = \"0s\"\n" } else { "" };
            text += &format!(
                "[listen.{protocol}]\nprotocol = \"{protocol}\"\npath = \"{dir}/{name}-{protocol}\"\n{delay}"
            );
        }
        text += &format!(
            "[domain.\"load.example\"]\n[template.standard]\nquota = \"{} GiB\"\nhome = \"{dir}/mail/{{domain}}/{{local}}\"\n\
             uid = {MAIL_ID}\ngid = {MAIL_ID}\n\
             [directory.load]\npreset = \"openldap\"\ndomains = [\"load.example\"]\nhosts = [\"127.0.0.1\"]\n\
             port = {ldap}\nqueue = {queue}\ntls = \"none\"\nbind_dn = \"{SERVICE_DN}\"\nbind_password = \"{SERVICE_PASSWORD}\"\n\
             [directory.load.search.people]\nbase = \"ou=people,{SUFFIX}\"\nfilter = \"(objectClass=inetOrgPerson)\"\n\
             [directory.load.auth]\nwrong_binds = \"1000/1m\"\n\
             [directory.load.identity]\nlogin_attributes = [\"mail\"]\n\
             [directory.load.template]\nattribute = \"employeeType\"\n\
             [directory.load.template.rule.staff]\nvalue = \"staff\"\ntemplate = \"standard\"\n",
            self.quota
        );
        Ok((self.dir.join(format!("{name}.toml")), text))
    }

    /// Forgets all logins, at one of the servers that remember.
    pub fn forget(&self, server: &str) -> anyhow::Result<()> {
        let mut command = match server {
            "dovecot" => {
                let mut command = Command::new("doveadm");
                command
                    .arg("-c")
                    .arg(self.dir.join("dovecot.conf"))
                    .args(["auth", "cache", "flush"]);
                command
            }
            name => self.order(name, &["memory", "forget", "--all"]),
        };
        succeed(&mut command)
    }

    /// Gives the template another quota, which every mailbox takes over at its next login.
    pub fn change_template(&mut self, gatepost: Gatepost) -> anyhow::Result<()> {
        self.quota += 1;
        let (path, text) = self.gatepost_configuration(gatepost)?;
        fs::write(path, text)?;
        succeed(&mut self.order(gatepost.name, &["reload"]))
    }

    /// A command to a running Gatepost.
    fn order(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join("gatepost"));
        command.arg("--config").arg(self.dir.join(format!("{name}.toml"))).args(arguments);
        command
    }

    /// Ends a daemon and waits for that.
    pub fn stop(&mut self, name: &str) -> anyhow::Result<()> {
        let place = self.daemons.iter().position(|(other, _)| other == name);
        let (_, mut child) = self.daemons.swap_remove(place.context("it does not run")?);
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        child.wait()?;
        Ok(fs::remove_file(self.dir.join(format!("pids/{}", child.id())))?)
    }

    pub fn start_floors(&mut self) -> anyhow::Result<()> {
        for protocol in
            [Protocol::Dovecot, Protocol::Http, Protocol::Saslauthd, Protocol::Socketmap]
        {
            let (name, door) = (floor(protocol), self.door(floor(protocol), protocol)?);
            let word = clap::ValueEnum::to_possible_value(&protocol).context("no word")?;
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["floor", word.get_name()]);
            match &door.endpoint {
                Endpoint::Unix(path) => command.arg(path),
                Endpoint::Tcp(address) => command.arg(address.to_string()),
            };
            self.start(name, &mut command)?;
            self.until(name, || crate::wire::Stream::connect(&door.endpoint).is_ok())?;
        }
        Ok(())
    }

    /// Dovecot with its own auth process: LDAP with `auth_bind`, and its cache.
    pub fn start_dovecot(&mut self) -> anyhow::Result<()> {
        let (dir, ldap) = (self.dir.display().to_string(), self.slapd_port);
        let text = format!(
            "uris = ldap://127.0.0.1:{ldap}\ndn = {SERVICE_DN}\ndnpass = {SERVICE_PASSWORD}\n\
             base = ou=people,{SUFFIX}\nscope = subtree\nauth_bind = yes\n\
             pass_filter = (&(objectClass=inetOrgPerson)(mail=%u))\npass_attrs = mail=user\n"
        );
        fs::write(self.dir.join("dovecot-ldap.conf"), text)?;
        let auth = format!(
            "auth_cache_size = 1 G\nauth_cache_ttl = 1 hour\nauth_cache_negative_ttl = 1 hour\n\
             passdb {{\n driver = ldap\n args = {dir}/dovecot-ldap.conf\n}}\n\
             userdb {{\n driver = static\n args = uid={MAIL_ID} gid={MAIL_ID} home={dir}/mail/%d/%n\n}}\n\
             service auth {{\n client_limit = 4000\n unix_listener load {{\n  mode = 0600\n }}\n}}\n"
        );
        self.start_a_dovecot("dovecot", &auth)?;
        let socket = self.dir.join("dovecot/load");
        self.until("Dovecot's auth listens", || socket.exists())
    }

    /// Dovecot with Gatepost in the place of its auth process.
    pub fn start_dovecot_on_gatepost(&mut self) -> anyhow::Result<()> {
        let shim = self.programs.join("gatepost-dovecot-auth");
        let socket = self.dir.join(format!("{}-shim", REMEMBERS.name));
        let auth =
            format!("service auth {{\n executable = {} {}\n}}\n", shim.display(), socket.display());
        self.start_a_dovecot(ON_GATEPOST, &auth)
    }

    fn start_a_dovecot(&mut self, name: &'static str, auth: &str) -> anyhow::Result<()> {
        let version = Command::new("/usr/sbin/dovecot").arg("--version").output();
        let version = version.context("dovecot (package dovecot-core)")?.stdout;
        ensure!(version.starts_with(b"2.3."), "the comparison is with Dovecot 2.3, of Debian 12");
        let (dir, port) = (self.dir.display().to_string(), self.port(name)?);
        let mail = self.dir.join("mail");
        fs::create_dir_all(&mail)?;
        std::os::unix::fs::chown(&mail, Some(MAIL_ID), Some(MAIL_ID))?;
        fs::set_permissions(&mail, fs::Permissions::from_mode(0o755))?;
        let text = format!(
            "base_dir = {dir}/{name}\nstate_dir = {dir}/{name}-state\nlog_path = {dir}/{name}.log\n\
             protocols = imap\nlisten = 127.0.0.1\nssl = no\ndisable_plaintext_auth = no\n\
             auth_mechanisms = plain\nauth_failure_delay = 0\nfirst_valid_uid = 1\n\
             mail_location = maildir:~/Maildir\nmail_max_userip_connections = 0\n\
             service imap-login {{\n service_count = 0\n process_min_avail = 2\n\
             inet_listener imap {{\n  port = {port}\n }}\n inet_listener imaps {{\n  port = 0\n }}\n}}\n\
             service imap {{\n service_count = 1000\n process_min_avail = 8\n}}\n{auth}"
        );
        fs::write(self.dir.join(format!("{name}.conf")), text)?;
        let mut command = Command::new("/usr/sbin/dovecot");
        command.arg("-F").arg("-c").arg(self.dir.join(format!("{name}.conf")));
        self.start(name, &mut command)?;
        self.until("Dovecot listens", || listens(port))
    }

    /// saslauthd goes into the background by itself: its debugging mode, which does not, prints for each request.
    pub fn start_saslauthd(&mut self, name: &'static str) -> anyhow::Result<()> {
        let (dir, ldap) = (self.dir.display().to_string(), self.slapd_port);
        let text = format!(
            "ldap_servers: ldap://127.0.0.1:{ldap}/\nldap_bind_dn: {SERVICE_DN}\nldap_password: {SERVICE_PASSWORD}\n\
             ldap_search_base: ou=people,{SUFFIX}\nldap_filter: (mail=%u)\n"
        );
        fs::write(self.dir.join("saslauthd.conf"), text)?;
        let run = self.dir.join(name);
        fs::create_dir(&run)?;
        let mut command = Command::new("/usr/sbin/saslauthd");
        command
            .args(["-a", "ldap", "-n", "8", "-O", &format!("{dir}/saslauthd.conf"), "-m"])
            .arg(&run);
        if name == "saslauthd-cached" {
            command.args(["-c", "-s", "8192"]);
        }
        let status =
            command.stdin(Stdio::null()).status().context("saslauthd (package sasl2-bin)")?;
        ensure!(status.success(), "{name} did not start");
        let pid_file = run.join("saslauthd.pid");
        self.until(name, || pid_file.exists() && run.join("mux").exists())?;
        let pid = fs::read_to_string(pid_file)?.trim().to_owned();
        Ok(fs::write(self.dir.join(format!("pids/{pid}")), name)?)
    }

    /// Where a server speaks a protocol.
    pub fn door(&mut self, server: &str, protocol: Protocol) -> anyhow::Result<Door> {
        let unix = |name: String| Endpoint::Unix(self.dir.join(name));
        let endpoint = match (server, protocol) {
            (
                _,
                Protocol::Http
                | Protocol::Imap
                | Protocol::Allow
                | Protocol::Report
                | Protocol::Ping,
            ) => Endpoint::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port(server)?))),
            ("dovecot", _) => unix("dovecot/load".into()),
            ("saslauthd" | "saslauthd-cached", _) => unix(format!("{server}/mux")),
            (_, Protocol::Dovecot) => unix(format!("{server}-dovecot-auth")),
            (_, Protocol::Saslauthd) => unix(format!("{server}-saslauthd")),
            (_, Protocol::Socketmap) => unix(format!("{server}-socketmap")),
        };
        Ok(Door { protocol, endpoint, is_floor: server.starts_with("floor") })
    }

    /// The processes whose work for this protocol counts as this server's.
    pub fn counted(&self, server: &str, protocol: Protocol) -> anyhow::Result<Counted> {
        Ok(match (server, protocol) {
            ("dovecot", Protocol::Imap) => Counted::Named(self.pid(server)?, "auth"),
            (ON_GATEPOST, _) => Counted::All(vec![
                Counted::Tree(self.pid(REMEMBERS.name)?),
                // The kernel cuts names to 15 characters.
                Counted::Named(self.pid(server)?, "gatepost-doveco"),
            ]),
            ("saslauthd" | "saslauthd-cached", _) => {
                let pid = fs::read_to_string(self.dir.join(server).join("saslauthd.pid"))?;
                Counted::Tree(pid.trim().parse()?)
            }
            _ => Counted::Tree(self.pid(server)?),
        })
    }

    fn pid(&self, name: &str) -> anyhow::Result<u32> {
        let found = self.daemons.iter().find(|(other, _)| other == name);
        Ok(found.with_context(|| format!("{name} does not run"))?.1.id())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// The TCP port of a server, the same at each call.
    fn port(&mut self, name: &str) -> anyhow::Result<u16> {
        if let Some((_, port)) = self.ports.iter().find(|(other, _)| other == name) {
            return Ok(*port);
        }
        let port = free_port()?;
        self.ports.push((name.to_owned(), port));
        Ok(port)
    }

    fn start(&mut self, name: &str, command: &mut Command) -> anyhow::Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join(format!("{name}-output.log")))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        fs::write(self.dir.join(format!("pids/{}", child.id())), name)?;
        self.daemons.push((name.to_owned(), child));
        Ok(())
    }

    fn until(&self, what: &str, is_true: impl Fn() -> bool) -> anyhow::Result<()> {
        let started = Instant::now();
        while !is_true() {
            if started.elapsed() > Duration::from_secs(60) {
                bail!("{what}: not within 60 s; see the logs in {}", self.dir.display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// The floor that speaks a protocol.
pub fn floor(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Dovecot | Protocol::Imap => "floor-dovecot",
        Protocol::Http | Protocol::Allow | Protocol::Report | Protocol::Ping => "floor-http",
        Protocol::Saslauthd => "floor-saslauthd",
        Protocol::Socketmap => "floor-socketmap",
    }
}

fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("running {command:?}"))?;
    ensure!(output.status.success(), "{command:?} failed: {output:?}");
    Ok(())
}

fn listens(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
