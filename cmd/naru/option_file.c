/* The --config file: one YAML mapping from option names to scalars or lists of scalars.
 *
 * Read as events, not as a tree: nothing here recurses, aliases, tags and further documents are
 * refused, and every error has its line.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <yaml.h>

#include "naru/option.h"

#define FILE_MAX (1u << 20)

struct reader {
    yaml_parser_t parser;
    const char *path;
    const struct option_sink *sink;
    FILE *file;
    size_t bytes;
    char name[128]; /* key whose value is awaited, or whose list is open; "" none */
    size_t name_line;
    bool in_list, in_map, over; /* over: the mapping has ended */
};

static nr_status fail_at(const struct reader *r, const yaml_event_t *e, struct nr_err *err,
                         const char *what)
{
    return nr_fail(err, NARU_INVALID, "%s line %zu: %s", r->path, e->start_mark.line + 1, what);
}

/* The value of r->name begins. */
static nr_status begin(struct reader *r, bool list, struct nr_err *err)
{
    nr_status st = r->sink->begin(r->sink->ctx, nr_str_from(r->name), list, err);
    if (st != NARU_OK) {
        nr_err_prefix(err, "%s line %zu", r->path, r->name_line);
    }
    return st;
}

static nr_status on_scalar(struct reader *r, const yaml_event_t *e, struct nr_err *err)
{
    struct nr_str s = {(const char *)e->data.scalar.value, e->data.scalar.length};
    if (!r->in_map) {
        return fail_at(r, e, err, "expected 'option: value' lines");
    }
    if (e->data.scalar.tag != NULL) {
        return fail_at(r, e, err, "tags are not supported");
    }
    if (r->name[0] == '\0') {
        if (s.len == 0 || s.len >= sizeof(r->name) || memchr(s.ptr, '\0', s.len) != NULL) {
            return fail_at(r, e, err, "an option name is empty or too long");
        }
        memcpy(r->name, s.ptr, s.len);
        r->name[s.len] = '\0';
        r->name_line = e->start_mark.line + 1;
        return NARU_OK;
    }
    nr_status st = r->in_list ? NARU_OK : begin(r, false, err);
    if (st != NARU_OK) {
        return st;
    }
    st = r->sink->item(r->sink->ctx, s, err);
    if (st != NARU_OK) {
        nr_err_prefix(err, "%s line %zu", r->path, e->start_mark.line + 1);
    }
    if (!r->in_list) {
        r->name[0] = '\0';
    }
    return st;
}

static nr_status on_event(struct reader *r, const yaml_event_t *e, struct nr_err *err)
{
    switch ((int)e->type) {
    case YAML_SCALAR_EVENT:
        return on_scalar(r, e, err);
    case YAML_DOCUMENT_START_EVENT:
        return r->over ? fail_at(r, e, err, "one document is expected") : NARU_OK;
    case YAML_MAPPING_START_EVENT:
        if (r->in_map) {
            return fail_at(r, e, err, "options do not nest; write 'name: value'");
        }
        r->in_map = true;
        return NARU_OK;
    case YAML_MAPPING_END_EVENT:
        r->in_map = false;
        r->over = true;
        return NARU_OK;
    case YAML_SEQUENCE_START_EVENT:
        if (r->name[0] == '\0' || r->in_list) {
            return fail_at(r, e, err, "a list must be the value of an option");
        }
        r->in_list = true;
        return begin(r, true, err);
    case YAML_SEQUENCE_END_EVENT:
        r->in_list = false;
        r->name[0] = '\0';
        return NARU_OK;
    case YAML_ALIAS_EVENT:
        return fail_at(r, e, err, "aliases are not supported");
    default:
        return NARU_OK;
    }
}

/* Counted as it is read, since a pipe does not say how much will come. */
static int read_some(void *ctx, unsigned char *buf, size_t size, size_t *ret_len)
{
    struct reader *r = ctx;
    *ret_len = fread(buf, 1, size, r->file);
    r->bytes += *ret_len;
    return r->bytes <= FILE_MAX && !ferror(r->file);
}

static nr_status fail_parse(const struct reader *r, struct nr_err *err)
{
    if (r->bytes > FILE_MAX) {
        return nr_fail(err, NARU_TOO_LARGE, "--config: %s is larger than 1 MiB", r->path);
    }
    if (ferror(r->file)) {
        return nr_fail(err, NARU_IO, "--config: cannot read %s", r->path);
    }
    return nr_fail(err, NARU_INVALID, "%s line %zu: %s", r->path, r->parser.problem_mark.line + 1,
                   r->parser.problem != NULL ? r->parser.problem : "not YAML");
}

static nr_status read_events(struct reader *r, struct nr_err *err)
{
    for (bool done = false; !done;) {
        yaml_event_t e;
        if (!yaml_parser_parse(&r->parser, &e)) {
            return fail_parse(r, err);
        }
        nr_status st = on_event(r, &e, err);
        done = e.type == YAML_STREAM_END_EVENT;
        yaml_event_delete(&e);
        if (st != NARU_OK) {
            return st;
        }
    }
    return NARU_OK;
}

nr_status option_file_read(const char *path, const struct option_sink *sink, struct nr_err *err)
{
    struct reader r = {.path = path, .sink = sink, .file = fopen(path, "re")};
    struct stat about;
    if (r.file == NULL) {
        return nr_fail(err, NARU_NOT_FOUND, "--config: cannot read %s: %s", path,
                       strerrordesc_np(errno));
    }
    nr_status st = NARU_NOMEM;
    if (fstat(fileno(r.file), &about) == 0 && S_ISDIR(about.st_mode)) {
        st = nr_fail(err, NARU_INVALID,
                     "--config: %s is a folder; name a YAML file of 'option: value' lines", path);
    } else if (yaml_parser_initialize(&r.parser)) {
        yaml_parser_set_input(&r.parser, read_some, &r);
        st = read_events(&r, err);
        yaml_parser_delete(&r.parser);
    } else {
        nr_fail(err, st, "--config: no memory to read %s", path);
    }
    fclose(r.file);
    return st;
}
