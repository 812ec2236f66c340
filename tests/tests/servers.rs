//! Servers of real life, with their clients in the job or outside of it: each checkpointed under load, killed, restarted, and
//! checked by itself.

use stasis_tests::{Finished, Program, Running, Sandbox, need, script};
use std::path::Path;

const PYTHON: &str = "/usr/bin/python3";

#[test]
fn memcached() {
    need!("memcached");
    Program::new([PYTHON, "memcached.py", "2500"])
        .file("memcached.py", script("memcached.py"))
        .cycle(Sandbox::new);
}

/// Both ends of rsync(1), which talk through socket pairs, with a program between them that is no shell of another host.
#[test]
fn rsync() {
    need!("rsync");
    let make = "import random, os\nr = random.Random(7)\nos.mkdir('from'); os.mkdir('to')\n\
                for n in range(60):\n b = bytearray(r.randbytes(300000 + 1000 * n))\n open(f'from/{n}', 'wb').write(b)\n \
                b[1000:2000] = r.randbytes(900 + 3 * n)\n open(f'to/{n}', 'wb').write(b)\n";
    let line = "python3 make.py && rsync -az --checksum --no-whole-file -e ./shell from/ somewhere:$PWD/to && diff -r -x '.*' -x '*.stasis-*' from to && \
                echo all files are the same";
    Program::new(["sh", "-c", &line.replace("python3", PYTHON)])
        .file("make.py", make)
        .executable(
            "shell",
            "#!/bin/sh\n# Where rsync would start ssh.\nshift\nexec \"$@\"\n",
        )
        .cycle(Sandbox::new);
}

/// A kernel of Jupyter and its client: ZeroMQ over TCP.
#[test]
fn jupyter_kernel() {
    need!("python3");
    let modules = "import ipykernel, jupyter_client";
    if !Sandbox::new().plain(&[PYTHON, "-c", modules]).success() {
        stasis_tests::skip!("ipykernel is not installed");
    }
    Program::new([PYTHON, "kernel.py", "60"])
        .file("kernel.py", script("kernel.py"))
        .cycle(Sandbox::new);
}

/// Where the distribution puts the programs of PostgreSQL.
fn postgresql_programs() -> Option<String> {
    let mut versions: Vec<_> = std::fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .filter(|programs| programs.join("initdb").exists())
        .collect();
    versions.sort();
    Some(versions.pop()?.to_string_lossy().into_owned())
}

/// The segment that a PostgreSQL leaves behind when it is killed: it knows by that whether another one uses its directory.
struct Interlock(String);

impl Interlock {
    fn of(data: &Path) -> Option<Interlock> {
        let text = std::fs::read_to_string(data.join("postmaster.pid")).ok()?;
        let id = text.lines().nth(6)?.split_ascii_whitespace().nth(1)?;
        Some(Interlock(id.to_owned()))
    }
}

impl Drop for Interlock {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ipcrm")
            .args(["-m", &self.0])
            .status();
    }
}

/// A database with clients at work, whose sums agree in the end. What was made of it before the checkpoint is on the disk or in
/// memory; what was written after it is taken back.
#[test]
fn postgresql() {
    let Some(programs) = postgresql_programs() else {
        stasis_tests::skip!("PostgreSQL is not installed");
    };
    let start = format!(
        "{programs}/initdb -D data -N -A trust -U someone --no-locale -E UTF8 > initdb.log && exec {PYTHON} postgresql.py {programs} "
    );
    let sandbox = Sandbox::new();
    sandbox.write("postgresql.py", script("postgresql.py"));
    let prepared = sandbox.plain(&["sh", "-c", &format!("{start} 0")]);
    prepared.expect_success("making a database");
    let mut job = sandbox.run(&[PYTHON, "postgresql.py", &programs, "4000"]);
    job.wait_line("at work");
    let _removed = Interlock::of(&sandbox.work().join("data"));
    let first = job.checkpoint();
    let image = job.checkpoint();
    assert_ne!(first, image);
    job.kill_all();
    let mut job = sandbox.restart(&image);
    job.wait_listed();
    let second = job.checkpoint();
    job.kill_all();
    let end = sandbox.restart(&second).finish();
    assert!(end.success(), "{end:?}");
    assert!(end.stdout.contains("agree: t|t|t|16000\n"), "{end:?}");
    assert!(end.stdout.ends_with("ended with 0\n"), "{end:?}");
}

fn free_port() -> u16 {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    free.local_addr().expect("bound").port()
}

/// As many requests as fit into a second or two, from outside.
fn requests(sandbox: &Sandbox, port: u16, keep: bool) -> Running<'_> {
    let mut command = sandbox.command("ab");
    command.args(["-n", "20000", "-c", "20"]);
    if keep {
        command.arg("-k");
    }
    command.arg(format!("http://127.0.0.1:{port}/page"));
    sandbox.start(command)
}

fn all_answered(end: &Finished) {
    let line = |start: &str| end.stdout.lines().find(|line| line.starts_with(start));
    let complete = line("Complete requests:").is_some_and(|line| line.ends_with(" 20000"));
    let failed = line("Failed requests:").is_some_and(|line| line.ends_with(" 0"));
    let others = line("Non-2xx responses:").is_none();
    assert!(end.success() && complete && failed && others, "{end:?}");
}

/// nginx with workers; its clients are outside: a checkpoint disturbs none of their requests, and a restarted server answers again.
#[test]
fn nginx() {
    need!("nginx");
    need!("ab");
    let sandbox = Sandbox::new();
    let port = free_port();
    let here = sandbox.work();
    let path = |name: &str| here.join(name).display().to_string();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!(" {kind}_temp_path {};\n", path(kind)))
        .concat();
    let configuration = format!(
        "daemon off;\nworker_processes 2;\npid {};\nerror_log {};\nevents {{ worker_connections 200; }}\nhttp {{\n{temporary} \
         access_log {};\n keepalive_requests 100000;\n server {{ listen 127.0.0.1:{port}; root {}; }}\n}}\n",
        path("pid"),
        path("errors"),
        path("requests"),
        here.display()
    );
    sandbox.write("nginx.conf", configuration);
    sandbox.write("page", "a page\n".repeat(500));
    let file = path("nginx.conf");
    let mut job = sandbox.run(&["nginx", "-e", "errors", "-p", &path(""), "-c", &file]);
    let listens = || std::net::TcpStream::connect(("127.0.0.1", port)).ok();
    drop(stasis_tests::wait_until("the server listens", listens));
    let mut image = None;
    for round in 0..3 {
        for keep in [true, false] {
            let clients = requests(&sandbox, port, keep);
            // Under way: the server writes down whom it has answered.
            let log = |path: &Path| std::fs::metadata(path).map_or(0, |data| data.len());
            let requests = here.join("requests");
            let before = log(&requests);
            stasis_tests::wait_until("requests", || (log(&requests) > before).then_some(()));
            image = Some(job.checkpoint());
            all_answered(&clients.finish());
        }
        job.kill_all();
        if round == 2 {
            break;
        }
        job = sandbox.restart(image.as_ref().expect("there is one"));
        job.wait_listed();
    }
}
