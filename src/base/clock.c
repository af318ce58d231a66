/* Clock reads, real or fake.
 *
 * The fake costs the real one a relaxed load of a line that nobody writes and a branch that is
 * always predicted. Wall time and CPU time have no fake: nothing waits for them.
 *
 * Invariant: with the fake on, nr_clock_now changes by nr_clock_fake* only.
 * Threads: all functions may be called by any thread.
 */
#include "base/clock.h"

#include <stdatomic.h>
#include <time.h>

#include "base/status.h"

static _Atomic bool is_faked;
static _Atomic int64_t fake_now;

static int64_t read_clock(clockid_t id)
{
    struct timespec t;
    NR_ASSERT(clock_gettime(id, &t) == 0);
    return (int64_t)t.tv_sec * NR_S_NS + t.tv_nsec;
}

int64_t nr_clock_now(void)
{
    /* Acquire pairs with the release in nr_clock_fake: who sees the flag sees the time. */
    if (NR_UNLIKELY(atomic_load_explicit(&is_faked, memory_order_acquire))) {
        return atomic_load_explicit(&fake_now, memory_order_relaxed);
    }
    return read_clock(CLOCK_MONOTONIC);
}

int64_t nr_clock_wall(void)
{
    return read_clock(CLOCK_REALTIME);
}

int64_t nr_clock_thread_cpu(void)
{
    return read_clock(CLOCK_THREAD_CPUTIME_ID);
}

bool nr_clock_is_fake(void)
{
    return atomic_load_explicit(&is_faked, memory_order_acquire);
}

void nr_clock_fake(bool on, int64_t now_ns)
{
    atomic_store_explicit(&fake_now, now_ns, memory_order_relaxed);
    atomic_store_explicit(&is_faked, on, memory_order_release);
}

void nr_clock_fake_advance(int64_t by_ns)
{
    NR_ASSERT(by_ns >= 0);
    atomic_fetch_add_explicit(&fake_now, by_ns, memory_order_relaxed);
}

/* Writes `value` as `digits` decimal digits. */
static void put_digits(char *out, int64_t value, int digits)
{
    for (int i = digits - 1; i >= 0; i--) {
        out[i] = (char)('0' + value % 10);
        value /= 10;
    }
}

void nr_clock_format(int64_t wall_ns, char out[25])
{
    const int64_t day_s = 86400;
    int64_t last_ms = INT64_C(253402300799999); /* the end of the year 9999 */
    int64_t ms = wall_ns < 0 ? 0 : NR_MIN(wall_ns / NR_MS_NS, last_ms);
    int64_t seconds = ms / 1000;
    int64_t second = seconds % day_s;
    /* Days since 1 March of year 0, so that the leap day is the last day of a year: then a year is
     * 365 days, a 4-year cycle has one day more, a century one less, 400 years one more again. No
     * gmtime_r: it takes the C library's time zone lock. */
    int64_t days = seconds / day_s + 719468;
    int64_t era = days / 146097;
    int64_t day = days % 146097;
    int64_t year = (day - day / 1460 + day / 36524 - day / 146096) / 365;
    day -= 365 * year + year / 4 - year / 100;
    int64_t month = (5 * day + 2) / 153; /* from March: lengths 31 30 31 30 31 … */
    day -= (153 * month + 2) / 5;
    year += era * 400 + (month >= 10);
    month += month < 10 ? 3 : -9;

    static const char shape[25] = "0000-00-00T00:00:00.000Z";
    for (int i = 0; i < 25; i++) {
        out[i] = shape[i];
    }
    put_digits(out, year, 4);
    put_digits(out + 5, month, 2);
    put_digits(out + 8, day + 1, 2);
    put_digits(out + 11, second / 3600, 2);
    put_digits(out + 14, second / 60 % 60, 2);
    put_digits(out + 17, second % 60, 2);
    put_digits(out + 20, ms % 1000, 3);
}

void nr_clock_cond_init(pthread_cond_t *c)
{
    pthread_condattr_t attr;
    NR_ASSERT(pthread_condattr_init(&attr) == 0);
    NR_ASSERT(pthread_condattr_setclock(&attr, CLOCK_MONOTONIC) == 0);
    NR_ASSERT(pthread_cond_init(c, &attr) == 0);
    (void)pthread_condattr_destroy(&attr);
}
