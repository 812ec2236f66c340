//! Encryption of what is stored: ChaCha20-Poly1305, with a key of the image's own.
//!
//! The nonce of a stored thing is its place in the file, and no place of an image is written twice, so no nonce is used twice
//! with one key. A thing that was moved or exchanged for another is seen as well as one that was changed.

use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit};

/// How many bytes a seal has, in the file right after what it seals.
pub(crate) const TAG_LEN: usize = 16;

/// Encrypts and decrypts what one file holds.
#[derive(Clone)]
pub(crate) struct Seal(ChaCha20Poly1305);

impl Seal {
    pub(crate) fn new(key: &[u8; 32]) -> Seal {
        Seal(ChaCha20Poly1305::new(key.into()))
    }

    /// Encrypts `bytes`, which go to `file_offset`; gives what has to follow them.
    pub(crate) fn close(&self, file_offset: u64, bytes: &mut [u8]) -> Option<[u8; TAG_LEN]> {
        let sealed = self
            .0
            .encrypt_in_place_detached(&nonce(file_offset).into(), b"", bytes);
        // Only bytes beyond 256 GiB in one piece make it fail.
        sealed.ok().map(Into::into)
    }

    /// Decrypts what stands at `file_offset`, seal included; gives its length without.
    pub(crate) fn open(&self, file_offset: u64, bytes: &mut [u8]) -> Result<usize, String> {
        let len = bytes
            .len()
            .checked_sub(TAG_LEN)
            .ok_or("it is shorter than its seal")?;
        let (bytes, tag) = bytes.split_at_mut(len);
        let tag: [u8; TAG_LEN] = tag.try_into().map_err(|_| "it has no seal")?;
        self.0
            .decrypt_in_place_detached(&nonce(file_offset).into(), b"", bytes, &tag.into())
            .map_err(|_| "the seal of the encryption is broken".to_owned())?;
        Ok(len)
    }
}

fn nonce(file_offset: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&file_offset.to_le_bytes());
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_in_its_place_only() {
        let seal = Seal::new(&[7; 32]);
        let mut bytes = b"contents".to_vec();
        let tag = seal.close(4096, &mut bytes).unwrap();
        assert_ne!(bytes, b"contents");
        bytes.extend(tag);
        for (place, changed) in [(8192, 0), (4096, 1)] {
            let mut other = bytes.clone();
            other[3] ^= changed;
            assert!(seal.open(place, &mut other).is_err());
        }
        assert!(Seal::new(&[8; 32]).open(4096, &mut bytes.clone()).is_err());
        assert_eq!(seal.open(4096, &mut bytes), Ok(8));
        assert_eq!(&bytes[..8], b"contents");
        assert!(seal.open(4096, &mut [0; 3]).is_err());
    }
}
