/* CRC32C (Castagnoli), as RFC 7143 section 13.1 uses it for header and data digests. */
#ifndef TWINVOL_BENCH_CRC32C_H
#define TWINVOL_BENCH_CRC32C_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Makes the tables; once, before the first sum. `portable`: leave SSE4.2 alone where there is one. */
void crc32c_init(bool portable);

/* The sum of `length` bytes behind those summed up in `crc` (0 for none). */
uint32_t crc32c(uint32_t crc, const void *bytes, size_t length);

#endif
