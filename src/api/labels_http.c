/* Labels of versions over HTTP (scope control): /v2/repository/models/M/labels.
 *
 *   GET   {"labels":{"stable":{"version":"3","weight":95,"requests":190, "shadow_percent":0, …}}}
 *   POST  {"labels":{"stable":"4","canary":null},"traffic":{"stable":95,"canary":5},
 *          "shadow":{"next":10}}
 *         all of it at once or none; null removes a label; "traffic" replaces every weight, "shadow"
 *         says which label has copies of how many percent of the requests; null clears either.
 *         Answers as GET.
 *   POST  …/labels/rollback   the labels as they were before the last change
 */
#include <string.h>
#include <yyjson.h>

#include "api/call.h"
#include "api/state.h"
#include "base/mem.h"

#define LABELS_TEXT_MAX (64u << 10)

static void answer(struct nr_call *c)
{
    struct nr_traffic t;
    struct nr_label_counts counts[NR_TRAFFIC_MAX_LABELS];
    struct nr_err err = {0};
    struct nr_text out;
    if (nr_repository_labels_get(c->api->cfg.repository, c->model_name, &t, counts, &err) !=
        NARU_OK) {
        nr_call_fail_err(c, &err);
        return;
    }
    nr_text_init(&out, LABELS_TEXT_MAX);
    nr_text_str(&out, "{\"labels\":{");
    for (uint32_t i = 0; i < t.n; i++) { /* names of labels need no escapes */
        const uint64_t *e = counts[i].events;
        nr_text_fmt(&out,
                    "%s\"%s\":{\"version\":\"%lld\",\"weight\":%u,\"requests\":%llu,"
                    "\"shadow_percent\":%u,\"shadows\":%llu,\"shadow_failed\":%llu,"
                    "\"shadow_skipped\":%llu}",
                    i > 0 ? "," : "", t.rules[i].name, (long long)t.rules[i].version,
                    t.rules[i].weight, (unsigned long long)e[NR_LABEL_REQUESTS], t.rules[i].shadow,
                    (unsigned long long)e[NR_LABEL_SHADOWS],
                    (unsigned long long)e[NR_LABEL_SHADOW_FAILED],
                    (unsigned long long)e[NR_LABEL_SHADOW_SKIPPED]);
    }
    nr_text_str(&out, "}}");
    nr_call_json(c, 200, &out);
}

static nr_status read_move(yyjson_val *key, yyjson_val *value, struct nr_label_edit *e,
                           struct nr_err *err)
{
    uint64_t version = 0;
    e->label = (struct nr_str){yyjson_get_str(key), yyjson_get_len(key)};
    e->what = yyjson_is_null(value) ? NR_LABEL_REMOVE : NR_LABEL_MOVE;
    if (yyjson_is_str(value)) {
        struct nr_str text = {yyjson_get_str(value), yyjson_get_len(value)};
        if (!nr_str_to_u64(text, &version)) {
            version = 0;
        }
    } else if (yyjson_is_uint(value)) {
        version = yyjson_get_uint(value);
    }
    e->version = (int64_t)version;
    if (e->what == NR_LABEL_MOVE && (version == 0 || version > INT64_MAX)) {
        return nr_fail(
            err, NARU_INVALID,
            "labels: \"%.64s\" must be a version like \"3\", or null to remove the label",
            e->label.ptr);
    }
    return NARU_OK;
}

static nr_status read_weight(yyjson_val *key, yyjson_val *value, struct nr_label_edit *e,
                             struct nr_err *err)
{
    e->label = (struct nr_str){yyjson_get_str(key), yyjson_get_len(key)};
    e->what = NR_LABEL_WEIGHT;
    if (!yyjson_is_uint(value) || yyjson_get_uint(value) > NR_TRAFFIC_MAX_WEIGHT) {
        return nr_fail(err, NARU_INVALID, "traffic: \"%.64s\" must be a whole number from 0 to %d",
                       e->label.ptr, NR_TRAFFIC_MAX_WEIGHT);
    }
    e->weight = (uint32_t)yyjson_get_uint(value);
    return NARU_OK;
}

static nr_status read_shadow(yyjson_val *key, yyjson_val *value, struct nr_label_edit *e,
                             struct nr_err *err)
{
    e->label = (struct nr_str){yyjson_get_str(key), yyjson_get_len(key)};
    e->what = NR_LABEL_SHADOW;
    if (!yyjson_is_uint(value) || yyjson_get_uint(value) > 100) {
        return nr_fail(err, NARU_INVALID, "shadow: \"%.64s\" must be a percentage from 0 to 100",
                       e->label.ptr);
    }
    e->weight = (uint32_t)yyjson_get_uint(value);
    return NARU_OK;
}

