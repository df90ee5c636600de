/* Finding the target, connecting, and the login phase (RFC 7143 section 6.3): AuthMethod None, a few keys. */
#define _GNU_SOURCE
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "initiator.h"
#include "wire.h"

enum { SECURITY = 0, OPERATIONAL = 1, FULL_FEATURE = 3, TRANSIT = 0x80, CONTINUES = 0x40 }; /* section 11.12 */
enum { MAX_TEXT = 8192, MAX_STEPS = 16, FIRST_CMD_SN = 1 };

/* Keys and values, each ended by a NUL (section 6.1). */
struct text {
    size_t length;
    char bytes[MAX_TEXT];
};

bool parse_url(const char *url, struct portal *portal) {
    memset(portal, 0, sizeof *portal);
    strcpy(portal->port, "3260");
    char address[256], lun[8], rest;
    if (sscanf(url, "iscsi://%255[^/]/%255[^/]/%7[0-9]%c", address, portal->target, lun, &rest) != 3) return false;
    if (strchr(address, '@')) return false; /* a user: there is no CHAP here */
    char *host = address, *port = strrchr(address, ':');
    if (*host == '[') {
        char *end = strchr(++host, ']');
        if (!end) return false;
        *end = '\0';
        port = end[1] == ':' ? end + 1 : NULL;
    }
    if (port) {
        *port++ = '\0';
        if (strlen(port) == 0 || strlen(port) >= sizeof portal->port) return false;
        strcpy(portal->port, port);
    }
    strcpy(portal->host, host);
    portal->lun = (uint16_t)atoi(lun);
    return *host != '\0' && portal->lun < 16384;
}

static bool connect_portal(struct session *s, const struct portal *portal) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *addresses;
    int code = getaddrinfo(portal->host, portal->port, &hints, &addresses);
    if (code) {
        session_fail(s, "%s: %s", portal->host, gai_strerror(code));
        return false;
    }
    int reason = 0;
    for (const struct addrinfo *a = addresses; a && s->fd < 0; a = a->ai_next) {
        struct timeval limit = {.tv_sec = ANSWER_TIMEOUT_S};
        int on = 1, fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
        if (fd < 0) {
            reason = errno;
            continue;
        }
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit); /* for connect(), too */
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (connect(fd, a->ai_addr, a->ai_addrlen) == 0) {
            s->fd = fd;
        } else {
            reason = errno;
            close(fd);
        }
    }
    freeaddrinfo(addresses);
    if (s->fd < 0) session_fail(s, "connect: %s", strerror(reason));
    return s->fd >= 0;
}

/* ---- text ----------------------------------------------------------------------------------------------- */

static void add_key(struct text *text, const char *key, const char *value) {
    int n = snprintf(text->bytes + text->length, sizeof text->bytes - text->length, "%s=%s", key, value);
    text->length += (size_t)n + 1; /* its NUL, too; a few short keys and a name of at most 255 bytes always fit */
}

static void add_number(struct text *text, const char *key, uint32_t value) {
    char digits[16];
    snprintf(digits, sizeof digits, "%u", value);
    add_key(text, key, digits);
}

static const char *value_of(const struct text *text, const char *key) { /* NULL: the key is not there */
    size_t key_length = strlen(key);
    for (size_t at = 0; at < text->length; at += strlen(text->bytes + at) + 1)
        if (!strncmp(text->bytes + at, key, key_length) && text->bytes[at + key_length] == '=')
            return text->bytes + at + key_length + 1;
    return NULL;
}

static void agree_flag(const struct text *answer, const char *key, const char *yes, bool otherwise, bool *flag) {
    const char *value = value_of(answer, key);
    *flag = value ? !strcmp(value, yes) : otherwise;
}

static void agree_number(const struct text *answer, const char *key, uint32_t otherwise, uint32_t *number) {
    const char *value = value_of(answer, key);
    unsigned long said = value ? strtoul(value, NULL, 0) : 0;
    *number = said >= 512 && said < 1 << 24 ? (uint32_t)said : otherwise; /* the range of section 13.12 to 13.14 */
}

static void offer_parameters(const struct parameters *offer, struct text *text) {
    add_key(text, "HeaderDigest", offer->header_digest ? "CRC32C" : "None");
    add_key(text, "DataDigest", offer->data_digest ? "CRC32C" : "None");
    add_key(text, "ImmediateData", offer->immediate_data ? "Yes" : "No");
    add_key(text, "InitialR2T", offer->initial_r2t ? "Yes" : "No");
    add_number(text, "MaxRecvDataSegmentLength", offer->our_segment);
    add_number(text, "FirstBurstLength", offer->first_burst);
    add_number(text, "MaxBurstLength", offer->max_burst);
    add_key(text, "MaxOutstandingR2T", "1");
    add_key(text, "MaxConnections", "1");
    add_key(text, "ErrorRecoveryLevel", "0");
    add_key(text, "DefaultTime2Wait", "2");
    add_key(text, "DefaultTime2Retain", "0");
    add_key(text, "DataPDUInOrder", "Yes");
    add_key(text, "DataSequenceInOrder", "Yes");
}

