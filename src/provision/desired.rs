//! What a person's mailbox should be: the template overlaid by mapped attributes. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::plan::{MAX_ALIASES, MAX_QUOTA, MAX_TEXT, Refusal, Report, refused_before};
use super::template::{Choice, Filling, Percent, Profile, Rules, UnsafeValue};
use crate::config::directory::{Mapping, OnUnmatched, Policy, Transform};
use crate::config::template::Template;
use crate::config::units::ByteSize;
use crate::identity::Address;
use crate::person::Person;
use crate::store::{Field, Mailbox, Misfit, Origin, Place, Settings};

/// What a person's mailbox should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The canonical address.
    pub address: Address,
    /// Template and mapped fields.
    pub settings: Settings,
    /// Further addresses from the directory and the template.
    pub aliases: BTreeSet<Address>,
    /// Tags of the template.
    pub tags: BTreeSet<Box<str>>,
    /// Where the mail lies: of an existing mailbox, where it always lay.
    pub place: Place,
    /// What was asked for and cannot be.
    pub misfits: BTreeSet<Report>,
}

/// Works out what a person's mailbox should be. `stored` is the mailbox they have.
///
/// # Errors
/// Why they get none; for somebody who has one only `template-unmatched`, what else does not fit becomes a misfit.
pub fn desired(
    rules: &Rules,
    person: &Person,
    stored: Option<&Mailbox>,
) -> Result<Desired, Refusal> {
    let profile = rules.profile(&person.profile).ok_or(Refusal::NoTemplate)?;
    let mut wish = Wish { rules, person, profile, stored, misfits: BTreeSet::new() };
    let names = wish.names();
    let address = wish.address(&names)?;
    let name = wish.template()?;
    let Some(template) = rules.template(&name) else {
        // The template that an existing mailbox keeps is no longer configured: all it gave stays.
        return stored.map(|stored| wish.unchanged(stored)).ok_or(Refusal::NoTemplate);
    };
    let filling = Filling { address: &address, id: &person.id };
    let aliases = wish.aliases(names, template, filling);
    let settings = Settings {
        display_name: wish.display_name(),
        quota: wish.quota(template, &address)?,
        protocols: template.words.clone(),
        active: template.active,
        disabled_delivery: template.disabled_delivery,
        extra: wish.extra(template, filling)?.into(),
        template: name,
    };
    let place = match stored {
        Some(stored) => stored.place.clone(),
        None => place(template, filling)?,
    };
    let tags = wish.tags(template);
    let settings = with_pinned(settings, stored);
    Ok(Desired { address, settings, aliases, tags, place, misfits: wish.misfits })
}

/// One person's wishes while they are worked out. What does not fit is noted whether or not a policy keeps the old
/// value: a new mailbox must begin with the notes that its next login would make.
struct Wish<'a> {
    rules: &'a Rules,
    person: &'a Person,
    profile: &'a Profile,
    stored: Option<&'a Mailbox>,
    misfits: BTreeSet<Report>,
}

/// The addresses that the entry holds.
#[derive(Default)]
struct Names {
    /// Marked as the primary one (`SMTP:`).
    marked: Vec<Address>,
    /// Of the address attribute, in the directory's order.
    main: Vec<Address>,
    /// Of the aliases attribute.
    further: Vec<Address>,
    /// The first that cannot be used.
    unusable: Option<(String, Misfit)>,
}

impl<'a> Wish<'a> {
    fn pinned(&self, field: Field) -> bool {
        self.stored.is_some_and(|stored| stored.pinned.contains(&field))
    }

    fn misfit(&mut self, field: Field, value: &str, why: Misfit) {
        self.misfits.insert(Report { field, value: cut(value).into(), why });
    }

    /// Texts of the first attribute that has any, transformed.
    fn texts(&self, mapping: &'a Mapping) -> Vec<String> {
        let texts = |name: &String| -> Vec<String> {
            let texts = self.person.attributes.texts(name);
            texts.map(|text| transformed(text, mapping)).filter(|text| !text.is_empty()).collect()
        };
        mapping.attr.iter().map(texts).find(|texts| !texts.is_empty()).unwrap_or_default()
    }

    fn names(&mut self) -> Names {
        let mut names = Names::default();
        for (field, mapping) in [
            (Field::Address, &self.profile.map.address),
            (Field::Aliases, &self.profile.map.aliases),
        ] {
            for text in self.texts(mapping) {
                let (mark, text) = split_mark(&text);
                let list = match (mark, field) {
                    (Mark::Foreign, _) => continue,
                    (Mark::Primary, _) => &mut names.marked,
                    (Mark::None, Field::Address) => &mut names.main,
                    _ => &mut names.further,
                };
                match self.usable(text) {
                    Ok(address) => list.push(address),
                    Err(why) => {
                        if field == Field::Address || mark == Mark::Primary {
                            names.unusable.get_or_insert_with(|| (text.to_owned(), why));
                        }
                        self.misfit(field, text, why);
                    }
                }
            }
        }
        names
    }

