/* Ensembles: every rule of the configuration and of the members' signatures with its text, the order
 * of steps, naru's own kinds and their parameters. */
#include "model/ensemble.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "model/config.h"
#include "model/stepkind.h"

#define IN "input { name: 'in' data_type: TYPE_FP32 dims: 4 } "
#define OUT "output { name: 'out' data_type: TYPE_FP32 dims: 4 } "
#define HEAD "platform: 'ensemble' max_batch_size: 8 " IN OUT
#define STEP(model, from, to)                                                             \
    "step { model_name: '" model "' model_version: -1 input_map { key: 'x' value: '" from \
    "' } output_map { key: 'y' value: '" to "' } } "
#define ONE HEAD "ensemble_scheduling { " STEP("m", "in", "out") "} "

static nr_status parse(const char *text, struct nr_model_config **ret, struct nr_err *err)
{
    *ret = NULL;
    return nr_config_parse("e", text, strlen(text), "config.pbtxt", ret, err);
}

static struct nr_model_config *complete(const char *text)
{
    struct nr_err err = {0};
    struct nr_model_config *c;
    const struct nr_config_opts opts = {0};
    if (parse(text, &c, &err) != NARU_OK || nr_config_complete(c, NULL, &opts, &err) != NARU_OK) {
        fail_msg("%s: %s", text, err.text);
    }
    return c;
}

/* --- the configuration alone ------------------------------------------------------------------ */

