/* POST or PUT /v2/models/M/predict: a picture in, what the model's configuration declares out
 * (a picture, labels or a tensor). naru's own route; docs/predict.md describes it.
 *
 * DESIGN. A chain of steps, each either on the pool (decode, write tensors, stitch, encode) or on
 * the scheduler (one request of a few tiles), so that a large picture needs memory for the canvas,
 * the result and the tiles under way, never for all tiles:
 *
 *   body ─▶ [pool] prepare ─▶ submit ─▶ [pool] stitch, next tiles ─▶ submit ─▶ … ─▶ [pool] finish
 *
 * INVARIANTS
 *  1. p->step is the arena of the request under way and of nothing else; it is cleared between steps.
 *  2. Everything that holds memory beyond the arena is released by predict_done, which the
 *     exchange's arena calls, whatever way the call ended.
 */
#include <math.h>
#include <string.h>
#include <yyjson.h>

#include "api/call.h"
#include "api/state.h"
#include "api/v2.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "codec/base64.h"
#include "codec/element.h"
#include "codec/image.h"
#include "codec/image_tensor.h"
#include "codec/infer_json.h"
#include "codec/labels.h"
#include "codec/multipart.h"
#include "store/gallery.h"

#define TILES_PER_STEP 4
#define PIXELS_PER_STEP (1u << 20) /* what a step's run needs of memory grows with this */
#define ENCODED_MAX (256u << 20)   /* of a result picture; more than 50 Mpx of PNG noise */

typedef enum answer_kind {
    ANSWER_DECLARED,
    ANSWER_IMAGE,
    ANSWER_JSON,
    ANSWER_BYTES
} answer_kind;

struct predict {
    const struct nr_image_plan *plan;
    uint32_t input, output; /* indexes in the signature */
    struct nr_str picture;  /* bytes of the picture file; body or arena */
    enum nr_image_format in_format;
    answer_kind answer;
    enum nr_image_format out_format;
    bool keep; /* store in the gallery */
    struct nr_err keep_err;
    struct nr_image canvas;
    struct nr_image_job job;
    struct nr_image_stitch stitch;
    uint32_t next_tile, step_tiles; /* first tile of the step under way, and how many */
    struct nr_buf *tensor;
    struct nr_arena step;
    struct nr_infer_tensor step_input;
    struct nr_infer_output step_output;
    int64_t infer_ns;
    /* the answer */
    struct nr_str type, body;
    struct nr_text text;
    char id[NR_GALLERY_ID_MAX];
    bool finished;
    nr_status status;
};

static void predict_done(void *arg)
{
    struct predict *p = arg;
    nr_image_done(&p->canvas);
    nr_image_stitch_done(&p->stitch);
    nr_buf_unref(p->tensor);
    nr_text_done(&p->text);
    nr_arena_done(&p->step);
}

/* --- the plan --------------------------------------------------------------------------------- */

nr_status nr_predict_plan(const struct nr_version *v, const struct nr_image_plan **ret,
                          struct nr_err *err)
{
    if (v->picture == NULL) {
        return nr_fail(err, NARU_PRECONDITION, "%s", v->no_picture);
    }
    *ret = v->picture;
    return NARU_OK;
}

/* Plans name inputs and outputs of their own signature only. */
static uint32_t io_index(const struct nr_io_spec *specs, unsigned n, const char *name)
{
    uint32_t i = 0;
    while (i < n && !nr_str_is(specs[i].name, name)) {
        i++;
    }
    NR_ASSERT(i < n);
    return i;
}

/* --- what came -------------------------------------------------------------------------------- */

/* {"image": "<base64 or data URL>"} */
static nr_status picture_of_json(struct nr_call *c, struct nr_str *ret, struct nr_err *err)
{
    struct nr_str body = c->x->body;
    yyjson_doc *doc = yyjson_read(body.ptr, body.len, 0);
    yyjson_val *image = yyjson_obj_get(yyjson_doc_get_root(doc), "image");
    struct nr_str text = {yyjson_get_str(image), yyjson_get_len(image)}, payload, media;
    nr_status st = NARU_OK;
    if (doc == NULL || text.ptr == NULL) {
        st = nr_fail(
            err, NARU_INVALID,
            "a JSON body must be {\"image\": \"<base64>\"}; or send the picture's own bytes");
    } else {
        if (nr_base64_data_url(text, &payload, &media)) {
            text = payload;
        }
        size_t cap = nr_base64_decoded_max(text.len) + 1;
        struct nr_buf *buf = nr_buf_try_new(cap);
        size_t len = 0;
        st = buf == NULL ? nr_fail(err, NARU_NOMEM, "no memory for a picture of %zu bytes", cap)
                         : nr_base64_decode(text, nr_buf_data(buf), cap, &len, err);
        if (st == NARU_OK) {
            *ret = (struct nr_str){(const char *)nr_buf_data(buf), len};
            nr_arena_link(&c->x->arena, NR_TAKE(buf));
        }
        nr_buf_unref(buf);
    }
    yyjson_doc_free(doc);
    return st;
}

