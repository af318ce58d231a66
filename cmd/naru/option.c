/* Parsing options from four sources into a struct.
 *
 * DESIGN. Sources are applied from weakest to strongest; each assignment goes through assign(),
 * which checks and converts, and is skipped when a stronger source has set the option already.
 * A list is replaced, not extended, by a stronger source.
 */
#include "naru/option.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"

static void *field(const struct option_values *v, const struct option_def *d)
{
    return (char *)v->target + d->offset;
}

static const char *own(struct option_values *v, char *text)
{
    v->owned = nr_realloc(v->owned, (v->n_owned + 1) * sizeof(char *));
    v->owned[v->n_owned++] = text;
    return text;
}

static char *copy(struct nr_str s)
{
    char *text = nr_alloc(s.len + 1);
    memcpy(text, s.ptr, s.len);
    return text;
}

static void list_add(struct option_list *list, const char *item)
{
    list->items = nr_realloc(list->items, (list->n + 2) * sizeof(char *));
    list->items[list->n++] = item;
    list->items[list->n] = NULL;
}

static bool parse_bool(struct nr_str s, bool *ret)
{
    static const char *const yes[] = {"true", "1", "on", "yes", ""};
    static const char *const no[] = {"false", "0", "off", "no"};
    for (unsigned i = 0; i < NR_COUNT(yes); i++) {
        if (nr_str_eq_nocase(s, nr_str_from(yes[i]))) {
            *ret = true;
            return true;
        }
    }
    for (unsigned i = 0; i < NR_COUNT(no); i++) {
        if (nr_str_eq_nocase(s, nr_str_from(no[i]))) {
            *ret = false;
            return true;
        }
    }
    return false;
}

static nr_status bad_value(const struct option_def *d, struct nr_str value, const char *expected,
                           struct nr_err *err)
{
    return nr_fail(err, NARU_INVALID, "--%s: '" NR_STR_FMT "' is not %s", d->name,
                   NR_STR_ARG(value), expected);
}

static nr_status out_of_range(const struct option_def *d, struct nr_str value, struct nr_err *err)
{
    if (d->max == 0) {
        return nr_fail(err, NARU_INVALID, "--%s: '" NR_STR_FMT "' is too small; the least is %llu",
                       d->name, NR_STR_ARG(value), (unsigned long long)d->min);
    }
    return nr_fail(err, NARU_INVALID,
                   "--%s: '" NR_STR_FMT "' is out of range; expected %llu to %llu", d->name,
                   NR_STR_ARG(value), (unsigned long long)d->min, (unsigned long long)d->max);
}

static bool is_choice(const char *choices, struct nr_str value)
{
    struct nr_str rest = nr_str_from(choices);
    while (rest.ptr != NULL) {
        if (nr_str_eq(nr_str_cut(rest, '|', &rest), value)) {
            return true;
        }
    }
    return false;
}

static nr_status convert(struct option_values *v, const struct option_def *d, struct nr_str value,
                         bool restart_list, struct nr_err *err)
{
    uint64_t number = 0;
    switch (d->kind) {
    case OPTION_BOOL:
        return parse_bool(value, field(v, d)) ? NARU_OK : bad_value(d, value, "true or false", err);
    case OPTION_UINT:
        if (!nr_str_to_u64(value, &number) || number > UINT32_MAX) {
            return bad_value(d, value, "a whole number", err);
        }
        if (number < d->min || (d->max > 0 && number > d->max)) {
            return out_of_range(d, value, err);
        }
        *(unsigned *)field(v, d) = (unsigned)number;
        return NARU_OK;
    case OPTION_BYTES:
        if (!nr_str_to_bytes(value, &number)) {
            return bad_value(d, value, "a size like 4096, 64KiB or 2GiB", err);
        }
        if (number < d->min || (d->max > 0 && number > d->max)) {
            return out_of_range(d, value, err);
        }
        *(uint64_t *)field(v, d) = number;
        return NARU_OK;
    case OPTION_DURATION:
        if (!nr_str_to_duration(value, d->unit_ns, &number) || number > INT64_MAX) {
            return bad_value(d, value, "a time like 250ms, 10s or 2h", err);
        }
        *(uint64_t *)field(v, d) = number;
        return NARU_OK;
    case OPTION_CHOICE:
        if (!is_choice(d->choices, value)) {
            return nr_fail(err, NARU_INVALID, "--%s: '" NR_STR_FMT "' is none of %s", d->name,
                           NR_STR_ARG(value), d->choices);
        }
        *(const char **)field(v, d) = own(v, copy(value));
        return NARU_OK;
    case OPTION_TEXT:
        *(const char **)field(v, d) = own(v, copy(value));
        return NARU_OK;
    case OPTION_LIST: {
        struct option_list *list = field(v, d);
        if (restart_list) {
            list->n = 0;
        }
        list_add(list, own(v, copy(value)));
        return NARU_OK;
    }
    }
    return NARU_INTERNAL;
}

