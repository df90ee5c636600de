/* A pipelined iSCSI initiator (RFC 7143): one session of one connection, error recovery level 0, no authentication.
 *
 * Made to cost little: what is submitted between two calls of session_flush() leaves in one sendmsg(), the data of
 * writes straight from the caller's memory; one large recv() takes whatever has come, every complete PDU in it is handled
 * where it lies, and Data-In is handed to the caller without a copy. Nothing is allocated per command.
 *
 * A session that failed (the target went away, broke the protocol, or a digest did not match) says why in `failure` and
 * does nothing any more. It never reconnects: a lost session is a result here.
 */
#ifndef TWINVOL_BENCH_INITIATOR_H
#define TWINVOL_BENCH_INITIATOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MAX_TAGS = 1024 + 1, MAX_SESSIONS = 1024, BHS = 48, RECEIVE_BYTES = 2 << 20, ANSWER_TIMEOUT_S = 20 };
enum { STATUS_GOOD = 0x00, STATUS_CHECK_CONDITION = 0x02 };

struct session;

/* One SCSI command; the caller's, and not to be touched between session_submit() and done(). */
struct command {
    uint32_t tag; /* initiator task tag: below MAX_TAGS, one command outstanding for each */
    uint8_t cdb[16];
    bool writes;
    uint8_t *data;   /* of a write */
    uint32_t length; /* expected data transfer length */
    /* Whole Data-In segments in order, `offset` from the command's first byte; the bytes are gone on return. */
    void (*data_in)(struct session *, struct command *, uint32_t offset, const uint8_t *bytes, uint32_t length);
    void (*done)(struct session *, struct command *); /* may submit it again */
    void *owner;
    /* the answer */
    uint8_t status, sense_key;
    uint16_t asc_ascq;
    /* the session's own */
    uint32_t received, data_sn;
    struct command *next;
};

/* What is offered at login, then what was agreed. Lengths in bytes. */
struct parameters {
    bool header_digest, data_digest, immediate_data, initial_r2t;
    uint32_t our_segment;    /* MaxRecvDataSegmentLength that we declare */
    uint32_t target_segment; /* ... and the target's */
    uint32_t first_burst, max_burst;
};

struct portal {
    char host[256], port[16], target[256];
    uint16_t lun;
};

struct piece { /* of what is to be sent: `length` bytes at `data`, or the next ones of the headers where it is NULL */
    const uint8_t *data;
    size_t length;
};

struct session {
    int fd;
    struct parameters agreed;
    char failure[256]; /* empty: none */
    uint64_t arrival_ns; /* CLOCK_MONOTONIC when the last recv() returned */
    /* sequence numbers: RFC 7143 section 4.2.2 */
    uint32_t cmd_sn, exp_stat_sn, max_cmd_sn;
    uint8_t lun_field[8];
    struct command *tagged[MAX_TAGS];
    struct command *waiting, **waiting_end; /* for the command window */
    bool logged_out;
    /* what has come: bytes [begin, end) of `in` are not handled yet */
    uint8_t *in;
    size_t begin, end;
    /* what goes out */
    uint8_t *headers;
    size_t headers_used, headers_sent, headers_room;
    struct piece *pieces;
    size_t pieces_used, pieces_sent, pieces_room;
};

/* Takes iscsi://HOST[:PORT]/TARGET/LUN apart (HOST may be [IPv6]); false when it is no such URL. */
bool parse_url(const char *url, struct portal *portal);

/* Connects and logs in, offering `offer`; `number` tells the sessions of a process apart. False: see session->failure. */
bool session_open(struct session *session, const struct portal *portal, const struct parameters *offer, unsigned number);

/* Queues a command; it leaves with the next session_flush() if the target's command window allows. */
void session_submit(struct session *session, struct command *command);

/* Sends as much of what is queued as the socket takes. False when the session has failed. */
bool session_flush(struct session *session);
bool session_has_unsent(const struct session *session);

/* One recv() and the callbacks for every whole PDU of it; `wait` blocks for up to ANSWER_TIMEOUT_S. False: failed. */
bool session_receive(struct session *session, bool wait);

/* Submits, waits until it is done; Data-In goes to command->data. For set-up: nothing else may be outstanding. */
bool session_execute(struct session *session, struct command *command);

/* Serves the sessions once: waits for any of them to be readable (or writable, with something unsent). False: one of
 * them failed. */
bool sessions_serve(struct session *sessions, size_t count);

/* Logs out as far as possible, and frees everything. */
void session_close(struct session *session);

void session_fail(struct session *session, const char *format, ...) __attribute__((format(printf, 2, 3)));
uint64_t now_ns(void);

#endif
