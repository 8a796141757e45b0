//! What lies on descriptor 3, and both directions between `gatepost-checkpassword` and the daemon.
#![no_main]

use bytes::BytesMut;
use gatepost_fuzz::Stream;
use gatepost_fuzz::proto::checkpassword::{Answer, Given, MAX_LINE_BYTES, Question, dovecot_reply};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some(stream) = Stream::new(data) else { return };
    stream.check(
        || false,
        |is_read, input, said| {
            match Question::parse(input) {
                Ok(Some(question)) => {
                    said.extend(format!("{question:?}\n").bytes());
                    comes_through(&question);
                    *is_read = true;
                }
                Ok(None) => assert!(input.len() <= MAX_LINE_BYTES, "a line has its bound"),
                Err(error) => said.extend(error.to_string().bytes()),
            }
            // One question a connection.
            said.is_empty()
        },
    );
    if let Ok(given) = Given::parse(stream.bytes) {
        let again = [&*given.user, given.password.as_bytes(), b""].join(&0);
        assert!(stream.bytes.starts_with(&again));
    }
    if let Ok(Some(answer)) = Answer::parse(&mut BytesMut::from(stream.bytes)) {
        let mut line = Vec::new();
        answer.encode(&mut line);
        let again = Answer::parse(&mut BytesMut::from(&*line)).unwrap().unwrap();
        assert!(again == answer || again == Answer::Later);
        if let Answer::Ok { user, fields } = &answer {
            assert!(!dovecot_reply(user, fields).contains(&b'\n'));
        }
    }
});

fn comes_through(question: &Question) {
    let mut line = Vec::new();
    question.encode(&mut line);
    let again = Question::parse(&mut BytesMut::from(&*line)).unwrap().unwrap();
    assert_eq!(format!("{again:?}"), format!("{question:?}"));
    assert_eq!(again.user, question.user);
    let password =
        |question: &Question| question.password.as_ref().map(|it| it.as_bytes().to_vec());
    assert_eq!(password(&again), password(question));
}
