/* SPDX-License-Identifier: Apache-2.0 */
BPF_F_TABLE("lpm_trie", struct net_key, struct rule, net_rules, NET_RULES, 1);
int guard_sock_create(void *ctx) { return 1; }
int guard_bind4(void *ctx) { return 1; }
int guard_bind6(void *ctx) { return 1; }
int guard_connect4(void *ctx) { return 1; }
int guard_connect6(void *ctx) { return 1; }
int guard_sendmsg4(void *ctx) { return 1; }
int guard_sendmsg6(void *ctx) { return 1; }
