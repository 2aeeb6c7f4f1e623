check version python3 --version
cat > pool.py <<'END'
import multiprocessing as mp, os, sys
from multiprocessing import shared_memory
def square(x): return x * x
def add(block, lock, value):
    for _ in range(1000):
        with lock:
            value.value += 1
    shared_memory.SharedMemory(block).buf[0] += 1
def pipe(end): end.send({"pid": os.getpid() > 0, "data": b"x" * 100000}); end.close()
if __name__ == "__main__":
    for method in mp.get_all_start_methods():
        context = mp.get_context(method)
        with context.Pool(3) as pool:
            print(method, sum(pool.map(square, range(1000))))
        block = shared_memory.SharedMemory(create=True, size=4096)
        lock, value = context.Lock(), context.Value("i", 0, lock=False)
        processes = [context.Process(target=add, args=(block.name, lock, value)) for _ in range(3)]
        for process in processes:
            process.start(); process.join()
        print(method, value.value, block.buf[0], [process.exitcode for process in processes])
        block.close(); block.unlink()
        ours, theirs = context.Pipe()
        process = context.Process(target=pipe, args=(theirs,)); process.start()
        print(len(ours.recv()["data"])); process.join()
        with context.Manager() as manager:
            shared = manager.dict(a=1); shared["b"] = manager.list([1]); shared["b"].append(2)
            print(dict(a=shared["a"], b=list(shared["b"])))
        queue = context.Queue(); queue.put("q"); print(queue.get(timeout=60))
        print(context.Semaphore(2).acquire(timeout=1), context.Event().wait(0.01))
END
check multiprocessing python3 pool.py
check 'process pools' python3 -c '
from concurrent.futures import ProcessPoolExecutor
with ProcessPoolExecutor(2) as pool: print(list(pool.map(abs, [-1, -2, 3])))'
check 'memory of a name' python3 -c '
import mmap, os
fd = os.memfd_create("m"); os.ftruncate(fd, 8192)
with mmap.mmap(fd, 8192) as m: m[0:3] = b"abc"; print(os.pread(fd, 3, 0), m.flush())
with mmap.mmap(-1, 4096) as m:
    if os.fork() == 0: m[0] = 7; os._exit(0)
    os.wait(); print(m[0])'
check 'flags that are not there' python3 -c '
import os
for flags in [0xffffffff, 1 << 20]:
    try: print(os.memfd_create("m", flags))
    except OSError as error: print(error)'
check 'System V and POSIX' sh -c 'ipcmk --shmem 4096 --semaphore 2 --queue | sed "s/: .*//"; ipcs -m | awk "NR > 3 && NF { print \$3, \$4, \$5 }"; ls /dev/shm'
check asyncio python3 -c '
import asyncio, signal, os
async def main():
    process = await asyncio.create_subprocess_exec("sh", "-c", "cat; echo err >&2; exit 3",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    print(await process.communicate(b"in"), process.returncode)
    async def serve(reader, writer):
        writer.write((await reader.readline()).upper()); await writer.drain(); writer.close()
    for start, connect in [(asyncio.start_server, asyncio.open_connection)]:
        server = await start(serve, "127.0.0.1", 0)
        reader, writer = await connect(*server.sockets[0].getsockname())
        writer.write(b"hello\n"); print(await reader.read()); server.close()
    server = await asyncio.start_unix_server(serve, "socket")
    reader, writer = await asyncio.open_unix_connection("socket")
    writer.write(b"unix\n"); print(await reader.read()); server.close()
    got = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, got.set)
    os.kill(os.getpid(), signal.SIGUSR1); await asyncio.wait_for(got.wait(), 60); print("signal")
asyncio.run(main())'
check sockets python3 -c '
import socket, os, array
for family, address in [(socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_INET6, ("::1", 0)), (socket.AF_UNIX, "\0abstract")]:
    server = socket.socket(family); server.bind(address); server.listen()
    client = socket.socket(family); client.connect(server.getsockname()); client.sendall(b"x")
    print(family.name, server.accept()[0].recv(9))
