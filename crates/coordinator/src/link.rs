//! A member's side of its connection to a coordinator.

use crate::client::connect;
use crate::error::Error;
use crate::protocol::{FromMember, Join, Opening, ToMember};
use crate::secret::Keys;
use crate::wire::{self, Lines};
use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// How often a member says that it lives.
const SIGN_EVERY: Duration = Duration::from_secs(5);

/// Where a coordinator is, and what proves to it who asks.
#[derive(Clone, Debug)]
pub struct Address {
    /// Name or number of the host.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Where this user's secrets are.
    pub keys: Keys,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// What a coordinator said when it took a member in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The computation.
    pub computation: String,
    /// The member's number.
    pub number: u64,
    /// Number of the last checkpoint.
    pub generation: u64,
    /// Seconds between checkpoints, 0 for none.
    pub interval: u64,
}

/// A member's connection.
#[derive(Debug)]
pub struct Link {
    lines: Lines,
    writer: Voice,
}

/// The way to say something on a link.
#[derive(Clone, Debug)]
pub struct Voice(Arc<TcpStream>);

impl Voice {
    /// Says something.
    ///
    /// # Errors
    /// The kernel's, when the coordinator is gone.
    pub fn say(&self, what: &FromMember) -> io::Result<()> {
        wire::write(&*self.0, what)
    }
    /// Closes the connection for all who have it.
    pub fn close(&self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Link {
    /// Joins the coordinator at `address`.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Stranger`]; [`Error::Told`] when it does not take the job.
    pub fn join(address: &Address, join: &Join) -> Result<(Link, Joined), Error> {
        let mut lines = connect(address)?;
        let lost = |source| Error::Lost {
            address: address.to_string(),
            source,
        };
        wire::write(lines.get(), &Opening::Join(join.clone())).map_err(lost)?;
        let joined = loop {
            match lines.next().map_err(lost)? {
                Some(ToMember::Joined {
                    computation,
                    number,
                    generation,
                    interval,
                }) => {
                    break Joined {
                        computation,
                        number,
                        generation,
                        interval,
                    };
                }
                Some(ToMember::Refused { reason }) => return Err(Error::Told(reason)),
                Some(_) => {}
                None => return Err(lost(io::ErrorKind::UnexpectedEof.into())),
            }
        };
        let stream = lines.get();
        let prepared = stream
            .set_read_timeout(Some(SIGN_EVERY))
            .and_then(|()| stream.try_clone());
        let writer = Voice(Arc::new(prepared.map_err(lost)?));
        Ok((Link { lines, writer }, joined))
    }

    /// The way to say something, also from other threads.
    #[must_use]
    pub fn voice(&self) -> Voice {
        self.writer.clone()
    }

    /// Waits for what the coordinator says, and tells it meanwhile that this member lives. `None` when it is gone.
    #[must_use]
    pub fn hear(&mut self) -> Option<ToMember> {
        loop {
            match self.lines.next() {
                Ok(heard) => return heard,
                Err(error) if wire::is_timeout(&error) => {
                    self.writer.say(&FromMember::Alive).ok()?;
                }
                Err(error) => {
                    tracing::debug!(%error, "the coordinator was lost");
                    return None;
                }
            }
        }
    }
}
