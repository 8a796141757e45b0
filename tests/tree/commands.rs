//! docs/CLI.md is made from the command line's own help.

use std::fmt::Write;

use clap::{Arg, Command, CommandFactory};
use gatepost::cli::Arguments;

#[test]
fn verify_cli() {
    Arguments::command().debug_assert();
}

#[test]
fn the_page_of_commands_is_the_one_made_from_their_help() {
    let made = page();
    if std::env::var_os("GATEPOST_BLESS").is_some() {
        std::fs::write(super::root().join("docs/CLI.md"), &made).unwrap();
    }
    let stands = super::read("docs/CLI.md");
    assert!(
        stands == made,
        "docs/CLI.md is old: GATEPOST_BLESS=1 cargo test --test tree rewrites it"
    );
}

const HEAD: &str = "\
# Command line

Made from the commands' own help: `GATEPOST_BLESS=1 cargo test --test tree` rewrites it.

A command that concerns a running daemon reaches it by the control socket (`node.control`), as root or as the daemon's
user. `mailbox` works on the store where no daemon runs. Passwords come from standard input or a prompt, never from an
argument.

These options go with every command:

";

const FOOT: &str = "
The numbers between are kept for commands to come.

`explain` and `login test` end with 0 when the login would work, 7 when it would be refused, 4 when a directory or the
store cannot be asked. `profile test` ends with 0 when every step passed, else 4. `health` ends with 0 or 1. `reload`
ends with 2 when the new configuration is bad; the running one goes on. `policy remove` ends with 8 when there is no such
entry. No daemon where one is needed: 1.
";

fn page() -> String {
    let mut gatepost = Arguments::command();
    gatepost.build();
    let mut page = String::from(HEAD);
    options(&gatepost, &mut page, |argument| argument.is_global_set() || is_about(argument));
    page += "\n## Commands\n";
    commands(&gatepost, &mut page);
    page += "\n## Exit codes\n\n| code | meaning |\n|---|---|\n";
    for (code, meaning) in exit_codes() {
        writeln!(page, "| {code} | {meaning} |").unwrap();
    }
    page + FOOT
}

/// A heading for each command that can be run, with its subcommands below it.
fn commands(parent: &Command, page: &mut String) {
    for command in parent.get_subcommands().filter(|command| command.get_name() != "help") {
        if command.has_subcommands() {
            commands(command, page);
            continue;
        }
        let usage = command.clone().render_usage().to_string();
        let usage = usage.trim_start_matches("Usage: ").replace(" [OPTIONS]", "");
        let about = command.get_about().unwrap().to_string();
        write!(page, "\n### `{usage}`\n\n{about}.\n").unwrap();
        let mut own = String::new();
        options(command, &mut own, |argument| !argument.is_global_set() && !is_about(argument));
        if !own.is_empty() {
            write!(page, "\n{own}").unwrap();
        }
    }
}

fn options(command: &Command, page: &mut String, wanted: impl Fn(&Arg) -> bool) {
    for argument in command.get_arguments().filter(|argument| wanted(argument)) {
        let help = argument.get_help().unwrap().to_string();
        let defaults: Vec<_> =
            argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        let takes_value = argument.get_action().takes_values() && !defaults.is_empty();
        let default =
            if takes_value { format!(" (`{}`)", defaults.join(" ")) } else { String::new() };
        writeln!(page, "- `{argument}`: {help}{default}").unwrap();
    }
}

fn is_about(argument: &Arg) -> bool {
    matches!(argument.get_id().as_str(), "help" | "version")
}

/// From the documentation of `cli::Exit`: `/// 7: a login is, or would be, refused.`
fn exit_codes() -> Vec<(u8, String)> {
    let source = super::read("src/cli/mod.rs");
    let (_, variants) = source.split_once("pub enum Exit {").unwrap();
    let (variants, _) = variants.split_once("\n}").unwrap();
    let docs = variants.lines().filter_map(|line| line.trim().strip_prefix("/// "));
    docs.map(|line| {
        let (code, meaning) = line.split_once(": ").unwrap();
        (code.parse().unwrap(), meaning.trim_end_matches('.').to_owned())
    })
    .collect()
}
