/* What configured threads add up to. */
#include "sched/threadbook.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static char storage[1024];

static const char *note(struct nr_thread_book *b, const struct nr_thread_entry *e)
{
    struct nr_text t;
    nr_text_init_at(&t, storage, sizeof(storage));
    storage[0] = '\0';
    nr_thread_book_note(b, e, &t);
    return storage;
}

static struct nr_thread_entry entry(const char *name, unsigned instances, const char *threads,
                                    bool shared, unsigned runs)
{
    struct nr_thread_entry e;
    naru_option options[] = {{"other", "7"}, {"intra_op_thread_count", threads}};
    struct nr_model_config c = {.name = name,
                                .n_instances = instances,
                                .options = options,
                                .n_options = threads != NULL ? 2 : 1};
    nr_thread_entry_init(&e, &c, shared, runs);
    e.per_what = "intra_op_thread_count"; /* not that of our stack */
    return e;
}

static void test_what_counts(void **state)
{
    (void)state;
    static const struct {
        unsigned instances;
        const char *threads;
        bool shared;
        unsigned runs, want;
    } cases[] = {
        {1, NULL, false, 2, 0},                          /* the server and the backend divide */
        {8, NULL, false, 2, 0},   {8, "1", false, 2, 0}, /* never more than executors */
        {1, "0", false, 2, 0},                           /* "you decide" */
        {1, "2", false, 2, 2},    {2, "2", false, 2, 4},
        {2, "2", true, 2, 3},   /* one pool: its one thread and two callers */
        {64, "4", false, 2, 8}, /* two executions at once, at most */
        {64, "4", true, 2, 5},    {1, "4", true, 16, 4},
        {1, "many", true, 16, 0}, /* the backend refuses that */
        {1, " 4 ", true, 16, 4},
    };
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        struct nr_thread_entry e =
            entry("m", cases[i].instances, cases[i].threads, cases[i].shared, cases[i].runs);
        if (e.threads != cases[i].want) {
            fail_msg("case %zu: %u threads, %u expected", i, e.threads, cases[i].want);
        }
    }
}

static void test_texts_have_the_numbers(void **state)
{
    (void)state;
    struct nr_thread_book *b = nr_thread_book_new(4);
    struct nr_thread_entry fine = entry("fine", 1, "4", false, 4);
    struct nr_thread_entry silent = entry("silent", 64, NULL, false, 4);
    struct nr_thread_entry wide = entry("wide", 2, "4", false, 4);
    nr_thread_book_enter(b, &silent);
    nr_thread_book_enter(b, &fine);
    assert_string_equal(note(b, &fine), "");
    assert_string_equal(note(b, &silent), "");
    nr_thread_book_enter(b, &wide);
    const char *text = note(b, &wide);
    assert_non_null(strstr(text, "8 threads may compute at once (2 instances, "
                                 "intra_op_thread_count 4) on 4 cores"));
    assert_non_null(strstr(text,
                           "; 12 threads may compute at once for the models that say how many "
                           "(fine (4), wide (8)) on 4 cores"));
    text = note(b, &fine); /* nothing wrong with it alone */
    assert_true(strncmp(text, "12 threads", 10) == 0);
    assert_string_equal(note(b, &silent), "");
    nr_thread_book_leave(b, &wide);
    assert_string_equal(note(b, &fine), "");
    nr_thread_book_leave(b, &fine);
    nr_thread_book_leave(b, &silent);
    nr_thread_book_free(b);
}

static void test_many_models_are_not_all_named(void **state)
{
    (void)state;
    struct nr_thread_book *b = nr_thread_book_new(2);
    struct nr_thread_entry all[10];
    for (unsigned i = 0; i < 10; i++) {
        all[i] = entry("a-name-that-is-long-enough-to-fill-texts-when-there-are-many-of-it", 1, "2",
                       false, 2);
        nr_thread_book_enter(b, &all[i]);
    }
    const char *text = note(b, &all[0]);
    assert_non_null(strstr(text, "20 threads may compute at once for the models"));
    assert_non_null(strstr(text, ", …) on 2 cores"));
    for (unsigned i = 0; i < 10; i++) {
        nr_thread_book_leave(b, &all[i]);
    }
    nr_thread_book_free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_counts),
        cmocka_unit_test(test_texts_have_the_numbers),
        cmocka_unit_test(test_many_models_are_not_all_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
