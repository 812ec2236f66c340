//! Remote system calls: a stopped thread is made to execute calls, and then continues as if it had not.
//!
//! The thread's registers are pointed at a `syscall` instruction that its address space holds anyway (the vdso's) and
//! it is single-stepped over it: one stop a call. While that goes on every signal is blocked. SIGTRAP cannot be, as
//! the kernel would answer a blocked or ignored one by resetting its handler (`force_sig_info_to_task`,
//! `kernel/signal.c`); where a program ignores SIGTRAP, system call stops are used instead, two a call.

use crate::ptrace;
use crate::slot::outcome;
use crate::state::{News, Stop, Stopped, interpret};
use crate::{Registers, TraceError};
use stasis_sys::Pid;
use stasis_sys::signal::SignalSet;

/// A thread in the middle of remote calls. [`Remote::finish`] gives it its own registers back.
#[derive(Debug)]
#[must_use]
pub struct Remote {
    tid: Pid,
    stop: Stop,
    own: Registers,
    mask: SignalSet,
    instruction: u64,
    stepping: bool,
    working: Registers,
}

/// What a remote call has made.
#[derive(Clone, Copy, Debug)]
pub struct Child {
    /// Its id, as the supervisor sees it.
    pub tid: Pid,
    /// Its id, as its maker sees it.
    pub virtual_tid: Pid,
}

impl Remote {
    /// Begins. `instruction` is the address of a `syscall` instruction in the thread's memory; `ignores_trap` tells that
    /// the program ignores SIGTRAP.
    ///
    /// # Errors
    /// [`TraceError::Dead`].
    pub fn begin(
        thread: Stopped,
        instruction: u64,
        ignores_trap: bool,
    ) -> Result<Remote, TraceError> {
        let own = thread.registers()?;
        let mask = thread.signal_mask()?;
        let tid = thread.tid();
        ptrace::set_signal_mask(tid, SignalSet::ALL.without(libc::SIGTRAP))?;
        Ok(Remote {
            tid,
            stop: thread.stop(),
            own,
            mask,
            instruction,
            stepping: !ignores_trap,
            working: own,
        })
    }

    /// The thread.
    #[must_use]
    pub fn tid(&self) -> Pid {
        self.tid
    }

    /// Its own registers, as they were at the beginning.
    #[must_use]
    pub fn own_registers(&self) -> &Registers {
        &self.own
    }

    /// Its own signal mask.
    #[must_use]
    pub fn own_mask(&self) -> SignalSet {
        self.mask
    }

    /// Uses the `syscall` instruction at another address from now on.
    pub fn set_instruction(&mut self, instruction: u64) {
        self.instruction = instruction;
    }

    /// The address of the `syscall` instruction in use.
    #[must_use]
    pub fn instruction(&self) -> u64 {
        self.instruction
    }

    /// Executes one call and returns its result.
    ///
    /// # Errors
    /// [`TraceError::Call`] with the call's own error; [`TraceError::Dead`].
    pub fn call(
        &mut self,
        name: &'static str,
        number: i64,
        arguments: &[u64],
    ) -> Result<u64, TraceError> {
        let (result, _) = self.call_with_birth(name, number, arguments)?;
        Ok(result)
    }

    /// Executes one call that makes a thread or process (clone, fork), and returns it, traced and about to stop.
    ///
    /// # Errors
    /// As [`Remote::call`].
    pub fn clone_call(
        &mut self,
        name: &'static str,
        number: i64,
        arguments: &[u64],
    ) -> Result<Child, TraceError> {
        match self.call_with_birth(name, number, arguments)? {
            (virtual_tid, Some(tid)) => Ok(Child {
                tid,
                virtual_tid: Pid(virtual_tid as i32),
            }),
            (_, None) => Err(TraceError::Unexpected {
                what: name,
                tid: self.tid,
                status: 0,
            }),
        }
    }

