check version sh -c 'strace --version | head -1'
check 'strace -p' sh -c 'sleep 1000 & strace -p $! -o trace 2> attached & i=0; until grep -qs attached attached || [ $i -gt 200 ]; do sleep 0.1; i=$((i+1)); done; kill $(pidof sleep); wait; grep -c "killed by SIGTERM" trace'
