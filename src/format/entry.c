/* SPDX-License-Identifier: MIT */
/* entry.c - entries of a transaction's log; see entry.h. */
#include "format/entry.h"

#include "platform/store.h"

static int len_is_possible(uint32_t type, uint64_t len)
{
    switch (type) {
    case SMF_ENTRY_ADD:
        return len > 0 && len <= SMF_LOG_PIECE;
    case SMF_ENTRY_ALLOC:
    case SMF_ENTRY_FREE:
    case SMF_ENTRY_RETIRE:
        return len == 0;
    case SMF_ENTRY_STORE:
        return len == 8;
    default:
        return type >= SMF_ENTRY_KIND && type < SMF_ENTRY_KIND + SMF_ENTRY_KINDS && len % 8 == 0 &&
               len <= 8 * SMF_ENTRY_WORDS;
    }
}

const char *smi_entry_read(const void *chunk, uint64_t at, uint64_t end, struct smi_logged *out)
{
    const uint64_t least = smi_entry_bytes(0);
    if (at % 8 != 0 || end % 8 != 0 || at > end || end - at < least)
        return "what is left has no room for an entry";
    const struct smf_entry *entry =
        (const struct smf_entry *)(const void *)((const uint8_t *)chunk + at);
    uint64_t head = SMI_LOAD(&entry->head), len = head & UINT32_MAX;
    *out = (struct smi_logged){.at = at,
                               .bytes = smi_entry_bytes(len),
                               .type = (uint32_t)(head >> SMF_ENTRY_TYPE),
                               .len = (uint32_t)len,
                               .ref = SMI_LOAD(&entry->ref)};
    if ((head & ~((uint64_t)0xff << SMF_ENTRY_TYPE)) != len || !len_is_possible(out->type, len))
        return "an entry has a type or length that none has";
    if (out->bytes > end - at)
        return "an entry is longer than what is left";
    const uint64_t *last =
        (const uint64_t *)(const void *)((const uint8_t *)chunk + at + out->bytes) - 1;
    return SMI_LOAD(last) == out->bytes ? NULL : "an entry's two lengths differ";
}

const char *smi_entry_before(const void *chunk, uint64_t first, uint64_t end,
                             struct smi_logged *out)
{
    const uint64_t least = smi_entry_bytes(0);
    if (end % 8 != 0 || first > end || end - first < least)
        return "what is left has no room for an entry";
    uint64_t bytes = SMI_LOAD((const uint64_t *)(const void *)((const uint8_t *)chunk + end) - 1);
    if (bytes % 8 != 0 || bytes < least || bytes > end - first)
        return "an entry is longer than what is left";
    return smi_entry_read(chunk, end - bytes, end, out);
}
