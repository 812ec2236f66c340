//! Real programs: each started, checkpointed at three random moments, killed twice, restarted twice, and compared with an
//! undisturbed run.

use stasis_tests::{Compare, Linkage, Program, Sandbox, go_program, need, program, script};

const PYTHON: &str = "/usr/bin/python3";

/// Text with a vocabulary, repeated lines, and the same bytes at every call.
fn text(megabytes: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut out = Vec::with_capacity((megabytes << 20) + 64);
    while out.len() < megabytes << 20 {
        for _ in 0..6 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let word = state % 6000;
            out.extend_from_slice(
                format!("{:x}", word.wrapping_mul(word).wrapping_mul(2_654_435_761)).as_bytes(),
            );
            out.push(b' ');
        }
        out.push(b'\n');
    }
    out
}

fn python_with_threads() -> Program {
    Program::new([PYTHON, "threads.py"])
        .file("threads.py", script("threads.py"))
        .result("out.csv")
}

fn bash_with_jobs() -> Program {
    Program::new(["bash", "jobs.sh"])
        .file("jobs.sh", script("jobs.sh"))
        .result("log")
}

#[test]
fn c_with_64_threads() {
    need!("cc");
    let threads = program("threads", Linkage::Dynamic).expect("there is a compiler");
    Program::new([&threads.to_string_lossy(), "ring", "25000"]).cycle_as_user_and_root();
}

#[test]
fn static_c() {
    need!("cc");
    let Some(program) = program("static", Linkage::Static) else {
        stasis_tests::skip!("no static C library");
    };
    Program::new([program.to_string_lossy()])
        .result("static.txt")
        .cycle_as_user_and_root();
}

#[test]
fn openmp() {
    need!("cc");
    let program = program("openmp", Linkage::Dynamic).expect("there is a compiler");
    Program::new([&program.to_string_lossy(), "12000"])
        .env("OMP_NUM_THREADS", "4")
        .cycle_as_user_and_root();
}

#[test]
fn python() {
    need!("python3");
    python_with_threads().cycle_as_user_and_root();
}

#[test]
fn numpy() {
    need!("python3");
    let sandbox = Sandbox::new();
    if !sandbox.plain(&[PYTHON, "-c", "import numpy"]).success() {
        stasis_tests::skip!("numpy is not installed");
    }
    Program::new([PYTHON, "arrays.py"])
        .file("arrays.py", script("arrays.py"))
        .result("result.npy")
        .result("mapped.dat")
        .cycle_as_user_and_root();
}

#[test]
fn sqlite() {
    need!("python3");
    Program::new([PYTHON, "database.py"])
        .file("database.py", script("database.py"))
        .cycle_as_user_and_root();
}

#[test]
fn bash() {
    need!("bash");
    bash_with_jobs().cycle_as_user_and_root();
}

#[test]
fn make() {
    need!("make");
    need!("cc");
    const FILES: usize = 24;
    let names: Vec<_> = (0..FILES).map(|n| format!("part{n}")).collect();
    let objects = names
        .iter()
        .map(|name| format!("{name}.o "))
        .collect::<String>();
    // Through pipes, and by a link, which can be made twice: files that are closed, and removed or half written after a checkpoint, are beyond
    // any checkpoint.
    let makefile = format!(
        "result: program\n\t./program > result\nprogram: main.o {objects}\n\tcc -pipe -o $@ $^\n%.o: %.c\n\tcc -pipe -O2 -c -o $@.new $<\n\t@ln -f $@.new $@\n\t@echo compiled $< >> compiled\n"
    );
    let mut build = Program::new(["make", "-s", "-j3", "result"])
        .file("Makefile", makefile)
        .result("result")
        .compare(Compare::FilesOnly);
    for (n, name) in names.iter().enumerate() {
        let functions = (0..60)
            .map(|k| {
                format!(
                    "static double f{k}(const double *a, int n) {{ double s = {n}; for (int i = 0; i < n; i++) {{ s += a[i] * {k}.25 / (i + 1); if (s > 1e6) s *= 0.5; switch (i % 5) {{ case 0: s -= {k}; break; case 3: s += a[n - i - 1]; break; default: s *= 1.001; }} }} return s; }}\n"
                )
            })
            .collect::<String>();
        let calls = (0..60)
            .map(|k| format!(" + f{k}(a, n)"))
            .collect::<String>();
        build = build.file(
            &format!("{name}.c"),
            format!("{functions}double {name}(const double *a, int n) {{ return 0{calls}; }}\n"),
        );
    }
    let declared = names
        .iter()
        .map(|name| format!("double {name}(const double *, int);\n"))
        .collect::<String>();
    let printed = names
        .iter()
        .map(|name| format!("  printf(\"{name} %.10e\\n\", {name}(a, 100));\n"))
        .collect::<String>();
    build
        .file(
            "main.c",
            format!("#include <stdio.h>\n{declared}int main(void) {{\n  double a[100];\n  for (int i = 0; i < 100; i++) a[i] = i * 0.5;\n{printed}  return 0;\n}}\n"),
        )
        .cycle_as_user_and_root();
}

