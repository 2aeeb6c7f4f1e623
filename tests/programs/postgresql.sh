echo 'deb [trusted=yes] file:/repository ./' > /etc/apt/sources.list
check 'apt update' sh -c 'apt-get update 2>&1 | grep "^[EWN]:"'
# Without progress, and without what names time and memory.
install() {
    apt-get install -y --no-install-recommends "$@" > installed 2>&1
    status=$?
    tr '\r' '\n' < installed | grep '^Setting up\|^E:\|^W:\|rror'
    return $status
}
check install install postgresql
command -v pg_ctlcluster > /dev/null || exit 1
check version sh -c 'dpkg-query -W -f "\${Version}\n" postgresql; /usr/lib/postgresql/15/bin/postgres --version'
check 'dpkg is content' dpkg --audit
check 'its user' sh -c 'id postgres; stat -c "%U %G %a" /var/lib/postgresql/15/main'
check clusters sh -c 'pg_lsclusters -h | sed "s/ \+/ /g"'
check start pg_ctlcluster 15 main start
#job
query() { su postgres -c "cd /; psql -At -c \"$1\""; }
check 'another job asks' query 'select 6 * 7'
check database sh -c 'su postgres -c "cd /; createdb shop && psql -q shop -c \"create table t as select generate_series(1, 10000) x; create index on t (x)\""'
check 'two at once' sh -c 'for i in 1 2 3 4; do su postgres -c "cd /; psql -q shop -c \"insert into t select generate_series(1, 1000)\"" & done; wait; su postgres -c "cd /; psql -At shop -c \"select count(*), sum(x) from t\""'
check 'a parallel query' sh -c 'su postgres -c "cd /; psql -At shop -c \"set parallel_setup_cost = 0; set parallel_tuple_cost = 0; set min_parallel_table_scan_size = 0; select sum(x) from t\""'
check 'over TCP' sh -c 'su postgres -c "cd /; psql -q -c \"alter user postgres password '"'secret'"'\""; PGPASSWORD=secret psql -At -h 127.0.0.1 -U postgres shop -c "select count(*) from t"'
check vacuum sh -c 'su postgres -c "cd /; vacuumdb -q -z shop"'
check dump sh -c 'su postgres -c "cd /; pg_dump shop" | grep -c "^[0-9]"'
check shared sh -c 'su postgres -c "cd /; psql -At -c \"show dynamic_shared_memory_type; show huge_pages\""'
#job
check restart pg_ctlcluster 15 main restart
check 'it is still there' sh -c 'su postgres -c "cd /; psql -At shop -c \"select count(*) from t\""'
check 'a crash' sh -c 'kill -KILL $(head -1 /var/lib/postgresql/15/main/postmaster.pid); i=0; while pgrep -x postgres > /dev/null && [ $i -lt 300 ]; do sleep 0.1; i=$((i+1)); done; pg_ctlcluster 15 main start 2>&1 | grep -v "^Removed"; su postgres -c "cd /; psql -At shop -c \"select count(*) from t\""'
check stop pg_ctlcluster 15 main stop
check purge sh -c 'apt-get purge -y postgresql postgresql-15 postgresql-common > /dev/null 2>&1; echo $?; ls /var/lib/postgresql'
