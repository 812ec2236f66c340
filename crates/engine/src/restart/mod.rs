//! Restarting from an image: verify, plan, files, skeleton, memory, threads, start.

mod births;
mod burn;
mod executable;
mod execute;
mod fill;
mod ids;
mod maker;
mod numbers;
mod plan;
mod revive;
mod skeleton;
mod strategy;
mod thread_births;
pub(crate) mod world;

use crate::descriptors::{External, RestoreContext};
use crate::file_policy::ReadyFiles;
use crate::store::Loader;
use std::os::fd::{OwnedFd, RawFd};

pub use execute::execute;
pub(crate) use plan::refusal;
pub use plan::{CONFORMANCE, Plan, plan};
use world::clocks_go_on;

pub use strategy::{Abilities, Namespaces, Obstacle, Strategy};

/// What to do with a file whose contents do not match the saved memory and cannot be made to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ChangedFiles {
    /// Refuse to start, naming them all.
    #[default]
    Refuse,
    /// Use them as they are.
    Accept,
}

/// How to restart.
#[derive(Debug, Default)]
pub struct Options {
    /// Which strategy; `None` chooses the first that this host allows.
    pub strategy: Option<Strategy>,
    /// What to do about changed files.
    pub changed_files: ChangedFiles,
    /// What to do with connections that led out of the job.
    pub external: External,
    /// `OLD=NEW` prefixes for paths.
    pub map_path: Vec<(String, String)>,
    /// Threads that read; 0 is one for each processor.
    pub threads: usize,
    /// The plan will be carried out: the memory of processes, most of an image, need not be read twice, once to be verified and
    /// once to be put in its place, where nothing but the new processes would have been touched when damage is found.
    pub verify_while_filling: bool,
    /// The restart's own output, where the program goes on in that file, is not cut: what is printed again is doubled in it.
    pub keep_output: bool,
    /// Start also where the processor lacks features that the program may use.
    pub any_processor: bool,
    /// The slave side of a terminal that becomes the job's controlling terminal, where the job had one.
    pub terminal: Option<OwnedFd>,
}

fn context<'a>(
    options: &'a Options,
    loader: &'a Loader<'a>,
    files: Option<&'a ReadyFiles>,
    stdio: &'a [Option<OwnedFd>; 3],
    inherited: &'a [(RawFd, OwnedFd)],
    first_free: RawFd,
) -> RestoreContext<'a> {
    RestoreContext {
        keep_output: options.keep_output,
        contents: loader,
        files,
        first_free,
        stdio,
        inherited,
        terminal: options.terminal.as_ref(),
        path_map: &options.map_path,
        clocks: None,
        own_mounts: false,
        changed_files: options.changed_files,
        external: &options.external,
    }
}
