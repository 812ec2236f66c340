//! What triggers checkpoints, what becomes of them, and how a job continues.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Ended, Place, Running, kill, lives, wait_until};
use std::fs;
use std::path::PathBuf;

/// Counts into a file until `go` is there, then ends with status 7, or that of a file `status`.
const COUNT: &str = "echo $$ > pid; n=0; while [ ! -e go ]; do n=$((n+1)); echo $n > count; sleep 0.02; done; \
                     echo $n > end; exit $(cat status 2>/dev/null || echo 7)";

impl Place {
    /// `stasis run OPTIONS -- sh -c SCRIPT` without whatever descriptors the test was started with.
    fn job(&self, options: &[&str], script: &str) -> Running {
        let mut arguments = vec!["run"];
        arguments.extend(options);
        arguments.extend(["--", "sh", "-c", script]);
        self.hold(&arguments)
    }
    fn hold(&self, arguments: &[&str]) -> Running {
        Running::new(self.clean(arguments).spawn().expect("stasis starts"))
    }
    fn done(&self, arguments: &[&str]) -> Ended {
        Ended::from(self.output(arguments))
    }
    fn images(&self) -> Vec<String> {
        let names = fs::read_dir(self.dir())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name.contains(".ckpt")).collect();
        names.sort();
        names
    }
    fn count(&self) -> u64 {
        fs::read_to_string(self.dir().join("count"))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0)
    }
    fn counts_on(&self) {
        let before = self.count();
        wait_until("the program counts on", || self.count() > before);
    }
    fn go(&self) {
        fs::write(self.dir().join("go"), "").unwrap();
    }
    fn kill_everything(&self, front: Running) {
        let pid = self.read_pid("pid");
        kill("KILL", front.pid());
        wait_until("the job is gone", || !lives(pid));
        wait_until("its socket is gone", || {
            fs::read_dir(self.runtime()).unwrap().count() == 0
        });
        drop(front);
    }
}

#[test]
fn a_checkpoint_on_request_disturbs_nothing_and_can_be_restarted() {
    let place = Place::new();
    let front = place.job(&["-n", "c"], COUNT);
    wait_until("it counts", || place.count() > 3);
    let before = place.count();
    let saved = place.done(&["checkpoint", "c"]);
    assert_eq!(saved.code, Some(0), "{saved:?}");
    let image = PathBuf::from(saved.out.trim());
    assert_eq!(
        image,
        place.dir().canonicalize().unwrap().join("c-000001.ckpt")
    );
    place.counts_on();
    let pid = place.read_pid("pid");
    place.kill_everything(front);
    let front = place.hold(&["restart", "."]);
    wait_until("it runs again", || {
        lives(pid) || place.job_status()["restarted_from"].is_string()
    });
    place.counts_on();
    place.go();
    let ended = front.end();
    assert_eq!(ended.code, Some(7), "{ended:?}");
    assert!(place.read("end").parse::<u64>().unwrap() > before);
}

#[test]
fn stop_saves_and_ends_with_85() {
    let place = Place::new();
    let front = place.job(&["-n", "c"], COUNT);
    wait_until("it counts", || place.count() > 3);
    let saved = place.done(&["checkpoint", "--stop", "--json"]);
    assert_eq!(saved.code, Some(0), "{saved:?}");
    let ended = front.end();
    assert_eq!(ended.code, Some(85), "{ended:?}");
    assert!(
        ended.err.contains("saved and stopped: ") && ended.err.contains("c-000001.ckpt"),
        "{ended:?}"
    );
    let at_stop = place.count();
    let front = place.hold(&["restart", "c-000001.ckpt"]);
    wait_until("it counts on", || place.count() > at_stop);
    place.go();
    assert_eq!(front.end().code, Some(7));
}

#[test]
fn signals_can_be_triggers() {
    let place = Place::new();
    let options = [
        "-n",
        "c",
        "--checkpoint-signal",
        "USR1",
        "--stop-signal",
        "TERM",
    ];
    let front = place.job(&options, COUNT);
    wait_until("it counts", || place.count() > 3);
    kill("USR1", front.pid());
    wait_until("the image is there", || place.images() == ["c-000001.ckpt"]);
    place.counts_on();
    kill("TERM", front.pid());
    assert_eq!(front.end().code, Some(85));
    assert_eq!(place.images(), ["c-000001.ckpt", "c-000002.ckpt"]);
}

