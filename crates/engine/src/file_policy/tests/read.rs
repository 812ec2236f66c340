//! Files that were only read, permissions, and files that others work on.

use super::*;

#[test]
fn a_file_that_is_read_may_be_touched_or_copied_but_not_changed() {
    let world = World::with_read("in", b"abc");
    let path = world.at("in");
    let stamp = modified(&path);
    set_time(&path, SystemTime::now());
    world.restart();
    fs::write(world.at("copy"), b"abc").expect("writable");
    fs::rename(world.at("copy"), &path).expect("rename");
    world.restart();
    fs::write(&path, b"aXc").expect("writable");
    set_time(&path, stamp);
    let text = world.problem(ChangedFiles::Refuse);
    assert!(
        text.contains("it was changed since the checkpoint"),
        "{text}"
    );
    assert_eq!(world.plan_with(ChangedFiles::Accept).problems, []);
    assert_eq!(world.names(), ["in"]);
    assert_eq!(
        world.read("in"),
        b"aXc",
        "what is only read is never put back"
    );
}

#[test]
fn a_name_alone_has_to_exist_and_no_more() {
    let mut world = World::new();
    let path = world.write("named", b"abc");
    let file = File::from(rustix::fs::open(&path, OFlags::PATH, Mode::empty()).expect("open"));
    world.checkpoint(&[(&file, NAMED)]);
    fs::write(&path, b"changed").expect("writable");
    let ready = world.restart();
    assert!(ready.open(FileIndex(0), OFlags::PATH).is_ok());
    fs::remove_file(&path).expect("unlink");
    assert!(
        world
            .problem(ChangedFiles::Accept)
            .contains("it is missing")
    );
}

#[test]
fn files_are_found_under_their_new_prefix() {
    let world = World::with_written("out", b"abc");
    let other = tempfile::tempdir().expect("a directory");
    fs::write(other.path().join("out"), b"abcd").expect("writable");
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let options = PlanOptions {
        keep_own: false,
        changed: ChangedFiles::Refuse,
        map: PathMap::new(&[(text(world.dir.path()), text(other.path()))]),
        sequence: 8,
        own: Vec::new(),
        held: Vec::new(),
    };
    let plan = plan(&world.records, &options, &world.image);
    apply(&plan, &world.records, &world.image).expect("applied");
    assert_eq!(
        names_in(other.path()),
        ["out", "out.stasis-cut-000008-at-3"]
    );
    assert_eq!(world.names(), ["out"]);
}

#[test]
fn permissions_that_are_missing_are_told() {
    if is_root() {
        return eprintln!("skipped: root may do everything; run as an ordinary user");
    }
    let chmod = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    };
    let world = World::with_written("out", b"abc");
    chmod(&world.at("out"), 0o400);
    assert!(
        world
            .problem(ChangedFiles::Accept)
            .contains("opened for writing")
    );
    chmod(&world.at("out"), 0o600);
    append(&world.at("out"), b"d");
    chmod(world.dir.path(), 0o500);
    let text = world.problem(ChangedFiles::Refuse);
    chmod(world.dir.path(), 0o700);
    assert!(
        text.contains("no file can be made in") && text.contains("chmod u+w"),
        "{text}"
    );
    let world = World::with_read("in", b"abc");
    chmod(&world.at("in"), 0o000);
    assert!(
        world
            .problem(ChangedFiles::Refuse)
            .contains("opened for reading")
    );
    // At the checkpoint: open, but not to be opened again.
    let file = OpenOptions::new()
        .write(true)
        .open(World::with_written("x", b"").write_only())
        .expect("open");
    let collector = Collector::new(LIMIT);
    let refused = collector.descriptor(file.as_fd(), Some(&link(&file)), WRITE);
    assert!(refused.expect_err("refused").hint.contains("chmod u+r"));
}

impl World {
    fn write_only(self) -> PathBuf {
        let path = self.dir.keep().join("x");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o200)).expect("chmod");
        path
    }
}

#[test]
fn reading_through_the_programs_own_description_leaves_its_offset() {
    if is_root() {
        return eprintln!("skipped: root may do everything; run as an ordinary user");
    }
    let mut world = World::new();
    let path = world.write("out", b"abcdef");
    let file = open_rw(&path);
    rustix::fs::seek(&file, SeekFrom::Start(4)).expect("seek");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).expect("chmod");
    world.checkpoint(&[(&file, WRITE)]);
    assert_eq!(rustix::fs::tell(&file).expect("tell"), 4);
    assert_eq!(world.image.runs(ContentId(0)), [(0, b"abcdef".to_vec())]);
}

#[test]
fn a_file_that_somebody_works_on_is_not_changed() {
    let world = World::with_written("out", b"abc");
    append(&world.at("out"), b"d");
    let writer = open_rw(&world.at("out"));
    let text = world.problem(ChangedFiles::Refuse);
    assert!(text.contains("has it open for writing"), "{text}");
    rustix::fs::flock(&writer, rustix::fs::FlockOperation::LockExclusive).expect("lock");
    let text = world.problem(ChangedFiles::Refuse);
    assert!(text.contains("holds a lock on it"), "{text}");
    let accepting = world.plan_with(ChangedFiles::Accept);
    assert_eq!(accepting.problems, []);
    apply(&accepting, &world.records, &world.image).expect("applied");
    assert_eq!(world.read("out"), b"abcd", "accepted as it is");
    drop(writer);
    world.restart();
    assert_eq!(world.read("out"), b"abc");
}

#[test]
fn a_change_after_the_plan_stops_the_restart() {
    let world = World::with_written("out", b"abc");
    append(&world.at("out"), b"d");
    let plan = world.plan();
    append(&world.at("out"), b"e");
    let error = apply(&plan, &world.records, &world.image).expect_err("refused");
    assert!(
        error
            .to_string()
            .contains("while the restart was on its way"),
        "{error}"
    );
    assert_eq!(world.read("out"), b"abcde");
    assert_eq!(world.names(), ["out"]);
    let ready = world.restart();
    fs::copy(world.at("out"), world.at("copy")).expect("copy");
    fs::rename(world.at("copy"), world.at("out")).expect("rename");
    assert!(ready.open(FileIndex(0), OFlags::RDONLY).is_err());
}
