/*
 * libFuzzer: the states of blob mappings, in long sequences of events
 *
 * The first byte is the number of blobs, each further one is an event. What
 * must hold is asserted by the model, which the unit test uses as well.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "../unit/virtio-gpu-mapping-model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Model m = { 0 };

    if (!size || size > MODEL_MAX_EVENTS) {
        return -1; /* not to be kept in the corpus */
    }
    m.blobs = 1 + data[0] % MODEL_MAX_BLOBS;
    for (size_t i = 1; i < size; i++) {
        model_happen(&m, data[i] % model_events(&m));
    }
    model_come_to_rest(m);
    return 0;
}
