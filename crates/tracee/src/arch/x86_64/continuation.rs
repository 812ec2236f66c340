//! Code that continues a system call and gives the program its own registers back.
//!
//! A page of code, and behind it a page of data, both cut into [`SLOTS`] slots. A slot serves one thread: the call is executed
//! by the slot's own instruction, with arguments that differ from the program's; then what an earlier part of the call had
//! transferred is added to its result, the program's arguments come back from the data, and the code jumps to behind the
//! program's own instruction. What it does to `rcx` is what the kernel does; flags, stack and all else are not touched.
//!
//! A signal handler may run within, a fork may copy it, the thread may be stopped and saved there: it is plain code.

/// Bytes of a page, of code and of data alike.
pub const PAGE: u64 = 4096;
/// Bytes of a slot.
pub const SLOT: u64 = 256;
/// Slots of a page.
pub const SLOTS: u64 = PAGE / SLOT;
/// Where, in a slot's data, there is room for what arguments may point to.
pub const ROOM: u64 = 72;
/// Bytes of that room.
pub const ROOM_BYTES: u64 = SLOT - ROOM;
/// Bytes of the system call instruction: a thread in the call stands that far into the slot.
pub const IN_CALL: u64 = super::SYSCALL.len() as u64;

const BUSY: u64 = 0;
const BACK: u64 = 8;
const DONE: u64 = 16;
const ARGUMENTS: u64 = 24;

/// What a slot's data begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// A thread is in the slot.
    pub busy: bool,
    /// Where the program goes on: behind its own system call instruction.
    pub back: u64,
    /// What is added to a result, and replaces an error where it is not 0.
    pub done: u64,
    /// The program's arguments.
    pub arguments: [u64; 6],
}

impl Frame {
    /// As it is in memory.
    #[must_use]
    pub fn encode(&self) -> [u8; ROOM as usize] {
        let mut words = [0; ROOM as usize / 8];
        words[(BUSY / 8) as usize] = u64::from(self.busy);
        words[(BACK / 8) as usize] = self.back;
        words[(DONE / 8) as usize] = self.done;
        words[(ARGUMENTS / 8) as usize..].copy_from_slice(&self.arguments);
        let mut bytes = [0; ROOM as usize];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// From memory.
    #[must_use]
    pub fn decode(bytes: &[u8; ROOM as usize]) -> Frame {
        let mut words = [0u64; ROOM as usize / 8];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = chunk
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u64::from(*byte));
        }
        let mut arguments = [0; 6];
        arguments.copy_from_slice(&words[(ARGUMENTS / 8) as usize..]);
        Frame {
            busy: words[(BUSY / 8) as usize] != 0,
            back: words[(BACK / 8) as usize],
            done: words[(DONE / 8) as usize],
            arguments,
        }
    }
}

/// Loads of 64-bit registers relative to the instruction pointer, without the displacement.
const LOAD_ARGUMENTS: [[u8; 3]; 6] = [
    [0x48, 0x8b, 0x3d], // rdi
    [0x48, 0x8b, 0x35], // rsi
    [0x48, 0x8b, 0x15], // rdx
    [0x4c, 0x8b, 0x15], // r10
    [0x4c, 0x8b, 0x05], // r8
    [0x4c, 0x8b, 0x0d], // r9
];
const LOAD_RCX: [u8; 3] = [0x48, 0x8b, 0x0d];
/// `mov %rax,%rcx; bswap %rcx; movzbl %cl,%ecx`: 0 for a result, not 0 for an error. No flag changes.
const SIGN_TO_RCX: [u8; 9] = [0x48, 0x89, 0xc1, 0x48, 0x0f, 0xc9, 0x0f, 0xb6, 0xc9];
const JRCXZ: u8 = 0xe3;
const JMP_SHORT: u8 = 0xeb;
const RAX_FROM_RCX: [u8; 3] = [0x48, 0x89, 0xc8];
/// `lea (%rax,%rcx),%rax`: an addition that changes no flag.
const ADD_RCX_TO_RAX: [u8; 4] = [0x48, 0x8d, 0x04, 0x08];
/// `movq $0, ...(%rip)`, without displacement and immediate.
const STORE_ZERO: [u8; 3] = [0x48, 0xc7, 0x05];
const JMP_RCX: [u8; 2] = [0xff, 0xe1];
const TRAP: u8 = 0xcc;

/// The code of one slot; all are the same.
fn slot() -> Vec<u8> {
    // A field's displacement from behind an instruction that ends at `end`.
    let field = |offset: u64, end: usize| ((PAGE + offset) as i32 - end as i32).to_le_bytes();
    let mut code = super::SYSCALL.to_vec();
    let load = |code: &mut Vec<u8>, instruction: [u8; 3], offset: u64| {
        code.extend(instruction);
        let end = code.len() + 4;
        code.extend(field(offset, end));
    };
    code.extend(SIGN_TO_RCX);
    let mut error = Vec::new();
    error.extend(RAX_FROM_RCX);
    let addition = LOAD_RCX.len() + 4 + ADD_RCX_TO_RAX.len();
    error.extend([JMP_SHORT, addition as u8]);
    // An error: what was done before, where there is anything, else the error.
    let load_and_test = LOAD_RCX.len() + 4 + 2;
    code.extend([JRCXZ, (load_and_test + error.len()) as u8]);
    load(&mut code, LOAD_RCX, DONE);
    code.extend([JRCXZ, (error.len() + addition) as u8]);
    code.extend(error);
    // A result.
    load(&mut code, LOAD_RCX, DONE);
    code.extend(ADD_RCX_TO_RAX);
    // Both.
    for (n, instruction) in LOAD_ARGUMENTS.into_iter().enumerate() {
        load(&mut code, instruction, ARGUMENTS + 8 * n as u64);
    }
    load(&mut code, LOAD_RCX, BACK);
    code.extend(STORE_ZERO);
    let end = code.len() + 8;
    code.extend(field(BUSY, end));
    code.extend([0; 4]);
    code.extend(JMP_RCX);
    code.resize(SLOT as usize, TRAP);
    code
}

/// The page of code.
#[must_use]
pub fn code() -> Vec<u8> {
    slot().repeat(SLOTS as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back() {
        let frame = Frame {
            busy: true,
            back: 0x7fff_1234_5678,
            done: 65536,
            arguments: [1, 2, 3, 4, 5, u64::MAX],
        };
        assert_eq!(Frame::decode(&frame.encode()), frame);
    }

    #[test]
    fn code_fits() {
        let code = code();
        assert_eq!(code.len() as u64, PAGE);
        assert_eq!(code[..2], super::super::SYSCALL);
        let used = slot().iter().rposition(|byte| *byte != TRAP).expect("code");
        assert_eq!(slot()[used - 1..=used], JMP_RCX);
    }
}
