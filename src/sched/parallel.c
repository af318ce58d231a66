/* Ways of using the cores, tried and compared; see the header.
 *
 * DESIGN. A trial costs what the tried way is slower, so trials are short, end early when the difference is plain,
 * and come after a back-off that doubles with each that changed nothing. What leads away from the usual way must
 * be better by LEAVE_PERCENT, other changes by CHANGE_PERCENT, since times beside other processes vary by themselves. When the cost of the way in use changes by a third, conditions have
 * changed, and the back-off begins again.
 *
 * Each situation has a way that usually is best (measured on two cores: wide without others; quiet and crowd beside
 * them) and is in use until another one proves better. Crowd shares the form of quiet, so that few forms are
 * there at once; a form that nobody has used for a while is dropped, since a model's memory counts, too.
 *
 * An execution's cost is its time divided by rows and by how many ran meanwhile on average (an integral over
 * time, so it is exact when the number changes half-way). One that ran with fewer beside it than its way allows
 * and clients asked for says nothing of that way.
 *
 * INVARIANTS
 *  1. A form in `made` is there until nr_parallel_job says to drop it, and that only while nothing runs in it.
 *  2. All that run are of one way.
 */
#include "sched/parallel.h"

#include "base/clock.h"
#include "base/status.h"

#define SMOOTH 16
#define TRIAL_RUNS 12u
#define TRIAL_LEAST 4u    /* after so many a plain difference ends it */
#define PLAIN_PERCENT 20  /* worse by so much is plain */
#define KNOWN 8u          /* executions after which a cost may be compared */
#define SKIP 2u           /* first executions of a form pay for its memory */
#define LEAVE_PERCENT 5   /* better than what usually is best by so much */
#define CHANGE_PERCENT 2  /* better than another way by so much */
#define DRIFT_PERCENT 133 /* conditions have changed */
#define TRIAL_NS (3 * NR_S_NS)
#define BACKOFF_MIN_NS (2 * NR_S_NS)
#define BACKOFF_MAX_NS (60 * NR_S_NS)
#define RECENT_NS (100 * NR_MS_NS)
#define LOOK_NS (300 * NR_MS_NS)
#define PRESSED_PERCENT 30     /* of one core, that others use, and … */
#define PRESSED_ALL_PERCENT 10 /* … of all cores together; half of it to be free again */
#define PRESSED_LOOKS 2u       /* in a row */
#define UNUSED_NS (5 * NR_S_NS)
#define UNUSED_MAKES 100 /* and so many times as long as it took to make it */

const char *nr_way_text(nr_way way)
{
    static const char *const texts[] = {
#define NR_WAY_TEXT(symbol, text) text,
        NR_WAY_MAP(NR_WAY_TEXT)
#undef NR_WAY_TEXT
    };
    return (unsigned)way < NR_COUNT(texts) ? texts[way] : "none";
}

/* What is best most of the time. */
static nr_way usual(const struct nr_parallel *p, bool many, bool pressed)
{
    if (p->cfg.wish == NR_PARALLEL_NARROW) {
        return NR_WAY_SIDE;
    }
    if (p->cfg.wish == NR_PARALLEL_WIDE || !pressed) {
        return NR_WAY_WIDE;
    }
    return many && p->cfg.places > 1 ? NR_WAY_CROWD : NR_WAY_QUIET;
}

void nr_parallel_init(struct nr_parallel *p, const struct nr_parallel_cfg *cfg)
{
    *p = (struct nr_parallel){.cfg = *cfg, .made = 1u << NARU_FORM_WIDE};
    for (unsigned i = 0; i < 4; i++) {
        struct nr_parallel_side *s = &p->sides[i / 2][i % 2];
        *s = (struct nr_parallel_side){.trial = NR_WAY_NONE, .backoff_ns = BACKOFF_MIN_NS};
        s->home = usual(p, i / 2, i % 2);
        s->now = s->home;
    }
}

unsigned nr_parallel_lanes(const struct nr_parallel *p, nr_way way)
{
    unsigned lanes = way == NR_WAY_SIDE ? p->cfg.cores : way == NR_WAY_CROWD ? 2 * p->cfg.cores : 1;
    return NR_MIN(lanes, p->cfg.places);
}

