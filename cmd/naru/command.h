/* A subcommand: name, one line for `naru --help`, and what runs it. One folder of cmd/ each. */
#ifndef NR_CMD_NARU_COMMAND_H
#define NR_CMD_NARU_COMMAND_H

struct command {
    const char *name;
    const char *summary;
    int (*run)(int argc, char **argv); /* argv[0] is the command's name; returns the exit code */
};

extern const struct command command_serve;

#endif
