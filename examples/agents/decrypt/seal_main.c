/* naru-seal KEY_FILE PATH < plain > sealed: seals one file for the decrypt agent (sealed.h).
 *
 * PATH is the plain file's place within the model's folder ("1/model.onnx"): it is bound to the
 * contents, so a sealed file cannot stand in for another one.
 *
 * Exit code: 0, 1 when something failed, 2 wrong arguments.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "sealed.h"

int main(int argc, char **argv)
{
    char text[4096];
    uint8_t key[SEALED_KEY_BYTES];
    if (argc != 3 || argv[2][0] == '\0' || argv[2][0] == '/') {
        (void)fprintf(stderr,
                      "naru-seal KEY_FILE PATH < plain > sealed\n"
                      "seals one file of a model; PATH is its place in the model's folder, as "
                      "1/model.onnx\n"
                      "a key: openssl rand -hex 32\n");
        return 2;
    }
    int fd = open(argv[1], O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, text, sizeof text) : -1;
    if (n < 0 || !sealed_key_parse(text, (size_t)n, key)) {
        (void)fprintf(stderr,
                      "naru-seal: %s: no key: 64 hexadecimal digits or 32 bytes are expected\n",
                      argv[1]);
        return 1;
    }
    sealed_forget(text, sizeof text);
    enum sealed_result result =
        sealed_write(key, argv[2], SEALED_CHUNK_BYTES, STDIN_FILENO, STDOUT_FILENO);
    sealed_forget(key, sizeof key);
    if (result != SEALED_OK) {
        (void)fprintf(stderr, "naru-seal: %s\n",
                      result == SEALED_READ    ? "the input cannot be read"
                      : result == SEALED_WRITE ? "the output cannot be written"
                                               : "no memory, or no AES-256-GCM");
        return 1;
    }
    (void)close(fd);
    return 0;
}
