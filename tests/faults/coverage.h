/*
 * Which ways through the shim a program has taken: gcc calls __sanitizer_cov_trace_pc at every basic block of what is compiled
 * with -fsanitize-coverage=trace-pc. An edge, one block after another, is a place in tf_edges, which counts how often
 * it was taken (up to 255). Read and cleared by fuzz_ring.py. The shim that is shipped has none of it.
 */
#include <stdint.h>

#define TF_EDGES 8192

static unsigned char tf_edges[TF_EDGES];

__attribute__((no_sanitize_coverage)) void __sanitizer_cov_trace_pc(void)
{
    static __thread uintptr_t previous;
    uintptr_t here = ((uintptr_t)__builtin_return_address(0) - (uintptr_t)tf_edges) * 0x9e3779b97f4a7c15U >> 40;
    unsigned char *edge = &tf_edges[(here ^ previous) % TF_EDGES];

    *edge += *edge < 255;
    previous = here >> 1;
}
