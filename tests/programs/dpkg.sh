check version dpkg-query -W -f '${Package} ${Version}\n' dpkg apt
mkdir -p package/DEBIAN package/usr/bin package/var/lib/greeter repository
cat > package/DEBIAN/control <<'END'
Package: greeter
Version: 1.0
Architecture: all
Maintainer: No One <no@one>
Depends: passwd
Description: greets
END
cat > package/DEBIAN/postinst <<'END'
#!/bin/sh
set -e
if [ "$1" = configure ] && ! getent passwd greeter > /dev/null; then
    useradd --system --user-group --home-dir /var/lib/greeter --shell /usr/sbin/nologin greeter
fi
chown greeter:greeter /var/lib/greeter
chmod 750 /var/lib/greeter
dpkg-statoverride --list /usr/bin/greet > /dev/null ||
    dpkg-statoverride --update --add greeter greeter 2755 /usr/bin/greet
END
cat > package/DEBIAN/postrm <<'END'
#!/bin/sh
set -e
if [ "$1" = purge ]; then
    dpkg-statoverride --remove /usr/bin/greet
    userdel greeter
fi
END
printf '#!/bin/sh\necho hello\n' > package/usr/bin/greet
chmod 755 package/DEBIAN/postinst package/DEBIAN/postrm package/usr/bin/greet
check build dpkg-deb --root-owner-group --build package repository/greeter_1.0_all.deb
check info dpkg-deb --contents repository/greeter_1.0_all.deb \
    | sed 's/ [0-9-]* [0-9:]* \./ TIME ./'
check install dpkg --install repository/greeter_1.0_all.deb
look() { stat -c '%U %G %a %n' /usr/bin/greet /var/lib/greeter; getent passwd greeter; greet; }
check installed look
check status dpkg --status greeter
check verify dpkg --verify greeter
check purge dpkg --purge greeter
check purged sh -c 'getent passwd greeter; ls /usr/bin/greet /var/lib/greeter'

(
    cd repository || exit
    dpkg-deb --field greeter_1.0_all.deb
    echo "Filename: ./greeter_1.0_all.deb"
    echo "Size: $(stat -c %s greeter_1.0_all.deb)"
    echo "SHA256: $(sha256sum greeter_1.0_all.deb | cut -d ' ' -f 1)"
) > Packages
mv Packages repository
chmod 755 /tmp/work
rm -rf /etc/apt/sources.list.d/* /etc/apt/sources.list
echo 'deb [trusted=yes] file:/tmp/work/repository ./' > /etc/apt/sources.list
check 'apt update' sh -c 'apt-get update 2>&1 | grep "^[EWN]:"; ls /var/lib/apt/lists'
check 'apt policy' apt-cache policy greeter
check 'apt install' sh -c 'apt-get install -y greeter 2>&1 | tr "\r" "\n" | grep -v "%$" | sed "s,[0-9./]* B of\\|\[[0-9]* B\],N B,"'
check 'installed by apt' look
check 'apt list' sh -c 'apt list --installed 2> /dev/null | grep greeter'
check 'apt purge' sh -c 'apt-get purge -y greeter 2>&1 | tr "\r" "\n" | grep -v "%$" | sed "s,[0-9./]* B of\\|\[[0-9]* B\],N B,"'
check 'apt check' apt-get check
check 'no user is left' id greeter
