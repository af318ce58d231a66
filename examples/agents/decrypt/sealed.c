/* See sealed.h for the format.
 *
 * DESIGN. Whether a chunk is the last one is known when nothing follows it, so reading is one byte ahead:
 * that byte is carried to the next chunk. Plain text exists in one buffer, which is wiped in the end.
 *
 * INVARIANTS
 *  1. No byte of a chunk leaves the buffer before EVP has accepted its tag.
 *  2. A file has at most 2^32 chunks: the counter never wraps.
 */
#include "sealed.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HEADER_BYTES 32
#define TAG_BYTES 16
#define NONCE_BYTES 12
#define RANDOM_AT 16
#define RANDOM_BYTES 7

static const char magic[8] = {'N', 'A', 'R', 'U', 'S', 'E', 'A', 'L'};

/* --- bytes ------------------------------------------------------------------------------------ */

static void put_u32(uint8_t *to, uint32_t v)
{
    for (int i = 0; i < 4; i++) {
        to[i] = (uint8_t)(v >> (8 * i));
    }
}

static uint32_t get_u32(const uint8_t *from)
{
    return (uint32_t)from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 |
           (uint32_t)from[3] << 24;
}

static int digit_of(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

int sealed_key_parse(const char *text, size_t len, uint8_t key[SEALED_KEY_BYTES])
{
    if (len == SEALED_KEY_BYTES) {
        memcpy(key, text, len);
        return 1;
    }
    while (len > 0 && strchr(" \t\r\n", text[len - 1])) {
        len--;
    }
    for (; len > 0 && strchr(" \t\r\n", text[0]); len--) {
        text++;
    }
    if (len != 2 * (size_t)SEALED_KEY_BYTES) {
        return 0;
    }
    for (size_t i = 0; i < SEALED_KEY_BYTES; i++) {
        int high = digit_of(text[2 * i]), low = digit_of(text[2 * i + 1]);
        if (high < 0 || low < 0) {
            return 0;
        }
        key[i] = (uint8_t)(high << 4 | low);
    }
    return 1;
}

void sealed_forget(void *secret, size_t len)
{
    OPENSSL_cleanse(secret, len);
}

/* As many bytes as there are, at most len; -1 on error. */
static ssize_t read_full(int fd, uint8_t *to, size_t len)
{
    size_t have = 0;
    while (have < len) {
        ssize_t n = read(fd, to + have, len - have);
        if (n == 0) {
            break;
        }
        if (n < 0 && errno != EINTR) {
            return -1;
        }
        have += n > 0 ? (size_t)n : 0;
    }
    return (ssize_t)have;
}

static int write_full(int fd, const uint8_t *from, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, from, len);
        if (n < 0 && errno != EINTR) {
            return 0;
        }
        from += n > 0 ? n : 0;
        len -= n > 0 ? (size_t)n : 0;
    }
    return 1;
}

/* --- one file --------------------------------------------------------------------------------- */

struct sealer {
    EVP_CIPHER_CTX *ctx;
    const uint8_t *key;
    const char *path;
    uint8_t header[HEADER_BYTES];
    uint32_t chunk_bytes;
    uint8_t *in, *out; /* [chunk_bytes + TAG_BYTES + 1] */
};

static int sealer_init(struct sealer *s, const uint8_t *key, const char *path, uint32_t chunk_bytes)
{
    s->ctx = EVP_CIPHER_CTX_new();
    s->key = key;
    s->path = path;
    s->chunk_bytes = chunk_bytes;
    s->in = malloc((size_t)chunk_bytes + TAG_BYTES + 1);
    s->out = malloc((size_t)chunk_bytes + TAG_BYTES + 1);
    return s->ctx && s->in && s->out;
}

static void sealer_done(struct sealer *s)
{
    EVP_CIPHER_CTX_free(s->ctx);
    if (s->in && s->out) {
        sealed_forget(s->in, (size_t)s->chunk_bytes + TAG_BYTES + 1);
        sealed_forget(s->out, (size_t)s->chunk_bytes + TAG_BYTES + 1);
    }
    free(s->in);
    free(s->out);
}

static int begin_chunk(struct sealer *s, uint32_t i, int last, int encrypt)
{
    uint8_t nonce[NONCE_BYTES];
    int n;
    memcpy(nonce, s->header + RANDOM_AT, RANDOM_BYTES);
    for (int k = 0; k < 4; k++) {
        nonce[RANDOM_BYTES + k] = (uint8_t)(i >> (24 - 8 * k));
    }
    nonce[NONCE_BYTES - 1] = (uint8_t)(last != 0);
    return EVP_CipherInit_ex(s->ctx, EVP_aes_256_gcm(), NULL, s->key, nonce, encrypt) == 1 &&
           EVP_CipherUpdate(s->ctx, NULL, &n, s->header, HEADER_BYTES) == 1 &&
           EVP_CipherUpdate(s->ctx, NULL, &n, (const uint8_t *)s->path, (int)strlen(s->path)) == 1;
}

