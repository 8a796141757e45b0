//! Look-ups over a real store.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;
use crate::config::domain::Domain as DomainTable;
use crate::identity::Case;
use crate::store::{Kind, Mailbox, Origin, Standing};

/// A store, the configuration it mirrors, and look-ups over both.
struct Site {
    store: Store,
    config: Config,
    lookup: Arc<Lookup>,
    directory: tempfile::TempDir,
}

const MAPS: [Map; 4] = [Map::Mailbox, Map::Alias, Map::Domain, Map::SenderLogin];

impl Site {
    /// amy@example.org with the alias wong@example.org; example.net is another name of example.org, bücher.example
    /// one of its own.
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("gatepost.db").display());
        let store = crate::config::store::Store { url, max_connections: 4 };
        let store = Store::open(&store).await.unwrap();
        let mut config = Config::default();
        let alias = DomainTable { alias_of: "example.org".into(), ..DomainTable::default() };
        config.domain = BTreeMap::from([
            ("example.org".into(), DomainTable::default()),
            ("example.net".into(), alias),
            ("xn--bcher-kva.example".into(), DomainTable::default()),
        ]);
        change(&mut config);
        store.mirror_domains(&config.domain).await.unwrap();
        let lookup = Lookup::new(store.clone(), &config);
        let site = Self { store, config, lookup, directory };
        site.settle(&mailbox("amy@example.org", &["wong@example.org"])).await;
        site
    }

    async fn settle(&self, mailbox: &Mailbox) -> i64 {
        self.store.settle(mailbox).await
    }

    async fn reload(&mut self, change: impl FnOnce(&mut Config)) {
        change(&mut self.config);
        self.store.mirror_domains(&self.config.domain).await.unwrap();
        self.lookup.reconfigure(&self.config);
    }

    /// What the map says, asked twice: what memory says then is the same.
    async fn find(&self, map: Map, key: &str) -> Found {
        let found = self.lookup.find(map, key.as_bytes()).await.unwrap();
        assert_eq!(self.lookup.recall(map, key.as_bytes()).as_ref(), Some(&found), "{map:?} {key}");
        found
    }

    async fn check(&self, expected: &[(Map, &str, &str)]) {
        for (map, key, value) in expected {
            let value = match *value {
                "" => Found::Nothing,
                "later" => Found::Later,
                value => Found::Value(value.into()),
            };
            assert_eq!(self.find(*map, key).await, value, "{map:?} {key}");
        }
    }

    /// The database is moved away, as after a mistake or a lost disk.
    fn lose_store(&self) -> PathBuf {
        let moved = self.directory.path().join("moved.db");
        std::fs::rename(self.directory.path().join("gatepost.db"), &moved).unwrap();
        moved
    }

    fn find_store_again(&self, moved: PathBuf) {
        std::fs::rename(moved, self.directory.path().join("gatepost.db")).unwrap();
    }

    async fn set(&self, address: &str, change: impl FnOnce(&mut Mailbox)) {
        let mut mailbox = self.store.owner(&parsed(address)).await.unwrap().unwrap();
        change(&mut mailbox);
        let mut writing = self.store.begin_write().await.unwrap();
        writing.write_settings(mailbox.id, &mailbox.settings).await.unwrap();
        writing.commit().await.unwrap();
    }
}

fn parsed(text: &str) -> Address {
    Address::parse(text, Case::Fold).unwrap()
}

fn mailbox(address: &str, aliases: &[&str]) -> Mailbox {
    let mut mailbox = Mailbox::sample(address);
    mailbox.aliases = aliases.iter().map(|it| (parsed(it), Origin::Directory)).collect();
    mailbox
}

fn catch_all(address: &str) -> DomainTable {
    DomainTable { catch_all: address.into(), ..DomainTable::default() }
}

