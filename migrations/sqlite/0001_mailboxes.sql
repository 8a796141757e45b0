-- Mail domains, mirrored from the configuration so that their limits can be held here. `mailboxes` and `quota_used`
-- count what the rows below add up to; the same transaction that changes a mailbox changes them.
CREATE TABLE domains (
    name              TEXT    NOT NULL PRIMARY KEY,
    active            INTEGER NOT NULL CHECK (active IN (0, 1)),
    max_mailboxes     INTEGER NOT NULL CHECK (max_mailboxes >= 0),
    quota             INTEGER NOT NULL CHECK (quota >= 0),
    max_mailbox_quota INTEGER NOT NULL CHECK (max_mailbox_quota >= 0),
    mailboxes         INTEGER NOT NULL DEFAULT 0 CHECK (mailboxes >= 0),
    quota_used        INTEGER NOT NULL DEFAULT 0 CHECK (quota_used >= 0)
) STRICT;

-- `protocols` and `pinned` are words with blanks between, `extra` is a JSON object of texts.
CREATE TABLE mailboxes (
    id                INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    domain            TEXT    NOT NULL REFERENCES domains (name),
    template          TEXT    NOT NULL,
    display_name      TEXT    NOT NULL,
    quota             INTEGER NOT NULL CHECK (quota >= 0),
    protocols         TEXT    NOT NULL,
    active            TEXT    NOT NULL CHECK (active IN ('yes', 'no', 'delivery-only')),
    disabled_delivery TEXT    NOT NULL CHECK (disabled_delivery IN ('accept', 'reject', 'tempfail')),
    extra             TEXT    NOT NULL,
    pinned            TEXT    NOT NULL DEFAULT '',
    disabled_by_admin INTEGER NOT NULL DEFAULT 0 CHECK (disabled_by_admin IN (0, 1)),
    home              TEXT    NOT NULL,
    uid               INTEGER NOT NULL,
    gid               INTEGER NOT NULL,
    created_at        INTEGER NOT NULL,
    changed_at        INTEGER NOT NULL
) STRICT;

-- Whatever mail can be sent to, of every kind of owner: the key keeps an address from belonging to two.
CREATE TABLE addresses (
    address TEXT    NOT NULL PRIMARY KEY,
    kind    TEXT    NOT NULL CHECK (kind IN ('mailbox', 'alias')),
    owner   INTEGER NOT NULL,
    origin  TEXT    NOT NULL CHECK (origin IN ('admin', 'directory'))
) STRICT, WITHOUT ROWID;
CREATE INDEX addresses_by_kind ON addresses (kind, address);
CREATE INDEX addresses_by_owner ON addresses (owner, kind);
CREATE UNIQUE INDEX one_canonical_address ON addresses (owner) WHERE kind = 'mailbox';

-- The tie between a directory entry (by its immutable id) and a mailbox.
CREATE TABLE links (
    profile TEXT    NOT NULL,
    id      TEXT    NOT NULL,
    mailbox INTEGER NOT NULL UNIQUE REFERENCES mailboxes (id),
    PRIMARY KEY (profile, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE tags (
    mailbox INTEGER NOT NULL REFERENCES mailboxes (id),
    tag     TEXT    NOT NULL,
    origin  TEXT    NOT NULL CHECK (origin IN ('admin', 'directory')),
    PRIMARY KEY (mailbox, tag)
) STRICT, WITHOUT ROWID;

-- What the directory wants for a mailbox and cannot have. With a `capacity` it was refused for want of room or
-- because of another owner, and is tried again when room was made since.
CREATE TABLE held (
    mailbox  INTEGER NOT NULL REFERENCES mailboxes (id),
    field    TEXT    NOT NULL,
    value    TEXT    NOT NULL,
    why      TEXT    NOT NULL,
    capacity INTEGER,
    PRIMARY KEY (mailbox, field, value)
) STRICT, WITHOUT ROWID;

-- Moves whenever limits change, a quota shrinks or an address becomes free.
CREATE TABLE capacity (
    id       INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    revision INTEGER NOT NULL
) STRICT;
INSERT INTO capacity (id, revision) VALUES (1, 1);
