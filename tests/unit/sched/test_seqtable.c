/* Slots, backlog and idle times of sequences on invented times: scripted rules, and a random walk that
 * is compared with a plain model of the same. NARU_TEST_SEED=<number> repeats a walk. */
#include "sched/seqtable.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/mem.h"

#define IDLE (1000 * NR_MS_NS)

static struct nr_seq_key key_of(uint64_t id)
{
    struct nr_seq_key k;
    nr_seq_key_make(&k, id, (struct nr_str){0});
    return k;
}

static struct nr_seq *add(struct nr_seqtable *t, uint64_t id)
{
    struct nr_seq_key k = key_of(id);
    return nr_seqtable_add(t, &k);
}

static struct nr_seq *find(const struct nr_seqtable *t, uint64_t id)
{
    struct nr_seq_key k = key_of(id);
    return nr_seqtable_find(t, &k);
}

static void make(struct nr_seqtable *t, unsigned lanes, unsigned slots, bool fixed,
                 unsigned backlog)
{
    struct nr_seqtable_cfg cfg = {.n_lanes = lanes,
                                  .n_slots = slots,
                                  .fixed = fixed,
                                  .max_backlog = backlog,
                                  .idle_ns = IDLE};
    nr_seqtable_init(t, &cfg);
}

static void test_keys(void **state)
{
    (void)state;
    struct nr_seqtable t;
    struct nr_seq_key five, text, zeros;
    make(&t, 1, 8, false, 0);
    nr_seq_key_make(&five, 5, (struct nr_str){0});
    nr_seq_key_make(&text, 5, NR_STR("5"));
    nr_seq_key_make(&zeros, 0, (struct nr_str){"\0\0\0", 3});
    struct nr_seq *a = nr_seqtable_add(&t, &five), *b = nr_seqtable_add(&t, &text);
    struct nr_seq *c = nr_seqtable_add(&t, &zeros);
    assert_ptr_equal(nr_seqtable_find(&t, &five), a);
    assert_ptr_equal(nr_seqtable_find(&t, &text), b);
    assert_ptr_equal(nr_seqtable_find(&t, &zeros), c);
    nr_seq_key_make(&zeros, 0, (struct nr_str){"\0\0", 2});
    assert_null(nr_seqtable_find(&t, &zeros));
    char longest[128];
    memset(longest, 'x', sizeof(longest));
    nr_seq_key_make(&text, 1, (struct nr_str){longest, sizeof(longest)});
    assert_int_equal(text.len, 129);
    (void)nr_seqtable_remove(&t, a);
    (void)nr_seqtable_remove(&t, b);
    (void)nr_seqtable_remove(&t, c);
    nr_seqtable_done(&t);
}

static void test_lowest_slot_of_the_emptiest_lane(void **state)
{
    (void)state;
    struct nr_seqtable t;
    make(&t, 2, 3, true, 0);
    struct nr_seq *s[6];
    for (unsigned i = 0; i < 6; i++) {
        s[i] = add(&t, i + 1);
        assert_int_equal(s[i]->lane, i % 2);
        assert_int_equal(s[i]->slot, i / 2);
        assert_ptr_equal(nr_seqtable_at(&t, i % 2, i / 2), s[i]);
    }
    assert_null(add(&t, 7)); /* no backlog allowed */
    assert_null(nr_seqtable_remove(&t, s[3]));
    assert_null(nr_seqtable_remove(&t, s[1]));
    s[1] = add(&t, 8);
    assert_true(s[1]->lane == 1 && s[1]->slot == 0);
    s[3] = add(&t, 9);
    assert_true(s[3]->lane == 1 && s[3]->slot == 1);
    for (unsigned i = 0; i < 6; i++) {
        (void)nr_seqtable_remove(&t, s[i]);
    }
    nr_seqtable_done(&t);
}

