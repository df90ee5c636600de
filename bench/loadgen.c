/* A pipelined iSCSI load generator on libiscsi's asynchronous API, which knows what every sector has to hold.
 *
 * One session, one thread, DEPTH commands outstanding, the next one sent from the completion of the last. The
 * volume is divided into granules of 4 KiB. A *ledger* file, mapped into memory, keeps two generations of each:
 * the last one issued, and the last one acknowledged. Being a shared mapping it survives a kill of this program, so
 * the same program is the load of the benchmark and the witness of the kill -9 rounds.
 *
 * Every sector written carries its own number and its generation in its first two words and, swapped, in its last two;
 * the words between are a fixed pattern. Reads check the stamps of every sector; `verify` checks every byte.
 * A granule has at most one write in flight, so after a crash each of its sectors must be of a generation from the
 * acknowledged one to the issued one. A granule never written reads zero (generation 0).
 *
 * Usage: loadgen COMMAND URL --ledger FILE [options]
 *   read | write    --block BYTES --depth N --seconds S [--warmup S] [--pattern random|seq|mixed] [--cpu-of PID]... [--flush-every N]
 *   fill            write every granule of the span once, in order (--block, --depth: 256 KiB, 8)
 *   verify          read the whole span, check every byte (likewise)
 *                   mixed: lengths from 4 KiB to BYTES at any multiple of 4 KiB, as a file system has them
 * All: --span BYTES (default: the volume), --cpu N (pin to that core), --seed N.
 *
 * Ends with one line of JSON on stdout. Exit status 0; 1 wrong bytes; 2 usage or set-up; 3 the target went away or
 * answered with an error (the line of JSON is printed then too).
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>

enum { SECTOR = 512, WORDS = SECTOR / 8, GRANULE = 4096, SECTORS_PER_GRANULE = GRANULE / SECTOR, MAX_PIDS = 16 };
enum { MAX_DEPTH = 1024, MAX_BLOCK = 1 << 20, BUCKETS = 64 * 16 };
enum { OK = 0, WRONG_BYTES = 1, USAGE = 2, TARGET_LOST = 3 };

struct ledger_entry {
    uint32_t issued;       /* set before the write is sent */
    uint32_t acknowledged; /* set when GOOD has arrived */
};

struct slot {
    struct scsi_iovec iov;
    uint64_t *buffer;
    uint64_t offset;
    uint32_t length;
    uint64_t sent_ns;
    bool is_flush;
};

static struct {
    struct iscsi_context *iscsi;
    struct iscsi_url *url;
    struct ledger_entry *ledger;
    uint8_t *busy; /* per granule: a write is in flight */
    uint64_t granules, span, size;
    uint64_t cursor, random_state;
    uint64_t issued, completed, outstanding, flushes;
    uint64_t deadline_ns, window_start_ns;
    uint64_t wrong, shown;
    uint64_t latency[BUCKETS];
    uint64_t latency_max_ns;
    const char *failure;
    char failure_text[256];
    bool stop, measuring, want_time;
    /* options */
    bool writing, sequential, mixed, check_all;
    uint32_t block, depth;
    uint64_t flush_every, flushed_at;
    double seconds, warmup;
    pid_t pids[MAX_PIDS];
    int pid_count;
    uint64_t body[WORDS];
} g;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void die(const char *what, const char *why) {
    fprintf(stderr, "loadgen: %s: %s\n", what, why);
    exit(USAGE);
}

static uint64_t next_random(void) { /* xorshift64* */
    g.random_state ^= g.random_state >> 12;
    g.random_state ^= g.random_state << 25;
    g.random_state ^= g.random_state >> 27;
    return g.random_state * 2685821657736338717u;
}

static void fail(const char *why) {
    if (!g.failure) {
        snprintf(g.failure_text, sizeof g.failure_text, "%s", why);
        for (char *c = g.failure_text; *c; c++)
            if (*c == '"' || *c == '\\' || (unsigned char)*c < ' ') *c = ' ';
        g.failure = g.failure_text;
    }
    g.stop = true;
}

/* ---- bytes ---------------------------------------------------------------------------------------------- */

