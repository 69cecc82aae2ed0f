#!/usr/bin/env python3
"""Packs the binary for image/Dockerfile: archive.py OUT BINARY [LIBRARY...]
Packs busybox with links for its programs, for the image with a shell: archive.py --shell OUT BUSYBOX

The binary may have CAP_NET_RAW, CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON. They are permitted and not
effective: where a container is given only some of them, the kernel would refuse to start a file that
has all effective. Libraries are for binaries that are not static; they keep their paths. The licences and
the notices of third parties are packed too.
"""

import struct
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTICES = ["LICENSE-APACHE", "LICENSE-MIT", "THIRD-PARTY.md"]
NET_ADMIN, NET_RAW, PERFMON, BPF = 12, 13, 38, 39
# struct vfs_cap_data, revision 2 (linux/capability.h): permitted and inheritable, low and high.
REVISION = 0x02000000
PERMITTED = 1 << NET_ADMIN | 1 << NET_RAW | 1 << PERFMON | 1 << BPF
CAPABILITIES = struct.pack("<5I", REVISION, PERMITTED & 0xFFFFFFFF, 0, PERMITTED >> 32, 0)


def add_folder(archive, name, mode=0o755):
    folder = tarfile.TarInfo(name)
    folder.type, folder.mode = tarfile.DIRTYPE, mode
    archive.addfile(folder)


def add_file(archive, name, path, xattrs=None, mode=0o755):
    with open(path, "rb") as content:
        member = tarfile.TarInfo(name)
        member.mode = mode
        content.seek(0, 2)
        member.size = content.tell()
        content.seek(0)
        member.pax_headers = xattrs or {}
        archive.addfile(member, content)


def pack_shell(out, busybox):
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as archive:
        for folder in ["bin", "tmp"]:
            add_folder(archive, folder, 0o1777 if folder == "tmp" else 0o755)
        add_file(archive, "bin/busybox", busybox)
        programs = subprocess.check_output([busybox, "--list"], text=True).split()
        for program in programs:
            if program != "busybox":
                link = tarfile.TarInfo(f"bin/{program}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(link)
        notice = Path("/usr/share/doc/busybox-static/copyright")
        if notice.exists():
            for folder in ["usr", "usr/share", "usr/share/doc", "usr/share/doc/busybox"]:
                add_folder(archive, folder)
            add_file(archive, "usr/share/doc/busybox/copyright", notice, mode=0o644)


def pack_router(out, binary, *libraries):
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as archive:
        for folder in ["etc", "etc/mcastor", "usr", "usr/bin", "run"]:
            add_folder(archive, folder)
        # The control socket, whoever runs it. A tmpfs mounted here takes this mode over.
        add_folder(archive, "run/mcastor", 0o1777)
        # The joinfile of an MNAT ingress, and certificates and state of an MNAT server.
        for folder in ["var", "var/run", "var/lib"]:
            add_folder(archive, folder)
        for folder in ["var/run/mnat", "var/lib/mnat", "etc/mnat"]:
            add_folder(archive, folder, 0o1777)
        # tarfile writes surrogates as the bytes that they stand for.
        capabilities = CAPABILITIES.decode("utf-8", "surrogateescape")
        xattrs = {"SCHILY.xattr.security.capability": capabilities}
        add_file(archive, "usr/bin/mcastor", binary, xattrs)
        for folder in ["usr/share", "usr/share/doc", "usr/share/doc/mcastor"]:
            add_folder(archive, folder)
        for notice in NOTICES:
            add_file(archive, f"usr/share/doc/mcastor/{notice}", ROOT / notice, mode=0o644)
        for library in libraries:
            add_file(archive, library.lstrip("/"), library)


def main():
    if sys.argv[1] == "--shell":
        pack_shell(*sys.argv[2:])
    else:
        pack_router(*sys.argv[1:])


main()
