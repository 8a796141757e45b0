//! The wire formats: bytes to values and back. Pure: no socket, no clock, no module of ours but [`crate::secret`]
//! and `decimal`.
//!
//! Every parser is bounded: a length is checked before anything of that length is kept.

pub mod auth_policy;
pub mod checkpassword;
pub mod dovecot;
pub mod handover;
pub mod haproxy;
pub mod http;
pub mod json;
pub mod json_login;
pub mod mailcow;
pub mod nauthilus;
pub mod nginx;
pub mod postfix;
pub mod sasl;
pub mod saslauthd;
mod service;

#[cfg(test)]
mod dialogues;
