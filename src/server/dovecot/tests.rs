//! One connection without a socket.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::io::AsyncWriteExt as _;
use tokio_util::task::TaskTracker;

use super::*;
use crate::auth::Authenticator;
use crate::config::Config;
use crate::config::listen::Listen;
use crate::lookup::Lookup;
use crate::metrics::Metrics;
use crate::server::door::Shared;

fn auth_line(id: u32, login: &str) -> String {
    let response = BASE64_STANDARD.encode(format!("\0{login}\0secret"));
    format!("AUTH\t{id}\tPLAIN\tservice=imap\tresp={response}\n")
}

/// Asks for leela, whom nobody knows, and fry, whom memory knows, with one write; what is answered before the close.
async fn answers(core: Arc<Authenticator>, max_in_flight: usize) -> Vec<String> {
    let lookup = Lookup::new(core.store().clone(), &Config::default());
    let shared = Shared { core, lookup, metrics: Metrics::new(), tracker: TaskTracker::new() };
    let listen = Listen { max_in_flight, ..Listen::default() };
    let door = AuthDoor {
        door: Door::new("auth".into(), &listen, shared),
        greeting: Arc::new(Greeting::new(1)),
        claims: Claims::default(),
        temp_failure: TempFailure::Auto,
    };
    let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
    let (kind, peer) = (SocketKind::Client, Peer::default());
    let serving = serve(ours, Arc::new(door), kind, peer, 1, CancellationToken::new());
    let asking = async {
        let hello = "VERSION\t1\t1\nCPID\t77\n";
        let asked = [hello, &auth_line(1, "leela@example.org"), &auth_line(2, "fry@example.org")];
        theirs.write_all(asked.concat().as_bytes()).await.unwrap();
        let mut heard = String::new();
        theirs.read_to_string(&mut heard).await.unwrap();
        heard
    };
    let (served, heard) = tokio::join!(serving, asking);
    served.unwrap();
    heard.lines().skip_while(|line| *line != "DONE").skip(1).map(str::to_owned).collect()
}

/// login.md D-3: to old clients "later" is a close, and what they asked beside it is answered before.
#[tokio::test]
async fn who_asked_together_with_somebody_put_off_is_answered_before_the_close() {
    let directory = tempfile::tempdir().unwrap();
    let core = Authenticator::alone(&directory).await;
    core.remember("fry@example.org");
    let crowd = core.take_places();

    assert_eq!(answers(Arc::clone(&core), 1000).await, ["OK\t2\tuser=fry@example.org"]);

    // By a question, and fry's line waits for its end.
    drop(crowd);
    let path = |name: &str| directory.path().join(name);
    std::fs::rename(path("gatepost.db"), path("moved.db")).unwrap();

    assert_eq!(answers(core, 1).await, ["OK\t2\tuser=fry@example.org"]);
}