static void refused_by_text(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
        nr_status st;
    } cases[] = {
        {"platform: 'ensemble'", "needs ensemble_scheduling", NARU_INVALID},
        {"ensemble_scheduling { }", "needs platform: \"ensemble\"", NARU_INVALID},
        {"platform: 'onnxruntime_onnx' ensemble_scheduling { }", "needs platform: \"ensemble\"",
         NARU_INVALID},
        {ONE "backend: 'onnxruntime'", "an ensemble has no backend", NARU_INVALID},
        {ONE "instance_group { }", "an ensemble has no instance_group", NARU_INVALID},
        {ONE "optimization { }", "an ensemble has no optimization", NARU_INVALID},
        {ONE "model_warmup { name: 'w' }", "an ensemble has no model_warmup", NARU_INVALID},
        {ONE "default_model_filename: 'm'", "an ensemble has no default_model_filename",
         NARU_INVALID},
        {HEAD "ensemble_scheduling { }", "ensemble_scheduling has no step", NARU_INVALID},
        {"platform: 'ensemble' " OUT "ensemble_scheduling { " STEP("m", "in", "out") "}",
         "an ensemble lists its inputs", NARU_INVALID},
        {"platform: 'ensemble' " IN "ensemble_scheduling { " STEP("m", "in", "out") "}",
         "an ensemble lists its outputs", NARU_INVALID},
        {"platform: 'ensemble' max_batch_size: 8 input { name: 'in' data_type: TYPE_FP32 dims: 4 "
         "reshape { shape: [ 2, 2 ] } } " OUT "ensemble_scheduling { " STEP("m", "in", "out") "}",
         "input \"in\": an ensemble cannot reshape", NARU_INVALID},
        {HEAD "ensemble_scheduling { step { input_map { key: 'x' value: 'in' } } }",
         "step 0 has no model_name", NARU_INVALID},
        {HEAD
         "ensemble_scheduling { step { model_name: 'm' output_map { key: 'y' value: 'out' } } }",
         "step 0 (model \"m\") has no input_map", NARU_INVALID},
        {HEAD "ensemble_scheduling { step { model_name: 'm' input_map { key: 'x' value: 'in' } } }",
         "step 0 (model \"m\") has no output_map", NARU_INVALID},
        {HEAD "ensemble_scheduling { step { model_name: 'm' model_version: -2 input_map { key: 'x' "
              "value: 'in' } output_map { key: 'y' value: 'out' } } }",
         "model_version is -2", NARU_INVALID},
        {HEAD "ensemble_scheduling { step { model_name: 'm' model_namespace: 'n' input_map { key: "
              "'x' value: 'in' } output_map { key: 'y' value: 'out' } } }",
         "model_namespace is not served", NARU_UNSUPPORTED},
        {HEAD "ensemble_scheduling { step { model_name: 'm' input_map { key: 'x' value: '' } "
              "output_map { key: 'y' value: 'out' } } }",
         "input_map has an empty name", NARU_INVALID},
        {HEAD "ensemble_scheduling { " STEP("a", "in", "out") STEP("b", "in", "out") "}",
         "step 1 (model \"b\") writes tensor \"out\", which step 0 writes already", NARU_INVALID},
        {HEAD "ensemble_scheduling { " STEP("a", "in", "in") "}",
         "writes tensor \"in\", which is an input of the ensemble", NARU_INVALID},
        {HEAD "ensemble_scheduling { " STEP("a", "nowhere", "out") "}",
         "step 0 (model \"a\") reads tensor \"nowhere\", which is no input", NARU_INVALID},
        {HEAD "ensemble_scheduling { " STEP("a", "in", "other") "}",
         "output \"out\" of the ensemble is written by no step", NARU_INVALID},
        {"platform: 'ensemble' " IN "output { name: 'in' data_type: TYPE_FP32 dims: 4 } "
         "ensemble_scheduling { " STEP("a", "in", "b") "}",
         "output \"in\" of the ensemble is written by no step, it is an input", NARU_INVALID},
        {HEAD "input { name: 'more' data_type: TYPE_FP32 dims: 4 } "
              "ensemble_scheduling { " STEP("a", "in", "out") "}",
         "input \"more\" of the ensemble is used by no step", NARU_INVALID},
        {HEAD "ensemble_scheduling { " STEP("a", "in", "out") STEP("b", "in", "lost") "}",
         "tensor \"lost\", which step 1 writes, is used by no step and is no output", NARU_INVALID},
        {HEAD
         "ensemble_scheduling { step { model_name: 'a' input_map [ { key: 'x' value: 'in' }, { "
         "key: 'z' value: 'c' } ] output_map { key: 'y' value: 'b' } } " STEP("b", "b", "c")
             STEP("d", "b", "out") "}",
         "the steps wait for each other in a circle: step 0 → 1 → 0", NARU_INVALID},
        {ONE "parameters { key: 'naru.step.0.size' value { string_value: '1x1' } }",
         "there is no such step of naru's own", NARU_INVALID},
        {ONE "parameters { key: 'naru.step.9.size' value { string_value: '1x1' } }",
         "there is no such step of naru's own", NARU_INVALID},
        {HEAD "ensemble_scheduling { " STEP("naru.magic", "in", "out") "}",
         "\"naru.magic\" is none of naru's own steps", NARU_INVALID},
        {HEAD "ensemble_scheduling { " STEP("naru.either", "in", "out") "}",
         "has no input \"x\"; it reads FIRST, SECOND", NARU_INVALID},
        {HEAD "ensemble_scheduling { step { model_name: 'naru.either' input_map { key: 'FIRST' "
              "value: 'in' } output_map { key: 'OUTPUT' value: 'out' } } }",
         "gets 1 inputs, it reads 2", NARU_INVALID},
        {HEAD "ensemble_scheduling { step { model_name: 'naru.split' input_map { key: 'INPUT' "
              "value: 'in' } output_map { key: 'OUTPUT1' value: 'out' } } }",
         "has no output \"OUTPUT1\"", NARU_INVALID},
    };
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        struct nr_model_config *c;
        struct nr_err err = {0};
        nr_status st = parse(cases[i].text, &c, &err);
        if (st != cases[i].st || strstr(err.text, cases[i].says) == NULL) {
            fail_msg("%s\n  gave %d \"%s\"\n  not %d \"%s\"", cases[i].text, st, err.text,
                     cases[i].st, cases[i].says);
        }
    }
}

