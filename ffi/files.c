/*
 * Files, without a ring: where one is, and what a positional transfer has to know of it.
 *
 * Part of the shim: uring.c includes this file. It knows file systems and system calls; it knows nothing of rings.
 *
 * Some file systems have to ask somebody before they answer: a daemon (FUSE), another machine (NFS, CIFS, Ceph). The loop's thread
 * must not wait for those, least of all for a daemon that runs in it (F53). So it asks what the kernel knows by itself:
 *
 * - openat2(2) with RESOLVE_CACHED walks a path in the dentry cache and answers EAGAIN rather than ask; with O_PATH it opens
 *   nothing.
 * - statx(2) with AT_STATX_DONT_SYNC answers what is in memory: the type of the file, and the number of its mount. (9p alone
 *   asks all the same.)
 * - statmount(2) tells the type of the file system behind that number, and a number of this kind is never used again, so that one
 *   question will do for each mount. Before 6.8, or where a sandbox forbids the call, /proc/self/mountinfo tells it, each time,
 *   because there numbers are used again.
 *
 * What is found nowhere, a mount of another namespace say, counts as not local. But for memory, which has no mount that anybody
 * sees: it knows of seals, and no other file system does.
 */

#ifndef SYS_statmount
#define SYS_statmount 457
#endif
#define TU_STATX_TYPE 1U
#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif
#define TU_STATX_MNT_ID 0x1000U
#define TU_STATX_MNT_ID_UNIQUE 0x4000U
#define TU_RESOLVE_CACHED 0x20
#define TU_STATMOUNT_SB_BASIC 0x1
#define TU_STATMOUNT_MNT_BASIC 0x2
#define TU_F_GET_SEALS 1034
#define KNOWN_MOUNTS 64
#define MOST_PAGES 320 /* a mebibyte, and what does not begin with a page */
#define FLAG_BITS 3 /* TU_LOCAL, TU_COPIES_UP, TU_MEMORY */

/* By f_type of statfs(2), and by name in mountinfo. None has a ->flush operation that waits, and none asks another process or
 * machine, but for an overlay over one that does: see layers_are_local(). */
static const struct {
    uint32_t magic;
    const char *name;
} local_filesystems[] = {
    {0xef53, "ext4"},         {0xef53, "ext3"},        {0xef53, "ext2"},        {0x58465342, "xfs"},
    {0x9123683e, "btrfs"},    {0x01021994, "tmpfs"},   {0x01021994, "devtmpfs"}, {0x794c7630, "overlay"},
    {0xf2f52010, "f2fs"},     {0x2fc12fc1, "zfs"},     {0xca451a4e, "bcachefs"}, {0x858458f6, "ramfs"},
    {0x3153464a, "jfs"},      {0x4d44, "vfat"},        {0x2011bab0, "exfat"},   {0x73717368, "squashfs"},
    {0xe0f5e1e2, "erofs"},    {0x9660, "iso9660"},
};
#define OVERLAY 0x794c7630
#define TMPFS 0x01021994
#define RAMFS 0x858458f6

struct tu_mount_request {
    uint32_t size, spare;
    uint64_t mount, param;
};

static int local_flags(uint32_t magic, const char *name)
{
    for (size_t i = 0; i < sizeof local_filesystems / sizeof *local_filesystems; i++)
        if (name ? !strcmp(name, local_filesystems[i].name) : magic == local_filesystems[i].magic)
            switch (local_filesystems[i].magic) {
            case OVERLAY:
                return TU_LOCAL | TU_COPIES_UP;
            case TMPFS:
            case RAMFS:
                return TU_LOCAL | TU_MEMORY;
            default:
                return TU_LOCAL;
            }
    return 0;
}

/* The line of /proc/self/mountinfo for a mount, to be freed; NULL where there is none. */
static char *mount_line(uint64_t mount)
{
    FILE *file = fopen("/proc/self/mountinfo", "re");
    char *line = NULL;
    size_t room = 0;
    unsigned long long number;

    if (!file)
        return NULL;
    while (getline(&line, &room, file) > 0)
        if (sscanf(line, "%llu ", &number) == 1 && number == mount) {
            fclose(file);
            return line;
        }
    free(line);
    fclose(file);
    return NULL;
}

static int path_flags(const char *path);

/* Whether no layer of an overlay is seen to be elsewhere. Its options name them as whoever mounted it saw them: in a container
 * most often by names that lead nowhere. Those that are not found are taken to be local, as images are. */
static int layers_are_local(char *options)
{
    static const char *const names[] = {"lowerdir=", "lowerdir+=", "datadir+=", "upperdir="};
    char *rest;

    for (char *option = strtok_r(options, ",\n", &rest); option; option = strtok_r(NULL, ",\n", &rest))
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            char *more;

            if (strncmp(option, names[i], strlen(names[i])))
                continue;
            for (char *layer = strtok_r(option + strlen(names[i]), ":", &more); layer; layer = strtok_r(NULL, ":", &more)) {
                int flags = *layer == '/' ? path_flags(layer) : -ENOENT;

                if (flags >= 0 && !(flags & TU_LOCAL))
                    return 0;
            }
        }
    return 1;
}