static void stamp(uint64_t *words, uint64_t sector, uint64_t generation) {
    words[0] = words[WORDS - 1] = sector;
    words[1] = words[WORDS - 2] = generation;
}

static void show_wrong(uint64_t sector, const uint64_t *words, const struct ledger_entry *want) {
    g.wrong++;
    if (g.shown++ < 8)
        fprintf(stderr,
                "loadgen: sector %" PRIu64 ": expected generation %" PRIu32 "..%" PRIu32 ", found words %" PRIx64 " %" PRIx64
                " ... %" PRIx64 " %" PRIx64 "\n",
                sector, want->acknowledged, want->issued, words[0], words[1], words[WORDS - 2], words[WORDS - 1]);
}

static bool is_zero(const uint64_t *words) {
    for (int i = 0; i < WORDS; i++)
        if (words[i]) return false;
    return true;
}

static void check_sector(uint64_t sector, const uint64_t *words) {
    const struct ledger_entry *want = &g.ledger[sector / SECTORS_PER_GRANULE];
    uint64_t generation = words[1];
    bool good = words[0] == sector && words[WORDS - 1] == sector && words[WORDS - 2] == generation &&
                generation >= want->acknowledged && generation <= want->issued && generation > 0;
    if (good && g.check_all) good = memcmp(words + 2, g.body + 2, (WORDS - 4) * 8) == 0;
    if (!good && want->acknowledged == 0) good = is_zero(words);
    if (!good) show_wrong(sector, words, want);
}

/* ---- choosing and sending ------------------------------------------------------------------------------- */

static bool granules_busy(uint64_t offset, uint32_t length) {
    return memchr(g.busy + offset / GRANULE, 1, length / GRANULE) != NULL;
}

static bool choose(struct slot *slot) { /* false: a sequential pass over the span is complete */
    uint64_t blocks = g.span / g.block;
    slot->length = g.block;
    if (!g.sequential) {
        do {
            if (g.mixed) {
                slot->length = (uint32_t)(next_random() % (g.block / GRANULE) + 1) * GRANULE;
                slot->offset = next_random() % ((g.span - slot->length) / GRANULE + 1) * GRANULE;
            } else {
                slot->offset = next_random() % blocks * g.block;
            }
        } while (g.writing && granules_busy(slot->offset, slot->length));
        return true;
    }
    if (g.cursor == blocks) {
        if (!g.deadline_ns) return false;
        g.cursor = 0;
    }
    if (g.writing && granules_busy(g.cursor * g.block, g.block)) return false;
    slot->offset = g.cursor++ * g.block;
    return true;
}

static void completed(struct iscsi_context *iscsi, int status, void *command_data, void *private_data);

static void send_flush(struct slot *slot) {
    slot->is_flush = true;
    if (!iscsi_synchronizecache10_task(g.iscsi, g.url->lun, 0, 0, 0, 0, completed, slot)) {
        fail(iscsi_get_error(g.iscsi));
        return;
    }
    g.outstanding++;
}

static void send_next(struct slot *slot) {
    struct scsi_task *task;
    if (g.stop) return;
    if (g.flush_every && g.issued - g.flushed_at >= g.flush_every) {
        g.flushed_at = g.issued;
        send_flush(slot);
        return;
    }
    slot->is_flush = false;
    if (!choose(slot)) return;
    slot->iov.iov_base = slot->buffer;
    slot->iov.iov_len = slot->length;
    if (g.want_time) slot->sent_ns = now_ns();
    uint64_t lba = slot->offset / SECTOR;
    if (g.writing) {
        uint64_t first = slot->offset / GRANULE;
        for (uint32_t i = 0; i < slot->length / GRANULE; i++) {
            uint32_t generation = ++g.ledger[first + i].issued;
            g.busy[first + i] = 1;
            for (uint32_t s = 0; s < SECTORS_PER_GRANULE; s++)
                stamp(slot->buffer + (i * SECTORS_PER_GRANULE + s) * WORDS, lba + i * SECTORS_PER_GRANULE + s, generation);
        }
        task = iscsi_write16_iov_task(g.iscsi, g.url->lun, lba, NULL, slot->length, SECTOR, 0, 0, 0, 0, 0, completed, slot,
                                      &slot->iov, 1);
    } else {
        task = iscsi_read16_iov_task(g.iscsi, g.url->lun, lba, slot->length, SECTOR, 0, 0, 0, 0, 0, completed, slot,
                                     &slot->iov, 1);
    }
    if (!task) {
        fail(iscsi_get_error(g.iscsi));
        return;
    }
    g.issued++;
    g.outstanding++;
}

