//! `[directory.NAME]`: one LDAP directory.

use std::collections::BTreeMap;
use std::path::PathBuf;

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

use super::units::{Rate, Span};
use crate::secret::Secret;

mod check;
mod hosts;
mod mapping;

pub use mapping::{Mapping, Policy, Transform, TransformError};

/// One LDAP directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Directory {
    /// Off: nobody is asked here.
    pub enabled: bool,
    /// generic | openldap | active-directory | samba | freeipa | 389ds: fills what is left out below.
    pub preset: Preset,
    /// The mail domains it answers for.
    pub domains: Vec<String>,
    /// Lower is asked first when two directories list a domain.
    pub priority: u32,
    /// Order is preference: `"dc1.example"`, `"dc1.example:636"`, `"ldaps://dc1.example"`, `"[2001:db8::1]:636"`,
    /// or several in one text with commas.
    pub hosts: Vec<String>,
    /// After this long on a later host the first is tried again.
    pub failback_after: Span,
    /// none | starttls | ldaps. none off loopback needs `allow_plaintext`.
    pub tls: Tls,
    /// For hosts without a port of their own. 0: 636 with ldaps, else 389. With ldaps, 389 becomes 636.
    pub port: u16,
    /// Certificates (PEM) that may sign the server's; empty: the system's.
    pub ca_file: Option<PathBuf>,
    /// false: any certificate is taken. For a test only.
    pub verify: bool,
    /// If the certificate carries another name than the host.
    pub server_name: String,
    /// The service account that searches: a DN, `user@domain` or `DOMAIN\user`.
    pub bind_dn: String,
    /// Its password: the text itself, or `"env:NAME"`; or `bind_password_file = "path"`.
    #[serde(skip)]
    pub bind_password: Secret,
    /// Alternative to `bind_dn`: makes `CN=<bind_user>,<bind_base>`.
    pub bind_user: String,
    /// The DN below which `bind_user` stands.
    pub bind_base: String,
    /// Time to connect: TCP, TLS and the service account's bind.
    pub connect_timeout: Span,
    /// Time for one operation.
    pub timeout: Span,
    /// Allows `tls = "none"` to a host that is not this one: passwords cross the net in clear.
    pub allow_plaintext: bool,
    /// Search without a service account.
    pub anonymous: bool,
    /// Our own certificate (PEM), for directories that ask for one.
    pub client_cert_file: Option<PathBuf>,
    /// Its key (PEM).
    pub client_key_file: Option<PathBuf>,
    /// Connections for searching, shared by many searches.
    pub search_connections: usize,
    /// Connections for checking passwords, one bind at a time each, opened as needed.
    pub bind_connections: usize,
    /// Attempts waiting for a connection; beyond: "later". A larger one takes in a crowd after a restart: no more wait than the
    /// directory answers within `login.deadline`, and each takes up to 20 kB of memory meanwhile.
    pub queue: usize,
    /// Connections older than this are replaced.
    pub connection_max_age: Span,
    /// Whether changes are heard of as they happen: auto (RFC 4533 if the server has it, else Active Directory's update
    /// numbers, else the entries' modifyTimestamp; `gatepost_directory_feed` tells) | none (they are seen when somebody
    /// is asked about again).
    pub feed: FeedChoice,
    /// Where people are looked for: one table per base.
    pub search: BTreeMap<String, Search>,
    /// Who is who. What is left out comes from the preset.
    pub identity: Identity,
    /// How a password is checked: search, then bind as the entry found.
    pub auth: Auth,
    /// Mailboxes made at first login.
    pub lazy: Lazy,
    /// Attributes → mailbox fields. Each is a list, of which the first attribute with a value counts, or a table such
    /// as `{ attr = ["quota"], transform = "bytes:KiB", policy = "keep" }`. transform: lower | trim | strip_prefix:X |
    /// bytes:UNIT (B, KiB, MiB, GiB, TiB). policy, for a value that the mailbox already has: force (the directory
    /// wins) | keep | create-only | merge (of sets: added, never removed).
    pub map: Map,
    /// Which template a person gets.
    pub template: TemplateChoice,
}

impl Default for Directory {
    fn default() -> Self {
        Self {
            enabled: true,
            preset: Preset::Generic,
            domains: Vec::new(),
            priority: 100,
            hosts: Vec::new(),
            failback_after: Span::seconds(300),
            tls: Tls::Ldaps,
            port: 0,
            ca_file: None,
            verify: true,
            server_name: String::new(),
            bind_dn: String::new(),
            bind_password: Secret::default(),
            bind_user: String::new(),
            bind_base: String::new(),
            connect_timeout: Span::seconds(3),
            timeout: Span::seconds(5),
            allow_plaintext: false,
            anonymous: false,
            client_cert_file: None,
            client_key_file: None,
            search_connections: 2,
            bind_connections: 32,
            queue: 256,
            connection_max_age: Span::seconds(1800),
            feed: FeedChoice::Auto,
            search: BTreeMap::new(),
            identity: Identity::default(),
            auth: Auth::default(),
            lazy: Lazy::default(),
            map: Map::default(),
            template: TemplateChoice::default(),
        }
    }
}

/// A kind of directory server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Preset {
    /// Active Directory.
    #[serde(rename = "active-directory")]
    ActiveDirectory,
    /// FreeIPA.
    #[serde(rename = "freeipa")]
    FreeIpa,
    /// Nothing assumed.
    #[serde(rename = "generic")]
    Generic,
    /// OpenLDAP.
    #[serde(rename = "openldap")]
    OpenLdap,
    /// Samba as an AD domain controller.
    #[serde(rename = "samba")]
    Samba,
    /// 389 Directory Server.
    #[serde(rename = "389ds")]
    ThreeEightNine,
}

