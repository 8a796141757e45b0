//! Mailboxes: their rows, read and written.

use std::collections::{BTreeMap, BTreeSet};

use super::dialect::{Row, Transaction, Value, statements};
use super::mailbox::{
    Field, Held, Link, Mailbox, Misfit, Origin, Place, Provider, Settings, Standing,
};
use super::{Store, StoreError, within};
use crate::config::template::{Active, DisabledDelivery};
use crate::identity::{Address, Case};
use crate::secret::Secret;
use crate::seldom::Seldom;

/// The mailboxes whose ids a query gives, each with all its sets: rows of mailboxes first, then their aliases, tags and notes of
/// what is held; column 17 says whose a row is. One statement is a view of one moment without a transaction around it, and
/// one message to SQLite's thread instead of five. Crossed, not joined: SQLite, which knows nothing of the sizes, would else
/// read all aliases, tags and notes of all mailboxes to find those of one.
macro_rules! whole_mailboxes {
    ($subject:literal) => {
        concat!(
            "WITH subject AS (",
            $subject,
            ") SELECT a.address, d.active, m.template, m.display_name, m.quota, m.protocols, m.active, \
             m.disabled_delivery, m.extra, m.pinned, m.disabled_by_admin, m.home, m.uid, m.gid, \
             l.profile, l.id, m.provider, m.id, 'mailbox' \
             FROM subject s CROSS JOIN mailboxes m CROSS JOIN addresses a \
             JOIN domains d ON d.name = m.domain \
             LEFT JOIN links l ON l.mailbox = m.id \
             WHERE m.id = s.id AND a.owner = s.id AND a.kind = 'mailbox' \
             UNION ALL SELECT a.address, NULL, a.origin, '', NULL, NULL, NULL, NULL, NULL, NULL, NULL, \
             NULL, NULL, NULL, NULL, NULL, NULL, s.id, 'alias' \
             FROM subject s CROSS JOIN addresses a WHERE a.owner = s.id AND a.kind = 'alias' \
             UNION ALL SELECT t.tag, NULL, t.origin, '', NULL, NULL, NULL, NULL, NULL, NULL, NULL, \
             NULL, NULL, NULL, NULL, NULL, NULL, s.id, 'tag' \
             FROM subject s CROSS JOIN tags t WHERE t.mailbox = s.id \
             UNION ALL SELECT h.field, NULL, h.value, h.why, NULL, NULL, NULL, NULL, NULL, NULL, NULL, \
             NULL, NULL, NULL, NULL, NULL, NULL, s.id, 'held' \
             FROM subject s CROSS JOIN held h WHERE h.mailbox = s.id AND (h.capacity IS NULL \
             OR h.capacity = (SELECT revision FROM capacity WHERE id = 1))"
        )
    };
}
pub(super) use whole_mailboxes;

statements! {
    WHOLE = "SELECT COALESCE( \
             (SELECT mailbox FROM links WHERE profile = ? AND id = ?), \
             (SELECT owner FROM addresses WHERE address = ? AND kind IN ('mailbox', 'alias')), \
             ?) AS id"
        whole_mailboxes;
    INSERT = "INSERT INTO mailboxes (domain, template, display_name, quota, protocols, active, \
              disabled_delivery, extra, home, uid, gid, provider, created_at, changed_at) \
              VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id";
    UPDATE = "UPDATE mailboxes SET template = ?, display_name = ?, quota = ?, protocols = ?, \
              active = ?, disabled_delivery = ?, extra = ?, changed_at = ? WHERE id = ?";
    MOVE = "UPDATE mailboxes SET domain = ?, changed_at = ? WHERE id = ?";
    DISABLE = "UPDATE mailboxes SET disabled_by_admin = ?, changed_at = ? WHERE id = ?";
    PROVIDE = "UPDATE mailboxes SET provider = ?, changed_at = ? WHERE id = ?";
    PASSWORD = "UPDATE mailboxes SET password = ?, changed_at = ? WHERE id = ?";
    HASH = "SELECT password FROM mailboxes WHERE id = ?";
    PIN = "UPDATE mailboxes SET pinned = ?, changed_at = ? WHERE id = ?";
    TAG = "INSERT INTO tags (mailbox, tag, origin) VALUES (?, ?, 'directory')"
        or_ignore "mailbox, tag";
    UNTAG = "DELETE FROM tags WHERE mailbox = ? AND tag = ? AND origin = 'directory'";
    HOLD = "INSERT INTO held (mailbox, field, value, why, capacity) VALUES (?, ?, ?, ?, ?)"
        or_update "mailbox, field, value" set "why" "capacity";
    RELEASE = "DELETE FROM held WHERE mailbox = ? AND field = ? AND value = ?";
    SWEEP = "DELETE FROM held WHERE mailbox = ? \
             AND capacity <> (SELECT revision FROM capacity WHERE id = 1)";
}

