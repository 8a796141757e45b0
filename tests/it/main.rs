//! Integration tests: the daemon and its shim between real Dovecot, Postfix and slapd.
//!
//! `tests/run` installs what they need. Each test starts its own servers (`support`), so all can run at once.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

mod auth_policy;
mod checkpassword;
mod configured;
mod contrib;
mod grace;
mod handover;
mod peers;
mod postfix_mail;
mod postfix_maps;

mod main_job;

mod cyrus_exim;
mod dialogues;
mod directory_changes;
mod door_table;
mod dovecot24;
mod dovecot_ways;
mod feeds;
mod hostile;
mod http_doors;
mod local_accounts;
mod nodes;
mod outage_table;
mod outages;
mod policy;
mod proxy;
mod service;
mod shield;
mod shim;
mod storm;
mod turmoil;
mod under_load;
