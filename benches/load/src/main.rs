//! The load client of `benches/load/run`: what does a login cost, at Gatepost and at those who do the same?
//!
//! `compare` starts the servers on one slapd, drives them in turn and checks every answer; a wrong one ends the run.
//! `floor` is a server that answers OK without any work, the least that framing and sockets cost.
#![expect(clippy::disallowed_methods, reason = "it measures time")]

mod chart;
mod checkpassword;
mod client;
mod compare;
mod connection;
mod figures;
mod floor;
mod ldap;
mod people;
mod processes;
mod report;
mod site;
mod storm;
mod targets;
mod wire;

use clap::{Parser, Subcommand};

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure Gatepost beside its peers and print the tables
    Compare(compare::Options),
    /// Serve OK to everybody
    #[command(hide = true)]
    Floor {
        /// What is spoken
        protocol: wire::Protocol,
        /// The address or unix socket to listen at
        socket: String,
    },
    /// Start a program for each login and print how long that takes
    #[command(hide = true)]
    StartPrograms(checkpassword::Started),
}

#[derive(Debug, Parser)]
#[command(bin_name = "benches/load/run", about = "Measures Gatepost beside its peers")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Compare(options) => {
            let write_docs = options.write_docs;
            let compare = compare::run(options)?;
            let text = report::text(&compare)?;
            println!("{text}");
            if write_docs {
                report::write_docs(&text, &chart::svg(&compare.figures))?;
            }
            Ok(())
        }
        Command::StartPrograms(started) => {
            println!("{}", checkpassword::start_programs(&started)?);
            Ok(())
        }
        Command::Floor { protocol, socket } => floor::serve(protocol, &socket),
    }
}
