/*
 * The end of the QMP dispatcher, as a model: all interleavings
 *
 * A model of monitor_qmp_stop() and _end(), the dispatcher and the threads
 * that wake it, small enough to visit each state that they can get into
 * together.  It has the rules of the code as switches, so that it also tells
 * what each of them is good for: with stock's rules, and with any one rule
 * missing, it finds what goes wrong.
 *
 * One step is what no other thread can look into: one access to something
 * that threads share.  Accesses are taken as sequentially consistent, as the
 * code uses full barriers for all of them.
 *
 * Names follow the code: monitor/qmp-shutdown.c, monitor/qmp.c,
 * qapi/qmp-dispatch.c, util/aio-wait.c and util/async.c.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"

#define THREADS 2
#define REQUESTS 3

typedef struct Rules {
    bool kick_wake;     /* qmp_dispatcher_co_wake() kicks */
    bool kick_dispatch; /* qmp_dispatch() kicks for its bottom half */
    bool kick_done;     /* do_qmp_dispatch_bh() kicks */
    bool kick_first;    /* kicks come before what they are for */
    bool waiter_late;   /* the waiter is counted after the first pass only */
    bool take_wake;     /* the dispatcher leaves busy set when it ends */
    bool early;         /* it is stopped before things are torn down */
} Rules;

/* What can go wrong */
typedef enum Fault {
    /* The wait never ends.  When it began, ... */
    HANG_PENDING = 1 << 0,  /* ... do_qmp_dispatch_bh() was pending */
    HANG_TWICE = 1 << 1,    /* ... a request was taken, but not dispatched */
    HANG_WAKING = 1 << 2,   /* ... a thread was about to wake the dispatcher */
    HANG_OTHER = 1 << 3,
    TORN_DOWN = 1 << 4,     /* a command is executed too late */
    WAKES_ENDED = 1 << 5,   /* the dispatcher is woken after its end */
    WAKES_TWICE = 1 << 6,   /* it is scheduled while it is scheduled */
    WRONG_ENTRY = 1 << 7,   /* it is entered while it waits for something */
    UNANSWERED = 1 << 8,    /* it ends before a request that it took */
} Fault;

static const char *const fault_names[] = {
    "hang: pending", "hang: woken twice", "hang: waking", "hang: other",
    "torn down", "wakes what has ended", "wakes twice", "wrong entry",
    "unanswered",
};

/* Where the dispatcher is: first where it yields, then where it runs */
enum {
    Y_IDLE, Y_TWICE, Y_COMMAND, Y_TO_MAIN, Y_IN_MAIN, Y_BACK, Y_PARKED, Y_END,
    ENDED,
    POP_CLEAR, POP_LOOK, TAKEN, DISPATCH, DISPATCH_2, BACK, END_TAKE, GONE,
};

/* Where a thread is that has read a request; the main thread wakes, too */
enum { T_IDLE, T_XCHG, T_READ, T_WAKE, T_WAKE_2 };

/* Where the main thread is */
enum {
    M_LOOP, M_TEAR, M_FLAG, M_WAKE, M_WAITER, M_PASS, M_IN_PASS, M_CHECK,
    M_POLL, M_IN_POLL, M_STOPPED, M_UNPARK, M_OVER,
};

typedef struct State {
    uint8_t busy, shutdown, co, queue, waiters, torn;
    uint8_t io_co, io_command;      /* bottom halves in iohandler_ctx */
    uint8_t main_co, main_kick;     /* the same in qemu_aio_context */
    uint8_t pass_co, pass_command;  /* those that the current pass runs */
    uint8_t bh;                     /* in do_qmp_dispatch_bh(): its next step */
    uint8_t at, running, coroutine; /* the dispatcher; kind of its command */
    uint8_t wanted;                 /* what it waits for has happened */
    uint8_t outside;                /* its command waits for the outside */
    uint8_t taken;                  /* it has a request */
    uint8_t main, main_wake;
    uint8_t last;                   /* it is in monitor_qmp_end() */
    uint8_t thread[THREADS];
    uint8_t left;                   /* requests that may still come */
    uint8_t began;                  /* the state in which the wait began */
} State;

typedef struct Model {
    Rules rules;
    GHashTable *seen;
    GPtrArray *todo;
    unsigned faults;
} Model;

static guint state_hash(gconstpointer p)
{
    const uint8_t *bytes = p;
    guint hash = 5381;

    for (size_t i = 0; i < sizeof(State); i++) {
        hash = hash * 33 + bytes[i];
    }
    return hash;
}

static gboolean state_equal(gconstpointer a, gconstpointer b)
{
    return !memcmp(a, b, sizeof(State));
}