/* The results, and section 13's defaults for what the target did not answer. */
static void agree(const struct text *answer, struct parameters *agreed) {
    agree_flag(answer, "HeaderDigest", "CRC32C", false, &agreed->header_digest);
    agree_flag(answer, "DataDigest", "CRC32C", false, &agreed->data_digest);
    agree_flag(answer, "ImmediateData", "Yes", true, &agreed->immediate_data);
    agree_flag(answer, "InitialR2T", "Yes", true, &agreed->initial_r2t);
    agree_number(answer, "MaxRecvDataSegmentLength", 8192, &agreed->target_segment);
    agree_number(answer, "FirstBurstLength", 65536, &agreed->first_burst);
    agree_number(answer, "MaxBurstLength", 262144, &agreed->max_burst);
    agreed->target_segment &= ~3u; /* so that no segment but the last needs padding */
}

/* ---- the exchange --------------------------------------------------------------------------------------- */

static bool send_all(struct session *s, const void *bytes, size_t length) {
    ssize_t sent = send(s->fd, bytes, length, MSG_NOSIGNAL); /* a few hundred bytes on a new connection */
    if (sent != (ssize_t)length) session_fail(s, "login: send: %s", strerror(errno));
    return sent == (ssize_t)length;
}

static bool receive_all(struct session *s, void *bytes, size_t length) {
    ssize_t got = length ? recv(s->fd, bytes, length, MSG_WAITALL) : 0;
    if (got != (ssize_t)length) session_fail(s, "login: %s", got < 0 ? strerror(errno) : "the target closed the connection");
    return got == (ssize_t)length;
}

static bool send_request(struct session *s, const uint8_t isid[6], uint8_t flags, const struct text *text) {
    uint8_t pdu[BHS + MAX_TEXT + 4] = {LOGIN_REQUEST | IMMEDIATE, flags};
    put24(pdu + 5, (uint32_t)text->length);
    memcpy(pdu + 8, isid, 6);
    put32(pdu + 24, FIRST_CMD_SN);
    put32(pdu + 28, s->exp_stat_sn);
    memcpy(pdu + BHS, text->bytes, text->length);
    return send_all(s, pdu, BHS + text->length + padding((uint32_t)text->length));
}

/* One Login Response; its keys are added to `text`, which goes on over several PDUs (C bit). */
static bool take_response(struct session *s, uint8_t bhs[BHS], struct text *text) {
    if (!receive_all(s, bhs, BHS)) return false;
    uint32_t length = get24(bhs + 5), padded = length + padding(length);
    if ((bhs[0] & OPCODE_BITS) != LOGIN_RESPONSE || bhs[4] != 0 || text->length + padded > sizeof text->bytes - 1) {
        session_fail(s, "login: answered by opcode %02x with %u bytes", bhs[0], length);
        return false;
    }
    if (!receive_all(s, text->bytes + text->length, padded)) return false;
    text->length += length;
    text->bytes[text->length] = '\0'; /* whatever came, strings end */
    if (bhs[36] != 0) {
        session_fail(s, "login: refused with status %02x%02x", bhs[36], bhs[37]); /* section 11.13.5 */
        return false;
    }
    s->exp_stat_sn = get32(bhs + 24) + 1;
    s->max_cmd_sn = get32(bhs + 32);
    return true;
}

static bool log_in(struct session *s, const struct portal *portal, const struct parameters *offer, unsigned number) {
    uint8_t isid[6] = {0x80}, bhs[BHS]; /* T = 10b: random, and the number as qualifier; section 11.12.5 */
    if (getrandom(isid + 1, 3, 0) != 3) isid[1] = (uint8_t)getpid();
    put16(isid + 4, number);
    struct text *request = calloc(1, sizeof *request), *answer = calloc(1, sizeof *answer);
    if (!request || !answer) abort();
    add_key(request, "InitiatorName", "iqn.2026-11.org.twinvol.bench:loadgen");
    add_key(request, "TargetName", portal->target);
    add_key(request, "SessionType", "Normal");
    add_key(request, "AuthMethod", "None");
    int stage = SECURITY;
    for (int step = 0; step < MAX_STEPS && stage != FULL_FEATURE && !s->failure[0]; step++) {
        int next = stage == SECURITY ? OPERATIONAL : FULL_FEATURE;
        if (!send_request(s, isid, (uint8_t)(TRANSIT | stage << 2 | next), request)) break;
        request->length = 0;
        if (!take_response(s, bhs, answer) || bhs[1] & CONTINUES || !(bhs[1] & TRANSIT)) continue;
        stage = bhs[1] & 3;
        if (stage == OPERATIONAL) offer_parameters(offer, request);
    }
    if (stage != FULL_FEATURE) session_fail(s, "login: not at its end after %d steps", MAX_STEPS);
    s->agreed = *offer;
    agree(answer, &s->agreed);
    free(request);
    free(answer);
    return !s->failure[0];
}

bool session_open(struct session *s, const struct portal *portal, const struct parameters *offer, unsigned number) {
    *s = (struct session){.fd = -1, .cmd_sn = FIRST_CMD_SN, .waiting_end = &s->waiting};
    if (portal->lun < 256) s->lun_field[1] = (uint8_t)portal->lun; /* SAM-5 section 4.7: peripheral, else flat */
    else put16(s->lun_field, 0x4000u | portal->lun);
    s->in = aligned_alloc(4096, RECEIVE_BYTES);
    if (!s->in) abort();
    return connect_portal(s, portal) && log_in(s, portal, offer, number);
}