#[tokio::test]
async fn a_mailbox_is_found_by_its_own_address_in_any_case_and_with_any_detail() {
    let site = Site::new().await;

    for key in
        ["amy@example.org", "AMY@Example.ORG", "amy+lists@example.org", "amy+a+b@example.org."]
    {
        site.check(&[
            (Map::Mailbox, key, "amy@example.org"),
            // With an identity instead, Postfix would ask for it again.
            (Map::Alias, key, ""),
            (Map::SenderLogin, key, "amy@example.org"),
        ])
        .await;
    }
}

#[tokio::test]
async fn an_alias_leads_to_its_mailbox_and_takes_the_detail_along() {
    let site = Site::new().await;

    site.check(&[
        (Map::Alias, "wong@example.org", "amy@example.org"),
        (Map::Alias, "Wong+Lists@example.org", "amy+lists@example.org"),
        (Map::Mailbox, "wong@example.org", ""),
        (Map::SenderLogin, "wong+x@example.org", "amy@example.org"),
    ])
    .await;
}

#[tokio::test]
async fn an_address_with_a_separator_of_its_own_comes_before_the_one_without() {
    let site = Site::new().await;
    site.settle(&mailbox("leela@example.org", &["amy+ship@example.org"])).await;

    site.check(&[
        (Map::Alias, "amy+ship@example.org", "leela@example.org"),
        (Map::SenderLogin, "amy+ship@example.org", "leela@example.org"),
        (Map::Mailbox, "amy+ship@example.org", ""),
        (Map::Mailbox, "amy+other@example.org", "amy@example.org"),
        (Map::Mailbox, "+amy@example.org", ""),
    ])
    .await;
}

#[tokio::test]
async fn an_alias_domain_stands_for_the_other_with_and_without_detail() {
    let site = Site::new().await;
    site.settle(&mailbox("leela@example.org", &["fry@example.net"])).await;

    site.check(&[
        (Map::Domain, "example.net", "example.net"),
        (Map::Alias, "amy@example.net", "amy@example.org"),
        (Map::Alias, "amy+x@example.net", "amy+x@example.org"),
        (Map::Alias, "wong+x@example.net", "amy+x@example.org"),
        (Map::Mailbox, "amy@example.net", ""),
        (Map::SenderLogin, "wong@example.net", "amy@example.org"),
        // What stands in the alias domain itself comes first.
        (Map::Alias, "fry+x@example.net", "leela+x@example.org"),
        (Map::Alias, "fry@example.org", ""),
        (Map::Alias, "nobody@example.net", ""),
    ])
    .await;
}

#[tokio::test]
async fn a_catch_all_takes_what_is_nobodys_and_hides_no_mailbox_and_no_alias() {
    let site = Site::with(|config| {
        config.domain.insert("example.org".into(), catch_all("wong@example.org"));
    })
    .await;

    site.check(&[
        (Map::Alias, "nobody@example.org", "amy@example.org"),
        (Map::Alias, "nobody+x@example.net", "amy@example.org"),
        (Map::SenderLogin, "nobody@example.org", "amy@example.org"),
        (Map::Mailbox, "nobody@example.org", ""),
        (Map::Alias, "amy@example.org", ""),
        (Map::Alias, "amy+x@example.org", ""),
        (Map::Mailbox, "amy+x@example.org", "amy@example.org"),
        (Map::Alias, "wong@example.org", "amy@example.org"),
        (Map::Alias, "nobody@xn--bcher-kva.example", ""),
    ])
    .await;
}

#[tokio::test]
async fn a_catch_all_may_lead_away_or_to_a_mailbox_but_not_to_nobody() {
    for (catch_all_address, value) in [
        ("archive@elsewhere.example", "archive@elsewhere.example"),
        ("amy+lost@example.org", "amy+lost@example.org"),
        ("amy@example.net", "amy@example.org"),
        // Taken and then bounced: whoever was forged as the sender would get it.
        ("gone@example.org", ""),
        ("gone@xn--bcher-kva.example", ""),
    ] {
        let site = Site::with(|config| {
            config.domain.insert("example.org".into(), catch_all(catch_all_address));
            config.domain.insert("xn--bcher-kva.example".into(), catch_all("gone@example.org"));
        })
        .await;
        site.check(&[
            (Map::Alias, "nobody@example.org", value),
            (Map::Alias, catch_all_address, if value == "amy@example.org" { value } else { "" }),
        ])
        .await;
        let owner = if value.contains("amy") { "amy@example.org" } else { "" };
        site.check(&[(Map::SenderLogin, "nobody@example.org", owner)]).await;
    }
}

