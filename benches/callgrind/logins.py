"""Logs in at a daemon under callgrind and prints the instructions per remembered login.

    logins.py DIRECTORY PID
    logins.py DIRECTORY         logs in once, anywhere

Each count is the difference of two runs of different length, which leaves out whatever is done once. The instructions
of the whole process count, those of the journal's thread too.
"""

import base64
import glob
import os
import re
import socket
import subprocess
import sys
import time

DIRECTORY, PID = sys.argv[1], (sys.argv + [None])[2]
IN_FLIGHT = 32


def request(number):
    credentials = base64.b64encode(b"\0joe@load.example\0correct-horse").decode()
    return (
        f"AUTH\t{number}\tPLAIN\tservice=imap\tsecured\tsession=cT9sKl{number:08x}\tlip=192.0.2.1\trip=192.0.2.77\t"
        f"lport=143\trport=50100\tresp={credentials}\n"
    ).encode()


class Client:
    def __init__(self):
        deadline = time.monotonic() + 120
        while True:
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(f"{DIRECTORY}/auth")
                break
            except OSError:
                if time.monotonic() > deadline:
                    sys.exit("the daemon does not listen")
                time.sleep(0.1)
        self.socket.settimeout(120)
        self.input = self.socket.makefile("rb")
        while self.input.readline() != b"DONE\n":
            pass
        self.socket.sendall(b"VERSION\t1\t2\nCPID\t4711\n")
        self.number = 0

    def log_in(self, logins, at_once):
        """All requests that are in flight at once leave with one write, and the next when all are answered."""
        for _ in range(logins // at_once):
            first = self.number + 1
            self.number += at_once
            self.socket.sendall(b"".join(request(number) for number in range(first, self.number + 1)))
            for _ in range(at_once):
                answer = self.input.readline()
                if not answer.startswith(b"OK\t") or b"\tuser=joe@load.example" not in answer:
                    sys.exit(f"a login was answered with {answer!r}")


def control(*arguments):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(["callgrind_control", *arguments, PID], check=True, **quiet)


def dumped():
    """Instructions since the counts were last dumped: the totals of the file that this dump makes."""
    before = set(glob.glob(f"{DIRECTORY}/counts*"))
    control("--dump")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for path in sorted(set(glob.glob(f"{DIRECTORY}/counts*")) - before):
            with open(path) as file:
                total = re.search(r"^(?:totals|summary): (\d+)", file.read(), re.M)
            if total and os.path.getsize(path):
                return int(total.group(1))
        time.sleep(0.05)
    sys.exit("callgrind did not dump its counts")


def measure(client, logins, at_once):
    dumped()
    client.log_in(logins, at_once)
    # The journal writes at leisure.
    time.sleep(0.5)
    return dumped()


client = Client()
client.log_in(1, 1)
if PID is None:
    sys.exit()
client.log_in(10 * IN_FLIGHT, IN_FLIGHT)
for name, at_once in [("remembered-32-in-flight", IN_FLIGHT), ("remembered-one-at-a-time", 1)]:
    short, long = 32 * IN_FLIGHT, 128 * IN_FLIGHT
    client.log_in(short, at_once)
    few, many = measure(client, short, at_once), measure(client, long, at_once)
    print(name, (many - few) // (long - short))