static nr_status picture_of_form(struct nr_call *c, struct nr_str *ret, struct nr_err *err)
{
    struct nr_str boundary;
    struct nr_multipart *m = nr_arena_new(&c->x->arena, struct nr_multipart);
    nr_status st = nr_multipart_boundary(c->x->known.content_type, &boundary, err);
    if (st == NARU_OK) {
        st = nr_multipart_parse(c->x->body, boundary, m, err);
    }
    if (st != NARU_OK) {
        return st;
    }
    const struct nr_multipart_part *file = nr_multipart_file(m);
    if (file == NULL) {
        return nr_fail(err, NARU_INVALID,
                       "the form has no file; add one, e.g. curl -F image=@photo.jpg");
    }
    *ret = file->data;
    return NARU_OK;
}

static bool type_is(struct nr_str type, struct nr_str want)
{
    struct nr_str rest;
    return nr_str_eq_nocase(nr_str_trim(nr_str_cut(type, ';', &rest)), want);
}

static nr_status find_picture(struct nr_call *c, struct predict *p, struct nr_err *err)
{
    struct nr_str type = c->x->known.content_type;
    nr_status st = NARU_OK;
    p->picture = c->x->body;
    /* What the first bytes say counts more than what the client says; curl -T says nothing. */
    if (nr_image_sniff(p->picture.ptr, p->picture.len) == NR_IMAGE_UNKNOWN) {
        if (type_is(type, NR_STR("multipart/form-data"))) {
            st = picture_of_form(c, &p->picture, err);
        } else if (type_is(type, NR_STR("application/json")) ||
                   (p->picture.len > 0 && p->picture.ptr[0] == '{')) {
            st = picture_of_json(c, &p->picture, err);
        }
    }
    if (st == NARU_OK && p->picture.len == 0) {
        st = nr_fail(err, NARU_INVALID,
                     "no picture came; send one as the body, e.g. curl -T photo.jpg");
    }
    p->in_format = nr_image_sniff(p->picture.ptr, p->picture.len);
    return st;
}

/* "q=0" among the parameters of a media range: not wanted. Other weights do not order anything
 * here, since the declared form is preferred anyway. */
static bool refused(struct nr_str params)
{
    while (params.ptr != NULL) {
        double q;
        struct nr_str value, one = nr_str_trim(nr_str_cut(params, ';', &params));
        struct nr_str name = nr_str_trim(nr_str_cut(one, '=', &value));
        if (nr_str_eq_nocase(name, NR_STR("q")) && value.ptr != NULL &&
            nr_str_to_double(nr_str_trim(value), &q) && q <= 0) {
            return true;
        }
    }
    return false;
}

bool nr_call_accepts(struct nr_str accept, const char *type)
{
    struct nr_str rest = accept, want = nr_str_from(type);
    size_t family = (size_t)nr_str_find(want, '/') + 1; /* "image/" */
    unsigned best = 0;
    bool yes = false;
    while (rest.ptr != NULL) {
        struct nr_str params, one = nr_str_cut(rest, ',', &rest);
        struct nr_str range = nr_str_trim(nr_str_cut(one, ';', &params));
        unsigned rank = nr_str_eq_nocase(range, want) ? 3
                        : range.len == family + 1 && range.ptr[family] == '*' &&
                                nr_str_eq_nocase((struct nr_str){range.ptr, family},
                                                 (struct nr_str){want.ptr, family})
                            ? 2
                        : nr_str_is(range, "*/*") ? 1
                                                  : 0;
        if (rank > best) {
            best = rank;
            yes = !refused(params);
        }
    }
    return yes;
}

