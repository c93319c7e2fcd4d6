"""Linux system call numbers of the two supported architectures, and the policy of the jail over them.

Numbers: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h of Linux 6.18. None: not there.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Syscall:
    name: str
    x86_64: int | None
    aarch64: int | None


def _table(rows: str) -> tuple[Syscall, ...]:
    return tuple(_row(line) for line in rows.strip().splitlines())


def _row(line: str) -> Syscall:
    name, x86_64, aarch64 = line.split()
    return Syscall(name, None if x86_64 == "-" else int(x86_64), None if aarch64 == "-" else int(aarch64))


# What an interpreter, its numeric libraries and an embedded database need. Everything that is not here answers EPERM:
# sockets of any family (also AF_UNIX), fork, exec, chmod, chown, utimes, xattrs, links, memfd, shared memory, ...
ALLOWED = _table("""
read 0 63
write 1 64
readv 19 65
writev 20 66
pread64 17 67
pwrite64 18 68
preadv 295 69
pwritev 296 70
preadv2 327 286
pwritev2 328 287
lseek 8 62
close 3 57
close_range 436 436
dup 32 23
dup2 33 -
dup3 292 24
flock 73 32
fsync 74 82
fdatasync 75 83
ftruncate 77 46
fallocate 285 47
fadvise64 221 223
readahead 187 213
sendfile 40 71
copy_file_range 326 285
pipe 22 -
pipe2 293 59
access 21 -
faccessat 269 48
faccessat2 439 439
stat 4 -
lstat 6 -
fstat 5 80
newfstatat 262 79
statx 332 291
statfs 137 43
fstatfs 138 44
readlink 89 -
readlinkat 267 78
getdents 78 -
getdents64 217 61
getcwd 79 17
chdir 80 49
fchdir 81 50
umask 95 166
mkdir 83 -
mkdirat 258 34
rmdir 84 -
unlink 87 -
unlinkat 263 35
rename 82 -
renameat 264 38
renameat2 316 276
mmap 9 222
munmap 11 215
mprotect 10 226
mremap 25 216
madvise 28 233
brk 12 214
msync 26 227
mincore 27 232
mlock 149 228
munlock 150 229
membarrier 324 283
rt_sigaction 13 134
rt_sigprocmask 14 135
rt_sigreturn 15 139
rt_sigpending 127 136
rt_sigsuspend 130 133
rt_sigtimedwait 128 137
sigaltstack 131 132
restart_syscall 219 128
futex 202 98
futex_waitv 449 449
set_robust_list 273 99
get_robust_list 274 100
set_tid_address 218 96
rseq 334 293
sched_yield 24 124
sched_getaffinity 204 123
sched_getparam 143 121
sched_getscheduler 145 120
sched_get_priority_max 146 125
sched_get_priority_min 147 126
getpriority 140 141
clock_gettime 228 113
clock_getres 229 114
clock_nanosleep 230 115
nanosleep 35 101
gettimeofday 96 169
time 201 -
times 100 153
getitimer 36 102
setitimer 38 103
alarm 37 -
pause 34 -
getpid 39 172
gettid 186 178
getppid 110 173
getpgid 121 155
getpgrp 111 -
getsid 124 156
getuid 102 174
geteuid 107 175
getgid 104 176
getegid 108 177
getgroups 115 158
getresuid 118 148
getresgid 120 150
uname 63 160
sysinfo 99 179
getrusage 98 165
getrlimit 97 163
getcpu 309 168
getrandom 318 278
arch_prctl 158 -
capget 125 90
poll 7 -
ppoll 271 73
select 23 -
pselect6 270 72
epoll_create 213 -
epoll_create1 291 20
epoll_ctl 233 21
epoll_wait 232 -
epoll_pwait 281 22
eventfd 284 -
eventfd2 290 19
timerfd_create 283 85
timerfd_settime 286 86
timerfd_gettime 287 87
exit 60 93
exit_group 231 94
wait4 61 260
waitid 247 95
""")

# Allowed for some arguments only; seccomp.py states which.
CONDITIONAL = _table("""
openat 257 56
clone 56 220
prctl 157 167
ioctl 16 29
fcntl 72 25
kill 62 129
tgkill 234 131
prlimit64 302 261
""")

# Answer ENOSYS, so that the C library falls back to a call whose arguments a filter can read.
ABSENT = _table("""
clone3 435 435
openat2 437 437
""")

# No tool has a reason to try these: the process is killed, which cannot be caught and is reported as SYSCALL_DENIED.
FATAL = _table("""
ptrace 101 117
process_vm_readv 310 270
process_vm_writev 311 271
bpf 321 280
io_uring_setup 425 425
io_uring_enter 426 426
io_uring_register 427 427
keyctl 250 219
add_key 248 217
request_key 249 218
mount 165 40
umount2 166 39
move_mount 429 429
open_tree 428 428
fsopen 430 430
fsmount 432 432
fsconfig 431 431
pivot_root 155 41
chroot 161 51
unshare 272 97
setns 308 268
userfaultfd 323 282
perf_event_open 298 241
init_module 175 105
finit_module 313 273
delete_module 176 106
kexec_load 246 104
kexec_file_load 320 294
reboot 169 142
swapon 167 224
swapoff 168 225
pidfd_getfd 438 438
""")