static void too_many_steps(void **state)
{
    (void)state;
    struct nr_text t;
    struct nr_model_config *c;
    struct nr_err err = {0};
    nr_text_init(&t, 1u << 20);
    nr_text_str(&t, HEAD "ensemble_scheduling { ");
    for (int i = 0; i <= NR_ENSEMBLE_MAX_STEPS; i++) {
        nr_text_fmt(&t,
                    "step { model_name: 'm' input_map { key: 'x' value: 'in' } output_map { key: "
                    "'y' value: 't%d' } } ",
                    i);
    }
    nr_text_str(&t, "}");
    assert_int_equal(parse(t.data, &c, &err), NARU_TOO_LARGE);
    assert_non_null(strstr(err.text, "257 steps, at most 256"));
    nr_text_done(&t);
}

/* The order puts writers first, whatever the file says; readers are counted. */
static void order_of_steps(void **state)
{
    (void)state;
    struct nr_model_config *c =
        complete(HEAD "ensemble_scheduling { " STEP("last", "c", "out") STEP("b", "a", "c")
                     STEP("first", "in", "a") " max_inflight_requests: 4 }");
    const struct nr_ensemble *e = c->ensemble;
    assert_int_equal(e->n_steps, 3);
    assert_int_equal(e->order[0], 2);
    assert_int_equal(e->order[1], 1);
    assert_int_equal(e->order[2], 0);
    assert_int_equal(e->tensors[0].step, -1);
    assert_int_equal(e->tensors[0].n_reads, 1);
    assert_int_equal(e->tensors[0].readers[0], 2);
    assert_string_equal(e->tensors[e->outputs[0]].name, "out");
    assert_int_equal(e->steps[0].version, -1);
    /* reported as Triton does: nothing of instances or optimization is filled in */
    assert_int_equal(c->pb->n_instance_group, 0);
    assert_null(c->pb->optimization);
    nr_config_free(c);
}

/* --- against members -------------------------------------------------------------------------- */

#define IO(kind, name, type, dims) \
    kind " { name: '" name "' data_type: TYPE_" type " dims: " dims " } "
#define MODEL(batch) "backend: 'b' max_batch_size: " batch " "
#define XY(batch) MODEL(batch) IO("input", "x", "FP32", "4") IO("output", "y", "FP32", "4")

/* Binds text's ensemble with the same model behind each of its steps. */
static nr_status bind(const char *text, const char *model, struct nr_err *err)
{
    struct nr_model_config *c = complete(text), *m = complete(model);
    struct nr_arena a;
    struct nr_member members[8] = {{0}};
    nr_arena_init(&a, 0);
    assert_true(c->ensemble->n_steps <= 8);
    for (uint32_t i = 0; i < c->ensemble->n_steps; i++) {
        members[i].sig = &m->sig;
    }
    nr_status st = nr_ensemble_bind(c, &a, members, err);
    nr_arena_done(&a);
    nr_config_free(c);
    nr_config_free(m);
    return st;
}

