/* naru-image-tool: the codec's picture functions on the command line, for tests that compare them
 * with other implementations (tests/e2e/test_image_fidelity.py).
 *
 *   probe FILE                          one line of key=value
 *   decode FILE native|rgb|gray         "W H C\n" and the pixels
 *   resize FILE W H FILTER              the same
 *   encode FILE png|jpeg|webp QUALITY   the file (quality 0 default, "lossless" for WebP)
 *   tensor FILE SIGNATURE KEY=VALUE…    "TILES RANK SHAPE…\n" and the tensor rows of all tiles
 *   through FILE SIGNATURE KEY=VALUE…   the same tensors put together again: "W H C\n", pixels
 * SIGNATURE: in,FP32,3,-1,-1[;out,FP32,3,-1,-1], with a leading "+" when the model batches.
 * Results go to stdout, errors as "NARU_INVALID: text" to stderr with exit code 1.
 */
#include <stdio.h>

#include "base/buf.h"
#include "base/mem.h"
#include "codec/image_tensor.h"

#define MAX_PARAMS 32

static int fail(const struct nr_err *err)
{
    fprintf(stderr, "%s: %s\n", nr_status_name(err->status), err->text);
    return 1;
}

static struct nr_str read_file(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (f == NULL || fseek(f, 0, SEEK_END) != 0) {
        fprintf(stderr, "cannot read %s\n", path);
        exit(2);
    }
    long size = ftell(f);
    rewind(f);
    char *data = nr_alloc((size_t)size + 1);
    size_t got = fread(data, 1, (size_t)size, f);
    (void)fclose(f);
    return (struct nr_str){data, got};
}

static void write_image(const struct nr_image *img)
{
    printf("%u %u %u\n", img->width, img->height, img->channels);
    (void)fwrite(nr_image_data(img), 1, nr_image_row_bytes(img) * img->height, stdout);
}

static uint32_t number(const char *text)
{
    uint64_t v = 0;
    return nr_str_to_u64(nr_str_from(text), &v) ? (uint32_t)v : 0;
}

static int do_probe(struct nr_str file)
{
    struct nr_err err = {0};
    struct nr_image_info i;
    if (nr_image_probe(file.ptr, file.len, NULL, &i, &err) != NARU_OK) {
        return fail(&err);
    }
    printf("format=%s width=%u height=%u channels=%u depth=%u orientation=%u alpha=%d "
           "progressive=%d lossless=%d scans=%u\n",
           nr_image_format_name(i.format), i.width, i.height, i.channels, i.bit_depth,
           i.orientation, i.has_alpha, i.progressive, i.lossless, i.scans);
    return 0;
}

static int do_resize(const struct nr_image *img, char **args)
{
    struct nr_err err = {0};
    enum nr_resize_filter filter;
    struct nr_image out;
    if (!nr_resize_filter_parse(nr_str_from(args[2]), &filter) ||
        nr_image_resize(img, number(args[0]), number(args[1]), filter, &out, &err) != NARU_OK) {
        return fail(&err);
    }
    write_image(&out);
    nr_image_done(&out);
    return 0;
}

static int do_encode(const struct nr_image *img, char **args)
{
    struct nr_err err = {0};
    struct nr_image_encode_opts opts = {.quality = (int)number(args[1]),
                                        .lossless = strcmp(args[1], "lossless") == 0};
    struct nr_text out;
    nr_text_init(&out, 256 * 1024 * 1024);
    int rc = 0;
    if (!nr_image_format_parse(nr_str_from(args[0]), &opts.format) ||
        nr_image_encode(img, &opts, &out, &err) != NARU_OK) {
        rc = fail(&err);
    } else {
        (void)fwrite(out.data, 1, out.len, stdout);
    }
    nr_text_done(&out);
    return rc;
}

/* One "name,DTYPE,dim,…" */
static void parse_io(struct nr_str text, struct nr_image_io *io, int64_t *dims)
{
    struct nr_str rest;
    io->name = nr_str_cut(text, ',', &rest);
    struct nr_str type = nr_str_cut(rest, ',', &rest);
    for (int32_t t = NARU_DTYPE_NONE + 1; t < NARU_DTYPE_END; t++) {
        io->dtype = nr_str_is(type, naru_dtype_name(t)) ? t : io->dtype;
    }
    io->dims = dims;
    while (rest.ptr != NULL && io->rank < NARU_MAX_RANK) {
        if (!nr_str_to_i64(nr_str_cut(rest, ',', &rest), &dims[io->rank++])) {
            fprintf(stderr, "bad signature\n");
            exit(2);
        }
    }
}