    fn usable(&self, text: &str) -> Result<Address, Misfit> {
        let names = &self.rules.names;
        let address = Address::parse(text.trim(), names.case).map_err(|_| Misfit::BadAddress)?;
        // Whoever logs in or gets mail there is looked for in the domain that it stands for.
        let address = match names.alias_domains.get(address.domain()) {
            Some(target) => address.in_domain(target).map_err(|_| Misfit::BadAddress)?,
            None => address,
        };
        if !address.is_safe_in_path() {
            Err(Misfit::BadAddress)
        } else if self.rules.domain(address.domain()).is_none() {
            Err(Misfit::DomainUnknown)
        } else {
            Ok(address)
        }
    }

    /// The canonical address: the marked one, else a value of the address attribute. A directory gives values in any
    /// order, so the one that the mailbox has already counts before the first.
    fn address(&mut self, names: &Names) -> Result<Address, Refusal> {
        let candidates = if names.marked.is_empty() { &names.main } else { &names.marked };
        let Some(stored) = self.stored else {
            return candidates.first().cloned().ok_or_else(|| self.no_address(names));
        };
        let policy = self.profile.map.address.policy;
        let kept = matches!(policy, Policy::CreateOnly | Policy::Keep)
            || self.pinned(Field::Address)
            || candidates.contains(&stored.address);
        match candidates.first() {
            _ if kept => {}
            None if names.unusable.is_none() => self.misfit(Field::Address, "", Misfit::NoAddress),
            None => {}
            Some(first) => {
                if let Some(known) = refused_before(stored, Field::Address, first.as_str()) {
                    self.misfits.insert(known.clone());
                    return Ok(stored.address.clone());
                }
                let domain = self.rules.domain(first.domain());
                if domain.is_some_and(|domain| domain.active) {
                    return Ok(first.clone());
                }
                self.misfit(Field::Address, first.as_str(), Misfit::DomainInactive);
            }
        }
        Ok(stored.address.clone())
    }

    fn no_address(&self, names: &Names) -> Refusal {
        match &names.unusable {
            None => Refusal::NoAddress,
            Some((text, Misfit::DomainUnknown)) => {
                let domain = text.rsplit_once('@').map_or(text.as_str(), |(_, domain)| domain);
                Refusal::DomainUnknown(cut(domain))
            }
            Some((text, _)) => Refusal::BadAddress(cut(text)),
        }
    }

    /// The name of the template that counts.
    fn template(&mut self) -> Result<Arc<str>, Refusal> {
        if let Some(stored) = self.stored.filter(|_| self.pinned(Field::Template)) {
            return Ok(stored.settings.template.clone());
        }
        match (self.rules.choose(self.person), self.stored) {
            (Choice::Template { name, .. }, _) => Ok(name),
            (Choice::Unmatched { .. }, None) => Err(Refusal::NoTemplate),
            (Choice::Unmatched { values }, Some(stored)) => match self.profile.on_unmatched {
                OnUnmatched::Refuse => Err(Refusal::TemplateUnmatched),
                OnUnmatched::Keep => {
                    self.misfit(Field::Template, &values, Misfit::TemplateUnmatched);
                    Ok(stored.settings.template.clone())
                }
            },
        }
    }

    fn aliases(
        &mut self,
        names: Names,
        template: &Template,
        filling: Filling<'_>,
    ) -> BTreeSet<Address> {
        let directory_owned = |stored: &Mailbox| -> BTreeSet<Address> {
            let owned = stored.aliases.iter().filter(|(_, origin)| **origin == Origin::Directory);
            owned.map(|(alias, _)| alias.clone()).collect()
        };
        let mut old = self.stored.map(directory_owned).unwrap_or_default();
        old.remove(filling.address);
        let mut all: BTreeSet<Address> =
            names.marked.into_iter().chain(names.main).chain(names.further).collect();
        for text in &template.aliases {
            let filled = filling.fill(text, Percent::Keep).map_err(|UnsafeValue| Misfit::BadValue);
            match filled.and_then(|text| self.usable(&text)) {
                Ok(address) => {
                    all.insert(address);
                }
                Err(why) => self.misfit(Field::Aliases, text, why),
            }
        }
        all.remove(filling.address);
        // An address that cannot become the canonical one is not tried as an alias too.
        let refused = |it: &Address, misfit: &Report| {
            misfit.field == Field::Address && &*misfit.value == it.as_str()
        };
        all.retain(|it| !self.misfits.iter().any(|misfit| refused(it, misfit)));
        if all.len() > MAX_ALIASES {
            self.misfit(Field::Aliases, &format!("{} addresses", all.len()), Misfit::TooMany);
        }
        let policy = self.profile.map.aliases.policy;
        let kept = self.pinned(Field::Aliases)
            || (policy == Policy::CreateOnly && self.stored.is_some())
            || (policy == Policy::Keep && !old.is_empty());
        if kept {
            // Nothing is tried, so what the store refused when it was stays noted.
            let held = self.stored.iter().flat_map(|stored| &stored.held);
            let refused =
                held.filter(|it| it.field == Field::Aliases && it.why.depends_on_others());
            self.misfits.extend(refused.cloned());
            return old;
        }
        if policy == Policy::Merge {
            all.extend(old);
        }
        all.into_iter().take(MAX_ALIASES).collect()
    }

