//! The programs that are measured: this binary itself, run with a hidden verb.
//!
//! A program that is to be saved *ticks*: every 200 microseconds it looks whether its report is there, and writes it when
//! it is not. So whoever deletes the report learns when the program runs, and what the longest gap between two ticks was.

use clap::{Args, Subcommand, ValueEnum};
use memmap2::{Advice, MmapMut};
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::pipe::pipe;
use rustix::process::{Resource, getrlimit, setrlimit};
use std::fs::File;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

/// What memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Content {
    /// Nothing that could be compressed.
    Random,
    /// Pages that were written, with zeros.
    Zero,
    /// Words, as in logs and tables.
    Text,
}

/// What pages memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PageKind {
    /// Of 4 KiB.
    Small,
    /// Transparent huge pages, by madvise(2).
    Huge,
}

/// What descriptors are open on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Held {
    /// As many files, every tenth for writing.
    Files,
    /// TCP connections over the loopback interface, both ends of each, with something in them.
    Connections,
    /// What an epoll set watches: pipes, eventfds, Unix sockets.
    Watched,
}

/// A program to be measured.
#[derive(Debug, Args)]
pub struct Workload {
    /// Where it reports.
    directory: PathBuf,
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Debug, Subcommand)]
enum Kind {
    /// Ticks, and nothing else.
    Tick,
    /// Holds memory.
    Memory {
        #[arg(long)]
        bytes: usize,
        #[arg(long)]
        content: Content,
        #[arg(long)]
        pages: PageKind,
    },
    /// Holds memory that nothing can compress, and changes some of it before each report.
    Changing {
        #[arg(long)]
        bytes: usize,
        #[arg(long)]
        percent: usize,
        /// A page here and there, instead of all in one place
        #[arg(long)]
        spread: bool,
    },
    /// Has children that share its memory but for one page in a hundred, which each changes before each report.
    Sharing {
        #[arg(long)]
        bytes: usize,
        #[arg(long)]
        count: usize,
    },
    /// Writes all its memory over and over, and reports how much it wrote in each tenth of a second.
    Sweeping {
        #[arg(long)]
        bytes: usize,
    },
    /// Has threads, asleep or at work.
    Threads {
        #[arg(long)]
        count: usize,
        #[arg(long)]
        busy: bool,
    },
    /// Has children.
    Processes {
        #[arg(long)]
        count: usize,
    },
    /// One of those children.
    Child,
    /// Holds descriptors.
    Holding {
        #[arg(long)]
        count: usize,
        #[arg(long)]
        what: Held,
    },
    /// Has children that hold descriptors each: pipes, sockets, files.
    Family {
        #[arg(long)]
        count: usize,
        #[arg(long)]
        each: usize,
    },
    /// Multiplies.
    Cpu,
    /// Allocates and frees in several threads.
    Malloc,
    /// Makes 10^6 system calls.
    Calls,
    /// Starts 500 programs.
    Exec,
}

/// The report's file name.
pub const REPORT: &str = "report";
/// While a file of this name is there, the next report tells the sum of the memory's contents, too.
pub const SUM: &str = "sum";

const TICK: Duration = Duration::from_micros(200);

