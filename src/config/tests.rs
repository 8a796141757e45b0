//! Whole files in, problems or settings out.

use std::path::PathBuf;

use super::directory::{Mapping, Policy, Preset, Tls, Transform};
use super::{Loaded, Origin, Problems, load_with, show, show_json};

/// The smallest configuration that has one of everything; tests add to it or change it.
const BASE: &str = r#"
[domain."example.org"]
[template.standard]
[directory.corp]
domains = ["example.org"]
hosts = ["dc1"]
bind_dn = "cn=a,dc=b"
bind_password = "hunter2"
search.people.base = "dc=b"
template.default = "standard"
[listen.web]
protocol = "http"
address = "127.0.0.1:8420"
"#;

const SECRET: &str = "hunter2";

struct Site {
    folder: tempfile::TempDir,
    environment: Vec<(String, String)>,
}

impl Site {
    fn new(main: &str) -> Self {
        let site = Self { folder: tempfile::tempdir().unwrap(), environment: Vec::new() };
        site.file("gatepost.toml", main)
    }

    fn file(self, name: &str, text: &str) -> Self {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text.replace("@FOLDER@", self.folder.path().to_str().unwrap()))
            .unwrap();
        set_mode(&path, 0o600);
        self
    }

    fn set(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn load(&self) -> Result<Loaded, Problems> {
        load_with(&self.path("gatepost.toml"), self.environment.iter().cloned())
    }

    fn loaded(&self) -> Loaded {
        self.load().unwrap_or_else(|problems| panic!("{problems}"))
    }

    /// The problems, one a line, the folder's name cut off.
    fn problems(&self) -> Vec<String> {
        let problems = self.load().err().map_or_else(Vec::new, |problems| problems.0);
        let folder = format!("{}/", self.folder.path().display());
        let lines: Vec<String> =
            problems.iter().map(|problem| problem.to_string().replace(&folder, "")).collect();
        assert!(!lines.concat().contains(SECRET), "a secret shows: {lines:?}");
        lines
    }
}

