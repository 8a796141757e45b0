//! `gatepost explain`: route, filter, entry, mapping, template, limits, mailbox, memory: why a login would work or not.

use clap::Args;

use super::diagnosis::Diagnosis;
use super::{Context, Exit, Stopped, remote};
use crate::auth::{Reason, Service, objection, refusal_reason};
use crate::clock;
use crate::directory::{Directories, Finding, Profile, Share, Wanted};
use crate::identity::Login;
use crate::person::{AccountState, Person};
use crate::provision::{self, Rules};
use crate::store::{Mailbox, Store};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The name as somebody would type it
    user: String,
    /// The protocol they would use
    #[arg(long, default_value = "imap")]
    protocol: String,
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
        let names = crate::auth::login_rules(&loaded.config.login);
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
    pub(super) async fn route(
        &self,
        diagnosis: &mut Diagnosis,
    ) -> Result<(Vec<std::sync::Arc<Profile>>, Option<Mailbox>), Stopped> {
        let stored = self
            .store
            .owner(&self.login.address)
            .await
            .map_err(|error| Stopped::new(Exit::Unreachable, format!("store: {error}")))?;
        if let Some(mailbox) = &stored
            && let Some(link) = &mailbox.link
        {
            let text = format!(
                "{} (template {}) is linked to {} {}",
                mailbox.address, mailbox.settings.template, link.profile, link.id
            );
            diagnosis.note("mailbox", text);
            let profile = self.directories.profile(&link.profile).cloned();
            if profile.is_none() {
                diagnosis.bad("route", format!("directory {} is not configured", link.profile));
            } else {
                diagnosis.good("route", format!("directory {} (the mailbox's own)", link.profile));
            }
            return Ok((profile.into_iter().collect(), stored));
        }
        let domain = self.login.address.domain();
        let route = self.directories.route(domain).to_vec();
        let names: Vec<_> = route.iter().map(|profile| profile.name().to_string()).collect();
        if names.is_empty() {
            diagnosis.bad("route", format!("no directory answers for {domain}"));
        } else {
            diagnosis.good("route", format!("{domain} is asked at {}", names.join(", ")));
        }
        Ok((route, stored))
    }

    /// What would become of the mailbox, and whether it could be used.
    pub(super) async fn judge(
        &self,
        person: &Person,
        diagnosis: &mut Diagnosis,
    ) -> Result<Exit, Stopped> {
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
        Ok(match objection(&plan.mailbox, self.service) {
            Some(reason) => {
                diagnosis.bad("access", reason.explanation());
                diagnosis.refuse(reason.as_str())
            }
            None => {
                diagnosis.good("access", format!("{} is allowed", self.service.as_str()));
                diagnosis.accept()
            }
        })
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
    let (route, stored) = case.route(diagnosis).await?;
    if let Some(exit) = nobody_to_ask(&route, stored.as_ref(), diagnosis) {
        return Ok(exit);
    }
    let linked = stored.and_then(|mailbox| mailbox.link).map(|link| link.id);
    for profile in route {
        match entry(&case, &profile, linked.as_deref(), diagnosis).await {
            Entry::Found(person) => {
                if let Some(exit) = standing(&person, diagnosis) {
                    return Ok(exit);
                }
                return case.judge(&person, diagnosis).await;
            }
            Entry::Ended(exit) => return Ok(exit),
            Entry::None => {}
        }
    }
    Ok(diagnosis.refuse(Reason::Unknown.as_str()))
}

/// The verdict where no directory can be asked: for a mailbox whose directory is missing nobody can say.
pub(super) fn nobody_to_ask(
    route: &[std::sync::Arc<Profile>],
    stored: Option<&Mailbox>,
    diagnosis: &mut Diagnosis,
) -> Option<Exit> {
    if !route.is_empty() {
        return None;
    }
    let is_linked = stored.is_some_and(|mailbox| mailbox.link.is_some());
    Some(if is_linked {
        diagnosis.later(Reason::DirectoryMisconfigured.as_str())
    } else {
        diagnosis.refuse(Reason::Unknown.as_str())
    })
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
                let shown = values.iter().take(5).map(|value| shown_value(value));
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
