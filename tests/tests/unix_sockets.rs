//! Unix sockets.

use stasis_tests::{Linkage, Sandbox, need, program, verify_after_restart, verify_or_refused};
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

macro_rules! cases {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            need!("cc");
            let program = program("sockets", Linkage::Dynamic).expect("there is a compiler");
            verify_after_restart(&Sandbox::new(), &[program.as_os_str(), stringify!($name).as_ref()]);
        }
    )*};
}

cases! {
    pairs closed shutdowns tree full empty options rights watched fresh load
    servers orphans datagrams credentials
}

fn check_refused(case: &str, words: &[&str]) {
    need!("cc");
    let program = program("sockets", Linkage::Dynamic).expect("there is a compiler");
    verify_or_refused(
        &Sandbox::new(),
        &[program.as_os_str(), case.as_ref()],
        words,
    );
}

/// Many checkpoints of sockets at full rate disturb nothing, and each of them can be restarted.
#[test]
fn load_again_and_again() {
    need!("cc");
    let sandbox = Sandbox::new();
    let program = program("sockets", Linkage::Dynamic).expect("there is a compiler");
    let mut job = sandbox.run(&[program.as_os_str(), "load".as_ref()]);
    job.wait_line("ready");
    let images: Vec<PathBuf> = (0..8).map(|_| job.checkpoint()).collect();
    sandbox.write("go", "");
    let end = job.finish();
    assert!(end.success() && end.stdout.ends_with("ok\n"), "{end:?}");
    for image in images {
        let end = sandbox.restart(&image).finish();
        assert!(end.success() && end.stdout.ends_with("ok\n"), "{end:?}");
    }
}

/// Messages of no bytes can be looked at once: a later checkpoint says so, and leaves them where they are.
#[test]
fn empty_twice() {
    need!("cc");
    let sandbox = Sandbox::new();
    let program = program("sockets", Linkage::Dynamic).expect("there is a compiler");
    let mut job = sandbox.run(&[program.as_os_str(), "empty".as_ref()]);
    job.wait_line("ready");
    job.checkpoint();
    let refused = job.try_checkpoint();
    assert!(
        !refused.success() && refused.stderr.contains("messages of no bytes"),
        "{refused:?}"
    );
    sandbox.write("go", "");
    let end = job.finish();
    assert!(end.success() && end.stdout.ends_with("ok\n"), "{end:?}");
}

/// Bytes out of band.
#[test]
fn urgent() {
    check_refused("urgent", &["urgent data"]);
}

/// A connection that nobody has accepted, with something in it.
#[test]
fn impatient() {
    check_refused("impatient", &["not accepted yet"]);
}

/// An image of a server, whose directory is what the server left behind.
fn server_image(sandbox: &Sandbox) -> PathBuf {
    let program = program("sockets", Linkage::Dynamic).expect("there is a compiler");
    let mut job = sandbox.run(&[program.as_os_str(), "listener".as_ref()]);
    job.wait_line("ready");
    let image = job.checkpoint();
    job.kill_all();
    image
}

fn serves_after_restart(sandbox: &Sandbox, image: &Path) {
    sandbox.write("go", "");
    let end = sandbox.restart(image).finish();
    assert!(end.success() && end.stdout.ends_with("ok\n"), "{end:?}");
    fs::remove_file(sandbox.work().join("go")).expect("it was there");
}

fn refuses_to_restart(sandbox: &Sandbox, image: &Path, words: &str) {
    let refused = sandbox.restart(image).finish();
    assert!(!refused.success(), "{refused:?}");
    let name = "directory/listener.sock";
    assert!(
        refused.stderr.contains(words) && refused.stderr.contains(name),
        "{refused:?}"
    );
    sandbox.wait_empty();
}

/// The file that a killed server leaves is replaced; a missing one is made.
#[test]
fn leftovers() {
    need!("cc");
    let sandbox = Sandbox::new();
    let image = server_image(&sandbox);
    let path = sandbox.work().join("directory/listener.sock");
    let left = fs::metadata(&path).expect("it stays");
    assert!(left.file_type().is_socket());
    serves_after_restart(&sandbox, &image);
    fs::remove_file(&path).expect("it was left again");
    serves_after_restart(&sandbox, &image);
}

/// What is in the way of a name stays untouched, and the restart says what it is.
#[test]
fn taken_names() {
    need!("cc");
    let sandbox = Sandbox::new();
    let image = server_image(&sandbox);
    let path = sandbox.work().join("directory/listener.sock");
    fs::remove_file(&path).expect("it was left");
    let other = UnixListener::bind(&path).expect("the name is free");
    refuses_to_restart(&sandbox, &image, "in use by a running program");
    drop(other);
    serves_after_restart(&sandbox, &image);
    fs::remove_file(&path).expect("it was left again");
    sandbox.write("directory/listener.sock", "precious");
    refuses_to_restart(&sandbox, &image, "something else has that name");
    assert_eq!(sandbox.read("directory/listener.sock"), b"precious");
    fs::remove_dir_all(sandbox.work().join("directory")).expect("removable");
    refuses_to_restart(&sandbox, &image, "its directory is missing");
}

/// Connections that lead out of the job: undisturbed in the program that runs on, reset in the one that is restarted.
#[test]
fn outside() {
    need!("cc");
    let sandbox = Sandbox::new();
    let program = program("sockets", Linkage::Dynamic).expect("there is a compiler");
    let at = |name: &str| sandbox.work().join(name);
    let open_to_all = |name: &str| {
        fs::set_permissions(at(name), Permissions::from_mode(0o777)).expect("settable");
    };
    let server = UnixListener::bind(at("outside.sock")).expect("the name is free");
    let datagrams = UnixDatagram::bind(at("outside.datagrams")).expect("the name is free");
    open_to_all("outside.sock");
    open_to_all("outside.datagrams");
    let mut job = sandbox.run(&[program.as_os_str(), "outside".as_ref()]);
    let (mut connection, _) = server.accept().expect("it connects");
    connection.write_all(b"greeting").expect("sent");
    job.wait_line("ready");
    let saved = job.try_checkpoint();
    assert!(
        saved.success() && saved.stderr.matches("out of the job").count() == 2,
        "{saved:?}"
    );
    sandbox.write("go", "");
    let end = job.finish();
    assert!(
        end.success() && end.stdout.ends_with("undisturbed\nok\n"),
        "{end:?}"
    );
    let mut text = [0; 32];
    let len = datagrams.recv(&mut text).expect("received");
    assert_eq!(&text[..len], b"still here");
    let end = sandbox.restart(&sandbox.newest_image()).finish();
    assert!(
        end.success() && end.stdout.ends_with("reset\nok\n"),
        "{end:?}"
    );
}
