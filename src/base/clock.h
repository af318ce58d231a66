/* Time. Everything that waits or measures asks here, so that tests can put a fake clock in.
 *
 * nr_clock_now is CLOCK_MONOTONIC in nanoseconds (or the fake time); nr_clock_wall is UTC time for
 * people and is never faked. The fake clock is process-wide and for single-threaded tests and component tests only.
 */
#ifndef NR_BASE_CLOCK_H
#define NR_BASE_CLOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define NR_US_NS INT64_C(1000)
#define NR_MS_NS INT64_C(1000000)
#define NR_S_NS INT64_C(1000000000)

int64_t nr_clock_now(void);
int64_t nr_clock_wall(void);       /* nanoseconds since 1970 */
int64_t nr_clock_thread_cpu(void); /* CPU time of this thread in ns */
void nr_clock_fake(bool on, int64_t now_ns);
void nr_clock_fake_advance(int64_t by_ns); /* >= 0; the fake must be on */
bool nr_clock_is_fake(void);
/* A condition whose timed waits take CLOCK_MONOTONIC: real time, also under a fake clock. */
void nr_clock_cond_init(pthread_cond_t *c);
/* "2026-11-21T09:30:00.123Z" with its NUL into out[25]; cut to the years 1970 to 9999. */
void nr_clock_format(int64_t wall_ns, char out[25]);

#endif
