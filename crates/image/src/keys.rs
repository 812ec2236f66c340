//! Who can read encrypted images.
//!
//! Contents are encrypted with random keys; what a user has (an age identity, a passphrase) opens only the *secret* that these
//! keys are made from, which each image carries, encrypted by age (<https://age-encryption.org/v1>). So a job that saves
//! needs nobody's private key, and asks for a passphrase once.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use age::secrecy::SecretString;
use age::x25519;
use zeroize::Zeroizing;

use crate::error::KeyError;
use crate::seal::Seal;

/// Names the use of the keys derived from a secret.
const CONTEXT: &str = "stasis 2026-11-21 contents of one image";

/// What images are encrypted with. Copies share it.
#[derive(Clone)]
pub struct Secret(Arc<Inner>);

struct Inner {
    key: Zeroizing<[u8; 32]>,
    /// The key, encrypted by age.
    wrapped: Vec<u8>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// A new secret that each of the recipients can open.
    ///
    /// # Errors
    /// When there is none, or no random numbers can be had.
    pub fn for_recipients(recipients: &[Recipient]) -> Result<Secret, KeyError> {
        let all = recipients.iter().map(|one| &one.0 as &dyn age::Recipient);
        Secret::locked(all)
    }

    /// A new secret that the passphrase in a file opens.
    ///
    /// # Errors
    /// When the file cannot be read or holds none.
    pub fn for_passphrase_file(path: &Path) -> Result<Secret, KeyError> {
        let recipient = age::scrypt::Recipient::new(passphrase(path)?);
        Secret::locked(std::iter::once(&recipient as &dyn age::Recipient))
    }

    fn locked<'a>(
        recipients: impl Iterator<Item = &'a dyn age::Recipient>,
    ) -> Result<Secret, KeyError> {
        let key = Zeroizing::new(random()?);
        let wrap = || -> Result<Vec<u8>, String> {
            let mut wrapped = Vec::new();
            let encryptor =
                age::Encryptor::with_recipients(recipients).map_err(|error| error.to_string())?;
            let mut writer = encryptor
                .wrap_output(&mut wrapped)
                .map_err(|error| error.to_string())?;
            std::io::Write::write_all(&mut writer, &*key).map_err(|error| error.to_string())?;
            writer.finish().map_err(|error| error.to_string())?;
            Ok(wrapped)
        };
        let wrapped = wrap().map_err(|reason| KeyError::Wrap { reason })?;
        Ok(Secret(Arc::new(Inner { key, wrapped })))
    }

    /// The secret as an image carries it.
    pub(crate) fn wrapped(&self) -> &[u8] {
        &self.0.wrapped
    }

    /// The key of the image with this salt.
    pub(crate) fn seal(&self, salt: &[u8; 32]) -> Seal {
        let mut material = Zeroizing::new([0; 64]);
        material[..32].copy_from_slice(&*self.0.key);
        material[32..].copy_from_slice(salt);
        Seal::new(&Zeroizing::new(blake3::derive_key(CONTEXT, &*material)))
    }
}

/// Random bytes of the kernel's.
pub(crate) fn random() -> Result<[u8; 32], KeyError> {
    let mut bytes = [0; 32];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(32) => Ok(bytes),
        Ok(_) => Err(KeyError::Wrap {
            reason: "the kernel gave too few random numbers".into(),
        }),
        Err(error) => Err(KeyError::Wrap {
            reason: format!("no random numbers: {error}"),
        }),
    }
}

/// Somebody who shall be able to read images: the public half of an age identity (`age1...`).
#[derive(Clone)]
pub struct Recipient(x25519::Recipient);

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recipient({})", self.0)
    }
}

impl FromStr for Recipient {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        x25519::Recipient::from_str(text.trim())
            .map(Recipient)
            .map_err(|reason| KeyError::Recipient {
                text: text.to_owned(),
                reason: reason.to_owned(),
            })
    }
}

/// What the user has to open images with.
#[derive(Default)]
pub struct Keys {
    identities: Vec<Box<dyn age::Identity + Send + Sync>>,
    /// Secrets opened so far: a passphrase takes a second each time.
    opened: Mutex<Vec<Secret>>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.identities.len())
    }
}

impl Keys {
    /// Nothing: encrypted images stay closed.
    #[must_use]
    pub fn none() -> Keys {
        Keys::default()
    }

