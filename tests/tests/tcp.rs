//! TCP sockets.

use stasis_tests::{Linkage, Sandbox, need, program, verify_after_restart, verify_or_refused};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;

macro_rules! cases {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            need!("cc");
            verify_after_restart(&Sandbox::new(), &[tcp().as_os_str(), stringify!($name).as_ref()]);
        }
    )*};
}

cases! { pairs closed halves full options servers connecting tree watched load soon }

fn tcp() -> PathBuf {
    program("tcp", Linkage::Dynamic).expect("there is a compiler")
}

fn check_refused(case: &str, words: &[&str]) {
    need!("cc");
    verify_or_refused(&Sandbox::new(), &[tcp().as_os_str(), case.as_ref()], words);
}

/// Bytes out of band.
#[test]
fn urgent() {
    check_refused("urgent", &["urgent data", "(socket:["]);
}

/// A connection that nobody accepts, with something in it.
#[test]
fn impatient() {
    check_refused("impatient", &["not accepted yet", "try again"]);
}

/// Many checkpoints of connections at full rate disturb nothing, and each of them can be restarted.
#[test]
fn load_again_and_again() {
    need!("cc");
    let sandbox = Sandbox::new();
    let mut job = sandbox.run(&[tcp().as_os_str(), "load".as_ref()]);
    job.wait_line("ready");
    let images: Vec<PathBuf> = (0..6).map(|_| job.checkpoint()).collect();
    sandbox.write("go", "");
    let end = job.finish();
    assert!(end.success() && end.stdout.ends_with("ok\n"), "{end:?}");
    for image in images {
        let end = sandbox.restart(&image).finish();
        assert!(end.success() && end.stdout.ends_with("ok\n"), "{end:?}");
    }
}

/// Many connections and as many entries of an epoll set.
#[test]
fn many() {
    need!("cc");
    let program = tcp();
    let argv = [program.as_os_str(), "many".as_ref(), "400".as_ref()];
    verify_after_restart(&Sandbox::new(), &argv);
}

/// The port of a server that listens, and an image of it. The server is gone.
fn server_image(sandbox: &Sandbox) -> (u16, PathBuf) {
    let mut job = sandbox.run(&[tcp().as_os_str(), "listener".as_ref(), "0".as_ref()]);
    job.wait_line("ready");
    let port = job.stdout().lines().find_map(|line| {
        let port = line.strip_prefix("port ")?;
        port.parse().ok()
    });
    let image = job.checkpoint();
    job.kill_all();
    (port.expect("it says its port"), image)
}

/// A port that somebody has taken is told before anything is started.
#[test]
fn taken_port() {
    need!("cc");
    let sandbox = Sandbox::new();
    let (port, image) = server_image(&sandbox);
    let other = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
    let refused = sandbox.restart(&image).finish();
    let words = format!("the address 127.0.0.1:{port} (TCP): a running program has it");
    assert!(
        !refused.success() && refused.stderr.contains(&words),
        "{refused:?}"
    );
    sandbox.wait_empty();
    drop(other);
    sandbox.write("go", "");
    let end = sandbox.restart(&image).finish();
    assert!(end.success() && end.stdout.ends_with("ok\n"), "{end:?}");
}

/// A server that is restarted has its port, and lets new clients in.
#[test]
fn new_clients() {
    need!("cc");
    let sandbox = Sandbox::new();
    let (port, image) = server_image(&sandbox);
    let mut job = sandbox.restart(&image);
    job.wait_listed();
    // It has room for this one, and would answer the next.
    TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    job.kill_all();
}

/// A connection that leads out of the job: undisturbed in the program that runs on, reset in the one that is restarted.
fn check_outside(case: &str, greeting: &[u8]) {
    need!("cc");
    let sandbox = Sandbox::new();
    let server = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = server.local_addr().expect("bound").port().to_string();
    let mut job = sandbox.run(&[tcp().as_os_str(), case.as_ref(), port.as_ref()]);
    let (mut connection, _) = server.accept().expect("it connects");
    connection.write_all(b"hello").expect("sent");
    connection.write_all(greeting).expect("sent");
    job.wait_line("ready");
    let saved = job.try_checkpoint();
    let words = format!("is a connection out of the job to 127.0.0.1:{port}");
    assert!(
        saved.success() && saved.stderr.contains(&words),
        "{saved:?}"
    );
    sandbox.write("go", "");
    connection.write_all(b"indeed").expect("sent");
    let end = job.finish();
    let expected = "undisturbed indeed\nok\n";
    assert!(end.success() && end.stdout.ends_with(expected), "{end:?}");
    let mut text = String::new();
    connection.read_to_string(&mut text).expect("readable");
    assert_eq!(text, "still here");
    let end = sandbox.restart(&sandbox.newest_image()).finish();
    assert!(
        end.success() && end.stdout.ends_with("reset\nok\n"),
        "{end:?}"
    );
}

#[test]
fn outside() {
    check_outside("outside", b"greeting");
}

/// One who hears of changes alone hears of the reset.
#[test]
fn outside_edge() {
    check_outside("outside-edge", b"");
}
