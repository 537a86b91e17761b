#!/bin/sh
# Disks that are full and directories that take nothing, as the kernel has them: `sh tests/tmpfs.sh GRAPHTOOL MODELS`. Needs
# root, or user namespaces; ends with 77 where this machine does not allow it.
set -eu
graphtool=$1 models=$2
if [ "${INSIDE:-}" = "" ]; then
    user=; [ "$(id -u)" = 0 ] || user=-r
    unshare $user -m true 2>/dev/null || { echo "skipped: no mount namespaces here"; exit 77; }
    INSIDE=1 exec unshare $user -m sh "$0" "$@"
fi
work=$(mktemp -d)
trap 'umount -l "$work/full" 2>/dev/null || true; rm -rf "$work"' EXIT
mkdir "$work/full"
mount -t tmpfs -o size=64k tmpfs "$work/full" 2>/dev/null || { echo "skipped: no tmpfs here"; exit 77; }
umount "$work/full"

fail() { echo "FAILED: $*"; cat "$work/said" 2>/dev/null; exit 1; }
# said FILE: one line that begins with error.
one_line() { [ "$(grep -c . "$work/said")" = 1 ] && grep -q '^error: ' "$work/said" || fail "$1: not one line"; }
wide=$models/widedeep_ts11/model.onnx deep=$models/deepfm_ts13/model.onnx
head -1001 "$models/clicks.csv" >"$work/log.csv"
"$graphtool" rewrite "$deep" -o "$work/old.dist" --min-bytes 0 >/dev/null
"$graphtool" rewrite "$wide" -o "$work/new.dist" --min-bytes 0 >/dev/null
"$graphtool" rewrite "$wide" -o "$work/wide.dist" --shards 3 --min-bytes 0 >/dev/null
"$graphtool" reshard "$work/wide.dist" -o "$work/cut.dist" --shards 2 >/dev/null
job="--input $work/log.csv --bind dense=I1..I5 --bind sparse=C1..C4"
"$graphtool" run "$wide" $job --output "$work/new.npz" >/dev/null

# fill NAME OLD NEW COMMAND…: the command in disks of more and more room, until it has enough; OLD is what it finds as NAME
# ("" for nothing), NEW what it makes of it.
fill() {
    name=$1 old=$2 new=$3 refused=0; shift 3
    for size in $(seq 4 12 2000); do
        mount -t tmpfs -o size=${size}k tmpfs "$work/full"
        if [ "$old" != "" ] && ! cp -r "$old" "$work/full/$name" 2>/dev/null; then umount "$work/full"; continue; fi
        if (cd "$work/full" && "$graphtool" "$@") >/dev/null 2>"$work/said"; then
            diff -r "$new" "$work/full/$name" >/dev/null || fail "$name in ${size}k: done, and another result"
            umount "$work/full"
            [ $refused -gt 0 ] || fail "$name: never refused"
            echo "ok: $name, refused $refused times, done in ${size}k"
            return
        fi
        one_line "$name in ${size}k"
        grep -q 'No space left on device' "$work/said" || fail "$name in ${size}k: no reason"
        if [ "$old" = "" ]; then [ ! -e "$work/full/$name" ] || fail "$name in ${size}k: half a result"
        else diff -r "$old" "$work/full/$name" >/dev/null || fail "$name in ${size}k: the old one is gone"; fi
        [ -z "$(find "$work/full" -name '.*.tmp-*')" ] || fail "$name in ${size}k: leftovers"
        refused=$((refused + 1))
        umount "$work/full"
    done
    fail "$name: no disk is large enough"
}
fill a.dist "" "$work/new.dist" rewrite "$wide" -o a.dist --min-bytes 0
fill a.dist "$work/old.dist" "$work/new.dist" rewrite "$wide" -o a.dist --min-bytes 0
fill a.dist "$work/wide.dist" "$work/cut.dist" reshard a.dist --shards 2
fill m.onnx "" "$wide" merge "$work/new.dist" -o m.onnx
fill out.npz "" "$work/new.npz" run "$wide" $job --output out.npz

# A directory that is read-only.
mount -t tmpfs tmpfs "$work/full"
cp -r "$work/old.dist" "$work/full/a.dist"
mount -o remount,ro "$work/full"
refused() {
    if (cd "$work/full" && "$graphtool" "$@") >/dev/null 2>"$work/said"; then fail "$* in a read-only directory"; fi
    one_line "$1"; grep -q 'Read-only file system' "$work/said" || fail "$1: no reason"
}
refused rewrite "$wide" -o a.dist --min-bytes 0
refused rewrite "$wide" -o b.dist --min-bytes 0
refused reshard a.dist --shards 2
refused merge a.dist -o m.onnx
refused run "$wide" $job --output out.npz
refused run "$wide" $job --output out.csv
refused optimize "$wide" -o m.onnx
diff -r "$work/old.dist" "$work/full/a.dist" >/dev/null || fail "a read-only deployment changed"
(cd "$work/full" && "$graphtool" check a.dist) >/dev/null || fail "a read-only deployment cannot be used"
echo "ok: read-only"