#[tokio::test]
async fn a_disabled_mailbox_is_not_replaced_by_the_catch_all() {
    let site = Site::with(|config| {
        config.domain.insert("example.org".into(), catch_all("leela@example.org"));
    })
    .await;
    site.settle(&mailbox("leela@example.org", &[])).await;
    site.set("amy@example.org", |mailbox| {
        mailbox.settings.disabled_delivery = DisabledDelivery::Reject;
    })
    .await;
    site.store.set_disabled(&parsed("amy@example.org"), Standing::Disabled).await.unwrap();

    site.check(&[
        (Map::Mailbox, "amy@example.org", ""),
        (Map::Alias, "amy@example.org", ""),
        (Map::Alias, "wong@example.org", ""),
        (Map::SenderLogin, "amy@example.org", "amy@example.org"),
        (Map::Alias, "nobody@example.org", "leela@example.org"),
    ])
    .await;
}

#[tokio::test]
async fn u_labels_and_a_labels_are_one_domain() {
    let site = Site::new().await;
    site.settle(&mailbox("joe@xn--bcher-kva.example", &[])).await;

    for domain in
        ["bücher.example", "BÜCHER.example", "XN--BCHER-KVA.example", "bu\u{308}cher.example"]
    {
        site.check(&[
            (Map::Domain, domain, "xn--bcher-kva.example"),
            (Map::Mailbox, &format!("joe+x@{domain}"), "joe@xn--bcher-kva.example"),
            (Map::SenderLogin, &format!("Joe@{domain}"), "joe@xn--bcher-kva.example"),
        ])
        .await;
    }
}

#[tokio::test]
async fn letters_beyond_ascii_take_one_form_and_odd_local_parts_are_quoted_in_values() {
    let site = Site::new().await;
    site.settle(&mailbox("ämy@example.org", &["a@b@example.org"])).await;
    site.settle(&mailbox("o brien@example.org", &["obrien@example.org"])).await;

    site.check(&[
        (Map::Mailbox, "a\u{308}my@example.org", "ämy@example.org"),
        (Map::Mailbox, "Ämy@example.org", ""),
        (Map::Alias, "obrien@example.org", "\"o brien\"@example.org"),
        (Map::Alias, "obrien+x@example.org", "\"o brien+x\"@example.org"),
        (Map::Mailbox, "o brien@example.org", "o brien@example.org"),
    ])
    .await;
}

#[tokio::test]
async fn odd_keys_are_nobodys_in_every_map_without_asking_the_store() {
    let site = Site::new().await;
    let moved = site.lose_store();
    let long = format!("{}@example.org", "x".repeat(10_000));
    let label = format!("amy@{}.example.org", "x".repeat(64));

    for key in [
        "",
        "*",
        "<>",
        "\"\"",
        "@",
        "@example.org",
        "amy",
        "amy@",
        "[192.0.2.1]",
        "amy@[192.0.2.1]",
        "amy@[IPv6:2001:db8::1]",
        "amy@192.0.2.1",
        "a@b@example.org",
        "\"amy\"@example.org",
        "\"a@b\"@example.org",
        "MAILER-DAEMON@mx.elsewhere.example",
        "double-bounce@mx",
        " amy@example.org",
        "amy@example.org ",
        "amy@exam ple.org",
        "a\tmy@example.org",
        "a\0my@example.org",
        ".example.org",
        "sub.example.org",
        "amy@sub.example.org",
        &long,
        &label,
    ] {
        for map in MAPS {
            assert_eq!(site.find(map, key).await, Found::Nothing, "{map:?} {key:?}");
        }
    }
    for map in MAPS {
        assert_eq!(site.lookup.find(map, b"\xff@example.org").await.unwrap(), Found::Nothing);
        assert_eq!(site.lookup.find(map, b"amy@\xff.example").await.unwrap(), Found::Nothing);
    }
    site.find_store_again(moved);
}

