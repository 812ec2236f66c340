//! Remote calls that outlive the supervisor.
//!
//! A thread of a program that runs on is sent to a *slot*: code that makes calls and ends with a *tail*, which puts back the
//! registers and the signal mask that the thread had, and jumps to where it was. The supervisor holds the thread before the tail
//! and puts everything back itself. But if it dies, at whatever moment, the kernel lets the thread go, and the thread makes its
//! calls, passes the tail and goes on, as if nothing had been.
//!
//! For that, nothing may be left that only a tracer can handle: no single steps (the trap flag stays when the tracer is
//! gone), no breakpoints. A thread that has made its calls tells so by [`Notice`]. sigreturn(2) is no way back: it
//! makes the kernel forget an interrupted call (`restore_sigcontext` resets the restart block).

use crate::arch::code::{self, Code};
use crate::ptrace;
use crate::state::{News, Stop, Stopped, interpret};
use crate::{Registers, TraceError};
use stasis_sys::Pid;
use stasis_sys::signal::SignalSet;
use std::io;

/// A system call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// Its number.
    pub number: i64,
    /// Its arguments; those that it does not take are not looked at.
    pub arguments: [u64; 6],
}

impl Call {
    /// A call with some arguments.
    #[must_use]
    pub fn new(number: i64, some: &[u64]) -> Call {
        let mut arguments = [0; 6];
        for (place, value) in arguments.iter_mut().zip(some) {
            *place = *value;
        }
        Call { number, arguments }
    }
}

/// How the supervisor is told that a thread has made its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The thread sends a signal to itself that its program neither handles nor blocks, and whose default is to be ignored: a
    /// tracer sees even such a signal (`sig_ignored`, `kernel/signal.c`), and without a tracer it is nothing.
    Signal {
        /// The signal.
        signal: i32,
        /// The process, by the number that it knows itself.
        process: Pid,
        /// The thread, by the number that it knows itself.
        thread: Pid,
    },
    /// System call stops, two for each call.
    EveryCall,
}

/// Signals that are ignored by default and mean little.
const NOTICES: [i32; 2] = [libc::SIGURG, libc::SIGWINCH];

/// How a thread is known inside its program, and what its program handles.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The process, by the number that it knows itself.
    pub process: Pid,
    /// The thread, by the number that it knows itself.
    pub thread: Pid,
    /// Signals that have a handler.
    pub handled: SignalSet,
}

impl Notice {
    fn choose(identity: &Identity, mask: SignalSet) -> Notice {
        let free = |signal: &i32| !identity.handled.contains(*signal) && !mask.contains(*signal);
        match NOTICES.into_iter().find(free) {
            Some(signal) => Notice::Signal {
                signal,
                process: identity.process,
                thread: identity.thread,
            },
            None => Notice::EveryCall,
        }
    }

    fn call(self) -> Option<Call> {
        match self {
            Notice::Signal {
                signal,
                process,
                thread,
            } => Some(Call::new(
                libc::SYS_tgkill,
                &[process.0 as u64, thread.0 as u64, signal as u64],
            )),
            Notice::EveryCall => None,
        }
    }

    /// What is not blocked meanwhile.
    fn mask(self) -> SignalSet {
        match self {
            Notice::Signal { signal, .. } => SignalSet::ALL.without(signal),
            Notice::EveryCall => SignalSet::ALL,
        }
    }
}

/// The code of a slot.
#[derive(Clone, Debug)]
pub struct Slot {
    /// To be put into the thread's memory, at any address.
    pub code: Vec<u8>,
    /// Calls before the notice.
    calls: usize,
    /// Offset at which the thread has given notice.
    noticed: u64,
}

/// A thread that makes calls in a slot, or is about to.
#[derive(Debug)]
#[must_use]
pub struct Excursion {
    tid: Pid,
    stop: Stop,
    own: Registers,
    mask: SignalSet,
    identity: Identity,
    notice: Notice,
    blocked: bool,
    /// Where the thread is when it has given notice.
    noticed: u64,
    stops_left: usize,
    born: Option<Pid>,
}

impl Excursion {
    /// Takes note of what the thread has; nothing of it is changed yet.
    ///
    /// # Errors
    /// [`TraceError::Dead`].
    pub fn begin(thread: Stopped, identity: &Identity) -> Result<Excursion, TraceError> {
        let mask = thread.signal_mask()?;
        Ok(Excursion {
            tid: thread.tid(),
            stop: thread.stop(),
            own: thread.registers()?,
            mask,
            identity: *identity,
            notice: Notice::choose(identity, mask),
            blocked: false,
            noticed: 0,
            stops_left: 0,
            born: None,
        })
    }

