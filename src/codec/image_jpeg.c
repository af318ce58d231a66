/* JPEG by libjpeg-turbo's TurboJPEG interface.
 *
 * The accurate integer DCT and smooth chroma upsampling are asked for: the settings that Pillow
 * and OpenCV use, so pixels agree with theirs. TurboJPEG ends a damaged file with grey and a
 * warning; here damage is an error, because a model would answer with confidence about the grey.
 * The one warning let through is stray bytes in front of a marker: common from cameras, harmless.
 *
 * INVARIANTS
 *  1. The library is only called with a buffer for the size that it reports itself (it writes what
 *     its own header parser says, whatever ours found).
 *  2. A handle lives within one call; no error text of one picture reaches another.
 * Threads: pure functions.
 */
#include <turbojpeg.h>

#include "codec/image_priv.h"

static void handle_done(tjhandle *h)
{
    if (*h != NULL) {
        (void)tjDestroy(*h);
    }
}

static bool is_harmless(const char *warning)
{
    return strstr(warning, "extraneous bytes before marker") != NULL ||
           strncmp(warning, "Corrupt JPEG data", 17) != 0;
}

/* The inks of CMYK JPEG files are stored inverted: 255 is no ink. */
static void rgb_from_cmyk(const uint8_t *src, uint8_t *dst, size_t n)
{
    for (size_t i = 0; i < n; i++, src += 4, dst += 3) {
        uint32_t light = src[3];
        for (size_t c = 0; c < 3; c++) {
            dst[c] = (uint8_t)(light - nr_mul255(255U - src[c], light));
        }
    }
}

static nr_status decompress(tjhandle h, struct nr_str file, const struct nr_image_info *info,
                            uint8_t *dst, struct nr_err *err)
{
    const unsigned char *data = (const unsigned char *)file.ptr;
    int width = 0, height = 0, subsampling, space;
    /* fails for unusual sampling factors, which decoding itself can do: only the size counts */
    (void)tjDecompressHeader3(h, data, file.len, &width, &height, &subsampling, &space);
    if (width != (int)info->stored_width || height != (int)info->stored_height) {
        return nr_fail(err, NARU_INVALID, "JPEG header cannot be read: %s", tjGetErrorStr2(h));
    }
    int format = info->components == 1 ? TJPF_GRAY : info->components == 3 ? TJPF_RGB : TJPF_CMYK;
    int rc = tjDecompress2(h, data, file.len, dst, width, 0, height, format, TJFLAG_ACCURATEDCT);
    const char *text = tjGetErrorStr2(h);
    if (rc != 0 && (tjGetErrorCode(h) != TJERR_WARNING || !is_harmless(text))) {
        bool nomem =
            strstr(text, "nsufficient memory") != NULL || strstr(text, "emory allocation") != NULL;
        return nr_fail(err, nomem ? NARU_NOMEM : NARU_INVALID, "JPEG picture cannot be decoded: %s",
                       text);
    }
    return NARU_OK;
}

nr_status nr_jpeg_decode(struct nr_str file, const struct nr_image_info *info, struct nr_image *img,
                         struct nr_err *err)
{
    nr_cleanup(handle_done) tjhandle h = tjInitDecompress();
    if (h == NULL) {
        return nr_fail(err, NARU_NOMEM, "no memory for a JPEG decoder");
    }
    nr_cleanup(nr_image_done) struct nr_image made = {0};
    nr_status st =
        nr_image_new(info->stored_width, info->stored_height, info->channels, &made, err);
    if (st != NARU_OK) {
        return st;
    }
    size_t pixels = (size_t)made.width * made.height;
    if (info->components == 4) {
        nr_cleanup(nr_image_buf_done) struct nr_buf *inks = nr_buf_try_new(pixels * 4);
        if (inks == NULL) {
            return nr_fail(err, NARU_NOMEM, "no memory for a CMYK picture of %u x %u pixels",
                           made.width, made.height);
        }
        st = decompress(h, file, info, nr_buf_data(inks), err);
        if (st == NARU_OK) {
            rgb_from_cmyk(nr_buf_data(inks), nr_image_data(&made), pixels);
        }
    } else {
        st = decompress(h, file, info, nr_image_data(&made), err);
    }
    if (st != NARU_OK) {
        return st;
    }
    *img = made;
    made = (struct nr_image){0};
    return NARU_OK;
}

nr_status nr_jpeg_encode(const struct nr_image *img, const struct nr_image_encode_opts *opts,
                         struct nr_text *out, struct nr_err *err)
{
    nr_cleanup(handle_done) tjhandle h = tjInitCompress();
    if (h == NULL) {
        return nr_fail(err, NARU_NOMEM, "no memory for a JPEG encoder");
    }
    int quality = opts->quality > 0 ? opts->quality : NR_IMAGE_QUALITY;
    int format = img->channels == 1 ? TJPF_GRAY : TJPF_RGB;
    int sampling = img->channels == 1 ? TJSAMP_GRAY : quality >= 95 ? TJSAMP_444 : TJSAMP_420;
    unsigned char *data = NULL;
    unsigned long len = 0;
    nr_status st;
    if (tjCompress2(h, nr_image_data(img), (int)img->width, 0, (int)img->height, format, &data,
                    &len, sampling, quality, TJFLAG_ACCURATEDCT) != 0) {
        st = nr_fail(err, NARU_INTERNAL, "JPEG picture cannot be written: %s", tjGetErrorStr2(h));
    } else {
        st = nr_image_emit(out, data, len, err);
    }
    tjFree(data);
    return st;
}
