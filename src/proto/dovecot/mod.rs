//! Dovecot's auth protocols: tab-separated lines over a stream socket, spoken by Dovecot 2.3 and 2.4, Postfix and
//! Exim.
//!
//! `C:` is the mail server, `S:` is Gatepost; `→` is a TAB:
//!
//! ```text
//! S: VERSION→1→2
//! S: MECH→PLAIN→plaintext
//! S: MECH→LOGIN→plaintext
//! S: SPID→4242
//! S: CUID→7
//! S: COOKIE→000102030405060708090a0b0c0d0e0f
//! S: DONE
//! C: VERSION→1→2
//! C: CPID→977
//! C: AUTH→1→PLAIN→service=imap→secured→rip=192.0.2.9→resp=AGpvZQBzZWNyZXQ=
//! S: OK→1→user=joe@example.org
//! ```

pub mod auth;
pub mod dict;
pub mod line;
pub mod master;
mod reply;
mod request;
