//! What a server serves. It can be exchanged while the server runs: a connection keeps the version that it shook hands with,
//! so that each of its answers is of that one.

use super::options::ServeOptions;
use super::wire::Failure;
use crate::store::{Shards, StoreError, read_manifest};
use crate::wire::Identity;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

/// Shards, and who serves them.
#[derive(Debug)]
pub(super) struct Version {
    pub(super) shards: Arc<Shards>,
    pub(super) identity: Identity,
}

impl Version {
    /// Shards that are verified as the options say.
    ///
    /// # Errors
    /// Files that differ from the manifest.
    fn of(shards: Arc<Shards>, options: &ServeOptions) -> Result<Arc<Self>, StoreError> {
        shards.clone().verify_when(options.verify)?;
        let manifest = shards.manifest();
        let identity = Identity {
            plan_id: manifest.plan_id.clone(),
            fingerprint: manifest.fingerprint.clone(),
            token: options.token.clone(),
            size: options.servers as u32,
        };
        Ok(Arc::new(Self { shards, identity }))
    }
}

/// The present version, and where the next comes from.
#[derive(Debug)]
pub(super) struct Versions {
    present: Mutex<Arc<Version>>,
    dir: Option<PathBuf>,
    reloading: Mutex<()>,
}

impl Versions {
    /// Begins with these shards; others may come from `dir`.
    ///
    /// # Errors
    /// Files that differ from the manifest.
    pub(super) fn new(shards: Arc<Shards>, dir: Option<PathBuf>, options: &ServeOptions) -> Result<Self, StoreError> {
        Ok(Self { present: Mutex::new(Version::of(shards, options)?), dir, reloading: Mutex::new(()) })
    }

    /// What new connections get.
    pub(super) fn present(&self) -> Arc<Version> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Opens the directory anew, which is to hold the plan `plan_id`; until all is open and after an error, the present version
    /// stays. Reads files; not for a thread that serves.
    pub(super) fn reload(&self, plan_id: &str, options: &ServeOptions) -> Result<(), Failure> {
        let alone = self.reloading.try_lock();
        if matches!(alone, Err(TryLockError::WouldBlock)) {
            return Err(Failure::Busy("it is opening its directory already".into()));
        }
        let Some(dir) = &self.dir else {
            return Err(Failure::Refused("this server was not started with a directory".into()));
        };
        let present = self.present();
        let stays = |e: StoreError| Failure::Corrupt(format!("{e}; it goes on with plan id {}", present.identity.plan_id));
        let manifest = read_manifest(dir).map_err(stays)?;
        if manifest.plan_id != plan_id {
            let (found, dir, old) = (&manifest.plan_id, dir.display(), &present.identity.plan_id);
            return Err(Failure::Refused(format!("{dir}: expected plan id {plan_id}, found {found}; it goes on with plan id {old}")));
        }
        let mut shards = Shards::of_server(dir, Arc::new(manifest), options.servers, options.index).map_err(stays)?;
        shards.count_with(&present.shards);
        let next = Version::of(Arc::new(shards), options).map_err(stays)?;
        *self.present.lock().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }
}
