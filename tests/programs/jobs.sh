# Children in sleep, pipelines, wait, a trap, a coprocess-like loop and an open file.
set -u
trap 'echo leaving >> log' EXIT
exec 5> log
shopt -s lastpipe 2> /dev/null
total=0
for round in 1 2 3 4 5 6 7 8 9 10 11 12 13; do
    sleep 0.3 &
    first=$!
    (sleep 0.2; exit $round) &
    second=$!
    count=$(seq 1 20000 | awk '{ s += $1 % 7 } END { print s }' | cat)
    lines=0
    while read -r line; do
        lines=$((lines + line))
        read -rt 0.001 < /dev/null
    done < <(seq 1 60)
    wait $first
    wait $second
    status=$?
    total=$((total + count + lines + status))
    echo "round $round: $count $lines $status $total"
    echo "round $round" >&5
done
echo "jobs: $(jobs | wc -l) total $total"
