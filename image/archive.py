#!/usr/bin/env python3
"""Packs the binary for image/Dockerfile: archive.py OUT BINARY [LIBRARY...]

The binary may have CAP_NET_RAW and CAP_NET_ADMIN. They are permitted and not effective: where a
container is given only one of the two, the kernel would refuse to start a file that has both
effective. Libraries are for binaries that are not static; they keep their paths. The licences and
the notices of third parties are packed too.
"""

import struct
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTICES = ["LICENSE-APACHE", "LICENSE-MIT", "THIRD-PARTY.md"]
NET_ADMIN, NET_RAW = 12, 13
# struct vfs_cap_data, revision 2 (linux/capability.h): permitted and inheritable, low and high.
REVISION = 0x02000000
PERMITTED = 1 << NET_ADMIN | 1 << NET_RAW
CAPABILITIES = struct.pack("<5I", REVISION, PERMITTED, 0, 0, 0)


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


def main():
    out, binary, *libraries = sys.argv[1:]
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as archive:
        for folder in ["etc", "etc/mcastor", "usr", "usr/bin", "run"]:
            add_folder(archive, folder)
        # The control socket, whoever runs it. A tmpfs mounted here takes this mode over.
        add_folder(archive, "run/mcastor", 0o1777)
        # The joinfile of an MNAT ingress.
        for folder in ["var", "var/run"]:
            add_folder(archive, folder)
        add_folder(archive, "var/run/mnat", 0o1777)
        xattrs = {"SCHILY.xattr.security.capability": CAPABILITIES.decode("ascii")}
        add_file(archive, "usr/bin/mcastor", binary, xattrs)
        for folder in ["usr/share", "usr/share/doc", "usr/share/doc/mcastor"]:
            add_folder(archive, folder)
        for notice in NOTICES:
            add_file(archive, f"usr/share/doc/mcastor/{notice}", ROOT / notice, mode=0o644)
        for library in libraries:
            add_file(archive, library.lstrip("/"), library)


main()
