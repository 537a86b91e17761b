//! What a server serves. It can be exchanged while the server runs: a connection keeps the version that it shook hands with,
//! so that each of its answers is of that one.

use super::options::ServeOptions;
use super::wire::Failure;
use crate::plan::Manifest;
use crate::store::{Shards, StoreError, Verify, read_manifest};
use crate::wire::Identity;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a reload waits for another: its connection may have ended without being closed here.
const PATIENCE: Duration = Duration::from_millis(500);

/// Shards, and who serves them.
#[derive(Debug)]
pub(super) struct Version {
    pub(super) shards: Arc<Shards>,
    pub(super) identity: Identity,
}

impl Version {
    /// Shards, verified at this time.
    ///
    /// # Errors
    /// Files that differ from the manifest.
    fn of(shards: Arc<Shards>, when: Verify, options: &ServeOptions) -> Result<Arc<Self>, StoreError> {
        shards.clone().verify_when(when)?;
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

/// The next version, which nobody else prepares as long as this is there.
#[derive(Debug)]
pub(super) struct Prepared {
    version: Arc<Version>,
    _turn: OwnedSemaphorePermit,
}

impl Prepared {
    /// Its plan.
    pub(super) fn plan_id(&self) -> &str {
        &self.version.identity.plan_id
    }
}

/// The present version, and where the next comes from.
#[derive(Debug)]
pub(super) struct Versions {
    present: Mutex<Arc<Version>>,
    dir: Option<PathBuf>,
    alone: Arc<Semaphore>,
}

impl Versions {
    /// Begins with these shards; others may come from `dir`.
    ///
    /// # Errors
    /// Files that differ from the manifest.
    pub(super) fn new(shards: Arc<Shards>, dir: Option<PathBuf>, options: &ServeOptions) -> Result<Self, StoreError> {
        let present = Version::of(shards, options.verify, options)?;
        Ok(Self { present: Mutex::new(present), dir, alone: Arc::new(Semaphore::new(1)) })
    }

    /// What new connections get.
    pub(super) fn present(&self) -> Arc<Version> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The right to prepare a version, which one at a time has.
    pub(super) async fn turn(&self) -> Result<OwnedSemaphorePermit, Failure> {
        match tokio::time::timeout(PATIENCE, self.alone.clone().acquire_owned()).await {
            Ok(Ok(turn)) => Ok(turn),
            _ => Err(Failure::Busy("another reload is under way".into())),
        }
    }

    /// Opens the directory anew, which is to hold the plan `plan_id`, and verifies all files of this server, unless they are not
    /// to be verified; the present version goes on. Reads files; not for a thread that serves.
    pub(super) fn prepare(&self, turn: OwnedSemaphorePermit, plan_id: &str, options: &ServeOptions) -> Result<Prepared, Failure> {
        let Some(dir) = &self.dir else {
            return Err(Failure::Refused("this server was not started with a directory".into()));
        };
        let present = self.present();
        let stays = |e: StoreError| Failure::Corrupt(format!("{e}; it goes on with plan id {}", present.identity.plan_id));
        let holds = |manifest: &Manifest| {
            let (found, dir, old) = (&manifest.plan_id, dir.display(), &present.identity.plan_id);
            let other = || Failure::Refused(format!("{dir}: expected plan id {plan_id}, found {found}; it goes on with plan id {old}"));
            if found == plan_id { Ok(()) } else { Err(other()) }
        };
        let manifest = read_manifest(dir).map_err(stays)?;
        holds(&manifest)?;
        let mut shards = Shards::of_server(dir, Arc::new(manifest), options.servers, options.index).map_err(stays)?;
        shards.count_with(&present.shards);
        // Nobody waits for rows of it yet, so there is time.
        let when = if options.verify == Verify::Off { Verify::Off } else { Verify::Eager };
        let version = Version::of(Arc::new(shards), when, options).map_err(stays)?;
        // Files of a directory that was replaced meanwhile were not verified.
        holds(&read_manifest(dir).map_err(stays)?)?;
        Ok(Prepared { version, _turn: turn })
    }

    /// Serves a version to connections that are made from now on.
    pub(super) fn commit(&self, prepared: Prepared) {
        *self.present.lock().unwrap_or_else(PoisonError::into_inner) = prepared.version;
    }
}
