//! `gatepost config check|show`.

use clap::Subcommand;
use serde::Serialize;

use super::{Context, Exit, Stopped};
use crate::config::{Loaded, dotted, show, show_json};
use crate::directory::preset;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Check the configuration; every problem with its key, file and what is expected
    Check,
    /// Show the settings that are in force and where each comes from; secrets are masked
    Show {
        /// Defaults and presets too, not only what is set
        #[arg(long)]
        effective: bool,
    },
}

#[derive(Serialize)]
struct Checked {
    problems: Vec<String>,
    notices: Vec<String>,
}

pub(super) fn run(context: &Context, command: &Command) -> Result<Exit, Stopped> {
    match command {
        Command::Check => Ok(check(context)),
        Command::Show { effective } => {
            let mut loaded = context.load()?;
            fill_presets(&mut loaded);
            let json = show_json(&loaded);
            context.output.print(&json, |_| {
                let text = show(&loaded);
                let is_set = |line: &&str| *effective || !line.ends_with("# default");
                text.lines().filter(is_set).collect::<Vec<_>>().join("\n")
            });
            Ok(Exit::Done)
        }
    }
}

/// What presets fill in is shown as what is in force.
fn fill_presets(loaded: &mut Loaded) {
    for (name, section) in loaded.config.directory.clone() {
        // A rule that cannot be read is `config check`'s affair.
        let Ok(identity) = preset::identity(&section) else { continue };
        let mut fill = |key: &str, value: serde_json::Value| {
            loaded.preset(&dotted(&["directory", &name, "identity", key]), value);
        };
        fill("id_attribute", identity.id_attribute.into());
        fill("id_format", serde_json::to_value(identity.id_format).unwrap_or_default());
        fill("login_attributes", identity.login_attributes.into());
        fill("disabled_rule", identity.disabled_rule.to_string().into());
    }
}

/// The same checks as at a start, those of the files that directories name included.
fn check(context: &Context) -> Exit {
    let loaded = match context.load() {
        Ok(loaded) => loaded,
        Err(stopped) => return report(context, vec![stopped.message], Vec::new()),
    };
    let notices = loaded.notices.iter().map(ToString::to_string).collect();
    match context.directories(&loaded) {
        Ok(_) => report(context, Vec::new(), notices),
        Err(stopped) => report(context, vec![stopped.message], notices),
    }
}

fn report(context: &Context, problems: Vec<String>, notices: Vec<String>) -> Exit {
    let exit = if problems.is_empty() { Exit::Done } else { Exit::Configuration };
    context.output.print(&Checked { problems, notices }, |checked| {
        let notices = checked.notices.iter().map(|notice| format!("notice: {notice}"));
        let mut lines: Vec<String> = checked.problems.iter().cloned().chain(notices).collect();
        if checked.problems.is_empty() {
            lines.push("configuration is good".into());
        }
        lines.join("\n")
    });
    exit
}
