/* The map: many keys, removals, order, a reference for SipHash-1-3, lists. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/list.h"
#include "base/map.h"
#include "base/mem.h"

/* CPython 3.11 hashes bytes with SipHash-1-3 and, with PYTHONHASHSEED=0, the key 0; the last is
 * the empty message under the key 00 01 … 0f of the SipHash paper. */
static void test_siphash(void **state)
{
    (void)state;
    static const uint64_t zero[2];
    assert_true(nr_hash_keyed(zero, "a", 1) == UINT64_C(0x407448d2b89b1813));
    assert_true(nr_hash_keyed(zero, "abcdefg", 7) == UINT64_C(0x6db12aae9070f506));
    assert_true(nr_hash_keyed(zero, "abcdefgh", 8) == UINT64_C(0x3f7b849c0b8e35ea));
    assert_true(nr_hash_keyed(zero, "naru serves models over HTTP/2", 30) ==
                UINT64_C(0x401ac64b99d2724e));
    static const uint64_t paper[2] = {UINT64_C(0x0706050403020100), UINT64_C(0x0f0e0d0c0b0a0908)};
    assert_true(nr_hash_keyed(paper, "", 0) == UINT64_C(0xabac0158050fc4dc));
    assert_true(nr_hash("x", 1) == nr_hash("x", 1));
    assert_true(nr_hash("x", 1) != nr_hash_keyed(zero, "x", 1)); /* a key was drawn */
}

static struct nr_str key_of(char out[32], unsigned i)
{
    return (struct nr_str){out, (size_t)snprintf(out, 32, "key-%u", i)};
}

#define N_KEYS 20000

static void test_many_keys(void **state)
{
    (void)state;
    struct nr_map m;
    nr_map_init(&m);
    char text[32];
    static char present[N_KEYS];
    assert_null(nr_map_get(&m, NR_STR("x")));
    assert_null(nr_map_remove(&m, NR_STR("x")));
    /* A model of it: puts, replacements and removals in a random walk. */
    srand(1);
    size_t live = 0;
    for (int step = 0; step < 200000; step++) {
        unsigned i = (unsigned)rand() % N_KEYS;
        struct nr_str key = key_of(text, i);
        void *want = present[i] ? &present[i] : NULL;
        assert_ptr_equal(nr_map_get(&m, key), want);
        if (rand() % 3 != 0) {
            assert_ptr_equal(nr_map_put(&m, key, &present[i]), want);
            live += want == NULL;
            present[i] = 1;
        } else {
            assert_ptr_equal(nr_map_remove(&m, key), want);
            live -= want != NULL;
            present[i] = 0;
        }
        assert_int_equal(m.n_live, live);
        assert_true(m.n_slots == 2 * m.capacity && m.n_entries <= m.capacity);
    }
    size_t seen = 0;
    NR_MAP_FOREACH (e, &m) {
        const char *flag = e->value;
        assert_int_equal(*flag, 1);
        assert_int_equal(e->key.ptr[e->key.len], '\0');
        seen++;
    }
    assert_int_equal(seen, live);
    /* Removing while walking is allowed. */
    NR_MAP_FOREACH (e, &m) {
        nr_map_remove(&m, e->key);
    }
    assert_int_equal(m.n_live, 0);
    assert_null(nr_map_get(&m, key_of(text, 1)));
    nr_map_put(&m, NR_STR("again"), text);
    assert_ptr_equal(nr_map_get(&m, NR_STR("again")), text);
    nr_map_done(&m);
    nr_map_put(&m, NR_STR("usable"), text);
    nr_map_done(&m);
}

/* Put and remove of one key for ever: the arrays stay small and every probe ends. */
static void test_churn_does_not_grow(void **state)
{
    (void)state;
    struct nr_map m;
    nr_map_init(&m);
    char text[32];
    for (unsigned i = 0; i < 100000; i++) {
        struct nr_str key = key_of(text, i);
        nr_map_put(&m, key, text);
        assert_ptr_equal(nr_map_remove(&m, key), text);
    }
    assert_int_equal(m.n_live, 0);
    assert_true(m.capacity <= 8);
    nr_map_done(&m);
}

