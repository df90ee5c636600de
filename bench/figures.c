#define _GNU_SOURCE
#include "figures.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "initiator.h"

enum { MAX_PIDS = 16 };
static pid_t servers[MAX_PIDS];
static int server_count;

void figures_watch(pid_t pid) {
    if (server_count == MAX_PIDS) {
        fprintf(stderr, "loadgen: --cpu-of: at most %d processes\n", MAX_PIDS);
        exit(2);
    }
    servers[server_count++] = pid;
}

static uint64_t scheduled_ns(pid_t pid) {
    char path[300];
    uint64_t total = 0;
    snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
    DIR *tasks = opendir(path);
    if (!tasks) {
        fprintf(stderr, "loadgen: %s: %s\n", path, strerror(errno));
        exit(2);
    }
    for (struct dirent *entry; (entry = readdir(tasks));) {
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "/proc/%d/task/%.20s/schedstat", (int)pid, entry->d_name);
        FILE *file = fopen(path, "r");
        uint64_t ns = 0;
        if (file && fscanf(file, "%" SCNu64, &ns) == 1) total += ns;
        if (file) fclose(file);
    }
    closedir(tasks);
    return total;
}

static void add_ticks(pid_t pid, struct cpu_time *time) { /* fields 14 and 15 of stat; proc(5) */
    char path[64], line[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "r");
    const char *name_end = file && fgets(line, sizeof line, file) ? strrchr(line, ')') : NULL;
    unsigned long user = 0, sys = 0;
    if (name_end && sscanf(name_end + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &sys) == 2) {
        time->user_s += (double)user / (double)sysconf(_SC_CLK_TCK);
        time->sys_s += (double)sys / (double)sysconf(_SC_CLK_TCK);
    }
    if (file) fclose(file);
}

static struct cpu_time of_servers(void) {
    struct cpu_time total = {0};
    for (int i = 0; i < server_count; i++) {
        total.ns += scheduled_ns(servers[i]);
        add_ticks(servers[i], &total);
    }
    return total;
}

static uint64_t own_cpu_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void figures_start(struct figures *figures) {
    memset(figures, 0, sizeof *figures);
    figures->server = of_servers();
    figures->client_ns = own_cpu_ns();
    figures->start_ns = now_ns();
}

void figures_add(struct figures *figures, uint32_t bytes, uint64_t latency_ns) {
    figures->ios++;
    figures->bytes += bytes;
    if (latency_ns > figures->latency_max_ns) figures->latency_max_ns = latency_ns;
    unsigned exponent = 63 - (unsigned)__builtin_clzll(latency_ns | BUCKETS_PER_OCTAVE);
    figures->latency[exponent * BUCKETS_PER_OCTAVE + ((latency_ns >> (exponent - 4)) & (BUCKETS_PER_OCTAVE - 1))]++;
}

static double bucket_us(unsigned bucket) { /* its lower end */
    return (double)((BUCKETS_PER_OCTAVE + (uint64_t)bucket % BUCKETS_PER_OCTAVE) << (bucket / BUCKETS_PER_OCTAVE)) /
           BUCKETS_PER_OCTAVE / 1000;
}

static double percentile_us(const struct figures *figures, double fraction) {
    uint64_t want = (uint64_t)(fraction * (double)figures->ios), seen = 0;
    for (unsigned i = 0; i < BUCKETS; i++) {
        seen += figures->latency[i];
        if (seen > want) return bucket_us(i);
    }
    return (double)figures->latency_max_ns / 1000;
}

void figures_print(const struct figures *f, uint64_t wrong, const char *failure) {
    double seconds = (double)(now_ns() - f->start_ns) / 1e9, ios = f->ios ? (double)f->ios : 1;
    uint64_t client_ns = own_cpu_ns() - f->client_ns;
    struct cpu_time now = *failure ? f->server : of_servers();
    printf("{\"ios\": %" PRIu64 ", \"seconds\": %.6f, \"iops\": %.1f, \"mib_per_s\": %.2f, \"client_us_per_io\": %.3f, ", f->ios,
           seconds, (double)f->ios / seconds, (double)f->bytes / seconds / 1048576, (double)client_ns / 1000 / ios);
    printf("\"server_us_per_io\": %.3f, \"server_user_s\": %.2f, \"server_system_s\": %.2f, ",
           (double)(now.ns - f->server.ns) / 1000 / ios, now.user_s - f->server.user_s, now.sys_s - f->server.sys_s);
    printf("\"latency_us\": {\"p50\": %.1f, \"p99\": %.1f, \"p99.9\": %.1f, \"max\": %.1f}, \"histogram_us\": [",
           percentile_us(f, 0.5), percentile_us(f, 0.99), percentile_us(f, 0.999), (double)f->latency_max_ns / 1000);
    const char *comma = "";
    for (unsigned i = 0; i < BUCKETS; i++)
        if (f->latency[i]) {
            printf("%s[%.3f, %" PRIu64 "]", comma, bucket_us(i), f->latency[i]);
            comma = ", ";
        }
    printf("], \"flushes\": %" PRIu64 ", \"wrong_sectors\": %" PRIu64 ", \"failure\": %s%s%s}\n", f->flushes, wrong,
           *failure ? "\"" : "", *failure ? failure : "null", *failure ? "\"" : "");
    fflush(stdout);
}
