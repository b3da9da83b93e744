/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SipHash-1-3 with this load's key: ids must hold against a workload that chooses its own strings.
 * The twin is kernel/siphash.py; a test compares both.
 * HASH_START_A to _D stand for the key in the four words of the first state; the loader writes the real ones into the
 * instructions (kernel/compiled.py). In assembly, or the compiler would fold what is computed from them.
 */
#include "records.h"
#include "offsets.h"

struct sip {
    u64 a, b, c, d;
};

#define ROTL(x, n) ((x) << (n) | (x) >> (64 - (n)))

static __always_inline void sip_round(struct sip *s)
{
    s->a += s->b; s->b = ROTL(s->b, 13); s->b ^= s->a; s->a = ROTL(s->a, 32);
    s->c += s->d; s->d = ROTL(s->d, 16); s->d ^= s->c;
    s->a += s->d; s->d = ROTL(s->d, 21); s->d ^= s->a;
    s->c += s->b; s->b = ROTL(s->b, 17); s->b ^= s->c; s->c = ROTL(s->c, 32);
}

static __always_inline void sip_start(struct sip *s)
{
    asm volatile("%0 = " HASH_START_A " ll" : "=r"(s->a));
    asm volatile("%0 = " HASH_START_B " ll" : "=r"(s->b));
    asm volatile("%0 = " HASH_START_C " ll" : "=r"(s->c));
    asm volatile("%0 = " HASH_START_D " ll" : "=r"(s->d));
}

static __always_inline void sip_word(struct sip *s, u64 word)
{
    s->d ^= word;
    sip_round(s);
    s->a ^= word;
}

/* `tail`: the last 0..7 bytes, zero padded; `length`: bytes in all. */
static __always_inline u64 sip_end(struct sip *s, u64 tail, u64 length)
{
    sip_word(s, length << 56 | tail);
    s->c ^= 0xff;
    sip_round(s);
    sip_round(s);
    sip_round(s);
    return s->a ^ s->b ^ s->c ^ s->d;
}
