/* SPDX-License-Identifier: MIT */
/*
 * version.c - the headers, the library and the build files name the same version.
 */
#include <shmalloc/shmalloc.h>

#include <stdio.h>
#include <string.h>

int main(void)
{
    char parts[64];
    snprintf(parts, sizeof(parts), "%d.%d.%d", SHMALLOC_VERSION_MAJOR, SHMALLOC_VERSION_MINOR,
             SHMALLOC_VERSION_PATCH);
    const char *const names[] = {SHMALLOC_VERSION, parts, shmalloc_version()};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(names[i], PROJECT_VERSION) != 0)
            return fprintf(stderr, "expected %s, found %s (%zu)\n", PROJECT_VERSION, names[i], i),
                   1;
    return 0;
}