static nr_status assign(struct option_values *v, unsigned index, struct nr_str value,
                        option_source source, struct nr_err *err)
{
    if (source < v->source[index]) {
        return NARU_OK;
    }
    bool restart = source > v->source[index];
    nr_status st = convert(v, &v->table->defs[index], value, restart, err);
    if (st == NARU_OK) {
        v->source[index] = source;
    }
    return st;
}

/* Names are compared with '_' as '-'. */
static bool same_name(struct nr_str given, const char *name)
{
    size_t len = name != NULL ? strlen(name) : 0;
    if (given.len != len || len == 0) {
        return false;
    }
    for (size_t i = 0; i < len; i++) {
        char c = given.ptr[i] == '_' ? '-' : given.ptr[i];
        if (c != name[i]) {
            return false;
        }
    }
    return true;
}

static int find(const struct option_table *table, struct nr_str name)
{
    for (unsigned i = 0; i < table->n_defs; i++) {
        if (same_name(name, table->defs[i].name) || same_name(name, table->defs[i].alias)) {
            return (int)i;
        }
    }
    return -1;
}

static nr_status unknown(const struct option_table *table, struct nr_str name, const char *where,
                         struct nr_err *err)
{
    const char *best = NULL;
    unsigned least = 4;
    for (unsigned i = 0; i < table->n_defs; i++) {
        unsigned distance = nr_str_distance(name, nr_str_from(table->defs[i].name));
        if (distance < least) {
            least = distance;
            best = table->defs[i].name;
        }
    }
    if (best != NULL) {
        return nr_fail(err, NARU_INVALID, "%sunknown option '" NR_STR_FMT "'; did you mean '%s'?",
                       where, NR_STR_ARG(name), best);
    }
    return nr_fail(err, NARU_INVALID,
                   "%sunknown option '" NR_STR_FMT "'; 'naru %s --help' lists all", where,
                   NR_STR_ARG(name), table->command);
}

/* --- the file and the environment --- */

static nr_status file_begin(void *ctx, struct nr_str name, bool list, struct nr_err *err)
{
    struct option_values *v = ctx;
    int i = find(v->table, name);
    if (i < 0) {
        return unknown(v->table, name, "", err);
    }
    const struct option_def *d = &v->table->defs[i];
    if (v->in_file[i]) {
        return nr_fail(err, NARU_INVALID, "option '" NR_STR_FMT "' is there already; give it once",
                       NR_STR_ARG(name));
    }
    if (list && d->kind != OPTION_LIST) {
        return nr_fail(err, NARU_INVALID, "option '" NR_STR_FMT "' takes one value, not a list",
                       NR_STR_ARG(name));
    }
    v->in_file[i] = true;
    v->file_at = (unsigned)i;
    return NARU_OK;
}

static nr_status file_item(void *ctx, struct nr_str value, struct nr_err *err)
{
    struct option_values *v = ctx;
    return assign(v, v->file_at, value, OPTION_FILE, err);
}

static nr_status read_file(struct option_values *v, struct nr_err *err)
{
    const struct option_sink sink = {v, file_begin, file_item};
    v->in_file = nr_new_array(bool, NR_MAX(v->table->n_defs, 1u));
    nr_status st = option_file_read(v->config_file, &sink, err);
    nr_free(v->in_file);
    v->in_file = NULL;
    return st;
}

#define ENVIRONMENT "NARU_"
#define ENVIRONMENT_MAX 72

/* Variables with the prefix that are no options: docs/environment.md says what they are. */
static const char *const not_options[] = {
    "NARU_CONFIG",   "NARU_UPGRADE_FD", "NARU_ONNXRUNTIME",  "NARU_BINARY",
    "NARU_CHROMIUM", "NARU_IMAGE_TOOL", "NARU_MALLOC_COUNT", "NARU_PERF_BUILDS",
};

static void environment_name(const char *name, char out[ENVIRONMENT_MAX])
{
    size_t n = 0;
    memcpy(out, ENVIRONMENT, 5);
    for (n = 5; *name != '\0' && n < 70; name++) {
        out[n++] = *name == '-' ? '_' : (char)(*name >= 'a' && *name <= 'z' ? *name - 32 : *name);
    }
    out[n] = '\0';
}

