//! DMTCP's commands: the lines of centres' documentation, word for word, and what they promise together. One by one the
//! commands' options are in `dmtcp_compliance.rs`.

use stasis_tests::{Exit, JobScript, Linkage, Sandbox, User, program, skip};

macro_rules! scripts {
    () => {
        match JobScript::new() {
            Some(scripts) => scripts,
            None => skip!("there is no C compiler"),
        }
    };
}

/// The two lines of the first page: start, and continue.
#[test]
fn launch_and_restart() {
    let scripts = scripts!();
    scripts.check(
        r"
        dmtcp_launch -i 10 ./count > out & launch=$!
        until_ok all_run 1
        dmtcp_command -s > status; says status 'CKPT_INTERVAL=10$'
        grows out
        dmtcp_command -bc; is $? 0
        kill -9 $launch; wait $launch
        until_ok nobody_listens
        rm out
        dmtcp_restart -i 10 ckpt_*.dmtcp > again & restart=$!
        until_ok all_run 1
        grows again
        [ $(head -n 1 again) -gt 1 ] || fails 'it began anew'
        dmtcp_command -k; wait $restart; is $? 137
        ",
    );
    scripts.sandbox.wait_empty();
}

/// The program is saved and ended in one instant: the next run begins with the line after the last one, every time.
#[test]
fn exit_after_checkpoint() {
    let scripts = scripts!();
    let lines = |line: &str| {
        format!(
            r"
            ({line}) > part & job=$!
            until_ok all_run 1
            grows part
            dmtcp_command --checkpoint
            wait $job; is $? 85
            cat part >> out
            "
        )
    };
    let script = [
        lines(
            "dmtcp_coordinator --exit-after-ckpt --daemon -q ; dmtcp_launch -i 259190 ./count 2> err",
        ),
        // The coordinator of the first line still runs, and says so; the restart joins it.
        lines(
            "dmtcp_coordinator --exit-after-ckpt --daemon -q 2> second ; dmtcp_restart -i 259190 ckpt_*.dmtcp 2> err",
        ),
        "says second 'is one running already'; dmtcp_command -q\n".into(),
        lines(
            "dmtcp_coordinator --exit-after-ckpt --daemon -q dmtcp_restart -i 259190 ckpt_*.dmtcp 2> err",
        ),
        "dmtcp_command -q\n".into(),
        lines(
            "dmtcp_coordinator --exit-after-ckpt --daemon -q dmtcp_launch -i 259190 ./count 2> err; exit 85",
        ),
    ];
    scripts.check(
        &(script[..5].join("\n")
            + "seq $(tail -n 1 out) | cmp - out || fails 'lines are doubled or lost'"),
    );
    scripts
        .check(&(format!("rm *.dmtcp out\ndmtcp_command -q\n{}", script[5]) + "dmtcp_command -q"));
    scripts.sandbox.wait_empty();
}

/// The usual order in a job script, and what is left of it at the end: nothing.
#[test]
fn remove_checkpoint_and_restart_script() {
    let scripts = scripts!();
    scripts.check(
        r"
        mkdir job; cd job
        dmtcp_launch ../count > ../out & launch=$!
        until_ok all_run 1
        dmtcp_command -bc
        rm *.dmtcp ; rm dmtcp_restart_script*.sh ; dmtcp_command --checkpoint
        until_ok ls dmtcp_restart_script.sh
        kill -9 $launch; wait $launch
        until_ok nobody_listens
        ./dmtcp_restart_script.sh > ../again & restart=$!
        until_ok all_run 1
        grows ../again
        dmtcp_command -q; wait $restart; is $? 137
        rm *.dmtcp ; rm dmtcp_restart_script*.sh
        is '' $(ls -A)
        ",
    );
    scripts.sandbox.wait_empty();
}

/// The directory is moved, as to another host: the script finds the images beside itself.
#[test]
fn the_script_moves_with_its_images() {
    let scripts = scripts!();
    scripts.check(
        r"
        mkdir job; dmtcp_launch --ckptdir job ./count > out & launch=$!
        until_ok all_run 1
        dmtcp_command -kc; wait $launch; is $? 85
        until_ok nobody_listens
        mv job moved
        ls moved | grep -q dmtcp_restart_script.sh || fails 'no script beside the images'
        moved/dmtcp_restart_script.sh --interval 77 --ckptdir fresh -t /tmp --no-strict-checking > again & restart=$!
        until_ok all_run 1
        dmtcp_command -s > status; says status 'CKPT_INTERVAL=77$'
        dmtcp_command -bc; ls fresh/ckpt_count_*.dmtcp || fails 'no new image in --ckptdir'
        dmtcp_command -k; wait $restart
        until_ok nobody_listens
        # Without the images it says what is missing.
        moved/dmtcp_restart_script.sh --restartdir nowhere 2> err; is $? 1; says err 'nor in nowhere'
        moved/dmtcp_restart_script.sh --frobnicate 2> err; is $? 1; says err 'unknown option'
        moved/dmtcp_restart_script.sh --help > help; is $? 0; says help restartdir
        ",
    );
    scripts.sandbox.wait_empty();
}