struct edits {
    struct nr_label_edit all[6 * NR_TRAFFIC_MAX_LABELS];
    size_t n;
    bool clear_weights, clear_shadow;
};

static nr_status read_object(yyjson_val *object, const char *what,
                             nr_status (*read)(yyjson_val *, yyjson_val *, struct nr_label_edit *,
                                               struct nr_err *),
                             struct edits *e, struct nr_err *err)
{
    size_t i, n;
    yyjson_val *key, *value;
    nr_status st = NARU_OK;
    if (object != NULL && !yyjson_is_obj(object)) {
        return nr_fail(err, NARU_INVALID, "'%s' must be an object", what);
    }
    if (yyjson_obj_size(object) > 2 * (size_t)NR_TRAFFIC_MAX_LABELS) {
        return nr_fail(err, NARU_INVALID, "'%s' has %zu entries, a model has %d labels at most",
                       what, yyjson_obj_size(object), NR_TRAFFIC_MAX_LABELS);
    }
    yyjson_obj_foreach(object, i, n, key, value)
    {
        st = st == NARU_OK ? read(key, value, &e->all[e->n++], err) : st;
    }
    return st;
}

static nr_status read_body(yyjson_val *root, struct edits *e, struct nr_err *err)
{
    yyjson_val *labels = yyjson_obj_get(root, "labels"), *traffic = yyjson_obj_get(root, "traffic");
    yyjson_val *shadow = yyjson_obj_get(root, "shadow");
    if (!yyjson_is_obj(root) || yyjson_obj_size(root) != (size_t)(labels != NULL) +
                                                             (size_t)(traffic != NULL) +
                                                             (size_t)(shadow != NULL)) {
        return nr_fail(
            err, NARU_INVALID,
            "the body must be a JSON object with 'labels', 'traffic' and 'shadow' only, like "
            "{\"labels\": {\"stable\": \"3\"}, \"traffic\": {\"stable\": 100}}");
    }
    nr_status st = read_object(labels, "labels", read_move, e, err);
    e->clear_weights = traffic != NULL;
    if (st == NARU_OK && traffic != NULL && !yyjson_is_null(traffic)) {
        st = read_object(traffic, "traffic", read_weight, e, err);
    }
    e->clear_shadow = shadow != NULL;
    if (st == NARU_OK && shadow != NULL && !yyjson_is_null(shadow)) {
        st = read_object(shadow, "shadow", read_shadow, e, err);
    }
    return st;
}

static void handle_set(struct nr_call *c)
{
    struct nr_err err = {0};
    struct edits e = {.n = 0};
    yyjson_read_err why;
    struct nr_str body = c->x->body;
    if (nr_call_refuse_encoding(c)) {
        return;
    }
    yyjson_doc *doc = yyjson_read_opts((char *)(uintptr_t)body.ptr, body.len, 0, NULL, &why);
    nr_status st = doc == NULL ? nr_fail(&err, NARU_INVALID, "the body is no JSON: %s at byte %zu",
                                         why.msg, why.pos)
                               : read_body(yyjson_doc_get_root(doc), &e, &err);
    if (st == NARU_OK) {
        st = nr_repository_labels_edit(c->api->cfg.repository, c->model_name, e.all, e.n,
                                       e.clear_weights, e.clear_shadow, &err);
    }
    yyjson_doc_free(doc);
    if (st != NARU_OK) {
        nr_call_fail_err(c, &err);
        return;
    }
    answer(c);
}

static void handle_rollback(struct nr_call *c)
{
    struct nr_err err = {0};
    if (nr_repository_labels_rollback(c->api->cfg.repository, c->model_name, &err) != NARU_OK) {
        nr_call_fail_err(c, &err);
        return;
    }
    answer(c);
}

const struct nr_route nr_routes_labels[] = {
    {"/v2/repository/models/{model}/labels", 1u << NR_GET, NR_SCOPE_CONTROL, false, false, answer,
     "labels"},
    {"/v2/repository/models/{model}/labels", 1u << NR_POST, NR_SCOPE_CONTROL, false, false,
     handle_set, "labels_set"},
    {"/v2/repository/models/{model}/labels/rollback", 1u << NR_POST, NR_SCOPE_CONTROL, false, false,
     handle_rollback, "labels_rollback"},
    {0},
};
