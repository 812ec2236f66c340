//! `dmtcp_restart_script.sh`: continues what the last checkpoint saved.
//!
//! It finds the images where they were written or, when they were moved or are seen elsewhere by another host, beside itself.

use stasis_coordinator::machine::Set;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

/// The name that stays the same.
const LINK: &str = "dmtcp_restart_script.sh";

/// What a script is made of.
#[derive(Clone, Debug)]
pub struct Script<'a> {
    /// The checkpoint.
    pub set: &'a Set,
    /// The coordinator's port.
    pub port: u16,
    /// The command `dmtcp_restart`, where it is installed.
    pub restart: &'a Path,
}

impl Script<'_> {
    /// The directories that the script is written to: the coordinator's own, and that of the images.
    #[must_use]
    pub fn directories(&self, own: &Path) -> Vec<PathBuf> {
        let mut directories = vec![own.to_owned()];
        let beside = self
            .set
            .images
            .first()
            .and_then(|(_, image)| image.parent());
        if let Some(beside) = beside
            && fs::canonicalize(beside).ok() != fs::canonicalize(own).ok()
        {
            directories.push(beside.to_owned());
        }
        directories
    }

    /// Writes the script into `directory`, each of its names in one step.
    ///
    /// # Errors
    /// The kernel's.
    pub fn write(&self, directory: &Path) -> io::Result<PathBuf> {
        let name = format!(
            "dmtcp_restart_script_{}{}.sh",
            self.set.computation,
            self.suffix()
        );
        let path = directory.join(&name);
        let unnamed = directory.join(format!(".{name}.{}", std::process::id()));
        let _ = fs::remove_file(&unnamed);
        let written = File::options()
            .write(true)
            .create_new(true)
            .mode(0o744)
            .open(&unnamed)
            .and_then(|mut file| file.write_all(self.text().as_bytes()))
            .and_then(|()| fs::rename(&unnamed, &path));
        let linked = written.and_then(|()| {
            let link = directory.join(format!(".{LINK}.{}", std::process::id()));
            let _ = fs::remove_file(&link);
            symlink(&name, &link).and_then(|()| fs::rename(&link, directory.join(LINK)))
        });
        if linked.is_err() {
            let _ = fs::remove_file(&unnamed);
        }
        linked.map(|()| path)
    }

    /// Where each checkpoint has a directory, each has a script.
    fn suffix(&self) -> String {
        let single = format!("ckpt_{}_{:05}", self.set.computation, self.set.generation);
        let own = self
            .set
            .images
            .first()
            .and_then(|(_, image)| image.parent()?.file_name());
        if own == Some(single.as_ref()) {
            format!("_{:05}", self.set.generation)
        } else {
            String::new()
        }
    }

    /// The script.
    #[must_use]
    pub fn text(&self) -> String {
        let images: Vec<String> = self
            .set
            .images
            .iter()
            .map(|(_, image)| format!("  {}", quoted(&image.to_string_lossy())))
            .collect();
        let now = jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S").to_string();
        TEMPLATE
            .replace("@TIMESTAMP@", &now)
            .replace("@PORT@", &self.port.to_string())
            .replace("@INTERVAL@", &self.set.interval.to_string())
            .replace("@RESTART@", &quoted(&self.restart.to_string_lossy()))
            .replace("@IMAGES@", &images.join("\n"))
    }
}

/// One word of a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

const TEMPLATE: &str = r#"#!/bin/bash
# Continues what was saved at the time below. Without arguments it does so from the images named here or, where these are
# not there (the directory was moved, this is another host), from those of the same names beside this script.

ckpt_timestamp="@TIMESTAMP@"

# Another host here, or with -h, joins a coordinator there; on this host one is started where none runs.
coord_host=localhost
coord_port=@PORT@
checkpoint_interval=@INTERVAL@
dmt_rstr_cmd=@RESTART@
given_ckpt_files=(
@IMAGES@
)

usage() {
    cat <<END
Usage: $0 [OPTIONS]
  -h, --coord-host, --host HOST  host of the coordinator (DMTCP_COORD_HOST)
  -p, --coord-port, --port PORT  its port (DMTCP_COORD_PORT)
  --coord-logfile FILE           its log, where one is started
  --hostfile FILE                accepted; all programs are continued here
  -d, --restartdir DIR           directory of the images
  -c, --ckptdir DIR              directory for new images
  -t, --tmpdir DIR               accepted; nothing is put there
  -i, --interval SECONDS         a checkpoint every SECONDS (DMTCP_CHECKPOINT_INTERVAL)
  --no-strict-checking           accepted
  --help
END
}

