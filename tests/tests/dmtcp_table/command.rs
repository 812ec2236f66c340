//! `dmtcp_command`.

use super::{Entry, kept};

pub(super) const TABLE: &[Entry] = &[
    kept(
        "C1",
        "status: words at their places",
        "dmtcp_coordinator --daemon -q; set -- $(dmtcp_command -s); is $7 NUM_PEERS=0; is $8 RUNNING=no; dmtcp_command -q",
    ),
    kept(
        "C2",
        "status, in every spelling",
        r"dmtcp_coordinator --daemon -q; for c in s -s --s status --status ---status; do dmtcp_command $c > out; is $? 0; says out '^Coordinator:$'; says out '^  Host: localhost$'; says out '^Status...$'; says out '^  CKPT_INTERVAL=0 (checkpoint manually)$'; done; dmtcp_command -q",
    ),
    kept(
        "C3",
        "list",
        "dmtcp_launch ./count > o & job=$!; until_ok all_run 1; for c in l t list --list; do dmtcp_command $c > out; is $? 0; says out '^Client List:$'; says out '^#, PROG\\[virtPID:realPID\\]@HOST, DMTCP-UNIQUEPID, STATE, BARRIER$'; says out '^1, count\\[[0-9]*:[0-9]*\\]@.*, [0-9a-f]*-[0-9]*-[0-9a-f]*, WorkerState::RUNNING, $'; done; dmtcp_command -q; wait $job",
    ),
    kept(
        "C4",
        "checkpoint returns at once, and the image comes",
        "dmtcp_launch ./count > o & job=$!; until_ok all_run 1; for c in c -c --checkpoint; do dmtcp_command $c; is $? 0; until_ok saved; until_ok running; done; dmtcp_command -q; wait $job",
    ),
    kept(
        "C5",
        "bcheckpoint waits",
        "dmtcp_launch ./count > o & job=$!; until_ok all_run 1; for c in bc -bc --bcheckpoint; do dmtcp_command $c; is $? 0; ls ckpt_*.dmtcp || fails; rm *.dmtcp; done; dmtcp_command -q; wait $job",
    ),
    kept(
        "C6",
        "kcheckpoint, in every spelling",
        "for c in kc ck K Kc --kcheckpoint; do until_ok nobody_listens; dmtcp_launch ./count > o 2> e & job=$!; until_ok all_run 1; dmtcp_command $c; is $? 0; wait $job; is $? 85; rm *.dmtcp; done",
    ),
    kept(
        "C7",
        "interval, in every spelling",
        "dmtcp_coordinator --daemon -q; for c in 'i 41' i41 -i41 '-i 41' '--interval 41'; do is \"$(dmtcp_command $c)\" 'Interval changed to 41'; dmtcp_command -s > st; says st 'CKPT_INTERVAL=41$'; dmtcp_command i 0 > o; done; dmtcp_command -q",
    ),
    kept(
        "C8",
        "an interval changed while the program runs",
        "dmtcp_launch -i 259190 ./count > o & job=$!; until_ok all_run 1; dmtcp_command -i 1 > out; until_ok saved; dmtcp_command -q; wait $job",
    ),
    kept(
        "C9",
        "kill: the programs end, as killed, the coordinator stays",
        "dmtcp_coordinator --daemon -q; for c in k --kill; do dmtcp_launch ./count > o 2> e & job=$!; until_ok all_run 1; dmtcp_command $c; is $? 0; wait $job; is $? 137; dmtcp_command -s > st; says st NUM_PEERS=0; done; dmtcp_command -q",
    ),
    kept(
        "C10",
        "quit: the coordinator ends as well, and its port is free",
        "for c in q -q --quit; do dmtcp_coordinator --daemon -q; is $? 0; dmtcp_command $c; is $? 0; done",
    ),
    kept(
        "C11",
        "-h and -p, before and behind",
        "p=$DMTCP_COORD_PORT; unset DMTCP_COORD_PORT; dmtcp_coordinator --daemon -q -p $p; dmtcp_command -h localhost -p $p -s > o; is $? 0; dmtcp_command --status --coord-port $p --coord-host localhost > o; is $? 0; dmtcp_command -p$p -q; is $? 0",
    ),
    kept(
        "C12",
        "no coordinator: 2, and what to do",
        "dmtcp_command -s 2> err; is $? 2; says err 'Coordinator not found. Please check port and host.'; dmtcp_command -bc 2> err; is $? 2",
    ),
    kept(
        "C13",
        "no program: 2, and the words for it",
        "dmtcp_coordinator --daemon -q; for c in -c -bc -kc; do dmtcp_command $c 2> err; is $? 2; says err 'Error, computation not in running state.'; done; dmtcp_command -q",
    ),
    kept(
        "C14",
        "help and version: 1; nothing and unknown words: 1",
        "for c in --help h '?' --version '' frobnicate; do dmtcp_command $c > out 2> err; is $? 1 \"$c\"; done",
    ),
    kept(
        "C15",
        "several commands: all, in their order",
        "dmtcp_launch ./count > o 2> e & job=$!; until_ok all_run 1; dmtcp_command -bc -q; is $? 0; ls ckpt_*.dmtcp || fails; wait $job; is $? 137; until_ok nobody_listens",
    ),
    kept(
        "C16",
        "an unknown word does nothing",
        "dmtcp_launch ./count > o 2> e & job=$!; until_ok all_run 1; dmtcp_command frobnicate -k 2> err; is $? 1; all_run 1 || fails; dmtcp_command -q; wait $job",
    ),
    kept(
        "C17",
        "--ckpt-open-files --bcheckpoint, as in centres' scripts",
        "dmtcp_launch ./count > o 2> e & job=$!; until_ok all_run 1; dmtcp_command --ckpt-open-files --bcheckpoint 2> err; is $? 0; ls ckpt_*.dmtcp || fails; dmtcp_command -q; wait $job",
    ),
    kept(
        "C18",
        "--quiet, before and behind",
        "dmtcp_coordinator --daemon -q; dmtcp_command --quiet --status > o; is $? 0; dmtcp_command --status --quiet > o; is $? 0; dmtcp_command --quiet --quit",
    ),
    kept(
        "C19",
        "--json: one line, with the keys in their order",
        r#"h='"coordinator_host":"localhost","coordinator_port":'$DMTCP_COORD_PORT; head() { echo '{"schema_version":1,"command":"'$1'","command_status":"'$2'",'$h; }; ok=DMT_COORD_SUCCESS
        dmtcp_coordinator --daemon -q
        is "$(dmtcp_command --json -s)" "$(head DMT_STATUS $ok)"',"num_peers":0,"running":false,"checkpoint_interval":0}'
        dmtcp_launch ./count > o 2> e & job=$!; until_ok all_run 1
        is "$(dmtcp_command -s --json)" "$(head DMT_STATUS $ok)"',"num_peers":1,"running":true,"checkpoint_interval":0}'
        is "$(dmtcp_command --json -i 30)" "$(head DMT_UPDATE_CKPT_INTERVAL $ok)"',"checkpoint_interval":30}'
        is "$(dmtcp_command --json -bc)" "$(head DMT_BLOCKING_CKPT $ok)"',"num_peers":1}'
        is "$(dmtcp_command --json -c)" "$(head DMT_CHECKPOINT $ok)"',"num_peers":1}'
        until_ok running
        dmtcp_command --json -l > list; is $(wc -l < list) 1; says list '"command":"DMT_LIST".*"workers":"Client List:\\n#, PROG.*\\n1, count.*\\n\\n"}$'
        is "$(dmtcp_command --json -kc)" "$(head DMT_KILL_AFTER_CKPT $ok)"',"num_peers":1}'; wait $job
        is "$(dmtcp_command --json -k)" "$(head DMT_KILL $ok)}"
        is "$(dmtcp_command --json -bc)" "$(head DMT_BLOCKING_CKPT DMT_COORD_NOT_RUNNING)}"
        is "$(dmtcp_command --json --help)" "$(head DMT_HELP $ok)}"
        dmtcp_command --json --version > v; says v '"command":"DMT_VERSION".*"version":"[0-9.]*"}$'
        is "$(dmtcp_command --json -q)" "$(head DMT_QUIT $ok)}"
        is "$(dmtcp_command --json -s 2> err)" "$(head DMT_STATUS DMT_COORD_NOT_FOUND)}"; is $(status dmtcp_command --json -s) 2
        dmtcp_command --json frobnicate > bad; is $? 2; says bad '"command":"DMT_INVALID_COORDINATOR_COMMAND","command_status":"DMT_COORD_INVALID_COMMAND"'"#,
    ),
];