/// Images may be renamed, and are continued by their new names; the next checkpoint has the old one.
#[test]
fn renamed_images() {
    let scripts = scripts!();
    scripts.check(
        r"
        dmtcp_launch ./count > out & launch=$!
        until_ok all_run 1
        dmtcp_command --quiet --bcheckpoint; mkdir safe; mv ckpt_count_* safe/hol_light.dmtcp; rm dmtcp_restart_script*.sh
        dmtcp_command --quiet --quit; wait $launch; is $? 137
        until_ok nobody_listens
        dmtcp_relaunch safe/hol_light.dmtcp > again & restart=$!
        until_ok all_run 1
        grows again
        dmtcp_command -kc; wait $restart; is $? 85
        ls safe/ckpt_count_*.dmtcp || fails 'the new image is not called as the first'
        ",
    );
    scripts.sandbox.wait_empty();
}

/// `os.system('dmtcp_command --checkpoint')` in a loop: each call checkpoints, and a restart continues after the call.
#[test]
fn from_inside() {
    let scripts = scripts!();
    scripts.sandbox.write(
        "loop.py",
        "import glob, os
def image(): return [os.stat(name).st_ino for name in glob.glob('ckpt_*.dmtcp')]
for turn in range(4):
    before = image()
    print('asking', turn, flush=True)
    status = os.system('dmtcp_command --checkpoint')
    print('saved', turn, status, flush=True)
    if turn == 3: os._exit(5)
    if not os.path.exists('second') and image() == before: os._exit(9)
",
    );
    let first = scripts.run("exec dmtcp_launch /usr/bin/python3 loop.py");
    let all: String = (0..4)
        .map(|n| format!("asking {n}\nsaved {n} 0\n"))
        .collect();
    assert_eq!(
        (first.exit, first.stdout.as_str()),
        (Exit::Code(5), all.as_str()),
        "{first:?}"
    );
    for _ in 0..2 {
        let again =
            scripts.run("touch second; until_ok nobody_listens; exec dmtcp_restart ckpt_*.dmtcp");
        assert_eq!(
            (again.exit, again.stdout.as_str()),
            (Exit::Code(5), "saved 3 0\n"),
            "{again:?}"
        );
    }
}

/// The same after a restart under another coordinator than the one that the program's variables name.
#[test]
fn from_inside_elsewhere() {
    let scripts = scripts!();
    let finished = scripts.check(
        r#"
        echo 'for n in 1 2 3; do dmtcp_command --checkpoint && echo $n; dmtcp_command --status > status.$n; cp ckpt_*.dmtcp $n.dmtcp; done' > loop.sh
        dmtcp_launch sh loop.sh > first; is "$(tr '\n' ' ' < first)" '1 2 3 '
        until_ok nobody_listens; rm ckpt_* status.*
        DMTCP_COORD_PORT= dmtcp_restart --new-coordinator 2.dmtcp > second || fails 'not continued'
        is "$(tr '\n' ' ' < second)" '2 3 '; says status.3 NUM_PEERS=1
        grep -q $DMTCP_COORD_PORT status.3 && fails 'the port did not change'
        ls ckpt_sh_*.dmtcp
        "#,
    );
    assert!(!finished.stdout.is_empty());
}

/// Without a port anywhere it is the usual one.
#[test]
fn the_usual_port() {
    if std::net::TcpListener::bind(("127.0.0.1", 7779)).is_err() {
        skip!("somebody listens at port 7779");
    }
    let scripts = scripts!();
    scripts.check(
        r"
        unset DMTCP_COORD_PORT
        dmtcp_launch -i 10 ./count > out & job=$!
        until_ok all_run 1
        dmtcp_command -s > status; says status '  Port: 7779 (default port)$'
        dmtcp_command -q; wait $job
        ",
    );
}

