//! What an AUTH line says.

use std::borrow::Cow;
use std::net::IpAddr;

use super::auth::ProtocolError;
use super::line::{key_value, text};
use crate::proto::sasl::{Credentials, Mechanism};
use crate::proto::service;

/// Text fields are kept while a client is prompted, so they are cut to this length, in bytes.
const MAX_TEXT_BYTES: usize = 256;

/// Someone wants in.
#[derive(Debug)]
pub struct AuthRequest {
    /// The client's number for it.
    pub id: u32,
    /// How the credentials came.
    pub mechanism: Mechanism,
    /// What for: imap, smtp …, as the client says it. At most 256 bytes.
    pub service: Cow<'static, str>,
    /// Name and password.
    pub credentials: Credentials,
    /// The address of the person's client, where it is known.
    pub client: Option<IpAddr>,
    /// The mail server's session id. At most 256 bytes.
    pub session: Option<Box<str>>,
    /// The transport to the person's client is secure.
    pub secured: bool,
    /// The client will not claim the login over the master protocol.
    pub nologin: bool,
    /// The answer must not be delayed.
    pub no_penalty: bool,
}

/// What an AUTH line says besides id and credentials.
#[derive(Debug)]
pub(super) struct Context {
    mechanism: Mechanism,
    service: Cow<'static, str>,
    client: Option<IpAddr>,
    session: Option<Box<str>>,
    secured: bool,
    nologin: bool,
    no_penalty: bool,
}

impl Context {
    /// Reads the fields of an AUTH line after the mechanism; also returns what resp= holds. Unknown fields are
    /// ignored.
    pub(super) fn parse<'l>(
        mechanism: Mechanism,
        fields: impl Iterator<Item = &'l [u8]>,
    ) -> Result<(Self, Option<&'l [u8]>), ProtocolError> {
        let (mut service, mut response) = (None, None);
        let mut context = Self {
            mechanism,
            service: Cow::default(),
            client: None,
            session: None,
            secured: false,
            nologin: false,
            no_penalty: false,
        };
        for field in fields {
            if response.is_some() {
                return Err(ProtocolError::FieldsAfterResponse);
            }
            let (key, value) = key_value(field);
            match key {
                // Dovecot 2.3, Postfix and Exim say service=, Dovecot 2.4 says protocol=.
                b"service" | b"protocol" => service = Some(service::name(value, MAX_TEXT_BYTES)),
                b"rip" => context.client = address(value),
                b"session" => context.session = Some(text(value, MAX_TEXT_BYTES)),
                b"secured" => context.secured = true,
                b"nologin" => context.nologin = true,
                b"no-penalty" => context.no_penalty = true,
                b"resp" => response = Some(value),
                _ => {}
            }
        }
        context.session = context.session.filter(|id| !id.is_empty());
        context.service =
            service.filter(|name| !name.is_empty()).ok_or(ProtocolError::MissingService)?;
        Ok((context, response))
    }

    pub(super) fn into_request(self, id: u32, credentials: Credentials) -> AuthRequest {
        let Self { mechanism, service, client, session, secured, nologin, no_penalty } = self;
        AuthRequest {
            id,
            mechanism,
            service,
            credentials,
            client,
            session,
            secured,
            nologin,
            no_penalty,
        }
    }
}

/// An address that cannot be read counts as not said: Exim sends `NULL` for one it does not know.
fn address(value: &[u8]) -> Option<IpAddr> {
    let address: IpAddr = std::str::from_utf8(value).ok()?.parse().ok()?;
    Some(address.to_canonical())
}