static void members_fit(void **state)
{
    (void)state;
    static const struct {
        const char *text, *model, *says; /* says NULL: it fits */
    } cases[] = {
        {ONE, XY("8"), NULL},
        {ONE, XY("64"), NULL},
        {ONE, XY("4"),
         "step 0 (model \"m\") takes at most 4 rows (max_batch_size 4), the ensemble "
         "allows 8"},
        {ONE, XY("0"), "takes at most 1 rows (max_batch_size 0)"},
        {ONE, MODEL("8") IO("input", "x", "FP32", "-1") IO("output", "y", "FP32", "-1"), NULL},
        {ONE, MODEL("8") IO("input", "z", "FP32", "4") IO("output", "y", "FP32", "4"),
         "step 0 (model \"m\") has no input \"x\"; the model's inputs: z"},
        {ONE, MODEL("8") IO("input", "x", "FP32", "4") IO("output", "z", "FP32", "4"),
         "step 0 (model \"m\") has no output \"y\"; the model's outputs: z"},
        {ONE, XY("8") IO("input", "w", "FP32", "4"),
         "step 0 (model \"m\"): input \"w\" of the model is not in input_map"},
        {ONE, XY("8") "input { name: 'w' data_type: TYPE_FP32 dims: 4 optional: true }", NULL},
        {ONE, MODEL("8") IO("input", "x", "INT32", "4") IO("output", "y", "FP32", "4"),
         "input \"x\" is INT32 [-1,4], but tensor \"in\" is FP32 [-1,4] (the ensemble's input)"},
        {ONE, MODEL("8") IO("input", "x", "FP32", "5") IO("output", "y", "FP32", "4"),
         "input \"x\" is FP32 [-1,5], but tensor \"in\" is FP32 [-1,4]"},
        {ONE, MODEL("8") IO("input", "x", "FP32", "[4,1]") IO("output", "y", "FP32", "4"),
         "input \"x\" is FP32 [-1,4,1]"},
        {ONE, MODEL("8") IO("input", "x", "FP32", "4") IO("output", "y", "FP16", "4"),
         "output \"out\" of the ensemble is configured as FP32 [-1,4], but step 0 (model \"m\") "
         "writes FP16 [-1,4]"},
        {ONE, MODEL("8") IO("input", "x", "FP32", "4") IO("output", "y", "FP32", "3"),
         "writes FP32 [-1,3]"},
        /* step to step */
        {HEAD "ensemble_scheduling { " STEP("a", "in", "t") STEP("b", "t", "out") "}",
         MODEL("8") IO("input", "x", "FP32", "4") IO("output", "y", "FP32", "5"),
         "step 1 (model \"b\"): input \"x\" is FP32 [-1,4], but tensor \"t\" is FP32 [-1,5] (step "
         "0 "
         "writes it as)"},
        /* an ensemble without batches and a model with: the batch dimension is written out */
        {"platform: 'ensemble' " IO("input", "in", "FP32", "[-1,4]") IO(
             "output", "out", "FP32", "[2,4]") "ensemble_scheduling { " STEP("m", "in", "out") "}",
         XY("8"), NULL},
        {"platform: 'ensemble' " IN OUT "ensemble_scheduling { " STEP("m", "in", "out") "}",
         XY("8"), "input \"x\" is FP32 [-1,4], but tensor \"in\" is FP32 [4]"},
        /* an ensemble of batches of one, and a model without */
        {"platform: 'ensemble' max_batch_size: 1 " IN OUT
         "ensemble_scheduling { " STEP("m", "in", "out") "}",
         MODEL("0") IO("input", "x", "FP32", "[1,4]") IO("output", "y", "FP32", "[1,4]"), NULL},
        {"platform: 'ensemble' max_batch_size: 8 input { name: 'in' data_type: TYPE_FP32 dims: 4 "
         "optional: true } " OUT "ensemble_scheduling { " STEP("m", "in", "out") "}",
         XY("8"), "must have input \"x\", but the ensemble's input \"in\" is optional"},
    };
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        struct nr_err err = {0};
        nr_status st = bind(cases[i].text, cases[i].model, &err);
        bool right = cases[i].says == NULL
                         ? st == NARU_OK
                         : st == NARU_INVALID && strstr(err.text, cases[i].says) != NULL;
        if (!right) {
            fail_msg("%s\n  with %s\n  gave %d \"%s\"\n  not \"%s\"", cases[i].text, cases[i].model,
                     st, err.text, cases[i].says ? cases[i].says : "ok");
        }
    }
}