#[test]
fn intervals_make_checkpoints_and_the_newest_are_kept() {
    let place = Place::new();
    let front = place.job(&["-n", "c", "-i", "1", "--keep", "1"], COUNT);
    wait_until("the second is there and the first is gone", || {
        place.images() == ["c-000002.ckpt"]
    });
    place.counts_on();
    let job = place.job_status();
    assert_eq!(job["last"]["sequence"].as_u64(), Some(2), "{job}");
    place.go();
    assert_eq!(front.end().code, Some(7));
}

#[test]
fn a_failed_checkpoint_is_told_and_disturbs_nothing() {
    let place = Place::new();
    let directory = place.dir().join("images");
    fs::create_dir(&directory).unwrap();
    let said = place.dir().join("said");
    let arguments = [
        "run", "-n", "c", "-i", "1", "-d", "images", "--", "sh", "-c", COUNT,
    ];
    let stderr = fs::File::create(&said).unwrap();
    let front = Running::new(place.clean(&arguments).stderr(stderr).spawn().unwrap());
    wait_until("it counts", || place.count() > 3);
    fs::remove_dir_all(&directory).unwrap();
    let failed = place.done(&["checkpoint"]);
    assert_eq!(failed.code, Some(1));
    assert!(
        failed.err.starts_with("stasis: c was not saved: ") && failed.err.contains("images"),
        "{failed:?}"
    );
    assert!(place.job_status()["last_error"].is_string());
    wait_until("the clock has tried twice", || {
        let said = fs::read_to_string(&said).unwrap();
        said.matches("stasis: checkpoint failed, the program runs on, next try in 1s: ")
            .count()
            >= 2
    });
    place.counts_on();
    place.go();
    assert_eq!(front.end().code, Some(7));
}

#[test]
fn a_program_can_ask_for_its_own_checkpoint() {
    let place = Place::new();
    let script = format!(
        "echo $$ > pid; {} checkpoint > path; echo $? >> asked; while [ ! -e go ]; do sleep 0.02; done; exit 3",
        env!("CARGO_BIN_EXE_stasis")
    );
    let front = place.job(&["-n", "c"], &script);
    assert_eq!(place.read("asked"), "0");
    let path = place.read("path");
    assert!(path.ends_with("c-000001.ckpt"), "{path}");
    place.kill_everything(front);
    for file in ["asked", "path"] {
        fs::remove_file(place.dir().join(file)).unwrap();
    }
    fs::write(place.dir().join("path"), "").unwrap();
    let front = place.hold(&["restart", "--changed-files", "accept", &path]);
    assert_eq!(place.read("asked"), "0", "once more, and once only");
    place.go();
    let ended = front.end();
    assert_eq!(ended.code, Some(3), "{ended:?}");
}

#[test]
fn resume_starts_continues_and_starts_anew_when_a_run_has_finished() {
    let place = Place::new();
    let command = ["run", "--resume", "-n", "c", "--", "sh", "-c", COUNT];
    let front = place.hold(&command);
    wait_until("it counts", || place.count() > 3);
    assert_eq!(place.done(&["checkpoint"]).code, Some(0));
    let at_checkpoint = place.count();
    place.kill_everything(front);
    // It continues.
    let front = place.hold(&command);
    wait_until("it runs", || {
        place.job_status()["restarted_from"].is_string()
    });
    place.counts_on();
    assert!(place.count() >= at_checkpoint);
    fs::write(place.dir().join("status"), "0").unwrap();
    place.go();
    assert_eq!(front.end().code, Some(0));
    assert!(place.dir().join("c.done").exists());
    // It has finished: it starts anew, and does not take the old image.
    for file in ["go", "count", "end"] {
        fs::remove_file(place.dir().join(file)).unwrap();
    }
    let front = place.hold(&command);
    wait_until("it runs", || {
        place.job_status()["restarted_from"].is_null() && place.count() > 0
    });
    assert_eq!(
        place.done(&["checkpoint"]).out.trim().rsplit('/').next(),
        Some("c-000002.ckpt")
    );
    place.go();
    assert_eq!(front.end().code, Some(0));
}

