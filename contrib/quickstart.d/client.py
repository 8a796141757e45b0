#!/usr/bin/env python3
"""A mail client for the quickstart: one login over STARTTLS, and what the server said to it.

    client.py imap|pop3|sieve|smtp PORT CA_FILE NAME PASSWORD
    client.py send PORT CA_FILE NAME PASSWORD SUBJECT    by SMTP, to NAME itself
    client.py find PORT CA_FILE NAME PASSWORD SUBJECT    by IMAP, until the mail is there
    client.py quota PORT CA_FILE NAME PASSWORD           what IMAP says of the mailbox's quota

Prints one line `MILLISECONDS OUTCOME WORDS`. OUTCOME is `accepted`, `refused` (the password is at fault), `later`
(nobody can say now: the mail program keeps the password and tries again) or `odd`; WORDS are the server's own.
MILLISECONDS is the time from the credentials to the answer, without connecting and TLS.
"""

import base64
import imaplib
import poplib
import re
import smtplib
import socket
import ssl
import sys
import time

HOST = "127.0.0.1"
TIMEOUT_SECONDS = 12  # a login is decided within 8 s

# How each protocol says that it is not the password's fault. RFC 5530, RFC 3206, RFC 4954, RFC 5804.
LATER = {"imap": "[UNAVAILABLE]", "pop3": "[SYS/TEMP]", "sieve": "(TRYLATER)", "smtp": "454 "}
REFUSED = re.compile(r"\[(AUTHENTICATIONFAILED|AUTHORIZATIONFAILED|AUTH|ALERT|EXPIRED)\]|^535 |^NO( |$)")


class Answer:
    """The server's answer to the credentials, with the time it took."""

    def __init__(self, protocol, started, accepted, words):
        self.milliseconds = (time.perf_counter() - started) * 1000
        self.words = words
        if accepted:
            self.outcome = "accepted"
        elif LATER[protocol] in words:
            self.outcome = "later"
        else:
            self.outcome = "refused" if REFUSED.search(words) else "odd"


def text(value):
    """Server text, whatever it holds, on one line."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return " ".join(str(value).split())


def imap(port, tls, name, password):
    """Logs in; gives the connection and the answer."""
    connection = imaplib.IMAP4(HOST, port, TIMEOUT_SECONDS)
    connection.starttls(tls)
    started = time.perf_counter()
    try:
        status, words = connection.login(name, password)
        return connection, Answer("imap", started, True, f"{status} {text(words[0])}")
    except imaplib.IMAP4.error as error:
        words = error.args[0] if error.args else ""
        return connection, Answer("imap", started, False, f"NO {text(words)}")


def pop3(port, tls, name, password):
    """Logs in; gives the connection and the answer."""
    connection = poplib.POP3(HOST, port, TIMEOUT_SECONDS)
    connection.stls(tls)
    started = time.perf_counter()
    try:
        connection.user(name)
        return connection, Answer("pop3", started, True, text(connection.pass_(password)))
    except poplib.error_proto as error:
        return connection, Answer("pop3", started, False, text(error.args[0]))


def smtp(port, tls, name, password):
    """Logs in; gives the connection and the answer."""
    connection = smtplib.SMTP(HOST, port, "client.example", TIMEOUT_SECONDS)
    connection.starttls(context=tls)
    connection.ehlo()
    started = time.perf_counter()
    plain = base64.b64encode(f"\0{name}\0{password}".encode()).decode()
    code, words = connection.docmd("AUTH", f"PLAIN {plain}")
    return connection, Answer("smtp", started, code == 235, f"{code} {text(words)}")


class Sieve:
    """The little of ManageSieve (RFC 5804) that a login needs; Python has no library for it."""

    def __init__(self, port, tls):
        self.socket = socket.create_connection((HOST, port), TIMEOUT_SECONDS)
        self.lines = self.socket.makefile("rb")
        self.answer()
        self.command("STARTTLS")
        self.socket = tls.wrap_socket(self.socket, server_hostname=HOST)
        self.lines = self.socket.makefile("rb")
        self.answer()

    def answer(self):
        """The final line of an answer: capabilities come before it."""
        while True:
            line = self.lines.readline()
            if not line:
                return "the server hung up"
            if line.startswith((b"OK", b"NO", b"BYE")):
                return text(line)

    def command(self, line):
        """Sends one command."""
        self.socket.sendall(line.encode() + b"\r\n")
        return self.answer()


def sieve(port, tls, name, password):
    """Logs in; gives the connection and the answer."""
    connection = Sieve(port, tls)
    started = time.perf_counter()
    plain = base64.b64encode(f"\0{name}\0{password}".encode()).decode()
    words = connection.command(f'AUTHENTICATE "PLAIN" "{plain}"')
    return connection, Answer("sieve", started, words.startswith("OK"), words)


def send(port, tls, name, password, subject):
    """Logs in by SMTP and sends a mail from NAME to NAME."""
    connection, answer = smtp(port, tls, name, password)
    if answer.outcome == "accepted":
        mail = f"From: <{name}>\r\nTo: <{name}>\r\nSubject: {subject}\r\n\r\nGood news, everyone!\r\n"
        refused = connection.sendmail(name, [name], mail)
        answer.words = f"refused: {refused}" if refused else "sent"
    return connection, answer


def find(port, tls, name, password, subject):
    """Logs in by IMAP and waits for the mail with that subject."""
    connection, answer = imap(port, tls, name, password)
    answer.words = "no such mail within 10 s"
    for _ in range(100):
        connection.select("INBOX", readonly=True)
        _, found = connection.search(None, "SUBJECT", f'"{subject}"')
        if found[0]:
            answer.words = "found"
            break
        time.sleep(0.1)
    return connection, answer


def quota(port, tls, name, password):
    """Logs in by IMAP and asks for the quota of the mailbox."""
    connection, answer = imap(port, tls, name, password)
    _, (_, roots) = connection.getquotaroot("INBOX")
    answer.words = text(roots[0]) if roots and roots[0] else "no quota"
    return connection, answer


def main():
    """Does what the command line asks for."""
    actions = {f.__name__: f for f in (imap, pop3, sieve, smtp, send, find, quota)}
    if len(sys.argv) < 6 or sys.argv[1] not in actions:
        sys.exit(__doc__)
    action, port, ca_file, name, password, *more = sys.argv[1:]
    try:
        tls = ssl.create_default_context(cafile=ca_file)
        _connection, answer = actions[action](int(port), tls, name, password, *more)
        print(f"{answer.milliseconds:.1f} {answer.outcome} {answer.words}")
    except (OSError, EOFError, imaplib.IMAP4.error, poplib.error_proto, smtplib.SMTPException) as error:
        print(f"0.0 odd {type(error).__name__}: {text(error)}")


main()