fn set_mode(path: &std::path::Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// The problems of one file are exactly these, each given by a part of its text.
fn check(text: &str, expected: &[&str]) {
    let problems = Site::new(text).problems();
    let fits = problems.len() == expected.len()
        && expected.iter().all(|part| problems.iter().any(|line| line.contains(part)));
    assert!(fits, "{text}\nexpected {expected:#?}\ngot {problems:#?}");
}

/// The base with settings of `[directory.corp]` put in before its others; a key set twice keeps the new value.
fn check_directory(settings: &str, expected: &[&str]) {
    let keys: Vec<&str> =
        settings.lines().filter_map(|line| Some(line.split_once('=')?.0.trim())).collect();
    let base: Vec<&str> = BASE
        .lines()
        .filter(|line| !line.split_once('=').is_some_and(|(key, _)| keys.contains(&key.trim())))
        .collect();
    let text =
        base.join("\n").replace("[directory.corp]", &format!("[directory.corp]\n{settings}"));
    check(&text, expected);
}

/// The base with a further door.
fn check_door(settings: &str, expected: &[&str]) {
    check(&format!("{BASE}\n[listen.x]\n{settings}"), expected);
}

/// The base with a further table.
fn check_table(table: &str, expected: &[&str]) {
    check(&format!("{BASE}\n{table}"), expected);
}

fn notices(text: &str) -> Vec<String> {
    Site::new(text).loaded().notices.iter().map(ToString::to_string).collect()
}

#[test]
fn the_base_of_these_tests_has_no_problem_and_no_notice() {
    assert_eq!(notices(BASE), [""; 0]);
}

#[test]
fn a_file_is_read_with_the_environment_of_the_process() {
    let site = Site::new(BASE);
    assert_eq!(super::load(&site.path("gatepost.toml")).unwrap().config, site.loaded().config);
}

#[test]
fn all_problems_are_told_at_once_each_with_key_file_line_and_what_is_expected() {
    let site = Site::new(
        "[store]\nurl = 5\nmax_conections = 1\n[memory]\nfresh = \"soon\"\n[directory.corp]\ntls = \"startls\"\n",
    )
    .file("conf.d/10-door.toml", "[listen.x]\nmode = \"9\"\n")
    .set("GATEPOST__LOGIN__LOWERCASE", "perhaps");

    let problems = site.problems();

    for expected in [
        "gatepost.toml:2: store.url: a number does not fit; expected a text in quotes",
        "gatepost.toml:3: store.max_conections: no such key, did you mean max_connections?",
        "gatepost.toml:5: memory.fresh: cannot be understood; expected a span of time such as 250ms, 8s, 15m, 12h or 30d",
        "gatepost.toml:7: directory.corp.tls: not a known word, did you mean starttls?; expected ldaps, none, starttls",
        "conf.d/10-door.toml:2: listen.x.mode: cannot be understood; expected a file mode in octal such as \"0660\"",
        "environment variable GATEPOST__LOGIN__LOWERCASE: login.lowercase: a text does not fit; expected true or false",
        "gatepost.toml:6: directory.corp.hosts: no host is set; expected",
        "gatepost.toml:6: directory.corp.search: there is no search base; expected",
        "conf.d/10-door.toml:1: listen.x: this door is nowhere; expected path or address",
    ] {
        assert!(
            problems.iter().any(|line| line.starts_with(expected)),
            "{expected}\n{problems:#?}"
        );
    }
}

#[test]
fn unknown_keys_are_found_at_any_depth() {
    for (table, expected) in [
        ("[node]\nid = \"mx1\"", "node.id: no such key"),
        (
            "[directory.corp.search.x]\nbase=\"dc=x\"\nkind=\"user\"",
            "directory.corp.search.x.kind: no such key",
        ),
        ("[nodes]\n", "nodes: no such key, did you mean node?"),
        (
            "[domain.\"a.org\"]\nactiv = true",
            "domain.\"a.org\".activ: no such key, did you mean active?",
        ),
        ("[template.x]\nhme = \"/x\"", "template.x.hme: no such key, did you mean home?"),
        (
            "[directory.corp.search.x]\nbase=\"dc=x\"\nfiltr=\"(a=b)\"",
            "directory.corp.search.x.filtr: no such key, did you mean filter?",
        ),
        (
            "[directory.corp.template.rule.x]\ntemplate=\"standard\"\nvalu=\"x\"\nmember_of=\"a=b\"",
            "rule.x.valu: no such key, did you mean value?",
        ),
        (
            "[directory.corp.map]\nquota={ atr = [\"x\"] }",
            "directory.corp.map.quota.atr: no such key, did you mean attr?",
        ),
        (
            "[directory.corp.map]\nquota={ attr = [\"x\"], policy = \"forced\" }",
            "map.quota.policy: not a known word, did you mean force?",
        ),
        (
            "[directory.corp.lazy]\nprotocol=[]",
            "directory.corp.lazy.protocol: no such key, did you mean protocols?",
        ),
        (
            "[listen.x]\npath=\"/x\"\ntoken_fil=\"x\"",
            "listen.x.token_fil: no such key, did you mean token_file?",
        ),
        ("[listen.x]\npath=\"/x\"\nzzzzzz=1", "listen.x.zzzzzz: no such key"),
    ] {
        check_table(table, &[expected]);
    }
}

#[test]
fn a_table_where_a_value_belongs_and_the_other_way_round_are_problems() {
    check("store = 5", &["store: not a table; expected [store]"]);
    check("listen = 5", &["listen: not a table"]);
    check("[listen]\nweb = 5", &["listen.web: not a table; expected [listen.web]"]);
    check("[store.url]\nx = 1", &["store.url: a table does not fit; expected a text in quotes"]);
    check("[log]\nlevel = [\"x\"]", &["log.level: a list does not fit"]);
}

#[test]
fn what_is_no_toml_is_told_without_showing_the_line() {
    check("[directory.corp]\nbind_password = \"hunter2\nx = 1\n", &["gatepost.toml:2: not TOML: "]);
    check("[directory.corp]\nbind_password = hunter2\n", &["gatepost.toml:2: not TOML: "]);
}

#[test]
fn a_file_that_is_missing_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let problems = load_with(&folder.path().join("none.toml"), std::iter::empty()).unwrap_err();
    assert!(problems.to_string().contains("none.toml: cannot be read: No such file"), "{problems}");
}

#[test]
fn conf_d_is_merged_in_name_order_and_the_environment_over_all() {
    let site =
        Site::new(&format!("{BASE}\n[store]\nurl = \"sqlite:a\"\n[memory]\nfresh = \"1m\"\n"))
            .file("conf.d/20.toml", "[store]\nurl = \"sqlite:c\"\n[directory.corp]\npriority = 5\n")
            .file(
                "conf.d/10.toml",
                "[store]\nurl = \"sqlite:b\"\nmax_connections = 3\n[memory]\nfresh = \"2m\"\n",
            )
            .file("conf.d/.hidden.toml", "[oops]\n")
            .file("conf.d/notes.txt", "oops")
            .set("GATEPOST__MEMORY__FRESH", "3m");

    let loaded = site.loaded();

    assert_eq!(loaded.config.store.url, "sqlite:c");
    assert_eq!(loaded.config.store.max_connections, 3);
    assert_eq!(loaded.config.directory["corp"].priority, 5);
    assert_eq!(loaded.config.directory["corp"].hosts, ["dc1:636"]);
    for (key, origin) in [
        ("store.url", Origin::File(site.path("conf.d/20.toml"), Some(2))),
        ("store.max_connections", Origin::File(site.path("conf.d/10.toml"), Some(3))),
        ("memory.fresh", Origin::Environment("GATEPOST__MEMORY__FRESH".into())),
    ] {
        assert_eq!(loaded.origins.get(key), Some(&origin));
    }
    assert_eq!(loaded.origins.get("memory.grace"), None);
}

