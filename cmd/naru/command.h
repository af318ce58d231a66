/* A subcommand: name, one line for `naru --help`, and what runs it. One folder of cmd/ each. */
#ifndef NARU_COMMAND_H
#define NARU_COMMAND_H

#include "naru/option.h"

struct command {
    const char *name;
    const char *summary;
    int (*run)(int argc, char **argv); /* argv[0] is the command's name; returns the exit code */
    const struct option_table *table;
};

extern const struct command command_serve, command_why;

#endif
