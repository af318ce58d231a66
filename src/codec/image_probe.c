/* Headers of JPEG, PNG and WebP files, and the one EXIF entry that matters: orientation.
 *
 * Each probe walks the file's blocks to its end: a file that was cut short is refused here, before
 * memory is spent on it, and counts that a library would only find while working (scans) are known.
 * The walk is tolerant where the libraries are (stray bytes between JPEG segments, unknown chunks,
 * a broken EXIF block) and never follows an offset outside the file.
 *
 * INVARIANTS
 *  1. `pos` never passes file.len; every read is checked first.
 *  2. No loop without progress of at least one byte: the walk is linear in the file's size.
 * Threads: pure functions. Sources: ITU T.81 annex B, PNG 3rd edition clause 5, RFC 9649.
 */
#include <inttypes.h>
#include <webp/decode.h>

#include "codec/image_priv.h"

static uint32_t be16(const uint8_t *p)
{
    return ((uint32_t)p[0] << 8) | p[1];
}

static uint32_t be32(const uint8_t *p)
{
    return (be16(p) << 16) | be16(p + 2);
}

static uint32_t le16(const uint8_t *p)
{
    return p[0] | ((uint32_t)p[1] << 8);
}

static uint32_t le32(const uint8_t *p)
{
    return le16(p) | (le16(p + 2) << 16);
}

uint8_t nr_exif_orientation(struct nr_str block)
{
    if (nr_str_starts(block, NR_STR("Exif\0\0"))) {
        block.ptr += 6;
        block.len -= 6;
    }
    const uint8_t *p = (const uint8_t *)block.ptr;
    if (block.len < 14) {
        return 1;
    }
    bool big = p[0] == 'M';
    uint32_t (*u16)(const uint8_t *) = big ? be16 : le16;
    uint32_t (*u32)(const uint8_t *) = big ? be32 : le32;
    if ((!big && p[0] != 'I') || p[1] != p[0] || u16(p + 2) != 42) {
        return 1;
    }
    size_t at = u32(p + 4);
    if (at > block.len - 2) {
        return 1;
    }
    uint32_t entries = u16(p + at);
    at += 2;
    for (uint32_t i = 0; i < entries && block.len - at >= 12; i++, at += 12) {
        if (u16(p + at) != 0x0112) {
            continue;
        }
        uint32_t type = u16(p + at + 2);
        uint32_t value = type == 3 ? u16(p + at + 8) : type == 4 ? u32(p + at + 8) : 0;
        return value >= 1 && value <= 8 ? (uint8_t)value : 1;
    }
    return 1;
}

/* JPEG: the frame header (SOF). */
static nr_status jpeg_frame(uint8_t marker, struct nr_str seg, struct nr_image_info *ret,
                            struct nr_err *err)
{
    const uint8_t *p = (const uint8_t *)seg.ptr;
    if (seg.len < 6 || seg.len < 6 + (size_t)p[5] * 3) {
        return nr_fail(err, NARU_INVALID, "JPEG picture with a frame header of %zu bytes", seg.len);
    }
    if (ret->components != 0) {
        return nr_fail(err, NARU_INVALID, "JPEG picture with two frame headers");
    }
    /* baseline, extended, progressive; the same with arithmetic coding */
    if (marker != 0xc0 && marker != 0xc1 && marker != 0xc2 && marker != 0xc9 && marker != 0xca) {
        return nr_fail(err, NARU_MEDIA_TYPE,
                       "JPEG picture with coding process %u (lossless or hierarchical), which is "
                       "not read: send baseline or progressive JPEG",
                       marker - 0xc0U);
    }
    ret->bit_depth = p[0];
    ret->stored_height = be16(p + 1);
    ret->stored_width = be16(p + 3);
    ret->components = p[5];
    ret->progressive = marker == 0xc2 || marker == 0xca;
    if (ret->bit_depth != 8) {
        return nr_fail(err, NARU_MEDIA_TYPE,
                       "JPEG picture with %u bits per sample, which is not read: send 8 bits",
                       ret->bit_depth);
    }
    if (ret->components != 1 && ret->components != 3 && ret->components != 4) {
        return nr_fail(err, NARU_INVALID,
                       "JPEG picture with %u components: expected 1 (grey), 3 (colour) or 4 (CMYK)",
                       ret->components);
    }
    ret->channels = ret->components == 1 ? 1 : 3;
    return NARU_OK;
}