#[test]
fn values_of_the_environment_are_read_as_the_setting_wants_them() {
    let site = Site::new(BASE)
        .set("GATEPOST__DIRECTORY__CORP__SERVER_NAME", "12345")
        .set("GATEPOST__LOGIN__SEPARATOR", "true")
        .set("GATEPOST__LOGIN__LOWERCASE", "false")
        .set("GATEPOST__MEMORY__ABSENT", "0")
        .set("GATEPOST__DIRECTORY__CORP__HOSTS", "[a, b]")
        .set("GATEPOST__DIRECTORY__CORP__BIND_DN", " cn=blanks ")
        .set("GATEPOST__DIRECTORY__CORP__TLS", "starttls")
        .set("GATEPOST__DIRECTORY__CORP__PRIORITY", "7")
        .set(
            "GATEPOST__DIRECTORY__CORP__MAP__QUOTA",
            "{ attr = [\"q\"], transform = \"bytes:KiB\" }",
        )
        .set("GATEPOST__DIRECTORY__CORP__MAP__ALIASES", "[a]")
        .set("GATEPOST__DIRECTORY__CORP__BIND_PASSWORD", " 12345 ")
        .set("GATEPOST__DOMAIN__EXAMPLE_ORG__MAX_MAILBOXES", "9")
        .set("GATEPOST__LISTEN__WEB__ALLOW", "[10.0.0.0/8,::1]");

    let config = site.loaded().config;

    assert_eq!(config.login.separator, "true");
    assert!(!config.login.lowercase && config.memory.absent.0.is_zero());
    let corp = &config.directory["corp"];
    assert_eq!(corp.hosts, ["a:389", "b:389"]);
    assert_eq!((corp.bind_dn.as_str(), corp.tls, corp.priority), (" cn=blanks ", Tls::Starttls, 7));
    assert_eq!(corp.map.quota.transform, Some(Transform::Bytes(1024)));
    assert_eq!(corp.map.aliases, Mapping { attr: vec!["a".into()], ..Mapping::default() });
    assert_eq!(corp.server_name, "12345");
    assert_eq!(corp.bind_password.expose(), " 12345 ");
    assert_eq!(config.domain["example.org"].max_mailboxes, 9);
    assert_eq!(config.listen["web"].allow.len(), 2);
}

#[test]
fn variables_that_name_no_setting_are_problems() {
    for (name, expected) in [
        (
            "GATEPOST__STORE__ULR",
            "variable GATEPOST__STORE__ULR: store.ulr: no such key, did you mean url?",
        ),
        ("GATEPOST__STORE", "variable GATEPOST__STORE: store: not a table"),
        ("GATEPOST__", "variable GATEPOST__: \"\": names no setting"),
        ("GATEPOST____X", "names no setting; expected a name such as GATEPOST__STORE__URL"),
    ] {
        let problems = Site::new(BASE).set(name, "x").problems();
        assert!(problems.len() == 1 && problems[0].contains(expected), "{name}: {problems:?}");
    }
    assert_eq!(Site::new(BASE).set("GATEPOST_OTHER", "x").problems(), [""; 0]);
}

#[test]
fn a_secret_may_be_literal_in_a_file_or_in_a_variable() {
    let with = |line: &str| Site::new(&BASE.replace("bind_password = \"hunter2\"", line));
    let file = "bind_password_file = \"@FOLDER@/secret\"";
    for (site, expected) in [
        (with("bind_password = \" blanks stay \""), " blanks stay "),
        (with("bind_password = \"env:PW\"").set("PW", " from env\n"), " from env\n"),
        (with(file).file("secret", "from file\n"), "from file"),
        (with(file).file("secret", "from file\r\n"), "from file"),
        (with(file).file("secret", " two\n\n"), " two\n"),
        (
            with(file)
                .file("secret", "x")
                .file("conf.d/1.toml", "[directory.corp]\nbind_password=\"later\""),
            "later",
        ),
        (
            with("bind_password=\"x\"")
                .file("secret", "later")
                .file("conf.d/1.toml", "[directory.corp]\nbind_password_file=\"@FOLDER@/secret\""),
            "later",
        ),
    ] {
        assert_eq!(site.loaded().config.directory["corp"].bind_password.expose(), expected);
    }
}

#[test]
fn a_secret_that_cannot_be_had_is_a_problem_that_does_not_echo_it() {
    let with = |line: &str| Site::new(&BASE.replace("bind_password = \"hunter2\"", line));
    let file = "bind_password_file = \"@FOLDER@/secret\"";
    for (site, expected) in [
        (
            with("bind_password = \"env:PW\""),
            "directory.corp.bind_password: environment variable PW is not set",
        ),
        (with("bind_password = \"env:PW\"").set("PW", ""), "environment variable PW is empty"),
        (
            with(file),
            "gatepost.toml:8: directory.corp.bind_password: secret cannot be read: No such file",
        ),
        (with(file).file("secret", "\n"), "secret is empty"),
        (with("bind_password_file = \"@FOLDER@\""), "is no file with a secret"),
        (
            with("bind_password = 12345"),
            "directory.corp.bind_password: not a text; expected a text in quotes",
        ),
        (with("bind_password = [\"hunter2\"]"), "directory.corp.bind_password: not a text"),
        (
            with("bind_password = \"x\"\nbind_password_file = \"/x\""),
            "bind_password_file: bind_password is set as well",
        ),
        (with(""), "directory.corp.bind_password: the service account has no password"),
        (with("bind_password_file = \"\""), "the service account has no password"),
        (
            with("bind_pasword = \"hunter2\""),
            "bind_pasword: no such key, did you mean bind_password?",
        ),
        (
            with("bind_password = \"x\"\nport = \"hunter2\""),
            "directory.corp.port: a text does not fit",
        ),
        (with("bind_password = \"x\"\ntls = \"hunter2\""), "directory.corp.tls: not a known word"),
        (
            with("bind_password = \"x\"\nmap = { quota = \"hunter2\" }"),
            "directory.corp.map.quota: a text does not fit; expected a list of attributes, or a table",
        ),
    ] {
        let problems = site.problems();
        let told = problems.iter().any(|line| line.contains(expected));
        assert!(told, "{expected}: {problems:#?}");
    }
}

