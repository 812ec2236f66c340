//! Machine code for slots (see [`crate::slot`]): calls in a row, a loop over a table of calls, and the *tail*, which puts a
//! thread back to where it was. None of it depends on its address, changes the flags, or needs a stack.

use super::Registers;
use crate::slot::Call;
use stasis_sys::signal::SignalSet;

/// Registers by their numbers in instructions (Intel SDM volume 2, table 2-2).
#[derive(Clone, Copy)]
enum Register {
    Rax = 0,
    Rcx = 1,
    Rdx = 2,
    Rbx = 3,
    Rbp = 5,
    Rsi = 6,
    Rdi = 7,
    R8 = 8,
    R9 = 9,
    R10 = 10,
    R11 = 11,
}
use Register::{R8, R9, R10, R11, Rax, Rbp, Rbx, Rcx, Rdi, Rdx, Rsi};

/// Where the arguments of a call go.
const ARGUMENTS: [Register; 6] = [Rdi, Rsi, Rdx, R10, R8, R9];

/// Where results are kept: registers that calls leave alone.
const KEPT: [Register; 2] = [Rbx, Rbp];

/// The results that [`Code::keep`] has kept.
#[must_use]
pub fn kept(registers: &Registers) -> [i64; KEPT.len()] {
    [registers.rbx as i64, registers.rbp as i64]
}

/// Bytes of an entry of a table of calls: whether it is one, its number (later its result), six arguments.
pub const ENTRY: u64 = 64;
/// Where in an entry the result is.
pub const RESULT_AT: u64 = 8;

