# Runs jobs outside of any sandbox, as PID 1 of namespaces that end with it. Called with a root file
# system, or `/` for that of the machine, a directory for what changes, packages or nothing, a
# host name, and the jobs.
set -e
# Those of any machine, and its own name.
hosts() { printf '127.0.0.1 localhost\n::1 localhost\n127.0.0.1 %s\n' "$(hostname)"; }
root=$1 place=$2 packages=$3
hostname "$4"
shift 4
if [ "$root" = / ]; then
    hosts > "$place/hosts"
    # A machine that was just made by debootstrap has none.
    [ ! -e /etc/hosts ] || mount --bind "$place/hosts" /etc/hosts
    mount -t proc proc /proc
    mount -t tmpfs -o mode=1777 tmpfs /tmp
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
else
    mkdir "$place/upper" "$place/work" "$place/merged"
    chmod 755 "$place/upper"
    mount -t overlay overlay "$place/merged" \
        -o "lowerdir=$root,upperdir=$place/upper,workdir=$place/work"
    cd "$place/merged"
    mount -t proc proc proc
    mount -t sysfs -o ro sysfs sys
    mount -t tmpfs -o mode=755 tmpfs dev
    mkdir dev/pts dev/shm
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
    mount -t tmpfs -o mode=1777 tmpfs dev/shm
    mknod -m 666 dev/null c 1 3
    mknod -m 666 dev/zero c 1 5
    mknod -m 666 dev/full c 1 7
    mknod -m 666 dev/random c 1 8
    mknod -m 666 dev/urandom c 1 9
    mknod -m 666 dev/tty c 5 0
    ln -s pts/ptmx dev/ptmx
    ln -s /proc/self/fd dev/fd
    ln -s fd/0 dev/stdin
    ln -s fd/1 dev/stdout
    ln -s fd/2 dev/stderr
    hostname > etc/hostname
    hosts > etc/hosts
    if [ "$packages" ]; then
        mkdir repository
        mount --bind "$packages" repository
    fi
fi
# The loopback device: up.
perl -e '$up = pack("a16sx22", "lo", 0x41); socket(S, 2, 2, 0) && ioctl(S, 0x8914, $up) or die $!'
run='for job; do env -i $environment sh -c "$job" || echo "the job ends with $?"; done'
export environment="$ADL_TEST_ENVIRONMENT"
if [ "$root" != / ]; then
    # No mere chroot, in which no one can make a user namespace.
    pivot_root . .
    umount -l .
    cd /
fi
# Not even a test of someone's sets the clock of the machine.
machine=-sys_time,-wake_alarm,-sys_boot,-sys_module,-sys_rawio,-syslog
# What who runs the tests ignores (SIGINT, in the background of a shell), no job of adl's does.
exec env --default-signal setpriv --bounding-set "$machine" sh -c "$run" sh "$@"
