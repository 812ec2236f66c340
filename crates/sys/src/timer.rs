//! POSIX timers.

/// `PR_TIMER_CREATE_RESTORE_IDS` and its question (`linux/prctl.h`, Linux 6.16).
const CREATE_RESTORE_IDS: libc::c_int = 77;
const CREATE_RESTORE_IDS_GET: libc::c_ulong = 2;

/// Whether the kernel lets a process choose the ids of its timers (Linux 6.16 and newer).
#[must_use]
pub fn ids_can_be_chosen() -> bool {
    const NONE: libc::c_ulong = 0;
    // SAFETY: the call takes no pointers, and only asks.
    let rc = unsafe { libc::prctl(CREATE_RESTORE_IDS, CREATE_RESTORE_IDS_GET, NONE, NONE, NONE) };
    rc >= 0
}
