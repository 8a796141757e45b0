use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;
use crate::config::Config;
use crate::config::directory::{Directory, Mapping, OnUnmatched, Policy, Rule, Transform};
use crate::config::domain::Domain;
use crate::config::template::Template;
use crate::config::units::ByteSize;
use crate::identity::{Address, Case};
use crate::person::{AccountState, Attributes, Stamp};
use crate::seldom::Seldom;
use crate::store::{Field, Misfit, Origin, Standing};

const GIB: u64 = 1 << 30;

/// A store, the configuration it mirrors, and the rules made of that.
struct Site {
    store: Store,
    config: Config,
    rules: Rules,
    directory: tempfile::TempDir,
}

impl Site {
    async fn new() -> Self {
        Self::with(config()).await
    }

    async fn with(config: Config) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("gatepost.db").display());
        let store = crate::config::store::Store { url, max_connections: 8 };
        let store = Store::open(&store).await.unwrap();
        let mut site = Self { store, rules: Rules::new(&config), config, directory };
        site.reload(|_| {}).await;
        site
    }

    async fn reload(&mut self, change: impl FnOnce(&mut Config)) {
        change(&mut self.config);
        self.rules = Rules::new(&self.config);
        self.store.mirror_domains(&self.config.domain).await.unwrap();
    }

    async fn login(&self, person: &Person) -> Provisioned {
        match provision(&self.store, &self.rules, person, Some("imap"), Known::Nothing).await {
            Outcome::Ready(ready) => *ready,
            other => panic!("{other:?}"),
        }
    }

    /// Logs in, and shows that the answer is what the store holds and that a second login changes nothing.
    async fn settled(&self, person: &Person) -> Provisioned {
        let first = self.login(person).await;
        assert_eq!(self.stored(first.mailbox.address.as_str()).await, first.mailbox);
        let before = self.writes().await;
        let second = self.login(person).await;
        assert_eq!((second.changes, second.reports), (vec![], vec![]));
        assert_eq!(second.mailbox, first.mailbox);
        assert_eq!(self.writes().await, before, "a second login wrote");
        first
    }

    async fn refused(&self, person: &Person) -> Refusal {
        match provision(&self.store, &self.rules, person, Some("imap"), Known::Nothing).await {
            Outcome::Refused(refusal) => refusal,
            other => panic!("{other:?}"),
        }
    }

    async fn stored(&self, text: &str) -> Mailbox {
        self.store.owner(&address(text)).await.unwrap().unwrap()
    }

    /// The write-ahead log: each commit that wrote anything changed it, whoever wrote.
    async fn writes(&self) -> Vec<u8> {
        let wal = self.directory.path().join("gatepost.db-wal");
        std::fs::read(wal).unwrap()
    }
}

fn address(text: &str) -> Address {
    Address::parse(text, Case::Fold).unwrap()
}

fn rule(order: u32, value: &str, member_of: &str, template: &str) -> Rule {
    Rule { order, value: value.into(), member_of: member_of.into(), template: template.into() }
}

fn mapping(attribute: &str) -> Mapping {
    Mapping { attr: vec![attribute.into()], ..Mapping::default() }
}

/// Two templates, chosen by `mailTemplate` or a group; `example.org` and `example.net`.
fn config() -> Config {
    let mut config = Config::default();
    for name in ["example.org", "example.net"] {
        config.domain.insert(name.into(), Domain::default());
    }
    let standard = Template { quota: ByteSize(5 * GIB), ..Template::default() };
    let large = Template {
        quota: ByteSize(50 * GIB),
        protocols: vec!["imap".into()],
        tags: vec!["vip".into()],
        aliases: vec!["{local}@example.net".into()],
        extra: BTreeMap::from([("mail".into(), "maildir:~/{local}".into())]),
        ..Template::default()
    };
    config.template.insert("standard".into(), standard);
    config.template.insert("large".into(), large);
    let mut corp = Directory::default();
    corp.template.attribute = "mailTemplate".into();
    corp.template.rule.insert("b".into(), rule(10, "Basic", "", "standard"));
    corp.template.rule.insert("a".into(), rule(20, "gold", "", "large"));
    corp.template.rule.insert("g".into(), rule(1, "", "CN=VIP,OU=Groups,DC=org", "large"));
    corp.map.aliases = mapping("proxyAddresses");
    corp.map.quota = mapping("mailQuota");
    config.directory.insert("corp".into(), corp);
    config
}