static void test_backlog_is_served_in_order(void **state)
{
    (void)state;
    struct nr_seqtable t;
    make(&t, 1, 2, true, 3);
    struct nr_seq *a = add(&t, 1), *b = add(&t, 2), *c = add(&t, 3), *d = add(&t, 4);
    struct nr_seq *e = add(&t, 5);
    assert_null(add(&t, 6));
    assert_true(t.n_active == 2 && t.n_backlog == 3 && c->lane < 0);
    assert_null(nr_seqtable_remove(&t, d)); /* one that gave up while it waited frees nothing */
    assert_ptr_equal(nr_seqtable_remove(&t, a), c);
    assert_true(c->lane == 0 && c->slot == 0);
    assert_ptr_equal(nr_seqtable_requeue(&t, b), e); /* its id began anew: behind the others */
    assert_true(b->lane < 0 && e->slot == 1 && t.n_backlog == 1);
    assert_ptr_equal(nr_seqtable_remove(&t, c), b);
    assert_null(nr_seqtable_requeue(&t, b)); /* nobody waits: it stays where it is */
    assert_true(b->lane == 0 && b->slot == 0);
    (void)nr_seqtable_remove(&t, b);
    (void)nr_seqtable_remove(&t, e);
    nr_seqtable_done(&t);
}

static void test_idle_times(void **state)
{
    (void)state;
    struct nr_seqtable t;
    make(&t, 1, 4, false, 0);
    assert_int_equal(nr_seqtable_next_ns(&t), 0);
    struct nr_seq *a = add(&t, 1), *b = add(&t, 2);
    assert_null(nr_seqtable_expired(&t, INT64_MAX)); /* busy ones never are */
    nr_seqtable_rest(&t, a, 100);
    nr_seqtable_rest(&t, b, 200);
    assert_int_equal(nr_seqtable_next_ns(&t), 100 + IDLE);
    assert_null(nr_seqtable_expired(&t, 100 + IDLE - 1));
    assert_ptr_equal(nr_seqtable_expired(&t, 100 + IDLE), a);
    nr_seqtable_wake(&t, a);
    nr_seqtable_wake(&t, a);
    assert_int_equal(nr_seqtable_next_ns(&t), 200 + IDLE);
    nr_seqtable_rest(&t, a, 300);
    assert_ptr_equal(nr_seqtable_expired(&t, INT64_MAX), b);
    (void)nr_seqtable_remove(&t, b);
    assert_ptr_equal(nr_seqtable_expired(&t, INT64_MAX), a);
    (void)nr_seqtable_remove(&t, a);
    assert_int_equal(nr_seqtable_next_ns(&t), 0);
    nr_seqtable_done(&t);
}

/* --- random walk ------------------------------------------------------------------------------ */

#define IDS 40

static uint64_t rng;
static unsigned pick(unsigned n)
{
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return (unsigned)(rng % n);
}

struct walk {
    struct nr_seqtable t;
    struct nr_seq *live[IDS];
    uint64_t queue[IDS]; /* ids that should be in the backlog, in order */
    unsigned n_queue, n_active;
};

static void unqueue(struct walk *w, uint64_t id)
{
    for (unsigned i = 0; i < w->n_queue; i++) {
        if (w->queue[i] == id) {
            memmove(&w->queue[i], &w->queue[i + 1], (w->n_queue - i - 1) * sizeof(w->queue[0]));
            w->n_queue--;
            return;
        }
    }
    fail_msg("%" PRIu64 " is not in the backlog", id);
}

/* A slot was freed: the head of the backlog has it, and nobody else. */
static void check_promoted(struct walk *w, const struct nr_seq *next)
{
    if (w->n_queue == 0) {
        assert_null(next);
        w->n_active--;
        return;
    }
    assert_ptr_equal(next, w->live[w->queue[0]]);
    unqueue(w, w->queue[0]);
}

static void check_all(const struct walk *w)
{
    unsigned active = 0, backlog = 0;
    for (uint64_t i = 0; i < IDS; i++) {
        const struct nr_seq *s = w->live[i];
        assert_ptr_equal(find(&w->t, i), s);
        active += s != NULL && s->lane >= 0;
        backlog += s != NULL && s->lane < 0;
        for (uint64_t k = 0; s != NULL && s->lane >= 0 && w->t.cfg.fixed && k < i; k++) {
            const struct nr_seq *o = w->live[k];
            assert_false(o != NULL && o->lane == s->lane && o->slot == s->slot);
        }
        if (s != NULL && s->lane >= 0 && w->t.cfg.fixed) {
            assert_ptr_equal(nr_seqtable_at(&w->t, (unsigned)s->lane, (unsigned)s->slot), s);
        }
    }
    assert_int_equal(active, w->t.n_active);
    assert_int_equal(active, w->n_active);
    assert_int_equal(backlog, w->n_queue);
    assert_int_equal(backlog, w->t.n_backlog);
    assert_true(backlog == 0 || active == w->t.cfg.n_lanes * w->t.cfg.n_slots);
}

