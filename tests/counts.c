// Takes one kind of what the kernel counts, as many as are asked for or as it gives, says how many
// that were and what it said then, and holds them until its input ends:
//
//     counts KIND [HOW-MANY [ARGUMENT]]
//
// The errno is that of the first refusal, 0 if there was none.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int argument;

static int aio(int n) {
    aio_context_t context = 0;
    return syscall(SYS_io_setup, 1024, &context);
}

static int huge_pages(int n) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB;
    return mmap(NULL, 2 << 20, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED ? -1 : 0;
}

static int huge_memfd(int n) { return memfd_create("huge", MFD_HUGETLB); }

static int huge_shm(int n) { return shmget(IPC_PRIVATE, 2 << 20, SHM_HUGETLB | IPC_CREAT | 0600); }

static int temporary(void) {
    char name[] = "/tmp/counts-XXXXXX";
    int file = mkstemp(name);
    unlink(name);
    return file;
}

static int lease(int n) { return fcntl(temporary(), F_SETLEASE, F_WRLCK); }

static int notify(int n) {
    int directory = open("/tmp", O_RDONLY | O_DIRECTORY);
    return fcntl(directory, F_NOTIFY, DN_CREATE | DN_MULTISHOT);
}

static int inotify(int n) { return inotify_init1(0); }

// Watches of one instance, each on a file of its own.
static int watch(int n) {
    static int instance = -1;
    if (instance < 0) instance = inotify_init1(0);
    char name[64];
    snprintf(name, sizeof name, "/dev/shm/watched-%d", n);
    close(open(name, O_CREAT | O_RDONLY, 0600));
    return inotify_add_watch(instance, name, IN_OPEN);
}

// A pipe of 1 MiB, and how large it became.
static int pipe_pages(int n) {
    int ends[2];
    if (pipe(ends) < 0) return -1;
    return fcntl(ends[1], F_SETPIPE_SZ, 1 << 20);
}

// Descriptors in flight, 250 in each message.
static int in_flight(int n) {
    static int pair[2], left;
    if (!left) {
        if (socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) < 0) return -1;
        left = 10;
    }
    left--;
    union {
        char room[CMSG_SPACE(250 * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec byte = {.iov_base = "", .iov_len = 1};
    struct msghdr message = {.msg_iov = &byte, .msg_iovlen = 1, .msg_control = control.room,
                             .msg_controllen = sizeof control.room};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(250 * sizeof(int));
    for (int i = 0; i < 250; i++) ((int *)CMSG_DATA(header))[i] = pair[0];
    return sendmsg(pair[1], &message, MSG_DONTWAIT);
}

static int pending(int n) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &set, NULL);
    union sigval value = {.sival_int = n};
    return sigqueue(getpid(), SIGRTMIN, value);
}

static int timer(int n) {
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
    timer_t timer;
    return timer_create(CLOCK_MONOTONIC, &event, &timer);
}

static int queue(int n) {
    char name[32];
    snprintf(name, sizeof name, "/counts-%d-%d", getpid(), n);
    int queue = mq_open(name, O_CREAT | O_RDWR, 0600, NULL);
    int why = errno;
    mq_unlink(name);
    errno = why;
    return queue;
}

static int terminal(int n) { return open("/dev/ptmx", O_RDWR | O_NOCTTY); }

static int key(int n) {
    char name[32];
    snprintf(name, sizeof name, "counts-%d", n);
    return syscall(SYS_add_key, "user", name, "x", 1, -1 /* of the thread */);
}

// What takes a grace period of the kernel each when it is closed.
static int pressure(int n) {
    int file = open("/proc/pressure/cpu", O_RDWR);
    const char trigger[] = "some 1000000 2000000";
    return file < 0 ? -1 : write(file, trigger, sizeof trigger);
}

static int file(int n) { return open("/dev/null", O_RDONLY); }

static int inode(int n) {
    char name[64];
    snprintf(name, sizeof name, "/dev/shm/inode-%d", n);
    int file = open(name, O_CREAT | O_EXCL | O_WRONLY, 0600);
    return file < 0 ? -1 : close(file);
}

static int watched(int n) {
    static int set = -1;
    if (set < 0) set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    return epoll_ctl(set, EPOLL_CTL_ADD, eventfd(0, 0), &event);
}

static int line_discipline(int n) {
    int terminal = open("/dev/ptmx", O_RDWR | O_NOCTTY), wanted = argument;
    return ioctl(terminal, TIOCSETD, &wanted);
}

// A MiB of shared memory that is written to, and stays when it is let go.
static int shared_memory(int n) {
    int id = shmget(IPC_PRIVATE, 1 << 20, IPC_CREAT | 0600);
    if (id < 0) return -1;
    void *at = shmat(id, NULL, 0);
    if (at == (void *)-1) return -1;
    memset(at, 1, 1 << 20);
    return shmdt(at);
}

