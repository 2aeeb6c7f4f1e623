// Runs a program, and has one system call of it, or of what it starts, fail, or be its end:
//
//     inject PROGRAM [ARGUMENT…]
//
// It ends with the program, as that does, or with 128 and the number of the signal.
//
// The program says which by reading links, which are answered here:
//
//     /adl-inject/arm ROLE CALL NUMBER ERRNO   that call of ROLE from now on, counted from 1
//     /adl-inject/disarm                       "hit CALL" if it came, else "missed COUNT"
//
// CALL is its name, or `any`, and all are counted.
// ROLE is who calls: `caller`, the thread that asks; `beside`, the other threads of the program;
// `launch`, what it has cloned and has executed nothing yet; `init`, that from its execve on;
// `child`, what init has cloned, until its execve, from which on it runs as if no one looked.
// ERRNO 0 is SIGKILL to the program, before the call is made.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef __x86_64__
#error "the registers of a call are known for x86_64 alone"
#endif

// Made from the kernel's headers: [NUMBER] = "NAME",
static const char *const names[1024] = {
#include "names.h"
};

enum role { CALLER, BESIDE, LAUNCH, INIT, CHILD, UNKNOWN };
static const char *const roles[] = {"caller", "beside", "launch", "init", "child"};

static struct task {
    pid_t pid;
    enum role role;
    // Stopped until its parent has told who it is.
    int waits;
    // Whether it becomes again who it was, after it has cloned as another user.
    int restores;
    // What the call that it is in is to return, if something else.
    int replaced;
    long result;
} tasks[4096];

// Longer than all that the library waits for, in seconds.
enum { HANGS = 45 };

static pid_t program, caller;
static int armed, hit, target_errno;
static long target, count;
static enum role target_role;
static char what[64], target_call[32];

static struct task *find(pid_t pid) {
    struct task *unused = NULL;
    for (unsigned i = 0; i < sizeof tasks / sizeof *tasks; i++) {
        if (tasks[i].pid == pid) return &tasks[i];
        if (!tasks[i].pid && !unused) unused = &tasks[i];
    }
    if (!unused) abort();
    *unused = (struct task){.pid = pid, .role = UNKNOWN};
    return unused;
}

static int is_thread(pid_t pid) {
    char path[64];
    struct stat found;
    snprintf(path, sizeof path, "/proc/%d/task/%d", program, pid);
    return stat(path, &found) == 0;
}

static enum role role_of(const struct task *task) {
    if (task->role != CALLER) return task->role;
    return task->pid == caller ? CALLER : BESIDE;
}

static int is_of_ids(long number) {
    return number == SYS_setresuid || number == SYS_setfsuid || number == SYS_capset ||
           number == SYS_prctl;
}

// What the C library or the standard library can't do without, and what can't fail.
static int is_exempt(const struct task *task, long number, const struct user_regs_struct *r) {
    enum role role = role_of(task);
    switch (number) {
    case SYS_exit: case SYS_exit_group: case SYS_rt_sigreturn: case SYS_restart_syscall:
    case SYS_getpid: case SYS_gettid: case SYS_getppid: case SYS_getuid: case SYS_geteuid:
    case SYS_getgid: case SYS_getegid: case SYS_umask: case SYS_sched_yield:
    case SYS_clock_gettime: case SYS_clock_nanosleep:
        return 1;
    }
    // Of a child that there is, and a descriptor that is open, these can say nothing else.
    if ((number == SYS_wait4 || number == SYS_waitid || number == SYS_close) && target_errno &&
        target_errno != EINTR)
        return 1;
    // One's own limits can be asked for in any case.
    if (number == SYS_prlimit64 && !r->rdi && !r->rdx && target_errno) return 1;
    // Who is root in the saved id can be out of memory there, and nothing else.
    if (task->restores && is_of_ids(number) && target_errno && target_errno != ENOMEM &&
        target_errno != EAGAIN)
        return 1;
    if (role != CALLER && role != BESIDE) return 0;
    switch (number) {
    case SYS_mmap:
        // The stack of a thread is what a program can go on without.
        return !(r->r10 & MAP_STACK);
    case SYS_brk: case SYS_munmap: case SYS_mremap: case SYS_mprotect: case SYS_madvise:
    case SYS_futex: case SYS_rt_sigprocmask: case SYS_rt_sigaction: case SYS_sigaltstack:
    case SYS_set_robust_list: case SYS_rseq: case SYS_sched_getaffinity: case SYS_set_tid_address:
    case SYS_arch_prctl:
        return 1;
    }
    return 0;
}

// The program hangs: what it was made to fail at is told, and it ends.
static void give_up(int signal) {
    fprintf(stderr, "it hangs: %s %ld, %s, error %d\n", roles[target_role], target, what, target_errno);
    kill(program, SIGKILL);
}

static long answer(const char *asked, pid_t pid, char *text) {
    char role[16];
    if (sscanf(asked, "arm %15s %31s %ld %d", role, target_call, &target, &target_errno) == 4) {
        for (target_role = CALLER; strcmp(roles[target_role], role);)
            if (++target_role == UNKNOWN) return -EINVAL;
        armed = 1, hit = 0, count = 0, caller = pid;
        snprintf(what, sizeof what, "nothing");
        alarm(HANGS);
        return sprintf(text, "armed");
    }
    if (!strcmp(asked, "disarm")) {
        armed = 0;
        alarm(0);
        return hit ? sprintf(text, "hit %s", what) : sprintf(text, "missed %ld", count);
    }
    return -EINVAL;
}