#[test]
fn secrets_that_everybody_may_read_are_noticed() {
    let site = Site::new(BASE);
    set_mode(&site.path("gatepost.toml"), 0o644);
    let told = site.loaded().notices;
    assert!(told.len() == 1 && told[0].key == "directory.corp.bind_password", "{told:?}");

    let text =
        BASE.replace("bind_password = \"hunter2\"", "bind_password_file = \"@FOLDER@/secret\"");
    let site = Site::new(&text).file("secret", SECRET);
    assert_eq!(site.loaded().notices, []);
    set_mode(&site.path("secret"), 0o644);
    let told = site.loaded().notices;
    assert!(told.len() == 1 && told[0].message.starts_with("everybody may read"), "{told:?}");
}

#[test]
fn nothing_that_is_shown_holds_a_secret() {
    let mut loaded =
        Site::new(&format!("{BASE}token = \"hunter2\"\n[listen.x]\npath = \"/x\"\n")).loaded();
    loaded.preset("directory.corp.identity.id_attribute", "entryUUID");

    let text = show(&loaded);

    assert!(!format!("{loaded:?} {text} {}", show_json(&loaded)).contains(SECRET));
    for (start, end) in [
        ("directory.corp.bind_password = \"********\"", "gatepost.toml:8"),
        ("listen.web.token = \"********\"", "gatepost.toml:14"),
        ("listen.x.token = \"-\"", "# default"),
        ("domain.\"example.org\".active = true", "# default"),
        ("directory.corp.hosts = [\"dc1:636\"]", "gatepost.toml:6"),
        ("directory.corp.identity.id_attribute = \"entryUUID\"", "# preset"),
        ("directory.corp.map.display_name = [\"displayName\", \"cn\"]", "# default"),
    ] {
        let shown = text.lines().any(|line| line.starts_with(start) && line.ends_with(end));
        assert!(shown, "{start} … {end}\n{text}");
    }
    let json = show_json(&loaded);
    assert_eq!(json["memory.fresh"]["value"], "15m");
    assert_eq!(json["memory.fresh"]["origin"], "default");
}

#[test]
fn a_preset_never_hides_what_was_set() {
    let mut loaded = Site::new(BASE).loaded();
    loaded.preset("directory.corp.hosts", "other");
    assert!(show(&loaded).contains("directory.corp.hosts = [\"dc1:636\"]"));
}

#[test]
fn a_door_has_one_place_of_its_own() {
    check_door("protocol=\"http\"", &["listen.x: this door is nowhere; expected path or address"]);
    check_door("path=\"/x\"\naddress=\"127.0.0.1:1\"", &["listen.x.address: path is set as well"]);
    check_door("path=\"/x\"\naddress=\"\"", &[]);
    check_door(&format!("path=\"/{}\"", "x".repeat(106)), &[]);
    check_door(
        &format!("path=\"/{}\"", "x".repeat(107)),
        &["listen.x.path: too long for a socket"],
    );
    check_door("path=\"x\"", &["listen.x.path: not a whole path"]);
    check_door("path=\"/run/gatepost/control\"", &["listen.x.path: node.control is there"]);
    check_door(
        "path=\"/x\"\n[listen.y]\npath=\"/x\"",
        &["listen.y.path: door x listens there already"],
    );
    let http = "protocol=\"http\"\n";
    check_door(
        &format!("{http}address=\"127.0.0.1:8420\""),
        &["listen.x.address: door web listens there"],
    );
    check_door(
        &format!("{http}allow=[\"::/0\"]\ntoken=\"t\"\naddress=\"0.0.0.0:8420\""),
        &["door web listens there"],
    );
    check_door(&format!("{http}address=\"127.0.0.1:8421\""), &[]);
    check_door(
        "protocol=\"dovecot\"\naddress=\"127.0.0.1:1\"",
        &["listen.x.address: sockets are handed over"],
    );
    check_door(
        "protocol=\"http\"\naddress=\"localhost\"",
        &[
            "listen.x.address: cannot be understood; expected an address and a port",
            "listen.x: this door is nowhere",
        ],
    );
}