static void test_order_of_insertion(void **state)
{
    (void)state;
    struct nr_map m;
    nr_map_init(&m);
    char text[32];
    static int values[100];
    for (unsigned i = 0; i < 100; i++) {
        nr_map_put(&m, key_of(text, i), &values[i]);
    }
    for (unsigned i = 0; i < 100; i += 2) {
        nr_map_remove(&m, key_of(text, i));
    }
    nr_map_put(&m, key_of(text, 51), &values[0]); /* replaced: keeps its place */
    nr_map_put(&m, key_of(text, 0), &values[0]);  /* removed and put: at the end */
    unsigned at = 1;
    NR_MAP_FOREACH (e, &m) {
        assert_true(nr_str_eq(e->key, key_of(text, at == 101 ? 0 : at)));
        at += 2;
    }
    assert_int_equal(at, 103);
    nr_map_done(&m);
    NR_MAP_FOREACH (e, &m) {
        fail(); /* empty */
    }
}

static void test_odd_keys(void **state)
{
    (void)state;
    struct nr_map m;
    nr_map_init(&m);
    static int values[4];
    assert_null(nr_map_put(&m, (struct nr_str){NULL, 0}, &values[0]));
    assert_ptr_equal(nr_map_put(&m, NR_STR(""), &values[1]), &values[0]); /* the same key */
    nr_map_put(&m, NR_STR("\0"), &values[2]);
    nr_map_put(&m, NR_STR("\0\0"), &values[3]);
    assert_ptr_equal(nr_map_get(&m, NR_STR("")), &values[1]);
    assert_ptr_equal(nr_map_get(&m, NR_STR("\0")), &values[2]);
    assert_ptr_equal(nr_map_get(&m, NR_STR("\0\0")), &values[3]);
    assert_ptr_equal(nr_map_remove(&m, NR_STR("")), &values[1]);
    assert_null(nr_map_get(&m, NR_STR("")));
    char changing[] = "changing";
    nr_map_put(&m, nr_str_from(changing), &values[0]); /* keys are copied */
    changing[0] = 'C';
    assert_ptr_equal(nr_map_get(&m, NR_STR("changing")), &values[0]);
    nr_map_done(&m);
}

struct item {
    int n;
    struct nr_list node;
};

static void test_list(void **state)
{
    (void)state;
    struct nr_list a;
    struct nr_list b;
    struct item items[6];
    nr_list_init(&a);
    nr_list_init(&b);
    assert_null(nr_list_pop(&a));
    for (int i = 0; i < 6; i++) {
        items[i].n = i;
        nr_list_append(i < 3 ? &a : &b, &items[i].node);
    }
    nr_list_splice(&a, &b);
    assert_true(nr_list_empty(&b));
    nr_list_splice(&a, &b); /* empty: nothing happens */
    int want = 0;
    NR_LIST_FOREACH_SAFE (node, tmp, &a) {
        struct item *it = nr_container_of(node, struct item, node);
        assert_int_equal(it->n, want++);
        if (it->n % 2 == 0) {
            nr_list_remove(node);
            nr_list_remove(node); /* harmless on a node in no list */
        }
    }
    nr_list_insert_before(&items[3].node, &items[0].node);
    static const int order[] = {1, 0, 3, 5};
    size_t at = 0;
    NR_LIST_FOREACH (node, &a) {
        assert_int_equal(nr_container_of(node, struct item, node)->n, order[at++]);
    }
    assert_int_equal(at, 4);
    for (at = 0; at < 4; at++) {
        struct nr_list *node = nr_list_pop(&a);
        assert_int_equal(nr_container_of(node, struct item, node)->n, order[at]);
    }
    assert_true(nr_list_empty(&a));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_siphash),
        cmocka_unit_test(test_many_keys),
        cmocka_unit_test(test_churn_does_not_grow),
        cmocka_unit_test(test_order_of_insertion),
        cmocka_unit_test(test_odd_keys),
        cmocka_unit_test(test_list),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
