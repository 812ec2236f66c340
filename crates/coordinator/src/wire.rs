//! JSON lines over a TCP connection.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Read, Write};
use std::net::TcpStream;

/// Longest line in bytes.
const LONGEST: usize = 1 << 20;

/// Writes one line.
pub(crate) fn write(mut to: impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line)
}

/// Reads lines. What has arrived of a line stays when a time limit passes.
#[derive(Debug)]
pub(crate) struct Lines<R = TcpStream> {
    from: R,
    buffer: Vec<u8>,
}

impl<R: Read> Lines<R> {
    pub(crate) fn new(from: R) -> Lines<R> {
        Lines {
            from,
            buffer: Vec::new(),
        }
    }

    pub(crate) fn get(&self) -> &R {
        &self.from
    }

    /// The next line; `None` at the end.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let mut looked = 0;
        loop {
            if let Some(at) = self.buffer[looked..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=looked + at).collect();
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            looked = self.buffer.len();
            if looked > LONGEST {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the line has no end",
                ));
            }
            let mut piece = [0; 4096];
            match self.from.read(&mut piece) {
                Ok(0) => return Ok(None),
                Ok(n) => self.buffer.extend_from_slice(&piece[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether an error only says that a time limit has passed.
pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its pieces one by one, and between them says that nothing is there yet.
    struct Halting(Vec<&'static [u8]>, bool);

    impl Read for Halting {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            if self.0.is_empty() {
                return Ok(0);
            }
            let piece = self.0.remove(0);
            buffer[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        }
    }

    #[test]
    fn a_line_in_pieces_is_one_line() {
        let mut lines = Lines::new(Halting(vec![b"[1,", b"2]\n[3]\n[4", b"]\n"], false));
        let mut heard: Vec<Vec<u32>> = Vec::new();
        loop {
            match lines.next() {
                Ok(Some(line)) => heard.push(line),
                Ok(None) => break,
                Err(error) => assert!(is_timeout(&error), "{error}"),
            }
        }
        assert_eq!(heard, [vec![1, 2], vec![3], vec![4]]);
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut lines = Lines::new(io::repeat(b'x'));
        let error = lines.next::<u32>().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
