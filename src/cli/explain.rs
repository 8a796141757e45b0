//! `gatepost explain`: route, filter, entry, mapping, template, limits, mailbox, memory: why a login would work or not.

use std::net::IpAddr;

use clap::Args;

use super::diagnosis::Diagnosis;
use super::{Context, Exit, Stopped, policy, remote};
use crate::auth::password::{self, Checked};
use crate::auth::{Reason, Service, objection, refusal_reason};
use crate::clock;
use crate::directory::{Directories, Finding, Profile, Share, Wanted};
use crate::identity::Login;
use crate::person::{AccountState, Person};
use crate::provision::{self, Rules};
use crate::secret::Password;
use crate::store::{Mailbox, Provider, Store};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The name as somebody would type it
    user: String,
    /// The protocol they would use
    #[arg(long, default_value = "imap")]
    protocol: String,
    /// Where they would come from: what the guessing shield has on this address and its net is told too
    #[arg(long, value_name = "ADDRESS")]
    client: Option<IpAddr>,
}

/// What a diagnosis works with.
pub(super) struct Case<'a> {
    pub(super) context: &'a Context,
    pub(super) directories: Directories,
    pub(super) rules: Rules,
    pub(super) store: Store,
    pub(super) login: Login,
    pub(super) service: Service,
    pub(super) control: std::path::PathBuf,
}

impl<'a> Case<'a> {
    /// Loads what is needed; a name that is no login ends here, with its step and verdict.
    pub(super) async fn open(
        context: &'a Context,
        user: &str,
        protocol: &str,
        diagnosis: &mut Diagnosis,
    ) -> Result<Result<Self, Exit>, Stopped> {
        let loaded = context.load()?;
        let Some(service) = Service::parse(protocol) else {
            let message = format!("--protocol {protocol}: expected imap, pop3, smtp, sieve or dav");
            return Err(Stopped::new(Exit::Configuration, message));
        };
        let names = loaded.config.names();
        let login = match Login::parse(user.as_bytes(), &names) {
            Ok(login) => login,
            Err(error) => {
                diagnosis.bad("name", error.to_string());
                return Ok(Err(diagnosis.refuse(Reason::BadName.as_str())));
            }
        };
        diagnosis.good("name", format!("{user:?} is {}", login.address));
        let directories = context.directories(&loaded)?;
        let rules = Rules::new(&loaded.config);
        let store = context.store(&loaded).await?;
        let control = context.control(&loaded).to_owned();
        Ok(Ok(Self { context, directories, rules, store, login, service, control }))
    }

    /// The directories that would be asked, in order, as a login would find them out.
    pub(super) async fn route(&self, diagnosis: &mut Diagnosis) -> Result<Route, Stopped> {
        let stored = self
            .store
            .owner(&self.login.address)
            .await
            .map_err(|error| Stopped::new(Exit::Unreachable, format!("store: {error}")))?;
        if let Some(mailbox) = &stored {
            let link = mailbox.link.as_ref();
            let linked = link
                .map_or(String::new(), |link| format!(", linked to {} {}", link.profile, link.id));
            let template = &mailbox.settings.template;
            diagnosis.note("mailbox", format!("{} (template {template}){linked}", mailbox.address));
        }
        if let Some(Provider::Directory(name)) = stored.as_ref().map(|mailbox| &mailbox.provider) {
            let profile = self.directories.profile(name).cloned();
            if profile.as_ref().is_some_and(|profile| !profile.takes_logins()) {
                diagnosis.bad("route", format!("directory {name} takes no logins (auth.enabled)"));
                return Ok(Route { profiles: Vec::new(), stored, refused: true });
            }
            if profile.is_none() {
                diagnosis.bad("route", format!("directory {name} is not configured"));
            } else {
                diagnosis.good("route", format!("directory {name} (the mailbox's own)"));
            }
            return Ok(Route { profiles: profile.into_iter().collect(), stored, refused: false });
        }
        if stored.is_some() {
            diagnosis.good("route", "checked here (provider local); no directory is asked");
            return Ok(Route { profiles: Vec::new(), stored, refused: true });
        }
        let domain = self.login.address.domain();
        let route = self.directories.route(domain).to_vec();
        let names: Vec<_> = route.iter().map(|profile| profile.name().to_string()).collect();
        if names.is_empty() {
            diagnosis.bad("route", format!("no directory answers for {domain}"));
        } else {
            diagnosis.good("route", format!("{domain} is asked at {}", names.join(", ")));
        }
        Ok(Route { profiles: route, stored, refused: false })
    }

