//! Which images of a job stay.
//!
//! The newest `keep` complete images of each name stay, and every file that any image of the directory takes contents from.
//! An older image that is needed for that only is no checkpoint any more: it gets the ending `.base`, and goes when nobody
//! needs it.
//!
//! A checkpoint that is being taken meanwhile is safe: it leans on the newest image and on what that leans on, which all stay.

use crate::error::Context;
use crate::{Error, JobName};
use serde::Serialize;
use stasis_image::State;
use std::collections::HashSet;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// What is going to happen to the files of a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Images that stay, the newest of each job first.
    pub keep: Vec<PathBuf>,
    /// Files that no kept image is, but that one needs; they stay under another name.
    pub retire: Vec<Retirement>,
    /// Files that go.
    pub remove: Vec<Removal>,
}

/// An image that stays for its contents only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Retirement {
    /// What it is called.
    pub from: PathBuf,
    /// What it will be called.
    pub to: PathBuf,
}

/// A file that goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Removal {
    /// The file.
    pub path: PathBuf,
    /// Its length in bytes.
    pub bytes: u64,
    /// Why.
    pub reason: &'static str,
}

/// What has to be done so that `keep` complete images of the job, or of each, stay. Damaged ones, those that lack a base, and
/// those in the making are not touched: they may be all that somebody has.
///
/// # Errors
/// [`Error::Image`] when the directory cannot be read.
pub fn plan(directory: &Path, name: Option<&JobName>, keep: NonZeroUsize) -> Result<Plan, Error> {
    let mut images = stasis_image::scan(directory, None)?;
    images.sort_by(|a, b| (&a.job, b.sequence).cmp(&(&b.job, a.sequence)));
    let concerned = |job: &str| name.is_none_or(|name| name.as_str() == job);
    let mut plan = Plan::default();
    let mut old = Vec::new();
    let mut staying = Vec::new();
    for job in images.chunk_by(|one, other| one.job == other.job) {
        let mut complete = 0;
        for image in job {
            let is_complete = matches!(image.state, State::Complete(_));
            complete += usize::from(is_complete);
            if is_complete && concerned(&image.job) {
                if complete > keep.get() {
                    old.push(image);
                    continue;
                }
                plan.keep.push(image.path.clone());
            }
            staying.push(image);
        }
    }
    let needed: HashSet<String> = staying
        .iter()
        .filter_map(|image| stasis_image::bases_of(&image.path).ok())
        .flat_map(|(bases, _)| bases)
        .map(|base| base.stem)
        .collect();
    let is_needed = |path: &Path| {
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        stem.is_some_and(|stem| needed.contains(stem))
    };
    for image in old {
        match stasis_image::base_path(&image.path).filter(|_| is_needed(&image.path)) {
            Some(to) => plan.retire.push(Retirement {
                from: image.path.clone(),
                to,
            }),
            None => plan.remove.push(Removal {
                path: image.path.clone(),
                bytes: image.len,
                reason: "older than those that are kept",
            }),
        }
    }
    for base in stasis_image::scan_bases(directory, None)? {
        if concerned(&base.job) && !is_needed(&base.path) {
            plan.remove.push(Removal {
                path: base.path,
                bytes: base.len,
                reason: "no image needs its contents any more",
            });
        }
    }
    Ok(plan)
}

impl Plan {
    /// Adds what writers that were killed have left behind.
    ///
    /// # Errors
    /// [`Error::Image`] when the directory cannot be read.
    pub fn with_abandoned(
        mut self,
        directory: &Path,
        name: Option<&JobName>,
    ) -> Result<Plan, Error> {
        for path in stasis_image::abandoned(directory, name.map(JobName::as_str))? {
            self.remove.push(Removal {
                bytes: fs::metadata(&path).map_or(0, |metadata| metadata.len()),
                path,
                reason: "its writer was killed",
            });
        }
        Ok(self)
    }

