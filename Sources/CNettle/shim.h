#pragma once
#include <nettle/hmac.h>
#include <nettle/memops.h>
#include <nettle/umac.h>
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

/// Makes UMAC-128's tables of a key of 16 bytes.
static inline void mv_umac128_key(struct umac128_ctx *context, const uint8_t *key) { umac128_set_key(context, key); }

/// UMAC-128 (RFC 4418) over two pieces, with a nonce of 16 bytes, the number in big-endian order: 16 bytes.
static inline void mv_umac128(struct umac128_ctx *context, uint64_t number, const uint8_t *first, size_t first_size,
                              const uint8_t *second, size_t second_size, uint8_t *code) {
  uint8_t nonce[16] = {0};
  for (int i = 0; i < 8; i++) nonce[15 - i] = (uint8_t)(number >> (8 * i));
  umac128_set_nonce(context, sizeof nonce, nonce);
  umac128_update(context, first_size, first);
  if (second_size > 0) umac128_update(context, second_size, second);
  umac128_digest(context, UMAC128_DIGEST_SIZE, code);
}

/// Whether two byte strings are equal, in a time that does not depend on where they differ.
static inline int mv_equal(const uint8_t *a, const uint8_t *b, size_t size) { return memeql_sec(a, b, size); }
