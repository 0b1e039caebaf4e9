#!/bin/bash
# cachestat(2) of a file on an overlay, the root of most containers, says that nothing of it is in the page cache, and gives no error:
# it looks into the overlay's own mapping, which is always empty, and not into the file's below. mincore(2) of the same descriptor
# sees every page. So do reads; but RWF_NOWAIT and RWF_DONTCACHE, which the file below has, are EOPNOTSUPP there.
#
# Seen on Linux 6.18.44, x86-64, an overlay on ext4, a file of 16 pages that has just been read:
#
#     the file below: cachestat 16, mincore 16, RWF_NOWAIT works, RWF_DONTCACHE works
#     on the overlay: cachestat 0, mincore 16, RWF_NOWAIT not supported, RWF_DONTCACHE not supported
#
# Needs gcc, ext4 below TMPDIR, and to be root or to be allowed user namespaces. Fails if it is otherwise.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir lower upper work merged
cat >find.c <<'C'
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define DONTCACHE 0x80 /* newer than most headers, as is cachestat(2) */
#define PAGES 16

static const char *flag(int fd, int flags)
{
    char text[4096];
    struct iovec iovec = {text, sizeof text};

    return preadv2(fd, &iovec, 1, 0, flags) == sizeof text ? "works" : errno == EOPNOTSUPP ? "not supported" : "?";
}

int main(int argc, char **argv)
{
    uint64_t range[2] = {0, 0}, cached[5];
    unsigned char pages[PAGES];
    char text[PAGES * 4096];
    int fd = open(argv[1], O_RDONLY), resident = 0;
    void *map = mmap(NULL, sizeof text, PROT_READ, MAP_SHARED, fd, 0);

    if (argc != 3 || read(fd, text, sizeof text) != sizeof text || syscall(451, fd, range, cached, 0) < 0 ||
        mincore(map, sizeof text, pages) < 0)
        return perror(argv[1]), 1;
    for (int i = 0; i < PAGES; i++)
        resident += pages[i] & 1;
    printf("%s: cachestat %d, mincore %d, RWF_NOWAIT %s, RWF_DONTCACHE %s\n", argv[2], (int)cached[0], resident, flag(fd, RWF_NOWAIT),
           flag(fd, DONTCACHE));
    return 0;
}
C
gcc -std=gnu11 -Wall -o find find.c
head -c 65536 /dev/urandom >lower/file
sync lower/file
cat >job.sh <<'JOB'
mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay merged
./find lower/file "the file below" >seen
./find merged/file "on the overlay" >>seen
JOB
unshare --map-root-user --mount sh -e job.sh
cat seen
diff seen - <<'SEEN'
the file below: cachestat 16, mincore 16, RWF_NOWAIT works, RWF_DONTCACHE works
on the overlay: cachestat 0, mincore 16, RWF_NOWAIT not supported, RWF_DONTCACHE not supported
SEEN