static nr_status read_environment(struct option_values *v, struct nr_err *err)
{
    for (unsigned i = 0; i < v->table->n_defs; i++) {
        const struct option_def *d = &v->table->defs[i];
        char name[ENVIRONMENT_MAX];
        environment_name(d->name, name);
        const char *value = getenv(name);
        if (value == NULL && d->alias != NULL) {
            environment_name(d->alias, name);
            value = getenv(name);
        }
        if (value == NULL) {
            continue;
        }
        struct nr_str rest = nr_str_from(value);
        do { /* lists: items separated by colons, as PATH */
            struct nr_str item = d->kind == OPTION_LIST ? nr_str_cut(rest, ':', &rest) : rest;
            nr_status st = assign(v, i, item, OPTION_ENVIRONMENT, err);
            if (st != NARU_OK) {
                nr_err_prefix(err, "environment %s", name);
                return st;
            }
        } while (d->kind == OPTION_LIST && rest.ptr != NULL);
    }
    return NARU_OK;
}

/* Whether the variable is an option or has a meaning elsewhere; if not, the nearest option's. */
static bool is_known(const struct option_table *table, struct nr_str given,
                     char nearest[ENVIRONMENT_MAX])
{
    unsigned least = 4;
    char name[ENVIRONMENT_MAX];
    nearest[0] = '\0';
    for (unsigned i = 0; i < NR_COUNT(not_options); i++) {
        if (nr_str_is(given, not_options[i])) {
            return true;
        }
    }
    for (unsigned i = 0; i < 2 * table->n_defs; i++) {
        const struct option_def *d = &table->defs[i / 2];
        const char *option = i % 2 == 0 ? d->name : d->alias;
        if (option == NULL) {
            continue;
        }
        environment_name(option, name);
        unsigned distance = nr_str_distance(given, nr_str_from(name));
        if (distance == 0) {
            return true;
        }
        if (distance < least) {
            least = distance;
            memcpy(nearest, name, sizeof(name));
        }
    }
    return false;
}

/* A misspelt variable is told of, not refused: another program's may begin alike. */
static void look_for_strangers(struct option_values *v)
{
    for (char **at = environ; *at != NULL; at++) {
        char nearest[ENVIRONMENT_MAX];
        struct nr_str value, name = nr_str_cut(nr_str_from(*at), '=', &value);
        if (!nr_str_starts(name, NR_STR(ENVIRONMENT)) || is_known(v->table, name, nearest)) {
            continue;
        }
        list_add(&v->strangers,
                 own(v, nearest[0] != '\0'
                            ? nr_format(NR_STR_FMT " is no option; did you mean %s?",
                                        NR_STR_ARG(name), nearest)
                            : nr_format(NR_STR_FMT " is no option; naru %s --help lists all",
                                        NR_STR_ARG(name), v->table->command)));
    }
}

static nr_status read_presets(struct option_values *v, struct nr_err *err)
{
    for (unsigned i = 0; i < v->table->n_defs; i++) {
        const struct option_def *d = &v->table->defs[i];
        if (d->preset != NULL) {
            nr_status st = convert(v, d, nr_str_from(d->preset), true, err);
            if (st != NARU_OK) {
                return st;
            }
        }
    }
    return NARU_OK;
}

/* --- the command line --- */

static bool special(struct option_values *v, struct nr_str name)
{
    const struct {
        const char *name;
        bool *flag;
    } flags[] = {{"help", &v->help},
                 {"version", &v->version},
                 {"print-config", &v->print_config},
                 {"print-man", &v->print_man}};
    for (unsigned i = 0; i < NR_COUNT(flags); i++) {
        if (same_name(name, flags[i].name)) {
            *flags[i].flag = true;
            return true;
        }
    }
    return false;
}

/* One "--name[=value]"; *at moves when the value is the next argument. */
static nr_status read_flag(struct option_values *v, int argc, char **argv, int *at,
                           struct nr_err *err)
{
    struct nr_str value, name = nr_str_cut(nr_str_from(argv[*at] + 2), '=', &value);
    if (value.ptr == NULL && special(v, name)) {
        return NARU_OK;
    }
    bool is_config = same_name(name, "config");
    int i = find(v->table, name);
    if (i < 0 && nr_str_starts(name, NR_STR("no-")) && value.ptr == NULL) {
        i = find(v->table, (struct nr_str){name.ptr + 3, name.len - 3});
        if (i >= 0 && v->table->defs[i].kind == OPTION_BOOL) {
            return assign(v, (unsigned)i, NR_STR("false"), OPTION_COMMAND_LINE, err);
        }
        i = -1;
    }
    if (i < 0 && !is_config) {
        return unknown(v->table, name, "", err);
    }
    if (i >= 0 && v->table->defs[i].kind == OPTION_BOOL) {
        return assign(v, (unsigned)i, value.ptr != NULL ? value : NR_STR("true"),
                      OPTION_COMMAND_LINE, err);
    }
    if (value.ptr == NULL) {
        if (*at + 1 >= argc) {
            return nr_fail(err, NARU_INVALID, "--" NR_STR_FMT " needs a value", NR_STR_ARG(name));
        }
        value = nr_str_from(argv[++*at]);
    }
    if (is_config) {
        v->config_file = own(v, copy(value));
        return NARU_OK;
    }
    return assign(v, (unsigned)i, value, OPTION_COMMAND_LINE, err);
}

