/* A load generator on the initiator beside it, which knows what every sector has to hold.
 *
 * One thread, SESSIONS sessions, DEPTH commands outstanding in each, the next one queued when one is done: the answers
 * that came with one recv() are answered by one sendmsg(). The volume is divided into granules of 4 KiB. A *ledger* file,
 * mapped into memory, keeps two generations of each: the last one issued, and the last one acknowledged. Being a shared
 * mapping it survives a kill of this program, so the same program is the load of the benchmark and the witness of the
 * kill -9 rounds.
 *
 * Every sector written carries its own number and its generation in its first two words and, swapped, in its last two;
 * the words between are a fixed pattern. Reads check the stamps of every sector; `verify` checks every byte.
 * A granule has at most one write in flight, so after a crash each of its sectors must be of a generation from the
 * acknowledged one to the issued one. A granule never written reads zero (generation 0).
 *
 * What it costs itself at depth 32, checks included: about 1.1 us of CPU per 4 KiB read and 2.0 us per 4 KiB write, so one
 * core asks for 900,000 and 500,000 a second at most. (Its predecessor on libiscsi's asynchronous API, in the same rounds
 * against the same target: 3.2 and 5.5 to 6.9 us.) Every run prints what it was, as `client_us_per_io`.
 *
 * Usage: loadgen COMMAND URL --ledger FILE [options]
 *   read | write    --block BYTES --depth N --seconds S [--warmup S] [--pattern random|seq|mixed] [--cpu-of PID]...
 *                   [--flush-every N]; mixed: lengths from 4 KiB to BYTES at any multiple of 4 KiB, as a file system
 *                   has them
 *                   [--rate N: so many a second, one at a time, if the target keeps up]
 *   fill            write every granule of the span once, in order (--block, --depth: 256 KiB, 8)
 *   verify          read the whole span, check every byte (likewise)
 *   idle            log in, say so with a line {"sessions": N}, answer pings until stdin ends; no ledger
 *   login           try to connect and log in until it works (--seconds: at most), print when it did; no ledger
 * All: --span BYTES (default: the volume), --cpu N (pin to that core), --seed N, --sessions N (1), --cdb 10|16 (16),
 *      --digests none|header|data|both, and what is offered at login: --immediate-data yes|no, --initial-r2t no|yes,
 *      --segment, --first-burst, --max-burst BYTES (256 KiB each). --crc portable: without SSE4.2.
 *
 * Ends with one line of JSON on stdout. Exit status 0; 1 wrong bytes; 2 usage or set-up; 3 the target went away or
 * answered with an error (the line of JSON is printed then too).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "crc32c.h"
#include "figures.h"
#include "initiator.h"
#include "wire.h"

enum { SECTOR = 512, WORDS = SECTOR / 8, GRANULE = 4096, SECTORS_PER_GRANULE = GRANULE / SECTOR };
enum { MAX_DEPTH = 1024, MAX_BLOCK = 1 << 20 };
enum { OK = 0, WRONG_BYTES = 1, USAGE = 2, TARGET_LOST = 3 };
enum { TEST_UNIT_READY = 0x00, READ_10 = 0x28, WRITE_10 = 0x2a, SYNCHRONIZE_CACHE_10 = 0x35 };
enum { READ_16 = 0x88, WRITE_16 = 0x8a, SERVICE_ACTION_IN_16 = 0x9e, READ_CAPACITY_16 = 0x10, UNIT_ATTENTION = 6 };
enum { SOFT_THRESHOLD_REACHED = 0x3807 }; /* little space is left: SBC-4 section 4.7.3.7.6 */

struct ledger_entry {
    uint32_t issued;       /* set before the write is sent */
    uint32_t acknowledged; /* set when GOOD has arrived */
};

struct slot { /* a place for one outstanding command */
    struct command command;
    struct session *session;
    uint64_t *buffer; /* of a write */
    uint64_t offset;
    uint32_t length;
    uint64_t sent_ns;
    bool is_flush;
};

