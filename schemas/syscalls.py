# SPDX-License-Identifier: Apache-2.0
"""The table of system calls: numbers by architecture and by entry. Pure; a test compares it with the kernel's own headers.

Everything that knows a call by name or number derives from here and from `schemas/watched.py` (what is read of a call).
Sources: arch/x86/entry/syscalls/syscall_{64,32}.tbl, include/uapi/asm-generic/unistd.h (arm64), include/uapi/linux/net.h, Linux 6.18.
A call of a 32-bit entry has the name of its 64-bit counterpart: `chown32` and the older 16-bit `chown` of i386 are `chown`.
"""

from __future__ import annotations

import platform
from typing import Final

from schemas.errors import Incompatible

# name:x86_64:arm64:i386, `-` where there is none; name=number where all three are the same
_ROWS: Final = """
read:0:63:3 write:1:64:4 open:2:-:5 close:3:57:6 stat:4:-:106,195 fstat:5:80:108,197 lstat:6:-:107,196 poll:7:-:168
lseek:8:62:19,140 mmap:9:222:90,192 mprotect:10:226:125 munmap:11:215:91 brk:12:214:45 rt_sigaction:13:134:174
rt_sigprocmask:14:135:175 rt_sigreturn:15:139:173 ioctl:16:29:54 pread64:17:67:180 pwrite64:18:68:181
readv:19:65:145 writev:20:66:146 access:21:-:33 pipe:22:-:42 select:23:-:82,142 sched_yield:24:124:158
mremap:25:216:163 msync:26:227:144 mincore:27:232:218 madvise:28:233:219 shmget:29:194:395 shmat:30:196:397
shmctl:31:195:396 dup:32:23:41 dup2:33:-:63 pause:34:-:29 nanosleep:35:101:162 getitimer:36:102:105 alarm:37:-:27
setitimer:38:103:104 getpid:39:172:20 sendfile:40:71:187,239 socket:41:198:359 connect:42:203:362 accept:43:202:-
sendto:44:206:369 recvfrom:45:207:371 sendmsg:46:211:370 recvmsg:47:212:372 shutdown:48:210:373 bind:49:200:361
listen:50:201:363 getsockname:51:204:367 getpeername:52:205:368 socketpair:53:199:360 setsockopt:54:208:366
getsockopt:55:209:365 clone:56:220:120 fork:57:-:2 vfork:58:-:190 execve:59:221:11 exit:60:93:1 wait4:61:260:114
kill:62:129:37 uname:63:160:122 semget:64:190:393 semop:65:193:- semctl:66:191:394 shmdt:67:197:398
msgget:68:186:399 msgsnd:69:189:400 msgrcv:70:188:401 msgctl:71:187:402 fcntl:72:25:55,221 flock:73:32:143
fsync:74:82:118 fdatasync:75:83:148 truncate:76:45:92,193 ftruncate:77:46:93,194 getdents:78:-:141 getcwd:79:17:183
chdir:80:49:12 fchdir:81:50:133 rename:82:-:38 mkdir:83:-:39 rmdir:84:-:40 creat:85:-:8 link:86:-:9 unlink:87:-:10
symlink:88:-:83 readlink:89:-:85 chmod:90:-:15 fchmod:91:52:94 chown:92:-:182,212 fchown:93:55:95,207
lchown:94:-:16,198 umask:95:166:60 gettimeofday:96:169:78 getrlimit:97:163:76,191 getrusage:98:165:77
sysinfo:99:179:116 times:100:153:43 ptrace:101:117:26 getuid:102:174:24,199 syslog:103:116:103 getgid:104:176:47,200
setuid:105:146:23,213 setgid:106:144:46,214 geteuid:107:175:49,201 getegid:108:177:50,202 setpgid:109:154:57
getppid:110:173:64 getpgrp:111:-:65 setsid:112:157:66 setreuid:113:145:70,203 setregid:114:143:71,204
getgroups:115:158:80,205 setgroups:116:159:81,206 setresuid:117:147:164,208 getresuid:118:148:165,209
setresgid:119:149:170,210 getresgid:120:150:171,211 getpgid:121:155:132 setfsuid:122:151:138,215
setfsgid:123:152:139,216 getsid:124:156:147 capget:125:90:184 capset:126:91:185 rt_sigpending:127:136:176
rt_sigtimedwait:128:137:177,421 rt_sigqueueinfo:129:138:178 rt_sigsuspend:130:133:179 sigaltstack:131:132:186
utime:132:-:30 mknod:133:-:14 uselib:134:-:86 personality:135:92:136 ustat:136:-:62 statfs:137:43:99,268
fstatfs:138:44:100,269 sysfs:139:-:135 getpriority:140:141:96 setpriority:141:140:97 sched_setparam:142:118:154
sched_getparam:143:121:155 sched_setscheduler:144:119:156 sched_getscheduler:145:120:157
sched_get_priority_max:146:125:159 sched_get_priority_min:147:126:160 sched_rr_get_interval:148:127:161,423
mlock:149:228:150 munlock:150:229:151 mlockall:151:230:152 munlockall:152:231:153 vhangup:153:58:111
modify_ldt:154:-:123 pivot_root:155:41:217 _sysctl:156:-:149 prctl:157:167:172 arch_prctl:158:-:384
adjtimex:159:171:124 setrlimit:160:164:75 chroot:161:51:61 sync:162:81:36 acct:163:89:51 settimeofday:164:170:79
mount:165:40:21 umount2:166:39:22,52 swapon:167:224:87 swapoff:168:225:115 reboot:169:142:88 sethostname:170:161:74
setdomainname:171:162:121 iopl:172:-:110 ioperm:173:-:101 create_module:174:-:127 init_module:175:105:128
delete_module:176:106:129 get_kernel_syms:177:-:130 query_module:178:-:167 quotactl:179:60:131 nfsservctl:180:42:169
getpmsg:181:-:188 putpmsg:182:-:189 afs_syscall:183:-:137 tuxcall:184:-:- security:185:-:- gettid:186:178:224
readahead:187:213:225 setxattr:188:5:226 lsetxattr:189:6:227 fsetxattr:190:7:228 getxattr:191:8:229
lgetxattr:192:9:230 fgetxattr:193:10:231 listxattr:194:11:232 llistxattr:195:12:233 flistxattr:196:13:234
removexattr:197:14:235 lremovexattr:198:15:236 fremovexattr:199:16:237 tkill:200:130:238 time:201:-:13
futex:202:98:240,422 sched_setaffinity:203:122:241 sched_getaffinity:204:123:242 set_thread_area:205:-:243
io_setup:206:0:245 io_destroy:207:1:246 io_getevents:208:4:247 io_submit:209:2:248 io_cancel:210:3:249
get_thread_area:211:-:244 lookup_dcookie:212:18:253 epoll_create:213:-:254 epoll_ctl_old:214:-:-
epoll_wait_old:215:-:- remap_file_pages:216:234:257 getdents64:217:61:220 set_tid_address:218:96:258
restart_syscall:219:128:0 semtimedop:220:192:420 fadvise64:221:223:250,272 timer_create:222:107:259
timer_settime:223:110:260,409 timer_gettime:224:108:261,408 timer_getoverrun:225:109:262 timer_delete:226:111:263
clock_settime:227:112:264,404 clock_gettime:228:113:265,403 clock_getres:229:114:266,406
clock_nanosleep:230:115:267,407 exit_group:231:94:252 epoll_wait:232:-:256 epoll_ctl:233:21:255 tgkill:234:131:270
utimes:235:-:271 vserver:236:-:273 mbind:237:235:274 set_mempolicy:238:237:276 get_mempolicy:239:236:275
mq_open:240:180:277 mq_unlink:241:181:278 mq_timedsend:242:182:279,418 mq_timedreceive:243:183:280,419
mq_notify:244:184:281 mq_getsetattr:245:185:282 kexec_load:246:104:283 waitid:247:95:284 add_key:248:217:286
request_key:249:218:287 keyctl:250:219:288 ioprio_set:251:30:289 ioprio_get:252:31:290 inotify_init:253:-:291
inotify_add_watch:254:27:292 inotify_rm_watch:255:28:293 migrate_pages:256:238:294 openat:257:56:295
mkdirat:258:34:296 mknodat:259:33:297 fchownat:260:54:298 futimesat:261:-:299 newfstatat:262:79:300
unlinkat:263:35:301 renameat:264:38:302 linkat:265:37:303 symlinkat:266:36:304 readlinkat:267:78:305
fchmodat:268:53:306 faccessat:269:48:307 pselect6:270:72:308,413 ppoll:271:73:309,414 unshare:272:97:310
set_robust_list:273:99:311 get_robust_list:274:100:312 splice:275:76:313 tee:276:77:315 sync_file_range:277:84:314
vmsplice:278:75:316 move_pages:279:239:317 utimensat:280:88:320,412 epoll_pwait:281:22:319 signalfd:282:-:321
timerfd_create:283:85:322 eventfd:284:-:323 fallocate:285:47:324 timerfd_settime:286:86:325,411
timerfd_gettime:287:87:326,410 accept4:288:242:364 signalfd4:289:74:327 eventfd2:290:19:328 epoll_create1:291:20:329
dup3:292:24:330 pipe2:293:59:331 inotify_init1:294:26:332 preadv:295:69:333 pwritev:296:70:334
rt_tgsigqueueinfo:297:240:335 perf_event_open:298:241:336 recvmmsg:299:243:337,417 fanotify_init:300:262:338
fanotify_mark:301:263:339 prlimit64:302:261:340 name_to_handle_at:303:264:341 open_by_handle_at:304:265:342
clock_adjtime:305:266:343,405 syncfs:306:267:344 sendmmsg:307:269:345 setns:308:268:346 getcpu:309:168:318
process_vm_readv:310:270:347 process_vm_writev:311:271:348 kcmp:312:272:349 finit_module:313:273:350
sched_setattr:314:274:351 sched_getattr:315:275:352 renameat2:316:276:353 seccomp:317:277:354 getrandom:318:278:355
memfd_create:319:279:356 kexec_file_load:320:294:- bpf:321:280:357 execveat:322:281:358 userfaultfd:323:282:374
membarrier:324:283:375 mlock2:325:284:376 copy_file_range:326:285:377 preadv2:327:286:378 pwritev2:328:287:379
pkey_mprotect:329:288:380 pkey_alloc:330:289:381 pkey_free:331:290:382 statx:332:291:383
io_pgetevents:333:292:385,416 rseq:334:293:386 pidfd_send_signal=424 io_uring_setup=425 io_uring_enter=426
io_uring_register=427 open_tree=428 move_mount=429 fsopen=430 fsconfig=431 fsmount=432 fspick=433 pidfd_open=434
clone3=435 close_range=436 openat2=437 pidfd_getfd=438 faccessat2=439 process_madvise=440 epoll_pwait2=441
mount_setattr=442 quotactl_fd=443 landlock_create_ruleset=444 landlock_add_rule=445 landlock_restrict_self=446
memfd_secret=447 process_mrelease=448 futex_waitv=449 set_mempolicy_home_node=450 setxattrat=463 getxattrat=464
listxattrat=465 removexattrat=466 open_tree_attr=467 file_getattr=468 file_setattr=469 mseal=462
lsm_list_modules=461 lsm_set_self_attr=460 lsm_get_self_attr=459 listmount=458 statmount=457 futex_requeue=456
futex_wait=455 futex_wake=454 map_shadow_stack=453 fchmodat2=452 cachestat=451 uretprobe:335:-:- waitpid:-:-:7
break:-:-:17 oldstat:-:-:18 stime:-:-:25 oldfstat:-:-:28 stty:-:-:31 gtty:-:-:32 nice:-:-:34 ftime:-:-:35
prof:-:-:44 signal:-:-:48 lock:-:-:53 mpx:-:-:56 ulimit:-:-:58 oldolduname:-:-:59 sigaction:-:-:67 sgetmask:-:-:68
ssetmask:-:-:69 sigsuspend:-:-:72 sigpending:-:-:73 oldlstat:-:-:84 readdir:-:-:89 profil:-:-:98 socketcall:-:-:102
olduname:-:-:109 idle:-:-:112 vm86old:-:-:113 ipc:-:-:117 sigreturn:-:-:119 sigprocmask:-:-:126 bdflush:-:-:134
vm86:-:-:166
"""
_SOCKETCALL: Final = (
    "- socket bind connect listen accept getsockname getpeername socketpair send recv sendto recvfrom shutdown setsockopt "
    "getsockopt sendmsg recvmsg accept4 recvmmsg sendmmsg"
)
# x32 has the numbers of x86-64 with bit 30 set, except for these (512 to 547).
_X32: Final = (
    "rt_sigaction rt_sigreturn ioctl readv writev recvfrom sendmsg recvmsg execve ptrace rt_sigpending rt_sigtimedwait "
    "rt_sigqueueinfo sigaltstack timer_create mq_notify kexec_load waitid set_robust_list get_robust_list vmsplice move_pages "
    "preadv pwritev rt_tgsigqueueinfo recvmmsg sendmmsg process_vm_readv process_vm_writev setsockopt getsockopt io_setup "
    "io_submit execveat preadv2 pwritev2"
)

