/* naru: one binary with subcommands, as git does it. The list below is the registration. */
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "naru/command.h"

static const struct command *const commands[] = {&command_serve, &command_why};

static void help(FILE *out)
{
    fprintf(out, "naru %s: serves deep-learning models\n\nusage: naru COMMAND [options]\n\n",
            NARU_VERSION);
    for (unsigned i = 0; i < NR_COUNT(commands); i++) {
        fprintf(out, "  %-12s %s\n", commands[i]->name, commands[i]->summary);
    }
    fprintf(out, "  %-12s %s\n\n", "completion",
            "print completions for a shell: naru completion bash|zsh");
    fprintf(out, "first steps\n"
                 "  naru serve model.onnx          serve one file on http://127.0.0.1:8000\n"
                 "  naru serve models              serve a Triton model repository\n"
                 "  naru serve --help              all options of a command\n"
                 "  naru serve --print-man | man -l -\n");
}

static int completion(int argc, char **argv)
{
    const struct option_table *tables[NR_COUNT(commands)];
    bool zsh = argc > 2 && strcmp(argv[2], "zsh") == 0;
    if (argc != 3 || (!zsh && strcmp(argv[2], "bash") != 0)) {
        fprintf(stderr, "usage: naru completion bash|zsh, e.g. source <(naru completion bash)\n");
        return 2;
    }
    for (unsigned i = 0; i < NR_COUNT(commands); i++) {
        tables[i] = commands[i]->table;
    }
    option_completion(tables, NR_COUNT(commands), zsh, stdout);
    return 0;
}

static int unknown_command(const char *given)
{
    const char *best = NULL;
    unsigned least = 4;
    for (unsigned i = 0; i < NR_COUNT(commands); i++) {
        unsigned distance = nr_str_distance(nr_str_from(given), nr_str_from(commands[i]->name));
        if (distance < least) {
            least = distance;
            best = commands[i]->name;
        }
    }
    fprintf(stderr, "naru: '%s' is no command", given);
    fprintf(stderr, best != NULL ? "; did you mean '%s'?\n" : "; 'naru --help' lists them%s\n",
            best != NULL ? best : "");
    return 2;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        help(stderr);
        return 2;
    }
    const char *name = argv[1];
    for (unsigned i = 0; i < NR_COUNT(commands); i++) {
        if (strcmp(name, commands[i]->name) == 0) {
            return commands[i]->run(argc - 1, argv + 1);
        }
    }
    if (strcmp(name, "completion") == 0) {
        return completion(argc, argv);
    }
    if (strcmp(name, "--version") == 0) {
        printf("naru %s\n", NARU_VERSION);
        return 0;
    }
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        help(stdout);
        return 0;
    }
    return unknown_command(name);
}
