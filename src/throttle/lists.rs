//! Who is let go on, and who is refused, whatever is counted: the lists of the configuration, and entries that an
//! administrator or a mail server makes at run time (weakforced's white and black list), each with an end.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::throttle::Entry as Fixed;

/// Entries in each list. More are refused: a list is made by people.
pub const MAX_ENTRIES: usize = 100_000;

/// Which list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum List {
    /// weakforced's white list.
    Allow,
    /// weakforced's black list.
    Deny,
}

impl List {
    /// The word in the store and in what is shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }

    /// The list with this name.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Allow, Self::Deny].into_iter().find(|list| list.as_str() == word)
    }
}

/// Whom an entry is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Whom {
    /// An address or a net.
    Net(IpNet),
    /// A login.
    Login(String),
    /// A TLS fingerprint.
    Ja3(String),
    /// A login from an address.
    LoginAt(String, IpAddr),
    /// A TLS fingerprint at an address.
    Ja3At(String, IpAddr),
}

const KINDS: usize = 5;

impl Whom {
    const LOGIN: usize = 1;
    const JA3: usize = 2;
    const LOGIN_AT: usize = 3;
    const JA3_AT: usize = 4;

    fn kind(&self) -> usize {
        match self {
            Self::Net(_) => 0,
            Self::Login(_) => Self::LOGIN,
            Self::Ja3(_) => Self::JA3,
            Self::LoginAt(..) => Self::LOGIN_AT,
            Self::Ja3At(..) => Self::JA3_AT,
        }
    }

    /// The kind and the text that name it: `ip`, `netmask`, `login`, `ja3`, `iplogin`, `ipja3`; a pair is written as
    /// `ADDRESS TEXT`.
    #[must_use]
    pub fn named(&self) -> (&'static str, String) {
        match self {
            Self::Net(net) if net.prefix_len() == net.max_prefix_len() => {
                ("ip", net.addr().to_string())
            }
            Self::Net(net) => ("netmask", net.to_string()),
            Self::Login(login) => ("login", login.clone()),
            Self::Ja3(ja3) => ("ja3", ja3.clone()),
            Self::LoginAt(login, address) => ("iplogin", format!("{address} {login}")),
            Self::Ja3At(ja3, address) => ("ipja3", format!("{address} {ja3}")),
        }
    }

    /// Reads what [`Whom::named`] wrote.
    #[must_use]
    pub fn parse(kind: &str, text: &str) -> Option<Self> {
        let pair = || {
            let (address, text) = text.split_once(' ')?;
            Some((text.to_owned(), address.parse::<IpAddr>().ok()?.to_canonical()))
        };
        Some(match kind {
            "ip" => Self::Net(text.parse::<IpAddr>().ok()?.to_canonical().into()),
            "netmask" => Self::Net(canonical(text.parse().ok()?)),
            "login" => Self::Login(text.to_owned()),
            "ja3" => Self::Ja3(text.to_owned()),
            "iplogin" => pair().map(|(login, address)| Self::LoginAt(login, address))?,
            "ipja3" => pair().map(|(ja3, address)| Self::Ja3At(ja3, address))?,
            _ => return None,
        })
    }
}

/// A net in its one form: bits beyond the prefix are 0, and IPv4 is IPv4.
#[must_use]
pub fn canonical(net: IpNet) -> IpNet {
    let mapped = match net {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => {
            v6.addr().to_ipv4_mapped().and_then(|v4| Ipv4Net::new(v4, v6.prefix_len() - 96).ok())
        }
        _ => None,
    };
    mapped.map_or(net, IpNet::V4).trunc()
}

/// An entry made at run time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The list it stands in.
    pub list: List,
    /// Whom it is about.
    pub whom: Whom,
    /// From then on it says nothing. Wall-clock time: it must outlive a restart.
    pub until: SystemTime,
    /// Why, in the words of whoever made it.
    pub reason: String,
}