/* A state that can come next */
static void reach(Model *m, State s)
{
    State *copy;

    if (!g_hash_table_contains(m->seen, &s)) {
        copy = g_memdup2(&s, sizeof(s));
        g_hash_table_add(m->seen, copy);
        g_ptr_array_add(m->todo, copy);
    }
}

/* aio_wait_kick() */
static void kick(State *s)
{
    if (s->waiters) {
        s->main_kick = 1;
    }
}

/* aio_co_schedule() into iohandler_ctx */
static void schedule(Model *m, State *s)
{
    if (s->at == ENDED) {
        m->faults |= WAKES_ENDED;
    } else if (s->io_co || s->main_co) {
        m->faults |= WAKES_TWICE;
    }
    s->io_co = 1;
}

/* The two steps of scheduling and kicking */
static void schedule_step(Model *m, State *s, bool kicks, bool first)
{
    if (first != m->rules.kick_first) {
        schedule(m, s);
    } else if (kicks) {
        kick(s);
    }
}

/* qmp_dispatcher_co_wake(), one step; returns where it goes on */
static uint8_t wake_step(Model *m, State *s, uint8_t at)
{
    switch (at) {
    case T_XCHG:
        if (s->busy) {
            return T_IDLE;
        }
        s->busy = 1;
        return T_READ;
    case T_READ:
        return s->co ? T_WAKE : T_IDLE;
    case T_WAKE:
        schedule_step(m, s, m->rules.kick_wake, true);
        return T_WAKE_2;
    case T_WAKE_2:
        schedule_step(m, s, m->rules.kick_wake, false);
        return T_IDLE;
    }
    g_assert_not_reached();
}

static void yield(State *s, uint8_t at)
{
    s->at = at;
    s->running = 0;
}

/* A command handler begins */
static void execute(Model *m, State *s)
{
    if (s->torn) {
        m->faults |= TORN_DOWN;
    }
}

/* Enter the dispatcher */
static void enter(Model *m, State *s)
{
    switch (s->at) {
    case Y_IDLE:
        s->at = POP_CLEAR;
        break;
    case Y_TWICE:
        s->at = DISPATCH;
        break;
    case Y_TO_MAIN:
        execute(m, s);
        s->at = Y_IN_MAIN;
        s->outside = 1;
        return; /* yields again at once */
    case Y_IN_MAIN:
        s->at = BACK;
        break;
    case Y_COMMAND:
    case Y_BACK:
        if (!s->wanted) {
            m->faults |= WRONG_ENTRY;
        }
        s->wanted = 0;
        if (m->rules.early && s->shutdown) {
            s->at = Y_PARKED;
            return; /* yields again at once */
        }
        s->taken = 0; /* answered */
        s->at = POP_CLEAR;
        break;
    case Y_PARKED:
        if (!s->last) {
            m->faults |= WRONG_ENTRY;
        }
        s->taken = 0;
        s->at = POP_CLEAR;
        break;
    case Y_END:
        s->at = GONE;
        break;
    default:
        m->faults |= WAKES_ENDED;
        return;
    }
    s->running = 1;
}

/* One step of the dispatcher, which the main thread is running */
static void dispatcher_step(Model *m, State s)
{
    State other;

    switch (s.at) {
    case POP_CLEAR:
        g_assert(s.busy);
        s.busy = 0;
        s.at = POP_LOOK;
        break;
    case POP_LOOK: /* monitor_lock held */
        if (s.shutdown) {
            s.at = m->rules.take_wake ? END_TAKE : GONE;
        } else if (s.queue) {
            s.queue--;
            s.taken = 1;
            s.at = TAKEN;
            s.coroutine = 0;
            other = s;
            other.coroutine = 1;
            reach(m, other);
        } else {
            yield(&s, Y_IDLE);
        }
        break;
    case TAKEN:
        if (s.busy) {
            yield(&s, Y_TWICE);
        } else {
            s.busy = 1;
            s.at = DISPATCH;
        }
        break;
    case DISPATCH:
        if (s.coroutine) {
            s.main_co = 1;
            yield(&s, Y_TO_MAIN);
            break;
        }
        if (m->rules.kick_first) {
            if (m->rules.kick_dispatch) {
                kick(&s);
            }
        } else {
            s.io_command = 1;
        }
        s.at = DISPATCH_2;
        break;
    case DISPATCH_2:
        if (m->rules.kick_first) {
            s.io_command = 1;
        } else if (m->rules.kick_dispatch) {
            kick(&s);
        }
        yield(&s, Y_COMMAND);
        break;
    case BACK:
        schedule(m, &s);
        s.wanted = 1;
        yield(&s, Y_BACK);
        break;
    case END_TAKE:
        if (s.busy) {
            yield(&s, Y_END);
        } else {
            s.busy = 1;
            s.at = GONE;
        }
        break;
    case GONE:
        if (s.taken) {
            m->faults |= UNANSWERED;
        }
        s.co = 0;
        yield(&s, ENDED);
        break;
    default:
        g_assert_not_reached();
    }
    reach(m, s);
}

