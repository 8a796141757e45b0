//! One connection to the shared server, every answer bounded in time. What the server says is looked at before it is
//! believed, and no text of an error holds the password.

use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, IntoConnectionInfo as _, Pipeline,
    ProtocolVersion, RedisError, Value,
};

use crate::clock;
use crate::config::throttle::Shared as Settings;

/// The longest text of the server's that is shown.
const MAX_TEXT_BYTES: usize = 200;

/// Where the shared server is, and how to speak with it.
pub(super) struct Server {
    client: Client,
    timeout: Duration,
    prefix: String,
    /// What must not be shown.
    secrets: Vec<String>,
}

/// Why the shared server is of no use now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Trouble {
    /// It did not answer in time.
    #[error("no answer within {} ms", .0.as_millis())]
    Late(Duration),
    /// There is no connection, or no longer.
    #[error("{0}")]
    Lost(String),
    /// What it says makes no sense.
    #[error("its answer to {0} cannot be read")]
    Nonsense(&'static str),
    /// It does not let us do this.
    #[error("it refuses: {0}")]
    Refused(String),
}

impl Server {
    /// `None`: there is none, or its address cannot be read, which the check of the configuration refuses.
    pub(super) fn new(settings: &Settings) -> Option<Self> {
        if settings.url.is_empty() {
            return None;
        }
        let info = settings.url.expose().into_connection_info().ok()?;
        // Whatever the address says: answers have the shapes of this version.
        let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP2);
        let password = redis.password().map(str::to_owned);
        let client = Client::open(info.set_redis_settings(redis)).ok()?;
        let secrets = password.into_iter().chain([settings.url.expose().to_owned()]);
        Some(Self {
            secrets: secrets.filter(|secret| !secret.is_empty()).collect(),
            timeout: settings.timeout.0,
            prefix: settings.prefix.clone(),
            client,
        })
    }

    /// The server's address, without user and password.
    pub(super) fn address(&self) -> String {
        self.client.get_connection_info().addr().to_string()
    }

    /// A key of ours.
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}:{name}", self.prefix)
    }

    fn trouble(&self, error: &RedisError) -> Trouble {
        if error.is_timeout() {
            return Trouble::Late(self.timeout);
        }
        let mut text = error.to_string();
        for secret in &self.secrets {
            text = text.replace(secret.as_str(), "********");
        }
        let end = text.floor_char_boundary(MAX_TEXT_BYTES);
        let text = text.get(..end).unwrap_or_default().to_owned();
        match error.kind() {
            ErrorKind::AuthenticationFailed => {
                Trouble::Refused("user or password are not right, or one is missing".into())
            }
            ErrorKind::Server(_) | ErrorKind::Extension => Trouble::Refused(text),
            _ => Trouble::Lost(text),
        }
    }
}

/// A connection.
pub(super) struct Link<'s> {
    server: &'s Server,
    connection: MultiplexedConnection,
    /// The server's clock: milliseconds since 1970, and when it said so.
    clock: (i64, Instant),
}

impl<'s> Link<'s> {
    /// Connects, and asks what time it is there.
    pub(super) async fn open(server: &'s Server) -> Result<Self, Trouble> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(server.timeout))
            .set_response_timeout(None);
        let connecting = server.client.get_multiplexed_async_connection_with_config(&config);
        let connected = tokio::time::timeout(server.timeout, connecting).await;
        let connection = connected
            .map_err(|_| Trouble::Late(server.timeout))?
            .map_err(|error| server.trouble(&error))?;
        let mut link = Self { server, connection, clock: (0, clock::now()) };
        link.ask_time().await?;
        Ok(link)
    }

    /// Asks, and waits for the answer.
    pub(super) async fn ask(&mut self, command: &Cmd) -> Result<Value, Trouble> {
        self.ask_for(command, Duration::ZERO).await
    }

    /// The same for a question that the server may leave open for so long.
    pub(super) async fn ask_for(
        &mut self,
        command: &Cmd,
        open: Duration,
    ) -> Result<Value, Trouble> {
        let limit = self.server.timeout.saturating_add(open);
        let answer = tokio::time::timeout(limit, command.query_async(&mut self.connection)).await;
        answer.map_err(|_| Trouble::Late(limit))?.map_err(|error| self.server.trouble(&error))
    }

