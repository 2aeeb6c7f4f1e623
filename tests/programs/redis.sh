echo 'deb [trusted=yes] file:/repository ./' > /etc/apt/sources.list
apt-get update > /dev/null 2>&1
check install sh -c 'apt-get install -y --no-install-recommends redis-server 2>&1 | grep "^Setting up\|^E:\|rror"'
command -v redis-server > /dev/null || exit 1
check version sh -c 'redis-server --version | cut -d " " -f 1-3'
check 'its user' sh -c 'id redis; stat -c "%U %G %a" /var/lib/redis'
check start runuser -u redis -- redis-server --daemonize yes --dir /var/lib/redis --pidfile /var/lib/redis/pid --unixsocket /var/lib/redis/sock --logfile /var/lib/redis/log
i=0
until redis-cli ping > /dev/null 2>&1 || [ $i -gt 300 ]; do sleep 0.1; i=$((i + 1)); done
#job
check ping redis-cli ping
check set redis-cli set a 1
check incr redis-cli incr a
check 'over a socket' redis-cli -s /var/lib/redis/sock get a
check script redis-cli eval 'return redis.call("incrby", KEYS[1], 40)' 1 a
check 'many at once' sh -c 'redis-benchmark -q -n 1000 -c 20 -t set,lpush | tr "\r" "\n" | grep -c "requests per second"'
check 'a fork saves' sh -c 'redis-cli bgsave; i=0; until redis-cli info persistence | grep -q "rdb_bgsave_in_progress:0" || [ $i -gt 300 ]; do sleep 0.1; i=$((i+1)); done; redis-cli info persistence | grep rdb_last_bgsave_status; stat -c "%U %a" /var/lib/redis/dump.rdb'
check 'append only' sh -c 'redis-cli config set appendonly yes; redis-cli set b 2; redis-cli config get appendonly; i=0; while redis-cli info persistence | grep -q "aof_rewrite_\(in_progress\|scheduled\):1" && [ $i -lt 300 ]; do sleep 0.1; i=$((i+1)); done'
#job
check 'it is still there' redis-cli get a
check warnings sh -c 'grep -o "WARNING[^.]*" /var/lib/redis/log'
check shutdown sh -c 'redis-cli shutdown nosave; redis-cli ping'