static struct {
    struct session *sessions;
    struct slot *slots;
    struct ledger_entry *ledger;
    uint8_t *busy; /* per granule: a write is in flight */
    uint64_t granules, span, size;
    uint64_t cursor, random_state;
    uint64_t issued, outstanding;
    uint64_t deadline_ns;
    uint64_t wrong, shown;
    struct figures figures;
    char failure[256];
    bool stop, measuring;
    uint64_t flushed_at, paced_from, paced_ns;
    uint64_t body[WORDS];
} g;

static struct {
    const char *command, *ledger;
    bool writing, one_pass, sequential, mixed, cdb_10;
    uint32_t block, depth, sessions;
    uint64_t flush_every;
    double seconds, warmup, rate;
    struct parameters offer;
    struct portal portal;
} options;

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
    if (!g.failure[0]) {
        snprintf(g.failure, sizeof g.failure, "%s", why);
        for (char *c = g.failure; *c; c++)
            if (*c == '"' || *c == '\\' || (unsigned char)*c < ' ') *c = ' ';
    }
    g.stop = true;
}

static void fail_with_sessions(void) {
    for (uint32_t i = 0; i < options.sessions; i++)
        if (g.sessions[i].failure[0]) fail(g.sessions[i].failure);
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

static void check_sector(uint64_t sector, const uint8_t *bytes) {
    uint64_t copy[WORDS];
    const uint64_t *words = (const uint64_t *)(const void *)bytes;
    if ((uintptr_t)bytes % sizeof *words) words = memcpy(copy, bytes, SECTOR); /* with digests, PDUs end anywhere */
    const struct ledger_entry *want = &g.ledger[sector / SECTORS_PER_GRANULE];
    uint64_t generation = words[1];
    bool good = words[0] == sector && words[WORDS - 1] == sector && words[WORDS - 2] == generation &&
                generation >= want->acknowledged && generation <= want->issued && generation > 0;
    if (good && options.one_pass) good = memcmp(words + 2, g.body + 2, (WORDS - 4) * 8) == 0;
    if (!good && want->acknowledged == 0) good = is_zero(words);
    if (!good) show_wrong(sector, words, want);
}

static void check_data_in(struct session *session, struct command *command, uint32_t offset, const uint8_t *bytes,
                          uint32_t length) {
    const struct slot *slot = command->owner;
    if ((offset | length) % SECTOR) { /* allowed, but nobody does it */
        session_fail(session, "Data-In that cuts a sector in two: offset %u, length %u", offset, length);
        return;
    }
    uint64_t first = (slot->offset + offset) / SECTOR;
    for (uint32_t s = 0; s < length / SECTOR; s++) check_sector(first + s, bytes + s * SECTOR);
}

/* ---- choosing and sending ------------------------------------------------------------------------------- */

static bool granules_busy(uint64_t offset, uint32_t length) {
    return memchr(g.busy + offset / GRANULE, 1, length / GRANULE) != NULL;
}

static bool choose(struct slot *slot) { /* false: a sequential pass over the span is complete */
    uint64_t blocks = g.span / options.block;
    slot->length = options.block;
    if (!options.sequential) {
        do {
            if (options.mixed) {
                slot->length = (uint32_t)(next_random() % (options.block / GRANULE) + 1) * GRANULE;
                slot->offset = next_random() % ((g.span - slot->length) / GRANULE + 1) * GRANULE;
            } else {
                slot->offset = next_random() % blocks * options.block;
            }
        } while (options.writing && granules_busy(slot->offset, slot->length));
        return true;
    }
    if (g.cursor == blocks) {
        if (options.one_pass) return false;
        g.cursor = 0;
    }
    if (options.writing && granules_busy(g.cursor * options.block, options.block)) return false;
    slot->offset = g.cursor++ * options.block;
    return true;
}

static void set_cdb(uint8_t cdb[16], bool writes, uint64_t lba, uint32_t blocks) {
    memset(cdb, 0, 16);
    if (options.cdb_10) { /* SBC-3 sections 5.12 and 5.32 */
        cdb[0] = writes ? WRITE_10 : READ_10;
        put32(cdb + 2, (uint32_t)lba);
        put16(cdb + 7, blocks);
    } else { /* sections 5.14 and 5.34 */
        cdb[0] = writes ? WRITE_16 : READ_16;
        put64(cdb + 2, lba);
        put32(cdb + 10, blocks);
    }
}

static void issue_granules(struct slot *slot) { /* a new generation of each, stamped into its sectors */
    uint64_t first = slot->offset / GRANULE, sector = slot->offset / SECTOR;
    uint64_t *words = slot->buffer;
    for (uint32_t i = 0; i < slot->length / GRANULE; i++) {
        uint32_t generation = ++g.ledger[first + i].issued;
        g.busy[first + i] = 1;
        for (uint32_t s = 0; s < SECTORS_PER_GRANULE; s++, sector++, words += WORDS) stamp(words, sector, generation);
    }
}

static void keep_pace(void) { /* nothing else is outstanding; who is late sends at once until it is not */
    uint64_t due = g.paced_ns + (uint64_t)((double)(g.issued - g.paced_from) / options.rate * 1e9), now = now_ns();
    if (due > now) nanosleep(&(struct timespec){.tv_sec = (due - now) / 1000000000, .tv_nsec = (due - now) % 1000000000}, NULL);
}

static void send_next(struct slot *slot) {
    if (g.stop) return;
    struct command *command = &slot->command;
    slot->is_flush = options.flush_every && g.issued - g.flushed_at >= options.flush_every;
    if (slot->is_flush) {
        g.flushed_at = g.issued;
        memset(command->cdb, 0, sizeof command->cdb);
        command->cdb[0] = SYNCHRONIZE_CACHE_10; /* all of it */
        command->writes = false, command->length = 0;
    } else {
        if (!choose(slot)) return;
        set_cdb(command->cdb, options.writing, slot->offset / SECTOR, slot->length / SECTOR);
        command->writes = options.writing, command->length = slot->length;
        if (options.writing) issue_granules(slot);
        g.issued++;
    }
    if (options.rate > 0) keep_pace();
    slot->sent_ns = now_ns();
    g.outstanding++;
    session_submit(slot->session, command);
}

static void acknowledge_granules(const struct slot *slot) {
    uint64_t first = slot->offset / GRANULE;
    for (uint32_t i = 0; i < slot->length / GRANULE; i++) {
        g.ledger[first + i].acknowledged = g.ledger[first + i].issued;
        g.busy[first + i] = 0;
    }
}

static void done(struct session *session, struct command *command) {
    struct slot *slot = command->owner;
    if (command->status == STATUS_CHECK_CONDITION && command->sense_key == UNIT_ATTENTION &&
        command->asc_ascq == SOFT_THRESHOLD_REACHED) { /* nothing was done, nothing is wrong: once more */
        session_submit(session, command);
        return;
    }
    g.outstanding--;
    if (command->status != STATUS_GOOD) {
        char why[100];
        if (command->status == STATUS_CHECK_CONDITION)
            snprintf(why, sizeof why, "sense key %x, asc/ascq %04x", command->sense_key, command->asc_ascq);
        else
            snprintf(why, sizeof why, "status %02x", command->status);
        fail(why);
        return;
    }
    if (slot->is_flush) {
        g.figures.flushes++;
    } else {
        if (options.writing) acknowledge_granules(slot);
        if (g.measuring) figures_add(&g.figures, slot->length, session->arrival_ns - slot->sent_ns);
    }
    if (session->arrival_ns >= g.deadline_ns) g.stop = true;
    send_next(slot);
}

/* ---- the loop ------------------------------------------------------------------------------------------- */

static void run(double seconds, bool measuring) { /* until the time is over, or the pass, and nothing is outstanding */
    g.stop = g.failure[0] != '\0';
    g.measuring = measuring;
    g.paced_from = g.issued, g.paced_ns = now_ns();
    g.deadline_ns = options.one_pass ? UINT64_MAX : now_ns() + (uint64_t)(seconds * 1e9);
    for (uint32_t i = 0; i < options.depth; i++) /* depth by depth, so that the sessions share a short pass */
        for (uint32_t k = 0; k < options.sessions; k++) send_next(&g.slots[k * options.depth + i]);
    bool good = true;
    for (uint32_t k = 0; k < options.sessions; k++) good &= session_flush(&g.sessions[k]);
    while (good && g.outstanding) good = sessions_serve(g.sessions, options.sessions);
    if (!good) fail_with_sessions();
}

static void stay_idle(void) { /* until stdin ends */
    struct pollfd p[MAX_SESSIONS + 1] = {{.fd = STDIN_FILENO, .events = POLLIN}};
    for (uint32_t k = 0; k < options.sessions; k++) p[k + 1] = (struct pollfd){.fd = g.sessions[k].fd, .events = POLLIN};
    printf("{\"sessions\": %" PRIu32 "}\n", options.sessions);
    fflush(stdout);
    char byte;
    while (poll(p, options.sessions + 1, -1) > 0) {
        if (p[0].revents && read(STDIN_FILENO, &byte, 1) <= 0) return;
        for (uint32_t k = 0; k < options.sessions; k++)
            if (p[k + 1].revents && !(session_receive(&g.sessions[k], false) && session_flush(&g.sessions[k]))) {
                fail_with_sessions();
                fprintf(stderr, "loadgen: %s\n", g.failure);
                return;
            }
    }
}

static int until_login(void) {
    uint64_t limit = now_ns() + (uint64_t)(options.seconds * 1e9);
    struct session *session = g.sessions;
    while (!session_open(session, &options.portal, &options.offer, 0)) {
        if (now_ns() > limit) {
            printf("{\"failure\": \"login\"}\n");
            fprintf(stderr, "loadgen: %s\n", session->failure);
            return TARGET_LOST;
        }
        session_close(session);
        nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
    }
    printf("{\"monotonic_s\": %.6f, \"failure\": null}\n", (double)now_ns() / 1e9);
    session_close(session);
    return OK;
}

/* ---- set-up --------------------------------------------------------------------------------------------- */

static bool execute(struct session *session, struct command *command) { /* true: GOOD. False: the session failed */
    for (int attempt = 0; attempt < 10; attempt++) {
        if (!session_execute(session, command)) return false;
        if (command->status == STATUS_GOOD) return true;
        if (command->sense_key != UNIT_ATTENTION) break; /* each new nexus is told of a few things */
    }
    fprintf(stderr, "loadgen: opcode %02x: status %02x, sense key %x, asc/ascq %04x\n", command->cdb[0], command->status,
            command->sense_key, command->asc_ascq);
    die(options.portal.target, "the unit is not ready");
    return false;
}

static bool read_capacity(struct session *session) {
    uint8_t answer[32] = {0};
    struct command ready = {.cdb = {TEST_UNIT_READY}};
    struct command capacity = {.cdb = {SERVICE_ACTION_IN_16, READ_CAPACITY_16}, .data = answer, .length = sizeof answer};
    put32(capacity.cdb + 10, sizeof answer);
    if (!execute(session, &ready) || !execute(session, &capacity)) return false;
    if (get32(answer + 8) != SECTOR) die(options.portal.target, "logical blocks are not of 512 bytes");
    g.size = (get64(answer) + 1) * SECTOR;
    return true;
}

static bool open_sessions(void) {
    for (uint32_t k = 0; k < options.sessions; k++) {
        struct session *session = &g.sessions[k];
        bool there = session_open(session, &options.portal, &options.offer, k);
        if (there && read_capacity(session)) continue;
        printf("{\"failure\": \"%s\"}\n", there ? "set-up" : "login");
        fprintf(stderr, "loadgen: %s\n", session->failure);
        return false;
    }
    return true;
}

static void map_ledger(void) {
    int fd = open(options.ledger, O_RDWR | O_CREAT, 0644);
    size_t length = g.granules * sizeof(struct ledger_entry);
    if (fd < 0 || ftruncate(fd, (off_t)length) != 0) die(options.ledger, strerror(errno));
    g.ledger = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (g.ledger == MAP_FAILED) die(options.ledger, strerror(errno));
    close(fd);
    g.busy = calloc(g.granules, 1);
}

static void make_slots(void) {
    uint32_t count = options.depth * options.sessions;
    g.slots = calloc(count, sizeof *g.slots);
    for (uint32_t i = 0; i < WORDS; i++) g.body[i] = (i + 1) * 0x9E3779B97F4A7C15u;
    for (uint32_t i = 0; i < count; i++) {
        struct slot *slot = &g.slots[i];
        slot->session = &g.sessions[i / options.depth];
        slot->command.tag = i % options.depth;
        slot->command.owner = slot;
        slot->command.data_in = check_data_in;
        slot->command.done = done;
        if (!options.writing) continue; /* what is read is checked where it arrives */
        slot->command.data = aligned_alloc(GRANULE, options.block);
        slot->buffer = (uint64_t *)(void *)slot->command.data;
        for (uint32_t s = 0; s < options.block / SECTOR; s++) memcpy(slot->buffer + s * WORDS, g.body, SECTOR);
    }
}

static void pin(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0) die("--cpu", strerror(errno));
}

