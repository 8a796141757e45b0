//! Where a mailbox lives, as every door that Dovecot asks tells it: the look-up, and the userdb fields in the spellings
//! of 2.3 and 2.4 together (each version ignores the other's).

use std::sync::Arc;

use super::door::Door;
use crate::auth::{Reason, Service};
use crate::lookup::Receives;
use crate::store::{Place, Resident, Settings, Store, StoreError};

/// Users read from the store at a time for a list.
const LIST_PAGE: u32 = 1000;

/// Where the mailbox of a name is.
#[derive(Clone, Debug)]
pub enum Residence {
    /// There.
    At(Arc<Resident>),
    /// Nobody can say now, or mail for this mailbox is put off.
    Later,
    /// There is none.
    Nowhere,
    /// It is there, and may not be used for the login that asks.
    Barred(Reason),
}

/// The mailbox that a name leads to, if this reader may know of it and it takes mail (login.md U-1). The administrator's own
/// tool (service doveadm) hears of it even if it does not.
///
/// Who asks for a login has proven somebody elsewhere (Kerberos, a client certificate, another passdb), and asks nobody else
/// whether the mailbox may be used: such a question is judged as a login is (U-2).
pub(super) async fn find(
    door: &Door,
    user: &[u8],
    service: &str,
    may_see: impl Fn(&Resident) -> bool,
) -> Residence {
    match door.lookup.resident(user).await {
        Ok(Some(mailbox)) if !may_see(&mailbox) => Residence::Nowhere,
        Ok(Some(mailbox)) if service == "doveadm" => Residence::At(mailbox),
        Ok(Some(mailbox)) => match login_service(service) {
            Some(service) => match door.objection(&mailbox, service) {
                Some(reason) => Residence::Barred(reason),
                None => Residence::At(mailbox),
            },
            None => match door.lookup.receives(&mailbox) {
                Receives::Yes => Residence::At(mailbox),
                Receives::No => Residence::Nowhere,
                Receives::Later => Residence::Later,
            },
        },
        Ok(None) => Residence::Nowhere,
        Err(error) => {
            log_store_failure(door, &error);
            Residence::Later
        }
    }
}

/// The service, if people log in to it.
fn login_service(name: &str) -> Option<Service> {
    Service::parse(name).filter(|service| service.protocol().is_some())
}

/// The store could not be asked.
pub(super) fn log_store_failure(door: &Door, error: &StoreError) {
    tracing::error!(door = %door.name, %error, "store failed at a look-up");
}

/// All users in order, a page at a time, so that a long list neither holds a transaction nor fills memory.
pub(super) struct Users<'a> {
    store: &'a Store,
    after: Option<String>,
}

impl<'a> Users<'a> {
    pub(super) fn of(store: &'a Store) -> Self {
        Self { store, after: None }
    }

    /// The next page; an empty one is the end.
    pub(super) async fn page(&mut self) -> Result<Vec<String>, StoreError> {
        let page = self.store.addresses(self.after.as_deref(), LIST_PAGE).await?;
        self.after = page.last().cloned();
        Ok(page)
    }
}

/// The fields. A home stands as it is: neither version expands variables in it (a test delivers mail to a name with
/// `%` on both). Settings it does expand, so templates double the `%` of what they fill into `extra` (login.md N-5).
pub(super) fn fields(place: &Place, settings: &Settings) -> Vec<(String, String)> {
    let mut fields = vec![
        ("uid".to_owned(), place.uid.to_string()),
        ("gid".to_owned(), place.gid.to_string()),
        ("home".to_owned(), place.home.to_string()),
    ];
    let quota = settings.quota;
    if quota > 0 {
        fields.push(("quota_rule".to_owned(), format!("*:bytes={quota}")));
        fields.push(("quota_storage_size".to_owned(), format!("{quota}B")));
    }
    for (key, value) in &settings.extra {
        // What an administrator wrote in a template is meant for Dovecot as it stands, variables included.
        fields.retain(|(other, _)| **other != **key);
        fields.push((key.to_string(), value.to_string()));
    }
    fields
}

/// The fields as a passdb gives them for its userdb (Dovecot's `userdb prefetch`): each with `userdb_` before its name.
pub(super) fn prefetched(place: &Place, settings: &Settings) -> Vec<(String, String)> {
    let fields = fields(place, settings).into_iter();
    fields.map(|(key, value)| (format!("userdb_{key}"), value)).collect()
}