/* Inputs of a binding ascend by the model's index, whatever the map's order. */
static void binding_is_sorted(void **state)
{
    (void)state;
    struct nr_model_config *m = complete(MODEL("8") IO("input", "p", "FP32", "4") IO(
        "input", "q", "FP32", "4") IO("output", "y", "FP32", "4"));
    struct nr_model_config *c = complete(
        HEAD "input { name: 'too' data_type: TYPE_FP32 dims: 4 } ensemble_scheduling { step { "
             "model_name: 'm' input_map [ { key: 'q' value: 'in' }, { key: 'p' value: 'too' } ] "
             "output_map { key: 'y' value: 'out' } } }");
    struct nr_arena a;
    struct nr_err err = {0};
    struct nr_member member = {.sig = &m->sig};
    nr_arena_init(&a, 0);
    assert_int_equal(nr_ensemble_bind(c, &a, &member, &err), NARU_OK);
    assert_int_equal(member.inputs[0].index, 0);
    assert_int_equal(member.inputs[0].tensor, 1); /* p gets `too` */
    assert_int_equal(member.inputs[1].index, 1);
    assert_int_equal(member.inputs[1].tensor, 0);
    nr_arena_done(&a);
    nr_config_free(c);
    nr_config_free(m);
}

/* --- naru's own steps ------------------------------------------------------------------------- */

#define P(key, value) \
    "parameters { key: 'naru.step.0." key "' value { string_value: '" value "' } } "
#define OWN(kind, in_name, from, out_name, to)                                            \
    "ensemble_scheduling { step { model_name: 'naru." kind "' input_map { key: '" in_name \
    "' value: '" from "' } output_map { key: '" out_name "' value: '" to "' } } } "
#define SHAPES(batch, it, id, ot, od)                                           \
    "platform: 'ensemble' max_batch_size: " batch " " IO("input", "in", it, id) \
        IO("output", "out", ot, od)
#define DECODE OWN("image_decode", "IMAGE", "in", "PIXELS", "out")
#define RESIZE OWN("image_resize", "PIXELS", "in", "PIXELS", "out")
#define NORMAL OWN("image_normalize", "PIXELS", "in", "TENSOR", "out")
#define ENCODE OWN("image_encode", "TENSOR", "in", "IMAGE", "out")
#define SPLIT                                                                              \
    "output { name: 'two' data_type: TYPE_FP32 dims: -1 } ensemble_scheduling { step { "   \
    "model_name: 'naru.split' input_map { key: 'INPUT' value: 'in' } output_map [ { key: " \
    "'OUTPUT0' value: 'out' }, { key: 'OUTPUT1' value: 'two' } ] } } "
#define IF                                                                                      \
    "ensemble_scheduling { step { model_name: 'naru.if' input_map [ { key: 'CONDITION' value: " \
    "'in' }, { key: 'INPUT' value: 'in' } ] output_map { key: 'THEN' value: 'out' } } } "
#define JOIN                                                                                  \
    "input { name: 'in2' data_type: TYPE_FP32 dims: [ 2, 3 ] } ensemble_scheduling { step { " \
    "model_name: 'naru.join' input_map [ { key: 'INPUT0' value: 'in' }, { key: 'INPUT1' "     \
    "value: 'in2' } ] output_map { key: 'OUTPUT' value: 'out' } } } "

