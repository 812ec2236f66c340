//! Files that were open for writing.

use super::*;

#[test]
fn what_is_the_same_is_used() {
    let world = World::with_written("out", b"abc");
    let ready = world.restart();
    assert!(ready.open(FileIndex(0), OFlags::RDWR).is_ok());
    assert_eq!(world.names(), ["out"]);
    assert!(world.plan().actions[0].contains("as it is (3 bytes)"));
}

#[test]
fn growth_is_cut_off_and_kept() {
    let world = World::with_written("out", b"abc");
    let before = modified(&world.at("out"));
    append(&world.at("out"), b"defg");
    let plan = world.plan();
    assert!(
        plan.actions[0].contains("from 7 to 3 bytes, and keeps the 4 cut bytes in"),
        "{:?}",
        plan.actions
    );
    assert_eq!(world.read("out"), b"abcdefg", "a plan touches nothing");
    world.restart();
    assert_eq!(world.read("out"), b"abc");
    assert_eq!(world.read("out.stasis-cut-000007-at-3"), b"defg");
    assert_eq!(modified(&world.at("out")), before);
    assert_eq!(world.names(), ["out", "out.stasis-cut-000007-at-3"]);
}

#[test]
fn one_image_restarts_again_and_again() {
    let world = World::with_written("out", b"abc");
    for _ in 0..3 {
        append(&world.at("out"), b"same");
        world.restart();
        assert_eq!(world.read("out"), b"abc");
    }
    assert_eq!(
        world.names().len(),
        2,
        "the same bytes are not kept twice: {:?}",
        world.names()
    );
    append(&world.at("out"), b"other");
    world.restart();
    assert_eq!(world.read("out.stasis-cut-000007-at-3"), b"same");
    assert_eq!(world.read("out.stasis-cut-000007-at-3-2"), b"other");
    assert_eq!(world.read("out"), b"abc");
}

#[test]
fn a_change_in_place_is_undone_and_the_changed_file_kept() {
    let world = World::new();
    let path = world.write("out", b"abc");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("chmod");
    let mut world = world;
    world.checkpoint(&[(&open_rw(&path), WRITE)]);
    let before = modified(&path);
    for changed in [&b"aXc"[..], b"aXcdef"] {
        fs::write(&path, changed).expect("writable");
        world.restart();
        assert_eq!(world.read("out"), b"abc");
    }
    assert_eq!(world.read("out.stasis-changed-000007"), b"aXc");
    assert_eq!(world.read("out.stasis-changed-000007-2"), b"aXcdef");
    let metadata = path.metadata().expect("stat");
    assert_eq!(metadata.mode() & 0o7777, 0o640);
    assert_eq!(metadata.nlink(), 1);
    assert_eq!(modified(&path), before);
    fs::write(&path, b"aXc").expect("writable");
    world.restart();
    assert_eq!(
        world.names().len(),
        3,
        "the same bytes are not kept twice: {:?}",
        world.names()
    );
}

#[test]
fn a_change_behind_an_old_time_stamp_is_noticed() {
    let world = World::with_written("out", b"abc");
    assert!(world.records[0].times_tell);
    let before = modified(&world.at("out"));
    fs::write(world.at("out"), b"aXc").expect("writable");
    set_time(&world.at("out"), before);
    world.restart();
    assert_eq!(world.read("out"), b"abc");
}

#[test]
fn young_time_stamps_and_shared_mappings_do_not_tell() {
    let mut world = World::new();
    let file = open_rw(&world.write("out", b"abc"));
    let mapped = Uses {
        mapped_shared_writable: true,
        ..WRITE
    };
    let cases = [
        (later(), WRITE, true),
        (later(), mapped, false),
        (Collector::new(LIMIT), WRITE, false),
    ];
    for (collector, uses, tell) in cases {
        world.checkpoint_with(collector, &[(&file, uses)]);
        assert_eq!(world.records[0].times_tell, tell);
    }
}

#[test]
fn what_was_truncated_comes_back() {
    let world = World::with_written("out", b"abcdef");
    fs::write(world.at("out"), b"ab").expect("writable");
    world.restart();
    assert_eq!(world.read("out"), b"abcdef");
    assert_eq!(
        world.names(),
        ["out"],
        "nothing was there that the image has not"
    );
    fs::write(world.at("out"), b"xy").expect("writable");
    world.restart();
    assert_eq!(world.read("out"), b"abcdef");
    assert_eq!(world.read("out.stasis-changed-000007"), b"xy");
}

#[test]
fn what_was_deleted_comes_back() {
    let world = World::with_written("out", b"abc");
    fs::remove_file(world.at("out")).expect("unlink");
    assert!(world.plan().actions[0].contains("which is gone"));
    world.restart();
    assert_eq!(world.read("out"), b"abc");
    assert_eq!(world.names(), ["out"]);
}

#[test]
fn another_file_under_the_name_is_kept_beside() {
    let world = World::with_written("out", b"abc");
    world.write("new", b"something else");
    fs::rename(world.at("new"), world.at("out")).expect("rename");
    world.restart();
    assert_eq!(world.read("out"), b"abc");
    assert_eq!(world.read("out.stasis-changed-000007"), b"something else");
}

