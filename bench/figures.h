/* What a run is judged by: rate, latencies, and the CPU time of both sides. */
#ifndef TWINVOL_BENCH_FIGURES_H
#define TWINVOL_BENCH_FIGURES_H

#include <stdint.h>
#include <sys/types.h>

enum { BUCKETS_PER_OCTAVE = 16, BUCKETS = 64 * BUCKETS_PER_OCTAVE }; /* 6 % wide */

struct cpu_time {
    uint64_t ns;          /* on a CPU, of all threads: the scheduler's own account */
    double user_s, sys_s; /* the same, split by clock ticks of 10 ms: only the sum of a long time means anything */
};

struct figures {
    uint64_t ios, bytes, flushes;
    uint64_t latency[BUCKETS], latency_max_ns;
    uint64_t start_ns, client_ns;
    struct cpu_time server;
};

/* Adds a process to those that are the server. */
void figures_watch(pid_t pid);

void figures_start(struct figures *figures);
void figures_add(struct figures *figures, uint32_t bytes, uint64_t latency_ns);

/* One line of JSON. `failure`: "" for none; a server that is gone has no figures left. */
void figures_print(const struct figures *figures, uint64_t wrong, const char *failure);

#endif
