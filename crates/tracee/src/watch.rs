//! Threads that run while they are traced: signals from outside are kept from them, everything else is let through.

use crate::ptrace::{self, PendingSignal};
use crate::state::{News, Stop, Stopped, interpret};
use stasis_sys::Pid;
use stasis_sys::signal::SignalSet;

/// Which signals are kept from the program: those of a set that somebody else's process has sent.
///
/// Somebody else's: another user's (a batch system's daemon runs as root), or one outside the program's pid namespace. What
/// processes of the user send to each other goes through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Withheld {
    /// The signals.
    pub signals: SignalSet,
    /// The program's user.
    pub user: u32,
}

/// Offsets in a `siginfo_t` that a process has sent (`include/uapi/asm-generic/siginfo.h`, 64 bit).
const CODE: usize = 8;
const SENDER: usize = 16;
const USER: usize = 20;

impl Withheld {
    /// Whether a signal of this number may be one.
    #[must_use]
    pub fn is_about(&self, signal: i32) -> bool {
        self.signals.contains(signal)
    }

    /// Whether this one is.
    #[must_use]
    pub fn holds(&self, info: &[u8]) -> bool {
        let word = |at: usize| {
            let bytes = info.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, i32::from_ne_bytes)
        };
        // Codes above 0 are the kernel's own: no process has sent those.
        self.is_about(word(0))
            && word(CODE) <= 0
            && (word(SENDER) == 0 || word(USER).cast_unsigned() != self.user)
    }
}

/// Lets every thread go on that the calling thread traces and that has stopped since the last time. Returns the signals that
/// were kept from the program; those of `strangers`, which are not of the program, are kept whoever has sent them.
///
/// `restart` puts right a call that was interrupted for a signal that then does not arrive.
pub fn pump(
    withheld: &Withheld,
    strangers: &[Pid],
    restart: &mut dyn FnMut(&mut Stopped),
) -> Vec<(Pid, i32)> {
    let mut kept = Vec::new();
    while let Some((tid, status)) = ptrace::wait_any() {
        // Each step fails only where the thread has died, which the next wait tells.
        let _ = match interpret(tid, status) {
            Err(_) => Ok(()),
            Ok(News::Stop(Stop::Group(_))) => ptrace::listen(tid),
            Ok(News::Signal(signal)) => {
                let stranger = strangers.contains(&tid);
                let info = ptrace::signal_info(tid);
                let holds = |info: &PendingSignal| stranger || withheld.holds(info);
                if withheld.is_about(signal) && info.is_ok_and(|info| holds(&info)) {
                    kept.push((tid, signal));
                    restart(&mut Stopped::new(tid, Stop::Interrupted));
                    ptrace::resume(tid, 0)
                } else {
                    ptrace::resume(tid, signal)
                }
            }
            Ok(News::Trap) => ptrace::resume(tid, libc::SIGTRAP),
            Ok(News::Stop(Stop::Interrupted) | News::Born(_) | News::SyscallTrap | News::Other) => {
                ptrace::resume(tid, 0)
            }
        };
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(signal: i32, code: i32, sender: i32, user: i32) -> PendingSignal {
        let mut info = [0; ptrace::SIGINFO_BYTES];
        for (at, word) in [(0, signal), (CODE, code), (SENDER, sender), (USER, user)] {
            info[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        info
    }

    #[test]
    fn only_what_others_send_is_withheld() {
        let withheld = Withheld {
            signals: SignalSet::EMPTY.with(libc::SIGTERM),
            user: 1000,
        };
        assert!(withheld.holds(&info(libc::SIGTERM, 0, 77, 0)), "root's");
        assert!(
            withheld.holds(&info(libc::SIGTERM, 0, 0, 65534)),
            "from outside the namespace"
        );
        assert!(
            !withheld.holds(&info(libc::SIGTERM, 0, 77, 1000)),
            "its own"
        );
        assert!(
            !withheld.holds(&info(libc::SIGUSR1, 0, 77, 0)),
            "another one"
        );
        assert!(
            !withheld.holds(&info(libc::SIGTERM, 0x80, 0, 0)),
            "the kernel's"
        );
        assert!(!Withheld::default().holds(&info(libc::SIGTERM, 0, 77, 0)));
    }
}
