//! Real programs that talk over TCP: each checkpointed at random moments under load, killed, restarted, and checked by
//! itself and against an undisturbed run.

use stasis_tests::{Program, Sandbox, need, script};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

const PYTHON: &str = "/usr/bin/python3";

/// A server and 50 connections at full rate.
#[test]
fn asyncio() {
    need!("python3");
    Program::new([PYTHON, "echo.py", "100"])
        .file("echo.py", script("echo.py"))
        .cycle(Sandbox::new);
}

#[test]
fn redis() {
    need!("redis-server");
    need!("redis-benchmark");
    Program::new([PYTHON, "redis.py", "10000", "60000"])
        .file("redis.py", script("redis.py"))
        .cycle(Sandbox::new);
}

#[test]
fn managers() {
    need!("python3");
    Program::new([PYTHON, "manager.py", "4000"])
        .file("manager.py", script("manager.py"))
        .cycle(Sandbox::new);
}

#[test]
fn r_cluster() {
    need!("Rscript");
    Program::new(["Rscript", "--vanilla", "cluster.R"])
        .file("cluster.R", script("cluster.R"))
        .cycle(Sandbox::new);
}

#[test]
fn java_channels() {
    need!("java");
    need!("javac");
    Program::new(["java", "-Xmx256m", "Channels.java", "20000"])
        .file("Channels.java", script("Channels.java"))
        .cycle(Sandbox::new);
}

#[test]
fn node() {
    need!("node");
    Program::new(["node", "lines.js", "2000"])
        .file("lines.js", script("lines.js"))
        .cycle(Sandbox::new);
}

fn ask(client: &mut BufReader<TcpStream>, command: &str) -> String {
    let mut reply = String::new();
    let sent = client
        .get_mut()
        .write_all(format!("{command}\r\n").as_bytes());
    sent.expect("the server listens");
    client.read_line(&mut reply).expect("the server answers");
    reply
}

fn client(port: u16) -> BufReader<TcpStream> {
    let connect = || TcpStream::connect(("127.0.0.1", port)).ok();
    BufReader::new(stasis_tests::wait_until("the server listens", connect))
}

/// A server whose clients are outside: they are reset, and connect again to the restarted server, which has all that it had.
#[test]
fn redis_with_clients_outside() {
    need!("redis-server");
    let sandbox = Sandbox::new();
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = free.local_addr().expect("bound").port();
    drop(free);
    let text = port.to_string();
    let mut job = sandbox.run(&[
        "redis-server",
        "--port",
        &text,
        "--bind",
        "127.0.0.1",
        "--save",
        "",
    ]);
    let mut one = client(port);
    assert_eq!(ask(&mut one, "SET key value"), "+OK\r\n");
    let saved = job.try_checkpoint();
    let words = "is a connection out of the job to 127.0.0.1:";
    assert!(saved.success() && saved.stderr.contains(words), "{saved:?}");
    assert_eq!(ask(&mut one, "INCR after"), ":1\r\n", "undisturbed");
    job.kill_all();
    let mut job = sandbox.restart(&sandbox.newest_image());
    job.wait_listed();
    let mut again = client(port);
    assert_eq!(ask(&mut again, "GET key"), "$5\r\n");
    let mut value = String::new();
    again.read_line(&mut value).expect("the server answers");
    assert_eq!(value, "value\r\n");
    assert_eq!(
        ask(&mut again, "INCR after"),
        ":1\r\n",
        "that was after the checkpoint"
    );
    job.kill_all();
}