static void account(struct slot *slot) {
    uint64_t now = now_ns(), took = now - slot->sent_ns;
    if (now >= g.deadline_ns) g.stop = true;
    if (!g.measuring) return;
    g.completed++;
    if (took > g.latency_max_ns) g.latency_max_ns = took;
    int exponent = 63 - __builtin_clzll(took | 16); /* 16 buckets per power of two: 6 % wide */
    g.latency[exponent * 16 + ((took >> (exponent - 4)) & 15)]++;
}

static void completed(struct iscsi_context *iscsi, int status, void *command_data, void *private_data) {
    struct slot *slot = private_data;
    struct scsi_task *task = command_data;
    g.outstanding--;
    if (status != SCSI_STATUS_GOOD) {
        char why[200];
        if (status == SCSI_STATUS_CHECK_CONDITION)
            snprintf(why, sizeof why, "sense key %x, asc/ascq %04x", task->sense.key, task->sense.ascq);
        else
            snprintf(why, sizeof why, "status %x: %s", status, iscsi_get_error(iscsi));
        fail(why);
    } else if (slot->is_flush) {
        g.flushes++;
    } else if (g.writing) {
        uint64_t first = slot->offset / GRANULE;
        for (uint32_t i = 0; i < slot->length / GRANULE; i++) {
            g.ledger[first + i].acknowledged = g.ledger[first + i].issued;
            g.busy[first + i] = 0;
        }
    } else {
        for (uint32_t s = 0; s < slot->length / SECTOR; s++) check_sector(slot->offset / SECTOR + s, slot->buffer + s * WORDS);
    }
    if (task) scsi_free_scsi_task(task);
    if (!slot->is_flush && g.want_time) account(slot);
    else if (!g.want_time) g.completed++;
    send_next(slot);
}

/* ---- the loop ------------------------------------------------------------------------------------------- */

static void pump(void) { /* until nothing is outstanding, or the session is gone */
    while (g.outstanding) {
        struct pollfd p = {.fd = iscsi_get_fd(g.iscsi), .events = (short)iscsi_which_events(g.iscsi)};
        int n = poll(&p, 1, 20000);
        if (n == 0) {
            fail("no answer for 20 s");
            return;
        }
        if (n < 0 && errno != EINTR) die("poll", strerror(errno));
        if (n > 0 && iscsi_service(g.iscsi, p.revents) < 0) {
            fail(iscsi_get_error(g.iscsi));
            return;
        }
        /* What the completions queued goes out at once: without this every batch would cost another poll(). */
        if (g.outstanding && (iscsi_which_events(g.iscsi) & POLLOUT) && iscsi_service(g.iscsi, POLLOUT) < 0) {
            fail(iscsi_get_error(g.iscsi));
            return;
        }
    }
}

static uint64_t cpu_of_servers(void) { /* nanoseconds on a CPU of all threads of the processes named */
    uint64_t total = 0;
    for (int i = 0; i < g.pid_count; i++) {
        char path[300];
        snprintf(path, sizeof path, "/proc/%d/task", (int)g.pids[i]);
        DIR *tasks = opendir(path);
        if (!tasks) die(path, strerror(errno));
        for (struct dirent *entry; (entry = readdir(tasks));) {
            if (entry->d_name[0] == '.') continue;
            snprintf(path, sizeof path, "/proc/%d/task/%.20s/schedstat", (int)g.pids[i], entry->d_name);
            FILE *file = fopen(path, "r");
            uint64_t ns = 0;
            if (file && fscanf(file, "%" SCNu64, &ns) == 1) total += ns;
            if (file) fclose(file);
        }
        closedir(tasks);
    }
    return total;
}