static struct nr_image_plan *make_plan(char **args, int n)
{
    struct nr_err err = {0};
    struct nr_image_param params[MAX_PARAMS];
    struct nr_image_io ios[2] = {0};
    int64_t dims[2][NARU_MAX_RANK];
    struct nr_str text = nr_str_from(args[0]);
    bool batches = nr_str_starts(text, NR_STR("+"));
    text.ptr += batches;
    text.len -= batches;
    struct nr_str second;
    struct nr_str first = nr_str_cut(text, ';', &second);
    parse_io(first, &ios[0], dims[0]);
    parse_io(second.ptr != NULL ? second : first, &ios[1], dims[1]);
    size_t n_params = 0;
    for (int i = 1; i < n && n_params < MAX_PARAMS; i++, n_params++) {
        params[n_params].key = nr_str_cut(nr_str_from(args[i]), '=', &params[n_params].value);
    }
    struct nr_image_signature sig = {&ios[0], 1, &ios[1], 1, batches, false};
    struct nr_image_plan *plan;
    if (nr_image_plan_parse(params, n_params, &sig, &plan, &err) != NARU_OK) {
        exit(fail(&err));
    }
    return plan;
}

static int run_tiles(const struct nr_image_job *job, const struct nr_image *canvas, bool through,
                     struct nr_err *err)
{
    struct nr_image_stitch stitch;
    nr_image_stitch_init(&stitch, job);
    nr_autofree uint8_t *row = nr_alloc(job->tile_bytes);
    int rc = 0;
    for (uint32_t i = 0; i < job->n_tiles && rc == 0; i++) {
        nr_image_tile_write(job, canvas, i, row);
        if (!through) {
            (void)fwrite(row, 1, job->tile_bytes, stdout);
        } else if (nr_image_stitch_add(&stitch, i, job->plan->dtype, job->rank, job->shape, row,
                                       job->tile_bytes, err) != NARU_OK) {
            rc = fail(err);
        }
    }
    struct nr_image out = {0};
    if (through && rc == 0) {
        if (nr_image_stitch_take(&stitch, &out, err) != NARU_OK) {
            rc = fail(err);
        } else {
            write_image(&out);
        }
    }
    nr_image_done(&out);
    nr_image_stitch_done(&stitch);
    return rc;
}

static int do_tensor(const struct nr_image *img, char **args, int n, bool through)
{
    struct nr_err err = {0};
    struct nr_image_plan *plan = make_plan(args, n);
    struct nr_image_job job;
    struct nr_image canvas = {0};
    int rc;
    if (nr_image_job_init(plan, img->width, img->height, &job, &err) != NARU_OK ||
        nr_image_fit(&job, img, &canvas, &err) != NARU_OK) {
        rc = fail(&err);
    } else {
        if (!through) {
            printf("%u %u", job.n_tiles, job.rank);
            for (uint32_t i = 0; i < job.rank; i++) {
                printf(" %lld", (long long)job.shape[i]);
            }
            printf("\n");
        }
        rc = run_tiles(&job, &canvas, through, &err);
    }
    nr_image_done(&canvas);
    nr_image_plan_free(plan);
    return rc;
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: %s probe|decode|resize|encode|tensor|through FILE …\n", argv[0]);
        return 2;
    }
    struct nr_err err = {0};
    const char *verb = argv[1];
    nr_autofree const char *data = NULL;
    struct nr_str file = read_file(argv[2]);
    data = file.ptr;
    if (strcmp(verb, "probe") == 0) {
        return do_probe(file);
    }
    enum nr_image_color color = NR_IMAGE_NATIVE;
    if (strcmp(verb, "decode") == 0 && argc > 3) {
        color = strcmp(argv[3], "rgb") == 0    ? NR_IMAGE_RGB
                : strcmp(argv[3], "gray") == 0 ? NR_IMAGE_GRAY
                                               : NR_IMAGE_NATIVE;
    }
    nr_cleanup(nr_image_done) struct nr_image img;
    if (nr_image_decode(file.ptr, file.len, color, NULL, &img, &err) != NARU_OK) {
        return fail(&err);
    }
    if (strcmp(verb, "decode") == 0) {
        write_image(&img);
        return 0;
    }
    if (strcmp(verb, "resize") == 0 && argc == 6) {
        return do_resize(&img, argv + 3);
    }
    if (strcmp(verb, "encode") == 0 && argc == 5) {
        return do_encode(&img, argv + 3);
    }
    if ((strcmp(verb, "tensor") == 0 || strcmp(verb, "through") == 0) && argc > 3) {
        return do_tensor(&img, argv + 3, argc - 3, verb[0] == 't' && verb[1] == 'h');
    }
    return 2;
}
