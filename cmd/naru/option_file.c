/* The --config file: one YAML mapping from option names to scalars or lists of scalars.
 *
 * Read as events, not as a tree: nothing here recurses, aliases and tags are refused, and every
 * error has its line.
 */
#include <stdio.h>
#include <string.h>
#include <yaml.h>

#include "naru/option.h"

#define FILE_MAX (1u << 20)

struct reader {
    yaml_parser_t parser;
    const char *path;
    void *ctx;
    nr_status (*set)(void *ctx, struct nr_str name, struct nr_str value, struct nr_err *err);
    char name[128]; /* key whose value is awaited; "" none */
    bool in_list, in_map;
};

static nr_status fail_at(const struct reader *r, const yaml_event_t *e, struct nr_err *err,
                         const char *what)
{
    return nr_fail(err, NARU_INVALID, "%s line %zu: %s", r->path, e->start_mark.line + 1, what);
}

static nr_status on_scalar(struct reader *r, const yaml_event_t *e, struct nr_err *err)
{
    struct nr_str s = {(const char *)e->data.scalar.value, e->data.scalar.length};
    if (!r->in_map) {
        return fail_at(r, e, err, "expected 'option: value' lines");
    }
    if (r->name[0] == '\0') {
        if (s.len == 0 || s.len >= sizeof(r->name)) {
            return fail_at(r, e, err, "an option name is empty or too long");
        }
        memcpy(r->name, s.ptr, s.len);
        r->name[s.len] = '\0';
        return NARU_OK;
    }
    nr_status st = r->set(r->ctx, nr_str_from(r->name), s, err);
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
    case YAML_MAPPING_START_EVENT:
        if (r->in_map) {
            return fail_at(r, e, err, "options do not nest; write 'name: value'");
        }
        r->in_map = true;
        return NARU_OK;
    case YAML_SEQUENCE_START_EVENT:
        if (r->name[0] == '\0' || r->in_list) {
            return fail_at(r, e, err, "a list must be the value of an option");
        }
        r->in_list = true;
        return NARU_OK;
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

static nr_status read_events(struct reader *r, struct nr_err *err)
{
    for (bool done = false; !done;) {
        yaml_event_t e;
        if (!yaml_parser_parse(&r->parser, &e)) {
            return nr_fail(err, NARU_INVALID, "%s line %zu: %s", r->path,
                           r->parser.problem_mark.line + 1,
                           r->parser.problem != NULL ? r->parser.problem : "not YAML");
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

nr_status option_file_read(const char *path, void *ctx,
                           nr_status (*set)(void *ctx, struct nr_str name, struct nr_str value,
                                            struct nr_err *err),
                           struct nr_err *err)
{
    struct reader r = {.path = path, .ctx = ctx, .set = set};
    FILE *f = fopen(path, "re");
    if (f == NULL) {
        return nr_fail(err, NARU_NOT_FOUND, "--config: cannot read %s", path);
    }
    nr_status st = NARU_NOMEM;
    if (fseek(f, 0, SEEK_END) == 0 && ftell(f) > (long)FILE_MAX) {
        st = nr_fail(err, NARU_TOO_LARGE, "--config: %s is larger than 1 MiB", path);
    } else if (fseek(f, 0, SEEK_SET) == 0 && yaml_parser_initialize(&r.parser)) {
        yaml_parser_set_input_file(&r.parser, f);
        st = read_events(&r, err);
        yaml_parser_delete(&r.parser);
    }
    fclose(f);
    return st;
}