/* The answer's form: the declared one unless Accept rules it out. */
static nr_status negotiate(struct nr_call *c, struct predict *p, struct nr_err *err)
{
    static const char *const media[] = {"image/png", "image/jpeg", "image/webp"};
    struct nr_str accept = c->x->known.accept;
    bool image = p->plan->output == NR_OUTPUT_IMAGE;
    const char *declared =
        image ? nr_image_format_media(p->plan->output_format) : "application/json";
    p->answer = ANSWER_DECLARED;
    p->out_format = p->plan->output_format;
    if (accept.len == 0 || nr_call_accepts(accept, declared)) {
        return NARU_OK;
    }
    for (unsigned i = 0; image && i < NR_COUNT(media); i++) {
        if (nr_call_accepts(accept, media[i]) &&
            nr_image_format_parse(nr_str_from(media[i]), &p->out_format)) {
            p->answer = ANSWER_IMAGE;
            return NARU_OK;
        }
    }
    if (nr_call_accepts(accept, "application/json")) {
        p->answer = ANSWER_JSON;
        return NARU_OK;
    }
    if (p->plan->output == NR_OUTPUT_TENSOR &&
        nr_call_accepts(accept, "application/octet-stream")) {
        p->answer = ANSWER_BYTES;
        return NARU_OK;
    }
    const char *answers = image ? "image/png, image/jpeg, image/webp or application/json"
                          : p->plan->output == NR_OUTPUT_TENSOR
                              ? "application/json or application/octet-stream"
                              : "application/json";
    return nr_fail(err, NARU_NOT_ACCEPTABLE,
                   "this model answers %s; Accept: " NR_STR_FMT " leaves none of them", answers,
                   NR_STR_ARG(accept));
}

/* --- steps ------------------------------------------------------------------------------------ */

static uint32_t tiles_per_step(const struct nr_call *c, const struct predict *p)
{
    int64_t most =
        p->plan->batches ? NR_MIN(c->runtime->signature->max_batch_size, TILES_PER_STEP) : 1;
    int64_t fit = PIXELS_PER_STEP / ((int64_t)p->job.tile_w * p->job.tile_h);
    return (uint32_t)NR_MAX(NR_MIN(most, fit), 1);
}

/* Pool: tensors of the next tiles. */
static nr_status write_tiles(struct nr_call *c, struct predict *p, struct nr_err *err)
{
    uint32_t most = tiles_per_step(c, p);
    p->step_tiles = NR_MIN(most, p->job.n_tiles - p->next_tile);
    if (p->tensor == NULL) {
        size_t bytes;
        uint32_t rows = NR_MIN(most, p->job.n_tiles);
        p->tensor = nr_mul(p->job.tile_bytes, rows, &bytes) ? nr_buf_try_new(bytes) : NULL;
        if (p->tensor == NULL) {
            return nr_fail(err, NARU_NOMEM,
                           "no memory for the picture's tensor now; try again later");
        }
    }
    for (uint32_t i = 0; i < p->step_tiles; i++) {
        nr_image_tile_write(&p->job, &p->canvas, p->next_tile + i,
                            nr_buf_data(p->tensor) + i * p->job.tile_bytes);
    }
    struct nr_infer_tensor *t = &p->step_input;
    *t = (struct nr_infer_tensor){.index = p->input,
                                  .dtype = p->plan->dtype,
                                  .rank = p->job.rank,
                                  .data = nr_buf_data(p->tensor),
                                  .bytes = p->job.tile_bytes * p->step_tiles,
                                  .buf = p->tensor};
    memcpy(t->shape, p->job.shape, p->job.rank * sizeof(t->shape[0]));
    if (p->plan->batches) {
        t->shape[0] = p->step_tiles;
    }
    p->step_output = (struct nr_infer_output){.index = p->output, .binary = true};
    c->in = (struct nr_infer_request){.rows = p->plan->batches ? p->step_tiles : 1,
                                      .inputs = t,
                                      .n_inputs = 1,
                                      .outputs = &p->step_output,
                                      .n_outputs = 1,
                                      .outputs_named = true};
    return NARU_OK;
}

