/* The load generator of the benchmark harness: echo requests over many connections, one outstanding on
   each.

   It knows TCP, epoll and the CPU clock of the server process; it knows nothing of Python, Trio or
   io_uring. The harness compiles and starts it (benchmarks/process.py); by hand:

       cc -O2 -o load load.c && \
           ./load --port 7000 --pid 1234 --connections 50 --size 1024 --warmup 0.5 --seconds 2

   Bounds. It connects to 127.0.0.1 and nowhere else: there is no option for an address. Connections,
   message size, seconds and requests have upper limits (below), a server that answers nothing for
   STALL_SECONDS ends the run, and an alarm ends the process whatever happens.

   A phase is: every busy connection sends its request, and the next one as soon as the whole answer is
   there. After the warm-up the measured window opens; it closes at the first look at the clock after
   `--seconds`, or at the last of `--requests`. Then nothing new is sent and the phase ends when every
   answer has come. CPU time is read at both edges of the window from the server's process clock
   (clock_getcpuclockid(3)): user and system time of all of its threads, those that have ended and the
   kernel's workers for it included, in nanoseconds. So start-up, warm-up and teardown are in no figure.

   Every byte that comes back is compared. The bytes of a request are a slice of one pseudo-random block,
   and where the slice begins depends on the connection and on the number of the request: an answer that
   belongs elsewhere is an error, not a fast answer.

   With `--idle K` there are two phases. The first is the busy connections alone. Then K more connections
   are opened, each makes one verified round trip (so the server has accepted it and is waiting for its
   next byte), and the second phase runs beside them. Resident memory of the server is read before and
   after the opening.

   With `--hold` it says {"ready": true} after a warm-up phase and waits for a line on standard input, and
   after the result waits for the end of standard input before it closes anything: what happens in the
   server between the two is the requests and nothing else (used to count system calls).

   Output: one JSON line. On failure: {"error": "…"} and exit status 1. */

#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_CONNECTIONS 50000
#define MAX_SIZE (16 << 20)
#define MAX_SECONDS 120.0
#define MAX_REQUESTS 10000000
#define ALARM_SECONDS 480
#define STALL_SECONDS 20
#define OPEN_AT_ONCE 100 /* below any listen backlog, so that no connect waits for a retransmitted SYN */
#define SLICES 4096      /* places in the block where a request may begin */
#define EVENTS 256

struct connection {
    int fd;
    bool idle;        /* opened for --idle: silent after its first round trip */
    bool outstanding; /* a request is out and its answer is not complete */
    uint32_t number, request, offset;
    size_t sent, received;
    uint64_t began;
};

struct sample { /* what is read at an edge of the window */
    uint64_t now, cpu, own, waited;
};

struct phase {
    double seconds;
    uint64_t requests, cpu, own, waited, worst;
    double p50, p99;
};

static struct {
    int port, pid, core;
    uint32_t connections, idle;
    size_t size;
    double warmup, seconds;
    uint64_t requests;
    bool hold;
} option = {.core = -1, .connections = 1, .size = 1024};

static struct connection *connections;
static uint32_t opened, outstanding;
static int poller;
static unsigned source_host = 1; /* 127.0.0.x, moved on when the ports of one address run out */
static clockid_t server_clock;
static unsigned char *block;
static unsigned char received_bytes[256 << 10];

/* The state of the running phase. */
static bool may_send, window_open;
static uint64_t may_begin, counted;

static void fail(const char *format, ...) {
    va_list arguments;
    fputs("{\"error\": \"", stdout);
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    puts("\"}");
    fflush(stdout);
    exit(1);
}

