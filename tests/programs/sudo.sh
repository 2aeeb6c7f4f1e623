echo 'deb [trusted=yes] file:/repository ./' > /etc/apt/sources.list
apt-get update > /dev/null 2>&1
check install sh -c 'apt-get install -y --no-install-recommends sudo 2>&1 | grep "^Setting up\|^E:\|rror"'
command -v sudo > /dev/null || exit 1
check version sh -c 'sudo --version | head -1'
check users sh -c 'useradd --create-home --groups sudo alice && useradd bob'
check 'root by root' sudo id -un
check 'another by root' sudo -u alice id
check 'a login by root' sudo -i -u alice sh -c 'pwd; echo $USER $HOME'
check 'an environment' sudo -u alice FOO=bar sh -c 'echo $FOO $SUDO_USER'
check 'a group' sudo -u alice -g bob id -gn
check 'with a terminal' sh -c 'script -qec "sudo -u alice sh -c \"tty | cut -d/ -f1-3; id -un\"" /dev/null | sed "s/^^@//"'
check visudo visudo -c
check list sh -c 'sudo -l -U alice | tail -1'
echo 'alice ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/alice
check 'root by a user, by set-user-id' su alice -c 'sudo -n id -un'
check 'su to root by a user' su alice -c 'su -c true < /dev/null'