/* The form that a way runs in. */
static uint32_t form_of(const struct nr_parallel *p, nr_way way)
{
    switch (way) {
    case NR_WAY_QUIET:
        return NARU_FORM_QUIET;
    case NR_WAY_SIDE:
        return NARU_FORM_NARROW;
    case NR_WAY_CROWD:
        return p->refused & (1u << NARU_FORM_QUIET) ? NARU_FORM_WIDE : NARU_FORM_QUIET;
    default:
        return NARU_FORM_WIDE;
    }
}

/* Can it run now? Asks for its form if not. */
static bool is_ready(struct nr_parallel *p, nr_way way)
{
    uint32_t bit = 1u << form_of(p, way);
    if ((p->made & bit) == 0) {
        p->wanted |= bit & ~p->refused;
        return false;
    }
    return true;
}

static bool is_possible(const struct nr_parallel *p, nr_way way)
{
    bool refused = (p->refused & (1u << form_of(p, way))) != 0;
    return !refused && (way == NR_WAY_WIDE || way == NR_WAY_QUIET || nr_parallel_lanes(p, way) > 1);
}

/* Ways that come into question. */
static bool is_candidate(const struct nr_parallel *p, bool many, bool pressed, nr_way way)
{
    if (p->cfg.wish != NR_PARALLEL_AUTO || !is_possible(p, way)) {
        return false;
    }
    switch (way) {
    case NR_WAY_WIDE:
        return true;
    case NR_WAY_QUIET:
        return pressed && (!many || p->cfg.places == 1);
    case NR_WAY_SIDE:
        return many;
    default:
        return many && pressed && p->demand > (int64_t)nr_parallel_lanes(p, NR_WAY_SIDE);
    }
}

nr_way nr_parallel_choose(struct nr_parallel *p, unsigned waiting, int64_t now_ns)
{
    if (!p->cfg.on) {
        return NR_WAY_WIDE;
    }
    bool recent = now_ns - p->demand_ns < RECENT_NS;
    bool many = waiting + p->n_running > 1 || (recent && p->demand > 1);
    p->chose_many = many;
    struct nr_parallel_side *s = &p->sides[many][p->pressed];
    nr_way way = s->trial != NR_WAY_NONE ? s->trial : s->now;
    if (!is_possible(p, way) || !is_ready(p, way)) {
        s->trial = NR_WAY_NONE;
        way = is_possible(p, s->now) && is_ready(p, s->now) ? s->now : NR_WAY_WIDE;
    }
    if (p->n_running == 0) {
        return way;
    }
    return way == p->running_way && p->n_running < nr_parallel_lanes(p, way) ? way : NR_WAY_NONE;
}

static void sum_area(struct nr_parallel *p, int64_t now_ns)
{
    p->area_ns += (int64_t)p->n_running * NR_MAX(now_ns - p->area_at_ns, 0);
    p->area_at_ns = now_ns;
}

struct nr_parallel_run nr_parallel_begin(struct nr_parallel *p, nr_way way, int64_t now_ns)
{
    if (!p->cfg.on) {
        return (struct nr_parallel_run){.way = way};
    }
    uint32_t form = form_of(p, way);
    sum_area(p, now_ns);
    if (p->n_running == 0 && now_ns - p->demand_ns > RECENT_NS) {
        p->look_ns = 0; /* what others did while we were idle is their affair */
    }
    p->n_running++;
    p->running_way = way;
    p->runs[way]++;
    p->form_running[form]++;
    p->form_used_ns[form] = now_ns;
    return (struct nr_parallel_run){.way = way,
                                    .many = p->chose_many,
                                    .pressed = p->pressed,
                                    .form = form,
                                    .area_ns = p->area_ns};
}

int64_t nr_parallel_beside(struct nr_parallel *p, const struct nr_parallel_run *run, int64_t run_ns,
                           int64_t now_ns)
{
    if (!p->cfg.on) {
        return 1000;
    }
    sum_area(p, now_ns);
    int64_t us = NR_MAX(run_ns / NR_US_NS, 1);
    return NR_MAX((p->area_ns - run->area_ns) / us, 1000);
}

/* The next way to try; NR_WAY_NONE: there is none, or its form is only being made. */
static nr_way next_candidate(struct nr_parallel *p, struct nr_parallel_side *s, bool many,
                             bool pressed)
{
    for (unsigned i = 1; i <= NR_WAYS; i++) {
        nr_way way = (nr_way)((s->last_candidate + i) % NR_WAYS);
        if (way != s->now && is_candidate(p, many, pressed, way)) {
            bool ready = is_ready(p, way);
            s->last_candidate = ready ? (unsigned)way : s->last_candidate;
            return ready ? way : NR_WAY_NONE;
        }
    }
    return NR_WAY_NONE;
}

