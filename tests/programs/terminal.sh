check version tmux -V
export TERM=screen SHELL=/bin/sh PS1='$ '
# Waits until a pane shows something, and prints the lines.
shows() {
    i=0
    until tmux capture-pane -p -t "$1" | grep -q "$2"; do
        i=$((i + 1))
        [ $i -lt 300 ] || { echo "never: $2"; break; }
        sleep 0.1
    done
    tmux capture-pane -p -t "$1" | grep "$2"
}
check 'tmux starts' tmux -f /dev/null new-session -d -s one -n zero -x 80 -y 24 'exec env PS1="$ " sh'
check 'a prompt' shows one '^\$ *$'
check 'keys' tmux send-keys -t one 'echo a $((1 + 1)) b' Enter
check 'what they do' shows one '^a 2 b'
check 'the size' sh -c 'tmux send-keys -t one "clear; stty size; tty | cut -d/ -f1-3" Enter'
check 'as told' shows one '^24 80$'
check 'the terminal' shows one '^/dev/pts'
check 'another window' tmux new-window -t one -n two 'exec sleep 1000'
check 'a split' tmux split-window -t one:0 -d 'exec sleep 1000'
check 'windows' tmux list-windows -t one -F '#I #W #{window_panes}'
check 'the end of the windows' tmux kill-server
i=0
until tmux list-sessions 2>&1 | grep -q '^no server' || [ $i -gt 300 ]; do sleep 0.1; i=$((i + 1)); done
check 'no server' tmux list-sessions

# A shell with job control, on a terminal of its own.
cat > jobs.bash <<'END'
set -m
sleep 1000 &
jobs | sed 's/ \+/ /g'
kill -STOP %1; wait %1 2> /dev/null
jobs | sed 's/ \+/ /g'
bg %1 > /dev/null
jobs | sed 's/ \+/ /g'
kill -TERM %1; wait %1 2> /dev/null
echo "ended with $?"
sh -c 'kill -STOP $$; echo went on; exit 3' &
wait $! 2> /dev/null; echo "stopped with $?"
fg
echo "ended with $?"
[ "$(ps -o pgid= $$)" = "$(ps -o tpgid= $$)" ] && echo "in the foreground again"
trap 'echo interrupted' INT; kill -INT $$
set +m; trap 'echo larger' WINCH; stty rows 50 columns 132; sleep 0.1; stty size
END
# To what it runs script passes on the end of its input, which the terminal may show.
check 'job control' sh -c 'script -qec "bash jobs.bash" /dev/null | sed "s/^^@//"'
# Ctrl-C reaches the group in the foreground alone; Ctrl-Z stops it.
cat > keys.py <<'END'
import os, pty, re, select, time
pid, terminal = pty.fork()
if pid == 0:
    os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
seen = b""
def until(text):
    global seen
    end = time.monotonic() + 30
    while text not in seen and time.monotonic() < end:
        if select.select([terminal], [], [], 1)[0]:
            try:
                seen += os.read(terminal, 4096)
            except OSError:
                break
    if text not in seen:
        raise SystemExit(f"{text} is not in {seen}")
    print(text.decode().strip())
    seen = seen.partition(text)[2]
RUN = b'''perl -e '$| = 1; print "run" . "s\\n"; sleep 1000'\n'''
def type(text):
    os.write(terminal, text)
def ready():
    until(b"@@ ")
type(b"PS1='@''@ '; PS2=; set +o emacs; stty -echo\n"); ready()
type(RUN); until(b"runs\r\n"); type(b"\x03"); ready()
type(b"echo after $?\n"); until(b"after 130\r\n"); ready()
type(RUN); until(b"runs\r\n"); type(b"\x1a"); until(b"Stopped"); ready()
type(b"jobs %1 | cut -c1-14\n"); until(b"[1]+  Stopped"); ready()
type(b"bg >/dev/null; jobs %1 | cut -c1-14\n"); until(b"[1]+  Running"); ready()
type(b"kill %1; wait %1; echo killed $?\n"); until(b"killed 143\r\n"); ready()
type(b"cat\n"); type(b"line\n"); until(b"line\r\n"); type(b"\x04"); ready()
type(b"exit 7\n")
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
END
check 'keys that signal' python3 keys.py
cat > pty.py <<'END'
import fcntl, os, struct, termios, tty, signal
control, end = os.openpty()
print(os.ttyname(end).rsplit("/", 1)[0], os.isatty(end))
fcntl.ioctl(control, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 44, 0, 0))
print(os.get_terminal_size(end))
tty.setraw(end)
os.write(control, b"\x03abc")
print(os.read(end, 10))
os.close(end)
try:
    print(os.read(control, 1))
except OSError as error:
    print(error)
END
check 'pseudo-terminals' python3 pty.py
check 'no terminal' sh -c 'tty; sh -c ": > /dev/tty"'
check setsid sh -c 'setsid --wait sh -c "exit 4"'
check nohup sh -c 'nohup true < /dev/null'
