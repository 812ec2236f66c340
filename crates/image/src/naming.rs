//! Names of images, and what a directory holds.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::ImageError;
use crate::format::Header;
use crate::partial;
use crate::reader::bases_of;

/// How the name of an image ends.
pub(crate) const EXTENSION: &str = ".ckpt";
/// How the name of a file ends that was an image and is kept for what newer ones take from it.
pub(crate) const BASE_EXTENSION: &str = ".base";
/// Digits of a sequence number, so that names sort as the checkpoints were made; more where they are needed.
const DIGITS: usize = 6;

/// `NAME-000007.ckpt`.
pub fn image_name(job: &str, sequence: u64) -> String {
    format!("{job}-{sequence:0DIGITS$}{EXTENSION}")
}

/// The job and the sequence number in the name of an image; `None` for any other name, as that of a partial image.
pub fn parse_image_name(name: &OsStr) -> Option<(String, u64)> {
    let (job, digits) = name.to_str()?.strip_suffix(EXTENSION)?.rsplit_once('-')?;
    let canonical = digits.len() == DIGITS || (digits.len() > DIGITS && !digits.starts_with('0'));
    if job.is_empty() || !canonical || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some((job.to_owned(), digits.parse().ok()?))
}

/// The same for the name of a partial image.
pub fn parse_partial_name(name: &OsStr) -> Option<(String, u64)> {
    parse_image_name(OsStr::new(name.to_str()?.strip_suffix(partial::SUFFIX)?))
}

/// Whether a file may have this name without its ending: no directory, nothing hidden.
pub(crate) fn is_stem(stem: &str) -> bool {
    (1..=250).contains(&stem.len()) && !stem.starts_with('.') && !stem.contains(['/', '\0'])
}

/// The job and the number in the name of a base.
fn parse_base_name(name: &OsStr) -> Option<(String, u64)> {
    let stem = name.to_str()?.strip_suffix(BASE_EXTENSION)?;
    parse_image_name(OsStr::new(&format!("{stem}{EXTENSION}")))
}

/// Whether a file that is named like an image is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Its header is whole and its length is right. Contents are checked by [`Image::verify`](crate::Image::verify).
    Complete(Box<Header>),
    /// It is being written, or was left behind when its writer was killed.
    Partial,
    /// It cannot be used; the message says why.
    Damaged(String),
    /// It is whole itself, but an older file that it takes contents from is not there; the message says which.
    MissingBase(String),
}

/// An image found in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it is.
    pub path: PathBuf,
    /// The job it belongs to.
    pub job: String,
    /// Its number within the job.
    pub sequence: u64,
    /// When it was last written.
    pub modified: SystemTime,
    /// How long the file is, in bytes.
    pub len: u64,
    /// Whether it can be used.
    pub state: State,
}

/// The images in a directory, of one job or of all, by job and then by sequence number, partial ones after complete
/// ones. Only headers are read. A directory that does not exist has none.
///
/// # Errors
/// [`ImageError::Read`] if the directory cannot be read; a file that cannot be is [`State::Damaged`].
pub fn scan(directory: &Path, job: Option<&str>) -> Result<Vec<Found>, ImageError> {
    let mut found = Vec::new();
    for Named {
        path,
        job,
        sequence,
        partial,
    } in names(directory, job)?
    {
        // Gone since: removed by somebody, or renamed by its writer.
        let Ok(metadata) = fs::metadata(&path) else {
            continue;
        };
        let state = if partial {
            State::Partial
        } else {
            state(&path)
        };
        found.push(Found {
            path,
            job,
            sequence,
            modified: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            len: metadata.len(),
            state,
        });
    }
    Ok(found)
}

fn state(path: &Path) -> State {
    match Header::read(path) {
        Err(error) => State::Damaged(error.to_string()),
        Ok(header) if header.bases == 0 => State::Complete(Box::new(header)),
        Ok(header) => match bases_of(path) {
            Ok((_, None)) => State::Complete(Box::new(header)),
            Ok((_, Some(missing))) => State::MissingBase(missing.to_string()),
            Err(error) => State::Damaged(error.to_string()),
        },
    }
}