    /// The verdict on a mailbox whose password is checked here. Without a password: could there be a login at all?
    pub(super) async fn judge_here(
        &self,
        mailbox: &Mailbox,
        password: Option<&Password>,
        diagnosis: &mut Diagnosis,
    ) -> Result<Exit, Stopped> {
        let unreachable = |error| Stopped::new(Exit::Unreachable, format!("store: {error}"));
        let Some(hash) = self.store.password_hash(mailbox.id).await.map_err(unreachable)? else {
            diagnosis.bad("password", "it has none: gatepost mailbox set-password");
            return Ok(diagnosis.refuse(Reason::NoPassword.as_str()));
        };
        let checked = password.map(|password| password::check(hash.expose(), password));
        match checked.transpose() {
            Ok(Some(Checked::Wrong)) => {
                diagnosis.bad("password", Reason::WrongPassword.explanation());
                return Ok(diagnosis.refuse(Reason::WrongPassword.as_str()));
            }
            Ok(Some(Checked::Right)) => diagnosis.good("password", "right"),
            Ok(None) => diagnosis.good("password", "it has one"),
            Err(error) => {
                diagnosis.bad("password", error.to_string());
                return Ok(diagnosis.later(Reason::Internal.as_str()));
            }
        }
        Ok(self.access(mailbox, diagnosis))
    }

    /// May it be used?
    fn access(&self, mailbox: &Mailbox, diagnosis: &mut Diagnosis) -> Exit {
        match objection(mailbox, self.service) {
            Some(reason) => {
                diagnosis.bad("access", reason.explanation());
                diagnosis.refuse(reason.as_str())
            }
            None => {
                diagnosis.good("access", format!("{} is allowed", self.service.as_str()));
                diagnosis.accept()
            }
        }
    }

    /// What would become of the mailbox, and whether it could be used.
    pub(super) async fn judge(
        &self,
        person: &Person,
        stored: Option<&Mailbox>,
        diagnosis: &mut Diagnosis,
    ) -> Result<Exit, Stopped> {
        if let Some(link) = stored.and_then(|mailbox| mailbox.link.as_ref())
            && (*link.profile != *person.profile || link.id != person.id)
        {
            let text = format!("the mailbox was made for {} {}", link.profile, link.id);
            diagnosis.bad("identity", text);
            return Ok(diagnosis.refuse(Reason::IdChanged.as_str()));
        }
        let choice = self.rules.choose(person);
        diagnosis.note("template", choice.to_string());
        let protocol = self.service.protocol();
        let (stored, plan) =
            provision::preview(&self.store, &self.rules, person, protocol)
                .await
                .map_err(|error| Stopped::new(Exit::Unreachable, format!("store: {error}")))?;
        let plan = match plan {
            Ok(plan) => plan,
            Err(refusal) => {
                diagnosis.bad("limits", refusal.to_string());
                return Ok(diagnosis.refuse(refusal_reason(&refusal).as_str()));
            }
        };
        let what = if stored.is_some() { "would be updated" } else { "would be created" };
        if plan.changes.is_empty() {
            diagnosis.good("mailbox", format!("{} is as it should be", plan.mailbox.address));
        } else {
            let changes: Vec<_> = plan.changes.iter().map(ToString::to_string).collect();
            let text = format!("{} {what}: {}", plan.mailbox.address, changes.join("; "));
            diagnosis.good("mailbox", text);
        }
        for report in &plan.reports {
            diagnosis.note("report", report.to_string());
        }
        Ok(self.access(&plan.mailbox, diagnosis))
    }
}

impl Case<'_> {
    /// What the guessing shield of the running daemon would do; whether it would deny.
    pub(super) async fn shield(
        &self,
        (user, client): (&str, Option<IpAddr>),
        protocol: &str,
        diagnosis: &mut Diagnosis,
    ) -> bool {
        let view = policy::view(self.context, &self.control, (user, client), protocol).await;
        if view.goes_on {
            diagnosis.note("shield", view.words);
        } else {
            diagnosis.bad("shield", view.words);
        }
        view.is_denied
    }
}

/// A login that would work, but is not let try, is refused.
pub(super) fn unless_denied(exit: Exit, is_denied: bool, diagnosis: &mut Diagnosis) -> Exit {
    match exit {
        Exit::Done if is_denied => diagnosis.refuse(Reason::Throttled.as_str()),
        exit => exit,
    }
}

pub(super) async fn run(context: &Context, arguments: &Arguments) -> Result<Exit, Stopped> {
    let mut diagnosis = Diagnosis::default();
    let exit = explain(context, arguments, &mut diagnosis).await?;
    context.output.print(&diagnosis, Diagnosis::text);
    Ok(exit)
}

async fn explain(
    context: &Context,
    arguments: &Arguments,
    diagnosis: &mut Diagnosis,
) -> Result<Exit, Stopped> {
    let case = match Case::open(context, &arguments.user, &arguments.protocol, diagnosis).await? {
        Ok(case) => case,
        Err(exit) => return Ok(exit),
    };
    let remembered = remote::remembered(context, &case.control, &arguments.user).await;
    diagnosis.note("memory", remembered);
    let from = (arguments.user.as_str(), arguments.client);
    let is_denied = case.shield(from, &arguments.protocol, diagnosis).await;
    let exit = person(&case, diagnosis).await?;
    Ok(unless_denied(exit, is_denied, diagnosis))
}

