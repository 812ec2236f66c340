//! What each module says of its resource: what comes back, what a restart makes something else of, what is refused, and the tests
//! that prove it.
//!
//! Each module has its claims in a constant `CONFORMANCE`, beside its capture and restore, and [`SECTIONS`] lists the
//! modules. `stasis check` tells of a program in the words of these claims, chosen by the module itself from what it has
//! captured. `docs/conformance.md` is made of them, and checked against them and against a run of the tests, see
//! `CONTRIBUTING.md`.

use crate::{
    address_room, attributes, capture, clocks, credentials, descriptors, file_policy, freeze,
    interruptions, ipc, memory, processor, restart, settings, signals, space, threads, timers,
    tree,
};
use serde::{Deserialize, Serialize};

/// What becomes of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is there after a restart as it was.
    Kept,
    /// A restart makes something else of it, and the claim says what.
    Reset,
    /// It stands in the way: of a checkpoint, which then touches nothing; or, in the section on restarts, of a restart, which
    /// then starts nothing.
    Refused,
}

impl Verdict {
    /// As output calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Kept => "kept",
            Verdict::Reset => "reset at restart",
            Verdict::Refused => "refused",
        }
    }
}

/// What a module says of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The resource, in the singular.
    pub resource: &'static str,
    /// What becomes of it.
    pub verdict: Verdict,
    /// What that means, where the verdict does not say it all.
    pub remark: &'static str,
    /// The tests that prove it: `PROGRAM::TEST`, where the program is one of `tests/tests` (`tcp`), one of a crate's own
    /// (`engine-descriptors`) or a crate (`engine`, for the tests beside its code).
    pub tests: &'static [&'static str],
}

impl Claim {
    /// Something that comes back as it was.
    #[must_use]
    pub const fn kept(
        resource: &'static str,
        remark: &'static str,
        tests: &'static [&'static str],
    ) -> Claim {
        Claim {
            resource,
            verdict: Verdict::Kept,
            remark,
            tests,
        }
    }

    /// Something that a restart makes something else of.
    #[must_use]
    pub const fn reset(
        resource: &'static str,
        remark: &'static str,
        tests: &'static [&'static str],
    ) -> Claim {
        Claim {
            resource,
            verdict: Verdict::Reset,
            remark,
            tests,
        }
    }

    /// Something that stands in the way.
    #[must_use]
    pub const fn refused(
        resource: &'static str,
        remark: &'static str,
        tests: &'static [&'static str],
    ) -> Claim {
        Claim {
            resource,
            verdict: Verdict::Refused,
            remark,
            tests,
        }
    }
}

/// The claims of one module.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    /// A heading.
    pub title: &'static str,
    /// The module's file, below `crates/engine/src`.
    pub file: &'static str,
    /// What it says.
    pub claims: &'static [Claim],
}

const fn section(title: &'static str, file: &'static str, claims: &'static [Claim]) -> Section {
    Section {
        title,
        file,
        claims,
    }
}

