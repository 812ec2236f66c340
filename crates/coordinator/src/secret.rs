//! The secret of a user, and how both sides of a connection prove that they know it.
//!
//! A coordinator listens on TCP, where the kernel does not say who connects. So each user has a file of 32 random bytes, of
//! mode 0600 in his runtime directory. Neither side sends it: both send a random challenge, and answer the other's
//! with a keyed hash (BLAKE3) of both challenges and of their own role. Who listens on somebody else's port learns nothing,
//! and a proof cannot be sent back as an answer. What follows is not encrypted: on one host nobody but root could read it.

use crate::error::{Context, Error};
use rustix::fs::OFlags;
use rustix::rand::{GetRandomFlags, getrandom};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const FILE: &str = "coordinator.secret";
/// Bytes of a secret and of a challenge.
const LEN: usize = 32;

/// A secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; LEN]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({})", self.name())
    }
}

/// Random bytes as text.
pub(crate) fn challenge() -> io::Result<String> {
    Ok(hex(&random()?))
}

fn random() -> io::Result<[u8; LEN]> {
    let mut bytes = [0; LEN];
    // Up to 256 bytes come whole once the kernel's pool is filled (getrandom(2)).
    let n = rustix::io::retry_on_intr(|| getrandom(&mut bytes, GetRandomFlags::empty()))?;
    if n < LEN {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Who proves that he knows the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Server,
    Client,
}

impl Secret {
    /// The secret in `directory`, a directory that only this user can enter; made where it is missing.
    ///
    /// # Errors
    /// [`Error::System`] when the file cannot be read or made.
    pub fn of_directory(directory: &Path) -> Result<Secret, Error> {
        let path = directory.join(FILE);
        for _ in 0..2 {
            match read(&path) {
                Ok(secret) => return Ok(secret),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error).context(|| format!("reading the secret {}", path.display()));
                }
            }
            make(directory, &path).context(|| format!("making the secret {}", path.display()))?;
        }
        read(&path).context(|| format!("reading the secret {}", path.display()))
    }

    /// What may be told of it to everybody: which one it is.
    #[must_use]
    pub fn name(&self) -> String {
        hex(&blake3::derive_key("stasis coordinator: name of a secret", &self.0)[..8])
    }

    pub(crate) fn prove(&self, role: Role, server: &str, client: &str) -> String {
        let role = match role {
            Role::Server => "server",
            Role::Client => "client",
        };
        let text = format!("{role} {server} {client}");
        blake3::keyed_hash(&self.0, text.as_bytes())
            .to_hex()
            .to_string()
    }

    /// Whether `proof` is one. The comparison takes the same time wherever they differ.
    pub(crate) fn is_proven(&self, proof: &str, role: Role, server: &str, client: &str) -> bool {
        let expected = self.prove(role, server, client);
        let (Ok(proof), Ok(expected)) = (
            blake3::Hash::from_hex(proof),
            blake3::Hash::from_hex(&expected),
        ) else {
            return false;
        };
        proof == expected
    }
}

fn read(path: &Path) -> io::Result<Secret> {
    let mut file = File::options()
        .read(true)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)?;
    let metadata = file.metadata()?;
    if metadata.uid() != rustix::process::geteuid().as_raw() || metadata.mode() & 0o077 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "others own it or may read it (it must be this user's, with mode 0600): remove it, and a new one is made",
        ));
    }
    let mut bytes = [0; LEN];
    file.read_exact(&mut bytes)?;
    Ok(Secret(bytes))
}

/// Makes the file whole or not at all; who comes second uses what the first has made.
fn make(directory: &Path, path: &Path) -> io::Result<()> {
    let unnamed = directory.join(format!("{FILE}.{}", std::process::id()));
    let _ = fs::remove_file(&unnamed);
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unnamed)?;
    let named = file
        .write_all(&random()?)
        .and_then(|()| fs::hard_link(&unnamed, path));
    let _ = fs::remove_file(&unnamed);
    match named {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        named => named,
    }
}

/// The places where secrets of this user may be: which of them a coordinator has depends on its environment.
#[derive(Clone, Debug, Default)]
pub struct Keys(Vec<PathBuf>);

impl Keys {
    /// Directories that only this user can enter, each with a secret or without.
    #[must_use]
    pub fn in_directories(directories: Vec<PathBuf>) -> Keys {
        Keys(directories)
    }

    /// The secret of this name.
    pub(crate) fn find(&self, name: &str) -> Option<Secret> {
        self.0
            .iter()
            .filter_map(|directory| read(&directory.join(FILE)).ok())
            .find(|secret| secret.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_directory_has_one_secret() {
        let directory = tempfile::tempdir().unwrap();
        let secret = Secret::of_directory(directory.path()).unwrap();
        assert_eq!(Secret::of_directory(directory.path()).unwrap(), secret);
        let path = directory.path().join(FILE);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        let keys = Keys::in_directories(vec!["/nowhere".into(), directory.path().into()]);
        assert_eq!(keys.find(&secret.name()), Some(secret));
        assert_eq!(keys.find("other"), None);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Secret::of_directory(directory.path()).unwrap_err();
        assert!(error.to_string().contains("mode 0600"), "{error}");
    }

    #[test]
    fn a_proof_is_for_one_role_and_both_challenges() {
        let (one, other) = (Secret([1; LEN]), Secret([2; LEN]));
        let proof = one.prove(Role::Client, "a", "b");
        assert!(one.is_proven(&proof, Role::Client, "a", "b"));
        assert!(!one.is_proven(&proof, Role::Server, "a", "b"));
        assert!(!one.is_proven(&proof, Role::Client, "a", "c"));
        assert!(!other.is_proven(&proof, Role::Client, "a", "b"));
        assert!(!one.is_proven("", Role::Client, "a", "b"));
    }
}
