//! `gatepost profile test`.

use clap::Subcommand;

use super::diagnosis::Diagnosis;
use super::{Context, Exit, Stopped};
use crate::directory::{Hosts, StepOutcome};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Try a directory step by step: names, TCP, TLS, bind, bases, filters, id attribute; writes nothing
    Test {
        /// The name of a `[directory.NAME]` table
        name: String,
        /// Every host, not only the preferred one
        #[arg(long)]
        all_hosts: bool,
    },
}

pub(super) async fn run(context: &Context, command: &Command) -> Result<Exit, Stopped> {
    let Command::Test { name, all_hosts } = command;
    let loaded = context.load()?;
    let directories = context.directories(&loaded)?;
    let Some(profile) = directories.profile(name) else {
        let message = format!("no enabled [directory.{name}] in the configuration");
        return Err(Stopped::new(Exit::NotFound, message));
    };
    let hosts = if *all_hosts { Hosts::All } else { Hosts::First };
    let mut diagnosis = Diagnosis::default();
    let mut failed = false;
    for step in profile.test(hosts).await {
        let detail = format!("{} ({:.1} ms)", step.detail, step.took.as_secs_f64() * 1e3);
        match step.outcome {
            StepOutcome::Passed => diagnosis.good(&step.name, detail),
            StepOutcome::Failed => {
                failed = true;
                diagnosis.bad(&step.name, detail);
            }
            StepOutcome::Skipped => diagnosis.note(&step.name, step.detail),
        }
    }
    context.output.print(&diagnosis, Diagnosis::text);
    Ok(if failed { Exit::Unreachable } else { Exit::Done })
}