fn person(id: &str, attributes: &[(&str, &str)]) -> Person {
    let mut all = Attributes::default();
    for (name, value) in attributes {
        all.insert(name, [value.as_bytes().into()]);
    }
    Person {
        profile: "corp".into(),
        id: id.into(),
        dn: format!("uid={id},dc=org").into(),
        attributes: all,
        state: AccountState::Active,
        stamp: Stamp::Unreadable,
        one_time: false,
    }
}

fn fry() -> Person {
    person("fry", &[("mail", "Fry@Example.org"), ("mailTemplate", "basic"), ("cn", "Philip Fry")])
}

fn corp(config: &mut Config) -> &mut Directory {
    config.directory.get_mut("corp").unwrap()
}

fn held(field: Field, value: &str, why: Misfit) -> Report {
    Report { field, value: value.into(), why }
}

fn set(field: Field, from: &str, to: &str) -> Change {
    Change::Set { field, from: from.into(), to: to.into() }
}

#[tokio::test]
async fn a_first_login_makes_the_mailbox_and_a_second_writes_nothing() {
    let site = Site::new().await;

    let made = site.settled(&fry()).await;

    assert!(made.created);
    let mailbox = made.mailbox;
    assert_eq!(mailbox.address.as_str(), "fry@example.org");
    assert_eq!(&*mailbox.settings.display_name, "Philip Fry");
    assert_eq!((&*mailbox.settings.template, mailbox.settings.quota), ("standard", 5 * GIB));
    assert_eq!(&*mailbox.place.home, "/var/vmail/example.org/fry");
    assert_eq!(site.store.addresses(None, 10).await.unwrap(), ["fry@example.org"]);
    let again = site.login(&fry()).await.mailbox;
    for Mailbox { settings, pinned, aliases, tags, held, .. } in [&mailbox, &again] {
        let room = [aliases.has_room(), tags.has_room(), settings.extra.has_room()];
        assert_eq!((room, pinned.has_room(), held.has_room()), ([false; 3], false, false));
    }
    assert_eq!(site.store.mailboxes(None, 10).await.unwrap(), [mailbox]);
}

#[tokio::test]
async fn the_first_rule_that_matches_any_value_chooses_then_groups_then_the_default() {
    let mut config = config();
    corp(&mut config).template.default = "standard".into();
    let rules = Rules::new(&config);
    for (values, groups, template, label) in [
        (&["nothing", " BASIC "][..], &[][..], "standard", "b"),
        (&["gold", "basic"], &[], "standard", "b"),
        (&["Gold"], &[], "large", "a"),
        (&[], &["cn=vip, ou=groups, dc=ORG"], "large", "g"),
        (&["basic"], &["cn=vip,ou=groups,dc=org"], "standard", "b"),
        (&["silver"], &["cn=vip,ou=other,dc=org"], "standard", "default"),
    ] {
        let mut person = person("x", &[]);
        person.attributes.insert("MAILTEMPLATE", values.iter().map(|it| it.as_bytes().into()));
        person.attributes.insert("memberOf", groups.iter().map(|it| it.as_bytes().into()));
        let choice = Choice::Template { name: template.into(), rule: label.into() };
        assert_eq!(rules.choose(&person), choice, "{values:?} {groups:?}");
    }
}

#[tokio::test]
async fn a_changed_template_changes_what_it_governs_and_not_the_place() {
    let mut site = Site::new().await;
    let before = site.settled(&fry()).await.mailbox;
    let gold = person("fry", &[("mail", "fry@example.org"), ("mailTemplate", "gold")]);
    site.reload(|config| {
        config.template.get_mut("large").unwrap().home = "/elsewhere/{id}".into();
    })
    .await;

    let after = site.settled(&gold).await;

    assert_eq!(after.mailbox.place, before.place);
    assert_eq!(
        after.changes,
        [
            set(Field::Template, "standard", "large"),
            set(Field::DisplayName, "Philip Fry", ""),
            set(Field::Quota, "5 GiB", "50 GiB"),
            set(Field::Protocols, "imap pop3 sieve smtp", "imap"),
            set(Field::Extra, "", "mail=\"maildir:~/fry\""),
            Change::AddAlias(address("fry@example.net")),
            Change::AddTag("vip".into()),
        ]
    );
    let back = site.settled(&fry()).await.mailbox;
    assert_eq!(back, before);
}

