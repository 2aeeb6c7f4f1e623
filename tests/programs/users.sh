check version sh -c 'dpkg-query -W -f "\${Package} \${Version}\n" passwd util-linux'
check useradd useradd --create-home --shell /bin/sh alice
check groupadd groupadd team
check usermod usermod --append --groups team alice
check gpasswd gpasswd --add alice team
check chpasswd sh -c 'echo alice:secret | chpasswd'
check getent getent passwd alice
check su su alice -c 'id -un; id -Gn; id -u'
check 'su as a login' su - alice -c 'pwd; echo $USER $HOME $SHELL'
check runuser runuser -u alice -- id -un
check setpriv setpriv --reuid alice --regid team --init-groups id
check 'alice may not' su alice -c 'cat /etc/shadow; echo x > /etc/passwd; kill -0 1'
check 'alice writes at home' su - alice -c 'echo mine > file && stat -c "%U %G %a" file'
check chown sh -c 'touch f && chown alice:team f && stat -c "%U %G" f && chown 1234:4321 f && stat -c "%u %g" f'
check 'set-group-id' sh -c 'mkdir d && chgrp team d && chmod 2775 d && su alice -c "touch d/f" && stat -c "%U %G" d/f'
check passwd sh -c 'passwd --status alice | cut -d " " -f 1-2; passwd --lock alice; passwd --status alice | cut -d " " -f 1-2'
check chage sh -c 'chage --maxdays 30 alice && chage --list alice | tail -3'
check chsh sh -c 'chsh --shell /bin/bash alice && getent passwd alice'
check newgrp sh -c 'echo "id -gn" | su alice -c "newgrp team"'
check 'many ids' sh -c 'useradd --uid 60000 bob && su bob -c "id -u"'
check 'a system user' sh -c 'useradd --system --no-create-home daemon2 && id -un daemon2'
check userdel sh -c 'userdel --remove alice && ! id alice && ls /home'
check groupdel groupdel team
check pwck sh -c 'pwck --read-only --quiet; grpck --read-only'
