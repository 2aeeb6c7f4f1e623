check version sh -c 'gdb --version | head -1; valgrind --version'
cat > work.c <<'END'
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
static int square(int x) { return x * x; }
int main(int argc, char **argv) {
    volatile int y = square(7);
    write(1, "work\n", 5);
    if (argc > 1) { char *volatile p = malloc(10); p = 0; y += *(volatile int *)p; }
    return y - 49;
}
END
gcc -g -o work work.c
# Without addresses and numbers of processes.
told() { "$@" 2>&1 | sed 's/0x[0-9a-f]*/ADDRESS/g; s/process [0-9]*/process N/g; s/LWP [0-9]*/LWP N/'; }
check 'gdb: a break point' told gdb -nx -batch -ex 'break square' -ex run -ex 'print x' -ex finish -ex continue ./work
check 'gdb: a crash' told gdb -nx -batch -ex run -ex 'print $_siginfo.si_signo' -ex backtrace --args ./work crash
check 'gdb: attach' sh -c 'sleep 1000 & gdb -nx -batch -p $! -ex "print 1 + 1" 2>&1 | grep "^\$1"; kill $!'
check 'gdb: forks' told gdb -nx -batch -ex 'set follow-fork-mode child' -ex 'set detach-on-fork off' -ex run -ex 'info inferiors' --args sh -c '/bin/true; :'
check 'gdb: threads' sh -c 'gdb -nx -batch -ex "set debuginfod enabled off" -ex "run" --args python3 -c "
import threading; t = threading.Thread(target=print, args=(1,)); t.start(); t.join()" 2>&1 | grep -c "New Thread"'
check valgrind sh -c 'valgrind -q --error-exitcode=9 ./work'
check 'valgrind: an invalid read' sh -c 'valgrind ./work crash 2>&1 | sed "s/^==[0-9]*==/==N==/; s/^\*\*[0-9]*\*\*//; s/0x[0-9A-F]*/ADDRESS/g" | grep "Invalid\|Process terminating\|definitely"'
check 'valgrind: helgrind' sh -c 'valgrind -q --tool=helgrind --error-exitcode=9 ./work'
check 'process_vm_readv of a child' python3 -c '
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
class Vec(ctypes.Structure): _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]
text = ctypes.create_string_buffer(b"of the child"); r, w = os.pipe()
pid = os.fork()
if pid == 0: os.read(r, 1); os._exit(0)
into = ctypes.create_string_buffer(12)
n = libc.process_vm_readv(pid, ctypes.byref(Vec(ctypes.addressof(into), 12)), 1, ctypes.byref(Vec(ctypes.addressof(text), 12)), 1, 0)
print(n, into.raw if n > 0 else os.strerror(ctypes.get_errno())); os.write(w, b"x"); os.wait()'
