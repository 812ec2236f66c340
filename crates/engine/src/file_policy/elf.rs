//! The build id of a program or library: a hash that the linker has put into it (`ld --build-id`).

use object::elf::FileHeader32;
use object::elf::FileHeader64;
use object::read::ReadCache;
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, ReadRef};
use std::fs::File;

/// The build id of `file`; `None` for what is no ELF file or has none. Reads a few pages at the beginning.
pub(super) fn build_id(file: &File) -> Option<Vec<u8>> {
    let cache = ReadCache::new(file);
    let magic = (&cache).read_bytes_at(0, 16).ok()?;
    if magic.get(..4)? != b"\x7fELF" {
        return None;
    }
    match magic[4] {
        object::elf::ELFCLASS64 => note::<FileHeader64<Endianness>>(&cache),
        object::elf::ELFCLASS32 => note::<FileHeader32<Endianness>>(&cache),
        _ => None,
    }
}

fn note<Elf: FileHeader<Endian = Endianness>>(data: &ReadCache<&File>) -> Option<Vec<u8>> {
    let header = Elf::parse(data).ok()?;
    let endian = header.endian().ok()?;
    for segment in header.program_headers(endian, data).ok()? {
        let Ok(Some(mut notes)) = segment.notes(endian, data) else {
            continue;
        };
        while let Ok(Some(note)) = notes.next() {
            if note.name() == object::elf::ELF_NOTE_GNU
                && note.n_type(endian) == object::elf::NT_GNU_BUILD_ID
            {
                return Some(note.desc().to_vec());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_library_of_the_system_has_one_and_a_text_has_none() {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc/self/maps");
        let library = maps
            .split_ascii_whitespace()
            .find(|word| word.contains("/libc.so") || word.contains("/libc-"));
        match library {
            Some(path) => {
                let id = build_id(&File::open(path).expect("readable")).expect("a build id");
                assert!(id.len() >= 8, "{id:?}");
            }
            None => eprintln!("skipped: no C library is mapped here"),
        }
        let mut text = tempfile::tempfile().expect("a temporary file");
        text.write_all(b"\x7fELF, not really").expect("writable");
        assert_eq!(build_id(&text), None);
    }
}