I386_FIRST: Final = 512
SOCKETCALL_FIRST: Final = 1024
X32_FIRST: Final = 1088
ROWS: Final = 2048
"""Rows of a table of calls: [0, 512) the native numbers, then 32-bit ones (int 0x80, compat tasks), the sub-calls of i386's
socketcall(2), and x32. A behaviour's `syscall` is such a row, so that no number means two calls."""
SOCKETCALL: Final = 102
"""Number of socketcall(2) on i386: its first argument says which call it is, its second where the arguments lie."""
ENTRIES: Final = {
    "ROWS": ROWS, "I386_FIRST": I386_FIRST, "SOCKETCALL": SOCKETCALL, "SOCKETCALL_FIRST": SOCKETCALL_FIRST, "X32_FIRST": X32_FIRST,
}  # fmt: skip
"""What the kernel programs must know of the rows, by its name there."""


def _parse() -> dict[str, tuple[int | None, int | None, tuple[int, ...]]]:
    table: dict[str, tuple[int | None, int | None, tuple[int, ...]]] = {}
    for row in _ROWS.split():
        name, same, number = row.partition("=")
        if same:
            table[name] = (int(number), int(number), (int(number),))
            continue
        name, x86_64, arm64, i386 = row.split(":")
        table[name] = (
            None if x86_64 == "-" else int(x86_64),
            None if arm64 == "-" else int(arm64),
            () if i386 == "-" else tuple(map(int, i386.split(","))),
        )
    return table


