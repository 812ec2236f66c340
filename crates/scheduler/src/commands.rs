//! Asking a batch system by its own commands.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Runs commands of a batch system.
pub trait Commands {
    /// Runs one to its end and gives what it wrote to standard output.
    ///
    /// # Errors
    /// [`CommandError`] when it could not be started, took too long, or did not end with status 0.
    fn run(&self, program: &str, arguments: &[&str]) -> Result<String, CommandError>;
}

/// Why a command gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{command}: {reason}")]
pub struct CommandError {
    /// The command line.
    pub command: String,
    /// What it said, or what the kernel said of it.
    pub reason: String,
}

/// The commands that are installed on this host.
#[derive(Clone, Copy, Debug)]
pub struct Installed {
    /// For how long one may take: a controller that does not answer must not hold a job up.
    pub patience: Duration,
}

impl Default for Installed {
    fn default() -> Installed {
        Installed {
            patience: Duration::from_secs(10),
        }
    }
}

impl Commands for Installed {
    fn run(&self, program: &str, arguments: &[&str]) -> Result<String, CommandError> {
        let failed = |reason: String| CommandError {
            command: format!("{program} {}", arguments.join(" ")),
            reason,
        };
        let child = Command::new(program)
            .args(arguments)
            // Times as they are parsed here, whatever the user likes to see.
            .env("SLURM_TIME_FORMAT", "standard")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        finish(child, self.patience).map_err(failed)
    }
}

/// Waits for the end; what is written meanwhile is read by two threads, as a pipe holds only so much.
fn finish(mut child: Child, patience: Duration) -> Result<String, String> {
    let collect = |stream: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            if let Some(mut stream) = stream {
                // What could not be read is missing in a message.
                let _ = stream.read_to_end(&mut text);
            }
            String::from_utf8_lossy(&text).into_owned()
        })
    };
    let out = collect(child.stdout.take().map(|stream| Box::new(stream) as _));
    let err = collect(child.stderr.take().map(|stream| Box::new(stream) as _));
    let since = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if since.elapsed() < patience => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("no answer within {} s", patience.as_secs()));
            }
            Err(error) => return Err(error.to_string()),
        }
    };
    let (out, err) = (out.join(), err.join());
    if status.success() {
        return Ok(out.unwrap_or_default());
    }
    let said = err.unwrap_or_default().trim().to_owned();
    Err(if said.is_empty() {
        status.to_string()
    } else {
        said
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_failures_and_silence_are_told_apart() {
        let commands = Installed {
            patience: Duration::from_millis(300),
        };
        let sh = |script: &str| commands.run("sh", &["-c", script]);
        assert_eq!(sh("echo yes").unwrap(), "yes\n");
        assert_eq!(sh("echo no >&2; exit 3").unwrap_err().reason, "no");
        assert!(
            sh("exec sleep 60")
                .unwrap_err()
                .reason
                .contains("no answer")
        );
        let missing = commands.run("no-such-command-of-a-scheduler", &[]);
        assert!(missing.unwrap_err().reason.contains("No such file"));
    }
}