/// What was an image of a job and is kept for its contents: path, job, number, length in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundBase {
    /// Where it is.
    pub path: PathBuf,
    /// The job it belongs to.
    pub job: String,
    /// The number that it had as an image.
    pub sequence: u64,
    /// How long the file is, in bytes.
    pub len: u64,
}

/// The bases in a directory, of one job or of all, by job and then by number.
///
/// # Errors
/// [`ImageError::Read`] if the directory cannot be read.
pub fn scan_bases(directory: &Path, job: Option<&str>) -> Result<Vec<FoundBase>, ImageError> {
    let mut found = Vec::new();
    for named in named(directory, job, parse_base_name)? {
        let (path, (job, sequence)) = named;
        // Gone since.
        let Ok(metadata) = fs::metadata(&path) else {
            continue;
        };
        found.push(FoundBase {
            path,
            job,
            sequence,
            len: metadata.len(),
        });
    }
    found.sort_by(|a, b| (&a.job, a.sequence).cmp(&(&b.job, b.sequence)));
    Ok(found)
}

/// The name that an image gets when it is no checkpoint any more, but newer ones need its contents. `None` for a file that is
/// not named like an image.
pub fn base_path(image: &Path) -> Option<PathBuf> {
    parse_image_name(image.file_name()?)?;
    Some(image.with_extension(&BASE_EXTENSION[1..]))
}

/// The number for the next image of a job: one above the highest that is there, complete or not; 1 at first.
///
/// # Errors
/// [`ImageError::Read`] if the directory cannot be read.
pub fn next_sequence(directory: &Path, job: &str) -> Result<u64, ImageError> {
    let images = names(directory, Some(job))?;
    let bases = scan_bases(directory, Some(job))?;
    Ok(images
        .iter()
        .map(|named| named.sequence)
        .chain(bases.iter().map(|base| base.sequence))
        .max()
        .map_or(1, |last| last.saturating_add(1)))
}

/// Removes the partial images of a job that nobody writes any more (their writer was killed), and says which.
///
/// # Errors
/// [`ImageError::Read`] if the directory cannot be read, [`ImageError::Write`] if a file cannot be removed.
pub fn remove_abandoned(directory: &Path, job: &str) -> Result<Vec<PathBuf>, ImageError> {
    let mut removed = Vec::new();
    for Named { path, .. } in names(directory, Some(job))?
        .into_iter()
        .filter(|named| named.partial)
    {
        match partial::remove_abandoned(&path) {
            Ok(true) => removed.push(path),
            Ok(false) => {}
            Err(source) => return Err(ImageError::Write { path, source }),
        }
    }
    Ok(removed)
}

/// The partial images of a job, or of all, that nobody writes any more.
///
/// # Errors
/// [`ImageError::Read`] if the directory cannot be read.
pub fn abandoned(directory: &Path, job: Option<&str>) -> Result<Vec<PathBuf>, ImageError> {
    let partial = names(directory, job)?
        .into_iter()
        .filter(|named| named.partial);
    Ok(partial
        .filter(|named| partial::is_abandoned(&named.path).unwrap_or(false))
        .map(|named| named.path)
        .collect())
}

struct Named {
    path: PathBuf,
    job: String,
    sequence: u64,
    partial: bool,
}

/// A file, the job in its name, and what else its name says.
type NamedFile<T> = (PathBuf, (String, T));

/// The files of a directory whose names `parse` understands, of one job or of all.
fn named<T>(
    directory: &Path,
    job: Option<&str>,
    parse: impl Fn(&OsStr) -> Option<(String, T)>,
) -> Result<Vec<NamedFile<T>>, ImageError> {
    let cannot_read = |source| ImageError::Read {
        path: directory.to_owned(),
        source,
    };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(cannot_read)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(cannot_read)?;
        let parsed = parse(&entry.file_name());
        if let Some((found, rest)) = parsed.filter(|(found, _)| job.is_none_or(|job| job == found))
        {
            names.push((entry.path(), (found, rest)));
        }
    }
    Ok(names)
}