pub fn run(workload: &Workload) -> io::Result<()> {
    let directory = &workload.directory;
    match workload.kind {
        Kind::Tick => tick(directory, &[]),
        Kind::Memory {
            bytes,
            content,
            pages,
        } => tick(directory, &memory(bytes, content, pages)?),
        Kind::Changing {
            bytes,
            percent,
            spread,
        } => changing(directory, bytes, percent, spread),
        Kind::Sharing { bytes, count } => sharing(directory, bytes, count),
        Kind::Sweeping { bytes } => sweeping(directory, bytes),
        Kind::Threads { count, busy } => {
            threads(directory, count, busy)?;
            if busy {
                // Among so many, this thread would have its turn too seldom to tell anything.
                loop {
                    std::thread::park();
                }
            }
            tick(directory, &[])
        }
        Kind::Processes { count } => {
            let own = std::env::current_exe()?;
            for _ in 1..count {
                let arguments = ["workload".as_ref(), directory.as_os_str(), "child".as_ref()];
                Command::new(&own).args(arguments).spawn()?;
            }
            tick(directory, &[])
        }
        Kind::Child => loop {
            std::thread::sleep(Duration::from_secs(1));
        },
        Kind::Holding { count, what } => {
            raise_limit();
            let _held = match what {
                Held::Files => files(directory, count)?,
                Held::Connections => connections(count)?,
                Held::Watched => watched(count)?,
            };
            tick(directory, &[])
        }
        Kind::Family { count, each } => {
            for _ in 1..count {
                if let stasis_sys::process::Fork::Child = stasis_sys::process::fork()? {
                    let _held = mixed(each)?;
                    loop {
                        std::thread::sleep(Duration::from_secs(1));
                    }
                }
            }
            let _held = mixed(each)?;
            tick(directory, &[])
        }
        Kind::Cpu => timed(directory, cpu),
        Kind::Malloc => timed(directory, malloc),
        Kind::Calls => timed(directory, calls),
        Kind::Exec => timed(directory, exec),
    }
}

fn tick(directory: &Path, memory: &[u8]) -> io::Result<()> {
    let report = directory.join(REPORT);
    let mut last = Instant::now();
    let mut longest = Duration::ZERO;
    loop {
        longest = longest.max(last.elapsed());
        last = Instant::now();
        if !report.try_exists()? {
            let sum = directory
                .join(SUM)
                .try_exists()?
                .then(|| format!(" {:x}", sum(memory)));
            // Whole or not at all: whoever waits for it reads at once.
            let beside = directory.join("report.new");
            std::fs::write(
                &beside,
                format!("{}{}", longest.as_micros(), sum.unwrap_or_default()),
            )?;
            std::fs::rename(&beside, &report)?;
            (longest, last) = (Duration::ZERO, Instant::now());
        }
        std::thread::sleep(TICK);
    }
}

/// A generator of pseudo-random numbers (Marsaglia's xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Fills `to` with what cannot be compressed.
pub fn fill_random(to: &mut [u8]) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for word in to.as_chunks_mut::<8>().0 {
        *word = random.next().to_ne_bytes();
    }
}

fn fill_text(to: &mut [u8]) {
    const STRETCH: usize = 8 << 20;
    let mut random = Random(88_172_645_463_325_252);
    let mut letters = |n: u64| -> String {
        (0..n)
            .map(|_| char::from(b'a' + (random.next() % 26) as u8))
            .collect()
    };
    let words: Vec<String> = (0..2000).map(|n| letters(2 + n % 9)).collect();
    let mut text = Vec::with_capacity(STRETCH + 16);
    while text.len() < STRETCH {
        // Some words are much more frequent than others.
        let pick = random.next();
        let place = (pick % 2000) * (pick >> 32 & 0xff) / 256;
        text.extend_from_slice(words[place as usize].as_bytes());
        text.push(if pick >> 60 == 0 { b'\n' } else { b' ' });
    }
    text.truncate(STRETCH);
    for piece in to.chunks_mut(STRETCH) {
        piece.copy_from_slice(&text[..piece.len()]);
    }
}

fn memory(bytes: usize, content: Content, pages: PageKind) -> io::Result<MmapMut> {
    let mut memory = MmapMut::map_anon(bytes)?;
    // A kernel without huge pages has nothing to be advised about.
    let _ = memory.advise(match pages {
        PageKind::Small => Advice::NoHugePage,
        PageKind::Huge => Advice::HugePage,
    });
    match content {
        Content::Random => fill_random(&mut memory),
        Content::Zero => memory.fill(0),
        Content::Text => fill_text(&mut memory),
    }
    Ok(memory)
}

const PAGE: usize = 4096;

