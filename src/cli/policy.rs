//! `gatepost policy show|reset|list|allow|deny|remove|replay`: the guessing shield.

use std::fmt::Write;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use super::{Context, Exit, Stopped, remote};
use crate::auth::{MAX_LINE, Replay, Replayed, Row};
use crate::clock;
use crate::config::units::Span;
use crate::server::control::{Reply, Request, call};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// What every rule counted of somebody, what is done with their attempts now, and what the lists say
    Show {
        /// An address, a login, or both
        #[arg(required = true, num_args = 1..=2)]
        who: Vec<String>,
        /// The protocol they would use; rules may be for some services only
        #[arg(long)]
        protocol: Option<String>,
    },
    /// Forget what was counted of somebody: of the address, of the login, and of both together
    Reset {
        /// An address, a login, or both
        #[arg(required = true, num_args = 1..=2)]
        who: Vec<String>,
    },
    /// On whom rules acted last, and the entries of both lists that were made at run time
    List,
    /// Let somebody go on whatever is counted, for a time; what shall hold longer belongs into throttle.allow
    Allow(Made),
    /// Refuse somebody, for a time; what shall hold longer belongs into throttle.deny
    Deny(Made),
    /// Take an entry out that was made at run time
    Remove {
        /// The list
        list: List,
        /// Whom the entry is about
        #[arg(required = true, num_args = 1..=2)]
        who: Vec<String>,
    },
    /// Play a journal against the rules of the configuration (--config: of another), without a daemon: who would have been
    /// delayed or denied, and who of them had got in. Switched off rules (throttle.enabled) are played too
    Replay {
        /// The journal, text or JSON; - is standard input
        file: PathBuf,
    },
}

/// An entry that is to be made.
#[derive(Debug, Args)]
pub(super) struct Made {
    /// An address, a net or a login; or an address and a login
    #[arg(required = true, num_args = 1..=2)]
    who: Vec<String>,
    /// How long it holds
    #[arg(long = "for", value_name = "SPAN", default_value = "1h")]
    span: Span,
    /// Why, for whoever looks at the list
    #[arg(long, value_name = "TEXT", default_value = "by an administrator")]
    reason: String,
}

/// Which list.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum List {
    /// Who goes on.
    Allow,
    /// Who is refused.
    Deny,
}

