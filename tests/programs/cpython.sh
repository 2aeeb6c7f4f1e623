check version python3 --version
# The outcome of each test of CPython's own that did not pass, and the count of those that did.
# What needs the resources that it calls so, as a network, is not among them.
module() {
    timeout 400 python3 -m test -v --timeout 300 "$1" > log 2>&1 < /dev/null
    status=$?
    grep -aE "^[a-zA-Z0-9_]+ \(.*\) ?\.\.\. |^(test|[a-z_]+).* \.\.\. (ok|skipped|FAIL|ERROR)" log |
        grep -aoE "^[a-zA-Z0-9_]+ \([^)]*\)|(skipped .*|FAIL|ERROR)$" |
        paste -sd '\n' | awk '/^[a-zA-Z0-9_]+ \(/ { name = $0; next } { print name ": " $0 }' |
        sed 's/0x[0-9a-f]*/ADDRESS/g; s/@test_[0-9]*/@test_N/' | sort | uniq
    grep -aE "^(FAIL|ERROR):" log | sort | uniq
    grep -aoE "^(OK|FAILED)( \(.*\))?|^test_[a-z0-9_]+ skipped .*" log | sort | uniq
    return $status
}
for module in os posix subprocess signal threadsignals thread mmap fcntl ioctl pty openpty \
    resource grp pwd select poll epoll selectors socket socketserver ssl httpservers \
    wait3 wait4 fork1 popen eintr faulthandler shutil tempfile pathlib \
    posixpath glob uuid time platform sysconfig site getpass file fileio largefile \
    posix_spawn syslog crypt spwd; do
    [ -e "/usr/lib/python3.11/test/test_$module.py" ] || [ -d "/usr/lib/python3.11/test/test_$module" ] || continue
    check "test_$module" module "test_$module"
done
