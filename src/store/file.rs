//! The database file itself: made private, and watched. SQLite goes on writing into a file that was deleted or
//! replaced under it and says nothing; everything written then is lost.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::StoreError;

/// Which file was opened.
#[derive(Debug)]
pub(super) struct Identity {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Identity {
    /// Makes the file (0600) and its directory (0700) where they are missing.
    pub(super) fn prepare(path: &Path) -> Result<Self, StoreError> {
        let named = Self::named(path);
        if let Some(parent) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(&named)?;
        }
        OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(&named)?;
        Self::find(path)
    }

    /// The file as it is; made nowhere.
    pub(super) fn find(path: &Path) -> Result<Self, StoreError> {
        let file = fs::metadata(path).map_err(Self::named(path))?;
        Ok(Self { path: path.to_owned(), device: file.dev(), inode: file.ino() })
    }

    fn named(path: &Path) -> impl Fn(io::Error) -> StoreError {
        move |source| StoreError::Misconfigured { what: format!("{}: {source}", path.display()) }
    }

    /// One `stat`: is the file still where it was?
    pub(super) fn check(&self) -> Result<(), StoreError> {
        match fs::metadata(&self.path) {
            Ok(file) if file.dev() == self.device && file.ino() == self.inode => Ok(()),
            Ok(_) => Err(self.gone("was replaced while in use; restart to use the new file")),
            Err(error) => Err(self.gone(&error.to_string())),
        }
    }

    fn gone(&self, why: &str) -> StoreError {
        StoreError::Unavailable {
            what: format!("database file {}: {why}", self.path.display()),
            source: None,
        }
    }
}