a, b = socket.socketpair()
r, w = os.pipe(); socket.send_fds(a, [b"fd"], [w]); data, fds, *_ = socket.recv_fds(b, 9, 1)
os.write(fds[0], b"through"); print(data, os.read(r, 99))
print(b.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[4:8] == os.getuid().to_bytes(4, "little"))
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(("127.0.0.1", 0)); u.sendto(b"self", u.getsockname()); print(u.recv(9))
print(socket.if_nameindex())'
check 'names of the machine' python3 -c '
import socket
print(socket.gethostname(), sorted({a[4][0] for a in socket.getaddrinfo("localhost", 80)}), socket.gethostbyname(socket.gethostname()))'
check 'threads and signals' python3 -c '
import threading, signal, os, time, resource
n = []; ts = [threading.Thread(target=lambda: n.append(1)) for _ in range(200)]
[t.start() for t in ts]; [t.join() for t in ts]; print(len(n))
signal.signal(signal.SIGALRM, lambda *_: n.append(2)); signal.setitimer(signal.ITIMER_REAL, 0.01); signal.pause(); print(n[-1])
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]); os.kill(os.getpid(), signal.SIGUSR1); print(signal.sigtimedwait([signal.SIGUSR1], 60).si_signo)
pid = os.fork()
if pid == 0: os.abort()
print(os.waitstatus_to_exitcode(os.wait()[1]))
pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 5"], {}); print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
pid = os.fork()
if pid == 0: time.sleep(1000)
fd = os.pidfd_open(pid); signal.pidfd_send_signal(fd, signal.SIGKILL); print(os.waitid(os.P_PIDFD, fd, os.WEXITED).si_status)
print(os.nice(5), os.getpriority(os.PRIO_PROCESS, 0))'
check files python3 -c '
import os, fcntl, tempfile, shutil
with tempfile.TemporaryDirectory(dir=".") as d:
    p = os.path.join(d, "f"); open(p, "w").write("x" * 100000)
    os.link(p, p + "l"); os.symlink("f", p + "s"); os.mkfifo(p + "p"); print(os.stat(p).st_nlink, os.readlink(p + "s"))
    f = open(p, "r+b"); fcntl.flock(f, fcntl.LOCK_EX); fcntl.lockf(f, fcntl.LOCK_EX); os.posix_fallocate(f.fileno(), 0, 200000)
    print(os.sendfile(os.open(p + "c", os.O_RDWR | os.O_CREAT), f.fileno(), 0, 50), os.copy_file_range(f.fileno(), os.open(p + "r", os.O_RDWR | os.O_CREAT), 10))
    os.setxattr(p, "user.a", b"b"); print(os.getxattr(p, "user.a"), os.listxattr(p))
    os.utime(p, ns=(1, 2)); print(os.stat(p).st_mtime_ns)
    r, w = os.pipe2(os.O_CLOEXEC); print(fcntl.fcntl(w, fcntl.F_SETPIPE_SZ, 1 << 16), os.splice(f.fileno(), w, 10))
    shutil.copytree(d, d + "2", symlinks=True, ignore=lambda *_: ["fp"]); print(sorted(os.listdir(d + "2"))); shutil.rmtree(d + "2")
    print(os.scandir(d).__next__().name != "", os.access(p, os.W_OK), os.statvfs(d).f_namemax)'
check venv sh -c 'python3 -m venv --without-pip v && v/bin/python -c "import sys; print(sys.prefix, sys.base_prefix)"'
check zipapp sh -c 'mkdir app && echo "print(\"zipped\")" > app/__main__.py && python3 -m zipapp app && python3 app.pyz'
check sqlite python3 -c '
import sqlite3
c = sqlite3.connect("db"); c.execute("pragma journal_mode=wal"); c.execute("create table t (x)"); c.executemany("insert into t values (?)", [(i,) for i in range(1000)]); c.commit()
print(sqlite3.connect("db").execute("select sum(x) from t").fetchone())'
