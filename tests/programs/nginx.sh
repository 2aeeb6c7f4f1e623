echo 'deb [trusted=yes] file:/repository ./' > /etc/apt/sources.list
apt-get update > /dev/null 2>&1
check install sh -c 'apt-get install -y --no-install-recommends nginx-light 2>&1 | grep "^Setting up\|^E:\|rror"'
command -v nginx > /dev/null || exit 1
check version nginx -v
check configuration nginx -t
check start nginx
#job
check get curl -sS http://127.0.0.1/ -o page
check 'the page' sh -c 'grep title page'
check 'by name' curl -sS -o /dev/null -w '%{http_code}\n' http://localhost/
check 'over IPv6' curl -sS -o /dev/null -w '%{http_code}\n' http://[::1]/
check 'none such' curl -sS -o /dev/null -w '%{http_code}\n' http://127.0.0.1/none
check workers sh -c 'ps -C nginx -o user= | sort | uniq -c | sed "s/^ *//" | grep -c .'
# Without its time and number it says that it has sent a signal.
told() { nginx -s "$1" 2>&1 | sed 's/^[0-9/]* [0-9:]* \(\[[a-z]*\]\) [0-9]*#[0-9]*:/\1/'; }
check reload sh -c 'nginx -s reload 2> /dev/null && curl -sS -o /dev/null -w "%{http_code}\n" http://127.0.0.1/'
check TLS sh -c 'openssl req -x509 -newkey rsa:2048 -nodes -keyout k -out c -days 2 -subj /CN=localhost 2> /dev/null; printf "server { listen 443 ssl; ssl_certificate /tmp/work/c; ssl_certificate_key /tmp/work/k; root /var/www/html; }" > /etc/nginx/conf.d/tls.conf; nginx -s reload 2> /dev/null; i=0; until curl -sS --cacert c https://localhost/ -o /dev/null 2> /dev/null || [ $i -gt 100 ]; do sleep 0.1; i=$((i+1)); done; curl -sS --cacert c https://localhost/ -o /dev/null -w "%{http_code} %{ssl_verify_result}\n"'
check logs sh -c 'cut -d " " -f 6-9 /var/log/nginx/access.log | sort | uniq'
check quit told quit
gone() { i=0; while pgrep -x nginx > /dev/null && [ $i -lt 300 ]; do sleep 0.1; i=$((i + 1)); done; }
gone
#job
gone() { i=0; while pgrep -x nginx > /dev/null && [ $i -lt 300 ]; do sleep 0.1; i=$((i + 1)); done; }
# To the pipe that the job has been given.
to_stdout() {
    echo 'log_format plain "$request $status"; access_log /dev/stdout plain;' > /etc/nginx/conf.d/plain.conf
    nginx && curl -sS -o /dev/null http://127.0.0.1/none && nginx -s quit 2> /dev/null
    gone
}
check 'logs to stdout' to_stdout