impl List {
    fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

pub(super) async fn run(context: &Context, command: &Command) -> Result<Exit, Stopped> {
    match command {
        Command::Show { who, protocol } => {
            let request = Request::PolicyShow { who: who.clone(), service: protocol.clone() };
            print(context, &request, shown).await
        }
        Command::Reset { who } => {
            let request = Request::PolicyReset { who: who.clone() };
            print(context, &request, |cleared| match cleared.as_bool() {
                Some(true) => "forgotten".into(),
                _ => "nothing was counted".into(),
            })
            .await
        }
        Command::List => print(context, &Request::PolicyList, listed).await,
        Command::Allow(made) => add(context, List::Allow, made).await,
        Command::Deny(made) => add(context, List::Deny, made).await,
        Command::Remove { list, who } => {
            let list = list.as_str().to_owned();
            let request = Request::PolicyRemove { list, who: who.clone() };
            print(context, &request, |_| "removed".into()).await
        }
        Command::Replay { file } => replay(context, file),
    }
}

async fn add(context: &Context, list: List, made: &Made) -> Result<Exit, Stopped> {
    let request = Request::PolicyAdd {
        list: list.as_str().into(),
        who: made.who.clone(),
        seconds: made.span.0.as_secs(),
        reason: made.reason.clone(),
    };
    print(context, &request, entry).await
}

async fn print(
    context: &Context,
    request: &Request,
    text: impl FnOnce(&Value) -> String,
) -> Result<Exit, Stopped> {
    let loaded = context.load()?;
    match remote::ask(context, context.control(&loaded), request).await? {
        Reply::Done { value } => {
            context.output.print(&value, text);
            Ok(Exit::Done)
        }
        other => Err(remote::unexpected(other)),
    }
}

/// What a diagnosis says of the shield: whether an attempt would be let go on, and in words why.
pub(super) struct View {
    /// Neither delayed nor denied, as far as is known.
    pub(super) goes_on: bool,
    pub(super) is_denied: bool,
    pub(super) words: String,
}

/// What the running daemon's shield has on somebody.
pub(super) async fn view(
    context: &Context,
    control: &Path,
    (user, client): (&str, Option<std::net::IpAddr>),
    protocol: &str,
) -> View {
    let who = client.iter().map(ToString::to_string).chain([user.to_owned()]).collect();
    let request = Request::PolicyShow { who, service: Some(protocol.to_owned()) };
    let unknown = |words| View { goes_on: true, is_denied: false, words };
    let value = match call(control, &request, context.timeout).await {
        Ok(Reply::Done { value }) => value,
        Ok(_) => return unknown("the daemon gave no answer".into()),
        Err(error) => return unknown(format!("not known: {error}")),
    };
    let value = &value;
    if value["enabled"] == Value::Bool(false) {
        return unknown("switched off (throttle.enabled)".into());
    }
    let action = word(&value["action"]);
    let mut words = match value["because"].as_str() {
        Some(because) => format!("{action}, by {because}"),
        None => action.clone(),
    };
    let rules = items(&value["rules"]).filter(|rule| rule["count"] != 0);
    let counted: Vec<String> = rules.map(counted).collect();
    if counted.is_empty() {
        words += "; nothing is counted";
    } else {
        words += &format!("; {}", counted.join(", "));
    }
    if client.is_none() {
        words += " (more with --client ADDRESS)";
    }
    View { goes_on: action == "go", is_denied: action == "deny", words }
}

/// `guessing-per-login 3 of 10`.
fn counted(rule: &Value) -> String {
    let limit = rule["limit"].as_u64().map_or("no limit".to_owned(), |limit| limit.to_string());
    format!("{} {} of {limit}", word(&rule["rule"]), rule["count"])
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Text for a terminal; what a client typed moves no cursor.
fn word(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".into(),
        other => other.to_string(),
    };
    printable(&text)
}

fn printable(text: &str) -> String {
    let shown = |letter: char| match letter.is_control() {
        true => letter.escape_default().to_string(),
        false => letter.to_string(),
    };
    text.chars().map(shown).collect()
}

fn shown(value: &Value) -> String {
    let mut text = String::new();
    let mut line = |key: &str, words: &str| text += &format!("{key:<9} {words}\n");
    for key in ["client", "login"] {
        if !value[key].is_null() {
            line(key, &word(&value[key]));
        }
    }
    let because = value["because"].as_str().map(|word| format!(", by {}", printable(word)));
    line("now", &(word(&value["action"]) + &because.unwrap_or_default()));
    if value["enabled"] == Value::Bool(false) {
        line("rules", "switched off (throttle.enabled)");
    }
    let known = match value["known"].as_bool() {
        Some(true) => "yes, the login got in from this net before",
        _ => "no",
    };
    line("known", known);
    let (from, net) = (&value["people_from_address"], &value["people_from_net"]);
    line("people", &format!("{from} got in from the address, {net} from the net"));
    let rules: Vec<[String; 5]> = items(&value["rules"])
        .map(|rule| {
            let acts = if rule["acts"] == Value::Bool(true) { "acts" } else { "" };
            let [name, action, limit] = ["rule", "action", "limit"].map(|key| word(&rule[key]));
            [name, action, rule["count"].to_string(), limit, acts.to_owned()]
        })
        .collect();
    if !rules.is_empty() {
        text += "\n";
        text += &table(["rule", "action", "count", "limit", ""], &rules);
    }
    for part in ["entries", "acted"] {
        let lines: Vec<String> =
            items(&value[part]).map(if part == "entries" { entry } else { hit }).collect();
        if !lines.is_empty() {
            text += &format!("\n{}\n", lines.join("\n"));
        }
    }
    text
}

/// `deny netmask 192.0.2.0/24 seconds_left=3540 reason="spam"`.
fn entry(value: &Value) -> String {
    let [list, kind, whom] = ["list", "kind", "whom"].map(|key| word(&value[key]));
    let left = match value["seconds_left"].as_u64() {
        Some(seconds) => format!("seconds_left={seconds} "),
        None => String::new(),
    };
    format!("{list} {kind} {whom} {left}reason={:?}", value["reason"].as_str().unwrap_or_default())
}

/// `deny guessing-per-login count=12 limit=10 times=3 … fry@x.com from 192.0.2.0/24`.
fn hit(value: &Value) -> String {
    let [rule, whom, action] = ["rule", "whom", "action"].map(|key| word(&value[key]));
    let numbers = ["count", "limit", "times", "first_seen_seconds", "last_seen_seconds"]
        .map(|key| format!("{key}={}", value[key]));
    format!("{action} {rule} {} {whom}", numbers.join(" "))
}

fn listed(value: &Value) -> String {
    let acted: Vec<String> = items(&value["acted"]).map(hit).collect();
    let mut entries: Vec<String> = items(&value["entries"]).map(entry).collect();
    if let Some(more) = value["entries_left_out"].as_u64().filter(|more| *more > 0) {
        entries.push(format!("and {more} more entries"));
    }
    if acted.is_empty() && entries.is_empty() {
        return "no rule acted, and no entry was made".into();
    }
    [acted, entries].concat().join("\n")
}

/// Columns as wide as their widest cell.
fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = head.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in std::iter::once(&head.map(str::to_owned)).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            // Writing into a string cannot fail.
            let _ = write!(line, "{cell:<width$}  ");
        }
        text += &format!("{}\n", line.trim_end());
    }
    text
}