#[tokio::test]
async fn mail_to_the_rest_of_the_world_does_not_wait_for_the_store() {
    let site = Site::new().await;
    let moved = site.lose_store();

    for map in [Map::Mailbox, Map::Alias, Map::SenderLogin] {
        assert_eq!(site.find(map, "joe@elsewhere.example").await, Found::Nothing, "{map:?}");
        assert!(site.lookup.find(map, b"amy@example.org").await.is_err(), "{map:?}");
    }
    site.check(&[(Map::Domain, "example.org", "example.org")]).await;
    site.find_store_again(moved);
}

#[tokio::test]
async fn with_the_store_gone_memory_answers_and_strangers_hear_later() {
    let site = Site::new().await;
    site.check(&[
        (Map::Mailbox, "amy@example.org", "amy@example.org"),
        (Map::Alias, "wong@example.org", "amy@example.org"),
        (Map::Mailbox, "nobody@example.org", ""),
    ])
    .await;
    let moved = site.lose_store();

    site.check(&[
        (Map::Mailbox, "amy@example.org", "amy@example.org"),
        (Map::SenderLogin, "amy@example.org", "amy@example.org"),
        (Map::Alias, "wong@example.org", "amy@example.org"),
        (Map::Mailbox, "nobody@example.org", ""),
    ])
    .await;
    for key in ["other@example.org", "amy+new@example.org", "amy@example.net"] {
        assert_eq!(site.lookup.recall(Map::Mailbox, key.as_bytes()), None, "{key}");
        assert!(site.lookup.find(Map::Mailbox, key.as_bytes()).await.is_err(), "{key}");
    }
    assert!(site.lookup.resident(b"other@example.org").await.is_err());
    assert!(site.lookup.resident(b"amy@example.org").await.unwrap().is_some());

    site.find_store_again(moved);
    site.check(&[(Map::Mailbox, "amy+new@example.org", "amy@example.org")]).await;
}

#[tokio::test]
async fn a_new_mailbox_and_new_aliases_are_seen_at_once_and_removed_ones_are_gone() {
    let site = Site::new().await;
    let everywhere = [
        (Map::Mailbox, "leela@example.org"),
        (Map::Alias, "turanga@example.org"),
        (Map::Alias, "turanga+x@example.net"),
    ];
    site.check(&everywhere.map(|(map, key)| (map, key, ""))).await;

    let id = site.settle(&mailbox("leela@example.org", &["turanga@example.org"])).await;

    site.check(&[
        (Map::Mailbox, "leela@example.org", "leela@example.org"),
        (Map::Alias, "turanga@example.org", "leela@example.org"),
        (Map::Alias, "turanga+x@example.net", "leela+x@example.org"),
    ])
    .await;

    let mut writing = site.store.begin_write().await.unwrap();
    let kind = (Kind::Alias, Origin::Directory);
    assert!(
        writing.claim_address(&parsed("captain@example.org"), kind.0, id, kind.1).await.unwrap()
    );
    writing.free_address(&parsed("turanga@example.org"), id).await.unwrap();
    site.check(&[(Map::Alias, "turanga@example.org", "leela@example.org")]).await;
    writing.commit().await.unwrap();

    site.check(&[
        (Map::Alias, "captain@example.org", "leela@example.org"),
        (Map::Alias, "turanga@example.org", ""),
        (Map::Alias, "turanga+x@example.net", ""),
        (Map::SenderLogin, "turanga@example.org", ""),
    ])
    .await;
}