impl Entry {
    /// Whether it stands in the configuration, and so has no end.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        self.until == never()
    }
}

/// Whom an attempt is about, as the lists see it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked<'a> {
    /// The client's address, in its one form.
    pub client: Option<IpAddr>,
    /// The login.
    pub login: Option<&'a str>,
    /// The TLS fingerprint.
    pub ja3: Option<&'a str>,
}

/// Both lists.
#[derive(Debug, Default)]
pub(super) struct Lists(ArcSwap<Entries>);

/// One state of both lists.
#[derive(Clone, Debug, Default)]
struct Entries {
    fixed: [Side; 2],
    /// Made at run time.
    made: [Side; 2],
}

#[derive(Clone, Debug, Default)]
struct Side {
    entries: HashMap<Whom, Arc<Entry>>,
    /// Prefix lengths that occur, of IPv4 and of IPv6.
    prefixes: [BTreeSet<u8>; 2],
    /// How many entries there are of each kind: what does not occur is not looked up.
    kinds: [usize; KINDS],
}

impl Side {
    fn insert(&mut self, entry: Entry) {
        if let Whom::Net(net) = &entry.whom {
            self.prefixes_of(net).insert(net.prefix_len());
        }
        let kind = entry.whom.kind();
        if self.entries.insert(entry.whom.clone(), Arc::new(entry)).is_none()
            && let Some(count) = self.kinds.get_mut(kind)
        {
            *count += 1;
        }
    }

    fn has(&self, kind: usize) -> Option<()> {
        self.kinds.get(kind).is_some_and(|count| *count > 0).then_some(())
    }

    fn prefixes_of(&mut self, net: &IpNet) -> &mut BTreeSet<u8> {
        let [v4, v6] = &mut self.prefixes;
        if matches!(net, IpNet::V4(_)) { v4 } else { v6 }
    }

    fn remove(&mut self, whom: &Whom) -> bool {
        let removed = self.entries.remove(whom).is_some();
        if let Some(count) = self.kinds.get_mut(whom.kind()).filter(|_| removed) {
            *count -= 1;
        }
        if let Whom::Net(net) = whom
            && removed
        {
            let is_same = |other: &Whom| {
                matches!(other, Whom::Net(other)
                    if other.prefix_len() == net.prefix_len()
                        && other.max_prefix_len() == net.max_prefix_len())
            };
            if !self.entries.keys().any(is_same) {
                self.prefixes_of(net).remove(&net.prefix_len());
            }
        }
        removed
    }

    /// The entry that speaks of an attempt; the narrowest net first, then in weakforced's order: address, login,
    /// fingerprint, address with login, address with fingerprint.
    fn find(&self, asked: Asked<'_>, now: SystemTime) -> Option<&Arc<Entry>> {
        if self.entries.is_empty() {
            return None;
        }
        let lives = |entry: &&Arc<Entry>| now < entry.until;
        let get = |whom: &Whom| self.entries.get(whom).filter(lives);
        let own = str::to_owned;
        let by_net = asked.client.and_then(|client| self.find_net(client, now));
        by_net
            .or_else(|| self.has(Whom::LOGIN).and_then(|()| get(&Whom::Login(own(asked.login?)))))
            .or_else(|| self.has(Whom::JA3).and_then(|()| get(&Whom::Ja3(own(asked.ja3?)))))
            .or_else(|| {
                self.has(Whom::LOGIN_AT)?;
                get(&Whom::LoginAt(own(asked.login?), asked.client?))
            })
            .or_else(|| {
                self.has(Whom::JA3_AT)?;
                get(&Whom::Ja3At(own(asked.ja3?), asked.client?))
            })
    }