static uint64_t read_clock(clockid_t clock) {
    struct timespec t;
    if (clock_gettime(clock, &t) != 0)
        fail("clock_gettime: %s (has the server ended?)", strerror(errno));
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

static uint64_t now_ns(void) { return read_clock(CLOCK_MONOTONIC); }

/* Latencies: a histogram with 256 steps to each doubling, so a percentile is off by at most 0.2 %. */

#define STEP_BITS 8
#define STEPS (1u << STEP_BITS)
static uint64_t histogram[(64 - STEP_BITS + 1) * STEPS];
static uint64_t worst_latency;

static unsigned step_of(uint64_t ns) {
    if (ns < STEPS)
        return (unsigned)ns;
    unsigned shift = 63u - (unsigned)__builtin_clzll(ns) - STEP_BITS;
    return (shift + 1) * STEPS + (unsigned)((ns >> shift) - STEPS);
}

static double step_middle_us(unsigned step) {
    if (step < STEPS)
        return step / 1000.0;
    unsigned shift = step / STEPS - 1;
    double low = (double)((uint64_t)(step % STEPS + STEPS) << shift);
    return (low + (double)(UINT64_C(1) << shift) / 2) / 1000.0;
}

static double percentile_us(double fraction) {
    uint64_t below = 0, wanted = (uint64_t)(fraction * (double)counted);
    for (unsigned step = 0; step < sizeof histogram / sizeof *histogram; step++) {
        below += histogram[step];
        if (below > wanted)
            return step_middle_us(step);
    }
    return 0;
}

/* The server, seen from outside. */

static uint64_t waited_for_core_ns(void) { /* time its first thread was runnable but not running */
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/schedstat", option.pid);
    FILE *file = fopen(path, "r");
    uint64_t ran, waited = 0;
    if (file == NULL)
        return 0; /* a kernel without schedstats: the figure is only a sign of disturbance */
    if (fscanf(file, "%" SCNu64 " %" SCNu64, &ran, &waited) != 2)
        waited = 0;
    fclose(file);
    return waited;
}

static long resident_kib(void) {
    char path[64], line[256];
    long kib = -1;
    snprintf(path, sizeof path, "/proc/%d/smaps_rollup", option.pid);
    FILE *file = fopen(path, "r");
    if (file == NULL)
        fail("%s: %s", path, strerror(errno));
    while (kib < 0 && fgets(line, sizeof line, file) != NULL)
        if (sscanf(line, "Rss: %ld kB", &kib) != 1)
            kib = -1;
    fclose(file);
    if (kib < 0)
        fail("%s has no Rss line", path);
    return kib;
}

static struct sample take_sample(void) {
    struct sample s;
    s.waited = waited_for_core_ns();
    s.own = read_clock(CLOCK_PROCESS_CPUTIME_ID);
    s.cpu = read_clock(server_clock);
    s.now = now_ns();
    return s;
}

/* One connection. */

static void send_more(struct connection *c) {
    while (c->outstanding && c->sent < option.size) {
        const unsigned char *rest = block + c->offset + c->sent;
        ssize_t n = send(c->fd, rest, option.size - c->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN)
            return; /* the edge-triggered EPOLLOUT tells when there is room */
        if (n < 0)
            fail("send on connection %u: %s", c->number, strerror(errno));
        c->sent += (size_t)n;
    }
}

static void begin_request(struct connection *c, uint64_t now) {
    c->offset = (c->number * 131u + c->request * 17u) % SLICES;
    c->request++;
    c->sent = c->received = 0;
    c->began = now;
    c->outstanding = true;
    outstanding++;
    send_more(c);
}

static void begin_if_allowed(struct connection *c, uint64_t now) {
    if (!may_send || c->idle || may_begin == 0)
        return;
    may_begin--;
    begin_request(c, now);
}

static void end_request(struct connection *c) {
    uint64_t now = now_ns(), latency = now - c->began;
    c->outstanding = false;
    outstanding--;
    if (window_open) {
        histogram[step_of(latency)]++;
        if (latency > worst_latency)
            worst_latency = latency;
        counted++;
    }
    begin_if_allowed(c, now);
}

static void receive_all(struct connection *c) {
    for (;;) {
        ssize_t n = recv(c->fd, received_bytes, sizeof received_bytes, MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n < 0)
            fail("recv on connection %u: %s", c->number, strerror(errno));
        if (n == 0)
            fail("the server closed connection %u", c->number);
        if (!c->outstanding || c->received + (size_t)n > c->sent)
            fail("connection %u was answered with more bytes than it sent", c->number);
        if (memcmp(received_bytes, block + c->offset + c->received, (size_t)n) != 0)
            fail("connection %u was answered with other bytes than it sent", c->number);
        c->received += (size_t)n;
        if (c->received == option.size)
            end_request(c);
        if ((size_t)n < sizeof received_bytes)
            return; /* a short read emptied the socket: more bytes are a new edge (epoll(7)) */
    }
}

/* All connections. */

static void wait_and_serve(void) {
    static unsigned silent; /* waits in a row that brought nothing */
    struct epoll_event events[EVENTS];
    int count = epoll_wait(poller, events, EVENTS, 1000);
    if (count < 0 && errno != EINTR)
        fail("epoll_wait: %s", strerror(errno));
    silent = count > 0 ? 0 : silent + 1;
    if (silent >= STALL_SECONDS)
        fail("no answer for %u s with %u requests outstanding", silent, outstanding);
    for (int i = 0; i < count; i++) {
        struct connection *c = events[i].data.ptr;
        if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
            receive_all(c);
        if (events[i].events & EPOLLOUT)
            send_more(c);
    }
}

static int connect_from(unsigned host) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000000u + host)};
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)option.port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (fd < 0)
        fail("socket: %s", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&from, sizeof from) == 0 &&
        connect(fd, (struct sockaddr *)&to, sizeof to) == 0)
        return fd;
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