#[test]
fn a_tcp_door_off_loopback_says_who_may_come() {
    let auth = "protocol=\"dovecot-auth\"\n";
    let http = "protocol=\"http\"\n";
    check_door(&format!("{auth}address=\"127.8.0.1:1\""), &[]);
    check_door(&format!("{auth}address=\"[::1]:1\""), &[]);
    check_door(&format!("{auth}address=\"[::ffff:127.0.0.1]:1\""), &[]);
    check_door(
        &format!("{auth}address=\"0.0.0.0:1\""),
        &["listen.x.allow: this door is open to the net"],
    );
    check_door(&format!("{auth}address=\"192.0.2.1:1\"\nallow=[\"192.0.2.0/24\"]"), &[]);
    check_door(&format!("{http}address=\"192.0.2.1:1\""), &["listen.x.allow", "listen.x.token"]);
    check_door(
        &format!("{http}address=\"192.0.2.1:1\"\nallow=[\"192.0.2.9\"]"),
        &["listen.x.token"],
    );
    check_door(&format!("{http}address=\"192.0.2.1:1\"\nallow=[\"192.0.2.9\"]\ntoken=\"t\""), &[]);
    // A proxy in front brings clients from anywhere.
    let proxied = "address=\"127.0.0.1:1\"\nproxy_protocol=true\n";
    check_door(&format!("{auth}{proxied}"), &["listen.x.allow: this door is open to the net"]);
    check_door(&format!("{auth}{proxied}allow=[\"192.0.2.0/24\"]"), &[]);
    check_door(&format!("{http}{proxied}"), &["listen.x.allow", "listen.x.token"]);
    check_door(&format!("{http}{proxied}allow=[\"192.0.2.0/24\"]"), &["listen.x.token"]);
    check_door(&format!("{http}{proxied}allow=[\"192.0.2.0/24\"]\nanonymous=true"), &[]);
    check_door(
        &format!("{auth}address=\"127.0.0.1:1\"\nallow=[\"x\"]"),
        &["listen.x.allow: cannot be understood; expected nets"],
    );
}

#[test]
fn a_door_for_nginx_says_where_a_session_goes() {
    let door = "protocol=\"http\"\npath=\"/x\"\nserve=[\"nginx\"]\n";
    check_door(door, &["listen.x.upstream: nginx must hear where"]);
    for protocol in ["imap", "pop3", "smtp", "mx"] {
        check_door(&format!("{door}upstream={{{protocol}=\"127.0.0.1:1\"}}"), &[]);
    }
}

#[test]
fn a_policy_door_without_a_token_is_noticed() {
    let door = "[listen.x]\nprotocol=\"http\"\naddress=\"127.0.0.1:1\"\nserve=[\"policy\"]";
    assert_eq!(
        notices(&format!("{BASE}\n{door}")),
        ["listen.x.token: without one whoever can connect may change the shield's lists"]
    );
    assert_eq!(notices(&format!("{BASE}\n{door}\ntoken=\"t\"")), [""; 0]);
    let unix = door.replace("address=\"127.0.0.1:1\"", "path=\"/x\"");
    assert_eq!(notices(&format!("{BASE}\n{unix}")), [""; 0]);
}

#[test]
fn mailcow_with_a_token_is_noticed() {
    let door = "[listen.x]\nprotocol=\"http\"\npath=\"/x\"\nserve=[\"mailcow\"]";
    assert_eq!(notices(&format!("{BASE}\n{door}")), [""; 0]);
    assert_eq!(
        notices(&format!("{BASE}\n{door}\ntoken=\"t\"")),
        ["listen.x.serve: mailcow's own script sends no token: it cannot ask this door"]
    );
}

#[test]
fn a_door_s_limits_let_somebody_in() {
    let path = "path=\"/x\"\n";
    check_door(&format!("{path}max_connections=0"), &["listen.x.max_connections"]);
    check_door(
        &format!("{path}max_connections=-1"),
        &["listen.x.max_connections: value out of range; expected a whole number"],
    );
    check_door(
        &format!("{path}max_connections=1000001"),
        &["listen.x.max_connections: too many; expected 1 to 1000000"],
    );
    check_door(&format!("{path}max_connections=1000000\nmax_in_flight=10000"), &[]);
    check_door(&format!("{path}max_in_flight=0"), &["listen.x.max_in_flight: 0 would read"]);
    check_door(
        &format!("{path}max_in_flight=10001"),
        &["listen.x.max_in_flight: too many; expected 1 to 10000"],
    );
    check_door(&format!("{path}write_timeout=\"0\""), &["listen.x.write_timeout"]);
    check_door(
        &format!("{path}failure_delay=\"9s\""),
        &["listen.x.failure_delay: longer than login.deadline"],
    );
    check_door(&format!("{path}failure_delay=\"\""), &[]);
    check_door(&format!("{path}peers=[]"), &["listen.x.peers: nobody could hand sockets over"]);
    check_door(&format!("{path}protocol=\"http\"\nserve=[]"), &["listen.x.serve"]);
    check_door(
        &format!("{path}protocol=\"http\"\nserve=[\"metric\"]"),
        &["listen.x.serve.0: not a known word, did you mean metrics?"],
    );
    check_door(
        &format!("{path}protocol=\"dovecot-aut\""),
        &["listen.x.protocol: not a known word, did you mean dovecot-auth?"],
    );
    check(
        &format!("{BASE}\n[listen.\"a b\"]\npath=\"/x\""),
        &["listen.\"a b\": not a usable name"],
    );
}

