/* The gallery: pictures that people sent through the page, with their results, on disk.
 *
 * One folder, two files an entry (`<id>-in.<ext>`, `<id>-out.<ext>`) and one small `<id>.json`;
 * an id is 16 hexadecimal digits of a time, so a listing after a restart is a listing of the
 * folder. Quota in bytes and entries, and an age limit: the oldest go first. Files are written whole
 * under a temporary name, synced and renamed; the JSON last, so an entry without it is a leftover
 * and removed at open. One process at a time has the folder open (flock). Thread safe; calls block
 * (the pool's work).
 */
#ifndef NR_STORE_GALLERY_H
#define NR_STORE_GALLERY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/status.h"
#include "base/str.h"

#define NR_GALLERY_ID_MAX 32

struct nr_gallery_cfg {
    const char *path;     /* made when missing, mode 0700 */
    uint64_t max_bytes;   /* 256 MiB */
    unsigned max_entries; /* 500 */
    int64_t max_age_ns;   /* 30 days; 0: none */
    bool
        patient; /* another process may still have the folder: this one takes it as soon as it is free.
                     Until then nothing is kept (NARU_UNAVAILABLE) and nothing is shown */
};
void nr_gallery_cfg_default(struct nr_gallery_cfg *cfg); /* path NULL */

struct nr_gallery;

struct nr_gallery_entry { /* strings live in the arena given */
    char id[NR_GALLERY_ID_MAX];
    struct nr_str model;
    struct nr_str in_type, out_type; /* media types: image/jpeg, image/png, image/webp */
    uint64_t in_bytes, out_bytes;
    int64_t wall_ns;
    uint32_t took_us; /* of the inference */
};

struct nr_gallery_usage {
    uint64_t bytes, max_bytes;
    unsigned entries, max_entries;
    int64_t max_age_ns;
};

/* NARU_EXISTS: another process has it open (not when cfg->patient). */
nr_nodiscard nr_status nr_gallery_open(const struct nr_gallery_cfg *cfg, struct nr_gallery **ret,
                                       struct nr_err *err);
void nr_gallery_close(struct nr_gallery *g); /* accepts NULL */
void nr_gallery_usage(struct nr_gallery *g, struct nr_gallery_usage *ret);
/* Stores a pair; e->id and e->wall_ns are filled. NARU_TOO_LARGE: more than the whole quota. On
 * error nothing of the pair is left, but older entries may have gone to make room. */
nr_nodiscard nr_status nr_gallery_add(struct nr_gallery *g, struct nr_gallery_entry *e,
                                      struct nr_str in, struct nr_str out, struct nr_err *err);
/* Newest first, at most max. */
nr_nodiscard nr_status nr_gallery_list(struct nr_gallery *g, struct nr_arena *a, unsigned max,
                                       const struct nr_gallery_entry **ret, unsigned *ret_n,
                                       struct nr_err *err);
/* One file of an entry ("in" when input, else the result) into the arena; *ret_type its media type. */
nr_nodiscard nr_status nr_gallery_read(struct nr_gallery *g, struct nr_arena *a, struct nr_str id,
                                       bool input, struct nr_str *ret, struct nr_str *ret_type,
                                       struct nr_err *err);
nr_nodiscard nr_status nr_gallery_remove(struct nr_gallery *g, struct nr_str id,
                                         struct nr_err *err);

#endif
