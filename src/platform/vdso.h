/* SPDX-License-Identifier: MIT */
/*
 * vdso.h - the kernel's own clock_gettime, which reads the clock without a system call; see
 * vDSO(7).
 *
 * The kernel maps a small shared library into each process and tells its address behind the
 * environment, on the stack where the program began. Found there, because the C library's functions
 * that tell it may be replaced by others.
 */
#ifndef SMI_VDSO_H
#define SMI_VDSO_H

#include <elf.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#if defined(__x86_64__) || defined(__riscv)
#define SMI_VDSO_CLOCK "__vdso_clock_gettime"
#else
#define SMI_VDSO_CLOCK "__kernel_clock_gettime"
#endif

typedef int smi_vdso_clock(clockid_t clock, struct timespec *out); /* 0 or a negated errno */
static smi_vdso_clock *smi_vdso_clock_gettime;                     /* NULL: not found (yet) */

/* How many symbols a library has: the length of one of its two hash tables tells. */
static inline uint32_t smi_vdso_symbols(const uint32_t *hash, const uint32_t *gnu_hash)
{
    if (hash)
        return hash[1];
    if (!gnu_hash)
        return 0;
    uint32_t buckets = gnu_hash[0], first = gnu_hash[1], last = 0;
    const uint32_t *bucket = gnu_hash + 4 + 2 * gnu_hash[2], *chain = bucket + buckets;
    for (uint32_t i = 0; i < buckets; i++)
        last = bucket[i] > last ? bucket[i] : last;
    while (last >= first && (chain[last - first] & 1) == 0)
        last++;
    return last >= first ? last + 1 : 0;
}

static inline void *smi_vdso_find(const char *base, const char *name)
{
    const Elf64_Ehdr *header = (const void *)base;
    const Elf64_Phdr *segment = (const void *)(base + header->e_phoff);
    const Elf64_Dyn *dynamic = NULL;
    const char *zero = NULL; /* where its address 0 would be */
    for (int i = 0; i < header->e_phnum; i++)
        if (segment[i].p_type == PT_LOAD && !zero)
            zero = base + segment[i].p_offset - segment[i].p_vaddr;
        else if (segment[i].p_type == PT_DYNAMIC)
            dynamic = (const void *)(base + segment[i].p_offset);
    const char *text = NULL;
    const Elf64_Sym *symbols = NULL;
    const uint32_t *hash = NULL, *gnu_hash = NULL;
    for (; zero && dynamic && dynamic->d_tag != DT_NULL; dynamic++) {
        const void *at = zero + dynamic->d_un.d_ptr;
        if (dynamic->d_tag == DT_STRTAB)
            text = at;
        else if (dynamic->d_tag == DT_SYMTAB)
            symbols = at;
        else if (dynamic->d_tag == DT_HASH)
            hash = at;
        else if (dynamic->d_tag == DT_GNU_HASH)
            gnu_hash = at;
    }
    for (uint32_t i = 0, n = text && symbols ? smi_vdso_symbols(hash, gnu_hash) : 0; i < n; i++)
        if (symbols[i].st_shndx != SHN_UNDEF && strcmp(text + symbols[i].st_name, name) == 0)
            return (void *)(uintptr_t)(zero + symbols[i].st_value);
    return NULL;
}

#if defined(__GLIBC__) /* which tells constructors where the arguments are */
/* Behind the arguments lies the environment, behind that what the kernel tells, each ended by a
 * zero. */
__attribute__((constructor)) static void smi_vdso_look(int argc, char **argv)
{
    char **environment = argv + argc + 1;
    while (*environment)
        environment++;
    for (const Elf64_auxv_t *told = (const void *)(environment + 1); told->a_type != AT_NULL;
         told++)
        if (told->a_type == AT_SYSINFO_EHDR &&
            memcmp((const void *)told->a_un.a_val, ELFMAG, SELFMAG) == 0)
            __atomic_store_n(
                &smi_vdso_clock_gettime,
                (smi_vdso_clock *)smi_vdso_find((const void *)told->a_un.a_val, SMI_VDSO_CLOCK),
                __ATOMIC_RELAXED);
}
#endif

#endif
