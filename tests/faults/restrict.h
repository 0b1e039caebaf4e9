/*
 * Rings that may not do everything. shim_variants.py puts this file in front of ffi/uring.c; the shim that is shipped has none of it.
 *
 * TU_RESTRICT="18,21" refuses these operations, TU_RESTRICT_REGISTER="4" these opcodes of io_uring_register(2), and
 * TU_RESTRICT_FLAGS="32" these flags of entries, to every ring that the shim makes, through IORING_REGISTER_RESTRICTIONS: on the
 * ring itself, as every kernel has it, and with the same answers as a restriction of the whole task (7.2 and later).
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>

#define TR_MOST 256

static void tr_without(const char *variable, unsigned char *allowed)
{
    const char *value = getenv(variable);

    for (char *end; value && *value; value = *end ? end + 1 : end)
        allowed[strtoul(value, &end, 10) & (TR_MOST - 1)] = 0;
}

static int tr_restrict(int fd)
{
    unsigned char operations[TR_MOST], registers[TR_MOST];
    struct io_uring_restriction rules[2 * TR_MOST + 1];
    struct io_uring_probe *probe = calloc(1, sizeof *probe + TR_MOST * sizeof probe->ops[0]);
    const char *flags = getenv("TU_RESTRICT_FLAGS");
    unsigned n = 0;
    int rc = probe ? io_uring_register(fd, IORING_REGISTER_PROBE, probe, TR_MOST) : -ENOMEM;

    memset(operations, 1, sizeof operations);
    memset(registers, 1, sizeof registers);
    memset(rules, 0, sizeof rules);
    tr_without("TU_RESTRICT", operations);
    tr_without("TU_RESTRICT_REGISTER", registers);
    for (unsigned i = 0; rc >= 0 && i <= probe->last_op; i++)
        if (operations[i]) {
            rules[n].opcode = IORING_RESTRICTION_SQE_OP;
            rules[n++].sqe_op = (unsigned char)i;
        }
    for (unsigned i = 0; i <= IORING_REGISTER_SYNC_CANCEL; i++) /* the newest one that the shim asks for */
        if (registers[i]) {
            rules[n].opcode = IORING_RESTRICTION_REGISTER_OP;
            rules[n++].register_op = (unsigned char)i;
        }
    rules[n].opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
    rules[n++].sqe_flags = (unsigned char)~(flags ? strtoul(flags, NULL, 10) : 0);
    if (rc >= 0)
        rc = io_uring_register(fd, IORING_REGISTER_RESTRICTIONS, rules, n);
    if (rc >= 0)
        rc = io_uring_register(fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
    free(probe);
    return rc;
}

static int tr_init_params(unsigned entries, struct io_uring *ring, struct io_uring_params *p)
{
    int rc;

    p->flags |= IORING_SETUP_R_DISABLED;
    rc = io_uring_queue_init_params(entries, ring, p);
    if (rc < 0)
        return rc;
    rc = tr_restrict(ring->ring_fd);
    if (rc < 0)
        io_uring_queue_exit(ring);
    return rc;
}
#define io_uring_queue_init_params tr_init_params