/// Whose mailbox: the one linked to an entry, or else the owner of an address, or else the one with a number.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Subject<'a> {
    pub(super) link: Option<&'a Link>,
    pub(super) address: Option<&'a Address>,
    pub(super) id: Option<i64>,
}

impl<'a> Subject<'a> {
    fn values(&self) -> [Value<'a>; 4] {
        let text = |text: Option<&'a str>| text.map_or(Value::Null, Value::Text);
        [
            text(self.link.map(|link| &*link.profile)),
            text(self.link.map(|link| &*link.id)),
            text(self.address.map(Address::as_str)),
            self.id.map_or(Value::Null, Value::Int),
        ]
    }
}

impl Store {
    /// The mailbox that belongs to a directory entry.
    ///
    /// # Errors
    /// The store did not answer.
    pub async fn linked(&self, link: &Link) -> Result<Option<Mailbox>, StoreError> {
        self.whole(Subject { link: Some(link), ..Subject::default() }).await
    }

    /// The mailbox of a directory entry, or else the one that owns the address the entry should get; as of one moment.
    pub(crate) async fn linked_or_owner(
        &self,
        link: &Link,
        address: Option<&Address>,
    ) -> Result<Option<Mailbox>, StoreError> {
        self.whole(Subject { link: Some(link), address, ..Subject::default() }).await
    }

    /// Mailboxes by address, those after `after`, at most `limit`.
    ///
    /// # Errors
    /// The store did not answer.
    pub async fn mailboxes(
        &self,
        after: Option<&Address>,
        limit: u32,
    ) -> Result<Vec<Mailbox>, StoreError> {
        within(async {
            let mut view = self.begin_read().await?;
            let mut all = Vec::new();
            for (_, id) in view.page(after.map(Address::as_str).unwrap_or_default(), limit).await? {
                all.extend(view.mailbox_by_id(id).await?);
            }
            Ok(all)
        })
        .await
    }

    /// Switches a mailbox off, or leaves it to the directory again; gives it as it is then. `None`: no such address.
    ///
    /// # Errors
    /// The store did not answer; nothing was changed.
    pub async fn set_disabled(
        &self,
        address: &Address,
        standing: Standing,
    ) -> Result<Option<Mailbox>, StoreError> {
        let disabled = i64::from(standing == Standing::Disabled);
        self.set(address, DISABLE, disabled.into()).await
    }

    /// Says who checks the password from now on; the hash that is kept stays as it is. A link to another directory than
    /// the new one is cut. `None`: no such address.
    ///
    /// # Errors
    /// The store did not answer; nothing was changed.
    pub async fn set_provider(
        &self,
        address: &Address,
        provider: &Provider,
    ) -> Result<Option<Mailbox>, StoreError> {
        within(async {
            let mut writing = self.begin_write().await?;
            let Some(id) = writing.owner_id(address).await? else { return Ok(None) };
            let now = crate::clock::unix_seconds();
            writing.execute(PROVIDE, &[provider.word().into(), now.into(), id.into()]).await?;
            if let Provider::Directory(profile) = provider {
                writing.cut_links_to_others(id, profile).await?;
            }
            writing.touched.mailboxes.push(id);
            let mailbox = writing.mailbox_by_id(id).await?;
            writing.commit().await?;
            Ok(mailbox)
        })
        .await
    }

