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

mod checkpassword;
mod configured;
mod handover;
mod peers;

mod main_job;

mod dialogues;
mod directory_changes;
mod door_table;
mod dovecot24;
mod dovecot_ways;
mod hostile;
mod local_accounts;
mod outages;
mod shim;
mod storm;
