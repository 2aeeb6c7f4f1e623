check version go version
export GOFLAGS=-mod=mod GOPROXY=off GOTOOLCHAIN=local GOCACHE=/tmp/work/cache GOPATH=/tmp/work/go CGO_ENABLED=1
mkdir -p app/greet && cd app || exit
check 'mod init' go mod init example.org/app
cat > main.go <<'END'
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"

	"example.org/app/greet"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil { panic(err) }
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "got ", r.URL.Path) }))
	answer, err := http.Get("http://" + listener.Addr().String() + "/x")
	if err != nil { panic(err) }
	body, _ := io.ReadAll(answer.Body)
	fmt.Println(string(body), greet.Greet())
	var wait sync.WaitGroup
	sum := make(chan int, 1000)
	for i := 0; i < 1000; i++ { wait.Add(1); go func() { defer wait.Done(); sum <- 1 }() }
	wait.Wait(); fmt.Println(len(sum))
	out, err := exec.Command("sh", "-c", "echo child; exit 3").CombinedOutput()
	fmt.Print(string(out), err, "\n")
	got := make(chan os.Signal, 1)
	signal.Notify(got, syscall.SIGUSR1); syscall.Kill(os.Getpid(), syscall.SIGUSR1); fmt.Println(<-got)
}
END
printf 'package greet\n\nfunc Greet() string { return "hello" }\n' > greet/greet.go
printf 'package greet\n\nimport "testing"\n\nfunc TestGreet(t *testing.T) { if Greet() != "hello" { t.Fatal() } }\n' > greet/greet_test.go
printf 'package main\n\n// int twice(int x) { return 2 * x; }\nimport "C"\n\nfunc init() { println(C.twice(21)) }\n' > cgo.go
check vet go vet ./...
check build sh -c 'go build -o app . && ./app'
check 'without cgo' sh -c 'CGO_ENABLED=0 go build -o static . && ./static'
check test sh -c 'go test ./greet | cut -f 1,2'
check 'the race detector' sh -c 'go test -race ./greet | cut -f 1,2'
check fmt sh -c 'gofmt -l greet'
check env sh -c 'go env GOOS GOARCH'