    /// All entries that speak of an attempt, in the order of [`Side::find`].
    fn about(&self, asked: Asked<'_>, now: SystemTime) -> Vec<Arc<Entry>> {
        let [v4, v6] = &self.prefixes;
        let mut whoms = Vec::new();
        if let Some(client) = asked.client {
            let prefixes = if client.is_ipv4() { v4 } else { v6 };
            let nets = prefixes.iter().rev().filter_map(|prefix| net_of(client, *prefix));
            whoms.extend(nets.map(Whom::Net));
        }
        let (login, ja3) = (asked.login.map(str::to_owned), asked.ja3.map(str::to_owned));
        whoms.extend(login.clone().map(Whom::Login));
        whoms.extend(ja3.clone().map(Whom::Ja3));
        whoms.extend(login.zip(asked.client).map(|(login, client)| Whom::LoginAt(login, client)));
        whoms.extend(ja3.zip(asked.client).map(|(ja3, client)| Whom::Ja3At(ja3, client)));
        let found = whoms.iter().filter_map(|whom| self.entries.get(whom));
        found.filter(|entry| now < entry.until).cloned().collect()
    }

    fn find_net(&self, client: IpAddr, now: SystemTime) -> Option<&Arc<Entry>> {
        let [v4, v6] = &self.prefixes;
        let prefixes = if client.is_ipv4() { v4 } else { v6 };
        prefixes.iter().rev().find_map(|prefix| {
            let net = net_of(client, *prefix)?;
            self.entries.get(&Whom::Net(net)).filter(|entry| now < entry.until)
        })
    }
}

/// The net of so many bits that an address lies in.
pub(super) fn net_of(address: IpAddr, prefix: u8) -> Option<IpNet> {
    Some(match address {
        IpAddr::V4(v4) => Ipv4Net::new(v4, prefix).ok()?.trunc().into(),
        IpAddr::V6(v6) => Ipv6Net::new(v6, prefix).ok()?.trunc().into(),
    })
}

fn side<T>([allow, deny]: &[T; 2], list: List) -> &T {
    match list {
        List::Allow => allow,
        List::Deny => deny,
    }
}

fn side_mut<T>([allow, deny]: &mut [T; 2], list: List) -> &mut T {
    match list {
        List::Allow => allow,
        List::Deny => deny,
    }
}

/// The list is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the list holds {MAX_ENTRIES} entries already")]
pub struct Full;

/// So far away that it is never.
fn never() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799)
}

impl Lists {
    /// The entries of the configuration, in the place of those before.
    pub(super) fn configure(&self, allow: &[String], deny: &[String]) {
        let fixed = [(List::Allow, allow), (List::Deny, deny)].map(|(list, texts)| {
            let mut side = Side::default();
            for text in texts {
                // What is neither was found by the check of the configuration.
                let whom = match Fixed::parse(text) {
                    Some(Fixed::Net(net)) => Whom::Net(canonical(net)),
                    Some(Fixed::Login(login)) => Whom::Login(login),
                    None => continue,
                };
                let reason = "configuration".into();
                side.insert(Entry { list, whom, until: never(), reason });
            }
            side
        });
        self.0.rcu(|before| Entries { fixed: fixed.clone(), made: before.made.clone() });
    }

    /// Whether nobody stands in any list: nobody needs to look.
    pub(super) fn are_empty(&self) -> bool {
        let entries = self.0.load();
        entries.fixed.iter().chain(&entries.made).all(|side| side.entries.is_empty())
    }

    /// Which list speaks of an attempt, and how: the allowing one first.
    pub(super) fn find(&self, asked: Asked<'_>, now: SystemTime) -> Option<Arc<Entry>> {
        [List::Allow, List::Deny].into_iter().find_map(|list| self.find_in(list, asked, now))
    }

    /// What one list says of an attempt.
    pub(super) fn find_in(
        &self,
        list: List,
        asked: Asked<'_>,
        now: SystemTime,
    ) -> Option<Arc<Entry>> {
        let entries = self.0.load();
        let fixed = side(&entries.fixed, list).find(asked, now);
        fixed.or_else(|| side(&entries.made, list).find(asked, now)).cloned()
    }

