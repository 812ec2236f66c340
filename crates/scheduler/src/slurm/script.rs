//! What a job script asks Slurm for in its `#SBATCH` lines.

use std::time::Duration;

/// The signal that a script asks for with `--signal=[R][B]:SIGNAL[@SECONDS]` (`sbatch(1)`), and how long before the end. Names
/// are given without `SIG`; without a time it is 60 s.
#[must_use]
pub fn warning_signal(script: &str) -> Option<(String, Duration)> {
    // Slurm stops reading at the first command.
    let lines = script
        .lines()
        .take_while(|line| line.is_empty() || line.starts_with('#'));
    let options = lines.filter_map(|line| line.strip_prefix("#SBATCH"));
    let mut found = None;
    for line in options {
        let line = line.split(" #").next().unwrap_or(line);
        let mut words = line.split_ascii_whitespace();
        while let Some(word) = words.next() {
            let value = match word.strip_prefix("--signal") {
                Some("") => words.next(),
                Some(rest) => rest.strip_prefix('='),
                None => continue,
            };
            found = value.and_then(parse).or(found);
        }
    }
    found
}

fn parse(value: &str) -> Option<(String, Duration)> {
    let value = value.trim_matches(['"', '\'']);
    let value = value.split_once(':').map_or(value, |(_, signal)| signal);
    let (signal, seconds) = match value.split_once('@') {
        Some((signal, seconds)) => (signal, seconds.parse().ok()?),
        None => (value, 60),
    };
    let upper = signal.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    (!name.is_empty()).then(|| (name.to_owned(), Duration::from_secs(seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signal(line: &str) -> Option<(String, u64)> {
        let script = format!("#!/bin/bash\n#SBATCH -J x\n{line}\n\nsrun x\n#SBATCH --signal=INT\n");
        warning_signal(&script).map(|(name, before)| (name, before.as_secs()))
    }

    #[test]
    fn the_forms_of_the_manual_are_understood() {
        let usr1 = |seconds| Some(("USR1".to_owned(), seconds));
        assert_eq!(signal("#SBATCH --signal=B:USR1@120"), usr1(120));
        assert_eq!(
            signal("#SBATCH --time=1:00 --signal=USR1@120 --requeue"),
            usr1(120)
        );
        assert_eq!(signal("#SBATCH --signal B:SIGUSR1"), usr1(60));
        assert_eq!(signal("#SBATCH --signal=RB:usr1@5"), usr1(5));
        assert_eq!(
            signal("#SBATCH --signal=\"B:12@300\""),
            Some(("12".to_owned(), 300))
        );
        assert_eq!(signal("##SBATCH --signal=B:USR1@120"), None);
        assert_eq!(signal("#SBATCH --signal=@x"), None);
        assert_eq!(
            signal("# nothing"),
            None,
            "lines after the first command do not count"
        );
    }
}
