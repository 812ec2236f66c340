//! Programs that share work between processes: each checkpointed at random moments, killed, restarted, and compared with
//! an undisturbed run.

use stasis_tests::{Program, Sandbox, need, script};

const PYTHON: &str = "/usr/bin/python3";

/// A pool, queues, shared memory and a manager.
fn pool(start: &str, rounds: &str) {
    need!("python3");
    Program::new([PYTHON, "pool.py", rounds, start])
        .file("pool.py", script("pool.py"))
        .cycle(Sandbox::new);
}

#[test]
fn pool_of_forked_processes() {
    pool("fork", "30");
}

#[test]
fn pool_of_spawned_processes() {
    pool("spawn", "25");
}

#[test]
fn pool_of_a_fork_server() {
    pool("forkserver", "25");
}

#[test]
fn joblib() {
    need!("python3");
    if !Sandbox::new()
        .plain(&[PYTHON, "-c", "import joblib, numpy"])
        .success()
    {
        stasis_tests::skip!("joblib is not installed");
    }
    Program::new([PYTHON, "joblib_tasks.py", "12"])
        .file("joblib_tasks.py", script("joblib_tasks.py"))
        .cycle(Sandbox::new);
}

#[test]
fn node_cluster() {
    need!("node");
    // Node.js otherwise keeps an io_uring.
    Program::new(["node", "cluster.js", "800"])
        .file("cluster.js", script("cluster.js"))
        .env("UV_USE_IO_URING", "0")
        .cycle(Sandbox::new);
}

/// Open MPI's launcher, its daemon and two ranks, which talk over shared memory, and with the launcher over sockets.
#[test]
fn mpi() {
    need!("mpirun");
    need!("mpicc");
    let sandbox = Sandbox::new();
    sandbox.write("ring_mpi.c", script("ring_mpi.c"));
    let compile = ["mpicc", "-O1", "-o", "ring", "ring_mpi.c"];
    sandbox.plain(&compile).expect_success("compiling");
    let words = "mpirun --oversubscribe --mca pml ob1 --mca btl self,vader -n 2 ./ring 6000";
    Program::new(words.split(' '))
        .executable("ring", sandbox.read("ring"))
        .cycle(Sandbox::new);
}
