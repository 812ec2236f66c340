//! `dmtcp_restart`.

use super::{Entry, kept};

pub(super) const TABLE: &[Entry] = &[
    kept(
        "R1",
        "the status is the program's",
        r"dmtcp_launch ./count 30 7 > out & job=$!; until_ok all_run 1; dmtcp_command -kc; wait $job; is $? 85; until_ok nobody_listens
        dmtcp_restart ckpt_*.dmtcp > again; is $? 7; is $(tail -n 1 again) 30",
    ),
    kept(
        "R2",
        "without an image: usage, 99",
        "dmtcp_restart 2> err; is $? 99; says err 'which images'",
    ),
    kept(
        "R3",
        "what is not called *.dmtcp: 99",
        "touch x.ckpt; dmtcp_restart x.ckpt 2> err; is $? 99; says err x.ckpt",
    ),
    kept(
        "R4",
        "an image that is missing or damaged: 99",
        "dmtcp_restart nothing.dmtcp 2> err; is $? 99; echo garbage > g.dmtcp; dmtcp_restart g.dmtcp 2> err; is $? 99; says err g.dmtcp",
    ),
    kept(
        "R5",
        "--help and --version: 0",
        "is $(status dmtcp_restart --help) 0; is $(status dmtcp_restart --version) 0; is $(status dmtcp_restart --frobnicate) 99",
    ),
    kept(
        "R6",
        "arguments that end in _files are passed over",
        r"dmtcp_launch ./count 20 > out & job=$!; until_ok all_run 1; dmtcp_command -kc; wait $job; until_ok nobody_listens
        mkdir ckpt_x_files; dmtcp_restart ckpt_* > again; is $? 0",
    ),
    kept(
        "R7",
        "-r, --restartdir and DMTCP_RESTART_DIR name a directory of images",
        r"dmtcp_launch -c d ./count 20 > out & job=$!; until_ok all_run 1; dmtcp_command -kc; wait $job
        for o in '-r d' '--restartdir d'; do until_ok nobody_listens; dmtcp_restart $o > again; is $? 0 $o; done
        until_ok nobody_listens; DMTCP_RESTART_DIR=d dmtcp_restart > again; is $? 0
        mkdir empty; dmtcp_restart -r empty 2> err; is $? 99; says err 'holds no image'",
    ),
    kept(
        "R8",
        "-i sets the interval; new images go beside the old, or into --ckptdir",
        r"dmtcp_launch -c d ./count > out & job=$!; until_ok all_run 1; dmtcp_command -kc; wait $job; until_ok nobody_listens
        old=$(stat -c %i d/*.dmtcp)
        dmtcp_restart -i 77 d/ckpt_*.dmtcp > again & job=$!; until_ok all_run 1
        dmtcp_command -s > status; says status 'CKPT_INTERVAL=77$'; dmtcp_command -kc; wait $job
        is $(ls d/*.dmtcp | wc -l) 1; [ $old != $(stat -c %i d/*.dmtcp) ] || fails 'it was not replaced'; until_ok nobody_listens
        dmtcp_restart -c e d/ckpt_*.dmtcp > again & job=$!; until_ok all_run 1; dmtcp_command -bc; ls e/ckpt_count_*.dmtcp || fails; dmtcp_command -q; wait $job",
    ),
    kept(
        "R9",
        "connection options are those of launch",
        r"dmtcp_launch ./count > out & job=$!; until_ok all_run 1; dmtcp_command -kc; wait $job; until_ok nobody_listens
        dmtcp_restart -j ckpt_*.dmtcp 2> err; is $? 99; says err 'no coordinator'
        DMTCP_COORD_PORT= dmtcp_restart --new-coordinator --port-file port ckpt_*.dmtcp > again & job=$!; until_ok test -s port
        export DMTCP_COORD_PORT=$(cat port); until_ok all_run 1; dmtcp_command -q; wait $job",
    ),
    kept(
        "R10",
        "a coordinator whose computation runs takes no other",
        r"dmtcp_launch ./count > out & job=$!; until_ok all_run 1; dmtcp_command -bc
        dmtcp_restart ckpt_*.dmtcp 2> err; is $? 99; says err 'is running here'
        all_run 1 || fails; dmtcp_command -q; wait $job",
    ),
    kept(
        "R11",
        "options for debugging and checking are accepted",
        r"dmtcp_launch ./count 20 > out & job=$!; until_ok all_run 1; dmtcp_command -kc; wait $job
        for o in --no-strict-checking '--debug-restart-pause 1' '--gdb 1' '-t /tmp' -q '--coord-logfile log'; do
            until_ok nobody_listens; dmtcp_restart $o ckpt_*.dmtcp > again 2> err; is $? 0 $o
        done",
    ),
    kept(
        "R12",
        "the name, the command line and the executable are the program's own",
        r"dmtcp_launch ./count 40 > out & job=$!; until_ok all_run 1; dmtcp_command -kc; wait $job; until_ok nobody_listens
        dmtcp_restart ckpt_*.dmtcp > again & job=$!; until_ok all_run 1; pid=$(dmtcp_command -l | sed -n 's/.*:\([0-9]*\)\]@.*/\1/p')
        is $(cat /proc/$pid/comm) count; is $(tr '\0' ' ' < /proc/$pid/cmdline | cut -d ' ' -f 1) ./count; is $(readlink /proc/$pid/exe) $PWD/count
        dmtcp_command -q; wait $job",
    ),
    kept(
        "R13",
        "dmtcp_relaunch is the same",
        "dmtcp_relaunch 2> err; is $? 99; says err 'which images'",
    ),
    kept(
        "R14",
        "an image of stasis run is continued, too",
        r"cp $(command -v true) t; STASIS_DIR=$PWD stasis run -n job -- ./count 40 > out & job=$!; until_ok stasis checkpoint --stop job; wait $job; is $? 85
        mv job-000001.ckpt job.dmtcp; dmtcp_restart job.dmtcp > again & job=$!; until_ok all_run 1; dmtcp_command -bc; ls ckpt_job_*.dmtcp || fails; dmtcp_command -q; wait $job",
    ),
];
