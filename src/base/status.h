/* Status helpers and the error value that carries a text for people.
 *
 * Codes come from include/naru/status.h. A function that can fail returns nr_status and is marked
 * nr_nodiscard; a text is built where the facts are known: what came, what was expected, what to do.
 */
#ifndef NR_BASE_STATUS_H
#define NR_BASE_STATUS_H

#include <stdarg.h>
#include <stddef.h>

#include "naru/status.h"

typedef naru_status nr_status;

#define nr_nodiscard __attribute__((warn_unused_result))
#define nr_printf(fmt, first) __attribute__((format(printf, fmt, first)))
#define nr_cleanup(fn) __attribute__((cleanup(fn)))
/* For large locals of hot functions that are filled before they are read: our flags zero every
 * local otherwise. */
#if defined(__has_attribute) && __has_attribute(uninitialized)
#define nr_uninit __attribute__((uninitialized))
#else
#define nr_uninit
#endif
#define NR_LIKELY(x) __builtin_expect(!!(x), 1)
#define NR_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define NR_COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define NR_MIN(a, b) ((a) < (b) ? (a) : (b))
#define NR_MAX(a, b) ((a) > (b) ? (a) : (b))
#define nr_container_of(ptr, type, member) \
    ((type *)(void *)((char *)(ptr) - offsetof(type, member)))
#define nr_container_of_const(ptr, type, member) \
    ((const type *)(const void *)((const char *)(ptr) - offsetof(type, member)))

/* Hands a pointer over: evaluates to it and leaves NULL behind, so that a cleanup does nothing. */
#define NR_TAKE(ptr)                       \
    ({                                     \
        __typeof__(ptr) nr_taken_ = (ptr); \
        (ptr) = NULL;                      \
        nr_taken_;                         \
    })

#define NR_ERR_TEXT_MAX 512

/* A status with its text. Caller's storage, no heap; {0} is "no error". */
struct nr_err {
    nr_status status;
    char text[NR_ERR_TEXT_MAX];
};

/* Fills *err (which may be NULL) and returns status, so that `return nr_fail(err, …)` reads well.
 * The text is cut at NR_ERR_TEXT_MAX - 1 bytes, never in the middle of a UTF-8 character.
 * Arguments may point into err->text. */
nr_status nr_fail(struct nr_err *err, nr_status status, const char *fmt, ...) nr_printf(3, 4);

/* The call's value is its own argument, so that compilers and analysers see through a file's border
 * that what a function left unset on failure is not read after its status was checked. */
#ifdef __clang_analyzer__
#define NR_FAILED(status) (((status) < 0) ? (void)0 : __builtin_unreachable())
#else
#define NR_FAILED(status) ((void)0)
#endif
#define nr_fail(err, status, ...)                  \
    ({                                             \
        const nr_status nr_failed_ = (status);     \
        (nr_fail)((err), nr_failed_, __VA_ARGS__); \
        NR_FAILED(nr_failed_);                     \
        nr_failed_;                                \
    })

/* Puts "prefix: " in front of the text; keeps the status. A NULL err is fine. */
void nr_err_prefix(struct nr_err *err, const char *fmt, ...) nr_printf(2, 3);

/* A number that is not in the table reads as NARU_UNKNOWN. The strings are static. */
const char *nr_status_text(nr_status status); /* "not found" */
const char *nr_status_name(nr_status status); /* "NARU_NOT_FOUND" */
int nr_status_http(nr_status status);         /* 404 */
int nr_status_grpc(nr_status status);         /* 5 */
/* The status for an errno of a file or socket call; NARU_IO for those without one of their own.
 * `%m` in nr_fail's format prints the errno itself. */
nr_status nr_status_from_errno(int error);

/* Always on: for states that no input can bring about. Prints file, line and ends the process. */
#define NR_ASSERT(cond)                                  \
    do {                                                 \
        if (NR_UNLIKELY(!(cond))) {                      \
            nr_assert_failed(#cond, __FILE__, __LINE__); \
        }                                                \
    } while (0)
#ifdef NDEBUG
#define NR_DCHECK(cond) ((void)(0 && (cond)))
#else
#define NR_DCHECK(cond) NR_ASSERT(cond)
#endif
_Noreturn void nr_assert_failed(const char *cond, const char *file, int line);

#endif