NUMBERS: Final = _parse()
"""name -> numbers on x86_64, arm64 and i386."""
_COLUMN: Final = {"x86_64": 0, "aarch64": 1, "arm64": 1}
NAMES: Final = frozenset(name for name, row in NUMBERS.items() if row[0] is not None or row[1] is not None) | {"umount"}
"""What a policy may name: the calls of the 64-bit architectures, and `umount`, which is umount2 there."""
ALIASES: Final = {"umount": "umount2"}
"""Names a policy may use for a call that the kernel has under another one."""


def number(name: str, machine: str = platform.machine()) -> int | None:
    """Native number of call `name` on `machine`; None where it has none. Raises Incompatible for an unknown machine."""
    if machine not in _COLUMN:
        raise Incompatible(
            f"expected machine {' or '.join(_COLUMN)}, got `{machine}`; add its numbers to schemas/syscalls.py"
        )
    row = NUMBERS[name]
    return row[1] if _COLUMN[machine] else row[0]


def rows(name: str, machine: str = platform.machine()) -> tuple[int, ...]:
    """Every row of the table of calls of `machine` that is call `name`: the native one first, then those of foreign entries."""
    native = number(name, machine)
    found = [] if native is None else [native]
    if machine == "x86_64":
        found += [I386_FIRST + other for other in NUMBERS[name][2]]
        found += [SOCKETCALL_FIRST + index for index, call in enumerate(_SOCKETCALL.split()) if call == name]
        own = [X32_FIRST + 512 + index for index, call in enumerate(_X32.split()) if call == name]
        found += own or ([] if native is None else [X32_FIRST + native])
    return tuple(found)


def _names(machine: str) -> dict[int, str]:
    return {row: name for name in NUMBERS for row in rows(name, machine)}


BY_ARCHITECTURE: Final = {"x86_64": _names("x86_64"), "aarch64": (_ARM := _names("aarch64")), "arm64": _ARM}
"""architecture -> row -> name."""


def name(architecture: str, row: int) -> str:
    """`openat` for 257 on x86_64; `syscall_499` when this build does not know the row, never a guess."""
    return BY_ARCHITECTURE.get(architecture, {}).get(row) or f"syscall_{row}"
