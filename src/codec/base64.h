/* Base64 of RFC 4648 section 4, strict: padding is required, white space and non-zero bits behind
 * the last byte are errors, so every byte string has exactly one text. Pure, any thread. */
#ifndef NR_CODEC_BASE64_H
#define NR_CODEC_BASE64_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "base/str.h"

/* Characters for n bytes, without a NUL. n up to SIZE_MAX / 2. */
static inline size_t nr_base64_encoded_len(size_t n)
{
    return (n + 2) / 3 * 4;
}
/* Upper bound of the bytes that n characters give. */
static inline size_t nr_base64_decoded_max(size_t n)
{
    return n / 4 * 3;
}

/* Writes nr_base64_encoded_len(len) characters to out, no NUL. */
void nr_base64_encode(const void *data, size_t len, char *out);

/* Decodes all of text into out[cap]; *ret_len is set on success. Errors: NARU_INVALID with the
 * position of the fault, NARU_TOO_LARGE when cap is too small. out may be text's own memory
 * (decoding in place). */
nr_nodiscard nr_status nr_base64_decode(struct nr_str text, void *out, size_t cap, size_t *ret_len,
                                        struct nr_err *err);

/* Takes "data:image/png;base64,AAAA" apart (RFC 2397, base64 form only): the payload and the media
 * type (may be empty). false: text is no such URL. */
bool nr_base64_data_url(struct nr_str text, struct nr_str *ret_payload, struct nr_str *ret_media);

#endif
