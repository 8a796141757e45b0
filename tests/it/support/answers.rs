//! What each client heard, in one table for the administrator: docs/protocols/answers.md. Each test records what its
//! clients saw and compares it with the page, word by word; `GATEPOST_BLESS=1` writes the page anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use super::gatepost::{Configuration, Gatepost};
use super::read_text;
use super::slapd::{Slapd, Wish, mail_of, password_of};

/// How things stand for one login.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    Right,
    Wrong,
    Unknown,
    Disabled,
    Protocol,
    MustChange,
    StoreDown,
    DirectoryDown,
}

impl State {
    /// In an order in which one site can go through them.
    pub(crate) const ALL: [Self; 8] = [
        Self::Right,
        Self::Wrong,
        Self::Unknown,
        Self::Disabled,
        Self::Protocol,
        Self::MustChange,
        Self::StoreDown,
        Self::DirectoryDown,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::Right => "right password",
            Self::Wrong => "wrong password",
            Self::Unknown => "unknown name",
            Self::Disabled => "disabled mailbox",
            Self::Protocol => "protocol not allowed",
            Self::MustChange => "password must be changed",
            Self::StoreDown => "store down",
            Self::DirectoryDown => "directory down",
        }
    }

    /// Name and password of somebody for whom it is so.
    pub(crate) fn person(self) -> (String, String) {
        let own = |uid: &str| (mail_of(uid), password_of(uid));
        match self {
            Self::Right => own("fry"),
            Self::Wrong => (mail_of("fry"), "wrong".to_owned()),
            Self::Unknown => (mail_of("nobody"), password_of("nobody")),
            Self::Disabled => own("leela"),
            Self::Protocol => own("hermes"),
            Self::MustChange => own("bender"),
            // Neither memory nor store has seen them.
            Self::StoreDown => own("professor"),
            Self::DirectoryDown => own("zoidberg"),
        }
    }
}

/// A directory and a configuration of the daemon in which every state can come true.
pub(crate) fn directory() -> Slapd {
    let slapd = Slapd::with(Wish { ppolicy: true, ..Wish::default() });
    slapd.must_change("bender");
    slapd
}

/// hermes and the professor are office: they may use nothing.
pub(crate) fn configure(configuration: &mut Configuration) {
    configuration.change("template.office", "protocols", "[]");
}

/// Goes through all states and returns what `knock` heard in each. A client that is no login hears the same.
pub(crate) fn go_through(
    slapd: &mut Slapd,
    gatepost: &Gatepost,
    mut knock: impl FnMut(State, &str, &str) -> Vec<(String, String)>,
) -> Answers {
    let (name, password) = State::Disabled.person();
    assert_eq!(gatepost.login(&name, &password).status, 200);
    let output = gatepost.run(&["mailbox", "disable", &name], "");
    assert!(output.status.success(), "{}", super::printed(&output));
    let mut answers = Answers::default();
    for state in State::ALL {
        match state {
            State::StoreDown => gatepost.store_is_there(false),
            State::DirectoryDown => slapd.stop(),
            _ => {}
        }
        let (name, password) = state.person();
        for (client, answer) in knock(state, &name, &password) {
            answers.0.entry(client).or_default().insert(state, normal(&answer));
        }
        if state == State::StoreDown {
            gatepost.store_is_there(true);
        }
    }
    slapd.start_again();
    answers
}

/// Client → state → what it heard.
#[derive(Debug, Default)]
pub(crate) struct Answers(BTreeMap<String, BTreeMap<State, String>>);

impl Answers {
    /// What one client heard.
    pub(crate) fn of(&self, client: &str, state: State) -> &str {
        &self.0[client][&state]
    }

    /// Compares with the page.
    pub(crate) fn check(&self, section: &str) {
        check_page("docs/protocols/answers.md", section, &self.table());
    }

    fn table(&self) -> String {
        let mut text = String::new();
        for state in State::ALL {
            text += &format!("\n**{}**\n\n| client | heard |\n|---|---|\n", state.title());
            for (client, heard) in &self.0 {
                if let Some(answer) = heard.get(&state) {
                    text += &format!("| {client} | {} |\n", cell(answer));
                }
            }
        }
        text
    }
}

/// Compares a section of a page with what was made; `GATEPOST_BLESS=1` writes it.
pub(crate) fn check_page(page: &str, section: &str, text: &str) {
    static PAGES: Mutex<()> = Mutex::new(());
    let _turn = PAGES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
    let whole = read_text(&path);
    let (begin, end) = (format!("<!-- {section} -->\n"), format!("<!-- end of {section} -->\n"));
    let made = format!("{begin}{text}{end}");
    let stands = whole.split_once(&begin).and_then(|(before, rest)| {
        let (inside, after) = rest.split_once(&end)?;
        Some((before.to_owned(), format!("{begin}{inside}{end}"), after.to_owned()))
    });
    if std::env::var_os("GATEPOST_BLESS").is_some() {
        let new = match stands {
            Some((before, _, after)) => before + &made + &after,
            None => format!("{whole}\n## {section}\n\n{made}"),
        };
        fs::write(&path, new).unwrap();
        return;
    }
    let stands = stands.map(|(_, stands, _)| stands).unwrap_or_default();
    assert!(
        stands == made,
        "{page}, {section}, is not what was heard (GATEPOST_BLESS=1 writes it):\n{made}"
    );
}

/// An answer as a cell of a table.
pub(crate) fn cell(answer: &str) -> String {
    match answer {
        "" => "(the connection ends)".to_owned(),
        answer => format!("`{}`", answer.replace('|', "\\|")),
    }
}

/// Without what differs from run to run: capabilities, ids of messages and sessions, times.
pub(crate) fn normal(answer: &str) -> String {
    let mut text = answer.replace('\t', "→").replace(['\r', '\n'], " ").trim().to_owned();
    if let Some((before, rest)) = text.clone().split_once("[CAPABILITY ")
        && let Some((_, after)) = rest.split_once(']')
    {
        text = format!("{before}[CAPABILITY …]{after}");
    }
    // Dovecot adds `[host:2026-11-25 18:17:03]`, so that its administrator finds the moment in the log.
    if let Some((before, rest)) = text.clone().split_once(" failure. [")
        && let Some((_, after)) = rest.split_once(']')
    {
        text = format!("{before} failure. […]{after}");
    }
    // Its tools name their process: `doveadm(fry)<4711><>: Error: …`.
    if let Some((_, error)) = text.split_once("<>: ") {
        text = text.split('(').next().map_or(error.to_owned(), |tool| format!("{tool}: {error}"));
    }
    let is_id = |word: &str| {
        word.len() >= 20
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=.".contains(&byte))
    };
    let words = text.split(' ').map(|word| if is_id(word) { "…" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

/// What a command came to: its exit code and what it printed, on one line.
pub(crate) fn said(command: &mut std::process::Command) -> String {
    let output = command.output().unwrap();
    let code = output.status.code().map_or("-".to_owned(), |code| code.to_string());
    format!("exit {code}: {}", super::printed(&output).trim().replace('\n', " / "))
}