/// A supervisor that is killed in the middle of a checkpoint: its program runs on, and so do all others, which are saved
/// without it when they are asked to be again.
#[test]
fn a_supervisor_is_killed() {
    let scripts = scripts!();
    for step in ["frozen", "captured", "written", "committing"] {
        scripts.check(&format!(
            r"
            rm -f *.dmtcp*; dmtcp_coordinator --daemon -q
            dmtcp_launch ./count > a & one=$!
            until_ok all_run 1
            STASIS_TEST_FAULT=kill@{step} dmtcp_launch ./count > b 2> b.err & other=$!
            until_ok all_run 2
            dmtcp_command -bc 2> err; is $? 2; says err 'count was lost'
            grows a; grows b; says b.err 'no longer checkpointed'
            until_ok all_run 1
            dmtcp_command -bc; is $? 0
            dmtcp_command -q; wait $one; kill $other; wait $other
            ",
        ));
    }
    scripts.sandbox.wait_empty();
}

/// Two programs are one computation: neither has seen anything that the other has not done yet.
#[test]
fn two_programs_at_one_instant() {
    let scripts = scripts!();
    let Some(pair) = program("pair", Linkage::Dynamic) else {
        skip!("there is no C compiler")
    };
    let pair = pair.display();
    for _ in 0..3 {
        scripts.check(&format!(
            r"
            rm -f *.dmtcp go a b; until_ok nobody_listens
            dmtcp_launch {pair} a b > out.a & one=$!
            until_ok all_run 1
            dmtcp_launch {pair} b a > out.b & other=$!
            until_ok all_run 2
            until_ok test -s a -a -s b
            for n in 1 2 3; do dmtcp_command -bc || fails 'not saved'; done
            is $(ls ckpt_*.dmtcp | wc -l) 2
            dmtcp_command -l > list; says list '^1, pair\['; says list '^2, pair\[.*WorkerState::RUNNING'
            dmtcp_command -k; wait $one; is $? 137; wait $other; is $? 137
            until_ok nobody_listens
            touch go
            dmtcp_restart ckpt_*.dmtcp > out || fails 'not continued'
            is $(wc -l < out) 2
            {{ read a sees_b; read b sees_a; }} < out
            [ $sees_b -le $((b + 1)) ] && [ $sees_a -le $((a + 1)) ] || fails 'not at one instant:' $(cat out)
            ",
        ));
    }
    scripts.sandbox.wait_empty();
}

/// A program that ends when all are about to be saved: the others are saved without it, and its supervisor ends.
#[test]
fn one_ends_before_the_round() {
    let scripts = scripts!();
    scripts.check(
        r"
        dmtcp_coordinator --daemon -q
        dmtcp_launch ./count > a & one=$!
        until_ok all_run 1
        STASIS_TEST_FAULT=pretend@end-before-round dmtcp_launch ./count > b & other=$!
        until_ok all_run 2
        dmtcp_command -bc; is $? 0; is $(ls ckpt_*.dmtcp | wc -l) 1
        wait $other; is $? 137
        grows a; until_ok all_run 1
        dmtcp_command -k; wait $one
        dmtcp_command -q
        ",
    );
    scripts.sandbox.wait_empty();
}

/// All images, or none: where one program cannot be saved, all go on, with their older images.
#[test]
fn all_or_none() {
    let scripts = scripts!();
    for step in [
        "created",
        "frozen",
        "captured",
        "written",
        "resumed",
        "committing",
    ] {
        scripts.check(&format!(
            r"
            until_ok nobody_listens; rm -f *.dmtcp*
            dmtcp_launch ./count > a & one=$!
            until_ok all_run 1
            dmtcp_command -bc; before=$(stat -c %i ckpt_*.dmtcp)
            STASIS_TEST_FAULT=fail@{step} dmtcp_launch ./count > b & other=$!
            until_ok all_run 2
            dmtcp_command -bc 2> err; is $? 2; says err 'a fault was asked for at {step}'
            is $before $(stat -c %i ckpt_*.dmtcp) 'the old image is not there'
            # The others hear of it at the same time as whoever asked.
            while ls | grep -q temp; do sleep 0.03; done
            grows a; grows b
            dmtcp_command -k; wait $one $other
            ",
        ));
    }
    scripts.sandbox.wait_empty();
}

