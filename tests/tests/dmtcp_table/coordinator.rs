//! `dmtcp_coordinator`.

use super::{Entry, kept};

pub(super) const TABLE: &[Entry] = &[
    kept(
        "K1",
        "--daemon returns when it listens",
        "dmtcp_coordinator --daemon 2> err; is $? 0; dmtcp_command -s > out; is $? 0; says err '    Port: '; dmtcp_command -q",
    ),
    kept(
        "K2",
        "the port: -p, -pP, --port, --coord-port, or as an argument",
        r"p=$DMTCP_COORD_PORT; unset DMTCP_COORD_PORT
        for o in '-p '$p -p$p '--port '$p '--coord-port '$p $p; do
            dmtcp_coordinator --daemon -q $o; is $? 0 $o; dmtcp_command -p $p -s > out; is $? 0 $o; dmtcp_command -p $p -q
        done",
    ),
    kept(
        "K3",
        "port 0 and --port-file, which is removed at the end",
        r"dmtcp_coordinator --daemon -q -p 0 --port-file port; is $(stat -c %a port) 600; p=$(cat port); dmtcp_command -p $p -s > out; is $? 0
        dmtcp_command -p $p -q; until_ok test ! -e port",
    ),
    kept(
        "K4",
        "--status-file",
        r"dmtcp_coordinator --daemon -q --status-file st; until_ok grep -q Interval st; dmtcp_command -q; until_ok grep -q exited st
        for line in 'Coordinator started: ' 'Status...' 'Host: ' Port:.$DMTCP_COORD_PORT 'Checkpoint Interval: ' 'Coordinator exited: '; do says st ^$line; done",
    ),
    kept(
        "K5",
        "--ckptdir and DMTCP_CHECKPOINT_DIR: where the restart script goes",
        r"mkdir s; dmtcp_coordinator --daemon -q --ckptdir s; dmtcp_launch ./count > out & job=$!; until_ok all_run 1; dmtcp_command -bc
        until_ok ls s/dmtcp_restart_script.sh; dmtcp_command -q; wait $job",
    ),
    kept(
        "K6",
        "--exit-on-last",
        "dmtcp_coordinator --daemon -q --exit-on-last; dmtcp_command -s > out; is $? 0; dmtcp_launch ./count 1; until_ok nobody_listens",
    ),
    kept(
        "K7",
        "without it the coordinator stays",
        "dmtcp_coordinator --daemon -q; dmtcp_launch ./count 1; dmtcp_command -s > out; is $? 0; dmtcp_command -q",
    ),
    kept(
        "K8",
        "--kill-after-ckpt, and its old name --exit-after-ckpt",
        r"for o in --kill-after-ckpt --exit-after-ckpt; do
            dmtcp_coordinator --daemon -q $o; dmtcp_launch ./count > out 2> err & job=$!; until_ok all_run 1; dmtcp_command -bc; wait $job; is $? 85 $o; dmtcp_command -q
        done",
    ),
    kept(
        "K9",
        "--timeout ends it, whatever happens, and the programs run on",
        "dmtcp_coordinator --daemon -q --timeout 1; dmtcp_launch ./count > out 2> err & job=$!; until_ok nobody_listens; grows out; kill $job; wait $job",
    ),
    kept(
        "K10",
        "--stale-timeout ends it without programs",
        "dmtcp_coordinator --daemon -q --stale-timeout 1; until_ok nobody_listens",
    ),
    kept(
        "K11",
        "-i, -iN, --interval and the variable",
        "for o in '-i 9' -i9 '--interval 9'; do dmtcp_coordinator --daemon -q $o; dmtcp_command -s > st; says st 'CKPT_INTERVAL=9$'; dmtcp_command -q; done; DMTCP_CHECKPOINT_INTERVAL=8 dmtcp_coordinator --daemon -q; dmtcp_command -s > st; says st 'CKPT_INTERVAL=8$'; dmtcp_command -q",
    ),
    kept(
        "K12",
        "its interval is that of programs that say none",
        "dmtcp_coordinator --daemon -q -i 1; dmtcp_launch ./count > out & job=$!; until_ok saved; dmtcp_command -q; wait $job",
    ),
    kept(
        "K13",
        "--coord-logfile and DMTCP_COORD_LOG_FILENAME",
        "dmtcp_coordinator --daemon -q --coord-logfile log; until_ok test -e log; dmtcp_command -q",
    ),
    kept(
        "K14",
        "-h and --help: 0, --version: 0, an unknown option: 1",
        "is $(status dmtcp_coordinator -h) 0; is $(status dmtcp_coordinator --help) 0; is $(status dmtcp_coordinator --version) 0; is $(status dmtcp_coordinator --frobnicate) 1",
    ),
    kept(
        "K15",
        "-t and --write-kv-data are accepted",
        "dmtcp_coordinator --daemon -q -t /tmp --write-kv-data; is $? 0; dmtcp_command -q",
    ),
    kept(
        "K16",
        "a port in use: 1",
        "dmtcp_coordinator --daemon -q; dmtcp_coordinator 2> err < /dev/null; is $? 1; says err 'in use'; dmtcp_command -q",
    ),
    kept(
        "K17",
        "the banner",
        r"mkfifo in; dmtcp_coordinator --exit-on-last < in > out 2> err & c=$!; exec 9> in; until_ok grep -q 'Type' err
        for line in 'dmtcp_coordinator starting' '    Host: ' '    Port: '$DMTCP_COORD_PORT '    Checkpoint Interval: ' '    Exit on last client: 1' 'for help.'; do says err $line; done
        says out 'dmtcp> '; echo q >&9; wait $c; is $? 0",
    ),
    kept(
        "K18",
        "the interactive commands, one a line, each of them",
        r"mkfifo in; dmtcp_coordinator < in > out 2> err & c=$!; exec 9> in; until_ok there
        dmtcp_launch ./count > n 2> e & job=$!; until_ok all_run 1
        printf '%s\n' l t LIST s i 'i 12' i u '?' h c bc x >&9
        until_ok grep -q 'unhandled user command: x' out
        is $(grep -c 'Client List' out) 3; says out NUM_PEERS=1; says out 'Interval: 0'; says out 'Interval: 12'; says out COMMANDS; ls ckpt_*.dmtcp || fails
        echo kc >&9; wait $job; is $? 85; echo k >&9; echo Q >&9; wait $c; is $? 0",
    ),
    kept(
        "K19",
        "SIGINT ends the programs and the coordinator",
        "dmtcp_coordinator -q < /dev/null > o 2> e & c=$!; until_ok there; dmtcp_launch ./count > out 2> err & job=$!; until_ok all_run 1; kill -INT $c; wait $job; is $? 137; until_ok nobody_listens",
    ),
    kept(
        "K20",
        "SIGTERM ends the coordinator, and the programs run on",
        "dmtcp_coordinator -q < /dev/null > o 2> e & c=$!; until_ok there; dmtcp_launch ./count > out 2> err & job=$!; until_ok all_run 1; kill $c; wait $c; is $? 0; grows out; kill $job",
    ),
    kept(
        "K21",
        "it listens on this host only",
        "dmtcp_coordinator --daemon -q; h=$(printf %04X $DMTCP_COORD_PORT); grep -i \" 0100007F:$h 00000000:0000 0A\" /proc/net/tcp > l; is $(wc -l < l) 1; grep -i \" 00000000:$h \" /proc/net/tcp && fails; dmtcp_command -q",
    ),
    kept(
        "K22",
        "a coordinator that a launch was given in one line",
        "dmtcp_coordinator --daemon -q --exit-on-last dmtcp_launch -i 259190 ./count 2 5; is $? 5; until_ok nobody_listens",
    ),
];
