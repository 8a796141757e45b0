//! A checkpassword program: Dovecot 2.3 or qmail starts it for each login. docs/protocols/checkpassword.md.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = std::env::args_os().skip(1);
    gatepost::checkpassword::run(arguments, &|name| std::env::var_os(name))
}
