//! One try to log in, and its outcome.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::metrics::DoorName;
use crate::secret::Password;
use crate::service::Service;
use crate::store::Mailbox;

/// One try to log in, as a door understood it.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The name typed, bytes as they came.
    pub login: Vec<u8>,
    /// Whom to log in as, if that is somebody else (SASL's authorization id); empty: nobody else (login.md D-5).
    pub authzid: Vec<u8>,
    /// The password typed.
    pub password: Password,
    /// What for; `None`: the door heard no service, or one that is not known.
    pub service: Option<Service>,
    /// The service's name as the door heard it, for the journal.
    pub service_name: Cow<'static, str>,
    /// The client's address, where the door knows it (login.md D-2).
    pub client: Option<IpAddr>,
    /// The process that asks, over a unix socket; for the journal.
    pub peer: Option<Credentials>,
    /// The mail server's session id, where it sent one.
    pub session: Option<Box<str>>,
    /// The door's name in the configuration.
    pub door: Arc<DoorName>,
    /// When the request was complete: deadline and failure delay count from here.
    pub arrived: Instant,
}

/// A process at the other end of a unix socket, as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Its effective user.
    pub uid: u32,
    /// Its id, unless it lives in a place we cannot see.
    pub pid: Option<i32>,
}

/// The outcome of an attempt. Three values, from the directory to the wire: an outage is never a wrong password.
#[derive(Clone, Debug)]
#[must_use]
pub enum Verdict {
    /// Let them in.
    Accept(Accepted),
    /// Refused.
    Reject(Refused),
    /// Nobody can say now: "later".
    Unavailable(Later),
}

/// Who got in.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The mailbox as this login left it.
    pub mailbox: Arc<Mailbox>,
    /// Who vouched for the password.
    pub source: Source,
    /// What this login changed, in words of ours such as `created` or `quota,aliases`.
    pub changes: Option<Arc<str>>,
}

/// A refusal.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Why.
    pub reason: Reason,
    /// The password was proven in this attempt, so the client may hear more than "failed" (login.md O-7).
    pub proven: bool,
    /// From memory or from the directory.
    pub source: Source,
    /// What an administrator must know beside the reason, such as the ids behind `id-changed`.
    pub detail: Option<Arc<str>>,
}

/// "Later".
#[derive(Clone, Debug)]
pub struct Later {
    /// Why nobody can say now.
    pub reason: Reason,
    /// What an administrator must know beside the reason: the server, the setting, the code.
    pub detail: Option<Arc<str>>,
}

/// The detail of a refused password that was right before it was changed.
pub const OLD_PASSWORD: &str = "old-password";

impl Later {
    /// "Later" for a reason that says it all.
    #[must_use]
    pub fn new(reason: Reason) -> Self {
        Self { reason, detail: None }
    }
}

/// Where a verdict came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The directory was asked.
    Directory,
    /// An older proof, while no directory answers (login.md M-3).
    Grace,
    /// The password that the mailbox has here.
    Local,
    /// Memory.
    Memory,
    /// Nobody was asked: the rules decide.
    Rules,
}

impl Source {
    /// The word in journal and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::Grace => "grace",
            Self::Local => "local",
            Self::Memory => "memory",
            Self::Rules => "rules",
        }
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $word:literal,)+) => {
        /// Why a login was refused or put off: the closed list. The words are part of the interface: journal,
        /// metrics, HTTP answers, `explain`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason { $($(#[doc = $doc])+ $variant,)+ }

        impl Reason {
            /// Every reason, in alphabetical order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The machine-readable word.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// One line for people.
            #[must_use]
            pub fn explanation(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

reasons! {
    /// The person's address belongs to somebody else here.
    AddressTaken = "address-taken",
    /// Several entries of the directory answer to this name.
    Ambiguous = "ambiguous",
    /// One account may not log in as another.
    Authz = "authz",
    /// The person's address cannot be used in a path or a mail server's field.
    BadAddress = "bad-address",
    /// The name is no login: blanks, control bytes, no domain, too long.
    BadName = "bad-name",
    /// The password is empty, too long or holds a NUL byte.
    BadPasswordForm = "bad-password-form",
    /// So many wrong passwords were tried for this account that the directory is not asked about new ones for a while.
    BudgetSpent = "budget-spent",
    /// Too many attempts wait for the directory.
    Busy = "busy",
    /// Mailboxes are not made at login here (`lazy`).
    CreationOff = "creation-off",
    /// The time for one attempt is over.
    Deadline = "deadline",
    /// The mailbox only receives mail.
    DeliveryOnly = "delivery-only",
    /// The directory refuses our own account or question.
    DirectoryMisconfigured = "directory-misconfigured",
    /// The directory does not answer.
    DirectoryUnavailable = "directory-unavailable",
    /// The account is disabled in the directory.
    Disabled = "disabled",
    /// The domain has as many mailboxes as it may have.
    DomainFull = "domain-full",
    /// The mail domain is switched off.
    DomainInactive = "domain-inactive",
    /// The mail domain is not one of ours.
    DomainUnknown = "domain-unknown",
    /// The directory's entry is not the one this mailbox was made for.
    IdChanged = "id-changed",
    /// The template says that the mailbox is not active.
    Inactive = "inactive",
    /// A fault of ours; see the log.
    Internal = "internal",
    /// The account is locked in the directory.
    Locked = "locked",
    /// An administrator disabled the mailbox.
    MailboxDisabled = "mailbox-disabled",
    /// The password must be changed first.
    MustChange = "must-change",
    /// The entry holds no usable mail address.
    NoAddress = "no-address",
    /// The mailbox's password is checked here, and it has none.
    NoPassword = "no-password",
    /// No rule picks a template and there is no default.
    NoTemplate = "no-template",
    /// Not at this hour or from this place, says the directory.
    NotNow = "not-now",
    /// The password has expired.
    PasswordExpired = "password-expired",
    /// The template does not allow this protocol.
    ProtocolNotAllowed = "protocol-not-allowed",
    /// The mailbox is another directory's, or checked here, and not for this directory to use.
    ProviderMismatch = "provider-mismatch",
    /// The mailbox would not fit into the domain's quota.
    QuotaExceeded = "quota-exceeded",
    /// The mailbox database does not answer.
    StoreUnavailable = "store-unavailable",
    /// No rule picks a template any more, and `on_unmatched` is `refuse`.
    TemplateUnmatched = "template-unmatched",
    /// The guessing shield says no: too many wrong passwords came from there, or for this login.
    Throttled = "throttled",
    /// Nobody here goes by this name.
    Unknown = "unknown",
    /// The mail server named no service, or one that is not known.
    UnknownService = "unknown-service",
    /// Too many passwords came from this net that nobody could check.
    Unproven = "unproven",
    /// Wrong password.
    WrongPassword = "wrong-password",
}
