# Begins each job of a program. What a command prints, and its exit status, is compared under a
# name: `check NAME COMMAND…`. What differs from run to run a script takes out itself.
check() {
    echo "== $1"
    shift
    "$@" 2>&1
    echo "-- $?"
}
umask 022
mkdir -p /tmp/work
cd /tmp/work || exit