/// Who it is, whether they may, and what would become of their mailbox.
async fn person(case: &Case<'_>, diagnosis: &mut Diagnosis) -> Result<Exit, Stopped> {
    let route = case.route(diagnosis).await?;
    if let Some(mailbox) = route.local() {
        return case.judge_here(mailbox, None, diagnosis).await;
    }
    if let Some(exit) = route.nobody_to_ask(diagnosis) {
        return Ok(exit);
    }
    let linked = route.linked();
    for profile in &route.profiles {
        match entry(case, profile, linked, diagnosis).await {
            Entry::Found(person) => {
                if let Some(exit) = standing(&person, diagnosis) {
                    return Ok(exit);
                }
                return case.judge(&person, route.stored.as_ref(), diagnosis).await;
            }
            Entry::Ended(exit) => return Ok(exit),
            Entry::None => {}
        }
    }
    Ok(diagnosis.refuse(Reason::Unknown.as_str()))
}

/// Who would be asked.
pub(super) struct Route {
    pub(super) profiles: Vec<std::sync::Arc<Profile>>,
    /// The mailbox that the name leads to.
    pub(super) stored: Option<Mailbox>,
    /// Its directory takes no logins.
    refused: bool,
}

impl Route {
    /// The mailbox, if its password is checked here.
    pub(super) fn local(&self) -> Option<&Mailbox> {
        self.stored.as_ref().filter(|mailbox| mailbox.provider == Provider::Local)
    }

    /// The id of the mailbox's entry.
    pub(super) fn linked(&self) -> Option<&str> {
        let link = self.stored.as_ref()?.link.as_ref()?;
        Some(&link.id)
    }

    /// The verdict where no directory can be asked: for a mailbox whose directory is missing nobody can say.
    pub(super) fn nobody_to_ask(&self, diagnosis: &mut Diagnosis) -> Option<Exit> {
        if !self.profiles.is_empty() {
            return None;
        }
        Some(if self.stored.is_some() && !self.refused {
            diagnosis.later(Reason::DirectoryMisconfigured.as_str())
        } else {
            diagnosis.refuse(Reason::Unknown.as_str())
        })
    }
}

enum Entry {
    Found(Box<Person>),
    None,
    Ended(Exit),
}

/// The one entry that a login would find.
async fn entry(
    case: &Case<'_>,
    profile: &std::sync::Arc<Profile>,
    linked: Option<&str>,
    diagnosis: &mut Diagnosis,
) -> Entry {
    let deadline = clock::now() + case.context.timeout;
    let explained = profile.explain(&case.login, deadline).await;
    diagnosis.note("filter", explained.filter_used);
    let finding = match (explained.finding, linked) {
        (Finding::None, Some(id)) => {
            diagnosis.note("entry", format!("not found by name; by the id {id}:"));
            profile.find(Wanted::Id(id), Share::Known, deadline).await
        }
        (finding, _) => finding,
    };
    match finding {
        Finding::One(person) => {
            diagnosis.good("entry", format!("{} (id {})", person.dn, person.id));
            for (name, values) in person.attributes.iter() {
                let shown = values.take(5).map(shown_value);
                let shown = shown.collect::<Vec<_>>().join(", ");
                diagnosis.note("attribute", format!("{name}: {shown}"));
            }
            Entry::Found(Box::new(person))
        }
        Finding::None => {
            match explained.without_filter {
                Some(dn) => {
                    diagnosis.bad("entry", format!("{dn} is filtered out by the profile's filter"));
                }
                None => diagnosis.bad(
                    "entry",
                    format!("directory {} knows nobody of that name", profile.name()),
                ),
            }
            Entry::None
        }
        Finding::Ambiguous(dns) => {
            diagnosis.bad("entry", format!("several entries: {}", dns.join(" and ")));
            Entry::Ended(diagnosis.refuse(Reason::Ambiguous.as_str()))
        }
        Finding::Failed(trouble) => {
            diagnosis.bad("entry", trouble.to_string());
            Entry::Ended(diagnosis.later(Reason::DirectoryUnavailable.as_str()))
        }
    }
}

/// What the entry itself says against a login, before any bind.
fn standing(person: &Person, diagnosis: &mut Diagnosis) -> Option<Exit> {
    match person.state {
        AccountState::Active => {
            diagnosis.good("account", "active, as far as the entry tells");
            None
        }
        AccountState::Disabled => {
            diagnosis.bad("account", "disabled in the directory");
            Some(diagnosis.refuse(Reason::Disabled.as_str()))
        }
        AccountState::Locked => {
            // The mark may be older than the lock: only a bind can tell.
            diagnosis
                .note("account", "the entry shows a lock; if it still holds, the bind is refused");
            None
        }
    }
}

fn shown_value(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) if text.len() <= 120 && !text.chars().any(char::is_control) => text.to_owned(),
        _ => format!("({} bytes)", value.len()),
    }
}