    /// All that speaks of an attempt; what decides stands first.
    pub(super) fn about(&self, asked: Asked<'_>, now: SystemTime) -> Vec<Arc<Entry>> {
        let entries = self.0.load();
        let sides = [List::Allow, List::Deny]
            .into_iter()
            .flat_map(|list| [side(&entries.fixed, list), side(&entries.made, list)]);
        sides.flat_map(|side| side.about(asked, now)).collect()
    }

    /// What stands in a list for exactly this.
    pub(super) fn get(&self, list: List, whom: &Whom, now: SystemTime) -> Option<Arc<Entry>> {
        let entries = self.0.load();
        let entry = side(&entries.made, list).entries.get(whom);
        let entry = entry.or_else(|| side(&entries.fixed, list).entries.get(whom));
        entry.filter(|entry| now < entry.until).cloned()
    }

    /// Adds entries, in the place of earlier ones about the same; throws out those that are over.
    pub(super) fn add(&self, added: &[Entry], now: SystemTime) -> Result<(), Full> {
        let mut fits = true;
        self.0.rcu(|before| {
            let mut after = Entries::clone(before);
            for made in &mut after.made {
                let over = made.entries.values().filter(|entry| entry.until <= now);
                let over: Vec<Whom> = over.map(|entry| entry.whom.clone()).collect();
                for whom in &over {
                    made.remove(whom);
                }
            }
            for entry in added {
                side_mut(&mut after.made, entry.list).insert(entry.clone());
            }
            fits = after.made.iter().all(|side| side.entries.len() <= MAX_ENTRIES);
            if fits { after } else { Entries::clone(before) }
        });
        if fits { Ok(()) } else { Err(Full) }
    }

    /// Takes an entry out; whether it was there.
    pub(super) fn remove(&self, list: List, whom: &Whom) -> bool {
        let mut removed = false;
        self.0.rcu(|before| {
            let mut after = Entries::clone(before);
            removed = side_mut(&mut after.made, list).remove(whom);
            after
        });
        removed
    }