static void on_entry(struct task *task) {
    struct user_regs_struct r;
    if (ptrace(PTRACE_GETREGS, task->pid, 0, &r)) return;
    long number = r.orig_rax;
    if (number == SYS_readlink && task->role == CALLER) {
        char path[128] = "", text[128];
        static const char begin[] = "/adl-inject/";
        // To the end of the page at most: what follows may be unmapped.
        size_t length = 4096 - (r.rdi & 4095);
        if (length > sizeof path - 1) length = sizeof path - 1;
        struct iovec here = {path, length}, there = {(void *)r.rdi, length};
        if (process_vm_readv(task->pid, &here, 1, &there, 1, 0) > 0 &&
            !strncmp(path, begin, sizeof begin - 1)) {
            long said = answer(path + sizeof begin - 1, task->pid, text);
            if (said > 0) {
                here = (struct iovec){text, said}, there = (struct iovec){(void *)r.rsi, said};
                process_vm_writev(task->pid, &here, 1, &there, 1, 0);
            }
            r.orig_rax = SYS_getpid;
            task->replaced = 1, task->result = said;
            ptrace(PTRACE_SETREGS, task->pid, 0, &r);
            return;
        }
    }
    if (number == SYS_setresuid && task->role == CALLER) task->restores = !r.rdi;
    if (!is_of_ids(number)) task->restores = 0;
    if (!armed || role_of(task) != target_role || is_exempt(task, number, &r)) return;
    const char *name = number < 1024 && names[number] ? names[number] : "?";
    if (strcmp(target_call, "any") && strcmp(target_call, name)) return;
    if (++count != target || hit) return;
    hit = 1;
    snprintf(what, sizeof what, "%s", name);
    if (!target_errno) {
        kill(program, SIGKILL);
        return;
    }
    // A call that the kernel carries out whatever it returns.
    if (number != SYS_close) r.orig_rax = SYS_getpid;
    task->replaced = 1, task->result = -target_errno;
    ptrace(PTRACE_SETREGS, task->pid, 0, &r);
}

static void on_exit_of_call(struct task *task) {
    struct user_regs_struct r;
    if (!task->replaced) return;
    task->replaced = 0;
    if (ptrace(PTRACE_GETREGS, task->pid, 0, &r)) return;
    r.rax = task->result;
    ptrace(PTRACE_SETREGS, task->pid, 0, &r);
}

static void go_on(pid_t pid, int signal) { ptrace(PTRACE_SYSCALL, pid, 0, signal); }

static void on_clone(struct task *parent) {
    unsigned long pid = 0;
    if (ptrace(PTRACE_GETEVENTMSG, parent->pid, 0, &pid) || !pid) return;
    struct task *child = find(pid);
    int waits = child->waits;
    enum role role = role_of(parent);
    child->waits = 0;
    child->role = role == INIT || role == CHILD ? CHILD : is_thread(pid) ? CALLER : LAUNCH;
    // Its own stop has come before its parent's.
    if (waits) go_on(pid, 0);
}

static void on_stop(struct task *task, int status) {
    int signal = WSTOPSIG(status), event = status >> 16;
    switch (event) {
    case PTRACE_EVENT_FORK: case PTRACE_EVENT_VFORK: case PTRACE_EVENT_CLONE:
        on_clone(task);
        return go_on(task->pid, 0);
    case PTRACE_EVENT_EXEC:
        if (task->role == CHILD) {
            ptrace(PTRACE_DETACH, task->pid, 0, 0);
            task->pid = 0;
            return;
        }
        if (task->role == LAUNCH) task->role = INIT;
        return go_on(task->pid, 0);
    case PTRACE_EVENT_STOP:
        if (task->role == UNKNOWN) {
            task->waits = 1;
            return;
        }
        if (signal == SIGSTOP || signal == SIGTSTP || signal == SIGTTIN || signal == SIGTTOU) {
            ptrace(PTRACE_LISTEN, task->pid, 0, 0);
            return;
        }
        return go_on(task->pid, 0);
    }
    if (signal == (SIGTRAP | 0x80)) {
        struct __ptrace_syscall_info info = {0};
        ptrace(PTRACE_GET_SYSCALL_INFO, task->pid, sizeof info, &info);
        if (info.op == PTRACE_SYSCALL_INFO_ENTRY) on_entry(task);
        if (info.op == PTRACE_SYSCALL_INFO_EXIT) on_exit_of_call(task);
        return go_on(task->pid, 0);
    }
    go_on(task->pid, signal);
}

int main(int arguments, char **argument) {
    int gate[2];
    if (arguments < 2 || pipe2(gate, 0)) return 2;
    program = fork();
    if (!program) {
        char byte;
        close(gate[1]);
        if (read(gate[0], &byte, 1) != 1) _exit(126);
        close(gate[0]);
        execvp(argument[1], argument + 1);
        _exit(127);
    }
    signal(SIGALRM, give_up);
    long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK |
                   PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC;
    if (ptrace(PTRACE_SEIZE, program, 0, options)) return perror("PTRACE_SEIZE"), 2;
    find(program)->role = CALLER;
    ptrace(PTRACE_INTERRUPT, program, 0, 0);
    close(gate[0]);
    if (write(gate[1], "x", 1) != 1) return 2;
    close(gate[1]);
    for (;;) {
        int status;
        pid_t pid = waitpid(-1, &status, __WALL);
        if (pid < 0 && errno == EINTR) continue;
        if (pid < 0) return 1;
        if (WIFSTOPPED(status)) {
            on_stop(find(pid), status);
            continue;
        }
        find(pid)->pid = 0;
        // What it has left goes on as if no one looked: how soon that ends, others measure.
        if (pid == program) return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
}
