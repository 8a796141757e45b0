//! "Where does this address live?" for mail servers: mailbox, alias, mail domain, owner of a sender's address. Answers
//! come from memory; what is not there costs one indexed query.
//!
//! A mail server's key is a whole address (Postfix' socketmap strips nothing), so detail (`user+detail`), alias
//! domains and catch-alls are found here. Candidates are looked at in this order, the first that is somebody's counts:
//!
//! ```text
//! user+detail@domain   user@domain   user+detail@target   user@target     (target: the domain's alias_of)
//! ```
//!
//! and only if none is, the catch-all of the domain: if that leads to a mailbox, or away from here. Addresses of domains
//! that are not ours are nobody's, and the store is not asked about them: mail servers ask for every sender and
//! recipient there is, and mail to the rest of the world must not wait for our store. What is in memory follows every
//! change that this process makes in the store at once; a change by another process is seen after [`OUTSIDE_CHANGES`].

mod key;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::cache::{Bounded, Table};
use crate::clock;
use crate::config::Config;
use crate::config::template::{Active, DisabledDelivery};
use crate::identity::{Address, Domain, Login, LoginRules, MAX_NAME_BYTES};
use crate::store::{Resident, Store, StoreError, Touched};
use key::{Key, external};

/// What another process wrote into the store is seen after this long.
pub const OUTSIDE_CHANGES: Duration = Duration::from_secs(60);

/// What an entry takes beside its text and its resident, in bytes.
const ENTRY_BYTES: usize = 150;

/// Look-ups, with what is known of addresses and mailboxes.
pub struct Lookup {
    store: Store,
    rules: ArcSwap<Rules>,
    known: Arc<Known>,
}

/// Copies of what the store holds.
struct Known {
    /// Address → number of the mailbox it belongs to; `None`: nobody's.
    addresses: Bounded<Box<str>, Read<Option<i64>>>,
    residents: Bounded<i64, Read<Arc<Resident>>>,
}

/// What the store held, and when that was read.
#[derive(Clone)]
struct Read<T> {
    value: T,
    at: Instant,
}

/// What a reload swaps.
struct Rules {
    names: LoginRules,
    domains: Table<Domain, DomainRules>,
}

struct DomainRules {
    active: bool,
    alias_of: Option<Domain>,
    catch_all: Option<Address>,
}

/// A look-up table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Map {
    /// Address → where its mail goes instead.
    Alias,
    /// Mail domain → itself.
    Domain,
    /// Address → the mailbox's canonical address.
    Mailbox,
    /// Sender's address → the login that may use it.
    SenderLogin,
}

impl Map {
    /// Every table.
    pub const ALL: &'static [Self] = &[Self::Alias, Self::Domain, Self::Mailbox, Self::SenderLogin];

    /// The table of that name.
    #[must_use]
    pub fn parse(name: &[u8]) -> Option<Self> {
        Self::ALL.iter().copied().find(|map| map.as_str().as_bytes() == name)
    }

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alias => "alias",
            Self::Domain => "domain",
            Self::Mailbox => "mailbox",
            Self::SenderLogin => "sender-login",
        }
    }
}

/// What a look-up found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Found {
    /// Nobody can say now: the store is gone, or mail for this mailbox is put off (login.md U-1).
    Later,
    /// There is no such thing.
    Nothing,
    /// This; never empty.
    Value(Arc<str>),
}

/// Whether mail for a mailbox is taken (login.md U-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receives {
    /// Put off.
    Later,
    /// As if there were no such mailbox.
    No,
    /// Taken.
    Yes,
}

/// Where an address leads.
enum Place {
    /// Mail for strangers of the domain goes there.
    CatchAll(Address),
    /// It is nobody's.
    Nobody,
    /// It is one of a mailbox's.
    Resident {
        resident: Arc<Resident>,
        /// What was cut off before it was found, separator included; empty: nothing.
        detail: Box<str>,
        /// The address itself is the mailbox's canonical one, no alias.
        canonical: bool,
    },
}

/// Memory does not know enough.
struct Unknown;

impl Lookup {
    /// Look-ups over a store; they hear of each change of it from now on. There is one for each store.
    #[must_use]
    pub fn new(store: Store, config: &Config) -> Arc<Self> {
        // An eighth of what logins may take, half of it for each side.
        let known = Arc::new(Known::new(config.memory.capacity.0 / 16));
        let hearing = Arc::clone(&known);
        store.changes().listen(move |touched| hearing.forget(touched));
        Arc::new(Self { store, rules: ArcSwap::from_pointee(Rules::new(config)), known })
    }