/* What was measured some time ago may have been measured in another world. */
static void measure_anew(struct nr_way_cost *c)
{
    c->n = NR_MIN(c->n, SKIP);
}

static void end_trial(struct nr_parallel *p, struct nr_parallel_side *s, int64_t now_ns)
{
    int64_t old_ns = s->costs[s->now].row_ns, new_ns = s->costs[s->trial].row_ns;
    int64_t percent = s->now == s->home ? LEAVE_PERCENT : CHANGE_PERCENT;
    if (new_ns * (100 + percent) <= old_ns * 100) {
        s->now = s->trial;
        s->backoff_ns = BACKOFF_MIN_NS;
        p->n_changes++;
    } else {
        s->backoff_ns = NR_MIN(2 * s->backoff_ns, BACKOFF_MAX_NS);
    }
    s->trial = NR_WAY_NONE;
    s->next_ns = now_ns + s->backoff_ns;
    s->judged_ns = s->costs[s->now].row_ns;
}

static void consider(struct nr_parallel *p, const struct nr_parallel_run *run, int64_t now_ns)
{
    struct nr_parallel_side *s = &p->sides[run->many][run->pressed];
    const struct nr_way_cost *now = &s->costs[s->now];
    if (s->trial != NR_WAY_NONE) {
        const struct nr_way_cost *tried = &s->costs[s->trial];
        bool plain =
            s->trial_n >= TRIAL_LEAST && tried->row_ns * 100 > now->row_ns * (100 + PLAIN_PERCENT);
        if (s->trial_n >= TRIAL_RUNS || plain) {
            end_trial(p, s, now_ns);
        } else if (now_ns - s->trial_since_ns > TRIAL_NS) { /* too little happens to tell */
            s->trial = NR_WAY_NONE;
            s->next_ns = now_ns + s->backoff_ns;
        }
        return;
    }
    if (now->n < KNOWN) {
        return;
    }
    if (now->row_ns * 100 > s->judged_ns * DRIFT_PERCENT ||
        s->judged_ns * 100 > now->row_ns * DRIFT_PERCENT) {
        s->judged_ns = now->row_ns;
        s->backoff_ns = BACKOFF_MIN_NS;
        s->next_ns = NR_MIN(s->next_ns, now_ns);
    }
    if (now_ns >= s->next_ns) {
        s->trial = next_candidate(p, s, run->many, run->pressed);
        if (s->trial != NR_WAY_NONE) {
            s->trial_n = 0;
            measure_anew(&s->costs[s->trial]);
            s->trial_since_ns = now_ns;
            p->n_trials++;
        }
    }
}

static void learn(struct nr_way_cost *c, int64_t row_ns)
{
    c->n += c->n < 1000000;
    if (c->n <= SKIP) {
        c->row_ns = row_ns;
        return;
    }
    int64_t weight = NR_MIN((int64_t)(c->n - SKIP), SMOOTH);
    c->row_ns += (row_ns - c->row_ns) / weight;
}

void nr_parallel_end(struct nr_parallel *p, const struct nr_parallel_run *run, int64_t rows,
                     int64_t run_ns, unsigned waiting, int64_t now_ns)
{
    if (!p->cfg.on) {
        return;
    }
    int64_t demand = (int64_t)waiting + p->n_running;
    int64_t beside = nr_parallel_beside(p, run, run_ns, now_ns); /* thousandths */
    p->n_running--;
    p->form_running[run->form]--;
    p->demand = demand;
    p->demand_ns = now_ns;
    if (rows <= 0 || run->pressed != p->pressed) {
        return;
    }
    int64_t lanes = nr_parallel_lanes(p, run->way), full = NR_MIN(lanes, demand);
    if (beside * 4 < full * 3000) {
        return; /* it had more of the cores than this way gives */
    }
    struct nr_parallel_side *s = &p->sides[run->many][run->pressed];
    learn(&s->costs[run->way], NR_MAX(run_ns / rows, 1) * 1000 / beside);
    s->trial_n += run->way == s->trial;
    consider(p, run, now_ns);
}

bool nr_parallel_looks(const struct nr_parallel *p, int64_t now_ns)
{
    return p->cfg.on && p->cfg.wish == NR_PARALLEL_AUTO && now_ns - p->look_ns >= LOOK_NS;
}

