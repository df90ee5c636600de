/* The least that an iSCSI target can do: the system calls of one, and nothing else. Not a target: it believes everything.
 *
 *     floor FILE            serves FILE on a free port of 127.0.0.1 and prints the port; ends when stdin does
 *
 * For each receive: one epoll_wait(), one recv() into a large buffer, one pread() or pwrite() per command at its own
 * offset in a plain file, the answers behind each other in a buffer, sent together. No map, no checks, no snapshots, no
 * journal, no statistics, no interpreter. What is missing from its figures to those of a real target is what that
 * target's own work costs; what is in them no target on this machine that uses these calls can save.
 *
 * Data comes as immediate data only, so segments and first burst must be at least as long as a write (the load
 * generator's defaults). Sections are those of RFC 7143.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "wire.h"

enum { BHS = 48, IN_BYTES = (2 << 20) + (64 << 10), OUT_BYTES = 4 << 20, MAX_EVENTS = 64, WINDOW = 128, BLOCK = 512 };
enum { FIRST_FLUSH = 128 << 10, NEXT_FLUSH = 512 << 10 }; /* as iscsi/answers.py, which has the reasons */
enum { TEST_UNIT_READY = 0x00, READ_10 = 0x28, WRITE_10 = 0x2a, SYNCHRONIZE_CACHE_10 = 0x35 };
enum { READ_16 = 0x88, WRITE_16 = 0x8a, SERVICE_ACTION_IN_16 = 0x9e };

struct peer {
    int fd;
    uint32_t stat_sn;
    uint8_t *in;
    size_t held; /* bytes of an incomplete PDU at the start of `in` */
};

static int disk;
static uint8_t out[OUT_BYTES];
static size_t filled, sent_up_to, flush_at;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void flush(struct peer *peer) {
    while (sent_up_to < filled) {
        ssize_t sent = send(peer->fd, out + sent_up_to, filled - sent_up_to, MSG_NOSIGNAL);
        if (sent <= 0) break; /* the peer has gone: the next recv() says so */
        sent_up_to += (size_t)sent;
    }
    filled = sent_up_to = 0;
    flush_at = NEXT_FLUSH;
}

/* The answer's header where the next one goes; its data follows. Numbers: section 11.4. */
static uint8_t *answer(struct peer *peer, uint8_t opcode, const uint8_t *request, uint32_t length) {
    if (filled + BHS + length > OUT_BYTES) flush(peer);
    uint8_t *bhs = out + filled;
    memset(bhs, 0, BHS);
    bhs[0] = opcode;
    bhs[1] = FINAL;
    put24(bhs + 5, length);
    memcpy(bhs + 16, request + 16, 4);
    uint32_t cmd_sn = get32(request + 24) + (request[0] & IMMEDIATE ? 0 : 1);
    put32(bhs + 24, peer->stat_sn++);
    put32(bhs + 28, cmd_sn);
    put32(bhs + 32, cmd_sn + WINDOW - 1);
    filled += BHS + length + padding(length);
    return bhs;
}

static void log_in(struct peer *peer, const uint8_t *request) {
    static const char keys[] = "HeaderDigest=None\0DataDigest=None\0ImmediateData=Yes\0InitialR2T=No\0MaxConnections=1\0"
                               "MaxRecvDataSegmentLength=262144\0FirstBurstLength=262144\0MaxBurstLength=262144\0"
                               "MaxOutstandingR2T=1\0ErrorRecoveryLevel=0\0DefaultTime2Wait=2\0DefaultTime2Retain=0\0"
                               "DataPDUInOrder=Yes\0DataSequenceInOrder=Yes\0TargetPortalGroupTag=1";
    static const char none[] = "AuthMethod=None\0TargetPortalGroupTag=1";
    bool ends = (request[1] & 3) == 3; /* the next stage is the full feature phase: section 11.12 */
    const char *text = ends ? keys : none;
    uint32_t length = (uint32_t)(ends ? sizeof keys : sizeof none);
    uint8_t *bhs = answer(peer, LOGIN_RESPONSE, request, length);
    bhs[1] = request[1];
    memcpy(bhs + 8, request + 8, 6);
    put16(bhs + 14, ends ? 1 : 0);
    memcpy(bhs + BHS, text, length);
}

static void read_capacity(struct peer *peer, const uint8_t *request) { /* SBC-3 section 5.16 */
    struct stat of;
    if (fstat(disk, &of)) die("fstat");
    uint32_t length = get32(request + 20) < 32 ? get32(request + 20) : 32;
    uint8_t data[32] = {0}, *bhs = answer(peer, DATA_IN, request, length);
    put64(data, (uint64_t)of.st_size / BLOCK - 1);
    put32(data + 8, BLOCK);
    memcpy(bhs + BHS, data, length);
    bhs[1] |= DATA_IN_HAS_STATUS;
}

