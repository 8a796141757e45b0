//! The `gatepost` binary: arguments → command → exit code.

use std::process::ExitCode;

use clap::Parser;
use gatepost::cli::{self, Arguments};

fn main() -> ExitCode {
    // A core dump would hold passwords.
    if let Err(error) =
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
    {
        tracing::warn!(%error, "core dumps cannot be switched off");
    }
    cli::run(Arguments::parse())
}
