/* Runs a fuzz target over the files of the folders given, so that a corpus is replayed by every test
 * run and without a fuzzing engine. Each file is run whole and cut at many lengths: what a parser
 * does at the end of its input is where most mistakes are. A missing or empty corpus is an error:
 * a replay that runs nothing proves nothing. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CUTS_MAX 512

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* From memory of exactly this size, so that a sanitizer sees reads beyond the end. */
static void run(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size > 0 ? size : 1);
    if (copy == NULL) {
        abort();
    }
    memcpy(copy, data, size);
    (void)LLVMFuzzerTestOneInput(copy, size);
    free(copy);
}

static int run_file(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (f == NULL || fseek(f, 0, SEEK_END) != 0) {
        perror(path);
        exit(1);
    }
    long end = ftell(f);
    rewind(f);
    size_t size = end > 0 ? (size_t)end : 0;
    uint8_t *data = malloc(size > 0 ? size : 1);
    if (data == NULL || fread(data, 1, size, f) != size) {
        perror(path);
        exit(1);
    }
    (void)fclose(f);
    run(data, size);
    size_t step = size / CUTS_MAX + 1;
    for (size_t cut = 0; cut < size; cut += step) {
        run(data, cut);
    }
    free(data);
    return 1;
}

int main(int argc, char **argv)
{
    int files = 0;
    for (int i = 1; i < argc; i++) {
        DIR *dir = opendir(argv[i]);
        if (dir == NULL) {
            perror(argv[i]);
            return 1;
        }
        struct dirent *entry;
        while ((entry = readdir(dir)) != NULL) {
            char path[4096];
            if (entry->d_name[0] != '.' &&
                snprintf(path, sizeof(path), "%s/%s", argv[i], entry->d_name) < (int)sizeof(path)) {
                files += run_file(path);
            }
        }
        (void)closedir(dir);
    }
    printf("%d files replayed\n", files);
    return files > 0 ? 0 : 1;
}
