//! Asking a coordinator, and the beginning of every connection to one.

use crate::error::Error;
use crate::link::Address;
use crate::protocol::{Admission, Ask, Credentials, Greeting, Opening, Reply, VERSION};
use crate::secret::{Role, challenge};
use crate::wire::{self, Lines};
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// For how long a coordinator may take over its greeting and its answers to what needs no work.
const PATIENCE: Duration = Duration::from_secs(60);

/// Connects; both sides prove that they know the user's secret.
pub(crate) fn connect(address: &Address) -> Result<Lines, Error> {
    let stream = reach(address)?;
    let stranger = |reason: String| Error::Stranger {
        address: address.to_string(),
        reason,
    };
    let prepared = stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
        .and_then(|()| stream.set_nodelay(true));
    prepared.map_err(|error| stranger(error.to_string()))?;
    let mut lines = Lines::new(stream);
    let greeting: Greeting = match lines.next() {
        Ok(Some(greeting)) => greeting,
        Ok(None) => return Err(stranger("it closed the connection".into())),
        Err(error) => return Err(stranger(format!("it does not greet like one: {error}"))),
    };
    if greeting.stasis_coordinator > VERSION {
        return Err(stranger(format!(
            "it speaks version {}, this program {VERSION}",
            greeting.stasis_coordinator
        )));
    }
    let secret = address.keys.find(&greeting.key).ok_or_else(|| {
        stranger(
            "it has another secret than this user's; a coordinator obeys its own user only".into(),
        )
    })?;
    let ours = challenge().map_err(|error| stranger(error.to_string()))?;
    let credentials = Credentials {
        version: VERSION,
        challenge: ours.clone(),
        proof: secret.prove(Role::Client, &greeting.challenge, &ours),
    };
    let admitted: io::Result<Option<Admission>> =
        wire::write(lines.get(), &credentials).and_then(|()| lines.next());
    match admitted {
        Ok(Some(Admission::Proof(proof)))
            if secret.is_proven(&proof, Role::Server, &greeting.challenge, &ours) =>
        {
            Ok(lines)
        }
        Ok(Some(Admission::Proof(_))) => {
            Err(stranger("it does not know this user's secret".into()))
        }
        Ok(Some(Admission::Refused(reason))) => Err(stranger(reason)),
        Ok(None) => Err(stranger("it closed the connection".into())),
        Err(error) => Err(stranger(error.to_string())),
    }
}

fn reach(address: &Address) -> Result<TcpStream, Error> {
    let not_found = || Error::NotFound(address.to_string());
    let system = |source| Error::System {
        what: format!("connecting to {address}"),
        source,
    };
    let places = (address.host.as_str(), address.port)
        .to_socket_addrs()
        .map_err(system)?;
    let mut last = None;
    for place in places {
        match TcpStream::connect_timeout(&place, PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(not_found, system))
}

/// A command's connection.
#[derive(Debug)]
pub struct Client {
    lines: Lines,
    address: String,
}

impl Client {
    /// Connects to the coordinator at `address`.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Stranger`].
    pub fn connect(address: &Address) -> Result<Client, Error> {
        Ok(Client {
            lines: connect(address)?,
            address: address.to_string(),
        })
    }

    /// Asks, and waits for the reply: for a checkpoint and an end, as long as these take.
    ///
    /// # Errors
    /// [`Error::Lost`].
    pub fn ask(&mut self, ask: Ask) -> Result<Reply, Error> {
        let lost = |source| Error::Lost {
            address: self.address.clone(),
            source,
        };
        let limit = match ask {
            Ask::Checkpoint { .. } | Ask::Kill | Ask::Quit => None,
            _ => Some(PATIENCE),
        };
        let stream = self.lines.get();
        stream
            .set_read_timeout(limit)
            .and_then(|()| wire::write(stream, &Opening::Ask(ask)))
            .map_err(lost)?;
        match self.lines.next() {
            Ok(Some(reply)) => Ok(reply),
            Ok(None) => Err(lost(io::ErrorKind::UnexpectedEof.into())),
            Err(error) => Err(lost(error)),
        }
    }
}
