#pragma once
#include <nettle/hmac.h>
#include <nettle/memops.h>
#include <stddef.h>
#include <stdint.h>

/// HMAC-SHA-256 over two pieces: 32 bytes.
static inline void mv_hmac_sha256(const uint8_t *key, size_t key_size, const uint8_t *first, size_t first_size,
                                  const uint8_t *second, size_t second_size, uint8_t *code) {
  struct hmac_sha256_ctx context;
  hmac_sha256_set_key(&context, key_size, key);
  hmac_sha256_update(&context, first_size, first);
  hmac_sha256_update(&context, second_size, second);
  hmac_sha256_digest(&context, SHA256_DIGEST_SIZE, code);
}

/// Whether two byte strings are equal, in a time that does not depend on where they differ.
static inline int mv_equal(const uint8_t *a, const uint8_t *b, size_t size) { return memeql_sec(a, b, size); }