    /// All entries made at run time that are not over, in order.
    pub(super) fn made(&self, list: List, now: SystemTime) -> Vec<Arc<Entry>> {
        let entries = self.0.load();
        let made = side(&entries.made, list).entries.values().filter(|entry| now < entry.until);
        let mut made: Vec<_> = made.cloned().collect();
        made.sort_by(|a, b| a.whom.cmp(&b.whom));
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)
    }

    fn entry(list: List, whom: Whom, seconds: u64) -> Entry {
        Entry { list, whom, until: now() + Duration::from_secs(seconds), reason: "test".into() }
    }

    fn asked<'a>(client: &str, login: &'a str) -> Asked<'a> {
        Asked { client: Some(client.parse().unwrap()), login: Some(login), ja3: None }
    }

    #[test]
    fn each_kind_speaks_of_those_it_names_until_its_end() {
        let whoms = [
            ("ip", "192.0.2.9"),
            ("netmask", "198.51.100.0/24"),
            ("login", "fry@planetexpress.com"),
            ("iplogin", "203.0.113.1 leela@planetexpress.com"),
        ];
        for (kind, text) in whoms {
            let lists = Lists::default();
            let whom = Whom::parse(kind, text).unwrap();
            assert_eq!(whom.named(), (kind, text.to_owned()));
            lists.add(&[entry(List::Deny, whom, 60)], now()).unwrap();
            for (asked, speaks) in [
                (asked("192.0.2.9", "amy@x.com"), kind == "ip"),
                (asked("198.51.100.77", "amy@x.com"), kind == "netmask"),
                (asked("10.0.0.1", "fry@planetexpress.com"), kind == "login"),
                (asked("203.0.113.1", "leela@planetexpress.com"), kind == "iplogin"),
                (asked("203.0.113.2", "leela@planetexpress.com"), false),
            ] {
                assert_eq!(lists.find(asked, now()).is_some(), speaks, "{kind} {asked:?}");
                assert!(lists.find(asked, now() + Duration::from_secs(60)).is_none());
            }
        }
    }

    #[test]
    fn the_allowing_list_goes_first_and_the_configuration_stays() {
        let lists = Lists::default();
        assert!(lists.are_empty());
        lists.configure(&["192.0.2.0/24".into()], &["fry@planetexpress.com".into()]);
        lists
            .add(&[entry(List::Deny, Whom::parse("ip", "192.0.2.9").unwrap(), 60)], now())
            .unwrap();

        let found = |asked| lists.find(asked, now()).map(|entry| entry.list);
        assert_eq!(found(asked("192.0.2.9", "fry@planetexpress.com")), Some(List::Allow));
        assert_eq!(found(asked("10.0.0.1", "fry@planetexpress.com")), Some(List::Deny));

        lists.configure(&[], &[]);

        assert_eq!(found(asked("10.0.0.1", "fry@planetexpress.com")), None);
        assert_eq!(found(asked("192.0.2.9", "x@y.com")), Some(List::Deny));
        assert!(lists.remove(List::Deny, &Whom::parse("ip", "192.0.2.9").unwrap()));
        assert_eq!(found(asked("192.0.2.9", "x@y.com")), None);
        assert!(lists.are_empty());
    }

    #[test]
    fn all_that_speaks_of_an_attempt_is_shown_and_the_first_decides() {
        let lists = Lists::default();
        lists.configure(&["192.0.2.0/24".into()], &["fry@planetexpress.com".into()]);
        let of = |list, kind, text| entry(list, Whom::parse(kind, text).unwrap(), 60);
        lists
            .add(
                &[
                    of(List::Deny, "ip", "192.0.2.9"),
                    of(List::Deny, "iplogin", "192.0.2.9 fry@planetexpress.com"),
                    of(List::Allow, "netmask", "192.0.0.0/16"),
                    of(List::Allow, "ip", "192.0.2.10"),
                ],
                now(),
            )
            .unwrap();
        let asked = asked("192.0.2.9", "fry@planetexpress.com");

        let about = lists.about(asked, now());

        let texts: Vec<_> = about.iter().map(|entry| entry.whom.named().1).collect();
        assert_eq!(
            texts,
            [
                "192.0.2.0/24",
                "192.0.0.0/16",
                "fry@planetexpress.com",
                "192.0.2.9",
                "192.0.2.9 fry@planetexpress.com"
            ]
        );
        assert_eq!(lists.find(asked, now()).as_ref(), about.first());
        assert_eq!(lists.about(asked, now() + Duration::from_secs(60)).len(), 2);
    }

    #[test]
    fn a_list_is_bounded_and_what_is_over_makes_room() {
        let lists = Lists::default();
        let many = |seconds| -> Vec<Entry> {
            (0..MAX_ENTRIES)
                .map(|number| {
                    entry(List::Deny, Whom::Login(format!("{seconds} {number}")), seconds)
                })
                .collect()
        };
        lists.add(&many(10), now()).unwrap();
        assert_eq!(
            lists.add(&[entry(List::Deny, Whom::Login("one".into()), 60)], now()),
            Err(Full)
        );
        assert_eq!(lists.made(List::Deny, now()).len(), MAX_ENTRIES);

        lists.add(&many(30), now() + Duration::from_secs(10)).unwrap();
    }

    #[test]
    fn nets_have_one_form() {
        for (text, form) in [
            ("192.0.2.77/24", "192.0.2.0/24"),
            ("::ffff:192.0.2.77/120", "192.0.2.0/24"),
            ("2001:db8::1/64", "2001:db8::/64"),
        ] {
            assert_eq!(canonical(text.parse().unwrap()).to_string(), form);
        }
    }
}
