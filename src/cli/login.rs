//! `gatepost login test`: a login as a door would try it, but nothing is written and nothing remembered.

use std::net::IpAddr;

use clap::Subcommand;

use super::diagnosis::Diagnosis;
use super::explain::{Case, unless_denied};
use super::{Context, Exit, Stopped};
use crate::auth::Reason;
use crate::clock;
use crate::directory::{Answer, Lock, Question, Share};
use crate::secret::Password;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Try a login: the directory is really asked, nothing is written. The password comes from standard input or a prompt
    Test {
        /// The name as somebody would type it
        user: String,
        /// The protocol
        #[arg(long, default_value = "imap")]
        protocol: String,
        /// Read the password from standard input even if that is a terminal
        #[arg(long)]
        password_stdin: bool,
        /// Where they would come from: what the guessing shield has on this address and its net is told too
        #[arg(long, value_name = "ADDRESS")]
        client: Option<IpAddr>,
    },
}

pub(super) async fn run(context: &Context, command: &Command) -> Result<Exit, Stopped> {
    let Command::Test { user, protocol, password_stdin, client } = command;
    let password = if *password_stdin {
        super::output::read_line()
    } else {
        context.output.password(&format!("password of {user}: "))
    };
    let password = Password::new(password.map_err(|error| {
        Stopped::new(Exit::Failure, format!("cannot read the password: {error}"))
    })?);
    let mut diagnosis = Diagnosis::default();
    let exit = match Case::open(context, user, protocol, &mut diagnosis).await? {
        Ok(case) => {
            let is_denied = case.shield((user, *client), protocol, &mut diagnosis).await;
            let exit = test(&case, &password, &mut diagnosis).await?;
            unless_denied(exit, is_denied, &mut diagnosis)
        }
        Err(exit) => exit,
    };
    context.output.print(&diagnosis, Diagnosis::text);
    Ok(exit)
}

async fn test(
    case: &Case<'_>,
    password: &Password,
    diagnosis: &mut Diagnosis,
) -> Result<Exit, Stopped> {
    if !password.is_well_formed() {
        diagnosis.bad("password", Reason::BadPasswordForm.explanation());
        return Ok(diagnosis.refuse(Reason::BadPasswordForm.as_str()));
    }
    let route = case.route(diagnosis).await?;
    if let Some(mailbox) = route.local() {
        return case.judge_here(mailbox, Some(password), diagnosis).await;
    }
    if let Some(exit) = route.nobody_to_ask(diagnosis) {
        return Ok(exit);
    }
    for profile in &route.profiles {
        let question = Question {
            login: &case.login,
            password,
            known: None,
            vouched: None,
            linked: route.linked(),
            share: Share::Known,
            leave: None,
            deadline: clock::now() + case.context.timeout,
        };
        match profile.ask(question).await {
            Answer::Accepted { person, .. } => {
                diagnosis.good("bind", format!("{} at {}", person.dn, profile.name()));
                return case.judge(&person, route.stored.as_ref(), diagnosis).await;
            }
            Answer::Absent => {
                diagnosis.bad(
                    "entry",
                    format!("directory {} knows nobody of that name", profile.name()),
                );
            }
            answer => return Ok(say(&answer, diagnosis)),
        }
    }
    Ok(diagnosis.refuse(Reason::Unknown.as_str()))
}

/// Every answer that ends the test but "accepted".
fn say(answer: &Answer, diagnosis: &mut Diagnosis) -> Exit {
    let refused = |diagnosis: &mut Diagnosis, reason: Reason| {
        diagnosis.bad("bind", reason.explanation());
        diagnosis.refuse(reason.as_str())
    };
    match answer {
        Answer::Wrong { .. } => refused(diagnosis, Reason::WrongPassword),
        Answer::Disabled { .. } => refused(diagnosis, Reason::Disabled),
        Answer::Expired { .. } => refused(diagnosis, Reason::PasswordExpired),
        Answer::MustChange { .. } => refused(diagnosis, Reason::MustChange),
        Answer::Locked { lock: Lock::Locked, .. } => refused(diagnosis, Reason::Locked),
        Answer::Locked { lock: Lock::NotNow, .. } => refused(diagnosis, Reason::NotNow),
        Answer::Ambiguous { dns } => {
            diagnosis.bad("entry", format!("several entries: {}", dns.join(" and ")));
            diagnosis.refuse(Reason::Ambiguous.as_str())
        }
        Answer::Ours { detail } | Answer::Odd { detail } => {
            diagnosis.bad("directory", detail.clone());
            diagnosis.later(Reason::DirectoryMisconfigured.as_str())
        }
        Answer::Trouble(trouble) => {
            diagnosis.bad("directory", trouble.detail.clone());
            diagnosis.later(Reason::DirectoryUnavailable.as_str())
        }
        // Nobody counts these binds.
        Answer::Withheld { .. } => diagnosis.later(Reason::BudgetSpent.as_str()),
        Answer::Absent | Answer::Accepted { .. } => diagnosis.refuse(Reason::Unknown.as_str()),
    }
}
