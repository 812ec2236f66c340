//! Jobs that have come to their end.
//!
//! `run --resume` must start a job anew when its last run has finished, though the images of that run may still be
//! there. Removing them would take from the user what he may want to look at again; so a small file `NAME.done` says
//! up to which number the images belong to a finished run. It is written when the first process ends with status 0
//! and there are images of that name. `restart` with an explicit path does not look at it.

use crate::error::Context;
use crate::{Error, JobName};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, Serialize, Deserialize)]
struct Done {
    /// The highest number of an image that belongs to a finished run.
    sequence: u64,
    /// When it finished.
    finished_at: jiff::Timestamp,
}

fn path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.done"))
}

/// The highest number that belongs to a finished run; 0 where there is none.
///
/// # Errors
/// [`Error::System`] when the file is there but cannot be read or understood.
pub fn last_finished(directory: &Path, name: &str) -> Result<u64, Error> {
    let path = path(directory, name);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error).context(|| format!("reading {}", path.display())),
    };
    let done: Done = serde_json::from_str(&text)
        .map_err(io::Error::from)
        .context(|| {
            format!(
                "reading {} (remove it to have the newest checkpoint used)",
                path.display()
            )
        })?;
    Ok(done.sequence)
}

/// The number for the next image: above those that are there and those that belong to a finished run.
///
/// # Errors
/// As [`last_finished`]; [`Error::Image`] when the directory cannot be read.
pub fn next_sequence(directory: &Path, name: &JobName) -> Result<u64, Error> {
    let free = stasis_image::next_sequence(directory, name.as_str())?;
    Ok(free.max(last_finished(directory, name.as_str())?.saturating_add(1)))
}

/// Notes that the run of `name` has finished, where images of it are there.
///
/// # Errors
/// [`Error::System`], [`Error::Image`] when the directory cannot be read or written.
pub fn mark(directory: &Path, name: &JobName) -> Result<(), Error> {
    let next = stasis_image::next_sequence(directory, name.as_str())?;
    if next <= 1 {
        return Ok(());
    }
    let done = Done {
        sequence: next - 1,
        finished_at: jiff::Timestamp::now(),
    };
    let path = path(directory, name.as_str());
    let new = path.with_extension("done.new");
    let text = serde_json::to_string(&done).map_err(io::Error::from);
    text.and_then(|text| fs::write(&new, text + "\n"))
        .and_then(|()| fs::rename(&new, &path))
        .context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_on_above_a_finished_run() {
        let directory = tempfile::tempdir().unwrap();
        let name: JobName = "md".parse().unwrap();
        mark(directory.path(), &name).unwrap();
        assert_eq!(
            fs::read_dir(directory.path()).unwrap().count(),
            0,
            "nothing to mark"
        );
        let image = directory.path().join(stasis_image::image_name("md", 7));
        fs::write(&image, "").unwrap();
        mark(directory.path(), &name).unwrap();
        assert_eq!(last_finished(directory.path(), "md").unwrap(), 7);
        fs::remove_file(image).unwrap();
        assert_eq!(next_sequence(directory.path(), &name).unwrap(), 8);
        assert_eq!(last_finished(directory.path(), "other").unwrap(), 0);
    }

    #[test]
    fn a_damaged_marker_is_named() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("md.done"), "{").unwrap();
        let error = last_finished(directory.path(), "md")
            .unwrap_err()
            .to_string();
        assert!(error.contains("md.done"), "{error}");
    }
}
