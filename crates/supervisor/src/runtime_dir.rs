//! The directory of control sockets: one that only the user can enter.
//!
//! Tried in this order: `STASIS_RUNTIME_DIR` alone where it is set; else `$XDG_RUNTIME_DIR/stasis`,
//! `/run/user/UID/stasis`, `/tmp/stasis-UID`, `$TMPDIR/stasis-UID`. A supervisor uses the first that is, or can be
//! made, a directory of its own user with mode 0700. Clients look into all of them, as a job may have been started in
//! a session with other variables.

use crate::Error;
use rustix::process::geteuid;
use std::env;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Where sockets may be, the preferred place first.
#[must_use]
pub fn candidates() -> Vec<PathBuf> {
    if let Some(directory) = env::var_os("STASIS_RUNTIME_DIR") {
        return vec![directory.into()];
    }
    let uid = geteuid();
    let private = format!("stasis-{uid}");
    let mut found: Vec<PathBuf> = Vec::new();
    let xdg =
        env::var_os("XDG_RUNTIME_DIR").map(|directory| PathBuf::from(directory).join("stasis"));
    let run = Path::new("/run/user").join(uid.to_string());
    let usual = run.is_dir().then(|| run.join("stasis"));
    let temporary = env::var_os("TMPDIR").map(|directory| PathBuf::from(directory).join(&private));
    for directory in [
        xdg,
        usual,
        Some(Path::new("/tmp").join(&private)),
        temporary,
    ]
    .into_iter()
    .flatten()
    {
        if directory.is_absolute() && !found.contains(&directory) {
            found.push(directory);
        }
    }
    found
}

/// The directory for a new socket, made where it is missing.
///
/// # Errors
/// [`Error::RuntimeDirectory`] with a line for each place that cannot be used.
pub fn for_supervisor() -> Result<PathBuf, Error> {
    first_usable(&candidates())
}

fn first_usable(places: &[PathBuf]) -> Result<PathBuf, Error> {
    let mut reasons = Vec::new();
    for directory in places {
        match make(directory).and_then(|()| check(directory)) {
            Ok(()) => return Ok(directory.clone()),
            Err(reason) => reasons.push(format!("  {}: {reason}", directory.display())),
        }
    }
    Err(Error::RuntimeDirectory(reasons.join("\n")))
}

fn make(directory: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Whether `directory` is a real directory of this user that nobody else may enter. A symbolic link is refused: who
/// made it could have it point into a directory of this user that others may write to.
///
/// # Errors
/// What is wrong with it, or what the kernel says.
pub fn check(directory: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(directory)?;
    let wrong = |what: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    if metadata.is_symlink() {
        return wrong("it is a symbolic link, which is not followed".into());
    }
    if !metadata.is_dir() {
        return wrong("it is not a directory".into());
    }
    if metadata.uid() != geteuid().as_raw() {
        return wrong(format!("it belongs to user {}", metadata.uid()));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return wrong(format!(
            "others may enter it (mode {:04o}; it must be 0700)",
            metadata.permissions().mode() & 0o7777
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn directory_with_mode(parent: &Path, mode: u32) -> PathBuf {
        let path = parent.join(format!("{mode:o}"));
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_private_directory_is_made_and_found_again() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("stasis");
        assert_eq!(first_usable(std::slice::from_ref(&path)).unwrap(), path);
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
            0o700
        );
        assert_eq!(first_usable(std::slice::from_ref(&path)).unwrap(), path);
    }

    #[test]
    fn what_others_could_reach_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        for mode in [0o755, 0o710, 0o701, 0o777] {
            let error = check(&directory_with_mode(parent.path(), mode)).unwrap_err();
            assert!(error.to_string().contains("others may enter"), "{error}");
        }
        let private = directory_with_mode(parent.path(), 0o700);
        check(&private).unwrap();
        let link = parent.path().join("link");
        symlink(&private, &link).unwrap();
        assert!(
            check(&link)
                .unwrap_err()
                .to_string()
                .contains("symbolic link")
        );
        let file = parent.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(
            check(&file)
                .unwrap_err()
                .to_string()
                .contains("not a directory")
        );
    }

    #[test]
    fn another_users_directory_is_refused() {
        // The root directory is somebody else's, but for root.
        let (place, owner) = if geteuid().is_root() {
            let parent = tempfile::tempdir().unwrap();
            let path = directory_with_mode(parent.path(), 0o700);
            std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
            let error = check(&path).unwrap_err().to_string();
            (error, 65534)
        } else {
            (check(Path::new("/")).unwrap_err().to_string(), 0)
        };
        assert!(
            place.contains(&format!("belongs to user {owner}")),
            "{place}"
        );
    }

    #[test]
    fn the_next_place_serves_where_the_first_does_not() {
        let parent = tempfile::tempdir().unwrap();
        let (bad, good) = (parent.path().join("missing/x"), parent.path().join("y"));
        assert_eq!(first_usable(&[bad.clone(), good.clone()]).unwrap(), good);
        let error = first_usable(std::slice::from_ref(&bad))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("missing/x") && error.contains("STASIS_RUNTIME_DIR"),
            "{error}"
        );
    }
}
