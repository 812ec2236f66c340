//! How fast images are written and read, next to plain writes of the same bytes to the same directory.
//!
//! ```text
//! cargo run --release -p stasis-image --example throughput -- [DIRECTORY] [MEBIBYTES] [THREADS] [ROUNDS]
//! ```
//!
//! A row is the best of the rounds, and rounds go through all rows, so that a disk whose rate wanders is unfair to none.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use stasis_image::{Compression, Image, ImageWriter, ObjectId, Run, WriteOptions};

const MIB: usize = 1 << 20;

struct Row {
    contents: &'static str,
    way: String,
    write: Duration,
    read: Option<Duration>,
    stored: u64,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let parent = arguments.next().unwrap_or_else(|| ".".to_owned());
    let mut number = |default| {
        arguments
            .next()
            .map_or(Ok(default), |text| text.parse::<usize>())
    };
    let (len, threads, rounds) = (number(1024)? * MIB, number(0)?, number(3)?);
    let directory = tempfile::tempdir_in(parent)?;

    // The first file on a disk that was idle is slower than the next ones.
    plain(directory.path(), &random(len))?;
    let mut rows: Vec<Row> = Vec::new();
    for round in 0..rounds {
        let mut row = 0;
        for (name, contents) in [
            ("random", random(len)),
            ("heap", heap(len)),
            ("text", text(len)),
            // Repeated, so that its pages are really there.
            ("zero", [0].repeat(len)),
        ] {
            let plain_row = row;
            let mut add =
                |way: String, (write, read, stored): (Duration, Option<Duration>, u64)| {
                    if round == 0 {
                        rows.push(Row {
                            contents: name,
                            way,
                            write,
                            read,
                            stored,
                        });
                    } else {
                        let best = &mut rows[row];
                        best.write = best.write.min(write);
                        best.read = best.read.zip(read).map(|(a, b)| a.min(b));
                    }
                    row += 1;
                };
            add(
                "write+fsync".to_owned(),
                plain(directory.path(), &contents)?,
            );
            for compression in [
                Compression::None,
                Compression::Auto,
                Compression::Lz4,
                Compression::Zstd(1),
                Compression::Zstd(3),
            ] {
                add(
                    compression.to_string(),
                    image(directory.path(), &contents, compression, threads)?,
                );
            }
            // Once more, at another place in the order.
            let (again, ..) = plain(directory.path(), &contents)?;
            let first = &mut rows[plain_row];
            first.write = first.write.min(again);
        }
    }

    println!(
        "{} MiB, best of {rounds}; reading is from the page cache and checks every hash\n",
        len / MIB
    );
    println!("| contents | way         | write MiB/s | of plain | size   | read MiB/s |");
    println!("|----------|-------------|------------:|---------:|-------:|-----------:|");
    let rate = |time: Duration| len as f64 / MIB as f64 / time.as_secs_f64();
    let mut plain = 1.0;
    for Row {
        contents,
        way,
        write,
        read,
        stored,
    } in rows
    {
        let write = rate(write);
        if way == "write+fsync" {
            plain = write;
        }
        // Where nothing is stored, nothing is read.
        let read = read
            .filter(|_| stored > 0)
            .map_or("-".to_owned(), |read| format!("{:.0}", rate(read)));
        let size = stored as f64 * 100.0 / len as f64;
        println!(
            "| {contents:<8} | {way:<11} | {write:>11.0} | {:>7.2}x | {size:>5.1}% | {read:>10} |",
            write / plain
        );
    }
    Ok(())
}

/// Lets the disk finish with what was removed before.
fn settle() {
    rustix::fs::sync();
    std::thread::sleep(Duration::from_millis(200));
}

/// As `dd bs=1M conv=fsync` does.
fn plain(directory: &Path, contents: &[u8]) -> std::io::Result<(Duration, Option<Duration>, u64)> {
    let path = directory.join("plain");
    settle();
    let start = Instant::now();
    let mut file = File::create(&path)?;
    for piece in contents.chunks(MIB) {
        file.write_all(piece)?;
    }
    file.sync_all()?;
    let time = start.elapsed();
    std::fs::remove_file(path)?;
    Ok((time, None, contents.len() as u64))
}

fn image(
    directory: &Path,
    contents: &[u8],
    compression: Compression,
    threads: usize,
) -> Result<(Duration, Option<Duration>, u64), Box<dyn std::error::Error>> {
    let path = directory.join("bench-000001.ckpt");
    settle();
    let start = Instant::now();
    let writer = ImageWriter::create(
        &path,
        WriteOptions {
            compression,
            threads,
        },
    )?;
    writer.store(
        ObjectId(0),
        &contents,
        &[Run {
            offset: 0,
            len: contents.len() as u64,
        }],
    )?;
    let stored = start.elapsed();
    let committed = writer.commit(b"")?;
    let write = start.elapsed();
    if std::env::var_os("DETAILS").is_some() {
        eprintln!(
            "{compression}: store {stored:?}, commit {:?}",
            write - stored
        );
    }
    let start = Instant::now();
    Image::open(&path)?.verify(threads, &|_| ())?;
    let read = start.elapsed();
    std::fs::remove_file(path)?;
    Ok((write, Some(read), committed.stored_len))
}

fn random(len: usize) -> Vec<u8> {
    let mut contents = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut contents);
    contents
}

/// Like the memory of a numerical program: doubles of a smooth field with noise in their low bits, pointers into one
/// heap with small numbers between them, and some free (zero) room.
fn heap(len: usize) -> Vec<u8> {
    let mut noise = Noise(1);
    let mut contents = vec![0; len];
    for (number, region) in contents.chunks_mut(256 * 1024).enumerate() {
        match number % 4 {
            0 | 1 => region
                .chunks_exact_mut(8)
                .enumerate()
                .for_each(|(i, value)| {
                    let field = (i as f64 * 1e-4).sin() + (noise.next() >> 40) as f64 * 1e-9;
                    value.copy_from_slice(&field.to_le_bytes());
                }),
            2 => region.chunks_exact_mut(16).for_each(|pair| {
                let pointer = 0x7f12_3400_0000 + ((noise.next() >> 42) << 4);
                pair[..8].copy_from_slice(&pointer.to_le_bytes());
                pair[8..].copy_from_slice(&(noise.next() >> 56).to_le_bytes());
            }),
            _ => {}
        }
    }
    contents
}

/// Words in the frequencies of a language, more or less.
fn text(len: usize) -> Vec<u8> {
    let mut noise = Noise(2);
    let words: Vec<Vec<u8>> = (0..4000)
        .map(|_| {
            (0..2 + noise.next() % 9)
                .map(|_| b'a' + (noise.next() % 26) as u8)
                .chain([b' '])
                .collect()
        })
        .collect();
    let mut contents = Vec::with_capacity(len + 16);
    while contents.len() < len {
        let (a, b) = (noise.next() >> 33, noise.next() >> 33);
        // The product of two even draws prefers the first words.
        let word =
            ((a as f64 / (1u64 << 31) as f64) * (b as f64 / (1u64 << 31) as f64) * 4000.0) as usize;
        contents.extend(&words[word.min(3999)]);
    }
    contents.truncate(len);
    contents
}

/// A small generator (splitmix64), the same on every machine.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
