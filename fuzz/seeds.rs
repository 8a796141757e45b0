//! Makes seeds of tests/dialogues: what a client says there is what a fuzzer had to guess. A program of one file, made
//! and run by `fuzz/run`:
//!
//!     seeds DIRECTORY     writes DIRECTORY/TARGET/DIALOGUE
#![allow(dead_code, reason = "the players of the dialogues use the rest")]

#[path = "../tests/dialogues/script.rs"]
mod script;

use std::fs;
use std::path::Path;

/// The target for a `socket` line, and its choice (see `Stream` in src/lib.rs).
fn target(socket: &str) -> (&'static str, u8) {
    match socket {
        "login" => ("dovecot_auth", 0),
        "client" => ("dovecot_auth", 1),
        "master" => ("dovecot_master", 0),
        "userdb" => ("dovecot_master", 1),
        "dict" => ("dict", 0),
        "checkpassword" => ("checkpassword", 0),
        "policy" => ("policy", 0),
        "saslauthd" => ("saslauthd", 0),
        "socketmap" => ("socketmap", 0),
        other => panic!("fuzz/seeds.rs: which target is for socket {other}?"),
    }
}

fn main() {
    let directory = std::env::args().nth(1).expect("the directory of all seeds");
    for dialogue in script::read_dialogues() {
        let (target, choice) = target(&dialogue.socket);
        let mut seed = vec![choice << 2];
        for step in &dialogue.steps {
            if let script::Step::Client(bytes) = step {
                seed.extend(bytes);
            }
        }
        let folder = Path::new(&directory).join(target);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(dialogue.name.replace('/', "-")), seed).unwrap();
    }
}
