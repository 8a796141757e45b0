//! Stands in for Dovecot's own auth process: `service auth { executable = …/gatepost-dovecot-auth }`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use gatepost::shim::{self, Invocation};

/// Hands the sockets of Dovecot's auth service to the gatepost daemon. Dovecot's master starts it.
#[derive(Parser)]
#[command(name = "gatepost-dovecot-auth", version)]
struct Arguments {
    /// The socket of the daemon's door with `protocol = "dovecot"`.
    #[arg(default_value = "/run/gatepost/dovecot")]
    socket: PathBuf,
    /// The user the daemon runs as; root is believed as well.
    #[arg(long, value_name = "NAME", default_value = "gatepost")]
    daemon_user: String,
}

fn main() -> ExitCode {
    let Arguments { socket, daemon_user } = Arguments::parse();
    let invocation = Invocation::from_environment(&|name| std::env::var_os(name));
    match invocation.and_then(|invocation| shim::run(&invocation, &socket, &daemon_user)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            shim::complain(&error);
            ExitCode::FAILURE
        }
    }
}