    /// Takes over domains and rules of names.
    pub fn reconfigure(&self, config: &Config) {
        self.rules.store(Arc::new(Rules::new(config)));
    }

    /// Answers from memory, or not at all. Never waits.
    #[must_use]
    pub fn recall(&self, map: Map, key: &[u8]) -> Option<Found> {
        let rules = self.rules.load();
        if map == Map::Domain {
            return Some(rules.domain(key));
        }
        if let Some(found) = self.recall_plain(&rules, map, key) {
            return Some(found);
        }
        let Some(key) = rules.key(key) else { return Some(Found::Nothing) };
        let view = View { known: &self.known, read: Vec::new() };
        rules.answer(&view, map, &key).ok()
    }

    /// Nearly every key is the plain address of somebody whom memory knows.
    fn recall_plain(&self, rules: &Rules, map: Map, key: &[u8]) -> Option<Found> {
        let mut buffer = [0; MAX_NAME_BYTES];
        let address = rules.names.plain(key, &mut buffer)?;
        let (_, domain) = address.split_once('@')?;
        let now = clock::now();
        let resident = self.known.resident(self.known.owner(address, now)??, now)?;
        let canonical = *address == *resident.address.as_str();
        rules.domains.contains_key(domain).then(|| rules.said(map, &resident, "", canonical))
    }

    /// Answers, asking the store if memory cannot.
    ///
    /// # Errors
    /// The store did not answer.
    pub async fn find(&self, map: Map, key: &[u8]) -> Result<Found, StoreError> {
        let rules = self.rules.load_full();
        if map == Map::Domain {
            return Ok(rules.domain(key));
        }
        let Some(key) = rules.key(key) else { return Ok(Found::Nothing) };
        let mut view = View { known: &self.known, read: Vec::new() };
        if let Ok(found) = rules.answer(&view, map, &key) {
            return Ok(found);
        }
        self.read(&rules.candidates(&key), &mut view).await?;
        if let Ok(found) = rules.answer(&view, map, &key) {
            return Ok(found);
        }
        // The address is nobody's, so that the catch-all counts: whose is that?
        if let Some(catch_all) = rules.catch_all(&key) {
            let catch_all = Key::of(catch_all, &rules.names);
            self.read(&rules.candidates(&catch_all), &mut view).await?;
        }
        // All that counts has been read. If a mistake of ours says otherwise, mail must wait and not be refused.
        Ok(rules.answer(&view, map, &key).unwrap_or(Found::Later))
    }

    /// The mailbox that a name leads to, by whatever address of it. An address is looked up as it is, detail included;
    /// a bare name is read as at a login.
    ///
    /// # Errors
    /// The store did not answer.
    pub async fn resident(&self, name: &[u8]) -> Result<Option<Arc<Resident>>, StoreError> {
        let rules = self.rules.load_full();
        let address = match std::str::from_utf8(name) {
            Ok(text) if text.contains('@') => Address::parse(text, rules.names.case).ok(),
            _ => Login::parse(name, &rules.names).ok().map(|login| login.address),
        };
        let Some(address) = address else { return Ok(None) };
        let key = Key::of(&address, &rules.names);
        let mut view = View { known: &self.known, read: Vec::new() };
        let place = match rules.place(&view, &key) {
            Ok(place) => place,
            Err(Unknown) => {
                self.read(&rules.candidates(&key), &mut view).await?;
                // As in `find`: a mistake of ours must not make anybody nobody.
                rules.place(&view, &key).map_err(|Unknown| StoreError::Unavailable {
                    what: "a look-up came to no end".into(),
                    source: None,
                })?
            }
        };
        Ok(match place {
            Place::Resident { resident, .. } => Some(resident),
            Place::CatchAll(_) | Place::Nobody => None,
        })
    }

    /// Whether mail for a mailbox is taken now (login.md U-1).
    #[must_use]
    pub fn receives(&self, resident: &Resident) -> Receives {
        self.rules.load().receives(resident)
    }