static uint32_t number(const char *name, const char *value, uint64_t least, uint64_t most) {
    char *end;
    uint64_t said = strtoull(value, &end, 10);
    if (*end || end == value || said < least || said > most) die(name, "a number out of its range");
    return (uint32_t)said;
}

static bool choice(const char *name, const char *value, const char *no, const char *yes) {
    if (strcmp(value, yes) && strcmp(value, no)) die(name, "unknown value");
    return !strcmp(value, yes);
}

static void set_digests(const char *value) {
    bool both = !strcmp(value, "both");
    options.offer.header_digest = both || !strcmp(value, "header");
    options.offer.data_digest = both || !strcmp(value, "data");
    if (!options.offer.header_digest && !options.offer.data_digest && strcmp(value, "none")) die("--digests", "unknown value");
}

static bool login_option(const char *name, const char *value) {
    struct parameters *offer = &options.offer;
    enum { LEAST = 512, MOST = 1 << 20 };
    if (!strcmp(name, "--digests")) set_digests(value);
    else if (!strcmp(name, "--immediate-data")) offer->immediate_data = choice(name, value, "no", "yes");
    else if (!strcmp(name, "--initial-r2t")) offer->initial_r2t = choice(name, value, "no", "yes");
    else if (!strcmp(name, "--segment")) offer->our_segment = number(name, value, LEAST, MOST);
    else if (!strcmp(name, "--first-burst")) offer->first_burst = number(name, value, LEAST, MOST);
    else if (!strcmp(name, "--max-burst")) offer->max_burst = number(name, value, LEAST, MOST);
    else return false;
    return true;
}

