//! The binaries that the tests start: the `stasis` command and the C programs.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex, OnceLock};
use std::time::SystemTime;

/// How a C program is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Linkage {
    /// With the shared C library.
    Dynamic,
    /// Without any shared library.
    Static,
}

fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("tests/ lies in the workspace").into()
}

/// The profile's directory in the target directory: the test runs in `deps` below it.
fn output_directory() -> PathBuf {
    let exe = std::env::current_exe().expect("a running test has a path");
    let deps = exe.parent().expect("it lies in a directory");
    deps.parent().expect("target/PROFILE").into()
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|data| data.modified()).ok()
}

/// The newest modification below `dir` of what the command is built from.
fn newest_source(dir: &Path) -> Option<SystemTime> {
    let mut newest = None;
    for entry in fs::read_dir(dir).ok()?.flatten() {
        let path = entry.path();
        let time = if path.is_dir() {
            let name = entry.file_name();
            if name == "tests" || name == "benches" {
                continue;
            }
            newest_source(&path)
        } else {
            modified(&path)
        };
        newest = newest.max(time);
    }
    newest
}

/// The commands that take DMTCP's place.
const DMTCP: [&str; 7] = [
    "dmtcp_checkpoint",
    "dmtcp_command",
    "dmtcp_coordinator",
    "dmtcp_launch",
    "dmtcp_nocheckpoint",
    "dmtcp_relaunch",
    "dmtcp_restart",
];

/// The `stasis` command, beside which the `dmtcp_*` commands are, built if what lies in the target directory is missing or older
/// than its sources; at a path that every user can execute.
///
/// # Panics
/// When it does not build.
pub fn stasis_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("STASIS_TEST_BINARY") {
            return reachable(Path::new(&path));
        }
        let output = output_directory();
        let binary = output.join("stasis");
        let sources = newest_source(&workspace().join("crates"))
            .max(modified(&workspace().join("Cargo.lock")));
        let others = DMTCP.map(|name| output.join(name));
        if modified(&binary) <= sources || others.iter().any(|path| !path.exists()) {
            build_stasis(&output);
        }
        for path in others {
            reachable(&path);
        }
        reachable(&binary)
    })
}

fn build_stasis(output: &Path) {
    let profile = match output.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(other) => other,
    };
    let target = output.parent().expect("the target directory");
    let status = Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "--package",
            "stasis",
            "--package",
            "stasis-dmtcp",
            "--profile",
            profile,
        ])
        .arg("--target-dir")
        .arg(target)
        .current_dir(workspace())
        .status()
        .expect("starting cargo");
    assert!(status.success(), "the stasis command does not build");
}

/// `binary`, or a copy of it where another user cannot get at it.
fn reachable(binary: &Path) -> PathBuf {
    let open = binary
        .ancestors()
        .skip(1)
        .all(|dir| fs::metadata(dir).is_ok_and(|data| data.permissions().mode() & 0o001 != 0));
    if open {
        return binary.into();
    }
    let user = rustix::process::geteuid().as_raw();
    let dir = std::env::temp_dir().join(format!("stasis-tests-{user}"));
    fs::create_dir_all(&dir).expect("a directory for the binaries");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("opening it to all");
    let copy = dir.join(binary.file_name().expect("a binary has a name"));
    if modified(&copy) <= modified(binary) {
        let fresh = dir.join(format!(".{}", std::process::id()));
        fs::copy(binary, &fresh).expect("copying the binary");
        fs::rename(&fresh, &copy).expect("putting the copy into place");
    }
    copy
}

/// The compiled form of `programs/NAME.c`; `None` where there is no C compiler (or no static C library).
///
/// # Panics
/// When the program does not compile.
#[must_use]
pub fn program(name: &str, linkage: Linkage) -> Option<PathBuf> {
    type Built = HashMap<(String, Linkage), Option<PathBuf>>;
    static BUILT: LazyLock<Mutex<Built>> = LazyLock::new(Mutex::default);
    let mut built = match BUILT.lock() {
        Ok(guard) => guard,
        Err(poisoned) => poisoned.into_inner(),
    };
    built
        .entry((name.into(), linkage))
        .or_insert_with(|| compile(name, linkage))
        .clone()
}

fn compile(name: &str, linkage: Linkage) -> Option<PathBuf> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs");
    let source = sources.join(format!("{name}.c"));
    let header = sources.join("check.h");
    let dir = output_directory().join("stasis-programs");
    fs::create_dir_all(&dir).expect("a directory for the programs");
    let suffix = match linkage {
        Linkage::Dynamic => "",
        Linkage::Static => "-static",
    };
    let target = dir.join(format!("{name}{suffix}"));
    if modified(&target) <= modified(&source).max(modified(&header)) {
        let fresh = dir.join(format!(".{name}{suffix}.{}", std::process::id()));
        let mut compiler = Command::new("cc");
        compiler.args(["-std=gnu17", "-O1", "-g", "-Wall", "-Wextra", "-pthread"]);
        if name == "openmp" {
            compiler.arg("-fopenmp");
        }
        if linkage == Linkage::Static {
            compiler.arg("-static");
        }
        let result = compiler
            .arg("-o")
            .arg(&fresh)
            .arg(&source)
            .arg("-lm")
            .output();
        match result {
            Ok(output) if output.status.success() => {}
            Ok(output) => panic!(
                "{} does not compile:\n{}",
                source.display(),
                String::from_utf8_lossy(&output.stderr)
            ),
            Err(_) => return None,
        }
        fs::rename(&fresh, &target).expect("putting the program into place");
    }
    Some(reachable(&target))
}

/// The compiled form of `programs/NAME.go`.
///
/// # Panics
/// When it does not compile.
#[must_use]
pub fn go_program(name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("programs")
        .join(format!("{name}.go"));
    let dir = output_directory().join("stasis-programs");
    fs::create_dir_all(&dir).expect("a directory for the programs");
    let target = dir.join(format!("{name}-go"));
    if modified(&target) <= modified(&source) {
        let output = Command::new("go")
            .args(["build", "-o"])
            .args([&target, &source])
            .env("CGO_ENABLED", "0")
            .env("GO111MODULE", "off")
            .env("GOCACHE", dir.join("go-cache"))
            .output()
            .expect("starting the Go compiler");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    reachable(&target)
}

/// The text of `programs/NAME`.
///
/// # Panics
/// When there is no such file.
#[must_use]
pub fn script(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("programs")
        .join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
