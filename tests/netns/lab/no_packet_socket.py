"""Runs a program that may not open packet sockets: NO_PACKET_SOCKET.py PROGRAM [ARGUMENT...]

A seccomp filter answers EPERM to socket(AF_PACKET, ...), as the sandbox of a service does.
"""

import ctypes
import errno
import os
import struct
import sys

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
SOCKET = {"x86_64": 41, "aarch64": 198}[os.uname().machine]
AF_PACKET = 17

# BPF: load the word at an offset of struct seccomp_data, jump if equal, return.
LOAD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
SYSCALL_NUMBER, FIRST_ARGUMENT = 0, 16
ALLOW, ERRNO = 0x7FFF0000, 0x00050000

PROGRAM = [
    (LOAD, 0, 0, SYSCALL_NUMBER),
    (JUMP_EQUAL, 0, 3, SOCKET),
    (LOAD, 0, 0, FIRST_ARGUMENT),
    (JUMP_EQUAL, 0, 1, AF_PACKET),
    (RETURN, 0, 0, ERRNO | errno.EPERM),
    (RETURN, 0, 0, ALLOW),
]

code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in PROGRAM))
program = struct.pack("HxxxxxxP", len(PROGRAM), ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(program), 0, 0) != 0:
    sys.exit(f"seccomp: {os.strerror(ctypes.get_errno())}")
os.execvp(sys.argv[1], sys.argv[1:])