    /// Keeps a password's hash for a mailbox. `None`: no such address.
    ///
    /// # Errors
    /// The store did not answer; nothing was changed.
    pub async fn set_password(
        &self,
        address: &Address,
        hash: &Secret,
    ) -> Result<Option<Mailbox>, StoreError> {
        self.set(address, PASSWORD, hash.expose().into()).await
    }

    /// The hash of a mailbox's own password, if it has one.
    ///
    /// # Errors
    /// The store did not answer.
    pub async fn password_hash(&self, id: i64) -> Result<Option<Secret>, StoreError> {
        within(async {
            let rows = self.db.read(HASH, &[id.into()]).await?;
            let hash = rows.first().map(|row| row.optional_text(0)).transpose()?.flatten();
            Ok(hash.map(Secret::new))
        })
        .await
    }

    /// The mailbox with that number.
    ///
    /// # Errors
    /// The store did not answer.
    pub async fn mailbox_numbered(&self, id: i64) -> Result<Option<Mailbox>, StoreError> {
        self.whole(Subject { id: Some(id), ..Subject::default() }).await
    }

    /// The mailbox of the first of these that is somebody's, with all its sets.
    pub(super) async fn whole(&self, subject: Subject<'_>) -> Result<Option<Mailbox>, StoreError> {
        within(async { whole(&self.db.read(WHOLE, &subject.values()).await?) }).await
    }

    /// Says which fields logins must leave as they are. `None`: no such address.
    ///
    /// # Errors
    /// The store did not answer; nothing was changed.
    pub async fn set_pinned(
        &self,
        address: &Address,
        fields: BTreeSet<Field>,
    ) -> Result<Option<Mailbox>, StoreError> {
        let words: Vec<&str> = fields.into_iter().map(Field::as_str).collect();
        self.set(address, PIN, words.join(" ").as_str().into()).await
    }

    async fn set(
        &self,
        address: &Address,
        statement: super::dialect::Statement,
        value: Value<'_>,
    ) -> Result<Option<Mailbox>, StoreError> {
        within(async {
            let mut writing = self.begin_write().await?;
            let Some(id) = writing.owner_id(address).await? else { return Ok(None) };
            let now = crate::clock::unix_seconds();
            writing.execute(statement, &[value, now.into(), id.into()]).await?;
            writing.touched.mailboxes.push(id);
            let mailbox = writing.mailbox_by_id(id).await?;
            writing.commit().await?;
            Ok(mailbox)
        })
        .await
    }
}

impl Transaction {
    pub(super) async fn mailbox_if(
        &mut self,
        id: Option<i64>,
    ) -> Result<Option<Mailbox>, StoreError> {
        match id {
            Some(id) => self.mailbox_by_id(id).await,
            None => Ok(None),
        }
    }

    /// The mailbox with that number, with all its sets.
    pub(crate) async fn mailbox_by_id(&mut self, id: i64) -> Result<Option<Mailbox>, StoreError> {
        let subject = Subject { id: Some(id), ..Subject::default() };
        whole(&self.rows(WHOLE, &subject.values()).await?)
    }

    /// Writes a new mailbox's own row; address, link and sets follow.
    pub(crate) async fn insert_mailbox(&mut self, mailbox: &Mailbox) -> Result<i64, StoreError> {
        let now = crate::clock::unix_seconds();
        let words = SettingsWords::of(&mailbox.settings)?;
        let values = [
            mailbox.address.domain().as_str().into(),
            (&*mailbox.settings.template).into(),
            (&*mailbox.settings.display_name).into(),
            words.quota.into(),
            mailbox.settings.protocols.as_str().into(),
            active_word(mailbox.settings.active).into(),
            delivery_word(mailbox.settings.disabled_delivery).into(),
            words.extra.as_str().into(),
            (&*mailbox.place.home).into(),
            i64::from(mailbox.place.uid).into(),
            i64::from(mailbox.place.gid).into(),
            mailbox.provider.word().into(),
            now.into(),
            now.into(),
        ];
        match self.row(INSERT, &values).await? {
            Some(row) => row.int(0),
            None => Err(StoreError::Corrupt { what: "no id for a new mailbox".into() }),
        }
    }

