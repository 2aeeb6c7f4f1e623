check version sh -c 'chromium --version | cut -d " " -f 1-2'
echo '<title>a page</title><body style="background:#08f"><h1>hello</h1><script>document.body.append(6*7)</script>' > page.html
shot() {
    timeout 300 chromium --headless --disable-gpu --disable-dev-shm-usage --user-data-dir="$PWD/$1" \
        --screenshot="$PWD/$1.png" --window-size=320,200 --hide-scrollbars "$@" file:///tmp/work/page.html > log 2>&1
    status=$?
    grep -o "Running as root without --no-sandbox is not supported\|No usable sandbox" log
    python3 - "$1.png" <<'END'
import sys, struct
try: data = open(sys.argv[1], "rb").read()
except OSError: print("no picture"); sys.exit()
print(data[1:4].decode(), struct.unpack(">II", data[16:24]), len(data) > 500)
END
    return $status
}
check 'a picture, --no-sandbox' shot --no-sandbox
check 'a picture, one process' shot --no-sandbox --single-process
check 'as root with its own sandbox' shot --lang=en
check 'the document' sh -c 'timeout 300 chromium --headless --no-sandbox --disable-gpu --user-data-dir=$PWD/dom --dump-dom file:///tmp/work/page.html 2> /dev/null'
check 'a document of a server' sh -c '
    python3 -m http.server --bind 127.0.0.1 8000 > /dev/null 2>&1 & server=$!
    until python3 -c "import socket; socket.create_connection((\"127.0.0.1\", 8000))" 2> /dev/null; do sleep 0.1; done
    timeout 300 chromium --headless --no-sandbox --disable-gpu --user-data-dir=$PWD/net --dump-dom http://127.0.0.1:8000/page.html 2> /dev/null; kill $server'
check 'with /dev/shm' sh -c 'timeout 300 chromium --headless --no-sandbox --disable-gpu --user-data-dir=$PWD/shm --dump-dom file:///tmp/work/page.html 2> /dev/null | head -1'
useradd --create-home surfer > /dev/null 2>&1
check 'as a user with its own sandbox' sh -c 'su surfer -c "cd; timeout 300 chromium --headless --disable-gpu --user-data-dir=/home/surfer/u --dump-dom file:///tmp/work/page.html 2>&1 | grep -o \"No usable sandbox\|<h1>hello</h1>\" | head -1"'
