//! What a reload would change.

use std::collections::{BTreeMap, BTreeSet};

use super::{Config, show};

/// The differences of two configurations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Changes {
    /// Every key that is new, gone or has another value.
    pub keys: BTreeSet<String>,
    /// Doors that are new, gone or changed, by name.
    pub listeners: BTreeSet<String>,
    /// `node.control` changed.
    pub control: bool,
    /// `[store]` changed.
    pub store: bool,
    /// `[log]` changed.
    pub log: bool,
}

impl Changes {
    /// Whether both are the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The keys that take effect only after a restart, for the operator: `[node]`, `[store]`, `[listen]`, `[shared]`,
    /// `log.format`, `memory.capacity`.
    #[must_use]
    pub fn need_restart(&self) -> Vec<&str> {
        let fixed = |key: &&str| {
            let at = ["node.", "store.", "listen.", "shared.", "log.format", "memory.capacity"];
            at.iter().any(|at| key.starts_with(at))
        };
        self.keys.iter().map(String::as_str).filter(fixed).collect()
    }
}

/// Compares the running configuration with a new one.
pub fn differences(old: &Config, new: &Config) -> Changes {
    let flat = |config: &Config| -> BTreeMap<_, _> {
        show::entries(config).into_iter().map(|entry| (entry.key, entry.value)).collect()
    };
    let (before, after) = (flat(old), flat(new));
    let mut keys: BTreeSet<String> = before
        .keys()
        .chain(after.keys())
        .filter(|key| before.get(*key) != after.get(*key))
        .cloned()
        .collect();
    // Secrets look alike when shown, so they are compared themselves.
    for (name, door) in &old.listen {
        let Some(other) = new.listen.get(name) else { continue };
        for (key, old, new) in [
            ("token", &door.token, &other.token),
            ("password_key", &door.password_key, &other.password_key),
        ] {
            if old != new {
                keys.insert(super::dotted(&["listen", name, key]));
            }
        }
    }
    if old.shared.url != new.shared.url {
        keys.insert("shared.url".into());
    }
    for (name, directory) in &old.directory {
        let other = new.directory.get(name);
        if other.is_some_and(|other| other.bind_password != directory.bind_password) {
            keys.insert(super::dotted(&["directory", name, "bind_password"]));
        }
    }
    let doors = old.listen.keys().chain(new.listen.keys());
    let changed_doors = doors.filter(|name| old.listen.get(*name) != new.listen.get(*name));
    Changes {
        keys,
        listeners: changed_doors.cloned().collect(),
        control: old.node.control != new.node.control,
        store: old.store != new.store,
        log: old.log != new.log,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::listen::Listen;
    use crate::secret::Secret;

    fn check(change: impl FnOnce(&mut Config), keys: &[&str], restart: &[&str]) -> Changes {
        let door = Listen { path: Some("/run/x".into()), ..Listen::default() };
        let mut old = Config::default();
        old.listen.insert("web".into(), door);
        old.directory.insert("corp".into(), Default::default());
        let mut new = old.clone();
        change(&mut new);
        let changes = differences(&old, &new);
        assert_eq!(changes.keys.iter().map(String::as_str).collect::<Vec<_>>(), keys);
        assert_eq!(changes.need_restart(), restart);
        changes
    }

    #[test]
    fn each_change_is_named_and_what_a_reload_cannot_swap_is_told_apart() {
        assert!(check(|_| {}, &[], &[]).is_empty());
        let changes = check(|new| new.log.level = "debug".into(), &["log.level"], &[]);
        assert!(changes.log && !changes.store && !changes.control);
        let _ = check(|new| new.memory.capacity.0 += 1, &["memory.capacity"], &["memory.capacity"]);
        let changes =
            check(|new| new.store.url = "sqlite:///x".into(), &["store.url"], &["store.url"]);
        assert!(changes.store);
        let changes =
            check(|new| new.node.control = "/x".into(), &["node.control"], &["node.control"]);
        assert!(changes.control);
    }

    #[test]
    fn a_changed_secret_is_a_change_though_it_never_shows() {
        let _ = check(
            |new| new.directory.get_mut("corp").unwrap().bind_password = Secret::new("a"),
            &["directory.corp.bind_password"],
            &[],
        );
        let changes = check(
            |new| new.listen.get_mut("web").unwrap().token = Secret::new("a"),
            &["listen.web.token"],
            &["listen.web.token"],
        );
        assert!(changes.listeners.contains("web"));
        let _ = check(
            |new| new.shared.url = Secret::new("redis://:a@host"),
            &["shared.url"],
            &["shared.url"],
        );
    }

    #[test]
    fn a_door_that_is_gone_is_a_change() {
        let door = Listen { path: Some("/run/x".into()), ..Listen::default() };
        let mut old = Config::default();
        old.listen.insert("web".into(), door);
        let changes = differences(&old, &Config::default());
        assert!(changes.listeners.contains("web") && !changes.need_restart().is_empty());
    }
}
