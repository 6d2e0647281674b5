/*
 * Virtio GPU: a model of the device around the states of blob mappings
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "virtio-gpu-mapping-model.h"

/* The device's part of an unmap. Returns: whether it went well */
static bool unmap(Model *m, ModelBlob *b, bool *suspended)
{
    switch (virtio_gpu_mapping_unmap(&b->state)) {
    case VIRTIO_GPU_UNMAP_NOTHING:
        return true;
    case VIRTIO_GPU_UNMAP_START:
        /* once per mapping: the guest cannot lose it twice */
        g_assert_true(b->in_guest);
        b->in_guest = false;
        m->blocked++;
        *suspended = true;
        return true;
    case VIRTIO_GPU_UNMAP_WAIT:
        *suspended = true;
        return true;
    case VIRTIO_GPU_UNMAP_FINISH:
        /* never under somebody who uses it, and once per mapping */
        g_assert_false(b->in_use);
        g_assert_true(b->in_renderer);
        if (m->refuse) {
            m->refuse = false;
            return false;
        }
        b->in_renderer = false;
        g_assert_true(virtio_gpu_mapping_unmapped(&b->state));
        return true;
    }
    g_assert_not_reached();
}

static void destroy(ModelBlob *b)
{
    /* The renderer frees the memory */
    g_assert_false(b->in_use);
    *b = (ModelBlob) { 0 };
}

/* Returns: whether the command is done, well or not */
static bool execute(Model *m, const ModelCommand *cmd)
{
    ModelBlob *b = &m->blob[cmd->blob];
    bool suspended = false;

    switch (cmd->event) {
    case EV_MAP:
        b->exists = true;
        if (virtio_gpu_mapping_may_map(b->state)) {
            g_assert_false(b->in_renderer || b->in_use);
            b->in_renderer = b->in_guest = b->in_use = true;
            g_assert_true(virtio_gpu_mapping_mapped(&b->state));
        }
        break;
    case EV_UNMAP:
        if (b->exists) {
            unmap(m, b, &suspended);
        }
        break;
    case EV_UNREF:
        if (b->exists && unmap(m, b, &suspended) && !suspended) {
            destroy(b);
        }
        break;
    }
    return !suspended;
}

/* The main loop, until it has nothing to do */
static void run(Model *m)
{
    if (m->reset && !m->blocked) {
        for (int i = 0; i < m->blobs; i++) {
            bool suspended = false;

            unmap(m, &m->blob[i], &suspended);
            g_assert_false(suspended);
            destroy(&m->blob[i]);
        }
        m->reset = false;
    }
    while (!m->reset && !m->blocked && m->head < m->tail &&
           execute(m, &m->queue[m->head])) {
        m->queue[m->head++].answers++;
    }
}

static void check(const Model *m)
{
    int in_flight = 0;

    for (int i = 0; i < m->blobs; i++) {
        const ModelBlob *b = &m->blob[i];
        bool started = b->state == VIRTIO_GPU_MAPPING_UNMAP_STARTED;

        g_assert_cmpint(b->in_guest, ==,
                        b->state == VIRTIO_GPU_MAPPING_MAPPED);
        g_assert_cmpint(b->in_use, ==, b->in_guest || started);
        g_assert_cmpint(b->in_renderer, ==,
                        b->state != VIRTIO_GPU_MAPPING_NONE);
        g_assert_true(b->exists || !b->in_renderer);
        in_flight += started;
        if (m->reset) {
            g_assert_false(b->in_guest);
        }
    }
    g_assert_cmpint(m->blocked, ==, m->others + in_flight);
    for (int i = 0; i < m->tail; i++) {
        g_assert_cmpint(m->queue[i].answers, ==, i < m->head);
    }
    if (!m->blocked) {
        /* nothing is left lying */
        g_assert_false(m->reset);
        g_assert_cmpint(m->head, ==, m->tail);
    }
}

static void region_freed(Model *m, ModelBlob *b)
{
    g_assert_true(b->in_use);
    b->in_use = false;
    g_assert_true(virtio_gpu_mapping_region_freed(&b->state));
    m->blocked--;
}

int model_events(const Model *m)
{
    return m->blobs * EV_PER_BLOB + EV_GLOBAL;
}

static bool happen_to_blob(Model *m, int event, int blob)
{
    ModelBlob *b = &m->blob[blob];

    if (event == EV_FREED) {
        if (!b->in_use || b->in_guest) {
            return false;
        }
        region_freed(m, b);
        return true;
    }
    g_assert_cmpint(m->tail, <, MODEL_MAX_EVENTS);
    m->queue[m->tail++] = (ModelCommand) { .event = event, .blob = blob };
    return true;
}

static bool happen_to_device(Model *m, int event)
{
    switch (event) {
    case EV_RESET:
        for (int i = 0; i < m->blobs; i++) {
            bool suspended;

            if (m->blob[i].state == VIRTIO_GPU_MAPPING_MAPPED) {
                unmap(m, &m->blob[i], &suspended);
            }
        }
        /* Nobody waits for these answers any more */
        m->tail = m->head;
        m->reset = true;
        return true;
    case EV_BLOCK:
        m->blocked++;
        m->others++;
        return true;
    case EV_UNBLOCK:
        if (!m->others) {
            return false;
        }
        m->blocked--;
        m->others--;
        return true;
    case EV_REFUSE:
        if (m->refuse) {
            return false;
        }
        m->refuse = true;
        return true;
    }
    g_assert_not_reached();
}

bool model_happen(Model *m, int event)
{
    int of_blobs = m->blobs * EV_PER_BLOB;
    bool happened = event < of_blobs ?
        happen_to_blob(m, event % EV_PER_BLOB, event / EV_PER_BLOB) :
        happen_to_device(m, event - of_blobs);

    if (happened) {
        run(m);
        check(m);
    }
    return happened;
}

static bool free_regions(Model *m)
{
    bool any = false;

    for (int i = 0; i < m->blobs; i++) {
        any |= model_happen(m, i * EV_PER_BLOB + EV_FREED);
    }
    return any;
}

void model_come_to_rest(Model m)
{
    while (m.others) {
        model_happen(&m, m.blobs * EV_PER_BLOB + EV_UNBLOCK);
    }
    while (m.blocked) {
        g_assert_true(free_regions(&m));
    }
    g_assert_cmpint(m.head, ==, m.tail);

    m.refuse = false;
    m.head = m.tail = 0;
    model_happen(&m, m.blobs * EV_PER_BLOB + EV_RESET);
    free_regions(&m);
    model_happen(&m, EV_MAP);
    g_assert_true(m.blob[0].in_guest);
}