/* Position of the next marker's code behind entropy-coded data or stray bytes; len when none.
 * FF 00 is a stuffed byte and FF D0-D7 a restart, both belong to the data; FF FF is fill. */
static size_t jpeg_next_marker(const uint8_t *p, size_t pos, size_t len, bool in_scan)
{
    while (pos < len) {
        const uint8_t *ff = memchr(p + pos, 0xff, len - pos);
        if (ff == NULL) {
            return len;
        }
        pos = (size_t)(ff - p) + 1;
        while (pos < len && p[pos] == 0xff) {
            pos++;
        }
        if (pos < len && p[pos] != 0 && !(in_scan && p[pos] >= 0xd0 && p[pos] <= 0xd7)) {
            return pos;
        }
    }
    return len;
}

nr_status nr_jpeg_probe(struct nr_str file, struct nr_image_info *ret, struct nr_err *err)
{
    const uint8_t *p = (const uint8_t *)file.ptr;
    size_t pos = 2; /* behind SOI, which the sniffer has seen */
    bool in_scan = false, has_exif = false;
    while ((pos = jpeg_next_marker(p, pos, file.len, in_scan)) < file.len) {
        uint8_t marker = p[pos++];
        if (marker == 0xd9) {
            if (ret->components == 0 || ret->scans == 0) {
                return nr_fail(err, NARU_INVALID, "JPEG file that ends before any picture data");
            }
            return NARU_OK;
        }
        if (marker == 0x01 || (marker >= 0xd0 && marker <= 0xd8)) {
            continue; /* stands alone, no length */
        }
        if (file.len - pos < 2) {
            break;
        }
        size_t seg_len = be16(p + pos);
        if (seg_len < 2) {
            return nr_fail(err, NARU_INVALID, "JPEG segment %02X of length %zu", marker, seg_len);
        }
        if (seg_len > file.len - pos) {
            break;
        }
        struct nr_str seg = {file.ptr + pos + 2, seg_len - 2};
        pos += seg_len;
        if (marker >= 0xc0 && marker <= 0xcf && marker != 0xc4 && marker != 0xc8 &&
            marker != 0xcc) {
            nr_status st = jpeg_frame(marker, seg, ret, err);
            if (st != NARU_OK) {
                return st;
            }
        } else if (marker == 0xe1 && !has_exif && nr_str_starts(seg, NR_STR("Exif\0\0"))) {
            ret->orientation = nr_exif_orientation(seg);
            has_exif = true;
        } else if (marker == 0xda) {
            ret->scans++;
        }
        in_scan = ret->scans > 0;
    }
    return nr_fail(err, NARU_INVALID,
                   "JPEG file cut short: its %zu bytes end without an end-of-image marker",
                   file.len);
}

static nr_status png_header(const uint8_t *p, struct nr_image_info *ret, struct nr_err *err)
{
    static const uint8_t components[7] = {1, 0, 3, 3, 2, 0, 4};
    static const uint32_t depths[7] = {0x10116, 0, 0x10100, 0x116, 0x10100, 0, 0x10100};
    ret->stored_width = be32(p);
    ret->stored_height = be32(p + 4);
    ret->bit_depth = p[8];
    uint8_t type = p[9];
    ret->progressive = p[12] != 0;
    /* depths has bit n set when n bits per sample are allowed for the colour type */
    if (type > 6 || components[type] == 0 || p[8] > 16 || ((depths[type] >> p[8]) & 1) == 0 ||
        p[10] != 0 || p[11] != 0 || p[12] > 1) {
        return nr_fail(err, NARU_INVALID,
                       "PNG header with colour type %u, %u bits, compression %u, filter %u, "
                       "interlace %u: no such PNG",
                       type, p[8], p[10], p[11], p[12]);
    }
    ret->components = components[type];
    ret->channels = components[type] >= 3 ? 3 : 1;
    ret->has_alpha = type >= 4;
    ret->lossless = true;
    return NARU_OK;
}

