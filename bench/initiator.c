/* The full feature phase of the initiator: what goes out, what comes in. Login is in login.c. */
#define _GNU_SOURCE
#include "initiator.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "crc32c.h"
#include "wire.h"

enum { IOVECS = 256, DIGEST = 4 };

uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void session_fail(struct session *session, const char *format, ...) {
    if (session->failure[0]) return; /* the first reason is the one */
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(session->failure, sizeof session->failure, format, arguments);
    va_end(arguments);
}

/* ---- out ------------------------------------------------------------------------------------------------ */

static void *grown(void *array, size_t *room, size_t needed, size_t item) {
    if (needed <= *room) return array;
    while (*room < needed) *room = *room ? *room * 2 : 1024;
    array = realloc(array, *room * item);
    if (!array) abort();
    return array;
}

static void queue_bytes(struct session *s, const void *bytes, size_t length) { /* copied, among the headers */
    s->headers = grown(s->headers, &s->headers_room, s->headers_used + length, 1);
    memcpy(s->headers + s->headers_used, bytes, length);
    s->headers_used += length;
    if (s->pieces_used > s->pieces_sent && !s->pieces[s->pieces_used - 1].data) {
        s->pieces[s->pieces_used - 1].length += length; /* right behind the last ones */
        return;
    }
    s->pieces = grown(s->pieces, &s->pieces_room, s->pieces_used + 1, sizeof *s->pieces);
    s->pieces[s->pieces_used++] = (struct piece){NULL, length};
}

static void queue_sum(struct session *s, const void *bytes, size_t length) { /* a digest: little-endian, section 13.1 */
    uint32_t sum = crc32c(0, bytes, length);
    uint8_t field[DIGEST] = {(uint8_t)sum, (uint8_t)(sum >> 8), (uint8_t)(sum >> 16), (uint8_t)(sum >> 24)};
    queue_bytes(s, field, sizeof field);
}

static void queue_pdu(struct session *s, uint8_t bhs[BHS], const uint8_t *data, uint32_t length) {
    put24(bhs + 5, length);
    queue_bytes(s, bhs, BHS);
    if (s->agreed.header_digest) queue_sum(s, bhs, BHS);
    if (length == 0) return;
    s->pieces = grown(s->pieces, &s->pieces_room, s->pieces_used + 1, sizeof *s->pieces);
    s->pieces[s->pieces_used++] = (struct piece){data, length};
    if (s->agreed.data_digest) queue_sum(s, data, length);
}

static uint32_t smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* One sequence of Data-Out PDUs, section 11.7; `transfer_tag` is that of the R2T, or NO_TAG when nobody asked. */
static void queue_data_out(struct session *s, struct command *command, uint32_t transfer_tag, uint32_t offset, uint32_t length) {
    for (uint32_t data_sn = 0; length; data_sn++) {
        uint32_t segment = smaller(length, s->agreed.target_segment);
        uint8_t bhs[BHS] = {DATA_OUT, segment == length ? FINAL : 0};
        memcpy(bhs + 8, s->lun_field, 8);
        put32(bhs + 16, command->tag);
        put32(bhs + 20, transfer_tag);
        put32(bhs + 28, s->exp_stat_sn);
        put32(bhs + 36, data_sn);
        put32(bhs + 40, offset);
        queue_pdu(s, bhs, command->data + offset, segment);
        offset += segment;
        length -= segment;
    }
}

static void queue_command(struct session *s, struct command *command) {
    uint32_t immediate = 0, unsolicited = 0;
    if (command->writes) {
        uint32_t first_burst = smaller(command->length, s->agreed.first_burst);
        if (s->agreed.immediate_data) immediate = smaller(first_burst, s->agreed.target_segment);
        if (!s->agreed.initial_r2t) unsolicited = first_burst - immediate;
    }
    uint8_t bhs[BHS] = {SCSI_COMMAND, (uint8_t)(SIMPLE_TASK | (unsolicited ? 0 : FINAL))};
    if (command->length) bhs[1] |= command->writes ? COMMAND_WRITES : COMMAND_READS;
    memcpy(bhs + 8, s->lun_field, 8);
    put32(bhs + 16, command->tag);
    put32(bhs + 20, command->length);
    put32(bhs + 24, s->cmd_sn++);
    put32(bhs + 28, s->exp_stat_sn);
    memcpy(bhs + 32, command->cdb, sizeof command->cdb);
    queue_pdu(s, bhs, command->data, immediate);
    if (unsolicited) queue_data_out(s, command, NO_TAG, immediate, unsolicited);
}

