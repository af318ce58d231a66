/* Options of a command: one table from which parsing, --help, --print-config, the man page and the
 * shell completions are made, so that they cannot disagree.
 *
 * A value comes from, strongest first: the command line, the environment (NARU_<NAME>), the file
 * named by --config (YAML, same names), the default. Names have dashes; the environment and Triton
 * users may write underscores. A variable NARU_* that is no option is told of (`strangers`), not refused: it may
 * be another program's. Booleans take no value, or =true/false; --no-NAME is false.
 */
#ifndef NARU_OPTION_H
#define NARU_OPTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"
#include "base/str.h"

typedef enum option_kind {
    OPTION_BOOL,     /* bool */
    OPTION_UINT,     /* unsigned, min..max */
    OPTION_BYTES,    /* uint64_t: "64MiB" */
    OPTION_DURATION, /* uint64_t nanoseconds: "5s"; a bare number counts in `unit_ns` */
    OPTION_TEXT,     /* const char * */
    OPTION_CHOICE,   /* const char *, one of `choices` ("a|b|c") */
    OPTION_LIST      /* struct option_list: may be given several times, or as a YAML list */
} option_kind;

typedef enum option_source {
    OPTION_DEFAULT,
    OPTION_FILE,
    OPTION_ENVIRONMENT,
    OPTION_COMMAND_LINE
} option_source;

struct option_list {
    const char **items; /* NULL-terminated once there is one */
    unsigned n;
};

struct option_def {
    const char *group; /* heading of --help; NULL continues the group above */
    const char *name;  /* "http-port" */
    const char *alias; /* another accepted name (Triton's), or NULL */
    option_kind kind;
    size_t offset;      /* of the value in the command's struct */
    const char *preset; /* default as text; NULL: none */
    const char *arg;    /* what the value is called in help: "N", "DIR" */
    const char *choices;
    uint64_t min, max; /* OPTION_UINT, OPTION_BYTES; max 0: no bound */
    uint64_t unit_ns;  /* OPTION_DURATION */
    const char *help;
};

struct option_table {
    const char *command;  /* "serve" */
    const char *synopsis; /* "MODEL|DIR|REPOSITORY…" */
    const char
        *operands; /* name of the OPTION_LIST that arguments without a name go to; NULL: they stay
                             in option_values.positional */
    const char *summary;  /* one line */
    const char *examples; /* lines for --help and the man page */
    const struct option_def *defs;
    unsigned n_defs;
};

struct option_values { /* result of parsing; strings live as long as it */
    const struct option_table *table;
    void *target;          /* the command's struct */
    option_source *source; /* [n_defs] */
    struct option_list positional;
    struct option_list strangers; /* texts about variables NARU_* that mean nothing, to be told */
    const char *config_file;
    bool *in_file;    /* [n_defs], while the file is read: it has named this option */
    unsigned file_at; /* the option whose values come */
    char **owned;
    unsigned n_owned;
    bool help, version, print_config, print_man, print_completion_bash, print_completion_zsh;
};

/* Fills target (zeroed by the caller) from all sources. argv[0] is the command's name. The text says
 * which option, what came, what was expected, and for an unknown name the nearest one. */
nr_nodiscard nr_status option_parse(const struct option_table *table, void *target, int argc,
                                    char **argv, struct option_values *ret, struct nr_err *err);
/* Reads the --config file again into target: only options whose value came from the file or the
 * default change. For SIGHUP. */
nr_nodiscard nr_status option_reread(struct option_values *v, struct nr_err *err);
void option_done(struct option_values *v);

/* option_file.c: calls begin for each key of the YAML mapping, then item for its scalar, or for each
 * scalar of its list. An error ends the reading; the text gets the file and the line. */
struct option_sink {
    void *ctx;
    nr_status (*begin)(void *ctx, struct nr_str name, bool list, struct nr_err *err);
    nr_status (*item)(void *ctx, struct nr_str value, struct nr_err *err);
};
nr_nodiscard nr_status option_file_read(const char *path, const struct option_sink *sink,
                                        struct nr_err *err);

/* option_text.c */
void option_help(const struct option_table *table, FILE *out);
void option_print_config(const struct option_values *v, FILE *out); /* YAML, with each source */
void option_man(const struct option_table *table, FILE *out);       /* roff */
void option_completion(const struct option_table *const *tables, unsigned n, bool zsh, FILE *out);

#endif
