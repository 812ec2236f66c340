//! Which images of a job stay.

use crate::{Error, JobName};
use stasis_image::State;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// Removes the complete images of `name` beyond the newest `keep`, after one has been committed, and says which are
/// gone. Partial and damaged ones are not touched: the former may be in the making, the latter are evidence.
///
/// # Errors
/// [`Error::Image`] when the directory cannot be read. An image that cannot be removed stays.
pub fn prune(directory: &Path, name: &JobName, keep: NonZeroUsize) -> Result<Vec<PathBuf>, Error> {
    let found = stasis_image::scan(directory, Some(name.as_str()))?;
    let complete = found
        .into_iter()
        .filter(|image| matches!(image.state, State::Complete(_)))
        .map(|image| (image.sequence, image.path))
        .collect();
    let mut removed = Vec::new();
    for path in beyond(complete, keep) {
        match fs::remove_file(&path) {
            Ok(()) => removed.push(path),
            Err(error) => tracing::warn!(path = %path.display(), %error, "an old image stays"),
        }
    }
    Ok(removed)
}

/// Those that have to go.
fn beyond(mut images: Vec<(u64, PathBuf)>, keep: NonZeroUsize) -> Vec<PathBuf> {
    images.sort_by_key(|(sequence, _)| std::cmp::Reverse(*sequence));
    images
        .into_iter()
        .skip(keep.get())
        .map(|(_, path)| path)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use stasis_image::{ImageWriter, WriteOptions, image_name};

    #[test]
    fn the_newest_stay() {
        let images = [3, 1, 10, 2].map(|n| (n, PathBuf::from(n.to_string())));
        let gone = |keep| beyond(images.to_vec(), NonZeroUsize::new(keep).unwrap());
        assert_eq!(gone(1), ["3", "2", "1"].map(PathBuf::from));
        assert_eq!(gone(2), ["2", "1"].map(PathBuf::from));
        assert!(gone(4).is_empty() && gone(100).is_empty());
    }

    #[test]
    fn only_complete_images_of_the_name_are_counted_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |job, sequence| directory.path().join(image_name(job, sequence));
        for (job, sequence) in [("md", 1), ("md", 2), ("md", 3), ("other", 1)] {
            let writer = ImageWriter::create(&at(job, sequence), WriteOptions::default()).unwrap();
            writer.commit(b"x").unwrap();
        }
        fs::write(at("md", 4), "damaged").unwrap();
        let keep = NonZeroUsize::new(2).unwrap();
        let removed = prune(directory.path(), &"md".parse().unwrap(), keep).unwrap();
        assert_eq!(removed, [at("md", 1)]);
        for (job, sequence) in [("md", 2), ("md", 3), ("md", 4), ("other", 1)] {
            assert!(at(job, sequence).exists(), "{job} {sequence}");
        }
    }
}
