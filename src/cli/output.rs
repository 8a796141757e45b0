//! Where commands print: text for people, or one JSON document.

use std::io::{IsTerminal, Write};

use serde::Serialize;

/// Standard output and error of a command.
#[derive(Debug)]
pub(super) struct Output {
    json: bool,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Prints the value as JSON, or the text made of it.
    pub(super) fn print<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) {
        let text = if self.json {
            serde_json::to_string_pretty(value).unwrap_or_else(|error| error.to_string())
        } else {
            text(value)
        };
        // A reader that went away (`| head`) is no failure of the command.
        let _closed = writeln!(std::io::stdout(), "{}", text.trim_end());
    }

    /// Says why a command could not do its work.
    pub(super) fn error(&self, message: &str) {
        let _closed = writeln!(std::io::stderr(), "gatepost: {}", message.trim_end());
    }

    /// Asks for a password without showing it, or reads it from standard input when that is no terminal.
    pub(super) fn password(&self, prompt: &str) -> std::io::Result<Vec<u8>> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return read_line();
        }
        write!(std::io::stderr(), "{prompt}")?;
        let before = rustix::termios::tcgetattr(&stdin)?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(rustix::termios::LocalModes::ECHO);
        rustix::termios::tcsetattr(&stdin, rustix::termios::OptionalActions::Flush, &hidden)?;
        let line = read_line();
        rustix::termios::tcsetattr(&stdin, rustix::termios::OptionalActions::Flush, &before)?;
        writeln!(std::io::stderr())?;
        line
    }
}

/// One line of standard input as bytes, without its end. Bounded: no password is longer.
pub(super) fn read_line() -> std::io::Result<Vec<u8>> {
    use std::io::{BufRead, Read};
    let mut line = Vec::new();
    std::io::stdin().lock().take(64 * 1024).read_until(b'\n', &mut line)?;
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    Ok(line)
}
