//! The load client of `benches/load/run`: how fast is a server that speaks Dovecot's auth client protocol?
//!
//! `load drive` logs people in over any number of connections, each with a fixed number of requests in flight, checks
//! every answer and prints one line of figures; `load floor` is a server that answers OK without any work, the
//! least that framing and sockets cost; `load report` makes the table.
#![expect(clippy::print_stdout, reason = "a program for the command line")]
#![expect(clippy::disallowed_methods, reason = "it measures time")]

mod client;
mod figures;
mod floor;
mod processes;
mod report;

use std::io::Read;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve OK to everybody
    Floor {
        /// The unix socket to listen at
        socket: PathBuf,
    },
    /// Log people in and print the figures as one line
    Drive(client::Plan),
    /// Make a table of figures on standard input
    Report,
    /// Print the resident memory of a process and its descendants, in KiB
    Memory {
        /// The process
        pid: u32,
    },
}

#[derive(Debug, Parser)]
#[command(about = "Load client; benches/load/run does the whole comparison")]
struct Arguments {
    /// Said by `cargo bench` to every bench
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Some(Command::Floor { socket }) => floor::serve(&socket),
        Some(Command::Drive(plan)) => {
            println!("{}", client::drive(&plan)?);
            Ok(())
        }
        Some(Command::Report) => {
            let mut lines = String::new();
            std::io::stdin().read_to_string(&mut lines)?;
            print!("{}", report::table(&lines)?);
            Ok(())
        }
        Some(Command::Memory { pid }) => {
            println!("{}", processes::Tree::of(pid)?.resident_kib()?);
            Ok(())
        }
        None => {
            println!("benches/load/run compares Gatepost with Dovecot's own auth");
            Ok(())
        }
    }
}