static void set_option(const char *name, const char *value) {
    if (!strcmp(name, "--ledger")) options.ledger = value;
    else if (!strcmp(name, "--block")) options.block = number(name, value, GRANULE, MAX_BLOCK);
    else if (!strcmp(name, "--depth")) options.depth = number(name, value, 1, MAX_DEPTH);
    else if (!strcmp(name, "--sessions")) options.sessions = number(name, value, 1, MAX_SESSIONS);
    else if (!strcmp(name, "--seconds")) options.seconds = atof(value);
    else if (!strcmp(name, "--rate")) options.rate = atof(value);
    else if (!strcmp(name, "--warmup")) options.warmup = atof(value);
    else if (!strcmp(name, "--span")) g.span = strtoull(value, NULL, 10);
    else if (!strcmp(name, "--pattern")) options.sequential = !strcmp(value, "seq"), options.mixed = !strcmp(value, "mixed");
    else if (!strcmp(name, "--flush-every")) options.flush_every = strtoull(value, NULL, 10);
    else if (!strcmp(name, "--cdb")) options.cdb_10 = choice(name, value, "16", "10");
    else if (!strcmp(name, "--seed")) g.random_state ^= strtoull(value, NULL, 10) * 0x9E3779B97F4A7C15u;
    else if (!strcmp(name, "--crc")) crc32c_init(choice(name, value, "fast", "portable"));
    else if (!strcmp(name, "--cpu")) pin(atoi(value));
    else if (!strcmp(name, "--cpu-of")) figures_watch((pid_t)atol(value));
    else if (!login_option(name, value)) die(name, "unknown option");
}