// Fills the receive buffer of one more socket, of its own address; what it came to in bytes.
static long bytes;
static int datagrams(int n) {
    int socket_ = socket(AF_INET, SOCK_DGRAM, 0), size = 4 << 20;
    if (socket_ < 0) return -1;
    setsockopt(socket_, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    if (bind(socket_, (void *)&address, length) < 0) return -1;
    getsockname(socket_, (void *)&address, &length);
    static char data[60000];
    for (int i = 0; i < 256; i++)
        sendto(socket_, data, sizeof data, MSG_DONTWAIT, (void *)&address, length);
    unsigned memory[9];
    length = sizeof memory;
    getsockopt(socket_, SOL_SOCKET, SO_MEMINFO, memory, &length);
    bytes += memory[0];
    return 0;
}

static int streams(int n) {
    static int listener;
    static struct sockaddr_in address;
    socklen_t length = sizeof address;
    if (!listener) {
        listener = socket(AF_INET, SOCK_STREAM, 0);
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        if (bind(listener, (void *)&address, length) < 0 || listen(listener, 16) < 0) return -1;
        getsockname(listener, (void *)&address, &length);
    }
    int sender = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(sender, (void *)&address, length) < 0) return -1;
    int receiver = accept(listener, NULL, NULL);
    static char data[1 << 16];
    long sent = 0, now;
    while ((now = send(sender, data, sizeof data, MSG_DONTWAIT)) > 0) sent += now;
    bytes += sent;
    return receiver;
}

// Of a pair of unix sockets, what is on its way.
static int unix_bytes(int n) {
    int pair[2], size = 4 << 20;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0) return -1;
    setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    static char data[1 << 16];
    long sent = 0, now;
    while ((now = send(pair[0], data, sizeof data, MSG_DONTWAIT)) > 0) sent += now;
    bytes += sent;
    return 0;
}

static int filled_pipe(int n) {
    int ends[2];
    if (pipe(ends) < 0) return -1;
    fcntl(ends[1], F_SETFL, O_NONBLOCK);
    static char data[1 << 16];
    long sent = 0, now;
    while ((now = write(ends[1], data, sizeof data)) > 0) sent += now;
    bytes += sent;
    return 0;
}

static int timer_file(int n) { return timerfd_create(CLOCK_MONOTONIC, 0); }
static int event_file(int n) { return eventfd(0, 0); }
static int udp(int n) { return socket(AF_INET, SOCK_DGRAM, 0); }
static int raw(int n) { return socket(AF_INET, SOCK_RAW, IPPROTO_UDP); }
static int tcp(int n) { return socket(AF_INET, SOCK_STREAM, 0); }
static int tcp_listening(int n) {
    int s = socket(AF_INET, SOCK_STREAM, 0);
    return s < 0 ? -1 : listen(s, 1);
}
static int netlink(int n) { return socket(AF_NETLINK, SOCK_RAW, 0); }
static int multicast(int n) {
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    struct ip_mreqn group = {.imr_multiaddr.s_addr = htonl(0xe0000100 + n), .imr_ifindex = 1};
    return s < 0 ? -1 : setsockopt(s, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group);
}
static int unix_pair(int n) {
    int pair[2];
    return socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
}
static int memory_file(int n) { return memfd_create("m", 0); }
static int epoll_set(int n) {
    static int last = -1;
    int set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    if (set >= 0 && last >= 0 && n % 4) epoll_ctl(set, EPOLL_CTL_ADD, last, &event);
    last = set;
    return set;
}
// inotify instances with a watch each, which is what their end waits for.
static int watching(int n) {
    int instance = inotify_init1(0);
    return instance < 0 ? -1 : inotify_add_watch(instance, "/tmp", IN_OPEN);
}
static int locks(int n) {
    static int locked = -1;
    if (locked < 0) locked = temporary();
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 2L * n, .l_len = 1};
    return fcntl(locked, F_SETLK, &lock);
}

static int make_socket(int n) {
    int numbers[3] = {argument / 10000, argument / 100 % 100, argument % 100};
    return socket(numbers[0], numbers[1], numbers[2]);
}
static int make_pair(int n) {
    int pair[2];
    return socketpair(argument / 10000, argument / 100 % 100, argument % 100, pair);
}

static const struct {
    const char *name;
    int (*take)(int);
} kinds[] = {
    {"aio", aio},
    {"huge-pages", huge_pages},
    {"huge-memfd", huge_memfd},
    {"huge-shm", huge_shm},
    {"lease", lease},
    {"dnotify", notify},
    {"inotify", inotify},
    {"watch", watch},
    {"pipe-pages", pipe_pages},
    {"in-flight", in_flight},
    {"pending", pending},
    {"timer", timer},
    {"queue", queue},
    {"terminal", terminal},
    {"key", key},
    {"pressure", pressure},
    {"file", file},
    {"inode", inode},
    {"epoll-watch", watched},
    {"line-discipline", line_discipline},
    {"shared-memory", shared_memory},
    {"datagrams", datagrams},
    {"streams", streams},
    {"unix-bytes", unix_bytes},
    {"filled-pipe", filled_pipe},
    {"timerfd", timer_file},
    {"eventfd", event_file},
    {"udp", udp},
    {"raw", raw},
    {"tcp", tcp},
    {"tcp-listening", tcp_listening},
    {"netlink", netlink},
    {"multicast", multicast},
    {"unix-pair", unix_pair},
    {"memfd", memory_file},
    {"epoll-nest", epoll_set},
    {"watching", watching},
    {"locks", locks},
    {"socket", make_socket},
    {"socketpair", make_pair},
};

int main(int count, char **arguments) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    int wanted = count > 2 ? atoi(arguments[2]) : 1;
    argument = count > 3 ? atoi(arguments[3]) : 0;
    for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (count < 2 || strcmp(kinds[i].name, arguments[1])) continue;
        int taken = 0, refused = 0;
        for (; taken < wanted; taken++)
            if (kinds[i].take(taken) < 0) {
                refused = errno;
                break;
            }
        printf("%d %d %ld\n", taken, refused, bytes);
        fflush(stdout);
        char ignored[16];
        while (read(0, ignored, sizeof ignored) > 0)
            ;
        return 0;
    }
    return 2;
}