static void step(struct walk *w, uint64_t id, int64_t now_ns)
{
    struct nr_seq *s = w->live[id];
    bool room = w->n_active < w->t.cfg.n_lanes * w->t.cfg.n_slots;
    if (s == NULL) {
        s = add(&w->t, id);
        assert_int_equal(s != NULL, room || w->n_queue < w->t.cfg.max_backlog);
        w->live[id] = s;
        if (s != NULL && room) {
            w->n_active++;
        } else if (s != NULL) {
            w->queue[w->n_queue++] = id;
        }
        return;
    }
    unsigned what = pick(4);
    if (what == 0 && s->lane >= 0) {
        w->live[id] = NULL;
        check_promoted(w, nr_seqtable_remove(&w->t, s));
    } else if (what == 0) {
        w->live[id] = NULL;
        unqueue(w, id);
        assert_null(nr_seqtable_remove(&w->t, s));
    } else if (what == 1 && s->lane >= 0 && !s->idle) {
        struct nr_seq *next = nr_seqtable_requeue(&w->t, s);
        assert_int_equal(next != NULL, w->n_queue > 0);
        if (next != NULL) {
            assert_ptr_equal(next, w->live[w->queue[0]]);
            unqueue(w, w->queue[0]);
            w->queue[w->n_queue++] = id;
        }
    } else if (what == 2 && s->lane >= 0 && !s->idle) {
        nr_seqtable_rest(&w->t, s, now_ns);
    } else if (what == 3) {
        nr_seqtable_wake(&w->t, s);
    }
}

static void walk_once(uint64_t seed)
{
    struct walk w = {0};
    rng = seed * UINT64_C(0x9E3779B97F4A7C15) + 1;
    make(&w.t, 1 + pick(3), 1 + pick(5), pick(2) == 0, pick(12));
    int64_t now_ns = 1;
    for (unsigned i = 0; i < 3000; i++) {
        now_ns += (int64_t)pick(50) * NR_MS_NS;
        step(&w, pick(IDS), now_ns);
        struct nr_seq *s;
        while ((s = nr_seqtable_expired(&w.t, now_ns)) != NULL) {
            assert_true(s->idle && now_ns - s->idle_since_ns >= IDLE);
            for (unsigned k = 0; k < IDS; k++) {
                w.live[k] = w.live[k] == s ? NULL : w.live[k];
            }
            check_promoted(&w, nr_seqtable_remove(&w.t, s));
        }
        for (unsigned k = 0; k < IDS; k++) { /* nobody rests for too long */
            assert_false(w.live[k] != NULL && w.live[k]->idle &&
                         now_ns - w.live[k]->idle_since_ns >= IDLE);
        }
        check_all(&w);
    }
    for (unsigned i = 0; i < IDS; i++) {
        if (w.live[i] != NULL) {
            (void)nr_seqtable_remove(&w.t, w.live[i]);
        }
    }
    nr_seqtable_done(&w.t);
}

static void test_random_walks(void **state)
{
    (void)state;
    const char *given = getenv("NARU_TEST_SEED");
    uint64_t seed;
    if (given != NULL && nr_str_to_u64(nr_str_from(given), &seed)) {
        walk_once(seed);
        return;
    }
    for (seed = 1; seed <= 40; seed++) {
        print_message("seed %" PRIu64 "\n", seed); /* the last one printed is the one that failed */
        walk_once(seed);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_lowest_slot_of_the_emptiest_lane),
        cmocka_unit_test(test_backlog_is_served_in_order),
        cmocka_unit_test(test_idle_times),
        cmocka_unit_test(test_random_walks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
