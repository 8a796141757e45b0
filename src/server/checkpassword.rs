//! What `gatepost-checkpassword` asks: one question, one answer, and the connection ends.

use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::door::Door;
use super::listener::Peer;
use super::patience::Patience;
use super::userdb::{self, Found};
use super::write_timeout::write_out;
use crate::auth::{Attempt, Credentials, Reason, Service, Verdict};
use crate::clock;
use crate::proto::checkpassword::{Answer, Question};
use crate::store::{Place, Settings};

/// What a refusal becomes: this door's table, printed in docs/protocols/checkpassword.md (login.md D-1).
fn words(reason: Reason) -> Answer {
    match reason {
        Reason::Unknown | Reason::BadName => Answer::Unknown,
        _ => Answer::Refused,
    }
}

/// Serves one connection.
///
/// # Errors
/// What ended it, if not the peer.
pub(super) async fn serve<S>(
    mut stream: S,
    door: Arc<Door>,
    peer: Peer,
    shutdown: CancellationToken,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut input = BytesMut::new();
    let mut patience = Patience::default();
    let question = loop {
        match Question::parse(&mut input) {
            Ok(Some(question)) => break question,
            Ok(None) => {}
            Err(error) => {
                door.metrics.protocol_error(&door.name);
                tracing::warn!(door = %door.name, %error, "a client of the checkpassword door broke the protocol");
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
        patience.wants_more(&input);
        input.reserve(1024);
        let read = tokio::select! {
            read = stream.read_buf(&mut input) => read?,
            () = patience.over() => return Err(Patience::exhausted()),
            () = shutdown.cancelled() => 0,
        };
        if read == 0 {
            return Ok(());
        }
    };
    let mut output = Vec::new();
    answer(&door, question, peer.credentials).await.encode(&mut output);
    write_out(&mut stream, &mut output, door.write_timeout).await?;
    stream.shutdown().await
}

async fn answer(door: &Door, question: Question, peer: Option<Credentials>) -> Answer {
    let Question { user, password, service, client, session } = question;
    let Some(password) = password else {
        return match userdb::find(door, &user, &service, |_| true).await {
            Found::Mailbox(mailbox) => {
                ok(mailbox.address.as_str(), &mailbox.place, &mailbox.settings)
            }
            Found::Nobody => Answer::Unknown,
            Found::Later => Answer::Later,
        };
    };
    let attempt = Attempt {
        login: user,
        authzid: Vec::new(),
        password,
        service: Service::parse(&service),
        service_name: service.into(),
        client: client.map(|client| client.to_canonical()),
        peer,
        session,
        door: Arc::clone(&door.name),
        arrived: clock::now(),
    };
    match door.decide_and_delay(attempt).await {
        Verdict::Accept(accepted) => {
            let mailbox = accepted.mailbox;
            ok(mailbox.address.as_str(), &mailbox.place, &mailbox.settings)
        }
        Verdict::Reject(refused) => words(refused.reason),
        Verdict::Unavailable(_) => Answer::Later,
    }
}

fn ok(user: &str, place: &Place, settings: &Settings) -> Answer {
    Answer::Ok { user: user.to_owned(), fields: userdb::fields(place, settings) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_reasons_stands_in_the_docs() {
        let mut table = String::from("| reason | answer |\n|---|---|\n");
        for reason in Reason::ALL.iter().filter(|it| words(**it) == Answer::Unknown) {
            table += &format!("| {} | `UNKNOWN` |\n", reason.as_str());
        }
        table += "| any other | `REFUSED` |\n";
        let docs = include_str!("../../docs/protocols/checkpassword.md");
        assert!(docs.contains(&table), "docs/protocols/checkpassword.md must hold:\n{table}");
    }
}