    /// The same, for a child that must never run: it gets no stack, so that it could not even if it were let go.
    ///
    /// # Errors
    /// As [`Remote::call`].
    pub fn clone_without_stack(
        &mut self,
        name: &'static str,
        number: i64,
        arguments: &[u64],
    ) -> Result<Child, TraceError> {
        let stack = std::mem::replace(&mut self.working.rsp, 0);
        let made = self.clone_call(name, number, arguments);
        self.working.rsp = stack;
        made
    }

    /// Makes the thread end and waits until it has; it is not a first thread that others survive.
    ///
    /// # Errors
    /// [`TraceError::Unexpected`] when it does anything else.
    pub fn end(mut self) -> Result<(), TraceError> {
        let tid = self.tid;
        self.prepare_exit()?;
        ptrace::resume(tid, 0)?;
        loop {
            let status = ptrace::wait(tid, true)?.unwrap_or(0);
            match interpret(tid, status) {
                Err(TraceError::Dead(_)) => return Ok(()),
                Err(error) => return Err(error),
                Ok(News::Stop(_)) => ptrace::resume(tid, 0)?,
                Ok(_) => {
                    return Err(TraceError::Unexpected {
                        what: "ending",
                        tid,
                        status,
                    });
                }
            }
        }
    }

    /// Brings the thread to the very beginning of a call that makes a thread or process: [`Remote::fire`] lets it go on, with as
    /// little time between that and the birth as can be had from outside.
    ///
    /// # Errors
    /// [`TraceError::Dead`].
    pub fn arm(
        &mut self,
        name: &'static str,
        number: i64,
        arguments: &[u64],
    ) -> Result<(), TraceError> {
        self.working
            .prepare_call(self.instruction, number, arguments);
        ptrace::set_registers(self.tid, &self.working)?;
        self.until_syscall_stop(name).map(drop)
    }

    /// Lets an armed thread make its child, and returns that, traced and about to stop.
    ///
    /// # Errors
    /// As [`Remote::call`].
    pub fn fire(&mut self, name: &'static str) -> Result<Child, TraceError> {
        let born = self.until_syscall_stop(name)?;
        let result = ptrace::registers(self.tid)?.result();
        match born {
            Some(tid) => Ok(Child {
                tid,
                virtual_tid: Pid(result as i32),
            }),
            None => Err(TraceError::Call {
                name,
                tid: self.tid,
                source: std::io::Error::from_raw_os_error(-result as i32),
            }),
        }
    }

    fn until_syscall_stop(&mut self, what: &'static str) -> Result<Option<Pid>, TraceError> {
        let mut born = None;
        loop {
            ptrace::to_syscall(self.tid, 0)?;
            let status = ptrace::wait(self.tid, true)?.unwrap_or(0);
            match interpret(self.tid, status)? {
                News::SyscallTrap => return Ok(born),
                News::Born(child) => born = Some(child),
                News::Stop(stop @ Stop::Group(_)) => self.stop = stop,
                News::Stop(_) => {}
                _ => {
                    return Err(TraceError::Unexpected {
                        what,
                        tid: self.tid,
                        status,
                    });
                }
            }
        }
    }

    fn call_with_birth(
        &mut self,
        name: &'static str,
        number: i64,
        arguments: &[u64],
    ) -> Result<(u64, Option<Pid>), TraceError> {
        self.working
            .prepare_call(self.instruction, number, arguments);
        ptrace::set_registers(self.tid, &self.working)?;
        let mut born = None;
        let mut syscall_stops = 0;
        self.go()?;
        loop {
            let status = ptrace::wait(self.tid, true)?.unwrap_or(0);
            match interpret(self.tid, status)? {
                News::Trap if self.stepping => break,
                News::SyscallTrap if !self.stepping => {
                    syscall_stops += 1;
                    if syscall_stops == 2 {
                        break;
                    }
                }
                News::Born(child) => born = Some(child),
                // A stop by job control that was already due, or an interrupt left over: the call is still to come.
                News::Stop(stop) => {
                    if let Stop::Group(_) = stop {
                        self.stop = stop;
                    }
                }
                _ => {
                    return Err(TraceError::Unexpected {
                        what: name,
                        tid: self.tid,
                        status,
                    });
                }
            }
            self.go()?;
        }
        let result = ptrace::registers(self.tid)?.result();
        Ok((outcome(name, self.tid, result)?, born))
    }

