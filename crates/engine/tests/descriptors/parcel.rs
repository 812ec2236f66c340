//! What goes from the test to the process that restores for it.

use serde::{Deserialize, Serialize};
use stasis_engine::EngineError;
use stasis_engine::contents::{ContentId, ContentLoader, ContentSink};
use stasis_engine::descriptors::{Description, Table};
use stasis_engine::file_policy::FileRecord;
use std::fs::File;
use std::os::fd::RawFd;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

/// Everything that it needs to know. Descriptors are given by number, and are inherited.
#[derive(Serialize, Deserialize)]
pub struct Parcel {
    pub descriptions: Vec<Description>,
    pub tables: Vec<Table>,
    pub contents: Vec<Vec<u8>>,
    pub files: Vec<FileRecord>,
    /// Of each process, its id and name.
    pub processes: Vec<(i32, String)>,
    pub first_free: RawFd,
    pub stdio: [Option<RawFd>; 3],
    pub terminal: Option<RawFd>,
    /// Where to tell that all is restored, or why not.
    pub told: RawFd,
    /// What the first process runs when it is continued.
    pub script: String,
}

/// Contents in memory.
#[derive(Debug, Default)]
pub struct Store {
    pub all: Mutex<Vec<Vec<u8>>>,
    pub files: Mutex<Vec<FileRecord>>,
}

impl Store {
    pub fn contents(&self) -> Vec<Vec<u8>> {
        self.all.lock().expect("unpoisoned").clone()
    }
}

impl ContentSink for Store {
    fn store_file(&self, file: &File, len: u64) -> Result<ContentId, EngineError> {
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, 0)
            .map_err(|error| EngineError::Failed(error.to_string()))?;
        let mut all = self.all.lock().expect("unpoisoned");
        all.push(bytes);
        Ok(ContentId(all.len() as u32 - 1))
    }
}

impl ContentLoader for Store {
    fn load_into(&self, content: ContentId, file: &File) -> Result<(), EngineError> {
        for (place, page) in self.contents()[content.0 as usize].chunks(4096).enumerate() {
            if page.iter().any(|byte| *byte != 0) {
                file.write_all_at(page, place as u64 * 4096)
                    .map_err(|error| EngineError::Failed(error.to_string()))?;
            }
        }
        Ok(())
    }
    fn matches(&self, content: ContentId, file: &File, len: u64) -> Result<bool, EngineError> {
        let mut bytes = vec![0; len as usize];
        Ok(file.read_exact_at(&mut bytes, 0).is_ok()
            && bytes == self.contents()[content.0 as usize])
    }
}