/* What mountinfo says of a mount, by the number that it has there. */
static int flags_by_line(uint64_t mount)
{
    char *line = mount_line(mount), *type, *options;
    int flags = 0;

    if (!line)
        return 0;
    type = strstr(line, " - ");
    if (type) {
        type += 3;
        options = strchr(type, ' ');
        if (options)
            *options++ = 0;
        flags = local_flags(0, type);
        /* After the type: the source, and the options. */
        if (flags & TU_COPIES_UP && options && (options = strchr(options, ' ')) && !layers_are_local(options + 1))
            flags = 0;
    }
    free(line);
    return flags;
}

/* The same, by the number that statx(2) has for it, which is never used again. Answers -ENOSYS where only mountinfo can tell. */
static int flags_by_number(uint64_t mount)
{
    static _Atomic uint64_t known[KNOWN_MOUNTS]; /* the number, and its flags below: as one, since threads share it */
    struct tu_mount_request request = {sizeof request, 0, mount, TU_STATMOUNT_SB_BASIC | TU_STATMOUNT_MNT_BASIC};
    uint64_t out[64]; /* struct statmount: sb_magic at 24, mnt_id_old, which mountinfo has, at 56 */
    unsigned place = mount % KNOWN_MOUNTS;
    uint64_t seen;
    uint32_t magic, old;
    int flags;

    seen = atomic_load_explicit(&known[place], memory_order_relaxed);
    if (mount && seen >> FLAG_BITS == mount)
        return (int)(seen & ((1 << FLAG_BITS) - 1));
    if (syscall(SYS_statmount, &request, out, sizeof out, 0) == 0) {
        memcpy(&magic, (char *)out + 24, sizeof magic);
        memcpy(&old, (char *)out + 56, sizeof old);
        flags = local_flags(magic, NULL);
        if (flags & TU_COPIES_UP)
            flags = flags_by_line(old);
    } else if (errno == ENOENT) {
        flags = 0;
    } else {
        return -ENOSYS;
    }
    atomic_store_explicit(&known[place], mount << FLAG_BITS | (uint64_t)flags, memory_order_relaxed);
    return flags;
}

static int asked(int fd, unsigned mask, char *out)
{
    return syscall(SYS_statx, fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, mask, out) < 0 ? -errno : 0;
}

static int flags_of(int fd)
{
    char out[256]; /* struct statx: stx_mask at 0, stx_mode at 28, stx_mnt_id at 144 */
    uint32_t mask;
    uint16_t mode;
    uint64_t mount;
    int flags = -ENOSYS, rc = asked(fd, TU_STATX_TYPE | TU_STATX_MNT_ID_UNIQUE, out);

    if (rc < 0)
        return rc;
    memcpy(&mask, out, sizeof mask);
    memcpy(&mode, out + 28, sizeof mode);
    memcpy(&mount, out + 144, sizeof mount);
    if (mask & TU_STATX_MNT_ID_UNIQUE)
        flags = flags_by_number(mount);
    if (flags == -ENOSYS) {
        if ((rc = asked(fd, TU_STATX_TYPE | TU_STATX_MNT_ID, out)) < 0)
            return rc;
        memcpy(&mount, out + 144, sizeof mount);
        flags = flags_by_line(mount);
    }
    if (!flags && S_ISREG(mode) && fcntl(fd, TU_F_GET_SEALS) >= 0)
        flags = TU_LOCAL | TU_MEMORY;
    return (mode & S_IFMT) | flags;
}

/* A descriptor that only names what a path leads to, by the cache of names alone. */
static int name_cached(const char *path, int flags)
{
    struct {
        uint64_t flags, mode, resolve;
    } how = {(uint64_t)(O_PATH | O_CLOEXEC | flags), 0, TU_RESOLVE_CACHED};
    int fd = (int)syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);

    return fd < 0 ? -errno : fd;
}

static int path_flags(const char *path)
{
    int fd = name_cached(path, 0), flags;

    if (fd < 0)
        return fd;
    flags = flags_of(fd);
    close(fd);
    return flags;
}

/* With O_NONBLOCK set, not to wait for the end of a lease. */
static int open_cached(const char *path, int flags)
{
    struct {
        uint64_t flags, mode, resolve;
    } how = {(uint64_t)(unsigned)(flags | O_NONBLOCK), 0, TU_RESOLVE_CACHED};
    int where = path_flags(path);

    if (where < 0 || !S_ISREG(where & S_IFMT) || !(where & TU_LOCAL) ||
        (where & TU_COPIES_UP && (flags & O_ACCMODE) != O_RDONLY))
        return -EAGAIN;
    return (int)syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
}