restart_dir=${DMTCP_RESTART_DIR-}
options=()
host=${DMTCP_COORD_HOST-}
port=${DMTCP_COORD_PORT-}
interval=${DMTCP_CHECKPOINT_INTERVAL-$checkpoint_interval}
while [ $# -gt 0 ]; do
    case $1 in
        --help)
            usage
            exit 0
            ;;
        --no-strict-checking) ;;
        -h | --coord-host | --host | -p | --coord-port | --port | --coord-logfile | --hostfile | -d | --restartdir | \
            -c | --ckptdir | -t | --tmpdir | -i | --interval)
            if [ $# -lt 2 ]; then
                echo "$0: $1 needs a value" >&2
                exit 1
            fi
            case $1 in
                -h | --coord-host | --host) host=$2 ;;
                -p | --coord-port | --port) port=$2 ;;
                --coord-logfile) options+=(--coord-logfile "$2") ;;
                -d | --restartdir) restart_dir=$2 ;;
                -c | --ckptdir) options+=(--ckptdir "$2") ;;
                -i | --interval) interval=$2 ;;
            esac
            shift
            ;;
        *)
            echo "$0: unknown option: $1" >&2
            usage >&2
            exit 1
            ;;
    esac
    shift
done

options+=(--coord-host "${host:-$coord_host}" --coord-port "${port:-$coord_port}" --interval "$interval")

own_dir=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
images=()
for image in "${given_ckpt_files[@]}"; do
    name=$(basename "$image")
    if [ -n "$restart_dir" ]; then
        image=$restart_dir/$name
    elif [ ! -e "$image" ]; then
        single=$(basename "$(dirname "$image")")
        if [ -e "$own_dir/$single/$name" ]; then
            image=$own_dir/$single/$name
        else
            image=$own_dir/$name
        fi
    fi
    if [ ! -e "$image" ]; then
        echo "$0: $name is neither where it was written nor in ${restart_dir:-$own_dir}; say where with --restartdir" >&2
        exit 1
    fi
    images+=("$image")
done

if [ ! -x "$dmt_rstr_cmd" ]; then
    dmt_rstr_cmd=dmtcp_restart
fi
exec "$dmt_rstr_cmd" "${options[@]}" "${images[@]}"
"#;

#[cfg(test)]
mod tests {
    use super::*;

    fn set(images: &[&str]) -> Set {
        Set {
            computation: "7b1f".into(),
            generation: 3,
            interval: 60,
            images: images
                .iter()
                .map(|image| ("h".to_owned(), PathBuf::from(image)))
                .collect(),
        }
    }

    #[test]
    fn a_script_names_what_it_was_made_for() {
        let set = set(&["/a b/ckpt_x.dmtcp", "/c/it's.dmtcp"]);
        let script = Script {
            set: &set,
            port: 7779,
            restart: Path::new("/opt/bin/dmtcp_restart"),
        };
        let text = script.text();
        for line in [
            "coord_host=localhost",
            "coord_port=7779",
            "checkpoint_interval=60",
            "dmt_rstr_cmd=/opt/bin/dmtcp_restart",
            "  '/a b/ckpt_x.dmtcp'",
            r"  '/c/it'\''s.dmtcp'",
        ] {
            assert!(text.lines().any(|there| there == line), "{line}\n{text}");
        }
    }

    #[test]
    fn it_is_written_beside_its_link() {
        let directory = tempfile::tempdir().unwrap();
        let write = |images: &[&str]| {
            let set = set(images);
            let script = Script {
                set: &set,
                port: 1,
                restart: Path::new("r"),
            };
            script.write(directory.path()).unwrap()
        };
        let path = write(&["/a/ckpt_x.dmtcp"]);
        assert_eq!(path.file_name().unwrap(), "dmtcp_restart_script_7b1f.sh");
        let single = write(&["/a/ckpt_7b1f_00003/ckpt_x.dmtcp"]);
        assert_eq!(
            single.file_name().unwrap(),
            "dmtcp_restart_script_7b1f_00003.sh"
        );
        let link = fs::read_link(directory.path().join(LINK)).unwrap();
        assert_eq!(Path::new(&link), single.file_name().unwrap());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
    }
}