    /// Reads what the store knows of these addresses, into the view and into memory.
    async fn read(
        &self,
        candidates: &[Candidate<'_>],
        view: &mut View<'_>,
    ) -> Result<(), StoreError> {
        let edition = self.store.changes().edition();
        let texts: Vec<&str> = candidates.iter().map(|candidate| &*candidate.text).collect();
        let found = self.store.residents(&texts).await?;
        for text in &texts {
            let owner = found.iter().find(|(address, _)| address == text);
            let owner = owner.map(|(_, resident)| Arc::new(resident.clone()));
            self.known.learn(text, owner.as_ref());
            view.read.push(((*text).into(), owner));
        }
        // What changed while it was read may have been forgotten before it was put in: it must go again.
        if self.store.changes().edition() != edition {
            for text in &texts {
                self.known.addresses.remove(*text);
            }
            for (_, resident) in &found {
                self.known.residents.remove(&resident.id);
            }
        }
        Ok(())
    }
}

/// What one look-up knows: memory, and what it just read.
struct View<'a> {
    known: &'a Known,
    read: Vec<(Box<str>, Option<Arc<Resident>>)>,
}

impl View<'_> {
    fn owner(&self, address: &str) -> Result<Option<Arc<Resident>>, Unknown> {
        if let Some((_, owner)) = self.read.iter().find(|(text, _)| **text == *address) {
            return Ok(owner.clone());
        }
        let now = clock::now();
        match self.known.owner(address, now) {
            None => Err(Unknown),
            Some(None) => Ok(None),
            Some(Some(id)) => self.known.resident(id, now).map(Some).ok_or(Unknown),
        }
    }
}

impl Known {
    fn new(bytes: u64) -> Self {
        Self {
            addresses: Bounded::new(bytes, ENTRY_BYTES),
            residents: Bounded::new(bytes, ENTRY_BYTES),
        }
    }

    /// Whose an address is; the outer `None`: not known.
    fn owner(&self, address: &str, now: Instant) -> Option<Option<i64>> {
        fresh(self.addresses.get(address), now)
    }

    fn resident(&self, id: i64, now: Instant) -> Option<Arc<Resident>> {
        fresh(self.residents.get(&id), now)
    }

    fn learn(&self, address: &str, owner: Option<&Arc<Resident>>) {
        let at = clock::now();
        if let Some(owner) = owner {
            let bytes = owner.weight() + ENTRY_BYTES;
            self.residents.insert(owner.id, Read { value: Arc::clone(owner), at }, bytes);
        }
        let value = owner.map(|owner| owner.id);
        self.addresses.insert(address.into(), Read { value, at }, address.len() + ENTRY_BYTES);
    }

    fn forget(&self, touched: &Touched) {
        for address in &touched.addresses {
            self.addresses.remove(address.as_str());
        }
        for id in &touched.mailboxes {
            self.residents.remove(id);
        }
    }
}

fn fresh<T>(read: Option<Read<T>>, now: Instant) -> Option<T> {
    read.filter(|read| now < read.at + OUTSIDE_CHANGES).map(|read| read.value)
}

/// An address to look at.
struct Candidate<'a> {
    text: Cow<'a, str>,
    /// The detail was cut off.
    bare: bool,
    /// In the domain that was asked for, not in the one it stands for.
    own: bool,
}

impl Rules {
    fn new(config: &Config) -> Self {
        let names = config.names();
        let rules = |(name, domain): (&String, &crate::config::domain::Domain)| {
            // The configuration's own check refuses names that are no domains.
            let rules = DomainRules {
                active: domain.active,
                alias_of: Domain::parse(&domain.alias_of).ok(),
                catch_all: Address::parse(&domain.catch_all, names.case).ok(),
            };
            Some((Domain::parse(name).ok()?, rules))
        };
        Self { domains: config.domain.iter().filter_map(rules).collect(), names }
    }

    /// Understands a key; `None`: it is nobody's, whatever the store holds.
    fn key(&self, key: &[u8]) -> Option<Key> {
        Key::parse(key, &self.names).filter(|key| self.is_ours(key.address.domain()))
    }

    fn is_ours(&self, domain: &Domain) -> bool {
        self.domains.contains_key(domain)
    }

    fn domain(&self, key: &[u8]) -> Found {
        let domain = std::str::from_utf8(key).ok().and_then(|text| Domain::parse(text).ok());
        match domain.filter(|domain| self.is_ours(domain)) {
            Some(domain) => Found::Value(domain.as_str().into()),
            None => Found::Nothing,
        }
    }

    fn alias_of(&self, domain: &Domain) -> Option<&Domain> {
        self.domains.get(domain)?.alias_of.as_ref()
    }

    /// Of the domain, or else of the one it stands for.
    fn catch_all(&self, key: &Key) -> Option<&Address> {
        let domain = key.address.domain();
        let own = self.domains.get(domain)?;
        let target = || self.domains.get(own.alias_of.as_ref()?)?.catch_all.as_ref();
        own.catch_all.as_ref().or_else(target)
    }