#[test]
fn a_service_account_is_whole_or_expressly_absent() {
    check_directory("bind_dn=\"\"", &["directory.corp.bind_dn: no service account is set"]);
    check_directory("bind_dn=\"\"\nbind_password=\"\"\nanonymous=true", &[]);
    check_directory(
        "anonymous=true",
        &["directory.corp.anonymous: a service account is set as well"],
    );
    check_directory(
        "bind_dn=\"\"\nbind_user=\"a\"",
        &["directory.corp.bind_base: bind_user is set, but not its base"],
    );
    check_directory(
        "bind_dn=\"\"\nbind_base=\"dc=b\"",
        &["bind_user: bind_base is set, but no user", "no service account"],
    );
    check_directory("bind_user=\"a\"\nbind_base=\"dc=b\"", &["bind_user: bind_dn is set as well"]);
    for user in ["cn=a", "UID=a"] {
        check_directory(
            &format!("bind_dn=\"\"\nbind_user=\"{user}\"\nbind_base=\"dc=b\""),
            &["bind_user: the name alone belongs here"],
        );
    }
    let pair = BASE
        .replace("bind_dn = \"cn=a,dc=b\"", "bind_user = \"svc, mail\"\nbind_base = \"ou=s,dc=b\"");
    let loaded = Site::new(&pair).loaded();
    assert_eq!(loaded.config.directory["corp"].bind_dn, "CN=svc\\, mail,ou=s,dc=b");
    let shown = show(&loaded);
    let made = "directory.corp.bind_dn = \"CN=svc\\\\, mail,ou=s,dc=b\"";
    assert!(
        shown.lines().any(|line| line.starts_with(made) && line.ends_with("gatepost.toml:7")),
        "{shown}"
    );
    let twice = pair.replace("svc, mail", "svc").replace("ou=s,dc=b", "cn=SVC,dc=b");
    assert!(notices(&twice)[0].contains("already holds the user"));
}

#[test]
fn hosts_tls_and_port_fit_together() {
    check_directory("hosts=[]", &["directory.corp.hosts: no host is set"]);
    check_directory(
        "hosts=[\"http://a\"]",
        &["directory.corp.hosts: \"http\" is not a scheme of ldap"],
    );
    check_directory(
        "tls=\"starttls\"\nport=636",
        &["directory.corp.port: starttls does not begin"],
    );
    check_directory(
        "tls=\"none\"",
        &["directory.corp.tls: passwords would cross the net to dc1 in clear"],
    );
    check_directory("tls=\"none\"\nallow_plaintext=true", &[]);
    check_directory("tls=\"none\"\nhosts=[\"localhost:3890\"]", &[]);
    let moved = BASE.replace("hosts = ", "port = 389\nhosts = ");
    assert_eq!(notices(&moved), ["directory.corp.port: 389 is not for ldaps, 636 is used"]);
    check_directory(
        "client_cert_file=\"/x\"",
        &["directory.corp.client_key_file: a client certificate needs both"],
    );
    assert_eq!(notices(&BASE.replace("hosts = ", "verify = false\nhosts = ")).len(), 1);
}

#[test]
fn limits_of_a_directory_let_somebody_in() {
    for key in ["search_connections", "bind_connections", "queue"] {
        check_directory(
            &format!("{key}=0"),
            &[&format!("directory.corp.{key}: 0 would let nobody in; expected 1 to 10000")],
        );
        check_directory(&format!("{key}=10000"), &[]);
        check_directory(
            &format!("{key}=10001"),
            &[&format!("directory.corp.{key}: too many; expected 1 to 10000")],
        );
    }
    for key in ["connect_timeout", "timeout", "connection_max_age"] {
        check_directory(
            &format!("{key}=\"0\""),
            &[&format!("directory.corp.{key}: no time at all")],
        );
    }
}

