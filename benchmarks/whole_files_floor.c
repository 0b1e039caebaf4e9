/*
 * The floor for trio_uring.read_files: the least that a C program spends on whole files whose contents it keeps.
 *
 *   cc -O2 -o whole_files_floor benchmarks/whole_files_floor.c
 *   ./whole_files_floor NAMES [rounds]
 *
 * NAMES has a path on each line. Each round opens every file, asks for its size, reads it into memory of its own and closes
 * it; then all memory is freed. Prints one line: CPU and wall time of each file, of the median round.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MOST 100000

static char *names[MOST], *contents[MOST];
static unsigned count;

static int64_t clock_ns(clockid_t clock)
{
    struct timespec ts;

    clock_gettime(clock, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void one_round(void)
{
    for (unsigned i = 0; i < count; i++) {
        struct stat st;
        int fd = open(names[i], O_RDONLY | O_CLOEXEC);
        ssize_t got;
        size_t done = 0;

        if (fd < 0 || fstat(fd, &st) < 0 || !(contents[i] = malloc((size_t)st.st_size + 1)))
            fail(names[i]);
        do { /* one byte more than the file has: a read that comes short has met the end */
            got = read(fd, contents[i] + done, (size_t)st.st_size + 1 - done);
            if (got < 0)
                fail(names[i]);
            done += (size_t)got;
        } while (got > 0 && done > (size_t)st.st_size);
        if (done != (size_t)st.st_size)
            fail("a file that changed meanwhile");
        close(fd);
    }
    for (unsigned i = 0; i < count; i++)
        free(contents[i]);
}

int main(int argc, char **argv)
{
    unsigned rounds = argc > 2 ? (unsigned)atoi(argv[2]) : 100;
    FILE *list = argc > 1 ? fopen(argv[1], "r") : NULL;
    int64_t *cpu = calloc(rounds, sizeof *cpu), *wall = calloc(rounds, sizeof *wall);
    char line[4096];

    if (!list || !cpu || !wall || !rounds)
        fail("usage: whole_files_floor NAMES [rounds]");
    while (count < MOST && fgets(line, sizeof line, list)) {
        line[strcspn(line, "\n")] = 0;
        names[count++] = strdup(line);
    }
    one_round();
    for (unsigned i = 0; i < rounds; i++) {
        cpu[i] = -clock_ns(CLOCK_PROCESS_CPUTIME_ID);
        wall[i] = -clock_ns(CLOCK_MONOTONIC);
        one_round();
        wall[i] += clock_ns(CLOCK_MONOTONIC);
        cpu[i] += clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    }
    qsort(cpu, rounds, sizeof *cpu, by_size);
    qsort(wall, rounds, sizeof *wall, by_size);
    printf("median_cpu_ns=%.1f median_wall_ns=%.1f\n", (double)cpu[rounds / 2] / count, (double)wall[rounds / 2] / count);
    return 0;
}