    fn go(&self) -> Result<(), TraceError> {
        if self.stepping {
            ptrace::step(self.tid)
        } else {
            ptrace::to_syscall(self.tid, 0)
        }
    }

    /// Starts `number` and interrupts it as soon as it sleeps: what a signal does to a program, so that the kernel's
    /// restart block for this thread is armed. Returns what the call left in the result register.
    ///
    /// # Errors
    /// [`TraceError::Dead`].
    pub fn call_and_interrupt(
        &mut self,
        name: &'static str,
        number: i64,
        arguments: &[u64],
    ) -> Result<i64, TraceError> {
        self.working
            .prepare_call(self.instruction, number, arguments);
        ptrace::set_registers(self.tid, &self.working)?;
        // The interrupt is noticed on the way into the sleep, so that nothing needs to be waited for. It must not be noticed
        // before the call: the entry stop is the place after which only the call itself can notice.
        ptrace::to_syscall(self.tid, 0)?;
        loop {
            let status = ptrace::wait(self.tid, true)?.unwrap_or(0);
            match interpret(self.tid, status)? {
                News::SyscallTrap => break,
                News::Stop(_) => ptrace::to_syscall(self.tid, 0)?,
                _ => {
                    return Err(TraceError::Unexpected {
                        what: name,
                        tid: self.tid,
                        status,
                    });
                }
            }
        }
        ptrace::interrupt(self.tid)?;
        ptrace::resume(self.tid, 0)?;
        let status = ptrace::wait(self.tid, true)?.unwrap_or(0);
        match interpret(self.tid, status)? {
            News::Stop(_) => Ok(ptrace::registers(self.tid)?.result()),
            _ => Err(TraceError::Unexpected {
                what: name,
                tid: self.tid,
                status,
            }),
        }
    }

    /// Makes the thread end itself (`exit(2)`, of this thread alone), untraced: a first thread stays a zombie while others live,
    /// and the end of its process is its parent's news, not the supervisor's.
    ///
    /// # Errors
    /// [`TraceError::Dead`].
    pub fn exit(mut self) -> Result<(), TraceError> {
        self.prepare_exit()?;
        ptrace::detach(self.tid, 0)
    }

    fn prepare_exit(&mut self) -> Result<(), TraceError> {
        self.working
            .prepare_call(self.instruction, libc::SYS_exit, &[0]);
        ptrace::set_registers(self.tid, &self.working)
    }

    /// Ends the remote calls: the thread has its own registers and mask again and is in a clean stop, so that it would
    /// run on properly even if the supervisor died now.
    ///
    /// # Errors
    /// [`TraceError::Dead`].
    pub fn finish(self) -> Result<Stopped, TraceError> {
        let (own, mask) = (self.own, self.mask);
        self.finish_with(&own, mask)
    }

    /// Ends the remote calls with other registers and another mask than the thread had.
    ///
    /// # Errors
    /// [`TraceError::Dead`]; `EIO`, `EINVAL` for registers that a program cannot have.
    pub fn finish_with(
        self,
        registers: &Registers,
        mask: SignalSet,
    ) -> Result<Stopped, TraceError> {
        ptrace::set_registers(self.tid, registers)?;
        ptrace::set_signal_mask(self.tid, mask)?;
        ptrace::interrupt(self.tid)?;
        ptrace::resume(self.tid, 0)?;
        let status = ptrace::wait(self.tid, true)?.unwrap_or(0);
        match interpret(self.tid, status)? {
            News::Stop(stop) => {
                let stop = if let Stop::Group(_) = self.stop {
                    self.stop
                } else {
                    stop
                };
                Ok(Stopped::new(self.tid, stop))
            }
            _ => Err(TraceError::Unexpected {
                what: "ending remote calls in",
                tid: self.tid,
                status,
            }),
        }
    }
}