#[test]
fn searches_filters_and_attributes_have_a_sound_form() {
    check_directory(
        "search.people.base=\"\"",
        &["directory.corp.search.people.base: no base is set"],
    );
    check_directory(
        "search.people.base=\"people\"",
        &["directory.corp.search.people.base: not a DN"],
    );
    check_directory(
        "search.people.filter=\"(a=b\"",
        &["search.people.filter: a closing bracket is missing"],
    );
    check_directory("search.people.scope=\"all\"", &["search.people.scope: not a known word"]);
    check_directory(
        "identity.login_filter=\"(mail=x)\"",
        &["identity.login_filter: everybody would match; expected {user}"],
    );
    check_directory(
        "identity.login_filter=\"(mail={domain})\"",
        &["identity.login_filter: everybody would match"],
    );
    check_directory(
        "identity.login_filter=\"(mail={usr}{user})\"",
        &["identity.login_filter: {usr} is not offered here"],
    );
    check_directory("identity.login_filter=\"(mail={user})\"", &[]);
    check_directory("identity.login_filter=\"mail={user}\"", &[]);
    check_directory(
        "identity.login_filter=\"mail={user})\"",
        &["identity.login_filter: a closing bracket without an opening one"],
    );
    check_directory(
        "identity.login_attributes=[\"ma il\"]",
        &["identity.login_attributes: not the name of an attribute"],
    );
    check_directory("identity.id_attribute=\"=\"", &["identity.id_attribute: not the name"]);
    check_directory(
        "identity.disabled_rule=\"ad-uca\"",
        &["identity.disabled_rule: not a known word"],
    );
    check_directory("identity.disabled_rule=\"filter:(a=b)\"", &[]);
    check_directory(
        "identity.disabled_rule=\"filter:(a=b\"",
        &["identity.disabled_rule: a closing bracket is missing"],
    );
    check_directory("map.address=[]", &["map.address: no attribute"]);
    check_directory("map.quota=[\"a b\"]", &["map.quota: not the name"]);
    check_directory(
        "map.quota={attr=[\"a\"],transform=\"upper\"}",
        &["map.quota.transform: cannot be understood; expected lower, trim"],
    );
    check_directory(
        "lazy.protocols=[\"imaps\"]",
        &["lazy.protocols: \"imaps\" is no protocol, did you mean imap?"],
    );
}

#[test]
fn a_filter_without_outer_brackets_is_noticed() {
    for key in ["search.people.filter", "identity.login_filter", "identity.disabled_rule"] {
        let prefix = if key.ends_with("rule") { "filter:" } else { "" };
        let setting = format!("{key} = \"{prefix}mail={{user}}\"\n");
        let text = BASE.replace("hosts = ", &format!("{setting}hosts = "));
        let told = format!("directory.corp.{key}: no brackets around the filter: they are added");
        assert_eq!(notices(&text), [told]);
    }
}

#[test]
fn rules_have_one_condition_and_a_template_that_exists() {
    let rule = |body: &str| format!("[directory.corp.template.rule.x]\n{body}");
    check_table(&rule("template=\"standard\""), &["rule.x: a rule has one condition"]);
    check_table(
        &rule("member_of=\"cn=x\"\ntemplate=\"standrad\""),
        &["rule.x.template: there is no template \"standrad\", did you mean \"standard\"?"],
    );
    check_table(&rule("member_of=\"cn=x\""), &["rule.x.template: no template is named"]);
    check_table(&rule("member_of=\"x\"\ntemplate=\"standard\""), &["rule.x.member_of: not a DN"]);
    check_table(
        &rule("value=\"x\"\ntemplate=\"standard\""),
        &["directory.corp.template.attribute: rules compare its values"],
    );
    check_table(
        &rule("value=\"x\"\nmember_of=\"cn=x\"\ntemplate=\"standard\""),
        &["rule.x: a rule has one condition", "template.attribute"],
    );
    check_directory(
        "template.default=\"none\"",
        &["directory.corp.template.default: there is no template \"none\""],
    );
    assert!(
        notices(&BASE.replace("template.default = \"standard\"", ""))
            .concat()
            .contains("no mailbox is made here")
    );
}

#[test]
fn domains_are_brought_to_one_form_and_stand_in_a_table() {
    check_directory(
        "domains=[\"exa mple\"]",
        &["directory.corp.domains: \"exa mple\" is no mail domain"],
    );
    check_table("[domain.\"a b\"]", &["domain.\"a b\": not a mail domain"]);
    check_table(
        "[domain.\"EXAMPLE.org\"]",
        &["domain.\"example.org\": example.org has two tables"],
    );
    check_table(
        "[login]\ndefault_domain=\"@\"",
        &["login.default_domain: \"@\" is no mail domain"],
    );
    let text = BASE.replace("[\"example.org\"]", "[\"Example.ORG\", \"BÜCHER.example\"]");
    let site = Site::new(&format!("{text}\n[domain.\"Bücher.example\"]\nmax_mailboxes = 3\n"));
    let loaded = site.loaded();
    assert_eq!(loaded.config.directory["corp"].domains, ["example.org", "xn--bcher-kva.example"]);
    assert!(loaded.config.domain.contains_key("xn--bcher-kva.example"));
    assert!(loaded.origins.contains_key("domain.\"xn--bcher-kva.example\".max_mailboxes"));
    assert!(
        notices(&text)[0]
            .contains("xn--bcher-kva.example has no [domain.\"xn--bcher-kva.example\"] table")
    );
}