#[test]
fn perl() {
    need!("perl");
    Program::new(["perl", "count.pl"])
        .file("count.pl", script("count.pl"))
        .result("table.txt")
        .cycle_as_user_and_root();
}

#[test]
fn r() {
    need!("Rscript");
    Program::new(["Rscript", "--vanilla", "model.R"])
        .file("model.R", script("model.R"))
        .result("fits.txt")
        .cycle_as_user_and_root();
}

#[test]
fn octave() {
    need!("octave-cli");
    Program::new(["octave-cli", "--norc", "model.m"])
        .file("model.m", script("model.m"))
        .result("values.txt")
        .cycle_as_user_and_root();
}

#[test]
fn java() {
    need!("java");
    need!("javac");
    Program::new(["java", "-XX:+UseG1GC", "-Xmx256m", "Work.java", "200"])
        .file("Work.java", script("Work.java"))
        .result("java.txt")
        .cycle_as_user_and_root();
}

#[test]
fn node() {
    need!("node");
    Program::new(["node", "work.js"])
        .file("work.js", script("work.js"))
        .result("node.txt")
        .cycle_as_user_and_root();
}

#[test]
fn go() {
    need!("go");
    Program::new([go_program("work").to_string_lossy()])
        .result("go.txt")
        .cycle_as_user_and_root();
}

#[test]
fn gromacs() {
    need!("gmx");
    let sandbox = Sandbox::new();
    sandbox.write("argon.sh", script("argon.sh"));
    sandbox
        .plain(&["sh", "argon.sh"])
        .expect_success("preparing the input");
    Program::new(
        "gmx -quiet mdrun -s run.tpr -deffnm run -reprod -ntmpi 1 -ntomp 1 -pin off".split(' '),
    )
    .file("run.tpr", sandbox.read("run.tpr"))
    .result("run.gro")
    .result("run.edr")
    .result("run.xtc")
    .compare(Compare::FilesOnly)
    .cycle_as_user_and_root();
}

#[test]
fn lammps() {
    need!("lmp");
    // MPI keeps to itself: no sockets, no helper.
    Program::new(["lmp", "-in", "melt.lammps"])
        .file("melt.lammps", script("melt.lammps"))
        .env("OMPI_MCA_ess_singleton_isolated", "1")
        .env("OMPI_MCA_pml", "ob1")
        .env("OMPI_MCA_btl", "self")
        .result("dump.txt")
        .result("final.data")
        .compare(Compare::FilesOnly)
        .cycle_as_user_and_root();
}

#[test]
fn xz() {
    need!("xz");
    Program::new("xz -9 -T2 --block-size=3MiB -k text".split(' '))
        .file("text", text(12))
        .result("text.xz")
        .compare(Compare::FilesOnly)
        .cycle_as_user_and_root();
}

#[test]
fn sort() {
    need!("sort");
    Program::new("sort --parallel=2 -S 400M -k 2,3 -o sorted text".split(' '))
        .file("text", text(60))
        .env("LC_ALL", "C")
        .result("sorted")
        .compare(Compare::FilesOnly)
        .cycle_as_user_and_root();
}

#[test]
fn bzip2() {
    need!("bzip2");
    Program::new(["sh", "-c", "bzip2 -9 < text | tee text.bz2 | sha256sum"])
        .file("text", text(40))
        .result("text.bz2")
        .cycle_as_user_and_root();
}
