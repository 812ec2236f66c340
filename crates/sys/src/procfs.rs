//! Reading files of `/proc`.
//!
//! The standard library asks for a file's length, which `/proc` does not know, and then reads in pieces that double from 32
//! bytes: ten system calls for a file of a page. While a program stands still, that is felt.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Reads all of a file.
///
/// # Errors
/// Those of open(2) and read(2).
pub fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    const PIECE: usize = 8192;
    let mut file = File::open(path)?;
    let mut bytes = vec![0; PIECE];
    let mut len = 0;
    loop {
        match file.read(&mut bytes[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if bytes.len() - len < PIECE / 2 {
            bytes.resize(bytes.len() * 2, 0);
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}

/// Reads all of a file that holds text.
///
/// # Errors
/// As [`read`]; `InvalidData` where it is not UTF-8.
pub fn read_to_string(path: impl AsRef<Path>) -> io::Result<String> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    String::from_utf8(read(path)?).map_err(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_every_length_are_read_whole() {
        let own = std::fs::read("/proc/self/auxv").expect("/proc");
        assert_eq!(read("/proc/self/auxv").expect("/proc"), own);
        let path = std::env::temp_dir().join(format!("stasis-procfs-{}", std::process::id()));
        for len in [0, 1, 4095, 4096, 4097, 8192, 100_000] {
            let bytes: Vec<u8> = (0..len).map(|n| n as u8).collect();
            std::fs::write(&path, &bytes).expect("a temporary file");
            assert_eq!(read(&path).expect("the file"), bytes);
        }
        std::fs::remove_file(&path).expect("the file");
        assert!(read(&path).is_err());
        assert!(
            read_to_string("/proc/self/status")
                .expect("/proc")
                .contains("Name:")
        );
    }
}