#[test]
fn templates_are_sound() {
    let template = |body: &str| format!("[template.x]\n{body}");
    check_table(
        &template("protocols=[\"imap\",\"eas\"]"),
        &["template.x.protocols: \"eas\" is no protocol"],
    );
    check_table(
        &template("home=\"/v/{dmain}/{local}\""),
        &["template.x.home: {dmain} is not offered here; expected {local}, {domain}"],
    );
    check_table(
        &template("home=\"/v/{local\""),
        &["template.x.home: an opening brace", "template.x.home: everybody would share"],
    );
    check_table(&template("home=\"v/{local}\""), &["template.x.home: not a whole path"]);
    check_table(
        &template("home=\"/v/{domain}\""),
        &["template.x.home: everybody would share one directory"],
    );
    check_table(&template("home=\"/v/{id}\""), &[]);
    check_table(&template("aliases=[\"{local}\"]"), &["template.x.aliases: not an address"]);
    check_table(
        &template("aliases=[\"{id}@x\"]"),
        &["template.x.aliases: {id} is not offered here"],
    );
    check_table(
        &template("quota=\"5 parsecs\""),
        &["template.x.quota: cannot be understood; expected a size"],
    );
    check_table(&template("extra={ quota_rule = \"*:storage=1G\" }"), &[]);
    check_table(
        &template("extra={ \"a b\" = \"x\" }"),
        &["template.x.extra.\"a b\": not the name of a userdb field"],
    );
    check_table(
        &template("extra={ home = \"x\" }"),
        &["template.x.extra.home: gatepost writes this field itself"],
    );
    check_table(
        &template("extra={ mail = \"a\\tb\" }"),
        &["template.x.extra.mail: a control byte"],
    );
    check_table(&template("extra={ mail = 5 }"), &["template.x.extra.mail: a number does not fit"]);
}

#[test]
fn a_place_of_mail_that_a_rename_changes_is_noticed() {
    for (extra, told) in [
        ("mail = \"maildir:/v/{domain}/{local}\"", true),
        ("mail_path = \"/v/{address}\"", true),
        ("mail = \"maildir:~/Maildir\"", false),
        ("mail = \"maildir:/v/{id}\"", false),
        ("nick = \"{local}\"", false),
    ] {
        let notices = notices(&format!("{BASE}\n[template.x]\nextra={{ {extra} }}"));
        let is_told = notices.iter().any(|notice| {
            notice.starts_with("template.x.extra.mail") && notice.contains("a rename changes it")
        });
        assert_eq!((is_told, notices.len()), (told, usize::from(told)), "{extra}: {notices:?}");
    }
}

#[test]
fn the_other_sections_are_checked_too() {
    check("[login]\nseparator=\"@\"\ndeadline=\"0\"", &["login.separator", "login.deadline"]);
    check("[login]\ndeadline=\"2s\"", &[]);
    check(
        "[login]\ndeadline=\"2s\"\n[throttle.rule.guessing-per-ip]\ndelay=\"3s\"",
        &["throttle.rule.guessing-per-ip.delay"],
    );
    check("[memory]\ncapacity=\"1023 KiB\"", &["memory.capacity: too little"]);
    check("[memory]\ncapacity=\"1 MiB\"", &[]);
    check(
        "[store]\nurl=\"redis://x\"\nmax_connections=0",
        &["store.url: not a database", "store.max_connections"],
    );
    check("[store]\nurl=\"sqlite:\"", &["store.url"]);
    check("[store]\nmax_connections=10000", &[]);
    check(
        "[store]\nmax_connections=10001",
        &["store.max_connections: too many; expected 1 to 10000"],
    );
    check("[node]\ncontrol=\"control\"", &["node.control: not a whole path"]);
    check("[log]\nlevel=\"inof\"", &["log.level: not a level or filter"]);
    check("[log]\nlevel=\"info,gatepost::directory=debug\"", &[]);
    check("[log]\nlevel=\"gatepost=loud\"", &["log.level"]);
    check("[log]\nformat=\"xml\"", &["log.format: not a known word; expected text, json"]);
    assert!(notices("[login]\ndeadline=\"10s\"").concat().contains("Postfix gives up"));
}

#[test]
fn logins_of_the_lists_take_the_form_that_attempts_have() {
    let text = format!(
        "{BASE}\n[throttle]\ndeny = [\"Fry+x@Corp.Example\", \"fry@M\u{fc}ller.example\", \"192.0.2.0/24\"]\n"
    );
    let loaded = Site::new(&text).loaded();
    assert_eq!(
        loaded.config.throttle.deny,
        ["fry@corp.example", "fry@xn--mller-kva.example", "192.0.2.0/24"]
    );
    check("[throttle]\nallow = [\"fry @x\", \"nobody\"]", &["throttle.allow", "throttle.allow"]);
}

#[test]
fn mappings_of_both_forms_and_presets_are_read() {
    let text = format!(
        "{BASE}\n[directory.corp.map]\naliases = [\"a\", \"b\"]\nquota = {{ attr = [\"q\"], transform = \"bytes:KiB\", policy = \"keep\" }}\n"
    );
    let text = text.replace("hosts = ", "preset = \"389ds\"\nhosts = ");
    let corp = &Site::new(&text).loaded().config.directory["corp"];
    assert_eq!(corp.preset, Preset::ThreeEightNine);
    assert_eq!(corp.map.aliases.attr, ["a", "b"]);
    let quota = Mapping {
        attr: vec!["q".into()],
        transform: Some(Transform::Bytes(1024)),
        policy: Policy::Keep,
    };
    assert_eq!(corp.map.quota, quota);
}