    /// Several commands in one go, which must all succeed.
    pub(super) async fn tell(&mut self, commands: &Pipeline) -> Result<(), Trouble> {
        let limit = self.server.timeout;
        let answers = commands.query_async::<Value>(&mut self.connection);
        let answers = tokio::time::timeout(limit, answers).await;
        answers.map_err(|_| Trouble::Late(limit))?.map_err(|error| self.server.trouble(&error))?;
        Ok(())
    }

    /// Asks what time it is there.
    pub(super) async fn ask_time(&mut self) -> Result<(), Trouble> {
        let answer = self.ask(&redis::cmd("TIME")).await?;
        let time = array(&answer).and_then(|parts| {
            let number = |part: &Value| std::str::from_utf8(bytes(part)?).ok()?.parse::<i64>().ok();
            let [seconds, micros] = parts else { return None };
            number(seconds)?.checked_mul(1000)?.checked_add(number(micros)? / 1000)
        });
        let time = time.filter(|time| *time > 0).ok_or(Trouble::Nonsense("TIME"))?;
        self.clock = (time, clock::now());
        Ok(())
    }

    /// When it was last asked what time it is.
    pub(super) fn time_asked(&self) -> Instant {
        self.clock.1
    }

    /// The time by the server's clock, in milliseconds since 1970.
    pub(super) fn now(&self) -> i64 {
        let (time, then) = self.clock;
        let since = clock::now().saturating_duration_since(then).as_millis();
        time.saturating_add(i64::try_from(since).unwrap_or(i64::MAX))
    }
}

/// The elements of an array.
pub(super) fn array(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Array(values) => Some(values),
        _ => None,
    }
}

/// The bytes of a string.
pub(super) fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.as_bytes()),
        _ => None,
    }
}

/// Names and values that follow each other in an array.
pub(super) fn pairs(value: &Value) -> Option<Vec<(&[u8], &[u8])>> {
    let pairs = array(value)?.chunks(2).map(|pair| match pair {
        [name, value] => Some((bytes(name)?, bytes(value)?)),
        _ => None,
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    fn server(url: &str) -> Option<Server> {
        Server::new(&Settings { url: Secret::new(url), ..Settings::default() })
    }

    #[test]
    fn no_error_shows_the_password() {
        let server = server("redis://gatepost:hunter%2F2@127.0.0.1:7/3").unwrap();
        for text in ["hunter/2 is no password", "redis://gatepost:hunter%2F2@127.0.0.1:7/3 is bad"]
        {
            let error = RedisError::from((ErrorKind::Io, "cannot", text.to_owned()));
            let shown = server.trouble(&error).to_string();
            assert!(!shown.contains("hunter"), "{shown}");
        }
        assert_eq!(server.address(), "127.0.0.1:7");
        let error = RedisError::from((ErrorKind::AuthenticationFailed, "hunter/2"));
        assert!(matches!(server.trouble(&error), Trouble::Refused(_)));
        let long = RedisError::from((ErrorKind::Io, "x", "\u{e4}".repeat(500)));
        assert!(server.trouble(&long).to_string().len() <= MAX_TEXT_BYTES);
    }

    #[test]
    fn without_an_address_there_is_no_server() {
        assert!(server("").is_none());
        assert!(server("http://127.0.0.1").is_none());
        assert!(server("rediss://:x@valkey.example").is_some());
        assert_eq!(server("redis://h").unwrap().key("lists"), "gatepost:lists");
    }

    #[test]
    fn answers_of_another_shape_are_told_apart() {
        let text = |text: &str| Value::BulkString(text.into());
        let odd = Value::Array(vec![text("a"), text("b"), text("c")]);
        assert_eq!(pairs(&odd), None);
        assert_eq!(pairs(&Value::Nil), None);
        let even = Value::Array(vec![text("a"), text("b")]);
        assert_eq!(pairs(&even).unwrap(), [(&b"a"[..], &b"b"[..])]);
        let number = Value::Array(vec![text("a"), Value::Int(1)]);
        assert_eq!(pairs(&number), None);
    }
}
