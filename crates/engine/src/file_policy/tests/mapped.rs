//! Files that are mapped, and what is remembered of files from one checkpoint to the next.

use super::*;

/// A mapping of this very process: path, device, inode.
fn own_mapping(part: &str) -> Option<(String, (u32, u32), u64)> {
    let maps = fs::read_to_string("/proc/self/maps").expect("maps");
    let line = maps.lines().find(|line| line.contains(part))?;
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let (major, minor) = words[3].split_once(':')?;
    let hex = |text| u32::from_str_radix(text, 16).expect("hexadecimal");
    Some((
        words[5].to_owned(),
        (hex(major), hex(minor)),
        words[4].parse().ok()?,
    ))
}

#[test]
fn a_library_is_recorded_and_another_build_is_never_accepted() {
    let Some((path, device, inode)) = own_mapping("/libc.so") else {
        return eprintln!("skipped: no C library is mapped here");
    };
    let mapping = Mapping {
        path: path.as_bytes(),
        device,
        inode,
        shared_writable: false,
    };
    let collector = Collector::new(LIMIT);
    let found = collector.mapping(&mapping).expect("can be saved");
    assert_eq!(found, MappedSource::File(FileIndex(0)));
    assert_eq!(collector.mapping(&mapping).expect("again"), found);
    let mut world = World::new();
    collector.store(&world.image).expect("stored");
    world.records = collector.finish();
    assert_eq!(world.image.count(), 0);
    assert!(world.records[0].evidence.build_id.is_some());
    world.restart();
    // An update: the same path, another file.
    let copy = world.at("libc.so");
    fs::copy(&path, &copy).expect("copy");
    world.records[0].path = PathBytes::from(copy.as_path());
    world.restart();
    append(&copy, b"patched");
    let text = world.problem(ChangedFiles::Accept);
    assert!(
        text.contains("program file") && text.contains("put the version of the checkpoint back"),
        "{text}"
    );
}

#[test]
fn a_mapping_without_a_name_is_memory_unless_a_descriptor_leads_to_it() {
    let world = World::new();
    let path = world.write("mapped", b"abc");
    let file = open_rw(&path);
    let metadata = path.metadata().expect("stat");
    let text = format!("{} (deleted)", path.display());
    let mapping = Mapping {
        path: text.as_bytes(),
        device: (
            rustix::fs::major(metadata.dev()),
            rustix::fs::minor(metadata.dev()),
        ),
        inode: metadata.ino(),
        shared_writable: true,
    };
    fs::remove_file(&path).expect("unlink");
    world.write("mapped", b"another");
    let collector = Collector::new(LIMIT);
    assert_eq!(
        collector.mapping(&mapping).expect("looked at"),
        MappedSource::MemoryOnly
    );
    let index = collector
        .descriptor(file.as_fd(), Some(&link(&file)), READ)
        .expect("can be saved");
    assert_eq!(
        collector.mapping(&mapping).expect("looked at"),
        MappedSource::File(index)
    );
    collector.store(&world.image).expect("stored");
    let record = &collector.finish()[0];
    assert!(record.uses.mapped_shared_writable && record.presence == Presence::Unlinked);
}

#[test]
fn a_shared_writable_mapping_is_stored_without_any_descriptor() {
    let mut world = World::new();
    let path = world.write("mapped", b"abc");
    let metadata = path.metadata().expect("stat");
    let mapping = Mapping {
        path: path.as_os_str().as_bytes(),
        device: (
            rustix::fs::major(metadata.dev()),
            rustix::fs::minor(metadata.dev()),
        ),
        inode: metadata.ino(),
        shared_writable: true,
    };
    let collector = Collector::new(LIMIT);
    collector.mapping(&mapping).expect("can be saved");
    collector.store(&world.image).expect("stored");
    world.records = collector.finish();
    fs::write(&path, b"aXc").expect("writable");
    world.restart();
    assert_eq!(world.read("mapped"), b"abc");
}

#[test]
fn what_has_not_changed_is_not_hashed_again() {
    let mut world = World::with_read("in", b"abc");
    let mut earlier = world.records.clone();
    let marked = world.at("other");
    fs::write(&marked, b"other").expect("writable");
    earlier[0].evidence.fingerprint =
        Fingerprint::take(&File::open(&marked).expect("open"), 5, Sampling::READ)
            .expect("readable");
    let again = |world: &World| {
        let collector = later();
        collector.remember(&earlier);
        let file = File::open(world.at("in")).expect("open");
        collector
            .descriptor(file.as_fd(), Some(&link(&file)), READ)
            .expect("can be saved");
        collector.store(&world.image).expect("stored");
        collector.finish()
    };
    assert_eq!(again(&world)[0].evidence, earlier[0].evidence);
    fs::write(world.at("in"), b"aXc").expect("writable");
    world.records = again(&world);
    assert_ne!(world.records[0].evidence, earlier[0].evidence);
}

#[test]
fn a_mapping_whose_name_is_gone_is_found_by_the_name_beside() {
    let world = World::new();
    let path = world.write("temporary", b"abc");
    let metadata = path.metadata().expect("stat");
    fs::hard_link(&path, world.at("name")).expect("link");
    fs::remove_file(&path).expect("unlink");
    let text = format!("{} (deleted)", path.display());
    let collector = Collector::new(LIMIT);
    let found = |path: &[u8], shared_writable| {
        let mapping = Mapping {
            path,
            device: (
                rustix::fs::major(metadata.dev()),
                rustix::fs::minor(metadata.dev()),
            ),
            inode: metadata.ino(),
            shared_writable,
        };
        collector.mapping(&mapping).expect("looked at")
    };
    // Only what can be changed is worth the search.
    assert_eq!(found(text.as_bytes(), false), MappedSource::MemoryOnly);
    let file = MappedSource::File(FileIndex(0));
    assert_eq!(found(text.as_bytes(), true), file);
    let name = world.at("name");
    assert_eq!(found(name.as_os_str().as_bytes(), true), file);
    assert_eq!(found(text.as_bytes(), true), file);
    collector.store(&world.image).expect("stored");
    let records = collector.finish();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].path.as_path(), name);
    assert!(records[0].evidence.stored.is_some());
}
