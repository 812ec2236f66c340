//! The world that a restarted job lives in: namespaces of its own, with the host's files and network, where the strategy is that.

use super::Strategy;
use crate::EngineError;
use crate::descriptors::mqueues;
use crate::error::Context;
use crate::model::{Clocks, Tree};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use stasis_sys::namespace;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Enters new user and mount namespaces, an ipc namespace where `ipc` asks for one, with the own ids mapped onto themselves, and makes the pid and time namespaces that the
/// next child is born into. The time namespace continues the program's clocks.
///
/// # Errors
/// When the host does not allow it. Without time namespaces (`CONFIG_TIME_NS`) the clocks jump, which `notes` tells.
pub fn enter(clocks: &Clocks, ipc: bool, notes: &mut Vec<String>) -> Result<(), EngineError> {
    let (uid, gid) = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    namespace::unshare(namespace::USER | namespace::MOUNT)
        .context(|| "making a user namespace".into())?;
    let write =
        |path: &str, text: String| fs::write(path, text).context(|| format!("writing {path}"));
    write("/proc/self/setgroups", "deny".into())?;
    write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    if ipc {
        namespace::unshare(namespace::IPC).context(|| "making an ipc namespace".into())?;
    }
    namespace::unshare(namespace::PID).context(|| "making a pid namespace".into())?;
    match namespace::unshare(namespace::TIME) {
        Ok(()) => {
            let text = offsets(clocks);
            write("/proc/self/timens_offsets", text)?;
        }
        Err(_) => notes.push("this kernel has no time namespaces: CLOCK_MONOTONIC jumps".into()),
    }
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .context(|| "making mounts private".into())?;
    if ipc {
        mount_queues()?;
    }
    Ok(())
}

/// Whether `tree` is to have an ipc namespace of its own where its strategy is namespaces: ids of System V objects can be chosen
/// there, and all ids and names are free.
#[must_use]
pub fn wants_ipc(tree: &Tree) -> bool {
    !tree.ipc.is_empty() || mqueues::want_namespace(&tree.descriptions)
}

/// Where the host shows its POSIX message queues, the job's own are shown instead.
fn mount_queues() -> Result<(), EngineError> {
    const PLACE: &str = "/dev/mqueue";
    const MAGIC: u64 = 0x1980_0202;
    if rustix::fs::statfs(PLACE).is_ok_and(|fs| fs.f_type as u64 == MAGIC) {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("mqueue", PLACE, "mqueue", flags, None::<&std::ffi::CStr>)
            .context(|| format!("mounting {PLACE}"))?;
    }
    Ok(())
}

/// Whether a restarted program's clocks go on from the checkpoint.
#[must_use]
pub fn clocks_go_on(strategy: Strategy) -> bool {
    strategy == Strategy::Namespaces && Path::new("/proc/self/ns/time").exists()
}

fn offsets(clocks: &Clocks) -> String {
    let line = |name: &str, saved: Duration, clock: rustix::time::ClockId| {
        let now = rustix::time::clock_gettime(clock);
        let now = i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec);
        let shift = i128::try_from(saved.as_nanos()).unwrap_or(0) - now;
        format!(
            "{name} {} {}\n",
            shift.div_euclid(1_000_000_000),
            shift.rem_euclid(1_000_000_000)
        )
    };
    line(
        "monotonic",
        clocks.monotonic,
        rustix::time::ClockId::Monotonic,
    ) + &line("boottime", clocks.boottime, rustix::time::ClockId::Boottime)
}

/// Mounts a fresh `/proc`, in the first process of the new pid namespace.
///
/// # Errors
/// `EPERM` where the host's `/proc` is partly masked, as in containers.
pub fn mount_proc() -> std::io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", flags, None::<&std::ffi::CStr>)?;
    Ok(())
}

/// Mounts a devpts of the job's own over the host's, so that its pseudo terminals can have the numbers that they had. The host's
/// are out of sight by name; descriptors on them stay.
///
/// # Errors
/// What mount(2) says.
pub fn mount_devpts() -> Result<(), EngineError> {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount(
        "devpts",
        "/dev/pts",
        "devpts",
        flags,
        Some(c"newinstance,ptmxmode=0666,mode=0620"),
    )
    .context(|| "mounting /dev/pts for the pseudo terminals of the job".into())
}