    fn candidates<'k>(&self, key: &'k Key) -> Vec<Candidate<'k>> {
        let mut candidates = Vec::with_capacity(crate::store::MAX_CANDIDATES);
        let address = Cow::Borrowed(key.address.as_str());
        candidates.push(Candidate { text: address, bare: false, own: true });
        if let Some(bare) = key.bare() {
            let text = format!("{bare}@{}", key.address.domain());
            candidates.push(Candidate { text: text.into(), bare: true, own: true });
        }
        if let Some(target) = self.alias_of(key.address.domain()) {
            let text = format!("{}@{target}", key.address.local());
            candidates.push(Candidate { text: text.into(), bare: false, own: false });
            if let Some(bare) = key.bare() {
                let text = format!("{bare}@{target}");
                candidates.push(Candidate { text: text.into(), bare: true, own: false });
            }
        }
        candidates
    }

    /// Where the key leads, as far as the view knows.
    fn place(&self, view: &View<'_>, key: &Key) -> Result<Place, Unknown> {
        for candidate in self.candidates(key) {
            let Some(resident) = view.owner(&candidate.text)? else { continue };
            let canonical = candidate.own && *candidate.text == *resident.address.as_str();
            let detail = if candidate.bare { key.detail().into() } else { Box::default() };
            return Ok(Place::Resident { resident, detail, canonical });
        }
        Ok(match self.catch_all(key) {
            // A catch-all that is nobody's would go round in circles.
            Some(address) if *address != key.address => Place::CatchAll(address.clone()),
            _ => Place::Nobody,
        })
    }

    fn answer(&self, view: &View<'_>, map: Map, key: &Key) -> Result<Found, Unknown> {
        let place = self.place(view, key)?;
        Ok(match (map, place) {
            (Map::Alias, Place::CatchAll(address)) if !self.is_ours(address.domain()) => {
                Found::Value(external(&address, ""))
            }
            (Map::Alias | Map::SenderLogin, Place::CatchAll(address)) => {
                match self.place(view, &Key::of(&address, &self.names))? {
                    Place::Resident { resident, .. } if map == Map::SenderLogin => {
                        Found::Value(resident.address.shared())
                    }
                    Place::Resident { resident, detail, .. } => {
                        self.delivered(&resident, || self.detailed(&resident.address, &detail))
                    }
                    // What is taken for an address that nobody has would come back as a bounce to whoever was forged.
                    Place::CatchAll(_) | Place::Nobody => Found::Nothing,
                }
            }
            (_, Place::Resident { resident, canonical, detail }) => {
                self.said(map, &resident, &detail, canonical)
            }
            (Map::Alias | Map::Domain | Map::Mailbox | Map::SenderLogin, _) => Found::Nothing,
        })
    }

    /// What a table says of an address that is a mailbox's.
    fn said(&self, map: Map, resident: &Resident, detail: &str, canonical: bool) -> Found {
        match map {
            Map::SenderLogin => Found::Value(resident.address.shared()),
            Map::Mailbox if canonical => self.delivered(resident, || resident.address.shared()),
            Map::Alias if !canonical => {
                self.delivered(resident, || self.detailed(&resident.address, detail))
            }
            Map::Alias | Map::Domain | Map::Mailbox => Found::Nothing,
        }
    }

    /// The address with the detail put back. An address that holds the separator itself gets none: whoever cuts at the
    /// first one would find another mailbox.
    fn detailed(&self, address: &Address, detail: &str) -> Arc<str> {
        let is_cut = Key::of(address, &self.names).bare().is_some();
        external(address, if is_cut { "" } else { detail })
    }

    fn delivered(&self, resident: &Resident, value: impl FnOnce() -> Arc<str>) -> Found {
        match self.receives(resident) {
            Receives::Yes => Found::Value(value()),
            Receives::No => Found::Nothing,
            Receives::Later => Found::Later,
        }
    }

    fn receives(&self, resident: &Resident) -> Receives {
        let domain = self.domains.get(resident.address.domain());
        let is_off = resident.disabled_by_admin
            || resident.settings.active == Active::No
            || domain.is_none_or(|domain| !domain.active);
        match resident.settings.disabled_delivery {
            _ if !is_off => Receives::Yes,
            DisabledDelivery::Accept => Receives::Yes,
            DisabledDelivery::Reject => Receives::No,
            DisabledDelivery::Tempfail => Receives::Later,
        }
    }
}

#[cfg(test)]
mod tests;