static void parse_options(int argc, char **argv) {
    static const char usage[] = "loadgen read|write|fill|verify|idle|login URL --ledger FILE [options]";
    if (argc < 3 || argc % 2 == 0) die("usage", usage);
    const char *command = options.command = argv[1];
    bool quiet = !strcmp(command, "idle") || !strcmp(command, "login");
    options.one_pass = options.sequential = !strcmp(command, "fill") || !strcmp(command, "verify");
    options.writing = !strcmp(command, "write") || !strcmp(command, "fill");
    if (!quiet && !options.one_pass && !options.writing && strcmp(command, "read")) die(command, usage);
    if (!parse_url(argv[2], &options.portal)) die(argv[2], "not iscsi://HOST[:PORT]/TARGET/LUN");
    options.block = options.one_pass ? 256 * 1024 : 4096;
    options.depth = options.one_pass ? 8 : 1;
    options.sessions = 1;
    options.seconds = 2;
    options.offer = (struct parameters){.immediate_data = true, .our_segment = 1 << 18, .first_burst = 1 << 18, .max_burst = 1 << 18};
    g.random_state = 0x2545F4914F6CDD1Du;
    for (int i = 3; i + 1 < argc; i += 2) set_option(argv[i], argv[i + 1]);
    if (options.one_pass) options.sequential = true, options.mixed = false;
    if (options.block % GRANULE) die("--block", "a multiple of 4096 up to 1 MiB");
    if (options.offer.first_burst > options.offer.max_burst) die("--first-burst", "more than --max-burst");
    if (!options.ledger && !quiet) die("usage", usage);
}