    /// Writes the fields that templates and attributes govern.
    pub(crate) async fn write_settings(
        &mut self,
        id: i64,
        settings: &Settings,
    ) -> Result<(), StoreError> {
        let words = SettingsWords::of(settings)?;
        let values = [
            (&*settings.template).into(),
            (&*settings.display_name).into(),
            words.quota.into(),
            settings.protocols.as_str().into(),
            active_word(settings.active).into(),
            delivery_word(settings.disabled_delivery).into(),
            words.extra.as_str().into(),
            crate::clock::unix_seconds().into(),
            id.into(),
        ];
        self.touched.mailboxes.push(id);
        self.execute(UPDATE, &values).await.map(drop)
    }

    /// Moves a mailbox to the domain of its new address.
    pub(crate) async fn move_mailbox(&mut self, id: i64, to: &Address) -> Result<(), StoreError> {
        let now = crate::clock::unix_seconds();
        let values = [to.domain().as_str().into(), now.into(), id.into()];
        self.execute(MOVE, &values).await.map(drop)
    }

    /// Adds a tag that the template asks for.
    pub(crate) async fn add_tag(&mut self, id: i64, tag: &str) -> Result<(), StoreError> {
        self.execute(TAG, &[id.into(), tag.into()]).await.map(drop)
    }

    /// Removes a tag that the template no longer asks for.
    pub(crate) async fn remove_tag(&mut self, id: i64, tag: &str) -> Result<(), StoreError> {
        self.execute(UNTAG, &[id.into(), tag.into()]).await.map(drop)
    }

    /// Notes what could not be written.
    pub(crate) async fn hold(&mut self, id: i64, held: &Held) -> Result<(), StoreError> {
        let capacity = match held.why.depends_on_others() {
            true => Value::Int(self.capacity().await?),
            false => Value::Null,
        };
        let values = [
            id.into(),
            held.field.as_str().into(),
            (&*held.value).into(),
            held.why.as_str().into(),
            capacity,
        ];
        self.execute(HOLD, &values).await.map(drop)
    }

    /// Forgets such a note.
    pub(crate) async fn release(&mut self, id: i64, held: &Held) -> Result<(), StoreError> {
        let values = [id.into(), held.field.as_str().into(), (&*held.value).into()];
        self.execute(RELEASE, &values).await.map(drop)
    }

    /// Forgets the notes that are no longer looked at, because something became free since.
    pub(crate) async fn sweep_held(&mut self, id: i64) -> Result<(), StoreError> {
        self.execute(SWEEP, &[id.into()]).await.map(drop)
    }
}

/// Settings in the forms their columns have.
struct SettingsWords {
    quota: i64,
    extra: String,
}

impl SettingsWords {
    fn of(settings: &Settings) -> Result<Self, StoreError> {
        let extra = serde_json::to_string(&*settings.extra)
            .map_err(|error| StoreError::Corrupt { what: format!("extra: {error}") })?;
        let quota = i64::try_from(settings.quota).unwrap_or(i64::MAX);
        Ok(Self { quota, extra })
    }
}

/// The rows of `WHOLE`.
fn whole(rows: &[Row]) -> Result<Option<Mailbox>, StoreError> {
    let Some((first, members)) = rows.split_first() else { return Ok(None) };
    let mut mailbox = read(first.int(17)?, first)?;
    members.iter().try_for_each(|row| read_member(&mut mailbox, row))?;
    Ok(Some(mailbox))
}

