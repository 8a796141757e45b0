//! A connection that speaks Dovecot's auth protocol. Requests with even ids are answered at once, others never.
#![no_main]

use std::time::Instant;

use gatepost_fuzz::Stream;
use gatepost_fuzz::proto::dovecot::auth::{Event, MAX_OPEN_REQUESTS, Reply, Session, SocketKind};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some(stream) = Stream::new(data) else { return };
    let kind = if stream.choice & 1 == 0 { SocketKind::Login } else { SocketKind::Client };
    let now = Instant::now();
    stream.check(
        || Session::new(kind),
        |session, input, said| {
            loop {
                match session.next_event(input, said, now) {
                    Ok(Some(event)) => {
                        said.extend(format!("{event:?}\n").bytes());
                        if let Event::Request(request) = event
                            && request.id % 2 == 0
                        {
                            let user = std::str::from_utf8(&request.credentials.authcid).ok();
                            let reply = Reply::Fail { user, code: None, reason: user };
                            session.answer(request.id, &reply, said);
                        }
                    }
                    Ok(None) => break,
                    Err(error) => {
                        said.extend(error.to_string().bytes());
                        return false;
                    }
                }
            }
            assert!(input.len() <= 16_384, "a line has its bound");
            assert!(session.open_requests() <= MAX_OPEN_REQUESTS);
            true
        },
    );
});