    fn display_name(&mut self) -> Box<str> {
        let mapping = &self.profile.map.display_name;
        let text = self.texts(mapping).into_iter().next().unwrap_or_default();
        // Control bytes would end a field of a line protocol.
        let text: String = text.chars().filter(|letter| !letter.is_control()).collect();
        let text = text.trim();
        let short = cut(text);
        if short.len() < text.len() {
            self.misfit(Field::DisplayName, text, Misfit::TooLong);
        }
        let old = self.stored.map(|stored| &stored.settings.display_name);
        match (mapping.policy, old) {
            (Policy::CreateOnly, Some(old)) => old.clone(),
            (Policy::Keep, Some(old)) if !old.is_empty() => old.clone(),
            _ => short.into(),
        }
    }

    fn quota(&mut self, template: &Template, address: &Address) -> Result<u64, Refusal> {
        let quota = self.wanted_quota(template);
        let limit = self.rules.domain(address.domain()).map_or(0, |it| it.max_mailbox_quota.0);
        if limit == 0 || (quota > 0 && quota <= limit) {
            return Ok(quota);
        }
        let Some(stored) = self.stored else { return Err(Refusal::QuotaExceeded) };
        if quota != stored.settings.quota && !self.pinned(Field::Quota) {
            self.misfit(Field::Quota, &quota.to_string(), Misfit::MailboxQuota);
        }
        Ok(stored.settings.quota)
    }

    fn wanted_quota(&mut self, template: &Template) -> u64 {
        let from_template = template.quota.0.min(MAX_QUOTA);
        let mapping = &self.profile.map.quota;
        let Some(text) = self.texts(mapping).into_iter().next() else { return from_template };
        let quota = bytes(&text, mapping).filter(|quota| *quota <= MAX_QUOTA);
        if quota.is_none() {
            self.misfit(Field::Quota, &text, Misfit::NotASize);
        }
        let old = self.stored.map(|stored| stored.settings.quota);
        match (mapping.policy, old) {
            (Policy::CreateOnly, Some(old)) => old,
            (Policy::Keep, Some(old)) if old > 0 => old,
            _ => quota.unwrap_or(from_template),
        }
    }

    fn extra(
        &mut self,
        template: &Template,
        filling: Filling<'_>,
    ) -> Result<BTreeMap<Box<str>, Box<str>>, Refusal> {
        let field = |(name, text): (&String, &String)| {
            let filled = filling.fill(text, Percent::Double)?;
            Ok((name.as_str().into(), filled.into()))
        };
        match (template.extra.iter().map(field).collect(), self.stored) {
            (Ok(extra), _) => Ok(extra),
            (Err(UnsafeValue), None) => Err(Refusal::BadAddress(cut(filling.address.as_str()))),
            (Err(UnsafeValue), Some(stored)) => {
                self.misfit(Field::Extra, filling.address.as_str(), Misfit::BadValue);
                Ok(BTreeMap::clone(&stored.settings.extra))
            }
        }
    }

    fn tags(&self, template: &Template) -> BTreeSet<Box<str>> {
        match self.stored.filter(|_| self.pinned(Field::Tags)) {
            Some(stored) => directory_tags(stored),
            None => template
                .tags
                .iter()
                .map(|tag| cut(tag.trim()))
                .filter(|tag| !tag.is_empty())
                .map(Box::from)
                .collect(),
        }
    }

    /// Everything as it is.
    fn unchanged(self, stored: &Mailbox) -> Desired {
        let owned = stored.aliases.iter().filter(|(_, origin)| **origin == Origin::Directory);
        Desired {
            address: stored.address.clone(),
            settings: stored.settings.clone(),
            aliases: owned.map(|(alias, _)| alias.clone()).collect(),
            tags: directory_tags(stored),
            place: stored.place.clone(),
            misfits: self.misfits,
        }
    }
}