#[tokio::test]
async fn new_people_without_template_address_or_domain_are_refused_with_the_reason() {
    let mut config = config();
    config.domain.insert("off.example".into(), Domain { active: false, ..Domain::default() });
    let site = Site::with(config).await;
    for (attributes, refusal) in [
        (&[("mail", "a@example.org")][..], Refusal::NoTemplate),
        (&[("mailTemplate", "basic")], Refusal::NoAddress),
        (&[("mailTemplate", "basic"), ("mail", "a@elsewhere.example")], {
            Refusal::DomainUnknown("elsewhere.example".into())
        }),
        (&[("mailTemplate", "basic"), ("mail", "a@off.example")], Refusal::DomainInactive),
        (&[("mailTemplate", "basic"), ("mail", "../a@example.org")], {
            Refusal::BadAddress("../a@example.org".into())
        }),
        (&[("mailTemplate", "basic"), ("mail", "nobody")], Refusal::BadAddress("nobody".into())),
    ] {
        assert_eq!(site.refused(&person("x", attributes)).await, refusal);
    }
    assert_eq!(site.store.addresses(None, 10).await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn an_id_that_must_not_stand_in_a_path_makes_no_mailbox() {
    let mut config = config();
    config.template.get_mut("standard").unwrap().home = "/var/vmail/{id}".into();
    let site = Site::with(config).await;
    let mut person = fry();
    person.id = "../../etc".into();

    assert!(matches!(site.refused(&person).await, Refusal::BadAddress(_)));
}

#[tokio::test]
async fn mailboxes_are_made_only_where_and_for_what_the_section_says() {
    let mut site = Site::new().await;
    site.reload(|config| corp(config).lazy.protocols = vec!["smtp".into()]).await;
    assert_eq!(site.refused(&fry()).await, Refusal::CreationOff);
    site.reload(|config| corp(config).lazy.enabled = false).await;
    let any = provision(&site.store, &site.rules, &fry(), None, Known::Nothing).await;
    assert!(matches!(any, Outcome::Refused(Refusal::CreationOff)));

    site.reload(|config| corp(config).lazy.enabled = true).await;
    let made = provision(&site.store, &site.rules, &fry(), Some("smtp"), Known::Nothing).await;
    assert!(matches!(made, Outcome::Ready(_)));
    site.settled(&fry()).await;
}

#[tokio::test]
async fn addresses_of_the_directory_become_primary_and_aliases() {
    let site = Site::new().await;
    let mut person = fry();
    let values = ["smtp:f@example.net", "SMTP:Philip@example.org", "X500:/o=x", "f@far.example"];
    person.attributes.insert("proxyAddresses", values.map(|it| it.as_bytes().into()));

    let made = site.settled(&person).await;

    assert_eq!(made.mailbox.address.as_str(), "philip@example.org");
    let aliases: Vec<&str> = made.mailbox.aliases.keys().map(Address::as_str).collect();
    assert_eq!(aliases, ["f@example.net", "fry@example.org"]);
    assert_eq!(made.reports, [held(Field::Aliases, "f@far.example", Misfit::DomainUnknown)]);
    let gone = site.settled(&fry()).await;
    assert_eq!(gone.mailbox.address.as_str(), "fry@example.org");
    let kept = BTreeMap::from([(address("philip@example.org"), Origin::Admin)]);
    assert_eq!(gone.mailbox.aliases, kept);
}

#[tokio::test]
async fn an_address_in_an_alias_domain_is_one_of_the_domain_it_stands_for() {
    let mut config = config();
    let alias = Domain { alias_of: "example.org".into(), ..Domain::default() };
    config.domain.insert("example.com".into(), alias);
    let site = Site::with(config).await;

    let values = [("mailTemplate", "basic"), ("cn", "Fry"), ("mail", "fry@example.com")];
    let made = site.settled(&person("fry", &values)).await;

    assert_eq!(made.mailbox.address.as_str(), "fry@example.org");
}

#[tokio::test]
async fn a_new_primary_address_renames_and_the_order_of_values_does_not() {
    let site = Site::new().await;
    let before = site.settled(&fry()).await.mailbox;
    let named = |mails: &[&str]| {
        let mut all = vec![("mailTemplate", "basic"), ("cn", "Philip Fry")];
        all.extend(mails.iter().map(|mail| ("mail", *mail)));
        person("fry", &all)
    };

    let shuffled = site.settled(&named(&["philip@example.org", "fry@example.org"])).await;
    assert_eq!(shuffled.mailbox.address, before.address);
    let renamed = site.settled(&named(&["philip@example.net"])).await;

    let (from, to) = (address("fry@example.org"), address("philip@example.net"));
    assert_eq!(
        renamed.changes,
        [
            Change::Rename { from: from.clone(), to: to.clone() },
            Change::RemoveAlias(address("philip@example.org")),
        ]
    );
    assert_eq!(renamed.mailbox.place, before.place);
    assert_eq!(renamed.mailbox.aliases, BTreeMap::from([(from, Origin::Admin)]));
    assert_eq!(site.store.addresses(None, 10).await.unwrap(), ["philip@example.net"]);
    assert_counts(&site).await;
}

#[tokio::test]
async fn an_address_of_somebody_else_is_never_taken_over() {
    let site = Site::new().await;
    site.settled(&fry()).await;
    let leela = |mail: &str, alias: &str| {
        let all = [("mail", mail), ("mailTemplate", "basic"), ("proxyAddresses", alias)];
        person("leela", &all)
    };

    let namesake = site.refused(&leela("fry@example.org", "l@example.org")).await;
    assert!(matches!(namesake, Refusal::IdChanged { .. }), "{namesake:?}");
    let made = site.settled(&leela("leela@example.org", "fry@example.org")).await;
    assert_eq!(made.reports, [held(Field::Aliases, "fry@example.org", Misfit::AddressTaken)]);
    let kept = site.settled(&leela("fry@example.org", "")).await;
    assert_eq!(kept.mailbox.address.as_str(), "leela@example.org");
    assert_eq!(kept.reports, [held(Field::Address, "fry@example.org", Misfit::AddressTaken)]);
    site.settled(&leela("leela@example.org", "l@example.org")).await;
    let alias = person("amy", &[("mail", "l@example.org"), ("mailTemplate", "basic")]);
    let refusal = Refusal::AddressTaken { by: "leela@example.org".into() };
    assert_eq!(site.refused(&alias).await, refusal);
    assert_eq!(&*site.stored("fry@example.org").await.link.unwrap().id, "fry");
}

#[tokio::test]
async fn another_profile_with_the_same_address_is_an_id_change() {
    let mut site = Site::new().await;
    site.reload(|config| {
        let other = corp(config).clone();
        config.directory.insert("branch".into(), other);
    })
    .await;
    site.settled(&fry()).await;
    let mut namesake = fry();
    namesake.profile = "branch".into();

    assert!(matches!(site.refused(&namesake).await, Refusal::IdChanged { .. }));
}

#[tokio::test]
async fn an_alias_that_became_free_is_given_at_the_next_login() {
    let site = Site::new().await;
    let with_alias = |id: &str, alias: &str| {
        let mail = format!("{id}@example.org");
        person(id, &[("mail", &mail), ("mailTemplate", "basic"), ("proxyAddresses", alias)])
    };
    site.settled(&with_alias("fry", "info@example.org")).await;
    site.settled(&with_alias("leela", "info@example.org")).await;

    site.settled(&with_alias("fry", "")).await;
    let leela = site.settled(&with_alias("leela", "info@example.org")).await;

    assert_eq!(leela.changes, [Change::AddAlias(address("info@example.org"))]);
    assert_eq!(leela.mailbox.held, BTreeSet::new());
}

#[tokio::test]
async fn what_an_administrator_set_stays() {
    let site = Site::new().await;
    let fry_address = site.settled(&fry()).await.mailbox.address;
    site.store.set_disabled(&fry_address, Standing::Disabled).await.unwrap().unwrap();
    let pinned = BTreeSet::from([Field::Quota, Field::Aliases, Field::DisplayName]);
    site.store.set_pinned(&fry_address, pinned.clone()).await.unwrap().unwrap();
    let gold = person("fry", &[("mail", "fry@example.org"), ("mailTemplate", "gold")]);

    let after = site.settled(&gold).await.mailbox;

    assert!(after.disabled_by_admin);
    assert_eq!(after.pinned, pinned);
    assert_eq!(after.settings.quota, 5 * GIB);
    assert_eq!(&*after.settings.display_name, "Philip Fry");
    assert_eq!(after.aliases, BTreeMap::new());
    assert_eq!(&*after.settings.template, "large");
    let enabled = site.store.set_disabled(&fry_address, Standing::Enabled).await.unwrap();
    assert!(!enabled.unwrap().disabled_by_admin);
}

#[tokio::test]
async fn an_unmatched_mailbox_keeps_its_template_and_says_so_once() {
    let mut site = Site::new().await;
    site.settled(&fry()).await;
    let odd = |value: &str| {
        person("fry", &[("mail", "fry@example.org"), ("mailTemplate", value), ("cn", "P")])
    };

    let first = site.settled(&odd("silver")).await;
    let report = |value| held(Field::Template, value, Misfit::TemplateUnmatched);
    assert_eq!(first.reports, [report("silver")]);
    assert_eq!(&*first.mailbox.settings.template, "standard");
    assert_eq!(site.settled(&odd("bronze")).await.reports, [report("bronze")]);
    let back = site.settled(&fry()).await.mailbox;
    assert_eq!(back.held, BTreeSet::new());

    site.reload(|config| corp(config).template.on_unmatched = OnUnmatched::Refuse).await;
    assert_eq!(site.refused(&odd("silver")).await, Refusal::TemplateUnmatched);
}

#[tokio::test]
async fn a_template_that_is_no_longer_configured_leaves_the_mailbox_as_it_is() {
    let mut site = Site::new().await;
    let gold = person("fry", &[("mail", "fry@example.org"), ("mailTemplate", "gold")]);
    let before = site.settled(&gold).await.mailbox;
    site.reload(|config| drop(config.template.remove("large"))).await;

    let after = site.settled(&gold).await.mailbox;

    assert_eq!(after.settings, before.settings);
    assert_eq!(after.aliases, before.aliases);
}

#[tokio::test]
async fn domain_limits_refuse_new_mailboxes() {
    let named = |id: &str| {
        let mail = format!("{id}@example.org");
        person(id, &[("mail", &mail), ("mailTemplate", "basic")])
    };
    let limits = |max_mailboxes, quota, max_mailbox_quota| Domain {
        active: true,
        max_mailboxes,
        quota: ByteSize(quota),
        max_mailbox_quota: ByteSize(max_mailbox_quota),
        ..Domain::default()
    };
    for (limits, refusal) in
        [(limits(1, 0, 0), Refusal::DomainFull), (limits(0, 9 * GIB, 0), Refusal::QuotaExceeded)]
    {
        let mut config = config();
        config.domain.insert("example.org".into(), limits);
        let site = Site::with(config).await;
        site.settled(&named("amy")).await;

        assert_eq!(site.refused(&named("fry")).await, refusal);
        let (none, planned) = preview(&site.store, &site.rules, &named("fry"), None).await.unwrap();
        assert_eq!((none, planned), (None, Err(refusal)));
        site.settled(&named("amy")).await;
        assert_counts(&site).await;
    }
    let mut config = config();
    config.domain.insert("example.org".into(), limits(0, 0, GIB));
    let site = Site::with(config).await;
    assert_eq!(site.refused(&named("amy")).await, Refusal::QuotaExceeded);
}

#[tokio::test]
async fn a_field_that_does_not_fit_is_left_and_the_others_are_written() {
    let mut site = Site::new().await;
    site.settled(&fry()).await;
    site.reload(|config| {
        config.domain.get_mut("example.org").unwrap().quota = ByteSize(20 * GIB);
    })
    .await;
    let gold = person("fry", &[("mail", "fry@example.org"), ("mailTemplate", "gold")]);

    let after = site.settled(&gold).await;
    let quota = (50 * GIB).to_string();
    assert_eq!(after.reports, [held(Field::Quota, &quota, Misfit::QuotaExceeded)]);
    assert_eq!(after.mailbox.settings.quota, 5 * GIB);
    assert_eq!(&*after.mailbox.settings.template, "large");

    site.reload(|config| {
        config.domain.get_mut("example.org").unwrap().max_mailbox_quota = ByteSize(10 * GIB);
    })
    .await;
    let capped = site.settled(&gold).await;
    assert_eq!(capped.reports, [held(Field::Quota, &quota, Misfit::MailboxQuota)]);

    site.reload(|config| {
        config.domain.insert("example.org".into(), Domain::default());
    })
    .await;
    let fits = site.settled(&gold).await.mailbox;
    assert_eq!((fits.settings.quota, fits.held), (50 * GIB, Seldom::default()));
    assert_counts(&site).await;
}

#[tokio::test]
async fn a_rename_into_a_full_domain_waits_until_there_is_room() {
    let mut config = config();
    let full = Domain { max_mailboxes: 1, ..Domain::default() };
    config.domain.insert("example.net".into(), full);
    let mut site = Site::with(config).await;
    let at = |id: &str, mail: &str| person(id, &[("mail", mail), ("mailTemplate", "basic")]);
    site.settled(&at("amy", "amy@example.net")).await;
    site.settled(&at("fry", "fry@example.org")).await;

    let stays = site.settled(&at("fry", "fry@example.net")).await;
    assert_eq!(stays.mailbox.address.as_str(), "fry@example.org");
    assert_eq!(stays.reports, [held(Field::Address, "fry@example.net", Misfit::DomainFull)]);

    site.reload(|config| {
        config.domain.insert("example.net".into(), Domain::default());
    })
    .await;
    let moved = site.settled(&at("fry", "fry@example.net")).await.mailbox;
    assert_eq!(moved.address.as_str(), "fry@example.net");
    assert_eq!(&*moved.place.home, "/var/vmail/example.org/fry");
    assert_counts(&site).await;
}

#[tokio::test]
async fn mapped_fields_follow_transform_and_policy() {
    let mut site = Site::new().await;
    let with = |quota: &str, name: &str| {
        let all = [("mailQuota", quota), ("cn", name), ("mailTemplate", "basic")];
        let mut person = person("fry", &all);
        person.attributes.insert("mail", [b"fry@example.org".as_slice().into()]);
        person
    };
    site.reload(|config| corp(config).map.quota.transform = Some(Transform::Bytes(1024))).await;
    assert_eq!(site.settled(&with("1048576", "Fry")).await.mailbox.settings.quota, GIB);
    for odd in ["many", "-1", "99999999999999999999", "18446744073709551615"] {
        let odd_one = site.settled(&with(odd, "Fry")).await;
        assert_eq!(odd_one.mailbox.settings.quota, 5 * GIB);
        assert_eq!(odd_one.reports, [held(Field::Quota, odd, Misfit::NotASize)]);
    }
    site.reload(|config| {
        corp(config).map.quota.policy = Policy::CreateOnly;
        corp(config).map.display_name.policy = Policy::Keep;
    })
    .await;
    let kept = site.settled(&with("7", "Somebody")).await.mailbox;
    assert_eq!((kept.settings.quota, &*kept.settings.display_name), (5 * GIB, "Fry"));
}

#[tokio::test]
async fn long_and_odd_values_are_bounded() {
    let site = Site::new().await;
    let long = "ä".repeat(300);
    let mut person = person("fry", &[("mail", "fry@example.org"), ("mailTemplate", "basic")]);
    person.attributes.insert("cn", [format!("a\t\u{1}{long}").as_bytes().into()]);
    let aliases = (0..600).map(|n| format!("a{n}@example.org").into_bytes().into());
    person.attributes.insert("proxyAddresses", aliases);

    let made = site.settled(&person).await;

    assert_eq!(*made.mailbox.settings.display_name, format!("a{}", "ä".repeat(255)));
    assert_eq!(made.mailbox.aliases.len(), 500);
    let why: Vec<Misfit> = made.reports.iter().map(|report| report.why).collect();
    assert_eq!(why, [Misfit::TooMany, Misfit::TooLong]);
}

#[tokio::test]
async fn a_preview_writes_nothing() {
    let site = Site::new().await;
    let before = site.writes().await;

    let (stored, planned) = preview(&site.store, &site.rules, &fry(), Some("imap")).await.unwrap();

    assert_eq!(stored, None);
    assert!(matches!(planned.unwrap().changes[..], [Change::Create(_)]));
    assert_eq!(site.writes().await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn thirty_people_log_in_for_the_first_time_six_times_at_once() {
    let site = Site::new().await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..180 {
        let (store, rules) = (site.store.clone(), site.rules.clone());
        tasks.spawn(async move {
            let id = format!("p{}", number % 30);
            let mail = format!("{id}@example.org");
            let person = person(&id, &[("mail", &mail), ("mailTemplate", "basic")]);
            provision(&store, &rules, &person, Some("imap"), Known::Nothing).await
        });
    }

    let outcomes = tasks.join_all().await;

    let ready = |outcome: &Outcome| match outcome {
        Outcome::Ready(ready) if ready.write_error.is_none() => ready.created,
        other => panic!("{other:?}"),
    };
    assert_eq!(outcomes.len(), 180);
    assert_eq!(outcomes.iter().filter(|outcome| ready(outcome)).count(), 30);
    assert_eq!(site.store.mailboxes(None, 1000).await.unwrap().len(), 30);
    assert_counts(&site).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_last_place_in_a_domain_goes_to_one() {
    let mut config = config();
    let limits = Domain { max_mailboxes: 5, ..Domain::default() };
    config.domain.insert("example.org".into(), limits);
    let site = Site::with(config).await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..40 {
        let (store, rules) = (site.store.clone(), site.rules.clone());
        tasks.spawn(async move {
            let id = format!("p{}", number % 20);
            let mail = format!("{id}@example.org");
            let person = person(&id, &[("mail", &mail), ("mailTemplate", "basic")]);
            provision(&store, &rules, &person, Some("imap"), Known::Nothing).await
        });
    }

    let outcomes = tasks.join_all().await;

    let (mut ready, mut full) = (0, 0);
    for outcome in outcomes {
        match outcome {
            Outcome::Ready(_) => ready += 1,
            Outcome::Refused(Refusal::DomainFull) => full += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(site.store.mailboxes(None, 1000).await.unwrap().len(), 5);
    assert_eq!((ready, full), (10, 30));
}

#[tokio::test]
async fn with_the_store_gone_the_remembered_get_in_and_others_hear_later() {
    let site = Site::new().await;
    let remembered = site.settled(&fry()).await.mailbox;
    let file = site.directory.path().join("gatepost.db");
    std::fs::rename(&file, site.directory.path().join("moved.db")).unwrap();
    let gold = person("fry", &[("mail", "fry@example.org"), ("mailTemplate", "gold")]);

    let known =
        provision(&site.store, &site.rules, &gold, Some("imap"), Known::Remembered(&remembered))
            .await;
    let stranger = provision(&site.store, &site.rules, &gold, Some("imap"), Known::Nothing).await;

    let Outcome::Ready(known) = known else { panic!("{known:?}") };
    assert_eq!(&*known.mailbox.settings.template, "large");
    assert!(known.write_error.is_some());
    assert!(matches!(stranger, Outcome::StoreUnavailable(_)));
}

#[tokio::test]
async fn with_the_store_locked_a_mailbox_is_used_as_it_should_be() {
    let site = Site::new().await;
    site.settled(&fry()).await;
    let mut holder = crate::store::tests::lock(&site.directory.path().join("gatepost.db"));
    let gold = person("fry", &[("mail", "fry@example.org"), ("mailTemplate", "gold")]);
    let newcomer = person("amy", &[("mail", "amy@example.org"), ("mailTemplate", "gold")]);
    let started = crate::clock::now();

    let unchanged = site.login(&fry()).await;
    assert!(unchanged.write_error.is_none(), "nothing to change must not wait for the lock");
    let (known, newcomer) = tokio::join!(
        provision(&site.store, &site.rules, &gold, Some("imap"), Known::Nothing),
        provision(&site.store, &site.rules, &newcomer, Some("imap"), Known::Nothing),
    );

    assert!(crate::clock::now().duration_since(started) < Duration::from_secs(3));
    let Outcome::Ready(known) = known else { panic!("{known:?}") };
    assert_eq!(known.mailbox.settings.quota, 50 * GIB);
    assert!(known.write_error.is_some() && known.changes.is_empty());
    assert!(matches!(newcomer, Outcome::StoreUnavailable(_)), "{newcomer:?}");
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(site.settled(&gold).await.mailbox.settings.quota, 50 * GIB);
}

/// The domains' counters are what the mailboxes add up to.
async fn assert_counts(site: &Site) {
    let mut sums: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    for mailbox in site.store.mailboxes(None, 10_000).await.unwrap() {
        let sum = sums.entry(mailbox.address.domain().to_string()).or_default();
        sum.0 += 1;
        sum.1 += i64::try_from(mailbox.settings.quota).unwrap();
    }
    for (domain, counted) in site.store.counters().await {
        assert_eq!(sums.get(&domain).copied().unwrap_or_default(), counted, "{domain}");
    }
}

mod any {
    use proptest::prelude::*;

    use super::*;

    fn mail() -> impl Strategy<Value = String> {
        ("[abc]", prop::sample::select(vec!["example.org", "example.net", "far.example", ""]))
            .prop_map(|(local, domain)| format!("{local}@{domain}"))
    }

    fn attributes() -> impl Strategy<Value = Vec<(&'static str, String)>> {
        let value = prop_oneof![
            mail().prop_map(|mail| ("mail", mail)),
            mail().prop_map(|mail| ("mail", mail)),
            mail().prop_map(|mail| ("proxyAddresses", format!("smtp:{mail}"))),
            mail().prop_map(|mail| ("proxyAddresses", format!("SMTP:{mail}"))),
            "basic|gold|odd".prop_map(|value| ("mailTemplate", value)),
            "[0-9]{1,3} GiB|x".prop_map(|value| ("mailQuota", value)),
            "\\PC{0,300}".prop_map(|value| ("cn", value)),
        ];
        prop::collection::vec(value, 0..8)
    }

    fn policy() -> impl Strategy<Value = Policy> {
        prop::sample::select(vec![Policy::CreateOnly, Policy::Force, Policy::Keep, Policy::Merge])
    }

    fn configs() -> impl Strategy<Value = Config> {
        let limits = (0_u32..4, 0_u64..3, 0_u64..3);
        ([policy(), policy(), policy(), policy()], limits).prop_map(|(policies, limits)| {
            let mut config = config();
            let map = &mut corp(&mut config).map;
            let [address, aliases, display_name, quota] = policies;
            map.address.policy = address;
            map.aliases.policy = aliases;
            map.display_name.policy = display_name;
            map.quota.policy = quota;
            let domain = config.domain.get_mut("example.org").unwrap();
            domain.max_mailboxes = limits.0;
            domain.quota = ByteSize(limits.1 * 60 * GIB);
            domain.max_mailbox_quota = ByteSize(limits.2 * 30 * GIB);
            config
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever people turn into, in whatever order and under whatever rules: after one login the next plan is
        /// empty, nobody loses an address to another, and the counters add up.
        #[test]
        fn a_plan_carried_out_leaves_nothing_to_do(
            logins in prop::collection::vec(
                ("[xyz]", attributes(), prop::collection::btree_set(
                    prop::sample::select(Field::ALL), 0..3)), 1..12),
            mut configs in prop::collection::vec(configs(), 1..3),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut site = Site::with(configs.remove(0)).await;
                let half = logins.len() / 2;
                for (number, (id, attributes, pinned)) in logins.into_iter().enumerate() {
                    if number == half && let Some(config) = configs.pop() {
                        site.reload(|running| *running = config).await;
                    }
                    let attributes: Vec<(&str, &str)> =
                        attributes.iter().map(|(name, value)| (*name, value.as_str())).collect();
                    let person = person(&id, &attributes);
                    let outcome =
                        provision(&site.store, &site.rules, &person, Some("imap"), Known::Nothing).await;
                    if let Outcome::Ready(ready) = outcome {
                        assert!(ready.write_error.is_none(), "{ready:?}");
                        assert_eq!(&*ready.mailbox.link.as_ref().unwrap().id, id);
                        let mailbox = site.settled(&person).await.mailbox;
                        assert_eq!(mailbox, ready.mailbox);
                        site.store.set_pinned(&mailbox.address, pinned).await.unwrap();
                    }
                    assert_counts(&site).await;
                }
            });
        }
    }
}
