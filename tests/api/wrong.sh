#!/bin/sh
# SPDX-License-Identifier: MIT
# wrong.sh FILE COMPILER ARGS... - FILE compiles; with each call that stores a ref and each argument that is not the
# address of a ref it does not, whatever warnings are off.
source=$1
shift
failed=0

said=$("$@" "$source" 2>&1) || { printf '%s\n' "$said"; exit 1; }
calls='
shmalloc_ref_alloc(heap,8,x)
shmalloc_ref_alloc_zeroed(heap,8,x)
shmalloc_ref_alloc_aligned(heap,16,8,x)
shmalloc_ref_alloc_tagged(heap,8,1,x)
shmalloc_ref_dup(heap,node,8,x)
shmalloc_ref_realloc(heap,x,8)
shmalloc_ref_free(heap,x)
shmalloc_retire(heap,x)
shmalloc_tx_alloc(heap,8,x)
shmalloc_tx_free(heap,x)
shmalloc_tx_retire(heap,x)'
wrong='block
node
&block
ref
node->next
*word
&number
&constant
&refs
(char*)block
(const_void*)block
node?block:block'
for call in $calls; do
    for argument in $wrong; do
        argument=$(printf %s "$argument" | tr _ ' ')
        if "$@" -w "-DCALL(x)=$call" "-DWRONG=$argument" "$source" 2>/dev/null; then
            echo "compiles: $call with x = $argument"
            failed=1
        fi
    done
done
exit $failed