    /// How the thread is known.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The thread.
    #[must_use]
    pub fn tid(&self) -> Pid {
        self.tid
    }

    /// What puts the thread back to where it was, without anybody's help.
    #[must_use]
    pub fn tail(&self) -> Vec<u8> {
        self.completed(Code::default(), 0).code
    }

    fn completed(&self, mut code: Code, calls: usize) -> Slot {
        if let Some(call) = self.notice.call() {
            code.call(&call);
        }
        let noticed = code.len();
        code.leave(&self.own.restarted(), self.mask);
        Slot {
            code: code.into_bytes(),
            calls,
            noticed,
        }
    }

    /// A slot for one call or two.
    #[must_use]
    pub fn row(&self, calls: &[Call]) -> Slot {
        let mut code = Code::default();
        for (n, call) in calls.iter().enumerate() {
            code.call(call);
            code.keep(n);
        }
        self.completed(code, calls.len())
    }

    /// A slot in which the thread makes an intermediate, which shares its memory, makes a twin and ends; the thread waits for that.
    /// With `own_files` the intermediate may open descriptors that the thread does not get.
    #[must_use]
    pub fn fork(&self, own_files: bool) -> Slot {
        const SIGNAL_NONE: i32 = 0;
        let files = if own_files { 0 } else { libc::CLONE_FILES };
        let shares = libc::CLONE_VM | files | libc::CLONE_FS | SIGNAL_NONE;
        let intermediate = Call::new(libc::SYS_clone, &[shares as u64]);
        let twin = Call::new(libc::SYS_clone, &[SIGNAL_NONE as u64]);
        let options = (libc::WEXITED | libc::__WALL) as u32;
        let wait = Call::new(
            libc::SYS_waitid,
            &[u64::from(libc::P_PID), 0, 0, u64::from(options), 0],
        );
        let mut code = Code::default();
        code.fork(&intermediate, &twin, libc::SYS_exit, &wait);
        self.completed(code, 2)
    }

    /// The table of `calls` that [`code::table_loop`] makes, the notice among them; the thread leaves it by `tail`. The
    /// result of the n-th call is found by [`result_in`].
    #[must_use]
    pub fn table(&self, calls: &[Call], tail: u64) -> Vec<u8> {
        let entries = calls.iter().copied().chain(self.notice.call());
        let mut table: Vec<u8> = entries
            .flat_map(|call| code::entry(call.number, &call.arguments))
            .collect();
        table.extend(code::last_entry(tail));
        table
    }

    /// Points the thread to `slot`, which its memory holds at `address`. It does not run yet.
    ///
    /// # Errors
    /// [`TraceError::Dead`].
    pub fn aim(&mut self, slot: &Slot, address: u64) -> Result<(), TraceError> {
        self.aim_at(address, 0, address + slot.noticed, slot.calls)
    }

    /// Points the thread to the loop at `address` and to a table of so many calls.
    ///
    /// # Errors
    /// [`TraceError::Dead`].
    pub fn aim_at_table(
        &mut self,
        address: u64,
        table: u64,
        calls: usize,
    ) -> Result<(), TraceError> {
        self.aim_at(address, table, address + code::LOOP_CALLED, calls)
    }

    fn aim_at(
        &mut self,
        address: u64,
        table: u64,
        noticed: u64,
        calls: usize,
    ) -> Result<(), TraceError> {
        self.noticed = noticed;
        self.stops_left = 2 * calls;
        let mut registers = self.own;
        registers.send_to(address, table);
        ptrace::set_registers(self.tid, &registers)?;
        // Only now: a thread that is let go with its own registers needs its own mask. The slot's tail sets it in any case.
        if !self.blocked {
            ptrace::set_signal_mask(self.tid, self.notice.mask())?;
            self.blocked = true;
        }
        Ok(())
    }

    /// Lets the thread run, from where it was pointed to or has last stopped.
    ///
    /// # Errors
    /// [`TraceError::Dead`].
    pub fn go(&self) -> Result<(), TraceError> {
        self.go_with(0)
    }

    fn go_with(&self, signal: i32) -> Result<(), TraceError> {
        match self.notice {
            Notice::Signal { .. } => ptrace::resume(self.tid, signal),
            Notice::EveryCall => ptrace::to_syscall(self.tid, signal),
        }
    }

