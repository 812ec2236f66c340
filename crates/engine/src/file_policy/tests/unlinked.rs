//! Files that had no name.

use super::*;

#[test]
fn a_file_is_stored_once_however_often_it_is_open() {
    let mut world = World::new();
    let path = world.write("out", b"abc");
    fs::hard_link(&path, world.at("other")).expect("link");
    let files = [
        File::open(&path).expect("open"),
        open_rw(&path),
        OpenOptions::new()
            .append(true)
            .open(world.at("other"))
            .expect("open"),
    ];
    let indexes = world.checkpoint(&[(&files[0], READ), (&files[1], WRITE), (&files[2], WRITE)]);
    assert_eq!(indexes, [FileIndex(0); 3]);
    assert_eq!(world.image.count(), 1);
    assert!(world.records[0].uses.read && world.records[0].uses.written);
}

#[test]
fn a_deleted_file_comes_back_without_a_name() {
    let mut world = World::new();
    let path = world.write("scratch", b"abc");
    let file = open_rw(&path);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).expect("chmod");
    fs::remove_file(&path).expect("unlink");
    world.write("scratch", b"somebody else's");
    world.checkpoint(&[(&file, WRITE)]);
    assert_eq!(world.records[0].presence, Presence::Unlinked);
    let mut ready = world.restart();
    ready.raise(500).expect("moved");
    let reader = File::from(ready.open(FileIndex(0), OFlags::RDONLY).expect("open"));
    let writer = File::from(ready.open(FileIndex(0), OFlags::WRONLY).expect("open"));
    ready.finish();
    writer.write_all_at(b"X", 1).expect("writable");
    let mut found = [0; 3];
    reader.read_exact_at(&mut found, 0).expect("readable");
    assert_eq!(&found, b"aXc");
    let metadata = reader.metadata().expect("stat");
    assert_eq!(
        (metadata.nlink(), metadata.mode() & 0o777, metadata.len()),
        (0, 0o400, 3)
    );
    assert!(link(&reader).starts_with(world.dir.path().as_os_str().as_bytes()));
    assert_eq!(world.names(), ["scratch"]);
    assert_eq!(world.read("scratch"), b"somebody else's");
}

#[test]
fn a_deleted_file_whose_directory_is_gone_comes_back_elsewhere() {
    let mut world = World::new();
    fs::create_dir(world.at("sub")).expect("mkdir");
    let path = world.write("sub/scratch", b"abc");
    let file = open_rw(&path);
    fs::remove_file(&path).expect("unlink");
    world.checkpoint(&[(&file, WRITE)]);
    fs::remove_dir(world.at("sub")).expect("rmdir");
    let ready = world.restart();
    assert_eq!(read_all(&ready, 0), b"abc");
}

fn read_all(ready: &ReadyFiles, index: u32) -> Vec<u8> {
    let mut file = File::from(ready.open(FileIndex(index), OFlags::RDONLY).expect("open"));
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut file, &mut bytes).expect("readable");
    bytes
}

#[test]
fn a_deleted_file_is_stored_above_the_limit_too() {
    let mut world = World::new();
    let bytes = large();
    let path = world.write("scratch", &bytes);
    let file = open_rw(&path);
    fs::remove_file(&path).expect("unlink");
    world.checkpoint(&[(&file, WRITE)]);
    assert!(read_all(&world.restart(), 0) == bytes);
}

#[test]
fn a_file_made_without_a_name_comes_back() {
    let mut world = World::new();
    let flags = OFlags::TMPFILE | OFlags::RDWR;
    let file = match rustix::fs::open(world.dir.path(), flags, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => File::from(fd),
        Err(error) => return eprintln!("skipped: no O_TMPFILE here: {error}"),
    };
    file.write_all_at(b"abc", 0).expect("writable");
    world.checkpoint(&[(&file, WRITE)]);
    let ready = world.restart();
    let again = File::from(
        ready
            .open(FileIndex(0), flags)
            .expect("the flags that fdinfo tells"),
    );
    assert_eq!(again.metadata().expect("stat").nlink(), 0);
    assert_eq!(read_all(&ready, 0), b"abc");
}

#[test]
fn a_file_whose_other_name_is_not_found_is_refused_for_writing_and_copied_for_reading() {
    let mut world = World::new();
    fs::create_dir(world.at("sub")).expect("mkdir");
    let path = world.write("out", b"abc");
    let file = open_rw(&path);
    fs::hard_link(&path, world.at("sub/other")).expect("link");
    fs::remove_file(&path).expect("unlink");
    let collector = Collector::new(LIMIT);
    let refused = collector.descriptor(file.as_fd(), Some(&link(&file)), WRITE);
    assert!(
        refused
            .expect_err("refused")
            .reason
            .contains("was not found")
    );
    world.checkpoint(&[(&file, READ)]);
    fs::write(world.at("sub/other"), b"changed").expect("writable");
    assert_eq!(read_all(&world.restart(), 0), b"abc");
}