static void open_connections(uint32_t count, bool idle) {
    while (count > 0) {
        for (uint32_t batch = count < OPEN_AT_ONCE ? count : OPEN_AT_ONCE; batch > 0; batch--, count--) {
            struct connection *c = &connections[opened];
            while ((c->fd = connect_from(source_host)) < 0) {
                if (errno != EADDRNOTAVAIL || ++source_host > 254)
                    fail("connection %u: %s", opened, strerror(errno));
            }
            c->number = opened++;
            c->idle = idle;
            struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c};
            if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event) != 0)
                fail("epoll_ctl: %s", strerror(errno));
            begin_request(c, now_ns()); /* the one verified round trip: the server has accepted it */
        }
        while (outstanding > 0)
            wait_and_serve();
    }
}

/* Phases. */

static struct phase run_phase(double warmup, double seconds, uint64_t requests) {
    struct sample first = {0}, last = {0};
    uint64_t start = now_ns(), open_at = start + (uint64_t)(warmup * 1e9), close_at = 0;
    memset(histogram, 0, sizeof histogram);
    counted = worst_latency = 0;
    window_open = false;
    may_send = true;
    may_begin = requests > 0 ? requests : UINT64_MAX;
    if (warmup == 0) {
        first = take_sample();
        close_at = first.now + (uint64_t)(seconds * 1e9);
        window_open = true;
    }
    for (uint32_t i = 0; i < option.connections; i++)
        begin_if_allowed(&connections[i], now_ns());
    while (outstanding > 0) {
        wait_and_serve();
        if (!may_send)
            continue;
        uint64_t now = now_ns();
        if (!window_open && now >= open_at) {
            first = take_sample();
            close_at = first.now + (uint64_t)(seconds * 1e9);
            window_open = true;
        } else if (window_open && (requests > 0 ? counted == requests : now >= close_at)) {
            last = take_sample();
            window_open = may_send = false;
        }
    }
    if (counted == 0 && (seconds > 0 || requests > 0))
        fail("no request was answered in the measured window");
    return (struct phase){
        .seconds = (double)(last.now - first.now) / 1e9,
        .requests = counted,
        .cpu = last.cpu - first.cpu,
        .own = last.own - first.own,
        .waited = last.waited - first.waited,
        .worst = worst_latency,
        .p50 = percentile_us(0.50),
        .p99 = percentile_us(0.99),
    };
}

static void print_phase(const struct phase *p) {
    printf("{\"seconds\": %.6f, \"requests\": %" PRIu64 ", \"cpu_ns\": %" PRIu64 ", \"load_cpu_ns\": %" PRIu64
           ", \"waited_ns\": %" PRIu64 ", \"p50_us\": %.3f, \"p99_us\": %.3f, \"max_us\": %.3f}",
           p->seconds, p->requests, p->cpu, p->own, p->waited, p->p50, p->p99, (double)p->worst / 1000.0);
}