static void own_steps(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } cases[] = {
        {SHAPES("4", "STRING", "1", "UINT8", "[-1,-1,3]") DECODE, NULL},
        {SHAPES("4", "STRING", "1", "UINT8", "[-1,-1,1]") DECODE P("color", "GRAY"), NULL},
        {SHAPES("4", "STRING", "1", "UINT8", "[8,6,3]") DECODE P("size", "8x6") P("fit", "crop"),
         NULL},
        {SHAPES("4", "STRING", "1", "UINT8", "[6,8,3]") DECODE P("size", "8x6"),
         "output \"out\" of the ensemble is configured as UINT8 [-1,6,8,3], but step 0 (own step "
         "\"naru.image_decode\") writes UINT8 [-1,8,6,3]"},
        {SHAPES("0", "STRING", "1", "UINT8", "[-1,-1,3]") DECODE, NULL},
        {SHAPES("4", "UINT8", "1", "UINT8", "[-1,-1,3]") DECODE,
         "step 0: naru.image_decode takes as IMAGE BYTES [rows,1], not UINT8 [-1,1]"},
        {SHAPES("4", "STRING", "1", "UINT8", "[-1,-1,3]") DECODE P("color", "BGR"),
         "parameter color, value \"BGR\": expected RGB or GRAY"},
        {SHAPES("4", "STRING", "1", "UINT8", "[-1,-1,3]") DECODE P("mean", "1"),
         "naru.image_decode has no parameter \"mean\"; it takes color, size, resize, fit"},
        {SHAPES("4", "STRING", "1", "UINT8", "[-1,-1,3]") DECODE P("size", "1"), "size"},
        {SHAPES("4", "UINT8", "[-1,-1,3]", "UINT8", "[8,8,3]") RESIZE P("size", "8x8"), NULL},
        {SHAPES("4", "UINT8", "[-1,-1,1]", "UINT8", "[8,8,1]") RESIZE P("size", "8x8"), NULL},
        {SHAPES("4", "UINT8", "[-1,-1,3]", "UINT8", "[8,8,3]") RESIZE,
         "naru.image_resize needs parameter size"},
        {SHAPES("4", "UINT8", "[-1,-1,4]", "UINT8", "[8,8,4]") RESIZE P("size", "8x8"),
         "takes as PIXELS UINT8 [rows,height,width,1 or 3], not UINT8 [-1,-1,-1,4]"},
        {SHAPES("4", "UINT8", "[8,8,3]", "FP32", "[3,8,8]") NORMAL P("mean", "0.4,0.5,0.6")
             P("std", "0.2"),
         NULL},
        {SHAPES("4", "UINT8", "[8,8,3]", "FP16", "[8,8,3]") NORMAL P("dtype", "FP16")
             P("layout", "NHWC") P("color", "BGR"),
         NULL},
        {SHAPES("4", "UINT8", "[8,8,3]", "FP32", "[1,8,8]") NORMAL P("color", "GRAY"), NULL},
        {SHAPES("4", "UINT8", "[8,8,3]", "FP32", "[3,8,8]") NORMAL P("dtype", "FP64"),
         "parameter dtype, value \"FP64\": expected FP32, FP16"},
        {SHAPES("4", "UINT8", "[8,8,3]", "FP32", "[3,8,8]") NORMAL P("layout", "CHW"),
         "parameter layout, value \"CHW\": expected NCHW or NHWC"},
        {SHAPES("4", "UINT8", "[8,8,3]", "FP32", "[3,8,8]") NORMAL P("std", "0"), "std"},
        {SHAPES("4", "FP32", "[3,-1,-1]", "STRING", "1") ENCODE, NULL},
        {SHAPES("0", "FP32", "[3,-1,-1]", "STRING", "1") ENCODE P("format", "jpeg")
             P("quality", "80"),
         NULL},
        {SHAPES("4", "UINT8", "[-1,-1,3]", "STRING", "1") ENCODE, NULL},
        {SHAPES("4", "UINT8", "[3,-1,-1]", "STRING", "1") ENCODE P("layout", "NCHW"), NULL},
        {SHAPES("4", "FP32", "[-1,-1,3]", "STRING", "1") ENCODE P("layout", "NHWC"), NULL},
        {SHAPES("4", "FP32", "[4,8,8]", "STRING", "1") ENCODE, "numbers [1 or 3,height,width]"},
        {SHAPES("4", "FP32", "[3,8,8]", "STRING", "1") ENCODE P("quality", "0"),
         "parameter quality, value \"0\": expected a whole number from 1 to 100"},
        {SHAPES("4", "FP32", "[3,8,8]", "STRING", "1") ENCODE P("format", "gif"),
         "png, jpeg or webp"},
        {SHAPES("4", "FP32", "4", "FP32", "4") IF, NULL},
        {SHAPES("4", "FP32", "4", "FP32", "4") IF P("compare", ">=") P("value", "0.5")
             P("over", "all"),
         NULL},
        {SHAPES("4", "FP32", "4", "FP32", "4") IF P("compare", "~"), "expected one of != =="},
        {SHAPES("4", "FP32", "4", "FP32", "4") IF P("value", "much"), "expected a number"},
        {SHAPES("4", "FP32", "4", "FP32", "4") IF P("over", "some"), "expected any or all"},
        {SHAPES("4", "STRING", "4", "STRING", "4") IF, "takes as CONDITION numbers or BOOL"},
        {SHAPES("4", "FP32", "4", "FP32", "2") SPLIT, NULL},
        {SHAPES("4", "FP32", "4", "FP32", "3") SPLIT P("sizes", "3, -1"), NULL},
        {SHAPES("4", "FP32", "4", "FP32", "3") SPLIT P("sizes", "3,2"),
         "dimension 0 of INPUT [-1,4] cannot be split into these 2 parts"},
        {SHAPES("4", "FP32", "5", "FP32", "2") SPLIT, "cannot be split into 2 parts"},
        {SHAPES("4", "FP32", "4", "FP32", "2") SPLIT P("sizes", "-1,-1"), "-1 at most once"},
        {SHAPES("4", "FP32", "4", "FP32", "2") SPLIT P("sizes", "0,4"), "expected numbers"},
        {SHAPES("4", "FP32", "4", "FP32", "2") SPLIT P("axis", "1"),
         "axis 1 does not exist in INPUT [-1,4]"},
        {SHAPES("4", "FP32", "4", "FP32", "2") SPLIT P("axis", "x"), "the number of a dimension"},
        {SHAPES("4", "FP32", "[2,3]", "FP32", "[4,3]") JOIN, NULL},
        {SHAPES("4", "FP32", "[2,3]", "FP32", "[2,6]") JOIN P("axis", "1"), NULL},
        {SHAPES("4", "FP32", "[2,4]", "FP32", "[2,7]") JOIN P("axis", "1"), NULL},
        {SHAPES("4", "FP32", "[2,4]", "FP32", "[4,4]") JOIN,
         "naru.join takes as INPUT1 the datatype and shape of INPUT0"},
        {SHAPES("4", "STRING", "[2,3]", "STRING", "[4,3]") JOIN, "elements of a fixed size"},
    };
    for (size_t i = 0; i < NR_COUNT(cases); i++) {
        struct nr_err err = {0};
        struct nr_model_config *c;
        struct nr_arena a;
        struct nr_member member = {0};
        const struct nr_config_opts opts = {0};
        nr_arena_init(&a, 0);
        nr_status st = parse(cases[i].text, &c, &err);
        if (st == NARU_OK) {
            st = nr_config_complete(c, NULL, &opts, &err);
        }
        if (st == NARU_OK) {
            st = nr_ensemble_bind(c, &a, &member, &err);
        }
        bool right = cases[i].says == NULL
                         ? st == NARU_OK
                         : st == NARU_INVALID && strstr(err.text, cases[i].says) != NULL;
        if (!right) {
            fail_msg("%s\n  gave %d \"%s\"\n  not \"%s\"", cases[i].text, st, err.text,
                     cases[i].says ? cases[i].says : "ok");
        }
        nr_arena_done(&a);
        nr_config_free(c);
    }
}

/* Every nr_try_* of parsing fails once: an error, no leak. */
static void memory_ends(void **state)
{
    (void)state;
    static const char text[] =
        SHAPES("4", "STRING", "1", "UINT8", "[8,6,3]") DECODE P("size", "8x6");
    for (uint64_t n = 1; n < 400; n++) {
        struct nr_model_config *c;
        struct nr_err err = {0};
        nr_mem_fail_after(n, false);
        nr_status st = parse(text, &c, &err);
        nr_mem_fail_after(0, false);
        if (st == NARU_OK) {
            nr_config_free(c);
            assert_true(n > 1);
            return;
        }
        assert_int_equal(st, NARU_NOMEM);
    }
    fail();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refused_by_text),   cmocka_unit_test(too_many_steps),
        cmocka_unit_test(order_of_steps),    cmocka_unit_test(members_fit),
        cmocka_unit_test(binding_is_sorted), cmocka_unit_test(own_steps),
        cmocka_unit_test(memory_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