int tu_open_cached(const char *path, int flags)
{
    int fd = open_cached(path, flags);

    if (fd >= 0 && fcntl(fd, F_SETFL, flags) < 0) {
        close(fd);
        fd = -1;
    }
    return fd < 0 ? -EAGAIN : fd;
}

int tu_where(int fd, const char *path)
{
    return fd < 0 ? path_flags(path) : flags_of(fd);
}

int tu_file(int fd)
{
    int where = flags_of(fd), flags;

    if (where < 0)
        return where;
    /* Only there does lseek(2) wait for whoever is using the position, and all of these have one. */
    if (!S_ISREG(where & S_IFMT) && !S_ISDIR(where & S_IFMT) && lseek(fd, 0, SEEK_CUR) < 0)
        return -errno;
    flags = fcntl(fd, F_GETFL);
    if (flags < 0)
        return -errno;
    if (flags & O_PATH)
        return -EBADF;
    return (flags & O_DIRECT ? TU_DIRECT : 0) | (where & TU_LOCAL || !S_ISREG(where & S_IFMT) ? 0 : TU_ELSEWHERE);
}

/* Whether all pages of a range of an overlay's file are in memory. The overlay itself has none of them (cachestat(2) says so): a
 * mapping leads to the file below. Of a file that is not the caller's mincore(2) says yes without looking. */
static int overlay_resident(int fd, const struct stat *st, uint64_t length, int64_t offset)
{
    unsigned char there[MOST_PAGES];
    long page = sysconf(_SC_PAGESIZE);
    int64_t start = offset - offset % page, end = offset + (int64_t)length;
    size_t size, pages;
    void *map;
    int all = 1;

    if (end > st->st_size)
        end = st->st_size;
    if (end <= offset)
        return 1;
    size = (size_t)(end - start);
    pages = (size + (size_t)page - 1) / (size_t)page;
    if (pages > MOST_PAGES || st->st_uid != geteuid())
        return 0;
    map = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, start);
    if (map == MAP_FAILED)
        return 0;
    if (mincore(map, size, there) < 0)
        all = 0;
    for (size_t i = 0; all && i < pages; i++)
        all = there[i] & 1;
    munmap(map, size);
    return all;
}

/* Whether a read of a range needs no disk, on the file systems that have no RWF_NOWAIT: memory, as far as it has not been swapped out,
 * and overlays. */
static int resident(int fd, uint64_t length, int64_t offset)
{
    struct {
        uint64_t offset, length;
    } range = {(uint64_t)offset, length};
    struct {
        uint64_t cached, dirty, writeback, evicted, recently;
    } pages;
    struct stat st;
    int where = flags_of(fd);

    if (where < 0 || !S_ISREG(where & S_IFMT) || !length)
        return 0;
    if (where & TU_MEMORY)
        return syscall(SYS_cachestat, fd, &range, &pages, 0) == 0 && !pages.evicted;
    return where & TU_COPIES_UP && file_status(fd, &st) == 0 && overlay_resident(fd, &st, length, offset);
}

int tu_statx(int dirfd, const char *path, int flags, unsigned mask, char *out)
{
    int rc;

    TU_LET_GO;
    rc = syscall(SYS_statx, dirfd, path, flags, mask, out) < 0 ? -errno : 0;
    TU_TAKE_BACK;
    return rc;
}

int tu_fallocate(int fd, int mode, int64_t offset, int64_t length)
{
    int rc;

    TU_LET_GO;
    rc = fallocate(fd, mode, offset, length) < 0 ? -errno : 0;
    TU_TAKE_BACK;
    return rc;
}

int64_t tu_remaining(int fd)
{
    struct stat st;
    off_t at = lseek(fd, 0, SEEK_CUR);

    if (at < 0 || file_status(fd, &st) < 0)
        return -errno;
    return st.st_size - at;
}

static int64_t nanoseconds(struct timespec time)
{
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

int tu_file_facts(int fd, tu_file_state *state)
{
    struct stat st;
    struct timespec now;

    state->position = lseek(fd, 0, SEEK_CUR);
    if (state->position < 0 || file_status(fd, &st) < 0)
        return -errno;
    clock_gettime(CLOCK_REALTIME, &now);
    state->size = st.st_size;
    state->changed = nanoseconds(st.st_ctim);
    state->now = nanoseconds(now);
    return 0;
}

int tu_advance(int fd, int64_t position, int64_t count, int64_t size, int64_t changed)
{
    struct stat st;

    if (position < 0 || lseek(fd, 0, SEEK_CUR) != position)
        return 0;
    if (size >= 0 && (file_status(fd, &st) < 0 || st.st_size != size || nanoseconds(st.st_ctim) != changed))
        return 0;
    return lseek(fd, count, SEEK_CUR) == position + count;
}