/* s->in[len] → s->out[len + TAG_BYTES] */
static int seal_chunk(struct sealer *s, uint32_t i, int last, size_t len)
{
    int n = 0, rest = 0;
    return begin_chunk(s, i, last, 1) &&
           EVP_CipherUpdate(s->ctx, s->out, &n, s->in, (int)len) == 1 &&
           EVP_CipherFinal_ex(s->ctx, s->out + n, &rest) == 1 &&
           EVP_CIPHER_CTX_ctrl(s->ctx, EVP_CTRL_GCM_GET_TAG, TAG_BYTES, s->out + len) == 1;
}

/* s->in[len + TAG_BYTES] → s->out[len] */
static int open_chunk(struct sealer *s, uint32_t i, int last, size_t len)
{
    int n = 0, rest = 0;
    return begin_chunk(s, i, last, 0) &&
           EVP_CipherUpdate(s->ctx, s->out, &n, s->in, (int)len) == 1 &&
           EVP_CIPHER_CTX_ctrl(s->ctx, EVP_CTRL_GCM_SET_TAG, TAG_BYTES, s->in + len) == 1 &&
           EVP_CipherFinal_ex(s->ctx, s->out + n, &rest) == 1;
}

static enum sealed_result write_chunks(struct sealer *s, int in_fd, int out_fd)
{
    size_t have = 0;
    for (uint32_t i = 0;; i++) {
        ssize_t n = read_full(in_fd, s->in + have, s->chunk_bytes + 1 - have);
        if (n < 0) {
            return SEALED_READ;
        }
        have += (size_t)n;
        int last = have <= s->chunk_bytes;
        size_t len = last ? have : s->chunk_bytes;
        if (!seal_chunk(s, i, last, len) || (!last && i == UINT32_MAX)) {
            return SEALED_MEMORY;
        }
        if (!write_full(out_fd, s->out, len + TAG_BYTES)) {
            return SEALED_WRITE;
        }
        if (last) {
            return SEALED_OK;
        }
        s->in[0] = s->in[s->chunk_bytes];
        have = 1;
    }
}

enum sealed_result sealed_write(const uint8_t key[SEALED_KEY_BYTES], const char *path,
                                uint32_t chunk_bytes, int in_fd, int out_fd)
{
    struct sealer s = {0};
    if (!sealer_init(&s, key, path, chunk_bytes) ||
        RAND_bytes(s.header + RANDOM_AT, RANDOM_BYTES) != 1) {
        sealer_done(&s);
        return SEALED_MEMORY;
    }
    memcpy(s.header, magic, sizeof magic);
    put_u32(s.header + 8, 1);
    put_u32(s.header + 12, chunk_bytes);
    enum sealed_result result =
        write_full(out_fd, s.header, HEADER_BYTES) ? write_chunks(&s, in_fd, out_fd) : SEALED_WRITE;
    sealer_done(&s);
    return result;
}

static enum sealed_result read_chunks(struct sealer *s, int in_fd, int out_fd,
                                      int (*stopped)(const void *arg), const void *arg,
                                      uint32_t *ret_chunk)
{
    const size_t full = (size_t)s->chunk_bytes + TAG_BYTES;
    size_t have = 0;
    for (uint32_t i = 0;; i++) {
        *ret_chunk = i;
        if (stopped && stopped(arg)) {
            return SEALED_STOPPED;
        }
        ssize_t n = read_full(in_fd, s->in + have, full + 1 - have);
        if (n < 0) {
            return SEALED_READ;
        }
        have += (size_t)n;
        int last = have <= full;
        size_t len = (last ? have : full) - TAG_BYTES;
        uint8_t carried = s->in[full];
        if ((last && have < TAG_BYTES) || (!last && i == UINT32_MAX) ||
            !open_chunk(s, i, last, len)) {
            return SEALED_BAD_CHUNK;
        }
        if (!write_full(out_fd, s->out, len)) {
            return SEALED_WRITE;
        }
        if (last) {
            return SEALED_OK;
        }
        s->in[0] = carried;
        have = 1;
    }
}

enum sealed_result sealed_read(const uint8_t key[SEALED_KEY_BYTES], const char *path, int in_fd,
                               int out_fd, int (*stopped)(const void *arg), const void *arg,
                               uint32_t *ret_chunk)
{
    uint8_t header[HEADER_BYTES];
    static const uint8_t zeros[HEADER_BYTES - RANDOM_AT - RANDOM_BYTES];
    *ret_chunk = 0;
    ssize_t n = read_full(in_fd, header, sizeof header);
    if (n < 0) {
        return SEALED_READ;
    }
    uint32_t chunk_bytes = get_u32(header + 12);
    if (n != HEADER_BYTES || memcmp(header, magic, sizeof magic) != 0 || get_u32(header + 8) != 1 ||
        chunk_bytes < SEALED_CHUNK_MIN || chunk_bytes > SEALED_CHUNK_MAX ||
        memcmp(header + RANDOM_AT + RANDOM_BYTES, zeros, sizeof zeros) != 0) {
        return SEALED_NO_FILE;
    }
    struct sealer s = {0};
    enum sealed_result result = SEALED_MEMORY;
    if (sealer_init(&s, key, path, chunk_bytes)) {
        memcpy(s.header, header, sizeof header);
        result = read_chunks(&s, in_fd, out_fd, stopped, arg, ret_chunk);
    }
    sealer_done(&s);
    return result;
}
