//! What `gatepost-checkpassword` asks: one question, one answer, and the connection ends.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::door::Door;
use super::listener::Peer;
use super::userdb::{self, Residence};
use super::wire::{Awaits, Read, Wire};
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
    stream: S,
    door: Arc<Door>,
    peer: Peer,
    shutdown: CancellationToken,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut wire = Wire::new(stream, &door, shutdown);
    let question = loop {
        match Question::parse(&mut wire.input) {
            Ok(Some(question)) => break question,
            Ok(None) => {
                if wire.read(Awaits::Request).await? == Read::End {
                    return Ok(());
                }
            }
            Err(error) => return wire.broken(error).await,
        }
    };
    answer(&door, question, peer.credentials).await.encode(&mut wire.output);
    wire.close().await
}

async fn answer(door: &Door, question: Question, peer: Option<Credentials>) -> Answer {
    let Question { user, password, service, client, session } = question;
    let Some(password) = password else {
        return match userdb::find(door, &user, &service, |_| true).await {
            Residence::At(mailbox) => {
                ok(mailbox.address.as_str(), &mailbox.place, &mailbox.settings)
            }
            Residence::Nowhere | Residence::Barred(_) => Answer::Unknown,
            Residence::Later => Answer::Later,
        };
    };
    let attempt = Attempt {
        login: user,
        authzid: Vec::new(),
        password,
        service: Service::parse(&service),
        service_name: String::from(service).into(),
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
