//! A process of a job asks for a checkpoint of that job.
//!
//! It is itself frozen and saved, and continues in each restarted program: while it waits it holds nothing but its standard
//! streams, and a signal is what it waits for.

use crate::Error;
use crate::client::{self, Found};
use crate::error::Context;
use rustix::process::Signal;
use stasis_sys::descriptor;
use stasis_sys::signal::{self, SignalSet};
use std::io;
use std::time::Duration;

/// How often a waiting process looks whether there is still somebody who will answer.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// Has `job`, to which the calling process belongs, saved. Returns in the program that runs on, and in each that is
/// restarted from the image. The process must have one thread; all its descriptors but the standard streams are closed.
///
/// # Errors
/// [`Error::Told`] with the reason why it was not saved; [`Error::NoJob`] when the supervisor has died.
pub fn checkpoint(job: &Found, stop: bool) -> Result<(), Error> {
    let only = SignalSet::EMPTY.with(Signal::USR2.as_raw());
    signal::set_mask(only).context(|| "blocking a signal".into())?;
    job.request_by_signal(stop)?;
    // Whatever the program left open in its child is the program's own, and is saved with the program.
    descriptor::close_from(3).context(|| "closing what the program left open".into())?;
    if await_answer(only, job)? == 0 {
        return Ok(());
    }
    let jobs = client::jobs().unwrap_or_default();
    let job = client::resolve(&jobs, None)
        .ok()
        .filter(|job| job.is_around_us());
    let reason = job.and_then(|job| job.status.last_error.clone());
    let reason = reason.unwrap_or_else(|| "the supervisor gave no reason".into());
    Err(Error::Told(format!("not saved: {reason}")))
}

/// Waits for the signal. Its value is 0 when the image is committed.
fn await_answer(only: SignalSet, asked: &Found) -> Result<i32, Error> {
    let mut absent = 0;
    loop {
        match signal::wait(only, Some(LOOK_EVERY)) {
            Ok(received) => return Ok(received.value),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Interruptions are no answers: a stop and a continuation, the checkpoint itself.
            Err(_) => continue,
        }
        let jobs = client::jobs().unwrap_or_default();
        match client::resolve(&jobs, None)
            .ok()
            .filter(|job| job.is_around_us())
        {
            // Restarted, by a supervisor that was not told of this process: the image is complete.
            Some(job) if job.status.started_at != asked.status.started_at => return Ok(0),
            Some(_) => absent = 0,
            // A supervisor that is just taking over is given time.
            None if absent < 3 => absent += 1,
            None => {
                return Err(Error::NoJob(
                    "the supervisor has died: nobody can tell whether the job was saved".into(),
                ));
            }
        }
    }
}