/// The columns of `WHOLE`'s first row up to `provider`.
pub(super) fn read(id: i64, row: &Row) -> Result<Mailbox, StoreError> {
    let corrupt = |column: &str| StoreError::Corrupt { what: format!("mailbox {id}: {column}") };
    let settings = Settings {
        template: row.text(2)?.into(),
        display_name: row.text(3)?.into(),
        quota: u64::try_from(row.int(4)?).map_err(|_| corrupt("quota"))?,
        protocols: row.text(5)?.split_whitespace().collect(),
        active: parse_active(row.text(6)?).ok_or_else(|| corrupt("active"))?,
        disabled_delivery: parse_delivery(row.text(7)?)
            .ok_or_else(|| corrupt("disabled_delivery"))?,
        extra: serde_json::from_str::<BTreeMap<_, _>>(row.text(8)?)
            .map_err(|_| corrupt("extra"))?
            .into(),
    };
    let place = Place {
        home: row.text(11)?.into(),
        uid: u32::try_from(row.int(12)?).map_err(|_| corrupt("uid"))?,
        gid: u32::try_from(row.int(13)?).map_err(|_| corrupt("gid"))?,
    };
    let link = match (row.optional_text(14)?, row.optional_text(15)?) {
        (Some(profile), Some(id)) => Some(Link { profile: profile.into(), id: id.into() }),
        _ => None,
    };
    Ok(Mailbox {
        id,
        address: Address::parse(row.text(0)?, Case::Keep).map_err(|_| corrupt("address"))?,
        domain_active: row.int(1)? == 1,
        settings,
        disabled_by_admin: row.int(10)? == 1,
        pinned: row.text(9)?.split_whitespace().filter_map(Field::parse).collect(),
        aliases: Seldom::default(),
        tags: Seldom::default(),
        link,
        provider: Provider::parse(row.text(16)?),
        place,
        held: Seldom::default(),
    })
}

/// An alias, a tag or something held.
pub(super) fn read_member(mailbox: &mut Mailbox, row: &Row) -> Result<(), StoreError> {
    let corrupt =
        |column: &str| StoreError::Corrupt { what: format!("mailbox {}: {column}", mailbox.id) };
    let (first, second) = (row.text(0)?, row.text(2)?);
    match row.text(18)? {
        "alias" => {
            let alias = Address::parse(first, Case::Keep).map_err(|_| corrupt("alias"))?;
            mailbox.aliases.make().insert(alias, parse_origin(second));
        }
        "tag" => {
            mailbox.tags.make().insert(first.into(), parse_origin(second));
        }
        _ => {
            let field = Field::parse(first).ok_or_else(|| corrupt("held"))?;
            let why = Misfit::parse(row.text(3)?).ok_or_else(|| corrupt("held"))?;
            mailbox.held.make().insert(Held { field, value: second.into(), why });
        }
    }
    Ok(())
}

pub(super) const fn origin_word(origin: Origin) -> &'static str {
    match origin {
        Origin::Admin => "admin",
        Origin::Directory => "directory",
    }
}

/// The columns' own checks allow no third word.
fn parse_origin(word: &str) -> Origin {
    if word == "admin" { Origin::Admin } else { Origin::Directory }
}

const fn active_word(active: Active) -> &'static str {
    match active {
        Active::DeliveryOnly => "delivery-only",
        Active::No => "no",
        Active::Yes => "yes",
    }
}

fn parse_active(word: &str) -> Option<Active> {
    [Active::DeliveryOnly, Active::No, Active::Yes]
        .into_iter()
        .find(|active| active_word(*active) == word)
}

const fn delivery_word(delivery: DisabledDelivery) -> &'static str {
    match delivery {
        DisabledDelivery::Accept => "accept",
        DisabledDelivery::Reject => "reject",
        DisabledDelivery::Tempfail => "tempfail",
    }
}

fn parse_delivery(word: &str) -> Option<DisabledDelivery> {
    [DisabledDelivery::Accept, DisabledDelivery::Reject, DisabledDelivery::Tempfail]
        .into_iter()
        .find(|delivery| delivery_word(*delivery) == word)
}