    /// Does it. Every step leaves a directory in which all kept images can be restarted. Gives what could not be done.
    pub fn execute(&self) -> Vec<Error> {
        let mut failures = Vec::new();
        for Retirement { from, to } in &self.retire {
            let renamed = fs::rename(from, to);
            failures.extend(
                renamed
                    .context(|| format!("renaming {}", from.display()))
                    .err(),
            );
        }
        for Removal { path, .. } in &self.remove {
            let removed = fs::remove_file(path);
            failures.extend(
                removed
                    .context(|| format!("removing {}", path.display()))
                    .err(),
            );
        }
        failures
    }

    /// Bytes of the files that go.
    #[must_use]
    pub fn freed(&self) -> u64 {
        self.remove.iter().map(|removal| removal.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stasis_image::{Image, ImageWriter, ObjectId, Run, WriteOptions, image_name};
    use std::sync::Arc;

    const TWO: NonZeroUsize = NonZeroUsize::new(2).unwrap();

    fn names(paths: impl IntoIterator<Item = PathBuf>) -> Vec<String> {
        let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        paths.into_iter().map(name).collect()
    }

    fn removed(plan: &Plan) -> Vec<String> {
        names(plan.remove.iter().map(|removal| removal.path.clone()))
    }

    #[test]
    fn only_complete_images_of_the_name_are_counted_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |job, sequence| directory.path().join(image_name(job, sequence));
        for (job, sequence) in [("md", 1), ("md", 2), ("md", 3), ("other", 1), ("other", 2)] {
            let writer = ImageWriter::create(&at(job, sequence), WriteOptions::default()).unwrap();
            writer.commit(b"x").unwrap();
        }
        fs::write(at("md", 4), "damaged").unwrap();
        let name: JobName = "md".parse().unwrap();
        let plan = plan(directory.path(), Some(&name), TWO).unwrap();
        assert_eq!(removed(&plan), ["md-000001.ckpt"]);
        assert_eq!(
            names(plan.keep.clone()),
            ["md-000003.ckpt", "md-000002.ckpt"]
        );
        assert!(plan.execute().is_empty());
        for (job, sequence) in [("md", 2), ("md", 3), ("md", 4), ("other", 1)] {
            assert!(at(job, sequence).exists(), "{job} {sequence}");
        }
        let one = NonZeroUsize::new(1).unwrap();
        let all = super::plan(directory.path(), None, one).unwrap();
        assert_eq!(removed(&all), ["md-000002.ckpt", "other-000001.ckpt"]);
    }

    #[test]
    fn what_a_kept_image_needs_stays_under_another_name() {
        let directory = tempfile::tempdir().unwrap();
        let at = |sequence| directory.path().join(image_name("md", sequence));
        let contents: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
        let write = |sequence: u64, contents: &Vec<u8>, lean: bool| {
            let mut writer = ImageWriter::create(&at(sequence), WriteOptions::default()).unwrap();
            if lean {
                let older = Image::open(&at(sequence - 1)).unwrap();
                writer = writer.based_on(Arc::new(older));
            }
            let runs = [Run {
                offset: 0,
                len: contents.len() as u64,
            }];
            writer.store(ObjectId(1), contents, &runs).unwrap();
            writer.commit(b"x").unwrap();
        };
        write(1, &contents, false);
        for sequence in 2..=4 {
            write(sequence, &contents, true);
        }
        let name: JobName = "md".parse().unwrap();
        let prune = || {
            let plan = plan(directory.path(), Some(&name), TWO).unwrap();
            assert!(plan.execute().is_empty());
            plan
        };
        let first = prune();
        assert_eq!(
            names(first.retire.into_iter().map(|one| one.to)),
            ["md-000001.base"]
        );
        assert_eq!(removed(&prune()), [""; 0], "nothing more to do");
        for sequence in [3, 4] {
            Image::open(&at(sequence))
                .unwrap()
                .verify(1, &|_| ())
                .unwrap();
        }
        // Full images do not need it.
        let other: Vec<u8> = contents.iter().map(|byte| !byte).collect();
        write(5, &other, false);
        assert_eq!(removed(&prune()), ["md-000003.ckpt"]);
        write(6, &contents, false);
        assert_eq!(removed(&prune()), ["md-000004.ckpt", "md-000001.base"]);
    }
}
