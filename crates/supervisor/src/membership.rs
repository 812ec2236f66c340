//! A job's place in a computation of several.
//!
//! The process that starts a job joins the coordinator, as it must know the computation to name the job's images. The
//! connection then goes to the supervisor, which speaks for the job from its start to its end.

use stasis_coordinator::Link;
use stasis_coordinator::link::{Address, Joined};
use stasis_coordinator::protocol::Join;
use std::sync::{Arc, Mutex, PoisonError};

/// What a job needs to be a member.
#[derive(Clone, Debug)]
pub struct Membership {
    /// Where the coordinator is.
    pub(crate) address: Address,
    /// What the job joined with.
    pub(crate) join: Join,
    /// What the coordinator answered.
    pub(crate) joined: Joined,
    link: Arc<Mutex<Option<Link>>>,
}

impl Membership {
    /// Joins the coordinator at `address`.
    ///
    /// # Errors
    /// Those of [`Link::join`].
    pub fn join(address: &Address, join: Join) -> Result<Membership, stasis_coordinator::Error> {
        let (link, joined) = Link::join(address, &join)?;
        Ok(Membership {
            address: address.clone(),
            join,
            joined,
            link: Arc::new(Mutex::new(Some(link))),
        })
    }

    /// Where the coordinator is.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// What the coordinator answered.
    #[must_use]
    pub fn joined(&self) -> &Joined {
        &self.joined
    }

    /// The connection; of all copies of this value in a process one gets it. A process that drops it leaves it to those that
    /// were forked.
    pub fn take(&self) -> Option<Link> {
        self.link
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}
