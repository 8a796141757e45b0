-- Entries of the guessing shield's lists that were made at run time. An entry that was taken out stays until its end, so
-- that a node which did not hear of it cannot bring it back. `ends_at` and `changed_at` are milliseconds since 1970.
CREATE TABLE throttle_lists (
    list       TEXT    NOT NULL CHECK (list IN ('allow', 'deny')),
    kind       TEXT    NOT NULL,
    whom       TEXT    NOT NULL,
    reason     TEXT    NOT NULL,
    removed    INTEGER NOT NULL CHECK (removed IN (0, 1)),
    ends_at    INTEGER NOT NULL,
    changed_at INTEGER NOT NULL,
    PRIMARY KEY (list, kind, whom)
) STRICT, WITHOUT ROWID;