static uint64_t own_cpu_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static double latency_us(double fraction) {
    uint64_t want = (uint64_t)(fraction * (double)g.completed), seen = 0;
    for (int i = 0; i < BUCKETS; i++) {
        seen += g.latency[i];
        if (seen > want) return (double)((16ull + (unsigned)i % 16) << (i / 16)) / 16 / 1000;
    }
    return (double)g.latency_max_ns / 1000;
}

static void run_window(struct slot *slots, double seconds, bool measuring) {
    g.stop = g.failure != NULL;
    g.measuring = measuring;
    g.deadline_ns = now_ns() + (uint64_t)(seconds * 1e9);
    for (uint32_t i = 0; i < g.depth; i++) send_next(&slots[i]);
    pump();
}

static void one_pass(struct slot *slots) {
    g.sequential = true;
    for (uint32_t i = 0; i < g.depth; i++) send_next(&slots[i]);
    pump();
}

/* ---- set-up --------------------------------------------------------------------------------------------- */

static void connect_session(const char *url) {
    g.iscsi = iscsi_create_context("iqn.2026-11.org.twinvol.bench:loadgen");
    g.url = iscsi_parse_full_url(g.iscsi, url);
    if (!g.url) die(url, iscsi_get_error(g.iscsi));
    iscsi_set_targetname(g.iscsi, g.url->target);
    iscsi_set_session_type(g.iscsi, ISCSI_SESSION_NORMAL);
    iscsi_set_header_digest(g.iscsi, ISCSI_HEADER_DIGEST_NONE);
    iscsi_set_noautoreconnect(g.iscsi, 1); /* a lost session is a result here */
    if (iscsi_full_connect_sync(g.iscsi, g.url->portal, g.url->lun) != 0) {
        printf("{\"failure\": \"login\"}\n");
        fprintf(stderr, "loadgen: %s: %s\n", url, iscsi_get_error(g.iscsi));
        exit(TARGET_LOST);
    }
    struct scsi_task *task = iscsi_readcapacity16_sync(g.iscsi, g.url->lun);
    if (!task || task->status != SCSI_STATUS_GOOD) die("READ CAPACITY(16)", iscsi_get_error(g.iscsi));
    struct scsi_readcapacity16 *capacity = scsi_datain_unmarshall(task);
    if (capacity->block_length != SECTOR) die(url, "logical blocks are not of 512 bytes");
    g.size = (capacity->returned_lba + 1) * SECTOR;
    scsi_free_scsi_task(task);
}

static void map_ledger(const char *path) {
    int fd = open(path, O_RDWR | O_CREAT, 0644);
    size_t length = g.granules * sizeof(struct ledger_entry);
    if (fd < 0 || ftruncate(fd, (off_t)length) != 0) die(path, strerror(errno));
    g.ledger = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (g.ledger == MAP_FAILED) die(path, strerror(errno));
    close(fd);
    g.busy = calloc(g.granules, 1);
}

static struct slot *make_slots(void) {
    struct slot *slots = calloc(g.depth, sizeof *slots);
    for (uint32_t i = 0; i < WORDS; i++) g.body[i] = (i + 1) * 0x9E3779B97F4A7C15u;
    for (uint32_t i = 0; i < g.depth; i++) {
        slots[i].buffer = aligned_alloc(4096, g.block);
        for (uint32_t s = 0; s < g.block / SECTOR; s++) memcpy(slots[i].buffer + s * WORDS, g.body, SECTOR);
    }
    return slots;
}

static void pin(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0) die("--cpu", strerror(errno));
}

