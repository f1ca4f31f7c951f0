/* SPDX-License-Identifier: MIT */
/* section.h - a thread's read section, in line; handle/readers.h says why it is safe. */
#ifndef SMI_SECTION_H
#define SMI_SECTION_H

#include "handle/readers.h"
#include "slots/context.h"

/* What lies between loads of what a section reads and the test that they counted. */
static inline void smi_fence_loads(uint64_t *word)
{
#ifdef __SANITIZE_THREAD__ /* it does not know fences */
    __atomic_fetch_add(word, 0, __ATOMIC_ACQ_REL);
#else
    (void)word;
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
#endif
}

/* Begin a section, or one in another; 0: this takes the long way. The context serves the heap. */
static inline int smi_section_begin(struct smi_thread *t)
{
    if (SMI_UNLIKELY(t->section_depth > 0)) {
        t->section_depth++;
        return 1;
    }
    uint64_t epoch = __atomic_load_n(&smi_state_of(t)->epoch, __ATOMIC_ACQUIRE);
    if (SMI_UNLIKELY(!t->section || epoch - 1 >= SMF_EPOCH_MOST))
        return 0;
    t->section_began = epoch;
    t->section_depth = 1;
    SMI_STORE(t->section, epoch);
    if (SMI_UNLIKELY(t->section_fences))
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return 1;
}

/* Does what the open section has loaded count? Asked after a ref is loaded and before it is
 * followed, and after what it leads to was copied. */
static inline int smi_section_is_valid(const struct smi_thread *t)
{
    smi_fence_loads(t->section);
    return SMI_LIKELY(SMI_LOAD(t->section + 1) < t->section_began);
}

/* End the section that was begun last: did all that it loaded count? */
static inline int smi_section_end(struct smi_thread *t)
{
    int valid = smi_section_is_valid(t);
    if (SMI_LIKELY(--t->section_depth == 0))
        __atomic_store_n(t->section, 0, __ATOMIC_RELEASE);
    t->ousts = SMI_LIKELY(valid) ? 0 : t->ousts + 1;
    return valid;
}

#endif
