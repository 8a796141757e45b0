#!/usr/bin/env python3
"""Compares members of a JSON object on stdin: has.py MEMBER=VALUE... A list is written a,b,c; order does not matter.

Prints what the object holds for these members; exits 1 when one differs, 2 when stdin is not a JSON object.
"""

import json
import sys


def shown(value):
    """A value as it is written on the command line."""
    if isinstance(value, list):
        return ",".join(sorted(map(str, value)))
    return value if isinstance(value, str) else json.dumps(value)


def main():
    """Compares."""
    try:
        found = json.load(sys.stdin)
    except ValueError as error:
        print(f"no JSON: {error}")
        return 2
    if not isinstance(found, dict):
        print("no JSON object")
        return 2
    wanted = dict(argument.split("=", 1) for argument in sys.argv[1:])
    print(" ".join(f"{member}={shown(found.get(member))}" for member in wanted))
    return int(any(shown(found.get(member)) != value for member, value in wanted.items()))


sys.exit(main())