nr_status nr_png_probe(struct nr_str file, struct nr_image_info *ret, struct nr_err *err)
{
    const uint8_t *p = (const uint8_t *)file.ptr;
    size_t pos = 8;
    bool header = false, data = false;
    while (file.len - pos >= 12) {
        size_t len = be32(p + pos);
        struct nr_str type = {file.ptr + pos + 4, 4};
        if (len > file.len - pos - 12) {
            break;
        }
        const uint8_t *body = p + pos + 8;
        pos += len + 12;
        if (!header) {
            if (!nr_str_is(type, "IHDR") || len != 13) {
                return nr_fail(err, NARU_INVALID, "PNG file that does not begin with its header");
            }
            nr_status st = png_header(body, ret, err);
            if (st != NARU_OK) {
                return st;
            }
            header = true;
        } else if (nr_str_is(type, "IDAT")) {
            data = true;
        } else if (nr_str_is(type, "tRNS") && !ret->has_alpha) {
            ret->has_alpha = true;
            ret->components++;
        } else if (nr_str_is(type, "eXIf")) {
            ret->orientation = nr_exif_orientation((struct nr_str){(const char *)body, len});
        } else if (nr_str_is(type, "IEND")) {
            if (!data) {
                return nr_fail(err, NARU_INVALID, "PNG file without picture data");
            }
            return NARU_OK;
        }
    }
    return nr_fail(err, NARU_INVALID, "PNG file cut short: its %zu bytes end without an IEND chunk",
                   file.len);
}

nr_status nr_webp_probe(struct nr_str file, struct nr_image_info *ret, struct nr_err *err)
{
    const uint8_t *p = (const uint8_t *)file.ptr;
    uint32_t riff = le32(p + 4);
    if (riff < 12) {
        return nr_fail(err, NARU_INVALID, "WebP file that says it has %u bytes", riff);
    }
    if (riff > file.len - 8) {
        return nr_fail(err, NARU_INVALID, "WebP file cut short: %zu bytes of %" PRIu64, file.len,
                       (uint64_t)riff + 8);
    }
    WebPBitstreamFeatures f;
    VP8StatusCode code = WebPGetFeatures(p, file.len, &f);
    if (code != VP8_STATUS_OK) {
        return nr_fail(err, NARU_INVALID, "WebP file with a broken header%s",
                       code == VP8_STATUS_NOT_ENOUGH_DATA ? " (cut short)" : "");
    }
    if (f.has_animation) {
        return nr_fail(err, NARU_MEDIA_TYPE,
                       "animated WebP pictures are not read: send a single picture");
    }
    ret->stored_width = (uint32_t)f.width;
    ret->stored_height = (uint32_t)f.height;
    ret->channels = 3;
    ret->components = f.has_alpha ? 4 : 3;
    ret->has_alpha = f.has_alpha != 0;
    ret->bit_depth = 8;
    ret->lossless = f.format == 2;
    size_t end = (size_t)riff + 8;
    for (size_t pos = 12; end - pos >= 8;) {
        size_t len = le32(p + pos + 4);
        if (len > end - pos - 8) {
            break; /* the decoder judges it */
        }
        if (memcmp(p + pos, "EXIF", 4) == 0) {
            ret->orientation = nr_exif_orientation((struct nr_str){file.ptr + pos + 8, len});
        }
        pos += NR_MIN(8 + len + (len & 1), end - pos);
    }
    return NARU_OK;
}