static void queue_waiting(struct session *s) { /* as many as the command window takes */
    while (s->waiting && serial_le(s->cmd_sn, s->max_cmd_sn)) {
        struct command *command = s->waiting;
        s->waiting = command->next;
        if (!s->waiting) s->waiting_end = &s->waiting;
        queue_command(s, command);
    }
}

void session_submit(struct session *s, struct command *command) {
    if (command->tag >= MAX_TAGS || s->tagged[command->tag] || (command->writes && command->length % 4)) abort();
    s->tagged[command->tag] = command;
    command->received = command->data_sn = 0;
    command->next = NULL;
    *s->waiting_end = command;
    s->waiting_end = &command->next;
    queue_waiting(s);
}

bool session_has_unsent(const struct session *s) { return s->pieces_sent < s->pieces_used; }

static void forget_sent(struct session *s, size_t sent) {
    while (sent) {
        struct piece *piece = &s->pieces[s->pieces_sent];
        size_t taken = sent < piece->length ? sent : piece->length;
        if (piece->data) piece->data += taken;
        else s->headers_sent += taken;
        piece->length -= taken;
        sent -= taken;
        if (piece->length == 0) s->pieces_sent++;
    }
    if (s->pieces_sent == s->pieces_used) s->pieces_sent = s->pieces_used = s->headers_sent = s->headers_used = 0;
}

bool session_flush(struct session *s) {
    while (session_has_unsent(s) && !s->failure[0]) {
        struct iovec iov[IOVECS];
        size_t count = 0, header = s->headers_sent;
        for (size_t i = s->pieces_sent; i < s->pieces_used && count < IOVECS; i++, count++) {
            const struct piece *piece = &s->pieces[i];
            iov[count].iov_base = piece->data ? (void *)(uintptr_t)piece->data : s->headers + header;
            iov[count].iov_len = piece->length;
            if (!piece->data) header += piece->length;
        }
        struct msghdr message = {.msg_iov = iov, .msg_iovlen = count};
        ssize_t sent = sendmsg(s->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent >= 0) forget_sent(s, (size_t)sent);
        else if (errno == EAGAIN) break;
        else if (errno != EINTR) session_fail(s, "send: %s", strerror(errno));
    }
    return !s->failure[0];
}

/* ---- in ------------------------------------------------------------------------------------------------- */

static void finish(struct session *s, struct command *command, uint8_t status, uint8_t flags) {
    s->tagged[command->tag] = NULL;
    command->status = status;
    bool whole = command->writes || command->received == command->length;
    if (status == STATUS_GOOD && (!whole || flags & (RESIDUAL_OVERFLOW | RESIDUAL_UNDERFLOW)))
        session_fail(s, "GOOD for a command that moved %u of %u bytes", command->received, command->length);
    else
        command->done(s, command);
}

static void take_sense(struct command *command, const uint8_t *data, uint32_t length) { /* SPC-4 section 4.5 */
    command->sense_key = 0, command->asc_ascq = 0;
    if (length < 2 + 8) return;
    const uint8_t *sense = data + 2;
    if ((sense[0] & 0x7e) == 0x72) {
        command->sense_key = sense[1] & 0x0f;
        command->asc_ascq = get16(sense + 2);
    } else if (length >= 2 + 14) {
        command->sense_key = sense[2] & 0x0f;
        command->asc_ascq = get16(sense + 12);
    }
}

static struct command *command_of(struct session *s, const uint8_t *bhs) {
    uint32_t tag = get32(bhs + 16);
    struct command *command = tag < MAX_TAGS ? s->tagged[tag] : NULL;
    if (!command) session_fail(s, "a PDU of opcode %02x for task %08x, which is none of ours", bhs[0], tag);
    return command;
}

static void take_data_in(struct session *s, const uint8_t *bhs, const uint8_t *data, uint32_t length) {
    struct command *command = command_of(s, bhs);
    if (!command) return;
    uint32_t data_sn = get32(bhs + 36), offset = get32(bhs + 40);
    if (command->writes || data_sn != command->data_sn || offset != command->received || length > command->length - offset) {
        session_fail(s, "Data-In with DataSN %u, offset %u, length %u where DataSN %u and offset %u of %u were due", data_sn,
                     offset, length, command->data_sn, command->received, command->length);
        return;
    }
    command->data_sn++;
    command->received += length;
    if (length) command->data_in(s, command, offset, data, length);
    if (bhs[1] & DATA_IN_HAS_STATUS && !s->failure[0]) finish(s, command, bhs[3], bhs[1]);
}

