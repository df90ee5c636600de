/* Numbers of RFC 7143 section 11 and how they lie in a PDU: big-endian, offsets from the start of the BHS. */
#ifndef TWINVOL_BENCH_WIRE_H
#define TWINVOL_BENCH_WIRE_H

#include <stdbool.h>
#include <stdint.h>

enum { /* section 11.2.1.2 */
    NOP_OUT = 0x00,
    SCSI_COMMAND = 0x01,
    LOGIN_REQUEST = 0x03,
    DATA_OUT = 0x05,
    LOGOUT_REQUEST = 0x06,
    NOP_IN = 0x20,
    SCSI_RESPONSE = 0x21,
    LOGIN_RESPONSE = 0x23,
    DATA_IN = 0x25,
    LOGOUT_RESPONSE = 0x26,
    R2T = 0x31,
    ASYNC_MESSAGE = 0x32,
    REJECT = 0x3f,
    OPCODE_BITS = 0x3f,
    IMMEDIATE = 0x40,
};
enum { FINAL = 0x80, COMMAND_READS = 0x40, COMMAND_WRITES = 0x20, SIMPLE_TASK = 0x01 };
enum { DATA_IN_HAS_STATUS = 0x01, RESIDUAL_OVERFLOW = 0x04, RESIDUAL_UNDERFLOW = 0x02 };

static const uint32_t NO_TAG = 0xffffffffu;

static inline uint16_t get16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }
static inline uint32_t get24(const uint8_t *p) { return (uint32_t)p[0] << 16 | (uint32_t)p[1] << 8 | p[2]; }
static inline uint32_t get32(const uint8_t *p) {
    uint32_t word;
    __builtin_memcpy(&word, p, sizeof word);
    return __builtin_bswap32(word);
}
static inline uint64_t get64(const uint8_t *p) { return (uint64_t)get32(p) << 32 | get32(p + 4); }

static inline void put16(uint8_t *p, uint32_t value) {
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
}
static inline void put24(uint8_t *p, uint32_t value) {
    p[0] = (uint8_t)(value >> 16);
    put16(p + 1, value);
}
static inline void put32(uint8_t *p, uint32_t value) {
    value = __builtin_bswap32(value);
    __builtin_memcpy(p, &value, sizeof value);
}
static inline void put64(uint8_t *p, uint64_t value) {
    put32(p, (uint32_t)(value >> 32));
    put32(p + 4, (uint32_t)value);
}

/* RFC 1982: a before b, or the same. */
static inline bool serial_le(uint32_t a, uint32_t b) { return (int32_t)(b - a) >= 0; }

/* Bytes of padding to the next word, section 11.1. */
static inline uint32_t padding(uint32_t length) { return -length & 3; }

#endif