/// How the connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tls {
    /// TLS from the first byte.
    Ldaps,
    /// Clear text.
    None,
    /// Clear text, then TLS; a server that refuses is not used.
    Starttls,
}

/// Whether changes are heard of as they happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FeedChoice {
    /// In the best way that the server has.
    Auto,
    /// No.
    None,
}

/// Where people are looked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Search {
    /// The DN below which to look.
    pub base: String,
    /// base (that entry alone) | one (one level below) | sub (all below).
    pub scope: Scope,
    /// RFC 4515. Only entries that match are anybody, at login as elsewhere.
    pub filter: String,
}

impl Default for Search {
    fn default() -> Self {
        Self { base: String::new(), scope: Scope::Sub, filter: "(objectClass=*)".into() }
    }
}

/// How deep a search goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// The base entry alone.
    Base,
    /// One level below.
    One,
    /// All below.
    Sub,
}

/// Who is who. What is left out comes from the preset.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Identity {
    /// The immutable id: entryUUID (generic, openldap), objectGUID (active-directory, samba), ipaUniqueID
    /// (freeipa), nsUniqueId (389ds).
    pub id_attribute: String,
    /// How the id's bytes are shown: guid-le | uuid | sid | binary | text.
    pub id_format: Option<IdFormat>,
    /// Attributes that a login is compared with. mail, userPrincipalName and proxyAddresses are compared with the
    /// whole name, all others with the part before the @ of names typed without domain or with the first of
    /// `domains`.
    pub login_attributes: Vec<String>,
    /// Instead of the list: `"(&(objectClass=inetOrgPerson)(mail={user}))"` with `{user}`, `{local}`, `{domain}`.
    pub login_filter: String,
    /// What disables an account: ad-uac | nsAccountLock | pwdAccountLockedTime | shadowExpire | none |
    /// `filter:(…)`.
    pub disabled_rule: String,
}

/// How an id's bytes are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IdFormat {
    /// Hexadecimal.
    Binary,
    /// 16 bytes, the first three fields little-endian (objectGUID).
    GuidLe,
    /// A Windows SID.
    Sid,
    /// Text.
    Text,
    /// A UUID as text.
    Uuid,
}

/// How a password is checked: search, then bind as the entry found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// Off: people of this directory do not log in.
    pub enabled: bool,
    /// When the password that a mailbox has here (`gatepost mailbox set-password`) counts too: never | unavailable
    /// (while no server of the directory answers).
    pub fallback: Fallback,
    /// false: one-time passwords; nothing is remembered, and there is no grace.
    pub remember: bool,
    /// So many wrong passwords for one account are tried at the directory in this time; then new ones hear "later", so
    /// that no guesser locks anybody out. Where the directory's own limit can be read, one less than that holds
    /// instead.
    pub wrong_binds: Rate,
}

impl Default for Auth {
    fn default() -> Self {
        let wrong_binds = Rate { count: 3, window: Span::seconds(600) };
        Self { enabled: true, fallback: Fallback::Never, remember: true, wrong_binds }
    }
}

/// When a mailbox's own password counts beside the directory's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fallback {
    /// Never.
    Never,
    /// While no server of the directory answers.
    Unavailable,
}

/// Mailboxes made at first login.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Lazy {
    /// Off: only mailboxes that exist get in.
    pub enabled: bool,
    /// The protocols whose first login makes a mailbox.
    pub protocols: Vec<String>,
}

impl Default for Lazy {
    fn default() -> Self {
        let protocols = ["imap", "pop3", "smtp", "sieve", "dav"].map(String::from).to_vec();
        Self { enabled: true, protocols }
    }
}

/// Attributes → mailbox fields; the first attribute with a value counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Map {
    /// The mailbox's address; further values become aliases.
    pub address: Mapping,
    /// Further addresses, every value. `smtp:` is cut, `SMTP:` names the primary one, other prefixes are left out.
    pub aliases: Mapping,
    /// The name people see.
    pub display_name: Mapping,
    /// Overrides the template's quota.
    pub quota: Mapping,
}

impl Default for Map {
    fn default() -> Self {
        let attributes = |names: &[&str]| Mapping {
            attr: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Mapping::default()
        };
        Self {
            address: attributes(&["mail"]),
            aliases: attributes(&[]),
            display_name: attributes(&["displayName", "cn"]),
            quota: attributes(&[]),
        }
    }
}

/// Which template a person gets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct TemplateChoice {
    /// The attribute whose values pick the template.
    pub attribute: String,
    /// Without a matching rule; empty: no mailbox is made.
    pub default: String,
    /// An existing mailbox whose values match no rule keeps its template, or nobody gets in: keep | refuse.
    pub on_unmatched: OnUnmatched,
    /// Value → template, tried by `order`, then name; rules with `value` before rules with `member_of`.
    pub rule: BTreeMap<String, Rule>,
}

impl Default for TemplateChoice {
    fn default() -> Self {
        Self {
            attribute: String::new(),
            default: String::new(),
            on_unmatched: OnUnmatched::Keep,
            rule: BTreeMap::new(),
        }
    }
}

/// An existing mailbox whose values match no rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnUnmatched {
    /// Keeps its template.
    Keep,
    /// Is refused.
    Refuse,
}

/// One rule: `value` or `member_of`, and the template.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    /// Lower is tried first.
    pub order: u32,
    /// A value of `attribute`, compared without case.
    pub value: String,
    /// Or: the DN of a group the person is a direct member of.
    pub member_of: String,
    /// The template's name.
    pub template: String,
}

impl Default for Rule {
    fn default() -> Self {
        Self { order: 100, value: String::new(), member_of: String::new(), template: String::new() }
    }
}