static void take_response(struct session *s, const uint8_t *bhs, const uint8_t *data, uint32_t length) {
    struct command *command = command_of(s, bhs);
    if (!command) return;
    if (bhs[2] != 0) {
        session_fail(s, "iSCSI response %02x", bhs[2]);
        return;
    }
    if (bhs[3] == STATUS_CHECK_CONDITION) take_sense(command, data, length);
    finish(s, command, bhs[3], bhs[1]);
}

static void take_r2t(struct session *s, const uint8_t *bhs) {
    struct command *command = command_of(s, bhs);
    if (!command) return;
    uint32_t offset = get32(bhs + 40), length = get32(bhs + 44);
    if (!command->writes || length == 0 || length > s->agreed.max_burst || offset > command->length ||
        length > command->length - offset)
        session_fail(s, "R2T for offset %u, length %u of %u", offset, length, command->length);
    else
        queue_data_out(s, command, get32(bhs + 20), offset, length);
}

static void take_nop_in(struct session *s, const uint8_t *bhs) {
    if (get32(bhs + 20) == NO_TAG) return; /* asks for nothing */
    uint8_t answer[BHS] = {NOP_OUT | IMMEDIATE, FINAL};
    memcpy(answer + 8, bhs + 8, 8);
    put32(answer + 16, NO_TAG);
    memcpy(answer + 20, bhs + 20, 4);
    put32(answer + 24, s->cmd_sn);
    put32(answer + 28, s->exp_stat_sn);
    queue_pdu(s, answer, NULL, 0);
}

/* StatSN, section 4.2.2.2. A gap would be a lost answer, which error recovery level 0 does not forgive. */
static bool take_numbers(struct session *s, const uint8_t *bhs) {
    uint8_t opcode = bhs[0] & OPCODE_BITS;
    bool counts = opcode == DATA_IN ? bhs[1] & DATA_IN_HAS_STATUS : opcode != R2T && get32(bhs + 16) != NO_TAG;
    if (opcode == ASYNC_MESSAGE || opcode == REJECT) counts = true; /* which have no task tag */
    if (counts) {
        uint32_t stat_sn = get32(bhs + 24);
        if (stat_sn != s->exp_stat_sn) {
            session_fail(s, "StatSN %08x where %08x was due", stat_sn, s->exp_stat_sn);
            return false;
        }
        s->exp_stat_sn++;
    }
    uint32_t max_cmd_sn = get32(bhs + 32);
    if (serial_le(get32(bhs + 28), max_cmd_sn + 1) && serial_le(s->max_cmd_sn, max_cmd_sn)) s->max_cmd_sn = max_cmd_sn;
    return true;
}

static void take_pdu(struct session *s, const uint8_t *bhs, const uint8_t *data, uint32_t length) {
    if (!take_numbers(s, bhs)) return;
    switch (bhs[0] & OPCODE_BITS) {
    case DATA_IN: take_data_in(s, bhs, data, length); break;
    case SCSI_RESPONSE: take_response(s, bhs, data, length); break;
    case R2T: take_r2t(s, bhs); break;
    case NOP_IN: take_nop_in(s, bhs); break;
    case LOGOUT_RESPONSE: s->logged_out = true; break;
    case ASYNC_MESSAGE: /* section 11.9.1: 1 to 3 end the connection or the session */
        if (bhs[36] >= 1 && bhs[36] <= 3) session_fail(s, "asynchronous message %u: the target ends the session", bhs[36]);
        break;
    case REJECT: session_fail(s, "Reject, reason %02x", bhs[2]); break;
    default: session_fail(s, "a PDU of opcode %02x, which no target sends now", bhs[0]);
    }
}

static bool sum_matches(const uint8_t *bytes, size_t length, const uint8_t *field) {
    uint32_t sum = crc32c(0, bytes, length);
    return field[0] == (uint8_t)sum && field[1] == (uint8_t)(sum >> 8) && field[2] == (uint8_t)(sum >> 16) &&
           field[3] == (uint8_t)(sum >> 24);
}