#[test]
fn a_copy_with_the_same_contents_is_used() {
    let world = World::with_written("out", b"abc");
    fs::copy(world.at("out"), world.at("copy")).expect("copy");
    fs::rename(world.at("copy"), world.at("out")).expect("rename");
    world.restart();
    assert_eq!(world.names(), ["out"]);
}

#[test]
fn every_problem_is_listed_at_once() {
    let mut world = World::new();
    fs::create_dir(world.at("sub")).expect("mkdir");
    let names = ["sub/written", "gone", "grown", "turned"];
    let files: Vec<File> = names
        .iter()
        .map(|name| open_rw(&world.write(name, b"abc")))
        .collect();
    let uses = [WRITE, READ, READ, WRITE];
    let open: Vec<(&File, Uses)> = files.iter().zip(uses).collect();
    world.checkpoint(&open);
    fs::remove_dir_all(world.at("sub")).expect("rm");
    fs::remove_file(world.at("gone")).expect("rm");
    append(&world.at("grown"), b"x");
    fs::remove_file(world.at("turned")).expect("rm");
    fs::create_dir(world.at("turned")).expect("mkdir");
    let plan = world.plan();
    let text: Vec<String> = plan.problems.iter().map(ToString::to_string).collect();
    assert_eq!(text.len(), 4, "{text:#?}");
    assert!(
        text[0].contains("its directory") && text[0].contains("mkdir -p"),
        "{}",
        text[0]
    );
    assert!(text[1].contains("it is missing"), "{}", text[1]);
    assert!(
        text[2].contains("has grown") && text[2].contains("--changed-files accept"),
        "{}",
        text[2]
    );
    assert!(text[3].contains("is a directory now"), "{}", text[3]);
    let accepting = world.plan_with(ChangedFiles::Accept);
    assert_eq!(
        accepting.problems.len(),
        3,
        "only the changed one can be accepted"
    );
    assert!(
        accepting
            .actions
            .iter()
            .any(|action| action.contains("accepted by option"))
    );
}

#[test]
fn above_the_limit_growth_is_told_from_change() {
    let bytes = large();
    let len = bytes.len() as u64;
    let world = World::with_written("out", &bytes);
    let path = world.at("out");
    assert_eq!(world.records[0].evidence.stored, None);
    append(&path, b"more");
    assert!(world.plan().actions[0].contains("judged by samples"));
    world.restart();
    assert_eq!(path.metadata().expect("stat").len(), len);
    assert_eq!(
        world.read(&format!("out.stasis-cut-000007-at-{len}")),
        b"more"
    );
    world.restart();
    // In the last MiB, which is hashed whole.
    open_rw(&path)
        .write_all_at(b"!", len - 12345)
        .expect("writable");
    let text = world.problem(ChangedFiles::Refuse);
    assert!(
        text.contains("changed in place") && text.contains("--changed-files accept"),
        "{text}"
    );
    let accepting = world.plan_with(ChangedFiles::Accept);
    assert_eq!(accepting.problems, []);
    apply(&accepting, &world.records, &world.image).expect("applied");
    open_rw(&path).set_len(len - 1).expect("truncated");
    assert!(world.problem(ChangedFiles::Refuse).contains("shorter"));
    fs::remove_file(&path).expect("unlink");
    assert!(
        world
            .problem(ChangedFiles::Accept)
            .contains("it is missing")
    );
}

#[test]
fn above_the_limit_a_write_that_no_sample_shows_is_not_trusted() {
    let bytes = large();
    let world = World::with_written("out", &bytes);
    // Between two samples.
    open_rw(&world.at("out"))
        .write_all_at(b"!", (64 << 10) + (5 << 10))
        .expect("writable");
    assert!(
        world
            .problem(ChangedFiles::Refuse)
            .contains("samples show no change")
    );
}

#[test]
fn holes_stay_holes() {
    let mut world = World::new();
    let path = world.at("sparse");
    let file = File::create(&path).expect("create");
    file.set_len(1 << 30).expect("holes");
    file.write_all_at(b"abc", 512 << 20).expect("writable");
    let collector = Collector::new(2 << 30);
    collector
        .descriptor(file.as_fd(), Some(&link(&file)), WRITE)
        .expect("can be saved");
    collector.store(&world.image).expect("stored");
    world.records = collector.finish();
    fs::remove_file(&path).expect("unlink");
    world.restart();
    let metadata = path.metadata().expect("stat");
    assert_eq!(metadata.len(), 1 << 30);
    assert!(
        metadata.blocks() * 512 < 1 << 20,
        "{} blocks",
        metadata.blocks()
    );
    // And what is cut off keeps its holes as well.
    let file = open_rw(&path);
    file.set_len(2 << 30).expect("longer");
    drop(file);
    world.records[0].evidence.stored = None;
    world.records[0].evidence.fingerprint =
        Fingerprint::take(&open_rw(&path), 1 << 30, Sampling::WRITTEN).expect("readable");
    world.restart();
    let kept = world
        .at("sparse.stasis-cut-000007-at-1073741824")
        .metadata()
        .expect("kept");
    assert_eq!(kept.len(), 1 << 30);
    assert!(kept.blocks() * 512 < 1 << 20, "{} blocks", kept.blocks());
}