/// A supervisor that is killed after all have decided, before its image has its name: a restart finds the image nevertheless.
#[test]
fn an_image_without_its_name_is_found() {
    let scripts = scripts!();
    scripts.check(
        r"
        dmtcp_coordinator --daemon -q
        STASIS_TEST_FAULT=kill@complete dmtcp_launch ./count > a & one=$!
        until_ok all_run 1
        dmtcp_launch ./count > b & other=$!
        until_ok all_run 2
        dmtcp_command -bc 2> err; is $? 2; says err 'was lost while it named its image'
        # It runs on, and so does the other.
        grows a; grows b
        kill -9 $one $other; wait $one $other
        is $(ls *.dmtcp | wc -l) 1; is $(ls *.dmtcp.temp | wc -l) 1
        until_ok peers 0
        dmtcp_restart *.dmtcp > again & restart=$!
        until_ok all_run 2
        dmtcp_command -kc; wait $restart; is $? 85
        is $(ls *.dmtcp | wc -l) 2 'the next checkpoint is whole'
        dmtcp_command -q
        ",
    );
    scripts.sandbox.wait_empty();
}

/// A pattern finds images of several checkpoints: the newest complete one is taken, the others are named.
#[test]
fn mixed_images() {
    let scripts = scripts!();
    scripts.check(
        r"
        dmtcp_coordinator --daemon -q
        dmtcp_launch ./count > a & one=$!
        until_ok all_run 1
        dmtcp_launch ./count 100 > b & other=$!
        until_ok all_run 2
        dmtcp_command -bc
        old=$(ls ckpt_*-41000-*.dmtcp)
        wait $other; is $? 0
        until_ok all_run 1
        dmtcp_command -kc; wait $one; is $? 85
        dmtcp_launch ./count 1 > c; echo garbage > ckpt_x_1-2-3.dmtcp
        dmtcp_restart ckpt_*.dmtcp > again 2> err & restart=$!
        until_ok all_run 1
        says err $old.*'of an older checkpoint'
        says err 'ckpt_x_1-2-3.dmtcp is not a Stasis image'
        dmtcp_command -q; wait $restart
        ",
    );
    scripts.sandbox.wait_empty();
}

/// The death of the coordinator harms nobody: the programs run on, and join the next one.
#[test]
fn the_coordinator_is_killed() {
    let scripts = scripts!();
    scripts.check(
        r"
        dmtcp_coordinator --daemon -q
        coordinator() { pgrep -x dmtcp_coordinat; }
        for number in 1 2; do dmtcp_launch ./count > $number & done
        until_ok all_run 2
        dmtcp_command -bc
        for pid in $(coordinator); do
            grep -q -z -x DMTCP_COORD_PORT=$DMTCP_COORD_PORT /proc/$pid/environ && kill -9 $pid
        done
        until_ok nobody_listens
        grows 1; grows 2
        # Alone none of them is saved: it would match no other's image.
        stasis checkpoint $(basename ckpt_*-40000-*.dmtcp .dmtcp) 2> err && fails 'saved alone'
        says err 'one of 2 that can only be saved together'
        dmtcp_coordinator --daemon -q
        until_ok all_run 2
        dmtcp_command -bc || fails 'not saved again'
        dmtcp_command -q; wait
        ",
    );
    scripts.sandbox.wait_empty();
}

/// A coordinator obeys its own user only.
#[test]
fn another_user() {
    let Some(_) = Sandbox::root() else {
        skip!("the tests do not run as root")
    };
    let scripts = scripts!();
    if scripts.sandbox.user() == User::nobody() {
        skip!("there is only one ordinary user");
    }
    let Some(stranger) = JobScript::in_sandbox(Sandbox::of(User::nobody())) else {
        skip!("there is no C compiler")
    };
    let port = scripts.port;
    let _job = scripts.start("exec dmtcp_launch ./count > out");
    scripts.check("until_ok all_run 1");
    for command in ["-s", "-bc", "-k", "-q", "-i 5"] {
        let end = stranger.run(&format!("exec dmtcp_command -p {port} {command}"));
        assert_eq!(end.exit, Exit::Code(2), "{command}: {end:?}");
        assert!(
            end.stderr.contains("not a coordinator of this user"),
            "{command}: {end:?}"
        );
    }
    let end = stranger.run(&format!("exec dmtcp_launch -p {port} ./count"));
    assert_eq!(end.exit, Exit::Code(99), "{end:?}");
    // Nor by speaking to it directly.
    let end = stranger.run(&format!(
        r#"exec 3<> /dev/tcp/127.0.0.1/{port}; read -r greeting <&3
        echo '{{"version":1,"challenge":"00","proof":"00"}}' >&3; echo '{{"ask":"kill"}}' >&3; cat <&3"#
    ));
    assert!(end.stdout.contains("obeys its own user only"), "{end:?}");
    scripts.check("all_run 1 || fails 'it has obeyed'; stat -c %a $STASIS_RUNTIME_DIR/coordinator.secret | grep -x 600; dmtcp_command -q");
    scripts.sandbox.wait_empty();
}
