/* CRC32C: SSE4.2's instruction on three streams at once where there is one, a table of 256 words elsewhere.
 *
 * The instruction has a latency of three cycles and a throughput of one: a single stream uses a third of it. Blocks of
 * 3 x LANE bytes are therefore summed as three lanes side by side. A register shifted over LANE bytes of zeros is a
 * linear function of the register, kept as four tables of 256 words; with it the three sums become one.
 */
#include "crc32c.h"

#include <string.h>

enum { LANE = 1360 }; /* three lanes are 4080 bytes: a 4 KiB segment is one block and 16 bytes */

static const uint32_t POLYNOMIAL = 0x82F63B78u; /* reflected */
static uint32_t byte_table[256];
static uint32_t shift_table[4][256];
static bool in_hardware;

static uint32_t portable(uint32_t sum, const uint8_t *bytes, size_t length) {
    while (length--) sum = byte_table[(sum ^ *bytes++) & 0xff] ^ (sum >> 8);
    return sum;
}

static uint32_t over_zeros(uint32_t sum) { /* the register after LANE bytes of zero */
    for (int i = 0; i < LANE; i++) sum = byte_table[sum & 0xff] ^ (sum >> 8);
    return sum;
}

#if defined(__x86_64__)
static uint32_t shift(uint32_t sum) {
    return shift_table[0][sum & 0xff] ^ shift_table[1][sum >> 8 & 0xff] ^ shift_table[2][sum >> 16 & 0xff] ^
           shift_table[3][sum >> 24];
}

static inline uint64_t word_at(const uint8_t *bytes) {
    uint64_t word;
    memcpy(&word, bytes, sizeof word);
    return word;
}

__attribute__((target("sse4.2"))) static uint32_t hardware(uint32_t sum, const uint8_t *bytes, size_t length) {
    uint64_t a = sum;
    for (; length >= 3 * LANE; bytes += 3 * LANE, length -= 3 * LANE) {
        uint64_t b = 0, c = 0;
        for (int i = 0; i < LANE; i += 8) {
            a = __builtin_ia32_crc32di(a, word_at(bytes + i));
            b = __builtin_ia32_crc32di(b, word_at(bytes + LANE + i));
            c = __builtin_ia32_crc32di(c, word_at(bytes + 2 * LANE + i));
        }
        a = shift(shift((uint32_t)a) ^ (uint32_t)b) ^ c;
    }
    for (; length >= 8; bytes += 8, length -= 8) a = __builtin_ia32_crc32di(a, word_at(bytes));
    uint32_t tail = (uint32_t)a;
    while (length--) tail = __builtin_ia32_crc32qi(tail, *bytes++);
    return tail;
}
#endif

void crc32c_init(bool use_portable) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t sum = i;
        for (int bit = 0; bit < 8; bit++) sum = sum >> 1 ^ (sum & 1 ? POLYNOMIAL : 0);
        byte_table[i] = sum;
    }
    uint32_t of_bit[32];
    for (int bit = 0; bit < 32; bit++) of_bit[bit] = over_zeros(1u << bit);
    for (int byte = 0; byte < 4; byte++)
        for (uint32_t value = 0; value < 256; value++) {
            uint32_t sum = 0;
            for (int bit = 0; bit < 8; bit++)
                if (value >> bit & 1) sum ^= of_bit[byte * 8 + bit];
            shift_table[byte][value] = sum;
        }
#if defined(__x86_64__)
    __builtin_cpu_init();
    in_hardware = !use_portable && __builtin_cpu_supports("sse4.2");
#else
    in_hardware = false;
    (void)use_portable;
#endif
}

uint32_t crc32c(uint32_t crc, const void *bytes, size_t length) {
#if defined(__x86_64__)
    if (in_hardware) return ~hardware(~crc, bytes, length);
#endif
    return ~portable(~crc, bytes, length);
}
