/* --host-policy: what is taken, what is refused, which group gets which, where threads run. */
#include "sched/hostpolicy.h"

#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static struct nr_err err;

static void test_wrong_texts(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"", "expected NAME"},
        {"a", "expected NAME"},
        {",cpu-cores=0", "expected NAME"},
        {"a,cpu-cores", "expected NAME"},
        {"a,cpu-cores=", "ranges of cores"},
        {"a,cpu-cores=1-", "ranges of cores"},
        {"a,cpu-cores=1023", "core 1023 is none that this process may use"},
        {"a,numa-node=x", "numa-node is a number"},
        {"a,numa-node=-1", "numa-node is a number"},
        {"a,numa-node=1000", "no memory node 1000"},
        {"a,cores=0", "setting \"cores\" is not known"},
        {"a,=0", "setting \"\" is not known"},
    };
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        struct nr_host_policies *all;
        memset(&err, 0, sizeof(err));
        assert_int_equal(nr_host_policies_new(&cases[i].text, 1, &all, &err), NARU_INVALID);
        assert_null(all);
        if (strstr(err.text, cases[i].says) == NULL) {
            fail_msg("'%s': %s", cases[i].text, err.text);
        }
    }
    struct nr_host_policies *none;
    assert_int_equal(nr_host_policies_new(NULL, 0, &none, &err), NARU_OK);
    assert_null(none);
    nr_host_policies_free(none);
}

static unsigned first_core(void)
{
    struct nr_cpu_set s;
    unsigned core = 0;
    nr_cpu_allowed(&s);
    while (!nr_cpu_has(&s, core)) {
        core++;
    }
    return core;
}

static const char *policy_of(const struct nr_host_policies *all, enum nr_instance_kind kind,
                             const char *name, int32_t device)
{
    const struct nr_host_policy *p;
    struct nr_instance_group g = {.kind = kind, .host_policy = name};
    memset(&err, 0, sizeof(err));
    if (nr_host_policy_of(all, &g, device, &p, &err) != NARU_OK) {
        return "refused";
    }
    return p != NULL ? p->name : "none";
}

static void test_who_gets_which(void **state)
{
    (void)state;
    char cores[64], more[64];
    snprintf(cores, sizeof(cores), "cpu,cpu-cores=%u", first_core());
    snprintf(more, sizeof(more), "fast,cpu-cores=%u-%u", first_core(), first_core());
    const char *texts[] = {cores, "gpu_1,numa-node=0", more, "fast,numa-node=0"};
    struct nr_host_policies *all;
    assert_int_equal(nr_host_policies_new(texts, 4, &all, &err), NARU_OK);
    assert_string_equal(policy_of(all, NR_INSTANCE_CPU, "", -1), "cpu");
    assert_string_equal(policy_of(all, NR_INSTANCE_GPU, "", 0), "none");
    assert_string_equal(policy_of(all, NR_INSTANCE_GPU, "", 1), "gpu_1");
    assert_string_equal(policy_of(all, NR_INSTANCE_MODEL, "", -1), "none");
    assert_string_equal(policy_of(all, NR_INSTANCE_CPU, "fast", -1), "fast");
    assert_string_equal(policy_of(all, NR_INSTANCE_CPU, "slow", -1), "refused");
    assert_non_null(strstr(err.text, "no host policy \"slow\""));
    assert_non_null(strstr(err.text, "cpu, gpu_1, fast"));
    assert_string_equal(policy_of(NULL, NR_INSTANCE_CPU, "", -1), "none");
    assert_string_equal(policy_of(NULL, NR_INSTANCE_CPU, "cpu", -1), "refused");
    assert_non_null(strstr(err.text, "started with none"));
    nr_host_policies_free(all);
}

struct probe {
    struct nr_runnable runnable;
    sem_t done;
    struct nr_cpu_set cores;
    char name[16];
};

static bool on_run(struct nr_runnable *r)
{
    struct probe *p = nr_container_of(r, struct probe, runnable);
    nr_cpu_allowed(&p->cores);
    pthread_getname_np(pthread_self(), p->name, sizeof(p->name));
    sem_post(&p->done);
    return false;
}

static void test_threads_run_where_it_says(void **state)
{
    (void)state;
    char cores[64];
    snprintf(cores, sizeof(cores), "one-core,cpu-cores=%u", first_core());
    const char *texts[] = {cores};
    struct nr_host_policies *all;
    const struct nr_host_policy *policy;
    struct nr_instance_group g = {.host_policy = "one-core"};
    assert_int_equal(nr_host_policies_new(texts, 1, &all, &err), NARU_OK);
    nr_host_policies_start(all, 4);
    assert_int_equal(nr_host_policy_of(all, &g, -1, &policy, &err), NARU_OK);
    struct probe p;
    memset(&p, 0, sizeof(p));
    assert_int_equal(sem_init(&p.done, 0, 0), 0);
    nr_exec_init(&p.runnable, on_run);
    nr_exec_wake(policy->exec, &p.runnable);
    sem_wait(&p.done);
    nr_exec_retire(policy->exec, &p.runnable);
    assert_int_equal(nr_cpu_count(&p.cores), 1);
    assert_true(nr_cpu_has(&p.cores, first_core()));
    assert_string_equal(p.name, "naru-exec:one-c");
    assert_int_equal(nr_exec_threads(policy->exec), 2); /* one for the core, and the spare */
    sem_destroy(&p.done);
    nr_host_policies_free(all);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wrong_texts),
        cmocka_unit_test(test_who_gets_which),
        cmocka_unit_test(test_threads_run_where_it_says),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
