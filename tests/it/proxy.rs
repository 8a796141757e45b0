//! Doors behind a real HAProxy: the journal and `allow` see the client, not the proxy.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use crate::support::clients::{AuthClient, Wire, plain};
use crate::support::gatepost::{Configuration, Gatepost};
use crate::support::haproxy::Haproxy;
use crate::support::slapd::{Slapd, mail_of, password_of};
use crate::support::{program, run, wait_until};

/// A client on the net, as far as this machine has one.
const CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
/// A mail server whose word is believed.
const MAIL_SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 8);

fn start(slapd: &Slapd) -> Gatepost {
    let mut configuration = Configuration::new(slapd);
    for door in ["listen.auth-tcp", "listen.proxied"] {
        if door == "listen.proxied" {
            let address = format!("address = \"127.0.0.1:{}\"", crate::support::free_port());
            configuration.set(door, &format!("protocol = \"http\"\nanonymous = true\n{address}"));
        }
        configuration
            .add(door, "proxy_protocol = true\nallow = [\"127.0.0.0/8\", \"192.0.2.0/24\"]");
        configuration.add(door, &format!("trusted = [\"127.0.0.1\", \"{MAIL_SERVER}\"]"));
    }
    configuration.start()
}

fn proxied_port(gatepost: &Gatepost) -> u16 {
    let text = gatepost.configuration.table("listen.proxied");
    let (_, port) = text.split_once("127.0.0.1:").unwrap();
    port.split('"').next().unwrap().parse().unwrap()
}

/// The last line of the journal, once there are so many.
fn journal(gatepost: &Gatepost, lines: usize) -> String {
    let journal = || -> Vec<String> {
        let log = gatepost.log();
        log.lines().filter(|line| line.contains(" login verdict=")).map(str::to_owned).collect()
    };
    wait_until("the line is written", Duration::from_secs(5), || journal().len() >= lines);
    journal().pop().unwrap()
}

#[test]
fn behind_haproxy_the_journal_shows_the_clients_address_on_every_protocol() {
    let slapd = Slapd::start();
    let gatepost = start(&slapd);
    let haproxy = Haproxy::start(gatepost.configuration.auth_port, proxied_port(&gatepost));
    let (name, password) = (mail_of("fry"), password_of("fry"));
    let login = |source, fields| {
        let mut client = AuthClient::connect(Wire::TcpFrom(source, haproxy.auth), 0);
        client.login(fields, &name, &password)
    };

    // A stranger is not believed about others; what the header says stands.
    let answer = login(CLIENT, "service=smtp\trip=192.0.2.55\tnologin");
    assert!(answer.starts_with("OK\t"), "{answer}");
    let line = journal(&gatepost, 1);
    assert!(
        line.contains(&format!(" client={CLIENT} ")) && line.contains(" door=auth-tcp "),
        "{line}"
    );

    // A trusted mail server is, and what it does not say is not made up.
    login(MAIL_SERVER, "service=smtp\trip=192.0.2.55\tnologin");
    let line = journal(&gatepost, 2);
    assert!(line.contains(" client=192.0.2.55 "), "{line}");
    login(MAIL_SERVER, "service=smtp\tnologin");
    let line = journal(&gatepost, 3);
    assert!(!line.contains("client="), "{line}");

    let body = serde_json::json!({"username": name, "password": password, "service": "imap"});
    let mut curl = program("curl", "curl");
    curl.args([
        "--silent",
        "--fail",
        "--interface",
        &CLIENT.to_string(),
        "--data",
        &body.to_string(),
    ]);
    let answer = run(curl.arg(format!("http://127.0.0.1:{}/v1/login", haproxy.web)));
    assert!(answer.contains("\"accept\""), "{answer}");
    let line = journal(&gatepost, 4);
    assert!(
        line.contains(&format!(" client={CLIENT} ")) && line.contains(" door=proxied "),
        "{line}"
    );
}

#[test]
fn whom_the_proxy_does_not_name_is_not_let_in_and_only_the_proxy_itself_is_believed() {
    let slapd = Slapd::start();
    let gatepost = start(&slapd);
    let credentials = plain(mail_of("fry").as_bytes(), password_of("fry").as_bytes());
    let login = |header: &[u8]| {
        let port = gatepost.configuration.auth_port;
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let request = format!(
            "VERSION\t1\t2\nCPID\t1\nAUTH\t1\tPLAIN\tservice=smtp\trip=192.0.2.55\tnologin\tresp={credentials}\n"
        );
        // A door that closed already says nothing, which is what counts.
        drop(stream.write_all(&[header, request.as_bytes()].concat()));
        let lines = BufReader::new(stream).lines().map_while(Result::ok);
        lines.skip_while(|line| line != "DONE").nth(1)
    };
    let binary = |rest: &[u8]| [b"\r\n\r\n\0\r\nQUIT\n", rest].concat();

    for header in [b"PROXY UNKNOWN\r\n".to_vec(), binary(b"\x21\0\0\0")] {
        assert_eq!(login(&header), None, "{}", header.escape_ascii());
    }
    let answer = login(&binary(b"\x20\0\0\0")).unwrap();
    assert!(answer.starts_with("OK\t"), "{answer}");
    let line = journal(&gatepost, 1);
    assert!(line.contains(" client=192.0.2.55 "), "{line}");
}

#[test]
fn without_a_header_or_from_a_stranger_a_connection_is_closed_and_counted() {
    let slapd = Slapd::start();
    let gatepost = start(&slapd);
    let port = gatepost.configuration.auth_port;
    let header = b"PROXY TCP4 192.0.2.9 192.0.2.1 1 2\r\n";
    let said = |from: Option<Ipv4Addr>, bytes: &[u8]| {
        let mut stream = match from {
            None => TcpStream::connect(("127.0.0.1", port)).unwrap(),
            Some(source) => crate::support::clients::connect_from(source, port),
        };
        drop(stream.write_all(bytes));
        let mut first = [0; 7];
        let length = stream.read(&mut first).unwrap_or(0);
        String::from_utf8_lossy(&first[..length]).into_owned()
    };
    let errors = || gatepost.metric("gatepost_protocol_errors_total", &["door=\"auth-tcp\""]);

    assert_eq!(said(None, header), "VERSION");
    assert_eq!(said(None, b"VERSION\t1\t0\nCPID\t1\n"), "");
    assert_eq!(said(Some(CLIENT), header), "");

    // The end of the connection is seen before it is counted.
    wait_until("both are counted", Duration::from_secs(5), || errors() > 1.5);
    assert!(errors() < 2.5, "{}", errors());
    let log = gatepost.log();
    assert_eq!(log.matches("without the header of a trusted proxy").count(), 1, "{log}");
    assert!(!log.contains("VERSION\\t1"), "what was no header stands in the log: {log}");
}
