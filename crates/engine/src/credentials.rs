//! Who a process is: user and group ids, supplementary groups, capabilities.
//!
//! Saved: all of them. Restored where they differ from the restarting user's, which only root can; another user's image is refused
//! before anything starts.
//!
//! Rests on: `/proc/PID/status`; capabilities are per thread (capabilities(7)), so that they are dropped in every thread.

use crate::EngineError;
use crate::calls::Calls;
use crate::conformance::Claim;
use crate::tree::status_field;
use serde::{Deserialize, Serialize};

/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[Claim::kept(
    "user and group ids, supplementary groups, capabilities",
    "",
    &["processes::credentials"],
)];

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Real, effective, saved and file system user id.
    pub uids: [u32; 4],
    /// The same of groups.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Inheritable, permitted, effective capabilities.
    pub capabilities: [u64; 3],
}

fn four(status: &str, name: &str) -> [u32; 4] {
    let mut ids = [0; 4];
    let words = status_field(status, name)
        .unwrap_or_default()
        .split_ascii_whitespace();
    for (id, word) in ids.iter_mut().zip(words) {
        *id = word.parse().unwrap_or(u32::MAX);
    }
    ids
}

/// Captures them from `/proc/PID/status`.
#[must_use]
pub fn capture(status: &str) -> State {
    let hex = |name| {
        status_field(status, name)
            .and_then(|text| u64::from_str_radix(text, 16).ok())
            .unwrap_or(0)
    };
    let groups = status_field(status, "Groups")
        .unwrap_or_default()
        .split_ascii_whitespace();
    State {
        uids: four(status, "Uid"),
        gids: four(status, "Gid"),
        groups: groups.filter_map(|word| word.parse().ok()).collect(),
        capabilities: ["CapInh", "CapPrm", "CapEff"].map(hex),
    }
}

/// `_LINUX_CAPABILITY_VERSION_3`.
const VERSION: u32 = 0x2008_0522;

/// Gives the calling thread's ids and capabilities to a thread that makes remote calls: ids first, as changing them needs the
/// capabilities that are dropped next.
///
/// # Errors
/// When a remote call fails.
pub fn restore_remotely(
    state: &State,
    now: &State,
    calls: &mut Calls<'_>,
) -> Result<(), EngineError> {
    if state.groups != now.groups {
        let groups: Vec<u8> = state
            .groups
            .iter()
            .flat_map(|group| group.to_le_bytes())
            .collect();
        let address = calls.put(&groups)?;
        calls.call(
            "setgroups",
            libc::SYS_setgroups,
            &[state.groups.len() as u64, address],
        )?;
    }
    if state.gids != now.gids {
        let [real, effective, saved, _] = state.gids.map(u64::from);
        calls.call("setresgid", libc::SYS_setresgid, &[real, effective, saved])?;
    }
    if state.uids != now.uids {
        let [real, effective, saved, _] = state.uids.map(u64::from);
        calls.call("setresuid", libc::SYS_setresuid, &[real, effective, saved])?;
    }
    let [inheritable, permitted, effective] = state.capabilities;
    let mut data = Vec::new();
    for shift in [0, 32] {
        for set in [effective, permitted, inheritable] {
            data.extend(((set >> shift) as u32).to_le_bytes());
        }
    }
    let header: Vec<u8> = VERSION.to_le_bytes().into_iter().chain([0; 4]).collect();
    let (header, data) = (calls.put(&header)?, calls.put_at(64, &data)?);
    calls.call("capset", libc::SYS_capset, &[header, data])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_credentials_are_read() {
        let status = std::fs::read_to_string("/proc/self/status").expect("own status");
        let state = capture(&status);
        assert_eq!(state.uids[1], rustix::process::geteuid().as_raw());
        assert_eq!(state.gids[1], rustix::process::getegid().as_raw());
    }
}
