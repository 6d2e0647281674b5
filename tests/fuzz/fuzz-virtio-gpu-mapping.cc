/*
 * libFuzzer: the states of blob mappings, in long sequences of events
 *
 * The first byte is the number of blobs, each further one is an event. What
 * must hold is asserted by the model, which the unit test uses as well.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/cxx-begin.h"
#include "../../hw/display/virtio-gpu-mapping.h"
#include "qemu/cxx-end.h"

#include "../unit/virtio-gpu-mapping-model.hh"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size || size > Model::MAX_EVENTS) {
        return -1; /* not to be kept in the corpus */
    }

    Model model(1 + data[0] % Model::MAX_BLOBS);

    for (size_t i = 1; i < size; i++) {
        model.happen(data[i] % model.events());
    }
    model.come_to_rest();
    return 0;
}