/* Options. */

static double number_in(const char *name, const char *text, double low, double high) {
    char *end;
    double value = text == NULL ? 0 : strtod(text, &end);
    if (text == NULL || end == text || *end != 0 || !(value >= low && value <= high))
        fail("%s takes a number in %g..%g", name, low, high);
    return value;
}

static void parse_options(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i];
        if (strcmp(name, "--hold") == 0) {
            option.hold = true;
            continue;
        }
        const char *text = ++i < argc ? argv[i] : NULL;
        if (strcmp(name, "--port") == 0)
            option.port = (int)number_in(name, text, 1, 65535);
        else if (strcmp(name, "--pid") == 0)
            option.pid = (int)number_in(name, text, 1, INT32_MAX);
        else if (strcmp(name, "--core") == 0)
            option.core = (int)number_in(name, text, 0, CPU_SETSIZE - 1);
        else if (strcmp(name, "--connections") == 0)
            option.connections = (uint32_t)number_in(name, text, 1, MAX_CONNECTIONS);
        else if (strcmp(name, "--idle") == 0)
            option.idle = (uint32_t)number_in(name, text, 0, MAX_CONNECTIONS);
        else if (strcmp(name, "--size") == 0)
            option.size = (size_t)number_in(name, text, 1, MAX_SIZE);
        else if (strcmp(name, "--warmup") == 0)
            option.warmup = number_in(name, text, 0, MAX_SECONDS);
        else if (strcmp(name, "--seconds") == 0)
            option.seconds = number_in(name, text, 0, MAX_SECONDS);
        else if (strcmp(name, "--requests") == 0)
            option.requests = (uint64_t)number_in(name, text, 0, MAX_REQUESTS);
        else
            fail("unknown option %s", name);
    }
    if (option.port == 0 || option.pid == 0)
        fail("--port and --pid are needed");
    if ((option.seconds > 0) == (option.requests > 0))
        fail("give one of --seconds and --requests");
    if (option.hold && option.idle > 0)
        fail("--hold goes with one phase, --idle has two");
}

static void prepare(void) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(ALARM_SECONDS);
    if (option.core >= 0) {
        cpu_set_t cores;
        CPU_ZERO(&cores);
        CPU_SET((size_t)option.core, &cores);
        if (sched_setaffinity(0, sizeof cores, &cores) != 0)
            fail("sched_setaffinity to core %d: %s", option.core, strerror(errno));
    }
    if ((errno = clock_getcpuclockid(option.pid, &server_clock)) != 0)
        fail("clock_getcpuclockid of process %d: %s", option.pid, strerror(errno));
    poller = epoll_create1(EPOLL_CLOEXEC);
    connections = calloc(option.connections + option.idle, sizeof *connections);
    block = malloc(option.size + SLICES);
    if (poller < 0 || connections == NULL || block == NULL)
        fail("cannot set up: %s", strerror(errno));
    uint64_t x = UINT64_C(0x9E3779B97F4A7C15);
    for (size_t i = 0; i < option.size + SLICES; i++) { /* xorshift64 */
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        block[i] = (unsigned char)(x >> 32);
    }
}

int main(int argc, char **argv) {
    parse_options(argc, argv);
    prepare();
    open_connections(option.connections, false);
    if (option.hold) {
        run_phase(option.warmup, 0, 0);
        puts("{\"ready\": true}");
        fflush(stdout);
        if (getchar() == EOF)
            fail("no word to begin");
    }
    struct phase first = run_phase(option.hold ? 0 : option.warmup, option.seconds, option.requests);
    long before = 0, after = 0;
    struct phase beside = {0};
    if (option.idle > 0) {
        before = resident_kib();
        open_connections(option.idle, true);
        after = resident_kib();
        beside = run_phase(option.warmup, option.seconds, option.requests);
    }
    printf("{\"phases\": [");
    print_phase(&first);
    if (option.idle > 0) {
        printf(", ");
        print_phase(&beside);
    }
    printf("], \"resident_kib\": [%ld, %ld]}\n", before, after);
    fflush(stdout);
    if (option.hold)
        while (getchar() != EOF)
            ;
    return 0;
}