static nr_status read_command_line(struct option_values *v, int argc, char **argv,
                                   struct nr_err *err)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "-h") == 0) {
            v->help = true;
        } else if (strcmp(argv[i], "--") == 0) {
            for (i++; i < argc; i++) {
                list_add(&v->positional, argv[i]);
            }
        } else if (strncmp(argv[i], "--", 2) == 0) {
            nr_status st = read_flag(v, argc, argv, &i, err);
            if (st != NARU_OK) {
                return st;
            }
        } else if (argv[i][0] == '-' && argv[i][1] != '\0') {
            return nr_fail(err, NARU_INVALID, "unknown option '%s'; options begin with two dashes",
                           argv[i]);
        } else {
            list_add(&v->positional, argv[i]);
        }
    }
    return NARU_OK;
}

/* Arguments without a name are the list that the table says. Both in one line would leave open what was
 * meant; over the environment and the file they win as any option does. */
static nr_status take_operands(struct option_values *v, struct nr_err *err)
{
    if (v->table->operands == NULL || v->positional.n == 0) {
        return NARU_OK;
    }
    int i = find(v->table, nr_str_from(v->table->operands));
    NR_ASSERT(i >= 0 && v->table->defs[i].kind == OPTION_LIST);
    if (v->source[i] == OPTION_COMMAND_LINE) {
        return nr_fail(err, NARU_INVALID,
                       "give the paths either after the options or with --%s, not both",
                       v->table->operands);
    }
    nr_status st = NARU_OK;
    for (unsigned k = 0; k < v->positional.n && st == NARU_OK; k++) {
        st = assign(v, (unsigned)i, nr_str_from(v->positional.items[k]), OPTION_COMMAND_LINE, err);
    }
    v->positional.n = 0;
    return st;
}

nr_status option_parse(const struct option_table *table, void *target, int argc, char **argv,
                       struct option_values *ret, struct nr_err *err)
{
    *ret = (struct option_values){.table = table, .target = target};
    ret->source = nr_new_array(option_source, NR_MAX(table->n_defs, 1u));
    nr_status st = read_presets(ret, err);
    if (st == NARU_OK) {
        st = read_command_line(ret, argc, argv, err);
    }
    if (st == NARU_OK) {
        st = take_operands(ret, err);
    }
    if (st == NARU_OK) {
        st = read_environment(ret, err);
    }
    look_for_strangers(ret);
    if (st == NARU_OK && ret->config_file == NULL && getenv("NARU_CONFIG") != NULL) {
        ret->config_file = getenv("NARU_CONFIG");
    }
    if (st == NARU_OK && ret->config_file != NULL) {
        st = read_file(ret, err);
    }
    return st;
}

nr_status option_reread(struct option_values *v, struct nr_err *err)
{
    if (v->config_file == NULL) {
        return NARU_OK;
    }
    for (unsigned i = 0; i < v->table->n_defs; i++) {
        const struct option_def *d = &v->table->defs[i];
        if (v->source[i] == OPTION_FILE) {
            v->source[i] = OPTION_DEFAULT;
            if (d->kind == OPTION_LIST) {
                ((struct option_list *)field(v, d))->n = 0;
            }
            if (d->preset != NULL && convert(v, d, nr_str_from(d->preset), true, err) != NARU_OK) {
                return err->status;
            }
        }
    }
    return read_file(v, err);
}

void option_done(struct option_values *v)
{
    for (unsigned i = 0; v->table != NULL && i < v->table->n_defs; i++) {
        if (v->table->defs[i].kind == OPTION_LIST) {
            nr_free(((struct option_list *)field(v, &v->table->defs[i]))->items);
        }
    }
    for (unsigned i = 0; i < v->n_owned; i++) {
        nr_free(v->owned[i]);
    }
    nr_free(v->owned);
    nr_free(v->positional.items);
    nr_free(v->strangers.items);
    nr_free(v->source);
    *v = (struct option_values){0};
}
