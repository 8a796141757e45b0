//! Gatepost stands between mail servers and the company directory: "may this person in?" is answered from memory where
//! it can be, by LDAP where it must be, and the mailbox is made at the first login.
//!
//! Read the modules in the order in which they stand here.
//!
//! The words that everything else speaks: [`identity`] (logins, addresses, domains), [`secret`] (passwords that cannot
//! be printed), [`person`] (the directory's record of someone), [`clock`] (the one reader of time), [`metrics`].
//!
//! The core, [`auth`]: an attempt comes in, a verdict of three values goes out. It asks [`directory`] (LDAP: who is
//! this, and is this their password?), lets [`provision`] make or update the mailbox, and keeps what it learned in a
//! memory of its own. [`store`] is the database of mailboxes. [`throttle`] counts who guesses.
//!
//! The way in: [`proto`] turns bytes into requests and answers into bytes, and touches nothing else. [`server`] owns the
//! sockets and is the one place that knows both a protocol and the core. [`shim`] is the small program that Dovecot
//! starts in the place of its own auth process, [`checkpassword`] the one that a mail server starts for each login; both
//! live from what they are left ([`inherited`]) and look whom they talk to ([`trust`]).
//!
//! Around it: [`config`] (a setting is one field of one struct), [`logging`], and [`cli`], the commands.
//!
//! docs/ARCHITECTURE.md has the arrows between them, the promises they keep, and the way of one login.

// The words that everything else speaks.
pub mod identity;
pub mod person;
pub mod secret;
pub mod service;

mod cache;
pub mod clock;
mod decimal;
pub mod metrics;
pub mod seldom;

// The core, and whom it asks.
pub mod auth;
pub mod directory;
pub mod lookup;
pub mod provision;
pub mod store;
pub mod throttle;

// The way in.
pub mod checkpassword;
pub mod inherited;
pub mod proto;
pub mod server;
pub mod shim;
pub mod trust;

// Around it.
pub mod config;
pub mod logging;

pub mod cli;
