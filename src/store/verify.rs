//! Shard files beside the checksums of their manifest.

use super::shards::{Shards, read_manifest};
use super::{StoreError, checksum};
use std::sync::Arc;

/// When the checksums of shard files are compared with the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// Before serving if the files are small (64 MiB), else in the background while serving.
    #[default]
    Auto,
    /// Before serving.
    Eager,
    /// While serving; from the first difference on every request is refused.
    Background,
    /// Never.
    Off,
}

/// [`Verify::Auto`] reads this much before it serves.
const SMALL: u64 = 64 << 20;

impl Shards {
    /// Verifies now, in the background or not at all.
    ///
    /// # Errors
    /// As [`Shards::verify`], if it is done now.
    pub fn verify_when(self: Arc<Self>, when: Verify) -> Result<(), StoreError> {
        match when {
            Verify::Eager => self.verify(),
            Verify::Auto if self.bytes() <= SMALL => self.verify(),
            Verify::Auto | Verify::Background => {
                std::thread::spawn(move || {
                    if let Err(e) = self.verify() {
                        tracing::error!("{e}; every request is refused from now on");
                    }
                });
                Ok(())
            }
            Verify::Off => Ok(()),
        }
    }

    /// Compares the checksum of every file that is mapped here with the manifest. From the first that differs on, lookups
    /// fail too. Ends early where the directory was replaced meanwhile: its files are not those that are mapped.
    ///
    /// # Errors
    /// Names the file, the expected and the found checksum.
    pub fn verify(&self) -> Result<(), StoreError> {
        for piece in self.pieces() {
            let name = &piece.file;
            let found = checksum(&self.dir.join(name));
            if found.as_ref().ok() == Some(&piece.checksum) {
                continue;
            }
            if read_manifest(&self.dir).is_ok_and(|m| m.plan_id != self.manifest.plan_id) {
                tracing::warn!("{} was replaced before the files that are served were verified", self.dir.display());
                return Ok(());
            }
            let found = found.map_err(|e| StoreError::Corrupt(format!("shard file \"{name}\": {e}")))?;
            let what = format!("shard file \"{name}\": expected checksum {}, found {found}", piece.checksum);
            return Err(self.fault.get_or_init(|| StoreError::Corrupt(what)).clone());
        }
        Ok(())
    }
}
