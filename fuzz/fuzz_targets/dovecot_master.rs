//! A connection that speaks Dovecot's master protocol.
#![no_main]

use gatepost_fuzz::Stream;
use gatepost_fuzz::proto::dovecot::master::{
    Command, MasterKind, MasterReply, MasterSession, mask_matches,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some(stream) = Stream::new(data) else { return };
    let kind = if stream.choice & 1 == 0 { MasterKind::Master } else { MasterKind::Userdb };
    stream.check(
        || MasterSession::new(kind),
        |session, input, said| {
            loop {
                match session.next_command(input) {
                    Ok(Some(command)) => {
                        said.extend(format!("{command:?}\n").bytes());
                        answer(&command, said);
                    }
                    Ok(None) => break,
                    Err(error) => {
                        said.extend(error.to_string().bytes());
                        return false;
                    }
                }
            }
            assert!(input.len() <= 16_384, "a line has its bound");
            true
        },
    );
});

/// Whatever was asked for, an answer is one line.
fn answer(command: &Command, said: &mut Vec<u8>) {
    let mut line = Vec::new();
    match command {
        Command::User { id, user, .. } | Command::Pass { id, user, .. } => {
            let user = &String::from_utf8_lossy(user);
            MasterReply::User { id: *id, user, fields: &[("home", user)] }.encode(&mut line);
        }
        Command::List { id, mask } => {
            let mask = mask.as_deref().unwrap_or_default();
            let user = &String::from_utf8_lossy(mask);
            std::hint::black_box(mask_matches(mask, user));
            MasterReply::ListItem { id: *id, user }.encode(&mut line);
        }
        Command::Request { id, .. } => MasterReply::NotFound { id: *id }.encode(&mut line),
        Command::CacheFlush { id, users } => {
            MasterReply::Flushed { id: *id, count: users.len() }.encode(&mut line);
        }
    }
    let end = line.iter().position(|byte| *byte == b'\n');
    assert!(line.is_empty() || end == Some(line.len() - 1), "one line: {}", line.escape_ascii());
    said.extend(line);
}
