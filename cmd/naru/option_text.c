/* What people and shells read of an option table: help, configuration, man page, completions. */
#include <string.h>

#include "naru/option.h"

#define COLUMN 34

static const char *value_name(const struct option_def *d)
{
    return d->kind == OPTION_BOOL ? ""
           : d->choices != NULL   ? d->choices
           : d->arg != NULL       ? d->arg
                                  : "TEXT";
}

/* Words of text from column on, folded before column 100. */
static void fold(FILE *out, const char *text, unsigned column)
{
    unsigned at = column;
    struct nr_str rest = nr_str_from(text);
    while (rest.ptr != NULL) {
        struct nr_str word = nr_str_cut(rest, ' ', &rest);
        if (at > column && at + word.len + 1 > 100) {
            fprintf(out, "\n%*s", (int)column, "");
            at = column;
        }
        at += (unsigned)fprintf(out, at > column ? " " NR_STR_FMT : NR_STR_FMT, NR_STR_ARG(word));
    }
    fprintf(out, "\n");
}

/* What every command takes besides its table. */
static const struct {
    const char *name, *arg, *help;
} general[] = {
    {"config", "FILE", "options from a YAML file, same names"},
    {"print-config", NULL, "print the options in force and where each came from"},
    {"print-man", NULL, "print the man page, for man -l -"},
    {"help", NULL, "print all options"},
    {"version", NULL, "print the version"},
};

/* One option with its help from COLUMN on. */
static void help_line(FILE *out, const char *name, const char *arg, const char *text)
{
    int n = fprintf(out, "  --%s%s%s", name, arg[0] != '\0' ? " " : "", arg);
    if (n >= COLUMN - 1) {
        fprintf(out, "\n%*s", COLUMN, "");
    } else {
        fprintf(out, "%*s", COLUMN - n, "");
    }
    fold(out, text, COLUMN);
}

void option_help(const struct option_table *table, FILE *out)
{
    fprintf(out, "usage: naru %s %s [options]\n\n%s\n\n%s", table->command, table->synopsis,
            table->summary, table->examples);
    for (unsigned i = 0; i < table->n_defs; i++) {
        const struct option_def *d = &table->defs[i];
        if (d->group != NULL) {
            fprintf(out, "\n%s\n", d->group);
        }
        char text[768];
        bool shown = d->preset != NULL && d->preset[0] != '\0';
        snprintf(text, sizeof(text), shown ? "%s [%s]" : "%s", d->help, d->preset);
        help_line(out, d->name, d->kind == OPTION_BOOL ? "" : value_name(d), text);
    }
    fprintf(out, "\nGeneral\n");
    for (unsigned i = 0; i < NR_COUNT(general); i++) {
        help_line(out, general[i].name, general[i].arg != NULL ? general[i].arg : "",
                  general[i].help);
    }
    fprintf(
        out,
        "\nEvery option can also be set as an environment variable: --http-port is "
        "NARU_HTTP_PORT.\n"
        "The command line counts more than the environment, that more than the file. A variable "
        "that\n"
        "begins so and is no option is named in the log at the start.\n");
}

static void print_scalar(FILE *out, const char *text)
{
    struct nr_text t;
    nr_text_init(&t, 1u << 16);
    nr_text_json(&t, nr_str_from(text)); /* a JSON string is a YAML string */
    fprintf(out, "%s", t.failed ? "\"\"" : t.data);
    nr_text_done(&t);
}

/* The largest unit that says it exactly. */
static void print_duration(uint64_t ns, FILE *out)
{
    static const struct {
        uint64_t ns;
        const char *unit;
    } units[] = {{1000000000, "s"}, {1000000, "ms"}, {1000, "us"}, {1, "ns"}};
    unsigned i = 0;
    while (ns % units[i].ns != 0) {
        i++;
    }
    fprintf(out, "%llu%s", (unsigned long long)(ns / units[i].ns), units[i].unit);
}

static void print_value(const struct option_values *v, const struct option_def *d, FILE *out)
{
    const void *p = (const char *)v->target + d->offset;
    switch (d->kind) {
    case OPTION_BOOL:
        fprintf(out, "%s", *(const bool *)p ? "true" : "false");
        return;
    case OPTION_UINT:
        fprintf(out, "%u", *(const unsigned *)p);
        return;
    case OPTION_BYTES:
        fprintf(out, "%llu", *(const unsigned long long *)p);
        return;
    case OPTION_DURATION:
        print_duration(*(const uint64_t *)p, out);
        return;
    case OPTION_TEXT:
    case OPTION_CHOICE:
        print_scalar(out, *(const char *const *)p != NULL ? *(const char *const *)p : "");
        return;
    case OPTION_LIST: {
        const struct option_list *list = p;
        fprintf(out, "[");
        for (unsigned i = 0; i < list->n; i++) {
            fprintf(out, i > 0 ? ", " : "");
            print_scalar(out, list->items[i]);
        }
        fprintf(out, "]");
        return;
    }
    }
}

void option_print_config(const struct option_values *v, FILE *out)
{
    static const char *const sources[] = {"default", "file", "environment", "command line"};
    for (unsigned i = 0; i < v->table->n_defs; i++) {
        const struct option_def *d = &v->table->defs[i];
        fprintf(out, "%s: ", d->name);
        print_value(v, d, out);
        fprintf(out, "  # %s\n", sources[v->source[i]]);
    }
}

