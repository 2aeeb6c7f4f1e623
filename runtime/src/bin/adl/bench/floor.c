/* What the kernel takes for the cycle of a sandbox, with nothing else in its way.
 *
 * FLOOR LOWER SCRATCH THREADS CYCLES INIT PROGRAM prints how many microseconds all cycles took, by
 * so many threads together; then, for each, how many until INIT was ready, how many PROGRAM took,
 * and how many INIT's end. LOWER is what overlayfs is to have as its lower layers. A cycle makes the
 * directories of an upper, clones into namespaces (no user namespace), mounts an overlay, /proc and
 * /dev, pivots, executes INIT, which says one byte, has INIT run PROGRAM, kills INIT, and removes
 * the directories.
 *
 * With -DINIT it is INIT, which has no libc: each byte that comes has it run PROGRAM, and each end
 * of that is a byte back. */
#ifdef INIT

static long call(long number, long a, long b, long c, long d, long e) {
	long result;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	__asm__ volatile("syscall"
		: "=a"(result)
		: "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
		: "rcx", "r11", "memory");
	return result;
}

enum { READ = 0, WRITE = 1, VFORK = 58, EXECVE = 59, EXIT = 60, WAIT4 = 61 };

__attribute__((used)) static void run(long *stack) {
	char **arguments = (char **)(stack + 1);
	char *program[] = {arguments[1], 0}, *nothing[] = {0}, byte = 0;
	call(WRITE, 0, (long)&byte, 1, 0, 0);
	while (call(READ, 0, (long)&byte, 1, 0, 0) == 1) {
		long pid;
		/* In one piece: the child returns through no frame of the parent's. */
		__asm__ volatile(
			"syscall\n test %%rax, %%rax\n jnz 1f\n"
			"mov %2, %%rdi\n mov %3, %%rsi\n mov %4, %%rdx\n mov $59, %%eax\n syscall\n"
			"mov $127, %%edi\n mov $60, %%eax\n syscall\n 1:"
			: "=a"(pid)
			: "a"((long)VFORK), "r"(program[0]), "r"(program), "r"(nothing)
			: "rcx", "r11", "rdi", "rsi", "rdx", "memory");
		int status = -1;
		call(WAIT4, pid, (long)&status, 0, 0, 0);
		byte = status != 0;
		call(WRITE, 0, (long)&byte, 1, 0, 0);
	}
	call(EXIT, 0, 0, 0, 0, 0);
}

__asm__(".globl _start\n_start:\n mov %rsp, %rdi\n and $-16, %rsp\n call run\n hlt\n");

#else

#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *lower, *scratch, *program;
static int init, cycles;
static atomic_int next;
static struct { double ready, run, end; } *times;

static double now(void) {
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1e6 + now.tv_nsec / 1e3;
}

static void must(int holds, const char *what) {
	if (!holds) {
		perror(what);
		_exit(1);
	}
}

/* The child: from here on only system calls, since other threads' locks were copied. */
static void become_init(const char *merged, const char *options, int control) {
	char *arguments[] = {"init", (char *)program, 0}, *nothing[] = {0};
	must(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0) == 0, "private mounts");
	must(mount("overlay", merged, "overlay", 0, options) == 0, "overlay");
	must(chdir(merged) == 0, "chdir");
	must(mount("proc", "proc", "proc", 0, 0) == 0, "/proc");
	must(mount("tmpfs", "dev", "tmpfs", 0, "mode=755") == 0, "/dev");
	must(syscall(SYS_pivot_root, ".", ".") == 0, "pivot_root");
	must(umount2(".", MNT_DETACH) == 0, "umount");
	must(dup2(control, 0) == 0, "dup2");
	syscall(SYS_execveat, init, "", arguments, nothing, AT_EMPTY_PATH);
	must(0, "execveat");
}

static void cycle(int number) {
	char top[256], upper[300], work[300], inner[320], merged[300], options[4096];
	snprintf(top, sizeof top, "%s/%d", scratch, number);
	snprintf(upper, sizeof upper, "%s/upper", top);
	snprintf(work, sizeof work, "%s/work", top);
	snprintf(inner, sizeof inner, "%s/work/work", top);
	snprintf(merged, sizeof merged, "%s/merged", top);
	int length = snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s,workdir=%s", lower,
		upper, work);
	must(length < (int)sizeof options, "the length of options");
	double begin = now();
	must(!mkdir(top, 0700) && !mkdir(upper, 0755) && !mkdir(work, 0755) && !mkdir(merged, 0755),
		"mkdir");
	int pair[2], pidfd = -1;
	must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0, "socketpair");
	struct clone_args clone = {
		.flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWCGROUP
			| CLONE_NEWNET | CLONE_PIDFD,
		.pidfd = (unsigned long)&pidfd,
		.exit_signal = SIGCHLD,
	};
	pid_t child = syscall(SYS_clone3, &clone, sizeof clone);
	must(child >= 0, "clone3");
	if (child == 0)
		become_init(merged, options, pair[1]);
	close(pair[1]);
	char byte = 1;
	must(read(pair[0], &byte, 1) == 1 && byte == 0, "the first byte of init");
	double ready = now();
	must(write(pair[0], &byte, 1) == 1 && read(pair[0], &byte, 1) == 1, "a byte of init");
	must(byte == 0, "the program");
	double ran = now();
	must(kill(child, SIGKILL) == 0 && waitpid(child, 0, 0) == child, "the end of init");
	double ended = now();
	close(pair[0]);
	close(pidfd);
	rmdir(inner);
	must(!rmdir(work) && !rmdir(upper) && !rmdir(merged) && !rmdir(top), "rmdir");
	times[number].ready = ready - begin;
	times[number].run = ran - ready;
	times[number].end = ended - ran;
}

static void *run(void *unused) {
	int number;
	while ((number = atomic_fetch_add(&next, 1)) < cycles)
		cycle(number);
	return unused;
}

int main(int count, char **arguments) {
	must(count == 7, "arguments");
	lower = arguments[1], scratch = arguments[2], program = arguments[6];
	int threads = atoi(arguments[3]);
	cycles = atoi(arguments[4]);
	init = open(arguments[5], O_RDONLY | O_CLOEXEC);
	must(init > 2, "INIT");
	pthread_t *all = calloc(threads, sizeof *all);
	times = calloc(cycles, sizeof *times);
	must(all && times, "calloc");
	double begin = now();
	for (int at = 0; at < threads; at++)
		must(pthread_create(&all[at], 0, run, 0) == 0, "pthread_create");
	for (int at = 0; at < threads; at++)
		pthread_join(all[at], 0);
	printf("%.1f\n", now() - begin);
	for (int at = 0; at < cycles; at++)
		printf("%.1f %.1f %.1f\n", times[at].ready, times[at].run, times[at].end);
	return 0;
}

#endif