#[tokio::test]
async fn an_alias_that_moves_to_another_mailbox_is_the_others_at_once() {
    let site = Site::new().await;
    let leela = site.settle(&mailbox("leela@example.org", &[])).await;
    site.check(&[(Map::Alias, "wong@example.org", "amy@example.org")]).await;
    let amy = site.store.owner(&parsed("amy@example.org")).await.unwrap().unwrap().id;

    let (wong, kind) = (parsed("wong@example.org"), Kind::Alias);
    let mut writing = site.store.begin_write().await.unwrap();
    writing.free_address(&wong, amy).await.unwrap();
    assert!(writing.claim_address(&wong, kind, leela, Origin::Directory).await.unwrap());
    writing.commit().await.unwrap();

    site.check(&[
        (Map::Alias, "wong@example.org", "leela@example.org"),
        (Map::SenderLogin, "wong@example.org", "leela@example.org"),
    ])
    .await;
}

#[tokio::test]
async fn a_rename_moves_every_address_to_the_new_name_at_once() {
    let site = Site::new().await;
    site.check(&[
        (Map::Mailbox, "amy@example.org", "amy@example.org"),
        (Map::Alias, "wong@example.org", "amy@example.org"),
        (Map::Mailbox, "kroker@example.org", ""),
    ])
    .await;
    let id = site.store.owner(&parsed("amy@example.org")).await.unwrap().unwrap().id;

    let mut writing = site.store.begin_write().await.unwrap();
    assert!(writing.rename(id, &parsed("kroker@example.org"), Origin::Directory).await.unwrap());
    writing.commit().await.unwrap();

    site.check(&[
        (Map::Mailbox, "kroker@example.org", "kroker@example.org"),
        (Map::Alias, "kroker@example.org", ""),
        (Map::Mailbox, "amy@example.org", ""),
        (Map::Alias, "amy+x@example.org", "kroker+x@example.org"),
        (Map::Alias, "wong@example.org", "kroker@example.org"),
        (Map::SenderLogin, "amy@example.org", "kroker@example.org"),
    ])
    .await;
    assert_eq!(
        site.lookup.resident(b"amy").await.unwrap(),
        None,
        "without a default domain a bare name is nobody's"
    );
    let found = site.lookup.resident(b"Amy+x@example.net").await.unwrap().unwrap();
    assert_eq!(found.address.as_str(), "kroker@example.org");
}

#[tokio::test]
async fn an_address_that_holds_the_separator_is_found_as_it_is() {
    let site = Site::new().await;
    site.settle(&mailbox("amy+shop@example.org", &["shop@example.org"])).await;

    site.check(&[
        (Map::Mailbox, "amy+shop@example.org", "amy+shop@example.org"),
        // With a detail it would be cut back to amy.
        (Map::Alias, "shop+x@example.org", "amy+shop@example.org"),
    ])
    .await;
    let found = site.lookup.resident(b"amy+shop@example.org").await.unwrap().unwrap();
    assert_eq!(found.address.as_str(), "amy+shop@example.org");
}

#[tokio::test]
async fn mail_for_a_disabled_mailbox_is_judged_by_disabled_delivery_at_once() {
    let site = Site::new().await;
    let amy = parsed("amy@example.org");
    site.check(&[(Map::Mailbox, "amy@example.org", "amy@example.org")]).await;

    for (delivery, mailbox, alias) in [
        (DisabledDelivery::Accept, "amy@example.org", "amy@example.org"),
        (DisabledDelivery::Reject, "", ""),
        (DisabledDelivery::Tempfail, "later", "later"),
    ] {
        site.set("amy@example.org", |mailbox| mailbox.settings.disabled_delivery = delivery).await;
        site.store.set_disabled(&amy, Standing::Disabled).await.unwrap();
        site.check(&[
            (Map::Mailbox, "amy@example.org", mailbox),
            (Map::Alias, "wong@example.org", alias),
            (Map::SenderLogin, "wong@example.org", "amy@example.org"),
        ])
        .await;

        site.store.set_disabled(&amy, Standing::Enabled).await.unwrap();
        site.check(&[(Map::Mailbox, "amy@example.org", "amy@example.org")]).await;

        site.set("amy@example.org", |mailbox| mailbox.settings.active = Active::No).await;
        site.check(&[(Map::Alias, "wong@example.org", alias)]).await;
        site.set("amy@example.org", |mailbox| mailbox.settings.active = Active::DeliveryOnly).await;
        site.check(&[(Map::Alias, "wong@example.org", "amy@example.org")]).await;
        site.set("amy@example.org", |mailbox| mailbox.settings.active = Active::Yes).await;
    }
}

