//! Bare binds: what the directory can do at most, asked by a client that does nothing else (RFC 4511).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::client::Tally;
use crate::people::{dn, password};

/// Binds as these people, each once, over so many connections with one bind at a time.
///
/// # Errors
/// If any is refused.
pub fn bind_all(
    port: u16,
    first: u64,
    people: u64,
    connections: u32,
) -> anyhow::Result<(Tally, Duration)> {
    let mut streams = Vec::new();
    for _ in 0..connections {
        let stream = TcpStream::connect(("127.0.0.1", port)).context("connecting to slapd")?;
        stream.set_nodelay(true)?;
        streams.push(stream);
    }
    let next = AtomicU64::new(0);
    let started = Instant::now();
    let mut tally = Tally::default();
    std::thread::scope(|scope| {
        let next = &next;
        let threads: Vec<_> = streams
            .into_iter()
            .map(|mut stream| {
                scope.spawn(move || {
                    let mut latencies = Vec::new();
                    loop {
                        let turn = next.fetch_add(1, Ordering::Relaxed);
                        if turn >= people {
                            return anyhow::Ok(latencies);
                        }
                        let sent = Instant::now();
                        bind(&mut stream, first + turn)?;
                        latencies.push(sent.elapsed());
                    }
                })
            })
            .collect();
        for thread in threads {
            let part = thread.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
            tally.latencies.extend(part);
        }
        anyhow::Ok(())
    })?;
    Ok((tally, started.elapsed()))
}

fn bind(stream: &mut TcpStream, person: u64) -> anyhow::Result<()> {
    let mut request = tagged(0x02, &[3])?;
    request.extend(tagged(0x04, dn(person).as_bytes())?);
    request.extend(tagged(0x80, password(person).as_bytes())?);
    let mut message = tagged(0x02, &[1])?;
    message.extend(tagged(0x60, &request)?);
    stream.write_all(&tagged(0x30, &message)?)?;
    // 30 len, 02 01 01, 61 len, 0a 01 code: short, because the texts are empty.
    let mut answer = [0; 14];
    stream.read_exact(&mut answer)?;
    let (tag, code) = (answer.get(5), answer.get(9));
    ensure!(tag == Some(&0x61) && code == Some(&0), "slapd answered {answer:?} to {person}");
    Ok(())
}

fn tagged(tag: u8, content: &[u8]) -> anyhow::Result<Vec<u8>> {
    let length = u8::try_from(content.len())?;
    let mut bytes = vec![tag];
    if length >= 128 {
        bytes.push(0x81);
    }
    bytes.push(length);
    bytes.extend_from_slice(content);
    Ok(bytes)
}
