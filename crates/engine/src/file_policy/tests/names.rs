//! Links, and names of every kind.

use super::*;

#[test]
fn a_symbolic_link_is_followed_and_stays() {
    let mut world = World::new();
    let path = world.write("data", b"abc");
    std::os::unix::fs::symlink(&path, world.at("link")).expect("symlink");
    world.checkpoint(&[(&open_rw(&world.at("link")), WRITE)]);
    // The data are moved to another disk, say, and a link is left.
    fs::rename(&path, world.at("moved")).expect("rename");
    std::os::unix::fs::symlink("moved", &path).expect("symlink");
    fs::write(world.at("moved"), b"changed").expect("writable");
    world.restart();
    assert!(path.symlink_metadata().expect("stat").is_symlink());
    assert_eq!(world.read("moved"), b"abc");
    assert_eq!(world.read("moved.stasis-changed-000007"), b"changed");
}

#[test]
fn names_are_bytes() {
    let mut world = World::new();
    let path = world.dir.path().join(OsStr::from_bytes(b"\xff\n\x80"));
    fs::write(&path, b"abc").expect("writable");
    world.checkpoint(&[(&open_rw(&path), WRITE)]);
    append(&path, b"d");
    world.restart();
    assert_eq!(fs::read(&path).expect("readable"), b"abc");
    let kept = world
        .dir
        .path()
        .join(OsStr::from_bytes(b"\xff\n\x80.stasis-cut-000007-at-3"));
    assert_eq!(fs::read(kept).expect("readable"), b"d");
}

#[test]
fn a_path_longer_than_a_page_is_refused() {
    let world = World::new();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let name = "d".repeat(250);
    let mut at = rustix::fs::open(world.dir.path(), flags, Mode::empty()).expect("open");
    for _ in 0..20 {
        rustix::fs::mkdirat(&at, &name, Mode::RWXU).expect("mkdir");
        at = rustix::fs::openat(&at, &name, flags, Mode::empty()).expect("open");
    }
    let making = OFlags::CREATE | OFlags::RDWR;
    let file = rustix::fs::openat(&at, "out", making, Mode::RWXU).expect("create");
    let text = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let error = text.expect_err("too long").raw_os_error();
    assert_eq!(error, Some(rustix::io::Errno::NAMETOOLONG.raw_os_error()));
    let refused = Collector::new(LIMIT).descriptor(file.as_fd(), None, WRITE);
    let reason = refused.expect_err("refused").reason;
    assert!(reason.contains("longer than 4096 bytes"), "{reason}");
}

#[test]
fn the_longest_name_has_room_for_what_is_kept() {
    let name = "n".repeat(255);
    let world = World::with_written(&name, b"abc");
    fs::write(world.at(&name), b"changed").expect("writable");
    world.restart();
    assert_eq!(world.read(&name), b"abc");
    let kept = world
        .names()
        .into_iter()
        .find(|name| name.ends_with(".stasis-changed-000007"));
    assert_eq!(world.read(&kept.expect("a kept file")), b"changed");
}
