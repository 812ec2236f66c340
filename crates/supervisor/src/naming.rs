//! How the images of a job are called.

use crate::error::Context;
use crate::{Error, JobName, finished};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// How the images of a job are called, and with that, which of them stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Naming {
    /// `NAME-000001.ckpt` and so on: each has a name of its own, and the newest few stay.
    #[default]
    Numbered,
    /// One name, `NAME` and the ending, which each image takes from the one before it in the instant in which it is
    /// complete.
    Replaced {
        /// With the dot.
        ending: &'static str,
    },
    /// The same name in a directory for each checkpoint, `PREFIX_00001` and so on. All stay.
    Directories {
        /// With the dot.
        ending: &'static str,
        /// How the directories' names begin.
        prefix: String,
    },
}

/// The next image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Next {
    /// Its final name.
    pub path: PathBuf,
    /// Its number.
    pub sequence: u64,
    /// It takes the place of the one before it.
    pub replace: bool,
}

impl Naming {
    /// The image after the one with number `last`, or the one of number `wanted` where somebody else counts.
    ///
    /// # Errors
    /// [`Error::System`], [`Error::Image`] when the directory cannot be read, or a directory in it cannot be made.
    pub fn next(
        &self,
        directory: &Path,
        name: &JobName,
        last: u64,
        wanted: Option<u64>,
    ) -> Result<Next, Error> {
        let after = wanted.unwrap_or(last.saturating_add(1));
        Ok(match self {
            Naming::Numbered => {
                let free = finished::next_sequence(directory, name)?;
                let sequence = wanted.map_or(free, |wanted| wanted.max(free));
                Next {
                    path: directory.join(stasis_image::image_name(name.as_str(), sequence)),
                    sequence,
                    replace: false,
                }
            }
            Naming::Replaced { ending } => Next {
                path: directory.join(format!("{name}{ending}")),
                sequence: after,
                replace: true,
            },
            Naming::Directories { ending, prefix } => {
                let own = directory.join(format!("{prefix}_{after:05}"));
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&own)
                    .context(|| format!("making the directory {}", own.display()))?;
                Next {
                    path: own.join(format!("{name}{ending}")),
                    sequence: after,
                    replace: true,
                }
            }
        })
    }

    /// Whether older images go when a newer one is complete.
    #[must_use]
    pub fn prunes(&self) -> bool {
        *self == Naming::Numbered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_names_the_next_image() {
        let directory = tempfile::tempdir().unwrap();
        let name: JobName = "md".parse().unwrap();
        let next = |naming: Naming, last, wanted| {
            let next = naming.next(directory.path(), &name, last, wanted).unwrap();
            let path = next.path.strip_prefix(directory.path()).unwrap();
            (path.to_str().unwrap().to_owned(), next.sequence)
        };
        let of = |text: &str, sequence| (text.to_owned(), sequence);
        assert_eq!(next(Naming::Numbered, 7, None), of("md-000001.ckpt", 1));
        assert_eq!(next(Naming::Numbered, 0, Some(3)), of("md-000003.ckpt", 3));
        let ending = ".x";
        assert_eq!(next(Naming::Replaced { ending }, 7, None), of("md.x", 8));
        assert_eq!(next(Naming::Replaced { ending }, 7, Some(4)), of("md.x", 4));
        let prefix = "c".to_owned();
        assert_eq!(
            next(Naming::Directories { ending, prefix }, 0, None),
            of("c_00001/md.x", 1)
        );
        assert!(directory.path().join("c_00001").is_dir());
    }
}
