//! Which image a restart takes.

use crate::{Error, JobName};
use stasis_image::State;
use std::cmp::Reverse;
use std::path::{Path, PathBuf};

/// Images to try, the best first, and those that cannot be used.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Complete images, the newest first, with the names of their jobs.
    pub images: Vec<(PathBuf, String)>,
    /// Damaged ones, and those that lack a base, that are newer than the newest complete one, with the reason.
    pub skipped: Vec<(PathBuf, String)>,
}

/// The images in `directory`, of one job or of any, with numbers above `above`.
///
/// # Errors
/// [`Error::Image`] when the directory cannot be read.
pub fn newest(directory: &Path, name: Option<&JobName>, above: u64) -> Result<Choice, Error> {
    let mut found = stasis_image::scan(directory, name.map(JobName::as_str))?;
    found.retain(|image| image.sequence > above);
    // Numbers order the images of one job, whatever was done to the files since; times those of different jobs.
    if name.is_some() {
        found.sort_by_key(|image| Reverse(image.sequence));
    } else {
        found.sort_by_key(|image| {
            Reverse(match &image.state {
                State::Complete(header) => header.created,
                State::Partial | State::Damaged(_) | State::MissingBase(_) => image.modified,
            })
        });
    }
    let mut choice = Choice::default();
    for image in found {
        match image.state {
            State::Complete(_) => choice.images.push((image.path, image.job)),
            State::Damaged(reason) | State::MissingBase(reason) => {
                if choice.images.is_empty() {
                    choice.skipped.push((image.path, reason));
                }
            }
            State::Partial => {}
        }
    }
    Ok(choice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use stasis_image::{ImageWriter, WriteOptions, image_name};
    use std::fs;

    #[test]
    fn the_newest_complete_one_comes_first_and_damaged_ones_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let at = |job, sequence| directory.path().join(image_name(job, sequence));
        for (job, sequence) in [("a", 1), ("a", 2), ("a", 3), ("b", 1)] {
            let writer = ImageWriter::create(&at(job, sequence), WriteOptions::default()).unwrap();
            writer.commit(b"x").unwrap();
        }
        fs::write(at("a", 4), "damaged").unwrap();
        let name: JobName = "a".parse().unwrap();
        let choice = newest(directory.path(), Some(&name), 1).unwrap();
        let paths: Vec<_> = choice.images.iter().map(|(path, _)| path.clone()).collect();
        assert_eq!(paths, [at("a", 3), at("a", 2)]);
        assert_eq!(choice.skipped.len(), 1);
        assert_eq!(choice.skipped[0].0, at("a", 4));
        let any = newest(directory.path(), None, 0).unwrap();
        assert_eq!(any.images[0], (at("b", 1), "b".to_owned()));
        assert_eq!(
            newest(&directory.path().join("none"), None, 0).unwrap(),
            Choice::default()
        );
    }
}
