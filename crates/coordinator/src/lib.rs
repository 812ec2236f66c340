//! Several jobs as one computation: saved at one instant, listed, killed and continued together.
//!
//! ```text
//! supervisor ──┐                        ┌── commands (status, checkpoint, kill, ...)
//! supervisor ──┼── coordinator (TCP) ───┤
//! supervisor ──┘                        └── the person in front of it
//! ```
//!
//! - [`machine`] decides: who is a member, when a round begins, when all have come to a barrier, when a round has failed. It
//!   knows neither sockets nor clocks, and is tested without them.
//! - [`server`] carries its decisions out: threads, sockets, time.
//! - [`link`] is a member's side of a connection, [`client`] that of a command.
//! - [`secret`] sees to it that a coordinator obeys its own user only: both sides prove that they know a secret of that user.
//!
//! A round of a checkpoint has the barriers of [`protocol::Point`]. Until all members have come to the last of them, each
//! of them, and the coordinator, may fail or die, and all go on as if nobody had asked. From then on each image is on its
//! disk, complete but for its name: a member that dies before it has given the name leaves an image that is found, by its
//! generation, under the name that it had until then.
//!
//! Members are never harmed by a coordinator that dies: they go on, and look for one at the same address now and then.
//!
//! Nothing in the protocol is of one host only but the default address: a member says which host it is on, and images
//! are named with it.

#![forbid(unsafe_code)]

pub mod client;
mod error;
pub mod link;
pub mod machine;
pub mod protocol;
pub mod secret;
pub mod server;
mod wire;

pub use error::Error;
pub use link::Link;
pub use protocol::DEFAULT_PORT;
pub use secret::Keys;
