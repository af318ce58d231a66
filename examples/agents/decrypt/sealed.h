/* Sealed files: AES-256-GCM in chunks, so that a file of any size streams through a few megabytes.
 *
 *   header, 32 bytes: "NARUSEAL", version 1 (u32 little-endian), bytes of a chunk (u32 little-endian),
 *                     7 random bytes, 9 zero bytes
 *   chunks:           ciphertext, 16 bytes of tag; all but the last of full size, the last may be empty
 *
 * Chunk i is sealed with the nonce (7 random bytes, i as u32 big-endian, 1 when it is the last, else 0)
 * and, as additional data, the header and the file's path within the model. So a chunk that is changed, left
 * out, moved, put twice, taken from another file or the last one of a file that was cut does not open,
 * nor does a file under another name. (The STREAM construction: Hoang, Reyhanitabar, Rogaway, Vizár,
 * CRYPTO 2015.) One key serves some hundred million files before two of them are likely to share their
 * random bytes.
 *
 * Threads: none of their own; a key or buffer belongs to its caller.
 */
#ifndef NR_AGENTS_DECRYPT_SEALED_H
#define NR_AGENTS_DECRYPT_SEALED_H

#include <stddef.h>
#include <stdint.h>

#define SEALED_KEY_BYTES 32
#define SEALED_CHUNK_BYTES ((uint32_t)1 << 20) /* what the tool writes */
#define SEALED_CHUNK_MIN ((uint32_t)1 << 10)
#define SEALED_CHUNK_MAX ((uint32_t)1 << 24)

enum sealed_result {
    SEALED_OK,
    SEALED_NO_FILE,   /* its header is none, or of a version or size that is not known */
    SEALED_BAD_CHUNK, /* wrong key or name, or the file was changed, cut or put together from parts */
    SEALED_READ,      /* errno says why */
    SEALED_WRITE,
    SEALED_MEMORY, /* no memory, or libcrypto refuses */
    SEALED_STOPPED
};

/* 64 hexadecimal digits with space around them, or 32 bytes as they are. 0: it is neither. */
int sealed_key_parse(const char *text, size_t len, uint8_t key[SEALED_KEY_BYTES]);
void sealed_forget(void *secret, size_t len);

/* in_fd to its end. path: of the plain file within the model, "1/model.onnx". */
enum sealed_result sealed_write(const uint8_t key[SEALED_KEY_BYTES], const char *path,
                                uint32_t chunk_bytes, int in_fd, int out_fd);
/* Nothing of a chunk is written before it has been authenticated. *ret_chunk: where it ended, from 0.
 * stopped (may be NULL) is asked before each chunk. */
enum sealed_result sealed_read(const uint8_t key[SEALED_KEY_BYTES], const char *path, int in_fd,
                               int out_fd, int (*stopped)(const void *arg), const void *arg,
                               uint32_t *ret_chunk);

#endif