/* One step of do_qmp_dispatch_bh() */
static void bh_step(Model *m, State s)
{
    if (s.bh == 1) {
        execute(m, &s);
        s.wanted = 1;
        schedule_step(m, &s, m->rules.kick_done, true);
        s.bh = 2;
    } else {
        schedule_step(m, &s, m->rules.kick_done, false);
        s.bh = 0;
    }
    reach(m, s);
}

/* Run what is pending in qemu_aio_context, one of it at a time */
static bool run_main(Model *m, State s, uint8_t then)
{
    State next;

    if (s.main_co) {
        next = s;
        next.main = then;
        next.main_co = 0;
        enter(m, &next);
        reach(m, next);
    }
    if (s.main_kick) {
        next = s;
        next.main = then;
        next.main_kick = 0;
        reach(m, next);
    }
    return s.main_co || s.main_kick;
}

/* Run what is pending in iohandler_ctx, or just what the pass has found */
static void run_io(Model *m, State s, bool pass)
{
    State next;

    if (pass ? s.pass_co : s.io_co) {
        next = s;
        next.pass_co = 0;
        if (s.io_co) {
            next.io_co = 0;
            enter(m, &next);
        }
        reach(m, next);
    }
    if (pass ? s.pass_command : s.io_command) {
        next = s;
        next.io_command = next.pass_command = 0;
        next.bh = 1;
        reach(m, next);
    }
}

static bool idle(const State *s)
{
    for (int i = 0; i < THREADS; i++) {
        if (s->thread[i] != T_IDLE) {
            return false;
        }
    }
    return true;
}

/* What the dispatcher is doing when the wait for its end begins */
static uint8_t describe(const State *s)
{
    if (s->at == Y_COMMAND && s->io_command) {
        return HANG_PENDING;
    } else if (s->at == Y_TWICE) {
        return HANG_TWICE;
    } else if (s->at == Y_IDLE && !s->io_co && !idle(s)) {
        return HANG_WAKING;
    }
    return HANG_OTHER;
}

/* One step of the main thread.  Returns false if it sleeps for good. */
static bool main_step(Model *m, State s)
{
    const Rules *rules = &m->rules;
    State next;

    if (s.running) {
        dispatcher_step(m, s);
        return true;
    }
    if (s.bh) {
        bh_step(m, s);
        return true;
    }

    switch (s.main) {
    case M_LOOP:
        run_main(m, s, M_LOOP);
        run_io(m, s, false);
        s.main = rules->early ? M_FLAG : M_TEAR;
        break;
    case M_TEAR: /* draining and so on polls qemu_aio_context */
        s.torn = 1;
        run_main(m, s, M_TEAR);
        s.main = rules->early ? M_UNPARK : M_FLAG;
        break;
    case M_FLAG: /* monitor_lock held */
        s.shutdown = 1;
        s.main = M_WAKE;
        s.main_wake = T_XCHG;
        break;
    case M_WAKE:
        s.main_wake = wake_step(m, &s, s.main_wake);
        if (s.main_wake == T_IDLE) {
            s.main = M_WAITER;
        }
        break;
    case M_WAITER:
        s.began = describe(&s);
        s.waiters = !rules->waiter_late;
        s.main = M_PASS;
        break;
    case M_PASS:
        s.pass_co = s.io_co;
        s.pass_command = s.io_command;
        s.main = M_IN_PASS;
        break;
    case M_IN_PASS:
        run_io(m, s, true);
        if (s.pass_co || s.pass_command) {
            return true;
        }
        s.main = M_CHECK;
        break;
    case M_CHECK:
        s.main = s.co && (s.at != Y_PARKED || s.last) ? M_POLL : M_STOPPED;
        break;
    case M_POLL:
        if (s.waiters) {
            return run_main(m, s, M_IN_POLL);
        }
        s.waiters = 1;
        break;
    case M_IN_POLL: /* runs one more, or goes on */
        run_main(m, s, M_IN_POLL);
        s.main = M_PASS;
        break;
    case M_STOPPED:
        s.waiters = 0;
        if (rules->early && !s.last) {
            s.main = M_TEAR;
            break;
        }
        if (!idle(&s)) {
            return true; /* iothread_stop() waits for it */
        }
        s.main = M_OVER;
        break;
    case M_UNPARK:
        s.last = 1;
        s.main = M_STOPPED;
        if (s.at == Y_PARKED) {
            schedule(m, &s);
            s.main = M_WAITER;
        }
        break;
    case M_OVER:
        return true;
    }
    next = s;
    reach(m, next);
    return true;
}

