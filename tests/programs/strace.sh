check version sh -c 'strace --version | head -1'
cat > work.c <<'END'
#include <unistd.h>
int main(void) { write(1, "work\n", 5); return 0; }
END
gcc -o work work.c
check 'strace' sh -c 'strace -e trace=write,exit_group -o trace ./work && cat trace'
check 'strace: children' sh -c 'strace -f -e trace=execve -o trace sh -c "true; ./work; ./work" && grep -c execve trace'
check 'strace: counts' sh -c 'strace -c -o trace ./work && grep -c "write$" trace'
check 'strace: faults put in' sh -c 'strace -e inject=write:error=ENOSPC -e trace=write -o trace ./work; cat trace'