static void serve_command(struct peer *peer, const uint8_t *request, const uint8_t *data) {
    const uint8_t *cdb = request + 32;
    uint8_t code = cdb[0];
    off_t at = (off_t)(code == READ_10 || code == WRITE_10 ? get32(cdb + 2) : get64(cdb + 2)) * BLOCK;
    uint32_t length = get32(request + 20);
    switch (code) {
    case READ_10:
    case READ_16: {
        uint8_t *bhs = answer(peer, DATA_IN, request, length);
        bhs[1] |= DATA_IN_HAS_STATUS;
        put32(bhs + 20, NO_TAG);
        if (pread(disk, bhs + BHS, length, at) != (ssize_t)length) die("pread");
        break;
    }
    case WRITE_10:
    case WRITE_16:
        if (pwrite(disk, data, length, at) != (ssize_t)length) die("pwrite");
        answer(peer, SCSI_RESPONSE, request, 0);
        break;
    case SERVICE_ACTION_IN_16: read_capacity(peer, request); break;
    case SYNCHRONIZE_CACHE_10:
        if (fdatasync(disk)) die("fdatasync");
        answer(peer, SCSI_RESPONSE, request, 0);
        break;
    case TEST_UNIT_READY: answer(peer, SCSI_RESPONSE, request, 0); break;
    default: fprintf(stderr, "floor: CDB %02x\n", code), exit(1);
    }
}

static void serve_pdu(struct peer *peer, const uint8_t *request) {
    switch (request[0] & OPCODE_BITS) {
    case SCSI_COMMAND: serve_command(peer, request, request + BHS); break;
    case LOGIN_REQUEST: log_in(peer, request); break;
    case LOGOUT_REQUEST: answer(peer, LOGOUT_RESPONSE, request, 0); break;
    case NOP_OUT: break;
    default: fprintf(stderr, "floor: opcode %02x\n", request[0]), exit(1);
    }
}

/* One receive, and answers to every complete PDU in it. False: the peer has gone. */
static bool serve(struct peer *peer) {
    ssize_t got = recv(peer->fd, peer->in + peer->held, IN_BYTES - peer->held, 0);
    if (got <= 0) return false;
    size_t end = peer->held + (size_t)got, at = 0, served = 0;
    flush_at = FIRST_FLUSH;
    while (end - at >= BHS) {
        uint32_t length = get24(peer->in + at + 5);
        size_t total = BHS + 4u * peer->in[at + 4] + length + padding(length);
        if (total > IN_BYTES) return false;
        if (end - at < total) break;
        serve_pdu(peer, peer->in + at);
        served += total > get32(peer->in + at + 20) ? total : get32(peer->in + at + 20);
        if (served >= flush_at) flush(peer), served = 0;
        at += total;
    }
    flush(peer);
    peer->held = end - at;
    if (at) memmove(peer->in, peer->in + at, peer->held);
    return true;
}

static int listen_on_loopback(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, length) || listen(fd, 64)) die("listen");
    if (getsockname(fd, (struct sockaddr *)&address, &length)) die("getsockname");
    printf("%u\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

static void watch(int events, int fd, void *owner) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = owner};
    if (epoll_ctl(events, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
}

int main(int count, char **arguments) {
    if (count != 2) return fprintf(stderr, "usage: floor FILE\n"), 2;
    disk = open(arguments[1], O_RDWR | O_CLOEXEC);
    if (disk < 0) die(arguments[1]);
    struct peer listener = {.fd = listen_on_loopback()}, parent = {.fd = STDIN_FILENO};
    int events = epoll_create1(0);
    watch(events, listener.fd, &listener);
    watch(events, parent.fd, &parent);
    for (;;) {
        struct epoll_event ready[MAX_EVENTS];
        int n = epoll_wait(events, ready, MAX_EVENTS, -1);
        for (int i = 0; i < n; i++) {
            struct peer *peer = ready[i].data.ptr;
            if (peer == &parent) return 0;
            if (peer != &listener) {
                if (serve(peer)) continue;
                close(peer->fd);
                free(peer->in);
                free(peer);
                continue;
            }
            int on = 1;
            peer = calloc(1, sizeof *peer);
            if (!peer || !(peer->in = malloc(IN_BYTES))) die("malloc");
            if ((peer->fd = accept(listener.fd, NULL, NULL)) < 0) die("accept");
            setsockopt(peer->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            setsockopt(peer->fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4); /* as iscsi/server.py, which has the reasons */
            watch(events, peer->fd, peer);
        }
    }
}
