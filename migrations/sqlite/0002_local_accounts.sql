-- Who checks the password of a mailbox: a directory by its name, or '' for the hash below. The hash stays as it is while a
-- directory checks, and the link stays while the hash does: switching back finds both.
ALTER TABLE mailboxes ADD COLUMN provider TEXT NOT NULL DEFAULT '';
ALTER TABLE mailboxes ADD COLUMN password TEXT;
UPDATE mailboxes SET provider = COALESCE((SELECT profile FROM links WHERE mailbox = mailboxes.id), '');
