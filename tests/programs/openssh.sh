echo 'deb [trusted=yes] file:/repository ./' > /etc/apt/sources.list
apt-get update > /dev/null 2>&1
check install sh -c 'apt-get install -y --no-install-recommends openssh-server openssh-client 2>&1 | grep "^Setting up\|^E:\|rror"'
command -v /usr/sbin/sshd > /dev/null || exit 1
check version ssh -V
check 'its user' id sshd
check users sh -c 'useradd --create-home --shell /bin/bash alice && echo alice:secret | chpasswd'
mkdir -p /run/sshd
check configuration /usr/sbin/sshd -t
ssh-keygen -q -t ed25519 -N '' -f key
check 'keys' sh -c 'install -d -m 700 -o alice -g alice ~alice/.ssh && install -m 600 -o alice -g alice key.pub ~alice/.ssh/authorized_keys'
check start /usr/sbin/sshd -o PidFile=/run/sshd.pid
i=0
until ssh-keyscan -t ed25519 127.0.0.1 2> /dev/null | grep -q ed25519 || [ $i -gt 300 ]; do sleep 0.1; i=$((i + 1)); done
#job
login() { ssh -i key -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR "$@"; }
check login login alice@127.0.0.1 'id -un; pwd; echo $SHELL'
check 'login by name' login alice@localhost 'id -un'
check 'with a terminal' sh -c 'script -qec "ssh -tt -i key -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR alice@127.0.0.1 \"tty | cut -d/ -f1-3; stty size > /dev/null && echo has a size\"" /dev/null | sed "s/^^@//"'
check 'exit status' login alice@127.0.0.1 'exit 7'
check 'a login shell' sh -c 'echo "umask; ulimit -c > /dev/null; id -Gn" | ssh -i key -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR alice@127.0.0.1 bash -l'
check 'no key, no login' ssh -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o PreferredAuthentications=publickey alice@127.0.0.1 true
check scp sh -c 'echo content > f; scp -q -i key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR f alice@127.0.0.1:g && stat -c "%U %s" ~alice/g'
check sftp sh -c 'echo "ls g" | sftp -q -b - -i key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR alice@127.0.0.1'
check 'a port handed on' sh -c 'ssh -f -N -M -S control -i key -o ExitOnForwardFailure=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -L 2222:127.0.0.1:22 alice@127.0.0.1; ssh -p 2222 -i key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR alice@127.0.0.1 "echo through"; ssh -S control -O exit alice@127.0.0.1'
check 'an agent' sh -c 'eval "$(ssh-agent)" > /dev/null; ssh-add -q key; ssh-add -l | wc -l; ssh -A -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR alice@127.0.0.1 "ssh-add -l | wc -l"; ssh-agent -k > /dev/null'
cat > password.py <<'END'
import os, pty, sys
pid, fd = pty.fork()
if pid == 0:
    os.execvp("ssh", ["ssh", "-o", "PubkeyAuthentication=no", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "alice@127.0.0.1", "id -un"])
seen = b""
try:
    while True:
        data = os.read(fd, 999)
        if not data: break
        if b"password:" in data: os.write(fd, b"secret\n")
        seen += data
except OSError: pass
print(seen.split(b"password:")[-1].strip().decode(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
END
check 'a password' python3 password.py
check 'the end' sh -c 'kill $(cat /run/sshd.pid)'
