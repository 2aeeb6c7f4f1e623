check version python3 --version
mkdir served
echo content > served/file
setsid python3 -m http.server --bind 127.0.0.1 --directory served 8000 > log 2>&1 &
echo $! > pid
#job
get() {
    python3 - "$1" <<'END'
import sys, time, urllib.error, urllib.request
for attempt in range(300):
    try:
        print(urllib.request.urlopen("http://127.0.0.1:8000/" + sys.argv[1]).read().decode(), end="")
        break
    except urllib.error.HTTPError as error:
        print(error)
        break
    except OSError:
        time.sleep(0.1)
else:
    print("no answer")
END
}
check 'it answers another job' get file
check 'it has no such file' get none
check 'it is no child of the job' sh -c '! pgrep -P $$ python3'
check 'it is alive' kill -0 "$(cat pid)"
#job
check 'it answers a third' sh -c 'echo more >> served/file'
check 'it logs' sh -c 'sed "s/\[.*\]/[TIME]/" log'
kill "$(cat pid)"
gone() {
    i=0
    while kill -0 "$(cat pid)" 2> /dev/null && [ $i -lt 300 ]; do sleep 0.1; i=$((i + 1)); done
    ! kill -0 "$(cat pid)"
}
check 'it is gone' gone
#job
# Of connections that are over something may be left, of a server that listens nothing.
check 'the port is free' python3 -c '
import socket
server = socket.socket(); server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("127.0.0.1", 8000)); server.listen(); print("listens")'