static void prepare(struct nr_call *c)
{
    struct predict *p = c->data;
    struct nr_err *err = &c->err;
    struct nr_image_limits limits = NR_IMAGE_LIMITS_DEFAULT;
    struct nr_image picture = {0};
    limits.max_pixels = c->api->cfg.max_image_pixels;
    limits.max_side = c->api->cfg.max_image_side;
    nr_status st = find_picture(c, p, err);
    if (st == NARU_OK) {
        st =
            nr_image_decode(p->picture.ptr, p->picture.len, p->plan->color, &limits, &picture, err);
    }
    if (st == NARU_OK) {
        st = nr_image_job_init(p->plan, picture.width, picture.height, &p->job, err);
    }
    if (st == NARU_OK) {
        st = nr_image_fit(&p->job, &picture, &p->canvas, err);
    }
    nr_image_done(&picture);
    if (st == NARU_OK) {
        nr_image_stitch_init(&p->stitch, &p->job);
        st = write_tiles(c, p, err);
    }
    p->status = st;
}

static void respond_step(struct nr_call *c);

static void submit_step(struct nr_call *c)
{
    struct predict *p = c->data;
    if (p->status != NARU_OK) {
        c->err.status = p->status;
        nr_call_fail_err(c, &c->err);
        return;
    }
    nr_arena_clear(&p->step);
    c->completed = false;
    c->respond = respond_step;
    nr_call_submit_in(c, &p->step);
}

/* --- answers (pool) --------------------------------------------------------------------------- */

static nr_status finish_image(struct nr_call *c, struct predict *p, struct nr_err *err)
{
    struct nr_image result = {0};
    struct nr_image_encode_opts opts = {.format = p->out_format};
    nr_status st = nr_image_stitch_take(&p->stitch, &result, err);
    nr_text_init(&p->text, ENCODED_MAX);
    if (st == NARU_OK) {
        st = nr_image_encode(&result, &opts, &p->text, err);
    }
    nr_image_done(&result);
    if (st != NARU_OK) {
        return st;
    }
    p->type = nr_str_from(nr_image_format_media(p->out_format));
    p->body = (struct nr_str){p->text.data, p->text.len};
    if (p->keep) {
        struct nr_gallery_entry e = {
            .model = nr_str_from(c->version->name),
            .in_type = nr_str_from(nr_image_format_media(p->in_format)),
            .out_type = p->type,
            .in_bytes = p->picture.len,
            .out_bytes = p->body.len,
            .took_us = (uint32_t)NR_MIN(p->infer_ns / NR_US_NS, (int64_t)UINT32_MAX)};
        /* a gallery that cannot keep it is no reason to withhold the answer */
        if (nr_gallery_add(c->api->cfg.gallery, &e, p->picture, p->body, &p->keep_err) == NARU_OK) {
            memcpy(p->id, e.id, sizeof(p->id));
        }
    }
    return NARU_OK;
}

/* {"model_name": …, "image": {"type": media type, "data": base64}} around the encoded picture. */
static void image_to_json(struct nr_call *c, struct predict *p)
{
    struct nr_text t;
    nr_text_init(&t, 2 * (size_t)ENCODED_MAX);
    nr_text_fmt(&t,
                "{\"model_name\":\"%s\",\"model_version\":\"%lld\",\"image\":{\"type\":\"%s\","
                "\"data\":\"",
                c->version->name, (long long)c->version->number,
                nr_image_format_media(p->out_format));
    size_t len = nr_base64_encoded_len(p->body.len);
    if (nr_text_reserve(&t, len + 8)) {
        nr_base64_encode(p->body.ptr, p->body.len, t.data + t.len);
        t.len += len;
    }
    nr_text_str(&t, "\"}}");
    nr_text_done(&p->text);
    p->text = t;
    p->status = t.failed ? NARU_NOMEM : NARU_OK;
    p->type = NR_STR("application/json");
    p->body = (struct nr_str){t.data, t.len};
}

/* Whether all scores together are a distribution: then they are called probabilities. Models whose
 * last layer is no softmax answer scores of any size, which nobody should take for one. */
static bool are_probabilities(const struct nr_infer_tensor *t)
{
    size_t size = naru_dtype_bytes(t->dtype);
    double sum = 0;
    for (size_t at = 0; size > 0 && at < t->bytes; at += size) {
        float v;
        nr_elements_to_float(t->dtype, t->data + at, 1, &v);
        if (!(v >= -1e-3F && v <= 1.001F)) {
            return false;
        }
        sum += (double)v;
    }
    return sum > 0.99 && sum < 1.01;
}

/* {"model_name": …, "labels": [best first: {"label": name, "index": n, "probability" or "score"}]},
 * one label a line: people read this in a shell. */
