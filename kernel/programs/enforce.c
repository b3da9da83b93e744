/* SPDX-License-Identifier: Apache-2.0 */
int hop_enforce(struct bpf_raw_tracepoint_args *ctx)
{
    hops.call(ctx, HOP_FINISH);
    return 0;
}