static void set_span(void) {
    if (g.span == 0 || g.span > g.size) g.span = g.size;
    g.span -= g.span % options.block;
    if (options.rate > 0 && options.depth * options.sessions != 1) die("--rate", "one command at a time");
    if (g.span / options.block < 2ull * options.depth * options.sessions) die("--span", "too small for that depth");
    if (options.cdb_10 && g.span / SECTOR > UINT32_MAX) die("--cdb", "10: the volume is too large");
    g.granules = g.size / GRANULE;
}

int main(int argc, char **argv) {
    crc32c_init(false);
    parse_options(argc, argv);
    g.sessions = calloc(options.sessions, sizeof *g.sessions);
    if (!strcmp(options.command, "login")) return until_login();
    if (!open_sessions()) return TARGET_LOST;
    if (!strcmp(options.command, "idle")) {
        stay_idle();
    } else {
        set_span();
        map_ledger();
        make_slots();
        if (!options.one_pass && options.warmup > 0) run(options.warmup, false);
        figures_start(&g.figures);
        run(options.seconds, true);
        figures_print(&g.figures, g.wrong, g.failure);
    }
    if (g.failure[0]) return TARGET_LOST;
    for (uint32_t k = 0; k < options.sessions; k++) session_close(&g.sessions[k]);
    return g.wrong ? WRONG_BYTES : OK;
}