    /// Adds the identities of a file as `age-keygen` makes it.
    ///
    /// # Errors
    /// When it cannot be read, or holds anything else.
    pub fn add_identity_file(&mut self, path: &Path) -> Result<(), KeyError> {
        let text = Zeroizing::new(read(path)?);
        let lines = text.lines().map(str::trim);
        let mut found = false;
        for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let identity = x25519::Identity::from_str(line).map_err(|reason| KeyError::File {
                path: path.to_owned(),
                reason: format!("it holds a line that is no age identity: {reason}"),
            })?;
            self.identities.push(Box::new(identity));
            found = true;
        }
        if found {
            return Ok(());
        }
        Err(KeyError::File {
            path: path.to_owned(),
            reason: "it holds no age identity (AGE-SECRET-KEY-1...)".into(),
        })
    }

    /// Adds the passphrase in a file.
    ///
    /// # Errors
    /// When it cannot be read or holds none.
    pub fn add_passphrase_file(&mut self, path: &Path) -> Result<(), KeyError> {
        let identity = age::scrypt::Identity::new(passphrase(path)?);
        self.identities.push(Box::new(identity));
        Ok(())
    }

    /// Adds a secret that is open: images encrypted with it can be read.
    pub fn add_secret(&self, secret: &Secret) {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.push(secret.clone());
    }

    /// Opens the secret of an image.
    pub(crate) fn open(&self, wrapped: &[u8]) -> Result<Secret, String> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(secret) = opened.iter().find(|secret| secret.wrapped() == wrapped) {
            return Ok(secret.clone());
        }
        if self.identities.is_empty() {
            return Err("give the key (--identity FILE or --passphrase-file FILE)".into());
        }
        let wrong = |error: age::DecryptError| {
            format!("the keys that were given do not open it ({error}); give another one")
        };
        let decryptor = age::Decryptor::new(wrapped).map_err(wrong)?;
        let identities = self
            .identities
            .iter()
            .map(|one| &**one as &dyn age::Identity);
        let mut reader = decryptor.decrypt(identities).map_err(wrong)?;
        let mut key = Zeroizing::new([0; 32]);
        std::io::Read::read_exact(&mut reader, &mut *key)
            .map_err(|error| format!("its key is damaged: {error}"))?;
        let secret = Secret(Arc::new(Inner {
            key,
            wrapped: wrapped.to_vec(),
        }));
        opened.push(secret.clone());
        Ok(secret)
    }
}

fn read(path: &Path) -> Result<String, KeyError> {
    std::fs::read_to_string(path).map_err(|error| KeyError::File {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

/// The first line of a file.
fn passphrase(path: &Path) -> Result<SecretString, KeyError> {
    let text = Zeroizing::new(read(path)?);
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(SecretString::from(line.to_owned())),
        _ => Err(KeyError::File {
            path: path.to_owned(),
            reason: "its first line is empty, and should be the passphrase".into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use age::secrecy::ExposeSecret;

    #[test]
    fn recipients_and_their_identities_fit() {
        let directory = tempfile::tempdir().unwrap();
        let (mine, other) = (x25519::Identity::generate(), x25519::Identity::generate());
        let file = |name: &str, identity: &x25519::Identity| {
            let path = directory.path().join(name);
            let text = format!(
                "# made for a test\n{}\n",
                identity.to_string().expose_secret()
            );
            std::fs::write(&path, text).unwrap();
            path
        };
        let recipient: Recipient = mine.to_public().to_string().parse().unwrap();
        let secret = Secret::for_recipients(&[recipient]).unwrap();
        let mut keys = Keys::none();
        assert!(
            keys.open(secret.wrapped())
                .unwrap_err()
                .contains("--identity")
        );
        keys.add_identity_file(&file("other", &other)).unwrap();
        assert!(keys.open(secret.wrapped()).unwrap_err().contains("another"));
        keys.add_identity_file(&file("mine", &mine)).unwrap();
        let opened = keys.open(secret.wrapped()).unwrap();
        assert_eq!(*opened.0.key, *secret.0.key);
        assert!("age1nothing".parse::<Recipient>().is_err());
        assert!(Secret::for_recipients(&[]).is_err());
        std::fs::write(directory.path().join("empty"), "\n").unwrap();
        assert!(
            keys.add_identity_file(&directory.path().join("empty"))
                .is_err()
        );
        assert!(
            keys.add_passphrase_file(&directory.path().join("empty"))
                .is_err()
        );
    }

    #[test]
    fn a_passphrase_opens_what_it_has_closed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("passphrase");
        std::fs::write(&path, "correct horse\n").unwrap();
        let secret = Secret::for_passphrase_file(&path).unwrap();
        let mut keys = Keys::none();
        keys.add_passphrase_file(&path).unwrap();
        assert_eq!(*keys.open(secret.wrapped()).unwrap().0.key, *secret.0.key);
        std::fs::write(&path, "battery staple\n").unwrap();
        let mut keys = Keys::none();
        keys.add_passphrase_file(&path).unwrap();
        assert!(keys.open(secret.wrapped()).is_err());
    }
}