/* A situation begins again: what is in use there is remembered, its figures are not. */
static void enter(struct nr_parallel_side *s, int64_t now_ns)
{
    for (unsigned i = 0; i < NR_WAYS; i++) {
        measure_anew(&s->costs[i]);
    }
    s->trial = NR_WAY_NONE;
    s->backoff_ns = BACKOFF_MIN_NS;
    s->next_ns = now_ns;
}

void nr_parallel_look(struct nr_parallel *p, int64_t busy_ns, int64_t own_ns, int64_t now_ns)
{
    int64_t since_ns = now_ns - p->look_ns;
    int64_t others_ns = (busy_ns - p->busy_ns) - (own_ns - p->own_ns);
    if (since_ns > 0 && p->look_ns != 0) {
        int64_t percent = others_ns * 100 / since_ns;
        int64_t much = NR_MAX(PRESSED_PERCENT, (int64_t)p->cfg.cores * PRESSED_ALL_PERCENT);
        p->n_pressing = percent >= (p->pressed ? much / 2 : much) ? p->n_pressing + 1 : 0;
        bool pressed = p->n_pressing >= (p->pressed ? 1 : PRESSED_LOOKS);
        if (pressed != p->pressed) {
            p->pressed = pressed;
            enter(&p->sides[false][pressed], now_ns);
            enter(&p->sides[true][pressed], now_ns);
        }
    }
    p->look_ns = now_ns;
    p->busy_ns = busy_ns;
    p->own_ns = own_ns;
}

/* When it may go, if nobody uses it before. */
static int64_t unused_at(const struct nr_parallel *p, uint32_t form)
{
    return p->form_used_ns[form] + NR_MAX(UNUSED_NS, UNUSED_MAKES * p->form_make_ns[form]);
}

int64_t nr_parallel_unused_ns(const struct nr_parallel *p)
{
    int64_t last_ns = 0;
    for (uint32_t f = NARU_FORM_WIDE + 1; f < NARU_FORMS; f++) {
        if ((p->made & (1u << f)) && p->cfg.wish == NR_PARALLEL_AUTO) {
            last_ns = NR_MAX(last_ns, unused_at(p, f));
        }
    }
    return last_ns;
}

static bool is_unused(const struct nr_parallel *p, uint32_t form, int64_t now_ns)
{
    return (p->made & (1u << form)) && p->form_running[form] == 0 && now_ns >= unused_at(p, form) &&
           p->cfg.wish == NR_PARALLEL_AUTO;
}

bool nr_parallel_has_job(const struct nr_parallel *p, int64_t now_ns)
{
    bool any = (p->wanted & ~p->made) != 0;
    for (uint32_t f = NARU_FORM_WIDE + 1; f < NARU_FORMS; f++) {
        any = any || is_unused(p, f, now_ns);
    }
    return any;
}

uint32_t nr_parallel_job(struct nr_parallel *p, int64_t now_ns, bool *ret_make)
{
    uint32_t todo = p->wanted & ~p->made;
    for (uint32_t f = NARU_FORM_WIDE + 1; f < NARU_FORMS; f++) {
        uint32_t bit = 1u << f;
        if (todo & bit) {
            *ret_make = true;
            p->form_make_ns[f] = now_ns;
            return f;
        }
        if ((p->made & bit) && is_unused(p, f, now_ns)) {
            p->made &= ~bit;
            *ret_make = false;
            return f;
        }
    }
    return 0;
}

void nr_parallel_made(struct nr_parallel *p, uint32_t form, bool ok, int64_t now_ns)
{
    uint32_t bit = 1u << form;
    p->wanted &= ~bit;
    p->made |= ok ? bit : 0;
    p->refused |= ok ? 0 : bit;
    p->form_used_ns[form] = now_ns;
    p->form_make_ns[form] = now_ns - p->form_make_ns[form];
    for (unsigned i = 0; i < 4 * NR_WAYS;
         i++) { /* its first executions pay for its memory, again */
        nr_way way = (nr_way)(i % NR_WAYS);
        if (form_of(p, way) == form) {
            p->sides[i / NR_WAYS / 2][i / NR_WAYS % 2].costs[way].n = 0;
        }
    }
}

bool nr_parallel_crowds(const struct nr_parallel *p)
{
    const struct nr_parallel_side *s = &p->sides[true][true];
    return p->pressed && (s->now == NR_WAY_CROWD || s->trial == NR_WAY_CROWD);
}

nr_way nr_parallel_way(const struct nr_parallel *p, bool many)
{
    return p->sides[many][p->pressed].now;
}
