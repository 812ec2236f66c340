//! Files, and what happens when something fails.

use super::{Entry, kept};

pub(super) const TABLE: &[Entry] = &[
    kept(
        "F1",
        "the name and the mode of an image",
        "dmtcp_launch ./count > o & job=$!; until_ok all_run 1; dmtcp_command -bc; ls ckpt_*.dmtcp | grep -x -E 'ckpt_count_[0-9a-f]+-40000-[0-9a-f]+\\.dmtcp' || fails; is $(stat -c %a ckpt_*.dmtcp) 600; dmtcp_command -q; wait $job",
    ),
    kept(
        "F2",
        "the next checkpoint takes the place of the one before",
        "dmtcp_launch ./count > o & job=$!; until_ok all_run 1; dmtcp_command -bc; a=$(ls ckpt_*); dmtcp_command -bc; is \"$a\" \"$(ls ckpt_*)\"; is '' \"$(ls -A | grep -E 'temp|partial|lock')\"; dmtcp_command -q; wait $job",
    ),
    kept(
        "F3",
        "the restart script: its names, its mode, its variables",
        r#"dmtcp_launch -i 259190 ./count > o & job=$!; until_ok all_run 1; dmtcp_command -bc; until_ok test -x dmtcp_restart_script.sh
        is $(ls dmtcp_restart_script_*.sh) $(readlink dmtcp_restart_script.sh); is $(stat -L -c %a dmtcp_restart_script.sh) 744; bash -n dmtcp_restart_script.sh || fails
        for v in ckpt_timestamp= coord_host= coord_port=$DMTCP_COORD_PORT checkpoint_interval=259190 dmt_rstr_cmd=/ given_ckpt_files=; do says dmtcp_restart_script.sh ^$v; done; dmtcp_command -q; wait $job"#,
    ),
    kept(
        "F4",
        "the variables of the script may be changed with sed",
        r"dmtcp_launch ./count > o & job=$!; until_ok all_run 1; dmtcp_command -kc; wait $job; until_ok nobody_listens
        sed -i 's/^checkpoint_interval=.*/checkpoint_interval=66/; s/^coord_host=.*/coord_host=127.0.0.1/' dmtcp_restart_script_*.sh
        bash ./dmtcp_restart_script.sh > again & job=$!; until_ok all_run 1; dmtcp_command -s > st; says st 'CKPT_INTERVAL=66$'; dmtcp_command -q; wait $job",
    ),
    kept(
        "F5",
        "the script takes -h and -p, also for a coordinator that runs",
        r"dmtcp_launch ./count > o & job=$!; until_ok all_run 1; dmtcp_command -kc; wait $job; until_ok nobody_listens
        dmtcp_coordinator --daemon -q -p 0 --port-file port; unset DMTCP_COORD_PORT
        /bin/bash ./dmtcp_restart_script.sh -h localhost -p $(cat port) > again & job=$!; export DMTCP_COORD_PORT=$(cat port); until_ok all_run 1; dmtcp_command -q; wait $job",
    ),
    kept(
        "F6",
        "a directory that cannot be written: 2, and the program runs on",
        r"[ $(id -u) != 0 ] || exit 0; dmtcp_launch -c d ./count > o 2> e & job=$!; until_ok all_run 1; dmtcp_command -bc; chmod 500 d
        dmtcp_command -bc 2> err; is $? 2; says err 'ermission denied'; grows o; chmod 700 d; dmtcp_command -bc; is $? 0; dmtcp_command -q; wait $job",
    ),
    kept(
        "F7",
        "a file size limit, as a full disk: 2, the old image stays, the program runs on",
        r#"dmtcp_launch ./count > o 2> e & job=$!; until_ok all_run 1; dmtcp_command -bc; before=$(md5sum < $(ls ckpt_*.dmtcp))
        rm -rf d; mkdir d; dmtcp_command -q; wait $job; until_ok nobody_listens
        (ulimit -f 8; exec dmtcp_launch -c d ./count > /dev/null 2> e) & job=$!; until_ok all_run 1
        dmtcp_command -bc 2> err; is $? 2; all_run 1 || fails; is '' "$(ls d | grep 'dmtcp$')"; is "$before" "$(md5sum < $(ls ckpt_*.dmtcp))"; dmtcp_command -q; wait $job"#,
    ),
    kept(
        "F8",
        "one process that is stopped does not hold a checkpoint up",
        r"dmtcp_launch sh -c './count > n & kill -STOP $!; wait' & job=$!; until_ok all_run 1; dmtcp_command -bc; is $? 0; dmtcp_command -q; wait $job",
    ),
    kept(
        "F9",
        "two programs of one host in one directory do not disturb each other",
        r"unset DMTCP_COORD_PORT
        for n in 1 2; do dmtcp_launch --new-coordinator --port-file port$n ./count > o$n & done; until_ok test -s port1 -a -s port2
        for n in 1 2; do export DMTCP_COORD_PORT=$(cat port$n); until_ok all_run 1; dmtcp_command -bc; is $? 0; done; is $(ls ckpt_*.dmtcp | wc -l) 2
        for n in 1 2; do dmtcp_command -p $(cat port$n) -q; done; wait",
    ),
    kept(
        "F10",
        "images are read by stasis",
        "dmtcp_launch ./count > o & job=$!; until_ok all_run 1; dmtcp_command -bc; stasis verify ckpt_*.dmtcp > v; is $? 0; stasis inspect ckpt_*.dmtcp > i; is $? 0; dmtcp_command -q; wait $job",
    ),
    kept(
        "F11",
        "the job as centres start it: port 0, a port file, a wrapper of dmtcp_command",
        r#"unset DMTCP_COORD_PORT
        dmtcp_coordinator --daemon --exit-on-last -p 0 --port-file port -i 259190 -q; export DMTCP_COORD_HOST=localhost DMTCP_COORD_PORT=$(cat port)
        printf '#!/bin/bash\nexport DMTCP_COORD_HOST=%s DMTCP_COORD_PORT=%s\ndmtcp_command "$@"\n' $DMTCP_COORD_HOST $DMTCP_COORD_PORT > dmtcp_command.17; chmod +x dmtcp_command.17
        dmtcp_launch ./count > o & job=$!; until_ok all_run 1; ./dmtcp_command.17 -bc; is $? 0; ./dmtcp_command.17 -kc; wait $job; is $? 85; until_ok nobody_listens
        [ -f dmtcp_restart_script.sh ] && /bin/bash ./dmtcp_restart_script.sh -h $DMTCP_COORD_HOST -p $DMTCP_COORD_PORT > again & job=$!; until_ok all_run 1; dmtcp_command -q; wait $job"#,
    ),
];
