/* naru: one binary with subcommands, as git does it. The list below is the registration. */
#include <stdio.h>
#include <string.h>

#include "naru/command.h"

static const struct command *const commands[] = {&command_serve};

static int usage(FILE *out)
{
    fprintf(out, "usage: naru COMMAND [options]\n\n");
    for (unsigned i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        fprintf(out, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
    }
    return out == stderr ? 2 : 0;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        return usage(stderr);
    }
    for (unsigned i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        if (strcmp(argv[1], commands[i]->name) == 0) {
            return commands[i]->run(argc - 1, argv + 1);
        }
    }
    return usage(strcmp(argv[1], "--help") == 0 ? stdout : stderr);
}