/// Changes `percent` of the pages of `memory`: every so many, or the first of them; other bytes in each round.
fn change(memory: &mut [u8], percent: usize, spread: bool, round: u64) {
    let mut random = Random(round.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let pages = memory.len() / PAGE;
    let wanted = pages * percent / 100;
    let step = if spread {
        pages.checked_div(wanted).unwrap_or(pages)
    } else {
        1
    };
    for n in 0..wanted {
        let page = &mut memory[(n * step) * PAGE..][..PAGE];
        for word in page.as_chunks_mut::<8>().0 {
            *word = random.next().to_ne_bytes();
        }
    }
}

/// Writes the report when it is missing.
fn report(directory: &Path, text: &str) -> io::Result<()> {
    let beside = directory.join("report.new");
    std::fs::write(&beside, text)?;
    std::fs::rename(&beside, directory.join(REPORT))
}

fn changing(directory: &Path, bytes: usize, percent: usize, spread: bool) -> io::Result<()> {
    let mut memory = memory(bytes, Content::Random, PageKind::Small)?;
    for round in 1.. {
        while directory.join(REPORT).try_exists()? {
            std::thread::sleep(TICK);
        }
        change(&mut memory, percent, spread, round);
        report(directory, "0")?;
    }
    Ok(())
}

fn sharing(directory: &Path, bytes: usize, count: usize) -> io::Result<()> {
    let mut memory = memory(bytes, Content::Random, PageKind::Small)?;
    for child in 1..count as u64 {
        if let stasis_sys::process::Fork::Child = stasis_sys::process::fork()? {
            for round in 1.. {
                change(&mut memory, 1, true, round << 8 | child);
                while directory.join(REPORT).try_exists()? {
                    std::thread::sleep(TICK);
                }
                while !directory.join(REPORT).try_exists()? {
                    std::thread::sleep(TICK);
                }
            }
        }
    }
    tick(directory, &[])
}

fn sweeping(directory: &Path, bytes: usize) -> io::Result<()> {
    const BIN: Duration = Duration::from_millis(100);
    const PIECE: usize = 1 << 20;
    let mut memory = memory(bytes, Content::Random, PageKind::Small)?;
    let mut bins = vec![0u64];
    let mut began = Instant::now();
    for round in 0u64.. {
        for piece in memory.chunks_mut(PIECE) {
            piece.fill(round as u8);
            std::hint::black_box(&piece);
            // A pause leaves bins in which nothing was written.
            while began.elapsed() >= BIN {
                began += BIN;
                bins.push(0);
            }
            if let Some(bin) = bins.last_mut() {
                *bin += 1;
            }
        }
        if !directory.join(REPORT).try_exists()? {
            let last = bins.pop().unwrap_or_default();
            let text: Vec<String> = bins.iter().map(u64::to_string).collect();
            report(directory, &format!("0 {}", text.join(",")))?;
            bins = vec![last];
        }
    }
    Ok(())
}

fn sum(memory: &[u8]) -> u64 {
    let words = memory.as_chunks::<8>().0.iter();
    words.fold(0, |sum: u64, word| {
        (sum ^ u64::from_ne_bytes(*word)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn threads(directory: &Path, count: usize, busy: bool) -> io::Result<()> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    const TURN: usize = 1 << 16;
    let all = Arc::new(Barrier::new(count));
    let report: Arc<Path> = directory.join(REPORT).into();
    for _ in 1..count {
        let (all, report) = (Arc::clone(&all), Arc::clone(&report));
        let work = move || {
            all.wait();
            loop {
                if !busy {
                    std::thread::park();
                    continue;
                }
                for _ in 0..TURN {
                    COUNTER.fetch_add(1, Ordering::Relaxed);
                }
                if !report.exists() {
                    // Whoever waits for it notices that it is missing.
                    let _ = std::fs::File::create(&report);
                }
            }
        };
        std::thread::Builder::new()
            .stack_size(64 << 10)
            .spawn(work)?;
    }
    all.wait();
    Ok(())
}

/// As many descriptors as the system lets this user have.
fn raise_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // What is short of it shows when they are opened.
    let _ = setrlimit(Resource::Nofile, limit);
}

fn files(directory: &Path, count: usize) -> io::Result<Vec<OwnedFd>> {
    let place = directory.join("held");
    std::fs::create_dir_all(&place)?;
    let open = |n: usize| {
        let path = place.join(n.to_string());
        std::fs::write(&path, "a few bytes of content\n")?;
        let file = File::options()
            .read(true)
            .write(n.is_multiple_of(10))
            .open(&path)?;
        Ok(file.into())
    };
    (0..count).map(open).collect()
}

fn connections(count: usize) -> io::Result<Vec<OwnedFd>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let mut held = Vec::new();
    for _ in 0..count {
        let mut one = TcpStream::connect(address)?;
        let mut other = listener.accept()?.0;
        one.write_all(b"asked")?;
        other.write_all(b"answered")?;
        held.extend([OwnedFd::from(one), other.into()]);
    }
    held.push(listener.into());
    Ok(held)
}

fn watched(count: usize) -> io::Result<Vec<OwnedFd>> {
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut held = Vec::new();
    for n in 0..count {
        match n % 3 {
            0 => held.push(eventfd(0, EventfdFlags::CLOEXEC)?),
            1 => held.extend(
                [pipe()?]
                    .map(|(reader, writer)| [writer, reader])
                    .into_iter()
                    .flatten(),
            ),
            _ => {
                let (one, other) = UnixStream::pair()?;
                held.extend([OwnedFd::from(one), other.into()]);
            }
        }
        if let Some(last) = held.last() {
            epoll::add(
                &set,
                last,
                epoll::EventData::new_u64(n as u64),
                epoll::EventFlags::IN,
            )?;
        }
    }
    held.push(set);
    Ok(held)
}

/// Pipes, connected sockets and files, as programs have them.
fn mixed(count: usize) -> io::Result<Vec<OwnedFd>> {
    let mut held: Vec<OwnedFd> = Vec::new();
    while held.len() < count {
        let (reader, writer) = pipe()?;
        let (one, other) = UnixStream::pair()?;
        let null = File::open("/dev/null")?;
        held.extend([reader, writer, one.into(), other.into(), null.into()]);
    }
    held.truncate(count);
    Ok(held)
}

/// Does the work once and writes down how long it took, in nanoseconds.
fn timed(directory: &Path, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let began = Instant::now();
    work()?;
    std::fs::write(
        directory.join(REPORT),
        began.elapsed().as_nanos().to_string(),
    )
}

fn cpu() -> io::Result<()> {
    let mut random = Random(1);
    let mut all = 0u64;
    for _ in 0..300_000_000u64 {
        all = all.wrapping_add(random.next());
    }
    std::hint::black_box(all);
    Ok(())
}

fn malloc() -> io::Result<()> {
    std::thread::scope(|scope| {
        for seed in 1..=4 {
            scope.spawn(move || {
                let mut random = Random(seed);
                let mut held: Vec<Vec<u8>> = vec![Vec::new(); 1000];
                for _ in 0..1_000_000 {
                    let pick = random.next();
                    held[(pick % 1000) as usize] =
                        Vec::with_capacity(16 + (pick >> 32) as usize % 4000);
                }
                std::hint::black_box(held);
            });
        }
    });
    Ok(())
}

fn calls() -> io::Result<()> {
    for _ in 0..1_000_000 {
        std::hint::black_box(rustix::process::getppid());
    }
    Ok(())
}

fn exec() -> io::Result<()> {
    for _ in 0..500 {
        let status = Command::new("/bin/true").stdin(Stdio::null()).status()?;
        if !status.success() {
            return Err(io::Error::other("/bin/true was not successful"));
        }
    }
    Ok(())
}