/// An entry of a table of calls.
#[must_use]
pub fn entry(number: i64, arguments: &[u64; 6]) -> [u8; ENTRY as usize] {
    let mut bytes = [0; ENTRY as usize];
    let words = [1, number as u64].into_iter().chain(*arguments);
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// What a table ends with: the thread goes on at `tail`.
#[must_use]
pub fn last_entry(tail: u64) -> [u8; ENTRY as usize] {
    let mut bytes = [0; ENTRY as usize];
    bytes[8..16].copy_from_slice(&tail.to_le_bytes());
    bytes
}

/// Offset in [`table_loop`] of what follows the call: where a thread is when its call has just been made.
pub const LOOP_CALLED: u64 = 35;

/// Makes the calls of the table that register `rbx` points to, and goes on where its end says.
#[must_use]
pub fn table_loop() -> Vec<u8> {
    vec![
        0x48, 0x8b, 0x0b, // mov (%rbx), %rcx
        0xe3, 0x28, // jrcxz end
        0x48, 0x8b, 0x43, 0x08, // mov 8(%rbx), %rax
        0x48, 0x8b, 0x7b, 0x10, // mov 16(%rbx), %rdi
        0x48, 0x8b, 0x73, 0x18, // mov 24(%rbx), %rsi
        0x48, 0x8b, 0x53, 0x20, // mov 32(%rbx), %rdx
        0x4c, 0x8b, 0x53, 0x28, // mov 40(%rbx), %r10
        0x4c, 0x8b, 0x43, 0x30, // mov 48(%rbx), %r8
        0x4c, 0x8b, 0x4b, 0x38, // mov 56(%rbx), %r9
        0x0f, 0x05, // syscall
        0x48, 0x89, 0x43, 0x08, // mov %rax, 8(%rbx)
        0x48, 0x8d, 0x5b, 0x40, // lea 64(%rbx), %rbx
        0xeb, 0xd3, // jmp to the beginning
        0xff, 0x63, 0x08, // end: jmp *8(%rbx)
    ]
}

/// Code that is being put together.
#[derive(Debug, Default)]
pub struct Code(Vec<u8>);

impl Code {
    /// Its bytes so far.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// Whether there is none yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of it.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn load(&mut self, register: Register, value: u64) {
        let number = register as u8;
        if let Ok(short) = u32::try_from(value) {
            // mov $imm32, %r32 clears the upper half.
            if number >= 8 {
                self.0.push(0x41);
            }
            self.0.push(0xb8 | number & 7);
            self.0.extend(short.to_le_bytes());
        } else {
            self.0
                .extend([0x48 | u8::from(number >= 8), 0xb8 | number & 7]);
            self.0.extend(value.to_le_bytes());
        }
    }

    fn copy(&mut self, to: Register, from: Register) {
        let (to, from) = (to as u8, from as u8);
        let prefix = 0x48 | u8::from(to >= 8) | u8::from(from >= 8) << 2;
        self.0
            .extend([prefix, 0x89, 0xc0 | (from & 7) << 3 | to & 7]);
    }

    fn syscall(&mut self) {
        self.0.extend(super::SYSCALL);
    }

    /// One call.
    pub fn call(&mut self, call: &Call) {
        self.load(Rax, call.number as u64);
        for (register, value) in ARGUMENTS.into_iter().zip(call.arguments) {
            self.load(register, value);
        }
        self.syscall();
    }

    /// Keeps the last call's result for [`kept`]; there is room for so many.
    pub fn keep(&mut self, place: usize) {
        if let Some(register) = KEPT.get(place) {
            self.copy(*register, Rax);
        }
    }

    /// Makes an intermediate, which makes a twin and ends; the thread waits for its end, by `wait`, whose second argument is
    /// the intermediate's id. The twin ends as well, unless it is held: it must be, by who wants it.
    pub fn fork(&mut self, intermediate: &Call, twin: &Call, exit: i64, wait: &Call) {
        let mut child = Code::default();
        child.call(twin);
        // The status is the call's: 0 for the twin, for the intermediate the twin's id, or its error.
        child.copy(Rdi, Rax);
        child.load(Rax, exit as u64);
        child.syscall();
        self.call(intermediate);
        self.keep(0);
        self.copy(Rcx, Rax);
        // jrcxz child; jmp over it
        self.0.extend([0xe3, 0x02, 0xeb, child.0.len() as u8]);
        self.0.extend(child.0);
        self.load(Rax, wait.number as u64);
        for (n, register) in ARGUMENTS.into_iter().enumerate() {
            match n {
                1 => self.copy(Rsi, Rbx),
                _ => self.load(register, wait.arguments[n]),
            }
        }
        self.syscall();
    }

    /// The tail: everything that calls change is put back, the signal mask first, and the thread goes on where `own` says.
    pub fn leave(&mut self, own: &Registers, mask: SignalSet) {
        const MASK_BYTES: u64 = 8;
        let mut end = Code::default();
        for (register, value) in [
            (Rdi, own.rdi),
            (Rsi, own.rsi),
            (Rdx, own.rdx),
            (R10, own.r10),
            (R8, own.r8),
            (R9, own.r9),
            (Rbx, own.rbx),
            (Rbp, own.rbp),
            (R11, own.r11),
            (Rcx, own.rcx),
            (Rax, own.rax),
        ] {
            end.load(register, value);
        }
        // jmp *0(%rip), which is followed by its target.
        end.0.extend([0xff, 0x25, 0, 0, 0, 0]);
        end.0.extend(own.rip.to_le_bytes());
        let mut start = Code::default();
        start.load(Rdx, 0);
        start.load(R10, MASK_BYTES);
        start.load(Rax, libc::SYS_rt_sigprocmask as u64);
        start.load(Rdi, libc::SIG_SETMASK as u64);
        start.syscall();
        // lea of the mask, which is the last of all, into %rsi.
        self.0.extend([0x48, 0x8d, 0x35]);
        self.0
            .extend((start.0.len() as u32 + end.0.len() as u32).to_le_bytes());
        self.0.extend(start.0);
        self.0.extend(end.0);
        self.0.extend(mask.0.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loop_s_jumps_and_the_place_after_its_call_are_right() {
        let code = table_loop();
        let after = LOOP_CALLED as usize;
        assert_eq!(code[after - 2..after], super::super::SYSCALL);
        let end = 5 + code[4] as usize;
        assert_eq!(code[end..], [0xff, 0x63, 0x08]);
        assert_eq!(end as i64 + i64::from(code[end - 1] as i8), 0);
    }

    #[test]
    fn the_mask_is_the_last_of_a_tail_and_is_found() {
        let mut code = Code::default();
        code.leave(&Registers::default(), SignalSet(0x1234_5678_9abc_def0));
        let bytes = code.into_bytes();
        let offset = u32::from_le_bytes([bytes[3], bytes[4], bytes[5], bytes[6]]) as usize;
        assert_eq!(bytes[7 + offset..], 0x1234_5678_9abc_def0u64.to_le_bytes());
    }
}
