//! One connection to a server: requests out, checked answers in.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::wire::{Asker, Endpoint, Protocol, Said, Stream};

/// What is asked, where, and how strictly answers are looked at.
#[derive(Clone, Debug)]
pub struct Door {
    pub protocol: Protocol,
    pub endpoint: Endpoint,
    /// A floor's answers name nobody and refuse nobody.
    pub is_floor: bool,
}

#[derive(Debug)]
pub struct Connection {
    protocol: Protocol,
    is_floor: bool,
    stream: Stream,
    buffer: Vec<u8>,
    /// What was read and not looked at yet: a part of the buffer.
    unread: std::ops::Range<usize>,
    pub output: Vec<u8>,
    answered: u32,
}

/// An answer, and to which request.
#[derive(Clone, Debug)]
pub struct Heard {
    pub id: u32,
    pub said: Said,
    pub user: Option<String>,
}

impl Connection {
    pub fn open(door: &Door) -> anyhow::Result<Self> {
        let stream = Stream::connect(&door.endpoint)
            .with_context(|| format!("connecting to {:?}", door.endpoint))?;
        let buffer = vec![0; if door.protocol.is_one_shot() { 4096 } else { 256 * 1024 }];
        let mut new = Self {
            protocol: door.protocol,
            is_floor: door.is_floor,
            stream,
            buffer,
            unread: 0..0,
            output: Vec::new(),
            answered: 0,
        };
        match door.protocol {
            Protocol::Dovecot => new.shake_hands()?,
            Protocol::Imap => drop(new.line()?),
            _ => {}
        }
        Ok(new)
    }

    fn shake_hands(&mut self) -> anyhow::Result<()> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        while self.line()? != "DONE" {}
        // Dovecot wants another process id of each connection.
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let client_pid = (std::process::id() % 10_000) * 100_000 + number;
        write!(self.output, "VERSION\t1\t2\nCPID\t{client_pid}\n")?;
        Ok(self.flush()?)
    }

    pub fn ask(&mut self, id: u32, asker: Asker) -> io::Result<()> {
        self.protocol.ask(id, asker, &mut self.output)
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.output)?;
        self.output.clear();
        Ok(())
    }

    /// Neither reads nor writes wait much from now on.
    pub fn hurry(&self) -> io::Result<()> {
        self.stream.write_within(Duration::from_millis(1))?;
        self.stream.wait_at_most(Duration::from_millis(20))
    }

    /// Sends what the server takes now. One who waits for room while the server waits for its answers to be read would
    /// wait for ever.
    pub fn send_some(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The other end for sending, for a thread of its own.
    pub fn sender(&self) -> io::Result<Stream> {
        self.stream.try_clone()
    }

    pub fn wait_at_most(&self, limit: Duration) -> io::Result<()> {
        self.stream.wait_at_most(limit)
    }

    /// The next answer that was read already, checked against what must be answered to this request.
    pub fn buffered(&mut self) -> anyhow::Result<Option<Heard>> {
        let input = self.buffer.get(self.unread.clone()).unwrap_or_default();
        let Some(answer) = self.protocol.answer(input)? else { return Ok(None) };
        self.answered += 1;
        let id = answer.id.unwrap_or(self.answered);
        let user = answer.user.map(str::to_owned);
        self.unread.start += answer.length;
        Ok(Some(Heard { id, said: answer.said, user }))
    }

    /// Reads more. `false`: nothing came within the limit.
    pub fn read(&mut self) -> anyhow::Result<bool> {
        self.buffer.copy_within(self.unread.clone(), 0);
        self.unread = 0..self.unread.len();
        let room = self.buffer.get_mut(self.unread.end..).unwrap_or_default();
        match self.stream.read(room) {
            Ok(0) => anyhow::bail!("the server hung up"),
            Ok(count) => {
                self.unread.end += count;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error).context("reading"),
        }
    }

    /// Waits for the next answer.
    pub fn next(&mut self) -> anyhow::Result<Heard> {
        loop {
            if let Some(heard) = self.buffered()? {
                return Ok(heard);
            }
            ensure!(self.read()?, "no answer within 30 s");
        }
    }

    /// # Errors
    /// If this is not the answer that the asker must get. "Later" is for the caller to judge.
    pub fn check(&self, asker: Asker, heard: &Heard) -> anyhow::Result<()> {
        if self.is_floor || heard.said == Said::Later {
            return Ok(());
        }
        ensure!(heard.said == asker.expected(), "{asker:?} was answered with {heard:?}");
        let names = |user: &String| heard.said != Said::Accepted || *user == asker.name();
        ensure!(heard.user.as_ref().is_none_or(names), "{asker:?} was answered with {heard:?}");
        Ok(())
    }

    fn line(&mut self) -> anyhow::Result<String> {
        loop {
            let input = self.buffer.get(self.unread.clone()).unwrap_or_default();
            if let Some(end) = memchr::memchr(b'\n', input) {
                let line =
                    String::from_utf8_lossy(input.get(..end).unwrap_or_default()).into_owned();
                self.unread.start += end + 1;
                return Ok(line);
            }
            ensure!(self.read()?, "no greeting within 30 s");
        }
    }
}
