#!/bin/sh
# A job over two network namespaces, as over two machines: `sh tests/netns.sh GRAPHTOOL MODELS`. Needs root and iproute2; ends
# with 77 where this machine does not allow it.
set -eu
graphtool=$1 models=$2
a=gt$$a b=gt$$b work=$(mktemp -d)
clean() {
    for ns in $a $b; do ip netns del $ns 2>/dev/null || true; rm -rf /etc/netns/$ns; done
    rm -rf "$work"
}
trap clean EXIT
ip netns add $a 2>/dev/null && ip netns add $b 2>/dev/null || { echo "skipped: no network namespaces here"; exit 77; }
ip link add v0 netns $a type veth peer name v0 netns $b
ip -n $a addr add 10.77.0.1/24 dev v0
ip -n $b addr add 10.77.0.2/24 dev v0
for ns in $a $b; do ip -n $ns link set lo up; ip -n $ns link set v0 up; mkdir -p /etc/netns/$ns "$work/$ns"; done

fail() { echo "FAILED: $*"; cat "$work"/*/log/* "$work"/*/said 2>/dev/null | tail -40; exit 1; }
# Waits until the second machine's worker 1 has done something.
begun() {
    until grep -q progress "$work/$b/log/workerlog.1" 2>/dev/null; do kill -0 $second 2>/dev/null || fail "it ended before it began"; done
}
hosts() { printf '127.0.0.1 localhost\n%s one\n%s two\n' "$2" "$3" >/etc/netns/$1/hosts; }
head -2001 "$models/clicks.csv" >"$work/log.csv"
"$graphtool" rewrite "$models/widedeep_ts11/model.onnx" -o "$work/w.dist" --shards 2 --min-bytes 0 >/dev/null
job="--input $work/log.csv --bind dense=I1..I5 --bind sparse=C1..C4 --label click --output out.npz"
(cd "$work" && "$graphtool" run w.dist $job --batch-size 50 >local)
ends="--servers one:7000,two:7000 --workers one:7001,two:7001 --insecure"
# launch NAMESPACE [OPTION…]: in a directory of its own, as on a machine of its own.
launch() { ns=$1; shift; cd "$work/$ns" && exec ip netns exec $ns "$graphtool" launch "$work/w.dist" $job $ends "$@" >said 2>&1; }
both() {
    (launch $a --batch-size 50 $1) & first=$!
    (launch $b --batch-size 50 $2) & second=$!
    wait $first || fail "the first machine: $3"
    wait $second || fail "the second machine: $3"
    cmp "$work/out.npz" "$work/$a/out.npz" || fail "$3: other outputs"
    test ! -e "$work/$b/out.npz" || fail "$3: the second machine wrote an output"
    test ! -e "$work/$a/out.npz.parts" && test ! -e "$work/$b/out.npz.parts" || fail "$3: parts are left"
    test "$(tail -1 "$work/local")" = "$(tail -1 "$work/$a/said")" || fail "$3: other metrics"
    rm "$work/$a/out.npz"
    echo "ok: $3"
}

hosts $a 10.77.0.1 10.77.0.2
hosts $b 10.77.0.1 10.77.0.2
both "" "" "each machine knows both names"

# As Debian writes it: the own name is loopback.
hosts $a 127.0.1.1 10.77.0.2
hosts $b 10.77.0.1 127.0.1.1
(launch $a) && fail "loopback was told to another machine"
grep -q '"one:7000", which is 127.0.1.1 on this machine: two:7000 on another machine could not connect' "$work/$a/said" || fail "no word of loopback"
grep -q -- '--host or POD_IP' "$work/$a/said" || fail "no word of what to do"
echo "ok: the own name is loopback, refused"
both "--host 10.77.0.1" "--host 10.77.0.2" "the own name is loopback, --host says the address"

# Pservers on one machine, workers on the other, and the link between them is down for three seconds in the middle.
hosts $a 10.77.0.1 10.77.0.2
hosts $b 10.77.0.1 10.77.0.2
split="--servers one:7000,one:7002 --workers two:7001,two:7003 --insecure"
all="--input $models/clicks.csv --bind dense=I1..I5 --bind sparse=C1..C4 --label click --output out.npz --batch-size 4"
(cd "$work" && "$graphtool" run w.dist $all >local)
rm -rf "$work/$a/log" "$work/$b/log"
half() { ns=$1; cd "$work/$ns" && exec ip netns exec $ns "$graphtool" launch "$work/w.dist" $all $split >said 2>&1; }
(half $a) & first=$!
(half $b) & second=$!
begun
ip -n $b link set v0 down
start=$(date +%s%N)
sleep 3
ip -n $b link set v0 up
wait $second || fail "the workers behind a link that was down"
test $(($(date +%s%N) - start)) -gt 3000000000 || fail "the job was over before the link was down"
wait $first || fail "the pservers behind a link that was down"
cmp "$work/out.npz" "$work/$b/out.npz" || fail "a link that was down: other outputs"
test "$(tail -1 "$work/local")" = "$(tail -1 "$work/$b/said")" || fail "a link that was down: other metrics"
rm "$work/$b/out.npz"
echo "ok: the link was down for three seconds"

# The second machine is gone for good.
hosts $a 10.77.0.1 10.77.0.2
hosts $b 10.77.0.1 10.77.0.2
rm -rf "$work/$a/log" "$work/$b/log"
(launch $a --rpc-timeout 3 --batch-size 1) & first=$!
(launch $b --rpc-timeout 3 --batch-size 1) & second=$!
begun
kill -9 $second
start=$(date +%s)
wait $first && fail "a job without its second machine ended well"
test $(($(date +%s) - start)) -lt 10 || fail "it took more than 10 s"
grep -q 'error: worker 0 failed' "$work/$a/said" || fail "nobody was named"
test ! -e "$work/$a/out.npz" || fail "there is an output"
echo "ok: the second machine dies, the first says so: $(grep error: "$work/$a/said")"