static nr_status finish_labels(struct nr_call *c, struct predict *p, struct nr_err *err)
{
    const struct nr_infer_tensor *t = &c->outputs[0];
    const struct nr_labels *labels = &c->version->labels[p->output];
    struct nr_label_score *top = nr_arena_alloc(&c->x->arena, p->plan->top_k * sizeof(*top));
    uint32_t n;
    nr_status st =
        nr_labels_top(t->dtype, t->data, t->bytes, p->plan->softmax, p->plan->top_k, top, &n, err);
    if (st != NARU_OK) {
        return st;
    }
    const char *what = p->plan->softmax || are_probabilities(t) ? "probability" : "score";
    nr_text_init(&p->text, ENCODED_MAX);
    nr_text_fmt(&p->text, "{\"model_name\":\"%s\",\"model_version\":\"%lld\",\"labels\":[",
                c->version->name, (long long)c->version->number);
    for (uint32_t i = 0; i < n; i++) {
        struct nr_str name = nr_labels_get(labels, top[i].index);
        nr_text_str(&p->text, i > 0 ? ",\n  {\"label\":" : "\n  {\"label\":");
        nr_text_json(&p->text,
                     name.len > 0 ? name : nr_arena_fmt(&c->x->arena, "%u", top[i].index));
        nr_text_fmt(&p->text, ",\"index\":%u,\"%s\":", top[i].index, what);
        if (isfinite(top[i].score)) {
            nr_text_fmt(&p->text, "%.6g}", (double)top[i].score);
        } else {
            nr_text_str(&p->text, "null}"); /* JSON has no word for NaN */
        }
    }
    nr_text_str(&p->text, "\n]}\n");
    p->type = NR_STR("application/json");
    p->body = (struct nr_str){p->text.data, p->text.len};
    return p->text.failed ? nr_fail(err, NARU_NOMEM, "no memory for the labels") : NARU_OK;
}

static nr_status finish_tensor(struct nr_call *c, struct predict *p, struct nr_err *err)
{
    struct nr_infer_output how = {.index = p->output};
    struct nr_infer_response resp = {.model_name = nr_str_from(c->version->name),
                                     .model_version = nr_v2_version_text(c->version, &c->x->arena),
                                     .outputs = c->outputs,
                                     .how = &how,
                                     .n_outputs = 1};
    struct nr_infer_body body;
    nr_text_init(&p->text, SIZE_MAX / 4);
    if (p->answer == ANSWER_BYTES) {
        nr_text_add(&p->text, c->outputs[0].data, c->outputs[0].bytes);
        p->type = NR_STR("application/octet-stream");
    } else {
        nr_status st = nr_infer_json_encode(c->runtime->signature, &resp, &c->x->arena, &body, err);
        if (st != NARU_OK) {
            return st;
        }
        for (unsigned i = 0; i < body.n_parts; i++) {
            nr_text_add(&p->text, body.parts[i].ptr, body.parts[i].len);
        }
        p->type = NR_STR("application/json");
    }
    p->body = (struct nr_str){p->text.data, p->text.len};
    return p->text.failed ? nr_fail(err, NARU_NOMEM, "no memory for the answer") : NARU_OK;
}

/* Pool: outputs of the step into the result, then the next tiles or the answer. */
static void advance(struct nr_call *c)
{
    struct predict *p = c->data;
    struct nr_err *err = &c->err;
    const struct nr_infer_tensor *out = &c->outputs[0];
    nr_status st = NARU_OK;
    if (p->plan->output == NR_OUTPUT_IMAGE) {
        size_t bytes = out->bytes / p->step_tiles;
        int64_t shape[NARU_MAX_RANK];
        memcpy(shape, out->shape, out->rank * sizeof(shape[0]));
        if (p->plan->batches && out->rank > 0) {
            shape[0] = 1;
        }
        for (uint32_t i = 0; i < p->step_tiles && st == NARU_OK; i++) {
            st = nr_image_stitch_add(&p->stitch, p->next_tile + i, out->dtype, out->rank, shape,
                                     out->data + i * bytes, bytes, err);
        }
    } else if (p->job.n_tiles > 1) {
        st = nr_fail(err, NARU_INVALID, "naru.image.tile is for models that answer pictures");
    }
    p->next_tile += p->step_tiles;
    if (st == NARU_OK && p->next_tile < p->job.n_tiles) {
        st = write_tiles(c, p, err);
    } else if (st == NARU_OK) {
        st = p->plan->output == NR_OUTPUT_IMAGE    ? finish_image(c, p, err)
             : p->plan->output == NR_OUTPUT_LABELS ? finish_labels(c, p, err)
                                                   : finish_tensor(c, p, err);
        if (st == NARU_OK && p->plan->output == NR_OUTPUT_IMAGE && p->answer == ANSWER_JSON) {
            image_to_json(c, p);
            st = p->status;
        }
    }
    p->finished = st == NARU_OK && p->next_tile == p->job.n_tiles;
    p->status = st;
}