/* roff: a leading dot or a backslash would be a command, a dash is a hyphen unless escaped */
static void roff(FILE *out, const char *text)
{
    for (const char *p = text; *p != '\0'; p++) {
        if (*p == '\\') {
            fputs("\\e", out);
        } else if (*p == '-') {
            fputs("\\-", out);
        } else if (*p == '.' && (p == text || p[-1] == '\n')) {
            fputs("\\&.", out);
        } else {
            fputc(*p, out);
        }
    }
}

void option_man(const struct option_table *table, FILE *out)
{
    fprintf(out, ".TH NARU-%s 1 \"\" \"naru %s\"\n.SH NAME\nnaru-%s \\- ", table->command,
            NARU_VERSION, table->command);
    roff(out, table->summary);
    fprintf(out, "\n.SH SYNOPSIS\n.B naru %s\n", table->command);
    roff(out, table->synopsis);
    fprintf(out, " [options]\n.SH EXAMPLES\n.nf\n");
    roff(out, table->examples);
    fprintf(out, ".fi\n.SH OPTIONS\n");
    for (unsigned i = 0; i < table->n_defs; i++) {
        const struct option_def *d = &table->defs[i];
        if (d->group != NULL) {
            fprintf(out, ".SS \"%s\"\n", d->group);
        }
        fprintf(out, ".TP\n.B \\-\\-");
        roff(out, d->name);
        fprintf(out, " %s\n", d->kind == OPTION_BOOL ? "" : value_name(d));
        roff(out, d->help);
        if (d->preset != NULL && d->preset[0] != '\0') {
            fprintf(out, "\nDefault: ");
            roff(out, d->preset);
        }
        fprintf(out, "\n");
    }
    fprintf(out, ".SS \"General\"\n");
    for (unsigned i = 0; i < NR_COUNT(general); i++) {
        fprintf(out, ".TP\n.B \\-\\-");
        roff(out, general[i].name);
        fprintf(out, " %s\n", general[i].arg != NULL ? general[i].arg : "");
        roff(out, general[i].help);
        fprintf(out, "\n");
    }
    fprintf(
        out,
        ".SH ENVIRONMENT\nEvery option as NARU_NAME, dashes as underscores, in capitals.\n"
        ".SH EXIT STATUS\n0 done; 1 failed; 2 the command line or the file of \\-\\-config cannot "
        "be read; 78 what they say is refused.\n");
}

static void complete_bash(const struct option_table *const *tables, unsigned n, FILE *out)
{
    fprintf(out, "_naru() {\n  local cur=${COMP_WORDS[COMP_CWORD]}\n"
                 "  if [ \"$COMP_CWORD\" = 1 ]; then COMPREPLY=($(compgen -W '");
    for (unsigned i = 0; i < n; i++) {
        fprintf(out, "%s ", tables[i]->command);
    }
    fprintf(out, "completion --help --version' -- \"$cur\")); return; fi\n  case "
                 "${COMP_WORDS[1]} in\n  completion) COMPREPLY=($(compgen -W 'bash zsh' -- "
                 "\"$cur\"));;\n");
    for (unsigned i = 0; i < n; i++) {
        fprintf(out, "  %s) [[ $cur == -* ]] && COMPREPLY=($(compgen -W '", tables[i]->command);
        for (unsigned k = 0; k < tables[i]->n_defs; k++) {
            fprintf(out, "--%s ", tables[i]->defs[k].name);
        }
        for (unsigned k = 0; k < NR_COUNT(general); k++) {
            fprintf(out, "--%s ", general[k].name);
        }
        fprintf(out, "' -- \"$cur\")) || COMPREPLY=($(compgen -f -- \"$cur\"));;\n");
    }
    fprintf(out, "  esac\n}\ncomplete -o filenames -F _naru naru\n");
}

static void complete_zsh(const struct option_table *const *tables, unsigned n, FILE *out)
{
    fprintf(out, "#compdef naru\n_naru() {\n  local -a commands; commands=(");
    for (unsigned i = 0; i < n; i++) {
        fprintf(out, "'%s:%s' ", tables[i]->command, tables[i]->summary);
    }
    fprintf(out, "'completion:print completions for a shell')\n  if (( CURRENT == 2 )); then "
                 "_describe command commands; return; fi\n  case "
                 "$words[2] in\n  completion) _values shell bash zsh;;\n");
    for (unsigned i = 0; i < n; i++) {
        fprintf(out, "  %s) _arguments '*:file:_files'", tables[i]->command);
        for (unsigned k = 0; k < tables[i]->n_defs; k++) {
            const struct option_def *d = &tables[i]->defs[k];
            fprintf(out, " \\\n    '--%s%s[%.40s]%s'", d->name, d->kind == OPTION_BOOL ? "" : "=",
                    d->name, d->kind == OPTION_BOOL ? "" : ":value:_files");
        }
        for (unsigned k = 0; k < NR_COUNT(general); k++) {
            fprintf(out, " \\\n    '--%s%s[%s]%s'", general[k].name,
                    general[k].arg != NULL ? "=" : "", general[k].help,
                    general[k].arg != NULL ? ":value:_files" : "");
        }
        fprintf(out, ";;\n");
    }
    fprintf(out, "  esac\n}\n_naru \"$@\"\n");
}

void option_completion(const struct option_table *const *tables, unsigned n, bool zsh, FILE *out)
{
    if (zsh) {
        complete_zsh(tables, n, out);
    } else {
        complete_bash(tables, n, out);
    }
}
