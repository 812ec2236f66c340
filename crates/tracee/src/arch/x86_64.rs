//! x86-64: registers, the system call instruction, the kernel's restart codes.

pub mod code;
pub mod continuation;
mod features;

pub use features::features;

use serde::{Deserialize, Serialize};

/// The general registers as `PTRACE_GETREGSET` with `NT_PRSTATUS` gives them (`struct user_regs_struct`,
/// `arch/x86/include/asm/user_64.h`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the processor's")]
pub struct Registers {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    /// The number of the interrupted system call, -1 where the thread was not in one.
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub eflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub ds: u64,
    pub es: u64,
    pub fs: u64,
    pub gs: u64,
}

/// Restart codes of the kernel (`include/linux/errno.h`): an interrupted call holds one of them instead of a result.
pub const ERESTARTSYS: i64 = 512;
/// See [`ERESTARTSYS`].
pub const ERESTARTNOINTR: i64 = 513;
/// See [`ERESTARTSYS`].
pub const ERESTARTNOHAND: i64 = 514;
/// The call is continued by restart_syscall(2), from what the kernel keeps in the thread's restart block.
pub const ERESTART_RESTARTBLOCK: i64 = 516;

/// The code selector of 64-bit programs; 32-bit ones run with 0x23.
const USER_CS: u64 = 0x33;

impl Registers {
    /// The interrupted system call's number, where the thread was in one.
    #[must_use]
    pub fn interrupted_call(&self) -> Option<i64> {
        let number = self.orig_rax as i64;
        (number >= 0).then_some(number)
    }

    /// The (negative) error or the result of the interrupted call.
    #[must_use]
    pub fn result(&self) -> i64 {
        self.rax as i64
    }

    /// Sets the (negative) error or the result of the interrupted call.
    pub fn set_result(&mut self, result: i64) {
        self.rax = result as u64;
    }

    /// Leaves it to the kernel to restart the interrupted call, or to end it with `EINTR` where a handler runs: `code` is one
    /// of `ERESTARTSYS` (restarted behind a handler with `SA_RESTART`) and `ERESTARTNOHAND`.
    pub fn restart_call(&mut self, number: i64, code: i64) {
        self.orig_rax = number as u64;
        self.set_result(-code);
    }

    /// The interrupted call is over: the kernel must not look at its result again.
    pub fn end_call(&mut self) {
        self.orig_rax = u64::MAX;
    }

    /// Where the program goes on.
    #[must_use]
    pub fn instruction_pointer(&self) -> u64 {
        self.rip
    }

    /// Makes the program go on elsewhere.
    pub fn set_instruction_pointer(&mut self, address: u64) {
        self.rip = address;
    }

    /// Makes the thread execute the interrupted call again, from its beginning: the processor's instruction pointer
    /// goes back onto the two bytes of `syscall`.
    pub fn reissue(&mut self, number: i64) {
        self.rax = number as u64;
        self.rip -= 2;
        self.orig_rax = u64::MAX;
    }

    /// The registers with which a thread goes on when nothing but the kernel looks after it: an interrupted call is
    /// restarted, as `arch_do_signal_or_restart` (`arch/x86/kernel/signal.c`) does where no signal is to be handled.
    #[must_use]
    pub fn restarted(&self) -> Registers {
        let mut registers = *self;
        if let Some(number) = self.interrupted_call() {
            match -self.result() {
                ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => registers.reissue(number),
                ERESTART_RESTARTBLOCK => registers.reissue(libc::SYS_restart_syscall),
                _ => {}
            }
        }
        registers
    }

    /// Sends the thread to code at `address`, with that of a table of calls. It is in no call that the kernel could restart.
    pub fn send_to(&mut self, address: u64, table: u64) {
        self.rip = address;
        self.rbx = table;
        self.orig_rax = u64::MAX;
        self.rax = 0;
    }

    /// Where the thread is.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.rip
    }

    /// The six arguments of a call.
    #[must_use]
    pub fn arguments(&self) -> [u64; 6] {
        [self.rdi, self.rsi, self.rdx, self.r10, self.r8, self.r9]
    }

    /// Sets the six arguments of a call.
    pub fn set_arguments(&mut self, arguments: &[u64; 6]) {
        [self.rdi, self.rsi, self.rdx, self.r10, self.r8, self.r9] = *arguments;
    }

    /// Sets up `number` with `arguments` to be executed at `instruction`, which holds [`SYSCALL`].
    pub fn prepare_call(&mut self, instruction: u64, number: i64, arguments: &[u64]) {
        self.rip = instruction;
        self.rax = number as u64;
        self.end_call();
        self.set_arguments(&std::array::from_fn(|n| {
            arguments.get(n).copied().unwrap_or(0)
        }));
    }

    /// Whether the thread runs 32-bit code, which is not supported.
    #[must_use]
    pub fn is_32_bit(&self) -> bool {
        self.cs != USER_CS
    }
}

/// The `syscall` instruction.
pub const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// The number of io_pgetevents(2), which older C libraries do not name.
pub const IO_PGETEVENTS: i64 = 333;

/// How many bytes before the end of a system call instruction [`call_in_code`] looks at.
pub const CALL_CODE_BYTES: usize = 7;

/// The number of a call, from the code that ends with its instruction: `mov $number,%eax; syscall`, as C libraries have it.
/// The kernel does not keep the number of a call that restart_syscall(2) continues.
#[must_use]
pub fn call_in_code(code: &[u8; CALL_CODE_BYTES]) -> Option<i64> {
    match *code {
        [0xb8, a, b, c, d, 0x0f, 0x05] => Some(i64::from(i32::from_le_bytes([a, b, c, d]))),
        _ => None,
    }
}

/// Code that jumps to `target` and spoils no register that a call preserves: `movabs $target, %rax; jmp *%rax`.
#[must_use]
pub fn jump_to(target: u64) -> [u8; 12] {
    let mut code = [0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xe0];
    code[2..10].copy_from_slice(&target.to_le_bytes());
    code
}

/// One past the highest address of a user process with four-level page tables.
pub const TASK_SIZE: u64 = 0x7fff_ffff_f000;

/// The extended state (x87, SSE, AVX, AVX-512, PKRU, AMX) in the processor's XSAVE layout, uncompacted
/// (`NT_X86_XSTATE`).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Xstate(#[serde(with = "serde_bytes")] pub Vec<u8>);

impl std::fmt::Debug for Xstate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Xstate({} bytes, features {:#x})",
            self.0.len(),
            self.features()
        )
    }
}

impl Xstate {
    /// The features that are in use: XSTATE_BV of the XSAVE header, at byte 512 (Intel SDM volume 1, 13.4.2).
    #[must_use]
    pub fn features(&self) -> u64 {
        self.0
            .get(512..520)
            .and_then(|b| b.try_into().ok())
            .map_or(3, u64::from_le_bytes)
    }

    /// The features that the kernel has enabled (XCR0), which it leaves at byte 464 of the software-reserved part
    /// (`arch/x86/include/uapi/asm/sigcontext.h`).
    #[must_use]
    pub fn enabled(&self) -> u64 {
        self.0
            .get(464..472)
            .and_then(|b| b.try_into().ok())
            .map_or(3, u64::from_le_bytes)
    }
}