/* Loop: after advance. */
static void advanced(struct nr_call *c)
{
    struct predict *p = c->data;
    if (p->status == NARU_OK && !p->finished) {
        submit_step(c);
        return;
    }
    if (p->status != NARU_OK) {
        c->err.status = p->status;
        nr_call_fail_err(c, &c->err);
        return;
    }
    if (p->keep_err.status != NARU_OK) {
        nr_log(NR_LOG_WARN, "gallery", "a picture is not kept",
               NR_KV_TEXT("model", c->version->name), NR_KV_TEXT("reason", p->keep_err.text));
    }
    struct nr_header headers[] = {
        {NR_STR("server-timing"),
         nr_arena_fmt(&c->x->arena, "infer;dur=%.2f", (double)p->infer_ns / 1e6)},
        {NR_STR("naru-gallery-id"), nr_str_from(p->id)},
    };
    struct nr_iov part = {p->body.ptr, p->body.len};
    struct nr_response r = {.status = 200,
                            .content_type = p->type,
                            .body = &part,
                            .n_body = p->body.len > 0,
                            .headers = headers,
                            .n_headers = p->id[0] != '\0' ? 2 : 1};
    nr_exchange_respond(c->x, &r);
}

static void respond_step(struct nr_call *c)
{
    struct predict *p = c->data;
    if (c->request.n_outputs == 0) { /* only a decoupled model can do that */
        nr_call_fail(c, NARU_INTERNAL, NR_STR("the model gave no answer to this picture"), 0);
        return;
    }
    p->infer_ns += c->request.infer_end_ns - c->request.begin_ns;
    nr_call_offload(c, advance, advanced);
}

/* "keep=1" in the query: the page asks for it. A form on another site's page may not. */
static bool wants_keep(const struct nr_call *c)
{
    struct nr_str rest = c->x->query;
    bool asked = false;
    while (rest.ptr != NULL) {
        asked = nr_str_is(nr_str_cut(rest, '&', &rest), "keep=1") || asked;
    }
    return asked && c->api->cfg.gallery != NULL &&
           !nr_str_is(c->x->known.sec_fetch_site, "cross-site");
}

static void handle_predict(struct nr_call *c)
{
    struct nr_err err = {0};
    struct predict *p = nr_arena_new(&c->x->arena, struct predict);
    if (nr_call_refuse_encoding(c)) {
        return;
    }
    nr_status st = nr_call_lookup(c, c->model_name, c->version_text, &err);
    if (st == NARU_OK) {
        st = nr_predict_plan(c->version, &p->plan, &err);
    }
    if (st == NARU_OK) {
        const struct nr_signature *sig = c->runtime->signature;
        p->input = io_index(sig->inputs, sig->n_inputs, p->plan->input);
        p->output = io_index(sig->outputs, sig->n_outputs, p->plan->output_tensor);
        st = negotiate(c, p, &err);
    }
    if (st != NARU_OK) {
        nr_call_fail_err(c, &err);
        return;
    }
    nr_arena_init(&p->step, 0);
    nr_arena_defer(&c->x->arena, predict_done, p);
    p->keep = wants_keep(c) && p->plan->output == NR_OUTPUT_IMAGE;
    c->data = p;
    nr_call_offload(c, prepare, submit_step);
}

#define SEND ((1u << NR_POST) | (1u << NR_PUT))

const struct nr_route nr_routes_predict[] = {
    {"/v2/models/{model}/predict", SEND, NR_SCOPE_INFER, NR_ROUTE_HTTP, false, handle_predict,
     "predict"},
    {"/v2/models/{model}/versions/{version}/predict", SEND, NR_SCOPE_INFER, NR_ROUTE_HTTP, false,
     handle_predict, "predict"},
    {0},
};