fn replay(context: &Context, file: &Path) -> Result<Exit, Stopped> {
    let loaded = context.load()?;
    let unreadable = |error| Stopped::new(Exit::Failure, format!("{}: {error}", file.display()));
    let mut replay = Replay::new(&loaded.config, clock::now());
    if file == Path::new("-") {
        play(&mut replay, io::stdin().lock()).map_err(unreadable)?;
    } else {
        let opened = File::open(file).map_err(unreadable)?;
        play(&mut replay, BufReader::new(opened)).map_err(unreadable)?;
    }
    context.output.print(&replay.finish(), replayed);
    Ok(Exit::Done)
}

/// Every line; of one that is too long so much that it is seen to be.
fn play(replay: &mut Replay, mut reader: impl BufRead) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            if !line.is_empty() {
                replay.line(&line);
            }
            return Ok(());
        }
        let end = memchr::memchr(b'\n', bytes);
        let part = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or(bytes);
        let room = (MAX_LINE + 1).saturating_sub(line.len());
        line.extend_from_slice(part.get(..room).unwrap_or(part));
        let used = part.len() + usize::from(end.is_some());
        reader.consume(used);
        if end.is_some() {
            replay.line(&line);
            line.clear();
        }
    }
}

fn replayed(done: &Replayed) -> String {
    let mut text = String::new();
    let row = |row: &Row| {
        let [times, accepted] = [row.times, row.accepted].map(|count| count.to_string());
        let whom = printable(&row.whom);
        [
            row.first.clone(),
            row.last.clone(),
            times,
            accepted,
            row.action.into(),
            row.rule.clone(),
            whom,
        ]
    };
    let rows: Vec<_> = done.rows.iter().map(row).collect();
    if !rows.is_empty() {
        text += &table(["first", "last", "times", "got in", "action", "rule", "whom"], &rows);
        text += "\n";
    }
    if done.without_row > 0 {
        text += &format!("and {} attempts more that are not in the table\n", done.without_row);
    }
    text += &format!(
        "{} lines: {} attempts, {} of other kinds, {} unreadable and skipped\n\
         would be delayed: {}, of whom {} had got in\n\
         would be denied: {}, of whom {} had got in: false alarms\n",
        done.lines,
        done.attempts,
        done.other_lines,
        done.unreadable_lines,
        done.delayed,
        done.delayed_accepted,
        done.denied,
        done.denied_accepted,
    );
    if done.logged > 0 {
        text += &format!("only written down by a rule that logs: {}\n", done.logged);
    }
    if done.refused_then > 0 {
        text += &format!(
            "refused by the shield when they came, so that nothing is known of their passwords: {}\n",
            done.refused_then
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_line_without_end_is_one_line_in_bounded_memory_and_the_last_needs_no_line_feed() {
        let long = [&vec![b'x'; 10 * MAX_LINE][..], b"\nshort\n\nlast"].concat();
        for capacity in [1, 7, 64 * 1024] {
            let mut replay = Replay::new(&Config::default(), clock::now());
            play(&mut replay, BufReader::with_capacity(capacity, &*long)).unwrap();
            let done = replay.finish();
            assert_eq!((done.lines, done.unreadable_lines, done.other_lines), (4, 1, 3));
        }
    }

    #[test]
    fn what_a_client_typed_moves_no_cursor() {
        assert_eq!(printable("a\u{1b}[2Jb\u{7f}é"), "a\\u{1b}[2Jb\\u{7f}é");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["long cell".to_owned(), "1".to_owned()], ["é".to_owned(), String::new()]];
        assert_eq!(table(["a", "b"], &rows), "a          b\nlong cell  1\né\n");
    }
}