/* Handles the PDU at in[begin]. False: it is not complete yet, or the session has failed. */
static bool take_next(struct session *s) {
    const uint8_t *bhs = s->in + s->begin;
    size_t there = s->end - s->begin;
    if (there < BHS) return false;
    size_t header = BHS + 4u * bhs[4]; /* additional headers are skipped */
    size_t header_digest = s->agreed.header_digest ? DIGEST : 0;
    uint32_t length = get24(bhs + 5), padded = length + padding(length);
    if (length > s->agreed.our_segment) {
        session_fail(s, "a data segment of %u bytes; %u were declared", length, s->agreed.our_segment);
        return false;
    }
    size_t total = header + header_digest + padded + (padded && s->agreed.data_digest ? DIGEST : 0);
    if (there < total) return false;
    const uint8_t *data = bhs + header + header_digest;
    if (header_digest && !sum_matches(bhs, header, bhs + header)) session_fail(s, "header digest error");
    else if (padded && s->agreed.data_digest && !sum_matches(data, padded, data + padded)) session_fail(s, "data digest error");
    else take_pdu(s, bhs, data, length);
    s->begin += total;
    return !s->failure[0];
}

bool session_receive(struct session *s, bool wait) {
    size_t largest = s->agreed.our_segment + BHS + 4 * 256 + 2 * DIGEST + 4;
    if (s->begin == s->end) {
        s->begin = s->end = 0;
    } else if (RECEIVE_BYTES - s->begin < largest) { /* room for the rest of what has begun */
        memmove(s->in, s->in + s->begin, s->end - s->begin);
        s->end -= s->begin;
        s->begin = 0;
    }
    ssize_t got = recv(s->fd, s->in + s->end, RECEIVE_BYTES - s->end, wait ? 0 : MSG_DONTWAIT);
    s->arrival_ns = now_ns();
    if (got < 0 && errno == EINTR) return true;
    if (got < 0 && errno == EAGAIN && !wait) return true;
    if (got < 0 && errno == EAGAIN) session_fail(s, "no answer for %d s", ANSWER_TIMEOUT_S);
    else if (got < 0) session_fail(s, "receive: %s", strerror(errno));
    else if (got == 0) session_fail(s, "the target closed the connection");
    if (s->failure[0]) return false;
    s->end += (size_t)got;
    while (take_next(s)) continue;
    queue_waiting(s); /* the window may have opened */
    return !s->failure[0];
}

bool sessions_serve(struct session *sessions, size_t count) {
    if (count == 1 && !session_has_unsent(sessions)) return session_receive(sessions, true) && session_flush(sessions);
    struct pollfd p[MAX_SESSIONS];
    for (size_t i = 0; i < count; i++)
        p[i] = (struct pollfd){.fd = sessions[i].fd, .events = session_has_unsent(&sessions[i]) ? POLLIN | POLLOUT : POLLIN};
    int ready = poll(p, count, ANSWER_TIMEOUT_S * 1000);
    if (ready == 0) session_fail(&sessions[0], "no answer for %d s", ANSWER_TIMEOUT_S);
    bool good = ready != 0;
    for (size_t i = 0; i < count && ready > 0; i++) {
        if (p[i].revents & ~POLLOUT) good &= session_receive(&sessions[i], false);
        if (p[i].revents) good &= session_flush(&sessions[i]);
    }
    return good;
}

/* ---- set-up and end ------------------------------------------------------------------------------------- */

static void keep_data(struct session *s, struct command *command, uint32_t offset, const uint8_t *bytes, uint32_t length) {
    (void)s;
    memcpy(command->data + offset, bytes, length);
}

static void note_done(struct session *s, struct command *command) {
    (void)s;
    *(bool *)command->owner = true;
}

bool session_execute(struct session *s, struct command *command) {
    bool done = false;
    command->data_in = keep_data;
    command->done = note_done;
    command->owner = &done;
    session_submit(s, command);
    bool good = session_flush(s);
    while (good && !done) good = sessions_serve(s, 1);
    return good;
}

void session_close(struct session *s) {
    if (s->fd >= 0 && !s->failure[0]) {
        uint8_t bhs[BHS] = {LOGOUT_REQUEST | IMMEDIATE, FINAL}; /* reason 0: close the session, section 11.14.1 */
        put32(bhs + 24, s->cmd_sn);
        put32(bhs + 28, s->exp_stat_sn);
        queue_pdu(s, bhs, NULL, 0);
        bool good = session_flush(s);
        while (good && !s->logged_out) good = sessions_serve(s, 1);
    }
    if (s->fd >= 0) close(s->fd);
    free(s->in);
    free(s->headers);
    free(s->pieces);
    s->fd = -1;
}