/// All of them, in the order of the table.
pub const SECTIONS: &[Section] = &[
    section("Processes", "tree.rs", tree::CONFORMANCE),
    section("Threads", "threads.rs", threads::CONFORMANCE),
    section("Signals", "signals.rs", signals::CONFORMANCE),
    section(
        "Calls that a thread is in",
        "interruptions.rs",
        interruptions::CONFORMANCE,
    ),
    section("Timers", "timers.rs", timers::CONFORMANCE),
    section("Clocks", "clocks.rs", clocks::CONFORMANCE),
    section("Credentials", "credentials.rs", credentials::CONFORMANCE),
    section("Attributes", "attributes.rs", attributes::CONFORMANCE),
    section(
        "Settings that few programs touch",
        "settings.rs",
        settings::CONFORMANCE,
    ),
    section("The processor", "processor.rs", processor::CONFORMANCE),
    section("What a process is in", "capture.rs", capture::CONFORMANCE),
    section("What cannot be stopped", "freeze.rs", freeze::CONFORMANCE),
    section("Memory", "memory/mod.rs", memory::CONFORMANCE),
    section(
        "Shared memory",
        "memory/shared.rs",
        memory::shared::CONFORMANCE,
    ),
    section(
        "The kernel's code in a process",
        "memory/vdso.rs",
        memory::vdso::CONFORMANCE,
    ),
    section(
        "Room in the address space",
        "address_room.rs",
        address_room::CONFORMANCE,
    ),
    section("System V IPC", "ipc/mod.rs", ipc::CONFORMANCE),
    section(
        "POSIX message queues",
        "descriptors/mqueues.rs",
        descriptors::mqueues::CONFORMANCE,
    ),
    section(
        "Files",
        "descriptors/files.rs",
        descriptors::files::CONFORMANCE,
    ),
    section(
        "Contents of files",
        "file_policy/mod.rs",
        file_policy::CONFORMANCE,
    ),
    section(
        "Directories",
        "descriptors/directories.rs",
        descriptors::directories::CONFORMANCE,
    ),
    section(
        "Locks",
        "descriptors/locks.rs",
        descriptors::locks::CONFORMANCE,
    ),
    section(
        "Owners of descriptors",
        "descriptors/owner.rs",
        descriptors::owner::CONFORMANCE,
    ),
    section(
        "Pipes",
        "descriptors/pipes.rs",
        descriptors::pipes::CONFORMANCE,
    ),
    section(
        "FIFOs",
        "descriptors/fifos.rs",
        descriptors::fifos::CONFORMANCE,
    ),
    section(
        "Watches on files",
        "descriptors/inotify/mod.rs",
        descriptors::inotify::CONFORMANCE,
    ),
    section(
        "Rings for input and output",
        "descriptors/io_uring.rs",
        descriptors::io_uring::CONFORMANCE,
    ),
    section(
        "Event counters",
        "descriptors/eventfd.rs",
        descriptors::eventfd::CONFORMANCE,
    ),
    section(
        "Epoll sets",
        "descriptors/epoll.rs",
        descriptors::epoll::CONFORMANCE,
    ),
    section(
        "Timer descriptors",
        "descriptors/timerfd.rs",
        descriptors::timerfd::CONFORMANCE,
    ),
    section(
        "Signal descriptors",
        "descriptors/signalfd.rs",
        descriptors::signalfd::CONFORMANCE,
    ),
    section(
        "Files in memory",
        "descriptors/memfd.rs",
        descriptors::memfd::CONFORMANCE,
    ),
    section(
        "Process descriptors",
        "descriptors/pidfd.rs",
        descriptors::pidfd::CONFORMANCE,
    ),
    section(
        "Devices",
        "descriptors/devices.rs",
        descriptors::devices::CONFORMANCE,
    ),
    section(
        "Unix sockets",
        "descriptors/unix_sockets/mod.rs",
        descriptors::unix_sockets::CONFORMANCE,
    ),
    section(
        "TCP",
        "descriptors/tcp/mod.rs",
        descriptors::tcp::CONFORMANCE,
    ),
    section("UDP", "descriptors/udp.rs", descriptors::udp::CONFORMANCE),
    section(
        "Options of network sockets",
        "descriptors/inet/mod.rs",
        descriptors::inet::CONFORMANCE,
    ),
    section(
        "Netlink",
        "descriptors/netlink.rs",
        descriptors::netlink::CONFORMANCE,
    ),
    section(
        "Pseudo terminals",
        "descriptors/ptys/mod.rs",
        descriptors::ptys::CONFORMANCE,
    ),
    section(
        "The job's terminal",
        "descriptors/ttys.rs",
        descriptors::ttys::CONFORMANCE,
    ),
    section(
        "Standard streams",
        "descriptors/stdio.rs",
        descriptors::stdio::CONFORMANCE,
    ),
    section(
        "Other inherited descriptors",
        "descriptors/inherited.rs",
        descriptors::inherited::CONFORMANCE,
    ),
    section(
        "Kinds that are refused",
        "descriptors/unsupported.rs",
        descriptors::UNSUPPORTED,
    ),
    section("Room for an image", "space.rs", space::CONFORMANCE),
    section("At a restart", "restart/plan.rs", restart::CONFORMANCE),
];