    /// Waits for the thread's next stop and lets it go on, unless it has done: then true. What it has made is in [`Excursion::born`].
    ///
    /// # Errors
    /// [`TraceError::Dead`]; [`TraceError::Unexpected`].
    pub fn advance(&mut self) -> Result<bool, TraceError> {
        let status = ptrace::wait(self.tid, true)?.unwrap_or(0);
        let unexpected = TraceError::Unexpected {
            what: "making remote calls",
            tid: self.tid,
            status,
        };
        match (interpret(self.tid, status)?, self.notice) {
            (News::Signal(number), Notice::Signal { signal, .. }) if number == signal => {
                // Somebody else's is nothing to this program, at whatever moment it comes.
                if ptrace::registers(self.tid)?.position() == self.noticed {
                    return Ok(true);
                }
                self.go()?;
            }
            // SIGSTOP, which cannot be blocked: its stop follows.
            (News::Signal(number), _) => self.go_with(number)?,
            (News::SyscallTrap, Notice::EveryCall) => {
                self.stops_left = self.stops_left.saturating_sub(1);
                if self.stops_left == 0 {
                    return Ok(true);
                }
                self.go()?;
            }
            (News::Born(child), _) => {
                self.born = Some(child);
                self.go()?;
            }
            // A stop by job control that was already due, or an interrupt left over.
            (News::Stop(stop), _) => {
                if let Stop::Group(_) = stop {
                    self.stop = stop;
                }
                self.go()?;
            }
            _ => return Err(unexpected),
        }
        Ok(false)
    }

    /// What the thread has made, once: traced, and about to stop.
    pub fn born(&mut self) -> Option<Pid> {
        self.born.take()
    }

    /// The results of the calls of a [`Excursion::row`] of `count`, when they have been made.
    ///
    /// # Errors
    /// [`TraceError::Dead`].
    pub fn results(&self, count: usize) -> Result<Vec<i64>, TraceError> {
        let registers = ptrace::registers(self.tid)?;
        let mut results = code::kept(&registers)[..count.min(2)].to_vec();
        if let (Notice::EveryCall, Some(last)) = (self.notice, results.last_mut()) {
            *last = registers.result();
        }
        Ok(results)
    }

    /// The result of the last call of a table, where the table does not have it.
    ///
    /// # Errors
    /// [`TraceError::Dead`].
    pub fn last_result(&self) -> Result<Option<i64>, TraceError> {
        match self.notice {
            Notice::Signal { .. } => Ok(None),
            Notice::EveryCall => Ok(Some(ptrace::registers(self.tid)?.result())),
        }
    }

    /// Gives the thread back what it had: it is in a stop from which it goes on properly, whoever lets it go.
    ///
    /// # Errors
    /// [`TraceError::Dead`].
    pub fn finish(self) -> Result<Stopped, TraceError> {
        // The mask first: as long as the thread is in the slot, the tail follows.
        if self.blocked {
            ptrace::set_signal_mask(self.tid, self.mask)?;
            ptrace::set_registers(self.tid, &self.own)?;
        }
        // From the stop of a signal the kernel goes on to look for interrupted calls, as from an interrupt's.
        if self.blocked && self.notice == Notice::EveryCall {
            ptrace::interrupt(self.tid)?;
            ptrace::resume(self.tid, 0)?;
            let status = ptrace::wait(self.tid, true)?.unwrap_or(0);
            match interpret(self.tid, status)? {
                News::Stop(Stop::Interrupted) => {}
                News::Stop(stop) => return Ok(Stopped::new(self.tid, stop)),
                _ => {
                    return Err(TraceError::Unexpected {
                        what: "ending remote calls in",
                        tid: self.tid,
                        status,
                    });
                }
            }
        }
        Ok(Stopped::new(self.tid, self.stop))
    }

    /// Lets the thread go as it is: it finds its way back by itself. For when a step has failed.
    pub fn abandon(self) {
        // Only a stopped thread can be let go. One that runs passes its tail under our eyes, and is let go when the tracing thread ends.
        let _ = ptrace::detach(self.tid, 0);
    }
}

/// The result of the n-th call of a `table` whose calls have been made.
#[must_use]
pub fn result_in(table: &[u8], n: usize) -> Option<i64> {
    let at = n * code::ENTRY as usize + code::RESULT_AT as usize;
    let bytes = table.get(at..at + 8)?;
    Some(i64::from_ne_bytes(bytes.try_into().ok()?))
}

/// A call's outcome: the result, or the error that it stands for.
///
/// # Errors
/// The call's.
pub fn outcome(name: &'static str, tid: Pid, result: i64) -> Result<u64, TraceError> {
    if (-4095..0).contains(&result) {
        let source = io::Error::from_raw_os_error(-result as i32);
        return Err(TraceError::Call { name, tid, source });
    }
    Ok(result as u64)
}