static void step(Model *m, State s)
{
    bool sleeps = !main_step(m, s);
    bool others = false;
    State next;

    for (int i = 0; i < THREADS; i++) {
        next = s;
        if (s.thread[i] != T_IDLE) {
            next.thread[i] = wake_step(m, &next, s.thread[i]);
            others = true;
        } else if (s.left && s.main != M_OVER) {
            /* A request comes in.  Nothing may depend on that. */
            next.left--;
            next.queue++;
            next.thread[i] = T_XCHG;
        } else {
            continue;
        }
        reach(m, next);
    }
    if (s.outside) {
        /* What the coroutine command waits for happens */
        next = s;
        next.outside = 0;
        next.main_co = 1;
        reach(m, next);
        others = true;
    }
    if (sleeps && !others) {
        m->faults |= s.began;
    }
}

/* Returns the faults that can happen with these rules */
static unsigned explore(const Rules *rules)
{
    Model m = {
        .rules = *rules,
        .seen = g_hash_table_new_full(state_hash, state_equal, g_free, NULL),
        .todo = g_ptr_array_new(),
    };
    /* monitor_init_globals() */
    State first = {
        .busy = true, .co = true, .io_co = true, .at = Y_IDLE,
        .left = REQUESTS,
    };

    reach(&m, first);
    while (m.todo->len) {
        step(&m, *(State *)g_ptr_array_steal_index_fast(m.todo,
                                                        m.todo->len - 1));
    }
    g_test_message("%u states", g_hash_table_size(m.seen));
    for (int i = 0; i < ARRAY_SIZE(fault_names); i++) {
        if (m.faults & (1 << i)) {
            g_test_message("%s", fault_names[i]);
        }
    }
    g_ptr_array_free(m.todo, true);
    g_hash_table_destroy(m.seen);
    return m.faults;
}

static const Rules stock;
static const Rules ours = {
    .kick_wake = true, .kick_dispatch = true, .kick_done = true,
    .take_wake = true, .early = true,
};

static void test_ours(void)
{
    g_assert_cmphex(explore(&ours), ==, 0);
}

static void test_stock(void)
{
    g_assert_cmphex(explore(&stock), ==,
                    HANG_PENDING | HANG_TWICE | HANG_WAKING | TORN_DOWN |
                    WAKES_ENDED);
}

/* The kick that comes to mind first closes one of three gaps */
static void test_one_kick(void)
{
    Rules rules = stock;

    rules.kick_done = true;
    g_assert_cmphex(explore(&rules), ==,
                    HANG_TWICE | HANG_WAKING | TORN_DOWN | WAKES_ENDED);
}

/* Our rules but one, and what goes wrong then, among other things */
static const struct {
    const char *path;
    size_t rule; /* offset of what is the other way round */
    unsigned faults;
} cases[] = {
#define CASE(name, field, faults) \
    { "/qmp-shutdown-model/" name, offsetof(Rules, field), faults }
    CASE("no-kick-wake", kick_wake, HANG_WAKING),
    CASE("no-kick-dispatch", kick_dispatch, HANG_TWICE),
    CASE("no-kick-done", kick_done, HANG_PENDING),
    CASE("kick-first", kick_first, HANG_WAKING),
    CASE("waiter-late", waiter_late, HANG_PENDING),
    CASE("no-take-wake", take_wake, WAKES_ENDED),
    CASE("late", early, TORN_DOWN),
#undef CASE
};

static void test_case(gconstpointer opaque)
{
    int number = GPOINTER_TO_INT(opaque);
    Rules rules = ours;
    bool *rule = (void *)&rules + cases[number].rule;

    *rule = !*rule;
    g_assert_cmphex(explore(&rules) & cases[number].faults, ==,
                    cases[number].faults);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/qmp-shutdown-model/ours", test_ours);
    g_test_add_func("/qmp-shutdown-model/stock", test_stock);
    g_test_add_func("/qmp-shutdown-model/one-kick", test_one_kick);
    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        g_test_add_data_func(cases[i].path, GINT_TO_POINTER(i), test_case);
    }
    return g_test_run();
}