#[tokio::test]
async fn a_reload_of_domains_counts_at_once() {
    let mut site = Site::new().await;
    site.set("amy@example.org", |it| it.settings.disabled_delivery = DisabledDelivery::Tempfail)
        .await;
    site.check(&[
        (Map::Mailbox, "amy@example.org", "amy@example.org"),
        (Map::Alias, "amy@example.net", "amy@example.org"),
        (Map::Alias, "nobody@example.org", ""),
        (Map::Domain, "example.com", ""),
    ])
    .await;

    site.reload(|config| {
        config.domain.insert("example.com".into(), DomainTable::default());
        config.domain.insert("example.org".into(), catch_all("amy@example.org"));
        config.domain.insert("example.net".into(), DomainTable::default());
    })
    .await;
    site.check(&[
        (Map::Domain, "example.com", "example.com"),
        (Map::Alias, "nobody@example.org", "amy@example.org"),
        (Map::Alias, "amy@example.net", ""),
    ])
    .await;

    // A domain that is switched off: its mailboxes are, and mail is judged by each one's `disabled_delivery`.
    site.reload(|config| {
        config.domain.get_mut("example.org").unwrap().active = false;
    })
    .await;
    site.check(&[
        (Map::Domain, "example.org", "example.org"),
        (Map::Mailbox, "amy@example.org", "later"),
        (Map::Alias, "nobody@example.org", "later"),
    ])
    .await;

    site.reload(|config| drop(config.domain.remove("example.org"))).await;
    site.check(&[
        (Map::Domain, "example.org", ""),
        (Map::Mailbox, "amy@example.org", ""),
        (Map::SenderLogin, "amy@example.org", ""),
    ])
    .await;
}

#[tokio::test]
async fn the_separator_is_a_setting() {
    let mut site = Site::with(|config| config.login.separator = "-".into()).await;
    site.check(&[
        (Map::Mailbox, "amy-x@example.org", "amy@example.org"),
        (Map::Alias, "wong-x@example.org", "amy-x@example.org"),
        (Map::Mailbox, "amy+x@example.org", ""),
    ])
    .await;

    site.reload(|config| config.login.separator = String::new()).await;
    site.check(&[(Map::Mailbox, "amy-x@example.org", "")]).await;
}

#[tokio::test]
async fn case_is_kept_where_names_are_told_apart_by_it() {
    let site = Site::with(|config| config.login.lowercase = false).await;

    site.check(&[
        (Map::Mailbox, "amy@EXAMPLE.org", "amy@example.org"),
        (Map::Mailbox, "Amy@example.org", ""),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_that_race_with_a_change_leave_nothing_old_behind() {
    let site = Site::new().await;
    let amy = parsed("amy@example.org");
    site.set("amy@example.org", |it| it.settings.disabled_delivery = DisabledDelivery::Reject)
        .await;
    for round in 0..60 {
        let standing = if round % 2 == 0 { Standing::Disabled } else { Standing::Enabled };
        let readers: Vec<_> = (0..8)
            .map(|number| {
                let lookup = Arc::clone(&site.lookup);
                // Each detail is a new address: the store is asked every time.
                let key = format!("amy+{round}.{number}@example.org");
                tokio::spawn(
                    async move { lookup.find(Map::Mailbox, key.as_bytes()).await.unwrap() },
                )
            })
            .collect();
        site.store.set_disabled(&amy, standing).await.unwrap();
        for reader in readers {
            let _ = reader.await.unwrap();
        }

        let value = if standing == Standing::Disabled { "" } else { "amy@example.org" };
        site.check(&[(Map::Mailbox, "amy@example.org", value)]).await;
    }
}