static const char *parse_options(int argc, char **argv) {
    const char *ledger = NULL;
    g.random_state = 0x2545F4914F6CDD1Du;
    bool pass = !strcmp(argv[1], "fill") || !strcmp(argv[1], "verify");
    g.block = pass ? 256 * 1024 : 4096, g.depth = pass ? 8 : 1, g.seconds = 2;
    for (int i = 3; i + 1 < argc; i += 2) {
        const char *name = argv[i], *value = argv[i + 1];
        if (!strcmp(name, "--ledger")) ledger = value;
        else if (!strcmp(name, "--block")) g.block = (uint32_t)atol(value);
        else if (!strcmp(name, "--depth")) g.depth = (uint32_t)atol(value);
        else if (!strcmp(name, "--seconds")) g.seconds = atof(value);
        else if (!strcmp(name, "--warmup")) g.warmup = atof(value);
        else if (!strcmp(name, "--span")) g.span = strtoull(value, NULL, 10);
        else if (!strcmp(name, "--pattern")) g.sequential = !strcmp(value, "seq"), g.mixed = !strcmp(value, "mixed");
        else if (!strcmp(name, "--flush-every")) g.flush_every = strtoull(value, NULL, 10);
        else if (!strcmp(name, "--seed")) g.random_state ^= strtoull(value, NULL, 10) * 0x9E3779B97F4A7C15u;
        else if (!strcmp(name, "--cpu")) pin(atoi(value));
        else if (!strcmp(name, "--cpu-of") && g.pid_count < MAX_PIDS) g.pids[g.pid_count++] = (pid_t)atol(value);
        else die(name, "unknown option");
    }
    if (!ledger || argc % 2 == 0) die("usage", "loadgen read|write|fill|verify URL --ledger FILE [options]");
    if (g.block % GRANULE || g.block == 0 || g.block > MAX_BLOCK) die("--block", "a multiple of 4096 up to 1 MiB");
    if (g.depth == 0 || g.depth > MAX_DEPTH) die("--depth", "1 to 1024");
    return ledger;
}

static void report(double seconds, double server_ns, double client_ns) {
    double ios = g.completed ? (double)g.completed : 1;
    printf("{\"ios\": %" PRIu64 ", \"seconds\": %.6f, \"iops\": %.1f, \"mib_per_s\": %.2f, \"server_us_per_io\": %.3f, "
           "\"client_us_per_io\": %.3f, \"latency_us\": {\"p50\": %.1f, \"p99\": %.1f, \"max\": %.1f}, \"flushes\": %" PRIu64
           ", \"wrong_sectors\": %" PRIu64 ", \"failure\": %s%s%s}\n",
           g.completed, seconds, (double)g.completed / seconds, (double)g.completed * g.block / seconds / 1048576,
           server_ns / 1000 / ios, client_ns / 1000 / ios, latency_us(0.5), latency_us(0.99),
           (double)g.latency_max_ns / 1000, g.flushes, g.wrong, g.failure ? "\"" : "", g.failure ? g.failure : "null",
           g.failure ? "\"" : "");
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc < 3) die("usage", "loadgen read|write|fill|verify URL --ledger FILE [options]");
    const char *command = argv[1];
    const char *ledger = parse_options(argc, argv);
    bool pass = !strcmp(command, "fill") || !strcmp(command, "verify");
    g.writing = !strcmp(command, "write") || !strcmp(command, "fill");
    if (!pass && !g.writing && strcmp(command, "read")) die(command, "unknown command");
    g.check_all = pass;
    signal(SIGPIPE, SIG_IGN); /* a target that is gone is a result, not an end */
    connect_session(argv[2]);
    if (g.span == 0 || g.span > g.size) g.span = g.size;
    g.span -= g.span % g.block;
    if (g.span / g.block < 2ull * g.depth) die("--span", "too small for that depth");
    g.granules = g.size / GRANULE;
    map_ledger(ledger);
    struct slot *slots = make_slots();

    g.want_time = !pass;
    if (!pass && g.warmup > 0) run_window(slots, g.warmup, false);
    uint64_t server = cpu_of_servers(), client = own_cpu_ns(), start = now_ns();
    if (pass) one_pass(slots);
    else run_window(slots, g.seconds, true);
    uint64_t end = now_ns();
    /* A server killed on purpose has no figures left. */
    report((double)(end - start) / 1e9, g.failure ? 0 : (double)(cpu_of_servers() - server), (double)(own_cpu_ns() - client));
    if (g.failure) return TARGET_LOST;
    iscsi_logout_sync(g.iscsi);
    return g.wrong ? WRONG_BYTES : OK;
}
