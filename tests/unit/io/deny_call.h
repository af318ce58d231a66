/* Makes one system call answer ENOSYS in this process from now on, as an older kernel would: for
 * tests of fallbacks, in a forked child. False where filters may not be installed. */
#ifndef NR_TESTS_UNIT_IO_DENY_CALL_H
#define NR_TESTS_UNIT_IO_DENY_CALL_H

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static inline bool deny_call(unsigned number)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof(code) / sizeof(code[0]), code};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/* Runs `check` in a child that lacks the call; returns its result, or 77 for "no filters here". */
static inline int without_call(unsigned number, int (*check)(void))
{
    pid_t child = fork();
    if (child == 0) {
        _exit(deny_call(number) ? check() : 77);
    }
    int status = -1;
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status)
               ? WEXITSTATUS(status)
               : -1;
}

#endif