fn directory_tags(stored: &Mailbox) -> BTreeSet<Box<str>> {
    let owned = stored.tags.iter().filter(|(_, origin)| **origin == Origin::Directory);
    owned.map(|(tag, _)| tag.clone()).collect()
}

fn with_pinned(mut settings: Settings, stored: Option<&Mailbox>) -> Settings {
    let Some(stored) = stored else { return settings };
    let old = &stored.settings;
    for field in &stored.pinned {
        match field {
            Field::Active => settings.active = old.active,
            Field::DisabledDelivery => settings.disabled_delivery = old.disabled_delivery,
            Field::DisplayName => settings.display_name = old.display_name.clone(),
            Field::Extra => settings.extra = old.extra.clone(),
            Field::Protocols => settings.protocols = old.protocols.clone(),
            Field::Quota => settings.quota = old.quota,
            Field::Template => settings.template = old.template.clone(),
            // Sets and the address are kept where they are worked out.
            Field::Address | Field::Aliases | Field::Tags => {}
        }
    }
    settings
}

/// What a mailbox of this address gets from a template alone, for a local account.
pub(super) fn from_template(
    rules: &Rules,
    address: &Address,
    name: &str,
) -> Result<Desired, Refusal> {
    let template = rules.template(name).ok_or(Refusal::NoTemplate)?;
    if !address.is_safe_in_path() {
        return Err(Refusal::BadAddress(cut(address.as_str())));
    }
    let bad = |UnsafeValue| Refusal::BadAddress(cut(address.as_str()));
    let filling = Filling { address, id: "" };
    let alias = |text: &String| {
        let filled = filling.fill(text, Percent::Keep).map_err(bad)?;
        let alias =
            Address::parse(&filled, rules.names.case).map_err(|_| Refusal::BadAddress(filled))?;
        Ok(alias)
    };
    let field = |(name, text): (&String, &String)| {
        let filled = filling.fill(text, Percent::Double).map_err(bad)?;
        Ok((name.as_str().into(), filled.into()))
    };
    let mut aliases = template.aliases.iter().map(alias).collect::<Result<BTreeSet<_>, _>>()?;
    aliases.remove(address);
    Ok(Desired {
        address: address.clone(),
        settings: Settings {
            template: Arc::clone(&template.name),
            display_name: Box::default(),
            quota: template.quota.0.min(MAX_QUOTA),
            protocols: template.words.clone(),
            active: template.active,
            disabled_delivery: template.disabled_delivery,
            extra: template.extra.iter().map(field).collect::<Result<_, _>>()?,
        },
        aliases,
        tags: template.tags.iter().map(|tag| cut(tag.trim()).into()).collect(),
        place: place(template, filling)?,
        misfits: BTreeSet::new(),
    })
}

fn place(template: &Template, filling: Filling<'_>) -> Result<Place, Refusal> {
    let home = filling
        .fill(&template.home, Percent::Keep)
        .map_err(|UnsafeValue| Refusal::BadAddress(cut(filling.address.as_str())))?;
    Ok(Place { home: home.into(), uid: template.uid, gid: template.gid })
}

/// What stands before the `:` of a proxy address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    /// X500:, sip: …: no mail address.
    Foreign,
    /// Nothing, or `smtp:`.
    None,
    /// `SMTP:`, Active Directory's mark of the primary address.
    Primary,
}

fn split_mark(text: &str) -> (Mark, &str) {
    match text.split_once(':') {
        Some(("SMTP", rest)) => (Mark::Primary, rest),
        Some((prefix, rest)) if prefix.eq_ignore_ascii_case("smtp") => (Mark::None, rest),
        Some((prefix, _))
            if !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_alphanumeric()) =>
        {
            (Mark::Foreign, text)
        }
        _ => (Mark::None, text),
    }
}

fn transformed(text: &str, mapping: &Mapping) -> String {
    match &mapping.transform {
        Some(Transform::Lower) => text.to_lowercase(),
        Some(Transform::Trim) => text.trim().to_owned(),
        Some(Transform::StripPrefix(prefix)) => {
            text.strip_prefix(prefix.as_str()).unwrap_or(text).to_owned()
        }
        Some(Transform::Bytes(_)) | None => text.to_owned(),
    }
}

fn bytes(text: &str, mapping: &Mapping) -> Option<u64> {
    match mapping.transform {
        Some(Transform::Bytes(unit)) => text.trim().parse::<u64>().ok()?.checked_mul(unit),
        _ => text.parse::<ByteSize>().ok().map(|size| size.0),
    }
}

/// The first [`MAX_TEXT`] letters.
fn cut(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}