#[test]
fn damaged_images_are_passed_over_in_a_directory_but_not_when_named() {
    let place = Place::new();
    let front = place.job(&["-n", "c"], COUNT);
    wait_until("it counts", || place.count() > 3);
    for _ in 0..2 {
        assert_eq!(place.done(&["checkpoint"]).code, Some(0));
    }
    place.kill_everything(front);
    let newest = place.dir().join("c-000002.ckpt");
    let mut bytes = fs::read(&newest).unwrap();
    // All but the first page, which the directory's listing reads.
    let end = bytes.len() * 3 / 4;
    for byte in bytes[8192..end].iter_mut().step_by(512) {
        *byte ^= 0x40;
    }
    fs::write(&newest, &bytes).unwrap();
    let verdict = place.done(&["verify", "c-000001.ckpt", "c-000002.ckpt"]);
    assert_eq!(verdict.code, Some(1));
    assert!(verdict.out.contains("c-000001.ckpt: valid"), "{verdict:?}");
    assert!(verdict.err.contains("c-000002.ckpt"), "{verdict:?}");
    let named = place.done(&["restart", "c-000002.ckpt"]);
    assert_eq!(named.code, Some(125), "{named:?}");
    let front = place.hold(&["restart", "."]);
    wait_until("it runs", || {
        place.job_status()["restarted_from"]
            .as_str()
            .is_some_and(|path| path.ends_with("c-000001.ckpt"))
    });
    place.counts_on();
    place.go();
    let ended = front.end();
    assert_eq!(ended.code, Some(7));
    assert!(ended.err.contains("trying the one before"), "{ended:?}");
    let nothing = place.done(&["restart", "/usr"]);
    assert!(
        nothing.code == Some(125) && nothing.err.contains("holds no complete checkpoint"),
        "{nothing:?}"
    );
}

#[test]
fn list_and_inspect_tell_what_there_is() {
    let place = Place::new();
    let front = place.job(&["-n", "c"], COUNT);
    wait_until("it counts", || place.count() > 3);
    assert_eq!(place.done(&["checkpoint"]).code, Some(0));
    fs::write(place.dir().join("c-000002.ckpt"), "damaged").unwrap();
    let mut listed: serde_json::Value =
        serde_json::from_str(&place.done(&["list", "--json"]).out).unwrap();
    for entry in listed.as_array_mut().unwrap() {
        let redact = |value: &mut serde_json::Value, label: &str| {
            if !value.is_null() {
                *value = label.into();
            }
        };
        redact(&mut entry["time"], "[time]");
        redact(&mut entry["image_bytes"], "[number]");
        redact(&mut entry["contents_bytes"], "[number]");
        redact(&mut entry["reason"], "[reason]");
        // The shell, with or without a child at work.
        redact(&mut entry["processes"], "[number]");
    }
    insta::assert_snapshot!("list", serde_json::to_string_pretty(&listed).unwrap());
    let table = place.done(&["list"]);
    assert!(
        table.out.contains("complete") && table.out.contains("damaged: "),
        "{table:?}"
    );

    let inspected: serde_json::Value =
        serde_json::from_str(&place.done(&["inspect", "--json", "c-000001.ckpt"]).out).unwrap();
    assert_eq!(inspected["job"], "c");
    assert_eq!(inspected["root"], place.read_pid("pid"));
    let shell = &inspected["processes"][0];
    assert_eq!(shell["name"], "sh");
    let descriptors = shell["descriptors"].as_array().unwrap();
    assert!(
        descriptors
            .iter()
            .any(|d| d["fd"] == 0 && d["kind"] == "standard stream"),
        "{descriptors:?}"
    );
    assert!(
        shell["areas"]
            .as_array()
            .unwrap()
            .iter()
            .any(|area| area["backing"] == "[vdso]")
    );
    let mut keys: Vec<&String> = inspected.as_object().unwrap().keys().collect();
    keys.sort();
    insta::assert_snapshot!("inspect_keys", format!("{keys:#?}"));
    let text = place.done(&["inspect", "--verbose", "c-000001.ckpt"]);
    assert!(
        text.out.contains("(sh), parent") && text.out.contains("[vdso]"),
        "{text:?}"
    );
    place.go();
    front.end();
}

#[test]
fn a_dry_run_tells_and_does_nothing() {
    let place = Place::new();
    let front = place.job(&["-n", "c"], COUNT);
    wait_until("it counts", || place.count() > 3);
    assert_eq!(place.done(&["checkpoint", "--stop"]).code, Some(0));
    assert_eq!(front.end().code, Some(85));
    let count = place.count();
    let planned = place.done(&["restart", "--dry-run", "--json", "."]);
    assert_eq!(planned.code, Some(0), "{planned:?}");
    let plan: serde_json::Value = serde_json::from_str(&planned.out).unwrap();
    assert!(plan["image"].as_str().unwrap().ends_with("c-000001.ckpt"));
    assert!(
        plan["strategy"].is_string() && plan["actions"].is_array(),
        "{plan}"
    );
    assert_eq!(place.count(), count);
    assert_eq!(place.done(&["ps", "--json"]).out.trim(), "[]");
}
