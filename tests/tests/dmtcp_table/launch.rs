//! `dmtcp_launch`.

use super::{Entry, ignored, kept};

pub(super) const TABLE: &[Entry] = &[
    kept(
        "L1",
        "the program's status is its own",
        "dmtcp_launch ./count 1 7; is $? 7",
    ),
    kept(
        "L2",
        "a signal that ends the program ends the command",
        "dmtcp_launch sh -c 'kill -TERM $$'; is $? 143; dmtcp_launch sh -c 'kill -SEGV $$'; is $? 139",
    ),
    kept(
        "L3",
        "no argument: version, 99",
        "dmtcp_launch 2> err; is $? 99; says err dmtcp_launch",
    ),
    kept(
        "L4",
        "--help: 0",
        "dmtcp_launch --help > out; is $? 0; says out coord-port",
    ),
    kept(
        "L5",
        "--version: 0",
        "dmtcp_launch --version > out; is $? 0; says out '[0-9]\\.[0-9]'",
    ),
    kept(
        "L6",
        "an unknown option: Invalid Argument, 99",
        "dmtcp_launch --frobnicate ./count 1 2> err; is $? 99; says err 'Invalid Argument'",
    ),
    kept(
        "L7",
        "a program that is not there: 99",
        "dmtcp_launch ./nothing 2> err; is $? 99; says err nothing",
    ),
    kept(
        "L8",
        "a program that cannot be executed: 255",
        "touch file; chmod +x file; echo '#!/no/such/interpreter' > bad; chmod -x bad; dmtcp_launch ./bad 2> err; is $? 255",
    ),
    kept(
        "L9",
        "DMTCP_FAIL_RC is the status of own failures",
        "DMTCP_FAIL_RC=42 dmtcp_launch ./nothing 2> err; is $? 42",
    ),
    kept(
        "L10",
        "-- ends the options",
        "dmtcp_launch -- ./count 1 3; is $? 3",
    ),
    kept(
        "L11",
        "options behind the program are the program's",
        "is \"$(dmtcp_launch echo -i 5 --help -- x)\" '-i 5 --help -- x'",
    ),
    kept(
        "L12",
        "-p, --port, --coord-port and -pPORT name the port",
        r"p=$DMTCP_COORD_PORT; unset DMTCP_COORD_PORT
        dmtcp_coordinator --daemon -q -p $p
        for o in '-p '$p -p$p '--port '$p '--coord-port '$p --coord-port=$p; do dmtcp_launch -j $o ./count 1 2> err; is $? 0 $o; done
        dmtcp_command -p $p -q",
    ),
    kept(
        "L13",
        "-h, --host and --coord-host name the host",
        r"dmtcp_coordinator --daemon -q
        for o in '-h localhost' '--host 127.0.0.1' '--coord-host localhost'; do dmtcp_launch -j $o ./count 1 2> err; is $? 0 $o; done
        dmtcp_command -q",
    ),
    kept(
        "L14",
        "DMTCP_COORD_HOST, and the older DMTCP_HOST and DMTCP_PORT",
        r"dmtcp_coordinator --daemon -q; p=$DMTCP_COORD_PORT; unset DMTCP_COORD_PORT
        DMTCP_COORD_HOST=localhost DMTCP_PORT=$p dmtcp_launch -j ./count 1; is $? 0
        DMTCP_HOST=localhost DMTCP_PORT=$p dmtcp_command -s > status; says status 'NUM_PEERS=0'
        dmtcp_command -p $p -q",
    ),
    kept(
        "L15",
        "port 0 is any free one, and --port-file says which",
        r"dmtcp_launch -p 0 --port-file port ./count > out & job=$!
        until_ok test -s port
        is $(stat -c %a port) 600; is $(wc -l < port) 0 'no line end'
        [ $(cat port) != $DMTCP_COORD_PORT ] || fails 'it is not another port'
        export DMTCP_COORD_PORT=$(cat port); until_ok all_run 1; dmtcp_command -k; wait $job; is $? 137",
    ),
    kept(
        "L16",
        "the port and the host are in the program's environment",
        "is $(DMTCP_COORD_PORT= dmtcp_launch -p $DMTCP_COORD_PORT sh -c 'echo $DMTCP_COORD_HOST:$DMTCP_COORD_PORT') localhost:$DMTCP_COORD_PORT",
    ),
    kept(
        "L17",
        "-j without a coordinator: 99",
        "for o in -j --join --join-coordinator; do dmtcp_launch $o ./count 1 2> err; is $? 99; says err 'no coordinator'; done",
    ),
    kept(
        "L18",
        "--new-coordinator starts one, without a port at any that is free",
        r"dmtcp_coordinator --daemon -q
        dmtcp_launch --new-coordinator ./count 1 2> err; is $? 99; says err 'cannot be started'
        p=$DMTCP_COORD_PORT; unset DMTCP_COORD_PORT; dmtcp_launch --new-coordinator ./count 1; is $? 0
        dmtcp_command -p $p -q",
    ),
    kept(
        "L19",
        "--any-coordinator: the first starts one, the second joins it",
        r"dmtcp_launch --any-coordinator ./count > a & one=$!; until_ok all_run 1
        dmtcp_launch ./count > b & other=$!; until_ok all_run 2; dmtcp_command -q; wait $one $other",
    ),
    kept(
        "L20",
        "the coordinator that was started ends with the last program",
        "dmtcp_launch ./count 1; until_ok nobody_listens",
    ),
    kept(
        "L21",
        "-i, -iN, --interval and DMTCP_CHECKPOINT_INTERVAL set the interval",
        r"for o in '-i 259190' -i259190 '--interval 259190' '--interval=259190'; do
            until_ok nobody_listens
            dmtcp_launch $o ./count > out & job=$!
            until_ok all_run 1; dmtcp_command -s > status; says status 'CKPT_INTERVAL=259190$'
            dmtcp_command -q; wait $job
        done
        until_ok nobody_listens
        DMTCP_CHECKPOINT_INTERVAL=33 dmtcp_launch ./count > out & job=$!
        until_ok all_run 1; dmtcp_command -s > status; says status 'CKPT_INTERVAL=33$'; dmtcp_command -q; wait $job",
    ),
    kept(
        "L22",
        "an interval saves by itself",
        r"dmtcp_launch -i 1 ./count > out & job=$!
        until_ok saved; first=$(stat -c %i ckpt_*.dmtcp)
        while [ $(stat -c %i ckpt_*.dmtcp) = $first ]; do sleep 0.05; done
        dmtcp_command -q; wait $job",
    ),
    kept(
        "L23",
        "--gzip, --no-gzip and DMTCP_GZIP are accepted",
        "dmtcp_launch --gzip ./count 1 && dmtcp_launch --no-gzip ./count 1 && DMTCP_GZIP=0 dmtcp_launch ./count 1 || fails; is '' \"$(ls | grep ckpt)\"",
    ),
    kept(
        "L24",
        "-c, --ckptdir and DMTCP_CHECKPOINT_DIR name the directory of images",
        r"n=0; for o in '-c d1' '--ckptdir d2'; do n=$((n + 1))
            until_ok nobody_listens
            dmtcp_launch $o ./count > out & job=$!
            until_ok all_run 1; dmtcp_command -bc; ls d$n/ckpt_count_*.dmtcp || fails $o; dmtcp_command -q; wait $job
        done
        until_ok nobody_listens; export DMTCP_CHECKPOINT_DIR=$PWD/d3
        dmtcp_launch ./count > out & job=$!
        until_ok all_run 1; dmtcp_command -bc; ls d3/ckpt_count_*.dmtcp || fails variable
        until_ok ls d3/dmtcp_restart_script.sh; dmtcp_command -q; wait $job",
    ),
    kept(
        "L25",
        "--ckpt-open-files saves large files, --allow-file-overwrite restores them",
        r"dmtcp_launch --checkpoint-open-files --allow-file-overwrite sh -c 'exec > data; exec ./count' & job=$!
        until_ok all_run 1; until_ok test -s data; dmtcp_command -kc; wait $job; is $? 85
        rm data; until_ok nobody_listens
        dmtcp_restart ckpt_*.dmtcp & job=$!
        until_ok all_run 1; grows data; is $(head -n 1 data) 1; dmtcp_command -q; wait $job",
    ),
    kept(
        "L26",
        "options that a library needs are accepted, each with a line",
        r#"for o in '--ckpt-signal 12' '--with-plugin /a.so:/b.so' --modify-env --pathvirt --disable-alloc-plugin --disable-dl-plugin \
            --disable-ssh-plugin --disable-event-plugin --disable-file-plugin --disable-pty-plugin --disable-socket-plugin \
            --disable-svipc-plugin --disable-timer-plugin --disable-pid-plugin --disable-ipc-plugin --disable-all-plugins \
            --no-plugins --kernel-loader; do
            dmtcp_launch $o true 2> err; is $? 0 "$o: $(cat err)"; is $(wc -l < err) 1 "$o: $(cat err)"; says err 'is not needed'
        done"#,
    ),
    kept(
        "L27",
        "options that were removed are accepted, each with a line",
        r#"for o in --no-coordinator --rm --batch-queue --explicit-srun --ib --infiniband --ib2tcp --ptrace --hbict --no-hbict \
            '--with-plugin-32 /a.so' '--debug-logs 1' --mpi --enable-forked-checkpointing --enable-fast-restart; do
            dmtcp_launch $o true 2> err; is $? 0 "$o: $(cat err)"; is $(wc -l < err) 1 "$o: $(cat err)"; says err 'is not needed'
        done"#,
    ),
    kept(
        "L28",
        "-q says less",
        "dmtcp_launch -q --rm true 2> err; is $? 0; is 0 $(wc -c < err); DMTCP_QUIET=1 dmtcp_launch --rm true 2> err; is 0 $(wc -c < err)",
    ),
    kept(
        "L29",
        "-t and --tmpdir are accepted",
        "dmtcp_launch -t /tmp --tmpdir /tmp true; is $? 0",
    ),
    kept(
        "L30",
        "--coord-logfile is the log of the coordinator that is started",
        "dmtcp_launch --coord-logfile log true; is $? 0; until_ok test -e log",
    ),
    kept(
        "L31",
        "dmtcp_checkpoint is its old name",
        "dmtcp_checkpoint ./count 1 4; is $? 4",
    ),
    kept(
        "L32",
        "the program finds its environment as it was: DISPLAY, LD_PRELOAD",
        "is \"$(DISPLAY=:7 SESSION_MANAGER=x dmtcp_launch sh -c 'echo $DISPLAY $SESSION_MANAGER ${LD_PRELOAD-none}')\" ':7 x none'",
    ),
    kept(
        "L33",
        "static programs are saved like all others",
        r"echo 'int pause(void); int main(void) { return pause(); }' > s.c; cc -static -o s s.c || exit 0
        dmtcp_launch ./s & job=$!; until_ok all_run 1; dmtcp_command -bc; is $? 0; ls ckpt_s_*.dmtcp || fails; dmtcp_command -q; wait $job",
    ),
    kept(
        "L34",
        "a stack without limit is no trouble",
        "ulimit -s unlimited 2> /dev/null; dmtcp_launch ./count 1 2> err; is $? 0; is 0 $(wc -c < err)",
    ),
    kept(
        "L35",
        "--enable-unique-checkpoint-filenames: a directory for each checkpoint",
        r"dmtcp_launch --enable-unique-checkpoint-filenames ./count > out & job=$!; until_ok all_run 1
        dmtcp_command -bc; dmtcp_command -kc; wait $job; is $? 85
        ls ckpt_*_00001/ckpt_count_*.dmtcp ckpt_*_00002/ckpt_count_*.dmtcp || fails; until_ok nobody_listens
        ls dmtcp_restart_script_*_00002.sh || fails
        ./dmtcp_restart_script.sh > again & job=$!; until_ok all_run 1; dmtcp_command -q; wait $job",
    ),
    kept(
        "L36",
        "DMTCP_UNIQUE_CKPT_PLUGIN does the same, --disable-unique-checkpoint-filenames undoes it",
        r"export DMTCP_UNIQUE_CKPT_PLUGIN=1
        dmtcp_launch ./count > out & job=$!; until_ok all_run 1; dmtcp_command -bc; ls ckpt_*_00001/*.dmtcp || fails; dmtcp_command -q; wait $job
        until_ok nobody_listens
        dmtcp_launch --disable-unique-checkpoint-filenames ./count > out & job=$!; until_ok all_run 1; dmtcp_command -bc; ls ckpt_count_*.dmtcp || fails; dmtcp_command -q; wait $job",
    ),
    kept(
        "L37",
        "dmtcp_nocheckpoint runs a program: its status, 1 without one, 2 when it cannot",
        "dmtcp_nocheckpoint ./count 1 6; is $? 6; dmtcp_nocheckpoint 2> err; is $? 1; dmtcp_nocheckpoint ./nothing 2> err; is $? 2",
    ),
    ignored(
        "L38",
        "dmtcp_nocheckpoint keeps a program out of the checkpoint",
        "a supervisor sees every process of the tree, and saves it with the others",
        r"dmtcp_launch sh -c 'dmtcp_nocheckpoint ./count 1000000 > inner; true' & job=$!; until_ok all_run 1; until_ok test -s inner
        dmtcp_command -kc; wait $job; stasis inspect --json ckpt_*.dmtcp | grep -q count && fails 'it is in the image'",
    ),
    ignored(
        "L39",
        "DMTCP_SIGCKPT: a signal to the program takes a checkpoint",
        "no handler is put into the program: SIGUSR2 is the program's own",
        r"dmtcp_launch sh -c 'trap : USR2; while :; do sleep 0.1; done' & job=$!; until_ok all_run 1
        kill -USR2 $(dmtcp_command -l | sed -n 's/.*:\([0-9]*\)\]@.*/\1/p'); sleep 1; saved || fails; dmtcp_command -q; wait $job",
    ),
];