/// What is named like an image, in order.
fn names(directory: &Path, job: Option<&str>) -> Result<Vec<Named>, ImageError> {
    let parse = |name: &OsStr| {
        let partial = parse_partial_name(name).map(|named| (named, true));
        partial.or_else(|| parse_image_name(name).map(|named| (named, false)))
    };
    let parse =
        |name: &OsStr| parse(name).map(|((job, sequence), partial)| (job, (sequence, partial)));
    let mut names: Vec<Named> = named(directory, job, parse)?
        .into_iter()
        .map(|(path, (job, (sequence, partial)))| Named {
            path,
            job,
            sequence,
            partial,
        })
        .collect();
    names.sort_by(|a, b| (&a.job, a.sequence, a.partial).cmp(&(&b.job, b.sequence, b.partial)));
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::writer::{ImageWriter, WriteOptions};

    #[test]
    fn names_come_back() {
        assert_eq!(image_name("job", 7), "job-000007.ckpt");
        for (job, sequence) in [
            ("job", 0),
            ("a-b-1", 999_999),
            ("j", 1_000_000),
            ("Jöb", u64::MAX),
        ] {
            let name = image_name(job, sequence);
            assert_eq!(
                parse_image_name(OsStr::new(&name)),
                Some((job.to_owned(), sequence))
            );
            assert_eq!(parse_partial_name(OsStr::new(&name)), None);
            let name = name + ".partial";
            assert_eq!(parse_image_name(OsStr::new(&name)), None);
            assert_eq!(
                parse_partial_name(OsStr::new(&name)),
                Some((job.to_owned(), sequence))
            );
        }
        for name in [
            "job-7.ckpt",
            "job-0000007.ckpt",
            "-000007.ckpt",
            "job000007.ckpt",
            "job-00000x.ckpt",
            "job-+00007.ckpt",
            "job-000007.CKPT",
            "job-99999999999999999999.ckpt",
            ".ckpt",
        ] {
            assert_eq!(parse_image_name(OsStr::new(name)), None, "{name}");
        }
    }

    #[test]
    fn a_directory_is_listed_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let write = |job: &str, sequence| {
            let path = directory.path().join(image_name(job, sequence));
            ImageWriter::create(&path, WriteOptions::default())
                .unwrap()
                .commit(b"")
                .unwrap();
        };
        write("b", 1);
        write("a", 10);
        write("a", 2);
        fs::write(directory.path().join("a-000003.ckpt"), "something else").unwrap();
        fs::write(directory.path().join("notes.txt"), "").unwrap();
        let open = ImageWriter::create(
            &directory.path().join("a-000011.ckpt"),
            WriteOptions::default(),
        )
        .unwrap();
        fs::write(
            directory.path().join("a-000012.ckpt.partial"),
            "left behind",
        )
        .unwrap();

        let found = scan(directory.path(), None).unwrap();
        let list: Vec<_> = found
            .iter()
            .map(|found| {
                let state = match &found.state {
                    State::Complete(_) => 'c',
                    State::Partial => 'p',
                    State::Damaged(_) => 'd',
                    State::MissingBase(_) => 'm',
                };
                (found.job.as_str(), found.sequence, state)
            })
            .collect();
        assert_eq!(
            list,
            [
                ("a", 2, 'c'),
                ("a", 3, 'd'),
                ("a", 10, 'c'),
                ("a", 11, 'p'),
                ("a", 12, 'p'),
                ("b", 1, 'c')
            ]
        );
        let State::Damaged(reason) = &found[1].state else {
            panic!("not damaged")
        };
        assert!(reason.contains("is not a Stasis image"), "{reason}");

        assert_eq!(scan(directory.path(), Some("b")).unwrap().len(), 1);
        assert_eq!(next_sequence(directory.path(), "a").unwrap(), 13);
        assert_eq!(next_sequence(directory.path(), "c").unwrap(), 1);
        assert_eq!(scan(&directory.path().join("none"), None).unwrap(), []);

        // Only what nobody writes is removed.
        let removed = remove_abandoned(directory.path(), "a").unwrap();
        assert_eq!(removed, [directory.path().join("a-000012.ckpt.partial")]);
        open.commit(b"").unwrap();
        assert_eq!(next_sequence(directory.path(), "a").unwrap(), 12);
    }
}
