//! Groups within one process: a single rank, and several for tests and examples.

use super::call::{Answer, Ask, Turn};
use super::member::{Carrier, Member};
use super::rendezvous::Rendezvous;
use super::{Comm, CommError};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

#[derive(Debug)]
struct Here {
    rank: usize,
    meeting: Arc<Rendezvous>,
}

impl Carrier for Here {
    fn submit(&self, turn: Turn, ask: Ask, bytes: Bytes) -> oneshot::Receiver<Answer> {
        self.meeting.submit(self.rank, turn, ask, bytes)
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        self.meeting.lost(self.rank, "it has left the group");
    }
}

/// The group of one rank: a run that is not distributed.
pub fn solo() -> Arc<dyn Comm> {
    Arc::new(Member::new(0, 1, Here { rank: 0, meeting: Arc::new(Rendezvous::new(1, Duration::MAX, usize::MAX)) }))
}

/// A group of `size` ranks within this process. A rank that is dropped is lost to the others.
///
/// # Errors
/// A size of 0.
pub fn local_group(size: usize) -> Result<Vec<Arc<dyn Comm>>, CommError> {
    if size == 0 {
        return Err(CommError::Invalid("a group of 0 ranks".into()));
    }
    let meeting = Arc::new(Rendezvous::new(size, Duration::MAX, usize::MAX));
    let member = |rank| Arc::new(Member::new(rank, size, Here { rank, meeting: meeting.clone() })) as Arc<dyn Comm>;
    Ok((0..size).map(member).collect())
}
